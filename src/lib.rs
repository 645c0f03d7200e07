//! Runs vision-language models on Apple's MLX: [Moxin-7B VLM](https://huggingface.co/moxin-org/Moxin-7B-VLM) from a Hugging Face folder.
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod checkpoint;
pub mod error;
pub mod generate;
pub mod image;
pub mod text;

pub use error::{Error, Result};
