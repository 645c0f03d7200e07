//! Pictures.

use std::ffi::{c_char, c_void};

use super::{
    MOXIN_STRLEN, Versioned, bytes, free, guard, init_params, into_c, moxin_error, moxin_status,
    out, read_params, retain, text,
};
use crate::{
    Error, Result,
    runtime::{Budget, DecodeOptions, Picture, PixelFormat},
};

/// A decoded picture.
pub struct moxin_image(pub(super) Picture);

/// The layout of pixels in memory: one of MOXIN_PIXEL_FORMAT_*.
pub type moxin_pixel_format = u32;
/// Three bytes: red, green, blue.
pub const MOXIN_PIXEL_FORMAT_RGB8: moxin_pixel_format = 0;
/// Four bytes: red, green, blue, alpha. Alpha is ignored, not composited.
pub const MOXIN_PIXEL_FORMAT_RGBA8: moxin_pixel_format = 1;
/// Four bytes: blue, green, red, alpha, the layout of Core Video. Alpha is ignored.
pub const MOXIN_PIXEL_FORMAT_BGRA8: moxin_pixel_format = 2;
/// One byte: gray.
pub const MOXIN_PIXEL_FORMAT_GRAY8: moxin_pixel_format = 3;

/// Options for decoding a picture.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_image_params {
    /// sizeof(moxin_image_params)
    pub struct_size: usize,
    /// The maximum number of pixels. A larger picture is refused after its header is read. Default:
    /// 100,000,000.
    pub max_pixels: u64,
    /// If not 0, the orientation in the picture's metadata is ignored. Default: 0, the picture is
    /// turned upright.
    pub ignore_orientation: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: repr(C), starts with its size, otherwise integers.
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

/// How large a picture may be when it reaches the encoder. Models whose pictures all have one size
/// ignore everything but max_tokens.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_pixel_budget {
    /// sizeof(moxin_pixel_budget)
    pub struct_size: usize,
    /// Smaller pictures are enlarged to at least this many pixels, by models that take any size. 0:
    /// the value from the model folder.
    pub min_pixels: u64,
    /// Larger pictures are reduced to at most this many pixels, in all their tiles together. 0: the
    /// value from the model folder.
    pub max_pixels: u64,
    /// The maximum number of positions that a picture takes. A larger picture is reduced, or cut
    /// into fewer tiles; a model that cannot do this refuses it. 0: no maximum.
    pub max_tokens: u64,
    /// If not 0, pictures are not cut into tiles by models that do this.
    pub no_tiles: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: repr(C), starts with its size, otherwise integers.
unsafe impl Versioned for moxin_pixel_budget {}

/// # Safety
/// As for [`read_params`].
pub(super) unsafe fn pixel_budget(
    budget: *const moxin_pixel_budget,
    name: &'static str,
) -> Result<Budget> {
    // SAFETY: the caller upholds this function's contract.
    let budget = unsafe { read_params(budget, name)? };
    check_reserved(budget.reserved, name)?;
    let count = |count: u64| (count > 0).then_some(usize::try_from(count).unwrap_or(usize::MAX));
    Ok(Budget {
        min_pixels: count(budget.min_pixels),
        max_pixels: count(budget.max_pixels),
        max_tokens: count(budget.max_tokens),
        tiles: budget.no_tiles == 0,
    })
}

/// Sets all parameters to their defaults. struct_size is sizeof(moxin_image_params); nothing beyond
/// it is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_params_init(
    params: *mut moxin_image_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Reads a picture from a file: PNG, JPEG, WebP, GIF (first frame), BMP or TIFF. The format is
