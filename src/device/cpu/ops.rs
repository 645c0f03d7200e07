//! The kernels for arrays: each takes evaluated arrays and returns an array.

use std::ffi::CStr;

use half::slice::HalfFloatSliceExt;
use mlx_rs::{
    Array, ArrayElement, Dtype,
    error::{AsSliceError, Exception},
    transforms::eval,
};

use super::{
    attention::{Attention, Heads, Sees},
    buffer::{Buffer, NoMemory, or_no_memory, with_scratch},
    coded::{Code, Coded},
    dense::Dense,
    math,
    norm::{Angles, Norm, normalize, rope},
    numbers::Floats,
    pool::Pool,
    quantized::Affine,
    simd::Isa,
};
use crate::device::{mlx, ops::Activation};

/// The active kernels for this CPU.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(super) isa: Isa,
    pub(super) pool: &'static Pool,
}

/// A matrix `[rows, columns]` in one of MLX's packed formats.
#[derive(Clone, Copy)]
pub(crate) struct PackedMatrix<'a> {
    /// `[rows, columns · bits / 32]`
    pub weight: &'a Array,
    /// `[rows, columns / group size]`
    pub scales: &'a Array,
    /// `[rows, columns / group size]`; only in the affine mode.
    pub biases: Option<&'a Array>,
    pub group_size: usize,
    pub bits: usize,
    /// The mode, with MLX's name.
    pub mode: &'a CStr,
}

/// The weight of a linear layer.
#[derive(Clone, Copy)]
pub(crate) enum Weight<'a> {
    /// `[rows, columns]` in float32, bfloat16 or float16.
    Dense(&'a Array),
    Packed(PackedMatrix<'a>),
}

/// A linear layer whose arrays are evaluated and contiguous.
struct Layer<'a> {
    rows: usize,
    columns: usize,
    weight: Array,
    packed: Option<Packed<'a>>,
    bias: Option<Array>,
}

struct Packed<'a> {
    scales: Array,
    biases: Option<Array>,
    matrix: PackedMatrix<'a>,
}

impl<'a> Layer<'a> {
    fn new(weight: Weight<'a>, bias: Option<&Array>) -> Result<Layer<'a>, Exception> {
        let (weight, packed) = match weight {
            Weight::Dense(weight) => (contiguous(weight)?, None),
            Weight::Packed(matrix) => (contiguous(matrix.weight)?, Some(Packed::new(matrix)?)),
        };
        let (rows, columns) = match &packed {
            Some(Packed { scales, matrix, .. }) => {
                let (rows, groups) = matrix_shape(scales)?;
                (rows, groups * matrix.group_size)
            }
            None => matrix_shape(&weight)?,
        };
        let bias = bias.map(wide).transpose()?;
        if bias.as_ref().is_some_and(|bias| bias.size() != rows) {
            return Err(Exception::custom(format!(
                "a bias for a matrix without {rows} rows"
            )));
        }
        Ok(Layer {
            rows,
            columns,
            weight,
            packed,
            bias,
        })
    }

    /// `x · weightᵀ + bias`
    fn multiply(&self, kernels: Kernels, x: &[f32], out: &mut [f32]) -> Result<(), Exception> {
        let (&Layer { rows, columns, .. }, Kernels { isa, pool }) = (self, kernels);
        let bias = self.bias.as_ref().map(numbers).transpose()?;
        let Some(Packed {
            scales,
            biases,
            matrix,
        }) = &self.packed
        else {
            Dense {
                rows,
                columns,
                numbers: floats(&self.weight)?,
            }
            .multiply(isa, pool, x, bias, out);
            return Ok(());
        };
        let (bits, group_size, words) = (
            matrix.bits,
            matrix.group_size,
            numbers::<u32>(&self.weight)?,
        );
        let code = match (biases, matrix.mode.to_bytes()) {
            (Some(biases), b"affine") => {
                let (scales, biases) = (floats(scales)?, floats(biases)?);
                if bits == 4 || bits == 8 {
                    Affine {
                        rows,
                        columns,
                        bits,
                        group_size,
                        words,
                        scales,
                        biases,
                    }
                    .multiply(isa, pool, x, bias, out);
                    return Ok(());
                }
                Code::Affine { scales, biases }
            }
            (None, b"mxfp4") => Code::Mxfp4 {
                scales: numbers(scales)?,
            },
            (None, b"mxfp8") => Code::Mxfp8 {
                scales: numbers(scales)?,
            },
            (None, b"nvfp4") => Code::Nvfp4 {
                scales: numbers(scales)?,
            },
            _ => {
                return Err(Exception::custom(format!(
                    "a matrix in the mode {}",
                    matrix.mode.to_string_lossy()
                )));
            }
        };
        Coded {
            rows,
            columns,
            bits,
            group_size,
            words,
            code,
        }
        .multiply(isa, pool, x, bias, out);
        Ok(())
    }
}

impl<'a> Packed<'a> {
    fn new(matrix: PackedMatrix<'a>) -> Result<Packed<'a>, Exception> {
        let (scales, biases) = (
            contiguous(matrix.scales)?,
            matrix.biases.map(contiguous).transpose()?,
        );
        // One kernel reads both in the same dtype.
        let (scales, biases) = match biases {
            Some(biases) if biases.dtype() != scales.dtype() => {
                (wide(&scales)?, Some(wide(&biases)?))
            }
            biases => (scales, biases),
        };
        Ok(Packed {
            scales,
            biases,
            matrix,
        })
    }
}

impl Kernels {
    /// Maps `x [.., columns]` to `x · weightᵀ + bias [.., rows]`.
    pub fn linear(
        self,
        x: &Array,
        weight: Weight,
        bias: Option<&Array>,
    ) -> Result<Array, Exception> {
        let layer = Layer::new(weight, bias)?;
        let x = contiguous(x)?;
        let shape = [rows_for(&x, &layer)?, &[layer.rows as i32]].concat();
        new_array(&shape, |out| layer.multiply(self, numbers(&x)?, out))
    }

