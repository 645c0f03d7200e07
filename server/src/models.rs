//! The models that are served: loaded on first use, and unloaded when another needs the memory.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use axum::http::StatusCode;
use moxin_vlm::{
    Backend, Error, LoadOptions, Model, ModelInfo, Op, Quantization, QuantizeOptions, Tokenizer,
    load_tokenizer,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::{block_in_place, spawn_blocking},
};

use crate::{args::Args, error::ApiError, lock};

/// All models of the server.
pub struct Models {
    served: Vec<Arc<Served>>,
    options: LoadOptions,
    /// Held by the one that loads.
    loading: AsyncMutex<()>,
    /// Counts uses, to find the model that was not used for the longest time.
    uses: AtomicU64,
    /// Why the latest load failed, until one succeeds.
    failure: Mutex<Option<String>>,
}

/// A model under its name.
pub struct Served {
    pub name: String,
    folder: PathBuf,
    pub info: ModelInfo,
    /// When the folder was written, in seconds since 1970.
    pub created: u64,
    pub tokenizer: Tokenizer,
    /// The model, while it is in memory.
    model: Mutex<Option<Model>>,
    users: AtomicUsize,
    last_use: AtomicU64,
}

/// A model in use, which is not unloaded.
pub struct InUse {
    pub served: Arc<Served>,
    pub model: Model,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.served.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Models {
    /// Reads the folders' headers, so that a wrong one is found at the start.
    pub fn new(args: &Args) -> Result<Models> {
        if args.model.is_empty() {
            bail!("no model was given: --model FOLDER");
        }
        let mut served: Vec<Arc<Served>> = Vec::new();
        for argument in &args.model {
            let model = Served::open(argument)?;
            if served.iter().any(|other| other.name == model.name) {
                bail!(
                    "two models have the name {}; name one: --model NAME=FOLDER",
                    model.name
                );
            }
            served.push(Arc::new(model));
        }
        Ok(Models {
            served,
            options: load_options(args),
            loading: AsyncMutex::new(()),
            uses: AtomicU64::new(0),
            failure: Mutex::new(None),
        })
    }

    /// Returns the models.
    pub fn all(&self) -> &[Arc<Served>] {
        &self.served
    }

    /// Returns the model of this name, or the first one.
    pub fn find(&self, name: Option<&str>) -> Result<&Arc<Served>, ApiError> {
        let Some(name) = name else {
            return Ok(&self.served[0]);
        };
        self.served
            .iter()
            .find(|model| model.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self.served.iter().map(|model| &model.name[..]).collect();
                ApiError {
                    param: Some("model".into()),
                    ..ApiError::new(
                        StatusCode::NOT_FOUND,
                        format!(
                            "there is no model {name:?}; this server has {}",
                            names.join(", ")
                        ),
                    )
                    .code("model_not_found")
                }
            })
    }

    /// Returns why the latest load failed, unless another succeeded later.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// Returns whether no model can be used: the latest load failed, and none is in memory.
    pub fn has_failed(&self) -> bool {
        self.failure().is_some() && !self.served.iter().any(|model| model.is_loaded())
    }

    /// Returns a model for use; loads it if it is not in memory.
    pub async fn acquire(&self, served: &Arc<Served>) -> Result<InUse, ApiError> {
        if let Some(model) = self.begin_use(served) {
            return Ok(model);
        }
        let _loading = self.loading.lock().await;
        if let Some(model) = self.begin_use(served) {
            return Ok(model);
        }
        loop {
            match self.load(served).await {
                Ok(model) => {
                    *lock(&self.failure) = None;
                    *lock(&served.model) = Some(model);
                }
                // It waits for its turn on the engine, which may be computing.
                Err(Error::OutOfMemory { .. }) if block_in_place(|| self.unload_one()) => continue,
                Err(error) => {
                    tracing::error!(model = served.name, "cannot be loaded: {error}");
                    *lock(&self.failure) = Some(format!("{}: {error}", served.name));
                    return Err(ApiError::library(error, "model"));
                }
            }
            if let Some(model) = self.begin_use(served) {
                return Ok(model);
            }
        }
    }

    fn begin_use(&self, served: &Arc<Served>) -> Option<InUse> {
        let model = lock(&served.model);
        let model = model.clone()?;
        served.users.fetch_add(1, Ordering::SeqCst);
        let now = self.uses.fetch_add(1, Ordering::SeqCst);
        served.last_use.store(now, Ordering::SeqCst);
        Some(InUse {
            served: served.clone(),
            model,
        })
    }

    async fn load(&self, served: &Served) -> Result<Model, Error> {
        let (folder, options) = (served.folder.clone(), self.options.clone());
        let clock = Instant::now();
        tracing::info!(model = served.name, "loading {}", folder.display());
        let loaded = spawn_blocking(move || Model::load(folder, options, Op::default()))
            .await
            .unwrap_or_else(|error| Err(Error::Panic(error.to_string())))?;
        tracing::info!(model = served.name, "loaded in {:.1?}", clock.elapsed());
        Ok(loaded)
    }

    /// Unloads the model that nobody uses and that was not used for the longest time; returns
    /// whether there was one.
    pub fn unload_one(&self) -> bool {
        let mut idle: Vec<&Arc<Served>> = self
            .served
            .iter()
            .filter(|served| lock(&served.model).is_some())
            .collect();
        idle.sort_by_key(|served| served.last_use.load(Ordering::SeqCst));
        for served in idle {
            let mut model = lock(&served.model);
            // Nobody begins a use while the lock is held.
            if served.users.load(Ordering::SeqCst) == 0
                && let Some(model) = model.take()
            {
                tracing::info!(model = served.name, "unloaded, to make room for another");
                let _ = model.unload();
                return true;
            }
        }
        false
    }
}

impl Served {
    fn open(argument: &str) -> Result<Served> {
        let (name, folder) = match argument.split_once('=') {
            Some((name, folder)) if !name.is_empty() && !name.contains('/') => {
                (name.to_owned(), PathBuf::from(folder))
            }
            _ => (name_of(Path::new(argument))?, PathBuf::from(argument)),
        };
        let about = || format!("--model {argument}");
        let info = Model::inspect(&folder).with_context(about)?;
        let tokenizer = load_tokenizer(&folder).with_context(about)?;
        let written = std::fs::metadata(&folder).and_then(|folder| folder.modified());
        Ok(Served {
            name,
            info,
            created: written.map_or(0, seconds),
            tokenizer,
            folder,
            model: Mutex::new(None),
            users: AtomicUsize::new(0),
            last_use: AtomicU64::new(0),
        })
    }

    /// Returns whether the model is in memory.
    pub fn is_loaded(&self) -> bool {
        lock(&self.model).is_some()
    }
}

/// Returns the name of a folder.
fn name_of(folder: &Path) -> Result<String> {
    let full = folder
        .canonicalize()
        .with_context(|| format!("--model {}", folder.display()))?;
    let name = full.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| {
        format!(
            "{}: the folder has no readable name; give one: --model NAME=FOLDER",
            folder.display()
        )
    })?;
    Ok(name.to_owned())
}

/// Returns the seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

fn load_options(args: &Args) -> LoadOptions {
    let scheme = |bits| QuantizeOptions {
        quantization: Quantization::affine(64, bits),
        ..QuantizeOptions::default()
    };
    LoadOptions {
        backend: if args.cpu {
            Backend::Cpu
        } else {
            Backend::Auto
        },
        quantize: args.quantize.map(scheme),
        image_cache: args.limits.image_cache << 20,
        prefix_cache: args.limits.prefix_cache << 20,
        ..LoadOptions::default()
    }
}