/// detected from the content.
///
/// path is NUL-terminated UTF-8. params and error may be NULL. *out_image receives an image, which
/// the caller frees with moxin_image_free.
///
/// Errors: NOT_FOUND, IO, UNSUPPORTED_IMAGE; INVALID_ARGUMENT if the path is not UTF-8;
/// OUT_OF_MEMORY if reading or decoding needs more memory than is available or than
/// moxin_memory_set_limits allows. This is checked first, and the message has both figures.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_from_file(
    path: *const c_char,
    params: *const moxin_image_params,
    out_image: *mut *mut moxin_image,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_image, "out_image")?;
        // SAFETY: the caller's NUL-terminated text and struct; the output pointer was checked.
        unsafe {
            let path = text(path, MOXIN_STRLEN, "path")?;
            into_c(place, moxin_image(Picture::open(path, &options(params)?)?));
        }
        Ok(())
    })
}

/// Reads a picture from the bytes of a file, as moxin_image_from_file does. The bytes may be freed
/// when the call returns.
///
/// Errors: UNSUPPORTED_IMAGE; OUT_OF_MEMORY as for moxin_image_from_file.
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
        // SAFETY: the caller's bytes and struct; the output pointer was checked.
        unsafe {
            let data = bytes(data.cast(), len, "data")?;
            into_c(
                place,
                moxin_image(Picture::decode(data, &options(params)?)?),
            );
        }
        Ok(())
    })
}

/// Copies a picture from pixels in memory, with rows from top to bottom. stride is the number of
/// bytes from the start of a row to the start of the next. The last row may end with its last
/// pixel.
///
/// Errors: INVALID_ARGUMENT if the picture is empty, the format is unknown, or the stride is
/// shorter than a row; OUT_OF_MEMORY if there is no room for the copy.
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
                    "format is {other}; expected 0 to {MOXIN_PIXEL_FORMAT_GRAY8}"
                )));
            }
        };
        let len = pixel_bytes(width, height, stride, pixel)?;
        // SAFETY: the caller's pixels, as many as the sizes say; the output pointer was checked.
        unsafe {
            let pixels = bytes(pixels.cast(), len, "pixels")?;
            into_c(
                place,
                moxin_image(Picture::from_pixels(pixels, width, height, stride, format)?),
            );
        }
        Ok(())
    })
}

/// Gets the size of a picture in pixels, after it was turned upright. out_width and out_height may
/// each be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_size(
    image: *const moxin_image,
    width: *mut u32,
    height: *mut u32,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        // SAFETY: NULL, or a handle of this library that was not freed.
        let image = unsafe { retain(image, "image")? };
        for (place, size) in [(width, image.0.width()), (height, image.0.height())] {
            if !place.is_null() {
                // SAFETY: not NULL, and the caller's place for a number.
                unsafe { place.write(size) };
            }
        }
        Ok(())
    })
}

/// Frees a picture. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_image_free(image: *mut moxin_image) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(image, drop) };
}

fn check_reserved(reserved: u32, name: &str) -> Result<()> {
    match reserved {
        0 => Ok(()),
        _ => Err(Error::InvalidArgument(format!(
            "{name}.reserved is {reserved}; expected 0"
        ))),
    }
}

/// # Safety
/// As for [`read_params`].
unsafe fn options(params: *const moxin_image_params) -> Result<DecodeOptions> {
    // SAFETY: the caller upholds this function's contract.
    let params = unsafe { read_params(params, "params")? };
    check_reserved(params.reserved, "params")?;
    Ok(DecodeOptions {
        apply_orientation: params.ignore_orientation == 0,
        max_pixels: params.max_pixels,
    })
}

/// Returns the number of bytes from the first pixel to the last.
fn pixel_bytes(width: u32, height: u32, stride: usize, pixel: usize) -> Result<usize> {
    let row = (width as usize)
        .checked_mul(pixel)
        .filter(|row| *row > 0 && height > 0 && *row <= stride);
    let len = row.and_then(|row| stride.checked_mul(height as usize - 1)?.checked_add(row));
    len.ok_or_else(|| {
        Error::InvalidArgument(format!(
            "invalid picture: {width} by {height} pixels of {pixel} bytes with a stride of \
                {stride} bytes"
        ))
    })
}
