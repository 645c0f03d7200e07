//! How a session generates.

use super::{SamplingParams, StopStrings};
use crate::{Error, Result, models::Limits};

/// As in OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;

/// How a session generates.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// How a token is drawn. The default is greedy.
    pub sampling: SamplingParams,
    /// Tokens of one answer at most.
    pub max_tokens: usize,
    /// Texts that end an answer; they are not part of it. At most 64, of 1 to 1,024 bytes each.
    pub stop: Vec<String>,
    /// Positions of the whole conversation at most, image tokens included. `None`: 4096, more
    /// where a picture alone takes so many, fewer where the model was made for fewer.
    pub max_context: Option<usize>,
    /// Positions that one step of prefill works through.
    pub prefill_chunk: usize,
    /// How many of the likeliest tokens each [`Event::Text`](super::Event::Text) lists, at most 20.
    pub top_logprobs: usize,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        GenerationOptions {
            sampling: SamplingParams::default(),
            max_tokens: 512,
            stop: Vec::new(),
            max_context: None,
            prefill_chunk: 256,
            top_logprobs: 0,
        }
    }
}

impl GenerationOptions {
    /// Positions of the whole conversation at most, for a model of these limits.
    pub fn context(&self, limits: &Limits) -> usize {
        self.max_context
            .unwrap_or(limits.default_context)
            .min(limits.context)
    }

    /// Checks every field's range.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        for (name, value) in [
            ("max_tokens", self.max_tokens),
            ("prefill_chunk", self.prefill_chunk),
            ("max_context", self.max_context.unwrap_or(1)),
        ] {
            if !(1..=1 << 24).contains(&value) {
                return Err(Error::InvalidArgument(format!(
                    "{name} is {value}; 1 to {} is expected",
                    1 << 24
                )));
            }
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            return Err(Error::InvalidArgument(format!(
                "logprobs is {}; 0 to {MAX_TOP_LOGPROBS} is expected",
                self.top_logprobs
            )));
        }
        StopStrings::check(&self.stop)
    }
}
