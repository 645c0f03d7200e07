//! Weights by path, as the modules of a model request them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::iter;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use mlx_rs::Array;
use mlx_rs::error::ConversionError;
use safetensors::tensor::{Dtype, TensorView};

use super::{Checkpoint, Quantization, QuantizationConfig, TensorInfo};
use crate::{Error, Result};

/// The number of bytes that are hashed together.
const PART_BYTES: usize = 1 << 20;

/// The number of threads that hash a large tensor.
const HASH_THREADS: usize = 4;

/// How many existing names the report of a missing tensor lists.
const NAMES_IN_HINT: usize = 3;

/// A load of a model from a checkpoint: tracks what was read and reports progress.
pub struct LoadContext<'a> {
    checkpoint: &'a Checkpoint,
    total_bytes: u64,
    progress: &'a dyn Fn(u64, u64) -> Result<()>,
    state: RefCell<State>,
    /// The buffer that tensors are read into: getting new memory for each from the system takes
    /// longer than filling it.
    buffer: RefCell<Vec<u8>>,
    stored: QuantizationConfig,
    apply: Plan<'a>,
    is_hashed: &'a dyn Fn(&str) -> bool,
}

/// Returns the scheme in which the module with a path, and with rows of so many values, is to be
/// quantized.
pub type Plan<'a> = &'a dyn Fn(&str, usize) -> Option<Quantization>;

#[derive(Default)]
struct State {
    loaded: BTreeSet<String>,
    bytes: u64,
    /// The hashes of tensors by name.
    hashes: BTreeMap<String, blake3::Hash>,
}

impl<'a> LoadContext<'a> {
    /// Starts loading `checkpoint`. After each tensor, `progress` receives the bytes loaded so far
    /// and those of the whole checkpoint. An error from it, such as [`Error::Cancelled`], stops the
    /// loading and is returned by [`Weights::load`].
    pub fn new(checkpoint: &'a Checkpoint, progress: &'a dyn Fn(u64, u64) -> Result<()>) -> Self {
        let (stored, apply): (_, Plan) = (QuantizationConfig::default(), &|_, _| None);
        Self {
            checkpoint,
            total_bytes: checkpoint.total_bytes(),
            progress,
            state: RefCell::default(),
            buffer: RefCell::default(),
            stored,
            apply,
            is_hashed: &|_| false,
        }
    }

    /// Sets the schemes: `stored` describes matrices that are already quantized; `apply` chooses
    /// the schemes of matrices that are quantized while loading.
    pub fn with_quantization(self, stored: &QuantizationConfig, apply: Plan<'a>) -> Self {
        Self {
            stored: stored.clone(),
            apply,
            ..self
        }
    }

    /// Hashes the selected tensors while they are read, for [`LoadContext::hash`].
    pub fn with_hashing(self, is_hashed: &'a dyn Fn(&str) -> bool) -> Self {
        Self { is_hashed, ..self }
    }

    /// Returns a hash of the selected tensors: their names, dtypes, shapes and bytes. It does not
    /// depend on the order in which they were read.
    pub fn hash(&self) -> blake3::Hash {
        let mut all = blake3::Hasher::new();
        for (name, hash) in &self.state.borrow().hashes {
            all.update(&(name.len() as u64).to_le_bytes())
                .update(name.as_bytes())
                .update(hash.as_bytes());
        }
        all.finalize()
    }

    /// Returns all weights, to be narrowed with [`Weights::at`].
    pub fn weights(&self) -> Weights<'_> {
        Weights {
            context: self,
            prefix: String::new(),
        }
    }

    /// Returns the names of the tensors that were not loaded, sorted.
    pub fn unused(&self) -> Vec<String> {
        let loaded = &self.state.borrow().loaded;
        self.checkpoint
            .tensor_names()
            .filter(|name| !loaded.contains(*name))
            .map(str::to_owned)
            .collect()
    }

    fn loaded(&self, name: String, bytes: u64) -> Result<()> {
        let mut state = self.state.borrow_mut();
        // A tensor that two modules share counts once.
        if state.loaded.insert(name) {
            state.bytes += bytes;
        }
        let done = state.bytes;
        drop(state);
        (self.progress)(done, self.total_bytes)
    }
}

/// The tensors below one path of a checkpoint, such as `language_model.model.layers.3`.
#[derive(Clone)]
pub struct Weights<'a> {
    context: &'a LoadContext<'a>,
    prefix: String,
}

