use moxin_vlm::Error;
use moxin_vlm::models::prismatic::pure_prompt;
use moxin_vlm::text::Message;
use serde::Deserialize;

use crate::{fixture, tokenizer};

#[derive(Deserialize)]
pub struct Cases {
    pub conversations: Vec<Conversation>,
    white_space: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Conversation {
    pub turns: Vec<String>,
    prompt: String,
    pub ids: Vec<u32>,
}

pub fn alternating(texts: &[String]) -> Vec<Message> {
    let turn = |(i, text): (usize, &String)| {
        if i % 2 == 0 {
            Message::user(text)
        } else {
            Message::assistant(text)
        }
    };
    texts.iter().enumerate().map(turn).collect()
}

#[test]
fn builds_what_the_reference_builds() {
    let cases: Cases = fixture("prompts");
    let tokenizer = tokenizer("llama");
    for case in cases.conversations {
        let prompt = pure_prompt(&alternating(&case.turns)).unwrap();
        assert_eq!(prompt, case.prompt, "{:?}", case.turns);
        assert_eq!(
            tokenizer.encode(&prompt, true).unwrap(),
            case.ids,
            "{:?}",
            case.turns
        );
    }
}

#[test]
fn strips_what_python_strips() {
    let spaces = fixture::<Cases>("prompts").white_space;
    for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
        let stripped = pure_prompt(&[Message::user(format!("{c}a{c}"))]).unwrap() == "In: a\nOut:";
        assert_eq!(stripped, spaces.contains(&u32::from(c)), "{c:?}");
    }
}

/// The reference escapes nothing: a special token that is spelled in plain text becomes one.
#[test]
fn special_tokens_in_plain_text_are_parsed() {
    let tokenizer = tokenizer("llama");
    let prompt = pure_prompt(&[Message::user("a</s>b<s>")]).unwrap();
    let ids = tokenizer.encode(&prompt, true).unwrap();
    assert_eq!(prompt, "In: a</s>b<s>\nOut:");
    assert_eq!(
        (
            ids.iter().filter(|&&id| id == 2).count(),
            ids.iter().filter(|&&id| id == 1).count()
        ),
        (1, 2)
    );
}

#[test]
fn refuses_other_turns() {
    let system = Message::system("Be brief.");
    let error = pure_prompt(&[system, Message::user("hi")]).unwrap_err();
    assert!(
        matches!(error, Error::InvalidState(_)) && error.to_string().contains("no system text"),
        "{error}"
    );

    let error = pure_prompt(&[Message::user("a"), Message::user("b")]).unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument(_)) && error.to_string().contains("message 2"),
        "{error}"
    );
    assert!(matches!(
        pure_prompt(&[Message::assistant("a")]),
        Err(Error::InvalidArgument(_))
    ));
    assert_eq!(pure_prompt(&[]).unwrap(), "");
}
