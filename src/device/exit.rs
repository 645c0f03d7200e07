//! Work to do when the process ends.
#![allow(unsafe_code)]

/// Has `f` called when the process ends normally, before everything that was registered earlier. Where that cannot be registered it is not
/// called.
pub(crate) fn at_exit(f: extern "C" fn()) {
    // SAFETY: atexit may be called from any thread, and a function lives as long as the process.
    unsafe { libc::atexit(f) };
}
