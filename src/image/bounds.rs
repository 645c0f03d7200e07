//! Limits the memory that a file can make its decoder use. Decoders trust some numbers in a file
//! before they look at others, and read metadata that nobody needs. This is removed or checked
//! here, so that the memory for decoding follows from the picture's pixels and the file's length.

use std::borrow::Cow;

use image::{ColorType, ImageFormat};

use super::{picture::MAX_SIDE, vp8l};
use crate::{Error, Result, device::room};

/// The bytes that any decoder may use beyond what follows from pixels and file: tables, and buffers
/// of a few rows.
pub(super) const TABLES: u64 = 4 << 20;

/// Returns a file without the parts that its decoder does not need: for a picture, or for an
/// animation.
///
/// # Errors
/// The error that `refuse` makes from a description, if the decoder would use more memory than the
/// picture justifies.
pub(super) fn check(
    format: ImageFormat,
    bytes: &[u8],
    is_animation: bool,
    refuse: impl Fn(String) -> Error,
) -> Result<Cow<'_, [u8]>> {
    match format {
        ImageFormat::Png => return png_pixels(bytes, is_animation).map(Cow::Owned),
        ImageFormat::Tiff => check_tiff(bytes).map_err(refuse)?,
        ImageFormat::WebP => check_webp(bytes).map_err(refuse)?,
        _ => {}
    }
    Ok(Cow::Borrowed(bytes))
}

/// Returns the bytes that reading the headers of a file needs in addition to the file, including
/// all metadata.
pub(super) fn header_bytes(format: ImageFormat, file: u64) -> u64 {
    match format {
        // A copy of the file, and of the content of its segments.
        ImageFormat::Jpeg => file.saturating_mul(2),
        ImageFormat::Bmp | ImageFormat::Tiff => 0,
        _ => file,
    }
}

/// Returns the bytes that decoding needs in addition to the file and [`header_bytes`]: the
/// decoder's own, and its output.
pub(super) fn decoding_bytes(
    format: ImageFormat,
    width: u32,
    height: u32,
    color: ColorType,
) -> u64 {
    let pixels = u64::from(width) * u64::from(height);
    let output = u64::from(color.bytes_per_pixel());
    let inner = match format {
        // Coefficients of two bytes, in blocks that come in squares of up to 32 pixels.
        ImageFormat::Jpeg => {
            let padded =
                u64::from(width).next_multiple_of(32) * u64::from(height).next_multiple_of(32);
            return padded * 2 * if color == ColorType::L8 { 1 } else { 4 }
                + pixels * output
                + TABLES;
        }
        // A frame that does not cover the picture, and its indices before they are looked up.
        ImageFormat::Gif => 4 + 1,
        // A canvas, a frame, its planes, and those of its alpha.
        ImageFormat::WebP => 4 + 4 + 2 + 5,
        // The pixels as stored, with a fourth channel in CMYK, and a strip of them.
        ImageFormat::Tiff => 2 * (output + output / 3 + 1),
        _ => 0,
    };
    pixels * (output + inner) + TABLES
}

/// Returns the chunks of a PNG that its pixels need, with those of an animation if asked for. Profiles and texts are compressed, so that a
/// megabyte can contain a gigabyte; the rest is not needed either.
fn png_pixels(bytes: &[u8], is_animation: bool) -> Result<Vec<u8>> {
    const ANIMATION: [&[u8]; 3] = [b"acTL", b"fcTL", b"fdAT"];
    const SIGNATURE: usize = 8;
    let (signature, mut rest) = bytes.split_at(SIGNATURE.min(bytes.len()));
    let mut kept = room(bytes.len(), || "a copy of a PNG".into())?;
    kept.extend(signature);
    while let Some((length, name)) = rest.first_chunk().zip(rest.get(4..8)) {
        // Length, name, content and checksum. Truncated chunks are left to the decoder.
        let whole = (u32::from_be_bytes(*length) as usize)
            .saturating_add(12)
            .min(rest.len());
        let (chunk, after) = rest.split_at(whole);
        let is_needed = name.first().is_some_and(u8::is_ascii_uppercase) || name == b"tRNS";
        if is_needed || is_animation && ANIMATION.contains(&name) {
            kept.extend(chunk);
        }
        rest = after;
    }
    Ok(kept)
}

/// Returns the EXIF data of a PNG.
pub(super) fn png_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) as usize;
        let (name, after) = after.split_at_checked(4)?;
        if name == b"eXIf" {
            return after.get(..length);
        }
        rest = after.get(length.checked_add(4)?..)?;
    }
}

/// Returns the EXIF data of a WebP.
pub(super) fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    webp_chunks(bytes.get(12..)?).find_map(|(name, content)| (name == b"EXIF").then_some(content))
}

/// Returns the chunks of a WebP, up to a truncated one: four letters, a size, and the content,
/// padded to an even length.
fn webp_chunks(mut rest: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (name, after) = rest.split_first_chunk::<4>()?;
        let (size, after) = after.split_first_chunk()?;
        let size = u32::from_le_bytes(*size) as usize;
        let content = after.get(..size)?;
        rest = after
            .get(size.checked_next_multiple_of(2)?..)
            .unwrap_or_default();
        Some((name, content))
    })
}

