//! Options of a session.

use super::{SamplingParams, StopStrings};
use crate::{
    Error, Result,
    models::{Budget, Limits},
};

/// The limit of OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;

/// Options of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// How tokens are sampled. The default is greedy.
    pub sampling: SamplingParams,
    /// The maximum number of tokens in an answer.
    pub max_tokens: usize,
    /// Texts that end an answer and are not part of it. At most 64, of 1 to 1,024 bytes each.
    pub stop: Vec<String>,
    /// The maximum number of positions in the whole conversation, including image tokens. `None`:
    /// 4096, more if a single picture needs more, less if the model was made for less.
    pub max_context: Option<usize>,
    /// The budget of each picture that is added without one of its own.
    pub image_budget: Budget,
    /// The number of positions that one step of prefill reads.
    pub prefill_chunk: usize,
    /// Separates conversations: an ended one is only continued by those with the same number. A
    /// server gives each of its users another one, so that times tell nobody what others asked.
    pub prefix_scope: u64,
    /// The number of most likely tokens that each [`Event::Text`](super::Event::Text) lists, at
    /// most 20.
    pub top_logprobs: usize,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        GenerationOptions {
            sampling: SamplingParams::default(),
            max_tokens: 512,
            stop: Vec::new(),
            max_context: None,
            image_budget: Budget::default(),
            prefill_chunk: 256,
            prefix_scope: 0,
            top_logprobs: 0,
        }
    }
}

impl GenerationOptions {
    /// Returns the maximum number of positions in the whole conversation, for a model with these
    /// limits.
    pub fn context(&self, limits: &Limits) -> usize {
        self.max_context
            .unwrap_or(limits.default_context)
            .min(limits.context)
    }

    /// Checks the range of every field.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        for (name, value) in [
            ("max_tokens", self.max_tokens),
            ("prefill_chunk", self.prefill_chunk),
            ("max_context", self.max_context.unwrap_or(1)),
        ] {
            if !(1..=1 << 24).contains(&value) {
                return Err(Error::InvalidArgument(format!(
                    "{name} is {value}; expected 1 to {}",
                    1 << 24
                )));
            }
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            return Err(Error::InvalidArgument(format!(
                "logprobs is {}; expected 0 to {MAX_TOP_LOGPROBS}",
                self.top_logprobs
            )));
        }
        StopStrings::check(&self.stop)
    }
}
