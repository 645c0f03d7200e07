//! The language model's part of a config.json, for decoders of the Llama family.
//!
//! Published files list only the differences from the defaults of transformers' configuration
//! class, so each architecture passes its own defaults: see [`TextConfig::new`].

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Files;
use crate::{
    Error, Result,
    nn::{Activation, DecoderSettings, Rope, RopeKind, RopeScaling},
};

/// The fields of a decoder in config.json. A field that is missing or null is `None`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Such as `gemma` or `qwen2`.
    pub model_type: Option<String>,
    /// The number of values per token.
    pub hidden_size: Option<usize>,
    /// The number of decoder layers.
    pub num_hidden_layers: Option<usize>,
    /// The number of query heads.
    pub num_attention_heads: Option<usize>,
    /// The number of key and value heads; divides the number of query heads.
    pub num_key_value_heads: Option<usize>,
    /// The number of values per head.
    pub head_dim: Option<usize>,
    /// The number of values inside the MLP.
    pub intermediate_size: Option<usize>,
    /// The number of rows in the embedding.
    pub vocab_size: Option<usize>,
    /// The activation in the MLP.
    pub hidden_act: Option<String>,
    /// The same, under the name in Gemma's configurations.
    pub hidden_activation: Option<String>,
    /// The epsilon of the norms.
    pub rms_norm_eps: Option<f32>,
    /// The base of the rotary positions.
    pub rope_theta: Option<f32>,
    /// The scaling of rotary positions, or their division among axes.
    pub rope_scaling: Option<RopeConfig>,
    /// The field for both in transformers 5.
    pub rope_parameters: Option<RopeConfig>,
    /// Gemma 3: the base of the rotary positions in layers with a window.
    pub rope_local_base_freq: Option<f32>,
    /// The number of positions that a token attends to, including itself.
    pub sliding_window: Option<usize>,
    /// Whether each layer has a window: `sliding_attention` or `full_attention`.
    pub layer_types: Option<Vec<String>>,
    /// Gemma 3: every layer has a window except each one whose number, from 1, this divides.
    pub sliding_window_pattern: Option<usize>,
    /// The number of positions that the model was made for.
    pub max_position_embeddings: Option<usize>,
    /// The end-of-sequence token or tokens.
    pub eos_token_id: Option<TokenIds>,
    /// Gemma 2 and 3: attention scores are multiplied by the inverse square root of this.
    pub query_pre_attn_scalar: Option<f32>,
    /// Gemma 2: the soft cap of attention scores.
    pub attn_logit_softcapping: Option<f32>,
    /// Gemma 2: the soft cap of logits.
    pub final_logit_softcapping: Option<f32>,
}

/// `rope_scaling`, or `rope_parameters` in transformers 5.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RopeConfig {
    /// `default`, `linear`, `llama3`, `mrope`.
    pub rope_type: Option<String>,
    /// The same, under its name in older files; some have both.
    pub r#type: Option<String>,
    /// The base of the rotary positions.
    pub rope_theta: Option<f32>,
    /// The divisor of the positions, or of low frequencies.
    pub factor: Option<f32>,
    /// Llama 3.1: the number of turns below which a frequency is low.
    pub low_freq_factor: Option<f32>,
    /// Llama 3.1: the number of turns above which a frequency is high.
    pub high_freq_factor: Option<f32>,
    /// Llama 3.1: the number of positions first trained with.
    pub original_max_position_embeddings: Option<f32>,
    /// The number of frequencies for frame, row and column.
    pub mrope_section: Option<Vec<usize>>,
    /// The same for layers without a window only.
    pub full_attention: Option<Box<RopeConfig>>,
    /// The same for layers with a window only.
    pub sliding_attention: Option<Box<RopeConfig>>,
}

impl RopeConfig {
    fn factor(&self) -> Result<f32, String> {
        let factor = self.factor.unwrap_or(1.0);
        match factor.is_finite() && factor >= 1.0 {
            true => Ok(factor),
            false => Err(format!(
                "the factor of text_config's rotary positions is {factor}; expected 1 or more"
            )),
        }
    }

    fn by_turns(&self) -> Result<RopeScaling, String> {
        let number = |name: &str, value: Option<f32>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(format!(
                "{name} of text_config's rotary positions is {value}; expected more than 0"
            )),
            None => Err(format!(
                "{name} of text_config's rotary positions is missing"
            )),
        };
        let low = number("low_freq_factor", self.low_freq_factor)?;
        let high = number("high_freq_factor", self.high_freq_factor)?;
        if high <= low {
            return Err(format!(
                "high_freq_factor of text_config's rotary positions is {high}; expected more than \
                 low_freq_factor, {low}"
            ));
        }
        let context = self.original_max_position_embeddings;
        Ok(RopeScaling::ByTurns {
            factor: self.factor()?,
            low,
            high,
            context: number("original_max_position_embeddings", context)?,
        })
    }
}

/// One token id or several.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One.
    One(u32),
    /// Several.
    Many(Vec<u32>),
}

