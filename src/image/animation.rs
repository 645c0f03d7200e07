//! Videos in files: animated GIF, WebP and PNG.

use std::{io::Cursor, path::Path};

use image::{
    AnimationDecoder, ColorType, Frames, ImageDecoder, ImageError, ImageFormat, Limits,
    codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder},
    metadata::Orientation,
};

use super::{
    DecodeOptions, MAX_FRAMES, Picture, Video, bounds,
    picture::{check_sides, format_of, read, refusal, to_rgb8, turn},
};
use crate::{Error, Result, device::require};

/// The supported formats, for error messages.
const SUPPORTED: &str = "animated GIF, WebP and PNG are supported; give the frames of other videos";

/// The maximum number of frames in a file. All are decoded, few are kept.
const MAX_FILE_FRAMES: usize = 20_000;

/// The maximum number of pixels in all frames of a file, which bounds the time: about a thousand
/// frames of 1920 x 1080.
const MAX_FILE_PIXELS: u64 = 2_000_000_000;

/// The time in seconds of a frame whose duration is 0, as browsers choose it
/// (<https://bugzilla.mozilla.org/show_bug.cgi?id=232822>).
const NO_DURATION: f64 = 0.1;

/// The bytes per pixel of a decoder: canvases and frames, with and without alpha.
const DECODER_BYTES: u64 = 24;

/// Options for reading a video from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoOptions {
    /// The number of frames to read per second; `None`: all frames of the file (default: 2, as the
    /// models were trained).
    pub fps: Option<f64>,
    /// The maximum number of frames; a longer video is read with fewer per second (default: 768).
    pub max_frames: usize,
    /// How each frame is decoded.
    pub frame: DecodeOptions,
}

impl Default for VideoOptions {
    fn default() -> VideoOptions {
        VideoOptions {
            fps: Some(2.0),
            max_frames: 768,
            frame: DecodeOptions::default(),
        }
    }
}

impl VideoOptions {
    fn check(&self) -> Result<()> {
        if let Some(fps) = self.fps.filter(|fps| !fps.is_finite() || *fps <= 0.0) {
            return Err(Error::InvalidArgument(format!(
                "{fps} frames per second; expected a positive number"
            )));
        }
        match (1..=MAX_FRAMES).contains(&self.max_frames) {
            true => Ok(()),
            false => Err(Error::InvalidArgument(format!(
                "max_frames is {}; expected 1 to {MAX_FRAMES}",
                self.max_frames
            ))),
        }
    }
}

impl Video {
    /// Reads a video from a file: an animated GIF, WebP or PNG. The format is detected from the
    /// content. Frames are taken at equal times: each is the one that is shown then. They are those
    /// of Pillow 12.0.0, but for frames of a WebP that are partly transparent, where samples may
    /// differ by 1.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Io`] for the file; [`Error::UnsupportedImage`] if it is not
    /// an animation in a supported format, is damaged, or has too many pixels or frames;
    /// [`Error::OutOfMemory`] if its frames need more memory than is available;
    /// [`Error::InvalidArgument`] naming the option.
    ///
    /// # Example
    /// ```no_run
    /// # use moxin_vlm::Video;
    /// let video = Video::open("clip.gif", &Default::default())?;
    /// println!("{} frames, {} per second", video.frames().len(), video.fps());
    /// # Ok::<(), moxin_vlm::Error>(())
    /// ```
    pub fn open(path: impl AsRef<Path>, options: &VideoOptions) -> Result<Video> {
        options.check()?;
        let path = path.as_ref();
        decode(
            &read(path, "the video", &options.frame)?,
            Some(path),
            options,
        )
    }

    /// Reads a video from the content of a file, as [`Video::open`] does.
    ///
    /// # Errors
    /// As for [`Video::open`].
    pub fn decode(bytes: &[u8], options: &VideoOptions) -> Result<Video> {
        options.check()?;
        decode(bytes, None, options)
    }
}

