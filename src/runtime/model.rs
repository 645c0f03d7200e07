//! A loaded model.

use std::{
    path::Path,
    sync::{Arc, Mutex, Weak},
};

use super::{
    Embedding, LoadOptions, MemoryEstimate, ModelInfo, Op, Session, Stage, engine, info,
    load::{Loaded, Parts, TOKENIZER, before_the_engine, settled},
    lock,
    op::Control,
    tokenize::Places,
};
use crate::{
    Error, Result,
    checkpoint::{NewFolder, copy_texts},
    device::{Backend, CpuKernels, available_memory, clear_cache},
    generate::{Chat, ChatMedium, ChatModel, GenerationOptions, MediumContent},
    image::{Medium, Picture, Video},
    models::{
        Budget, Location, MediaKey, MediumSize, ModelFolder, ProcessorSettings, QuantizeFailure,
        QuantizeOptions, Sizes, text_only,
    },
    process,
};

/// A model in memory. Clones share it. The weights are freed when the last clone and session are
/// dropped, or by [`Model::unload`].
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    info: Mutex<ModelInfo>,
    backend: Backend,
    cpu_kernels: CpuKernels,
    /// The folder it was loaded from, with its files open.
    folder: Arc<ModelFolder>,
    /// A hash of all weights as stored, except for the language model's; part of the fingerprint.
    vision_hash: blake3::Hash,
    /// Whether ended conversations are kept for others.
    pools: bool,
    /// Used on the engine thread only.
    loaded: Mutex<Option<ChatModel>>,
    tokenizing: Arc<Places>,
}

