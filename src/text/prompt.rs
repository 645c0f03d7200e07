//! A prompt as text that marks where control tokens are allowed.

use std::ops::Range;

use crate::{Error, Result};

/// The model's input as text, without the tokens that the tokenizer adds around it, and the ranges
/// in which control tokens are allowed.
///
/// Text of a user or an answer stays text: [`PromptEncoder`](super::PromptEncoder) makes no control
/// token from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    markup: Vec<Range<usize>>,
}

impl Prompt {
    /// Returns the text of the prompt.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the byte ranges of the text in which control tokens are allowed.
    pub(super) fn markup(&self) -> &[Range<usize>] {
        &self.markup
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds text in which control tokens are allowed.
    pub fn push_markup(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.markup.push(start..self.text.len());
    }

    /// Returns the prompt from a byte on. The byte is the start or end of markup, or outside of it.
    pub fn after(&self, start: usize) -> Prompt {
        let markup = self.markup.iter().filter(|range| range.end > start);
        let markup = markup
            .map(|range| range.start.max(start) - start..range.end - start)
            .collect();
        Prompt {
            text: self.text[start..].to_owned(),
            markup,
        }
    }

    /// Removes characters from the end that are not markup.
    pub fn trim_end(&mut self, is_space: impl Fn(char) -> bool) {
        self.text
            .truncate(self.text.trim_end_matches(is_space).len());
    }

    /// Replaces the `n`th marker in the markup with the `n`th text. `media` names what they stand
    /// for, in error messages.
    ///
    /// # Errors
    /// [`Error::InvalidState`] if the number of markers is not that of the texts.
    pub fn replace_markers(&self, marker: &str, media: &str, texts: &[&str]) -> Result<Prompt> {
        let mut replaced = Prompt::default();
        let (mut done, mut count) = (0, 0);
        for range in &self.markup {
            replaced.push(&self.text[done..range.start]);
            let mut markup = String::new();
            for (i, piece) in self.text[range.clone()].split(marker).enumerate() {
                if i > 0 {
                    markup.push_str(texts.get(count).copied().unwrap_or_default());
                    count += 1;
                }
                markup.push_str(piece);
            }
            replaced.push_markup(&markup);
            done = range.end;
        }
        replaced.push(&self.text[done..]);
        match count == texts.len() {
            true => Ok(replaced),
            false => Err(Error::InvalidState(format!(
                "the prompt has {count} markers {marker} for {} {media}s; each {media} needs one, \
                    from the model's chat template or raw prompt text",
                texts.len()
            ))),
        }
    }
}
