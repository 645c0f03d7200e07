//! The Mistral decoder (<https://arxiv.org/abs/2310.06825>,
//! <https://github.com/huggingface/transformers/blob/v4.46.0/src/transformers/models/mistral/modeling_mistral.py>).

use mlx_rs::{Array, Dtype, error::Exception, ops::indexing::TryIndexOp};

use super::MistralConfig;
use crate::{
    Error, Result,
    checkpoint::Weights,
    nn::{Embedding, KeyValueCache, Linear, Mask, Matrix, RmsNorm, attention, causal_mask, rotate_heads, split_heads, swiglu},
    panic::inject_into,
};

/// Which rows the output head runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Each token's.
    All,
    /// The last token's: all that generation needs of a prompt.
    Last,
}

/// A Mistral language model.
#[derive(Debug, Clone)]
pub struct MistralDecoder {
    /// Its configuration.
    pub config: MistralConfig,
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None`: the embedding is the head.
    lm_head: Option<Linear>,
    dtype: Dtype,
}

impl MistralDecoder {
    /// Reads `model.*` and `lm_head`. `dtype` is that of the activations.
    pub fn load(weights: &Weights, config: &MistralConfig, dtype: Dtype) -> Result<MistralDecoder> {
        let model = weights.at("model");
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embed_tokens = Embedding::load(&model.at("embed_tokens"), vocabulary, hidden, dtype)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(Linear::load(&weights.at("lm_head"), vocabulary, hidden, dtype)?),
        };
        let blocks = (0..config.num_hidden_layers).map(|i| Block::load(&model.at("layers").at(i), config, dtype)).collect::<Result<_>>()?;
        let norm = RmsNorm::load(&model.at("norm"), hidden, config.rms_norm_eps, dtype)?;
        Ok(MistralDecoder { config: config.clone(), embed_tokens, blocks, norm, lm_head, dtype })
    }

    /// The matrices, by the paths of their modules.
    pub(super) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        all.push((format!("{path}.model.embed_tokens"), &mut self.embed_tokens.weight));
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let path = format!("{path}.model.layers.{i}");
            let linears = [
                ("self_attn.q_proj", &mut block.self_attn.q_proj),
                ("self_attn.k_proj", &mut block.self_attn.k_proj),
                ("self_attn.v_proj", &mut block.self_attn.v_proj),
                ("self_attn.o_proj", &mut block.self_attn.o_proj),
                ("mlp.gate_proj", &mut block.mlp.gate_proj),
                ("mlp.up_proj", &mut block.mlp.up_proj),
                ("mlp.down_proj", &mut block.mlp.down_proj),
            ];
            all.extend(linears.map(|(name, linear)| (format!("{path}.{name}"), &mut linear.weight)));
        }
        all.extend(self.lm_head.as_mut().map(|head| (format!("{path}.lm_head"), &mut head.weight)));
    }

    /// Decoder layers, and so the length of a cache.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Token ids as MLX takes them, `[1, tokens]`. Ids outside the vocabulary are refused: MLX would read past the table.
    pub fn id_array(&self, ids: &[u32]) -> Result<Array> {
        let vocabulary = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::InvalidArgument(format!("token id {id} is outside the model's vocabulary of {vocabulary}")));
        }
        Ok(Array::from_slice(ids, &[1, ids.len() as i32]))
    }

    /// `[batch, tokens]` ids to `[batch, tokens, hidden]`.
    pub fn embed(&self, ids: &Array) -> Result<Array, Exception> {
        self.embed_tokens.forward(ids)
    }

    /// Embeddings `[batch, tokens, hidden]` that follow what the cache holds, to logits `[batch, tokens or 1, vocabulary]`.
    pub fn forward<C: KeyValueCache>(&self, embeds: &Array, cache: &mut [C], rows: Rows) -> Result<Array> {
        self.forward_by_layers(embeds, cache, rows, &|| Ok(()))
    }

    /// Does what [`MistralDecoder::forward`] does and calls `poll` before every layer and before the head. An error from it ends the
    /// work; the cache is then as it was before. After [`Error::Backend`] it is of no use: MLX takes what it evaluated beside a failure
    /// for computed.
    pub fn forward_by_layers<C: KeyValueCache>(
        &self,
        embeds: &Array,
        cache: &mut [C],
        rows: Rows,
        poll: &dyn Fn() -> Result<()>,
    ) -> Result<Array> {
        cut_back_on_error(cache, |cache| {
            let hidden = self.hidden(embeds, cache, poll)?;
            let hidden = match rows {
                Rows::All => hidden,
                Rows::Last => hidden.try_index((.., -1.., ..))?,
            };
            poll()?;
            let hidden = self.norm.forward(&hidden)?;
            let logits = match &self.lm_head {
                Some(head) => head.forward(&hidden)?,
                None => self.embed_tokens.as_head(&hidden)?,
            };
            inject_into("head", logits)
        })
    }

    /// Fills the cache with embeddings `[batch, tokens, hidden]` of which no logits are wanted. Calls `poll` as
    /// [`MistralDecoder::forward_by_layers`] does.
    pub fn prefill_by_layers<C: KeyValueCache>(&self, embeds: &Array, cache: &mut [C], poll: &dyn Fn() -> Result<()>) -> Result<()> {
        cut_back_on_error(cache, |cache| Ok(self.hidden(embeds, cache, poll)?.eval()?))
    }

    fn hidden<C: KeyValueCache>(&self, embeds: &Array, cache: &mut [C], poll: &dyn Fn() -> Result<()>) -> Result<Array> {
        if cache.len() != self.blocks.len() {
            let what = format!("a cache of {} layers for a decoder of {}", cache.len(), self.blocks.len());
            return Err(Exception::custom(what).into());
        }
        let offset = cache.first().map_or(0, |cache| cache.offset());
        let tokens = embeds.dim(1) as usize;
        let mask = causal_mask(tokens, offset as usize, self.config.sliding_window);
        // Without this an operation of a GPU would be queued for all layers, and `poll` could not end it. A single token takes no longer
        // than a layer of a long prompt.
        let by_layers = self.dtype == Dtype::Float32 || tokens > 1;
        let mut x = embeds.clone();
        for (block, cache) in self.blocks.iter().zip(cache) {
            poll()?;
            x = inject_into("decoder", block.forward(&x, mask, cache)?)?;
            if by_layers {
                x.eval()?; // on the CPU also: weights widened for this layer go before the next
            }
        }
        Ok(x)
    }
}

/// Calls `f`; where it fails, every layer's cache forgets what was added.
fn cut_back_on_error<C: KeyValueCache, T>(cache: &mut [C], f: impl FnOnce(&mut [C]) -> Result<T>) -> Result<T> {
    let offset = cache.first().map_or(0, |cache| cache.offset());
    f(cache).inspect_err(|_| {
        // What is reported is the error that came first.
        cache.iter_mut().for_each(|cache| drop(cache.truncate(offset)));
    })
}

#[derive(Debug, Clone)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn load(weights: &Weights, config: &MistralConfig, dtype: Dtype) -> Result<Block> {
        let norm = |name: &str| RmsNorm::load(&weights.at(name), config.hidden_size, config.rms_norm_eps, dtype);
        Ok(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(&weights.at("self_attn"), config, dtype)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&weights.at("mlp"), config, dtype)?,
        })
    }

    /// `[batch, tokens, hidden]` to the same shape.
    fn forward<C: KeyValueCache>(&self, x: &Array, mask: Mask, cache: &mut C) -> Result<Array, Exception> {
        let x = x.add(self.self_attn.forward(&self.input_layernorm.forward(x)?, mask, cache)?)?;
        x.add(self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?)
    }
}

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    head_dim: i32,
    rope_theta: f32,
}

impl Attention {
    fn load(weights: &Weights, config: &MistralConfig, dtype: Dtype) -> Result<Attention> {
        let (hidden, head) = (config.hidden_size, config.head_dim());
        let (queries, keys) = (config.num_attention_heads * head, config.num_key_value_heads * head);
        Ok(Attention {
            q_proj: Linear::load(&weights.at("q_proj"), queries, hidden, dtype)?,
            k_proj: Linear::load(&weights.at("k_proj"), keys, hidden, dtype)?,
            v_proj: Linear::load(&weights.at("v_proj"), keys, hidden, dtype)?,
            o_proj: Linear::load(&weights.at("o_proj"), hidden, queries, dtype)?,
            head_dim: head as i32,
            rope_theta: config.rope_theta(),
        })
    }

    /// `[batch, tokens, hidden]` to the same shape.
    fn forward<C: KeyValueCache>(&self, x: &Array, mask: Mask, cache: &mut C) -> Result<Array, Exception> {
        let rotate = |x: Array| rotate_heads(&x, self.head_dim, self.rope_theta, cache.offset());
        let (queries, keys) = (rotate(self.q_proj.forward(x)?)?, rotate(self.k_proj.forward(x)?)?);
        let (keys, values) = cache.update_and_fetch(keys, split_heads(&self.v_proj.forward(x)?, self.head_dim)?)?;
        self.o_proj.forward(&attention(&queries, &keys, &values, mask)?)
    }
}

/// SwiGLU (<https://arxiv.org/abs/2002.05202>).
#[derive(Debug, Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(weights: &Weights, config: &MistralConfig, dtype: Dtype) -> Result<Mlp> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            gate_proj: Linear::load(&weights.at("gate_proj"), inner, hidden, dtype)?,
            up_proj: Linear::load(&weights.at("up_proj"), inner, hidden, dtype)?,
            down_proj: Linear::load(&weights.at("down_proj"), hidden, inner, dtype)?,
        })
    }

    /// `[batch, tokens, hidden]` to the same shape.
    fn forward(&self, x: &Array) -> Result<Array, Exception> {
        swiglu(x, &self.gate_proj, &self.up_proj, &self.down_proj)
    }
}
