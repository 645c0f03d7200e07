//! The only caller of mlx-sys: what mlx-rs lacks.
#![allow(unsafe_code)]

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
    let mut available = false;
    // SAFETY: the device is made, asked and freed here; `available` outlives the call that writes it.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let status = mlx_sys::mlx_device_is_available(&mut available, device);
        mlx_sys::mlx_device_free(device);
        status == 0 && available
    }
}
