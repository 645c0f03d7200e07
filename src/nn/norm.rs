//! Normalization layers.

use mlx_rs::{Array, Dtype, error::Exception, fast};

use super::matrix::load_vector;
use crate::{Result, checkpoint::Weights, device};

/// Root mean square normalization (<https://arxiv.org/abs/1910.07467>).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    /// Normalization by a weight `[width]`.
    pub fn new(weight: Array, eps: f32) -> RmsNorm {
        RmsNorm { weight, eps }
    }

    /// Reads `weight` `[width]`.
    pub fn load(weights: &Weights, width: usize, eps: f32, dtype: Dtype) -> Result<RmsNorm> {
        Ok(RmsNorm::new(load_vector(weights, "weight", &[width], dtype)?, eps))
    }

    /// `[.., width]` to the same shape.
    pub fn forward(&self, x: &Array) -> Result<Array, Exception> {
        if let Some(kernels) = device::kernels(x) {
            return kernels.rms_norm(x, &self.weight, self.eps);
        }
        fast::rms_norm(x, Some(&self.weight), self.eps)
    }
}

/// Layer normalization (<https://arxiv.org/abs/1607.06450>).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[width]`
    weight: Array,
    /// `[width]`
    bias: Array,
    eps: f32,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, `[width]` each.
    pub fn load(weights: &Weights, width: usize, eps: f32, dtype: Dtype) -> Result<LayerNorm> {
        let vector = |name| load_vector(weights, name, &[width], dtype);
        Ok(LayerNorm { weight: vector("weight")?, bias: vector("bias")?, eps })
    }

    /// `[.., width]` to the same shape.
    pub fn forward(&self, x: &Array) -> Result<Array, Exception> {
        if let Some(kernels) = device::kernels(x) {
            return kernels.layer_norm(x, &self.weight, &self.bias, self.eps);
        }
        fast::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
