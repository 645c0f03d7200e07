//! The prompt format of the Prismatic models, "pure": `In: question\nOut: answer</s>In: next question\nOut:`.
//!
//! Source: `PurePromptBuilder` in TRI-ML/prismatic-vlms. The prompt of a conversation is always that of its whole history, and is
//! tokenized whole; who keeps a KV cache compares the new ids with the cached ones and computes from the first that differs.
//!
//! What a user or an answer says is text: [`PromptEncoder`](super::PromptEncoder) makes no control
//! token of a `</s>` that is spelt there.

use std::ops::Range;

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
    /// Nobody: prompt text that is used as it is. Control tokens spelt in it are control tokens,
    /// and nothing is put around it.
    Prompt,
}

impl Role {
    /// Whether a message of this role waits for an answer.
    pub fn asks(self) -> bool {
        matches!(self, Role::User | Role::Prompt)
    }
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

    /// Prompt text that is used as it is.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self { role: Role::Prompt, text: text.into() }
    }
}

/// What the model is to read, without the `<s>` that the tokenizer puts in front, and where in it
/// control tokens may be spelt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    markup: Vec<Range<usize>>,
}

impl Prompt {
    /// Renders a whole conversation. User, or raw prompt text, and assistant take turns; the
    /// assistant is not the first. After a user's turn the prompt ends with `Out:`, without a
    /// space: the space belongs to the answer's first token. Raw prompt text and the answer to it
    /// are used as they are; the answer is closed by `</s>` as any other.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a system turn, [`Error::InvalidArgument`] for turns in another
    /// order.
    pub fn of(turns: &[Turn]) -> Result<Self> {
        let mut prompt = Self::default();
        let mut asked = None;
        for (i, turn) in turns.iter().enumerate() {
            check_order(i, turn)?;
            match (turn.role, asked) {
                (Role::Prompt, _) => prompt.push_markup(&turn.text),
                (Role::Assistant, Some(Role::Prompt)) => prompt.push_answer(&turn.text),
                (Role::Assistant, _) if spoken(&turn.text).is_empty() => prompt.push_answer(" "),
                (Role::Assistant, _) => prompt.push_answer(&spoken(&turn.text)),
                _ => prompt.push(&format!("In: {}\nOut: ", spoken(&turn.text))),
            }
            asked = Some(turn.role);
        }
        if asked == Some(Role::User) {
            prompt.text.truncate(prompt.text.trim_end_matches(is_python_space).len());
        }
        Ok(prompt)
    }

    /// The text of the prompt.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where in the text control tokens may be spelt, in bytes.
    pub(super) fn markup(&self) -> &[Range<usize>] {
        &self.markup
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn push_markup(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.markup.push(start..self.text.len());
    }

    fn push_answer(&mut self, text: &str) {
        self.push(text);
        self.push_markup("</s>");
    }
}

/// The text of [`Prompt::of`].
///
/// # Errors
/// As there.
pub fn pure_prompt(turns: &[Turn]) -> Result<String> {
    Ok(Prompt::of(turns)?.text)
}

fn check_order(i: usize, turn: &Turn) -> Result<()> {
    if turn.role == Role::System {
        return Err(Error::InvalidState(
            "this model takes no system text: its prompt format has only the user's and the assistant's turns; put the instruction into the user's first message".into(),
        ));
    }
    if turn.role.asks() != i.is_multiple_of(2) {
        let (number, expected) = (i + 1, if i.is_multiple_of(2) { Role::User } else { Role::Assistant });
        return Err(Error::InvalidArgument(format!("turn {number} of the conversation is the {expected:?}'s, found {:?}", turn.role)));
    }
    Ok(())
}

/// A message as the format takes it.
fn spoken(text: &str) -> String {
    text.replace("<image>", "").trim_matches(is_python_space).into()
}

/// What Python's `str.strip` removes: Unicode's white space and four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}
