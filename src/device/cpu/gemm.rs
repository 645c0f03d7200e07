//! The structure of a matrix product `x · matrixᵀ`, shared by the products of quantized and dense
//! matrices.
//!
//! The columns of the result, which are rows of the matrix, are divided into panels of two vectors;
//! each panel is one task. For each panel the matrix is unpacked block by block of the reduction,
//! so that a block stays in the cache while all rows of x are multiplied with it, tile by tile
//! (<https://www.cs.utexas.edu/~flame/pubs/GotoTOMS_revision.pdf>).

use super::{
    buffer::zeros,
    pool::Pool,
    shared::Shared,
    simd::{Kernel, Simd},
};

/// A kind of matrix product.
pub(super) trait Product: Sync {
    /// Information about the rows of x, packed by [`row_panels`].
    type Block: Default;

    /// Returns the number of blocks of the reduction.
    fn blocks(&self) -> usize;

    /// Unpacks a block of the matrix's rows from `first` on, as many as two vectors are wide; rows
    /// past the last may have any content.
    fn pack<S: Simd>(&self, simd: S, first: usize, block: usize, packed: &mut Self::Block);

    /// Adds the product of `H` rows of x from `row` on with a packed block to `y`,
    /// `[H, two vectors]`.
    fn tile<S: Simd, const H: usize>(
        &self,
        simd: S,
        row: usize,
        block: usize,
        packed: &Self::Block,
        y: &mut [f32],
    );
}

/// Returns the tiles that cover so many rows, as (first row, height). In an array with `row_size`
/// numbers per row, a tile's part starts at `first row · row_size`.
pub(super) fn row_panels(rows: usize, tile: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows - row;
        let height = *[12, 6, 3, 1]
            .iter()
            .find(|height| **height <= tile.min(left))?;
        row += height;
        Some((row - height, height))
    })
}

/// Computes `[rows, columns]` into `out`, each value a sum of `terms` products, and adds `bias` to
/// each row.
#[allow(clippy::too_many_arguments)]
pub(super) fn multiply<S: Simd, P: Product>(
    simd: S,
    pool: &Pool,
    product: &P,
    rows: usize,
    columns: usize,
    terms: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let width = 2 * S::LANES;
    assert_eq!(out.len(), rows * columns);
    let out = Shared::new(out);
    let panels = columns.div_ceil(width);
    let in_task = panels.div_ceil(8 * pool.threads());
    let worth = rows * columns * terms > 1 << 20;
    pool.run_if(worth, panels.div_ceil(in_task), &|task| {
        let mut packed = P::Block::default();
        let mut y = zeros(rows * width);
        for first in (task * in_task..panels.min((task + 1) * in_task)).map(|panel| panel * width) {
            y.fill(0.0);
            simd.run(Panel {
                product,
                rows,
                first,
                packed: &mut packed,
                y: &mut y,
            });
            let used = width.min(columns - first);
            for (row, y) in y.chunks_exact_mut(width).enumerate() {
                let y = &mut y[..used];
                if let Some(bias) = bias {
                    y.iter_mut()
                        .zip(&bias[first..])
                        .for_each(|(y, bias)| *y += bias);
                }
                out.write(row * columns + first, y);
            }
        }
    });
}

/// A panel of the result.
struct Panel<'a, P: Product> {
    product: &'a P,
    rows: usize,
    first: usize,
    packed: &'a mut P::Block,
    /// `[rows, two vectors]`
    y: &'a mut [f32],
}

impl<P: Product> Kernel for Panel<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = 2 * S::LANES;
        for block in 0..self.product.blocks() {
            self.product.pack(simd, self.first, block, self.packed);
            for (row, height) in row_panels(self.rows, S::TILE) {
                let y = &mut self.y[row * width..(row + height) * width];
                match height {
                    12 => self.product.tile::<S, 12>(simd, row, block, self.packed, y),
                    6 => self.product.tile::<S, 6>(simd, row, block, self.packed, y),
                    3 => self.product.tile::<S, 3>(simd, row, block, self.packed, y),
                    _ => self.product.tile::<S, 1>(simd, row, block, self.packed, y),
                }
            }
        }
    }
}
