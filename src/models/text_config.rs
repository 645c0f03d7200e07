//! The language model's part of a config.json, for decoders of the Llama family.
//!
//! Published files list only what differs from the defaults of transformers' configuration class,
//! so each architecture starts from the defaults of its own: see [`TextConfig::new`].

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    Error, Result,
    nn::{Activation, DecoderSettings, Rope, RopeKind},
};

/// What config.json says of a decoder. A field that is missing or null is `None`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Such as `gemma` or `qwen2`.
    pub model_type: Option<String>,
    /// Width of a token.
    pub hidden_size: Option<usize>,
    /// Decoder layers.
    pub num_hidden_layers: Option<usize>,
    /// Query heads.
    pub num_attention_heads: Option<usize>,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head.
    pub head_dim: Option<usize>,
    /// Width inside the MLP.
    pub intermediate_size: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: Option<usize>,
    /// The activation in the MLP.
    pub hidden_act: Option<String>,
    /// The same, as Gemma's configurations call it.
    pub hidden_activation: Option<String>,
    /// Epsilon of the norms.
    pub rms_norm_eps: Option<f32>,
    /// Base of the rotary positions.
    pub rope_theta: Option<f32>,
    /// Scaling of rotary positions, or how they are divided among axes.
    pub rope_scaling: Option<RopeConfig>,
    /// Where transformers 5 writes both.
    pub rope_parameters: Option<RopeConfig>,
    /// Positions, itself included, that a token sees.
    pub sliding_window: Option<usize>,
    /// Positions that the model was made for.
    pub max_position_embeddings: Option<usize>,
    /// The end-of-sequence token or tokens.
    pub eos_token_id: Option<TokenIds>,
    /// Gemma 2: attention scores are multiplied by the inverse square root of this.
    pub query_pre_attn_scalar: Option<f32>,
    /// Gemma 2: the soft cap of attention scores.
    pub attn_logit_softcapping: Option<f32>,
    /// Gemma 2: the soft cap of logits.
    pub final_logit_softcapping: Option<f32>,
}

/// `rope_scaling`, or transformers 5's `rope_parameters`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RopeConfig {
    /// `default`, `linear`, `mrope`.
    pub rope_type: Option<String>,
    /// The same, as older files call it; some have both.
    pub r#type: Option<String>,
    /// Base of the rotary positions.
    pub rope_theta: Option<f32>,
    /// By what positions are divided.
    pub factor: Option<f32>,
    /// Frequencies for frame, row and column.
    pub mrope_section: Option<Vec<usize>>,
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
    /// All of them.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            TokenIds::One(id) => vec![*id],
            TokenIds::Many(ids) => ids.clone(),
        }
    }
}

/// A token id that config.json has under one of these names, or `default` where it has none.
///
/// # Errors
/// [`Error::UnsupportedModel`] for what is no token id.
pub fn token_id(path: &Path, config: &Value, names: &[&str], default: u32) -> Result<u32> {
    let Some((name, value)) = names
        .iter()
        .find_map(|name| Some((name, config.get(name)?)))
    else {
        return Ok(default);
    };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| Error::unsupported(path, format!("{name} is {value}; a token id is expected")))
}

/// The most that a size in a configuration may be.
const MOST: usize = 1 << 24;

impl TextConfig {
    /// Reads the language model's part of a config.json: `text_config`, or all of it where there is
    /// none, as in the hub's Qwen2-VL; `defaults` for what is missing.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] for a field of another kind.
    pub fn new(path: &Path, config: &Value, defaults: TextConfig) -> Result<TextConfig> {
        let part = config
            .get("text_config")
            .filter(|value| !value.is_null())
            .unwrap_or(config);
        let parse = |value: &Value| {
            TextConfig::deserialize(value).map_err(|error| Error::corrupt(path, error.to_string()))
        };
        let mut text = parse(part)?.or(defaults);
        if text.eos_token_id.is_none() {
            text.eos_token_id = parse(config)?.eos_token_id;
        }
        Ok(text)
    }

    /// The fields of `self`, and those of `other` where it has none.
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
            sliding_window: self.sliding_window.or(other.sliding_window),
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

    /// Base of the rotary positions.
    pub fn rope_theta(&self) -> f32 {
        self.rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(10_000.0)
    }

    /// How frequencies are divided among frame, row and column, where they are.
    ///
    /// transformers 4.57 saves the type `mrope` as `default`, so the sections tell.
    pub fn rope_sections(&self) -> Option<&[usize]> {
        let configs = [&self.rope_parameters, &self.rope_scaling];
        configs
            .into_iter()
            .flatten()
            .find_map(|rope| rope.mrope_section.as_deref())
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.eos_token_id
            .as_ref()
            .map(TokenIds::to_vec)
            .unwrap_or_default()
    }

    /// The settings of a plain decoder of the Llama family with these sizes, checked.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] with the field at fault.
    pub fn decoder(&self, path: &Path, tied_head: bool) -> Result<DecoderSettings> {
        self.settings(tied_head)
            .map_err(|what| Error::unsupported(path, what))
    }

    fn settings(&self, tied_head: bool) -> Result<DecoderSettings, String> {
        let size = |name: &str, value: Option<usize>| match value {
            Some(value) if (1..=MOST).contains(&value) => Ok(value),
            Some(value) => Err(format!(
                "text_config.{name} is {value}; 1 to {MOST} is expected"
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
                "text_config.rms_norm_eps is {norm_eps}; more than 0 and less than 1 is expected"
            ));
        }
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!(
                "text_config.rope_theta is {theta}; more than 1 is expected"
            ));
        }
        let rope = Rope {
            theta,
            scaling: self.rope_factor()?,
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

    /// By what rotary positions are divided.
    fn rope_factor(&self) -> Result<f32, String> {
        for rope in [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
        {
            match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
                None | Some("default" | "mrope") => {}
                Some("linear") => {
                    let factor = rope.factor.unwrap_or(1.0);
                    return match factor.is_finite() && factor >= 1.0 {
                        true => Ok(factor),
                        false => Err(format!(
                            "the factor of text_config's rotary positions is {factor}; 1 or more \
                             is expected"
                        )),
                    };
                }
                Some(other) => {
                    return Err(format!(
                        "text_config scales its rotary positions by {other:?}, which is not \
                         supported"
                    ));
                }
            }
        }
        Ok(1.0)
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
                "mrope_section is {sections:?}; three numbers are expected whose sum is {}, \
                half of a head's width",
                head_dim / 2
            )
        })
    }
}
