//! Pictures: decoding of files, and pixels from the program's memory.

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{bounds, jpeg};
use crate::{
    Error, Result,
    device::{require, room},
    file,
};

/// The supported formats, for error messages.
const SUPPORTED: &str = "PNG, JPEG, GIF, WebP, BMP and TIFF are supported";

/// The maximum side: JPEG's own limit. It bounds the work for a very long picture.
pub(super) const MAX_SIDE: u32 = 65_535;

/// The bytes of the largest pixel in any format (four 32-bit numbers, in TIFF).
const MAX_PIXEL_BYTES: u64 = 16;

/// A file up to this size is read however few pixels are allowed: it may be an animation, or
/// contain other data.
const MIN_FILE_BYTES: u64 = 64 << 20;

/// Options for decoding a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Whether the picture is rotated and mirrored according to its EXIF orientation (default:
    /// true). The checkpoints' own scripts do not do this (but Pillow rotates a TIFF by itself).
    pub apply_orientation: bool,
    /// The maximum number of pixels (width x height); a larger picture is refused before any pixel
    /// is decoded (default: 100,000,000).
    pub max_pixels: u64,
}

impl DecodeOptions {
    /// Returns the maximum size of a file.
    fn file_bytes(&self) -> u64 {
        self.max_pixels
            .saturating_mul(MAX_PIXEL_BYTES)
            .max(MIN_FILE_BYTES)
    }
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            apply_orientation: true,
            max_pixels: 100_000_000,
        }
    }
}

/// The layout of the pixels for [`Picture::from_pixels`]: one byte per component, one pixel after
/// the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb8,
    /// Red, green, blue, alpha; alpha is ignored.
    Rgba8,
    /// Blue, green, red, alpha; alpha is ignored.
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

    /// Returns the offsets of red, green and blue in a pixel.
    fn rgb_offsets(self) -> [usize; 3] {
        match self {
            PixelFormat::Rgb8 | PixelFormat::Rgba8 => [0, 1, 2],
            PixelFormat::Bgra8 => [2, 1, 0],
            PixelFormat::Gray8 => [0, 0, 0],
        }
    }
}

/// A decoded picture: upright, 8-bit RGB, at least one pixel.
///
/// The content of any file is converted to RGB like Pillow's `convert("RGB")`: alpha is ignored
/// (the color beneath it stays), gray is repeated, palettes are looked up, CMYK becomes (255 -
/// C)(255 - K) / 255; color profiles are not applied. The first frame of an animation is used.
/// Differences from Pillow 12.0.0:
/// * 16-bit samples keep their upper 8 bits, in grayscale too, which Pillow clips at 255 (to almost
///   all white);
/// * JPEG with damaged data is refused, where Pillow invents what is missing; so are 12-bit and
///   lossless JPEG;
/// * the part of a GIF that its first frame does not cover is black;
/// * TIFF with a palette, YCbCr samples, gray with alpha, or embedded JPEG is refused.
///
/// Clones share the pixels.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    rgb: Arc<Vec<u8>>,
    width: u32,
    height: u32,
}

/// Identifies a picture by its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PictureHash([u8; 32]);

