//! Options for long operations.

use std::{ffi::c_void, ptr, time::Duration};

use super::{Versioned, free, into_c, read_params};
use crate::{
    Error, Result,
    runtime::{Cancel, Op, Stage, StreamOptions},
};

/// Cancels operations.
pub struct moxin_cancel(Cancel);

/// The stage of an operation: one of MOXIN_STAGE_*.
pub type moxin_stage = u32;
/// Reading weights.
pub const MOXIN_STAGE_LOAD: moxin_stage = 0;
/// Running the vision encoders.
pub const MOXIN_STAGE_ENCODE: moxin_stage = 1;
/// Reading the prompt.
pub const MOXIN_STAGE_PREFILL: moxin_stage = 2;
/// Quantizing matrices.
pub const MOXIN_STAGE_QUANTIZE: moxin_stage = 3;
/// Writing weights.
pub const MOXIN_STAGE_SAVE: moxin_stage = 4;

/// Receives the stage of an operation and the fraction that is complete, 0 to 1, on the thread that
/// called the operation. Returning false cancels the operation.
pub type moxin_progress_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, stage: moxin_stage, fraction: f32) -> bool>;

/// Options for one long operation. NULL, or zeros after struct_size, stand for none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_op {
    /// sizeof(moxin_op)
    pub struct_size: usize,
    /// The progress callback. May be NULL.
    pub progress: moxin_progress_fn,
    /// Passed to progress.
    pub user_data: *mut c_void,
    /// A cancel object, which can be triggered from any thread. May be NULL.
    pub cancel: *const moxin_cancel,
    /// The time limit in milliseconds, including the time spent waiting for other operations. 0: no
    /// limit.
    pub timeout_ms: u64,
}

// SAFETY: repr(C), starts with its size; its pointers may have any value until they are used.
unsafe impl Versioned for moxin_op {}

/// Creates a cancel object, which the caller frees with moxin_cancel_free. It can be used for any
/// number of operations.
#[unsafe(no_mangle)]
pub extern "C" fn moxin_cancel_new() -> *mut moxin_cancel {
    let mut handle = ptr::null_mut();
    // SAFETY: a place for a pointer.
    unsafe { into_c(&raw mut handle, moxin_cancel(Cancel::new())) };
    handle
}

/// Cancels every operation that has this cancel object, now or later; they return
/// MOXIN_STATUS_CANCELLED. NULL is ignored. The call only sets a flag, so it is safe in a signal
/// handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_cancel_trigger(cancel: *const moxin_cancel) {
    // SAFETY: NULL, or a handle of this library that was not freed.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.0.trigger();
    }
}

/// Frees a cancel object. Operations that use it continue. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_cancel_free(cancel: *mut moxin_cancel) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(cancel, drop) };
}

/// Calls `f` with the options behind a pointer from C.
///
/// # Safety
/// `op` is NULL or an initialized struct whose pointers are valid during the call.
pub(super) unsafe fn with_op<T>(op: *const moxin_op, f: impl FnOnce(Op) -> Result<T>) -> Result<T> {
    // SAFETY: the caller upholds this function's contract.
    let (op, cancel, timeout) = unsafe { read_op(op)? };
    let mut progress = |stage: Stage, fraction: f32| {
        let stage = match stage {
            Stage::Load => MOXIN_STAGE_LOAD,
            Stage::Encode => MOXIN_STAGE_ENCODE,
            Stage::Prefill => MOXIN_STAGE_PREFILL,
            Stage::Quantize => MOXIN_STAGE_QUANTIZE,
            Stage::Save => MOXIN_STAGE_SAVE,
        };
        // SAFETY: the caller's function, with the caller's data, during the caller's call.
        op.progress
            .is_none_or(|callback| unsafe { callback(op.user_data, stage, fraction) })
    };
    f(Op {
        progress: Some(&mut progress),
        cancel,
        timeout,
    })
}

/// Reads the options that can end a stream early. A stream reports progress in its events.
///
/// # Safety
/// As for [`with_op`].
pub(super) unsafe fn stream_options(op: *const moxin_op) -> Result<StreamOptions> {
    // SAFETY: the caller upholds this function's contract.
    let (op, cancel, timeout) = unsafe { read_op(op)? };
    if op.progress.is_some() {
        return Err(Error::InvalidArgument(
            "op.progress is set; a stream reports progress with PREFILL events instead".into(),
        ));
    }
    Ok(StreamOptions { cancel, timeout })
}

/// # Safety
/// As for [`with_op`].
unsafe fn read_op(op: *const moxin_op) -> Result<(moxin_op, Option<Cancel>, Option<Duration>)> {
    // SAFETY: the caller upholds this function's contract.
    let op = unsafe { read_params(op, "op")? };
    // SAFETY: NULL, or a handle of this library that was not freed.
    let cancel = unsafe { op.cancel.as_ref() }.map(|cancel| cancel.0.clone());
    let timeout = (op.timeout_ms > 0).then(|| Duration::from_millis(op.timeout_ms));
    Ok((op, cancel, timeout))
}
