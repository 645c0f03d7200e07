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

async function step(name, run) {
  await run();
  assert.deepEqual(faults, [], name);
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

// Gives the page a file as another program would.
async function transfer(page, event, type, target = "body") {
  await page.evaluate(({event, type, target, pixels}) => {
    const bytes = Uint8Array.from(atob(pixels), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], `file.${type.split("/")[1]}`, {type}));
    const options = {bubbles: true, cancelable: true};
    const made = event === "paste"
      ? new ClipboardEvent(event, {...options, clipboardData: data})
      : new DragEvent(event, {...options, dataTransfer: data});
    document.querySelector(target).dispatchEvent(made);
  }, {event, type, target, pixels});
}

async function checkAccessibility(page) {
  const result = await page.evaluate(`(() => { ${axe}; return axe.run(); })()`);
  const found = result.violations.map((one) => `${one.id}: ${one.nodes[0].html}`);
  assert.deepEqual(found, []);
}

const page = await open({viewport: {width: 900, height: 1000}, colorScheme: "light"});

await step("a chosen picture is described", async () => {
  await choose(page);
  await checkAccessibility(page);
  const answer = await ask(page, "How many shapes are there?");
  assert.equal(await answered(answer), "Three.");
  assert.match(await answer.locator("small").textContent(), /^2 tokens, .*a second, first after/);
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
  // The small model is too quick for a hand: the rest of its answer waits.
  await page.evaluate(() => {
    const real = window.fetch;
    window.fetch = async (...args) => {
      const response = await real(...args);
      window.fetch = real;
      const signal = args[1].signal;
      const reader = response.body.getReader();
      let chunks = 0;
      const slow = new ReadableStream({
        async pull(controller) {
          const {value, done} = await reader.read();
          if (++chunks > 3) {
            await new Promise((_, stopped) => signal.addEventListener("abort", () => {
              stopped(new DOMException("stopped", "AbortError"));
            }));
          }
          if (done) return controller.close();
          controller.enqueue(value);
        },
      }, {highWaterMark: 0});
      return new Response(slow, {status: response.status, headers: response.headers});
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

await step("an error of the server is shown, and the question can be sent again", async () => {
  await page.click("#new");
  await choose(page);
  const refuse = (route) => route.fulfill({
    status: 200, contentType: "text/event-stream",
    body: 'data: {"error":{"message":"no room","type":"server_error","param":null,"code":null}}\n\n',
  });
  await page.route("**/v1/chat/completions", refuse, {times: 1});
  await page.fill("#question", "How many shapes are there?");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#status.wrong");
  assert.equal(await page.textContent("#status"), "no room");
  assert.equal(await page.inputValue("#question"), "How many shapes are there?");
  const before = await page.locator(".answer").count();
  await page.keyboard.press("Enter");
  assert.equal(await answered(page.locator(".answer").nth(before)), "Three.");
});

await step("after a reload everything works", async () => {
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
