//! Exit handlers.
#![allow(unsafe_code)]

/// Registers `f` to be called when the process exits normally, before all handlers registered
/// earlier, with the exit status if the system provides it. If it cannot be registered, it is not
/// called.
pub(crate) fn at_exit(f: fn(Option<i32>)) {
    system::register(f);
}

/// Ends the process at once: flushes C's streams, and runs no more handlers.
pub(crate) fn leave(status: i32) -> ! {
    // SAFETY: NULL stands for all streams; neither call uses memory of ours.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(status)
    }
}

#[cfg(target_env = "gnu")]
mod system {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        /// Like atexit, with the status: <https://man7.org/linux/man-pages/man3/on_exit.3.html>.
        safe fn on_exit(f: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }

    pub fn register(f: fn(Option<i32>)) {
        on_exit(call, f as *mut c_void);
    }

    extern "C" fn call(status: c_int, f: *mut c_void) {
        // SAFETY: `register` passed a function of this type, and functions live as long as the
        // process.
        let f = unsafe { std::mem::transmute::<*mut c_void, fn(Option<i32>)>(f) };
        f(Some(status));
    }
}

#[cfg(not(target_env = "gnu"))]
mod system {
    use std::sync::OnceLock;

    static FUNCTION: OnceLock<fn(Option<i32>)> = OnceLock::new();

    /// Stores one function: the library has no second.
    pub fn register(f: fn(Option<i32>)) {
        FUNCTION.get_or_init(|| f);
        // SAFETY: atexit may be called from any thread, and a function lives as long as the
        // process.
        unsafe { libc::atexit(call) };
    }

    extern "C" fn call() {
        if let Some(f) = FUNCTION.get() {
            f(None);
        }
    }
}
