// Drives the server's page in a browser:
//
//   node page.mjs BASE_URL PICTURE.png [SCREENSHOT.png]
//
// CHROMIUM is the browser's path. The server has the small model, which takes one picture in a
// conversation, and no key.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {chromium} from "playwright-core";

const [base, picture, screenshot] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const pixels = readFileSync(picture).toString("base64");

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
});

// What went wrong in the page, whichever step caused it.
const faults = [];

async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(base) && !/^(data|blob):/.test(url)) faults.push(`request to ${url}`);
  });
  const response = await page.goto(base);
  const policy = response.headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe/);
  return page;
}

// The browser itself writes to the console when a request is refused: `refused` is that status.
async function step(name, run, refused) {
  await run();
  const left = faults.splice(0).filter((fault) => !refused || !fault.includes(` ${refused} `));
  assert.deepEqual(left, [], name);
  console.log(`ok: ${name}`);
}

async function choose(page) {
  await page.setInputFiles("#picture", picture);
  await page.waitForSelector("#pictures img");
}

async function ask(page, question) {
  const before = await page.locator(".answer").count();
  await page.fill("#question", question);
  await page.keyboard.press("Enter");
  const answer = page.locator(".answer").nth(before);
  await answer.waitFor();
  return answer;
}

async function answered(answer) {
  await answer.page().waitForSelector("#send:visible");
  return answer.locator("p").textContent();
}

// Gives the page a file as another program would. `content` is in base64; `padding` bytes follow.
async function transfer(page, event, type, {content = pixels, padding = 0} = {}) {
  await page.evaluate(({event, type, content, padding}) => {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    const file = [bytes, new Uint8Array(padding)];
    data.items.add(new File(file, `file.${type.split("/")[1]}`, {type}));
    const options = {bubbles: true, cancelable: true};
    const made = event === "paste"
      ? new ClipboardEvent(event, {...options, clipboardData: data})
      : new DragEvent(event, {...options, dataTransfer: data});
    document.body.dispatchEvent(made);
  }, {event, type, content, padding});
}

// Answers instead of the server.
function reply(page, ...events) {
  const text = (event) => typeof event === "string" ? event : JSON.stringify(event);
  return page.route("**/v1/chat/completions", (route) => route.fulfill({
    status: 200, contentType: "text/event-stream",
    body: events.map((event) => `data: ${text(event)}\n\n`).join(""),
  }));
}

function delta(content) {
  return {choices: [{index: 0, delta: {content}, finish_reason: null}]};
}

// Lists these models instead of the server's.
async function serve(page, ...models) {
  const moxin = {modalities: ["text", "image"], max_images: null, several_messages: true};
  const data = models.map(({id, ...other}) => ({id, moxin: {...moxin, ...other}}));
  await page.route("**/v1/models", (route) => route.fulfill({json: {object: "list", data}}));
  await Promise.all([page.waitForResponse("**/v1/models"), page.reload()]);
}

// Returns what the page sends.
function sent(page) {
  const bodies = [];
  page.on("request", (request) => {
    if (request.method() === "POST") bodies.push(JSON.parse(request.postData()));
  });
  return bodies;
}

async function checkAccessibility(page) {
  const isDark = await page.evaluate(() => matchMedia("(prefers-color-scheme: dark)").matches);
  // The scheme of the page comes last, and stays.
  for (const colorScheme of isDark ? ["light", "dark"] : ["dark", "light"]) {
    await page.emulateMedia({colorScheme});
    const result = await page.evaluate(`(() => { ${axe}; return axe.run(); })()`);
    const found = result.violations.map((one) => `${one.id}: ${one.nodes[0].html}`);
    assert.deepEqual(found, [], colorScheme);
  }
}

const page = await open({viewport: {width: 900, height: 1000}, colorScheme: "light"});

