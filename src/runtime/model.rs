//! A loaded model and embeddings of pictures.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use mlx_rs::{Array, Dtype};
use serde::Deserialize;

use super::{Op, Session, Stage, engine, lock, op::Control, tokenize::Places};
use crate::{
    Error, Result,
    checkpoint::{NewFolder, Quantization, copy_texts, open_folder, read_json},
    device::{Arithmetic, Backend, CpuKernels, Device, available_memory, clear_cache, floats},
    generate::{ChatModel, GenerationOptions, ImageCache},
    image::{Picture, PictureHash, Processor},
    models::moxin::{MoxinVLM, QuantizeOptions, Source, TokenIds, VLMConfig, is_vision, most_common},
    nn::Matrix,
    process,
    text::{PromptEncoder, Tokenizer},
};

/// The files that a model must have beside its configuration and its weights.
const TOKENIZER: &str = "tokenizer.json";
const PROCESSOR: &str = "preprocessor_config.json";

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it computes.
    pub backend: Backend,
    /// The dtype of activations: float16, bfloat16 or float32. `None`: the backend's, which is [`Device::dtype`].
    pub dtype: Option<Dtype>,
    /// Bytes that loading it may take. `None`: what is available.
    pub memory_limit: Option<u64>,
    /// Matrices are quantized as they are read: the dense ones are never all in memory. `None`: they stay as they are stored.
    pub quantize: Option<QuantizeOptions>,
    /// Whose code computes on the CPU.
    pub cpu_kernels: CpuKernels,
    /// Bytes for the tokens of pictures seen before. They take 4 MiB a picture in the largest case, Moxin-7B in float32.
    pub image_cache: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            backend: Backend::Auto,
            dtype: None,
            memory_limit: None,
            quantize: None,
            cpu_kernels: CpuKernels::Auto,
            image_cache: 64 << 20,
        }
    }
}

impl LoadOptions {
    fn device(&self, device: &Device) -> Result<Device> {
        let device = device.clone().with_cpu_kernels(self.cpu_kernels);
        match self.dtype {
            Some(dtype) => device.with_dtype(dtype),
            None => Ok(device),
        }
    }

    fn scheme(&self, path: &str, columns: usize) -> Option<Quantization> {
        self.quantize.as_ref()?.scheme(path, columns)
    }

    fn check(&self) -> Result<()> {
        self.quantize.as_ref().map_or(Ok(()), QuantizeOptions::check)
    }
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
    /// What encoding a picture takes beyond the weights, for the time.
    pub vision_peak: u64,
    /// What a step of a conversation takes beyond weights, keys and values, for the time.
    pub step_peak: u64,
    /// The most in all: loading the model, encoding a picture, and one conversation that fills its context.
    pub total: u64,
    /// What could be taken now.
    pub available: u64,
}

/// A model in memory. Clones share it; the weights go when the last clone, session included, is dropped, or with [`Model::unload`].
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    info: Mutex<ModelInfo>,
    backend: Backend,
    cpu_kernels: CpuKernels,
    arithmetic: Arithmetic,
    /// The folder that it comes from, its files open.
    source: Source,
    /// A hash of all its weights but the language model's, as they are stored, for the fingerprint.
    vision_hash: blake3::Hash,
    /// Used on the engine thread only.
    loaded: Mutex<Option<ChatModel>>,
    tokenizing: Arc<Places>,
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
    picture: PictureHash,
    tokens: usize,
    width: usize,
    /// `[1, tokens, width]`
    array: Arc<Disposed>,
}

/// An array that is dropped on the engine thread.
struct Disposed(Mutex<Option<Array>>);

