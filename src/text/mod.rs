//! Tokens and text: the tokenizer, streaming detokenization, and prompt formats.

mod check;
mod detokenizer;
mod encoder;
mod message;
mod prompt;
mod template;
mod tokenizer;

use std::path::Path;

pub use detokenizer::StreamDecoder;
pub use encoder::{Mask, PromptEncoder};
pub use message::{Message, Part, Role};
pub use prompt::Prompt;
pub use template::{ContentStyle, Template};
pub use tokenizer::Tokenizer;

use crate::Result;

/// Loads the tokenizer of a model folder from its `tokenizer.json`.
pub fn load_tokenizer(folder: impl AsRef<Path>) -> Result<Tokenizer> {
    Tokenizer::from_file(folder.as_ref().join("tokenizer.json"))
}
