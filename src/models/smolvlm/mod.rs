//! SmolVLM and SmolVLM2 (<https://arxiv.org/abs/2504.05299>) and Idefics3
//! (<https://arxiv.org/abs/2408.12637>): SigLIP, a linear projector after pixel shuffle, and Llama.
//!
//! A picture is cut into square tiles, each encoded by itself, and the markup names the row and
//! column of each. A smaller square of the whole picture follows.

mod tiles;
mod vision;

use std::fmt::Write;

use serde_json::Value;

use self::{
    tiles::{Tiler, tiles},
    vision::{SmolVlmVision, vision_memory},
};
use super::{
    Architecture, Blueprint, Budget, DEFAULT_CONTEXT, Files, Limits, Marker, MediaPlan, MediumSize,
    PromptFormat, Sizes, TextConfig, Vision,
    clip_config::{SIGLIP, VisionConfig},
    names::{decoder_name, is_computed},
    text_config::token_id,
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::Device,
    image::{Picture, Pixels},
    nn::{ClipConfig, DecoderSettings},
    text::ContentStyle,
};

/// SmolVLM, SmolVLM2 and Idefics3.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["smolvlm", "idefics3"],
    open: |files| Ok(Box::new(SmolVlm::open(files)?)),
};

/// The placeholder for a tile.
const MARKER: &str = "<image>";

/// The token around pictures, and before each tile.
const EDGE: &str = "<fake_token_around_image>";

/// The defaults of transformers' `Idefics3VisionConfig`
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/idefics3/configuration_idefics3.py>);
/// the hub's files rely on them.
const VISION: ClipConfig = ClipConfig {
    hidden_size: 1152,
    heads: 16,
    patch_size: 32,
    ..SIGLIP
};

#[derive(Debug)]
struct SmolVlm {
    text: TextConfig,
    decoder: DecoderSettings,
    vision: ClipConfig,
    /// The number of patches on each edge of a square that becomes one feature.
    factor: usize,
    tiler: Tiler,
    image_token: u32,
}

impl SmolVlm {
    fn open(files: &Files) -> Result<SmolVlm> {
        let (path, config) = (&files.config_path, &files.config);
        let (text, decoder) = TextConfig::read_llama(files)?;
        let vision = VisionConfig::read(path, config, VISION)?;
        let side = vision.image_size / vision.patch_size;
        let factor = config.get("scale_factor").map_or(Some(2), Value::as_u64);
        let factor = factor
            .map(|factor| factor as usize)
            .filter(|factor| (1..=16).contains(factor) && side.is_multiple_of(*factor))
            .ok_or_else(|| {
                let what = format!(
                    "scale_factor is {}; expected 1 to 16, a divisor of the {side} patches on a \
                     side of a tile",
                    config["scale_factor"]
                );
                Error::unsupported(path, what)
            })?;
        let kinds = [
            "Idefics3ImageProcessor",
            "SmolVLMImageProcessor",
            "Idefics3Processor",
            "SmolVLMProcessor",
        ];
        let settings = files.processor()?;
        settings.expect("smolvlm", &kinds)?;
        Ok(SmolVlm {
            tiler: Tiler::read(settings, vision.image_size)?,
            image_token: token_id(path, config, &["image_token_id"], 128_257)?,
            text,
            decoder,
            vision,
            factor,
        })
    }

    /// Returns the number of features of a tile.
    fn features(&self) -> usize {
        (self.vision.image_size / self.vision.patch_size / self.factor).pow(2)
    }
}

/// Returns the text for a picture with so many columns and rows of tiles, as `Idefics3Processor`
/// builds it
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/idefics3/processing_idefics3.py>).
fn markup([columns, rows]: [usize; 2]) -> String {
    let mut text = String::new();
    if columns * rows > 1 {
        for row in 1..=rows {
            for column in 1..=columns {
                let _ = write!(text, "{EDGE}<row_{row}_col_{column}>{MARKER}");
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text + EDGE + "<global-img>" + MARKER + EDGE
}

impl Blueprint for SmolVlm {
    fn limits(&self) -> Limits {
        // A square has the most tiles.
        let (width, height) = (1, 1);
        let grid = self.tiler.grid(MediumSize { width, height }, |_| true);
        let most = tiles(grid) * self.features();
        Limits {
            context: self.text.max_position_embeddings.unwrap_or(2048),
            // Idefics3's pictures take up to 2873.
            default_context: DEFAULT_CONTEXT.max(2 * most),
            end_tokens: self.text.end_tokens(),
            images: usize::MAX,
            videos: 0,
            image_size: 0,
            system: true,
            several_messages: true,
            default_prompt: "Can you describe this image?",
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        if is_computed(stored) {
            return None;
        }
        let name = stored.strip_prefix("model.").unwrap_or(stored);
        let name = match name.strip_prefix("text_model.") {
            Some(rest) => format!("language_model.{rest}"),
            None => name.to_owned(),
        };
        Some(decoder_name(&name).unwrap_or(name))
    }

    fn decoder(&self) -> &DecoderSettings {
        &self.decoder
    }

    fn plan(&self, size: MediumSize, budget: Budget) -> Result<MediaPlan> {
        let pixels = self.vision.image_size.pow(2);
        Budget::check_least(budget.max_pixels.unwrap_or(usize::MAX), pixels)?;
        let fits = |bound: Option<usize>, size: usize| bound.is_none_or(|bound| size <= bound);
        let grid = self.tiler.grid(size, |grid| {
            budget.tiles
                && fits(budget.max_pixels, tiles(grid) * pixels)
                && fits(budget.max_tokens, tiles(grid) * self.features())
        });
        let (tiles, patches) = (tiles(grid), self.vision.image_size / self.vision.patch_size);
        Ok(MediaPlan {
            grids: vec![[1, patches as u32, patches as u32]; tiles],
            pixels: self.tiler.pixels(grid),
            markup: markup(grid),
            runs: vec![self.features(); tiles],
            times: Vec::new(),
        })
    }

    fn preprocess(&self, picture: &Picture, plan: &MediaPlan) -> Result<Pixels> {
        self.tiler.process(picture, plan.pixels)
    }

    fn pixel_bytes(&self, plan: &MediaPlan) -> u64 {
        plan.runs.len() as u64 * 12 * (self.vision.image_size as u64).pow(2)
    }

    fn preprocess_memory(&self, size: MediumSize, plan: &MediaPlan) -> u64 {
        self.tiler.memory(size, plan.pixels)
    }

    fn vision_memory(&self, plan: &MediaPlan, sizes: &Sizes) -> u64 {
        vision_memory(&self.vision, self.decoder.hidden_size, plan, sizes).0
    }

    fn format(&self) -> PromptFormat {
        PromptFormat::Template {
            marker: Some(Marker::new(MARKER, self.image_token)),
            content: ContentStyle::Parts,
            default: None,
        }
    }

    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        Ok(Box::new(SmolVlmVision::load(
            weights,
            &self.vision,
            self.factor,
            self.decoder.hidden_size,
            device.dtype,
        )?))
    }
}
