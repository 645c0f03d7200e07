//! How much memory there is, how much MLX uses, and how much it may use.
//!
//! On the CPU, MLX keeps to no limit and does not check its allocations. So what an operation needs
//! is estimated and compared with [`available_memory`] before MLX is asked: [`require`].

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

/// Memory that MLX and the kernels of this library hold, in bytes, for the whole process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use by arrays, and by kernels at work.
    pub active: u64,
    /// Kept for reuse, given back by [`clear_cache`].
    pub cache: u64,
    /// The most that was ever active since the process began or [`reset_peak_memory`] was called.
    pub peak: u64,
}

/// What is held now.
///
/// # Errors
/// [`Error::InvalidState`] in a forked child, as for all functions here that ask MLX: its locks may
/// be held by a thread that is not there.
pub fn memory_stats() -> Result<MemoryStats> {
    process::check()?;
    let [active, cache, peak] = buffer::memory();
    Ok(MemoryStats {
        active: mlx_rs::memory::active_memory()? as u64 + active,
        cache: mlx_rs::memory::cache_memory()? as u64 + cache,
        // Of each the most: at the same time they were at most this.
        peak: mlx_rs::memory::peak_memory()? as u64 + peak,
    })
}

/// Starts a new measurement of [`MemoryStats::peak`].
pub fn reset_peak_memory() -> Result<()> {
    process::check()?;
    buffer::reset_peak();
    Ok(mlx_rs::memory::reset_peak_memory()?)
}

/// Gives MLX's unused buffers back to the system, and what the processor's kernels keep for this
/// thread.
pub fn clear_cache() -> Result<()> {
    process::check()?;
    buffer::clear_scratch();
    Ok(mlx_rs::memory::clear_cache()?)
}

/// Bytes that arrays may take in this process, and those of them that MLX may keep for reuse;
/// `u64::MAX` where no limit was set.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
static CACHE_LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Limits the bytes that arrays may take, and those of them that MLX keeps for reuse. `u64::MAX`
/// stands for no limit but the machine's.
///
/// What is in use already stays; an operation that would go beyond is refused with
/// [`Error::OutOfMemory`].
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
    // MLX keeps to its own limit on some GPUs; there it waits for memory to become free before it
    // takes more.
    mlx_rs::memory::set_memory_limit(total.min(machine) as usize)?;
    mlx_rs::memory::set_cache_limit(cache.min(machine) as usize)?;
    LIMIT.store(total, Ordering::Relaxed);
    CACHE_LIMIT.store(cache, Ordering::Relaxed);
    Ok(())
}

/// The limit that was set for arrays; `u64::MAX` where none was.
pub fn memory_limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Returns the bytes that arrays could still take: what the system has available and MLX keeps for
/// reuse, within the limit that was set.
///
/// On Linux the system has the least of what the kernel calls available on the machine, what the
/// control groups of this process leave (those of containers and services, versions 1 and 2), and
/// what its resource limits leave (`ulimit -v` and `-d`). Elsewhere it has MLX's own limit less
/// what MLX holds, which on a Mac follows from the size of the machine's memory.
pub fn available_memory() -> Result<u64> {
    let used = memory_stats()?;
    let system = match available() {
        Some(bytes) => bytes.saturating_add(used.cache),
        None => (mlx_rs::memory::memory_limit()? as u64).saturating_sub(used.active),
    };
    Ok(system.min(memory_limit().saturating_sub(used.active)))
}

impl From<Exception> for Error {
    /// Turns what MLX, or a kernel, reported into an error of this library.
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

/// Fails with [`Error::OutOfMemory`] where `needed` bytes for `what` are more than are available.
pub fn require(what: &str, needed: u64) -> Result<()> {
    require_within(what, needed, None)
}

/// Does what [`require`] does, and fails too where they are more than `limit`.
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

/// Has MLX keep no more for reuse than is left beside what an operation needs. It cannot use all of
/// that again, and does not know the limits of control groups. On Apple's systems it knows the
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

/// Returns the bytes, `needed` at most, that the system is willing to promise, to a factor of two:
/// on Linux it may promise less than there is. Nothing is filled, and so nothing is taken.
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

/// Makes an empty vector with room for so many items, which are a part of `what`.
///
/// # Errors
/// [`Error::OutOfMemory`] where the system has no such room.
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
            // More than processors have addresses for.
            assert!(obtainable(1 << 60) < 1 << 60);
        }
    }
}
