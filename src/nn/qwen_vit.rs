//! Qwen2-VL's vision encoder and merger (<https://arxiv.org/abs/2409.12191>,
//! <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/qwen2_vl/modeling_qwen2_vl.py>):
//! a transformer over patches of pictures of any size, with two-dimensional rotary positions, which
//! merges four neighboring patches into one feature.

use super::{Activation, LayerNorm, Linear, Matrix};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::{
        Dtype, Tensor, inject_into,
        ops::{self, RotaryTable, Sees, concat, rotate_heads_by, slice, split_heads},
    },
};

/// The settings of an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QwenVitConfig {
    /// The number of values per token.
    pub width: usize,
    /// The number of values inside a block's MLP.
    pub inner: usize,
    /// The number of blocks.
    pub depth: usize,
    /// The number of attention heads; the width of a head is a multiple of 4.
    pub heads: usize,
    /// The edge of a patch, in pixels.
    pub patch_size: usize,
    /// The number of frames in a patch.
    pub temporal_patch: usize,
    /// The number of patches on each edge of the square that becomes one feature.
    pub merge: usize,
    /// The number of values per feature.
    pub output: usize,
    /// The activation of the blocks' MLPs.
    pub activation: Activation,
}

impl QwenVitConfig {
    /// Returns the number of values per patch.
    pub fn patch_numbers(&self) -> usize {
        3 * self.temporal_patch * self.patch_size * self.patch_size
    }
}

/// The encoder and its merger.
#[derive(Debug, Clone)]
pub struct QwenVitEncoder {
    config: QwenVitConfig,
    patch_embedding: Linear,
    blocks: Vec<Block>,
    merger: Merger,
    dtype: Dtype,
}

/// The epsilon of all norms.
const EPS: f32 = 1e-6;

/// The base of the rotary positions.
const THETA: f32 = 10_000.0;

impl QwenVitEncoder {
    /// Loads the encoder below `weights`. `dtype` is that of the activations.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the tensor that is missing or has another shape.
    pub fn load(weights: &Weights, config: QwenVitConfig, dtype: Dtype) -> Result<QwenVitEncoder> {
        let kernel = [
            3,
            config.temporal_patch,
            config.patch_size,
            config.patch_size,
        ];
        let (blocks, patches) = (weights.at("blocks"), weights.at("patch_embed.proj"));
        let is_mlx = patches.is_mlx_convolution("weight", 3)?;
        Ok(QwenVitEncoder {
            patch_embedding: Linear::load_patches(&patches, config.width, &kernel, is_mlx, dtype)?,
            blocks: (0..config.depth)
                .map(|i| Block::load(&blocks.at(i), &config, dtype))
                .collect::<Result<_>>()?,
            merger: Merger::load(&weights.at("merger"), &config, dtype)?,
            config,
            dtype,
        })
    }

    /// Encodes the patches of some grids (each frames by rows by columns), in the order of the
    /// merged squares, as features `[squares, output]`. `progress` receives the fraction that is
    /// complete, 0 to 1, after every block; an error from it ends the work.
    pub fn forward(
        &self,
        patches: &[f32],
        grids: &[[u32; 3]],
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Tensor> {
        let numbers = self.config.patch_numbers();
        let count: usize = grids
            .iter()
            .map(|grid| grid.iter().map(|size| *size as usize).product::<usize>())
            .sum();
        if count == 0 || patches.len() != count * numbers {
            let what = format!(
                "{} values for grids of {count} patches of {numbers}",
                patches.len()
            );
            return Err(Error::InvalidArgument(what));
        }
        let pixels =
            ops::floats(patches, &[1, count as i32, numbers as i32]).as_dtype(self.dtype)?;
        let mut x = self.patch_embedding.forward(&pixels)?;
        let table = self.table(grids);
        // Frames of a picture or clip do not attend to each other.
        let frames: Vec<i32> = grids
            .iter()
            .flat_map(|[t, h, w]| (0..*t).map(move |_| (h * w) as i32))
            .collect();
        for (i, block) in self.blocks.iter().enumerate() {
            x = inject_into("encoder", block.forward(&x, &table, &frames)?)?;
            if self.dtype == Dtype::Float32 {
                x.eval()?; // frees the weights widened for this block before the next one
            }
            progress((i + 1) as f32 / self.blocks.len() as f32)?;
        }
        self.merger.forward(&x)
    }

    /// Adds the matrices, by the paths of their modules.
    pub(crate) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let linears = [
                ("attn.qkv", &mut block.qkv),
                ("attn.proj", &mut block.proj),
                ("mlp.fc1", &mut block.fc1),
                ("mlp.fc2", &mut block.fc2),
            ];
            all.extend(
                linears.map(|(name, linear)| {
                    (format!("{path}.blocks.{i}.{name}"), &mut linear.weight)
                }),
            );
        }
        let Merger { fc1, fc2, .. } = &mut self.merger;
        all.push((format!("{path}.merger.mlp.0"), &mut fc1.weight));
        all.push((format!("{path}.merger.mlp.2"), &mut fc2.weight));
    }

    /// Returns the angles of each patch: a quarter of a head's width by its row, a quarter by its
    /// column.
    fn table(&self, grids: &[[u32; 3]]) -> RotaryTable {
        let quarter = self.config.width / self.config.heads / 4;
        let frequency = |i: usize| 1.0 / THETA.powf(i as f32 / quarter as f32);
        let frequencies: Vec<f32> = (0..quarter).map(frequency).collect();
        let positions = grids
            .iter()
            .flat_map(|grid| patch_positions(*grid, self.config.merge as u32));
        let mut angles = Vec::new();
        for (row, column) in positions {
            angles.extend(
                [row, column]
                    .into_iter()
                    .flat_map(|at| frequencies.iter().map(move |f| at as f32 * f)),
            );
        }
        RotaryTable::new(angles.into_iter())
    }
}

