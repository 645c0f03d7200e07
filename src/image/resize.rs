//! Pillow's resize (`Image.resize(size, filter)` in Pillow 12.0.0), exactly.
//!
//! It differs from other libraries' in these ways, each of which changes pixels by several levels:
//! the bicubic kernel has a = -0.5; kernels widen with the scale when shrinking (antialiasing);
//! weights are rounded to fixed point; columns are resized first, and their result is rounded and
//! clipped to 8 bits before rows are. (Pillow 13 may resize rows first, with other results.)
//!
//! An axis whose size does not change has the weights 1 and 0, so it needs no special case.

use std::ops::Range;

use super::Picture;
use crate::{Error, Result, device::room};

/// The number of fraction bits in a weight: what 8-bit samples and 2 bits for overshoot leave of
/// 32.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Every sum starts at one half, so that truncation rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// How new samples are computed from those of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The nearest sample.
    Nearest,
    /// A triangle, two samples wide.
    Bilinear,
    /// Cubic convolution with a = -0.5 (Catmull-Rom).
    Bicubic,
    /// A windowed sinc, six samples wide.
    Lanczos,
}

impl Filter {
    /// Returns the filter for Pillow's number, which `resample` in a `preprocessor_config.json`
    /// uses.
    pub fn from_pillow(number: u64) -> Option<Filter> {
        match number {
            0 => Some(Filter::Nearest),
            1 => Some(Filter::Lanczos),
            2 => Some(Filter::Bilinear),
            3 => Some(Filter::Bicubic),
            _ => None,
        }
    }

