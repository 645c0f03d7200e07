//! Functions for the library as a whole.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::Path,
    ptr,
    sync::OnceLock,
    time::Duration,
};

use log::{Level, LevelFilter};
use serde_json::json;

use super::{
    MOXIN_ABI_VERSION, MOXIN_STRLEN, c_string, guard, moxin_destroy_fn, moxin_error, moxin_status,
    moxin_str, text, view,
};
use crate::{
    Error, Result,
    runtime::{
        Backend, LogSink, callback, guarded, mlx_version, model_types, process, resume,
        set_cpu_threads, set_log, set_metallib_path, suspend,
    },
};

/// The device that a model runs on: one of MOXIN_BACKEND_*.
pub type moxin_backend = u32;
/// The GPU if there is one, otherwise the CPU.
pub const MOXIN_BACKEND_AUTO: moxin_backend = 0;
/// The CPU.
pub const MOXIN_BACKEND_CPU: moxin_backend = 1;
/// An Apple GPU.
pub const MOXIN_BACKEND_METAL: moxin_backend = 2;
/// An Nvidia GPU.
pub const MOXIN_BACKEND_CUDA: moxin_backend = 3;

/// The log level: one of MOXIN_LOG_LEVEL_*. Each level includes those before it.
pub type moxin_log_level = u32;
/// Nothing.
pub const MOXIN_LOG_LEVEL_OFF: moxin_log_level = 0;
/// Failures.
pub const MOXIN_LOG_LEVEL_ERROR: moxin_log_level = 1;
/// Unexpected conditions, such as a request that was refused for lack of memory.
pub const MOXIN_LOG_LEVEL_WARN: moxin_log_level = 2;
/// Completed work: a loaded model, an answer, and how long it took.
pub const MOXIN_LOG_LEVEL_INFO: moxin_log_level = 3;
/// Details, and every error that a call returned.
pub const MOXIN_LOG_LEVEL_DEBUG: moxin_log_level = 4;
/// Everything.
pub const MOXIN_LOG_LEVEL_TRACE: moxin_log_level = 5;

/// Receives one log message: the module it comes from, and the text. Both are valid until the
/// function returns.
pub type moxin_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: moxin_log_level,
        target: moxin_str,
        message: moxin_str,
    ),
>;

/// Returns the ABI version of the library: the MOXIN_ABI_VERSION of the header that it was built
/// with.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_abi_version() -> u32 {
    MOXIN_ABI_VERSION
}

/// Returns the library's version, such as "0.1.0". The text lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no NUL inside"),
        };
    VERSION.as_ptr()
}

/// Describes the build as JSON: "version", "abi", "mlx" (its version), "target", "backends" (those
/// that are available now) and "models" (the model_type of each supported architecture). The text
/// lives as long as the library. In a forked child it may be "{}".
#[unsafe(no_mangle)]
pub extern "C" fn moxin_build_info() -> *const c_char {
    static INFO: OnceLock<CString> = OnceLock::new();
    if let Some(info) = INFO.get() {
        return info.as_ptr();
    }
    let info = guarded(|| {
        process::check()?;
        Ok(c_string(&build_info()))
    });
    // A failure is not stored: the next call tries again.
    info.map_or(c"{}".as_ptr(), |info| INFO.get_or_init(|| info).as_ptr())
}

fn build_info() -> String {
    let backends = [Backend::Cpu, Backend::Metal, Backend::Cuda]
        .into_iter()
        .filter(|backend| backend.is_available());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi": MOXIN_ABI_VERSION,
        "mlx": mlx_version(),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "backends": backends.map(Backend::name).collect::<Vec<_>>(),
        "models": model_types(),
    })
    .to_string()
}

/// Returns whether models can run on a backend now. Returns false for an unknown backend.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_backend_available(backend: moxin_backend) -> bool {
    guarded(|| {
        process::check()?;
        Ok(backend_from(backend)?.is_available())
    })
    .unwrap_or(false)
}

/// Sets the path of Metal's kernels, mlx.metallib. Call it before any other function except
/// moxin_version and moxin_abi_version. Only needed if the file is neither next to the library nor
/// in Resources/ next to it.
///
/// path is NUL-terminated UTF-8.
///
/// Errors: NOT_FOUND; INVALID_STATE if MLX is already in use; BACKEND_UNAVAILABLE if the library
/// was built without Metal, as on Linux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_set_metallib_path(
    path: *const c_char,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: the caller's NUL-terminated text.
    guard(error, || {
        set_metallib_path(Path::new(unsafe { text(path, MOXIN_STRLEN, "path")? }))
    })
}

