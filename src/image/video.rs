//! Videos: frames of one size, and the time of each.

use std::sync::Arc;

use super::{Picture, PictureHash};
use crate::{Error, Result};

/// The maximum number of frames in a video. Qwen2-VL samples at most 768
/// (<https://github.com/QwenLM/Qwen2.5-VL/blob/main/qwen-vl-utils/src/qwen_vl_utils/vision_process.py>).
pub const MAX_FRAMES: usize = 4096;

/// A video: upright frames of one size, in order, each with its time. A model reads all of them;
/// [`Video::sampled`] takes fewer.
///
/// Clones share the frames.
#[derive(Clone, PartialEq)]
pub struct Video {
    frames: Arc<Vec<Picture>>,
    times: Arc<Vec<f64>>,
    fps: f64,
}

impl Video {
    /// Creates a video of frames that follow each other `fps` times per second, from second 0 on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no frames or more than [`MAX_FRAMES`], if they differ
    /// in size, or if `fps` is not a positive number.
    ///
    /// # Example
    /// ```
    /// use moxin_vlm::{Picture, Video, image::PixelFormat};
    ///
    /// let frame = Picture::from_pixels(&[0; 12], 2, 2, 6, PixelFormat::Rgb8)?;
    /// let video = Video::from_frames(vec![frame; 4], 2.0)?;
    /// assert_eq!(video.times(), [0.0, 0.5, 1.0, 1.5]);
    /// # Ok::<(), moxin_vlm::Error>(())
    /// ```
    pub fn from_frames(frames: Vec<Picture>, fps: f64) -> Result<Video> {
        if !fps.is_finite() || fps <= 0.0 {
            return Err(Error::InvalidArgument(format!(
                "{fps} frames per second; expected a positive number"
            )));
        }
        let times = (0..frames.len()).map(|i| i as f64 / fps).collect();
        Video::new(frames, times, fps)
    }

    /// Creates a video of frames with the time of each, in seconds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] as for [`Video::from_frames`], or if the times are not one finite
    /// number for each frame, each greater than the one before.
    pub fn from_timed_frames(frames: Vec<Picture>, times: Vec<f64>) -> Result<Video> {
        if times.len() != frames.len() {
            return Err(Error::InvalidArgument(format!(
                "{} times for {} frames; expected one for each",
                times.len(),
                frames.len()
            )));
        }
        let is_ordered = times.windows(2).all(|pair| pair[0] < pair[1]);
        if !is_ordered || times.iter().any(|time| !time.is_finite()) {
            return Err(Error::InvalidArgument(
                "the times of a video's frames must be finite, each greater than the one before"
                    .into(),
            ));
        }
        let fps = match (times.first(), times.last()) {
            (Some(first), Some(last)) if first < last => (times.len() - 1) as f64 / (last - first),
            _ => 1.0,
        };
        Video::new(frames, times, fps)
    }

    fn new(frames: Vec<Picture>, times: Vec<f64>, fps: f64) -> Result<Video> {
        let first = frames.first().ok_or_else(|| {
            Error::InvalidArgument("a video without frames; expected at least one".into())
        })?;
        if frames.len() > MAX_FRAMES {
            return Err(Error::InvalidArgument(format!(
                "a video of {} frames; at most {MAX_FRAMES} are supported, so sample it first",
                frames.len()
            )));
        }
        let size = |frame: &Picture| [frame.width(), frame.height()];
        if let Some(i) = frames.iter().position(|frame| size(frame) != size(first)) {
            let ([width, height], [w, h]) = (size(first), size(&frames[i]));
            return Err(Error::InvalidArgument(format!(
                "frame {i} of a video has {w} x {h} pixels; expected {width} x {height}, as frame 0"
            )));
        }
        Ok(Video {
            frames: Arc::new(frames),
            times: Arc::new(times),
            fps,
        })
    }

    /// Returns the frames, in order; there is at least one.
    pub fn frames(&self) -> &[Picture] {
        &self.frames
    }

