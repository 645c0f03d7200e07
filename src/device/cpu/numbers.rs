//! Values of a matrix in their stored dtype.

use super::simd::Simd;

/// Numbers in memory.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    /// The bits of bfloat16 numbers.
    Bf16(&'a [u16]),
    /// The bits of float16 numbers.
    F16(&'a [u16]),
}

/// Rows of numbers that can be widened to float32.
pub(super) trait Rows: Sync {
    /// Returns the number of rows.
    fn rows(&self) -> usize;

    /// Returns the number of columns.
    fn columns(&self) -> usize;

    /// Returns the vector at a position in a row.
    fn vector<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::F;

    /// Returns the same vector, padded with zeros beyond the end of the row.
    #[inline(always)]
    fn vector_or_rest<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::F {
        if column + S::LANES <= self.columns() {
            return self.vector(simd, row, column);
        }
        let mut rest = [0.0; 16];
        for (to, column) in rest.iter_mut().zip(column..self.columns()) {
            *to = self.number(row, column);
        }
        simd.load(&rest)
    }

    /// Returns one number.
    fn number(&self, row: usize, column: usize) -> f32;

    /// Returns the address of a number, for prefetching.
    fn address(&self, row: usize, column: usize) -> *const u8;
}

impl Floats<'_> {
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(numbers) => numbers.len(),
            Floats::Bf16(numbers) | Floats::F16(numbers) => numbers.len(),
        }
    }

    /// Returns whether both are of the same kind.
    pub fn is_like(&self, other: &Floats) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Returns one number.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Floats::F32(numbers) => numbers[i],
            Floats::Bf16(numbers) => f32::from_bits(u32::from(numbers[i]) << 16),
            Floats::F16(numbers) => half::f16::from_bits(numbers[i]).to_f32(),
        }
    }

    /// Prefetches `count` numbers, which need not exist.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, simd: S, from: usize, count: usize) {
        let start: *const u8 = match self {
            Floats::F32(numbers) => numbers.as_ptr().cast(),
            Floats::Bf16(numbers) | Floats::F16(numbers) => numbers.as_ptr().cast(),
        };
        for byte in (from * self.item()..(from + count) * self.item()).step_by(64) {
            simd.prefetch(start.wrapping_add(byte));
        }
    }

    /// Returns the bytes per number.
    pub fn item(&self) -> usize {
        if matches!(self, Floats::F32(_)) { 4 } else { 2 }
    }
}

/// A matrix of [`Floats`] whose kind is known at compile time: [`with_rows`] makes it.
#[derive(Clone, Copy)]
pub(super) struct Matrix<T> {
    pub numbers: T,
    pub rows: usize,
    pub columns: usize,
}

pub(super) struct F32<'a>(pub &'a [f32]);
pub(super) struct Bf16<'a>(pub &'a [u16]);
pub(super) struct F16<'a>(pub &'a [u16]);

macro_rules! rows {
    ($kind:ident, $load:ident, $x:ident => $number:expr) => {
        impl Rows for Matrix<$kind<'_>> {
            fn rows(&self) -> usize {
                self.rows
            }

            fn columns(&self) -> usize {
                self.columns
            }

            #[inline(always)]
            fn vector<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::F {
                simd.$load(&self.numbers.0[row * self.columns + column..])
            }

            #[inline(always)]
            fn number(&self, row: usize, column: usize) -> f32 {
                let $x = self.numbers.0[row * self.columns + column];
                $number
            }

            #[inline(always)]
            fn address(&self, row: usize, column: usize) -> *const u8 {
                self.numbers
                    .0
                    .as_ptr()
                    .wrapping_add(row * self.columns + column)
                    .cast()
            }
        }
    };
}
rows!(F32, load, x => x);
rows!(Bf16, load_bf16, x => f32::from_bits(u32::from(x) << 16));
rows!(F16, load_f16, x => half::f16::from_bits(x).to_f32());

/// `with_rows!([floats], rows, columns, [matrix] => expression)`: evaluates the expression for a
/// matrix of its kind of number, or for several of one shape and kind.
macro_rules! with_rows {
    ([$($floats:expr),+], $rows:expr, $columns:expr, [$($matrix:ident),+] => $body:expr) => {{
        use $crate::device::cpu::numbers::{Bf16, F16, F32, Floats, Matrix};
        let (rows, columns) = ($rows, $columns);
        match ($($floats,)+) {
            ($(Floats::F32($matrix),)+) => {
                $(let $matrix = Matrix { numbers: F32($matrix), rows, columns };)+
                $body
            }
            ($(Floats::Bf16($matrix),)+) => {
                $(let $matrix = Matrix { numbers: Bf16($matrix), rows, columns };)+
                $body
            }
            ($(Floats::F16($matrix),)+) => {
                $(let $matrix = Matrix { numbers: F16($matrix), rows, columns };)+
                $body
            }
            #[allow(unreachable_patterns)]
            _ => unreachable!("matrices of different kinds"),
        }
    }};
}
pub(super) use with_rows;

/// Writes the columns `from..from + count` of `width` rows, widened, as rows of `width` numbers.
/// Rows past the last repeat it.
#[inline(always)]
pub(super) fn transposed<S: Simd, R: Rows>(
    simd: S,
    matrix: &R,
    first: usize,
    width: usize,
    from: usize,
    count: usize,
    to: &mut [u32],
) {
    let last = matrix.rows() - 1;
    let mut block = [0; 256];
    let whole = count / S::LANES * S::LANES;
    for side in (0..width).step_by(S::LANES) {
        for column in (0..whole).step_by(S::LANES) {
            for (i, to) in block.chunks_exact_mut(S::LANES).take(S::LANES).enumerate() {
                simd.store_i(
                    simd.bits(matrix.vector(simd, (first + side + i).min(last), from + column)),
                    to,
                );
            }
            simd.transpose(&block, &mut to[column * width + side..], width);
        }
        for column in whole..count {
            for i in side..side + S::LANES {
                to[column * width + i] = matrix
                    .number((first + i).min(last), from + column)
                    .to_bits();
            }
        }
    }
}
