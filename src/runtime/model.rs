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
    generate::{ChatImage, ChatModel, GenerationOptions, ImageContent},
    image::Picture,
    models::{
        Budget, MediaKey, MediaPlan, MediumSize, ModelFolder, QuantizeFailure, QuantizeOptions,
        Sizes,
    },
    process,
};

/// A model in memory. Clones share it; the weights go when the last clone, session included, is
/// dropped, or with [`Model::unload`].
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    info: Mutex<ModelInfo>,
    backend: Backend,
    cpu_kernels: CpuKernels,
    /// The folder that it comes from, its files open.
    folder: Arc<ModelFolder>,
    /// A hash of all its weights but the language model's, as they are stored, for the fingerprint.
    vision_hash: blake3::Hash,
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
    ) -> Inner {
        let (folder, info) = (chat.folder.clone(), Mutex::new(info));
        Inner {
            info,
            backend,
            cpu_kernels,
            folder,
            vision_hash,
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

/// Models that are in memory, for [`trim_memory`].
static MODELS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Model {
    /// Loads a Hugging Face folder: `config.json`, the weights, `tokenizer.json`,
    /// `preprocessor_config.json` and, where there is one, `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::CorruptModel`] and [`Error::UnsupportedModel`] name the file
    /// and the field or tensor; [`Error::OutOfMemory`] where the weights take more than is allowed,
    /// before any is read.
    pub fn load(folder: impl AsRef<Path>, options: LoadOptions, mut op: Op) -> Result<Model> {
        options.check()?;
        // All but the weights here: a slow disk, or a file that is none, must not stop the engine.
        let parts = before_the_engine(&mut op, |control| {
            Parts::read(folder.as_ref(), &options, control)
        })?;
        let model = engine::run(op, move |reporter| {
            engine::on_device(options.backend, |device| {
                let device = options.device(device)?;
                let loaded = parts.load(&options, &device, &|done, total| {
                    reporter.report(
                        Stage::Load,
                        if total == 0 {
                            1.0
                        } else {
                            (done as f64 / total as f64) as f32
                        },
                    )
                })?;
                Ok(Inner::new(loaded, device.backend, options.cpu_kernels))
            })
        })?;
        let model = Arc::new(model);
        let mut models = lock(&MODELS);
        models.retain(|model| model.strong_count() > 0);
        models.push(Arc::downgrade(&model));
        Ok(Model(model))
    }

    /// What the model in a folder is, without loading it: reads `config.json` and the headers of
    /// the weights.
    pub fn inspect(folder: impl AsRef<Path>) -> Result<ModelInfo> {
        let folder = settled(folder.as_ref(), &Control::default(), ModelFolder::open)?;
        engine::turn(move || {
            engine::on_device(Backend::Auto, |device| info::describe(&folder, device))
        })
    }

    /// What the model in a folder will take, without loading it, loaded with `options` and talked
    /// to with `generation`.
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
        let (size, plan) = folder.largest_picture(positions)?;
        let vision = Sizes::new(&folder.checkpoint, arithmetic, &scheme).vision(
            folder.blueprint.as_ref(),
            size,
            &plan,
        );
        let chunk = folder.longest_pass(generation.prefill_chunk, positions);
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

    /// Positions that a picture of this size takes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size or a budget that the model cannot take.
    pub fn image_tokens(&self, width: usize, height: usize, budget: Budget) -> Result<usize> {
        Ok(self
            .0
            .folder
            .blueprint
            .plan(MediumSize { width, height }, budget)?
            .features())
    }

    /// What the model is.
    pub fn info(&self) -> ModelInfo {
        lock(&self.0.info).clone()
    }

    /// A field of config.json by its path, such as `text_config.num_hidden_layers` or
    /// `image_sizes.0`: texts as they are, all else as JSON.
    pub fn metadata(&self, path: &str) -> Option<String> {
        let pointer = format!("/{}", path.replace('.', "/"));
        match self.0.folder.files.config.pointer(&pointer)? {
            serde_json::Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Runs the vision encoders on a picture, unless its features are in the cache. The embedding
    /// can stand for the picture in any session of this model, also when it was loaded anew.
    pub fn encode_image(&self, picture: &Picture, op: Op) -> Result<Embedding> {
        self.encode_image_within(picture, Budget::default(), op)
    }

    /// Does what [`Model::encode_image`] does, with a budget of pixels where the model takes
    /// pictures of any size.
    ///
    /// # Errors
    /// Also [`Error::InvalidArgument`] for a picture or a budget that the model cannot take.
    pub fn encode_image_within(
        &self,
        picture: &Picture,
        budget: Budget,
        op: Op,
    ) -> Result<Embedding> {
        let (plan, key) = self.plan(picture, budget)?;
        let (model, picture) = (self.clone(), picture.clone());
        let fingerprint = self.info().fingerprint;
        engine::run(op, move |reporter| {
            reporter.report(Stage::Encode, 0.0)?;
            let progress = |part| reporter.report(Stage::Encode, 0.99 * part);
            let (features, _) =
                model.with(|loaded| loaded.encode(&picture, &plan, key, &progress))?;
            reporter.report(Stage::Encode, 1.0)?;
            Ok(Embedding::new(
                fingerprint,
                picture.hash(),
                key,
                plan,
                features,
            ))
        })
    }

    /// What becomes of a picture.
    fn plan(&self, picture: &Picture, budget: Budget) -> Result<(MediaPlan, MediaKey)> {
        let size = MediumSize {
            width: picture.width() as usize,
            height: picture.height() as usize,
        };
        let plan = self.0.folder.blueprint.plan(size, budget)?;
        let key = MediaKey::new(picture.hash(), &plan);
        Ok((plan, key))
    }

    /// A picture as conversations hold it.
    pub(super) fn chat_image(&self, picture: Picture, budget: Budget) -> Result<ChatImage> {
        let (plan, key) = self.plan(&picture, budget)?;
        Ok(ChatImage {
            plan,
            key,
            content: ImageContent::Picture(picture),
        })
    }

    /// Begins a conversation.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the option; [`Error::OutOfMemory`] where a conversation
    /// that fills its context does not fit.
    pub fn session(&self, options: GenerationOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// Quantizes the matrices that `options` name and that are not yet quantized, one after the
    /// other: it never takes more than the model and a matrix. Conversations go on; what they have
    /// computed stays.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a scheme that MLX does not have; [`Error::InvalidState`]
    /// where nothing is left to quantize; [`Error::Cancelled`], unless it comes too late, and
    /// others. An error leaves the model as it was: what was replaced is read again from the folder
    /// it came from. Where a file there has changed since, the old matrices are kept until all are
    /// done, and [`Error::OutOfMemory`] says so where they do not fit.
    pub fn quantize(&self, options: QuantizeOptions, op: Op) -> Result<()> {
        options.check()?;
        let model = self.clone();
        engine::run_to_its_end(op, move |reporter| {
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
            // Pictures encoded before are as they were only where their encoders are.
            if options.vision || !options.modules.is_empty() {
                chat.images.borrow_mut().clear();
            }
            let mut info = lock(&inner.info);
            *info = info
                .clone()
                .with_schemes(&inner.folder, inner.vision_hash, &chat.schemes);
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
        let source = &self.0.folder.files;
        let needed = [TOKENIZER, source.processor.file_name()];
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
                reporter.report(
                    Stage::Save,
                    if total == 0 {
                        1.0
                    } else {
                        (done as f64 / total as f64) as f32
                    },
                )
            })
        })?;
        folder.publish()
    }

    /// Gives the weights back, though clones and sessions of the model remain. What would compute
    /// with them fails then with [`Error::InvalidState`].
    pub fn unload(&self) -> Result<()> {
        let model = self.clone();
        engine::turn(move || {
            drop(lock(&model.0.loaded).take());
            clear_cache()
        })
    }

    /// An embedding as conversations hold it, where it is this model's. On the engine thread only.
    pub(super) fn chat_embedding(&self, embedding: &Embedding) -> Result<ChatImage> {
        let info = self.info();
        if embedding.model != info.fingerprint {
            return Err(Error::InvalidArgument(
                "the embedding was made by another model; encode the image with this one".into(),
            ));
        }
        let content = ImageContent::Features(embedding.features()?);
        Ok(ChatImage {
            plan: embedding.plan.clone(),
            key: embedding.key,
            content,
        })
    }

    /// Where prompts of this model are made tokens of.
    pub(super) fn tokenizing(&self) -> &Arc<Places> {
        &self.0.tokenizing
    }

    /// Calls `f` with the weights, its operations going to the model's device. On the engine thread
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

/// Gives back what is kept for reuse, without waiting: features of pictures seen before, and MLX's
/// free buffers. For when the system says that memory is short.
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

fn unloaded() -> Error {
    Error::InvalidState("the model was unloaded; load it again".into())
}
