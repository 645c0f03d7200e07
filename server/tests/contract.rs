//! What clients rely on: the same answers as from the library, in the forms of the APIs.

mod support;

use std::sync::LazyLock;

use moxin_vlm::{
    Event, GenerationOptions, LoadOptions, Model, Op, Picture, Role, Video, VideoOptions,
};
use serde_json::{Value, json};
use support::{
    Answer, Server, count_shapes, data_url, demo_url, look, other_url, ramble, read_answer,
    read_rest, repository,
};

const QWEN: &str = "tests/models/qwen2_vl/model";

static TINY: LazyLock<Model> = LazyLock::new(|| load("models/tiny"));

fn load(folder: &str) -> Model {
    let options = LoadOptions {
        backend: moxin_vlm::Backend::Cpu,
        ..LoadOptions::default()
    };
    Model::load(repository(folder), options, Op::default()).unwrap()
}

/// A part of a conversation.
enum Part {
    Picture(&'static str),
    Text(Role, &'static str),
}
use Part::{Picture as P, Text as T};

/// Returns the library's answer: its text and the log-probabilities of its tokens.
fn library(model: &Model, parts: &[Part], max_tokens: usize) -> (String, Vec<f32>) {
    let options = GenerationOptions {
        max_tokens,
        ..GenerationOptions::default()
    };
    let session = model.session(options).unwrap();
    for part in parts {
        match part {
            P(path) => session
                .add_image(Picture::open(repository(path), &Default::default()).unwrap())
                .unwrap(),
            T(role, text) => session.add_text(*role, text).unwrap(),
        }
    }
    let (mut whole, mut logprobs) = (String::new(), Vec::new());
    for event in session.generate() {
        match event.unwrap() {
            Event::Text { text, logprob, .. } => {
                whole += &text;
                logprobs.push(logprob);
            }
            Event::Finished { text, .. } => whole += &text,
            Event::Prefill { .. } => {}
        }
    }
    (whole, logprobs)
}

/// Returns the same conversation as messages.
fn messages(parts: &[Part]) -> Value {
    let mut messages: Vec<Value> = Vec::new();
    for part in parts {
        let (role, part) = match part {
            P(path) => {
                let url = data_url("image/png", &std::fs::read(repository(path)).unwrap());
                (
                    "user",
                    json!({"type": "image_url", "image_url": {"url": url}}),
                )
            }
            T(Role::Assistant, text) => ("assistant", json!({"type": "text", "text": text})),
            T(_, text) => ("user", json!({"type": "text", "text": text})),
        };
        match messages.last_mut() {
            Some(last) if last["role"] == role => {
                last["content"].as_array_mut().unwrap().push(part);
            }
            _ => messages.push(json!({"role": role, "content": [part]})),
        }
    }
    json!(messages)
}

fn logprobs(choice: &Value) -> Vec<f64> {
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let logprob = |token: &Value| token["logprob"].as_f64().unwrap();
    content.iter().map(logprob).collect()
}

fn check_same(found: &[f64], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - f64::from(*expected)).abs() < 1e-3,
            "{found} and {expected}"
        );
    }
}

/// Returns the text of a streamed answer.
fn streamed(answer: &Answer) -> String {
    let events = answer.events();
    let chunk = |data: &String| serde_json::from_str::<Value>(data).ok();
    events
        .iter()
        .filter_map(chunk)
        .filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect()
}

#[tokio::test]
async fn answers_are_the_librarys() {
    let qwen = repository(QWEN);
    let qwen = format!("qwen={}", qwen.display());
    let server = Server::start(&["--model", &qwen]).await;
    let demo = "models/demo.png";
    let (a, b) = (
        "tests/models/pictures/wide.png",
        "tests/models/pictures/tall.png",
    );
    let cases: [(&str, &[Part]); 5] = [
        ("tiny", &[P(demo), T(Role::User, "Describe the picture.")]),
        ("tiny", &[T(Role::User, "What is written?")]),
        (
            "tiny",
            &[
                P(demo),
                T(Role::User, "Describe the picture."),
                T(Role::Assistant, "Shapes."),
                T(Role::User, "How many shapes are there?"),
            ],
        ),
        (
            "qwen",
            &[P(a), T(Role::User, "one"), P(b), T(Role::User, "two")],
        ),
        (
            "qwen",
            &[
                P(a),
                T(Role::User, "one"),
                T(Role::Assistant, "an answer"),
                P(b),
                T(Role::User, "two"),
            ],
        ),
    ];
    let loaded = load(QWEN);
    for (name, parts) in cases {
        let model = if name == "tiny" { &*TINY } else { &loaded };
        let (text, expected) = library(model, parts, 24);
        assert!(!expected.is_empty());
        let mut body = json!({
            "model": name, "messages": messages(parts), "max_tokens": 24, "logprobs": true,
        });
        // Twice: the second time most of the prompt was read before.
        for _ in 0..2 {
            let answer = server.chat(&body).await;
            assert_eq!(answer.text_of_choice(), text, "{name}");
            check_same(&logprobs(&answer.json()["choices"][0]), &expected);
        }
        body["stream"] = json!(true);
        assert_eq!(streamed(&server.chat(&body).await), text);
    }
}

