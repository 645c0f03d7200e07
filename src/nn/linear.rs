//! Linear layers and embeddings.

use mlx_rs::{Array, Dtype, error::Exception};

use super::{
    activation::silu_times,
    matrix::{Matrix, load_vector},
};
use crate::{Result, checkpoint::Weights, device};

/// `y = x · weightᵀ + bias`.
///
/// On the CPU a dense weight keeps the dtype it was stored in and is widened for each product: all of a 7B model in float32 would take twice
/// its memory. On a GPU it is held in the dtype of the activations.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Matrix,
    /// `[out]`
    bias: Option<Array>,
}

impl Linear {
    /// A layer with a weight `[out, in]` and a bias `[out]`.
    pub fn new(weight: Matrix, bias: Option<Array>) -> Linear {
        Linear { weight, bias }
    }

    /// Reads `weight` `[output, input]`, and `bias` `[output]` where the checkpoint has one. `dtype` is that of the activations.
    pub fn load(weights: &Weights, output: usize, input: usize, dtype: Dtype) -> Result<Linear> {
        let weight = Matrix::load(weights, output, input, dtype)?;
        let bias = weights.has("bias").then(|| load_vector(weights, "bias", &[output], dtype)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// Reads the convolution of a patch embedding, `weight` `[width, 3, patch, patch]`: with a stride as wide as its kernel it is a linear
    /// layer over flattened patches. Never quantized.
    pub fn load_patches(weights: &Weights, width: usize, patch: usize, dtype: Dtype) -> Result<Linear> {
        let weight = Matrix::load_dense(weights, &[width, 3, patch, patch], dtype)?;
        let weight = weight.reshape(&[width as i32, (3 * patch * patch) as i32])?;
        weight.eval()?;
        let bias = weights.has("bias").then(|| load_vector(weights, "bias", &[width], dtype)).transpose()?;
        Ok(Linear { weight: Matrix::Dense(weight), bias })
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Array) -> Result<Array, Exception> {
        match &self.bias {
            Some(bias) => self.weight.apply_with_bias(x, bias),
            None => self.weight.apply(x),
        }
    }
}

/// SwiGLU (<https://arxiv.org/abs/2002.05202>): `down(silu(gate(x)) · up(x))`.
pub fn swiglu(x: &Array, gate: &Linear, up: &Linear, down: &Linear) -> Result<Array, Exception> {
    match device::kernels(x) {
        Some(kernels) => kernels.swiglu(x, [gate, up, down].map(|linear| (linear.weight.arrays(), linear.bias.as_ref()))),
        None => down.forward(&silu_times(&gate.forward(x)?, &up.forward(x)?)?),
    }
}

/// A table with one row a token.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[rows, width]`
    pub weight: Matrix,
    dtype: Dtype,
}

impl Embedding {
    /// Reads `weight` `[rows, width]`. `dtype` is that of the activations.
    pub fn load(weights: &Weights, rows: usize, width: usize, dtype: Dtype) -> Result<Embedding> {
        Ok(Embedding { weight: Matrix::load(weights, rows, width, dtype)?, dtype })
    }

    /// Token ids `[batch, tokens]` to `[batch, tokens, width]`. Ids must be below the number of rows: MLX does not check them.
    pub fn forward(&self, ids: &Array) -> Result<Array, Exception> {
        self.weight.rows(ids, self.dtype)
    }

    /// As an output head that is tied to the embedding: `[.., width]` to `[.., rows]`.
    pub fn as_head(&self, x: &Array) -> Result<Array, Exception> {
        self.weight.apply(x)
    }
}
