//! Products with matrices in the packed formats of MLX that have no kernel of their own, one number
//! at a time.

use std::sync::LazyLock;

use super::{
    dense::multiply_rows,
    numbers::{Floats, Rows},
    pool::Pool,
    simd::{Isa, Simd},
};

/// A matrix `[rows, columns]` whose values are codes of `bits` bits, the first in the lowest bits
/// of the first word.
#[derive(Clone, Copy)]
pub(crate) struct Coded<'a> {
    pub rows: usize,
    pub columns: usize,
    pub bits: usize,
    pub group_size: usize,
    /// `[rows, columns · bits / 32]`
    pub words: &'a [u32],
    pub code: Code<'a>,
}

/// The meaning of codes. Scales and biases are `[rows, columns / group size]`.
#[derive(Clone, Copy)]
pub(crate) enum Code<'a> {
    /// `scale · code + bias`
    Affine {
        scales: Floats<'a>,
        biases: Floats<'a>,
    },
    /// 4-bit floats times a power of two.
    Mxfp4 { scales: &'a [u8] },
    /// 8-bit floats times a power of two.
    Mxfp8 { scales: &'a [u8] },
    /// 4-bit floats times an 8-bit float.
    Nvfp4 { scales: &'a [u8] },
}

/// The values of all codes in the OCP's float formats, as far as they are used here
/// (<https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf>).
struct Tables {
    e2m1: [f32; 256],
    e4m3: [f32; 256],
    e8m0: [f32; 256],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables {
    e2m1: std::array::from_fn(|byte| small_float(byte & 15, 2, 1)),
    e4m3: std::array::from_fn(|byte| {
        if byte & 127 == 127 {
            f32::NAN
        } else {
            small_float(byte, 4, 3)
        }
    }),
    e8m0: std::array::from_fn(|byte| {
        if byte == 255 {
            f32::NAN
        } else {
            2f32.powi(byte as i32 - 127)
        }
    }),
});

/// Decodes a float with a sign, so many bits of exponent and mantissa, and no infinities.
fn small_float(code: usize, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let one = 1 << mantissa_bits;
    let (mantissa, exponent) = (code % one, code / one % (1 << exponent_bits));
    let bias = (1 << (exponent_bits - 1)) - 1;
    let magnitude = match exponent {
        0 => mantissa as f32 / one as f32 * 2f32.powi(1 - bias),
        _ => (one + mantissa) as f32 / one as f32 * 2f32.powi(exponent as i32 - bias),
    };
    if code >> (exponent_bits + mantissa_bits) == 0 {
        magnitude
    } else {
        -magnitude
    }
}

impl Coded<'_> {
    /// Computes `x [x rows, columns] · selfᵀ + bias` into `out [x rows, rows]`.
    pub fn multiply(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        assert_eq!(self.words.len(), self.rows * self.columns * self.bits / 32);
        // The time depends on the number of values, not of bytes.
        multiply_rows(isa, pool, self, 4, x, bias, out);
    }

    fn code(&self, row: usize, column: usize) -> usize {
        let bit = (row * self.columns + column) * self.bits;
        let (word, shift) = (bit / 32, bit % 32);
        let next = self.words.get(word + 1).copied().unwrap_or(0);
        let bits = (u64::from(next) << 32 | u64::from(self.words[word])) >> shift;
        bits as usize & ((1 << self.bits) - 1)
    }
}

impl Rows for Coded<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::F {
        let mut numbers = [0.0; 16];
        for (i, number) in numbers[..S::LANES].iter_mut().enumerate() {
            *number = self.number(row, column + i);
        }
        simd.load(&numbers)
    }

    fn number(&self, row: usize, column: usize) -> f32 {
        let code = self.code(row, column);
        let group = row * (self.columns / self.group_size) + column / self.group_size;
        match self.code {
            Code::Affine { scales, biases } => {
                scales.get(group).mul_add(code as f32, biases.get(group))
            }
            Code::Mxfp4 { scales } => TABLES.e2m1[code] * TABLES.e8m0[usize::from(scales[group])],
            Code::Mxfp8 { scales } => TABLES.e4m3[code] * TABLES.e8m0[usize::from(scales[group])],
            Code::Nvfp4 { scales } => TABLES.e2m1[code] * TABLES.e4m3[usize::from(scales[group])],
        }
    }

    fn address(&self, row: usize, column: usize) -> *const u8 {
        self.words
            .as_ptr()
            .wrapping_add((row * self.columns + column) * self.bits / 32)
            .cast()
    }
}
