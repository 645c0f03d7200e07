//! JSON files.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result, file};

/// Reads a JSON file of at most 16 MiB. `what` says what the file is for, in case it is missing.
///
/// Fails with [`Error::NotFound`], [`Error::Io`], or [`Error::CorruptModel`] naming the field, line
/// and column.
pub fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    parse_file(path, &file::read_json(path, what, file::MAX_JSON_BYTES)?)
}

/// Parses the content of a JSON file.
pub(crate) fn parse_file<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    parse(bytes).map_err(|e| Error::corrupt(path, e))
}

/// Parses one JSON value. An error names the field if it is known.
pub(super) fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> std::result::Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        match e.path().to_string().as_str() {
            "." => e.to_string(),
            field => format!("field `{field}`: {}", e.inner()),
        }
    })?;
    json.end().map_err(|e| e.to_string())?;
    Ok(value)
}
