//! The API of moxin-vlm-mlx, on top of this library: a Prismatic model on one thread, with MLX
//! arrays. [`Session`](crate::Session) offers more: stop rules, text, several messages, any model.

use std::path::Path;

use mlx_rs::{
    Array,
    error::Exception,
    ops::{
        concatenate,
        indexing::{TryIndexOp, argmax_axis},
    },
    random::categorical,
};

use crate::{
    Error, Result,
    checkpoint::{Quantization, Weights},
    device::{Backend, Device, Dtype},
    image::Pixels,
    models::{
        ModelFolder, QuantizeOptions,
        prismatic::{self, PrismaticVision},
        quantize_matrix,
    },
    nn::{Decoder, Input, KVCache, KeyValueCache, Matrix, Row, Segment, Want},
};

/// Loads a model for the calling thread, on the best available backend.
///
/// # Errors
/// The error names the file and the field or tensor; see [`Error`].
///
/// # Example
/// ```
/// # fn main() -> moxin_vlm::Result<()> {
/// let model = moxin_vlm::load_model("models/tiny")?;
/// assert_eq!(model.image_tokens(), 64);
/// # Ok(()) }
/// ```
pub fn load_model(folder: impl AsRef<Path>) -> Result<MoxinVLM> {
    let device = Device::new(Backend::Auto)?;
    device.run(|| load_model_on(folder.as_ref(), &device, None, &|_, _| Ok(())))
}

/// Loads a model for `device`. The progress callback receives the bytes loaded and their total; an
/// error from it stops the loading.
///
/// Refuses a model that needs more than `memory_limit` bytes, or more than are available.
pub fn load_model_on(
    folder: &Path,
    device: &Device,
    memory_limit: Option<u64>,
    progress: &dyn Fn(u64, u64) -> Result<()>,
) -> Result<MoxinVLM> {
    let folder = ModelFolder::open(folder)?;
    if folder.model_type != "prismatic" {
        let what = format!(
            "model_type is {:?}; load_model reads \"prismatic\", and Model::load all others too",
            folder.model_type
        );
        return Err(Error::unsupported(&folder.files.config_path, what));
    }
    let vision = |weights: &Weights| prismatic::load_vision(&folder.files, weights, device);
    let (vision, decoder, _) =
        folder.load_with(device, memory_limit, &|_, _| None, progress, vision)?;
    Ok(MoxinVLM {
        vision,
        decoder,
        dtype: device.dtype,
    })
}

/// A Prismatic vision-language model.
#[derive(Debug, Clone)]
pub struct MoxinVLM {
    /// One or two vision encoders (DINOv2 then SigLIP), and the projector.
    pub vision: PrismaticVision,
    /// The language model.
    pub decoder: Decoder,
    /// The dtype of activations.
    pub dtype: Dtype,
}

impl MoxinVLM {
    /// Returns an empty cache for one conversation, one entry per layer.
    pub fn new_cache(&self) -> Vec<KVCache> {
        self.decoder.new_cache()
    }

    /// Returns the number of tokens per picture.
    pub fn image_tokens(&self) -> usize {
        self.vision
            .encoders
            .first()
            .map_or(0, |encoder| encoder.config.num_patches())
    }

    /// Returns the features of each encoder, `[1, patches, width]`, for processed pixels.
    pub fn encode(&self, pixels: &Pixels) -> Result<Vec<Array>> {
        self.vision.encode_by_blocks(pixels, &|_| Ok(()))
    }

    /// Projects encoder features to image tokens in the decoder's space, `[1, patches, hidden]`.
    pub fn project(&self, features: &[Array]) -> Result<Array> {
        self.vision.project_by_layers(features, &|| Ok(()))
    }