/// Sets the log callback and the level; if log is NULL, logging is disabled. A callback set earlier
/// still receives the messages logged before this call.
///
/// log is called on a dedicated thread of the library, with one message at a time. It may block,
/// and may call any function of this header. Messages logged on that thread are dropped. So are
/// messages that arrive faster than log handles them: at most 1,024 messages or 1 MiB wait, and one
/// message then reports how many were dropped.
///
/// destroy(user_data) is called exactly once: on that thread after the last message, or before this
/// call returns if it fails or log is NULL. destroy may be NULL. When the process exits, neither is
/// called any more.
///
/// Errors: INVALID_ARGUMENT for an unknown level; INVALID_STATE if the process is a Rust program
/// with a logger of its own, or if the thread cannot be started. On error the previous callback
/// stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_set_log(
    log: moxin_log_fn,
    max_level: moxin_log_level,
    user_data: *mut c_void,
    destroy: moxin_destroy_fn,
    error: *mut *mut moxin_error,
) -> moxin_status {
    let owner = UserData {
        pointer: user_data,
        destroy,
    };
    guard(error, || {
        let filter = match max_level {
            MOXIN_LOG_LEVEL_OFF => LevelFilter::Off,
            MOXIN_LOG_LEVEL_ERROR => LevelFilter::Error,
            MOXIN_LOG_LEVEL_WARN => LevelFilter::Warn,
            MOXIN_LOG_LEVEL_INFO => LevelFilter::Info,
            MOXIN_LOG_LEVEL_DEBUG => LevelFilter::Debug,
            MOXIN_LOG_LEVEL_TRACE => LevelFilter::Trace,
            other => {
                return Err(Error::InvalidArgument(format!(
                    "max_level is {other}; expected 0 to {MOXIN_LOG_LEVEL_TRACE}"
                )));
            }
        };
        let sink = log.map(|log| -> LogSink {
            Box::new(move |level, target, message| {
                let (target, message) = (c_string(target), c_string(message));
                // SAFETY: the caller's function with the caller's data, which lives until `owner`
                // is dropped.
                unsafe {
                    log(
                        owner.pointer(),
                        level_number(level),
                        view(&target),
                        view(&message),
                    )
                };
            })
        });
        set_log(sink, filter)
    })
}

fn level_number(level: Level) -> moxin_log_level {
    match level {
        Level::Error => MOXIN_LOG_LEVEL_ERROR,
        Level::Warn => MOXIN_LOG_LEVEL_WARN,
        Level::Info => MOXIN_LOG_LEVEL_INFO,
        Level::Debug => MOXIN_LOG_LEVEL_DEBUG,
        Level::Trace => MOXIN_LOG_LEVEL_TRACE,
    }
}

/// Sets the number of threads that the library's own CPU kernels use, for the whole process. 0, the
/// default, uses one per core and ignores the environment variable `MOXIN_CPU_THREADS`. Results do
/// not depend on it.
///
/// The maximum is four per CPU that the process may use, or 64 if that is more. A
/// `MOXIN_CPU_THREADS` that is not a number in this range is ignored with a warning.
///
/// Errors: INVALID_ARGUMENT if threads is above the maximum; nothing changes.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_set_cpu_threads(threads: u32) -> moxin_status {
    guard(ptr::null_mut(), || set_cpu_threads(threads as usize))
}

/// Stops all computing, for an app that moves to the background, where iOS does not allow GPU work.
///
/// Operations fail with MOXIN_STATUS_SUSPENDED until moxin_resume. Running operations fail at their
/// next tensor, block or layer; streams pause and continue later. Conversations are kept. Calls
/// that compute nothing still work: adding to a conversation, cancelling, freeing,
/// moxin_model_unload and moxin_memory_trim. The call returns when nothing is running any more.
///
/// Errors: TIMEOUT if something is still running after drain_timeout_ms milliseconds; the library
/// is suspended all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_suspend(
    drain_timeout_ms: u32,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        suspend(Duration::from_millis(drain_timeout_ms.into()))
    })
}

/// Resumes computing after moxin_suspend. Does nothing if the library is not suspended.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_resume() {
    let _ = guarded(|| {
        resume();
        Ok(())
    });
}

/// The caller's data, which is destroyed when this is dropped.
pub(super) struct UserData {
    pub(super) pointer: *mut c_void,
    pub(super) destroy: moxin_destroy_fn,
}

// SAFETY: the header says that callbacks run on the library's threads, with this data.
unsafe impl Send for UserData {}

impl UserData {
    /// A method, so that a closure which uses it captures the whole struct and not only the
    /// pointer.
    pub(super) fn pointer(&self) -> *mut c_void {
        self.pointer
    }
}

impl Drop for UserData {
    /// Calls `destroy` like every callback of the program: wherever the data is dropped, it may
    /// free objects that would otherwise wait for this thread.
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the caller's function with the caller's data, called once.
            callback::enter(|| unsafe { destroy(self.pointer) });
        }
    }
}

pub(super) fn backend_from(backend: moxin_backend) -> Result<Backend> {
    match backend {
        MOXIN_BACKEND_AUTO => Ok(Backend::Auto),
        MOXIN_BACKEND_CPU => Ok(Backend::Cpu),
        MOXIN_BACKEND_METAL => Ok(Backend::Metal),
        MOXIN_BACKEND_CUDA => Ok(Backend::Cuda),
        other => Err(Error::InvalidArgument(format!(
            "backend is {other}; expected 0 to {MOXIN_BACKEND_CUDA}"
        ))),
    }
}

pub(super) fn backend_number(backend: Backend) -> moxin_backend {
    match backend {
        Backend::Auto => MOXIN_BACKEND_AUTO,
        Backend::Cpu => MOXIN_BACKEND_CPU,
        Backend::Metal => MOXIN_BACKEND_METAL,
        Backend::Cuda => MOXIN_BACKEND_CUDA,
    }
}
