//! Hostile text: prompts that are too long, control tokens in a user's text, stop texts that slow
//! down every token.

use std::{
    fs,
    path::Path,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use moxin_vlm::{
    Cancel, Error, Event, FinishReason, GenerationOptions, LoadOptions, Model, Op, Role, Session,
    StreamOptions,
    generate::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopStrings},
    resume, suspend,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    child::{Limits, in_child},
    programs::in_repository,
};

/// How long a caller may wait for something that it has cancelled. It is milliseconds on an idle
/// machine.
const SOON: Duration = Duration::from_secs(2);

fn load(folder: &Path) -> moxin_vlm::Result<Model> {
    Model::load(folder, LoadOptions::default(), Op::default())
}

fn tiny() -> Model {
    load(&in_repository("models/tiny")).unwrap()
}

/// Makes the small model with another tokenizer.
fn with_tokenizer(change: impl FnOnce(&mut Value)) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(in_repository("models/tiny")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
    folder
}

fn session(model: &Model) -> Session {
    model
        .session(GenerationOptions {
            max_tokens: 4,
            ..GenerationOptions::default()
        })
        .unwrap()
}

/// Returns the result of a call, which must be quick.
fn soon<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = call();
    println!("{what}: {:?}", begin.elapsed());
    assert!(begin.elapsed() < SOON, "{what}: {:?}", begin.elapsed());
    result
}

/// Such a prompt took half a minute and 10 GB, during which every other session had to wait.
#[test]
fn a_prompt_of_64_megabytes_is_refused_at_once() {
    in_child(
        "text::a_prompt_of_64_megabytes_is_refused_at_once",
        Limits::mebibytes(700),
        || {
            let session = session(&tiny());
            let text = "What is there in the picture? ".repeat((64 << 20) / 30);
            for _ in 0..3 {
                let refused = soon("as a text", || session.add_text(Role::User, &text));
                assert!(
                    matches!(refused, Err(Error::ContextFull { needed, .. }) if needed > 100_000),
                    "{refused:?}"
                );
                let refused = soon("as a prompt", || session.add_prompt(&text));
                assert!(
                    matches!(refused, Err(Error::ContextFull { .. })),
                    "{refused:?}"
                );
            }
            // Several that fit individually do not fit together.
            let part = &text[..32 << 10];
            let refused = (0..100)
                .map(|_| session.add_text(Role::User, part))
                .find(Result::is_err);
            assert!(
                matches!(refused, Some(Err(Error::ContextFull { .. }))),
                "{refused:?}"
            );
            session.reset().unwrap();
            session.add_text(Role::User, "What is there?").unwrap();
            assert!(session.generate().all(|event| event.is_ok()));
        },
    );
}

/// Three steps that each replaced a letter with a thousand killed the process on a prompt of one
/// letter.
#[test]
fn a_tokenizer_that_turns_a_letter_into_a_gigabyte_is_refused() {
    in_child(
        "text::a_tokenizer_that_turns_a_letter_into_a_gigabyte_is_refused",
        Limits::mebibytes(512).seconds(20),
        || {
            let replace =
                json!({"type": "Replace", "pattern": {"String": "x"}, "content": "x".repeat(1000)});
            let steps = json!({"type": "Sequence", "normalizers": [replace, replace, replace]});
            // Normalized tokens are normalized while the tokenizer is loaded.
            let token = json!({"id": 573, "content": "x", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false});
            let folder = with_tokenizer(|json| {
                json["normalizer"] = steps;
                json["added_tokens"].as_array_mut().unwrap().push(token);
            });
            let refused = load(folder.path()).err().unwrap();
            assert!(
                matches!(&refused, Error::UnsupportedModel { path, .. } if path.ends_with("tokenizer.json")),
                "{refused}"
            );
            assert!(
                refused.to_string().contains("normalizer.normalizers[0]"),
                "{refused}"
            );
        },
    );
}