    /// Returns the time of each frame, in seconds.
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// Returns the number of frames per second, on average.
    pub fn fps(&self) -> f64 {
        self.fps
    }

    /// Returns the number of columns.
    pub fn width(&self) -> u32 {
        self.frames[0].width()
    }

    /// Returns the number of rows.
    pub fn height(&self) -> u32 {
        self.frames[0].height()
    }

    /// Returns the frames at these indices, in order. The number of frames per second changes as
    /// the number of frames does, which is how transformers counts it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no index, or one is not greater than the one before,
    /// or is out of range.
    pub fn sampled(&self, indices: &[usize]) -> Result<Video> {
        let count = self.frames.len();
        let is_ordered = indices.windows(2).all(|pair| pair[0] < pair[1]);
        if !is_ordered || indices.last().is_none_or(|last| *last >= count) {
            return Err(Error::InvalidArgument(format!(
                "the indices of frames must be increasing and less than {count}"
            )));
        }
        Ok(Video {
            frames: Arc::new(indices.iter().map(|i| self.frames[*i].clone()).collect()),
            times: Arc::new(indices.iter().map(|i| self.times[*i]).collect()),
            fps: indices.len() as f64 / count as f64 * self.fps,
        })
    }

    /// Returns a hash that no other video has, whatever its size and times.
    pub fn hash(&self) -> PictureHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"video");
        for (frame, time) in self.frames.iter().zip(self.times.iter()) {
            hasher.update(frame.hash().bytes());
            hasher.update(&time.to_le_bytes());
        }
        PictureHash::from(hasher)
    }
}

impl std::fmt::Debug for Video {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Video({} frames of {} x {})",
            self.frames.len(),
            self.width(),
            self.height()
        )
    }
}

/// A picture or a video.
#[derive(Debug, Clone, PartialEq)]
pub enum Medium {
    /// A picture.
    Picture(Picture),
    /// A video.
    Video(Video),
}

impl Medium {
    /// Returns the width and height, in pixels.
    pub fn size(&self) -> [u32; 2] {
        match self {
            Medium::Picture(picture) => [picture.width(), picture.height()],
            Medium::Video(video) => [video.width(), video.height()],
        }
    }

    /// Returns a hash of its content.
    pub fn hash(&self) -> PictureHash {
        match self {
            Medium::Picture(picture) => picture.hash(),
            Medium::Video(video) => video.hash(),
        }
    }
}

impl From<Picture> for Medium {
    fn from(picture: Picture) -> Medium {
        Medium::Picture(picture)
    }
}

impl From<Video> for Medium {
    fn from(video: Video) -> Medium {
        Medium::Video(video)
    }
}

