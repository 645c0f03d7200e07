//! Memory.

use super::{HANDLES, Versioned, guard, moxin_error, moxin_status, out, write_result};
use crate::runtime::{
    available_memory, guarded, image_cache_bytes, memory_limit, memory_stats, prefix_pool_bytes,
    set_memory_limits, trim_memory,
};
use std::sync::atomic::Ordering;

/// The memory that the library uses in this process, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_memory_stats {
    /// sizeof(moxin_memory_stats)
    pub struct_size: usize,
    /// In use: weights, conversations, embeddings and intermediate results.
    pub active: u64,
    /// Free buffers kept for reuse; moxin_memory_trim releases them.
    pub cache: u64,
    /// The highest value that active ever had.
    pub peak: u64,
    /// The limit set with moxin_memory_set_limits. UINT64_MAX: only the machine limits it.
    pub limit: u64,
    /// The memory that can still be allocated, within the limit and within what the machine, the
    /// process's control groups and its resource limits allow.
    pub available: u64,
    /// The part of active that caches encoded pictures; moxin_memory_trim releases it.
    pub image_cache: u64,
    /// Not bytes: the number of handles of all kinds, errors included, that were not freed. 0 in a
    /// program that has freed everything.
    pub handles: u64,
    /// The part of active that keeps ended conversations for others; moxin_memory_trim releases it.
    pub prefix_cache: u64,
}

// SAFETY: repr(C), starts with its size, otherwise integers.
unsafe impl Versioned for moxin_memory_stats {}

/// Gets the memory that the library uses now. out_stats->struct_size must be set. Never blocks.
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
            prefix_cache: prefix_pool_bytes(),
            ..moxin_memory_stats::defaults()
        };
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(place, stats, "out_stats") }
    })
}

/// Sets the limits of the memory in use and of MLX's buffer cache, in bytes. UINT64_MAX: only the
/// machine limits it.
///
/// Memory that is already in use stays allocated. A load, a session or a picture that would exceed
/// the limit is refused with MOXIN_STATUS_OUT_OF_MEMORY and both figures, before anything is
/// allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_memory_set_limits(
    total_bytes: u64,
    cache_bytes: u64,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || set_memory_limits(total_bytes, cache_bytes))
}

/// Releases memory kept for reuse: MLX's free buffers, the cache of encoded pictures, and ended
/// conversations. Call it
/// when the system reports memory pressure. Does not block: the memory is released as soon as
/// nothing is being computed.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_memory_trim() {
    let _ = guarded(|| {
        trim_memory();
        Ok(())
    });
}
