//! Layers shared by models. A layer is a struct of arrays with a `forward`; it reads its own tensors from a [`Weights`] view, named beside its
//! fields. Shapes stand at each forward.
//!
//! [`Weights`]: crate::checkpoint::Weights

mod activation;
mod attention;
mod kv_cache;
mod linear;
mod matrix;
mod norm;
mod vit;

pub use activation::{Activation, silu, silu_times};
pub use attention::{Mask, attention, causal_mask, rotate_heads, split_heads};
pub use kv_cache::{ConcatKeyValueCache, KVCache, KeyValueCache};
pub use linear::{Embedding, Linear, swiglu};
pub use matrix::{Matrix, QuantizedMatrix};
pub use norm::{LayerNorm, RmsNorm};
pub use vit::{ViTConfig, ViTEncoder, load_vit_encoder};

pub(crate) use matrix::load_vector;