#[tokio::test]
async fn a_streamed_answer_has_the_chunks_that_clients_expect() {
    let server = Server::start(&[]).await;
    let mut body = count_shapes();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let answer = server.chat(&body).await;
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    let mut events = answer.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    for chunk in &chunks {
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let usage = &last["usage"];
    let total =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let ends = chunks
        .iter()
        .filter(|chunk| !chunk["choices"][0]["finish_reason"].is_null());
    let ends: Vec<&Value> = ends.collect();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0]["choices"][0]["delta"], json!({}));
    assert_eq!(ends[0]["choices"][0]["finish_reason"], "stop");
    assert_eq!(streamed(&answer), "Three.");
}

#[tokio::test]
async fn every_option_has_its_effect() {
    let server = Server::start(&[]).await;
    let ask = async |extra: Value| {
        let mut body = json!({"messages": [look(&demo_url(), "Describe the picture.")]});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        server.chat(&body).await.json()
    };
    let text = |answer: &Value| {
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    };
    let plain = ask(json!({})).await;
    let words = text(&plain);
    assert!(words.len() > 40, "{words}");

    for name in ["max_tokens", "max_completion_tokens"] {
        let short = ask(json!({name: 3})).await;
        assert_eq!(short["choices"][0]["finish_reason"], "length");
        assert_eq!(short["usage"]["completion_tokens"], 3);
        assert!(words.starts_with(&text(&short)));
    }
    let stopped = ask(json!({"stop": "circle"})).await;
    assert_eq!(text(&stopped), words[..words.find("circle").unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let stopped = ask(json!({"stop": ["nothing", "yellow", "circle", "x"]})).await;
    assert_eq!(text(&stopped), words[..words.find("circle").unwrap()]);

    let warm = json!({"temperature": 3.0, "seed": 5, "max_tokens": 12});
    let sampled = text(&ask(warm.clone()).await);
    assert_eq!(text(&ask(warm.clone()).await), sampled);
    let mut other = warm.clone();
    other["seed"] = json!(6);
    assert_ne!(text(&ask(other).await), sampled);
    let mut unseeded = warm.clone();
    unseeded.as_object_mut().unwrap().remove("seed");
    assert_ne!(
        text(&ask(unseeded.clone()).await),
        text(&ask(unseeded).await)
    );
    // So few candidates that only the most likely token is left.
    for narrow in [
        json!({"top_k": 1}),
        json!({"top_p": 1e-6}),
        json!({"min_p": 1.0}),
    ] {
        let mut narrow = narrow;
        narrow["temperature"] = json!(3.0);
        assert_eq!(text(&ask(narrow).await), words);
    }
    for penalty in [
        json!({"repetition_penalty": 5.0}),
        json!({"frequency_penalty": 2.0}),
        json!({"presence_penalty": 2.0}),
    ] {
        let mut body = warm.clone();
        body["max_tokens"] = json!(60);
        let without = text(&ask(body.clone()).await);
        let fields = penalty.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        assert_ne!(text(&ask(body).await), without, "{penalty}");
    }
    for accepted in [
        json!({"user": "me", "metadata": {"a": "b"}, "store": false, "n": 1}),
        json!({"response_format": {"type": "text"}, "tools": [], "logit_bias": {}}),
        json!({"max_pixels": 100_000, "logprobs": false, "stop": null, "seed": null}),
        json!({"max_image_tokens": 5000, "tiles": false}),
    ] {
        assert_eq!(text(&ask(accepted).await), words);
    }
    let narrow = ask(json!({"max_image_tokens": 63})).await;
    let message = narrow["error"]["message"].as_str().unwrap();
    assert!(message.contains("takes 64 positions"), "{narrow}");

    let two = ask(json!({"n": 2, "temperature": 3.0, "seed": 5, "max_tokens": 12})).await;
    let choices = two["choices"].as_array().unwrap();
    assert_eq!((choices.len(), &choices[1]["index"]), (2, &json!(1)));
    // The first is the one that the seed gives alone.
    assert_eq!(choices[0]["message"]["content"], sampled);
    assert_ne!(choices[1]["message"]["content"], sampled);

    let detailed = ask(json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 4})).await;
    let tokens = detailed["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(tokens.len(), 4);
    let joined: String = tokens
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(joined, text(&detailed));
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (3, &token["token"]));
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            token["token"].as_str().unwrap()
        );
    }
}