    /// Returns the decoder's input for a prompt, `[1, tokens, hidden]`: the first token, the
    /// picture's tokens if there are any, then the rest.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an id is outside the vocabulary, because MLX would read past
    /// the table.
    pub fn embed(&self, ids: &[u32], image: Option<&Array>) -> Result<Array> {
        let vocabulary = self.decoder.settings().vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::InvalidArgument(format!(
                "token id {id} is outside the model's vocabulary of {vocabulary}"
            )));
        }
        let embeds = self
            .decoder
            .embed(&Array::from_slice(ids, &[1, ids.len() as i32]))?;
        Ok(match image {
            Some(image) => splice(&embeds, image)?,
            None => embeds,
        })
    }

    /// Returns the logits of embeddings `[batch, tokens, hidden]` that follow the content of the
    /// cache: `[batch, tokens, vocabulary]`, or those of the last token only.
    ///
    /// Calls `poll` before every layer. If it fails, the work stops with its error, and the cache
    /// is unchanged.
    pub fn forward_embeddings<C: KeyValueCache>(
        &self,
        embeddings: &Array,
        cache: &mut [C],
        want: Want,
        poll: &dyn Fn() -> Result<()>,
    ) -> Result<Option<Array>> {
        let start = cache.first().map_or(0, |cache| cache.offset());
        let rows: Vec<Row> = (start..start + embeddings.dim(1))
            .map(|i| Row::causal(Row::NO_ID, [i; 3], i as usize))
            .collect();
        let segment = Segment {
            input: Input::Embeddings(embeddings),
            rows: &rows,
            features: &[],
            cache,
            want,
        };
        self.decoder
            .forward(&mut [segment], &|_| poll())
            .pop()
            .unwrap_or(Ok(None))
    }

    /// Returns the logits `[batch, tokens, vocabulary]` of a whole prompt.
    ///
    /// * `dino_image`, `siglip_image`: normalized pictures `[batch, height, width, 3]`
    /// * `input_ids`: `[batch, tokens]`, beginning-of-sequence token first; each id is below the
    ///   vocabulary size
    /// * `cache`: empty, or from [`MoxinVLM::new_cache`]
    pub fn forward<C: KeyValueCache + Default>(
        &self,
        dino_image: &Array,
        siglip_image: &Array,
        input_ids: &Array,
        cache: &mut Vec<C>,
    ) -> Result<Array> {
        let [dino, siglip] = self.vision.encoders.as_slice() else {
            return Err(Error::InvalidState(format!(
                "this model has {} vision encoder, forward needs two",
                self.vision.encoders.len()
            )));
        };
        let image = self.project(&[dino.forward(dino_image)?, siglip.forward(siglip_image)?])?;
        let embeds = splice(&self.decoder.embed(input_ids)?, &image)?;
        self.logits(&embeds, cache, Want::All)
    }

    /// Returns the logits `[batch, 1, vocabulary]` after one more token, `[batch]` or `[batch, 1]`.
    pub fn decode_token<C: KeyValueCache + Default>(
        &self,
        token: &Array,
        cache: &mut Vec<C>,
    ) -> Result<Array> {
        let embeds = self.decoder.embed(&token.reshape(&[-1, 1])?)?;
        self.logits(&embeds, cache, Want::Last)
    }

    fn logits<C: KeyValueCache + Default>(
        &self,
        embeds: &Array,
        cache: &mut Vec<C>,
        want: Want,
    ) -> Result<Array> {
        if cache.is_empty() {
            cache.resize_with(self.decoder.settings().layers, C::default);
        }
        let logits = self.forward_embeddings(embeds, cache, want, &|| Ok(()))?;
        logits.ok_or_else(|| Error::InvalidState("no logits were computed".into()))
    }

    /// Quantizes the language model, including its embedding and output head, with the defaults of
    /// mlx-community: see [`QuantizeOptions`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if MLX does not have the scheme.
    pub fn quantize(&mut self, group_size: usize, bits: usize) -> Result<()> {
        self.quantize_with(&QuantizeOptions {
            quantization: Quantization::affine(group_size, bits),
            ..QuantizeOptions::default()
        })
    }

    /// Quantizes what the options select, one matrix at a time. Matrices that are already quantized
    /// stay as they are.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if MLX does not have the scheme; [`Error::Backend`], after which
    /// some matrices are quantized and others are not. [`Model::quantize`](crate::Model::quantize),
    /// in contrast, leaves the model as it was.
    pub fn quantize_with(&mut self, options: &QuantizeOptions) -> Result<()> {
        options.check()?;
        self.matrices()
            .into_iter()
            .try_for_each(|(path, matrix)| quantize_matrix(&path, matrix, options))
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = crate::models::Vision::matrices(&mut self.vision);
        self.decoder.matrices("language_model", &mut all);
        all
    }
}

/// Inserts image tokens after the first text token.
fn splice(text: &Array, image: &Array) -> Result<Array, Exception> {
    let first = text.try_index((.., ..1, ..))?;
    let rest = text.try_index((.., 1.., ..))?;
    concatenate(&[&first, image, &rest], 1)
}

