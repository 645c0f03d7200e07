//! Pictures: decoding of files, and pixels that a program already has.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{Error, Result, device::available_memory, file};

/// The formats that this library reads, for error messages.
const SUPPORTED: &str = "PNG, JPEG, GIF, WebP, BMP and TIFF are supported";

/// No side may be longer: JPEG's own limit. It bounds the work that a picture of one pixel's width can cause.
const MAX_SIDE: u32 = 65_535;

/// Bytes that the largest pixel of any format takes (four 32-bit numbers, in TIFF).
const MAX_PIXEL_BYTES: u64 = 16;

/// Memory that decoding a file may take, and its largest size, however few pixels are allowed: metadata and colour profiles need some.
const MIN_DECODE_BYTES: u64 = 64 << 20;

/// How to decode a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Turn and mirror the picture as its EXIF orientation says (default: true). The checkpoints' own scripts do not
    /// (though Pillow turns a TIFF unasked).
    pub apply_orientation: bool,
    /// Pictures of more pixels (width x height) are refused before any pixel is decoded (default: 100,000,000).
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { apply_orientation: true, max_pixels: 100_000_000 }
    }
}

/// How the pixels given to [`Picture::from_pixels`] lie in memory: one byte for each component, pixel after pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb8,
    /// Red, green, blue, alpha; alpha is dropped.
    Rgba8,
    /// Blue, green, red, alpha; alpha is dropped.
    Bgra8,
    /// Brightness.
    Gray8,
}

impl PixelFormat {
    fn bytes_per_pixel(self) -> usize {
        match self {
            PixelFormat::Rgb8 => 3,
            PixelFormat::Rgba8 | PixelFormat::Bgra8 => 4,
            PixelFormat::Gray8 => 1,
        }
    }

    /// Which bytes of a pixel are red, green and blue.
    fn rgb_offsets(self) -> [usize; 3] {
        match self {
            PixelFormat::Rgb8 | PixelFormat::Rgba8 => [0, 1, 2],
            PixelFormat::Bgra8 => [2, 1, 0],
            PixelFormat::Gray8 => [0, 0, 0],
        }
    }
}

/// A picture as the image processors take it: oriented, 8-bit RGB, at least one pixel.
///
/// Whatever a file holds becomes RGB as Pillow's `convert("RGB")` does it: alpha is dropped (the colour beneath it stays), gray is
/// repeated, palettes are looked up, CMYK becomes (255 - C)(255 - K) / 255; colour profiles are not applied. Of an animation the first
/// frame is taken. Where this differs from Pillow 12.0.0:
/// * 16-bit samples keep their upper 8 bits, in grayscale too, which Pillow clips at 255 (to almost all white);
/// * JPEG samples may differ by up to 2 of 255, as decoders do; by up to 4 where colour is stored at half the resolution, and more in
///   the last column and row of such a picture if its size is no multiple of 16 (the padding beyond is mixed into the colour there);
/// * what the first frame of a GIF leaves uncovered is black;
/// * TIFF with a palette, YCbCr samples, or alpha beside gray is refused.
///
/// Clones share the pixels.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    rgb: Arc<Vec<u8>>,
    width: u32,
    height: u32,
}

/// Tells pictures apart by their pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PictureHash([u8; 32]);

