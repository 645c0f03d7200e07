//! Pictures of any size as rows of patches, as Qwen2-VL uses them
//! (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py>).

use crate::{Error, Result, device::room};

/// The maximum ratio of the sides.
const MAX_RATIO: usize = 200;

/// Returns the height and width that a picture of `height` x `width` is resized to: multiples of
/// `factor` with a similar aspect ratio, whose product is between `min_pixels` and `max_pixels` if
/// possible. Halves are rounded to the even number, as in Python.
///
/// # Errors
/// [`Error::InvalidArgument`] if a side is 0, one is more than 200 times the other, or `factor` is
/// 0.
///
/// # Example
/// ```
/// use moxin_vlm::image::smart_resize;
///
/// assert_eq!(smart_resize(480, 640, 28, 3136, 12_845_056).unwrap(), [476, 644]);
/// assert_eq!(smart_resize(3000, 4000, 28, 3136, 1_003_520).unwrap(), [840, 1148]);
/// ```
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> Result<[usize; 2]> {
    let (short, long) = (height.min(width), height.max(width));
    if short == 0 || factor == 0 || long > short.saturating_mul(MAX_RATIO) {
        return Err(Error::InvalidArgument(format!(
            "a picture of {width} x {height} pixels: its longer side may be at most {MAX_RATIO} \
                times the shorter; crop it or pad it"
        )));
    }
    let f = factor as f64;
    let round = |side: usize| (side as f64 / f).round_ties_even() as usize * factor;
    let (rounded_height, rounded_width) = (round(height), round(width));
    let pixels = rounded_height.saturating_mul(rounded_width);
    let area = height as f64 * width as f64;
    Ok(if pixels > max_pixels {
        let beta = (area / max_pixels as f64).sqrt();
        let cut = |side: usize| ((side as f64 / beta / f).floor() as usize * factor).max(factor);
        [cut(height), cut(width)]
    } else if pixels < min_pixels {
        let beta = (min_pixels as f64 / area).sqrt();
        let grown = |side: usize| (side as f64 * beta / f).ceil() as usize * factor;
        [grown(height), grown(width)]
    } else {
        // A side of 0, if the caller's bounds allow nothing else.
        [rounded_height.max(factor), rounded_width.max(factor)]
    })
}

/// How pictures are cut into patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patches {
    /// The edge of a patch, in pixels.
    pub size: usize,
    /// The number of frames in a patch. The last frame is repeated until they are full, so that a
    /// still picture counts as that many equal frames.
    pub frames: usize,
    /// The number of patches on each edge of the squares that determine their order.
    pub merge: usize,
}

/// Cuts planes `[count, 3, height, width]` of a picture, or of the frames of a video, into rows of
/// `3 · frames · size²` values, ordered by channel and then by frame. Patches are ordered by time,
/// then by square, and within it by row.
///
/// # Errors
/// [`Error::InvalidArgument`] if the sides are not multiples of a square's; [`Error::OutOfMemory`].
pub fn patchify(planes: &[f32], height: usize, width: usize, patches: Patches) -> Result<Vec<f32>> {
    let Patches {
        size,
        frames,
        merge,
    } = patches;
    let square = size * merge;
    if square == 0
        || frames == 0
        || !height.is_multiple_of(square)
        || !width.is_multiple_of(square)
        || planes.is_empty()
        || !planes.len().is_multiple_of(3 * height * width)
    {
        return Err(Error::InvalidArgument(format!(
            "{} values for {width} x {height} pixels; expected three planes for each frame, whose sides \
                are multiples of {square}",
            planes.len()
        )));
    }
    let pictures: Vec<&[f32]> = planes.chunks(3 * height * width).collect();
    let times = pictures.len().div_ceil(frames);
    let values = 3 * height * width * frames * times;
    let mut rows = room(values, || "the patches of a picture".into())?;
    let (down, across) = (height / square, width / square);
    let squares = (0..times)
        .flat_map(|time| (0..down).flat_map(move |y| (0..across).map(move |x| (time, y, x))));
    for (time, y, x) in squares {
        for (dy, dx) in (0..merge).flat_map(|dy| (0..merge).map(move |dx| (dy, dx))) {
            let (top, left) = (y * square + dy * size, x * square + dx * size);
            for channel in 0..3 {
                for frame in time * frames..(time + 1) * frames {
                    let picture = pictures[frame.min(pictures.len() - 1)];
                    for row in top..top + size {
                        rows.extend_from_slice(
                            &picture[(channel * height + row) * width + left..][..size],
                        );
                    }
                }
            }
        }
    }
    Ok(rows)
}
