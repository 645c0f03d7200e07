use std::collections::HashMap;
use std::path::Path;
use std::thread;

use moxin_vlm::Error;
use moxin_vlm::text::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Random, STYLES, fixture, fixture_path, tokenizer, tokenizer_of};

#[derive(Deserialize)]
pub struct Cases {
    pub texts: Vec<TextCase>,
    pub decoded: Vec<DecodedCase>,
}

#[derive(Deserialize)]
pub struct TextCase {
    pub text: String,
    pub ids: Vec<u32>,
    pub ids_without_special: Vec<u32>,
    pub decoded: String,
}

#[derive(Deserialize)]
pub struct DecodedCase {
    pub ids: Vec<u32>,
    pub text: String,
}

#[test]
fn encodes_and_decodes_as_transformers_does() {
    let cases: HashMap<String, Cases> = fixture("tokens");
    for style in STYLES {
        let tokenizer = tokenizer(style);
        for case in &cases[style].texts {
            assert_eq!(
                tokenizer.encode(&case.text, true).unwrap(),
                case.ids,
                "{style}: {:?}",
                case.text
            );
            assert_eq!(
                tokenizer.encode(&case.text, false).unwrap(),
                case.ids_without_special,
                "{style}: {:?}",
                case.text
            );
            assert_eq!(
                tokenizer.decode(&case.ids).unwrap(),
                case.decoded,
                "{style}: {:?}",
                case.text
            );
        }
        for case in &cases[style].decoded {
            assert_eq!(
                tokenizer.decode(&case.ids).unwrap(),
                case.text,
                "{style}: {:?}",
                case.ids
            );
        }
    }
}

#[test]
fn describes_tokens() {
    let tokenizer = tokenizer("llama");
    let pad = tokenizer.token_id("<PAD>").unwrap();
    assert_eq!(tokenizer.token_id("</s>"), Some(2));
    assert_eq!(tokenizer.token_text(2).as_deref(), Some("</s>"));
    assert_eq!(tokenizer.token_text(3).as_deref(), Some("<0x00>"));
    assert_eq!(tokenizer.vocab_size(), pad as usize + 1);
    assert!(tokenizer.is_special(1) && tokenizer.is_special(pad));
    assert!(!tokenizer.is_special(3) && !tokenizer.is_special(pad + 1));
    assert_eq!(tokenizer.token_id("no such token"), None);
    assert_eq!(tokenizer.token_text(pad + 1), None);
    assert_eq!(tokenizer.decode(&[1, pad + 1, u32::MAX, 2]).unwrap(), "");
}

/// transformers takes truncation and padding from its caller, never from the file.
#[test]
fn ignores_truncation_and_padding() {
    let mut json: Value = fixture("llama");
    json["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let text = "In: What is in the picture?";
    assert_eq!(
        tokenizer_of(&json).unwrap().encode(text, true).unwrap(),
        tokenizer("llama").encode(text, true).unwrap()
    );
}

#[test]
fn is_shared_between_threads() {
    let tokenizer = tokenizer("llama");
    let text = "In: What is in the picture? 👍";
    let expected = tokenizer.encode(text, true).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            let (tokenizer, expected) = (tokenizer.clone(), &expected);
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(&tokenizer.encode(text, true).unwrap(), expected);
                }
            });
        }
    });
}

#[test]
fn names_the_file_in_errors() {
    let missing = Tokenizer::from_file("no/such/tokenizer.json").unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }));
    assert!(
        missing.to_string().contains("no/such/tokenizer.json"),
        "{missing}"
    );

    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        Tokenizer::from_file(folder.path()),
        Err(Error::CorruptModel { .. })
    ));

    for bytes in [
        &b""[..],
        b"{",
        b"null",
        b"{\"version\":\"1.0\"}",
        b"\xFF\xFE",
        "[".repeat(100_000).as_bytes(),
    ] {
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, bytes).unwrap();
        assert_corrupt(Tokenizer::from_file(&path).map(|_| ()), &path);
    }
}

fn assert_corrupt(result: moxin_vlm::Result<()>, path: &Path) {
    match result {
        Err(Error::CorruptModel { path: named, .. }) => assert_eq!(named, path),
        other => panic!("expected CorruptModel, found {other:?}"),
    }
}

/// A decoder that panics inside the tokenizers crate: it strips more characters than a token has.
#[test]
fn contains_a_panic_of_the_decoder() {
    let mut json: Value = fixture("llama");
    json["decoder"] = json!({"type": "Strip", "content": "a", "start": 0, "stop": 9});
    let tokenizer = tokenizer_of(&json).unwrap();
    let a = tokenizer.token_id("a").unwrap();
    assert!(matches!(
        tokenizer.decode(&[a]),
        Err(Error::CorruptModel { .. })
    ));
    assert_eq!(
        tokenizer.encode("still alive", true).unwrap(),
        crate::tokenizer("llama")
            .encode("still alive", true)
            .unwrap()
    );
}

/// Any damage to the file results in a tokenizer or an error, and a working process.
#[test]
fn survives_damaged_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut random = Random::new(1);
    for style in STYLES {
        let sound = std::fs::read(fixture_path(style)).unwrap();
        for round in 0..150 {
            let mut bytes = sound.clone();
            match round % 3 {
                0 => bytes.truncate(random.below(sound.len())),
                1 => bytes[random.below(sound.len())] ^= 1 << random.below(8),
                // Digits change sizes and ids without breaking the syntax.
                _ => {
                    let digits: Vec<usize> = (0..sound.len())
                        .filter(|&i| sound[i].is_ascii_digit())
                        .collect();
                    bytes[*random.pick(&digits)] = b'0' + random.below(10) as u8;
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            match Tokenizer::from_file(&path) {
                Ok(tokenizer) => {
                    for outcome in [
                        tokenizer.encode("In: What? 👍", true).map(|_| ()),
                        tokenizer.decode(&[0, 3, 7, 300, 400]).map(|_| ()),
                    ] {
                        if outcome.is_err() {
                            assert_corrupt(outcome, &path);
                        }
                    }
                }
                Err(error) => assert_corrupt(Err(error), &path),
            }
        }
    }
}
