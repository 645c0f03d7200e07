//! Qwen2-VL (<https://arxiv.org/abs/2409.12191>): an encoder for pictures of any size, and Qwen2
//! with positions in three dimensions.

use serde::Deserialize;

use super::{
    Architecture, Grounding,
    qwen_vl::{EncoderConfig, Family, QwenVl, activation, check_encoder},
};
use crate::nn::QwenVitConfig;

/// Qwen2-VL.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["qwen2_vl"],
    open: |files| Ok(Box::new(QwenVl::open::<VisionConfig>(files, FAMILY)?)),
};

const FAMILY: Family = Family {
    model_type: "qwen2_vl",
    processors: &["Qwen2VLImageProcessor", "Qwen2VLProcessor"],
    grounding: Grounding::Thousandths,
};

/// `vision_config`, with transformers' defaults
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/qwen2_vl/configuration_qwen2_vl.py>).
#[derive(Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    depth: usize,
    embed_dim: usize,
    hidden_act: String,
    mlp_ratio: f64,
    num_heads: usize,
    /// The hub's files call it `in_chans`, which transformers does not read: it is always 3.
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
}

impl Default for VisionConfig {
    fn default() -> VisionConfig {
        VisionConfig {
            depth: 32,
            embed_dim: 1280,
            hidden_act: "quick_gelu".into(),
            mlp_ratio: 4.0,
            num_heads: 16,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
        }
    }
}

impl EncoderConfig for VisionConfig {
    fn checked(&self, output: usize) -> Result<QwenVitConfig, String> {
        let encoder = QwenVitConfig {
            width: self.embed_dim,
            inner: (self.embed_dim as f64 * self.mlp_ratio) as usize,
            depth: self.depth,
            heads: self.num_heads,
            patch_size: self.patch_size,
            temporal_patch: self.temporal_patch_size,
            merge: self.spatial_merge_size,
            output,
            activation: activation(&self.hidden_act, "quick_gelu")?,
            is_llama_like: false,
            windows: None,
        };
        check_encoder(&encoder, ["embed_dim", "mlp_ratio"], self.in_channels)?;
        Ok(encoder)
    }
}
