//! Gemma 3's vision: SigLIP with its last norm, the mean of each square of patches, a norm, and one
//! matrix.

use std::num::Saturating;

use crate::{
    Result,
    checkpoint::Weights,
    device::{Dtype, Tensor, inject_into},
    image::Pixels,
    models::{
        MediaPlan, Sizes, Vision,
        memory::{Count, count},
    },
    nn::{ClipConfig, ClipEncoder, Features, Matrix, RmsNorm, load_vector},
};

/// Encoder and projector.
pub struct Gemma3Vision {
    encoder: ClipEncoder,
    norm: RmsNorm,
    /// `[width, hidden]`
    projection: Tensor,
    /// The number of features in a row or column.
    side: i32,
}

impl Gemma3Vision {
    /// Reads `vision_tower.vision_model` and `multi_modal_projector`, whose matrix is transposed
    /// and never quantized.
    pub fn load(
        weights: &Weights,
        config: &ClipConfig,
        side: usize,
        hidden: usize,
        dtype: Dtype,
    ) -> Result<Gemma3Vision> {
        let (projector, width) = (weights.at("multi_modal_projector"), config.hidden_size);
        let norm = projector.at("mm_soft_emb_norm");
        Ok(Gemma3Vision {
            encoder: ClipEncoder::load(
                &weights.at("vision_tower.vision_model"),
                config.clone(),
                dtype,
            )?,
            norm: RmsNorm::load_plus_one(&norm, width, config.norm_eps, dtype)?,
            projection: load_vector(
                &projector,
                "mm_input_projection_weight",
                &[width, hidden],
                dtype,
            )?,
            side: side as i32,
        })
    }

    /// Maps patches `[1, patches, width]` to the means of squares, `[1, features, width]`.
    fn pool(&self, patches: &Tensor) -> Result<Tensor> {
        let (side, width) = (self.side, patches.dim(2));
        let edge = (patches.dim(1) / (side * side)).isqrt();
        let squares = patches.reshape(&[side, edge, side, edge, width])?;
        let means = squares.mean_axes(&[1, 3], false)?;
        Ok(means.reshape(&[1, side * side, width])?)
    }
}

impl Vision for Gemma3Vision {
    fn encode(
        &self,
        pixels: &Pixels,
        _: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features> {
        let encoded = self.encoder.forward(&pixels.data, progress)?;
        let pooled = self.norm.forward(&self.pool(&encoded)?)?;
        let rows = inject_into("projector", pooled.matmul(&self.projection)?)?;
        Features::from_batch(&rows)
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = Vec::new();
        self.encoder.matrices("vision_tower.vision_model", &mut all);
        all
    }
}

/// Estimates the bytes that a running projector needs.
pub fn projector_memory(
    config: &ClipConfig,
    features: usize,
    hidden: usize,
    sizes: &Sizes,
) -> Count {
    let [two, three] = [2, 3].map(Saturating);
    let width = count(config.hidden_size);
    let activations =
        count(config.patches()) * width + count(features) * (three * width + two * count(hidden));
    activations * Saturating(sizes.item())
}