#[tokio::test]
async fn conversations_are_continued_without_reading_them_again() {
    let server = Server::start(&["--api-key", "one,two", "--isolate-keys"]).await;
    let ask = async |key: &str, messages: &Value| {
        let headers = [("x-api-key", key)];
        let body = json!({"messages": messages});
        server
            .post_with("/v1/chat/completions", &headers, &body)
            .await
            .json()
    };
    let cached = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let mut messages = json!([look(&demo_url(), "Describe the picture.")]);
    let first = ask("one", &messages).await;
    assert_eq!(cached(&first), 0);
    let said = first["choices"][0]["message"]["content"].clone();
    let all = messages.as_array_mut().unwrap();
    all.push(json!({"role": "assistant", "content": said}));
    all.push(json!({"role": "user", "content": "How many shapes are there?"}));
    // Another key's conversation is not continued, and gives the same answer.
    let apart = ask("two", &messages).await;
    assert_eq!(cached(&apart), 0);
    let second = ask("one", &messages).await;
    assert!(cached(&second) > first["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(
        second["choices"][0]["message"]["content"],
        apart["choices"][0]["message"]["content"]
    );
}

#[tokio::test]
async fn what_a_model_cannot_do_is_said() {
    let server = Server::start(&["--max-images", "2", "--max-prompt-tokens", "200"]).await;
    let refused = async |messages: Value, param: &str| {
        let answer = server.chat(&json!({"messages": messages})).await;
        answer.check_error(400, Some(param))
    };
    let user = json!({"role": "user", "content": "Hello"});
    let system = json!({"role": "system", "content": "Be brief."});
    assert!(
        refused(json!([system, user]), "messages[0]")
            .await
            .contains("system")
    );
    let tool = json!({"role": "tool", "content": "x"});
    refused(json!([user, tool]), "messages[1].role").await;
    let assistant = json!({"role": "assistant", "content": "Hi"});
    refused(json!([user, assistant]), "messages[1]").await;
    refused(json!([assistant, user]), "messages[0]").await;
    let empty = json!({"role": "user", "content": null});
    refused(json!([empty]), "messages[0]").await;
    let calls = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "x"}]});
    refused(json!([user, calls, user]), "messages[1].tool_calls").await;
    let two = json!([look(&demo_url(), "a"), assistant, look(&other_url(2), "b")]);
    refused(two, "messages[2].content[0].image_url.url").await;
    let three = json!([{"role": "user", "content": [
        look(&other_url(1), "a")["content"][0], look(&other_url(2), "a")["content"][0],
        look(&other_url(3), "a")["content"][0], {"type": "text", "text": "a"},
    ]}]);
    assert!(refused(three, "messages").await.contains("--max-images"));
    let sound = json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]);
    let answer = server.chat(&json!({"messages": sound})).await;
    assert_eq!(answer.status, 400);
    let long = json!([{"role": "user", "content": "word ".repeat(300)}]);
    let answer = server.chat(&json!({"messages": long})).await;
    answer.check_error(400, Some("messages"));
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    let answer = server
        .chat(&json!({"model": "gpt-9", "messages": [user]}))
        .await;
    answer.check_error(404, Some("model"));
    assert_eq!(answer.json()["error"]["code"], "model_not_found");
    server
        .get("/v1/models/gpt-9")
        .await
        .check_error(404, Some("model"));
    server.get("/v1/nothing").await.check_error(404, None);
    server
        .get("/v1/chat/completions")
        .await
        .check_error(405, None);
    let answer = server.request("DELETE", "/v1/models", &[], b"").await;
    answer.check_error(405, None);
}