/// Returns the row and column of each patch of a grid, one merged square after the other.
fn patch_positions(
    [frames, rows, columns]: [u32; 3],
    merge: u32,
) -> impl Iterator<Item = (u32, u32)> {
    let squares = (0..frames).flat_map(move |_| {
        (0..rows / merge).flat_map(move |y| (0..columns / merge).map(move |x| (y, x)))
    });
    squares.flat_map(move |(y, x)| {
        (0..merge).flat_map(move |dy| (0..merge).map(move |dx| (y * merge + dy, x * merge + dx)))
    })
}

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    head: i32,
}

impl Block {
    fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<Block> {
        let (width, inner) = (config.width, config.inner);
        Ok(Block {
            norm1: LayerNorm::load(&weights.at("norm1"), width, EPS, dtype)?,
            qkv: Linear::load(&weights.at("attn.qkv"), 3 * width, width, dtype)?,
            proj: Linear::load(&weights.at("attn.proj"), width, width, dtype)?,
            norm2: LayerNorm::load(&weights.at("norm2"), width, EPS, dtype)?,
            fc1: Linear::load(&weights.at("mlp.fc1"), inner, width, dtype)?,
            fc2: Linear::load(&weights.at("mlp.fc2"), width, inner, dtype)?,
            activation: config.activation,
            head: (width / config.heads) as i32,
        })
    }

    /// Maps `[1, patches, width]` to the same shape. Patches attend to those in their frame.
    fn forward(&self, x: &Tensor, table: &RotaryTable, frames: &[i32]) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let width = x.dim(2);
        let part = |i: i32| slice(&qkv, 2, i * width..(i + 1) * width);
        let queries = rotate_heads_by(&part(0)?, self.head, table)?;
        let keys = rotate_heads_by(&part(1)?, self.head, table)?;
        let values = split_heads(&part(2)?, self.head)?;
        let factor = (self.head as f32).sqrt().recip();
        let mut mixed = Vec::new();
        let mut from = 0;
        for frame in frames {
            let of_frame = |x: &Tensor| slice(x, 2, from..from + frame);
            let heads = [&of_frame(&queries)?, &of_frame(&keys)?, &of_frame(&values)?];
            mixed.push(ops::attention(heads, factor, None, Sees::All)?);
            from += frame;
        }
        let mixed = if mixed.len() == 1 {
            mixed.remove(0)
        } else {
            concat(&mixed.iter().collect::<Vec<_>>(), 1)?
        };
        let x = x.add(self.proj.forward(&mixed)?)?;
        let inner = ops::activate(
            &self.fc1.forward(&self.norm2.forward(&x)?)?,
            self.activation,
        )?;
        Ok(x.add(self.fc2.forward(&inner)?)?)
    }
}

/// Merges the patches of a square into one feature.
#[derive(Debug, Clone)]
struct Merger {
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    /// The number of values in a square's patches.
    width: i32,
}

impl Merger {
    fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<Merger> {
        let width = config.width * config.merge * config.merge;
        Ok(Merger {
            norm: LayerNorm::load(&weights.at("ln_q"), config.width, EPS, dtype)?,
            fc1: Linear::load(&weights.at("mlp.0"), width, width, dtype)?,
            fc2: Linear::load(&weights.at("mlp.2"), config.output, width, dtype)?,
            width: width as i32,
        })
    }

    /// Maps `[1, patches, width]` to `[squares, output]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let squares = self.norm.forward(x)?.reshape(&[-1, self.width])?;
        let inner = ops::activate(&self.fc1.forward(&squares)?, Activation::Gelu)?;
        inject_into("projector", self.fc2.forward(&inner)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_square_by_square() {
        let positions: Vec<_> = patch_positions([1, 2, 4], 2).collect();
        assert_eq!(
            positions,
            [
                (0, 0),
                (0, 1),
                (1, 0),
                (1, 1),
                (0, 2),
                (0, 3),
                (1, 2),
                (1, 3)
            ]
        );
    }
}
