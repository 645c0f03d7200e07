//! Kernels of our own for the processor, where MLX's are scalar and run on one thread.
//!
//! They compute in float32 on evaluated arrays and give back arrays, so models are written once:
//! the layers in [`nn`](crate::nn) ask [`kernels`] whether they are in use. [`quantized`] says how
//! products with quantized matrices are rounded.

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

/// Whose code computes on the processor. On a GPU it makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuKernels {
    /// What the environment variable `MOXIN_CPU_KERNELS` says, `own` or `mlx`; where it is not set,
    /// our own, but MLX's on Apple's systems, where it computes with Accelerate.
    #[default]
    Auto,
    /// The kernels of this library, where activations are float32.
    Own,
    /// MLX's.
    Mlx,
}

impl CpuKernels {
    pub(super) fn are_own(self) -> bool {
        static VARIABLE: OnceLock<Option<bool>> = OnceLock::new();
        let variable = || match std::env::var("MOXIN_CPU_KERNELS").ok()?.as_str() {
            "own" => Some(true),
            "mlx" => Some(false),
            other => {
                log::warn!("MOXIN_CPU_KERNELS is {other:?}; own or mlx is expected");
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
                "MOXIN_CPU_THREADS is {text:?} and does not count; a number from 0 to {} is \
                 expected",
                most_cpu_threads()
            ),
        }
    }
    pool
});

/// The best vectors of this processor.
static ISA: LazyLock<Isa> = LazyLock::new(Isa::best);

/// Returns the number of threads that the kernels of this library divide their work among: as many
/// as there are cores that the process may use, unless the environment variable `MOXIN_CPU_THREADS`
/// or [`set_cpu_threads`] said otherwise.
pub fn cpu_threads() -> usize {
    POOL.threads()
}

/// Sets [`cpu_threads`] for the whole process, from the next work on; 0 for as many as there are
/// cores. Results do not depend on it.
///
/// # Errors
/// [`Error::InvalidArgument`] for more than [`most_cpu_threads`]; then nothing changes.
pub fn set_cpu_threads(threads: usize) -> Result<()> {
    let most = most_cpu_threads();
    if threads > most {
        return Err(Error::InvalidArgument(format!(
            "{threads} CPU threads; 0 to {most} are possible here: four for each CPU, and at least \
             64"
        )));
    }
    POOL.set_threads(threads);
    Ok(())
}

/// Returns the most threads that can be asked for: four for each CPU that the process may use, or
/// 64 where that is more.
pub fn most_cpu_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .saturating_mul(4)
        .max(64)
}

/// What the kernels in use are made for, such as `AVX-512`.
pub fn cpu_vectors() -> &'static str {
    ISA.name()
}

thread_local! {
    /// Whether our kernels are in use on this thread; `None` outside of
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

/// The kernels of this library, where they are to compute what comes of activations like `x`.
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