#[tokio::test]
async fn other_apis_give_the_same_answer() {
    let server = Server::start(&[]).await;
    let question = json!({
        "image": demo_url(), "prompt": "How many shapes are there?", "max_tokens": 9,
    });
    let answer = server.post("/v1/describe", &question).await.json();
    assert_eq!(answer["description"], "Three.", "{answer}");
    assert_eq!(answer["tokens"], 2);
    // This model writes no boxes.
    assert!(answer.get("locations").is_none(), "{answer}");
    assert!(answer["prefill_ms"].as_f64().unwrap() > 0.0);
    assert!(answer["tokens_per_second"].as_f64().unwrap() > 0.0);

    let input = json!([{"role": "user", "content": [
        {"type": "input_image", "image_url": demo_url()},
        {"type": "input_text", "text": "How many shapes are there?"},
    ]}]);
    let answer = server
        .post("/v1/responses", &json!({"input": input}))
        .await
        .json();
    assert_eq!(
        answer["output"][0]["content"][0]["text"], "Three.",
        "{answer}"
    );
    assert_eq!(answer["status"], "completed");
    let short = json!({"input": input, "max_output_tokens": 1});
    let answer = server.post("/v1/responses", &short).await.json();
    assert_eq!(answer["status"], "incomplete");
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("store", json!(true)),
        ("tools", json!([{"type": "web_search"}])),
        ("max_output_tokens", json!(0)),
    ] {
        let mut body = json!({"input": "Hello"});
        body[field] = value;
        server
            .post("/v1/responses", &body)
            .await
            .check_error(400, Some(field));
    }

    let demo = demo_url();
    let content = json!([
        {"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": demo.split(',').nth(1),
        }},
        {"type": "text", "text": "How many shapes are there?"},
    ]);
    let mut body = json!({
        "model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": content}],
    });
    let answer = server.post("/v1/messages", &body).await.json();
    assert_eq!(answer["content"][0]["text"], "Three.", "{answer}");
    assert_eq!(answer["stop_reason"], "end_turn");
    let usage = &answer["usage"];
    let tokens = usage["input_tokens"].as_u64().unwrap()
        + usage["cache_read_input_tokens"].as_u64().unwrap();
    body["stop_sequences"] = json!(["zzz", "ee"]);
    let answer = server.post("/v1/messages", &body).await.json();
    assert_eq!(answer["content"][0]["text"], "Thr");
    assert_eq!(answer["stop_sequence"], "ee");
    body["system"] = json!("Be brief.");
    let answer = server.post("/v1/messages", &body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    let count = json!({"model": "tiny", "messages": body["messages"]});
    let answer = server
        .post("/v1/messages/count_tokens", &count)
        .await
        .json();
    assert_eq!(answer["input_tokens"], tokens);
}

#[tokio::test]
async fn the_server_tells_about_itself() {
    let server = Server::start(&[]).await;
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(list["data"][0]["moxin"]["max_images"], 1);
    assert_eq!(server.get("/v1/models/tiny").await.json(), list["data"][0]);
    let health = server.get("/health").await.json();
    assert_eq!(health["status"], "ready");
    server.check_works().await;
    assert_eq!(server.metric("moxin_generated_tokens_total").await, 2);
    let text = server.get("/metrics").await.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let page = server.get("/").await;
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
    server.get("/example-image").await.check_error(404, None);
    let document = server.get("/openapi.json").await.json();
    assert!(document["paths"]["/v1/chat/completions"]["post"].is_object());
    for answer in [server.get("/").await, server.get("/nothing").await] {
        assert_eq!(answer.header("x-content-type-options").unwrap(), "nosniff");
    }
}

#[tokio::test]
async fn the_page_begins_with_a_picture_if_there_is_one() {
    let demo = repository("models/demo.png");
    let server = Server::start(&["--example-image", demo.to_str().unwrap()]).await;
    let page = server.get("/").await.text();
    assert!(page.contains("<body data-example=\"/example-image\">"));
    let picture = server.get("/example-image").await;
    assert_eq!(picture.body, std::fs::read(demo).unwrap());
}

#[tokio::test]
async fn the_commands_of_the_documentation_work() {
    let server = Server::start(&[]).await;
    for (page, expected) in [
        (include_str!("../../README.md"), "A red circle"),
        (include_str!("../../docs/server.md"), "Three."),
    ] {
        let at = page.find("curl ").unwrap();
        let script = page[at..].split("```").next().unwrap();
        let script = script.replace("127.0.0.1:8080", &server.address);
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-ec", &script]).current_dir(repository("."));
        let output = shell.output().await.unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(answer.contains(expected), "{script}: {answer}");
    }
}

