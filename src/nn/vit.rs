//! The vision transformer of timm
//! (<https://github.com/huggingface/pytorch-image-models/blob/v0.9.10/timm/models/vision_transformer.py>),
//! up to the block whose features are used: DINOv2 with class and register tokens and LayerScale,
//! SigLIP without them.

use super::{LayerNorm, Linear, Matrix, load_vector};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::{
        Dtype, Tensor, inject_into,
        ops::{self, Activation, Sees, broadcast, concat, slice},
    },
};

/// The settings of a vision transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViTConfig {
    /// The number of values per token.
    pub embed_dim: usize,
    /// The number of blocks in the checkpoint. Features come from the second-to-last, so one fewer
    /// is run.
    pub depth: usize,
    /// The number of attention heads; divides `embed_dim`.
    pub num_heads: usize,
    /// The number of values between the two layers of a block's MLP.
    pub intermediate_dim: usize,
    /// Whether there is a class token before the patches.
    pub has_cls_token: bool,
    /// The number of register tokens between class token and patches.
    pub num_registers: usize,
    /// Whether each branch is scaled per channel before it is added.
    pub has_layer_scale: bool,
    /// The edge of a patch, in pixels.
    pub patch_size: usize,
    /// The edge of the picture, in pixels.
    pub image_size: usize,
    /// The number of rows in the position embedding: the patches, with or without the class token.
    pub num_positions: usize,
    /// The activation between the two layers of a block's MLP.
    pub activation: Activation,
}

impl ViTConfig {
    /// Returns the settings of DINOv2 ViT-L/14 with four registers: timm's
    /// `vit_large_patch14_reg4_dinov2.lvd142m` at 224 pixels.
    pub fn dinov2_large() -> ViTConfig {
        ViTConfig {
            embed_dim: 1024,
            depth: 24,
            num_heads: 16,
            intermediate_dim: 4096,
            has_cls_token: true,
            num_registers: 4,
            has_layer_scale: true,
            patch_size: 14,
            image_size: 224,
            num_positions: 256,
            activation: Activation::Gelu,
        }
    }

    /// Returns the settings of SigLIP so400m/14: timm's `vit_so400m_patch14_siglip_224`.
    pub fn siglip_so400m() -> ViTConfig {
        ViTConfig {
            embed_dim: 1152,
            depth: 27,
            num_heads: 16,
            intermediate_dim: 4304,
            has_cls_token: false,
            num_registers: 0,
            has_layer_scale: false,
            patch_size: 14,
            image_size: 224,
            num_positions: 256,
            activation: Activation::Gelu,
        }
    }

    /// Returns the number of patches per picture, which is the number of output tokens.
    pub fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// A vision encoder up to the output of its second-to-last block, where Prismatic models take their
/// features (without the final norm).
#[derive(Debug, Clone)]
pub struct ViTEncoder {
    /// The encoder's settings.
    pub config: ViTConfig,
    patch_embed: Linear,
    /// `[1, positions, width]`
    pos_embed: Tensor,
    /// Class token and registers, `[1, prefix, width]`.
    prefix: Option<Tensor>,
    blocks: Vec<Block>,
    dtype: Dtype,
}

/// Loads the encoder below `weights`. `dtype` is that of the activations.
pub fn load_vit_encoder(weights: &Weights, config: ViTConfig, dtype: Dtype) -> Result<ViTEncoder> {
    let width = config.embed_dim;
    let pos_embed = load_vector(
        weights,
        "pos_embed",
        &[1, config.num_positions, width],
        dtype,
    )?;
    let mut prefix = Vec::new();
    if config.has_cls_token {
        prefix.push(load_vector(weights, "cls_token", &[1, 1, width], dtype)?);
    }
    if config.num_registers > 0 {
        prefix.push(load_vector(
            weights,
            "reg_token",
            &[1, config.num_registers, width],
            dtype,
        )?);
    }
    let prefix = if prefix.is_empty() {
        None
    } else {
        Some(concat(&prefix.iter().collect::<Vec<_>>(), 1)?)
    };
    if let Some(prefix) = &prefix {
        prefix.eval()?; // otherwise only the loading thread could compute with it
    }
    let patch_embed = Linear::load_patches(
        &weights.at("patch_embed.proj"),
        width,
        &[3, config.patch_size, config.patch_size],
        false,
        dtype,
    )?;
    let blocks = (0..config.depth.saturating_sub(1))
        .map(|i| Block::load(&weights.at("blocks").at(i), &config, dtype))
        .collect::<Result<_>>()?;
    Ok(ViTEncoder {
        config,
        patch_embed,
        pos_embed,
        prefix,
        blocks,
        dtype,
    })
}

impl ViTEncoder {
    /// Encodes normalized pixels `[batch, height, width, 3]` as features `[batch, patches, width]`.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_by_blocks(pixels, &mut || Ok(()))
    }