    /// Returns the radius of the kernel, in source samples at scale 1.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// Returns the kernel's value at a distance.
    fn at(self, x: f64) -> f64 {
        match self {
            Filter::Nearest => 1.0,
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => cubic(x),
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// Resizes a picture to exactly this size.
///
/// # Errors
/// [`Error::InvalidArgument`] if a side is 0 or more than 65,535 pixels; [`Error::OutOfMemory`].
///
/// # Example
/// ```
/// use moxin_vlm::{Picture, image::{Filter, resize}};
///
/// # fn main() -> moxin_vlm::Result<()> {
/// let picture = Picture::open("models/demo.png", &Default::default())?;
/// let small = resize(&picture, 32, 24, Filter::Lanczos)?;
/// assert_eq!((small.width(), small.height()), (32, 24));
/// # Ok(()) }
/// ```
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Picture> {
    if [width, height]
        .iter()
        .any(|side| !(1..=MAX_SIDE).contains(side))
    {
        return Err(Error::InvalidArgument(format!(
            "a picture of {width} x {height} pixels; each side must be 1 to {MAX_SIDE}"
        )));
    }
    let canvas = Canvas {
        picture,
        border_x: 0,
        border_y: 0,
        fill: [0; 3],
    };
    let whole = |source: usize, scaled: usize| Axis {
        source,
        scaled,
        window: 0..scaled,
    };
    let rgb = resize_window(
        &canvas,
        &whole(canvas.width(), width),
        &whole(canvas.height(), height),
        filter,
    )?;
    Ok(Picture::from_rgb(rgb, width, height))
}

/// Returns the temporary memory in bytes for resizing a picture whose longer side is `side` to a
/// square of `edge`: sums, the square itself, and the weights of each source pixel, those of
/// columns twice.
pub(crate) fn resize_memory(edge: usize, side: usize) -> u64 {
    let sums = (edge as u64).saturating_pow(2).saturating_mul(12 + 3);
    sums.saturating_add(resize_weights(&[side, edge]))
}

/// Returns the bytes of the weights of each source pixel, for resizes from and to these sides.
pub(crate) fn resize_weights(sides: &[usize]) -> u64 {
    let sides = sides.iter().map(|side| *side as u64);
    sides.fold(0, u64::saturating_add).saturating_mul(4 * 4 * 3)
}

/// The maximum side of a resized picture.
const MAX_SIDE: usize = 65_535;

/// A picture with a border of one color around it; the border is never stored.
pub(crate) struct Canvas<'a> {
    pub picture: &'a Picture,
    /// The number of columns added on each of the left and right.
    pub border_x: usize,
    /// The number of rows added on each of the top and bottom.
    pub border_y: usize,
    pub fill: [u8; 3],
}

impl Canvas<'_> {
    pub fn width(&self) -> usize {
        self.picture.width() as usize + 2 * self.border_x
    }

    pub fn height(&self) -> usize {
        self.picture.height() as usize + 2 * self.border_y
    }

    /// Returns the picture's row at row `y` of the canvas; `None` in the border.
    fn picture_row(&self, y: usize) -> Option<&[u8]> {
        let row_bytes = self.picture.width() as usize * 3;
        self.picture
            .rgb()
            .chunks_exact(row_bytes)
            .nth(y.checked_sub(self.border_y)?)
    }
}

/// One axis of a resize: `source` samples become `scaled`, of which those in `window` are computed.
pub(crate) struct Axis {
    pub source: usize,
    pub scaled: usize,
    pub window: Range<usize>,
}

/// The source samples of one output sample: the first one, and a weight for it and each that
/// follows.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// How one output pixel of a row is computed: from the value of a row that is all border, to which
/// each pixel of the picture adds its difference from the border. The sum is the same integer,
/// without any work for a border that may be thousands of times wider than the picture.
struct Column {
    border: [i32; 3],
    /// The picture's part of the taps, counted from its first column.
    picture: Taps,
}

impl Column {
    fn new(taps: &Taps, canvas: &Canvas) -> Self {
        let total: i32 = taps.weights.iter().sum();
        let (left, right) = (
            canvas.border_x,
            canvas.border_x + canvas.picture.width() as usize,
        );
        let first = taps.first.clamp(left, right);
        let end = taps.end().clamp(first, right);
        let picture = match first < end {
            true => Taps {
                first: first - left,
                weights: taps.weights[first - taps.first..end - taps.first].to_vec(),
            },
            false => Taps {
                first: 0,
                weights: Vec::new(),
            },
        };
        Self {
            border: canvas.fill.map(|fill| HALF + total * i32::from(fill)),
            picture,
        }
    }
}

/// Resizes the canvas and returns the window given by the two axes, RGB8.
///
/// Source rows are processed one by one and added to the output rows that they affect, so that the
/// memory depends on the output only, however long and thin the picture is.
pub(crate) fn resize_window(
    canvas: &Canvas,
    x: &Axis,
    y: &Axis,
    filter: Filter,
) -> Result<Vec<u8>> {
    let columns: Vec<Column> = taps(x, filter)
        .iter()
        .map(|taps| Column::new(taps, canvas))
        .collect();
    let rows = taps(y, filter);
    let row_bytes = columns.len() * 3;
    let what = || {
        format!(
            "a picture of {} x {} pixels, resized",
            columns.len(),
            rows.len()
        )
    };
    let (mut sums, mut output) = (
        room(rows.len() * row_bytes, what)?,
        room(rows.len() * row_bytes, what)?,
    );
    sums.resize(rows.len() * row_bytes, HALF);
    let border: Vec<u8> = columns
        .iter()
        .flat_map(|column| column.border.map(round))
        .collect();
    let mut resized = vec![0; row_bytes];
    let mut unfinished = 0;
    let source_rows = rows.first().map_or(0, |taps| taps.first)..rows.last().map_or(0, Taps::end);
    for source_y in source_rows {
        let row = match canvas.picture_row(source_y) {
            None => &border,
            Some(row) => {
                resize_row(row, canvas.fill, &columns, &mut resized);
                &resized
            }
        };
        while rows[unfinished].end() <= source_y {
            unfinished += 1;
        }
        for (taps, sums) in rows[unfinished..]
            .iter()
            .zip(sums[unfinished * row_bytes..].chunks_exact_mut(row_bytes))
        {
            if taps.first > source_y {
                break;
            }
            let weight = taps.weights[source_y - taps.first];
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, &sample)| *sum += weight * i32::from(sample));
        }
    }
    output.extend(sums.into_iter().map(round));
    Ok(output)
}

/// Resizes one row of the picture, RGB8, and the border beside it.
fn resize_row(row: &[u8], fill: [u8; 3], columns: &[Column], resized: &mut [u8]) {
    let fill = fill.map(i32::from);
    for (Column { border, picture }, output) in columns.iter().zip(resized.chunks_exact_mut(3)) {
        let mut sums = *border;
        for (pixel, weight) in row[picture.first * 3..]
            .chunks_exact(3)
            .zip(&picture.weights)
        {
            for ((sum, &sample), fill) in sums.iter_mut().zip(pixel).zip(fill) {
                *sum += weight * (i32::from(sample) - fill);
            }
        }
        output.copy_from_slice(&sums.map(round));
    }
}

