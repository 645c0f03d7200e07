//! Model folders, written: beside their place, and renamed when complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::TensorInfo;
use crate::{Error, Result};

/// Files are cut where they would grow beyond this, as MLX's community has them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor that is to be written.
pub struct SavedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Where its numbers come from.
    pub content: Content<'a>,
}

/// The numbers of a tensor.
pub enum Content<'a> {
    /// Those of a tensor in another checkpoint, as they are.
    Stored(&'a TensorInfo),
    /// An evaluated array of uint32, uint8, bfloat16, float16 or float32.
    Array(Array),
}

impl Content<'_> {
    fn dtype(&self) -> Result<Dtype> {
        match self {
            Content::Stored(tensor) => Ok(tensor.dtype),
            Content::Array(array) => match array.dtype() {
                mlx_rs::Dtype::Uint32 => Ok(Dtype::U32),
                mlx_rs::Dtype::Uint8 => Ok(Dtype::U8),
                mlx_rs::Dtype::Bfloat16 => Ok(Dtype::BF16),
                mlx_rs::Dtype::Float16 => Ok(Dtype::F16),
                mlx_rs::Dtype::Float32 => Ok(Dtype::F32),
                other => Err(Error::InvalidState(format!("an array of {other:?} cannot be saved"))),
            },
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Content::Stored(tensor) => tensor.shape.clone(),
            Content::Array(array) => array.shape().iter().map(|size| *size as usize).collect(),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Content::Stored(tensor) => tensor.bytes,
            Content::Array(array) => array.nbytes() as u64,
        }
    }

    fn read(&self) -> Result<Vec<u8>> {
        let array = match self {
            Content::Stored(tensor) => return tensor.read(),
            Content::Array(array) => array,
        };
        let bytes = match array.dtype() {
            mlx_rs::Dtype::Uint32 => array.try_as_slice::<u32>().map(|numbers| numbers.iter().flat_map(|n| n.to_le_bytes()).collect()),
            mlx_rs::Dtype::Uint8 => array.try_as_slice::<u8>().map(<[u8]>::to_vec),
            mlx_rs::Dtype::Bfloat16 => {
                array.try_as_slice::<half::bf16>().map(|numbers| numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
            mlx_rs::Dtype::Float16 => {
                array.try_as_slice::<half::f16>().map(|numbers| numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
            _ => array.try_as_slice::<f32>().map(|numbers| numbers.iter().flat_map(|n| n.to_le_bytes()).collect()),
        };
        bytes.map_err(|error| Error::InvalidState(format!("reading an array: {error}")))
    }
}

/// A model folder that is being written, beside its place. Dropped before it is published it leaves nothing.
pub struct NewFolder {
    place: PathBuf,
    replaces: bool,
    part: TempDir,
}

impl NewFolder {
    /// Makes room beside `folder`, for a model that comes from `source`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `folder` is there already, unless `overwrite`, or is `source`; [`Error::NotFound`] and [`Error::Io`].
    pub fn beside(folder: &Path, overwrite: bool, source: &Path) -> Result<NewFolder> {
        let io = |error| Error::io(folder, "the place for the model", error);
        let replaces = folder.try_exists().map_err(io)?;
        if replaces && !overwrite {
            return Err(Error::InvalidArgument(format!(
                "{} is there already; allow overwriting, or save to another folder",
                folder.display()
            )));
        }
        if replaces && is_same(folder, source) {
            return Err(Error::InvalidArgument(format!("{} is the folder that the model comes from; save to another", folder.display())));
        }
        let place = std::path::absolute(folder).map_err(io)?;
        let parent = place.parent().ok_or_else(|| Error::InvalidArgument(format!("{} is no place for a folder", folder.display())))?;
        let part = TempDir::with_prefix_in(".moxin-vlm-part-", parent).map_err(io)?;
        // A temporary folder is for its owner alone; the model is for whoever may read its parent.
        fs::metadata(parent).and_then(|parent| fs::set_permissions(part.path(), parent.permissions())).map_err(io)?;
        Ok(NewFolder { place, replaces, part })
    }

    /// Where it is until it is published.
    pub fn path(&self) -> &Path {
        self.part.path()
    }

    /// Puts it in its place. One that was there goes when the new one is there.
    pub fn publish(self) -> Result<()> {
        let place = self.place.clone();
        self.rename().map_err(|error| Error::io(&place, "the place for the model", error))
    }

    fn rename(self) -> io::Result<()> {
        let NewFolder { place, replaces, part } = self;
        if replaces {
            let old = TempDir::with_prefix_in(".moxin-vlm-old-", place.parent().unwrap_or(&place))?;
            let aside = old.path().join("model");
            fs::rename(&place, &aside)?;
            if let Err(error) = fs::rename(part.path(), &place) {
                fs::rename(&aside, &place)?;
                return Err(error);
            }
        } else {
            fs::rename(part.path(), &place)?;
        }
        let _ = part.keep(); // it is elsewhere now
        Ok(())
    }
}

/// Writes what makes a model folder: the tensors in files of at most 5 GB with an index, `config`, and the other files of `source` that belong
/// to a model. `progress` is told the bytes written and their total; an error from it ends the work.
pub fn write_folder(
    folder: &Path,
    tensors: &[SavedTensor],
    config: &Value,
    source: &Path,
    progress: &dyn Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    write_tensors(folder, tensors, progress)?;
    write_json(&folder.join("config.json"), config)?;
    let io = |error| Error::io(source, "the folder that the model comes from", error);
    for entry in fs::read_dir(source).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        if belongs_to_a_model(&entry.file_name().to_string_lossy()) && path.is_file() {
            fs::copy(&path, folder.join(entry.file_name())).map_err(|error| Error::io(&path, "a file of the model", error))?;
        }
    }
    Ok(())
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Tokenizer, processor, generation defaults, licence and the like: not the weights in any format, and not what is written anew.
fn belongs_to_a_model(name: &str) -> bool {
    let is_text = [".json", ".txt", ".model", ".jinja", ".md"].iter().any(|end| name.ends_with(end)) || name.starts_with("LICEN");
    is_text && name != "config.json" && !name.ends_with(".index.json")
}

fn write_tensors(folder: &Path, tensors: &[SavedTensor], progress: &dyn Fn(u64, u64) -> Result<()>) -> Result<()> {
    let total: u64 = tensors.iter().map(|tensor| tensor.content.bytes()).sum();
    let shards = cut(tensors);
    let mut done = 0;
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        write_shard(&folder.join(&name), shard, &mut |bytes| {
            done += bytes;
            progress(done, total)
        })?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.as_str(), name.clone())));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Tensors in their order, as many to a file as it holds.
fn cut<'a>(tensors: &'a [SavedTensor<'a>]) -> Vec<&'a [SavedTensor<'a>]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        let more = tensor.content.bytes();
        if bytes + more > SHARD_BYTES && i > start {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += more;
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_shard(path: &Path, tensors: &[SavedTensor], written: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
    let io = |error| Error::io(path, "the model's weights", error);
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "mlx" }));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.content.bytes();
        let entry = json!({ "dtype": tensor.content.dtype()?, "shape": tensor.content.shape(), "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    // Data begins at a multiple of 8, as the safetensors package has it.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(header.as_bytes())).map_err(io)?;
    for tensor in tensors {
        file.write_all(&tensor.content.read()?).map_err(io)?;
        written(tensor.content.bytes())?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let io = |error| Error::io(path, "the model's configuration", error);
    let mut text = serde_json::to_string_pretty(value).map_err(|error| io(error.into()))?;
    text.push('\n');
    let mut file = File::create(path).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}
