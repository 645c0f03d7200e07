//! From bytes to the values that encoders take.

use super::Picture;
use crate::{Result, device::room};

/// An encoder's input: planes of `height` x `width` values, row by row; three planes (red, green,
/// blue) per encoder, or per tile. For a model that takes patches there is one plane, with one patch
/// per row.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// The values, `[channels, height, width]`.
    pub data: Vec<f32>,
    /// The number of planes: three per encoder or tile.
    pub channels: usize,
    /// The number of rows in a plane.
    pub height: usize,
    /// The number of columns in a plane.
    pub width: usize,
}

/// How each value of a picture is normalized: multiplied by a factor, minus a mean, divided by a
/// deviation. Each step is rounded as in transformers' PIL processors: the product in float64 and
/// then to float32, the rest in float32
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/image_transforms.py>).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    /// The factor, such as 1/255.
    pub factor: f64,
    /// The means of red, green and blue.
    pub mean: [f64; 3],
    /// The deviations of red, green and blue; none is 0.
    pub std: [f64; 3],
}

/// Multiplies each value by a factor, such as 1/255. Returns `[height, width, 3]`, row by row.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn rescale(picture: &Picture, factor: f64) -> Result<Vec<f32>> {
    let mut values = room(picture.rgb().len(), || "the values of a picture".into())?;
    values.extend(picture.rgb().iter().map(|value| rescaled(*value, factor)));
    Ok(values)
}

/// Rescales and normalizes a picture. Returns `[3, height, width]`, one plane after the other.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn planes(picture: &Picture, normalization: &Normalization) -> Result<Vec<f32>> {
    let Normalization { factor, mean, std } = normalization;
    let mut values = room(picture.rgb().len(), || "the pixels of a picture".into())?;
    for channel in 0..3 {
        let (mean, std) = (mean[channel] as f32, std[channel] as f32);
        let table: [f32; 256] =
            std::array::from_fn(|value| (rescaled(value as u8, *factor) - mean) / std);
        values.extend(
            picture
                .rgb()
                .chunks_exact(3)
                .map(|pixel| table[usize::from(pixel[channel])]),
        );
    }
    Ok(values)
}

fn rescaled(value: u8, factor: f64) -> f32 {
    (f64::from(value) * factor) as f32
}
