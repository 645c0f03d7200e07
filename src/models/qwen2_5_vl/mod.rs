//! Qwen2.5-VL (<https://arxiv.org/abs/2502.13923>): Qwen2-VL with an encoder whose blocks are those
//! of the Llama family, and most of which attend within windows.

use serde::Deserialize;

use super::{
    Architecture, Grounding,
    qwen_vl::{EncoderConfig, Family, QwenVl, activation, check_encoder},
};
use crate::nn::{QwenVitConfig, Windows};

/// Qwen2.5-VL.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["qwen2_5_vl"],
    open: |files| Ok(Box::new(QwenVl::open::<VisionConfig>(files, FAMILY)?)),
};

const FAMILY: Family = Family {
    model_type: "qwen2_5_vl",
    processors: &[
        "Qwen2VLImageProcessor",
        "Qwen2_5_VLProcessor",
        // The name in the first published folders.
        "Qwen2_5_VLImageProcessor",
    ],
    grounding: Grounding::ResizedPixels,
};

/// `vision_config`, with transformers' defaults
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/qwen2_5_vl/configuration_qwen2_5_vl.py>).
#[derive(Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    depth: usize,
    hidden_size: usize,
    hidden_act: String,
    intermediate_size: usize,
    num_heads: usize,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    out_hidden_size: usize,
    window_size: usize,
    fullatt_block_indexes: Vec<usize>,
    tokens_per_second: f64,
}

impl Default for VisionConfig {
    fn default() -> VisionConfig {
        VisionConfig {
            depth: 32,
            hidden_size: 3584,
            hidden_act: "silu".into(),
            intermediate_size: 3420,
            num_heads: 16,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            out_hidden_size: 3584,
            window_size: 112,
            fullatt_block_indexes: vec![7, 15, 23, 31],
            tokens_per_second: 4.0,
        }
    }
}

impl EncoderConfig for VisionConfig {
    fn tokens_per_second(&self) -> Option<f64> {
        Some(self.tokens_per_second)
    }

    fn checked(&self, output: usize) -> Result<QwenVitConfig, String> {
        let mut encoder = QwenVitConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            depth: self.depth,
            heads: self.num_heads,
            patch_size: self.patch_size,
            temporal_patch: self.temporal_patch_size,
            merge: self.spatial_merge_size,
            output: self.out_hidden_size,
            activation: activation(&self.hidden_act, "silu")?,
            is_llama_like: true,
            windows: None,
        };
        check_encoder(
            &encoder,
            ["hidden_size", "intermediate_size"],
            self.in_channels,
        )?;
        if self.out_hidden_size != output {
            return Err(format!(
                "vision_config.out_hidden_size is {}; the language model's hidden_size is {output}",
                self.out_hidden_size
            ));
        }
        let square = self.patch_size * self.spatial_merge_size;
        if self.window_size < square {
            return Err(format!(
                "vision_config.window_size is {}; expected at least {square}, the pixels of a \
                 merged square",
                self.window_size
            ));
        }
        let beyond = |block: &&usize| **block >= self.depth;
        if let Some(block) = self.fullatt_block_indexes.iter().find(beyond) {
            return Err(format!(
                "vision_config.fullatt_block_indexes has {block}; the encoder has {} blocks",
                self.depth
            ));
        }
        if !(0.0..=1000.0).contains(&self.tokens_per_second) {
            return Err(format!(
                "vision_config.tokens_per_second is {}; expected 0 to 1000",
                self.tokens_per_second
            ));
        }
        encoder.windows = Some(Windows {
            edge: self.window_size / square,
            full_blocks: self.fullatt_block_indexes.clone(),
        });
        Ok(encoder)
    }
}
