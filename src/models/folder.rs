//! An open model folder: everything known about a model before its weights are read.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    ARCHITECTURES, Blueprint, Budget, ClipSize, LoadedModel, MediaPlan, MediumSize, MemoryNeeds,
    PlacedMedium, ProcessorSettings, is_vision, model_types,
};
use crate::{
    Error, Result,
    checkpoint::{
        Checkpoint, LoadContext, Plan, QuantizationConfig, Weights, open_folder, parse_file,
    },
    device::{Arithmetic, Device, require_within},
    file::{self, Folder},
    image::{Medium, Pixels},
    nn::{Decoder, Matrix},
};

/// The parts of a folder that an architecture reads.
#[derive(Debug)]
pub struct Files {
    /// The folder.
    pub folder: Folder,
    /// The path of config.json, for error messages.
    pub config_path: PathBuf,
    /// The content of config.json.
    pub config: Value,
    /// The image processor's settings, if there are any.
    pub processor: Option<ProcessorSettings>,
    /// The weights under their stored names.
    pub checkpoint: Checkpoint,
}

impl Files {
    /// Returns the image processor's settings.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the folder has none.
    pub fn processor(&self) -> Result<&ProcessorSettings> {
        let missing = || ProcessorSettings::missing(self.folder.path());
        self.processor.as_ref().ok_or_else(missing)
    }

    /// Returns whether the embedding is also the output head: config.json is unreliable, since
    /// transformers 4.57 drops the field for some models.
    pub fn ties_head(&self) -> bool {
        let is_head = |name: &str| name.ends_with("lm_head.weight");
        !self.checkpoint.tensor_names().any(is_head)
    }
}

/// A folder whose configuration and weight headers were read.
#[derive(Debug)]
pub struct ModelFolder {
    /// Its content.
    pub files: Files,
    /// Its model.
    pub blueprint: Arc<dyn Blueprint>,
    /// `model_type` in config.json.
    pub model_type: String,
    /// The quantization schemes of the stored matrices.
    pub stored: QuantizationConfig,
    /// The weights under the names that the modules use, without those that the forward pass never
    /// reads.
    pub checkpoint: Checkpoint,
    /// The number of values in all tensors of the folder.
    pub parameters: u64,
    /// The size of all tensors in bytes.
    pub bytes: u64,
}

impl ModelFolder {
    /// Reads and checks the configuration, the image processor's settings and the weight headers.
    ///
    /// # Errors
    /// The error names the file and the field or tensor; see [`Error`].
    pub fn open(folder: &Path) -> Result<ModelFolder> {
        let opened = open_folder(folder)?;
        let config_path = folder.join("config.json");
        let bytes = file::read_json(
            &config_path,
            "the model's configuration",
            file::MAX_JSON_BYTES,
        )?;
        let config: Value = parse_file(&config_path, &bytes)?;
        let model_type = config
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let architecture = ARCHITECTURES
            .iter()
            .find(|architecture| architecture.model_types.contains(&model_type.as_str()));
        let architecture = architecture.ok_or_else(|| unknown(&config_path, &config))?;
        let stored = QuantizationConfig::from_config(&config_path, &config)?;
        let checkpoint = Checkpoint::open(folder)?;
        let processor = ProcessorSettings::open(folder)?;
        let files = Files {
            folder: opened,
            config_path,
            config,
            processor,
            checkpoint,
        };
        let blueprint: Arc<dyn Blueprint> = (architecture.open)(&files)?.into();
        let (parameters, bytes) = (
            parameters(&files.checkpoint, &stored),
            files.checkpoint.total_bytes(),
        );
        let checkpoint = files
            .checkpoint
            .clone()
            .rename(|name| blueprint.canonical_name(name))?;
        check_layers(&checkpoint, blueprint.decoder().layers)
            .map_err(|what| Error::corrupt(&files.config_path, what))?;
        Ok(ModelFolder {
            files,
            blueprint,
            model_type,
            stored,
            checkpoint,
            parameters,
            bytes,
        })
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        self.files.folder.path()
    }

