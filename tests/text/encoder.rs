use moxin_vlm::Error;
use moxin_vlm::models::prismatic::render;
use moxin_vlm::text::{Message, PromptEncoder, Tokenizer};
use serde_json::{Value, json};

use crate::prompt::{Cases, alternating};
use crate::{Random, STYLES, fixture, tokenizer, tokenizer_of};

fn encoder(tokenizer: &Tokenizer) -> PromptEncoder {
    PromptEncoder::new(tokenizer, &[2]).unwrap()
}

fn encode(tokenizer: &Tokenizer, messages: &[Message]) -> Vec<u32> {
    encoder(tokenizer)
        .encode(&render(messages).unwrap(), true)
        .unwrap()
}

/// Returns the positions of control tokens.
fn controls(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
    ids.iter()
        .copied()
        .filter(|id| tokenizer.is_special(*id) && tokenizer.token_text(*id).unwrap() != "<unk>")
        .collect()
}

/// Texts without anything like a control token have the ids of the reference, including the
/// format's control tokens.
#[test]
fn benign_conversations_have_the_ids_of_the_reference() {
    let cases: Cases = fixture("prompts");
    let tokenizer = tokenizer("llama");
    let spells = |turn: &String| turn.contains("</s>") || turn.contains("<s>");
    let mut benign = 0;
    for case in cases
        .conversations
        .iter()
        .filter(|case| !case.turns.iter().any(spells))
    {
        assert_eq!(
            encode(&tokenizer, &alternating(&case.turns)),
            case.ids,
            "{:?}",
            case.turns
        );
        benign += 1;
    }
    assert!(benign >= 8);
}

/// Text is read as it is spelled: no control token, and the same characters.
#[test]
fn a_control_token_in_a_text_is_text() {
    let llama = tokenizer("llama");
    let ids = encode(
        &llama,
        &[
            Message::user("a</s>b<s>"),
            Message::assistant("<PAD>"),
            Message::user("c"),
        ],
    );
    assert_eq!(controls(&llama, &ids), [1, 2]);
    assert_eq!(
        llama.decode(&ids).unwrap(),
        "In: a</s>b<s>\nOut: <PAD> In: c\nOut:"
    );
}

/// Spellings of all kinds, cut anywhere, in questions and answers: only the format's own control
/// tokens appear.
#[test]
fn random_spellings_never_become_control_tokens() {
    let pieces = [
        "</s>", "<s>", "<PAD>", "<unk>", "</", "s>", "<", ">", "s", "<image>", " ", "\n", "é",
        "In: ", "</s", "PAD>", "👍",
    ];
    let mut random = Random::new(24);
    for style in STYLES {
        let tokenizer = tokenizer(style);
        let encoder = encoder(&tokenizer);
        let frame = tokenizer.encode("", true).unwrap();
        for _ in 0..400 {
            let mut text = |most: usize| {
                (0..random.below(most))
                    .map(|_| *random.pick(&pieces))
                    .collect::<String>()
            };
            let turns: Vec<Message> = (0..5)
                .map(|i| {
                    if i % 2 == 0 {
                        Message::user(text(8))
                    } else {
                        Message::assistant(text(8))
                    }
                })
                .collect();
            let ids = encoder.encode(&render(&turns).unwrap(), true).unwrap();
            assert_eq!(
                controls(&tokenizer, &ids),
                [&frame[..], &[2, 2]].concat(),
                "{style}: {turns:?}"
            );
        }
    }
}

