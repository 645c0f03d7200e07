//! A loaded model and embeddings of pictures.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use mlx_rs::Array;
use serde::Deserialize;

use super::{Op, Session, Stage, engine};
use crate::{
    Error, Result,
    checkpoint::{Checkpoint, read_json},
    device::{Backend, Device},
    generate::{ChatModel, GenerationOptions},
    image::{Picture, Processor},
    models::moxin::{TokenIds, VLMConfig, load_weights},
    text::load_tokenizer,
};

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Where it computes.
    pub backend: Backend,
    /// Bytes that its weights may take. `None`: what the machine has available.
    pub memory_limit: Option<u64>,
}

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
    /// Edge of the square that a picture is brought to, in pixels.
    pub image_size: usize,
    /// Positions that a picture takes.
    pub image_tokens: usize,
    /// Width of a token in the decoder.
    pub hidden_size: usize,
    /// Where the model computes; never [`Backend::Auto`].
    pub backend: Backend,
}

/// A model in memory. Clones share it; the weights go when the last clone, session included, is dropped.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    id: u64,
    info: ModelInfo,
    /// Used on the engine thread only.
    loaded: Mutex<Option<ChatModel>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        engine::dispose(loaded);
    }
}

/// A picture's tokens in the space of the model that made them. Clones share it. It keeps nothing else alive.
#[derive(Clone)]
pub struct Embedding {
    model: u64,
    tokens: usize,
    width: usize,
    /// `[1, tokens, width]`
    array: Arc<Mutex<Disposed>>,
}

/// An array that is dropped on the engine thread.
struct Disposed(Option<Array>);

impl Drop for Disposed {
    fn drop(&mut self) {
        engine::dispose(self.0.take());
    }
}

/// `generation_config.json`, as far as it is read.
#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

impl Model {
    /// Loads a Hugging Face folder: `config.json`, the weights, `tokenizer.json`, `preprocessor_config.json` and, where there is one,
    /// `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::CorruptModel`] and [`Error::UnsupportedModel`] name the file and the field or tensor;
    /// [`Error::OutOfMemory`] where the weights take more than is allowed, before any is read.
    pub fn load(folder: impl AsRef<Path>, options: LoadOptions, op: Op) -> Result<Model> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let folder = folder.as_ref().to_owned();
        let (info, loaded) = engine::run(op, move |reporter| {
            engine::on_device(options.backend, |device| {
                load(&folder, device, options.memory_limit, &|done, total| {
                    reporter.report(Stage::Load, if total == 0 { 1.0 } else { (done as f64 / total as f64) as f32 })
                })
            })
        })?;
        Ok(Model(Arc::new(Inner { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), info, loaded: Mutex::new(Some(loaded)) })))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Runs the vision encoders on a picture. The embedding can stand for the picture in any session of this model.
    pub fn encode_image(&self, picture: &Picture, op: Op) -> Result<Embedding> {
        let (model, picture) = (self.clone(), picture.clone());
        let array = engine::run(op, move |reporter| {
            reporter.report(Stage::Encode, 0.0)?;
            let array = model.with(|loaded| loaded.encode_image(&picture))?;
            reporter.report(Stage::Encode, 1.0)?;
            Ok(array)
        })?;
        let (tokens, width) = (array.dim(1) as usize, array.dim(2) as usize);
        Ok(Embedding { model: self.0.id, tokens, width, array: Arc::new(Mutex::new(Disposed(Some(array)))) })
    }

    /// Begins a conversation.
    pub fn session(&self, options: GenerationOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// The array behind an embedding, where it is this model's.
    pub(super) fn tokens_of(&self, embedding: &Embedding) -> Result<Array> {
        if embedding.model != self.0.id {
            return Err(Error::InvalidArgument("the embedding was made by another model; encode the image with this one".into()));
        }
        embedding.array()
    }

    /// Calls `f` with the weights, its operations going to the model's device. On the engine thread only.
    pub(super) fn with<T>(&self, f: impl FnOnce(&ChatModel) -> Result<T>) -> Result<T> {
        let loaded = lock(&self.0.loaded);
        let loaded = loaded.as_ref().ok_or_else(|| Error::InvalidState("the model was unloaded; load it again".into()))?;
        engine::on_device(self.0.info.backend, |_| f(loaded))
    }
}

impl Embedding {
    /// Positions it takes in a prompt.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Width of each token.
    pub fn width(&self) -> usize {
        self.width
    }

    fn array(&self) -> Result<Array> {
        let array = lock(&self.array).0.clone();
        array.ok_or_else(|| Error::InvalidState("the embedding was freed".into()))
    }

    /// The numbers, token after token.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let array = self.array()?;
        engine::run(Op::default(), move |_| {
            // The dtype is the device's; reading it as float32 is an operation of its own.
            engine::on_device(Backend::Cpu, |_| {
                let wide = array.as_dtype(mlx_rs::Dtype::Float32)?;
                wide.to_vec_cast::<f32>().map_err(|error| Error::InvalidState(format!("reading an embedding: {error}")))
            })
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held left the value as it was: what is behind these locks is only read.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn load(
    folder: &Path,
    device: &Device,
    memory_limit: Option<u64>,
    progress: &dyn Fn(u64, u64) -> Result<()>,
) -> Result<(ModelInfo, ChatModel)> {
    // The small files first: what is wrong with them shows at once.
    let config_path = folder.join("config.json");
    let config = VLMConfig::from_file(&config_path)?;
    let tokenizer = load_tokenizer(folder)?;
    let processor_path = folder.join("preprocessor_config.json");
    let processor = Processor::from_file(&processor_path)?;
    check_processor(&processor, &config).map_err(|what| Error::corrupt(&processor_path, what))?;
    let eos = eos_ids(folder, &config)?;
    let checkpoint = Checkpoint::open(folder)?;
    let (parameters, weight_bytes) = (checkpoint.parameter_count(), checkpoint.total_bytes());
    let vlm = load_weights(folder, &config, checkpoint, device, memory_limit, progress)?;
    let info = ModelInfo {
        model_type: config.model_type,
        parameters,
        weight_bytes,
        context_length: config.text_config.max_position_embeddings,
        vocabulary: config.text_config.vocab_size,
        image_size: config.image_sizes[0],
        image_tokens: vlm.image_tokens(),
        hidden_size: config.text_config.hidden_size,
        backend: device.backend,
    };
    Ok((info, ChatModel { vlm, processor, tokenizer, eos }))
}

fn check_processor(processor: &Processor, config: &VLMConfig) -> Result<(), String> {
    let encoders = config.timm_model_ids.len();
    if processor.encoders() != encoders {
        return Err(format!("input_sizes has {} entries; the model has {encoders} encoders", processor.encoders()));
    }
    match config.image_sizes[..encoders].iter().find(|size| **size != processor.size()) {
        Some(size) => Err(format!("input_sizes makes pictures of {} pixels; image_sizes in config.json has {size}", processor.size())),
        None => Ok(()),
    }
}

/// Tokens that end an answer: generation_config.json's, else config.json's.
fn eos_ids(folder: &Path, config: &VLMConfig) -> Result<Vec<u32>> {
    let path = folder.join("generation_config.json");
    let generation: Option<GenerationConfig> = match read_json(&path, "the model's generation defaults") {
        Ok(generation) => Some(generation),
        Err(Error::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let ids = generation.and_then(|generation| generation.eos_token_id).map(|ids| ids.to_vec());
    Ok(ids.unwrap_or_else(|| config.text_config.eos_token_id.to_vec()))
}
