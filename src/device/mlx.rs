//! The only caller of mlx-sys: functions that mlx-rs lacks.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use mlx_rs::{Array, Stream, error::Exception};

use crate::{Error, Result, file};

/// Whether a device was used: then Metal's kernels may be loaded.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// Replaces mlx-c's error handler, which exits the process, with mlx-rs's, which returns errors.
///
/// mlx-rs installs its handler at its first fallible call. Some earlier calls are infallible in
/// mlx-rs's view, so this must come first.
pub(super) fn install_error_handler() {
    // Any fallible call of mlx-rs installs the handler. This one reads a counter; its result does
    // not matter.
    let _ = mlx_rs::memory::active_memory();
}

/// Returns whether MLX can use a GPU here.
pub(super) fn gpu_is_available() -> bool {
    install_error_handler();
    IN_USE.store(true, Ordering::Relaxed);
    let mut available = false;
    // SAFETY: the device is created, queried and freed here; `available` outlives the call that
    // writes it.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let status = mlx_sys::mlx_device_is_available(&mut available, device);
        mlx_sys::mlx_device_free(device);
        status == 0 && available
    }
}

/// Sets the path of Metal's kernels, `mlx.metallib`. Call it before anything else in this library.
/// Only needed if the file is neither next to the library nor in `Resources/` next to it.
///
/// # Errors
/// [`Error::BackendUnavailable`] if this build has no Metal; [`Error::NotFound`];
/// [`Error::InvalidState`] if MLX is already in use.
pub fn set_metallib_path(path: &Path) -> Result<()> {
    if !cfg!(target_vendor = "apple") {
        return Err(Error::BackendUnavailable(
            "this build has no Metal and needs no metallib".into(),
        ));
    }
    file::open(path, "Metal's kernels")?;
    if IN_USE.load(Ordering::Relaxed) {
        return Err(Error::InvalidState(
            "MLX is already in use; set the metallib path before anything else".into(),
        ));
    }
    let text = path.to_str().and_then(|path| CString::new(path).ok());
    let text = text.ok_or_else(|| {
        Error::InvalidArgument(format!("{} is not UTF-8 without NUL", path.display()))
    })?;
    install_error_handler();
    // SAFETY: a C string that outlives the call, which copies it.
    match unsafe { mlx_sys::mlx_metal_set_metallib_path(text.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Error::InvalidState(format!(
            "MLX did not accept the metallib path {}",
            path.display()
        ))),
    }
}

/// Quantizes `[rows, columns]` in one of MLX's modes without biases; returns the packed values and
/// the scales. mlx-rs only has the affine mode.
pub fn quantize(
    matrix: &Array,
    group_size: usize,
    bits: usize,
    mode: &CStr,
) -> Result<(Array, Array), Exception> {
    install_error_handler();
    let stream = Stream::thread_local_or_default();
    // SAFETY: the vector and its arrays are created here, and each is freed here or owned by an
    // Array that frees it; everything else outlives the call.
    unsafe {
        let none = Array::from_ptr(mlx_sys::mlx_array_new());
        let mut parts = mlx_sys::mlx_vector_array_new();
        let (group_size, bits) = (some(group_size), some(bits));
        let mut status = mlx_sys::mlx_quantize(
            &mut parts,
            matrix.as_ptr(),
            group_size,
            bits,
            mode.as_ptr(),
            none.as_ptr(),
            stream.as_ptr(),
        );
        let (mut weight, mut scales) = (mlx_sys::mlx_array_new(), mlx_sys::mlx_array_new());
        if status == 0 && mlx_sys::mlx_vector_array_size(parts) == 2 {
            status = mlx_sys::mlx_vector_array_get(&mut weight, parts, 0)
                | mlx_sys::mlx_vector_array_get(&mut scales, parts, 1);
        } else {
            status = 1;
        }
        mlx_sys::mlx_vector_array_free(parts);
        let arrays = (Array::from_ptr(weight), Array::from_ptr(scales));
        if status == 0 {
            Ok(arrays)
        } else {
            Err(refused("quantize", mode))
        }
    }
}

/// Computes `x · matrixᵀ` for a matrix in one of MLX's modes without biases.
pub fn quantized_matmul(
    x: &Array,
    weight: &Array,
    scales: &Array,
    group_size: usize,
    bits: usize,
    mode: &CStr,
) -> Result<Array, Exception> {
    install_error_handler();
    let stream = Stream::thread_local_or_default();
    // SAFETY: the arrays created here are owned by Arrays that free them; everything else outlives
    // the call.
    unsafe {
        let none = Array::from_ptr(mlx_sys::mlx_array_new());
        let mut product = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_quantized_matmul(
            &mut product,
            x.as_ptr(),
            weight.as_ptr(),
            scales.as_ptr(),
            none.as_ptr(),
            true,
            some(group_size),
            some(bits),
            mode.as_ptr(),
            stream.as_ptr(),
        );
        let product = Array::from_ptr(product);
        if status == 0 {
            Ok(product)
        } else {
            Err(refused("multiply", mode))
        }
    }
}

