//! Prefill and decode: sampling, stop rules, and the step loop of a conversation. Runs on one
//! thread, usually the engine's.

mod answer;
mod chat;
mod conversation;
mod event;
mod image_cache;
mod model;
mod options;
mod prefix_pool;
mod prompt;
mod sampler;
mod stats;
mod stop;

use answer::Answer;
pub use chat::Chat;
pub use conversation::{ChatMedium, Conversation, MediumContent};
pub use event::{Event, FinishReason, Watch};
pub use image_cache::{ImageCache, image_cache_bytes};
pub use model::ChatModel;
pub use options::GenerationOptions;
use prefix_pool::{CachedRow, Prefix, common};
pub use prefix_pool::{PrefixPool, prefix_pool_bytes};
pub use prompt::{Prompt, PromptRequest, PromptWriter, Source, Written};
pub use sampler::{Choice, Sampler, SamplingParams, top_logprobs};
pub use stats::Stats;
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopOutcome, StopStrings};