#[tokio::test]
async fn the_limits_are_documented() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_moxin-server"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"));
    for flag in flags.filter(|flag| !["--help", "--version"].contains(flag)) {
        let flag = flag.trim_end_matches([',', ')', '.']);
        let documented = include_str!("../../docs/server.md");
        assert!(documented.contains(&format!("`{flag}")), "{flag}");
    }
}

#[tokio::test]
async fn the_queue_has_limits() {
    let server = Server::start(&[
        "--max-active",
        "1",
        "--max-waiting",
        "1",
        "--max-wait-seconds",
        "1",
    ])
    .await;
    let long = server.open_begun_chat(&ramble()).await;
    let waits = server.open_chat(&count_shapes()).await;
    server.wait_for("waiting_requests", 1).await;
    let answer = server.chat(&count_shapes()).await;
    answer.check_error(429, None);
    assert_eq!(answer.json()["error"]["code"], "queue_full");
    assert!(answer.header("retry-after").is_some());
    let answer = read_answer(waits).await;
    answer.check_error(503, None);
    assert_eq!(answer.json()["error"]["code"], "queue_timeout");
    drop(long);
    server.wait_for("active_requests", 0).await;
    server.check_works().await;
}

#[tokio::test]
async fn the_time_of_an_answer_is_limited() {
    let server = Server::start(&["--max-seconds", "1"]).await;
    let answer = read_answer(server.open_chat(&ramble()).await).await;
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "timeout", "{last}");
    server.check_works().await;
}

#[tokio::test]
async fn a_long_prompt_does_not_hold_up_a_short_answer() {
    let server = Server::start(&["--prefill-chunk", "16", "--max-active", "2"]).await;
    server.check_works().await;
    let long = json!({
        "messages": [{"role": "user", "content": "word ".repeat(1500)}], "stream": true,
    });
    let stream = server.open_chat(&long).await;
    server.wait_for("active_requests", 1).await;
    server.check_works().await;
    // The long prompt is still being read, a chunk at a time.
    let mut seen = [0; 1 << 16];
    let count = stream.try_read(&mut seen).unwrap_or(0);
    let seen = String::from_utf8_lossy(&seen[..count]).into_owned();
    let rest = String::from_utf8(read_rest(stream).await).unwrap();
    // The first chunk has the role and an empty text.
    let texts = |chunks: &str| {
        chunks.matches("\"content\":\"").count() - chunks.matches("\"content\":\"\"").count()
    };
    assert_eq!(texts(&seen), 0, "{seen}");
    assert!(texts(&rest) > 0, "{rest}");
}

#[tokio::test]
async fn models_make_room_for_each_other() {
    let tiny = repository("models/tiny");
    let (a, b) = (
        format!("a={}", tiny.display()),
        format!("b={}", tiny.display()),
    );
    // Enough for one model and its conversations.
    let limits = [
        "--max-memory",
        "16",
        "--prefix-cache",
        "8",
        "--image-cache",
        "1",
    ];
    let server = Server::start_with(&[&["--model", &a, "--model", &b][..], &limits].concat()).await;
    let loaded = async || -> Vec<bool> {
        let list = server.get("/v1/models").await.json();
        let list = list["data"].as_array().unwrap().clone();
        list.iter()
            .map(|model| model["moxin"]["loaded"].as_bool().unwrap())
            .collect()
    };
    assert_eq!(loaded().await, [true, false]);
    let ask = async |model: &str| {
        let mut body = count_shapes();
        body["model"] = json!(model);
        server.chat(&body).await
    };
    assert_eq!(ask("a").await.text_of_choice(), "Three.");
    assert_eq!(ask("b").await.text_of_choice(), "Three.");
    assert_eq!(loaded().await, [false, true]);
    // A model in use stays.
    let mut long = ramble();
    long["model"] = json!("b");
    let stream = server.open_begun_chat(&long).await;
    let answer = ask("a").await;
    answer.check_error(503, None);
    assert_eq!(answer.json()["error"]["code"], "out_of_memory");
    drop(stream);
    server.wait_for("active_requests", 0).await;
    assert_eq!(ask("a").await.text_of_choice(), "Three.");
    assert_eq!(loaded().await, [true, false]);
}

