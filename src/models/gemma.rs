//! The differences of the Gemma family from a plain decoder.

use crate::nn::{Activation, DecoderSettings};

/// Turns a plain decoder into Gemma's: norms of `1 + w`, GELU with tanh regardless of `hidden_act`
/// (<https://github.com/huggingface/transformers/pull/29402>), embeddings times the square root of
/// their width.
pub fn gemma(plain: DecoderSettings) -> DecoderSettings {
    DecoderSettings {
        norm_adds_one: true,
        gate: Activation::GeluTanh,
        embedding_scale: Some((plain.hidden_size as f32).sqrt()),
        ..plain
    }
}

/// Adds what Gemma 2 and later ones have: norms after each block, and a scale of attention scores
/// that does not depend on the heads' width.
pub fn gemma_2(first: DecoderSettings, attention_scale: f32) -> DecoderSettings {
    DecoderSettings {
        post_norms: true,
        attention_scale,
        ..first
    }
}
