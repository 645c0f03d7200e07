//! Loads a model from a folder.

use std::{cell::RefCell, path::Path, sync::Arc, time::Instant};

use serde::Deserialize;

use super::{Op, info, op::Control};
use crate::{
    Error, Result,
    checkpoint::{Quantization, open_folder, read_json},
    device::{Backend, CpuKernels, Device, Dtype, clear_cache},
    generate::{ChatModel, ImageCache, PrefixPool, PromptWriter},
    models::{ModelFolder, PromptFormat, QuantizeOptions, TokenIds},
    process,
    text::{Template, Tokenizer},
};

/// The file that a model needs in addition to its configuration, its weights and its image
/// processor's settings.
pub const TOKENIZER: &str = "tokenizer.json";

/// Options for loading a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The device to run on.
    pub backend: Backend,
    /// The dtype of activations: float16, bfloat16 or float32. `None`: the backend's default,
    /// [`Device::dtype`].
    pub dtype: Option<Dtype>,
    /// The maximum number of bytes for loading. `None`: the available memory.
    pub memory_limit: Option<u64>,
    /// Quantizes matrices as they are read, so that the dense ones are never all in memory. `None`:
    /// they stay as stored.
    pub quantize: Option<QuantizeOptions>,
    /// The kernels used on the CPU.
    pub cpu_kernels: CpuKernels,
    /// The size in bytes of the cache of encoded pictures. A picture takes 4 MiB in the largest
    /// case, Moxin-7B in float32.
    pub image_cache: u64,
    /// The size in bytes of the pool of ended conversations, by their keys and values. When a session
    /// is dropped, its conversation stays there, and a new session that starts with the same prompt
    /// reads only the rest. Conversations are removed when other work needs the memory.
    pub prefix_cache: u64,
    /// A Jinja chat template to use instead of the folder's. `None`: the folder's.
    pub chat_template: Option<String>,
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
            prefix_cache: 0,
            chat_template: None,
        }
    }
}

impl LoadOptions {
    pub(super) fn device(&self, device: &Device) -> Result<Device> {
        let device = device.clone().with_cpu_kernels(self.cpu_kernels);
        match self.dtype {
            Some(dtype) => device.with_dtype(dtype),
            None => Ok(device),
        }
    }

    pub(super) fn scheme(&self, path: &str, columns: usize) -> Option<Quantization> {
        self.quantize.as_ref()?.scheme(path, columns)
    }

    /// Returns the folder's template, or the one that replaces it.
    fn template(&self, path: &Path, folder: &ModelFolder) -> Result<Option<Template>> {
        let source = self.chat_template.as_deref();
        if source.is_some() && matches!(folder.blueprint.format(), PromptFormat::Plain { .. }) {
            let what = format!(
                "{} models have no chat template that could be replaced",
                folder.model_type
            );
            return Err(Error::InvalidArgument(what));
        }
        Template::from_folder(path, source)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.quantize
            .as_ref()
            .map_or(Ok(()), QuantizeOptions::check)
    }
}

/// The fields that are read from `generation_config.json`.
#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

/// Does the work before an operation's turn on the engine, on the calling thread and within the
/// operation's time limit.
pub fn before_the_engine<T>(op: &mut Op, work: impl FnOnce(&Control) -> Result<T>) -> Result<T> {
    process::check()?;
    let (clock, control) = (Instant::now(), Control::new(op.cancel.clone(), op.timeout));
    control.check()?;
    let done = work(&control)?;
    op.timeout = op
        .timeout
        .map(|limit| limit.saturating_sub(clock.elapsed()));
    Ok(done)
}

/// Calls `read` with the absolute path of a folder, and again if the folder was replaced in the
/// meantime, so that everything is read from one folder.
pub fn settled<T>(path: &Path, control: &Control, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
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
    Err(Error::corrupt(
        folder.path(),
        "is replaced again and again while it is read",
    ))
}

