//! Gemma 3 (<https://arxiv.org/abs/2503.19786>): SigLIP, its patches pooled to 256 features, and a
//! decoder with a window in five of six layers; also the language model alone.
//!
//! The positions of a picture attend to each other in both directions, in layers with a window only
//! within it, as in Google's code and in transformers since 5
//! (<https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/gemma3/modeling_gemma3.py>,
//! `create_masks_for_vision_model`).

mod text;
mod vision;

use std::{ops::Range, path::Path};

use serde_json::Value;

use self::{
    text::Gemma3Text,
    vision::{Gemma3Vision, projector_memory},
};
use super::{
    Architecture, Blueprint, Budget, Files, Limits, Marker, MediaPlan, MediumSize, PlacedMedium,
    PromptFormat, Sizes, Vision,
    clip_config::{SIGLIP, VisionConfig, encoder_memory},
    names::with_siglip,
    squared::Squared,
    text_config::token_id,
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::Device,
    image::{Filter, Picture, Pixels},
    nn::{ClipConfig, DecoderSettings},
    text::ContentStyle,
};

/// Gemma 3, with and without pictures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["gemma3", "gemma3_text"],
    open: |files| {
        let text = Gemma3Text::open(files)?;
        match files.config["model_type"] == "gemma3_text" {
            true => Ok(Box::new(text)),
            false => Ok(Box::new(Gemma3::open(files, text)?)),
        }
    },
};

/// The token of each feature.
const MARKER: &str = "<image_soft_token>";

/// The text for a picture in prompts.
const PLACEHOLDER: &str = "<start_of_image>";

/// The text that takes its place
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma3/processing_gemma3.py>).
const MARKUP: &str = "\n\n<start_of_image><image_soft_token><end_of_image>\n\n";

#[derive(Debug)]
struct Gemma3 {
    text: Gemma3Text,
    vision: ClipConfig,
    /// The number of features in a row or column of a picture.
    side: usize,
    processor: Squared,
    image_token: u32,
}

impl Gemma3 {
    fn open(files: &Files, text: Gemma3Text) -> Result<Gemma3> {
        let (path, config) = (&files.config_path, &files.config);
        let vision = VisionConfig::read(path, config, SIGLIP)?;
        let side = features_per_side(path, config, vision.image_size / vision.patch_size)?;
        let settings = files.processor()?;
        settings.expect("gemma3", &["Gemma3ImageProcessor", "Gemma3Processor"])?;
        settings.require("do_pan_and_scan", false)?;
        let processor = Squared::read(settings, vision.image_size, Filter::Bilinear)?;
        let image_token = token_id(
            path,
            config,
            &["image_token_index", "image_token_id"],
            262_144,
        )?;
        Ok(Gemma3 {
            text,
            vision,
            side,
            processor,
            image_token,
        })
    }

    fn features(&self) -> usize {
        self.side.pow(2)
    }
}

/// Returns the side of the square of `mm_tokens_per_image` features that as many patches per side
/// are pooled to.
fn features_per_side(path: &Path, config: &Value, patches: usize) -> Result<usize> {
    let tokens = token_id(path, config, &["mm_tokens_per_image"], 256)? as usize;
    let side = tokens.isqrt();
    match side > 0 && side.pow(2) == tokens && patches.is_multiple_of(side) {
        true => Ok(side),
        false => Err(Error::unsupported(
            path,
            format!(
                "mm_tokens_per_image is {tokens}; expected the square of a divisor of {patches}, \
                 the number of patches per side"
            ),
        )),
    }
}

impl Blueprint for Gemma3 {
    fn limits(&self) -> Limits {
        Limits {
            images: usize::MAX,
            image_size: self.vision.image_size,
            default_prompt: "Describe this image in detail.",
            ..self.text.limits()
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        with_siglip(stored)
    }

    fn decoder(&self) -> &DecoderSettings {
        self.text.decoder()
    }

    fn plan(&self, _: MediumSize, _: Budget) -> Result<MediaPlan> {
        Ok(self.processor.plan(self.features(), MARKUP))
    }

    fn preprocess(&self, picture: &Picture, _: &MediaPlan) -> Result<Pixels> {
        self.processor.process(picture)
    }

    fn preprocess_memory(&self, size: MediumSize, _: &MediaPlan) -> u64 {
        self.processor.memory(size)
    }

    fn vision_memory(&self, _: &MediaPlan, sizes: &Sizes) -> u64 {
        let encoder = encoder_memory(&self.vision, "vision_tower.vision_model", sizes);
        let hidden = self.decoder().hidden_size;
        let projector = projector_memory(&self.vision, self.features(), hidden, sizes);
        encoder.max(projector).0
    }

    fn format(&self) -> PromptFormat {
        let marker = Marker {
            text: MARKER.into(),
            id: self.image_token,
            placeholder: PLACEHOLDER.into(),
        };
        PromptFormat::Template {
            marker: Some(marker),
            content: ContentStyle::Parts,
            default: None,
        }
    }

    fn spans(&self, _: usize, media: &[PlacedMedium]) -> Vec<Range<usize>> {
        media
            .iter()
            .flat_map(|medium| medium.runs.clone())
            .collect()
    }

    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        let hidden = self.decoder().hidden_size;
        Ok(Box::new(Gemma3Vision::load(
            weights,
            &self.vision,
            self.side,
            hidden,
            device.dtype,
        )?))
    }
}
