//! One error type for the whole library. Each variant carries what a person needs to put the matter
//! right: what was wrong, where, and what was expected.

use std::path::{Path, PathBuf};

use crate::panic::caught;

/// What an operation of this library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Calls `f`; a panic in it becomes [`Error::Panic`].
pub(crate) fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    caught(f).unwrap_or_else(|text| Err(Error::Panic(text)))
}

/// Why an operation failed. The text of each is meant to be shown to a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder is not there.
    #[error("{}: not found ({what})", path.display())]
    NotFound {
        /// The missing file or folder.
        path: PathBuf,
        /// What it was to be used for.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file that was read or written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model's file is damaged or contradicts itself.
    #[error("{}: {what}", path.display())]
    CorruptModel {
        /// The file at fault.
        path: PathBuf,
        /// The field or tensor, what was expected and what was found.
        what: String,
    },
    /// The model is sound, but of a kind that this library does not run.
    #[error("{}: {what}", path.display())]
    UnsupportedModel {
        /// The file that says so.
        path: PathBuf,
        /// What is not supported, and what is.
        what: String,
    },
    /// An image cannot be read, is too large, or is of an unknown format.
    #[error("image{}: {what}", path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    UnsupportedImage {
        /// The file, where the image came from one.
        path: Option<PathBuf>,
        /// What is wrong with it.
        what: String,
    },
    /// A pointer from C that must not be NULL is.
    #[error("{0} is NULL")]
    NullArgument(&'static str),
    /// A value passed in is out of its range.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The call does not fit the state of its object.
    #[error("{0}")]
    InvalidState(String),
    /// The caller cancelled the operation; everything stays usable.
    #[error("cancelled")]
    Cancelled,
    /// The operation took longer than its time limit.
    #[error("timed out")]
    Timeout,
    /// Another operation is under way on the same session.
    #[error("the session is busy with another operation; wait for it or cancel it")]
    Busy,
    /// The library is suspended; nothing computes until it is resumed.
    #[error("the library is suspended; resume it first")]
    Suspended,
    /// Not enough room in the context for the prompt.
    #[error(
        "the prompt needs at least {needed} tokens and the context holds {limit}; shorten the \
         conversation, give its images fewer pixels (max_pixels), or raise the context limit"
    )]
    ContextFull {
        /// The fewest tokens that the prompt and an answer take.
        needed: usize,
        /// Tokens that the context holds.
        limit: usize,
    },
    /// What was asked for would need more memory than is allowed.
    #[error("{what} needs {needed} bytes and {limit} are available")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes that may be used.
        limit: u64,
    },
    /// The compute backend asked for is not in this build or on this machine.
    #[error("backend unavailable: {0}")]
    BackendUnavailable(String),
    /// MLX reported an error.
    #[error("MLX: {0}")]
    Backend(#[source] mlx_rs::error::Exception),
    /// The library itself is at fault: a panic was caught. Please report it.
    #[error("internal error: {0}")]
    Panic(String),
}

impl Error {
    /// An I/O failure on `path`; a missing file becomes [`Error::NotFound`] with `what` it was for.
    pub(crate) fn io(path: &Path, what: &str, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                path: path.into(),
                what: what.into(),
            },
            _ => Error::Io {
                path: path.into(),
                source,
            },
        }
    }

    /// A damaged model file.
    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Error::CorruptModel {
            path: path.into(),
            what: what.into(),
        }
    }

    /// A model that this library does not run.
    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Error::UnsupportedModel {
            path: path.into(),
            what: what.into(),
        }
    }
}