await step("a chosen picture is described", async () => {
  await choose(page);
  await checkAccessibility(page);
  const answer = await ask(page, "How many shapes are there?");
  assert.equal(await answered(answer), "Three.");
  assert.match(await answer.locator("small").textContent(), /^2 tokens, .*first after [\d.]+ s$/);
});

await step("the conversation goes on", async () => {
  const answer = await ask(page, "What is written?");
  assert.match(await answered(answer), /FISH/);
  await checkAccessibility(page);
  if (screenshot) {
    await answered(await ask(page, "Describe the picture."));
    await page.screenshot({path: screenshot});
  }
});

await step("a second picture is refused with a reason", async () => {
  await page.setInputFiles("#picture", picture);
  await page.waitForSelector("#status.wrong");
  assert.match(await page.textContent("#status"), /one picture/);
});

await step("a pasted picture is described", async () => {
  await page.click("#new");
  assert.equal(await page.locator(".answer").count(), 0);
  await transfer(page, "paste", "image/png");
  await page.waitForSelector("#pictures img");
  assert.equal(await answered(await ask(page, "How many shapes are there?")), "Three.");
});

await step("a dropped picture is described, and can be removed first", async () => {
  await page.click("#new");
  await transfer(page, "drop", "image/png");
  await page.waitForSelector("#pictures img");
  await page.click("#pictures button");
  assert.equal(await page.locator("#pictures img").count(), 0);
  await transfer(page, "drop", "image/png");
  await page.waitForSelector("#pictures img");
  assert.equal(await answered(await ask(page, "How many shapes are there?")), "Three.");
});

await step("what is no picture is refused", async () => {
  await page.click("#new");
  await transfer(page, "drop", "text/html");
  await page.waitForSelector("#status.wrong");
  assert.match(await page.textContent("#status"), /not a picture/);
});

await step("the camera takes a picture", async () => {
  await page.context().grantPermissions(["camera"]);
  await page.click("#camera");
  await page.waitForSelector("#pictures img");
  await page.click("#pictures button");
});

await step("an answer is stopped in the middle, and the conversation goes on", async () => {
  await page.click("#new");
  await choose(page);
  // The small model is too quick for a hand: only the first four events of its answer come.
  await page.evaluate(() => {
    const real = window.fetch;
    window.fetch = async (...args) => {
      window.fetch = real;
      const response = await real(...args);
      const events = (await response.text()).split("\n\n").slice(0, 4);
      const bytes = new TextEncoder().encode(events.map((event) => `${event}\n\n`).join(""));
      return new Response(new ReadableStream({
        start(controller) {
          controller.enqueue(bytes);
          args[1].signal.addEventListener("abort", () => {
            controller.error(new DOMException("stopped", "AbortError"));
          });
        },
      }));
    };
  });
  const answer = await ask(page, "Describe the picture.");
  await page.waitForFunction(
    (text) => text.textContent.length > 0, await answer.locator("p").elementHandle());
  await checkAccessibility(page);
  await page.click("#stop");
  const text = await answered(answer);
  assert.equal(await answer.locator("small").textContent(), "stopped");
  assert.ok(text.length > 0 && text.length < 60, text);
  assert.equal(await answered(await ask(page, "How many shapes are there?")), "Three.");
});

await step("Escape stops too, before the first token", async () => {
  await page.click("#new");
  await page.route("**/v1/chat/completions", () => {}, {times: 1});
  await page.fill("#question", "Describe the picture.");
  await page.focus("#send");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#stop:focus");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#send:focus");
  assert.equal(await page.locator(".answer small").textContent(), "stopped");
});

