//! The weights of linear layers and embeddings: as they are, or quantized.

use mlx_rs::{Array, Dtype, error::Exception, ops};

use crate::{
    Result,
    checkpoint::{Quantization, Weights},
};

/// `[rows, columns]`
#[derive(Debug, Clone)]
pub enum Matrix {
    /// The numbers.
    Dense(Array),
    /// A few bits for each.
    Quantized(QuantizedMatrix),
}

/// A matrix in MLX's packed form.
#[derive(Debug, Clone)]
pub struct QuantizedMatrix {
    /// How.
    pub quantization: Quantization,
    /// The bits, 32 to a word, `[rows, columns · bits / 32]`.
    pub weight: Array,
    /// `[rows, columns / group size]`
    pub scales: Array,
    /// `[rows, columns / group size]`
    pub biases: Array,
}

impl Matrix {
    /// Reads `weight`, `[rows, columns]`; with `scales` and `biases` beside it where it is quantized. `dtype` is that of the activations: on a
    /// GPU everything is cast to it, on the CPU it stays as it is stored.
    ///
    /// Where the loading quantizes, the matrix is read, quantized, and let go of.
    pub fn load(weights: &Weights, rows: usize, columns: usize, dtype: Dtype) -> Result<Matrix> {
        if weights.has("scales") {
            return QuantizedMatrix::load(weights, rows, columns, dtype).map(Matrix::Quantized);
        }
        let dense = Matrix::load_dense(weights, &[rows, columns], dtype)?;
        match weights.quantization_to_apply(columns) {
            Some(quantization) => Ok(Matrix::Quantized(QuantizedMatrix::quantize(&dense, quantization)?)),
            None => Ok(Matrix::Dense(dense)),
        }
    }

    /// Reads `weight` of any shape, not quantized.
    pub fn load_dense(weights: &Weights, shape: &[usize], dtype: Dtype) -> Result<Array> {
        match dtype {
            Dtype::Float32 => weights.load("weight", shape),
            _ => load_vector(weights, "weight", shape, dtype),
        }
    }

    /// `x [.., columns]` to `x · matrixᵀ [.., rows]`, in x's dtype.
    pub fn apply(&self, x: &Array) -> Result<Array, Exception> {
        match self {
            Matrix::Dense(weight) => x.matmul(weight.as_dtype(x.dtype())?.transpose()?),
            Matrix::Quantized(matrix) => matrix.apply(x),
        }
    }

    /// `x · matrixᵀ + bias`.
    pub fn apply_with_bias(&self, x: &Array, bias: &Array) -> Result<Array, Exception> {
        match self {
            Matrix::Dense(weight) => ops::addmm(bias, x, weight.as_dtype(x.dtype())?.transpose()?, None, None),
            Matrix::Quantized(matrix) => matrix.apply(x)?.add(bias),
        }
    }

    /// The rows with these numbers, `[.., columns]`, in `dtype`. Numbers must be below that of rows: MLX does not check them.
    pub fn rows(&self, numbers: &Array, dtype: Dtype) -> Result<Array, Exception> {
        match self {
            Matrix::Dense(weight) => weight.take_axis(numbers, 0)?.as_dtype(dtype),
            Matrix::Quantized(matrix) => matrix.rows(numbers, dtype),
        }
    }

    /// Rows.
    pub fn row_count(&self) -> usize {
        match self {
            Matrix::Dense(weight) => weight.dim(0) as usize,
            Matrix::Quantized(matrix) => matrix.scales.dim(0) as usize,
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        match self {
            Matrix::Dense(weight) => weight.nbytes() as u64,
            Matrix::Quantized(matrix) => (matrix.weight.nbytes() + matrix.scales.nbytes() + matrix.biases.nbytes()) as u64,
        }
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        match self {
            Matrix::Dense(weight) => weight.dim(-1) as usize,
            Matrix::Quantized(matrix) => matrix.scales.dim(-1) as usize * matrix.quantization.group_size,
        }
    }
}

impl QuantizedMatrix {
    /// Quantizes `[rows, columns]`; the group size divides the columns.
    pub fn quantize(dense: &Array, quantization: Quantization) -> Result<QuantizedMatrix> {
        let Quantization { group_size, bits } = quantization;
        let (weight, scales, biases) = ops::quantize(dense, group_size as i32, bits as i32)?;
        mlx_rs::transforms::eval([&weight, &scales, &biases])?;
        Ok(QuantizedMatrix { quantization, weight, scales, biases })
    }

    fn load(weights: &Weights, rows: usize, columns: usize, dtype: Dtype) -> Result<QuantizedMatrix> {
        let quantization = weights.stored_quantization()?;
        let Quantization { group_size, bits } = quantization;
        let groups = columns.div_ceil(group_size);
        let weight = weights.load_packed("weight", &[rows, columns * bits / 32])?;
        let load = |name: &str| match dtype {
            Dtype::Float32 => weights.load(name, &[rows, groups]),
            _ => load_vector(weights, name, &[rows, groups], dtype),
        };
        Ok(QuantizedMatrix { quantization, weight, scales: load("scales")?, biases: load("biases")? })
    }

    fn apply(&self, x: &Array) -> Result<Array, Exception> {
        let Quantization { group_size, bits } = self.quantization;
        ops::quantized_matmul(x, &self.weight, &self.scales, &self.biases, true, group_size as i32, bits as i32)
    }

    /// Computed in `dtype`, as [`QuantizedMatrix::apply`] computes in that of x: in the scales' own it would round twice.
    fn rows(&self, numbers: &Array, dtype: Dtype) -> Result<Array, Exception> {
        let Quantization { group_size, bits } = self.quantization;
        let take = |array: &Array| array.take_axis(numbers, 0);
        let (scales, biases) = (take(&self.scales)?.as_dtype(dtype)?, take(&self.biases)?.as_dtype(dtype)?);
        ops::dequantize(take(&self.weight)?, scales, &biases, group_size as i32, bits as i32)
    }
}

/// A small tensor, such as a bias or the weight of a norm: cast to the dtype of the activations once and for all.
pub(crate) fn load_vector(weights: &Weights, name: &str, shape: &[usize], dtype: Dtype) -> Result<Array> {
    let array = weights.load(name, shape)?.as_dtype(dtype)?;
    array.eval()?;
    Ok(array)
}
