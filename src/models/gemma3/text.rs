//! The language model, which is also published alone.

use std::path::Path;

use serde_json::Value;

use crate::{
    Error, Result,
    models::{
        Blueprint, DEFAULT_CONTEXT, Files, Limits, PromptFormat, TextConfig,
        gemma::{gemma, gemma_2},
        names::{decoder_name, is_computed},
        text_config::{RopeConfig, TokenIds},
    },
    nn::{Activation, DecoderSettings},
    text::ContentStyle,
};

/// The language model.
#[derive(Debug)]
pub struct Gemma3Text {
    config: TextConfig,
    decoder: DecoderSettings,
}

impl Gemma3Text {
    /// Reads `text_config`, or the whole config.json of a folder without an encoder.
    pub fn open(files: &Files) -> Result<Gemma3Text> {
        let (path, config) = (&files.config_path, &files.config);
        let part = config.get("text_config").unwrap_or(config);
        let kind = part.get("model_type").and_then(Value::as_str);
        let refuse = |what: String| Err(Error::unsupported(path, what));
        if let Some(kind) = kind.filter(|kind| *kind != "gemma3_text") {
            return refuse(format!(
                "text_config.model_type is {kind:?}; expected \"gemma3_text\""
            ));
        }
        // EmbeddingGemma, which makes no text.
        if part.get("use_bidirectional_attention") == Some(&Value::Bool(true)) {
            return refuse(
                "text_config.use_bidirectional_attention is true; expected false".into(),
            );
        }
        let config = TextConfig::new(path, config, defaults())?;
        let decoder = decoder(path, &config, files.ties_head())?;
        Ok(Gemma3Text { config, decoder })
    }
}

impl Blueprint for Gemma3Text {
    fn limits(&self) -> Limits {
        Limits {
            context: self.config.max_position_embeddings.unwrap_or(131_072),
            default_context: DEFAULT_CONTEXT,
            end_tokens: self.config.end_tokens(),
            images: 0,
            videos: 0,
            image_size: 0,
            system: true,
            several_messages: true,
            default_prompt: "Introduce yourself.",
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        decoder_name(stored).filter(|name| !is_computed(name))
    }

    fn decoder(&self) -> &DecoderSettings {
        &self.decoder
    }

    fn format(&self) -> PromptFormat {
        PromptFormat::Template {
            marker: None,
            content: ContentStyle::Text,
            default: None,
        }
    }
}

/// The defaults of transformers' `Gemma3TextConfig`
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma3/configuration_gemma3.py>).
fn defaults() -> TextConfig {
    TextConfig {
        vocab_size: Some(262_208),
        hidden_size: Some(2304),
        intermediate_size: Some(9216),
        num_hidden_layers: Some(26),
        num_attention_heads: Some(8),
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        hidden_activation: Some("gelu_pytorch_tanh".into()),
        rms_norm_eps: Some(1e-6),
        rope_theta: Some(1_000_000.0),
        rope_local_base_freq: Some(10_000.0),
        sliding_window: Some(4096),
        sliding_window_pattern: Some(6),
        max_position_embeddings: Some(131_072),
        query_pre_attn_scalar: Some(256.0),
        eos_token_id: Some(TokenIds::One(1)),
        ..TextConfig::default()
    }
}

/// Returns the decoder: Gemma 2's without soft caps, with norms of queries and keys, and with
/// rotary positions of their own in layers with a window.
fn decoder(path: &Path, text: &TextConfig, tied_head: bool) -> Result<DecoderSettings> {
    let refuse = |what| Error::unsupported(path, what);
    let caps = [
        ("attn_logit_softcapping", text.attn_logit_softcapping),
        ("final_logit_softcapping", text.final_logit_softcapping),
    ];
    if let Some((name, Some(cap))) = caps.iter().find(|(_, cap)| cap.is_some()) {
        return Err(refuse(format!(
            "text_config.{name} is {cap}; expected null"
        )));
    }
    let name = text.hidden_activation.as_deref().unwrap_or_default();
    let gate = Activation::from_name(name).ok_or_else(|| {
        refuse(format!(
            "text_config.hidden_activation is {name:?}; expected gelu_pytorch_tanh"
        ))
    })?;
    let parameters = text.rope_parameters.clone().unwrap_or_default();
    let own = |part: Option<Box<RopeConfig>>| part.map(|part| *part);
    let global = TextConfig {
        rope_parameters: own(parameters.full_attention),
        ..text.clone()
    };
    let local = TextConfig {
        rope_theta: text.rope_local_base_freq,
        rope_scaling: None,
        rope_parameters: own(parameters.sliding_attention),
        ..text.clone()
    };
    let global = global.decoder(path, tied_head)?;
    let local_ropes = local.decoder(path, tied_head)?.ropes;
    let is_local = local_layers(text).map_err(refuse)?;
    let of_layers = |is_local: &bool| match is_local {
        true => (text.sliding_window, local_ropes[0]),
        false => (None, global.ropes[0]),
    };
    let (windows, ropes) = is_local.iter().map(of_layers).unzip();
    Ok(DecoderSettings {
        qk_norm: true,
        gate,
        windows,
        ropes,
        ..gemma_2(gemma(global), text.attention_scale(path)?)
    })
}

/// Returns which layers have a window, as a list that repeats.
fn local_layers(text: &TextConfig) -> Result<Vec<bool>, String> {
    const MOST: usize = 1024;
    let Some(types) = &text.layer_types else {
        return match text.sliding_window_pattern.unwrap_or_default() {
            pattern @ 1..=MOST => Ok((1..=pattern).map(|layer| layer < pattern).collect()),
            pattern => Err(format!(
                "text_config.sliding_window_pattern is {pattern}; expected 1 to {MOST}"
            )),
        };
    };
    if Some(types.len()) != text.num_hidden_layers {
        return Err(format!(
            "text_config.layer_types has {} entries; expected num_hidden_layers, {}",
            types.len(),
            text.num_hidden_layers.unwrap_or_default()
        ));
    }
    let is_local = |name: &String| match name.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(format!(
            "text_config.layer_types has {name:?}; expected sliding_attention or full_attention"
        )),
    };
    types.iter().map(is_local).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Rope, RopeKind, RopeScaling};
    use serde_json::json;

    /// The configuration of Gemma 3 4B
    /// (<https://huggingface.co/google/gemma-3-4b-it/blob/main/config.json>), which leaves most to
    /// the defaults.
    #[test]
    fn a_published_configuration_is_filled_in() {
        let path = Path::new("config.json");
        let config = json!({
            "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024
            }
        });
        let text = TextConfig::new(path, &config, defaults()).unwrap();
        assert_eq!(text.end_tokens(), [1, 106]);
        let decoder = decoder(path, &text, true).unwrap();
        assert_eq!(
            (decoder.heads, decoder.kv_heads, decoder.head_dim),
            (8, 4, 256)
        );
        assert_eq!((decoder.vocab_size, decoder.norm_eps), (262_208, 1e-6));
        assert_eq!(decoder.attention_scale, 1.0 / 16.0);
        let rope = |theta, divisor| Rope {
            theta,
            scaling: RopeScaling::Linear(divisor),
            kind: RopeKind::Sequential,
        };
        let (local, global) = (rope(1e4, 1.0), rope(1e6, 8.0));
        assert_eq!(decoder.ropes, [local, local, local, local, local, global]);
        let window = Some(1024);
        let windows = [window, window, window, window, window, None];
        assert_eq!(decoder.windows, windows);
    }
}