    /// Estimates the model's memory for this arithmetic, with its matrices quantized as `plan`
    /// says.
    pub fn memory<'a>(&'a self, arithmetic: Arithmetic, plan: Plan<'a>) -> MemoryNeeds {
        MemoryNeeds::estimate(&self.checkpoint, self.blueprint.decoder(), arithmetic, plan)
    }

    /// Plans a picture of this size within a budget.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the model cannot take the size or the budget.
    pub fn plan(&self, size: MediumSize, budget: Budget) -> Result<MediaPlan> {
        let plan = self.blueprint.plan(size, budget)?;
        let MediumSize { width, height } = size;
        let what = format_args!("a picture of {width} x {height} pixels");
        check_tokens(budget, &plan, what, "")?;
        Ok(plan)
    }

    /// Plans a picture or a video within a budget.
    ///
    /// # Errors
    /// As for [`ModelFolder::plan`]; also if the model reads no videos.
    pub fn plan_medium(&self, medium: &Medium, budget: Budget) -> Result<MediaPlan> {
        let size = medium_size(medium);
        let Medium::Video(video) = medium else {
            return self.plan(size, budget);
        };
        let clip = ClipSize {
            frame: size,
            times: video.times(),
            fps: video.fps(),
        };
        let plan = self.blueprint.plan_video(clip, budget)?;
        let (frames, MediumSize { width, height }) = (video.frames().len(), size);
        let what = format_args!("a video of {frames} frames of {width} x {height} pixels");
        check_tokens(budget, &plan, what, "; sample fewer frames")?;
        Ok(plan)
    }

    /// Makes the pixels of a picture or a video according to its plan.
    pub fn preprocess(&self, medium: &Medium, plan: &MediaPlan) -> Result<Pixels> {
        match medium {
            Medium::Picture(picture) => self.blueprint.preprocess(picture, plan),
            Medium::Video(video) => self.blueprint.preprocess_video(video, plan),
        }
    }

    /// Returns the size and the plan of a picture with the most features that fit into so many
    /// positions: the smallest such square. `None` if the model reads text only.
    pub fn largest_picture(
        &self,
        positions: usize,
        budget: Budget,
    ) -> Result<Option<(MediumSize, MediaPlan)>> {
        let plan = |edge: usize| {
            let size = MediumSize {
                width: edge,
                height: edge,
            };
            Ok((size, self.plan(size, budget)?))
        };
        let limits = self.blueprint.limits();
        match limits.image_size {
            _ if limits.images == 0 => return Ok(None),
            0 => {}
            edge => return plan(edge).map(Some),
        }
        // The number of features grows with the edge, up to a limit.
        let last_below = |limit: usize| -> Result<usize> {
            let (mut low, mut high) = (0, 1 << 14);
            while low + 1 < high {
                let middle = (low + high) / 2;
                if plan(middle)?.1.features() < limit {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            Ok(low)
        };
        let largest = last_below(positions)?.max(1);
        plan(last_below(plan(largest)?.1.features())? + 1).map(Some)
    }

    /// Returns the maximum number of positions computed together, for chunks of this size and
    /// pictures with this plan: a chunk does not cut a span of positions that attend to each other
    /// in both directions.
    pub fn longest_pass(&self, chunk: usize, positions: usize, plan: Option<&MediaPlan>) -> usize {
        let runs = |plan: &MediaPlan| {
            let run = |end: &mut usize, length: &usize| {
                *end += length;
                Some(*end - length..*end)
            };
            plan.runs.iter().scan(0, run).collect()
        };
        let place = plan.map(|plan| PlacedMedium {
            runs: runs(plan),
            plan,
        });
        let placed: Vec<_> = place.into_iter().collect();
        let spans = self.blueprint.spans(positions, &placed);
        let longest = spans.iter().map(|span| span.len()).max().unwrap_or(1);
        // The last row of a chunk may start a span.
        chunk.saturating_add(longest - 1)
    }

    /// Loads the stored matrix of a module.
    pub(super) fn matrix(
        &self,
        path: &str,
        rows: usize,
        columns: usize,
        device: &Device,
    ) -> Result<Matrix> {
        let context = LoadContext::new(&self.checkpoint, &|_, _| Ok(()))
            .with_quantization(&self.stored, &|_, _| None);
        Matrix::load(&context.weights().at(path), rows, columns, device.dtype)
    }

    /// Loads the model. Also returns a hash of the weights that encode pictures, as they are
    /// stored. `progress` receives the bytes loaded and their total; an error from it stops the
    /// loading.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the model needs more than `memory_limit`, or more than is
    /// available; [`Error::CorruptModel`] if a weight file changes in the meantime.
    pub fn load(
        &self,
        device: &Device,
        memory_limit: Option<u64>,
        plan: Plan,
        progress: &dyn Fn(u64, u64) -> Result<()>,
    ) -> Result<(LoadedModel, blake3::Hash)> {
        let load_vision = |weights: &Weights| self.blueprint.load_vision(weights, device);
        let (vision, decoder, hash) =
            self.load_with(device, memory_limit, plan, progress, load_vision)?;
        Ok((LoadedModel { vision, decoder }, hash))
    }

    /// Loads the model as [`ModelFolder::load`] does, with a vision part loaded by `load_vision`.
    pub(crate) fn load_with<V>(
        &self,
        device: &Device,
        memory_limit: Option<u64>,
        plan: Plan,
        progress: &dyn Fn(u64, u64) -> Result<()>,
        load_vision: impl FnOnce(&Weights) -> Result<V>,
    ) -> Result<(V, Decoder, blake3::Hash)> {
        let what = format!("loading the model in {}", self.path().display());
        require_within(
            &what,
            self.memory(device.arithmetic(), plan).load,
            memory_limit,
        )?;
        let context = LoadContext::new(&self.checkpoint, progress)
            .with_quantization(&self.stored, plan)
            .with_hashing(&is_vision);
        let weights = context.weights();
        let vision = load_vision(&weights)?;
        let decoder = Decoder::load(
            &weights.at("language_model"),
            self.blueprint.decoder().clone(),
            device.dtype,
        )?;
        let unused = context.unused();
        if !unused.is_empty() {
            log::warn!(
                "{} tensors are not used, among them {}: does config.json describe these weights?",
                unused.len(),
                unused[0]
            );
        }
        if !self.checkpoint.is_unchanged() {
            return Err(Error::corrupt(
                self.checkpoint.path(),
                "the weights changed while they were loaded; load the model again",
            ));
        }
        Ok((vision, decoder, context.hash()))
    }
}

/// Fails if a medium takes more positions than the budget allows. `advice` ends the message.
fn check_tokens(
    budget: Budget,
    plan: &MediaPlan,
    what: fmt::Arguments,
    advice: &str,
) -> Result<()> {
    let features = plan.features();
    match budget.max_tokens {
        Some(most) if features > most => Err(Error::InvalidArgument(format!(
            "the budget's max_tokens is {most}; {what} takes {features} positions in this \
             model{advice}"
        ))),
        _ => Ok(()),
    }
}

/// Returns the size of a picture, or of the frames of a video.
pub(crate) fn medium_size(medium: &Medium) -> MediumSize {
    let [width, height] = medium.size().map(|side| side as usize);
    MediumSize { width, height }
}

fn unknown(config_path: &Path, config: &Value) -> Error {
    let found = config.get("model_type").unwrap_or(&Value::Null);
    Error::unsupported(
        config_path,
        format!(
            "model_type is {found}; this library runs {}",
            model_types().join(", ")
        ),
    )
}

/// The decoder's layers must exist before any work is done for each of them.
fn check_layers(checkpoint: &Checkpoint, expected: usize) -> Result<(), String> {
    const LAYERS: &str = "language_model.model.layers";
    let context = LoadContext::new(checkpoint, &|_, _| Ok(()));
    let found = context.weights().count(LAYERS);
    if found >= expected {
        return Ok(());
    }
    Err(format!(
        "num_hidden_layers is {expected} and the weights have {found} layers; tensors of \
         `{LAYERS}.{found}.` are missing"
    ))
}

/// Returns the number of values in all tensors, counting quantized matrices unpacked.
fn parameters(checkpoint: &Checkpoint, stored: &QuantizationConfig) -> u64 {
    let count = |name: &str| {
        let tensor = checkpoint.info(name)?;
        let module = name
            .strip_suffix(".scales")
            .or_else(|| name.strip_suffix(".biases"));
        if module.is_some_and(|module| checkpoint.info(&format!("{module}.scales")).is_some()) {
            return None;
        }
        let elements = tensor.shape.iter().product::<usize>() as u64;
        let module = name
            .strip_suffix(".weight")
            .filter(|_| tensor.dtype == safetensors::Dtype::U32);
        Some(match module.and_then(|module| stored.of(&[module])) {
            Some(quantization) => elements * 32 / quantization.bits as u64,
            None => elements,
        })
    };
    checkpoint.tensor_names().filter_map(count).sum()
}