await step("the speed is shown below an answer", async () => {
  await page.click("#new");
  // An answer that takes its time: `route` would deliver all of it at once.
  await page.evaluate(() => {
    const real = window.fetch;
    window.fetch = async () => {
      window.fetch = real;
      const events = [
        ...["A ", "slow ", "answer"].map((content) => ({choices: [{delta: {content}}]})),
        {choices: [{delta: {}, finish_reason: "length"}]},
        {choices: [], usage: {prompt_tokens: 9, completion_tokens: 3}},
      ].map((event) => JSON.stringify(event));
      const bytes = new TextEncoder().encode(
        [...events, "[DONE]"].map((event) => `data: ${event}\r\n\r\n`).join(""));
      let at = 0;
      return new Response(new ReadableStream({
        async pull(controller) {
          // Seven bytes at a time, so that no line comes as a whole.
          await new Promise((done) => setTimeout(done, 2));
          if (at >= bytes.length) return controller.close();
          controller.enqueue(bytes.subarray(at, at += 7));
        },
      }));
    };
  });
  const answer = await ask(page, "Are you slow?");
  assert.equal(await answered(answer), "A slow answer");
  const note = await answer.locator("small").textContent();
  assert.match(note, /^3 tokens, [\d.]+ a second, first after [\d.]+ s, cut off at the limit$/);
});

await step("an error of the server is shown, and the question can be sent again", async () => {
  await page.click("#new");
  await choose(page);
  await reply(page, {error: {message: "no room", type: "server_error", param: null, code: null}});
  await page.fill("#question", "How many shapes are there?");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#status.wrong");
  assert.equal(await page.textContent("#status"), "no room");
  assert.equal(await page.inputValue("#question"), "How many shapes are there?");
  await page.unroute("**/v1/chat/completions");
  const before = await page.locator(".answer").count();
  await page.keyboard.press("Enter");
  assert.equal(await answered(page.locator(".answer").nth(before)), "Three.");
});

await step("a refused request is shown, and keeps what was typed meanwhile", async () => {
  await page.click("#new");
  let refuse;
  const typed = new Promise((done) => refuse = done);
  await page.route("**/v1/chat/completions", async (route) => {
    await typed;
    await route.fulfill({status: 429, json: {error: {message: "too many requests wait"}}});
  }, {times: 1});
  await page.fill("#question", "one");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#stop:visible");
  await page.keyboard.type("two");
  refuse();
  await page.waitForSelector("#status.wrong");
  assert.equal(await page.textContent("#status"), "too many requests wait");
  assert.equal(await page.inputValue("#question"), "one\ntwo");
  await page.fill("#question", "");
}, 429);

await step("an answer without an end is marked", async () => {
  await page.click("#new");
  await reply(page, delta("Half of"));
  const answer = await ask(page, "What is written?");
  assert.equal(await answered(answer), "Half of");
  assert.equal(await answer.locator("small").textContent(), "interrupted");
  await page.unroute("**/v1/chat/completions");
});

await step("Shift+Enter makes a new line", async () => {
  await page.focus("#question");
  await page.keyboard.type("a");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("b");
  assert.equal(await page.inputValue("#question"), "a\nb");
});

await step("what the server does not read is sent as JPEG, and so is a large picture", async () => {
  const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>';
  const bodies = sent(page);
  await reply(page, delta("Yes."), "[DONE]");
  const kinds = [
    ["image/svg+xml", {content: btoa(svg)}, "data:image/jpeg;"],
    ["image/png", {padding: 20e6}, "data:image/jpeg;"],
    ["image/png", {}, `data:image/png;base64,${pixels}`],
  ];
  for (const [type, options, start] of kinds) {
    await page.click("#new");
    await transfer(page, "drop", type, options);
    await page.waitForSelector("#pictures img");
    await answered(await ask(page, "Is it a picture?"));
    const {url} = bodies.at(-1).messages[0].content[0].image_url;
    assert.ok(url.startsWith(start), url.slice(0, 40));
    assert.ok(url.length < 1e6);
  }
  await page.click("#new");
  await transfer(page, "drop", "image/png", {content: btoa("no pixels")});
  await page.waitForSelector("#status.wrong");
  assert.match(await page.textContent("#status"), /cannot read file.png/);
  assert.equal(await page.locator("#pictures img").count(), 0);
});