impl PictureHash {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 64 bits, for tables and logs.
    pub fn short(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl From<blake3::Hasher> for PictureHash {
    fn from(hasher: blake3::Hasher) -> PictureHash {
        PictureHash(*hasher.finalize().as_bytes())
    }
}

impl Picture {
    /// Creates a picture from RGB8 pixels, row by row.
    pub(super) fn from_rgb(rgb: Vec<u8>, width: usize, height: usize) -> Picture {
        debug_assert_eq!(rgb.len(), 3 * width * height);
        Picture {
            rgb: Arc::new(rgb),
            width: width as u32,
            height: height as u32,
        }
    }

    /// Decodes a file. The format is detected from the content, not from the name.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Io`] for the file; [`Error::UnsupportedImage`] if it is not
    /// a picture in a supported format, or is damaged, truncated or too large;
    /// [`Error::OutOfMemory`] if decoding it needs more memory than is available, before it starts.
    pub fn open(path: impl AsRef<Path>, options: &DecodeOptions) -> Result<Self> {
        let path = path.as_ref();
        decode(&read(path, "the picture", options)?, Some(path), options)
    }

    /// Decodes the content of a file.
    ///
    /// # Errors
    /// [`Error::UnsupportedImage`] and [`Error::OutOfMemory`], as for [`Picture::open`].
    pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Self> {
        decode(bytes, None, options)
    }

    /// Copies pixels from the program's memory: `height` rows of `width` pixels, each row `stride`
    /// bytes after the previous one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is 0 or longer than 65535, a row does not fit into
    /// `stride`, or `pixels` is too short; [`Error::OutOfMemory`] if there is no room for the copy.
    pub fn from_pixels(
        pixels: &[u8],
        width: u32,
        height: u32,
        stride: usize,
        format: PixelFormat,
    ) -> Result<Self> {
        check_sides(width, height).map_err(Error::InvalidArgument)?;
        // Neither side exceeds 65535, so only the product with a stride can overflow.
        let row_bytes = width as usize * format.bytes_per_pixel();
        if stride < row_bytes {
            let what = format!(
                "a stride of {stride} bytes for {width} pixels in {format:?}, which take \
                 {row_bytes}"
            );
            return Err(Error::InvalidArgument(what));
        }
        let needed = stride
            .checked_mul(height as usize - 1)
            .and_then(|rows| rows.checked_add(row_bytes));
        if needed.is_none_or(|needed| pixels.len() < needed) {
            let what = format!(
                "{} bytes of pixels for {width} x {height} in {format:?} with a stride of {stride}",
                pixels.len()
            );
            return Err(Error::InvalidArgument(what));
        }
        let size = u64::from(width) * u64::from(height) * 3;
        require(&format!("a picture of {width} x {height} pixels"), size)?;
        let rows = pixels
            .chunks(stride)
            .take(height as usize)
            .map(|row| &row[..row_bytes]);
        let offsets = format.rgb_offsets();
        let rgb = gather(rows, format.bytes_per_pixel(), size as usize, |pixel| {
            offsets.map(|offset| pixel[offset])
        })?;
        Ok(Self {
            rgb: Arc::new(rgb),
            width,
            height,
        })
    }

    /// Returns the number of columns.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the number of rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns red, green and blue of each pixel, row by row from the top: width x height x 3
    /// bytes.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Returns a hash that no other picture has, whatever its size. Takes about a millisecond per 3
    /// MB of pixels.
    pub fn hash(&self) -> PictureHash {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&self.width.to_le_bytes())
            .update(&self.height.to_le_bytes())
            .update(&self.rgb);
        hasher.into()
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// Returns the content of a file that is called `what` in error messages.
pub(super) fn read(path: &Path, what: &str, options: &DecodeOptions) -> Result<Vec<u8>> {
    let refuse = refusal(Some(path));
    let (file, size) = file::open(path, what).map_err(|error| match error {
        Error::CorruptModel { what, .. } => refuse(what),
        other => other,
    })?;
    let most = options.file_bytes();
    if size > most {
        return Err(refuse(format!(
            "{size} bytes; at most {most} are supported"
        )));
    }
    require(&format!("reading {}", path.display()), size)?;
    let mut bytes = room(size as usize, || {
        format!("the content of {}", path.display())
    })?;
    file.take(size)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::io(path, what, source))?;
    Ok(bytes)
}

/// Returns what makes an error about the file at `path`, if there is one, from a description.
pub(super) fn refusal(path: Option<&Path>) -> impl Fn(String) -> Error {
    move |what| Error::UnsupportedImage {
        path: path.map(Into::into),
        what,
    }
}

/// Returns the format of a file, if it is supported. `supported` is what its error says of those
/// that are.
pub(super) fn format_of(
    bytes: &[u8],
    is_supported: impl Fn(&ImageFormat) -> bool,
    supported: &str,
    refuse: impl Fn(String) -> Error,
) -> Result<ImageFormat> {
    let guessed = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| refuse(error.to_string()))?;
    guessed
        .format()
        .filter(is_supported)
        .ok_or_else(|| refuse(format!("{}; {supported}", describe(bytes))))
}

/// Does the same as [`Picture::decode`], for a file at `path` if there is one.
fn decode(bytes: &[u8], path: Option<&Path>, options: &DecodeOptions) -> Result<Picture> {
    let refuse = &refusal(path);
    let is_supported =
        |format: &ImageFormat| *format == ImageFormat::Jpeg || format.reading_enabled();
    let format = format_of(bytes, is_supported, SUPPORTED, refuse)?;
    if format == ImageFormat::Jpeg {
        return jpeg::decode(bytes, options, refuse);
    }
    let name = format!("{format:?}").to_uppercase();
    let undecodable = |error| refuse(format!("{name} that cannot be decoded: {error}"));
    let header_bytes = bounds::header_bytes(format, bytes.len() as u64);
    require(
        &format!("reading a {name} of {} bytes", bytes.len()),
        header_bytes,
    )?;
    let checked = bounds::check(format, bytes, false, refuse)?;
    let mut reader = ImageReader::with_format(Cursor::new(&*checked), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(bounds::TABLES);
    reader.no_limits();
    let mut decoder = match format {
        // The only decoder that respects its limits from the first byte.
        ImageFormat::Png => {
            reader.limits(limits.clone());
            reader.into_decoder()
        }
        _ => reader.into_decoder(),
    }
    .map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    check_sides(width, height).map_err(refuse)?;
    if u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(refuse(format!(
            "{width} x {height} pixels; at most {} are allowed",
            options.max_pixels
        )));
    }
    // A damaged orientation is no reason to refuse the picture.
    let orientation = match format {
        _ if !options.apply_orientation => None,
        ImageFormat::Png => bounds::png_exif(bytes).and_then(Orientation::from_exif_chunk),
        // The decoder would allocate as much memory as the file claims for its EXIF data, up to 4
        // GB.
        ImageFormat::WebP => bounds::webp_exif(bytes).and_then(Orientation::from_exif_chunk),
        _ => decoder.orientation().ok(),
    };
    let what = format!("decoding a {name} of {width} x {height} pixels");
    let color = decoder.color_type();
    let tables = match format {
        ImageFormat::WebP => bounds::webp_tables(bytes, width, height).map_err(refuse)?,
        _ => 0,
    };
    let decoding = bounds::decoding_bytes(format, width, height, color).saturating_add(tables);
    let pixels = u64::from(width) * u64::from(height);
    // Decoded pixels are converted and then turned, each time into new memory.
    require(
        &what,
        decoding
            .saturating_add(header_bytes)
            .max(pixels * (u64::from(color.bytes_per_pixel()).max(3) + 3)),
    )?;
    limits.max_alloc = Some(decoding);
    decoder.set_limits(limits).map_err(undecodable)?;
    let size = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    let mut decoded = room(size, || what.clone())?;
    decoded.resize(size, 0);
    decoder.read_image(&mut decoded).map_err(undecodable)?;
    drop(checked);
    let rgb = to_rgb8(decoded, color)?;
    turn(
        rgb,
        [width, height],
        orientation.unwrap_or(Orientation::NoTransforms),
    )
}

pub(super) fn check_sides(width: u32, height: u32) -> std::result::Result<(), String> {
    match (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) {
        true => Ok(()),
        false => Err(format!(
            "{width} x {height} pixels; each side must be 1 to {MAX_SIDE}"
        )),
    }
}

/// Removes alpha and repeats gray. 16-bit samples lose their lower half, as in Pillow; the image
/// crate would round.
pub(super) fn to_rgb8(decoded: Vec<u8>, color: ColorType) -> Result<Vec<u8>> {
    let (pixel, sample) = (
        usize::from(color.bytes_per_pixel()),
        usize::from(color.bytes_per_pixel() / color.channel_count()),
    );
    let offsets = if color.has_color() {
        [0, sample, 2 * sample]
    } else {
        [0; 3]
    };
    let upper = if cfg!(target_endian = "little") {
        sample - 1
    } else {
        0
    };
    let float = |bytes: &[u8]| match bytes.first_chunk().map(|bytes| f32::from_ne_bytes(*bytes)) {
        Some(number) if number < 1.0 => (number.max(0.0) * 255.0).round() as u8,
        _ => u8::MAX,
    };
    let size = decoded.len() / pixel * 3;
    match sample {
        1 if color == ColorType::Rgb8 => Ok(decoded),
        4 => gather([&*decoded], pixel, size, |pixel| {
            offsets.map(|offset| float(&pixel[offset..]))
        }),
        _ => gather([&*decoded], pixel, size, |pixel| {
            offsets.map(|offset| pixel[offset + upper])
        }),
    }
}

/// Converts pixels of so many bytes each to RGB.
fn gather<'a>(
    rows: impl IntoIterator<Item = &'a [u8]>,
    pixel_bytes: usize,
    size: usize,
    rgb_of: impl Fn(&[u8]) -> [u8; 3],
) -> Result<Vec<u8>> {
    let mut rgb = room(size, || format!("a picture of {size} bytes"))?;
    rows.into_iter().for_each(|row| {
        row.chunks_exact(pixel_bytes)
            .for_each(|pixel| rgb.extend(rgb_of(pixel)))
    });
    Ok(rgb)
}

