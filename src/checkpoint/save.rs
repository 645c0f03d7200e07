//! Writes the files of a model: weights, configuration, and other files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use mlx_rs::{Array, ArrayElement};
use rustix::fs::readlinkat;
use rustix::io::Errno;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::TensorInfo;
use crate::{Error, Result, device::room, file::Folder};

/// The maximum size of a weight file, as mlx-community uses it.
const SHARD_BYTES: u64 = 5_000_000_000;

/// The files of a model that are copied. Its weights and its configuration are written by this
/// module, and nothing else is taken over.
const TEXTS: [&str; 23] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "LICENCE",
    "LICENCE.md",
    "LICENCE.txt",
    "NOTICE",
    "NOTICE.txt",
];

/// The maximum size of such a file.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A tensor to be written.
pub(crate) struct SavedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its values.
    pub content: Content<'a>,
}

/// The values of a tensor.
pub(crate) enum Content<'a> {
    /// Those of a tensor in another checkpoint, copied exactly.
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
                other => Err(Error::InvalidState(format!(
                    "an array of {other:?} cannot be saved"
                ))),
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
        match array.dtype() {
            mlx_rs::Dtype::Uint32 => little_endian(array, u32::to_le_bytes),
            mlx_rs::Dtype::Uint8 => little_endian(array, u8::to_le_bytes),
            mlx_rs::Dtype::Bfloat16 => little_endian(array, half::bf16::to_le_bytes),
            mlx_rs::Dtype::Float16 => little_endian(array, half::f16::to_le_bytes),
            _ => little_endian(array, f32::to_le_bytes),
        }
    }
}

/// Copies the bytes of an array's values.
fn little_endian<T: ArrayElement + Copy, const N: usize>(
    array: &Array,
    bytes_of: fn(T) -> [u8; N],
) -> Result<Vec<u8>> {
    let numbers = array
        .try_as_slice::<T>()
        .map_err(|error| Error::InvalidState(format!("reading an array: {error}")))?;
    let mut bytes = room(numbers.len() * N, || "an array that is saved".into())?;
    numbers
        .iter()
        .for_each(|number| bytes.extend(bytes_of(*number)));
    Ok(bytes)
}