/// Rounds a sum that started at [`HALF`] and clips it to 8 bits.
fn round(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Returns the taps of each output sample in the axis's window.
fn taps(axis: &Axis, filter: Filter) -> Vec<Taps> {
    let scale = axis.source as f64 / axis.scaled as f64;
    if filter == Filter::Nearest {
        // Pillow adds the scale repeatedly, which rounds differently from a product.
        let centers = std::iter::successors(Some(scale * 0.5), |center| Some(center + scale));
        let one = |center: f64| Taps {
            first: (center as usize).min(axis.source - 1),
            weights: vec![1 << PRECISION_BITS],
        };
        return centers
            .skip(axis.window.start)
            .take(axis.window.len())
            .map(one)
            .collect();
    }
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let output = |index: usize| {
        let center = (index as f64 + 0.5) * scale;
        // Casts truncate, and turn positions before the picture into 0.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(axis.source);
        let inverse = 1.0 / widening;
        let weights: Vec<f64> = (first..end)
            .map(|sample| filter.at((sample as f64 - center + 0.5) * inverse))
            .collect();
        let total: f64 = weights.iter().sum();
        Taps {
            first,
            weights: weights
                .into_iter()
                .map(|weight| fixed_point(weight / total))
                .collect(),
        }
    };
    axis.window.clone().map(output).collect()
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// The cubic convolution kernel with a = -0.5 (Catmull-Rom).
///
/// Each polynomial is evaluated in Pillow's order: another order rounds differently.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Returns a weight as a fixed-point number, halves rounded away from zero.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION_BITS) + 0.5_f64.copysign(weight)) as i32
}

#[cfg(test)]
mod tests {
    use super::super::PixelFormat;
    use super::*;

    fn weights(source: usize, scaled: usize) -> Vec<Taps> {
        taps(
            &Axis {
                source,
                scaled,
                window: 0..scaled,
            },
            Filter::Bicubic,
        )
    }

    #[test]
    fn a_size_that_stays_has_the_weight_one() {
        for (index, taps) in weights(9, 9).iter().enumerate() {
            let ones: Vec<_> = (taps.first..taps.end())
                .map(|sample| {
                    if sample == index {
                        1 << PRECISION_BITS
                    } else {
                        0
                    }
                })
                .collect();
            assert_eq!(taps.weights, ones);
        }
    }

    #[test]
    fn shrinking_widens_the_kernel() {
        // By ten: 40 samples wide, away from the edges.
        assert_eq!(weights(1000, 100)[50].weights.len(), 40);
        assert!(weights(100, 1000)[500].weights.len() <= 4);
    }

    #[test]
    fn sums_stay_within_32_bits() {
        // The largest magnitude that a sum of 8-bit samples can reach, including kernels cut off at
        // edges.
        let kinds = [
            Filter::Nearest,
            Filter::Bilinear,
            Filter::Bicubic,
            Filter::Lanczos,
        ];
        for (source, scaled) in [
            (1, 4096),
            (2, 4096),
            (3, 7),
            (5, 4),
            (65535, 1),
            (65535, 4096),
            (4096, 4095),
        ] {
            for taps in kinds.iter().flat_map(|kind| {
                taps(
                    &Axis {
                        source,
                        scaled,
                        window: 0..scaled,
                    },
                    *kind,
                )
            }) {
                let magnitude: i64 = taps
                    .weights
                    .iter()
                    .map(|&weight| i64::from(weight.abs()) * 255)
                    .sum();
                assert!(
                    magnitude + i64::from(HALF) < i64::from(i32::MAX),
                    "{source} to {scaled}: {magnitude}"
                );
            }
        }
    }

    #[test]
    fn a_window_is_a_cut_of_the_whole() {
        let pixels: Vec<u8> = (0..31 * 17 * 3).map(|i| (i * i % 251) as u8).collect();
        let picture = Picture::from_pixels(&pixels, 31, 17, 31 * 3, PixelFormat::Rgb8).unwrap();
        let canvas = Canvas {
            picture: &picture,
            border_x: 0,
            border_y: 7,
            fill: [9, 8, 7],
        };
        let whole = resize_window(
            &canvas,
            &Axis {
                source: 31,
                scaled: 20,
                window: 0..20,
            },
            &Axis {
                source: 31,
                scaled: 44,
                window: 0..44,
            },
            Filter::Bicubic,
        )
        .unwrap();
        let part = resize_window(
            &canvas,
            &Axis {
                source: 31,
                scaled: 20,
                window: 3..15,
            },
            &Axis {
                source: 31,
                scaled: 44,
                window: 11..40,
            },
            Filter::Bicubic,
        )
        .unwrap();
        let cut: Vec<u8> = whole
            .chunks_exact(20 * 3)
            .skip(11)
            .take(29)
            .flat_map(|row| row[3 * 3..15 * 3].to_vec())
            .collect();
        assert_eq!(part, cut);
    }
}