/// Rotates and mirrors a picture.
pub(super) fn turn(
    rgb: Vec<u8>,
    [width, height]: [u32; 2],
    orientation: Orientation,
) -> Result<Picture> {
    // Whether columns and rows are exchanged; then, whether they run backwards in the given
    // picture.
    let (swap, from_right, from_below) = match orientation {
        Orientation::NoTransforms => {
            return Ok(Picture {
                rgb: Arc::new(rgb),
                width,
                height,
            });
        }
        Orientation::FlipHorizontal => (false, true, false),
        Orientation::Rotate180 => (false, true, true),
        Orientation::FlipVertical => (false, false, true),
        Orientation::Rotate90FlipH => (true, false, false),
        Orientation::Rotate90 => (true, false, true),
        Orientation::Rotate270FlipH => (true, true, true),
        Orientation::Rotate270 => (true, true, false),
    };
    let mut turned = room(rgb.len(), || {
        format!("a picture of {width} x {height} pixels, turned")
    })?;
    let [new_width, new_height] = if swap {
        [height, width]
    } else {
        [width, height]
    };
    for (x, y) in (0..new_height).flat_map(|y| (0..new_width).map(move |x| (x, y))) {
        let (x, y) = if swap { (y, x) } else { (x, y) };
        let x = if from_right { width - 1 - x } else { x } as usize;
        let y = if from_below { height - 1 - y } else { y } as usize;
        let at = (y * width as usize + x) * 3;
        turned.extend(&rgb[at..at + 3]);
    }
    Ok(Picture {
        rgb: Arc::new(turned),
        width: new_width,
        height: new_height,
    })
}

