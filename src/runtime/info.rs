//! Properties and memory estimate of a model.

use std::collections::BTreeMap;

use crate::{
    Result,
    checkpoint::Quantization,
    device::{Backend, Device, Dtype},
    models::{Budget, MediumSize, ModelFolder, is_vision, most_common},
};

/// Properties of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The architecture, as named in config.json.
    pub model_type: String,
    /// The number of values in all tensors of the folder, including unused ones.
    pub parameters: u64,
    /// The size of these tensors in bytes.
    pub weight_bytes: u64,
    /// The number of positions that the decoder was made for.
    pub context_length: usize,
    /// The number of rows of the token embedding.
    pub vocabulary: usize,
    /// The edge in pixels of the square that pictures are resized to; 0 if the size depends on the
    /// picture, or if there are no pictures.
    pub image_size: usize,
    /// The number of positions per picture; 0 if it depends on the picture (see
    /// [`Model::image_tokens`](crate::Model::image_tokens)), or if there are no pictures.
    pub image_tokens: usize,
    /// The maximum number of pictures in a conversation; [`usize::MAX`]: as many as fit; 0: the
    /// model reads text only.
    pub max_images: usize,
    /// The maximum number of videos in a conversation; [`usize::MAX`]: as many as fit; 0: the model
    /// reads none.
    pub max_videos: usize,
    /// Whether the model supports system text.
    pub system: bool,
    /// Whether a conversation can continue after an answer.
    pub several_messages: bool,
    /// Whether answers can have boxes and points: [`Model::locate`](crate::Model::locate).
    pub grounding: bool,
    /// The prompt to use when the user asks nothing, in the words that the model was trained with.
    pub default_prompt: &'static str,
    /// The number of values per token in the decoder.
    pub hidden_size: usize,
    /// Identifies the weights that encode pictures: a hash of all weights that affect an embedding,
    /// and of the image settings. Embeddings can be exchanged between models with the same
    /// fingerprint. 0 before the model is loaded.
    pub fingerprint: u64,
    /// The device that the model runs on; never [`Backend::Auto`].
    pub backend: Backend,
    /// The dtype of activations.
    pub dtype: Dtype,
    /// The scheme of most quantized matrices.
    pub quantization: Option<Quantization>,
}

/// The memory that the model in a folder needs, in bytes, estimated from its headers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The loaded weights.
    pub weights: u64,
    /// Keys and values per position of a conversation.
    pub kv_per_token: u64,
    /// Keys and values of a conversation that fills its context.
    pub kv_total: u64,
    /// The peak while loading.
    pub load_peak: u64,
    /// The temporary memory of encoding a picture, in addition to the weights: for the largest
    /// picture that fits into the context and the budget, if pictures differ.
    pub vision_peak: u64,
    /// The temporary memory of a step, in addition to weights, keys and values.
    pub step_peak: u64,
    /// The overall peak: loading the model, encoding a picture, and one conversation that fills its
    /// context.
    pub total: u64,
    /// The memory available now.
    pub available: u64,
}

/// Returns everything except the fingerprint.
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
        max_videos: limits.videos,
        system: limits.system,
        several_messages: limits.several_messages,
        grounding: blueprint.grounding().is_some(),
        default_prompt: limits.default_prompt,
        hidden_size: settings.hidden_size,
        fingerprint: 0,
        backend: device.backend,
        dtype: device.dtype,
        quantization: folder.stored.default,
    })
}

impl ModelInfo {
    /// Adds the properties known after loading: the quantization scheme and the fingerprint.
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

/// Hashes everything that affects embeddings: the image settings, all weights except the language
/// model's, and their quantization.
fn fingerprint(
    folder: &ModelFolder,
    vision_hash: blake3::Hash,
    schemes: &BTreeMap<String, Quantization>,
) -> u64 {
    let schemes: Vec<_> = schemes.iter().filter(|(path, _)| is_vision(path)).collect();
    let mut config = folder.files.config.clone();
    // The schemes include the language model's; here only the others matter.
    for field in ["quantization", "quantization_config"] {
        config.as_object_mut().map(|config| config.remove(field));
    }
    let processor = folder.files.processor.as_ref();
    let settings =
        processor.map_or_else(String::new, |settings| format!("{:?}", settings.values()));
    let settings = format!("{config} {settings} {schemes:?}");
    let hash = blake3::Hasher::new()
        .update(vision_hash.as_bytes())
        .update(settings.as_bytes())
        .finalize();
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
