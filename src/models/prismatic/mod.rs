//! Moxin-7B VLM and its Prismatic relatives (<https://arxiv.org/abs/2402.07865>): one or two vision
//! encoders side by side, an MLP projector, a Mistral decoder.
//!
//! A picture becomes one position per patch. Its features are placed between the
//! beginning-of-sequence token and the text; there is no placeholder token.

mod config;
mod processor;
mod projector;
mod prompt;
mod vision;

pub use config::{MistralConfig, TimmOverrides, VLMConfig};
pub use processor::{Processor, Strategy, normalize};
pub use projector::{FusedMLPProjector, load_projector};
pub use prompt::{pure_prompt, render};
pub use vision::PrismaticVision;

use std::num::Saturating;

use self::vision::{ENCODERS, canonical_name, depths, is_unused, patches};
use super::{
    Architecture, Blueprint, Budget, DEFAULT_CONTEXT, Files, Limits, MediaPlan, MediumSize,
    PromptFormat, Sizes, Vision,
    memory::{Count, count},
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::Device,
    image::{Picture, Pixels, resize_memory},
    nn::DecoderSettings,
};

/// Prismatic models.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["prismatic"],
    open: |files| Ok(Box::new(Prismatic::open(files)?)),
};

#[derive(Debug)]
struct Prismatic {
    config_path: std::path::PathBuf,
    config: VLMConfig,
    decoder: DecoderSettings,
    processor: Processor,
    /// The number of blocks in each encoder, including the last one, which is not run.
    depths: [usize; 2],
    /// The number of patches in a picture.
    patches: usize,
}

impl Prismatic {
    fn open(files: &Files) -> Result<Prismatic> {
        let config = VLMConfig::parse(&files.config_path, &files.config)?;
        let settings = files.processor()?;
        settings.expect(
            "prismatic",
            &["PrismaticImageProcessor", "PrismaticProcessor"],
        )?;
        let processor = Processor::from_settings(settings.values(), settings.path())?;
        check_processor(&processor, &config)
            .map_err(|what| Error::corrupt(settings.path(), what))?;
        let renamed = files
            .checkpoint
            .clone()
            .rename(|name| Some(canonical_name(name)))?;
        Ok(Prismatic {
            config_path: files.config_path.clone(),
            decoder: config.text_config.decoder(),
            processor,
            depths: depths(&renamed),
            patches: patches(&renamed, &config)?,
            config,
        })
    }

    fn load(&self, weights: &Weights, device: &Device) -> Result<PrismaticVision> {
        PrismaticVision::load(
            weights,
            &self.config,
            self.depths,
            &self.config_path,
            device.dtype,
        )
    }

    /// Returns the memory of an encoder's running block, including the pixels.
    fn encoder_memory(&self, i: usize, sizes: &Sizes) -> Count {
        let encoder = ENCODERS[i];
        let rows = |name: &str| sizes.size(&format!("{encoder}.{name}"), 1);
        let (width, inner) = (
            rows("blocks.0.mlp.fc1.weight"),
            sizes.size(&format!("{encoder}.blocks.0.mlp.fc1.weight"), 0),
        );
        let tokens = rows("pos_embed") + rows("reg_token") + rows("cls_token");
        let heads = count(self.config.num_heads(i).unwrap_or(1));
        let edge = count(self.config.image_sizes[i]);
        let [two, three, four, five, ten] = [2, 3, 4, 5, 10].map(Saturating);
        let pixels = three * edge * edge;
        let activations = match sizes.own_kernels() {
            true => tokens * (four * width + three * inner) + two * pixels,
            false => tokens * (ten * width + five * inner) + heads * tokens * tokens + two * pixels,
        };
        sizes.widened(&format!("{encoder}.blocks.0.")) + activations * Saturating(sizes.item())
    }

    fn projector_memory(&self, sizes: &Sizes) -> Count {
        let (inner, input) = (
            sizes.size("projector.fc1.weight", 0),
            sizes.size("projector.fc1.weight", 1),
        );
        let tokens = sizes.size(&format!("{}.pos_embed", ENCODERS[0]), 1);
        let outside = input + count(self.config.text_config.hidden_size);
        let activations = match sizes.own_kernels() {
            true => tokens * (Saturating(3) * inner + outside),
            false => tokens * (Saturating(4) * inner + Saturating(2) * outside),
        };
        sizes.widened("projector.") + activations * Saturating(sizes.item())
    }
}

impl Blueprint for Prismatic {
    fn limits(&self) -> Limits {
        let text = &self.config.text_config;
        Limits {
            context: text.max_position_embeddings,
            default_context: DEFAULT_CONTEXT,
            end_tokens: text.eos_token_id.to_vec(),
            images: 1,
            videos: 0,
            image_size: self.processor.size(),
            system: false,
            several_messages: true,
            default_prompt: "What is in the picture?",
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        let name = canonical_name(stored);
        (!is_unused(&name, self.depths)).then_some(name)
    }

    fn decoder(&self) -> &DecoderSettings {
        &self.decoder
    }

    fn plan(&self, _: MediumSize, _: Budget) -> Result<MediaPlan> {
        let size = self.processor.size();
        Ok(MediaPlan {
            grids: Vec::new(),
            pixels: [size, size],
            markup: String::new(),
            runs: vec![self.patches],
            times: Vec::new(),
        })
    }

    fn preprocess(&self, picture: &Picture, _: &MediaPlan) -> Result<Pixels> {
        self.processor.process(picture)
    }

    fn pixel_bytes(&self, _: &MediaPlan) -> u64 {
        let edges = self
            .config
            .image_sizes
            .iter()
            .take(self.config.timm_model_ids.len());
        edges
            .map(|size| Saturating(12) * count(*size) * count(*size))
            .fold(Saturating(0), |sum, bytes| sum + bytes)
            .0
    }

    fn preprocess_memory(&self, size: MediumSize, _: &MediaPlan) -> u64 {
        resize_memory(self.processor.size(), size.width.max(size.height))
    }

    fn vision_memory(&self, _: &MediaPlan, sizes: &Sizes) -> u64 {
        let encoders = (0..self.config.timm_model_ids.len()).map(|i| self.encoder_memory(i, sizes));
        encoders
            .max()
            .unwrap_or_default()
            .max(self.projector_memory(sizes))
            .0
    }

    fn format(&self) -> PromptFormat {
        PromptFormat::Plain {
            marker: None,
            render: prompt::render,
            framed: true,
        }
    }

    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        Ok(Box::new(self.load(weights, device)?))
    }
}

/// Loads the vision part of a Prismatic model.
pub(crate) fn load_vision(
    files: &Files,
    weights: &Weights,
    device: &Device,
) -> Result<PrismaticVision> {
    Prismatic::open(files)?.load(weights, device)
}

fn check_processor(processor: &Processor, config: &VLMConfig) -> Result<(), String> {
    let encoders = config.timm_model_ids.len();
    if processor.encoders() != encoders {
        return Err(format!(
            "input_sizes has {} entries; the model has {encoders} encoders",
            processor.encoders()
        ));
    }
    match config.image_sizes[..encoders]
        .iter()
        .find(|size| **size != processor.size())
    {
        Some(size) => Err(format!(
            "input_sizes makes pictures of {} pixels; image_sizes in config.json has {size}",
            processor.size()
        )),
        None => Ok(()),
    }
}
