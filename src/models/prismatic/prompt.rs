//! The prompt format of the Prismatic models, "pure":
//! `In: question\nOut: answer</s>In: next question\nOut:`.
//!
//! Source: `PurePromptBuilder` in TRI-ML/prismatic-vlms. The prompt of a conversation always
//! contains its whole history and is tokenized as a whole. With a KV cache, compare the new rows
//! with the cached ones and compute from the first difference.

use crate::{
    Error, Result,
    text::{Message, Prompt, Role},
};

/// Renders a whole conversation. User, or raw prompt text, and assistant alternate; the assistant
/// is not first. After a user's message the prompt ends with `Out:`, without a space: the space
/// belongs to the answer's first token. Raw prompt text and the answer to it are used unchanged;
/// the answer is closed by `</s>` like any other. Texts of one message are joined with newlines,
/// raw ones without.
///
/// # Errors
/// [`Error::InvalidState`] for a system message, [`Error::InvalidArgument`] for messages in another
/// order.
pub fn render(messages: &[Message]) -> Result<Prompt> {
    let mut prompt = Prompt::default();
    let mut asked = None;
    for (i, message) in messages.iter().enumerate() {
        check_order(i, message)?;
        let text = message.text(if message.role == Role::Prompt {
            ""
        } else {
            "\n"
        });
        match (message.role, asked) {
            (Role::Prompt, _) => prompt.push_markup(&text),
            (Role::Assistant, Some(Role::Prompt)) => push_answer(&mut prompt, &text),
            (Role::Assistant, _) if spoken(&text).is_empty() => push_answer(&mut prompt, " "),
            (Role::Assistant, _) => push_answer(&mut prompt, &spoken(&text)),
            _ => prompt.push(&format!("In: {}\nOut: ", spoken(&text))),
        }
        asked = Some(message.role);
    }
    if asked == Some(Role::User) {
        prompt.trim_end(is_python_space);
    }
    Ok(prompt)
}

/// Returns the text of [`render`].
///
/// # Errors
/// The errors of [`render`].
pub fn pure_prompt(messages: &[Message]) -> Result<String> {
    Ok(render(messages)?.text().to_owned())
}

fn push_answer(prompt: &mut Prompt, text: &str) {
    prompt.push(text);
    prompt.push_markup("</s>");
}

fn check_order(i: usize, message: &Message) -> Result<()> {
    if message.role == Role::System {
        return Err(Error::InvalidState(
            "this model supports no system text: its prompt format has only the user's and the \
                assistant's messages; put the instruction into the user's first message"
                .into(),
        ));
    }
    if message.role.asks() != i.is_multiple_of(2) {
        let (number, expected) = (
            i + 1,
            if i.is_multiple_of(2) {
                Role::User
            } else {
                Role::Assistant
            },
        );
        let found = message.role;
        return Err(Error::InvalidArgument(format!(
            "message {number} of the conversation is the {expected:?}'s, found {found:?}"
        )));
    }
    Ok(())
}

/// Returns a message in the form that the format expects.
fn spoken(text: &str) -> String {
    text.replace("<image>", "")
        .trim_matches(is_python_space)
        .into()
}

/// Returns whether Python's `str.strip` removes a character: Unicode's white space and four ASCII
/// separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}
