//! `config.json` of a Prismatic checkpoint.
//!
//! `text_config` lists only the differences from the defaults of transformers' `MistralConfig`
//! (<https://github.com/huggingface/transformers/blob/v4.46.0/src/transformers/models/mistral/configuration_mistral.py>),
//! so every missing field takes its default from there. In particular, `rms_norm_eps` is 1e-6, not
//! the 1e-5 of the language model's own file.

use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::{
    Error, Result,
    checkpoint::parse_file,
    file,
    nn::{Activation, DecoderSettings, Rope, RopeKind, RopeScaling},
};

/// A Prismatic `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct VLMConfig {
    /// `prismatic`.
    pub model_type: String,
    /// The language model.
    #[serde(default)]
    pub text_config: MistralConfig,
    /// The edge of each encoder's square input, in pixels.
    #[serde(default = "image_sizes")]
    pub image_sizes: Vec<usize>,
    /// The timm models of the encoders.
    #[serde(default = "timm_model_ids")]
    pub timm_model_ids: Vec<String>,
    /// Activations that differ from those of the timm model.
    #[serde(default)]
    pub timm_override_act_layers: Vec<Option<String>>,
    /// Arguments to `timm.create_model` beyond the model's own, for small checkpoints.
    #[serde(default)]
    pub timm_override_kwargs: Vec<TimmOverrides>,
}

fn image_sizes() -> Vec<usize> {
    vec![224, 224]
}

fn timm_model_ids() -> Vec<String> {
    vec![
        "vit_large_patch14_reg4_dinov2.lvd142m".into(),
        "vit_so400m_patch14_siglip_224".into(),
    ]
}

/// Arguments that tensor shapes do not show. Others are not read, because the shapes show the same.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TimmOverrides {
    /// The number of attention heads.
    pub num_heads: Option<usize>,
}

impl VLMConfig {
    /// Reads and checks a `config.json`.
    pub fn from_file(path: &Path) -> Result<VLMConfig> {
        let bytes = file::read_json(path, "the model's configuration", file::MAX_JSON_BYTES)?;
        VLMConfig::parse(path, &parse_file(path, &bytes)?)
    }

    /// Parses and checks the content of a `config.json`.
    pub(super) fn parse(path: &Path, config: &serde_json::Value) -> Result<VLMConfig> {
        let config: VLMConfig = serde_path_to_error::deserialize(config)
            .map_err(|error| Error::corrupt(path, error.to_string()))?;
        config
            .check()
            .map_err(|what| Error::unsupported(path, what))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let encoders = self.timm_model_ids.len();
        if self.model_type != "prismatic" {
            return Err(format!(
                "model_type is {:?}; expected \"prismatic\"",
                self.model_type
            ));
        }
        if !(1..=2).contains(&encoders) {
            return Err(format!(
                "timm_model_ids has {encoders} entries; expected 1 or 2"
            ));
        }
        if self.image_sizes.len() < encoders {
            return Err(format!(
                "image_sizes has {} entries for {encoders} encoders",
                self.image_sizes.len()
            ));
        }
        if let Some(size) = self
            .image_sizes
            .iter()
            .find(|size| !(1..=4096).contains(*size))
        {
            return Err(format!("image_sizes contains {size}; expected 1 to 4096"));
        }
        self.text_config.check()
    }

    /// Returns the number of attention heads of the `i`th encoder.
    pub fn num_heads(&self, i: usize) -> Result<usize, String> {
        if let Some(heads) = self
            .timm_override_kwargs
            .get(i)
            .and_then(|kwargs| kwargs.num_heads)
        {
            return Ok(heads);
        }
        let id = &self.timm_model_ids[i];
        match id.split('.').next().unwrap_or(id) {
            "vit_large_patch14_reg4_dinov2"
            | "vit_so400m_patch14_siglip_224"
            | "vit_so400m_patch14_siglip_384" => Ok(16),
            _ => Err(format!(
                "timm_model_ids[{i}] is {id:?}, whose number of attention heads is not known; put \
                 num_heads into timm_override_kwargs[{i}]"
            )),
        }
    }

