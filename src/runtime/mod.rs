//! The objects that a program works with: [`Model`], [`Session`], [`Embedding`]. They may be used
//! from any thread, in any number.
//!
//! All MLX work happens on one thread of the library. Operations wait for their turn there. A turn
//! of a session is one chunk of a prompt or one token, so that sessions advance side by side.

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

// Further items that the C ABI translates: it uses no other module.
pub(crate) use crate::{
    checkpoint::{Mode, Quantization},
    device::{
        Backend, CpuKernels, Dtype, available_memory, inject, memory_limit, memory_stats,
        mlx_version, set_cpu_threads, set_memory_limits, set_metallib_path,
    },
    error::guarded,
    generate::{
        Event, FinishReason, GenerationOptions, MAX_STOP_STRINGS, SamplingParams,
        image_cache_bytes, prefix_pool_bytes,
    },
    image::{DecodeOptions, MAX_FRAMES, Picture, PixelFormat, Video, VideoOptions},
    models::{Budget, Location, Place, QuantizeOptions, model_types},
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

/// Locks a value that is only read, replaced as a whole, or repaired by whoever changes it, so that
/// it is valid even if a panic occurred while it was locked.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
