//! Our own CPU kernels, because MLX's are scalar and run on one thread.
//!
//! They compute in float32 on evaluated arrays and return arrays, so models are written once:
//! [`ops`](crate::device::ops) asks [`kernels`] whether they are active. [`quantized`] describes
//! how products with quantized matrices are rounded.

mod attention;
pub(super) mod buffer;
mod coded;
mod cores;
mod dense;
mod gemm;
mod math;
mod norm;
mod numbers;
mod ops;
mod pool;
mod portable;
mod quantized;
mod shared;
mod simd;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    sync::{LazyLock, OnceLock},
};

pub(crate) use ops::{PackedMatrix, Weight};
pub(super) use {attention::Sees, norm::Angles, ops::refused_bytes};
use {ops::Kernels, pool::Pool, simd::Isa};

use super::mlx;
use crate::{Error, Result};

/// The kernels used on the CPU. Has no effect on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuKernels {
    /// The environment variable `MOXIN_CPU_KERNELS` (`own` or `mlx`). If it is not set: our own, or
    /// MLX's on Apple systems, where it uses Accelerate.
    #[default]
    Auto,
    /// The kernels of this library, if activations are float32.
    Own,
    /// MLX's kernels.
    Mlx,
}

impl CpuKernels {
    pub(super) fn are_own(self) -> bool {
        static VARIABLE: OnceLock<Option<bool>> = OnceLock::new();
        let variable = || match std::env::var("MOXIN_CPU_KERNELS").ok()?.as_str() {
            "own" => Some(true),
            "mlx" => Some(false),
            other => {
                log::warn!("MOXIN_CPU_KERNELS is {other:?}; expected own or mlx");
                None
            }
        };
        match self {
            CpuKernels::Own => true,
            CpuKernels::Mlx => false,
            CpuKernels::Auto => VARIABLE
                .get_or_init(variable)
                .unwrap_or(cfg!(not(target_vendor = "apple"))),
        }
    }
}

/// The threads of the whole process.
static POOL: LazyLock<Pool> = LazyLock::new(|| {
    let pool = Pool::new();
    if let Ok(text) = std::env::var("MOXIN_CPU_THREADS") {
        match text.parse() {
            Ok(threads) if threads <= most_cpu_threads() => pool.set_threads(threads),
            _ => log::warn!(
                "MOXIN_CPU_THREADS is {text:?} and is ignored; expected a number from 0 to {}",
                most_cpu_threads()
            ),
        }
    }
    pool
});

/// The best vectors of this CPU.
static ISA: LazyLock<Isa> = LazyLock::new(Isa::best);

/// Returns the number of threads that the kernels of this library use: one per core that the
/// process may use, unless the environment variable `MOXIN_CPU_THREADS` or [`set_cpu_threads`]
/// changes it.
pub fn cpu_threads() -> usize {
    POOL.threads()
}

/// Sets [`cpu_threads`] for the whole process, for later work; 0 for one per core. Results do not
/// depend on it.
///
/// # Errors
/// [`Error::InvalidArgument`] for more than [`most_cpu_threads`]; nothing changes.
pub fn set_cpu_threads(threads: usize) -> Result<()> {
    let most = most_cpu_threads();
    if threads > most {
        return Err(Error::InvalidArgument(format!(
            "{threads} CPU threads; expected 0 to {most}: four per CPU, and at least 64"
        )));
    }
    POOL.set_threads(threads);
    Ok(())
}

/// Returns the maximum number of threads: four per CPU that the process may use, or 64 if that is
/// more.
pub fn most_cpu_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .saturating_mul(4)
        .max(64)
}

/// Returns the vectors that the active kernels use, such as `AVX-512`.
pub fn cpu_vectors() -> &'static str {
    ISA.name()
}

thread_local! {
    /// Whether our kernels are active on this thread; `None` outside of
    /// [`Device::run`](super::Device::run).
    static OWN: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `f`, with our own kernels or without.
pub(super) fn with_own<T>(own: bool, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OWN.set(self.0);
        }
    }
    let _restore = Restore(OWN.replace(Some(own)));
    f()
}

/// Returns the kernels of this library, if they are active and `x` has a dtype that they support.
pub(super) fn kernels(x: &mlx_rs::Array) -> Option<Kernels> {
    let own = || {
        OWN.get()
            .unwrap_or_else(|| CpuKernels::Auto.are_own() && mlx::stream_is_on_cpu())
    };
    (x.dtype() == mlx_rs::Dtype::Float32 && own()).then(|| Kernels {
        isa: *ISA,
        pool: &POOL,
    })
}
