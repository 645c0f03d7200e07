//! All computing operations. Each one uses this library's kernels if they are active, and otherwise
//! MLX; no other module makes this choice.
//!
//! A [`Tensor`] is MLX's array. Operations without a choice (reshape, add, concatenate) are called
//! on it directly. The functions here have kernels of their own, or need more than one call.

use std::{ffi::CStr, ops::Range};

use mlx_rs::{
    Array,
    error::Exception,
    fast::{self, ScaledDotProductAttentionMask},
    ops::{
        self as mlx_ops, arange,
        indexing::{TryIndexMutOp, TryIndexOp},
    },
};

use super::{
    Dtype, PackedMatrix, Tensor, Weight,
    cpu::{self, Angles},
    mlx,
};
use crate::Result;

/// The activation inside an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The exact GELU, through the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`, as in CLIP.
    QuickGelu,
}

impl Activation {
    /// Returns the activation that timm or transformers call `name`.
    pub fn from_name(name: &str) -> Option<Activation> {
        match name {
            "silu" | "swish" => Some(Activation::Silu),
            "gelu" | "gelu_erf" => Some(Activation::Gelu),
            "gelu_tanh" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
            "quick_gelu" => Some(Activation::QuickGelu),
            _ => None,
        }
    }
}

/// The keys that each query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees<'a> {
    /// All keys.
    All,
    /// Those up to its own position; the last query is at the position of the last key.
    Past,
    /// The last so many of those up to its own position. At least 1.
    Window(usize),
    /// A range of keys per query, never empty.
    Ranges(&'a [Range<usize>]),
}

/// Makes a tensor from numbers.
///
/// # Panics
/// Panics if the shape has another number of elements.
pub fn floats(numbers: &[f32], shape: &[i32]) -> Tensor {
    Tensor::from_slice(numbers, shape)
}

/// Makes a tensor of token ids, `[1, tokens]`.
pub fn ids(ids: &[u32]) -> Tensor {
    Tensor::from_slice(ids, &[1, ids.len() as i32])
}

/// Concatenates tensors along an axis.
pub fn concat(tensors: &[&Tensor], axis: i32) -> Result<Tensor> {
    Ok(mlx_ops::concatenate(tensors, axis)?)
}

/// Returns a range along an axis; a negative axis counts from the last.
pub fn slice(x: &Tensor, axis: i32, range: Range<i32>) -> Result<Tensor> {
    let axis = if axis < 0 {
        axis + x.ndim() as i32
    } else {
        axis
    };
    Ok(match axis {
        0 => x.try_index(range)?,
        1 => x.try_index((.., range))?,
        2 => x.try_index((.., .., range))?,
        3 => x.try_index((.., .., .., range))?,
        _ => {
            return Err(
                Exception::custom(format!("a slice along axis {axis} of {:?}", x.shape())).into(),
            );
        }
    })
}

/// Returns the rows of `[rows, width]` with these indices, in this order. Indices must be below the
/// number of rows: MLX does not check them.
pub fn take_rows(x: &Tensor, indices: &[u32]) -> Result<Tensor> {
    let indices = Array::from_slice(indices, &[indices.len() as i32]);
    Ok(x.take_axis(&indices, 0)?)
}

/// Makes a tensor of zeros.
pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Tensor> {
    Ok(mlx_ops::zeros_dtype(shape, dtype)?)
}

/// Overwrites these tokens of `[batch, heads, tokens, width]` with `new`.
pub fn write(x: &mut Tensor, tokens: Range<i32>, new: &Tensor) -> Result<()> {
    Ok(x.try_index_mut((.., .., tokens, ..), new)?)
}

/// Returns `x` repeated along axes of size 1.
pub fn broadcast(x: &Tensor, shape: &[i32]) -> Result<Tensor> {
    Ok(mlx_ops::broadcast_to(x, shape)?)
}

/// Multiplies by a number, in x's dtype.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    Ok(x.multiply(like(factor, x)?)?)
}

/// Computes `cap · tanh(x / cap)`.
pub fn cap_softly(x: &Tensor, cap: f32) -> Result<Tensor> {
    scale(&mlx_ops::tanh(scale(x, cap.recip())?)?, cap)
}

