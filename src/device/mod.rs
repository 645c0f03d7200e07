//! Where computing happens: backends, their dtypes, and their memory.

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

/// Copies the values of an array as float32; `what` names them in errors.
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

/// The hardware that MLX uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
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

    /// Returns whether models can run on this backend now.
    pub fn is_available(self) -> bool {
        match self {
            Backend::Auto | Backend::Cpu => true,
            gpu => gpu == Backend::GPU && mlx::gpu_is_available(),
        }
    }

    /// Returns the lower-case name: `cpu`, `metal`, `cuda` or `auto`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Cpu => "cpu",
            Backend::Metal => "metal",
            Backend::Cuda => "cuda",
        }
    }

    /// Returns the actual backend if `self` is [`Backend::Auto`].
    fn resolve(self) -> Result<Backend> {
        match self {
            Backend::Auto if Backend::GPU.is_available() => Ok(Backend::GPU),
            Backend::Auto => Ok(Backend::Cpu),
            backend if backend.is_available() => Ok(backend),
            backend => Err(Error::BackendUnavailable(format!(
                "{} is not on this machine or not in this build; use the CPU or let the library \
                    choose",
                backend.name()
            ))),
        }
    }
}

/// The properties of a device that decide how much memory a model needs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// The dtype of activations.
    pub dtype: Dtype,
    /// Whether the kernels of this library compute.
    pub own_kernels: bool,
}

/// A backend in use: the stream of its operations, and the dtype of its activations.
///
/// MLX streams belong to the thread that created them: create one on each thread that computes.
#[derive(Debug, Clone)]
pub struct Device {
    /// The backend; never [`Backend::Auto`].
    pub backend: Backend,
    /// The dtype of activations: bfloat16 on a GPU, float32 on the CPU, whose bfloat16 arithmetic
    /// is far slower.
    pub dtype: Dtype,
    /// The kernels to use if the device is the CPU.
    pub cpu_kernels: CpuKernels,
    stream: Stream,
}

impl Device {
    /// Returns the device of a backend, for the calling thread.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`]; [`Error::InvalidState`] in a child that was forked after a
    /// device was created.
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

    /// Returns the same device with another dtype of activations.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is not float16, bfloat16 or float32.
    pub fn with_dtype(self, dtype: Dtype) -> Result<Device> {
        match dtype {
            Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32 => Ok(Device { dtype, ..self }),
            other => Err(Error::InvalidArgument(format!(
                "a model computes in float16, bfloat16 or float32, not in {other:?}"
            ))),
        }
    }

    /// Returns the same device with other CPU kernels.
    pub fn with_cpu_kernels(self, cpu_kernels: CpuKernels) -> Device {
        Device {
            cpu_kernels,
            ..self
        }
    }

    /// Returns the arithmetic: this library's kernels on the CPU, in float32, unless they are
    /// disabled.
    pub fn arithmetic(&self) -> Arithmetic {
        let own_kernels =
            self.is_cpu() && self.dtype == Dtype::Float32 && self.cpu_kernels.are_own();
        Arithmetic {
            dtype: self.dtype,
            own_kernels,
        }
    }

    /// Runs `f` with every MLX operation in it on this device.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        cpu::with_own(self.arithmetic().own_kernels, || {
            mlx_rs::with_stream(&self.stream, f)
        })
    }

    /// Returns whether this is the CPU, where weights are widened one layer at a time and the wide
    /// copies must be freed before the next.
    pub fn is_cpu(&self) -> bool {
        self.backend == Backend::Cpu
    }
}
