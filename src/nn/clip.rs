//! The vision transformer of transformers' CLIP and SigLIP
//! (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/siglip/modeling_siglip.py>).
//! CLIP has a class token and a norm before the first layer; SigLIP has neither.

use super::{Activation, LayerNorm, Linear, Matrix, load_vector};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::{
        Dtype, Tensor, inject_into,
        ops::{self, Sees, concat, slice, split_heads},
    },
};

/// The settings of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The number of values per token.
    pub hidden_size: usize,
    /// The number of values inside a layer's MLP.
    pub intermediate_size: usize,
    /// The number of layers that run.
    pub layers: usize,
    /// The number of attention heads; divides the width.
    pub heads: usize,
    /// The edge of a patch, in pixels.
    pub patch_size: usize,
    /// The edge of the picture, in pixels.
    pub image_size: usize,
    /// The activation of the MLPs.
    pub activation: Activation,
    /// The epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the encoder is CLIP's: a class token before the patches, and a norm before the first
    /// layer.
    pub is_clip: bool,
    /// Whether a norm follows the last layer.
    pub post_norm: bool,
}

impl ClipConfig {
    /// Returns the number of patches per picture.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// A vision encoder.
#[derive(Debug, Clone)]
pub struct ClipEncoder {
    config: ClipConfig,
    patch_embedding: Linear,
    /// `[1, tokens, width]`
    positions: Tensor,
    /// `[1, 1, width]`
    class: Option<Tensor>,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    post_norm: Option<LayerNorm>,
    dtype: Dtype,
}

impl ClipEncoder {
    /// Loads the encoder below `weights`. `dtype` is that of the activations.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the tensor that is missing or has another shape.
    pub fn load(weights: &Weights, config: ClipConfig, dtype: Dtype) -> Result<ClipEncoder> {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let embeddings = weights.at("embeddings");
        let norm = |name: &str| LayerNorm::load(&weights.at(name), width, config.norm_eps, dtype);
        let class = match config.is_clip {
            true => {
                let class = load_vector(&embeddings, "class_embedding", &[width], dtype)?
                    .reshape(&[1, 1, width as i32])?;
                class.eval()?;
                Some(class)
            }
            false => None,
        };
        let tokens = config.patches() + usize::from(config.is_clip);
        let table = embeddings.at("position_embedding");
        let positions = match table.has("scales") {
            // MLX's older uploads quantize it like any embedding.
            true => {
                let numbers: Vec<u32> = (0..tokens as u32).collect();
                Matrix::load(&table, tokens, width, dtype)?.rows(&ops::ids(&numbers), dtype)?
            }
            false => load_vector(&table, "weight", &[tokens, width], dtype)?.reshape(&[
                1,
                tokens as i32,
                width as i32,
            ])?,
        };
        positions.eval()?;
        let layers = weights.at("encoder.layers");
        let patches = embeddings.at("patch_embedding");
        let is_mlx = patches.is_mlx_convolution("weight", 3)?;
        Ok(ClipEncoder {
            patch_embedding: Linear::load_patches(
                &patches,
                width,
                &[3, patch, patch],
                is_mlx,
                dtype,
            )?,
            positions,
            class,
            pre_norm: config.is_clip.then(|| norm("pre_layrnorm")).transpose()?,
            blocks: (0..config.layers)
                .map(|i| Block::load(&layers.at(i), &config, dtype))
                .collect::<Result<_>>()?,
            post_norm: config
                .post_norm
                .then(|| norm("post_layernorm"))
                .transpose()?,
            config,
            dtype,
        })
    }