/// Computes `x · weightᵀ + bias`, `[.., columns]` to `[.., rows]` in x's dtype.
pub(crate) fn linear(x: &Tensor, weight: Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    if let Some(kernels) = cpu::kernels(x) {
        return Ok(kernels.linear(x, weight, bias)?);
    }
    Ok(match (weight, bias) {
        (Weight::Dense(weight), None) => x.matmul(weight.as_dtype(x.dtype())?.transpose()?)?,
        (Weight::Dense(weight), Some(bias)) => mlx_ops::addmm(
            bias,
            x,
            weight.as_dtype(x.dtype())?.transpose()?,
            None,
            None,
        )?,
        (Weight::Packed(matrix), None) => packed_product(x, matrix)?,
        (Weight::Packed(matrix), Some(bias)) => packed_product(x, matrix)?.add(bias)?,
    })
}

fn packed_product(x: &Tensor, matrix: PackedMatrix) -> Result<Tensor, Exception> {
    let PackedMatrix {
        weight,
        scales,
        biases,
        group_size,
        bits,
        mode,
    } = matrix;
    match biases {
        Some(biases) => mlx_ops::quantized_matmul(
            x,
            weight,
            scales,
            biases,
            true,
            group_size as i32,
            bits as i32,
        ),
        None => mlx::quantized_matmul(x, weight, scales, group_size, bits, mode),
    }
}

/// Computes `down(activation(gate(x)) · up(x))`, each a weight and a bias
/// (<https://arxiv.org/abs/2002.05202>).
pub(crate) fn gated_mlp(
    x: &Tensor,
    activation: Activation,
    parts: [(Weight, Option<&Tensor>); 3],
) -> Result<Tensor> {
    if let Some(kernels) = cpu::kernels(x) {
        return Ok(kernels.gated_mlp(x, activation, parts)?);
    }
    let [gate, up, down] = parts;
    let inner =
        activate(&linear(x, gate.0, gate.1)?, activation)?.multiply(linear(x, up.0, up.1)?)?;
    linear(&inner, down.0, down.1)
}

/// Applies an activation to every element.
///
/// Uses plain operations: mlx-rs's own are compiled, and on the CPU MLX compiles with a C++
/// compiler at run time.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if let Some(kernels) = cpu::kernels(x) {
        return Ok(kernels.activate(activation, x)?);
    }
    Ok(match activation {
        Activation::Silu => x.multiply(mlx_ops::sigmoid(x)?)?,
        Activation::Gelu => {
            let gate = mlx_ops::erf(scale(x, std::f32::consts::FRAC_1_SQRT_2)?)?;
            scale(x, 0.5)?.multiply(gate.add(like(1.0, x)?)?)?
        }
        Activation::GeluTanh => {
            let cubic = scale(&x.multiply(x)?.multiply(x)?, 0.044715)?;
            let inner = scale(&x.add(cubic)?, (2.0 / std::f32::consts::PI).sqrt())?;
            scale(x, 0.5)?.multiply(mlx_ops::tanh(inner)?.add(like(1.0, x)?)?)?
        }
        Activation::QuickGelu => x.multiply(mlx_ops::sigmoid(scale(x, 1.702)?)?)?,
    })
}

/// Normalizes `[.., width]` by its root mean square and a weight `[width]`
/// (<https://arxiv.org/abs/1910.07467>).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    match cpu::kernels(x) {
        Some(kernels) => Ok(kernels.rms_norm(x, weight, eps)?),
        None => Ok(fast::rms_norm(x, Some(weight), eps)?),
    }
}

/// Normalizes `[.., width]` by its mean and deviation, a weight and a bias `[width]`
/// (<https://arxiv.org/abs/1607.06450>).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    match cpu::kernels(x) {
        Some(kernels) => Ok(kernels.layer_norm(x, weight, bias, eps)?),
        None => Ok(fast::layer_norm(x, weight, bias, eps)?),
    }
}

/// Splits `[batch, tokens, heads · width]` into `[batch, heads, tokens, width]`.
pub fn split_heads(x: &Tensor, width: i32) -> Result<Tensor> {
    Ok(x.reshape(&[x.dim(0), x.dim(1), -1, width])?
        .transpose_axes(&[0, 2, 1, 3])?)
}

/// Applies [`split_heads`] and rotary positions (<https://arxiv.org/abs/2104.09864>), rotating the
/// two halves of a head against each other (not "traditional" pairs). The first token has the
/// position `offset`; positions are divided by `scaling`.
pub fn rotate_heads(
    x: &Tensor,
    width: i32,
    theta: f32,
    scaling: f32,
    offset: usize,
) -> Result<Tensor> {
    match cpu::kernels(x) {
        Some(kernels) => Ok(kernels.rope(
            x,
            width as usize,
            Angles::Sequence {
                theta,
                scaling,
                offset,
            },
        )?),
        None => Ok(fast::rope(
            split_heads(x, width)?,
            width,
            false,
            theta,
            scaling.recip(),
            offset as i32,
            None,
        )?),
    }
}