await step("several pictures go with one question, even if it is sent at once", async () => {
  await serve(page, {id: "many"});
  const bodies = sent(page);
  await page.fill("#question", "Are they equal?");
  await page.evaluate((pixels) => {
    const bytes = Uint8Array.from(atob(pixels), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    for (const name of ["1.png", "2.png", "3.png"]) {
      data.items.add(new File([bytes], name, {type: "image/png"}));
    }
    document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
    document.querySelector("#drop").requestSubmit();
  }, pixels);
  await page.waitForSelector(".answer:not(.busy)");
  const parts = bodies[0].messages[0].content.map((part) => part.type);
  assert.deepEqual(parts, ["image_url", "image_url", "image_url", "text"]);
});

await step("a model is chosen, and one without conversations says so", async () => {
  assert.ok(await page.isHidden("#model"));
  await page.unroute("**/v1/models");
  await serve(page, {id: "talks"}, {id: "answers", several_messages: false});
  const bodies = sent(page);
  await page.waitForSelector("#model:visible");
  await checkAccessibility(page);
  for (let i = 0; i < 2; i++) await answered(await ask(page, "Is it?"));
  await page.selectOption("#model", "answers");
  assert.equal(await page.locator(".answer").count(), 0);
  await answered(await ask(page, "Is it?"));
  await page.fill("#question", "Is it?");
  await page.keyboard.press("Enter");
  await page.getByText("This model answers one question").waitFor();
  await page.waitForSelector(".answer:not(.busy)");
  const all = bodies.map((body) => [body.model, body.messages.length]);
  assert.deepEqual(all, [["talks", 1], ["talks", 3], ["answers", 1], ["answers", 1]]);
  await page.unrouteAll();
});

await step("a key is asked for, used, and kept for this tab only", async () => {
  await page.route("**/v1/**", (route) => {
    if (route.request().headers().authorization === "Bearer a-key") return route.continue();
    return route.fulfill({status: 401, json: {error: {message: "a key is needed"}}});
  });
  await page.reload();
  await page.waitForSelector("#key:focus");
  await checkAccessibility(page);
  await page.keyboard.type("no-key");
  await Promise.all([
    page.waitForResponse((response) => response.status() === 401),
    page.keyboard.press("Enter"),
  ]);
  await page.waitForSelector("#key:focus");
  await page.fill("#key", "a-key");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#key", {state: "hidden"});
  await page.reload();
  await choose(page);
  assert.equal(await answered(await ask(page, "How many shapes are there?")), "Three.");
  assert.ok(await page.isHidden("#key"));
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
  await page.evaluate(() => sessionStorage.clear());
  await page.unrouteAll();
}, 401);

await step("after a reload everything works", async () => {
  await page.fill("#question", "Describe the picture.");
  await page.keyboard.press("Enter");
  await page.reload();
  assert.equal(await page.locator(".answer").count(), 0);
  await choose(page);
  assert.equal(await answered(await ask(page, "How many shapes are there?")), "Three.");
});

await step("the keyboard is enough", async () => {
  await page.reload();
  const seen = [];
  for (let i = 0; i < 8; i++) {
    await page.keyboard.press("Tab");
    seen.push(await page.evaluate(() => document.activeElement.id));
  }
  for (const id of ["question", "picture", "send", "new"]) assert.ok(seen.includes(id), `${seen}`);
});

const phone = await open({
  viewport: {width: 360, height: 740}, colorScheme: "dark", hasTouch: true, isMobile: true,
});

await step("it works on a phone, in the dark", async () => {
  await choose(phone);
  assert.equal(await answered(await ask(phone, "How many shapes are there?")), "Three.");
  const overflow = await phone.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  await phone.locator("#send").scrollIntoViewIfNeeded();
  assert.ok(await phone.locator("#send").isVisible());
  await checkAccessibility(phone);
});

await browser.close();