/// Checks that a WebP has as many pixels as its header says, because the decoder allocates memory
/// for the number in the compressed data.
fn check_webp(bytes: &[u8]) -> Result<(), String> {
    let number = |content: &[u8], at: usize, len: usize| {
        let bytes = content.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u32::from(*byte)),
        )
    };
    let check = |stated: Option<(u32, u32)>, chunks: &[u8]| {
        let compressed = webp_chunks(chunks)
            .find(|(name, _)| *name == b"VP8 ")
            .map(|(_, content)| content);
        let sizes = compressed.and_then(|content| {
            Some((
                number(content, 6, 2)? & 0x3fff,
                number(content, 8, 2)? & 0x3fff,
            ))
        });
        match (stated, sizes) {
            (Some(stated), Some(found)) if stated != found => Err(format!(
                "WebP that is damaged: its header says {stated:?} pixels, its compressed data \
                    {found:?}"
            )),
            _ => Ok(()),
        }
    };
    let chunks = bytes.get(12..).unwrap_or_default();
    let side = |content: &[u8], at: usize| Some(number(content, at, 3)? + 1);
    let header = webp_chunks(chunks)
        .next()
        .filter(|(name, _)| *name == b"VP8X");
    check(
        header.and_then(|(_, content)| Some((side(content, 4)?, side(content, 7)?))),
        chunks,
    )?;
    webp_chunks(chunks)
        .filter(|(name, _)| *name == b"ANMF")
        .try_for_each(|(_, frame)| {
            check(
                side(frame, 6).zip(side(frame, 9)),
                frame.get(16..).unwrap_or_default(),
            )
        })
}

/// Returns the size in bytes of the code tables of a lossless WebP, or of a WebP's alpha plane; of
/// an animation, the largest.
///
/// # Errors
/// A description, if they are larger than a picture of this size justifies.
pub(super) fn webp_tables(bytes: &[u8], width: u32, height: u32) -> Result<u64, String> {
    let most = TABLES + 64 * u64::from(width) * u64::from(height);
    let chunks = bytes.get(12..).unwrap_or_default();
    let side = |frame: &[u8], at: usize, whole: u32| match frame.get(at..at + 3) {
        Some(&[a, b, c]) => u32::from_le_bytes([a, b, c, 0]) + 1,
        _ => whole,
    };
    let tables = |content: &[u8], size: (u32, u32)| {
        let largest = webp_chunks(content).filter_map(|(name, content)| match name {
            b"VP8L" => vp8l::table_bytes(content, None, most),
            // The first byte says how the alpha plane is compressed.
            b"ALPH" if content.first()? & 3 == 1 => {
                vp8l::table_bytes(&content[1..], Some(size), most)
            }
            _ => None,
        });
        largest.max().unwrap_or(0)
    };
    let frames = webp_chunks(chunks).filter(|(name, _)| *name == b"ANMF");
    let of_frames = frames.map(|(_, frame)| {
        let size = (side(frame, 6, width), side(frame, 9, height));
        tables(frame.get(16..).unwrap_or_default(), size)
    });
    match of_frames
        .max()
        .unwrap_or(0)
        .max(tables(chunks, (width, height)))
    {
        bytes if bytes > most => Err(format!(
            "WebP with code tables of more than {most} bytes, which {width} x {height} pixels do \
             not need"
        )),
        bytes => Ok(bytes),
    }
}

/// The maximum number of values in a TIFF tag for a picture of any size: the decoder uses up to 40
/// bytes for each.
const TAG_VALUES: u64 = 1 << 16;

/// The maximum number of samples per TIFF pixel: the decoder allocates a row of all of them.
const SAMPLES: u64 = 16;

/// Checks the tags of a TIFF's first picture that the decoder reads. Tiles may be larger than the
/// picture, and tags may have any number of values.
fn check_tiff(bytes: &[u8]) -> Result<(), String> {
    let little = bytes.starts_with(b"II");
    let number = |at: u64, len: u64| {
        let bytes =
            bytes.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(len)?).ok()?)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if little {
            bytes.iter().rev().fold(0, add)
        } else {
            bytes.iter().fold(0, add)
        })
    };
    // Truncated data is left to the decoder.
    let Some(big) = number(2, 2).map(|magic| magic == 43) else {
        return Ok(());
    };
    let (pointer, counter, entry, word) = if big { (8, 8, 20, 8) } else { (4, 2, 12, 4) };
    let Some((first, entries)) =
        number(pointer, word).and_then(|at| Some((at.checked_add(counter)?, number(at, counter)?)))
    else {
        return Ok(());
    };
    let tags = || {
        (0..entries)
            .map_while(|i| first.checked_add(i.checked_mul(entry)?))
            .map_while(|at| Some((number(at, 2)?, at)))
    };
    // The first value, if the values are in the entry itself.
    let value = |at: u64| match number(at + 2, 2)? {
        1 => number(at + 4 + word, 1),
        3 => number(at + 4 + word, 2),
        4 | 13 => number(at + 4 + word, 4),
        _ => number(at + 4 + word, word),
    };
    let largest = |tag: u64| {
        tags()
            .filter(|(other, _)| *other == tag)
            .filter_map(|(_, at)| value(at))
            .max()
            .unwrap_or(0)
    };
    let side = |tag| largest(tag).min(u64::from(MAX_SIDE));
    let (width, height) = (side(256), side(257));
    let values = TAG_VALUES + SAMPLES * (height + width * height / 256);
    for (tag, at) in tags() {
        let (count, value) = (number(at + 4, word).unwrap_or(0), value(at).unwrap_or(0));
        match tag {
            259 if value == 7 => {
                return Err(
                    "TIFF whose pixels are compressed as JPEG, which is not supported".into(),
                );
            }
            277 if value > SAMPLES => {
                return Err(format!(
                    "TIFF with {value} samples per pixel; at most {SAMPLES} are supported"
                ));
            }
            322 | 323 if value > u64::from(MAX_SIDE) => {
                return Err(format!(
                    "TIFF with tiles of {value} pixels; at most {MAX_SIDE} are supported"
                ));
            }
            254..=532 if count > values => {
                return Err(format!(
                    "TIFF with {count} values in tag {tag}; at most {values} are supported for \
                        {width} x {height} pixels"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}
