//! The results of a conversation's steps.

use super::Choice;
use crate::Result;

/// Callbacks of a running step. An error from either ends the step.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Receives the fraction of the picture's encoding that is complete, 0 to 1, after every block.
    pub progress: &'a dyn Fn(f32) -> Result<()>,
    /// Called before every layer of the decoder.
    pub poll: &'a dyn Fn() -> Result<()>,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Part of the prompt was read.
    Prefill {
        /// The number of prompt positions in the cache.
        done: usize,
        /// The number of prompt positions.
        total: usize,
    },
    /// One token was generated.
    Text {
        /// The text that it completes; empty while a character is incomplete or the text may belong
        /// to a stop text.
        text: String,
        /// The token.
        token: u32,
        /// Its log-probability before temperature and filters.
        logprob: f32,
        /// The most likely tokens and their log-probabilities, in descending order.
        top: Vec<Choice>,
    },
    /// The answer is complete; the next step needs a new question.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// The text that was held back.
        text: String,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text was generated.
    StopSequence,
    /// The answer reached its maximum length.
    MaxTokens,
    /// The conversation fills the context.
    ContextFull,
    /// The answer was cancelled; the turn was rolled back.
    Cancelled,
}
