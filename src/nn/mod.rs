//! Layers shared by models. A layer is a struct of tensors with a `forward` method. It loads its
//! own tensors from a [`Weights`] view under the names of its fields. Each `forward` documents its
//! shapes. [`ops`](crate::device::ops) does the computing.
//!
//! [`Weights`]: crate::checkpoint::Weights

mod clip;
mod decoder;
mod kv_cache;
mod linear;
mod matrix;
mod norm;
mod pixel_shuffle;
mod qwen_vit;
mod rotary;
mod vit;
mod windows;

pub use clip::{ClipConfig, ClipEncoder};
pub use decoder::{Decoder, DecoderSettings, Features, Input, Row, Segment, Want};
pub use kv_cache::{ConcatKeyValueCache, KVCache, KeyValueCache};
pub use linear::{Embedding, GatedMlp, Linear};
pub use matrix::{Matrix, QuantizedMatrix};
pub use norm::{LayerNorm, RmsNorm};
pub use pixel_shuffle::pixel_shuffle;
pub use qwen_vit::{QwenVitConfig, QwenVitEncoder};
pub use rotary::{Rope, RopeKind, RopeScaling};
pub use vit::{ViTConfig, ViTEncoder, load_vit_encoder};
pub use windows::Windows;

pub use crate::device::ops::Activation;
pub(crate) use matrix::load_vector;