impl Drop for Disposed {
    fn drop(&mut self) {
        engine::dispose(self.0.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
    }
}

/// `generation_config.json`, as far as it is read.
#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

/// Models that are in memory, for [`trim_memory`].
static MODELS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Model {
    /// Loads a Hugging Face folder: `config.json`, the weights, `tokenizer.json`, `preprocessor_config.json` and, where there is one,
    /// `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::CorruptModel`] and [`Error::UnsupportedModel`] name the file and the field or tensor;
    /// [`Error::OutOfMemory`] where the weights take more than is allowed, before any is read.
    pub fn load(folder: impl AsRef<Path>, options: LoadOptions, mut op: Op) -> Result<Model> {
        options.check()?;
        // All but the weights here: a slow disk, or a file that is none, must not stop the engine.
        let parts = before_the_engine(&mut op, |control| Parts::read(folder.as_ref(), control))?;
        let model = engine::run(op, move |reporter| {
            engine::on_device(options.backend, |device| {
                load(parts, &options, device, &|done, total| {
                    reporter.report(Stage::Load, if total == 0 { 1.0 } else { (done as f64 / total as f64) as f32 })
                })
            })
        })?;
        let model = Arc::new(model);
        let mut models = lock(&MODELS);
        models.retain(|model| model.strong_count() > 0);
        models.push(Arc::downgrade(&model));
        Ok(Model(model))
    }

    /// What the model in a folder is, without loading it: reads `config.json` and the headers of the weights.
    pub fn inspect(folder: impl AsRef<Path>) -> Result<ModelInfo> {
        let source = settled(folder.as_ref(), &Control::default(), Source::open)?;
        engine::turn(move || engine::on_device(Backend::Auto, |device| describe(&source, device)))
    }

    /// What the model in a folder will take, without loading it, loaded with `options` and talked to with `generation`.
    pub fn estimate(folder: impl AsRef<Path>, options: &LoadOptions, generation: &GenerationOptions) -> Result<MemoryEstimate> {
        generation.validate()?;
        options.check()?;
        let source = settled(folder.as_ref(), &Control::default(), Source::open)?;
        let for_device = options.clone();
        let arithmetic = engine::turn(move || engine::on_device(for_device.backend, |device| Ok(for_device.device(device)?.arithmetic())))?;
        let needs = source.memory(arithmetic, &|path, columns| options.scheme(path, columns));
        let positions = generation.context(source.config.text_config.max_position_embeddings);
        Ok(MemoryEstimate {
            weights: needs.weights,
            kv_per_token: needs.kv_per_token,
            kv_total: needs.cache(positions),
            load_peak: needs.load,
            vision_peak: needs.vision,
            step_peak: needs.step(generation.prefill_chunk, positions),
            total: needs.total(positions, generation.prefill_chunk),
            available: available_memory()?,
        })
    }

    /// What the model is.
    pub fn info(&self) -> ModelInfo {
        lock(&self.0.info).clone()
    }

    /// A field of config.json by its path, such as `text_config.num_hidden_layers` or `image_sizes.0`: texts as they are, all else as JSON.
    pub fn metadata(&self, path: &str) -> Option<String> {
        let pointer = format!("/{}", path.replace('.', "/"));
        match self.0.source.config_json.pointer(&pointer)? {
            serde_json::Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Runs the vision encoders on a picture, unless its tokens are in the cache. The embedding can stand for the picture in any session of
    /// this model, also when it was loaded anew.
    pub fn encode_image(&self, picture: &Picture, op: Op) -> Result<Embedding> {
        let (model, picture) = (self.clone(), picture.clone());
        let fingerprint = self.info().fingerprint;
        engine::run(op, move |reporter| {
            reporter.report(Stage::Encode, 0.0)?;
            let encoded = model.with(|loaded| loaded.encode_image(&picture, &|part| reporter.report(Stage::Encode, 0.99 * part)))?;
            reporter.report(Stage::Encode, 1.0)?;
            let (tokens, width) = (encoded.tokens.dim(1) as usize, encoded.tokens.dim(2) as usize);
            let array = Arc::new(Disposed(Mutex::new(Some(encoded.tokens))));
            Ok(Embedding { model: fingerprint, picture: encoded.picture, tokens, width, array })
        })
    }

    /// Begins a conversation.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the option; [`Error::OutOfMemory`] where a conversation that fills its context does not fit.
    pub fn session(&self, options: GenerationOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// Quantizes the matrices that `options` name and that are not yet quantized, one after the other: it never takes more than the model and
    /// a matrix. Conversations go on; what they have computed stays.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a scheme that MLX does not have; [`Error::InvalidState`] where nothing is left to quantize;
    /// [`Error::Cancelled`], unless it comes too late, and others. An error leaves the model as it was: what was replaced is read again from the folder it came from. Where
    /// a file there has changed since, the old matrices are kept until all are done, and [`Error::OutOfMemory`] says so where they do not fit.
    pub fn quantize(&self, options: QuantizeOptions, op: Op) -> Result<()> {
        options.check()?;
        let model = self.clone();
        engine::run_to_its_end(op, move |reporter| {
            let inner = &*model.0;
            let mut loaded = lock(&inner.loaded);
            let chat = loaded.as_mut().ok_or_else(unloaded)?;
            let progress = |part| reporter.report(Stage::Quantize, part);
            let outcome = match engine::on_device(inner.backend, |_| inner.source.quantize(&mut chat.vlm, &options, &progress)) {
                Ok(outcome) => outcome,
                Err(error) => {
                    *loaded = None;
                    return Err(error);
                }
            };
            let schemes = schemes(&mut chat.vlm);
            chat.memory = inner.source.memory(inner.arithmetic, &|path, _| schemes.get(path).copied());
            // Pictures encoded before are as they were only where their encoders are.
            if options.vision || !options.modules.is_empty() {
                chat.images.borrow_mut().clear();
            }
            let mut info = lock(&inner.info);
            info.quantization = most_common(schemes.values().copied());
            info.fingerprint = fingerprint(inner.vision_hash, &inner.source.config, &chat.processor, &schemes);
            // What was done stays done, where free buffers cannot be given back too.
            let _ = clear_cache();
            outcome
        })
    }

    /// Writes the model as it is now to a folder that [`Model::load`] reads, in the form of MLX's
    /// community: the names of the folder it comes from, `.scales` and `.biases` beside what is
    /// quantized, `quantization` in `config.json`. What is not quantized, or not used, is copied
    /// from the folder it comes from, number for number.
    ///
    /// Of the other files those are copied that a model is known to have: tokenizer, processor and
    /// generation settings, chat templates, README.md, licences. A link is followed to a file of
    /// the same folder and, in a snapshot of Hugging Face's cache, to that cache.
    ///
    /// With `overwrite` an empty folder is replaced, or a model's: one that holds files alone,
    /// among them a config.json with a `model_type`. All its files go. A whole model is at the
    /// place at any moment, also where the process is killed; what is left then beside it is a
    /// hidden folder whose name begins with `.moxin-vlm-`. Only where a file system cannot exchange
    /// two folders nothing is there for a moment.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where something is there, unless `overwrite`; where it is
    /// something else than such a folder; where it is the folder that the model comes from or holds
    /// that; and where a file to be copied is a link elsewhere. [`Error::NotFound`] where the
    /// folder that the model comes from is gone; [`Error::InvalidState`] where the folder to be
    /// replaced changes meanwhile; [`Error::Io`]. A failure leaves what was there, and nothing
    /// else.
    pub fn save(&self, folder: impl AsRef<Path>, overwrite: bool, mut op: Op) -> Result<()> {
        let source = &self.0.source.folder;
        let folder = before_the_engine(&mut op, |_| {
            let folder = NewFolder::beside(folder.as_ref(), overwrite, source)?;
            copy_texts(source, folder.folder(), &[TOKENIZER, PROCESSOR])?;
            Ok(folder)
        })?;
        let (model, part) = (self.clone(), folder.folder().try_clone()?);
        engine::run(op, move |reporter| {
            let inner = &*model.0;
            let mut loaded = lock(&inner.loaded);
            let chat = loaded.as_mut().ok_or_else(unloaded)?;
            inner.source.save(&mut chat.vlm, &part, &|done, total| {
                reporter.report(Stage::Save, if total == 0 { 1.0 } else { (done as f64 / total as f64) as f32 })
            })
        })?;
        folder.publish()
    }

    /// Gives the weights back, though clones and sessions of the model remain. What would compute with them fails then with
    /// [`Error::InvalidState`].
    pub fn unload(&self) -> Result<()> {
        let model = self.clone();
        engine::turn(move || {
            drop(lock(&model.0.loaded).take());
            clear_cache()
        })
    }

    /// The array behind an embedding, where it is this model's. On the engine thread only.
    pub(super) fn tokens_of(&self, embedding: &Embedding) -> Result<Array> {
        let info = self.info();
        if embedding.model != info.fingerprint {
            return Err(Error::InvalidArgument("the embedding was made by another model; encode the image with this one".into()));
        }
        let array = embedding.array()?;
        if array.dtype() == info.dtype {
            return Ok(array);
        }
        engine::on_device(info.backend, |_| {
            let array = array.as_dtype(info.dtype)?;
            array.eval()?;
            Ok(array)
        })
    }

    /// Where prompts of this model are made tokens of.
    pub(super) fn tokenizing(&self) -> &Arc<Places> {
        &self.0.tokenizing
    }

    /// Calls `f` with the weights, its operations going to the model's device. On the engine thread only.
    pub(super) fn with<T>(&self, f: impl FnOnce(&ChatModel) -> Result<T>) -> Result<T> {
        let loaded = lock(&self.0.loaded);
        let loaded = loaded.as_ref().ok_or_else(unloaded)?;
        engine::on_device(self.0.backend, |device| device.clone().with_cpu_kernels(self.0.cpu_kernels).run(|| f(loaded)))
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

    /// [`ModelInfo::fingerprint`] of the model that made it.
    pub fn model(&self) -> u64 {
        self.model
    }

    /// Which picture it stands for.
    pub fn picture(&self) -> PictureHash {
        self.picture
    }

    fn array(&self) -> Result<Array> {
        let array = lock(&self.array.0).clone();
        array.ok_or_else(|| Error::InvalidState("the embedding was freed".into()))
    }

    /// The numbers, token after token.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let array = self.array()?;
        engine::run(Op::default(), move |_| {
            // The dtype is the device's; reading it as float32 is an operation of its own.
            engine::on_device(Backend::Cpu, |_| floats(&array, "an embedding"))
        })
    }
}

/// Gives back what is kept for reuse, without waiting: tokens of pictures seen before, and MLX's free buffers. For when the system says that
/// memory is short.
pub fn trim_memory() {
    if process::is_forked() {
        return;
    }
    // Registered models, not their weights: they are used on the engine thread only.
    let models: Vec<_> = lock(&MODELS).iter().filter_map(Weak::upgrade).collect();
    engine::post(move || {
        for model in &models {
            if let Some(loaded) = lock(&model.loaded).as_ref() {
                loaded.images.borrow_mut().clear();
            }
        }
        // Nobody waits for this, and the buffers go back another time.
        let _ = clear_cache();
        drop(models);
    });
}

/// Does what comes before an operation's turn on the engine, within its time limit, on the calling
/// thread.
fn before_the_engine<T>(op: &mut Op, work: impl FnOnce(&Control) -> Result<T>) -> Result<T> {
    process::check()?;
    let (clock, control) = (Instant::now(), Control::new(op.cancel.clone(), op.timeout));
    control.check()?;
    let done = work(&control)?;
    op.timeout = op.timeout.map(|limit| limit.saturating_sub(clock.elapsed()));
    Ok(done)
}

/// Calls `read` with the absolute path of a folder, and again where the folder was replaced by
/// another meanwhile: what is read is all of one.
fn settled<T>(path: &Path, control: &Control, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
    const ATTEMPTS: usize = 20;
    let mut folder = open_folder(path)?;
    for _ in 0..ATTEMPTS {
        control.check()?;
        let done = read(folder.path());
        let now = open_folder(folder.path())?;
        if now.identity()? == folder.identity()? {
            return done;
        }
        folder = now;
    }
    Err(Error::corrupt(folder.path(), "is replaced again and again while it is read"))
}

/// What is read of a folder before the weights are.
struct Parts {
    source: Source,
    tokenizer: Tokenizer,
    processor: Processor,
    prompts: PromptEncoder,
    eos: Vec<u32>,
    clock: Instant,
}

impl Parts {
    fn read(folder: &Path, control: &Control) -> Result<Parts> {
        let clock = Instant::now();
        settled(folder, control, |folder| {
            let source = Source::open(folder)?;
            control.check()?;
            let tokenizer_path = folder.join(TOKENIZER);
            let tokenizer = Tokenizer::from_file(&tokenizer_path)?;
            check_tokenizer(&tokenizer, &source.config).map_err(|what| Error::corrupt(&tokenizer_path, what))?;
            control.check()?;
            let processor_path = folder.join(PROCESSOR);
            let processor = Processor::from_file(&processor_path)?;
            check_processor(&processor, &source.config).map_err(|what| Error::corrupt(&processor_path, what))?;
            let eos = eos_ids(folder, &source.config)?;
            let prompts = PromptEncoder::new(&tokenizer, &eos)?;
            Ok(Parts { source, tokenizer, processor, prompts, eos, clock })
        })
    }
}

fn load(parts: Parts, options: &LoadOptions, device: &Device, progress: &dyn Fn(u64, u64) -> Result<()>) -> Result<Inner> {
    let Parts { source, tokenizer, processor, prompts, eos, clock } = parts;
    let device = options.device(device)?;
    let plan = |path: &str, columns| options.scheme(path, columns);
    let (mut vlm, vision_hash) = device.run(|| source.load(&device, options.memory_limit, &plan, progress))?;
    let schemes = schemes(&mut vlm);
    let info = ModelInfo {
        fingerprint: fingerprint(vision_hash, &source.config, &processor, &schemes),
        quantization: most_common(schemes.values().copied()),
        ..describe(&source, &device)?
    };
    log::info!("{} on {} in {:?}: {} bytes", source.folder.path().display(), device.backend.name(), clock.elapsed(), info.weight_bytes);
    let images = RefCell::new(ImageCache::new(options.image_cache));
    let memory = source.memory(device.arithmetic(), &|path, _| schemes.get(path).copied());
    let model = ChatModel { vlm, processor, tokenizer, prompts, eos, memory, images };
    Ok(Inner {
        info: Mutex::new(info),
        backend: device.backend,
        cpu_kernels: options.cpu_kernels,
        arithmetic: device.arithmetic(),
        source,
        vision_hash,
        loaded: Mutex::new(Some(model)),
        tokenizing: Arc::default(),
    })
}

fn unloaded() -> Error {
    Error::InvalidState("the model was unloaded; load it again".into())
}

/// The quantized matrices by their modules' paths.
fn schemes(vlm: &mut MoxinVLM) -> BTreeMap<String, Quantization> {
    let scheme = |(path, matrix): (String, &mut Matrix)| match matrix {
        Matrix::Quantized(matrix) => Some((path, matrix.quantization)),
        Matrix::Dense(_) => None,
    };
    vlm.matrices().into_iter().filter_map(scheme).collect()
}

/// All but the fingerprint.
fn describe(source: &Source, device: &Device) -> Result<ModelInfo> {
    let config = &source.config;
    Ok(ModelInfo {
        model_type: config.model_type.clone(),
        parameters: source.parameters,
        weight_bytes: source.bytes,
        context_length: config.text_config.max_position_embeddings,
        vocabulary: config.text_config.vocab_size,
        image_size: config.image_sizes[0],
        image_tokens: source.image_tokens()?,
        hidden_size: config.text_config.hidden_size,
        fingerprint: 0,
        backend: device.backend,
        dtype: device.dtype,
        quantization: source.stored.default,
    })
}

/// What makes the embeddings of a model unlike another's: how pictures come to be pixels, all weights but the language model's, and how those
/// are quantized.
fn fingerprint(vision_hash: blake3::Hash, config: &VLMConfig, processor: &Processor, schemes: &BTreeMap<String, Quantization>) -> u64 {
    let schemes: Vec<_> = schemes.iter().filter(|(path, _)| is_vision(path)).collect();
    let settings = format!("{processor:?} {config:?} {schemes:?}");
    let [a, b, c, d, e, f, g, h, ..] =
        *blake3::Hasher::new().update(vision_hash.as_bytes()).update(settings.as_bytes()).finalize().as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What the tokenizer puts around every text must be in the model's vocabulary.
fn check_tokenizer(tokenizer: &Tokenizer, config: &VLMConfig) -> Result<(), String> {
    let vocabulary = config.text_config.vocab_size;
    let around = tokenizer.encode("", true).map_err(|error| error.to_string())?;
    match around.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(format!("token {id} is put around every text; vocab_size in config.json is {vocabulary}")),
        None => Ok(()),
    }
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
