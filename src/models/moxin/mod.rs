//! Moxin-7B VLM and its Prismatic relatives (<https://arxiv.org/abs/2402.07865>): one or two vision encoders side by side, an MLP projector, a
//! Mistral decoder.
//!
//! A picture becomes one token a patch. Its tokens stand between the beginning-of-sequence token and the text; there is no placeholder token.

mod config;
mod load;
mod memory;
mod mistral;
mod projector;
mod quantize;
mod save;

pub use config::{MistralConfig, TokenIds, VLMConfig};
pub(crate) use load::{Source, is_vision};
pub use load::{load_model, load_model_on};
pub use memory::MemoryNeeds;
pub use mistral::{MistralDecoder, Rows};
pub use projector::{FusedMLPProjector, load_projector};
pub use quantize::QuantizeOptions;
pub(crate) use save::most_common;

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp},
};

use crate::{
    Error, Result,
    image::Pixels,
    nn::{KVCache, KeyValueCache, ViTEncoder},
};

/// A Prismatic vision-language model.
#[derive(Debug, Clone)]
pub struct MoxinVLM {
    /// One or two vision encoders (DINOv2 then SigLIP); their features are concatenated channel by channel.
    pub encoders: Vec<ViTEncoder>,
    /// From vision features to the decoder's space.
    pub projector: FusedMLPProjector,
    /// The language model.
    pub decoder: MistralDecoder,
    /// The dtype of activations.
    pub dtype: Dtype,
}

impl MoxinVLM {
    /// An empty cache for one conversation, a layer each.
    pub fn new_cache(&self) -> Vec<KVCache> {
        vec![KVCache::new(); self.decoder.layers()]
    }

    /// Tokens that a picture takes.
    pub fn image_tokens(&self) -> usize {
        self.encoders.first().map_or(0, |encoder| encoder.config.num_patches())
    }

    /// Features of each encoder, `[1, patches, width]`, for processed pixels.
    pub fn encode(&self, pixels: &Pixels) -> Result<Vec<Array>> {
        self.encode_by_blocks(pixels, &|_| Ok(()))
    }

    /// [`MoxinVLM::encode`] that tells `progress` the part that is done, 0 to 1, after every block; an error from it ends the work.
    pub fn encode_by_blocks(&self, pixels: &Pixels, progress: &dyn Fn(f32) -> Result<()>) -> Result<Vec<Array>> {
        let blocks: usize = self.encoders.iter().map(ViTEncoder::blocks).sum();
        let mut done = 0;
        let mut each = || {
            done += 1;
            progress(done as f32 / blocks as f32)
        };
        let encoders = self.encoders.iter().enumerate();
        encoders.map(|(i, encoder)| encoder.forward_by_blocks(&self.encoder_input(pixels, i)?, &mut each)).collect()
    }

    /// Encoder features to image tokens in the decoder's space, `[1, patches, hidden]`.
    pub fn project(&self, features: &[Array]) -> Result<Array> {
        self.project_by_layers(features, &|| Ok(()))
    }

    /// Does what [`MoxinVLM::project`] does and calls `poll` before every layer. An error from it ends the work.
    pub fn project_by_layers(&self, features: &[Array], poll: &dyn Fn() -> Result<()>) -> Result<Array> {
        self.projector.forward_by_layers(&concatenate(features, -1)?, poll)
    }

    /// The decoder's input for a prompt, `[1, tokens, hidden]`: the first token, the picture's tokens if there are any, the rest.
    pub fn embed(&self, ids: &[u32], image: Option<&Array>) -> Result<Array> {
        let embeds = self.decoder.embed(&self.decoder.id_array(ids)?)?;
        Ok(match image {
            Some(image) => splice(&embeds, image)?,
            None => embeds,
        })
    }

    /// Logits `[batch, tokens, vocabulary]` of a whole prompt, as moxin-vlm-mlx's users know it.
    ///
    /// * `dino_image`, `siglip_image`: normalized pictures `[batch, height, width, 3]`
    /// * `input_ids`: `[batch, tokens]`, beginning-of-sequence token first; each id below the vocabulary's size
    /// * `cache`: empty, or as [`MoxinVLM::new_cache`] makes it
    pub fn forward<C: KeyValueCache + Default>(
        &self,
        dino_image: &Array,
        siglip_image: &Array,
        input_ids: &Array,
        cache: &mut Vec<C>,
    ) -> Result<Array> {
        let [dino, siglip] = self.encoders.as_slice() else {
            return Err(Error::InvalidState(format!("this model has {} vision encoder, forward needs two", self.encoders.len())));
        };
        let image = self.project(&[dino.forward(dino_image)?, siglip.forward(siglip_image)?])?;
        let embeds = splice(&self.decoder.embed(input_ids)?, &image)?;
        self.fill(cache);
        self.decoder.forward(&embeds, cache, Rows::All)
    }

    /// Logits `[batch, 1, vocabulary]` after one more token, `[batch]` or `[batch, 1]`.
    pub fn decode_token<C: KeyValueCache + Default>(&self, token: &Array, cache: &mut Vec<C>) -> Result<Array> {
        let embeds = self.decoder.embed(&token.reshape(&[-1, 1])?)?;
        self.fill(cache);
        self.decoder.forward(&embeds, cache, Rows::Last)
    }

    fn fill<C: KeyValueCache + Default>(&self, cache: &mut Vec<C>) {
        if cache.is_empty() {
            cache.resize_with(self.decoder.layers(), C::default);
        }
    }

    /// The `i`th encoder's share of the pixels, `[1, height, width, 3]`.
    fn encoder_input(&self, pixels: &Pixels, i: usize) -> Result<Array> {
        let plane = pixels.height * pixels.width;
        let share = pixels.data.get(i * 3 * plane..(i + 1) * 3 * plane).ok_or_else(|| {
            Error::InvalidArgument(format!("{} channels of pixels; the model has {} encoders of 3", pixels.channels, self.encoders.len()))
        })?;
        let planes = Array::from_slice(share, &[1, 3, pixels.height as i32, pixels.width as i32]);
        Ok(planes.transpose_axes(&[0, 2, 3, 1])?)
    }
}

/// Puts image tokens behind the first text token.
fn splice(text: &Array, image: &Array) -> Result<Array, Exception> {
    let first = text.try_index((.., ..1, ..))?;
    let rest = text.try_index((.., 1.., ..))?;
    concatenate(&[&first, image, &rest], 1)
}

/// Normalizes pictures `[batch, height, width, 3]` in 0 to 1 for the DINOv2 encoder.
///
/// The statistics are ImageNet's, rounded to bfloat16: the checkpoint's processor was saved so, and the model runs with these values.
#[allow(clippy::excessive_precision)] // bfloat16 values, written out in full
pub fn normalize_dino(image: &Array) -> Result<Array> {
    normalize(image, [0.484375, 0.455078125, 0.40625], [0.228515625, 0.2236328125, 0.224609375])
}

/// Normalizes pictures `[batch, height, width, 3]` in 0 to 1 for the SigLIP encoder: to -1 to 1.
pub fn normalize_siglip(image: &Array) -> Result<Array> {
    normalize(image, [0.5; 3], [0.5; 3])
}

fn normalize(image: &Array, mean: [f32; 3], std: [f32; 3]) -> Result<Array> {
    Ok(image.subtract(Array::from_slice(&mean, &[3]))?.divide(Array::from_slice(&std, &[3]))?)
}
