//! PaliGemma (<https://arxiv.org/abs/2407.07726>) and PaliGemma 2
//! (<https://arxiv.org/abs/2412.03555>): SigLIP, a linear projector, and Gemma or Gemma 2.
//!
//! A picture is resized to a fixed square and becomes one position per patch. Pictures and prompt
//! form one prefix whose positions attend to each other in both directions; only the answer is
//! causal. The prefix is therefore read in one pass, and a conversation ends with its answer.

mod vision;

use std::ops::Range;

use serde_json::Value;

use self::vision::{PaliGemmaVision, projector_memory};
use super::{
    Architecture, Blueprint, Budget, DEFAULT_CONTEXT, Files, Grounding, Limits, Marker, MediaPlan,
    MediumSize, PlacedMedium, PromptFormat, Sizes, TextConfig, Vision,
    clip_config::{SIGLIP, VisionConfig, encoder_memory},
    gemma::{gemma, gemma_2},
    names::with_siglip,
    squared::Squared,
    text_config::{TokenIds, token_id},
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::Device,
    image::{Filter, Picture, Pixels},
    nn::{ClipConfig, DecoderSettings},
    text::{Message, Prompt},
};

/// PaliGemma 1 and 2.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["paligemma"],
    open: |files| Ok(Box::new(PaliGemma::open(files)?)),
};

/// The placeholder for a picture.
const MARKER: &str = "<image>";

#[derive(Debug)]
struct PaliGemma {
    text: TextConfig,
    decoder: DecoderSettings,
    vision: ClipConfig,
    processor: Squared,
    image_token: u32,
}

impl PaliGemma {
    fn open(files: &Files) -> Result<PaliGemma> {
        let (path, config) = (&files.config_path, &files.config);
        let kind = config
            .pointer("/text_config/model_type")
            .and_then(Value::as_str)
            .unwrap_or("gemma");
        let defaults = defaults(kind).ok_or_else(|| {
            Error::unsupported(
                path,
                format!("text_config.model_type is {kind:?}; expected \"gemma\" or \"gemma2\""),
            )
        })?;
        let text = TextConfig::new(path, config, defaults)?;
        let plain = gemma(text.decoder(path, files.ties_head())?);
        let decoder = match kind {
            "gemma2" => DecoderSettings {
                attention_softcap: text.attn_logit_softcapping,
                final_softcap: text.final_logit_softcapping,
                windows: vec![text.sliding_window, None],
                ..gemma_2(plain, text.attention_scale(path)?)
            },
            _ => DecoderSettings {
                windows: vec![None],
                ..plain
            },
        };
        let vision = VisionConfig::read(path, config, SIGLIP)?;
        let settings = files.processor()?;
        settings.expect("paligemma", &["SiglipImageProcessor", "PaliGemmaProcessor"])?;
        let processor = Squared::read(settings, vision.image_size, Filter::Bicubic)?;
        let image_token = token_id(
            path,
            config,
            &["image_token_index", "image_token_id"],
            256_000,
        )?;
        Ok(PaliGemma {
            text,
            decoder,
            vision,
            processor,
            image_token,
        })
    }
}

/// The defaults of transformers' configuration classes
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma/configuration_gemma.py>,
/// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma2/configuration_gemma2.py>).
fn defaults(kind: &str) -> Option<TextConfig> {
    let both = TextConfig {
        vocab_size: Some(256_000),
        head_dim: Some(256),
        rms_norm_eps: Some(1e-6),
        rope_theta: Some(10_000.0),
        max_position_embeddings: Some(8192),
        eos_token_id: Some(TokenIds::One(1)),
        ..TextConfig::default()
    };
    match kind {
        "gemma" => Some(TextConfig {
            hidden_size: Some(3072),
            intermediate_size: Some(24_576),
            num_hidden_layers: Some(28),
            num_attention_heads: Some(16),
            num_key_value_heads: Some(16),
            ..both
        }),
        "gemma2" => Some(TextConfig {
            hidden_size: Some(2304),
            intermediate_size: Some(9216),
            num_hidden_layers: Some(26),
            num_attention_heads: Some(8),
            num_key_value_heads: Some(4),
            sliding_window: Some(4096),
            query_pre_attn_scalar: Some(256.0),
            attn_logit_softcapping: Some(50.0),
            final_logit_softcapping: Some(30.0),
            ..both
        }),
        _ => None,
    }
}

impl Blueprint for PaliGemma {
    fn limits(&self) -> Limits {
        Limits {
            context: self.text.max_position_embeddings.unwrap_or(8192),
            // A picture of 896 pixels takes 4096.
            default_context: DEFAULT_CONTEXT.max(2 * self.vision.patches()),
            end_tokens: self.text.end_tokens(),
            images: usize::MAX,
            videos: 0,
            image_size: self.vision.image_size,
            system: false,
            several_messages: false,
            default_prompt: "caption en",
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        with_siglip(stored)
    }

    fn decoder(&self) -> &DecoderSettings {
        &self.decoder
    }

    fn plan(&self, _: MediumSize, _: Budget) -> Result<MediaPlan> {
        Ok(self.processor.plan(self.vision.patches(), MARKER))
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
        PromptFormat::Plain {
            marker: Some(Marker::new(MARKER, self.image_token)),
            render,
            framed: false,
        }
    }

    fn spans(&self, rows: usize, _: &[PlacedMedium]) -> Vec<Range<usize>> {
        let prefix = 0..rows;
        vec![prefix]
    }

    fn grounding(&self) -> Option<Grounding> {
        Some(Grounding::LocTokens)
    }

    /// As in transformers
    /// (<https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/masking_utils.py>,
    /// `create_sliding_window_causal_mask`).
    fn spans_exceed_windows(&self) -> bool {
        true
    }

    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        Ok(Box::new(PaliGemmaVision::load(
            weights,
            &self.vision,
            self.decoder.hidden_size,
            device.dtype,
        )?))
    }
}

/// Pictures first, then the beginning-of-sequence token, the prompt and a newline, as
/// `PaliGemmaProcessor` builds it
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/paligemma/processing_paligemma.py>).
fn render(messages: &[Message]) -> Result<Prompt> {
    let [message] = messages else {
        return Err(Error::InvalidState(
            "this model answers one message; start a new session for another question".into(),
        ));
    };
    let mut prompt = Prompt::default();
    let images = message
        .parts
        .iter()
        .filter(|part| part.text().is_none())
        .count();
    (0..images).for_each(|_| prompt.push_markup(MARKER));
    prompt.push_markup("<bos>");
    prompt.push(&message.text(""));
    prompt.push("\n");
    Ok(prompt)
}
