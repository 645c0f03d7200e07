//! How much memory there is, and how much MLX uses.

use crate::Result;

/// Memory that MLX holds, in bytes, for the whole process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use by arrays.
    pub active: u64,
    /// Kept for reuse, given back by [`clear_cache`].
    pub cache: u64,
    /// The most that was ever active since the process began or [`reset_peak_memory`] was called.
    pub peak: u64,
}

/// What MLX's allocator holds now.
pub fn memory_stats() -> Result<MemoryStats> {
    Ok(MemoryStats {
        active: mlx_rs::memory::active_memory()? as u64,
        cache: mlx_rs::memory::cache_memory()? as u64,
        peak: mlx_rs::memory::peak_memory()? as u64,
    })
}

/// Starts a new measurement of [`MemoryStats::peak`].
pub fn reset_peak_memory() -> Result<()> {
    Ok(mlx_rs::memory::reset_peak_memory()?)
}

/// Gives MLX's unused buffers back to the system.
pub fn clear_cache() -> Result<()> {
    Ok(mlx_rs::memory::clear_cache()?)
}

/// Bytes that this process could still take without the system swapping or ending it.
///
/// On Linux what the kernel calls available (<https://docs.kernel.org/filesystems/proc.html#meminfo>); elsewhere MLX's own limit less what it
/// holds, which on a Mac follows from the size of the machine's memory.
pub fn available_memory() -> Result<u64> {
    if let Some(bytes) = linux_available() {
        return Ok(bytes);
    }
    let limit = mlx_rs::memory::memory_limit()? as u64;
    Ok(limit.saturating_sub(mlx_rs::memory::active_memory()? as u64))
}

fn linux_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_plausible() {
        let bytes = available_memory().expect("some figure");
        assert!((64 << 20..1 << 50).contains(&bytes), "{bytes}");
    }
}