/// Copies the files of a model other than its weights and its configuration. Those in `required`
/// must exist.
pub(crate) fn copy_texts(source: &Folder, folder: &Folder, required: &[&str]) -> Result<()> {
    for name in TEXTS {
        match read_text(source, name) {
            Ok(bytes) => write_file(folder, name, &bytes)?,
            Err(Error::NotFound { .. }) if !required.contains(&name) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a file of a model. A link is followed to another file of the folder or, in a snapshot of
/// the Hugging Face cache, to that cache's `blobs`: no file from elsewhere gets into a saved model.
fn read_text(source: &Folder, name: &str) -> Result<Vec<u8>> {
    const WHAT: &str = "a file of the model";
    let path = source.path().join(name);
    let link = match readlinkat(source, name, Vec::new()) {
        Err(Errno::INVAL | Errno::NOENT) => {
            return source.read(OsStr::new(name), WHAT, MAX_TEXT_BYTES);
        } // not a link
        other => other.map_err(|errno| Error::io(&path, WHAT, errno.into()))?,
    };
    let link = Path::new(OsStr::from_bytes(link.as_bytes()));
    if link.file_name() == Some(link.as_os_str()) {
        return source.read(link.as_os_str(), WHAT, MAX_TEXT_BYTES);
    }
    if let Some((steps, blob)) = blob(source.path(), link) {
        let mut folder = source.try_clone()?;
        for _ in 0..steps {
            folder = folder.outer()?;
        }
        return folder
            .inner(OsStr::new("blobs"), WHAT)?
            .read(blob, WHAT, MAX_TEXT_BYTES);
    }
    let what = format!(
        "is a link to {}, outside of the model's folder, and such files are not copied into a \
            saved model. Replace the link with the file",
        link.display()
    );
    Err(Error::InvalidArgument(format!(
        "{}: {what}",
        path.display()
    )))
}

/// Returns how many folders up a link in a snapshot of the Hugging Face cache
/// (`models--…/snapshots/…`) leads to the cache's `blobs`, and to which blob.
fn blob<'a>(snapshot: &Path, link: &'a Path) -> Option<(usize, &'a OsStr)> {
    let steps = link
        .components()
        .take_while(|part| *part == Component::ParentDir)
        .count();
    let mut rest = link.components().skip(steps);
    let (Some(Component::Normal(blobs)), Some(Component::Normal(blob)), None) =
        (rest.next(), rest.next(), rest.next())
    else {
        return None;
    };
    let snapshot = snapshot.canonicalize().ok()?;
    let mut outer = snapshot
        .ancestors()
        .map(|folder| folder.file_name().unwrap_or_default())
        .skip(steps.checked_sub(1)?);
    let is_cache =
        outer.next()? == "snapshots" && outer.next()?.as_bytes().starts_with(b"models--");
    (blobs == "blobs" && is_cache).then_some((steps, blob))
}

/// Writes the tensors, in files of at most 5 GB with an index, and `config`. `format` is the layout
/// in the source's metadata, which stays the same. `progress` receives the bytes written and their
/// total; an error from it ends the work.
pub(crate) fn write_model(
    folder: &Folder,
    tensors: &[SavedTensor],
    config: &Value,
    format: Option<&str>,
    progress: &dyn Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    write_tensors(folder, tensors, format, progress)?;
    write_json(folder, "config.json", config)
}

fn write_tensors(
    folder: &Folder,
    tensors: &[SavedTensor],
    format: Option<&str>,
    progress: &dyn Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    let total: u64 = tensors.iter().map(|tensor| tensor.content.bytes()).sum();
    let shards = cut(tensors);
    let mut done = 0;
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        write_shard(folder, &name, shard, format, &mut |bytes| {
            done += bytes;
            progress(done, total)
        })?;
        weight_map.extend(
            shard
                .iter()
                .map(|tensor| (tensor.name.as_str(), name.clone())),
        );
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(folder, "model.safetensors.index.json", &index)?;
    }
    Ok(())
}

/// Splits the tensors, in order, into files.
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

fn write_shard(
    folder: &Folder,
    name: &str,
    tensors: &[SavedTensor],
    format: Option<&str>,
    written: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let path = folder.path().join(name);
    let io = |error| Error::io(&path, "the model's weights", error);
    let mut header = Map::new();
    header.extend(format.map(|format| ("__metadata__".to_owned(), json!({ "format": format }))));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.content.bytes();
        let entry = json!({ "dtype": tensor.content.dtype()?, "shape": tensor.content.shape(), "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    // The data starts at a multiple of 8, as in the safetensors package.
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));
    let mut file = BufWriter::new(folder.create(name)?);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(header.as_bytes()))
        .map_err(io)?;
    for tensor in tensors {
        file.write_all(&tensor.content.read()?).map_err(io)?;
        written(tensor.content.bytes())?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

fn write_json(folder: &Folder, name: &str, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::io(&folder.path().join(name), "a file to write", error.into()))?;
    write_file(folder, name, format!("{text}\n").as_bytes())
}

fn write_file(folder: &Folder, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = folder.create(name)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| Error::io(&folder.path().join(name), "a file to write", error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_of_hugging_faces_cache_lead_to_its_blobs() {
        let place = tempfile::TempDir::new().unwrap();
        let cache = place.path().join("models--a--b");
        let inner = cache.join("snapshots/1/inner");
        fs::create_dir_all(&inner).unwrap();
        let steps = |folder: &Path, link: &str| {
            blob(folder, Path::new(link)).map(|(steps, name)| (steps, name.to_owned()))
        };
        assert_eq!(
            steps(&cache.join("snapshots/1"), "../../blobs/x"),
            Some((2, "x".into()))
        );
        assert_eq!(steps(&inner, "../../../blobs/x"), Some((3, "x".into())));
        for (folder, link) in [
            (&inner, "../../blobs/x"),
            (&cache.join("snapshots/1"), "../../../blobs/x"),
            (&cache.join("snapshots/1"), "../../blobs/x/y"),
            (&cache.join("snapshots/1"), "../../others/x"),
            (&cache.join("snapshots/1"), "../../blobs/../x"),
            (&cache.join("snapshots/1"), "../../blobs"),
            (&cache.join("snapshots/1"), "blobs/x"),
            (&cache.join("snapshots/1"), "/blobs/x"),
        ] {
            assert_eq!(steps(folder, link), None, "{folder:?}: {link}");
        }
    }
}