impl<'a> Weights<'a> {
    /// Returns the tensors below `name`, which may be a word, a dotted path, or a number in a list.
    pub fn at(&self, name: impl Display) -> Weights<'a> {
        Weights {
            context: self.context,
            prefix: self.path(name),
        }
    }

    /// Returns the full name of `name` below this path.
    pub fn path(&self, name: impl Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// Returns whether there is a tensor of exactly this name.
    pub fn has(&self, name: &str) -> bool {
        self.context.checkpoint.info(&self.path(name)).is_some()
    }

    /// Returns whether a convolution's kernel has MLX's layout, `[out, .., in]`, and not PyTorch's,
    /// `[out, in, ..]`. The metadata decides; without it, the dimension of size `channels`.
    pub fn is_mlx_convolution(&self, name: &str, channels: usize) -> Result<bool> {
        let tensor = self.find(name)?;
        Ok(match tensor.format() {
            Some(format) => format == "mlx",
            None => {
                tensor.shape.last() == Some(&channels) && tensor.shape.get(1) != Some(&channels)
            }
        })
    }

    /// Returns how many of `name.0.`, `name.1.`, … have tensors, up to the first that has none: the
    /// length of a list of modules.
    pub fn count(&self, name: &str) -> usize {
        let list = self.at(name);
        (0usize..)
            .take_while(|i| self.names_below(&list.path(i)).next().is_some())
            .count()
    }

    /// Returns the dimensions of a tensor, outermost first, each at least 1. Fails with
    /// [`Error::CorruptModel`] if it is missing or empty.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let tensor = self.find(name)?;
        if tensor.shape.contains(&0) {
            let what = format!(
                "{} is empty: its shape is {:?}",
                self.describe(name, tensor),
                tensor.shape
            );
            return Err(Error::corrupt(tensor.file(), what));
        }
        Ok(tensor.shape.clone())
    }

    /// Loads a tensor of floats in its stored dtype. Needs the memory of the array; during the load
    /// there is also a buffer as large as the largest tensor read so far.
    ///
    /// Fails with [`Error::CorruptModel`] if the tensor is missing or its shape is not `shape`,
    /// [`Error::UnsupportedModel`] if it is not BF16, F16 or F32, and with any error of the
    /// progress callback.
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<Array> {
        self.load_as(name, shape, &[Dtype::BF16, Dtype::F16, Dtype::F32])
    }

    /// Does the same as [`Weights::load`] for the packed values of a quantized matrix, in words of
    /// 32 bits.
    pub fn load_packed(&self, name: &str, shape: &[usize]) -> Result<Array> {
        self.load_as(name, shape, &[Dtype::U32])
    }

    /// Does the same as [`Weights::load`] for the scales of a quantized matrix in a mode other than
    /// affine: one byte each.
    pub fn load_byte_scales(&self, name: &str, shape: &[usize]) -> Result<Array> {
        self.load_as(name, shape, &[Dtype::U8])
    }

    fn load_as(&self, name: &str, shape: &[usize], dtypes: &[Dtype]) -> Result<Array> {
        let tensor = self.find(name)?;
        if tensor.shape != shape {
            let what = format!(
                "{} has shape {:?}, expected {shape:?}",
                self.describe(name, tensor),
                tensor.shape
            );
            return Err(Error::corrupt(tensor.file(), what));
        }
        if !dtypes.contains(&tensor.dtype) {
            let expected = match dtypes {
                [Dtype::U32] => "packed bits: U32",
                [Dtype::U8] => "scales of a byte: U8",
                _ => "floats: BF16, F16 or F32",
            };
            let what = format!(
                "{} is stored as {}, expected {expected}",
                self.describe(name, tensor),
                tensor.dtype
            );
            return Err(Error::unsupported(tensor.file(), what));
        }
        let mut buffer = self.context.buffer.borrow_mut();
        let bytes = tensor.read_into(&mut buffer)?;
        let make = || {
            TensorView::new(tensor.dtype, tensor.shape.clone(), bytes)
                .map_err(ConversionError::from)
                .and_then(Array::try_from)
                .map_err(|e| {
                    Error::corrupt(
                        tensor.file(),
                        format!("{}: {e}", self.describe(name, tensor)),
                    )
                })
        };
        let full_name = self.path(name);
        let array = match (self.context.is_hashed)(&full_name) {
            true => {
                let (hash, array) = hash_beside(tensor, bytes, make);
                self.context
                    .state
                    .borrow_mut()
                    .hashes
                    .insert(full_name.clone(), hash);
                array?
            }
            false => make()?,
        };
        drop(buffer); // the progress callback may load other tensors
        self.context.loaded(full_name, tensor.bytes)?;
        Ok(array)
    }

    /// Returns the scheme of the matrix below this path, which is stored quantized and has rows of
    /// so many values.
    ///
    /// Fails with [`Error::CorruptModel`] if config.json has no scheme for it, or one whose group
    /// size does not divide a row.
    pub fn stored_quantization(&self, columns: usize) -> Result<Quantization> {
        let tensor = self.find("weight")?;
        let stored = tensor
            .stored_name
            .strip_suffix(".weight")
            .unwrap_or(&tensor.stored_name);
        let corrupt = |what: &str| {
            Error::corrupt(
                tensor.file(),
                format!("{} {what}", self.describe("weight", tensor)),
            )
        };
        let scheme = self.context.stored.of(&[stored, &self.prefix]);
        let scheme = scheme
            .ok_or_else(|| corrupt("has scales, but config.json has no `quantization` for it"))?;
        match scheme.divides(columns) {
            true => Ok(scheme),
            false => Err(corrupt(&format!(
                "has rows of {columns} values, which config.json's group size of {} does not \
                    divide",
                scheme.group_size
            ))),
        }
    }

    /// Returns the scheme in which the matrix below this path, with rows of so many values, is
    /// quantized while it is loaded.
    pub fn quantization_to_apply(&self, columns: usize) -> Option<Quantization> {
        (self.context.apply)(&self.prefix, columns)
    }

    fn find(&self, name: &str) -> Result<&'a TensorInfo> {
        let full_name = self.path(name);
        self.context
            .checkpoint
            .info(&full_name)
            .ok_or_else(|| self.missing(&full_name))
    }

    fn missing(&self, full_name: &str) -> Error {
        // The closest enclosing module that has any tensors shows what there is instead.
        let mut modules = full_name
            .rmatch_indices('.')
            .map(|(end, _)| &full_name[..end]);
        let module = modules.find(|module| self.names_below(module).next().is_some());
        let hint = match module {
            Some(module) => {
                let names: Vec<_> = self.names_below(module).take(NAMES_IN_HINT).collect();
                let more = if self.names_below(module).nth(NAMES_IN_HINT).is_some() {
                    ", …"
                } else {
                    ""
                };
                format!("`{module}` has {}{more}", names.join(", "))
            }
            None => "no tensor has a name with the same start".to_owned(),
        };
        Error::corrupt(
            &self.context.checkpoint.path,
            format!("tensor `{full_name}` is missing; {hint}"),
        )
    }

    /// Returns the names of the tensors below a module, sorted.
    fn names_below(&self, module: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let start = format!("{module}.");
        let from_start = self.context.checkpoint.tensors.range(start.clone()..);
        from_start
            .map(|(name, _)| name.as_str())
            .take_while(move |name| name.starts_with(&start))
    }

    fn describe(&self, name: &str, tensor: &TensorInfo) -> String {
        let full_name = self.path(name);
        if full_name == tensor.stored_name {
            format!("tensor `{full_name}`")
        } else {
            format!("tensor `{full_name}` (stored as `{}`)", tensor.stored_name)
        }
    }
}

