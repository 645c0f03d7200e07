//! Model folders in the Hugging Face layout: JSON configuration, and weights in one or more
//! safetensors files.
//!
//! Files may come from anywhere, so everything is checked when a folder is opened: sizes, offsets,
//! dtypes, shapes, and that an index names files of its own folder. Tensors are then read one at a
//! time, by position. Files are never mapped into memory: a mapped file that shrinks kills the
//! process, while a short read is an ordinary error.

mod json;
mod new_folder;
mod quantization;
mod safetensors;
mod save;
mod weights;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub(crate) use self::json::parse_file;
pub use self::json::read_json;
pub(crate) use self::new_folder::NewFolder;
pub use self::quantization::{Mode, Quantization, QuantizationConfig};
pub use self::safetensors::TensorInfo;
pub(crate) use self::save::{Content, SavedTensor, copy_texts, write_model};
pub use self::weights::{LoadContext, Plan, Weights};
use crate::{Error, Result, file::Folder};

/// The maximum number of weight files, which stay open: on Apple systems a program may have 256
/// open files in total.
const MAX_SHARDS: usize = 128;

/// Opens a model's folder.
///
/// Fails with [`Error::NotFound`], [`Error::Io`], or [`Error::InvalidArgument`] if it is not a
/// folder.
pub(crate) fn open_folder(path: &Path) -> Result<Folder> {
    Folder::open(path, "a model: a folder with config.json and weights")
}

/// The weights of a model folder: which tensors there are, and where. The files are open; their
/// data is not read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Opens the weights in `folder`: `model.safetensors`, or the shards of
    /// `model.safetensors.index.json`. If both exist, the single file is used, as in transformers.
    ///
    /// Reads and checks only the headers. Fails with [`Error::NotFound`] for a missing folder or
    /// file, [`Error::CorruptModel`] for a damaged or inconsistent file, and
    /// [`Error::UnsupportedModel`] for a tensor that is too large for MLX.
    pub fn open(folder: &Path) -> Result<Self> {
        open_folder(folder)?;
        let single = folder.join("model.safetensors");
        match safetensors::open(&single, "the model's weights", &mut {
            safetensors::MAX_HEADER_BYTES
        }) {
            Ok(tensors) => {
                return Ok(Self {
                    tensors,
                    path: single,
                });
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let path = folder.join("model.safetensors.index.json");
        match read_json(&path, "the index of the model's weights") {
            Ok(index) => Ok(Self {
                tensors: open_shards(folder, &path, index)?,
                path,
            }),
            Err(Error::NotFound { .. }) => {
                let what =
                    "the model's weights; there is no model.safetensors.index.json either".into();
                Err(Error::NotFound { path: single, what })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the path of the file that lists the weights: `model.safetensors` or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the tensor called `name`, if there is one.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Returns the program format in the metadata of the weights: `pt` or `mlx`.
    pub fn format(&self) -> Option<&str> {
        self.tensors.values().next().and_then(TensorInfo::format)
    }

    /// Returns the size of all tensors in bytes, which is the memory for loading all of them.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes).sum()
    }

    /// Returns the number of elements in all tensors.
    pub fn parameter_count(&self) -> u64 {
        self.tensors
            .values()
            .map(|t| t.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// Returns whether the files are unchanged since they were opened, judging by their sizes and
    /// times.
    pub fn is_unchanged(&self) -> bool {
        self.tensors.values().all(TensorInfo::is_unchanged)
    }

    /// Renames tensors to the names that the model code uses. `new_name` receives a stored name and
    /// returns the name to use, or `None` to leave the tensor out. This is the only place where a
    /// model resolves the name variants of its format and drops what it never reads.
    ///
    /// Fails with [`Error::CorruptModel`] if two tensors get the same name.
    pub fn rename(self, new_name: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for tensor in self.tensors.into_values() {
            let Some(name) = new_name(&tensor.stored_name) else {
                continue;
            };
            let stored = tensor.stored_name.clone();
            if let Some(other) = tensors.insert(name.clone(), tensor) {
                let what = format!(
                    "`{}` and `{stored}` are two spellings of one tensor, `{name}`; expected one \
                     of them",
                    other.stored_name
                );
                return Err(Error::corrupt(&self.path, what));
            }
        }
        Ok(Self {
            path: self.path,
            tensors,
        })
    }
}

/// `model.safetensors.index.json`: the shard of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(
    folder: &Path,
    index_path: &Path,
    index: Index,
) -> Result<BTreeMap<String, TensorInfo>> {
    // An index could otherwise name any file of the machine. Only a plain file name equals its own
    // last component.
    let is_bare = |file: &String| {
        Path::new(file).file_name() == Some(OsStr::new(file)) && !file.contains('\0')
    };
    if let Some((name, file)) = index.weight_map.iter().find(|(_, file)| !is_bare(file)) {
        let what = format!(
            "weight_map places `{name}` in `{file}`; expected the name of a file in the same \
             folder, without a path"
        );
        return Err(Error::corrupt(index_path, what));
    }
    let files = index.weight_map.values().collect::<BTreeSet<_>>().len();
    if files > MAX_SHARDS {
        return Err(Error::unsupported(
            index_path,
            format!("weight_map names {files} files; at most {MAX_SHARDS} are supported"),
        ));
    }
    let mut header_bytes = safetensors::MAX_HEADER_BYTES;
    let mut shards = HashMap::new();
    let mut tensors = BTreeMap::new();
    for (name, file) in index.weight_map {
        if !shards.contains_key(&file) {
            let what = format!(
                "a shard of the weights, which has `{name}` according to {}",
                index_path.display()
            );
            shards.insert(
                file.clone(),
                safetensors::open(&folder.join(&file), &what, &mut header_bytes)?,
            );
        }
        let Some(tensor) = shards.get_mut(&file).and_then(|shard| shard.remove(&name)) else {
            return Err(Error::corrupt(
                index_path,
                format!("weight_map places `{name}` in {file}, which has no such tensor"),
            ));
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}