/// Returns the indices of the frames that Qwen2-VL and Qwen2.5-VL read of `count` frames, of which
/// `fps` follow each other per second, to read about `target` per second: at least 4 and at most 768,
/// an even number, as far apart as possible from each other, rounded down
/// (<https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/qwen2_vl/video_processing_qwen2_vl.py>).
///
/// # Errors
/// [`Error::InvalidArgument`] if `fps` or `target` is not a positive number.
///
/// # Example
/// ```
/// use moxin_vlm::image::frame_indices;
///
/// // Ten seconds at 3 frames per second, read at 1.
/// assert_eq!(frame_indices(30, 3.0, 1.0)?, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]);
/// # Ok::<(), moxin_vlm::Error>(())
/// ```
pub fn frame_indices(count: usize, fps: f64, target: f64) -> Result<Vec<usize>> {
    for rate in [fps, target] {
        if !rate.is_finite() || rate <= 0.0 {
            return Err(Error::InvalidArgument(format!(
                "{rate} frames per second; expected a positive number"
            )));
        }
    }
    if count < 2 {
        return Ok((0..count).collect());
    }
    let wanted = (count as f64 / fps * target).clamp(4.0, 768.0);
    let wanted = (wanted.min(count as f64) / 2.0).floor() as usize * 2;
    // The values of `torch.arange(0, count, count / wanted)`, 32-bit floats, as integers.
    let step = count as f64 / wanted as f64;
    Ok((0..wanted)
        .map(|i| (i as f64 * step) as f32 as usize)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PixelFormat;

    fn frame(gray: u8, edge: u32) -> Picture {
        let pixels = vec![gray; (edge * edge) as usize];
        Picture::from_pixels(&pixels, edge, edge, edge as usize, PixelFormat::Gray8).unwrap()
    }

    #[test]
    fn videos_of_other_frames_or_times_have_other_hashes() {
        let frames = vec![frame(1, 2), frame(2, 2)];
        let video = |frames: &[Picture], fps| Video::from_frames(frames.to_vec(), fps).unwrap();
        let hash = video(&frames, 2.0).hash();
        assert_eq!(video(&frames, 2.0).hash(), hash);
        let swapped = [frames[1].clone(), frames[0].clone()];
        assert_ne!(video(&swapped, 2.0).hash(), hash);
        assert_ne!(video(&frames, 1.0).hash(), hash);
        assert_ne!(video(&frames[..1], 2.0).hash(), frames[0].hash());
    }

    #[test]
    fn frames_and_times_that_do_not_fit_are_refused() {
        let refused = |result: Result<Video>, what: &str| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
            assert!(error.to_string().contains(what), "{error}");
        };
        let two = || vec![frame(1, 2), frame(2, 2)];
        refused(Video::from_frames(Vec::new(), 1.0), "without frames");
        refused(Video::from_frames(two(), 0.0), "positive");
        refused(Video::from_frames(two(), f64::NAN), "positive");
        refused(
            Video::from_frames(vec![frame(1, 2), frame(1, 3)], 1.0),
            "frame 1",
        );
        refused(
            Video::from_frames(vec![frame(1, 1); MAX_FRAMES + 1], 1.0),
            "at most",
        );
        refused(Video::from_timed_frames(two(), vec![0.0]), "1 times for 2");
        refused(Video::from_timed_frames(two(), vec![1.0, 1.0]), "greater");
        refused(
            Video::from_timed_frames(two(), vec![0.0, f64::INFINITY]),
            "finite",
        );
        let video = Video::from_frames(two(), 1.0).unwrap();
        refused(video.sampled(&[]), "increasing");
        refused(video.sampled(&[1, 0]), "increasing");
        refused(video.sampled(&[0, 2]), "less than 2");
    }

    #[test]
    fn sampling_halves_the_frames_per_second() {
        let video = Video::from_frames((0..8).map(|i| frame(i, 2)).collect(), 4.0).unwrap();
        let half = video.sampled(&frame_indices(8, 4.0, 2.0).unwrap()).unwrap();
        assert_eq!(half.times(), [0.0, 0.5, 1.0, 1.5]);
        assert_eq!(half.fps(), 2.0);
        assert_eq!(half.frames()[1], frame(2, 2));
    }

    /// Computed with `Qwen2VLVideoProcessor.sample_frames` of transformers 5.24.
    #[test]
    fn indices_are_those_of_transformers() {
        assert_eq!(frame_indices(10, 10.0, 2.0).unwrap(), [0, 2, 5, 7]);
        assert_eq!(frame_indices(3, 30.0, 2.0).unwrap(), [0, 1]);
        assert_eq!(frame_indices(7, 1.0, 2.0).unwrap(), [0, 1, 2, 3, 4, 5]);
        let some = frame_indices(100, 29.97, 2.0).unwrap();
        assert_eq!(some, [0, 16, 33, 50, 66, 83]);
        let all = frame_indices(6000, 1.0, 768.0 / 6000.0).unwrap();
        assert_eq!((all.len(), all[767]), (768, 5992));
        assert_eq!(frame_indices(1, 1.0, 2.0).unwrap(), [0]);
        assert!(frame_indices(1, 0.0, 2.0).is_err());
    }
}