/// The cosines and sines for rotating heads, `[tokens, width / 2]`.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    /// Makes the table from angles in this order, `[tokens, width / 2]`.
    pub fn new(angles: impl Iterator<Item = f32>) -> RotaryTable {
        // In float64, as in the kernels; the angles themselves are float32 in transformers too.
        let (sin, cos) = angles
            .map(|angle| f64::from(angle).sin_cos())
            .map(|(sin, cos)| (sin as f32, cos as f32))
            .unzip();
        RotaryTable { cos, sin }
    }
}

/// Applies [`split_heads`] and rotates each head by its token's row of the table, one half against
/// the other.
pub fn rotate_heads_by(x: &Tensor, width: i32, table: &RotaryTable) -> Result<Tensor> {
    let RotaryTable { cos, sin } = table;
    if let Some(kernels) = cpu::kernels(x) {
        return Ok(kernels.rope(x, width as usize, Angles::Table { cos, sin })?);
    }
    let (x, half) = (split_heads(x, width)?, width / 2);
    let tensor =
        |numbers: &[f32]| floats(numbers, &[numbers.len() as i32 / half, half]).as_dtype(x.dtype());
    let (cos, sin) = (tensor(cos)?, tensor(sin)?);
    let (a, b) = (
        x.try_index((.., .., .., ..half))?,
        x.try_index((.., .., .., half..))?,
    );
    let first = a.multiply(&cos)?.subtract(b.multiply(&sin)?)?;
    let second = b.multiply(&cos)?.add(a.multiply(&sin)?)?;
    concat(&[&first, &second], -1)
}

/// Computes attention of `[batch, heads, queries, width]` over keys and values
/// `[batch, kv heads, keys, width]`; returns `[batch, queries, heads · width]`. Scores are
/// multiplied by `factor` and then, with a soft cap, become `cap · tanh(score / cap)`.
pub fn attention(
    [queries, keys, values]: [&Tensor; 3],
    factor: f32,
    softcap: Option<f32>,
    sees: Sees,
) -> Result<Tensor> {
    let (&[batch, heads, tokens, _], &[_, _, all, _]) = (queries.shape(), keys.shape()) else {
        let shapes = [queries.shape(), keys.shape()];
        return Err(Exception::custom(format!(
            "attention over queries and keys of shape {shapes:?}: expected four axes"
        ))
        .into());
    };
    if let Some(kernels) = cpu::kernels(queries) {
        let sees = match sees {
            Sees::All => cpu::Sees::All,
            Sees::Past => cpu::Sees::Past { window: usize::MAX },
            Sees::Window(window) => cpu::Sees::Past { window },
            Sees::Ranges(ranges) => cpu::Sees::Ranges(ranges),
        };
        return Ok(kernels.attention([queries, keys, values], factor, softcap, sees)?);
    }
    // For a window, only the keys that some query attends to: the last query attends to the last
    // key, and the first to as many before its own.
    let seen = match sees {
        Sees::Window(window) => all.min(
            tokens
                .saturating_sub(1)
                .saturating_add(i32::try_from(window).unwrap_or(i32::MAX)),
        ),
        _ => all,
    };
    let last = |x: &Tensor| {
        if seen < all {
            x.try_index((.., .., all - seen.., ..))
        } else {
            Ok(x.clone())
        }
    };
    let (keys, values) = (last(keys)?, last(values)?);
    let mask = match sees {
        Sees::All => None,
        Sees::Past if softcap.is_none() => Some(ScaledDotProductAttentionMask::Causal),
        Sees::Past => Some(ScaledDotProductAttentionMask::Array(&window_mask(
            tokens,
            seen,
            usize::MAX,
        )?)),
        Sees::Window(window) => Some(ScaledDotProductAttentionMask::Array(&window_mask(
            tokens, seen, window,
        )?)),
        Sees::Ranges(ranges) => Some(ScaledDotProductAttentionMask::Array(&range_mask(
            ranges, seen,
        )?)),
    };
    let mixed = match softcap {
        None => fast::scaled_dot_product_attention(queries, &keys, &values, factor, mask, None)?,
        Some(cap) => capped_attention([queries, &keys, &values], factor, cap, mask)?,
    };
    Ok(mixed
        .transpose_axes(&[0, 2, 1, 3])?
        .reshape(&[batch, tokens, heads * values.dim(3)])?)
}