/// Everything read from a folder except the weights.
pub struct Parts {
    folder: ModelFolder,
    tokenizer: Tokenizer,
    writer: PromptWriter,
    eos: Vec<u32>,
    clock: Instant,
}

/// A loaded model.
pub struct Loaded {
    /// The model.
    pub chat: ChatModel,
    /// A hash of all weights as stored, except for the language model's.
    pub vision_hash: blake3::Hash,
    /// Its properties.
    pub info: info::ModelInfo,
}

impl Parts {
    /// Reads everything in a folder except the weights.
    pub fn read(folder: &Path, options: &LoadOptions, control: &Control) -> Result<Parts> {
        let clock = Instant::now();
        settled(folder, control, |path| {
            let folder = ModelFolder::open(path)?;
            control.check()?;
            let tokenizer_path = path.join(TOKENIZER);
            let tokenizer = Tokenizer::from_file(&tokenizer_path)?;
            let vocabulary = folder.blueprint.decoder().vocab_size;
            check_tokenizer(&tokenizer, vocabulary)
                .map_err(|what| Error::corrupt(&tokenizer_path, what))?;
            control.check()?;
            let eos = match generation_config(path)?.and_then(|generation| generation.eos_token_id)
            {
                Some(ids) => ids.to_vec(),
                None => folder.blueprint.limits().end_tokens,
            };
            let writer = PromptWriter::new(
                folder.blueprint.clone(),
                &tokenizer,
                options.template(path, &folder)?,
                &eos,
            )?;
            Ok(Parts {
                folder,
                tokenizer,
                writer,
                eos,
                clock,
            })
        })
    }

    /// Loads the weights. On the engine thread only.
    pub fn load(
        self,
        options: &LoadOptions,
        device: &Device,
        progress: &dyn Fn(u64, u64) -> Result<()>,
    ) -> Result<Loaded> {
        let Parts {
            folder,
            tokenizer,
            writer,
            eos,
            clock,
        } = self;
        let plan = |path: &str, columns| options.scheme(path, columns);
        let (mut weights, vision_hash) =
            device.run(|| folder.load(device, options.memory_limit, &plan, progress))?;
        // The buffers that tensors were read into have sizes that nothing else needs.
        clear_cache()?;
        let schemes = weights.schemes();
        let info = info::describe(&folder, device)?.with_schemes(&folder, vision_hash, &schemes);
        log::info!(
            "{} on {} in {:?}: {} bytes",
            folder.path().display(),
            device.backend.name(),
            clock.elapsed(),
            info.weight_bytes
        );
        let memory = folder.memory(device.arithmetic(), &|path, _| schemes.get(path).copied());
        let images = RefCell::new(ImageCache::new(options.image_cache));
        let prefixes = RefCell::new(PrefixPool::new(options.prefix_cache));
        let (arithmetic, folder) = (device.arithmetic(), Arc::new(folder));
        let chat = ChatModel {
            weights,
            folder,
            tokenizer,
            writer,
            eos,
            memory,
            arithmetic,
            schemes,
            images,
            prefixes,
            revision: 0,
        };
        Ok(Loaded {
            chat,
            vision_hash,
            info,
        })
    }
}

/// Checks that the tokens which the tokenizer adds around every text are in the model's vocabulary.
fn check_tokenizer(tokenizer: &Tokenizer, vocabulary: usize) -> Result<(), String> {
    let around = tokenizer
        .encode("", true)
        .map_err(|error| error.to_string())?;
    match around.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(format!(
            "the tokenizer adds token {id} to every text; vocab_size in config.json is \
                {vocabulary}"
        )),
        None => Ok(()),
    }
}

fn generation_config(folder: &Path) -> Result<Option<GenerationConfig>> {
    match read_json(
        &folder.join("generation_config.json"),
        "the model's generation defaults",
    ) {
        Ok(generation) => Ok(Some(generation)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
