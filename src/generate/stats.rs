//! Statistics of a turn.

use std::time::Duration;

/// Counts and times of the latest turn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Positions of the prompt: the whole conversation so far, including image tokens.
    pub prompt_tokens: usize,
    /// Prompt positions that belong to pictures.
    pub image_tokens: usize,
    /// Prompt positions that were in the cache from earlier turns.
    pub reused_tokens: usize,
    /// Pictures of this turn that were found in the cache and not encoded again.
    pub cached_images: usize,
    /// Generated tokens.
    pub generated_tokens: usize,
    /// Time in the vision encoders and the projector.
    pub vision: Duration,
    /// Time in prefill, without vision.
    pub prefill: Duration,
    /// The time from the first step of the turn to its first token, including time between steps.
    pub first_token: Duration,
    /// Time in the steps after the first token.
    pub decode: Duration,
    /// Peak memory of MLX in this process, in bytes.
    pub peak_bytes: u64,
    /// Messages in the conversation, including the answer once it is complete.
    pub messages: usize,
}

impl Stats {
    /// Returns the prompt positions read per second, without reused ones.
    pub fn prefill_rate(&self) -> f64 {
        rate(
            self.prompt_tokens.saturating_sub(self.reused_tokens),
            self.prefill,
        )
    }

    /// Returns the tokens per second after the first token.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}
