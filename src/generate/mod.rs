//! Prefill and decode: sampling, stop rules, and the step loop of a conversation. Runs on one thread, usually the engine's.

mod chat;
mod image_cache;
mod iterator;
mod sampler;
mod stop;

pub use chat::{Chat, ChatImage, ChatModel, Encoded, Event, FinishReason, GenerationOptions, Stats, Watch};
pub use image_cache::{ImageCache, image_cache_bytes};
pub use iterator::{Generate, sample};
pub use sampler::{Choice, Sampler, SamplingParams, top_logprobs};
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopOutcome, StopStrings};
