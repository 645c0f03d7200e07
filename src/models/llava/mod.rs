//! LLaVA-1.5 (<https://arxiv.org/abs/2310.03744>): CLIP, a projector of two layers, and Llama.

mod vision;

use serde_json::Value;

use self::vision::{LlavaVision, projector_memory};
use super::{
    Architecture, Blueprint, Budget, DEFAULT_CONTEXT, Files, Limits, Marker, MediaPlan, MediumSize,
    PromptFormat, Sizes, TextConfig, Vision,
    clip_config::{CLIP, VisionConfig, encoder_memory},
    names::{is_computed, with_vision_tower},
    squared::Squared,
    text_config::token_id,
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::Device,
    image::{Picture, Pixels},
    nn::{Activation, ClipConfig, DecoderSettings},
    text::ContentStyle,
};

/// LLaVA-1.5.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["llava"],
    open: |files| Ok(Box::new(Llava::open(files)?)),
};

/// The placeholder for a picture.
const MARKER: &str = "<image>";

#[derive(Debug)]
struct Llava {
    text: TextConfig,
    decoder: DecoderSettings,
    /// The encoder with only the layers that run: features are taken before the last one.
    vision: ClipConfig,
    /// Whether the class token's feature is used too.
    with_class: bool,
    activation: Activation,
    processor: Squared,
    image_token: u32,
}

impl Llava {
    fn open(files: &Files) -> Result<Llava> {
        let (path, config) = (&files.config_path, &files.config);
        let unsupported = |what: String| Error::unsupported(path, what);
        let (text, decoder) = TextConfig::read_llama(files)?;
        let all = VisionConfig::read(path, config, CLIP)?;
        let layer = config
            .get("vision_feature_layer")
            .map_or(Some(-2), Value::as_i64);
        let layers = layer.and_then(|layer| {
            usize::try_from(if layer < 0 {
                all.layers as i64 + 1 + layer
            } else {
                layer
            })
            .ok()
        });
        let layers = layers
            .filter(|layers| (1..=all.layers).contains(layers))
            .ok_or_else(|| {
                unsupported(format!(
                    "vision_feature_layer is {}; expected the number of one of {} layers",
                    config["vision_feature_layer"], all.layers
                ))
            })?;
        let with_class = match config
            .get("vision_feature_select_strategy")
            .and_then(Value::as_str)
            .unwrap_or("default")
        {
            "default" => false,
            "full" => true,
            other => {
                return Err(unsupported(format!(
                    "vision_feature_select_strategy is {other:?}; expected default or full"
                )));
            }
        };
        let name = config
            .get("projector_hidden_act")
            .and_then(Value::as_str)
            .unwrap_or("gelu");
        let activation = Activation::from_name(name).ok_or_else(|| {
            unsupported(format!("projector_hidden_act is {name:?}; expected gelu"))
        })?;
        let settings = files.processor()?;
        settings.expect(
            "llava",
            &[
                "CLIPImageProcessor",
                "LlavaImageProcessor",
                "LlavaProcessor",
            ],
        )?;
        let processor = Squared::read_clip(settings, all.image_size)?;
        let image_token = token_id(
            path,
            config,
            &["image_token_index", "image_token_id"],
            32_000,
        )?;
        let vision = ClipConfig {
            layers,
            post_norm: false,
            ..all
        };
        Ok(Llava {
            text,
            decoder,
            vision,
            with_class,
            activation,
            processor,
            image_token,
        })
    }
}

impl Blueprint for Llava {
    fn limits(&self) -> Limits {
        Limits {
            context: self.text.max_position_embeddings.unwrap_or(2048),
            default_context: DEFAULT_CONTEXT,
            end_tokens: self.text.end_tokens(),
            images: usize::MAX,
            videos: 0,
            image_size: self.vision.image_size,
            system: true,
            several_messages: true,
            default_prompt: "What is shown in this image?",
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        let name = with_vision_tower(stored);
        let layer = name
            .strip_prefix("vision_tower.vision_model.encoder.layers.")
            .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let is_used = !is_computed(&name)
            && layer.is_none_or(|layer| layer < self.vision.layers)
            && !name.starts_with("vision_tower.vision_model.post_layernorm.");
        is_used.then_some(name)
    }

    fn decoder(&self) -> &DecoderSettings {
        &self.decoder
    }

    fn plan(&self, _: MediumSize, _: Budget) -> Result<MediaPlan> {
        Ok(self
            .processor
            .plan(self.vision.patches() + usize::from(self.with_class), MARKER))
    }

    fn preprocess(&self, picture: &Picture, _: &MediaPlan) -> Result<Pixels> {
        self.processor.process(picture)
    }

    fn preprocess_memory(&self, size: MediumSize, _: &MediaPlan) -> u64 {
        self.processor.memory(size)
    }

    fn vision_memory(&self, _: &MediaPlan, sizes: &Sizes) -> u64 {
        let encoder = encoder_memory(&self.vision, "vision_tower.vision_model", sizes);
        encoder
            .max(projector_memory(
                &self.vision,
                self.decoder.hidden_size,
                sizes,
            ))
            .0
    }

    fn format(&self) -> PromptFormat {
        PromptFormat::Template {
            marker: Some(Marker::new(MARKER, self.image_token)),
            content: ContentStyle::Parts,
            default: None,
        }
    }

    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        let hidden = self.decoder.hidden_size;
        Ok(Box::new(LlavaVision::load(
            weights,
            &self.vision,
            hidden,
            self.activation,
            self.with_class,
            device.dtype,
        )?))
    }
}
