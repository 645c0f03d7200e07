//! The C ABI. Translates between C types and [`runtime`](crate::runtime), and does nothing else.
//! All pointer casts are here.
//!
//! The header's first comment states the conventions; see cbindgen.toml.
#![allow(unsafe_code, non_camel_case_types, clippy::missing_safety_doc)]

mod embedding;
mod error;
mod generate;
mod image;
mod library;
mod location;
mod memory;
mod model;
mod op;
mod quantize;
mod session;
mod video;

use std::{
    ffi::{CStr, CString, c_char, c_void},
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub use embedding::*;
pub use error::*;
pub use generate::*;
pub use image::*;
pub use library::*;
pub use location::*;
pub use memory::*;
pub use model::*;
pub use op::*;
pub use quantize::*;
pub use session::*;
pub use video::*;

use crate::{
    Error, Result,
    runtime::{guarded, inject, process},
};

/// The ABI version of this header. It increases with every incompatible release. Compare it with
/// moxin_abi_version before any other call.
pub const MOXIN_ABI_VERSION: u32 = 3;

/// The length to pass for a text that ends with NUL.
pub const MOXIN_STRLEN: usize = usize::MAX;

/// UTF-8 text owned by the library, also NUL-terminated. Each function that returns one says how
/// long it lives.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_str {
    /// The bytes, never NULL.
    pub data: *const c_char,
    /// The number of bytes, without the final NUL.
    pub len: usize,
}

/// Called once with the user data of a callback, when the library no longer uses it.
pub type moxin_destroy_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// The number of handles that C programs own.
static HANDLES: AtomicU64 = AtomicU64::new(0);

/// Guards every entry point: runs `f` and turns its error, or a panic, into a status and, if
/// wanted, into `*error`.
fn guard(error: *mut *mut moxin_error, f: impl FnOnce() -> Result<()>) -> moxin_status {
    let checked = || {
        process::check()?;
        inject("call")?;
        f()
    };
    let Err(failure) = guarded(checked) else {
        return moxin_status::Ok;
    };
    log::debug!("failed: {failure}");
    if !error.is_null() {
        // SAFETY: not NULL, and the caller's place for a pointer.
        unsafe { into_c(error, moxin_error::new(&failure)) };
    }
    moxin_status::of(&failure)
}

/// Returns the object behind a handle from C. It stays alive during the call, whatever other
/// threads do.
///
/// # Safety
/// The pointer is NULL or was returned by a function of this library and not freed.
unsafe fn retain<T>(handle: *const T, name: &'static str) -> Result<Arc<T>> {
    if handle.is_null() {
        return Err(Error::NullArgument(name));
    }
    // SAFETY: the caller's contract: the handle came from `into_c`, which leaves one count for C.
    Ok(unsafe {
        Arc::increment_strong_count(handle);
        Arc::from_raw(handle)
    })
}

/// Transfers the ownership of a handle to C. Check `place` with [`out`] before the work that makes
/// the handle, so that no work is wasted.
///
/// # Safety
/// `place` came from [`out`], or is not NULL and the caller's place for a pointer.
unsafe fn into_c<T>(place: *mut *mut T, handle: T) {
    HANDLES.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller upholds this function's contract.
    unsafe { place.write(Arc::into_raw(Arc::new(handle)).cast_mut()) };
}

/// Checks that an output pointer is not NULL.
fn out<T>(place: *mut T, name: &'static str) -> Result<*mut T> {
    if place.is_null() {
        Err(Error::NullArgument(name))
    } else {
        Ok(place)
    }
}

/// Takes a handle back from C; `last` may use it one last time. NULL is ignored.
///
/// # Safety
/// The pointer came from [`into_c`] and is not used again.
unsafe fn free<T>(handle: *mut T, last: impl FnOnce(Arc<T>)) {
    if !handle.is_null() {
        HANDLES.fetch_sub(1, Ordering::Relaxed);
        let _ = guarded(|| {
            // SAFETY: the caller upholds this function's contract.
            last(unsafe { Arc::from_raw(handle) });
            Ok(())
        });
    }
}

/// Reads a text from C.
///
/// # Safety
/// `data` is NULL, or has `len` readable bytes, or ends with NUL if `len` is [`MOXIN_STRLEN`]. It
/// does not change during the call.
unsafe fn text<'a>(data: *const c_char, len: usize, name: &'static str) -> Result<&'a str> {
    if data.is_null() {
        return Err(Error::NullArgument(name));
    }
    // SAFETY: the caller upholds this function's contract.
    let bytes = unsafe {
        if len == MOXIN_STRLEN {
            CStr::from_ptr(data).to_bytes()
        } else {
            bytes(data.cast(), len, name)?
        }
    };
    std::str::from_utf8(bytes)
        .map_err(|error| Error::InvalidArgument(format!("{name} is not UTF-8: {error}")))
}

