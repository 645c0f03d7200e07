//! Reads one safetensors file: 8 bytes with the length of a JSON header, the header, and the
//! tensors' bytes without gaps (<https://huggingface.co/docs/safetensors>).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use safetensors::tensor::{Dtype, TensorInfo as Entry};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::json;
use crate::{Error, Result, device::room, file};

const LENGTH_BYTES: u64 = 8;
/// The maximum size of all headers of a checkpoint together. The largest published models have
/// about 13 MB.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;
/// MLX counts elements in `int`.
const MAX_ELEMENTS: usize = i32::MAX as usize;

/// A tensor in a safetensors file.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name in the file, before any renaming.
    pub stored_name: String,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The dimensions, outermost first. Each of them, and the number of elements, fits into an
    /// `i32`.
    pub shape: Vec<usize>,
    /// The size in bytes.
    pub bytes: u64,
    offset: u64,
    file: Arc<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
    /// The size and modification time when the file was opened.
    state: Option<(u64, SystemTime)>,
    /// The program format in the metadata: `pt` or `mlx`.
    format: Option<String>,
}

/// Returns the size and modification time of a file.
fn state(file: &File) -> Option<(u64, SystemTime)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

impl TensorInfo {
    /// Returns the path of the tensor's file.
    pub fn file(&self) -> &Path {
        &self.file.path
    }

    /// Returns the program format in the metadata: `pt` or `mlx`. It decides the layout of
    /// convolutions.
    pub fn format(&self) -> Option<&str> {
        self.file.format.as_deref()
    }

    /// Returns whether the file is unchanged since it was opened.
    pub(super) fn is_unchanged(&self) -> bool {
        self.file.state.is_some() && self.file.state == state(&self.file.file)
    }

    /// Reads the tensor's bytes: elements in C order, little-endian.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        self.read_into(&mut data)?;
        Ok(data)
    }

    /// Reads the tensor's bytes into a buffer, which grows if needed, and returns the filled part.
    pub(super) fn read_into<'b>(&self, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        let bytes = self.bytes as usize;
        let more = bytes.saturating_sub(buffer.len());
        let read = buffer
            .try_reserve_exact(more)
            .map_err(|_| ErrorKind::OutOfMemory.into())
            .and_then(|()| {
                buffer.resize(buffer.len() + more, 0);
                self.file
                    .file
                    .read_exact_at(&mut buffer[..bytes], self.offset)
            });
        read.map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.corrupt(
                "the file ends within this tensor; it was longer when the model was opened",
            ),
            _ => Error::Io {
                path: self.file().into(),
                source,
            },
        })?;
        Ok(&buffer[..bytes])
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(
            self.file(),
            format!("tensor `{}`: {what}", self.stored_name),
        )
    }
}

/// Opens a file and checks its header, whose size is subtracted from `bytes_left`. The returned
/// tensors keep the file open.
pub(super) fn open(
    path: &Path,
    what: &str,
    bytes_left: &mut u64,
) -> Result<BTreeMap<String, TensorInfo>> {
    let (file, file_bytes) = file::open(path, what)?;
    let header_bytes = header_length(path, &file, file_bytes, *bytes_left)?;
    *bytes_left -= header_bytes;
    let mut text = room(header_bytes as usize, || {
        format!("the header of {}", path.display())
    })?;
    text.resize(header_bytes as usize, 0);
    read_at(path, &file, &mut text, LENGTH_BYTES)?;
    let Header { entries, format } =
        json::parse(&text).map_err(|e| Error::corrupt(path, format!("safetensors header: {e}")))?;

    let data_start = LENGTH_BYTES + header_bytes;
    check_layout(&entries, file_bytes - data_start).map_err(|e| Error::corrupt(path, e))?;
    check_mlx_limits(&entries).map_err(|e| Error::unsupported(path, e))?;

    let file = Arc::new(OpenFile {
        path: path.into(),
        state: state(&file),
        file,
        format,
    });
    let tensor = |(name, entry): (String, Entry)| {
        let (start, end) = entry.data_offsets;
        let info = TensorInfo {
            stored_name: name.clone(),
            dtype: entry.dtype,
            shape: entry.shape,
            bytes: (end - start) as u64,
            offset: data_start + start as u64,
            file: file.clone(),
        };
        (name, info)
    };
    Ok(entries.into_iter().map(tensor).collect())
}

