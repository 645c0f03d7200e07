//! What a program holds: [`Model`], [`Session`], [`Embedding`]. They may be used from any thread, in any number.
//!
//! All MLX work happens on one thread that the library owns. Operations queue for it and each takes one turn: a session's is one chunk of a
//! prompt or one token, so that sessions advance side by side.

mod engine;
mod model;
mod op;
mod session;

pub use model::{Embedding, LoadOptions, Model, ModelInfo};
pub use op::{Cancel, Op, Stage};
pub use session::Session;

pub(crate) use engine::panic_text;
