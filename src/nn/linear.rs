//! Linear layers and embeddings.

use mlx_rs::{Array, Dtype, error::Exception, ops};

use crate::{Result, checkpoint::Weights};

/// `y = x · weightᵀ + bias`.
///
/// On the CPU the weight keeps the dtype it was stored in and is widened for each product: all of a 7B model in float32 would take twice its
/// memory. On a GPU it is held in the dtype of the activations.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    weight: Array,
    /// `[out]`
    bias: Option<Array>,
}

impl Linear {
    /// Reads `weight` `[output, input]`, and `bias` `[output]` where the checkpoint has one. `dtype` is that of the activations.
    pub fn load(weights: &Weights, output: usize, input: usize, dtype: Dtype) -> Result<Linear> {
        let weight = load_matrix(weights, "weight", &[output, input], dtype)?;
        let bias = weights.has("bias").then(|| load_vector(weights, "bias", &[output], dtype)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// Reads the convolution of a patch embedding, `weight` `[width, 3, patch, patch]`: with a stride as wide as its kernel it is a linear
    /// layer over flattened patches.
    pub fn load_patches(weights: &Weights, width: usize, patch: usize, dtype: Dtype) -> Result<Linear> {
        let weight = load_matrix(weights, "weight", &[width, 3, patch, patch], dtype)?;
        let weight = weight.reshape(&[width as i32, (3 * patch * patch) as i32])?;
        weight.eval()?;
        let bias = weights.has("bias").then(|| load_vector(weights, "bias", &[width], dtype)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// A layer with the weight of an embedding, for a tied output head.
    pub fn tied(embedding: &Embedding) -> Linear {
        Linear { weight: embedding.weight.clone(), bias: None }
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Array) -> Result<Array, Exception> {
        let weight = self.weight.as_dtype(x.dtype())?.transpose()?;
        match &self.bias {
            Some(bias) => ops::addmm(bias, x, &weight, None, None),
            None => x.matmul(weight),
        }
    }
}

/// A table with one row a token.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[rows, width]`
    weight: Array,
    dtype: Dtype,
}

impl Embedding {
    /// Reads `weight` `[rows, width]`. `dtype` is that of the activations.
    pub fn load(weights: &Weights, rows: usize, width: usize, dtype: Dtype) -> Result<Embedding> {
        Ok(Embedding { weight: load_matrix(weights, "weight", &[rows, width], dtype)?, dtype })
    }

    /// Token ids `[batch, tokens]` to `[batch, tokens, width]`. Ids must be below the number of rows: MLX does not check them.
    pub fn forward(&self, ids: &Array) -> Result<Array, Exception> {
        self.weight.take_axis(ids, 0)?.as_dtype(self.dtype)
    }
}

/// A large tensor: cast to the dtype of the activations on a GPU, as stored on the CPU (whose activations are float32).
fn load_matrix(weights: &Weights, name: &str, shape: &[usize], dtype: Dtype) -> Result<Array> {
    match dtype {
        Dtype::Float32 => weights.load(name, shape),
        _ => load_vector(weights, name, shape, dtype),
    }
}

/// A small tensor, such as a bias or the weight of a norm: cast to the dtype of the activations once and for all.
pub(crate) fn load_vector(weights: &Weights, name: &str, shape: &[usize], dtype: Dtype) -> Result<Array> {
    let array = weights.load(name, shape)?.as_dtype(dtype)?;
    array.eval()?;
    Ok(array)
}
