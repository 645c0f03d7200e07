//! Normalization and rotary positions.

use super::{
    pool::Pool,
    shared::Shared,
    simd::{Isa, Kernel, Simd, with_simd},
};

/// The kind of normalization.
#[derive(Clone, Copy)]
pub(super) enum Norm<'a> {
    /// `x / sqrt(mean(x²) + eps) · weight`
    Rms { weight: &'a [f32] },
    /// `(x - mean(x)) / sqrt(variance(x) + eps) · weight + bias`
    Layer { weight: &'a [f32], bias: &'a [f32] },
}

impl Norm<'_> {
    pub fn width(&self) -> usize {
        match self {
            Norm::Rms { weight } | Norm::Layer { weight, .. } => weight.len(),
        }
    }
}

/// Normalizes rows as wide as the weight.
pub(super) fn normalize(isa: Isa, pool: &Pool, norm: Norm, eps: f32, x: &[f32], out: &mut [f32]) {
    let width = norm.width();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    let in_task = ((1 << 14) / width).max(1);
    let out = Shared::new(out);
    pool.run_if(x.len() > 1 << 15, rows.div_ceil(in_task), &|task| {
        let from = task * in_task * width;
        let len = (in_task * width).min(x.len() - from);
        with_simd!(isa, simd => simd.run(Rows { norm, eps, x: &x[from..from + len], out: out.part(from, len) }));
    });
}

struct Rows<'a> {
    norm: Norm<'a>,
    eps: f32,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.norm.width();
        for (x, out) in self
            .x
            .chunks_exact(width)
            .zip(self.out.chunks_exact_mut(width))
        {
            match self.norm {
                Norm::Rms { weight } => {
                    let factor = 1.0 / (squares(simd, x, 0.0) / width as f32 + self.eps).sqrt();
                    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                        *out = x * factor * weight;
                    }
                }
                Norm::Layer { weight, bias } => {
                    let mean = total(simd, x) / width as f32;
                    let factor = 1.0 / (squares(simd, x, mean) / width as f32 + self.eps).sqrt();
                    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = (x - mean) * factor * weight + bias;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn total<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let whole = x.len() / S::LANES * S::LANES;
    let mut sum = simd.splat(0.0);
    for x in x[..whole].chunks_exact(S::LANES) {
        sum = simd.add(sum, simd.load(x));
    }
    simd.sum(sum) + x[whole..].iter().sum::<f32>()
}

/// Returns the sum of `(x - mean)²`.
#[inline(always)]
fn squares<S: Simd>(simd: S, x: &[f32], mean: f32) -> f32 {
    let whole = x.len() / S::LANES * S::LANES;
    let mut sum = simd.splat(0.0);
    for x in x[..whole].chunks_exact(S::LANES) {
        let x = simd.sub(simd.load(x), simd.splat(mean));
        sum = simd.fma(x, x, sum);
    }
    simd.sum(sum)
        + x[whole..]
            .iter()
            .map(|x| (x - mean) * (x - mean))
            .sum::<f32>()
}

/// The angles that heads are rotated by.
#[derive(Clone, Copy)]
pub(crate) enum Angles<'a> {
    /// Those of consecutive positions, the first one `offset`, divided by `scaling`.
    Sequence {
        theta: f32,
        scaling: f32,
        offset: usize,
    },
    /// Cosines and sines for each row and each pair of numbers, `[rows, width / 2]`.
    Table { cos: &'a [f32], sin: &'a [f32] },
}

/// Rotates heads by their positions, one half of a head against the other:
/// `[batch, tokens, heads, width]` to `[batch, heads, tokens, width]`.
pub(super) fn rope(
    pool: &Pool,
    x: &[f32],
    [batch, tokens, heads, width]: [usize; 4],
    angles: Angles,
    out: &mut [f32],
) {
    assert!(x.len() == batch * tokens * heads * width && out.len() == x.len());
    let half = width / 2;
    // As in transformers: frequencies and angles are computed in float32.
    let frequencies: Vec<f32> = match angles {
        Angles::Sequence { theta, scaling, .. } => (0..half)
            .map(|i| 1.0 / theta.powf((2 * i) as f32 / width as f32) / scaling)
            .collect(),
        Angles::Table { cos, sin } => {
            assert!(cos.len() == tokens * half && sin.len() == cos.len());
            Vec::new()
        }
    };
    let shared = Shared::new(out);
    pool.run_if(x.len() > 1 << 15, batch * tokens, &|i| {
        let (b, token) = (i / tokens, i % tokens);
        let angles: Vec<(f32, f32)> = match angles {
            Angles::Sequence { offset, .. } => {
                let angle =
                    |frequency: &f32| f64::from((offset + token) as f32 * frequency).sin_cos();
                frequencies
                    .iter()
                    .map(angle)
                    .map(|(sin, cos)| (sin as f32, cos as f32))
                    .collect()
            }
            Angles::Table { cos, sin } => {
                let row = token * half..(token + 1) * half;
                sin[row.clone()]
                    .iter()
                    .copied()
                    .zip(cos[row].iter().copied())
                    .collect()
            }
        };
        for (head, x) in x[i * heads * width..][..heads * width]
            .chunks_exact(width)
            .enumerate()
        {
            let out = shared.part(((b * heads + head) * tokens + token) * width, width);
            for (j, (sin, cos)) in angles.iter().enumerate() {
                out[j] = x[j] * cos - x[half + j] * sin;
                out[half + j] = x[half + j] * cos + x[j] * sin;
            }
        }
    });
}