    /// Computes `down(activation(gate(x)) · up(x))`.
    pub fn gated_mlp(
        self,
        x: &Array,
        activation: Activation,
        [gate, up, down]: [(Weight, Option<&Array>); 3],
    ) -> Result<Array, Exception> {
        let [gate, up, down] = [
            Layer::new(gate.0, gate.1)?,
            Layer::new(up.0, up.1)?,
            Layer::new(down.0, down.1)?,
        ];
        if (up.rows, up.columns) != (gate.rows, gate.columns) || down.columns != gate.rows {
            let shapes = [&gate, &up, &down].map(|layer| [layer.rows, layer.columns]);
            return Err(Exception::custom(format!(
                "gate, up and down projections of {shapes:?} do not match"
            )));
        }
        let x = contiguous(x)?;
        let rows = rows_for(&x, &gate)?;
        let size = rows.iter().map(|size| *size as usize).product::<usize>() * gate.rows;
        new_array(&[rows, &[down.rows as i32]].concat(), |out| {
            with_scratch(2 * size, |scratch| {
                let (inner, times) = scratch.split_at_mut(size);
                gate.multiply(self, numbers(&x)?, inner)?;
                up.multiply(self, numbers(&x)?, times)?;
                self.apply(activation, None, Some(times), inner);
                down.multiply(self, inner, out)
            })
        })
    }

    /// Applies an activation to every number.
    pub fn activate(self, activation: Activation, x: &Array) -> Result<Array, Exception> {
        let x = contiguous(x)?;
        new_array(x.shape(), |out| {
            self.apply(activation, Some(numbers(&x)?), None, out);
            Ok(())
        })
    }

    fn apply(
        self,
        activation: Activation,
        x: Option<&[f32]>,
        times: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let Kernels { isa, pool } = self;
        match activation {
            Activation::Silu => math::map(isa, pool, math::Silu, x, times, out),
            Activation::Gelu => math::map(isa, pool, math::Gelu, x, times, out),
            Activation::GeluTanh => math::map(isa, pool, math::GeluTanh, x, times, out),
            Activation::QuickGelu => math::map(isa, pool, math::QuickGelu, x, times, out),
        }
    }

