//! `vision_config` of models with a CLIP or SigLIP encoder.

use std::{num::Saturating, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Sizes,
    memory::{Count, count},
};
use crate::{
    Error, Result,
    nn::{Activation, ClipConfig},
};

/// The fields of the encoder in config.json, with transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    patch_size: usize,
    image_size: usize,
    num_channels: usize,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
}

impl Default for VisionConfig {
    /// The defaults of `SiglipVisionConfig`
    /// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/siglip/configuration_siglip.py>);
    /// `CLIPVisionConfig` differs in activation, epsilon and patch size.
    fn default() -> VisionConfig {
        VisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            patch_size: 0,
            image_size: 224,
            num_channels: 3,
            hidden_act: None,
            layer_norm_eps: None,
        }
    }
}

/// The maximum of any size.
const MAX_SIZE: usize = 1 << 16;

impl VisionConfig {
    /// Reads and checks the encoder of `vision_config`. All its layers run and are followed by a
    /// norm, unless the caller changes that.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] naming the invalid field.
    pub fn read(path: &Path, config: &Value, is_clip: bool) -> Result<ClipConfig> {
        let part = config
            .get("vision_config")
            .cloned()
            .unwrap_or_else(|| serde_json::json!({}));
        let config: VisionConfig = serde_json::from_value(part)
            .map_err(|error| Error::corrupt(path, format!("vision_config: {error}")))?;
        config
            .checked(is_clip)
            .map_err(|what| Error::unsupported(path, what))
    }

    fn checked(&self, is_clip: bool) -> Result<ClipConfig, String> {
        let patch_size = match self.patch_size {
            0 if is_clip => 32,
            0 => 16,
            size => size,
        };
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("patch_size", patch_size),
            ("image_size", self.image_size),
        ];
        if let Some((name, size)) = sizes
            .iter()
            .find(|(_, size)| !(1..=MAX_SIZE).contains(size))
        {
            return Err(format!(
                "vision_config.{name} is {size}; expected 1 to {MAX_SIZE}"
            ));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(format!(
                "vision_config.hidden_size is {width}, which {heads} attention heads do not divide"
            ));
        }
        if self.num_channels != 3 {
            return Err(format!(
                "vision_config.num_channels is {}; expected 3",
                self.num_channels
            ));
        }
        if self.image_size < patch_size || self.image_size > 4096 {
            return Err(format!(
                "vision_config.image_size is {}; expected {patch_size} to 4096",
                self.image_size
            ));
        }
        let name = self.hidden_act.as_deref().unwrap_or(if is_clip {
            "quick_gelu"
        } else {
            "gelu_pytorch_tanh"
        });
        let activation = Activation::from_name(name).ok_or_else(|| {
            format!(
                "vision_config.hidden_act is {name:?}; expected gelu, gelu_pytorch_tanh or \
                    quick_gelu"
            )
        })?;
        let norm_eps = self
            .layer_norm_eps
            .unwrap_or(if is_clip { 1e-5 } else { 1e-6 });
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(format!(
                "vision_config.layer_norm_eps is {norm_eps}; expected more than 0 and less than 1"
            ));
        }
        Ok(ClipConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            patch_size,
            image_size: self.image_size,
            activation,
            norm_eps,
            is_clip,
            post_norm: true,
        })
    }
}

/// Estimates the bytes that a running encoder needs, in addition to weights and pixels.
pub fn encoder_memory(config: &ClipConfig, path: &str, sizes: &Sizes) -> Count {
    let [two, three, four, five, ten] = [2, 3, 4, 5, 10].map(Saturating);
    let (width, inner, heads) = (
        count(config.hidden_size),
        count(config.intermediate_size),
        count(config.heads),
    );
    let tokens = count(config.patches()) + count(usize::from(config.is_clip));
    let edge = count(config.image_size);
    let pixels = three * edge * edge;
    let activations = match sizes.own_kernels() {
        true => tokens * (four * width + four * inner) + two * pixels,
        false => tokens * (ten * width + five * inner) + heads * tokens * tokens + two * pixels,
    };
    sizes.widened(&format!("{path}.encoder.layers.0.")) + activations * Saturating(sizes.item())
}
