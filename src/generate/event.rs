//! What the steps of a conversation bring.

use super::Choice;
use crate::Result;

/// What a step tells and asks while it computes. An error from either ends the step.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told the part of the picture's encoding that is done, 0 to 1, after every block.
    pub progress: &'a dyn Fn(f32) -> Result<()>,
    /// Called before every layer of the decoder.
    pub poll: &'a dyn Fn() -> Result<()>,
}

/// What one step brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Part of the prompt was read.
    Prefill {
        /// Positions of the prompt in the cache.
        done: usize,
        /// Positions of the prompt.
        total: usize,
    },
    /// One token.
    Text {
        /// Text that became complete with it; empty while the bytes of a character or a possible
        /// stop text are waiting.
        text: String,
        /// The token.
        token: u32,
        /// Its log-probability before temperature and filters.
        logprob: f32,
        /// The likeliest tokens and their log-probabilities, likeliest first.
        top: Vec<Choice>,
    },
    /// The answer is complete; the next step needs a new question.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Text that was still waiting.
        text: String,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text came up.
    StopSequence,
    /// The answer reached its maximum length.
    MaxTokens,
    /// The conversation fills the context.
    ContextFull,
    /// It was cancelled; the turn was taken back.
    Cancelled,
}
