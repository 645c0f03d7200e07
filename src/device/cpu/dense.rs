//! Products with matrices of floating-point numbers, and with packed ones that have no kernel of
//! their own: values are widened to float32 as they are read, and multiplied and added in float32.

use super::{
    buffer::Buffer,
    gemm::{Product, multiply, row_panels},
    numbers::{Floats, Rows, transposed, with_rows},
    pool::Pool,
    shared::Shared,
    simd::{Isa, Kernel, Simd, with_simd},
};

/// A matrix `[rows, columns]` of floats.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a> {
    pub rows: usize,
    pub columns: usize,
    pub numbers: Floats<'a>,
}

/// The number of columns that are widened at once: a panel of AVX-512 then uses 32 KiB.
const BLOCK: usize = 256;

/// The number of rows that are read at once, so that each value of x is loaded once for all of
/// them.
const ROWS: usize = 4;

impl Dense<'_> {
    /// Computes `x [x rows, columns] · selfᵀ + bias` into `out [x rows, rows]`.
    pub fn multiply(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        assert_eq!(self.numbers.len(), self.rows * self.columns);
        let item = self.numbers.item();
        with_rows!([self.numbers], self.rows, self.columns, [matrix] => multiply_rows(isa, pool, &matrix, item, x, bias, out));
    }
}

/// Does the same as [`Dense::multiply`], with numbers of `item` bytes.
pub(super) fn multiply_rows<R: Rows>(
    isa: Isa,
    pool: &Pool,
    matrix: &R,
    item: usize,
    x: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    let rows = out.len() / matrix.rows();
    assert_eq!(
        (x.len(), out.len()),
        (rows * matrix.columns(), rows * matrix.rows())
    );
    assert!(bias.is_none_or(|bias| bias.len() == matrix.rows()));
    match rows {
        1 => {
            with_simd!(isa.for_vectors(), simd => multiply_vector(simd, pool, matrix, item, x, bias, out))
        }
        _ => with_simd!(isa, simd => {
            let x = pack(simd, pool, x, rows);
            multiply(simd, pool, &WithMatrix { matrix, x: &x }, rows, matrix.rows(), matrix.columns(), bias, out);
        }),
    }
}

fn multiply_vector<S: Simd, R: Rows>(
    simd: S,
    pool: &Pool,
    matrix: &R,
    item: usize,
    x: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let blocks = matrix.rows().div_ceil(ROWS);
    let in_task = blocks.div_ceil(pool.tasks(matrix.rows() * matrix.columns() * item));
    let out = Shared::new(out);
    pool.run(blocks.div_ceil(in_task), &|task| {
        let first = task * in_task * ROWS;
        let out = out.part(first, (in_task * ROWS).min(matrix.rows() - first));
        simd.run(Vector {
            matrix,
            item,
            x,
            first,
            bias,
            out,
        });
    });
}

/// The product with one row of x, for some rows of the matrix.
struct Vector<'a, R> {
    matrix: &'a R,
    /// The bytes per number.
    item: usize,
    x: &'a [f32],
    first: usize,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl<R: Rows> Kernel for Vector<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Vector {
            matrix,
            item,
            x,
            first,
            bias,
            out,
        } = self;
        let whole = x.len() / S::LANES * S::LANES;
        for (i, out) in out.chunks_mut(ROWS).enumerate() {
            let first = first + i * ROWS;
            let rows: [usize; ROWS] = std::array::from_fn(|i| (first + i).min(matrix.rows() - 1));
            let ahead = matrix.address((first + ROWS).min(matrix.rows()), 0);
            let mut sums = [simd.splat(0.0); ROWS];
            for column in (0..whole).step_by(S::LANES) {
                // Prefetches the cache lines of the next rows while these are read.
                simd.prefetch(ahead.wrapping_add(column * ROWS * item));
                if S::LANES * ROWS * item > 64 {
                    simd.prefetch(ahead.wrapping_add(column * ROWS * item + 64));
                }
                let x = simd.load(&x[column..]);
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = simd.fma(x, matrix.vector(simd, row, column), *sum);
                }
            }
            for ((i, out), row) in out.iter_mut().enumerate().zip(rows) {
                let rest = (whole..x.len()).fold(0.0, |sum, column| {
                    x[column].mul_add(matrix.number(row, column), sum)
                });
                *out = simd.sum(sums[i]) + rest + bias.map_or(0.0, |bias| bias[first + i]);
            }
        }
    }
}