/// Reads bytes from C.
///
/// # Safety
/// `data` is NULL or has `len` readable bytes, which do not change during the call.
unsafe fn bytes<'a>(data: *const u8, len: usize, name: &'static str) -> Result<&'a [u8]> {
    if data.is_null() {
        return Err(Error::NullArgument(name));
    }
    if len > isize::MAX as usize {
        return Err(Error::InvalidArgument(format!(
            "{name} has {len} bytes, which is more than the address space"
        )));
    }
    // SAFETY: not NULL, and the caller upholds this function's contract.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// A struct that C code of any version fills in or receives. Its first field is `struct_size`.
///
/// # Safety
/// Only for types that are `repr(C)`, start with a `size_t`, and accept any bit pattern in the
/// other fields.
unsafe trait Versioned: Sized {
    /// Returns the values of fields that the caller's version lacks: 0, unless a type overrides it.
    fn defaults() -> Self {
        // SAFETY: any bit pattern is valid except for the size, which is written here; every
        // version of every struct starts with it.
        unsafe {
            let mut empty = std::mem::zeroed::<Self>();
            (&raw mut empty).cast::<usize>().write(size_of::<Self>());
            empty
        }
    }
}

/// Reads a struct of parameters. Fields that the caller's version lacks get their defaults; fields
/// that this version lacks must be zero.
///
/// # Safety
/// `pointer` is NULL or points to at least `struct_size` readable bytes.
unsafe fn read_params<T: Versioned>(pointer: *const T, name: &'static str) -> Result<T> {
    let mut params = T::defaults();
    if pointer.is_null() {
        return Ok(params);
    }
    // SAFETY: every version of every struct starts with its size.
    let theirs = unsafe { pointer.cast::<usize>().read() };
    check_size::<T>(theirs, name)?;
    let ours = size_of::<T>();
    if theirs > ours {
        // SAFETY: the struct is `theirs` bytes long, as it says.
        let tail = unsafe { slice::from_raw_parts(pointer.cast::<u8>().add(ours), theirs - ours) };
        if tail.iter().any(|byte| *byte != 0) {
            return Err(Error::InvalidArgument(format!(
                "{name} sets fields that this version of the library does not know"
            )));
        }
    }
    // SAFETY: both are at least as long as what is copied, and any bytes are a valid T.
    unsafe {
        std::ptr::copy_nonoverlapping(
            pointer.cast::<u8>(),
            (&raw mut params).cast::<u8>(),
            theirs.min(ours),
        )
    };
    Ok(params)
}

/// Writes a struct of results, as much of it as the caller's version knows. Its `struct_size` stays
/// as the caller set it.
///
/// # Safety
/// `pointer` is not NULL and points to at least `struct_size` writable bytes.
unsafe fn write_result<T: Versioned>(pointer: *mut T, value: T, name: &'static str) -> Result<()> {
    // SAFETY: every version of every struct starts with its size.
    let theirs = unsafe { pointer.cast::<usize>().read() };
    check_size::<T>(theirs, name)?;
    let head = size_of::<usize>();
    let length = theirs.min(size_of::<T>());
    // SAFETY: both are at least as long as what is copied.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(head),
            pointer.cast::<u8>().add(head),
            length - head,
        )
    };
    Ok(())
}

/// Fills a struct of parameters with the defaults, never beyond the caller's size. A struct too
/// small for its size field stays untouched.
///
/// # Safety
/// `pointer` is NULL or points to at least `size` writable bytes.
unsafe fn init_params<T: Versioned>(pointer: *mut T, size: usize) {
    if pointer.is_null() || size < size_of::<usize>() {
        return;
    }
    let defaults = T::defaults();
    // SAFETY: the caller may write `size` bytes, and no more than T's size is read.
    unsafe {
        pointer.cast::<u8>().write_bytes(0, size);
        std::ptr::copy_nonoverlapping(
            (&raw const defaults).cast::<u8>(),
            pointer.cast::<u8>(),
            size.min(size_of::<T>()),
        );
        pointer.cast::<usize>().write(size);
    }
}

/// Checks the struct's size. A size that no version ever had means that the struct was not
/// initialized.
fn check_size<T>(theirs: usize, name: &'static str) -> Result<()> {
    let expected = size_of::<usize>()..=size_of::<T>() + 4096;
    if !expected.contains(&theirs) {
        return Err(Error::InvalidArgument(format!(
            "{name}.struct_size is {theirs}; set it to sizeof *{name} ({} here)",
            size_of::<T>()
        )));
    }
    Ok(())
}

/// Converts any text to a C string. A NUL inside, which C would take for the end, becomes U+FFFD.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Returns a view of a C string, valid as long as the string.
fn view(text: &CString) -> moxin_str {
    moxin_str {
        data: text.as_ptr(),
        len: text.as_bytes().len(),
    }
}