/// Returns the values of a matrix in one of MLX's modes without biases, in bfloat16, which
/// represents them exactly.
pub fn dequantize(
    weight: &Array,
    scales: &Array,
    group_size: usize,
    bits: usize,
    mode: &CStr,
) -> Result<Array, Exception> {
    install_error_handler();
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`.
    unsafe {
        let none = Array::from_ptr(mlx_sys::mlx_array_new());
        let mut numbers = mlx_sys::mlx_array_new();
        let bfloat16 = mlx_sys::mlx_optional_dtype {
            value: mlx_sys::mlx_dtype__MLX_BFLOAT16,
            has_value: true,
        };
        let status = mlx_sys::mlx_dequantize(
            &mut numbers,
            weight.as_ptr(),
            scales.as_ptr(),
            none.as_ptr(),
            some(group_size),
            some(bits),
            mode.as_ptr(),
            none.as_ptr(),
            bfloat16,
            stream.as_ptr(),
        );
        let numbers = Array::from_ptr(numbers);
        if status == 0 {
            Ok(numbers)
        } else {
            Err(refused("unpack", mode))
        }
    }
}

/// Returns whether this thread's MLX operations run on the CPU.
pub(super) fn stream_is_on_cpu() -> bool {
    install_error_handler();
    let stream = Stream::thread_local_or_default();
    // SAFETY: the device is created, filled, read and freed here; the stream outlives the calls.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        let mut kind = mlx_sys::mlx_device_type__MLX_GPU;
        let status = mlx_sys::mlx_stream_get_device(&mut device, stream.as_ptr())
            | mlx_sys::mlx_device_get_type(&mut kind, device);
        mlx_sys::mlx_device_free(device);
        status == 0 && kind == mlx_sys::mlx_device_type__MLX_CPU
    }
}

/// Returns whether the rows of an evaluated array are contiguous in memory.
pub(super) fn is_row_contiguous(x: &Array) -> Result<bool, Exception> {
    let mut contiguous = false;
    // SAFETY: `contiguous` outlives the call that writes it.
    match unsafe { mlx_sys::_mlx_array_is_row_contiguous(&mut contiguous, x.as_ptr()) } {
        0 => Ok(contiguous),
        _ => Err(Exception::custom(
            "MLX could not tell whether an array is contiguous",
        )),
    }
}

/// Returns the memory of an evaluated float32 array from its first value to its last, whatever its
/// strides.
pub(super) fn strided_numbers(x: &Array) -> Result<&[f32], Exception> {
    x.eval()?;
    let dimensions = || x.shape().iter().zip(x.strides());
    let is_forward = x.dtype() == mlx_rs::Dtype::Float32
        && dimensions().all(|(_, stride)| isize::try_from(*stride).is_ok());
    if !is_forward || x.size() == 0 {
        return Err(Exception::custom(format!(
            "an array of {:?} and {:?} cannot be read in place",
            x.shape(),
            x.dtype()
        )));
    }
    let last: usize = dimensions()
        .map(|(size, stride)| (*size as usize - 1) * stride)
        .sum();
    // SAFETY: the array is evaluated, of this type, and not empty; its values, including the last
    // one, are in its buffer, which lives as long as the array and which MLX does not write while
    // an array uses it.
    unsafe {
        Ok(std::slice::from_raw_parts(
            mlx_sys::mlx_array_data_float32(x.as_ptr()),
            last + 1,
        ))
    }
}

/// Waits for everything that this thread has submitted to its stream, and drops the remaining
/// errors: MLX reports each to the next caller, which would be an unrelated one.
pub fn settle() {
    install_error_handler();
    // SAFETY: the stream outlives the call. The status reports an error, which is the one being
    // dropped.
    let _ = unsafe { mlx_sys::mlx_synchronize(Stream::thread_local_or_default().as_ptr()) };
}

fn some(value: usize) -> mlx_sys::mlx_optional_int {
    mlx_sys::mlx_optional_int {
        value: value as i32,
        has_value: true,
    }
}

fn refused(what: &str, mode: &CStr) -> Exception {
    Exception::custom(format!(
        "MLX could not {what} a matrix in {}; this backend may not have it",
        mode.to_string_lossy()
    ))
}

/// Returns the version of MLX, such as `0.32.2`.
pub fn mlx_version() -> String {
    install_error_handler();
    // SAFETY: the string is created, filled, read and freed here; its data is NULL or ends with NUL
    // and lives until it is freed.
    unsafe {
        let mut string = mlx_sys::mlx_string_new();
        let filled = mlx_sys::mlx_version(&mut string) == 0;
        let data = mlx_sys::mlx_string_data(string);
        let version = if filled && !data.is_null() {
            CStr::from_ptr(data).to_string_lossy().into_owned()
        } else {
            "unknown".into()
        };
        mlx_sys::mlx_string_free(string);
        version
    }
}