impl PictureHash {
    /// The first 64 bits, for a table or a log.
    pub fn short(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl Picture {
    /// Decodes a file. The format is that of its content, whatever its name.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Io`] for the file; [`Error::UnsupportedImage`] when it is no picture of a supported format,
    /// damaged, cut off or too large.
    pub fn open(path: impl AsRef<Path>, options: &DecodeOptions) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |what| Error::UnsupportedImage { path: Some(path.into()), what };
        let bytes = file::read(path, "the picture", decode_bytes(options)).map_err(|error| match error {
            Error::CorruptModel { what, .. } => refuse(what),
            other => other,
        })?;
        decode(&bytes, options).map_err(refuse)
    }

    /// Decodes the content of a file.
    ///
    /// # Errors
    /// [`Error::UnsupportedImage`], as [`Picture::open`].
    pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Self> {
        decode(bytes, options).map_err(|what| Error::UnsupportedImage { path: None, what })
    }

    /// Copies pixels that a program has in memory: `height` rows of `width` pixels, each row `stride` bytes after the last.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a side is 0 or longer than 65535, when a row does not fit in `stride`, or when `pixels` is too
    /// short; [`Error::OutOfMemory`] when there is no room for the copy.
    pub fn from_pixels(pixels: &[u8], width: u32, height: u32, stride: usize, format: PixelFormat) -> Result<Self> {
        check_sides(width, height).map_err(Error::InvalidArgument)?;
        // Neither side exceeds 65535, so that nothing overflows but the product with a stride.
        let row_bytes = width as usize * format.bytes_per_pixel();
        if stride < row_bytes {
            let what = format!("a stride of {stride} bytes for {width} pixels in {format:?}, which take {row_bytes}");
            return Err(Error::InvalidArgument(what));
        }
        let needed = stride.checked_mul(height as usize - 1).and_then(|rows| rows.checked_add(row_bytes));
        if needed.is_none_or(|needed| pixels.len() < needed) {
            let what = format!("{} bytes of pixels for {width} x {height} in {format:?} with a stride of {stride}", pixels.len());
            return Err(Error::InvalidArgument(what));
        }
        let offsets = format.rgb_offsets();
        let rows = pixels.chunks(stride).take(height as usize);
        let pixels = rows.flat_map(|row| row[..row_bytes].chunks_exact(format.bytes_per_pixel()));
        let mut rgb = Vec::new();
        rgb.try_reserve_exact(width as usize * height as usize * 3).map_err(|_| Error::OutOfMemory {
            what: format!("a picture of {width} x {height} pixels"),
            needed: u64::from(width) * u64::from(height) * 3,
            limit: available_memory().unwrap_or(0),
        })?;
        pixels.for_each(|pixel| rgb.extend(offsets.map(|offset| pixel[offset])));
        Ok(Self { rgb: Arc::new(rgb), width, height })
    }

    /// Columns.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Red, green and blue of each pixel, row by row from the top: width x height x 3 bytes.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// What no other picture has, whatever its size. Takes about a millisecond for each 3 MB of pixels.
    pub fn hash(&self) -> PictureHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.width.to_le_bytes()).update(&self.height.to_le_bytes()).update(&self.rgb);
        PictureHash(*hasher.finalize().as_bytes())
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// How many bytes decoding may take.
fn decode_bytes(options: &DecodeOptions) -> u64 {
    options.max_pixels.saturating_mul(MAX_PIXEL_BYTES).max(MIN_DECODE_BYTES)
}

/// [`Picture::decode`]; the error is what is wrong, for a person.
fn decode(bytes: &[u8], options: &DecodeOptions) -> std::result::Result<Picture, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    let Some(format) = reader.format().filter(ImageFormat::reading_enabled) else {
        return Err(format!("{}; {SUPPORTED}", describe(bytes)));
    };
    let name = format!("{format:?}").to_uppercase();
    let undecodable = |error| format!("{name} that cannot be decoded: {error}");
    let mut limits = Limits::default();
    limits.max_alloc = Some(decode_bytes(options));
    reader.limits(limits);

    let mut decoder = reader.into_decoder().map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    check_sides(width, height)?;
    if u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(format!("{width} x {height} pixels; at most {} in all are allowed", options.max_pixels));
    }
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err("JPEG that is cut off: its end is missing".into());
    }
    // A damaged orientation is no reason to refuse the picture.
    let orientation = match format {
        _ if !options.apply_orientation => None,
        // The decoder would ask for as much memory as the file says that its EXIF data takes, up to 4 GB.
        ImageFormat::WebP => webp_exif(bytes).and_then(Orientation::from_exif_chunk),
        _ => decoder.orientation().ok(),
    };
    let image = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
    let mut image = DynamicImage::ImageRgb8(to_rgb8(image));
    image.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    Ok(Picture { width: image.width(), height: image.height(), rgb: Arc::new(image.into_bytes()) })
}

fn check_sides(width: u32, height: u32) -> std::result::Result<(), String> {
    match (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) {
        true => Ok(()),
        false => Err(format!("{width} x {height} pixels; each side must be 1 to {MAX_SIDE}")),
    }
}

/// Drops alpha and repeats gray. 16-bit samples lose their lower half, as in Pillow; the image crate would round.
fn to_rgb8(image: DynamicImage) -> image::RgbImage {
    match image {
        DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            let deep = image.into_rgb16();
            image::RgbImage::from_fn(deep.width(), deep.height(), |x, y| {
                image::Rgb(deep.get_pixel(x, y).0.map(|sample| (sample >> 8) as u8))
            })
        }
        _ => image.into_rgb8(),
    }
}