/// Packs rows of x for the tiles of [`row_panels`]: `[columns, H]` for each.
pub(super) fn pack<S: Simd>(simd: S, pool: &Pool, x: &[f32], rows: usize) -> Buffer<f32> {
    let columns = x.len() / rows;
    let mut packed = Buffer::zeros(x.len());
    let panels: Vec<_> = row_panels(rows, S::TILE).collect();
    let shared = Shared::new(&mut packed);
    pool.run_if(x.len() > 1 << 16, panels.len(), &|panel| {
        let (row, height) = panels[panel];
        let _ = simd;
        pack_tile(
            &x[row * columns..],
            columns,
            height,
            shared.part(row * columns, height * columns),
        );
    });
    packed
}

/// Packs rows of x, `columns` apart, as `[columns, height]`.
pub(super) fn pack_tile(x: &[f32], columns: usize, height: usize, to: &mut [f32]) {
    for row in 0..height {
        for (to, x) in to[row..]
            .iter_mut()
            .step_by(height)
            .zip(&x[row * columns..][..columns])
        {
            *to = *x;
        }
    }
}

/// The product with several rows of x.
struct WithMatrix<'a, R> {
    matrix: &'a R,
    x: &'a [f32],
}

impl<R: Rows> WithMatrix<'_, R> {
    /// Returns the columns of a block.
    fn block(&self, block: usize) -> std::ops::Range<usize> {
        block * BLOCK..((block + 1) * BLOCK).min(self.matrix.columns())
    }
}

impl<R: Rows> Product for WithMatrix<'_, R> {
    type Block = Vec<u32>;

    fn blocks(&self) -> usize {
        self.matrix.columns().div_ceil(BLOCK)
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, simd: S, first: usize, block: usize, packed: &mut Vec<u32>) {
        let (columns, width) = (self.block(block), 2 * S::LANES);
        packed.resize(columns.len() * width, 0);
        transposed(
            simd,
            self.matrix,
            first,
            width,
            columns.start,
            columns.len(),
            packed,
        );
    }

    #[inline(always)]
    fn tile<S: Simd, const H: usize>(
        &self,
        simd: S,
        row: usize,
        block: usize,
        packed: &Vec<u32>,
        y: &mut [f32],
    ) {
        let columns = self.block(block);
        let x = &self.x[row * self.matrix.columns() + columns.start * H..][..columns.len() * H];
        add_tile::<S, H>(simd, x, packed, y);
    }
}

/// Adds the product of `x [columns, H]` and `matrix [columns, two vectors]` to
/// `y [H, two vectors]`.
#[inline(always)]
pub(super) fn add_tile<S: Simd, const H: usize>(simd: S, x: &[f32], matrix: &[u32], y: &mut [f32]) {
    let width = 2 * S::LANES;
    let mut sums = [[simd.splat(0.0); 2]; H];
    for (x, numbers) in x.as_chunks::<H>().0.iter().zip(matrix.chunks_exact(width)) {
        let numbers = [
            simd.float(simd.load_i(numbers)),
            simd.float(simd.load_i(&numbers[S::LANES..])),
        ];
        for h in 0..H {
            let x = simd.splat(x[h]);
            sums[h] = [
                simd.fma(x, numbers[0], sums[h][0]),
                simd.fma(x, numbers[1], sums[h][1]),
            ];
        }
    }
    for (y, sums) in y.chunks_exact_mut(width).zip(sums) {
        for (y, sum) in y.chunks_exact_mut(S::LANES).zip(sums) {
            simd.store(simd.add(simd.load(y), sum), y);
        }
    }
}
