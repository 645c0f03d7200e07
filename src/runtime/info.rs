//! What a model is, and what it will take.

use std::collections::BTreeMap;

use crate::{
    Result,
    checkpoint::Quantization,
    device::{Backend, Device, Dtype},
    models::{Budget, MediumSize, ModelFolder, is_vision, most_common},
};

/// What a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The architecture, as config.json names it.
    pub model_type: String,
    /// Numbers in all tensors of the folder, also those that are never used.
    pub parameters: u64,
    /// Bytes of these tensors.
    pub weight_bytes: u64,
    /// Positions that the decoder was made for.
    pub context_length: usize,
    /// Rows of the token embedding.
    pub vocabulary: usize,
    /// Edge of the square that a picture is brought to, in pixels; 0 where that depends on the
    /// picture.
    pub image_size: usize,
    /// Positions that a picture takes; 0 where that depends on the picture: see
    /// [`Model::image_tokens`](crate::Model::image_tokens).
    pub image_tokens: usize,
    /// Pictures that a conversation may have; [`usize::MAX`] for as many as fit.
    pub max_images: usize,
    /// Whether the model takes system text.
    pub system: bool,
    /// Whether a conversation goes on after an answer.
    pub several_messages: bool,
    /// What to ask about a picture where a user has no question, in the words that the model was
    /// made for.
    pub default_prompt: &'static str,
    /// Width of a token in the decoder.
    pub hidden_size: usize,
    /// Tells models apart whose embeddings do not fit each other: a hash of all weights that make
    /// an embedding, and of the image settings. 0 before it is loaded.
    pub fingerprint: u64,
    /// Where the model computes; never [`Backend::Auto`].
    pub backend: Backend,
    /// The dtype of activations.
    pub dtype: Dtype,
    /// The scheme that most matrices have which are quantized.
    pub quantization: Option<Quantization>,
}

/// What a model in a folder will take, in bytes, known from its headers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights, once loaded.
    pub weights: u64,
    /// Keys and values of one position of a conversation.
    pub kv_per_token: u64,
    /// Keys and values of a conversation that fills its context.
    pub kv_total: u64,
    /// The most while loading.
    pub load_peak: u64,
    /// What encoding a picture takes beyond the weights, for the time: the largest that fits the
    /// context, where pictures differ.
    pub vision_peak: u64,
    /// What a step of a conversation takes beyond weights, keys and values, for the time.
    pub step_peak: u64,
    /// The most in all: loading the model, encoding a picture, and one conversation that fills its
    /// context.
    pub total: u64,
    /// What could be taken now.
    pub available: u64,
}

/// All but the fingerprint.
pub fn describe(folder: &ModelFolder, device: &Device) -> Result<ModelInfo> {
    let (blueprint, settings) = (&folder.blueprint, folder.blueprint.decoder());
    let limits = blueprint.limits();
    let any = MediumSize {
        width: limits.image_size.max(1),
        height: limits.image_size.max(1),
    };
    let image_tokens = match limits.image_size {
        0 => 0,
        _ => blueprint.plan(any, Budget::default())?.features(),
    };
    Ok(ModelInfo {
        model_type: folder.model_type.clone(),
        parameters: folder.parameters,
        weight_bytes: folder.bytes,
        context_length: limits.context,
        vocabulary: settings.vocab_size,
        image_size: limits.image_size,
        image_tokens,
        max_images: limits.images,
        system: limits.system,
        several_messages: limits.several_messages,
        default_prompt: limits.default_prompt,
        hidden_size: settings.hidden_size,
        fingerprint: 0,
        backend: device.backend,
        dtype: device.dtype,
        quantization: folder.stored.default,
    })
}

impl ModelInfo {
    /// Tells what is known once the weights are there: how matrices are quantized, and the
    /// fingerprint.
    pub(super) fn with_schemes(
        self,
        folder: &ModelFolder,
        vision_hash: blake3::Hash,
        schemes: &BTreeMap<String, Quantization>,
    ) -> ModelInfo {
        ModelInfo {
            fingerprint: fingerprint(folder, vision_hash, schemes),
            quantization: most_common(schemes.values().copied()),
            ..self
        }
    }
}

/// What makes the embeddings of a model unlike another's: how pictures come to be pixels, all
/// weights but the language model's, and how those are quantized.
fn fingerprint(
    folder: &ModelFolder,
    vision_hash: blake3::Hash,
    schemes: &BTreeMap<String, Quantization>,
) -> u64 {
    let schemes: Vec<_> = schemes.iter().filter(|(path, _)| is_vision(path)).collect();
    let mut config = folder.files.config.clone();
    // Said of all matrices, the language model's too, and here of those that count.
    for field in ["quantization", "quantization_config"] {
        config.as_object_mut().map(|config| config.remove(field));
    }
    let settings = format!("{config} {:?} {schemes:?}", folder.files.processor.values());
    let hash = blake3::Hasher::new()
        .update(vision_hash.as_bytes())
        .update(settings.as_bytes())
        .finalize();
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
