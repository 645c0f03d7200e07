//! Decodes JPEG exactly as libjpeg-turbo does, which Pillow and most programs use, so that a
//! photograph has the features that the model was trained with.

use std::iter;

use image::{ColorType, ImageFormat, metadata::Orientation};
use libjpeg_turbo_rs::{Decoder, JpegError, JpegInfo, PixelFormat, probe};

use super::{
    DecodeOptions, Picture,
    bounds::{decoding_bytes, header_bytes},
    picture::{check_sides, turn},
};
use crate::{
    Error, Result,
    device::{require, room},
    panic::caught,
};

/// The maximum number of scans in a progressive file. Encoders make about ten; each is decoded over
/// the whole picture.
const MAX_SCANS: u32 = 100;

/// Decodes a file. `refuse` makes an error from a description.
pub(super) fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    refuse: &dyn Fn(String) -> Error,
) -> Result<Picture> {
    let undecodable = |what: String| refuse(format!("JPEG that cannot be decoded: {what}"));
    let file_bytes = header_bytes(ImageFormat::Jpeg, bytes.len() as u64);
    require(
        &format!("reading a JPEG of {} bytes", bytes.len()),
        file_bytes,
    )?;
    let info = contained(|| probe(bytes)).map_err(undecodable)?;
    check_kind(&info)
        .and_then(|()| check_inks(bytes, &info))
        .map_err(refuse)?;
    let (width, height) = (info.width as u32, info.height as u32);
    check_sides(width, height).map_err(refuse)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > options.max_pixels {
        return Err(refuse(format!(
            "{width} x {height} pixels; at most {} in all are allowed",
            options.max_pixels
        )));
    }
    if !is_complete(bytes) {
        return Err(refuse("JPEG that is truncated: its end is missing".into()));
    }
    let is_cmyk = info.components == 4;
    let color = if info.components == 1 {
        ColorType::L8
    } else {
        ColorType::Rgb8
    };
    let decoding = decoding_bytes(ImageFormat::Jpeg, width, height, color);
    let what = format!("decoding a JPEG of {width} x {height} pixels");
    // Decoded pixels are converted and then turned, each time into new memory.
    require(&what, decoding.saturating_add(file_bytes).max(pixels * 7))?;
    let size = info.width * info.height * if is_cmyk { 4 } else { 3 };
    let mut decoded = room(size, || what.clone())?;
    decoded.resize(size, 0);
    let read = || {
        let mut decoder = Decoder::new(bytes)?;
        decoder.set_output_format(if is_cmyk {
            PixelFormat::Cmyk
        } else {
            PixelFormat::Rgb
        });
        decoder.set_scan_limit(MAX_SCANS);
        decoder.decode_image_into(&mut decoded).map(drop)
    };
    contained(read).map_err(undecodable)?;
    if is_cmyk {
        cmyk_to_rgb(&mut decoded);
    }
    let orientation = info
        .exif_orientation
        .filter(|_| options.apply_orientation)
        .and_then(Orientation::from_exif);
    turn(
        decoded,
        [width, height],
        orientation.unwrap_or(Orientation::NoTransforms),
    )
}

/// Fails for kinds that Pillow does not read either, or reads differently.
fn check_kind(info: &JpegInfo) -> Result<(), String> {
    let kind = match info {
        JpegInfo { lossless: true, .. } => "lossless".into(),
        JpegInfo { precision, .. } if *precision != 8 => format!("{precision}-bit"),
        JpegInfo { components, .. } if ![1, 3, 4].contains(components) => {
            format!("of {components} components")
        }
        _ => return Ok(()),
    };
    Err(format!(
        "JPEG that is {kind}; 8 bits with 1, 3 or 4 components are supported"
    ))
}

/// Fails for inks of different sizes, which the decoder would misplace.
fn check_inks(bytes: &[u8], info: &JpegInfo) -> Result<(), String> {
    let samplings = sampling_factors(bytes).unwrap_or_default();
    if info.components == 4 && !samplings.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err("CMYK JPEG with subsampled inks; only full-size inks are supported".into());
    }
    Ok(())
}

/// Returns the sampling factors of each component, from the frame header
/// (<https://www.w3.org/Graphics/JPEG/itu-t81.pdf>, B.2.2).
fn sampling_factors(bytes: &[u8]) -> Option<Vec<u8>> {
    // Start of frame, except for the tables and the extension in this range.
    let is_frame = |marker| matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
    let (_, frame) = markers(bytes).find(|(marker, _)| is_frame(*marker))?;
    Some(
        frame
            .get(8..)?
            .chunks_exact(3)
            .map(|component| component[1])
            .collect(),
    )
}

/// Calls the decoder; a panic there means that the file is invalid.
fn contained<T>(
    call: impl FnOnce() -> std::result::Result<T, JpegError>,
) -> std::result::Result<T, String> {
    caught(call)?.map_err(|error| error.to_string())
}

/// Converts CMYK to RGB, in place. Files store it inverted, as Adobe's programs write it and Pillow
/// reads it; the rest is Pillow's `cmyk2rgb`.
fn cmyk_to_rgb(pixels: &mut Vec<u8>) {
    // Pillow's MULDIV255: a rounded product of fractions of 255.
    let product = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    for i in 0..pixels.len() / 4 {
        let [c, m, y, k] = [0, 1, 2, 3].map(|channel| pixels[4 * i + channel]);
        for (channel, ink) in [c, m, y].into_iter().enumerate() {
            pixels[3 * i + channel] = k - product(255 - ink, k);
        }
    }
    pixels.truncate(pixels.len() / 4 * 3);
}

/// Returns whether a JPEG reaches its end marker. Some decoders accept a truncated file and invent
/// the rest.
fn is_complete(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    markers(bytes).any(|(marker, _)| marker == END)
}

/// Returns the markers of a file, each with its segment, length included. The content of a segment
/// may look like anything (for example the end of a thumbnail) and is skipped.
fn markers(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    // Stuffed bytes, restarts and fill bytes: these may follow 0xff within the compressed data, and
    // have no length.
    let is_marker =
        |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0x01 | 0xd0..=0xd8 | 0xff);
    let mut rest = bytes;
    iter::from_fn(move || {
        let at = rest.windows(2).position(is_marker)?;
        let (marker, segment) = (rest[at + 1], &rest[at + 2..]);
        let length = segment
            .first_chunk()
            .map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
        rest = segment.get(length..).unwrap_or_default();
        Some((marker, segment.get(..length).unwrap_or(segment)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbnail_does_not_end_a_jpeg() {
        let thumbnail = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let scan = [
            0xff, 0xda, 0, 3, 1, 0x12, 0xff, 0x00, 0x34, 0xff, 0xd0, 0x56,
        ];
        let jpeg = [&[0xff, 0xd8], &thumbnail[..], &scan, &[0xff, 0xd9]].concat();
        assert!(is_complete(&jpeg));
        assert!(
            is_complete(&[&jpeg[..], &[0xff, 0xda, 0, 9]].concat()),
            "data after the end"
        );
        for length in 0..jpeg.len() {
            assert!(!is_complete(&jpeg[..length]), "cut to {length} bytes");
        }
    }
}