fn decode(bytes: &[u8], path: Option<&Path>, options: &VideoOptions) -> Result<Video> {
    let refuse = refusal(path);
    let is_supported =
        |format: &_| [ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Png].contains(format);
    let format = format_of(bytes, is_supported, SUPPORTED, &refuse)?;
    let header_bytes = bounds::header_bytes(format, bytes.len() as u64);
    require("reading a video", header_bytes)?;
    let checked = bounds::check(format, bytes, true, &refuse)?;
    let animation = Animation {
        bytes: &checked,
        format,
        max_pixels: options.frame.max_pixels,
        refuse: &refuse,
    };
    // Decoded twice, the first time for the times only, so that few frames are in memory.
    let Timing { starts, end, size } = animation.timing()?;
    let times = sample_times(&starts, end, options);
    let shown = |time: &f64| starts.partition_point(|start| *start <= time + 1e-9) - 1;
    let indices: Vec<usize> = times.iter().map(shown).collect();
    let orientation = match options.frame.apply_orientation {
        true => orientation(format, bytes),
        false => Orientation::NoTransforms,
    };
    let frames = animation.pictures(&indices, size, orientation)?;
    match options.fps {
        Some(_) => Video::from_frames(frames, times.len() as f64 / end),
        None => Video::from_timed_frames(frames, times),
    }
}

/// Returns the orientation in the metadata of a whole file.
fn orientation(format: ImageFormat, bytes: &[u8]) -> Orientation {
    let exif = match format {
        ImageFormat::WebP => bounds::webp_exif(bytes),
        ImageFormat::Png => bounds::png_exif(bytes),
        _ => None,
    };
    exif.and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

/// Returns the times at which frames are taken. There are as many as transformers takes if all
/// frames are shown equally long, and otherwise no more than if all were shown as long as the
/// shortest.
fn sample_times(starts: &[f64], end: f64, options: &VideoOptions) -> Vec<f64> {
    let most = options.max_frames;
    let Some(fps) = options.fps else {
        let step = starts.len().div_ceil(most);
        return starts.iter().step_by(step).copied().collect();
    };
    let ends = starts[1..].iter().chain([&end]);
    let durations = ends.zip(starts).map(|(end, start)| end - start);
    let shortest = durations.fold(f64::INFINITY, f64::min);
    let ticks = (end / shortest).round();
    let wanted = (end * fps).max(4.0).min(ticks).min(most as f64) as usize;
    let wanted = if wanted < 2 { 1 } else { wanted / 2 * 2 };
    (0..wanted)
        .map(|i| i as f64 * end / wanted as f64)
        .collect()
}

/// When each frame is shown, in seconds, until when the last one is, and the size of all.
struct Timing {
    starts: Vec<f64>,
    end: f64,
    size: [u32; 2],
}

/// A file with frames.
struct Animation<'a> {
    bytes: &'a [u8],
    format: ImageFormat,
    max_pixels: u64,
    refuse: &'a dyn Fn(String) -> Error,
}

impl<'a> Animation<'a> {
    /// Decodes all frames, and returns when each is shown.
    fn timing(&self) -> Result<Timing> {
        let (mut starts, mut end, mut size) = (Vec::new(), 0.0, [0, 0]);
        for frame in self.frames()? {
            let frame = frame.map_err(|error| self.undecodable(error))?;
            let (width, height) = frame.buffer().dimensions();
            size = [width, height];
            let decoded = u64::from(width) * u64::from(height) * (starts.len() as u64 + 1);
            if starts.len() == MAX_FILE_FRAMES || decoded > MAX_FILE_PIXELS {
                return Err((self.refuse)(format!(
                    "an animation of more than {MAX_FILE_FRAMES} frames, or of more than \
                     {MAX_FILE_PIXELS} pixels in all of them"
                )));
            }
            starts.push(end);
            end += match frame.delay().numer_denom_ms() {
                (0, _) | (_, 0) => NO_DURATION,
                (numerator, denominator) => f64::from(numerator) / f64::from(denominator) / 1e3,
            };
        }
        match starts.is_empty() {
            true => Err((self.refuse)("an animation without frames".into())),
            false => Ok(Timing { starts, end, size }),
        }
    }