/// Computes attention with a soft cap, which MLX's attention lacks.
fn capped_attention(
    [queries, keys, values]: [&Tensor; 3],
    factor: f32,
    cap: f32,
    mask: Option<ScaledDotProductAttentionMask>,
) -> Result<Tensor> {
    let (batch, heads, tokens, width) = (
        queries.dim(0),
        queries.dim(1),
        queries.dim(2),
        queries.dim(3),
    );
    let kv_heads = keys.dim(1);
    let queries =
        scale(queries, factor)?.reshape(&[batch, kv_heads, heads / kv_heads, tokens, width])?;
    let shared = |x: &Tensor| x.reshape(&[batch, kv_heads, 1, x.dim(2), x.dim(3)]);
    let scores = queries.matmul(shared(keys)?.transpose_axes(&[0, 1, 2, 4, 3])?)?;
    let mut scores = cap_softly(&scores, cap)?;
    if let Some(ScaledDotProductAttentionMask::Array(seen)) = mask {
        scores = mlx_ops::select(seen, &scores, like(f32::NEG_INFINITY, &scores)?)?;
    }
    let weights = mlx_ops::softmax_axis(&scores, -1, true)?;
    Ok(weights
        .matmul(shared(values)?)?
        .reshape(&[batch, heads, tokens, values.dim(3)])?)
}

/// Makes the mask of the last queries over the last keys, `[queries, keys]`, true where a query
/// attends to a key.
fn window_mask(queries: i32, keys: i32, window: usize) -> Result<Array> {
    let own = arange::<_, i32>(keys - queries, keys, None)?.reshape(&[queries, 1])?;
    let other = arange::<_, i32>(0, keys, None)?.reshape(&[1, keys])?;
    let near =
        other.gt(&own.subtract(Array::from_int(i32::try_from(window).unwrap_or(i32::MAX)))?)?;
    Ok(near.logical_and(other.le(&own)?)?)
}

/// Makes the mask of queries with a range of keys each.
fn range_mask(ranges: &[Range<usize>], keys: i32) -> Result<Array> {
    let side = |bound: fn(&Range<usize>) -> usize| {
        let bounds: Vec<i32> = ranges.iter().map(|range| bound(range) as i32).collect();
        Array::from_slice(&bounds, &[ranges.len() as i32, 1])
    };
    let other = arange::<_, i32>(0, keys, None)?.reshape(&[1, keys])?;
    Ok(other
        .ge(side(|range| range.start))?
        .logical_and(other.lt(side(|range| range.end))?)?)
}

/// Quantizes `[rows, columns]`; returns the packed values, the scales and, in the affine mode, the
/// biases. The group size must divide the columns.
pub(crate) fn quantize(
    dense: &Tensor,
    group_size: usize,
    bits: usize,
    mode: &CStr,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let dense = &super::inject_into("quantizing", dense.clone())?;
    let parts = match mode.to_bytes() {
        b"affine" => {
            let (weight, scales, biases) =
                mlx_ops::quantize(dense, group_size as i32, bits as i32)?;
            (weight, scales, Some(biases))
        }
        _ => {
            let (weight, scales) = mlx::quantize(dense, group_size, bits, mode)?;
            (weight, scales, None)
        }
    };
    mlx_rs::transforms::eval([&parts.0, &parts.1].into_iter().chain(&parts.2))?;
    Ok(parts)
}

/// Returns the rows of a weight with these indices, `[.., columns]`, in `dtype`. Indices must be
/// below the number of rows: MLX does not check them.
///
/// In the affine mode they are computed in `dtype`, as in a product; in the others no dtype causes
/// rounding.
pub(crate) fn rows(weight: Weight, numbers: &Tensor, dtype: Dtype) -> Result<Tensor> {
    let take = |tensor: &Tensor| tensor.take_axis(numbers, 0);
    let matrix = match weight {
        Weight::Dense(weight) => return Ok(take(weight)?.as_dtype(dtype)?),
        Weight::Packed(matrix) => matrix,
    };
    let PackedMatrix {
        group_size,
        bits,
        mode,
        ..
    } = matrix;
    let (weight, scales) = (take(matrix.weight)?, take(matrix.scales)?);
    Ok(match matrix.biases {
        Some(biases) => {
            let (scales, biases) = (scales.as_dtype(dtype)?, take(biases)?.as_dtype(dtype)?);
            mlx_ops::dequantize(weight, scales, &biases, group_size as i32, bits as i32)?
        }
        None => mlx::dequantize(&weight, &scales, group_size, bits, mode)?.as_dtype(dtype)?,
    })
}

