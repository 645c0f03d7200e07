//! The only caller of mlx-sys: what mlx-rs lacks.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{Error, Result};

/// Whether a device was asked for: then Metal's kernels may be loaded.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// Replaces mlx-c's error handler, which ends the process, by mlx-rs's, which returns errors.
///
/// mlx-rs installs its own at its first fallible call, and some calls that come before are infallible in its eyes: hence this, first.
pub(super) fn install_error_handler() {
    // Any fallible call of mlx-rs installs the handler. This one reads a counter; what it returns does not matter.
    let _ = mlx_rs::memory::active_memory();
}

/// Whether MLX can run on a GPU here.
pub(super) fn gpu_is_available() -> bool {
    install_error_handler();
    IN_USE.store(true, Ordering::Relaxed);
    let mut available = false;
    // SAFETY: the device is made, asked and freed here; `available` outlives the call that writes it.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let status = mlx_sys::mlx_device_is_available(&mut available, device);
        mlx_sys::mlx_device_free(device);
        status == 0 && available
    }
}

/// Where Metal's kernels, `mlx.metallib`, lie; to be called before anything else of this library. Needed only where the file is not beside the
/// library, nor in `Resources/` beside it.
///
/// # Errors
/// [`Error::BackendUnavailable`] where this build has no Metal; [`Error::NotFound`]; [`Error::InvalidState`] where MLX is in use already.
pub fn set_metallib_path(path: &Path) -> Result<()> {
    if !cfg!(target_vendor = "apple") {
        return Err(Error::BackendUnavailable("this build computes without Metal and needs no metallib".into()));
    }
    std::fs::metadata(path).map_err(|error| Error::io(path, "Metal's kernels", error))?;
    if IN_USE.load(Ordering::Relaxed) {
        return Err(Error::InvalidState("MLX is in use already; set the metallib path before anything else".into()));
    }
    let text = path.to_str().and_then(|path| CString::new(path).ok());
    let text = text.ok_or_else(|| Error::InvalidArgument(format!("{} is not UTF-8 without NUL", path.display())))?;
    install_error_handler();
    // SAFETY: a C string that outlives the call, which copies it.
    match unsafe { mlx_sys::mlx_metal_set_metallib_path(text.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Error::InvalidState(format!("MLX did not accept the metallib path {}", path.display()))),
    }
}

/// The version of MLX, such as `0.32.2`.
pub fn mlx_version() -> String {
    install_error_handler();
    // SAFETY: the string is made, filled, read and freed here; its data is NULL or ends with NUL and lives until it is freed.
    unsafe {
        let mut string = mlx_sys::mlx_string_new();
        let filled = mlx_sys::mlx_version(&mut string) == 0;
        let data = mlx_sys::mlx_string_data(string);
        let version = if filled && !data.is_null() { CStr::from_ptr(data).to_string_lossy().into_owned() } else { "unknown".into() };
        mlx_sys::mlx_string_free(string);
        version
    }
}
