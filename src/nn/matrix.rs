//! The weights of linear layers and embeddings: as they are, or quantized.

use mlx_rs::{Array, Dtype, error::Exception, ops};

use crate::{
    Result,
    checkpoint::{Mode, Quantization, Weights},
    device,
    panic::inject_into,
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
    /// `[rows, columns / group size]`; in the affine mode only.
    pub biases: Option<Array>,
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
        if let Some(kernels) = device::kernels(x) {
            return kernels.linear(x, self.arrays(), None);
        }
        match self {
            Matrix::Dense(weight) => x.matmul(weight.as_dtype(x.dtype())?.transpose()?),
            Matrix::Quantized(matrix) => matrix.apply(x),
        }
    }

    /// `x · matrixᵀ + bias`.
    pub fn apply_with_bias(&self, x: &Array, bias: &Array) -> Result<Array, Exception> {
        if let Some(kernels) = device::kernels(x) {
            return kernels.linear(x, self.arrays(), Some(bias));
        }
        match self {
            Matrix::Dense(weight) => ops::addmm(bias, x, weight.as_dtype(x.dtype())?.transpose()?, None, None),
            Matrix::Quantized(matrix) => matrix.apply(x)?.add(bias),
        }
    }

    /// Its arrays, for the kernels.
    pub(super) fn arrays(&self) -> device::Weight<'_> {
        match self {
            Matrix::Dense(weight) => device::Weight::Dense(weight),
            Matrix::Quantized(matrix) => device::Weight::Packed(matrix.packed()),
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
            Matrix::Quantized(matrix) => matrix.parts().map(|(_, array)| array.nbytes() as u64).sum(),
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
        let Quantization { group_size, bits, mode } = quantization;
        let dense = &inject_into("quantizing", dense.clone())?;
        let (weight, scales, biases) = match mode {
            Mode::Affine => {
                let (weight, scales, biases) = ops::quantize(dense, group_size as i32, bits as i32)?;
                (weight, scales, Some(biases))
            }
            _ => {
                let (weight, scales) = device::quantize(dense, group_size, bits, mode.name())?;
                (weight, scales, None)
            }
        };
        let matrix = QuantizedMatrix { quantization, weight, scales, biases };
        mlx_rs::transforms::eval(matrix.parts().map(|(_, array)| array))?;
        Ok(matrix)
    }

    /// Its arrays, and what their tensors are called.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &Array)> {
        let biases = self.biases.as_ref().map(|biases| ("biases", biases));
        [("weight", &self.weight), ("scales", &self.scales)].into_iter().chain(biases)
    }

    fn load(weights: &Weights, rows: usize, columns: usize, dtype: Dtype) -> Result<QuantizedMatrix> {
        let quantization = weights.stored_quantization(columns)?;
        let Quantization { group_size, bits, mode } = quantization;
        let groups = columns / group_size;
        let weight = weights.load_packed("weight", &[rows, columns * bits / 32])?;
        let load = |name: &str| match dtype {
            Dtype::Float32 => weights.load(name, &[rows, groups]),
            _ => load_vector(weights, name, &[rows, groups], dtype),
        };
        let (scales, biases) = match mode {
            Mode::Affine => (load("scales")?, Some(load("biases")?)),
            _ => (weights.load_byte_scales("scales", &[rows, groups])?, None),
        };
        Ok(QuantizedMatrix { quantization, weight, scales, biases })
    }

    fn packed(&self) -> device::PackedMatrix<'_> {
        let Quantization { group_size, bits, mode } = self.quantization;
        let (weight, scales, biases) = (&self.weight, &self.scales, self.biases.as_ref());
        device::PackedMatrix { weight, scales, biases, group_size, bits, mode: mode.name() }
    }

    fn apply(&self, x: &Array) -> Result<Array, Exception> {
        let Quantization { group_size, bits, mode } = self.quantization;
        match &self.biases {
            Some(biases) => ops::quantized_matmul(x, &self.weight, &self.scales, biases, true, group_size as i32, bits as i32),
            None => device::quantized_matmul(x, &self.weight, &self.scales, group_size, bits, mode.name()),
        }
    }

    /// The rows with these numbers. In the affine mode they are computed in `dtype`, as a product with them is; in the others no rounding
    /// happens in any dtype.
    fn rows(&self, numbers: &Array, dtype: Dtype) -> Result<Array, Exception> {
        let Quantization { group_size, bits, mode } = self.quantization;
        let take = |array: &Array| array.take_axis(numbers, 0);
        let (weight, scales) = (take(&self.weight)?, take(&self.scales)?);
        match &self.biases {
            Some(biases) => {
                let (scales, biases) = (scales.as_dtype(dtype)?, take(biases)?.as_dtype(dtype)?);
                ops::dequantize(weight, scales, &biases, group_size as i32, bits as i32)
            }
            None => device::dequantize(&weight, &scales, group_size, bits, mode.name())?.as_dtype(dtype),
        }
    }
}

/// A small tensor, such as a bias or the weight of a norm: cast to the dtype of the activations once and for all.
pub(crate) fn load_vector(weights: &Weights, name: &str, shape: &[usize], dtype: Dtype) -> Result<Array> {
    let array = inject_into("load", weights.load(name, shape)?.as_dtype(dtype)?)?;
    array.eval()?;
    Ok(array)
}