    /// Decodes the frames of these indices, which never decrease, as upright pictures.
    fn pictures(
        &self,
        indices: &[usize],
        size: [u32; 2],
        orientation: Orientation,
    ) -> Result<Vec<Picture>> {
        let [width, height] = size;
        let (pixels, count) = (u64::from(width) * u64::from(height), indices.len());
        let kept = pixels.saturating_mul(3 * count as u64);
        require(
            &format!("a video of {count} frames of {width} x {height} pixels"),
            kept.saturating_add(DECODER_BYTES * pixels),
        )?;
        let mut pictures: Vec<Picture> = Vec::with_capacity(count);
        for (i, frame) in self.frames()?.enumerate() {
            let shown = indices[pictures.len()..]
                .iter()
                .take_while(|index| **index == i);
            let repeats = shown.count();
            if repeats > 0 {
                let frame = frame.map_err(|error| self.undecodable(error))?;
                let rgb = to_rgb8(frame.into_buffer().into_raw(), ColorType::Rgba8)?;
                let picture = turn(rgb, size, orientation)?;
                pictures.extend(std::iter::repeat_n(picture, repeats));
            }
            if pictures.len() == count {
                break;
            }
        }
        Ok(pictures)
    }

    /// Starts decoding the frames, each as large as the animation.
    fn frames(&self) -> Result<Frames<'a>> {
        let undecodable = |error| self.undecodable(error);
        let still = || (self.refuse)("a picture that is not animated; add it as an image".into());
        let source = Cursor::new(self.bytes);
        match self.format {
            ImageFormat::Gif => {
                let mut decoder = GifDecoder::new(source).map_err(undecodable)?;
                decoder
                    .set_limits(self.limits(&decoder)?)
                    .map_err(undecodable)?;
                Ok(decoder.into_frames())
            }
            ImageFormat::WebP => {
                let mut decoder = WebPDecoder::new(source).map_err(undecodable)?;
                if !decoder.has_animation() {
                    return Err(still());
                }
                decoder
                    .set_limits(self.limits(&decoder)?)
                    .map_err(undecodable)?;
                Ok(decoder.into_frames())
            }
            _ => {
                let mut limits = Limits::default();
                limits.max_alloc = Some(bounds::TABLES);
                let mut decoder = PngDecoder::with_limits(source, limits).map_err(undecodable)?;
                if !decoder.is_apng().map_err(undecodable)? {
                    return Err(still());
                }
                decoder
                    .set_limits(self.limits(&decoder)?)
                    .map_err(undecodable)?;
                Ok(decoder.apng().map_err(undecodable)?.into_frames())
            }
        }
    }

    /// Checks the size of the animation, and returns the memory that its decoder may use.
    fn limits(&self, decoder: &impl ImageDecoder) -> Result<Limits> {
        let (width, height) = decoder.dimensions();
        check_sides(width, height).map_err(self.refuse)?;
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels {
            return Err((self.refuse)(format!(
                "{width} x {height} pixels; at most {} are allowed",
                self.max_pixels
            )));
        }
        let tables = match self.format {
            ImageFormat::WebP => {
                bounds::webp_tables(self.bytes, width, height).map_err(self.refuse)?
            }
            _ => 0,
        };
        let bytes = DECODER_BYTES * pixels + bounds::TABLES + tables;
        require(
            &format!("decoding a video of {width} x {height} pixels"),
            bytes,
        )?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(bytes);
        Ok(limits)
    }

    fn undecodable(&self, error: ImageError) -> Error {
        let name = format!("{:?}", self.format).to_uppercase();
        (self.refuse)(format!("{name} that cannot be decoded: {error}"))
    }
}
