//! LLaVA's vision: CLIP up to its second-to-last layer, and a projector of two layers.

use std::num::Saturating;

use crate::{
    Result,
    checkpoint::Weights,
    device::{
        Dtype, inject_into,
        ops::{activate, slice},
    },
    image::Pixels,
    models::{
        MediaPlan, Sizes, Vision,
        memory::{Count, count},
    },
    nn::{Activation, ClipConfig, ClipEncoder, Features, Linear, Matrix},
};

/// Encoder and projector.
pub struct LlavaVision {
    encoder: ClipEncoder,
    linear_1: Linear,
    linear_2: Linear,
    activation: Activation,
    with_class: bool,
}

impl LlavaVision {
    /// Reads `vision_tower.vision_model` and `multi_modal_projector`.
    pub fn load(
        weights: &Weights,
        config: &ClipConfig,
        hidden: usize,
        activation: Activation,
        with_class: bool,
        dtype: Dtype,
    ) -> Result<LlavaVision> {
        let projector = weights.at("multi_modal_projector");
        Ok(LlavaVision {
            encoder: ClipEncoder::load(
                &weights.at("vision_tower.vision_model"),
                config.clone(),
                dtype,
            )?,
            linear_1: Linear::load(&projector.at("linear_1"), hidden, config.hidden_size, dtype)?,
            linear_2: Linear::load(&projector.at("linear_2"), hidden, hidden, dtype)?,
            activation,
            with_class,
        })
    }
}

impl Vision for LlavaVision {
    fn encode(
        &self,
        pixels: &Pixels,
        _: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features> {
        let encoded = self.encoder.forward(&pixels.data, progress)?;
        let encoded = if self.with_class {
            encoded
        } else {
            slice(&encoded, 1, 1..encoded.dim(1))?
        };
        let inner = activate(&self.linear_1.forward(&encoded)?, self.activation)?;
        let rows = inject_into("projector", self.linear_2.forward(&inner)?)?;
        Features::from_batch(&rows)
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = Vec::new();
        self.encoder.matrices("vision_tower.vision_model", &mut all);
        all.push((
            "multi_modal_projector.linear_1".into(),
            &mut self.linear_1.weight,
        ));
        all.push((
            "multi_modal_projector.linear_2".into(),
            &mut self.linear_2.weight,
        ));
        all
    }
}

/// Estimates the bytes that a running projector needs.
pub fn projector_memory(config: &ClipConfig, hidden: usize, sizes: &Sizes) -> Count {
    let activations =
        count(config.patches() + 1) * (count(config.hidden_size) + Saturating(4) * count(hidden));
    sizes.widened("multi_modal_projector.") + activations * Saturating(sizes.item())
}