impl TokenIds {
    /// Returns all of them.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            TokenIds::One(id) => vec![*id],
            TokenIds::Many(ids) => ids.clone(),
        }
    }
}

/// Returns a token id that config.json has under one of these names, or `default` if it has none.
///
/// # Errors
/// [`Error::UnsupportedModel`] if the value is not a token id.
pub fn token_id(path: &Path, config: &Value, names: &[&str], default: u32) -> Result<u32> {
    let Some((name, value)) = names
        .iter()
        .find_map(|name| Some((name, config.get(name)?)))
    else {
        return Ok(default);
    };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| Error::unsupported(path, format!("{name} is {value}; expected a token id")))
}

/// The maximum of any size in a configuration.
const MAX_SIZE: usize = 1 << 24;

impl TextConfig {
    /// Reads a Llama: its fields, with the defaults of transformers' `LlamaConfig`
    /// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/llama/configuration_llama.py>),
    /// and its settings.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] if it is another language model, or naming the invalid field.
    pub fn read_llama(files: &Files) -> Result<(TextConfig, DecoderSettings)> {
        let (path, config) = (&files.config_path, &files.config);
        let kind = config
            .pointer("/text_config/model_type")
            .and_then(Value::as_str)
            .unwrap_or("llama");
        if kind != "llama" {
            let what = format!("text_config.model_type is {kind:?}; expected \"llama\"");
            return Err(Error::unsupported(path, what));
        }
        let defaults = TextConfig {
            vocab_size: Some(32_000),
            hidden_size: Some(4096),
            intermediate_size: Some(11_008),
            num_hidden_layers: Some(32),
            num_attention_heads: Some(32),
            rms_norm_eps: Some(1e-6),
            rope_theta: Some(10_000.0),
            max_position_embeddings: Some(2048),
            eos_token_id: Some(TokenIds::One(2)),
            ..TextConfig::default()
        };
        let text = TextConfig::new(path, config, defaults)?;
        let decoder = text.decoder(path, files.ties_head())?;
        Ok((text, decoder))
    }

    /// Reads the language model's part of a config.json: `text_config`, or the whole file if there
    /// is none, as in the hub's Qwen2-VL. `defaults` fills in what is missing.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] if a field has another type.
    pub fn new(path: &Path, config: &Value, defaults: TextConfig) -> Result<TextConfig> {
        let part = config
            .get("text_config")
            .filter(|value| !value.is_null())
            .unwrap_or(config);
        let corrupt = |error: serde_json::Error| Error::corrupt(path, error.to_string());
        // As in transformers' `GenerationConfig.from_model_config`, the whole comes before the part.
        let whole = TextConfig {
            eos_token_id: Option::deserialize(&config["eos_token_id"]).map_err(corrupt)?,
            ..TextConfig::default()
        };
        let part = TextConfig::deserialize(part).map_err(corrupt)?;
        Ok(whole.or(part).or(defaults))
    }

    /// Returns the fields of `self`, or those of `other` if they are missing.
    fn or(self, other: TextConfig) -> TextConfig {
        TextConfig {
            model_type: self.model_type.or(other.model_type),
            hidden_size: self.hidden_size.or(other.hidden_size),
            num_hidden_layers: self.num_hidden_layers.or(other.num_hidden_layers),
            num_attention_heads: self.num_attention_heads.or(other.num_attention_heads),
            num_key_value_heads: self.num_key_value_heads.or(other.num_key_value_heads),
            head_dim: self.head_dim.or(other.head_dim),
            intermediate_size: self.intermediate_size.or(other.intermediate_size),
            vocab_size: self.vocab_size.or(other.vocab_size),
            hidden_act: self.hidden_act.or(other.hidden_act),
            hidden_activation: self.hidden_activation.or(other.hidden_activation),
            rms_norm_eps: self.rms_norm_eps.or(other.rms_norm_eps),
            rope_theta: self.rope_theta.or(other.rope_theta),
            rope_scaling: self.rope_scaling.or(other.rope_scaling),
            rope_parameters: self.rope_parameters.or(other.rope_parameters),
            rope_local_base_freq: self.rope_local_base_freq.or(other.rope_local_base_freq),
            sliding_window: self.sliding_window.or(other.sliding_window),
            layer_types: self.layer_types.or(other.layer_types),
            sliding_window_pattern: self.sliding_window_pattern.or(other.sliding_window_pattern),
            max_position_embeddings: self
                .max_position_embeddings
                .or(other.max_position_embeddings),
            eos_token_id: self.eos_token_id.or(other.eos_token_id),
            query_pre_attn_scalar: self.query_pre_attn_scalar.or(other.query_pre_attn_scalar),
            attn_logit_softcapping: self.attn_logit_softcapping.or(other.attn_logit_softcapping),
            final_logit_softcapping: self
                .final_logit_softcapping
                .or(other.final_logit_softcapping),
        }
    }