/// Patterns that are small to write and large to build, and an unbounded number of tokens.
#[test]
fn a_tokenizer_that_is_large_to_build_is_refused_or_built() {
    in_child(
        "text::a_tokenizer_that_is_large_to_build_is_refused_or_built",
        Limits::mebibytes(512).seconds(30),
        || {
            let patterns = [
                "(((a{1000}){1000}){1000})",
                "(?=((a{1000}){1000}){1000})b",
                "(((?=a)b{100}){100}){100}",
                &"(?=".repeat(1300),
            ];
            for regex in patterns {
                let folder = with_tokenizer(|json| {
                    json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
                });
                let loaded = soon(regex, || load(folder.path()).map(drop));
                assert!(
                    matches!(
                        loaded,
                        Ok(()) | Err(Error::CorruptModel { .. } | Error::UnsupportedModel { .. })
                    ),
                    "{loaded:?}"
                );
            }
            for (tokens, spelling) in [(70_000, "<token>"), (5_000, &*"x".repeat(1000))] {
                let folder = with_tokenizer(|json| {
                    let token = |id| json!({"id": id, "content": format!("{spelling}{id}"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
                    json["added_tokens"]
                        .as_array_mut()
                        .unwrap()
                        .extend((573..573 + tokens).map(token));
                });
                let refused = load(folder.path()).err().unwrap();
                assert!(
                    matches!(&refused, Error::UnsupportedModel { .. })
                        && refused.to_string().contains("added_tokens has"),
                    "{refused}"
                );
            }
        },
    );
}

/// A pattern that tries all ways to split a run of letters, again for each letter: a prompt takes
/// minutes. Nobody has to wait for it: no operation, no other session, and not the end of the
/// process.
#[test]
fn a_prompt_that_takes_minutes_blocks_nobody() {
    in_child(
        "text::a_prompt_that_takes_minutes_blocks_nobody",
        Limits::default().seconds(40),
        || {
            let pattern = json!({"type": "Split", "pattern": {"Regex": "(?:(?:a|a)*(?=c))|."}, "behavior": "Isolated", "invert": false});
            let folder = with_tokenizer(|json| json["pre_tokenizer"] = pattern);
            let slow = load(folder.path()).unwrap();
            let asked = || {
                let session = session(&slow);
                session
                    .add_text(Role::User, &format!("{} ", "a".repeat(17)).repeat(4000))
                    .unwrap();
                session
            };
            let later = |what: Box<dyn FnOnce() + Send>| {
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    what();
                })
            };

            let session = asked();
            let cancels = session.clone();
            later(Box::new(move || cancels.cancel()));
            let event = soon("cancelled", || session.step()).unwrap();
            assert!(
                matches!(
                    event,
                    Event::Finished {
                        reason: FinishReason::Cancelled,
                        ..
                    }
                ),
                "{event:?}"
            );
            assert_eq!(session.messages().unwrap(), []);

            let session = asked();
            let timeout = Some(Duration::from_millis(100));
            let result = soon("out of time", || {
                session.prefill(Op {
                    timeout,
                    ..Op::default()
                })
            });
            assert!(matches!(result, Err(Error::Timeout)), "{result:?}");
            assert_eq!(session.messages().unwrap(), []);

            let session = asked();
            let cancel = Cancel::new();
            let triggers = cancel.clone();
            later(Box::new(move || triggers.trigger()));
            let result = soon("cancelled by its operation", || {
                session.prefill(Op {
                    cancel: Some(cancel),
                    ..Op::default()
                })
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");

            // The fourth is the last that is processed; the next ones wait for a place, and can be
            // cancelled too.
            for _ in 0..2 {
                let session = asked();
                later(Box::new(|| suspend(Duration::from_secs(1)).unwrap()));
                let result = soon("suspended", || session.step());
                assert!(matches!(result, Err(Error::Suspended)), "{result:?}");
                assert_eq!(session.messages().unwrap().len(), 1);
                resume();
            }
            for cancel in [None, Some(Cancel::new())] {
                let session = asked();
                let options = StreamOptions {
                    cancel: cancel.clone(),
                    timeout: cancel.is_none().then_some(Duration::from_millis(100)),
                };
                let (sender, events) = channel();
                session
                    .start(options, move |event| sender.send(event).is_ok())
                    .unwrap();
                later(Box::new(move || cancel.iter().for_each(Cancel::trigger)));
                let last = soon("a stream", || events.iter().last()).unwrap();
                assert!(
                    matches!(
                        last,
                        Err(Error::Timeout)
                            | Ok(Event::Finished {
                                reason: FinishReason::Cancelled,
                                ..
                            })
                    ),
                    "{last:?}"
                );
                session.close();
                assert_eq!(session.messages().unwrap(), []);
            }

            let other = tiny();
            let session = self::session(&other);
            session.add_text(Role::User, "What is there?").unwrap();
            soon("another session", || {
                assert!(session.generate().all(|event| event.is_ok()))
            });
        },
    );
}

/// A user's text never becomes a control token: not in one text, not across two, not in an answer.
#[test]
fn text_never_becomes_control_tokens() {
    in_child(
        "text::text_never_becomes_control_tokens",
        Limits::default(),
        || {
            let model = tiny();
            let tokens = |fill: &dyn Fn(&Session)| {
                let session = session(&model);
                fill(&session);
                session.prefill(Op::default()).unwrap();
                session.stats().prompt_tokens
            };
            let said = |texts: &[&str]| {
                tokens(&|session| {
                    texts
                        .iter()
                        .for_each(|text| session.add_text(Role::User, text).unwrap())
                })
            };
            let raw = tokens(&|session| session.add_prompt("In: a</s>b\nOut:").unwrap());
            assert!(
                said(&["a</s>b"]) > raw,
                "characters are more tokens than a control token"
            );
            // Removing the picture's marker from a text joins what was around it.
            assert_eq!(said(&["a</<image>s>b"]), said(&["a</s>b"]));
            assert_eq!(said(&["a</", "s>b"]), said(&["a</\ns>b"]));
            let answered = |answer: &str| {
                tokens(&|session| {
                    session.add_text(Role::User, "a").unwrap();
                    session.add_text(Role::Assistant, answer).unwrap();
                    session.add_text(Role::User, "b").unwrap();
                })
            };
            assert!(answered("c</s>In: d") > answered("c In: d") + 1);
        },
    );
}

/// Stop texts of a megabyte made every token a hundred times slower.
#[test]
fn stop_texts_are_limited_and_cost_no_more_than_the_text() {
    in_child(
        "text::stop_texts_are_limited_and_cost_no_more_than_the_text",
        Limits::default(),
        || {
            let model = tiny();
            for stop in [
                vec!["x".repeat(1 << 20); MAX_STOP_STRINGS],
                vec!["x".into(); MAX_STOP_STRINGS + 1],
            ] {
                let refused = model.session(GenerationOptions {
                    stop,
                    ..GenerationOptions::default()
                });
                assert!(matches!(refused, Err(Error::InvalidArgument(_))));
            }
            // Each character makes all of them possible: "aaaa…a", a number, "b".
            let stop = |i: usize| format!("{}{i:02}b", "a".repeat(MAX_STOP_BYTES - 3));
            let mut stops = StopStrings::new((0..MAX_STOP_STRINGS).map(stop).collect()).unwrap();
            let begin = Instant::now();
            let passed: usize = (0..100_000).map(|_| stops.push("aaaa").text.len()).sum();
            assert_eq!(passed, 400_000 - (MAX_STOP_BYTES - 3));
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "{:?}",
                begin.elapsed()
            );
            assert!(stops.push("63b").stopped);
        },
    );
}
