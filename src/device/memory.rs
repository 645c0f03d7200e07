//! The memory that exists, that MLX uses, and that it may use.
//!
//! On the CPU, MLX respects no limit and does not check its allocations. The memory of an operation
//! is therefore estimated and compared with [`available_memory`] before MLX is called: [`require`].

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use mlx_rs::error::Exception;

use super::{
    available::available,
    cpu::{buffer, refused_bytes},
};
use crate::{Error, Result, process};

/// The memory that MLX and the kernels of this library use in the whole process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use by arrays, and by running kernels.
    pub active: u64,
    /// Free buffers kept for reuse; [`clear_cache`] releases them.
    pub cache: u64,
    /// The highest value that active had since the process started or [`reset_peak_memory`] was
    /// called.
    pub peak: u64,
}

/// Returns the memory in use now.
///
/// # Errors
/// [`Error::InvalidState`] in a forked child, like all functions here that call MLX: its locks may
/// be held by a thread that does not exist there.
pub fn memory_stats() -> Result<MemoryStats> {
    process::check()?;
    let [active, cache, peak] = buffer::memory();
    Ok(MemoryStats {
        active: mlx_rs::memory::active_memory()? as u64 + active,
        cache: mlx_rs::memory::cache_memory()? as u64 + cache,
        // The peaks of both: together they were at most their sum.
        peak: mlx_rs::memory::peak_memory()? as u64 + peak,
    })
}

/// Starts a new measurement of [`MemoryStats::peak`].
pub fn reset_peak_memory() -> Result<()> {
    process::check()?;
    buffer::reset_peak();
    Ok(mlx_rs::memory::reset_peak_memory()?)
}

/// Returns MLX's free buffers to the system, and the scratch memory that the CPU kernels keep for
/// this thread.
pub fn clear_cache() -> Result<()> {
    process::check()?;
    buffer::clear_scratch();
    Ok(mlx_rs::memory::clear_cache()?)
}

/// The maximum number of bytes for arrays in this process, and for MLX's buffer cache among them;
/// `u64::MAX` if no limit was set.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
static CACHE_LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Limits the bytes that arrays may use, and those of MLX's buffer cache among them. `u64::MAX`:
/// only the machine limits them.
///
/// Memory that is already in use stays allocated; an operation that would exceed the limit is
/// refused with [`Error::OutOfMemory`].
pub fn set_memory_limits(total: u64, cache: u64) -> Result<()> {
    process::check()?;
    static MACHINE: OnceLock<u64> = OnceLock::new();
    let machine = match MACHINE.get() {
        Some(machine) => *machine,
        None => {
            let limit = mlx_rs::memory::memory_limit()? as u64;
            *MACHINE.get_or_init(|| limit)
        }
    };
    // MLX respects its own limit on some GPUs: it waits for memory to be freed before it allocates
    // more.
    mlx_rs::memory::set_memory_limit(total.min(machine) as usize)?;
    mlx_rs::memory::set_cache_limit(cache.min(machine) as usize)?;
    LIMIT.store(total, Ordering::Relaxed);
    CACHE_LIMIT.store(cache, Ordering::Relaxed);
    Ok(())
}

/// Returns the limit for arrays; `u64::MAX` if none was set.
pub fn memory_limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Returns the bytes that arrays can still use: the system's available memory and MLX's buffer
/// cache, within the limit that was set.
///
/// On Linux, the system's available memory is the least of what the kernel calls available, what
/// the control groups of this process allow (those of containers and services, versions 1 and 2),
/// and what its resource limits allow (`ulimit -v` and `-d`). Elsewhere it is MLX's own limit minus
/// MLX's memory; on a Mac the limit follows from the machine's memory.
pub fn available_memory() -> Result<u64> {
    let used = memory_stats()?;
    let system = match available() {
        Some(bytes) => bytes.saturating_add(used.cache),
        None => (mlx_rs::memory::memory_limit()? as u64).saturating_sub(used.active),
    };
    Ok(system.min(memory_limit().saturating_sub(used.active)))
}

impl From<Exception> for Error {
    /// Converts an exception from MLX or a kernel into an error of this library.
    fn from(exception: Exception) -> Error {
        match refused_bytes(&exception) {
            Some(needed) => Error::OutOfMemory {
                what: "a layer".into(),
                needed,
                limit: available_memory().unwrap_or(0),
            },
            None => Error::Backend(exception),
        }
    }
}

/// Fails with [`Error::OutOfMemory`] if `needed` bytes for `what` are more than are available.
pub fn require(what: &str, needed: u64) -> Result<()> {
    require_within(what, needed, None)
}

/// Does the same as [`require`], and also fails if they are more than `limit`.
pub fn require_within(what: &str, needed: u64, limit: Option<u64>) -> Result<()> {
    let available = available_memory()?;
    let mut limit = available.min(limit.unwrap_or(u64::MAX));
    if needed <= limit {
        limit = limit.min(obtainable(needed));
    }
    if needed > limit {
        log::warn!("refused: {what} needs {needed} bytes, {limit} are available");
        return Err(Error::OutOfMemory {
            what: what.into(),
            needed,
            limit,
        });
    }
    keep_at_most(available - needed)
}

/// Limits MLX's buffer cache to the memory that an operation leaves. The operation cannot reuse all
/// of it, and MLX does not know the limits of control groups. On Apple systems it knows the
/// machine.
fn keep_at_most(left: u64) -> Result<()> {
    if cfg!(target_vendor = "apple") {
        return Ok(());
    }
    let most = usize::try_from(left.min(CACHE_LIMIT.load(Ordering::Relaxed))).unwrap_or(usize::MAX);
    mlx_rs::memory::set_cache_limit(most)?;
    if mlx_rs::memory::cache_memory()? > most {
        mlx_rs::memory::clear_cache()?;
    }
    Ok(())
}

/// Returns how many bytes, at most `needed`, the system is willing to promise, within a factor of
/// two: Linux may promise less than there is. Nothing is written, so no memory is used.
fn obtainable(needed: u64) -> u64 {
    let has = |bytes: u64| {
        usize::try_from(bytes).is_ok_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok())
    };
    let mut bytes = needed;
    while cfg!(target_os = "linux") && bytes > 0 && !has(bytes) {
        bytes /= 2;
    }
    bytes
}

/// Returns an empty vector with room for so many items, which are part of `what`.
///
/// # Errors
/// [`Error::OutOfMemory`] if the system does not have that much memory.
pub(crate) fn room<T>(items: usize, what: impl FnOnce() -> String) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    vector
        .try_reserve_exact(items)
        .map_err(|_| Error::OutOfMemory {
            what: what(),
            needed: (items as u64).saturating_mul(size_of::<T>() as u64),
            limit: available_memory().unwrap_or(0),
        })?;
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_does_not_promise_is_refused() {
        assert_eq!(obtainable(1 << 20), 1 << 20);
        if cfg!(target_os = "linux") {
            // More than CPUs have addresses for.
            assert!(obtainable(1 << 60) < 1 << 60);
        }
    }
}
