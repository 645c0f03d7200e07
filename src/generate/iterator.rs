//! The plain token iterator that moxin-vlm-mlx's users know. Sessions do more: stop rules, text, several turns.

use mlx_rs::{
    Array,
    error::Exception,
    ops::indexing::{TryIndexOp, argmax_axis},
    random::categorical,
};

use crate::{Result, models::moxin::MoxinVLM, nn::KeyValueCache};

/// One token for each row of logits `[batch, vocabulary]`: the likeliest at temperature 0, else drawn from MLX's global random state.
pub fn sample(logits: &Array, temperature: f32) -> Result<Array, Exception> {
    if temperature == 0.0 {
        argmax_axis(logits, -1, false)
    } else {
        categorical(logits.multiply(Array::from_f32(1.0 / temperature))?, None, None, None)
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
    Prefill { dino: Array, siglip: Array, ids: Array },
    Decode(Array),
    Done,
}

impl<'a, C: KeyValueCache + Default> Generate<'a, C> {
    /// Begins with a picture, as [`MoxinVLM::forward`] takes it, and the ids of a prompt, `[1, tokens]`. The cache is empty or fresh.
    pub fn new(
        model: &'a mut MoxinVLM,
        cache: &'a mut Vec<C>,
        temperature: f32,
        dino_image: Array,
        siglip_image: Array,
        input_ids: Array,
    ) -> Self {
        Generate { model, cache, temperature, next: Next::Prefill { dino: dino_image, siglip: siglip_image, ids: input_ids } }
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

    /// The next token, `[1]`. After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let logits = match std::mem::replace(&mut self.next, Next::Done) {
            Next::Done => return None,
            Next::Prefill { dino, siglip, ids } => self.model.forward(&dino, &siglip, &ids, self.cache),
            Next::Decode(token) => self.model.decode_token(&token, self.cache),
        };
        Some(logits.and_then(|logits| self.step(logits)))
    }
}