/// Describes bytes that are not a supported picture.
fn describe(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(64)];
    let brand = start.get(4..12).unwrap_or_default();
    match start {
        [] => "an empty file".into(),
        _ if [
            &b"ftypheic"[..],
            b"ftypheix",
            b"ftypmif1",
            b"ftypmsf1",
            b"ftyphevc",
        ]
        .contains(&brand) =>
        {
            "a HEIC picture".into()
        }
        _ if [&b"ftypavif"[..], b"ftypavis"].contains(&brand) => "an AVIF picture".into(),
        _ if start.starts_with(b"%PDF") => "a PDF document".into(),
        _ if start.iter().all(|byte| {
            byte.is_ascii_graphic() || byte.is_ascii_whitespace() || !byte.is_ascii()
        }) =>
        {
            "text, not a picture".into()
        }
        _ => format!(
            "of an unknown format (it starts with {:02x?})",
            &start[..start.len().min(8)]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_in_memory_become_rgb() {
        let rgb = |pixels: &[u8], stride, format| {
            Picture::from_pixels(pixels, 2, 2, stride, format)
                .unwrap()
                .rgb()
                .to_vec()
        };
        let expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(rgb(&expected, 6, PixelFormat::Rgb8), expected);
        // The rows are longer than their pixels; the last one need not be.
        assert_eq!(
            rgb(
                &[1, 2, 3, 4, 5, 6, 99, 7, 8, 9, 10, 11, 12],
                7,
                PixelFormat::Rgb8
            ),
            expected
        );
        assert_eq!(
            rgb(
                &[1, 2, 3, 0, 4, 5, 6, 128, 7, 8, 9, 255, 10, 11, 12, 0],
                8,
                PixelFormat::Rgba8
            ),
            expected
        );
        assert_eq!(
            rgb(
                &[3, 2, 1, 0, 6, 5, 4, 128, 9, 8, 7, 255, 12, 11, 10, 0],
                8,
                PixelFormat::Bgra8
            ),
            expected
        );
        assert_eq!(
            rgb(&[1, 2, 3, 4], 2, PixelFormat::Gray8),
            [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
        );
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
            assert!(
                matches!(result, Err(Error::InvalidArgument(_))),
                "{width} x {height}, stride {stride}: {result:?}"
            );
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
            (
                b"\0\x01\x02\x03",
                "unknown format (it starts with [00, 01, 02, 03])",
            ),
        ] {
            let error = Picture::decode(bytes, &DecodeOptions::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(expected) && error.contains("PNG, JPEG"),
                "{error}"
            );
        }
    }
}
