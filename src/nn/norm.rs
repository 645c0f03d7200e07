//! Normalization layers.

use super::matrix::load_vector;
use crate::{
    Result,
    checkpoint::Weights,
    device::{Dtype, Tensor, ops},
};

/// Root mean square normalization (<https://arxiv.org/abs/1910.07467>).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Creates a norm with a weight `[width]`.
    pub fn new(weight: Tensor, eps: f32) -> RmsNorm {
        RmsNorm { weight, eps }
    }

    /// Loads `weight` `[width]`.
    pub fn load(weights: &Weights, width: usize, eps: f32, dtype: Dtype) -> Result<RmsNorm> {
        Ok(RmsNorm::new(
            load_vector(weights, "weight", &[width], dtype)?,
            eps,
        ))
    }

    /// Loads `weight` `[width]` and adds 1 in float32, as Gemma's norms do
    /// (<https://github.com/huggingface/transformers/blob/v4.46.0/src/transformers/models/gemma/modeling_gemma.py>).
    pub fn load_plus_one(
        weights: &Weights,
        width: usize,
        eps: f32,
        dtype: Dtype,
    ) -> Result<RmsNorm> {
        let weight = load_vector(weights, "weight", &[width], Dtype::Float32)?;
        let weight = weight.add(ops::floats(&[1.0], &[1]))?.as_dtype(dtype)?;
        weight.eval()?;
        Ok(RmsNorm::new(weight, eps))
    }

    /// Maps `[.., width]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, &self.weight, self.eps)
    }
}

/// Layer normalization (<https://arxiv.org/abs/1607.06450>).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[width]`
    weight: Tensor,
    /// `[width]`
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `[width]` each.
    pub fn load(weights: &Weights, width: usize, eps: f32, dtype: Dtype) -> Result<LayerNorm> {
        let vector = |name| load_vector(weights, name, &[width], dtype);
        Ok(LayerNorm {
            weight: vector("weight")?,
            bias: vector("bias")?,
            eps,
        })
    }

    /// Maps `[.., width]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
