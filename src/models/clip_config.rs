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

/// The defaults of transformers' `SiglipVisionConfig`
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/siglip/configuration_siglip.py>).
pub const SIGLIP: ClipConfig = ClipConfig {
    hidden_size: 768,
    intermediate_size: 3072,
    layers: 12,
    heads: 12,
    patch_size: 16,
    image_size: 224,
    activation: Activation::GeluTanh,
    norm_eps: 1e-6,
    is_clip: false,
    post_norm: true,
};

/// The defaults of transformers' `CLIPVisionConfig`
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/clip/configuration_clip.py>).
pub const CLIP: ClipConfig = ClipConfig {
    patch_size: 32,
    activation: Activation::QuickGelu,
    norm_eps: 1e-5,
    is_clip: true,
    ..SIGLIP
};

/// The fields of the encoder in config.json. A field that is missing or null is `None`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    patch_size: Option<usize>,
    image_size: Option<usize>,
    num_channels: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
}

/// The maximum of any size.
const MAX_SIZE: usize = 1 << 16;

impl VisionConfig {
    /// Reads and checks the encoder of `vision_config`. All its layers run and are followed by a
    /// norm, unless the caller changes that. `defaults` fills in what is missing.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] naming the invalid field.
    pub fn read(path: &Path, config: &Value, defaults: ClipConfig) -> Result<ClipConfig> {
        let part = config
            .get("vision_config")
            .cloned()
            .unwrap_or_else(|| serde_json::json!({}));
        let config: VisionConfig = serde_json::from_value(part)
            .map_err(|error| Error::corrupt(path, format!("vision_config: {error}")))?;
        config
            .checked(defaults)
            .map_err(|what| Error::unsupported(path, what))
    }

    fn checked(self, defaults: ClipConfig) -> Result<ClipConfig, String> {
        let activation = match &self.hidden_act {
            None => defaults.activation,
            Some(name) => Activation::from_name(name).ok_or_else(|| {
                format!(
                    "vision_config.hidden_act is {name:?}; expected gelu, gelu_pytorch_tanh or \
                        quick_gelu"
                )
            })?,
        };
        let config = ClipConfig {
            hidden_size: self.hidden_size.unwrap_or(defaults.hidden_size),
            intermediate_size: self.intermediate_size.unwrap_or(defaults.intermediate_size),
            layers: self.num_hidden_layers.unwrap_or(defaults.layers),
            heads: self.num_attention_heads.unwrap_or(defaults.heads),
            patch_size: self.patch_size.unwrap_or(defaults.patch_size),
            image_size: self.image_size.unwrap_or(defaults.image_size),
            activation,
            norm_eps: self.layer_norm_eps.unwrap_or(defaults.norm_eps),
            ..defaults
        };
        let sizes = [
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.layers),
            ("num_attention_heads", config.heads),
            ("patch_size", config.patch_size),
            ("image_size", config.image_size),
        ];
        if let Some((name, size)) = sizes
            .iter()
            .find(|(_, size)| !(1..=MAX_SIZE).contains(size))
        {
            return Err(format!(
                "vision_config.{name} is {size}; expected 1 to {MAX_SIZE}"
            ));
        }
        let (width, heads) = (config.hidden_size, config.heads);
        if !width.is_multiple_of(heads) {
            return Err(format!(
                "vision_config.hidden_size is {width}, which {heads} attention heads do not divide"
            ));
        }
        if let Some(channels) = self.num_channels.filter(|channels| *channels != 3) {
            return Err(format!(
                "vision_config.num_channels is {channels}; expected 3"
            ));
        }
        let (patch_size, image_size) = (config.patch_size, config.image_size);
        if image_size < patch_size || image_size > 4096 {
            return Err(format!(
                "vision_config.image_size is {image_size}; expected {patch_size} to 4096"
            ));
        }
        let norm_eps = config.norm_eps;
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(format!(
                "vision_config.layer_norm_eps is {norm_eps}; expected more than 0 and less than 1"
            ));
        }
        Ok(config)
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
