//! The vision of the Qwen-VL family.

use std::num::Saturating;

use crate::{
    Result,
    checkpoint::Weights,
    device::Dtype,
    image::Pixels,
    models::{
        MediaPlan, Sizes, Vision,
        memory::{Count, count},
    },
    nn::{Features, Matrix, QwenVitConfig, QwenVitEncoder},
};

/// The encoder, including its merger.
pub struct QwenVision(QwenVitEncoder);

impl QwenVision {
    /// Reads `vision_tower`.
    pub fn load(weights: &Weights, config: &QwenVitConfig, dtype: Dtype) -> Result<QwenVision> {
        QwenVitEncoder::load(&weights.at("vision_tower"), config.clone(), dtype).map(QwenVision)
    }
}

impl Vision for QwenVision {
    fn encode(
        &self,
        pixels: &Pixels,
        plan: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features> {
        let rows = self.0.forward(&pixels.data, &plan.grids, progress)?;
        rows.eval()?;
        Ok(Features { rows })
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = Vec::new();
        self.0.matrices("vision_tower", &mut all);
        all
    }
}

/// Estimates the bytes that encoding needs, in addition to weights and pixels.
pub fn encoder_memory(config: &QwenVitConfig, plan: &MediaPlan, sizes: &Sizes) -> Count {
    let patches: Count = plan
        .grids
        .iter()
        .map(|grid| {
            grid.iter()
                .map(|side| count(*side as usize))
                .product::<Count>()
        })
        .sum();
    let largest = plan
        .grids
        .iter()
        .map(|[_, h, w]| count(*h as usize) * count(*w as usize))
        .max()
        .unwrap_or_default();
    let (width, inner, heads) = (
        count(config.width),
        count(config.inner),
        count(config.heads),
    );
    let pixels = patches * count(config.patch_numbers());
    let [two, four, five, seven] = [2, 4, 5, 7].map(Saturating);
    let item = Saturating(sizes.item());
    let block = match sizes.own_kernels() {
        true => patches * (five * width + two * width / heads + four * inner) + pixels,
        // MLX needs most for attention scores and everything that is rotated, or in the MLP.
        false => (patches * Saturating(26) * width + heads * largest * largest)
            .max(patches * (four * width + five * inner)),
    };
    let block = sizes.widened("vision_tower.blocks.0.") + (block + pixels) * item;
    let merger = sizes.widened("vision_tower.merger.") + patches * seven * width * item;
    block.max(merger)
}
