//! Status codes and errors.

use std::ffi::{CStr, CString, c_char};

use super::{c_string, free, moxin_str, view};
use crate::Error;

/// The result of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moxin_status {
    /// The call succeeded.
    Ok = 0,
    /// A pointer that must not be NULL is NULL.
    NullArgument = 1,
    /// A value is out of range, a text is not UTF-8, a struct was not initialized, or an embedding
    /// belongs to another model.
    InvalidArgument = 2,
    /// The object is in a state that does not allow this call; the message says what to call
    /// instead.
    InvalidState = 3,
    /// The operation was cancelled. All objects stay usable.
    Cancelled = 4,
    /// The operation exceeded its time limit.
    Timeout = 5,
    /// Another operation or stream is running on the same session.
    Busy = 6,
    /// The library is suspended; see moxin_suspend.
    Suspended = 7,
    /// A file or folder does not exist.
    NotFound = 8,
    /// Reading or writing failed.
    Io = 9,
    /// A file of the model is damaged or inconsistent.
    CorruptModel = 10,
    /// The library does not support this kind of model.
    UnsupportedModel = 11,
    /// An image cannot be read, is too large, or has an unknown format.
    UnsupportedImage = 12,
    /// The prompt does not fit into the context.
    ContextFull = 13,
    /// The operation would exceed the memory limit; nothing was allocated.
    OutOfMemory = 14,
    /// The requested backend is not available on this machine or in this build.
    BackendUnavailable = 15,
    /// MLX reported an error.
    Backend = 16,
    /// A bug in the library. Please report it with the error's message.
    Panic = 17,
}

impl moxin_status {
    const ALL: [(moxin_status, &'static CStr); 18] = [
        (moxin_status::Ok, c"MOXIN_STATUS_OK"),
        (moxin_status::NullArgument, c"MOXIN_STATUS_NULL_ARGUMENT"),
        (
            moxin_status::InvalidArgument,
            c"MOXIN_STATUS_INVALID_ARGUMENT",
        ),
        (moxin_status::InvalidState, c"MOXIN_STATUS_INVALID_STATE"),
        (moxin_status::Cancelled, c"MOXIN_STATUS_CANCELLED"),
        (moxin_status::Timeout, c"MOXIN_STATUS_TIMEOUT"),
        (moxin_status::Busy, c"MOXIN_STATUS_BUSY"),
        (moxin_status::Suspended, c"MOXIN_STATUS_SUSPENDED"),
        (moxin_status::NotFound, c"MOXIN_STATUS_NOT_FOUND"),
        (moxin_status::Io, c"MOXIN_STATUS_IO"),
        (moxin_status::CorruptModel, c"MOXIN_STATUS_CORRUPT_MODEL"),
        (
            moxin_status::UnsupportedModel,
            c"MOXIN_STATUS_UNSUPPORTED_MODEL",
        ),
        (
            moxin_status::UnsupportedImage,
            c"MOXIN_STATUS_UNSUPPORTED_IMAGE",
        ),
        (moxin_status::ContextFull, c"MOXIN_STATUS_CONTEXT_FULL"),
        (moxin_status::OutOfMemory, c"MOXIN_STATUS_OUT_OF_MEMORY"),
        (
            moxin_status::BackendUnavailable,
            c"MOXIN_STATUS_BACKEND_UNAVAILABLE",
        ),
        (moxin_status::Backend, c"MOXIN_STATUS_BACKEND"),
        (moxin_status::Panic, c"MOXIN_STATUS_PANIC"),
    ];

    pub(super) fn of(error: &Error) -> moxin_status {
        match error {
            Error::NullArgument(_) => moxin_status::NullArgument,
            Error::InvalidArgument(_) => moxin_status::InvalidArgument,
            Error::InvalidState(_) => moxin_status::InvalidState,
            Error::Cancelled => moxin_status::Cancelled,
            Error::Timeout => moxin_status::Timeout,
            Error::Busy => moxin_status::Busy,
            Error::Suspended => moxin_status::Suspended,
            Error::NotFound { .. } => moxin_status::NotFound,
            Error::Io { .. } => moxin_status::Io,
            Error::CorruptModel { .. } => moxin_status::CorruptModel,
            Error::UnsupportedModel { .. } => moxin_status::UnsupportedModel,
            Error::UnsupportedImage { .. } => moxin_status::UnsupportedImage,
            Error::ContextFull { .. } => moxin_status::ContextFull,
            Error::OutOfMemory { .. } => moxin_status::OutOfMemory,
            Error::BackendUnavailable(_) => moxin_status::BackendUnavailable,
            Error::Backend(_) => moxin_status::Backend,
            Error::Panic(_) => moxin_status::Panic,
        }
    }
}

/// Why a call failed. Immutable; may be read from any thread.
pub struct moxin_error {
    status: moxin_status,
    message: CString,
    cause: Option<Box<moxin_error>>,
}

impl moxin_error {
    pub(super) fn new(error: &Error) -> moxin_error {
        moxin_error::of(moxin_status::of(error), error)
    }

    fn of(status: moxin_status, error: &dyn std::error::Error) -> moxin_error {
        let cause = error
            .source()
            .map(|cause| Box::new(moxin_error::of(status, cause)));
        moxin_error {
            status,
            message: c_string(&error.to_string()),
            cause,
        }
    }
}

/// Returns the name of a status, such as "MOXIN_STATUS_BUSY", or "unknown status" for an unknown
/// number. The text lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_status_name(status: u32) -> *const c_char {
    let known = moxin_status::ALL
        .iter()
        .find(|(known, _)| *known as u32 == status);
    known.map_or(c"unknown status", |(_, name)| name).as_ptr()
}

/// Returns the status of an error; MOXIN_STATUS_OK for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_error_status(error: *const moxin_error) -> moxin_status {
    // SAFETY: NULL, or an error of this library that was not freed.
    unsafe { error.as_ref() }.map_or(moxin_status::Ok, |error| error.status)
}

/// Returns a message for people: what went wrong, where, and what to do. It lives as long as the
/// error. Empty for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_error_message(error: *const moxin_error) -> moxin_str {
    // SAFETY: NULL, or an error of this library that was not freed.
    let error = unsafe { error.as_ref() };
    error.map_or(
        moxin_str {
            data: c"".as_ptr(),
            len: 0,
        },
        |error| view(&error.message),
    )
}

/// Returns the cause of an error, such as the system's message for a file that could not be read;
/// NULL if there is none, and for NULL. Each cause has the status of the first error. Causes live
/// as long as the first error and are freed with it, never on their own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_error_cause(error: *const moxin_error) -> *const moxin_error {
    // SAFETY: NULL, or an error of this library that was not freed.
    let cause = unsafe { error.as_ref() }.and_then(|error| error.cause.as_deref());
    cause.map_or(std::ptr::null(), std::ptr::from_ref)
}

/// Frees an error and its causes. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_error_free(error: *mut moxin_error) {
    // SAFETY: NULL, or an error of this library, which the caller does not use again.
    unsafe { free(error, drop) };
}
