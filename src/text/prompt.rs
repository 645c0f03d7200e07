//! A prompt as text, with what of it may be control tokens.

use std::ops::Range;

use crate::{Error, Result};

/// What the model is to read, without what the tokenizer puts around it, and where in it control
/// tokens may be spelt.
///
/// What a user or an answer says is text: [`PromptEncoder`](super::PromptEncoder) makes no control
/// token of one that is spelt there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    markup: Vec<Range<usize>>,
}

impl Prompt {
    /// The text of the prompt.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where in the text control tokens may be spelt, in bytes.
    pub(super) fn markup(&self) -> &[Range<usize>] {
        &self.markup
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds text in which control tokens may be spelt.
    pub fn push_markup(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.markup.push(start..self.text.len());
    }

    /// The prompt from a byte on, which is the beginning or the end of markup, or within none.
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

    /// Removes characters from the end, which are no markup.
    pub fn trim_end(&mut self, is_space: impl Fn(char) -> bool) {
        self.text
            .truncate(self.text.trim_end_matches(is_space).len());
    }

    /// Puts the `n`th text in place of the `n`th marker in the markup.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where there are more markers than texts or fewer.
    pub fn replace_markers(&self, marker: &str, texts: &[&str]) -> Result<Prompt> {
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
                "the prompt has {count} markers {marker} for {} images; each image needs one, \
                 which the model's chat template puts, or raw prompt text",
                texts.len()
            ))),
        }
    }
}
