//! Runs vision-language models on Apple's MLX, from the folders that Hugging Face and mlx-community
//! publish.
//!
//! Most programs need [`Model`] and [`Session`], which may be used from any thread:
//!
//! ```
//! use moxin_vlm::{Event, GenerationOptions, LoadOptions, Model, Op, Picture, Role};
//!
//! # fn main() -> moxin_vlm::Result<()> {
//! let model = Model::load("models/tiny", LoadOptions::default(), Op::default())?;
//! let session = model.session(GenerationOptions::default())?;
//! session.add_image(Picture::open("models/demo.png", &Default::default())?)?;
//! session.add_text(Role::User, "How many shapes are there?")?;
//! for event in session.generate() {
//!     match event? {
//!         Event::Text { text, .. } | Event::Finished { text, .. } => print!("{text}"),
//!         Event::Prefill { .. } => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! The modules below that layer ([`models`], [`nn`], [`checkpoint`]) can be used on a single
//! thread; see [`Generate`].
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod checkpoint;
pub mod compat;
pub mod device;
pub mod error;
pub mod ffi;
mod file;
pub mod generate;
pub mod image;
pub mod models;
pub mod nn;
mod panic;
mod process;
pub mod runtime;
pub mod text;

pub use checkpoint::{Mode, Quantization};
pub use compat::{Generate, MoxinVLM, load_model, normalize_dino, normalize_siglip, sample};
pub use device::Backend;
pub use error::{Error, Result};
pub use generate::{Event, FinishReason, GenerationOptions, SamplingParams, Stats};
pub use image::{DecodeOptions, Picture, PixelFormat, Video, VideoOptions};
pub use models::{
    Budget, Location, Place, QuantizeOptions,
    prismatic::{FusedMLPProjector, MistralConfig, Processor, VLMConfig, load_projector},
};
pub use nn::{
    ConcatKeyValueCache, KVCache, KeyValueCache, ViTConfig, ViTEncoder, load_vit_encoder,
};
pub use runtime::{
    Cancel, Embedding, LoadOptions, MemoryEstimate, Model, ModelInfo, Op, Session, Stage,
    StreamOptions, resume, suspend, trim_memory,
};
pub use text::{Message, Part, Role, Tokenizer, load_tokenizer};
