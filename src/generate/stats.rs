//! What a turn took.

use std::time::Duration;

/// Counts and times of the latest turn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Positions of the prompt, the whole conversation so far, with image tokens.
    pub prompt_tokens: usize,
    /// Those of them that are a picture's.
    pub image_tokens: usize,
    /// Those of them that were in the cache from earlier turns.
    pub reused_tokens: usize,
    /// Pictures of this turn whose tokens were at hand from an earlier encoding.
    pub cached_images: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Time in the vision encoders and the projector.
    pub vision: Duration,
    /// Time in prefill, without vision.
    pub prefill: Duration,
    /// From the first step of the turn to its first token, time between steps included.
    pub first_token: Duration,
    /// Time in the steps after the first token.
    pub decode: Duration,
    /// The most memory that MLX ever held in this process, in bytes.
    pub peak_bytes: u64,
    /// Messages of the conversation, the answer included once it is complete.
    pub messages: usize,
}

impl Stats {
    /// Positions of the prompt a second, without those reused.
    pub fn prefill_rate(&self) -> f64 {
        rate(
            self.prompt_tokens.saturating_sub(self.reused_tokens),
            self.prefill,
        )
    }

    /// Tokens a second after the first.
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