/// Returns a scalar in x's dtype: a float32 one would promote everything after it.
fn like(value: f32, x: &Tensor) -> Result<Tensor, Exception> {
    Array::from_f32(value).as_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Backend, CpuKernels, Device};

    /// Values from torch.nn.functional.gelu (both forms), torch.nn.functional.silu and x *
    /// sigmoid(1.702 x), in float64.
    #[test]
    fn activations_agree_with_pytorch() {
        let x = floats(&[-3.0f32, -0.5, 0.0, 0.7, 2.0], &[5]);
        let check = |activation: Activation, expected: [f32; 5]| {
            for (y, e) in activate(&x, activation)
                .unwrap()
                .as_slice::<f32>()
                .iter()
                .zip(expected)
            {
                assert!((y - e).abs() < 1e-6, "{activation:?}: {y} {e}");
            }
        };
        check(
            Activation::Gelu,
            [-0.004_049_7, -0.154_268_77, 0.0, 0.530_625_4, 1.954_499_7],
        );
        check(
            Activation::GeluTanh,
            [-0.003_637_392, -0.154_286, 0.0, 0.530_570_15, 1.954_597_7],
        );
        check(
            Activation::QuickGelu,
            [-0.018_071_31, -0.149_611_56, 0.0, 0.536_893_96, 1.935_658_6],
        );
        check(
            Activation::Silu,
            [-0.142_277_6, -0.188_770_33, 0.0, 0.467_731_48, 1.761_594_2],
        );
    }

    #[test]
    fn bfloat16_stays_bfloat16() {
        let x = floats(&[0.5f32], &[1]).as_dtype(Dtype::Bfloat16).unwrap();
        for activation in [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
        ] {
            assert_eq!(activate(&x, activation).unwrap().dtype(), Dtype::Bfloat16);
        }
    }

    /// Queries of zeros return the mean of the values they attend to, here the keys' positions.
    /// Hidden keys count for almost nothing.
    #[test]
    fn each_query_sees_what_it_may() {
        for kernels in [CpuKernels::Own, CpuKernels::Mlx] {
            let device = Device::new(Backend::Cpu).unwrap().with_cpu_kernels(kernels);
            for softcap in [None, Some(50.0)] {
                let means = |tokens: i32, offset: i32, sees: Sees| {
                    device.run(|| {
                        let keys = tokens + offset;
                        let positions: Vec<f32> = (0..keys).flat_map(|i| [i as f32; 2]).collect();
                        let values = floats(&positions, &[1, 1, keys, 2]);
                        let queries =
                            floats(&vec![0.0f32; 4 * tokens as usize], &[1, 2, tokens, 2]);
                        let mixed =
                            attention([&queries, &values, &values], 0.7, softcap, sees).unwrap();
                        let mixed = mixed.to_vec_cast::<f32>().unwrap();
                        mixed
                            .chunks(4)
                            .map(|token| (token[3] * 16.0).round() / 16.0)
                            .collect::<Vec<_>>()
                    })
                };
                assert_eq!(means(3, 2, Sees::Window(2)), [1.5, 2.5, 3.5], "{kernels:?}");
                assert_eq!(means(3, 0, Sees::Window(2)), [0.0, 0.5, 1.5], "{kernels:?}");
                assert_eq!(means(1, 6, Sees::Window(3)), [5.0], "{kernels:?}");
                assert_eq!(means(2, 1, Sees::Window(1)), [1.0, 2.0], "{kernels:?}");
                assert_eq!(
                    means(2, 2, Sees::Window(usize::MAX)),
                    means(2, 2, Sees::Past),
                    "{kernels:?}"
                );
                assert_eq!(means(2, 2, Sees::All), [1.5, 1.5], "{kernels:?}");
                assert_eq!(
                    means(3, 2, Sees::Ranges(&[0..5, 1..3, 4..5])),
                    [2.0, 1.5, 4.0],
                    "{kernels:?}"
                );
            }
        }
    }
}
