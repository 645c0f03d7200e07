//! Pictures.

use std::ffi::{c_char, c_void};

use super::{
    MOXIN_STRLEN, Versioned, bytes, free, give, guard, hold, init_params, moxin_error,
    moxin_status, out, read_params, text,
};
use crate::{
    Error, Result,
    runtime::{Budget, DecodeOptions, Picture, PixelFormat},
};

/// A decoded picture.
pub struct moxin_image(pub(super) Picture);

/// How pixels lie in memory: one of MOXIN_PIXEL_FORMAT_*.
pub type moxin_pixel_format = u32;
/// Three bytes: red, green, blue.
pub const MOXIN_PIXEL_FORMAT_RGB8: moxin_pixel_format = 0;
/// Four bytes: red, green, blue, alpha. Alpha is dropped, not composited.
pub const MOXIN_PIXEL_FORMAT_RGBA8: moxin_pixel_format = 1;
/// Four bytes: blue, green, red, alpha, as Core Video has them. Alpha is dropped.
pub const MOXIN_PIXEL_FORMAT_BGRA8: moxin_pixel_format = 2;
/// One byte: grey.
pub const MOXIN_PIXEL_FORMAT_GRAY8: moxin_pixel_format = 3;

/// How a file is decoded.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_image_params {
    /// sizeof(moxin_image_params)
    pub struct_size: usize,
    /// Pixels that a picture may have; a larger one is refused by its header. Default: 100,000,000.
    pub max_pixels: u64,
    /// Not 0: leave the picture as stored, whatever orientation its metadata gives. Default: 0, it
    /// is turned upright.
    pub ignore_orientation: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_image_params {
    fn defaults() -> Self {
        moxin_image_params {
            struct_size: size_of::<Self>(),
            max_pixels: DecodeOptions::default().max_pixels,
            ignore_orientation: 0,
            reserved: 0,
        }
    }
}

/// How many pixels a picture may have in front of the model's encoder, where the model takes
/// pictures of any size; others ignore it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_pixel_budget {
    /// sizeof(moxin_pixel_budget)
    pub struct_size: usize,
    /// A picture of fewer is enlarged. 0: what the model's folder says.
    pub min_pixels: u64,
    /// A picture of more is made smaller. 0: what the model's folder says.
    pub max_pixels: u64,
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_pixel_budget {}

/// # Safety
/// As for [`read_params`].
pub(super) unsafe fn pixel_budget(budget: *const moxin_pixel_budget) -> Result<Budget> {
    // SAFETY: as promised by the caller.
    let budget = unsafe { read_params(budget, "budget")? };
    let pixels = |count: u64| (count > 0).then_some(usize::try_from(count).unwrap_or(usize::MAX));
    Ok(Budget {
        min_pixels: pixels(budget.min_pixels),
        max_pixels: pixels(budget.max_pixels),
    })
}

/// Sets up parameters with the defaults; struct_size is sizeof(moxin_image_params), and nothing is
/// written past it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_params_init(
    params: *mut moxin_image_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Reads a picture from a file: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF, told by its
/// content.
///
/// path: UTF-8, NUL-terminated. params, error: may be NULL. *out_image receives an image that the
/// caller frees with moxin_image_free.
///
/// Fails with NOT_FOUND, IO, UNSUPPORTED_IMAGE, and with INVALID_ARGUMENT for a path that is not
/// UTF-8. Fails with OUT_OF_MEMORY and both figures, before it is done, where reading or decoding
/// takes more than is available or than moxin_memory_set_limits leaves.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_from_file(
    path: *const c_char,
    params: *const moxin_image_params,
    out_image: *mut *mut moxin_image,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_image, "out_image")?;
        // SAFETY: the caller's text, NUL-terminated, and its struct; checked place.
        unsafe {
            let path = text(path, MOXIN_STRLEN, "path")?;
            give(place, moxin_image(Picture::open(path, &options(params)?)?));
        }
        Ok(())
    })
}