    /// Returns the base of the rotary positions.
    pub fn rope_theta(&self) -> f32 {
        self.rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(10_000.0)
    }

    /// Returns the division of frequencies among frame, row and column, if there is one.
    ///
    /// transformers 4.57 saves the type `mrope` as `default`, so the sections decide.
    pub fn rope_sections(&self) -> Option<&[usize]> {
        let configs = [&self.rope_parameters, &self.rope_scaling];
        configs
            .into_iter()
            .flatten()
            .find_map(|rope| rope.mrope_section.as_deref())
    }

    /// Returns the factor of attention scores that `query_pre_attn_scalar` states.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] if it is not a positive number.
    pub fn attention_scale(&self, path: &Path) -> Result<f32> {
        let scalar = self.query_pre_attn_scalar.unwrap_or_default();
        match scalar > 0.0 && scalar.is_finite() {
            true => Ok(scalar.sqrt().recip()),
            false => Err(Error::unsupported(
                path,
                format!("text_config.query_pre_attn_scalar is {scalar}; expected more than 0"),
            )),
        }
    }

    /// Returns the end-of-sequence tokens.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.eos_token_id
            .as_ref()
            .map(TokenIds::to_vec)
            .unwrap_or_default()
    }

    /// Returns the checked settings of a plain decoder of the Llama family with these sizes.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] naming the invalid field.
    pub fn decoder(&self, path: &Path, tied_head: bool) -> Result<DecoderSettings> {
        self.settings(tied_head)
            .map_err(|what| Error::unsupported(path, what))
    }

    fn settings(&self, tied_head: bool) -> Result<DecoderSettings, String> {
        let size = |name: &str, value: Option<usize>| match value {
            Some(value) if (1..=MAX_SIZE).contains(&value) => Ok(value),
            Some(value) => Err(format!(
                "text_config.{name} is {value}; expected 1 to {MAX_SIZE}"
            )),
            None => Err(format!("text_config.{name} is missing")),
        };
        let (hidden_size, layers) = (
            size("hidden_size", self.hidden_size)?,
            size("num_hidden_layers", self.num_hidden_layers)?,
        );
        let heads = size("num_attention_heads", self.num_attention_heads)?;
        let kv_heads = size(
            "num_key_value_heads",
            self.num_key_value_heads.or(Some(heads)),
        )?;
        let head_dim = size("head_dim", self.head_dim.or(Some(hidden_size / heads)))?;
        let norm_eps = self.rms_norm_eps.unwrap_or(1e-6);
        let (theta, window) = (self.rope_theta(), self.sliding_window);
        size("max_position_embeddings", self.max_position_embeddings)?;
        size("sliding_window", window.or(Some(1)))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "text_config.num_attention_heads ({heads}) is not a multiple of \
                 num_key_value_heads ({kv_heads})"
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(format!(
                "text_config.head_dim is {head_dim}; rotary positions need an even one"
            ));
        }
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(format!(
                "text_config.rms_norm_eps is {norm_eps}; expected more than 0 and less than 1"
            ));
        }
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!(
                "the base of text_config's rotary positions is {theta}; expected more than 1"
            ));
        }
        let rope = Rope {
            theta,
            scaling: self.reduction()?,
            kind: self.rope_kind(head_dim)?,
        };
        Ok(DecoderSettings {
            vocab_size: size("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: size("intermediate_size", self.intermediate_size)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            qkv_bias: false,
            qk_norm: false,
            norm_eps,
            norm_adds_one: false,
            post_norms: false,
            gate: Activation::Silu,
            embedding_scale: None,
            tied_head,
            attention_scale: (head_dim as f32).sqrt().recip(),
            attention_softcap: None,
            final_softcap: None,
            windows: vec![window],
            ropes: vec![rope],
        })
    }

    /// Returns the reduction of the rotary positions' frequencies.
    fn reduction(&self) -> Result<RopeScaling, String> {
        for rope in [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
        {
            match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
                None | Some("default" | "mrope") => {}
                Some("linear") => return rope.factor().map(RopeScaling::Linear),
                Some("llama3") => return rope.by_turns(),
                Some(other) => {
                    return Err(format!(
                        "text_config scales its rotary positions by {other:?}, which is not \
                         supported"
                    ));
                }
            }
        }
        Ok(RopeScaling::Linear(1.0))
    }

    fn rope_kind(&self, head_dim: usize) -> Result<RopeKind, String> {
        let Some(sections) = self.rope_sections() else {
            return Ok(RopeKind::Sequential);
        };
        let three = <[usize; 3]>::try_from(sections).ok();
        let fits = |three: &[usize; 3]| {
            three.iter().try_fold(0usize, |sum, x| sum.checked_add(*x)) == Some(head_dim / 2)
        };
        three.filter(fits).map(RopeKind::Sections).ok_or_else(|| {
            format!(
                "mrope_section is {sections:?}; expected three numbers whose sum is {}, half of a \
                    head's width",
                head_dim / 2
            )
        })
    }
}