    /// Does the same as [`ViTEncoder::forward`], and calls `each` after every block; an error from
    /// it ends the work. On a GPU the blocks are computed together when the features are evaluated,
    /// which takes about as long as one decoder layer for a chunk of a prompt.
    pub fn forward_by_blocks(
        &self,
        pixels: &Tensor,
        each: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let patches = self.patch_embed.forward(&self.patches(pixels)?)?;
        let mut x = self.embed(patches)?;
        for block in &self.blocks {
            x = inject_into("encoder", block.forward(&x)?)?;
            if self.dtype == Dtype::Float32 {
                x.eval()?; // frees the weights widened for this block before the next one
            }
            each()?;
        }
        let prefix = self.prefix.as_ref().map_or(0, |prefix| prefix.dim(1));
        slice(&x, 1, prefix..x.dim(1))
    }

    /// Adds the matrices of the blocks, by the paths of their modules.
    pub(crate) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let path = format!("{path}.blocks.{i}");
            let linears = [
                ("attn.qkv", &mut block.attn.qkv),
                ("attn.proj", &mut block.attn.proj),
                ("mlp.fc1", &mut block.mlp.fc1),
                ("mlp.fc2", &mut block.mlp.fc2),
            ];
            all.extend(
                linears.map(|(name, linear)| (format!("{path}.{name}"), &mut linear.weight)),
            );
        }
    }

    /// Returns the number of blocks that run.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Cuts a picture into rows of `3 · patch²` values, ordered by channel like the convolution's
    /// weight: `[batch, patches, 3 · patch²]`.
    fn patches(&self, pixels: &Tensor) -> Result<Tensor> {
        let (patch, edge) = (self.config.patch_size as i32, self.config.image_size as i32);
        let &[batch, height, width, 3] = pixels.shape() else {
            return Err(Error::InvalidArgument(format!(
                "pixels of shape {:?}: expected [batch, {edge}, {edge}, 3]",
                pixels.shape()
            )));
        };
        if (height, width) != (edge, edge) {
            return Err(Error::InvalidArgument(format!(
                "a picture of {width} by {height} pixels: this encoder takes {edge} by {edge}"
            )));
        }
        let grid = edge / patch;
        let pixels = pixels.as_dtype(self.dtype)?;
        let used = slice(&slice(&pixels, 1, 0..grid * patch)?, 2, 0..grid * patch)?;
        let patches = used
            .reshape(&[batch, grid, patch, grid, patch, 3])?
            .transpose_axes(&[0, 1, 3, 5, 2, 4])?;
        Ok(patches.reshape(&[batch, grid * grid, 3 * patch * patch])?)
    }

    /// Adds positions and inserts class and register tokens before the patches. Positions that do
    /// not cover the class token are added before it is inserted (timm's `no_embed_class`).
    fn embed(&self, patches: Tensor) -> Result<Tensor> {
        let Some(prefix) = &self.prefix else {
            return Ok(patches.add(&self.pos_embed)?);
        };
        let prefix = broadcast(prefix, &[patches.dim(0), prefix.dim(1), prefix.dim(2)])?;
        if self.config.num_positions == self.config.num_patches() {
            concat(&[&prefix, &patches.add(&self.pos_embed)?], 1)
        } else {
            Ok(concat(&[&prefix, &patches], 1)?.add(&self.pos_embed)?)
        }
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    ls1: Option<Tensor>,
    norm2: LayerNorm,
    mlp: Mlp,
    ls2: Option<Tensor>,
}