fn header_length(path: &Path, file: &File, file_bytes: u64, bytes_left: u64) -> Result<u64> {
    if file_bytes < LENGTH_BYTES {
        return Err(Error::corrupt(
            path,
            format!(
                "has {file_bytes} bytes, too few for a safetensors file; is the download complete?"
            ),
        ));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    read_at(path, file, &mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > file_bytes - LENGTH_BYTES {
        let what = format!(
            "states a safetensors header of {length} bytes and has {file_bytes} in total; is the \
                download complete?"
        );
        return Err(Error::corrupt(path, what));
    }
    if length > bytes_left {
        let what = format!(
            "has a safetensors header of {length} bytes; the headers of all files may have \
             {MAX_HEADER_BYTES}, of which {bytes_left} are left"
        );
        return Err(Error::unsupported(path, what));
    }
    Ok(length)
}

fn read_at(path: &Path, file: &File, into: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(into, offset)
        .map_err(|source| Error::Io {
            path: path.into(),
            source,
        })
}

/// The JSON header: the file's description of each tensor.
struct Header {
    entries: BTreeMap<String, Entry>,
    format: Option<String>,
}

// Parsed here and not by the safetensors crate, which keeps the last of two tensors with the same
// name, and whose errors (here as in `check_layout`) do not name the tensor.
impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(header: D) -> std::result::Result<Self, D::Error> {
        header.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Header, M::Error> {
        let (mut tensors, mut format) = (BTreeMap::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                format = map
                    .next_value::<BTreeMap<String, String>>()?
                    .remove("format");
            } else if tensors.insert(name.clone(), map.next_value()?).is_some() {
                return Err(M::Error::custom(format_args!(
                    "tensor `{name}` is listed twice"
                )));
            }
        }
        Ok(Header {
            entries: tensors,
            format,
        })
    }
}

/// Checks that the tensors cover the data from its first byte to its last, without gaps or
/// overlaps, each with the size that its dtype and shape require.
fn check_layout(
    tensors: &BTreeMap<String, Entry>,
    data_bytes: u64,
) -> std::result::Result<(), String> {
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut expected = 0;
    for (
        name,
        Entry {
            dtype,
            shape,
            data_offsets: (start, end),
        },
    ) in by_offset
    {
        let Some(size) = size_in_bytes(*dtype, shape) else {
            return Err(format!(
                "tensor `{name}`: {dtype} {shape:?} is not a whole number of bytes that fits into \
                    memory"
            ));
        };
        if end.checked_sub(*start) != Some(size) {
            return Err(format!(
                "tensor `{name}`: {dtype} {shape:?} takes {size} bytes, and its data_offsets are \
                 {start} to {end}"
            ));
        }
        if *start != expected {
            return Err(format!(
                "tensor `{name}` starts at byte {start} of the data, expected {expected}: tensors \
                    overlap or leave a gap"
            ));
        }
        expected = *end;
    }
    if expected as u64 != data_bytes {
        return Err(format!(
            "the tensors take {expected} bytes and the file has {data_bytes} for them; is the \
             download complete?"
        ));
    }
    Ok(())
}

fn size_in_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn check_mlx_limits(tensors: &BTreeMap<String, Entry>) -> std::result::Result<(), String> {
    for (name, Entry { shape, .. }) in tensors {
        // Each dimension is checked too: a 0 among them makes the product small.
        if shape.iter().product::<usize>() > MAX_ELEMENTS
            || shape.iter().any(|&size| size > MAX_ELEMENTS)
        {
            return Err(format!(
                "tensor `{name}` has shape {shape:?}; MLX supports at most {MAX_ELEMENTS} elements"
            ));
        }
    }
    Ok(())
}
