//! What a program holds: [`Model`], [`Session`], [`Embedding`]. They may be used from any thread,
//! in any number.
//!
//! All MLX work happens on one thread that the library owns. Operations queue for it and each takes
//! one turn: a session's is one chunk of a prompt or one token, so that sessions advance side by
//! side.

pub(crate) mod callback;
mod embedding;
mod engine;
mod info;
mod load;
mod log;
mod model;
mod op;
mod outbox;
mod queue;
mod session;
mod slot;
mod stream;
mod sync;
mod tokenize;

// What the C ABI is a translation of beside the types here: it sees no other room.
pub(crate) use crate::{
    checkpoint::{Mode, Quantization},
    device::{
        Backend, CpuKernels, Dtype, available_memory, inject, memory_limit, memory_stats,
        mlx_version, set_cpu_threads, set_memory_limits, set_metallib_path,
    },
    error::guarded,
    generate::{
        Event, FinishReason, GenerationOptions, MAX_STOP_STRINGS, SamplingParams, image_cache_bytes,
    },
    image::{DecodeOptions, Picture, PixelFormat},
    models::{Budget, QuantizeOptions, model_types},
    process,
    text::Role,
};

pub use embedding::Embedding;
pub use engine::{resume, suspend};
pub use info::{MemoryEstimate, ModelInfo};
pub use load::LoadOptions;
pub use log::{LogSink, set_log};
pub use model::{Model, trim_memory};
pub use op::{Cancel, Op, Stage};
pub use session::{Session, StreamOptions};

/// Locks what is only read or replaced as a whole, or mended by who changes it: a panic while it
/// was held has left it sound.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
