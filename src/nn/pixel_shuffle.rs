//! Pixel shuffle, which trades patches for width (<https://arxiv.org/abs/1609.05158>, in reverse).

use crate::{Result, device::Tensor};

/// Joins each square of `factor` x `factor` patches into one, row by row:
/// `[1, rows · columns, width]` becomes `[1, rows · columns / factor², factor² · width]`.
pub fn pixel_shuffle(x: &Tensor, [rows, columns]: [usize; 2], factor: usize) -> Result<Tensor> {
    let [down, across, factor] = [rows / factor, columns / factor, factor].map(|size| size as i32);
    let width = x.dim(2);
    let squares = x
        .reshape(&[down, factor, across, factor, width])?
        .transpose_axes(&[0, 2, 1, 3, 4])?;
    Ok(squares.reshape(&[1, down * across, factor * factor * width])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Backend, Device, ops::floats};

    #[test]
    fn squares_are_joined_row_by_row() {
        Device::new(Backend::Cpu).unwrap().run(|| {
            let numbers: Vec<f32> = (0..2 * 4 * 2).map(|i| i as f32).collect();
            let joined = pixel_shuffle(&floats(&numbers, &[1, 8, 2]), [2, 4], 2).unwrap();
            assert_eq!(joined.shape(), [1, 2, 8]);
            let expected = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15].map(|i| i as f32);
            assert_eq!(joined.to_vec_cast::<f32>().unwrap(), expected);
        });
    }
}
