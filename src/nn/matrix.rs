//! The weights of linear layers and embeddings, dense or quantized.

use crate::{
    Result,
    checkpoint::{Mode, Quantization, Weights},
    device::{Dtype, PackedMatrix, Tensor, Weight, inject_into, ops},
};

/// `[rows, columns]`
#[derive(Debug, Clone)]
pub enum Matrix {
    /// The plain values.
    Dense(Tensor),
    /// Packed values of a few bits each.
    Quantized(QuantizedMatrix),
}

/// A matrix in MLX's packed form.
#[derive(Debug, Clone)]
pub struct QuantizedMatrix {
    /// The scheme.
    pub quantization: Quantization,
    /// The packed values, in words of 32 bits, `[rows, columns · bits / 32]`.
    pub weight: Tensor,
    /// `[rows, columns / group size]`
    pub scales: Tensor,
    /// `[rows, columns / group size]`; only in the affine mode.
    pub biases: Option<Tensor>,
}

impl Matrix {
    /// Loads `weight`, `[rows, columns]`, with `scales` and `biases` if it is quantized. `dtype` is
    /// that of the activations: on a GPU everything is cast to it; on the CPU it keeps its stored
    /// dtype.
    ///
    /// If the model is quantized while loading, the dense matrix is read, quantized, and freed.
    pub fn load(weights: &Weights, rows: usize, columns: usize, dtype: Dtype) -> Result<Matrix> {
        if weights.has("scales") {
            return QuantizedMatrix::load(weights, rows, columns, dtype).map(Matrix::Quantized);
        }
        let dense = Matrix::load_dense(weights, &[rows, columns], dtype)?;
        match weights.quantization_to_apply(columns) {
            Some(quantization) => Ok(Matrix::Quantized(QuantizedMatrix::quantize(
                &dense,
                quantization,
            )?)),
            None => Ok(Matrix::Dense(dense)),
        }
    }

    /// Loads `weight` of any shape, never quantized.
    pub fn load_dense(weights: &Weights, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        match dtype {
            Dtype::Float32 => weights.load("weight", shape),
            _ => load_vector(weights, "weight", shape, dtype),
        }
    }

    /// Multiplies `x [.., columns]` by the transposed matrix: `x · matrixᵀ [.., rows]`, in x's
    /// dtype.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, self.arrays(), None)
    }

    /// Returns the arrays in the form that operations take.
    pub(super) fn arrays(&self) -> Weight<'_> {
        match self {
            Matrix::Dense(weight) => Weight::Dense(weight),
            Matrix::Quantized(matrix) => Weight::Packed(matrix.packed()),
        }
    }

    /// Returns the rows with these indices, `[.., columns]`, in `dtype`. Indices must be below the
    /// number of rows: MLX does not check them.
    pub fn rows(&self, numbers: &Tensor, dtype: Dtype) -> Result<Tensor> {
        ops::rows(self.arrays(), numbers, dtype)
    }

    /// Returns the number of rows.
    pub fn row_count(&self) -> usize {
        match self {
            Matrix::Dense(weight) => weight.dim(0) as usize,
            Matrix::Quantized(matrix) => matrix.scales.dim(0) as usize,
        }
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Matrix::Dense(weight) => weight.nbytes() as u64,
            Matrix::Quantized(matrix) => {
                matrix.parts().map(|(_, array)| array.nbytes() as u64).sum()
            }
        }
    }

    /// Returns the number of values in a row.
    pub fn columns(&self) -> usize {
        match self {
            Matrix::Dense(weight) => weight.dim(-1) as usize,
            Matrix::Quantized(matrix) => {
                matrix.scales.dim(-1) as usize * matrix.quantization.group_size
            }
        }
    }
}

impl QuantizedMatrix {
    /// Quantizes `[rows, columns]`; the group size must divide the columns.
    pub fn quantize(dense: &Tensor, quantization: Quantization) -> Result<QuantizedMatrix> {
        let Quantization {
            group_size,
            bits,
            mode,
        } = quantization;
        let (weight, scales, biases) = ops::quantize(dense, group_size, bits, mode.name())?;
        Ok(QuantizedMatrix {
            quantization,
            weight,
            scales,
            biases,
        })
    }

    /// Returns the arrays with the names of their tensors.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let biases = self.biases.as_ref().map(|biases| ("biases", biases));
        [("weight", &self.weight), ("scales", &self.scales)]
            .into_iter()
            .chain(biases)
    }

    fn load(
        weights: &Weights,
        rows: usize,
        columns: usize,
        dtype: Dtype,
    ) -> Result<QuantizedMatrix> {
        let quantization = weights.stored_quantization(columns)?;
        let Quantization {
            group_size,
            bits,
            mode,
        } = quantization;
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
        Ok(QuantizedMatrix {
            quantization,
            weight,
            scales,
            biases,
        })
    }

    fn packed(&self) -> PackedMatrix<'_> {
        let Quantization {
            group_size,
            bits,
            mode,
        } = self.quantization;
        let (weight, scales, biases) = (&self.weight, &self.scales, self.biases.as_ref());
        PackedMatrix {
            weight,
            scales,
            biases,
            group_size,
            bits,
            mode: mode.name(),
        }
    }
}

/// Loads a small tensor, such as a bias or the weight of a norm, and casts it to the dtype of the
/// activations.
pub(crate) fn load_vector(
    weights: &Weights,
    name: &str,
    shape: &[usize],
    dtype: Dtype,
) -> Result<Tensor> {
    let array = inject_into("load", weights.load(name, shape)?.as_dtype(dtype)?)?;
    array.eval()?;
    Ok(array)
}