/// A model without an encoder of pictures: it says so in its properties, and refuses them.
#[tokio::test]
async fn a_model_that_reads_text_only_says_so() {
    const TEXT: &str = "tests/models/gemma3_text/model";
    let model = format!("text={}", repository(TEXT).display());
    let server = Server::start(&["--model", &model]).await;
    let list = server.get("/v1/models").await.json();
    let find = |name: &str| {
        let models = list["data"].as_array().unwrap();
        let model = models.iter().find(|model| model["id"] == name);
        model.unwrap()["moxin"].clone()
    };
    let (tiny, text) = (find("tiny"), find("text"));
    assert_eq!(tiny["modalities"], json!(["text", "image"]));
    assert_eq!(text["modalities"], json!(["text"]));
    assert_eq!(text["max_images"], 0);
    let mut body = count_shapes();
    body["model"] = json!("text");
    let answer = server.chat(&body).await;
    let message = answer.check_error(400, Some("messages[0].content[0].image_url.url"));
    assert!(message.contains("text only"), "{message}");
    let body = json!({"model": "text", "image": demo_url()});
    let answer = server.post("/v1/describe", &body).await;
    let message = answer.check_error(400, Some("image"));
    assert!(message.contains("text only"), "{message}");
    let parts = [T(Role::User, "How many shapes are there?")];
    let (expected, _) = library(&load(TEXT), &parts, 12);
    let body = json!({"model": "text", "messages": messages(&parts), "max_tokens": 12});
    assert_eq!(server.chat(&body).await.text_of_choice(), expected);
}

/// A video in a request is the library's.
#[tokio::test]
async fn a_video_is_read_as_the_library_reads_it() {
    const CLIP: &str = "tests/video/unequal.gif";
    let model = format!("qwen={}", repository(QWEN).display());
    let server = Server::start(&["--model", &model]).await;
    let list = server.get("/v1/models").await.json();
    let models = list["data"].as_array().unwrap();
    let qwen = models.iter().find(|model| model["id"] == "qwen").unwrap();
    assert_eq!(
        qwen["moxin"]["modalities"],
        json!(["text", "image", "video"])
    );
    let bytes = std::fs::read(repository(CLIP)).unwrap();
    let ask = async |model: &str, url: &str, fps: Value| {
        let body = json!({"model": model, "max_tokens": 12, "logprobs": true, "messages": [
            {"role": "user", "content": [
                {"type": "video_url", "video_url": {"url": url, "fps": fps}},
                {"type": "text", "text": "What moves?"},
            ]},
        ]});
        server.chat(&body).await
    };
    let url = data_url("image/gif", &bytes);
    let loaded = load(QWEN);
    for fps in [None, Some(4.0)] {
        let options = VideoOptions {
            fps: fps.or(Some(2.0)),
            ..Default::default()
        };
        let video = Video::decode(&bytes, &options).unwrap();
        let session = loaded
            .session(GenerationOptions {
                max_tokens: 12,
                ..Default::default()
            })
            .unwrap();
        session.add_video(video).unwrap();
        session.add_text(Role::User, "What moves?").unwrap();
        let expected: Vec<f32> = session
            .generate()
            .filter_map(|event| match event.unwrap() {
                Event::Text { logprob, .. } => Some(logprob),
                _ => None,
            })
            .collect();
        let answer = ask("qwen", &url, json!(fps)).await;
        check_same(&logprobs(&answer.json()["choices"][0]), &expected);
    }
    let field = "messages[0].content[0].video_url";
    let message = ask("tiny", &url, Value::Null).await;
    let message = message.check_error(400, Some(field));
    assert!(message.contains("no videos"), "{message}");
    let still = ask("qwen", &demo_url(), Value::Null).await;
    let message = still.check_error(400, Some(field));
    assert!(message.contains("not animated"), "{message}");
    ask("qwen", &url, json!(0))
        .await
        .check_error(400, Some(field));
    let remote = ask("qwen", "https://example.com/a.gif", Value::Null).await;
    remote.check_error(400, Some("messages[0].content[0].video_url.url"));
}

/// Adds the words for programs that the sources under a folder have in errors.
fn codes_in(folder: &std::path::Path, codes: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes_in(&path, codes);
        } else {
            let source = std::fs::read_to_string(path).unwrap();
            let after = source.split(".code(\"").skip(1);
            codes.extend(after.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
}

#[test]
fn the_errors_are_documented() {
    let mut codes = Vec::new();
    codes_in(&repository("server/src"), &mut codes);
    assert!(codes.len() > 15, "{codes:?}");
    for code in codes {
        let documented = include_str!("../../docs/server.md");
        assert!(documented.contains(&format!("`{code}`")), "{code}");
    }
}
