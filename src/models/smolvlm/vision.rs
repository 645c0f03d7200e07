//! The vision: SigLIP with its last norm for each tile, pixel shuffle, and one linear layer.

use std::num::Saturating;

use crate::{
    Result,
    checkpoint::Weights,
    device::{Dtype, inject_into, ops::concat},
    image::Pixels,
    models::{
        MediaPlan, Sizes, Vision,
        clip_config::encoder_memory,
        memory::{Count, count},
    },
    nn::{ClipConfig, ClipEncoder, Features, Linear, Matrix, pixel_shuffle},
};

/// Encoder and connector.
pub struct SmolVlmVision {
    encoder: ClipEncoder,
    projection: Linear,
    config: ClipConfig,
    factor: usize,
}

impl SmolVlmVision {
    /// Reads `vision_model` and `connector`. Squares of `factor` x `factor` patches become one
    /// feature.
    pub fn load(
        weights: &Weights,
        config: &ClipConfig,
        factor: usize,
        hidden: usize,
        dtype: Dtype,
    ) -> Result<SmolVlmVision> {
        let projection = weights.at("connector.modality_projection.proj");
        let width = config.hidden_size * factor * factor;
        Ok(SmolVlmVision {
            encoder: ClipEncoder::load(&weights.at("vision_model"), config.clone(), dtype)?,
            projection: Linear::load(&projection, hidden, width, dtype)?,
            config: config.clone(),
            factor,
        })
    }
}

impl Vision for SmolVlmVision {
    fn encode(
        &self,
        pixels: &Pixels,
        plan: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features> {
        let side = self.config.image_size / self.config.patch_size;
        let tiles = pixels.data.chunks_exact(3 * self.config.image_size.pow(2));
        let mut features = Vec::with_capacity(plan.runs.len());
        for (i, tile) in tiles.enumerate() {
            let part = |part: f32| progress((i as f32 + part) / plan.runs.len() as f32);
            let encoded = self.encoder.forward(tile, &part)?;
            let squares = pixel_shuffle(&encoded, [side; 2], self.factor)?;
            let rows = inject_into("projector", self.projection.forward(&squares)?)?;
            rows.eval()?; // frees the tile's activations before the next one
            features.push(rows);
        }
        Features::from_batch(&concat(&features.iter().collect::<Vec<_>>(), 1)?)
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = Vec::new();
        self.encoder.matrices("vision_model", &mut all);
        all.push((
            "connector.modality_projection.proj".into(),
            &mut self.projection.weight,
        ));
        all
    }
}

/// Estimates the bytes that encoding needs, in addition to weights and pixels: for one tile at a
/// time, and the features of all.
pub fn vision_memory(config: &ClipConfig, hidden: usize, plan: &MediaPlan, sizes: &Sizes) -> Count {
    let two = Saturating(2);
    let patches = count(config.patches()) * count(config.hidden_size);
    let of_tile = count(plan.runs.first().copied().unwrap_or(0)) * count(hidden);
    let connector =
        sizes.widened("connector.") + (two * patches + of_tile) * Saturating(sizes.item());
    let features = two * count(plan.features()) * count(hidden) * Saturating(sizes.item());
    encoder_memory(config, "vision_model", sizes).max(connector) + features
}
