//! The error type of the whole library. Each variant says what was wrong, where, and what was
//! expected, so that a person can fix it.

use std::path::{Path, PathBuf};

use crate::panic::caught;

/// The result of an operation of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Calls `f` and turns a panic into [`Error::Panic`].
pub(crate) fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    caught(f).unwrap_or_else(|text| Err(Error::Panic(text)))
}

/// Why an operation failed. The text of each error is written for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder does not exist.
    #[error("{}: not found ({what})", path.display())]
    NotFound {
        /// The missing file or folder.
        path: PathBuf,
        /// What it was needed for.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file that was read or written.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file of the model is damaged or inconsistent.
    #[error("{}: {what}", path.display())]
    CorruptModel {
        /// The damaged file.
        path: PathBuf,
        /// The field or tensor, what was expected and what was found.
        what: String,
    },
    /// The model is valid, but of a kind that this library does not support.
    #[error("{}: {what}", path.display())]
    UnsupportedModel {
        /// The file that shows it.
        path: PathBuf,
        /// What is not supported, and what is.
        what: String,
    },
    /// An image cannot be read, is too large, or has an unknown format.
    #[error("image{}: {what}", path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    UnsupportedImage {
        /// The file, if the image came from one.
        path: Option<PathBuf>,
        /// What is wrong with it.
        what: String,
    },
    /// A pointer from C that must not be NULL is NULL.
    #[error("{0} is NULL")]
    NullArgument(&'static str),
    /// An argument is out of range.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The object is in a state that does not allow the call.
    #[error("{0}")]
    InvalidState(String),
    /// The caller cancelled the operation. All objects stay usable.
    #[error("cancelled")]
    Cancelled,
    /// The operation exceeded its time limit.
    #[error("timed out")]
    Timeout,
    /// Another operation is running on the same session.
    #[error("the session is busy with another operation; wait for it or cancel it")]
    Busy,
    /// The library is suspended; nothing computes until it is resumed.
    #[error("the library is suspended; resume it first")]
    Suspended,
    /// The prompt does not fit into the context.
    #[error(
        "the prompt needs at least {needed} tokens and the context holds {limit}; shorten the \
         conversation, give its images a smaller budget (max_pixels, max_tokens), or raise the context \
         limit"
    )]
    ContextFull {
        /// The minimum number of tokens for the prompt and an answer.
        needed: usize,
        /// The number of tokens that fit into the context.
        limit: usize,
    },
    /// The request needs more memory than is allowed.
    #[error("{what} needs {needed} bytes and {limit} are available")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes that may be used.
        limit: u64,
    },
    /// The requested backend is not in this build or not on this machine.
    #[error("backend unavailable: {0}")]
    BackendUnavailable(String),
    /// MLX reported an error.
    #[error("MLX: {0}")]
    Backend(#[source] mlx_rs::error::Exception),
    /// A bug in the library: a panic was caught. Please report it.
    #[error("internal error: {0}")]
    Panic(String),
}

impl Error {
    /// Wraps an I/O failure on `path`. A missing file becomes [`Error::NotFound`]; `what` says what
    /// it was for.
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

    /// Reports a damaged model file.
    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Error::CorruptModel {
            path: path.into(),
            what: what.into(),
        }
    }

    /// Reports a model that this library does not support.
    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Error::UnsupportedModel {
            path: path.into(),
            what: what.into(),
        }
    }
}
