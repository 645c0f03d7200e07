//! The library as a whole.

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

/// What a model computes on: one of MOXIN_BACKEND_*.
pub type moxin_backend = u32;
/// The GPU where there is one, else the CPU.
pub const MOXIN_BACKEND_AUTO: moxin_backend = 0;
/// The processor.
pub const MOXIN_BACKEND_CPU: moxin_backend = 1;
/// An Apple GPU.
pub const MOXIN_BACKEND_METAL: moxin_backend = 2;
/// An Nvidia GPU.
pub const MOXIN_BACKEND_CUDA: moxin_backend = 3;

/// How much is logged: one of MOXIN_LOG_LEVEL_*. Each level has those before it.
pub type moxin_log_level = u32;
/// Nothing.
pub const MOXIN_LOG_LEVEL_OFF: moxin_log_level = 0;
/// What went wrong.
pub const MOXIN_LOG_LEVEL_ERROR: moxin_log_level = 1;
/// What may surprise, such as a refusal for want of memory.
pub const MOXIN_LOG_LEVEL_WARN: moxin_log_level = 2;
/// What was done: a model loaded, an answer given, and how long it took.
pub const MOXIN_LOG_LEVEL_INFO: moxin_log_level = 3;
/// How it was done, and every error that a call returned.
pub const MOXIN_LOG_LEVEL_DEBUG: moxin_log_level = 4;
/// Everything.
pub const MOXIN_LOG_LEVEL_TRACE: moxin_log_level = 5;

/// Told one message: where in the library it comes from, and what it says. The texts live until the
/// function returns.
pub type moxin_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: moxin_log_level,
        target: moxin_str,
        message: moxin_str,
    ),
>;

/// The number of the ABI that the library has: MOXIN_ABI_VERSION of the header it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_abi_version() -> u32 {
    MOXIN_ABI_VERSION
}

/// The library's version, such as "0.1.0". Lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no NUL inside"),
        };
    VERSION.as_ptr()
}

/// What the library is made of, as JSON: "version", "abi", "mlx" (its version), "target",
/// "backends" (those that work here and now), and "models" (the model_type of each kind that it
/// runs). Lives as long as the library. In a forked child it may be "{}".
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
    // A failure is not kept: the next call tries again.
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

/// Whether models can run on a backend, here and now. False for a number that is no backend.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_backend_available(backend: moxin_backend) -> bool {
    guarded(|| {
        process::check()?;
        Ok(backend_from(backend)?.is_available())
    })
    .unwrap_or(false)
}

/// Says where Metal's kernels, mlx.metallib, lie; to be called before any other function but
/// moxin_version and moxin_abi_version. Needed only where the file is neither beside the library
/// nor in Resources/ beside it.
///
/// path: UTF-8, NUL-terminated.
///
/// Fails with NOT_FOUND, with INVALID_STATE where MLX is in use already, and with
/// BACKEND_UNAVAILABLE where the library was built without Metal, as on Linux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_set_metallib_path(
    path: *const c_char,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: the caller's text, NUL-terminated.
    guard(error, || {
        set_metallib_path(Path::new(unsafe { text(path, MOXIN_STRLEN, "path")? }))
    })
}

/// Has messages up to max_level go to a function from now on, or nowhere where log is NULL. It
/// replaces the function set before, which still gets what was logged until now.
///
/// log is called on a thread of the library that does nothing else, one message after the other; it
/// may take its time, and may call any function of this header. What is logged on that thread is
/// dropped. So is what comes faster than log takes it: at most 1,024 messages, or 1 MiB of them,
/// wait. Then one message says how many were dropped.
///
/// destroy(user_data) is called exactly once: on that thread after the last message, or before this
/// call returns where it fails or log is NULL. destroy may be NULL. When the process ends, neither
/// is called any more.
///
/// Fails with INVALID_ARGUMENT for an unknown level, and with INVALID_STATE in a Rust program that
/// has a logger of its own and where the thread cannot be started. The function set before stays
/// then.
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
                    "max_level is {other}; 0 to {MOXIN_LOG_LEVEL_TRACE} is expected"
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

/// Sets the number of threads that this library's own kernels for the CPU use in the whole process,
/// from the next work on. 0, the default: the environment variable `MOXIN_CPU_THREADS` does not
/// count any more, and there are as many as cores. Results do not depend on it.
///
/// The most is four for each CPU that the process may use, or 64 where that is more. Where
/// `MOXIN_CPU_THREADS` is not a number up to that, it does not count, and a warning is logged.
///
/// Fails with INVALID_ARGUMENT for more, and then changes nothing.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_set_cpu_threads(threads: u32) -> moxin_status {
    guard(ptr::null_mut(), || set_cpu_threads(threads as usize))
}

/// Lets nothing compute from now on: for an app that goes to the background, where iOS refuses work
/// for the GPU and answers would fail.
///
/// Operations fail with MOXIN_STATUS_SUSPENDED until moxin_resume; what is under way ends so too,
/// at its next tensor, block or layer; a stream pauses and goes on later. Conversations stay as
/// they are. What computes nothing works all the while: adding to a conversation, cancelling,
/// freeing, moxin_model_unload, moxin_memory_trim. The call returns when nothing is under way any
/// more.
///
/// Fails with TIMEOUT where something still is after drain_timeout_ms milliseconds; the library is
/// suspended all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_suspend(
    drain_timeout_ms: u32,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        suspend(Duration::from_millis(drain_timeout_ms.into()))
    })
}

/// Ends what moxin_suspend began. Does nothing where the library is not suspended.
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

// SAFETY: the caller is told that its functions are called on the library's threads, with this
// data.
unsafe impl Send for UserData {}

impl UserData {
    /// A method, so that a closure which uses it holds the whole and not the pointer alone.
    pub(super) fn pointer(&self) -> *mut c_void {
        self.pointer
    }
}

impl Drop for UserData {
    /// Calls `destroy`, as all functions of the program are called: wherever the data are dropped,
    /// it may free what would wait for it.
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the caller's function with the caller's data, once.
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
            "backend is {other}; 0 to {MOXIN_BACKEND_CUDA} is expected"
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