    /// Returns the activation in the MLPs of the `i`th encoder: exact GELU in timm's DINOv2 and
    /// SigLIP, unless overridden.
    pub fn activation(&self, i: usize) -> Result<Activation, String> {
        match self
            .timm_override_act_layers
            .get(i)
            .and_then(Option::as_deref)
        {
            None => Ok(Activation::Gelu),
            Some(name) => Activation::from_name(name).ok_or_else(|| {
                format!(
                    "timm_override_act_layers[{i}] is {name:?}; expected gelu, gelu_tanh or \
                        quick_gelu"
                )
            }),
        }
    }
}

/// The decoder's configuration, with the defaults of transformers' `MistralConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct MistralConfig {
    /// `mistral`.
    pub model_type: String,
    /// The number of values per token.
    pub hidden_size: usize,
    /// The number of decoder layers.
    pub num_hidden_layers: usize,
    /// The number of query heads.
    pub num_attention_heads: usize,
    /// The number of key and value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// The number of values per head; `hidden_size / num_attention_heads` if missing.
    pub head_dim: Option<usize>,
    /// The number of values inside the MLP.
    pub intermediate_size: usize,
    /// The number of rows in the embedding.
    pub vocab_size: usize,
    /// The activation in the MLP; only `silu` is supported.
    pub hidden_act: String,
    /// The epsilon of the norms.
    pub rms_norm_eps: f32,
    /// The base of the rotary position embedding.
    pub rope_theta: f32,
    /// The field for the base in newer versions of transformers.
    #[serde(deserialize_with = "or_default")]
    pub rope_parameters: RopeParameters,
    /// The scaling of rotary positions, which is not supported.
    pub rope_scaling: Option<serde_json::Value>,
    /// The number of positions that a token attends to, including itself; `null` for all.
    pub sliding_window: Option<usize>,
    /// The number of positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// The end-of-sequence token or tokens.
    pub eos_token_id: TokenIds,
}

/// `rope_parameters`, as transformers 5 writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RopeParameters {
    /// `default`.
    pub rope_type: Option<String>,
    /// The base of the rotary position embedding.
    pub rope_theta: Option<f32>,
}

/// Reads `null` as the default.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// One token id or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One.
    One(u32),
    /// Several.
    Many(Vec<u32>),
    /// `null`.
    None,
}

impl TokenIds {
    /// Returns all of them.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            TokenIds::One(id) => vec![*id],
            TokenIds::Many(ids) => ids.clone(),
            TokenIds::None => Vec::new(),
        }
    }
}

impl Default for MistralConfig {
    fn default() -> Self {
        MistralConfig {
            model_type: "mistral".into(),
            hidden_size: 4096,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: None,
            intermediate_size: 14336,
            vocab_size: 32000,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            rope_parameters: RopeParameters::default(),
            rope_scaling: None,
            sliding_window: Some(4096),
            max_position_embeddings: 131_072,
            tie_word_embeddings: false,
            eos_token_id: TokenIds::One(2),
        }
    }
}

impl MistralConfig {
    /// Returns the number of values per head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Returns the base of the rotary position embedding.
    pub fn rope_theta(&self) -> f32 {
        self.rope_parameters.rope_theta.unwrap_or(self.rope_theta)
    }

