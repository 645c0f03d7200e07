//! Compares text processing (tokens, prompts, sampling and stop strings) with fixtures by
//! transformers and the models' own prompt builder (`make_text.py`).

mod check;
mod detokenizer;
mod encoder;
mod prompt;
mod sampler;
mod stop;
mod template;
mod tokenizer;

use std::path::PathBuf;

use moxin_vlm::text::Tokenizer;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::de::DeserializeOwned;

/// The tokenizers that make_text.py writes.
const STYLES: [&str; 3] = ["llama", "byte_level", "metaspace"];

fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/text")
        .join(name)
        .with_extension("json")
}

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(fixture_path(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_file(fixture_path(name)).unwrap()
}

/// Returns the tokenizer of a file with the content `json`.
fn tokenizer_of(json: &serde_json::Value) -> moxin_vlm::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    Tokenizer::from_file(path)
}

/// The same random numbers in each run.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
