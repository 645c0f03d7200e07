//! The prompt format of the Prismatic models, "pure": `In: question\nOut: answer</s>In: next question\nOut:`.
//!
//! Source: `PurePromptBuilder` in TRI-ML/prismatic-vlms. The prompt of a conversation is always that of its whole history, and is
//! tokenized whole; who keeps a KV cache compares the new ids with the cached ones and computes from the first that differs.
//!
//! Nothing in the format is escaped: a `</s>` or `<s>` that a user types becomes that special token, as in the reference. A program that
//! passes on text it does not trust, and minds that, removes both first.

use crate::{Error, Result};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions above the conversation. The pure format has none.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
}

impl Turn {
    /// A message of the user's.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, text: text.into() }
    }

    /// An answer of the model's.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, text: text.into() }
    }
}

/// The prompt of a whole conversation, without the `<s>` that the tokenizer puts in front. User and assistant take turns, the user
/// first. After a user's turn the prompt ends with `Out:`, without a space: the space belongs to the answer's first token.
///
/// # Errors
/// [`Error::InvalidState`] for a system turn, [`Error::InvalidArgument`] for turns in another order.
pub fn pure_prompt(turns: &[Turn]) -> Result<String> {
    let mut prompt = String::new();
    for (i, turn) in turns.iter().enumerate() {
        let expected = if i % 2 == 0 { Role::User } else { Role::Assistant };
        if turn.role == Role::System {
            return Err(Error::InvalidState(
                "this model takes no system text: its prompt format has only the user's and the assistant's turns; put the instruction into the user's first message".into(),
            ));
        }
        if turn.role != expected {
            let number = i + 1;
            return Err(Error::InvalidArgument(format!("turn {number} of the conversation is the {expected:?}'s, found {:?}", turn.role)));
        }
        let text = turn.text.replace("<image>", "");
        let text = text.trim_matches(is_python_space);
        prompt += &match turn.role {
            Role::User => format!("In: {text}\nOut: "),
            _ if text.is_empty() => " </s>".into(),
            _ => format!("{text}</s>"),
        };
    }
    Ok(prompt.trim_end_matches(is_python_space).into())
}

/// What Python's `str.strip` removes: Unicode's white space and four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}