/// As moxin_image_from_file, from the bytes of a file in memory. They are not needed any more when
/// the call returns.
///
/// Fails with UNSUPPORTED_IMAGE, and with OUT_OF_MEMORY as moxin_image_from_file does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_from_bytes(
    data: *const c_void,
    len: usize,
    params: *const moxin_image_params,
    out_image: *mut *mut moxin_image,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_image, "out_image")?;
        // SAFETY: the caller's bytes and struct; checked place.
        unsafe {
            let data = bytes(data.cast(), len, "data")?;
            give(
                place,
                moxin_image(Picture::decode(data, &options(params)?)?),
            );
        }
        Ok(())
    })
}

/// Copies a picture from pixels in memory, rows from top to bottom. stride: bytes from the
/// beginning of a row to the beginning of the next. The last row may end with its last pixel.
///
/// Fails with INVALID_ARGUMENT for an empty picture, an unknown format, or a stride shorter than a
/// row; with OUT_OF_MEMORY where there is no room for the copy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_from_pixels(
    pixels: *const c_void,
    width: u32,
    height: u32,
    stride: usize,
    format: moxin_pixel_format,
    out_image: *mut *mut moxin_image,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_image, "out_image")?;
        let (format, pixel) = match format {
            MOXIN_PIXEL_FORMAT_RGB8 => (PixelFormat::Rgb8, 3),
            MOXIN_PIXEL_FORMAT_RGBA8 => (PixelFormat::Rgba8, 4),
            MOXIN_PIXEL_FORMAT_BGRA8 => (PixelFormat::Bgra8, 4),
            MOXIN_PIXEL_FORMAT_GRAY8 => (PixelFormat::Gray8, 1),
            other => {
                return Err(Error::InvalidArgument(format!(
                    "format is {other}; 0 to {MOXIN_PIXEL_FORMAT_GRAY8} is expected"
                )));
            }
        };
        let len = pixel_bytes(width, height, stride, pixel)?;
        // SAFETY: the caller's pixels, as many as the sizes say; checked place.
        unsafe {
            let pixels = bytes(pixels.cast(), len, "pixels")?;
            give(
                place,
                moxin_image(Picture::from_pixels(pixels, width, height, stride, format)?),
            );
        }
        Ok(())
    })
}

/// The size of a picture in pixels, upright. The places for width and height may each be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_size(
    image: *const moxin_image,
    width: *mut u32,
    height: *mut u32,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        // SAFETY: NULL or a handle of this library that was not freed.
        let image = unsafe { hold(image, "image")? };
        for (place, size) in [(width, image.0.width()), (height, image.0.height())] {
            if !place.is_null() {
                // SAFETY: not NULL, and the caller's place for a number.
                unsafe { place.write(size) };
            }
        }
        Ok(())
    })
}

/// Frees a picture. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_free(image: *mut moxin_image) {
    // SAFETY: NULL or a handle of this library, which the caller does not use again.
    unsafe { free(image, drop) };
}

/// # Safety
/// As for [`read_params`].
unsafe fn options(params: *const moxin_image_params) -> Result<DecodeOptions> {
    // SAFETY: as promised by the caller.
    let params = unsafe { read_params(params, "params")? };
    if params.reserved != 0 {
        return Err(Error::InvalidArgument(format!(
            "params.reserved is {}; 0 is expected",
            params.reserved
        )));
    }
    Ok(DecodeOptions {
        apply_orientation: params.ignore_orientation == 0,
        max_pixels: params.max_pixels,
    })
}

/// Bytes from the first pixel to the last.
fn pixel_bytes(width: u32, height: u32, stride: usize, pixel: usize) -> Result<usize> {
    let row = (width as usize)
        .checked_mul(pixel)
        .filter(|row| *row > 0 && height > 0 && *row <= stride);
    let len = row.and_then(|row| stride.checked_mul(height as usize - 1)?.checked_add(row));
    len.ok_or_else(|| {
        Error::InvalidArgument(format!(
            "{width} by {height} pixels of {pixel} bytes with a stride \
            of {stride} bytes are no picture"
        ))
    })
}
