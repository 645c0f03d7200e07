// The contract with openai-node: BASE_URL MODEL PICTURE.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import OpenAI from "openai";

const [base, model, picture] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: `${base}/v1`, apiKey: process.env.MOXIN_API_KEY ?? "none", maxRetries: 0,
});
const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
const look = (question) => [{role: "user", content: [
  {type: "image_url", image_url: {url}}, {type: "text", text: question},
]}];
const count = look("How many shapes are there?");
const describe = look("Describe the picture.");

async function check(name, run) {
  await run();
  console.log(`ok: ${name}`);
}

const chat = (fields) => client.chat.completions.create({model, messages: count, ...fields});
const words = (await chat({messages: describe})).choices[0].message.content;

await check("a picture and a question", async () => {
  const answer = await chat({});
  assert.equal(answer.choices[0].message.content, "Three.");
  assert.equal(answer.usage.completion_tokens, 2);
});
await check("a streamed answer", async () => {
  const stream = await chat({
    messages: describe, stream: true, stream_options: {include_usage: true},
  });
  let text = "", usage;
  const ids = new Set();
  for await (const chunk of stream) {
    ids.add(chunk.id);
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, words);
  assert.equal(ids.size, 1);
  assert.ok(usage.completion_tokens > 5);
});
await check("the stream helper", async () => {
  const stream = client.chat.completions.stream({model, messages: describe});
  assert.equal(await stream.finalContent(), words);
});
await check("options", async () => {
  const stop = words.split(" ")[3];
  const stopped = await chat({messages: describe, stop: [stop, "??"]});
  assert.equal(stopped.choices[0].message.content, words.slice(0, words.indexOf(stop)));
  const short = await chat({messages: describe, max_completion_tokens: 3});
  assert.equal(short.choices[0].finish_reason, "length");
  const warm = {messages: describe, temperature: 2, seed: 5, max_tokens: 12, n: 2};
  const [a, b] = [await chat(warm), await chat(warm)];
  assert.deepEqual(a.choices, b.choices);
  assert.equal(a.choices.length, 2);
  const listed = await chat({messages: describe, logprobs: true, top_logprobs: 3, max_tokens: 4});
  assert.equal(listed.choices[0].logprobs.content.length, 4);
  assert.equal(listed.choices[0].logprobs.content[0].top_logprobs.length, 3);
});
await check("a stream that is aborted", async () => {
  const stream = await chat({messages: describe, stream: true});
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    stream.controller.abort();
    break;
  }
  assert.equal((await chat({})).choices[0].message.content, "Three.");
});
await check("errors", async () => {
  const refused = async (fields, type, param) => {
    const error = await chat(fields).then(() => assert.fail("not refused"), (error) => error);
    assert.ok(error instanceof type, String(error));
    assert.equal(error.param, param);
  };
  await refused({model: "gpt-9"}, OpenAI.NotFoundError, "model");
  await refused({temperature: -1}, OpenAI.BadRequestError, "temperature");
  await refused({stop: ["a", "b", "c", "d", "e"]}, OpenAI.BadRequestError, "stop");
  await refused({tools: [{type: "function", function: {name: "f"}}]}, OpenAI.BadRequestError, "tools");
});
await check("models", async () => {
  const ids = [];
  for await (const listed of client.models.list()) ids.push(listed.id);
  assert.ok(ids.includes(model));
  assert.equal((await client.models.retrieve(model)).id, model);
});
await check("responses", async () => {
  const input = [{role: "user", content: [
    {type: "input_image", image_url: url, detail: "auto"},
    {type: "input_text", text: "How many shapes are there?"},
  ]}];
  const answer = await client.responses.create({model, input});
  assert.equal(answer.output_text, "Three.");
  const events = [];
  for await (const event of await client.responses.create({model, input, stream: true})) {
    events.push(event);
  }
  assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, i) => i));
  assert.equal(events.at(-1).type, "response.completed");
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), "Three.");
});