    /// Encodes normalized planes `[3, height, width]` as features `[1, tokens, width]`, with the
    /// class token first if there is one. `progress` receives the fraction that is complete, 0 to
    /// 1, after every layer; an error from it ends the work.
    pub fn forward(&self, planes: &[f32], progress: &dyn Fn(f32) -> Result<()>) -> Result<Tensor> {
        let patches = self.patch_embedding.forward(&self.patches(planes)?)?;
        let mut x = match &self.class {
            Some(class) => concat(&[class, &patches], 1)?,
            None => patches,
        };
        x = x.add(&self.positions)?;
        if let Some(norm) = &self.pre_norm {
            x = norm.forward(&x)?;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            x = inject_into("encoder", block.forward(&x)?)?;
            if self.dtype == Dtype::Float32 {
                x.eval()?; // frees the weights widened for this block before the next one
            }
            progress((i + 1) as f32 / self.blocks.len() as f32)?;
        }
        match &self.post_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// Adds the matrices of the layers, by the paths of their modules.
    pub(crate) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let path = format!("{path}.encoder.layers.{i}");
            let linears = [
                ("self_attn.q_proj", &mut block.queries),
                ("self_attn.k_proj", &mut block.keys),
                ("self_attn.v_proj", &mut block.values),
                ("self_attn.out_proj", &mut block.output),
                ("mlp.fc1", &mut block.fc1),
                ("mlp.fc2", &mut block.fc2),
            ];
            all.extend(
                linears.map(|(name, linear)| (format!("{path}.{name}"), &mut linear.weight)),
            );
        }
    }

    /// Cuts a picture into rows of `3 · patch²` values, one channel after the other.
    fn patches(&self, planes: &[f32]) -> Result<Tensor> {
        let (edge, patch) = (self.config.image_size as i32, self.config.patch_size as i32);
        if planes.len() != 3 * self.config.image_size.pow(2) {
            let what = format!(
                "{} values of pixels: this encoder takes 3 x {edge} x {edge}",
                planes.len()
            );
            return Err(Error::InvalidArgument(what));
        }
        let grid = edge / patch;
        let pixels = ops::floats(planes, &[3, edge, edge]).as_dtype(self.dtype)?;
        let used = slice(&slice(&pixels, 1, 0..grid * patch)?, 2, 0..grid * patch)?;
        let patches = used
            .reshape(&[3, grid, patch, grid, patch])?
            .transpose_axes(&[1, 3, 0, 2, 4])?;
        Ok(patches.reshape(&[1, grid * grid, 3 * patch * patch])?)
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    output: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    head: i32,
}

impl Block {
    fn load(weights: &Weights, config: &ClipConfig, dtype: Dtype) -> Result<Block> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name: &str| LayerNorm::load(&weights.at(name), width, config.norm_eps, dtype);
        let projection =
            |name: &str| Linear::load(&weights.at("self_attn").at(name), width, width, dtype);
        Ok(Block {
            norm1: norm("layer_norm1")?,
            queries: projection("q_proj")?,
            keys: projection("k_proj")?,
            values: projection("v_proj")?,
            output: projection("out_proj")?,
            norm2: norm("layer_norm2")?,
            fc1: Linear::load(&weights.at("mlp.fc1"), inner, width, dtype)?,
            fc2: Linear::load(&weights.at("mlp.fc2"), width, inner, dtype)?,
            activation: config.activation,
            head: (width / config.heads) as i32,
        })
    }

    /// Maps `[1, tokens, width]` to the same shape. Every token attends to every other.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normalized = self.norm1.forward(x)?;
        let heads = |linear: &Linear| split_heads(&linear.forward(&normalized)?, self.head);
        let (queries, keys, values) = (
            heads(&self.queries)?,
            heads(&self.keys)?,
            heads(&self.values)?,
        );
        let factor = (self.head as f32).sqrt().recip();
        let mixed = ops::attention([&queries, &keys, &values], factor, None, Sees::All)?;
        let x = x.add(self.output.forward(&mixed)?)?;
        let inner = ops::activate(
            &self.fc1.forward(&self.norm2.forward(&x)?)?,
            self.activation,
        )?;
        Ok(x.add(self.fc2.forward(&inner)?)?)
    }
}