/// Normalizes pictures `[batch, height, width, 3]` in 0 to 1 for the DINOv2 encoder.
///
/// The statistics are ImageNet's, rounded to bfloat16: the checkpoint's processor was saved with
/// these values, and the model runs with them.
#[allow(clippy::excessive_precision)] // bfloat16 values, written in full
pub fn normalize_dino(image: &Array) -> Result<Array> {
    normalize(
        image,
        [0.484375, 0.455078125, 0.40625],
        [0.228515625, 0.2236328125, 0.224609375],
    )
}

/// Normalizes pictures `[batch, height, width, 3]` from 0 to 1 to -1 to 1, for the SigLIP encoder.
pub fn normalize_siglip(image: &Array) -> Result<Array> {
    normalize(image, [0.5; 3], [0.5; 3])
}

fn normalize(image: &Array, mean: [f32; 3], std: [f32; 3]) -> Result<Array> {
    Ok(image
        .subtract(Array::from_slice(&mean, &[3]))?
        .divide(Array::from_slice(&std, &[3]))?)
}

/// Samples one token for each row of logits `[batch, vocabulary]`: the most likely one at
/// temperature 0, otherwise a random one from MLX's global random state.
pub fn sample(logits: &Array, temperature: f32) -> Result<Array, Exception> {
    if temperature == 0.0 {
        argmax_axis(logits, -1, false)
    } else {
        categorical(
            logits.multiply(Array::from_f32(1.0 / temperature))?,
            None,
            None,
            None,
        )
    }
}

/// Generates tokens without end; the caller stops at the end-of-sequence token.
///
/// # Example
/// ```
/// use mlx_rs::{Array, ops::stack_axis};
/// use moxin_vlm::{Generate, KVCache, load_model, load_tokenizer, normalize_dino, normalize_siglip};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut model = load_model("models/tiny")?;
/// let tokenizer = load_tokenizer("models/tiny")?;
/// let picture = image::open("models/demo.png")?.resize_exact(112, 112, image::imageops::FilterType::CatmullRom).to_rgb32f();
/// let picture = Array::from_slice(picture.as_raw(), &[1, 112, 112, 3]);
/// let (dino, siglip) = (normalize_dino(&picture)?, normalize_siglip(&picture)?);
/// let ids = tokenizer.encode("In: How many shapes are there?\nOut:", true)?;
/// let ids = Array::from_slice(&ids, &[1, ids.len() as i32]);
///
/// let mut cache: Vec<KVCache> = Vec::new();
/// let mut answer = Vec::new();
/// for token in Generate::new(&mut model, &mut cache, 0.0, dino, siglip, ids).take(16) {
///     let token = token?.try_item_cast::<u32>()?;
///     if Some(token) == tokenizer.token_id("</s>") {
///         break;
///     }
///     answer.push(token);
/// }
/// assert!(!tokenizer.decode(&answer)?.is_empty());
/// # Ok(()) }
/// ```
pub struct Generate<'a, C> {
    model: &'a MoxinVLM,
    cache: &'a mut Vec<C>,
    temperature: f32,
    next: Next,
}

enum Next {
    Prefill {
        dino: Array,
        siglip: Array,
        ids: Array,
    },
    Decode(Array),
    Done,
}

impl<'a, C: KeyValueCache + Default> Generate<'a, C> {
    /// Starts with a picture, as [`MoxinVLM::forward`] takes it, and the ids of a prompt,
    /// `[1, tokens]`. The cache must be empty.
    pub fn new(
        model: &'a mut MoxinVLM,
        cache: &'a mut Vec<C>,
        temperature: f32,
        dino_image: Array,
        siglip_image: Array,
        input_ids: Array,
    ) -> Self {
        Generate {
            model,
            cache,
            temperature,
            next: Next::Prefill {
                dino: dino_image,
                siglip: siglip_image,
                ids: input_ids,
            },
        }
    }

    fn step(&mut self, logits: Array) -> Result<Array> {
        let token = sample(&logits.try_index((.., -1, ..))?, self.temperature)?;
        token.eval()?;
        self.next = Next::Decode(token.clone());
        Ok(token)
    }
}

impl<C: KeyValueCache + Default> Iterator for Generate<'_, C> {
    type Item = Result<Array>;

    /// Returns the next token, `[1]`. Returns `None` after an error.
    fn next(&mut self) -> Option<Self::Item> {
        let logits = match std::mem::replace(&mut self.next, Next::Done) {
            Next::Done => return None,
            Next::Prefill { dino, siglip, ids } => {
                self.model.forward(&dino, &siglip, &ids, self.cache)
            }
            Next::Decode(token) => self.model.decode_token(&token, self.cache),
        };
        Some(logits.and_then(|logits| self.step(logits)))
    }
}
