// The Vercel AI SDK, streamed and not: BASE_URL MODEL PICTURE.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {generateText, streamText} from "ai";

const [base, name, picture] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "moxin", baseURL: `${base}/v1`, apiKey: process.env.MOXIN_API_KEY ?? "none",
  includeUsage: true,
});
const model = provider(name);
const look = (question) => [{role: "user", content: [
  {type: "file", data: new Uint8Array(readFileSync(picture)), mediaType: "image/png"},
  {type: "text", text: question},
]}];

async function check(name, run) {
  await run();
  console.log(`ok: ${name}`);
}

await check("generateText", async () => {
  const answer = await generateText({model, messages: look("How many shapes are there?")});
  assert.equal(answer.text, "Three.");
  assert.equal(answer.finishReason, "stop");
  assert.equal(answer.usage.outputTokens, 2);
});
await check("streamText", async () => {
  const answer = streamText({model, messages: look("How many shapes are there?")});
  let text = "";
  for await (const part of answer.textStream) text += part;
  assert.equal(text, "Three.");
  assert.equal((await answer.usage).outputTokens, 2);
});
await check("an answer that is aborted", async () => {
  const abort = new AbortController();
  const answer = streamText({
    model, messages: look("Describe the picture."), abortSignal: abort.signal,
  });
  try {
    for await (const part of answer.textStream) {
      assert.ok(part);
      abort.abort();
    }
  } catch (error) {
    assert.equal(error.name, "AbortError");
  }
  const next = await generateText({model, messages: look("How many shapes are there?")});
  assert.equal(next.text, "Three.");
});
await check("an error", async () => {
  const wrong = generateText({
    model: provider("gpt-9"), messages: look("x"), maxRetries: 0,
  });
  await assert.rejects(wrong, (error) => error.statusCode === 404 && /gpt-9/.test(error.message));
});
