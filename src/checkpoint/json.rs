//! JSON files.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::open_file;
use crate::{Error, Result};

/// No JSON file of a model comes near: the largest, `tokenizer.json`, has up to about 35 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a JSON file, at most 64 MiB long. `what` says what the file is for, should it be missing.
///
/// Fails with [`Error::NotFound`], [`Error::Io`], or [`Error::CorruptModel`] that names the field, line and column at fault.
pub fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    let (file, size) = open_file(path, what)?;
    if size > MAX_BYTES {
        return Err(Error::corrupt(path, format!("{what} has {size} bytes; expected at most {MAX_BYTES}")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| Error::io(path, what, e))?;
    parse(&bytes).map_err(|e| Error::corrupt(path, e))
}

/// Parses one JSON value; an error names the field where it is known.
pub(super) fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> std::result::Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| match e.path().to_string().as_str() {
        "." => e.to_string(),
        field => format!("field `{field}`: {}", e.inner()),
    })?;
    json.end().map_err(|e| e.to_string())?;
    Ok(value)
}
