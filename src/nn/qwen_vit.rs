//! Qwen2-VL's and Qwen2.5-VL's vision encoder and merger (<https://arxiv.org/abs/2409.12191>,
//! <https://arxiv.org/abs/2502.13923>,
//! <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/qwen2_vl/modeling_qwen2_vl.py>):
//! a transformer over patches of pictures of any size, with two-dimensional rotary positions, which
//! merges four neighboring patches into one feature.

use super::{
    Activation, GatedMlp, LayerNorm, Linear, Matrix, RmsNorm, Windows, windows::WindowOrder,
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::{
        Dtype, Tensor, inject_into,
        ops::{self, RotaryTable, Sees, concat, rotate_heads_by, slice, split_heads, take_rows},
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
    /// Whether the norms are RMS norms, and the blocks' MLPs gated, as in Qwen2.5-VL.
    pub is_llama_like: bool,
    /// Which blocks attend within windows; `None`: all attend to the whole frame.
    pub windows: Option<Windows>,
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
        let square = self.config.merge.pow(2);
        let windows = self.config.windows.as_ref();
        let order = windows.map(|windows| windows.order(grids, self.config.merge));
        if let Some(order) = &order {
            let shape = x.shape().to_vec();
            let squares = x.reshape(&[-1, (square * self.config.width) as i32])?;
            x = take_rows(&squares, &order.squares)?.reshape(&shape)?;
        }
        let table = self.table(grids, order.as_ref());
        // Frames of a picture or clip do not attend to each other.
        let frames: Vec<i32> = grids
            .iter()
            .flat_map(|[t, h, w]| (0..*t).map(move |_| (h * w) as i32))
            .collect();
        let in_windows = order.as_ref().map_or(Vec::new(), |order| {
            let patches = order.sizes.iter().map(|size| (size * square) as i32);
            patches.collect()
        });
        for (i, block) in self.blocks.iter().enumerate() {
            let parts = match windows {
                Some(windows) if !windows.full_blocks.contains(&i) => &in_windows,
                _ => &frames,
            };
            x = inject_into("encoder", block.forward(&x, &table, parts)?)?;
            if self.dtype == Dtype::Float32 {
                x.eval()?; // frees the weights widened for this block before the next one
            }
            progress((i + 1) as f32 / self.blocks.len() as f32)?;
        }
        let features = self.merger.forward(&x)?;
        match order {
            Some(order) => take_rows(&features, &order.places()),
            None => Ok(features),
        }
    }

    /// Adds the matrices, by the paths of their modules.
    pub(crate) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let mut linears = vec![("attn.qkv", &mut block.qkv), ("attn.proj", &mut block.proj)];
            match &mut block.mlp {
                Mlp::Plain { fc1, fc2, .. } => linears.extend([("mlp.fc1", fc1), ("mlp.fc2", fc2)]),
                Mlp::Gated(GatedMlp { gate, up, down, .. }) => linears.extend([
                    ("mlp.gate_proj", gate),
                    ("mlp.up_proj", up),
                    ("mlp.down_proj", down),
                ]),
            }
            all.extend(
                linears.into_iter().map(|(name, linear)| {
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
    fn table(&self, grids: &[[u32; 3]], order: Option<&WindowOrder>) -> RotaryTable {
        let quarter = self.config.width / self.config.heads / 4;
        let frequency = |i: usize| 1.0 / THETA.powf(i as f32 / quarter as f32);
        let frequencies: Vec<f32> = (0..quarter).map(frequency).collect();
        let positions = grids
            .iter()
            .flat_map(|grid| patch_positions(*grid, self.config.merge as u32));
        let mut positions: Vec<(u32, u32)> = positions.collect();
        if let Some(order) = order {
            let square = self.config.merge.pow(2);
            let squares = order.squares.iter().map(|i| *i as usize * square);
            positions = squares
                .flat_map(|first| positions[first..first + square].to_vec())
                .collect();
        }
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
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    mlp: Mlp,
    head: i32,
}

#[derive(Debug, Clone)]
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<Norm> {
        Ok(match config.is_llama_like {
            true => Norm::Rms(RmsNorm::load(weights, config.width, EPS, dtype)?),
            false => Norm::Layer(LayerNorm::load(weights, config.width, EPS, dtype)?),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Norm::Layer(norm) => norm.forward(x),
            Norm::Rms(norm) => norm.forward(x),
        }
    }
}

#[derive(Debug, Clone)]
enum Mlp {
    Plain {
        fc1: Linear,
        fc2: Linear,
        activation: Activation,
    },
    Gated(GatedMlp),
}

impl Mlp {
    fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<Mlp> {
        let (width, inner, activation) = (config.width, config.inner, config.activation);
        Ok(match config.is_llama_like {
            true => Mlp::Gated(GatedMlp::load(weights, width, inner, activation, dtype)?),
            false => Mlp::Plain {
                fc1: Linear::load(&weights.at("fc1"), inner, width, dtype)?,
                fc2: Linear::load(&weights.at("fc2"), width, inner, dtype)?,
                activation,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Mlp::Plain {
                fc1,
                fc2,
                activation,
            } => fc2.forward(&ops::activate(&fc1.forward(x)?, *activation)?),
            Mlp::Gated(mlp) => mlp.forward(x),
        }
    }
}

impl Block {
    fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<Block> {
        let width = config.width;
        Ok(Block {
            norm1: Norm::load(&weights.at("norm1"), config, dtype)?,
            qkv: Linear::load(&weights.at("attn.qkv"), 3 * width, width, dtype)?,
            proj: Linear::load(&weights.at("attn.proj"), width, width, dtype)?,
            norm2: Norm::load(&weights.at("norm2"), config, dtype)?,
            mlp: Mlp::load(&weights.at("mlp"), config, dtype)?,
            head: (width / config.heads) as i32,
        })
    }

    /// Maps `[1, patches, width]` to the same shape. Patches attend to those in their part, a frame
    /// or a window, whose sizes are given.
    fn forward(&self, x: &Tensor, table: &RotaryTable, parts: &[i32]) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let width = x.dim(2);
        let part = |i: i32| slice(&qkv, 2, i * width..(i + 1) * width);
        let queries = rotate_heads_by(&part(0)?, self.head, table)?;
        let keys = rotate_heads_by(&part(1)?, self.head, table)?;
        let values = split_heads(&part(2)?, self.head)?;
        let factor = (self.head as f32).sqrt().recip();
        let mut mixed = Vec::new();
        let mut from = 0;
        for size in parts {
            let in_part = |x: &Tensor| slice(x, 2, from..from + size);
            let heads = [&in_part(&queries)?, &in_part(&keys)?, &in_part(&values)?];
            mixed.push(ops::attention(heads, factor, None, Sees::All)?);
            from += size;
        }
        let mixed = if mixed.len() == 1 {
            mixed.remove(0)
        } else {
            concat(&mixed.iter().collect::<Vec<_>>(), 1)?
        };
        let x = x.add(self.proj.forward(&mixed)?)?;
        Ok(x.add(self.mlp.forward(&self.norm2.forward(&x)?)?)?)
    }
}

/// Merges the patches of a square into one feature.
#[derive(Debug, Clone)]
struct Merger {
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
    /// The number of values in a square's patches.
    width: i32,
}

impl Merger {
    fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<Merger> {
        let width = config.width * config.merge * config.merge;
        Ok(Merger {
            norm: Norm::load(&weights.at("ln_q"), config, dtype)?,
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