/// Hashes a tensor's dtype, shape and bytes, on several threads if it is large, while this thread
/// first does something else.
///
/// The hash combines those of the tensor's parts and does not depend on which thread hashes which
/// part.
fn hash_beside<T>(
    tensor: &TensorInfo,
    bytes: &[u8],
    other: impl FnOnce() -> T,
) -> (blake3::Hash, T) {
    let parts: Vec<&[u8]> = bytes.chunks(PART_BYTES).collect();
    let next = AtomicUsize::new(0);
    let hash_parts = || {
        let numbers = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        numbers
            .map_while(|i| parts.get(i).map(|part| (i, blake3::hash(part))))
            .collect::<Vec<_>>()
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let helpers = (cores.min(HASH_THREADS) - 1).min(parts.len() / 2);
    let (mut hashes, other) = thread::scope(|scope| {
        let start = || {
            thread::Builder::new()
                .name("moxin-hash".into())
                .spawn_scoped(scope, hash_parts)
        };
        // A thread that does not start leaves its parts to the others.
        let helpers: Vec<_> = iter::repeat_with(start).take(helpers).flatten().collect();
        let (other, mut hashes) = (other(), hash_parts());
        for helper in helpers {
            hashes.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        (hashes, other)
    });
    hashes.sort_by_key(|(i, _)| *i);
    let mut all = blake3::Hasher::new();
    all.update(format!("{} {:?}\n", tensor.dtype, tensor.shape).as_bytes());
    for (_, hash) in hashes {
        all.update(hash.as_bytes());
    }
    (all.finalize(), other)
}