impl Inner {
    fn new(
        Loaded {
            chat,
            vision_hash,
            info,
        }: Loaded,
        backend: Backend,
        cpu_kernels: CpuKernels,
        pools: bool,
    ) -> Inner {
        let (folder, info) = (chat.folder.clone(), Mutex::new(info));
        Inner {
            info,
            backend,
            cpu_kernels,
            folder,
            vision_hash,
            pools,
            loaded: Mutex::new(Some(chat)),
            tokenizing: Arc::default(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let loaded = self
            .loaded
            .get_mut()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        engine::dispose(loaded);
    }
}

/// The models in memory, for [`trim_memory`].
static MODELS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Model {
    /// Loads a Hugging Face folder: `config.json`, the weights, `tokenizer.json`,
    /// `preprocessor_config.json` if the model takes pictures and, if present,
    /// `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::CorruptModel`] and [`Error::UnsupportedModel`] name the file
    /// and the field or tensor; [`Error::OutOfMemory`] before any weight is read, if the weights
    /// need more memory than is allowed.
    pub fn load(folder: impl AsRef<Path>, options: LoadOptions, mut op: Op) -> Result<Model> {
        options.check()?;
        // Everything except the weights is read here: a slow disk or a special file must not block
        // the engine.
        let parts = before_the_engine(&mut op, |control| {
            Parts::read(folder.as_ref(), &options, control)
        })?;
        let model = engine::run(op, move |reporter| {
            engine::on_device(options.backend, |device| {
                let device = options.device(device)?;
                let loaded = parts.load(&options, &device, &|done, total| {
                    reporter.report(Stage::Load, fraction(done, total))
                })?;
                let pools = options.prefix_cache > 0;
                Ok(Inner::new(
                    loaded,
                    device.backend,
                    options.cpu_kernels,
                    pools,
                ))
            })
        })?;
        let model = Arc::new(model);
        let mut models = lock(&MODELS);
        models.retain(|model| model.strong_count() > 0);
        models.push(Arc::downgrade(&model));
        Ok(Model(model))
    }

    /// Describes the model in a folder without loading it, from `config.json` and the headers of
    /// the weight files.
    pub fn inspect(folder: impl AsRef<Path>) -> Result<ModelInfo> {
        let folder = settled(folder.as_ref(), &Control::default(), ModelFolder::open)?;
        engine::turn(move || {
            engine::on_device(Backend::Auto, |device| info::describe(&folder, device))
        })
    }

    /// Estimates the memory of the model in a folder, loaded with `options` and used in one session
    /// with `generation`, without loading it.
    pub fn estimate(
        folder: impl AsRef<Path>,
        options: &LoadOptions,
        generation: &GenerationOptions,
    ) -> Result<MemoryEstimate> {
        generation.validate()?;
        options.check()?;
        let folder = settled(folder.as_ref(), &Control::default(), ModelFolder::open)?;
        let for_device = options.clone();
        let arithmetic = engine::turn(move || {
            engine::on_device(for_device.backend, |device| {
                Ok(for_device.device(device)?.arithmetic())
            })
        })?;
        let scheme = |path: &str, columns| options.scheme(path, columns);
        let needs = folder.memory(arithmetic, &scheme);
        let positions = generation.context(&folder.blueprint.limits());
        let picture = folder.largest_picture(positions, generation.image_budget)?;
        let sizes = Sizes::new(&folder.checkpoint, arithmetic, &scheme);
        let vision = picture.as_ref().map_or(0, |(size, plan)| {
            sizes.vision(folder.blueprint.as_ref(), *size, plan)
        });
        let plan = picture.as_ref().map(|(_, plan)| plan);
        let chunk = folder.longest_pass(generation.prefill_chunk, positions, plan);
        Ok(MemoryEstimate {
            weights: needs.weights,
            kv_per_token: needs.kv_per_token,
            kv_total: needs.cache(positions),
            load_peak: needs.load,
            vision_peak: vision,
            step_peak: needs.step(chunk, positions),
            total: needs.total(vision, positions, chunk),
            available: available_memory()?,
        })
    }

    /// Returns the number of positions that a picture of this size takes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the model cannot take the size or the budget, or reads text
    /// only.
    pub fn image_tokens(&self, width: usize, height: usize, budget: Budget) -> Result<usize> {
        Ok(self
            .0
            .folder
            .plan(MediumSize { width, height }, budget)?
            .features())
    }

    /// Returns the boxes and points in an answer about one picture, in pixels of that picture.
    /// `width`, `height` and `budget` are those of the picture in the conversation. Places outside
    /// the picture are moved to its edge; the last box of an answer that was cut off is left out.
    ///
    /// The models write them in different forms: PaliGemma as `<loc0123>` tokens if the prompt is
    /// `detect cat ; dog`, Qwen-VL as pairs or as JSON if the prompt asks for it.
    ///
    /// ```no_run
    /// # use moxin_vlm::{Budget, LoadOptions, Model, Op, Place};
    /// # fn main() -> moxin_vlm::Result<()> {
    /// let model = Model::load("models/paligemma", LoadOptions::default(), Op::default())?;
    /// let answer = "<loc0256><loc0512><loc0512><loc0768> cat";
    /// for location in model.locate(answer, 1920, 1080, Budget::default())? {
    ///     if let Place::Box { left, top, right, bottom } = location.place {
    ///         println!("{}: {left}, {top} to {right}, {bottom}", location.label);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidState`] if the model was not trained to write boxes or points:
    /// [`ModelInfo::grounding`]; [`Error::InvalidArgument`] if it cannot take the size or the
    /// budget.
    pub fn locate(
        &self,
        answer: &str,
        width: usize,
        height: usize,
        budget: Budget,
    ) -> Result<Vec<Location>> {
        let folder = &self.0.folder;
        let Some(grounding) = folder.blueprint.grounding() else {
            let name = self.info().model_type;
            return Err(Error::InvalidState(format!(
                "a model of type {name} writes no boxes or points"
            )));
        };
        let plan = folder.plan(MediumSize { width, height }, budget)?;
        Ok(grounding.locate(answer, [width, height], plan.pixels))
    }

    /// Returns the properties of the model.
    pub fn info(&self) -> ModelInfo {
        lock(&self.0.info).clone()
    }

    /// Returns a field of config.json by its path, such as `text_config.num_hidden_layers` or
    /// `image_sizes.0`: a string without quotes, anything else as JSON.
    pub fn metadata(&self, path: &str) -> Option<String> {
        let pointer = format!("/{}", path.replace('.', "/"));
        match self.0.folder.files.config.pointer(&pointer)? {
            serde_json::Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Runs the vision encoders on a picture, unless its features are in the cache. The embedding
    /// can take the picture's place in any session of this model, even after the model is loaded
    /// again.
    pub fn encode_image(&self, picture: &Picture, op: Op) -> Result<Embedding> {
        self.encode_image_within(picture, Budget::default(), op)
    }

    /// Encodes an image as [`Model::encode_image`] does, within a budget.
    ///
    /// # Errors
    /// Also [`Error::InvalidArgument`] if the model cannot take the picture or the budget.
    pub fn encode_image_within(
        &self,
        picture: &Picture,
        budget: Budget,
        op: Op,
    ) -> Result<Embedding> {
        self.encode(picture.clone().into(), budget, op)
    }

    /// Encodes a video as [`Model::encode_image_within`] does an image.
    ///
    /// # Errors
    /// Also [`Error::InvalidArgument`] if the model reads no videos.
    pub fn encode_video(&self, video: &Video, budget: Budget, op: Op) -> Result<Embedding> {
        self.encode(video.clone().into(), budget, op)
    }

    fn encode(&self, medium: Medium, budget: Budget, op: Op) -> Result<Embedding> {
        let plan = self.0.folder.plan_medium(&medium, budget)?;
        let hash = medium.hash();
        let key = MediaKey::new(hash, &plan);
        let model = self.clone();
        let fingerprint = self.info().fingerprint;
        engine::run(op, move |reporter| {
            reporter.report(Stage::Encode, 0.0)?;
            let progress = |part| reporter.report(Stage::Encode, 0.99 * part);
            let (features, _) =
                model.with(|loaded| loaded.encode(&medium, &plan, key, &progress))?;
            reporter.report(Stage::Encode, 1.0)?;
            Ok(Embedding::new(fingerprint, hash, key, plan, features))
        })
    }

    /// Prepares a picture or a video for a conversation.
    pub(super) fn chat_medium(&self, medium: Medium, budget: Budget) -> Result<ChatMedium> {
        let plan = self.0.folder.plan_medium(&medium, budget)?;
        let key = MediaKey::new(medium.hash(), &plan);
        let content = MediumContent::Medium(medium);
        Ok(ChatMedium { plan, key, content })
    }

    /// Starts a conversation.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the option; [`Error::OutOfMemory`] if a conversation that
    /// fills its context does not fit into memory.
    pub fn session(&self, options: GenerationOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// Quantizes the matrices that `options` select and that are not yet quantized, one at a time:
    /// the peak is the model plus one matrix. Sessions continue, and keep what they have computed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if MLX does not have the scheme; [`Error::InvalidState`] if
    /// nothing is left to quantize; [`Error::Cancelled`], unless the work is already complete; and
    /// others. On error the model stays as it was: replaced matrices are read again from its
    /// folder. If a file there has changed, the old matrices are kept until all are done, or the
    /// call fails with [`Error::OutOfMemory`] if they do not fit.
    pub fn quantize(&self, options: QuantizeOptions, op: Op) -> Result<()> {
        options.check()?;
        let model = self.clone();
        engine::run_to_completion(op, move |reporter| {
            let inner = &*model.0;
            let mut loaded = lock(&inner.loaded);
            let chat = loaded.as_mut().ok_or_else(unloaded)?;
            let progress = |part| reporter.report(Stage::Quantize, part);
            let outcome = engine::on_device(inner.backend, |device| {
                let device = device.clone().with_dtype(chat.arithmetic.dtype)?;
                Ok(chat
                    .weights
                    .quantize(&inner.folder, &options, &device, &progress))
            })?;
            let outcome = match outcome {
                Ok(()) => Ok(()),
                Err(QuantizeFailure::Undone(error)) => Err(error),
                Err(QuantizeFailure::Lost(error)) => {
                    *loaded = None;
                    return Err(error);
                }
            };
            chat.schemes = chat.weights.schemes();
            chat.memory = inner
                .folder
                .memory(chat.arithmetic, &|path, _| chat.schemes.get(path).copied());
            // Earlier keys and values were computed with other weights.
            chat.revision += 1;
            chat.prefixes.borrow_mut().clear();
            // Cached pictures stay valid only if their encoders were not quantized.
            if options.vision || !options.modules.is_empty() {
                chat.images.borrow_mut().clear();
            }
            let mut info = lock(&inner.info);
            *info = info
                .clone()
                .with_schemes(&inner.folder, inner.vision_hash, &chat.schemes);
            // The work is complete, even if free buffers cannot be released.
            let _ = clear_cache();
            outcome
        })
    }

    /// Saves the model in its current form to a folder that [`Model::load`] can read, in the format
    /// of mlx-community: the tensor names of the original folder, `.scales` and `.biases` next to
    /// quantized weights, `quantization` in `config.json`. Weights that are not quantized, or not
    /// used, are copied exactly.
    ///
    /// Of the other files, only known ones are copied: tokenizer, processor and generation
    /// settings, chat templates, README.md and licenses. A link is followed if it leads to a file
    /// in the same folder or, in a snapshot of the Hugging Face cache, into that cache.
    ///
    /// With `overwrite`, an empty folder or a model folder is replaced, with all its files; a model
    /// folder has only files, among them a config.json with a `model_type`. At every moment there
    /// is a complete model at the path, even if the process is killed; in that case a hidden folder
    /// whose name starts with `.moxin-vlm-` may be left next to it. Only if the file system cannot
    /// exchange two folders is there a short moment without one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the path exists and `overwrite` is false, if it is not such a
    /// folder, if it is or contains the folder that the model was loaded from, or if a file to be
    /// copied is a link to elsewhere; [`Error::NotFound`] if the folder that the model was loaded
    /// from is gone; [`Error::InvalidState`] if the folder to be replaced changes in the meantime;
    /// [`Error::Io`]. On error nothing new is left behind, and an existing folder stays as it was.
    pub fn save(&self, folder: impl AsRef<Path>, overwrite: bool, mut op: Op) -> Result<()> {
        let source = &self.0.folder.files;
        let processor = source.processor.as_ref();
        let needed: Vec<&str> = [TOKENIZER]
            .into_iter()
            .chain(processor.map(ProcessorSettings::file_name))
            .collect();
        let folder = before_the_engine(&mut op, |_| {
            let folder = NewFolder::beside(folder.as_ref(), overwrite, &source.folder)?;
            copy_texts(&source.folder, folder.folder(), &needed)?;
            Ok(folder)
        })?;
        let (model, part) = (self.clone(), folder.folder().try_clone()?);
        engine::run(op, move |reporter| {
            let inner = &*model.0;
            let mut loaded = lock(&inner.loaded);
            let chat = loaded.as_mut().ok_or_else(unloaded)?;
            inner.folder.save(&mut chat.weights, &part, &|done, total| {
                reporter.report(Stage::Save, fraction(done, total))
            })
        })?;
        folder.publish()
    }

    /// Releases the weights while clones and sessions of the model stay. Calls that need the
    /// weights then fail with [`Error::InvalidState`].
    pub fn unload(&self) -> Result<()> {
        let model = self.clone();
        engine::turn(move || {
            drop(lock(&model.0.loaded).take());
            clear_cache()
        })
    }

    /// Prepares an embedding for a conversation, if it is this model's. On the engine thread only.
    pub(super) fn chat_embedding(&self, embedding: &Embedding) -> Result<ChatMedium> {
        let info = self.info();
        if info.max_images == 0 {
            return Err(text_only());
        }
        if embedding.model != info.fingerprint {
            return Err(Error::InvalidArgument(
                "the embedding was made by another model; encode the image with this one".into(),
            ));
        }
        let content = MediumContent::Features(embedding.features()?);
        Ok(ChatMedium {
            plan: embedding.plan.clone(),
            key: embedding.key,
            content,
        })
    }

    /// Keeps what an ended conversation has read for others, if the model was loaded so, and drops
    /// the rest, without waiting.
    pub(super) fn retire(&self, chat: Chat) {
        if !self.0.pools {
            return engine::dispose(chat);
        }
        engine::hand_over((self.clone(), chat), |(model, chat)| {
            if let Some(loaded) = lock(&model.0.loaded).as_ref() {
                chat.retire(loaded);
            }
        });
    }

    /// Returns the threads that tokenize prompts of this model.
    pub(super) fn tokenizing(&self) -> &Arc<Places> {
        &self.0.tokenizing
    }

    /// Calls `f` with the weights; its operations run on the model's device. On the engine thread
    /// only.
    pub(super) fn with<T>(&self, f: impl FnOnce(&ChatModel) -> Result<T>) -> Result<T> {
        let loaded = lock(&self.0.loaded);
        let loaded = loaded.as_ref().ok_or_else(unloaded)?;
        engine::on_device(self.0.backend, |device| {
            device
                .clone()
                .with_cpu_kernels(self.0.cpu_kernels)
                .run(|| f(loaded))
        })
    }
}

/// Releases memory kept for reuse, without blocking: the features of cached pictures, ended
/// conversations, and MLX's free buffers. Call it when the system reports memory pressure.
pub fn trim_memory() {
    if process::is_forked() {
        return;
    }
    // The models are registered, not their weights, which are used on the engine thread only.
    let models: Vec<_> = lock(&MODELS).iter().filter_map(Weak::upgrade).collect();
    engine::post(move || {
        for model in &models {
            if let Some(loaded) = lock(&model.loaded).as_ref() {
                loaded.images.borrow_mut().clear();
                loaded.prefixes.borrow_mut().clear();
            }
        }
        // Nobody waits for this, and the buffers can be released later.
        let _ = clear_cache();
        drop(models);
    });
}

fn unloaded() -> Error {
    Error::InvalidState("the model was unloaded; load it again".into())
}

fn fraction(done: u64, total: u64) -> f32 {
    if total == 0 {
        1.0
    } else {
        (done as f64 / total as f64) as f32
    }
}
