//! Prefill and decode: sampling, stop rules, and the step loop of a conversation. Runs on one thread, usually the engine's.

mod chat;
mod iterator;
mod sampler;
mod stop;

pub use chat::{Chat, ChatImage, ChatModel, Event, FinishReason, GenerationOptions, Stats};
pub use iterator::{Generate, sample};
pub use sampler::{Choice, Sampler, SamplingParams, top_logprobs};
pub use stop::{StopOutcome, StopStrings};