/// Whether a JPEG reaches its end marker. The decoder takes one that is cut off for whole, and makes up the rest.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    // Stuffed bytes, restarts and fill bytes: what may follow 0xff within the compressed data, and has no length.
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0x01 | 0xd0..=0xd8 | 0xff);
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(is_marker) {
        if rest[at + 1] == END {
            return true;
        }
        // Over the segment that the marker opens: its content may look like anything (a thumbnail's end, for one).
        let segment = &rest[at + 2..];
        let [high, low, ..] = *segment else { return false };
        rest = segment.get(usize::from(u16::from_be_bytes([high, low]))..).unwrap_or_default();
    }
    false
}

/// The EXIF data of a WebP: a chunk of the file, after the one that says what is in it. A chunk is four letters, a size, and the content, to
/// an even length.
fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"RIFF")?.get(8..)?;
    loop {
        let (name, after) = rest.split_at_checked(4)?;
        let (size, after) = after.split_first_chunk()?;
        let size = u32::from_le_bytes(*size) as usize;
        if name == b"EXIF" {
            return after.get(..size);
        }
        rest = after.get(size.checked_next_multiple_of(2)?..)?;
    }
}

/// What bytes that are no supported picture seem to be.
fn describe(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(64)];
    let brand = start.get(4..12).unwrap_or_default();
    match start {
        [] => "an empty file".into(),
        _ if [&b"ftypheic"[..], b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"].contains(&brand) => "a HEIC picture".into(),
        _ if [&b"ftypavif"[..], b"ftypavis"].contains(&brand) => "an AVIF picture".into(),
        _ if start.starts_with(b"%PDF") => "a PDF document".into(),
        _ if start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace() || !byte.is_ascii()) => {
            "text, not a picture".into()
        }
        _ => format!("of an unknown format (it starts with {:02x?})", &start[..start.len().min(8)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_in_memory_become_rgb() {
        let rgb = |pixels: &[u8], stride, format| Picture::from_pixels(pixels, 2, 2, stride, format).unwrap().rgb().to_vec();
        let expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(rgb(&expected, 6, PixelFormat::Rgb8), expected);
        // Rows that are longer than their pixels; the last one need not be.
        assert_eq!(rgb(&[1, 2, 3, 4, 5, 6, 99, 7, 8, 9, 10, 11, 12], 7, PixelFormat::Rgb8), expected);
        assert_eq!(rgb(&[1, 2, 3, 0, 4, 5, 6, 128, 7, 8, 9, 255, 10, 11, 12, 0], 8, PixelFormat::Rgba8), expected);
        assert_eq!(rgb(&[3, 2, 1, 0, 6, 5, 4, 128, 9, 8, 7, 255, 12, 11, 10, 0], 8, PixelFormat::Bgra8), expected);
        assert_eq!(rgb(&[1, 2, 3, 4], 2, PixelFormat::Gray8), [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
    }

    #[test]
    fn pixels_that_do_not_fit_are_refused() {
        for (width, height, stride) in [
            (0, 1, 3),
            (1, 0, 3),
            (2, 2, 5),
            (2, 2, 7),
            (3, 2, 9),
            (1, 3, usize::MAX),
            (1, 2, usize::MAX - 2),
            (u32::MAX, u32::MAX, usize::MAX),
            (65_536, 1, usize::MAX),
            (65_535, 65_535, 65_535 * 3),
        ] {
            let result = Picture::from_pixels(&[0; 12], width, height, stride, PixelFormat::Rgb8);
            assert!(matches!(result, Err(Error::InvalidArgument(_))), "{width} x {height}, stride {stride}: {result:?}");
        }
    }

    #[test]
    fn a_thumbnail_does_not_end_a_jpeg() {
        let thumbnail = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 3, 1, 0x12, 0xff, 0x00, 0x34, 0xff, 0xd0, 0x56];
        let jpeg = [&[0xff, 0xd8], &thumbnail[..], &scan, &[0xff, 0xd9]].concat();
        assert!(jpeg_is_complete(&jpeg));
        assert!(jpeg_is_complete(&[&jpeg[..], &[0xff, 0xda, 0, 9]].concat()), "data after the end");
        for length in 0..jpeg.len() {
            assert!(!jpeg_is_complete(&jpeg[..length]), "cut to {length} bytes");
        }
    }

    #[test]
    fn says_what_was_found() {
        for (bytes, expected) in [
            (&b""[..], "an empty file"),
            (b"A note, caf\xc3\xa9.\n", "text"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
            (b"%PDF-1.7\n", "PDF"),
            (b"\0\x01\x02\x03", "unknown format (it starts with [00, 01, 02, 03])"),
        ] {
            let error = Picture::decode(bytes, &DecodeOptions::default()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("PNG, JPEG"), "{error}");
        }
    }
}