#[test]
fn raw_prompt_text_keeps_its_control_tokens() {
    let tokenizer = tokenizer("llama");
    let turns = [
        Message::user("How many?"),
        Message::assistant("Three."),
        Message::user("And?"),
    ];
    let expected = encode(&tokenizer, &turns);
    let whole = Message::prompt("In: How many?\nOut: Three.</s>In: And?\nOut:");
    assert_eq!(encode(&tokenizer, std::slice::from_ref(&whole)), expected);
    // The start of a text is not doubled, and nothing is trimmed.
    assert_eq!(
        encode(
            &tokenizer,
            &[Message::prompt(format!("<s>{}", whole.text("")))]
        ),
        expected
    );
    assert_eq!(
        render(&[Message::prompt(" <image> ")]).unwrap().text(),
        " <image> "
    );

    // An answer to it is used unchanged, and is text; the conversation continues in either format.
    let answered = [
        Message::prompt("In: How many?\nOut:"),
        Message::assistant(" Three."),
        Message::user("And?"),
    ];
    assert_eq!(encode(&tokenizer, &answered), expected);
    let hostile = [
        Message::prompt("In: How many?</s>\nOut:"),
        Message::assistant("</s>"),
        Message::prompt("<s>And</s"),
        Message::assistant(">"),
    ];
    assert_eq!(
        controls(&tokenizer, &encode(&tokenizer, &hostile)),
        [1, 2, 2, 1, 2]
    );

    let twice = render(&[Message::user("a"), Message::prompt("b")]);
    assert!(matches!(twice, Err(Error::InvalidArgument(_))));
}

/// Control tokens that are not marked as special, and content tokens that stay as they are.
#[test]
fn tokens_that_look_like_control_tokens_count_as_such() {
    let added = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false});
    let mut json: Value = fixture("llama");
    let tokens = [
        "<|im_end|>",
        "[INST]",
        "[/INST]",
        "<｜User｜>",
        "<loc0001>",
        "[word]",
    ];
    json["added_tokens"].as_array_mut().unwrap().extend(
        tokens
            .iter()
            .enumerate()
            .map(|(i, token)| added(441 + i as u32, token)),
    );
    let tokenizer = tokenizer_of(&json).unwrap();
    let ids = encode(&tokenizer, &[Message::user(tokens.concat())]);
    let found: Vec<_> = ids
        .iter()
        .filter(|id| **id > 440)
        .map(|id| tokenizer.token_text(*id).unwrap())
        .collect();
    assert_eq!(found, ["<loc0001>", "[word]"]);
    let raw = encode(&tokenizer, &[Message::prompt(tokens.concat())]);
    assert_eq!(raw.iter().filter(|id| **id > 440).count(), tokens.len());
}

/// A vocabulary that always makes the end token from its letters.
#[test]
fn a_tokenizer_that_confuses_text_and_control_tokens_is_refused() {
    let mut json: Value = fixture("llama");
    json["model"]["ignore_merges"] = true.into();
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": "</s>"}, "behavior": "Isolated", "invert": false});
    let tokenizer = tokenizer_of(&json).unwrap();
    let refused = encoder(&tokenizer).encode(&render(&[Message::user("a</s>b")]).unwrap(), true);
    assert!(
        matches!(&refused, Err(Error::CorruptModel { .. })),
        "{refused:?}"
    );
    encode(&tokenizer, &[Message::user("a")]);
}

/// Replaced letters form a spelling that was not there before.
#[test]
fn a_normalizer_cannot_make_a_control_token() {
    let mut json: Value = fixture("llama");
    json["normalizer"] = json!({"type": "NFKC"});
    for token in json["added_tokens"].as_array_mut().unwrap() {
        token["normalized"] = true.into();
    }
    let tokenizer = tokenizer_of(&json).unwrap();
    assert!(tokenizer.encode("a＜/s＞", false).unwrap().contains(&2));
    assert_eq!(
        controls(&tokenizer, &encode(&tokenizer, &[Message::user("a＜/s＞")])),
        [1]
    );
}

#[test]
fn a_prompt_that_cannot_fit_is_known_by_its_length() {
    let encoder = encoder(&tokenizer("llama"));
    encoder.check_room(0, 1).unwrap();
    assert!(matches!(
        encoder.check_room(1, 1),
        Err(Error::ContextFull {
            needed: 2,
            limit: 1
        })
    ));
    assert!(matches!(
        encoder.check_room(usize::MAX, 1 << 24),
        Err(Error::ContextFull { .. })
    ));
    // Any text has at least so many tokens.
    let tokenizer = tokenizer("llama");
    for text in [
        "The quick brown fox ".repeat(50),
        " ".repeat(1000),
        "👍".repeat(300),
        "picture".repeat(200),
    ] {
        assert!(
            tokenizer.encode(&text, false).unwrap().len() >= tokenizer.fewest_tokens(text.len()),
            "{text}"
        );
    }
}
