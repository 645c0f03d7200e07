//! PaliGemma's vision: SigLIP with its last norm, and one linear layer.

use std::num::Saturating;

use crate::{
    Result,
    checkpoint::Weights,
    device::{Dtype, inject_into},
    image::Pixels,
    models::{
        MediaPlan, Sizes, Vision,
        memory::{Count, count},
    },
    nn::{ClipConfig, ClipEncoder, Features, Linear, Matrix},
};

/// Encoder and projector.
pub struct PaliGemmaVision {
    encoder: ClipEncoder,
    projector: Linear,
}

impl PaliGemmaVision {
    /// Reads `vision_tower.vision_model` and `multi_modal_projector.linear`.
    pub fn load(
        weights: &Weights,
        config: &ClipConfig,
        hidden: usize,
        dtype: Dtype,
    ) -> Result<PaliGemmaVision> {
        Ok(PaliGemmaVision {
            encoder: ClipEncoder::load(
                &weights.at("vision_tower.vision_model"),
                config.clone(),
                dtype,
            )?,
            projector: Linear::load(
                &weights.at("multi_modal_projector.linear"),
                hidden,
                config.hidden_size,
                dtype,
            )?,
        })
    }
}

impl Vision for PaliGemmaVision {
    fn encode(
        &self,
        pixels: &Pixels,
        _: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features> {
        let encoded = self.encoder.forward(&pixels.data, progress)?;
        let rows = inject_into("projector", self.projector.forward(&encoded)?)?;
        Features::from_batch(&rows)
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = Vec::new();
        self.encoder.matrices("vision_tower.vision_model", &mut all);
        all.push((
            "multi_modal_projector.linear".into(),
            &mut self.projector.weight,
        ));
        all
    }
}

/// Estimates the bytes that a running projector needs.
pub fn projector_memory(config: &ClipConfig, hidden: usize, sizes: &Sizes) -> Count {
    let activations =
        count(config.patches()) * (count(config.hidden_size) + Saturating(2) * count(hidden));
    sizes.widened("multi_modal_projector.") + activations * Saturating(sizes.item())
}
