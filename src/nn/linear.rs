//! Linear layers and embeddings.

use super::matrix::{Matrix, load_vector};
use crate::{
    Result,
    checkpoint::Weights,
    device::{
        Dtype, Tensor,
        ops::{self, Activation},
    },
};

/// `y = x · weightᵀ + bias`.
///
/// On the CPU a dense weight keeps its stored dtype and is widened for each product: a 7B model in
/// float32 would need twice the memory. On a GPU it has the dtype of the activations.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Matrix,
    /// `[out]`
    bias: Option<Tensor>,
}

impl Linear {
    /// Creates a layer with a weight `[out, in]` and a bias `[out]`.
    pub fn new(weight: Matrix, bias: Option<Tensor>) -> Linear {
        Linear { weight, bias }
    }

    /// Loads `weight` `[output, input]`, and `bias` `[output]` if the checkpoint has one. `dtype`
    /// is that of the activations.
    pub fn load(weights: &Weights, output: usize, input: usize, dtype: Dtype) -> Result<Linear> {
        let weight = Matrix::load(weights, output, input, dtype)?;
        let bias = weights
            .has("bias")
            .then(|| load_vector(weights, "bias", &[output], dtype))
            .transpose()?;
        Ok(Linear { weight, bias })
    }

    /// Loads the convolution of a patch embedding, `weight` `[width, ..channels and sides]`. With a
    /// stride equal to its kernel, it is a linear layer over flattened patches, whose values are
    /// ordered by channel here; `kernel` has the channels and then the sides. MLX stores channels
    /// last. Never quantized.
    pub fn load_patches(
        weights: &Weights,
        width: usize,
        kernel: &[usize],
        is_mlx: bool,
        dtype: Dtype,
    ) -> Result<Linear> {
        let size: usize = kernel.iter().product();
        let weight = match is_mlx {
            false => Matrix::load_dense(weights, &[&[width], kernel].concat(), dtype)?,
            true => {
                let stored = Matrix::load_dense(
                    weights,
                    &[&[width], &kernel[1..], &kernel[..1]].concat(),
                    dtype,
                )?;
                let last = kernel.len() as i32;
                stored.transpose_axes(&[&[0, last], &(1..last).collect::<Vec<_>>()[..]].concat())?
            }
        };
        let weight = weight.reshape(&[width as i32, size as i32])?;
        weight.eval()?;
        let bias = weights
            .has("bias")
            .then(|| load_vector(weights, "bias", &[width], dtype))
            .transpose()?;
        Ok(Linear {
            weight: Matrix::Dense(weight),
            bias,
        })
    }

    /// Returns whether the layer has a bias.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// Maps `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, self.weight.arrays(), self.bias.as_ref())
    }
}

/// The MLP of the Llama family (<https://arxiv.org/abs/2002.05202>):
/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// Creates an MLP of three layers.
    pub fn new([gate, up, down]: [Linear; 3], activation: Activation) -> GatedMlp {
        GatedMlp {
            gate,
            up,
            down,
            activation,
        }
    }

    /// Loads `gate_proj`, `up_proj` and `down_proj`.
    pub fn load(
        weights: &Weights,
        width: usize,
        inner: usize,
        activation: Activation,
        dtype: Dtype,
    ) -> Result<GatedMlp> {
        Ok(GatedMlp {
            gate: Linear::load(&weights.at("gate_proj"), inner, width, dtype)?,
            up: Linear::load(&weights.at("up_proj"), inner, width, dtype)?,
            down: Linear::load(&weights.at("down_proj"), width, inner, dtype)?,
            activation,
        })
    }

    /// Maps `[.., width]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let parts = [&self.gate, &self.up, &self.down]
            .map(|linear| (linear.weight.arrays(), linear.bias.as_ref()));
        ops::gated_mlp(x, self.activation, parts)
    }
}

/// A table with one row per token.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[rows, width]`
    pub weight: Matrix,
    dtype: Dtype,
}

impl Embedding {
    /// Loads `weight` `[rows, width]`. `dtype` is that of the activations.
    pub fn load(weights: &Weights, rows: usize, width: usize, dtype: Dtype) -> Result<Embedding> {
        Ok(Embedding {
            weight: Matrix::load(weights, rows, width, dtype)?,
            dtype,
        })
    }

    /// Maps token ids `[batch, tokens]` to `[batch, tokens, width]`. Ids must be below the number
    /// of rows: MLX does not check them.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.rows(ids, self.dtype)
    }

    /// Applies the embedding as a tied output head: `[.., width]` to `[.., rows]`.
    pub fn as_head(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.apply(x)
    }
}
