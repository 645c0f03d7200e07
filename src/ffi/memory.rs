//! Memory.

use super::{HANDLES, Versioned, guard, moxin_error, moxin_status, out, write_result};
use crate::runtime::{
    available_memory, guarded, image_cache_bytes, memory_limit, memory_stats, set_memory_limits,
    trim_memory,
};
use std::sync::atomic::Ordering;

/// What the library holds in this process, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_memory_stats {
    /// sizeof(moxin_memory_stats)
    pub struct_size: usize,
    /// In use: weights, conversations, embeddings, and what is being computed.
    pub active: u64,
    /// Kept for reuse; moxin_memory_trim gives it back.
    pub cache: u64,
    /// The most that was ever in use.
    pub peak: u64,
    /// What may be in use: see moxin_memory_set_limits. UINT64_MAX: what the machine has.
    pub limit: u64,
    /// What could still be taken: what the machine, the process's control groups and its resource
    /// limits leave, within the limit.
    pub available: u64,
    /// Of what is in use, tokens of pictures seen before; moxin_memory_trim gives them back.
    pub image_cache: u64,
    /// Not bytes: handles of all kinds that were given and not yet freed, errors included. A
    /// program that has freed everything finds 0.
    pub handles: u64,
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_memory_stats {}

/// What the library holds now. out_stats->struct_size must be set. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_memory_stats_get(
    out_stats: *mut moxin_memory_stats,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_stats, "out_stats")?;
        let stats = memory_stats()?;
        let stats = moxin_memory_stats {
            active: stats.active,
            cache: stats.cache,
            peak: stats.peak,
            limit: memory_limit(),
            available: available_memory()?,
            image_cache: image_cache_bytes(),
            handles: HANDLES.load(Ordering::Relaxed),
            ..moxin_memory_stats::defaults()
        };
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, stats, "out_stats") }
    })
}

/// Limits what may be in use, and what MLX keeps for reuse, in bytes; UINT64_MAX stands for no
/// limit but the machine's.
///
/// What is in use already stays. A load, a session or a picture that would go beyond is refused
/// with MOXIN_STATUS_OUT_OF_MEMORY and both figures, before anything is allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_memory_set_limits(
    total_bytes: u64,
    cache_bytes: u64,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || set_memory_limits(total_bytes, cache_bytes))
}

/// Gives back what is kept for reuse: MLX's free buffers, and tokens of pictures seen before. For
/// when the system says that memory is short. Does not wait: it is done as soon as nothing is being
/// computed.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_memory_trim() {
    let _ = guarded(|| {
        trim_memory();
        Ok(())
    });
}