    /// Root mean square normalization of `[.., width]` by a weight `[width]`.
    pub fn rms_norm(self, x: &Array, weight: &Array, eps: f32) -> Result<Array, Exception> {
        let weight = wide(weight)?;
        self.normalize(
            x,
            Norm::Rms {
                weight: numbers(&weight)?,
            },
            eps,
        )
    }

    /// Layer normalization of `[.., width]` by a weight and a bias `[width]`.
    pub fn layer_norm(
        self,
        x: &Array,
        weight: &Array,
        bias: &Array,
        eps: f32,
    ) -> Result<Array, Exception> {
        let (weight, bias) = (wide(weight)?, wide(bias)?);
        self.normalize(
            x,
            Norm::Layer {
                weight: numbers(&weight)?,
                bias: numbers(&bias)?,
            },
            eps,
        )
    }

    fn normalize(self, x: &Array, norm: Norm, eps: f32) -> Result<Array, Exception> {
        if x.shape().last() != Some(&(norm.width() as i32)) {
            return Err(misfit("rows to normalize", x));
        }
        let x = contiguous(x)?;
        new_array(x.shape(), |out| {
            normalize(self.isa, self.pool, norm, eps, numbers(&x)?, out);
            Ok(())
        })
    }

    /// Applies rotary positions: `[batch, tokens, heads · width]` to
    /// `[batch, heads, tokens, width]`.
    pub fn rope(self, x: &Array, width: usize, angles: Angles) -> Result<Array, Exception> {
        let &[batch, tokens, all] = x.shape() else {
            return Err(misfit("heads", x));
        };
        let (shape, heads) = (
            [batch, all / width as i32, tokens, width as i32],
            all as usize / width,
        );
        let half = width / 2 * tokens as usize;
        if let Angles::Table { cos, sin } = angles
            && (cos.len(), sin.len()) != (half, half)
        {
            return Err(misfit("a table of angles for heads", x));
        }
        let x = contiguous(x)?;
        new_array(&shape, |out| {
            rope(
                self.pool,
                numbers(&x)?,
                [batch as usize, tokens as usize, heads, width],
                angles,
                out,
            );
            Ok(())
        })
    }

    /// Computes attention of `[batch, heads, queries, width]` over keys and values
    /// `[batch, kv heads, keys, width]`; returns `[batch, queries, heads · width]`.
    pub fn attention(
        self,
        [queries, keys, values]: [&Array; 3],
        scale: f32,
        softcap: Option<f32>,
        sees: Sees,
    ) -> Result<Array, Exception> {
        eval([queries, keys, values])?;
        let arrays = [wide_heads(queries)?, wide_heads(keys)?, wide_heads(values)?];
        let [queries, keys, values] = [heads(&arrays[0])?, heads(&arrays[1])?, heads(&arrays[2])?];
        let ([batch, count, tokens, width], [k_batch, k_heads, k_tokens, k_width]) =
            (queries.shape, keys.shape);
        let fits = (k_batch, k_width) == (batch, width)
            && k_heads > 0
            && count.is_multiple_of(k_heads)
            && k_tokens > 0;
        let sees_some = match sees {
            Sees::All => true,
            Sees::Past { window } => window > 0,
            Sees::Ranges(ranges) => {
                ranges.len() == tokens
                    && ranges
                        .iter()
                        .all(|range| range.start < range.end && range.end <= k_tokens)
            }
        };
        if !fits || values.shape[..3] != keys.shape[..3] || !sees_some {
            return Err(Exception::custom(format!(
                "attention of {:?} over {:?} and {:?}",
                queries.shape, keys.shape, values.shape
            )));
        }
        new_array(
            &[
                batch as i32,
                tokens as i32,
                (count * values.shape[3]) as i32,
            ],
            |out| {
                Attention {
                    queries,
                    keys,
                    values,
                    sees,
                    scale,
                    softcap,
                }
                .run(self.isa, self.pool, out);
                Ok(())
            },
        )
    }
}

fn misfit(what: &str, array: &Array) -> Exception {
    Exception::custom(format!(
        "{what} of shape {:?} and {:?} does not fit",
        array.shape(),
        array.dtype()
    ))
}

/// Returns the rows and columns of a matrix.
fn matrix_shape(matrix: &Array) -> Result<(usize, usize), Exception> {
    match matrix.shape() {
        [rows, columns] => Ok((*rows as usize, *columns as usize)),
        _ => Err(misfit("a matrix", matrix)),
    }
}

/// Returns the shape of x without its last axis, which must match the layer's columns.
fn rows_for<'x>(x: &'x Array, layer: &Layer) -> Result<&'x [i32], Exception> {
    match x.shape() {
        [rows @ .., columns] if *columns as usize == layer.columns => Ok(rows),
        other => Err(Exception::custom(format!(
            "{other:?} times a matrix of {} columns",
            layer.columns
        ))),
    }
}

