//! Tokens and text: the tokenizer, streaming of its output, and the prompt formats of the models.

pub mod detokenizer;
pub mod prompt;
pub mod tokenizer;