impl Block {
    /// timm's vision transformers use this epsilon instead of PyTorch's default 1e-5.
    const EPS: f32 = 1e-6;

    fn load(weights: &Weights, config: &ViTConfig, dtype: Dtype) -> Result<Block> {
        let width = config.embed_dim;
        let layer_scale = |name: &str| {
            config
                .has_layer_scale
                .then(|| load_vector(&weights.at(name), "scale_factor", &[width], dtype))
                .transpose()
        };
        Ok(Block {
            norm1: LayerNorm::load(&weights.at("norm1"), width, Self::EPS, dtype)?,
            attn: Attention::load(&weights.at("attn"), config, dtype)?,
            ls1: layer_scale("ls1")?,
            norm2: LayerNorm::load(&weights.at("norm2"), width, Self::EPS, dtype)?,
            mlp: Mlp::load(&weights.at("mlp"), config, dtype)?,
            ls2: layer_scale("ls2")?,
        })
    }

    /// Maps `[batch, tokens, width]` to the same shape.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.add(scale(
            self.attn.forward(&self.norm1.forward(x)?)?,
            &self.ls1,
        )?)?;
        Ok(x.add(scale(
            self.mlp.forward(&self.norm2.forward(&x)?)?,
            &self.ls2,
        )?)?)
    }
}

fn scale(x: Tensor, factor: &Option<Tensor>) -> Result<Tensor> {
    match factor {
        Some(factor) => Ok(x.multiply(factor)?),
        None => Ok(x),
    }
}

#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i32,
}

impl Attention {
    fn load(weights: &Weights, config: &ViTConfig, dtype: Dtype) -> Result<Attention> {
        let width = config.embed_dim;
        Ok(Attention {
            qkv: Linear::load(&weights.at("qkv"), 3 * width, width, dtype)?,
            proj: Linear::load(&weights.at("proj"), width, width, dtype)?,
            heads: config.num_heads as i32,
        })
    }

    /// Every token attends to every other. Maps `[batch, tokens, width]` to the same shape.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = (x.dim(0), x.dim(1), x.dim(2));
        let qkv =
            self.qkv
                .forward(x)?
                .reshape(&[batch, tokens, 3, self.heads, width / self.heads])?;
        let qkv = qkv.transpose_axes(&[2, 0, 3, 1, 4])?;
        let part = |i: i32| -> Result<Tensor> { Ok(slice(&qkv, 0, i..i + 1)?.squeeze_axes(&[0])?) };
        let factor = ((width / self.heads) as f32).sqrt().recip();
        self.proj.forward(&ops::attention(
            [&part(0)?, &part(1)?, &part(2)?],
            factor,
            None,
            Sees::All,
        )?)
    }
}

#[derive(Debug, Clone)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    fn load(weights: &Weights, config: &ViTConfig, dtype: Dtype) -> Result<Mlp> {
        Ok(Mlp {
            fc1: Linear::load(
                &weights.at("fc1"),
                config.intermediate_dim,
                config.embed_dim,
                dtype,
            )?,
            fc2: Linear::load(
                &weights.at("fc2"),
                config.embed_dim,
                config.intermediate_dim,
                dtype,
            )?,
            activation: config.activation,
        })
    }

    /// Maps `[batch, tokens, width]` to the same shape.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2
            .forward(&ops::activate(&self.fc1.forward(x)?, self.activation)?)
    }
}