/// Returns a float32 array that `fill` fills.
fn new_array(
    shape: &[i32],
    fill: impl FnOnce(&mut [f32]) -> Result<(), Exception>,
) -> Result<Array, Exception> {
    let filled = or_no_memory(|| {
        let mut numbers = Buffer::zeros(shape.iter().map(|size| *size as usize).product());
        fill(&mut numbers)?;
        Ok(Array::from_slice(&numbers, shape))
    });
    filled.unwrap_or_else(|NoMemory(bytes)| Err(Exception::custom(format!("{NO_MEMORY}{bytes}"))))
}

/// The start of an exception's text if a kernel could not allocate memory; the number of bytes
/// follows.
const NO_MEMORY: &str = "out of memory, bytes: ";

/// Returns how many bytes a kernel failed to allocate, if that is what an exception is about.
pub(in crate::device) fn refused_bytes(exception: &Exception) -> Option<u64> {
    exception.what().strip_prefix(NO_MEMORY)?.parse().ok()
}

/// Returns the array, evaluated, with contiguous rows.
fn contiguous(x: &Array) -> Result<Array, Exception> {
    x.eval()?;
    if mlx::is_row_contiguous(x)? {
        return Ok(x.clone());
    }
    let copy = x.contiguous()?;
    copy.eval()?;
    Ok(copy)
}

/// Returns the same in float32.
fn wide(x: &Array) -> Result<Array, Exception> {
    if x.dtype() == Dtype::Float32 {
        contiguous(x)
    } else {
        contiguous(&x.as_dtype(Dtype::Float32)?)
    }
}

/// Returns the numbers of a contiguous array, which may be none.
fn numbers<T: ArrayElement>(x: &Array) -> Result<&[T], Exception> {
    match x.try_as_slice() {
        Ok(numbers) => Ok(numbers),
        Err(AsSliceError::Null) if x.size() == 0 => Ok(&[]),
        Err(_) => Err(misfit("an array", x)),
    }
}

fn floats(x: &Array) -> Result<Floats<'_>, Exception> {
    match x.dtype() {
        Dtype::Float32 => Ok(Floats::F32(numbers(x)?)),
        Dtype::Bfloat16 => Ok(Floats::Bf16(numbers::<half::bf16>(x)?.reinterpret_cast())),
        Dtype::Float16 => Ok(Floats::F16(numbers::<half::f16>(x)?.reinterpret_cast())),
        _ => Err(misfit("a matrix", x)),
    }
}

/// Returns the array in float32, with the numbers of a head contiguous.
fn wide_heads(x: &Array) -> Result<Array, Exception> {
    let side_by_side = x.strides().last() == Some(&1) || x.shape().last() == Some(&1);
    if x.dtype() == Dtype::Float32 && side_by_side {
        Ok(x.clone())
    } else {
        wide(x)
    }
}

fn heads(x: &Array) -> Result<Heads<'_>, Exception> {
    let (&[batch, heads, tokens, width], &[first, second, third, _]) = (x.shape(), x.strides())
    else {
        return Err(misfit("heads", x));
    };
    let shape = [
        batch as usize,
        heads as usize,
        tokens as usize,
        width as usize,
    ];
    Ok(Heads {
        data: mlx::strided_numbers(x)?,
        shape,
        strides: [first, second, third],
    })
}
