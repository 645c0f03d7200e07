//! Where the arithmetic runs: which backend there is, the dtype to compute in, and how much memory
//! there is.

mod available;
mod cpu;
mod exit;
mod fault;
mod memory;
mod mlx;
pub mod ops;

pub use cpu::{CpuKernels, cpu_threads, cpu_vectors, most_cpu_threads, set_cpu_threads};
pub(crate) use cpu::{PackedMatrix, Weight};
pub(crate) use memory::room;
pub use memory::{
    MemoryStats, available_memory, clear_cache, memory_limit, memory_stats, require,
    require_within, reset_peak_memory, set_memory_limits,
};
pub(crate) use mlx::settle;
pub use mlx::{mlx_version, set_metallib_path};

pub(crate) use exit::{at_exit, leave};
pub(crate) use fault::{inject, inject_into};

pub use mlx_rs::{Array as Tensor, Dtype};

use mlx_rs::{Array, Device as MlxDevice, DeviceType, Stream};

use crate::{Error, Result, process};

/// Copies the numbers of an array, which are `what`, as float32.
pub(crate) fn floats(array: &Array, what: &str) -> Result<Vec<f32>> {
    let wide = array.as_dtype(Dtype::Float32)?.contiguous()?;
    wide.eval()?;
    let numbers = wide
        .try_as_slice::<f32>()
        .map_err(|error| Error::InvalidState(format!("reading {what}: {error}")))?;
    let mut copy = room(numbers.len(), || what.into())?;
    copy.extend(numbers);
    Ok(copy)
}

/// The hardware that MLX computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An Apple GPU.
    Metal,
    /// An Nvidia GPU.
    Cuda,
}

impl Backend {
    /// The GPU backend that this build of MLX could have on this system.
    const GPU: Backend = if cfg!(target_vendor = "apple") {
        Backend::Metal
    } else {
        Backend::Cuda
    };

    /// Whether models can run on this backend, here and now.
    pub fn is_available(self) -> bool {
        match self {
            Backend::Auto | Backend::Cpu => true,
            gpu => gpu == Backend::GPU && mlx::gpu_is_available(),
        }
    }

    /// The name that people write: `cpu`, `metal`, `cuda` or `auto`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Cpu => "cpu",
            Backend::Metal => "metal",
            Backend::Cuda => "cuda",
        }
    }

    /// The backend itself, where `self` leaves the choice open.
    fn resolve(self) -> Result<Backend> {
        match self {
            Backend::Auto if Backend::GPU.is_available() => Ok(Backend::GPU),
            Backend::Auto => Ok(Backend::Cpu),
            backend if backend.is_available() => Ok(backend),
            backend => Err(Error::BackendUnavailable(format!(
                "{} is not on this machine or not in this build; use the CPU or leave the choice \
                 to the library",
                backend.name()
            ))),
        }
    }
}

/// What of a device decides how much memory a model takes on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// The dtype of activations.
    pub dtype: Dtype,
    /// Whether the kernels of this library compute.
    pub own_kernels: bool,
}

/// A backend in use: the stream its operations go to, and the dtype of activations on it.
///
/// MLX streams belong to the thread that made them: make one on each thread that computes.
#[derive(Debug, Clone)]
pub struct Device {
    /// What the device is; never [`Backend::Auto`].
    pub backend: Backend,
    /// The dtype of activations: bfloat16 on a GPU, float32 on the CPU, whose bfloat16 arithmetic
    /// is far slower.
    pub dtype: Dtype,
    /// Whose code computes, where the device is the CPU.
    pub cpu_kernels: CpuKernels,
    stream: Stream,
}

impl Device {
    /// The device behind a backend, for the calling thread.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`]; [`Error::InvalidState`] in a child that was forked after a
    /// device was made.
    pub fn new(backend: Backend) -> Result<Device> {
        // MLX has threads of its own.
        process::enter()?;
        mlx::install_error_handler();
        let backend = backend.resolve()?;
        let (device, dtype) = match backend {
            Backend::Cpu => (DeviceType::Cpu, Dtype::Float32),
            _ => (DeviceType::Gpu, Dtype::Bfloat16),
        };
        let stream = Stream::try_default_on_device(&MlxDevice::new(device, 0))?;
        Ok(Device {
            backend,
            dtype,
            cpu_kernels: CpuKernels::Auto,
            stream,
        })
    }

    /// The same device with activations of another dtype.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that is not float16, bfloat16 or float32.
    pub fn with_dtype(self, dtype: Dtype) -> Result<Device> {
        match dtype {
            Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32 => Ok(Device { dtype, ..self }),
            other => Err(Error::InvalidArgument(format!(
                "a model computes in float16, bfloat16 or float32, not in {other:?}"
            ))),
        }
    }

    /// The same device with other code computing on the CPU.
    pub fn with_cpu_kernels(self, cpu_kernels: CpuKernels) -> Device {
        Device {
            cpu_kernels,
            ..self
        }
    }

    /// How it computes: with the kernels of this library on the CPU, in float32, unless they are
    /// not wanted.
    pub fn arithmetic(&self) -> Arithmetic {
        let own_kernels =
            self.is_cpu() && self.dtype == Dtype::Float32 && self.cpu_kernels.are_own();
        Arithmetic {
            dtype: self.dtype,
            own_kernels,
        }
    }

    /// Runs `f` with every MLX operation in it going to this device.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        cpu::with_own(self.arithmetic().own_kernels, || {
            mlx_rs::with_stream(&self.stream, f)
        })
    }

    /// Whether this is the CPU, where weights are widened one layer at a time and wide copies must
    /// go before the next.
    pub fn is_cpu(&self) -> bool {
        self.backend == Backend::Cpu
    }
}