    /// Returns the settings of the decoder.
    pub fn decoder(&self) -> DecoderSettings {
        let rope = Rope {
            theta: self.rope_theta(),
            scaling: RopeScaling::Linear(1.0),
            kind: RopeKind::Sequential,
        };
        DecoderSettings {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim(),
            qkv_bias: false,
            qk_norm: false,
            norm_eps: self.rms_norm_eps,
            norm_adds_one: false,
            post_norms: false,
            gate: Activation::Silu,
            embedding_scale: None,
            tied_head: self.tie_word_embeddings,
            attention_scale: (self.head_dim() as f32).sqrt().recip(),
            attention_softcap: None,
            final_softcap: None,
            windows: vec![self.sliding_window],
            ropes: vec![rope],
        }
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim()),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 24).contains(size)) {
            return Err(format!(
                "text_config.{name} is {size}; 1 to {} is expected",
                1 << 24
            ));
        }
        if self.model_type != "mistral" {
            return Err(format!(
                "text_config.model_type is {:?}; expected \"mistral\"",
                self.model_type
            ));
        }
        if self.hidden_act != "silu" {
            return Err(format!(
                "text_config.hidden_act is {:?}; expected \"silu\"",
                self.hidden_act
            ));
        }
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return Err(format!(
                "text_config.num_attention_heads ({}) is not a multiple of num_key_value_heads \
                 ({})",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim().is_multiple_of(2) {
            return Err(format!(
                "text_config.head_dim is {}; rotary positions need an even one",
                self.head_dim()
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(format!(
                "text_config.rms_norm_eps is {}; expected more than 0 and less than 1",
                self.rms_norm_eps
            ));
        }
        if !(self.rope_theta() > 1.0 && self.rope_theta().is_finite()) {
            return Err(format!(
                "text_config.rope_theta is {}; expected more than 1",
                self.rope_theta()
            ));
        }
        let rope_type = self
            .rope_parameters
            .rope_type
            .as_deref()
            .unwrap_or("default");
        if rope_type != "default" || self.rope_scaling.is_some() {
            return Err("text_config scales its rotary positions, which is not supported".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> VLMConfig {
        serde_json::from_str(json).unwrap()
    }

    /// Field by field what transformers 4.46 makes from the sparse `text_config` of Moxin-7B.
    #[test]
    fn a_sparse_text_config_takes_the_defaults_of_transformers() {
        let config = parse(
            r#"{"model_type":"prismatic","text_config":{"model_type":"mistral","num_hidden_layers":36,"pad_token_id":32000,
                "torch_dtype":"bfloat16","vocab_size":32064}}"#,
        );
        config.check().unwrap();
        let text = &config.text_config;
        assert_eq!(
            (
                text.num_hidden_layers,
                text.vocab_size,
                text.hidden_size,
                text.intermediate_size
            ),
            (36, 32064, 4096, 14336)
        );
        assert_eq!(
            (
                text.num_attention_heads,
                text.num_key_value_heads,
                text.head_dim()
            ),
            (32, 8, 128)
        );
        assert_eq!(
            (text.rms_norm_eps, text.rope_theta(), text.sliding_window),
            (1e-6, 10000.0, Some(4096))
        );
        assert_eq!(
            (
                text.max_position_embeddings,
                text.tie_word_embeddings,
                text.eos_token_id.to_vec()
            ),
            (131_072, false, vec![2])
        );
    }

    #[test]
    fn a_null_sliding_window_is_none() {
        assert_eq!(
            parse(r#"{"model_type":"prismatic","text_config":{"sliding_window":null}}"#)
                .text_config
                .sliding_window,
            None
        );
    }

    #[test]
    fn transformers_5_keeps_rope_theta_elsewhere() {
        let config = parse(
            r#"{"model_type":"prismatic","text_config":{"rope_parameters":{"rope_theta":5000.0,"rope_type":"default"}}}"#,
        );
        config.check().unwrap();
        assert_eq!(config.text_config.rope_theta(), 5000.0);
        let config = parse(
            r#"{"model_type":"prismatic","text_config":{"rope_parameters":null,"rope_theta":4000.0}}"#,
        );
        assert_eq!(config.text_config.rope_theta(), 4000.0);
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_field() {
        for (json, field) in [
            (r#"{"model_type":"llava"}"#, "model_type"),
            (
                r#"{"model_type":"prismatic","timm_model_ids":[]}"#,
                "timm_model_ids",
            ),
            (
                r#"{"model_type":"prismatic","image_sizes":[224]}"#,
                "image_sizes",
            ),
            (
                r#"{"model_type":"prismatic","image_sizes":[224,0]}"#,
                "image_sizes",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"model_type":"llama"}}"#,
                "text_config.model_type",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"num_attention_heads":0}}"#,
                "num_attention_heads",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"num_key_value_heads":7}}"#,
                "num_key_value_heads",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"hidden_act":"gelu"}}"#,
                "hidden_act",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"head_dim":3}}"#,
                "head_dim",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"rms_norm_eps":0}}"#,
                "rms_norm_eps",
            ),
            (
                r#"{"model_type":"prismatic","text_config":{"rope_scaling":{"type":"linear"}}}"#,
                "rotary",
            ),
        ] {
            let error = parse(json).check().expect_err(json);
            assert!(error.contains(field), "{json}: {error}");
        }
    }
}
