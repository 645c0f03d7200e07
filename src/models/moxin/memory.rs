//! How much memory a model takes, reckoned from its configuration and the headers of its weights before any of them is read.
//!
//! On the CPU activations are float32 and matrices keep the dtype they are stored in. A bfloat16 matrix is widened for each product, and MLX
//! makes all products of a layer ready before the first has run: so a layer in work takes the float32 copies of all its matrices. On a GPU
//! everything is in the dtype of the activations and nothing is widened.

use mlx_rs::Dtype;

use super::{VLMConfig, load::ENCODERS};
use crate::{
    checkpoint::{Checkpoint, TensorInfo},
    nn::KVCache,
};

/// Bytes that the parts of a model's work take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeeds {
    /// The weights, once loaded.
    pub weights: u64,
    /// The most during loading: the weights, and what the tensor that is being read takes beyond its place among them.
    pub load: u64,
    /// What encoding a picture takes beyond the weights.
    pub vision: u64,
    /// Keys and values of one position.
    pub kv_per_token: u64,
    /// Matrices of one decoder layer, widened.
    layer: u64,
    /// The output head, widened, and logits.
    head: u64,
    /// Activations of one position in a decoder layer.
    position: u64,
    /// Scores of one position's attention to another.
    pair: u64,
}

impl MemoryNeeds {
    /// For weights under the names that the modules use, which were checked to fit the configuration.
    pub(super) fn reckon(checkpoint: &Checkpoint, config: &VLMConfig, dtype: Dtype) -> MemoryNeeds {
        let text = &config.text_config;
        let item = item_size(dtype);
        let sizes = Sizes { checkpoint, dtype };
        let language = "language_model.model.layers";
        let layer = (0..text.num_hidden_layers).map(|i| sizes.widened(&format!("{language}.{i}."))).max().unwrap_or(0);
        let head_name = if text.tie_word_embeddings { "language_model.model.embed_tokens." } else { "language_model.lm_head." };
        let width = (text.hidden_size + text.num_key_value_heads * text.head_dim()) as u64;
        let weights = sizes.weights();
        MemoryNeeds {
            weights,
            load: weights + sizes.reading(),
            vision: (0..config.timm_model_ids.len()).map(|i| sizes.encoder(config, i)).max().unwrap_or(0).max(sizes.projector()),
            kv_per_token: 2 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim()) as u64 * item,
            layer,
            head: sizes.widened(head_name) + 3 * text.vocab_size as u64 * item,
            position: (LAYER_WIDTHS * width + LAYER_INNER_WIDTHS * text.intermediate_size as u64) * item,
            pair: SCORE_COPIES * text.num_attention_heads as u64 * item,
        }
    }

    /// The keys and values of a conversation of so many positions, as they are allocated.
    pub fn cache(&self, positions: usize) -> u64 {
        positions.next_multiple_of(KVCache::STEP as usize) as u64 * self.kv_per_token
    }

    /// What one step takes beyond weights and cache, that reads `tokens` positions behind which there are `positions` in all.
    pub fn step(&self, tokens: usize, positions: usize) -> u64 {
        let tokens = tokens.min(positions) as u64;
        let layer = self.layer + tokens * self.position + tokens * positions as u64 * self.pair;
        layer.max(self.head)
    }

    /// What a conversation takes beyond the weights when it has grown to so many positions.
    pub fn conversation(&self, positions: usize, chunk: usize) -> u64 {
        self.cache(positions) + self.step(chunk, positions)
    }

    /// The most that a model takes whose pictures are encoded and whose one conversation grows to so many positions.
    pub fn total(&self, positions: usize, chunk: usize) -> u64 {
        self.load.max(self.weights + self.vision.max(self.conversation(positions, chunk)))
    }
}

/// Arrays as wide as a token, keys and values included, that are alive at once in a decoder layer; measured.
const LAYER_WIDTHS: u64 = 8;
/// Arrays as wide as the inside of the MLP.
const LAYER_INNER_WIDTHS: u64 = 4;
/// Copies of the scores in attention.
const SCORE_COPIES: u64 = 2;
/// The same in a block of a vision encoder.
const BLOCK_WIDTHS: u64 = 10;
const BLOCK_INNER_WIDTHS: u64 = 5;

/// What the headers of a checkpoint tell.
struct Sizes<'a> {
    checkpoint: &'a Checkpoint,
    /// Of the activations.
    dtype: Dtype,
}

impl Sizes<'_> {
    fn tensors<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = &'s TensorInfo> {
        let names = self.checkpoint.tensor_names().filter(move |name| name.starts_with(prefix));
        names.filter_map(|name| self.checkpoint.info(name))
    }

    /// Bytes of a tensor once it is loaded: on the CPU matrices stay as they are stored.
    fn held(&self, tensor: &TensorInfo) -> u64 {
        if self.dtype == Dtype::Float32 && is_matrix(tensor) { tensor.bytes } else { elements(tensor) * item_size(self.dtype) }
    }

    fn weights(&self) -> u64 {
        self.tensors("").map(|tensor| self.held(tensor)).sum()
    }

    /// What reading the largest tensor takes beyond its place: its bytes as they are in the file and, where the dtype changes, the array
    /// that is made of them first.
    fn reading(&self) -> u64 {
        let extra = |tensor: &TensorInfo| if self.held(tensor) == tensor.bytes { tensor.bytes } else { 2 * tensor.bytes };
        self.tensors("").map(extra).max().unwrap_or(0)
    }

    /// Float32 copies of the matrices below a path, where they are stored in another dtype.
    fn widened(&self, prefix: &str) -> u64 {
        let wide = |tensor: &&TensorInfo| self.dtype == Dtype::Float32 && is_matrix(tensor) && tensor.bytes < elements(tensor) * 4;
        self.tensors(prefix).filter(wide).map(|tensor| elements(tensor) * 4).sum()
    }

    fn encoder(&self, config: &VLMConfig, i: usize) -> u64 {
        let encoder = ENCODERS[i];
        let shape = |name: &str| self.checkpoint.info(&format!("{encoder}.{name}")).map_or(&[][..], |tensor| &tensor.shape);
        let width = shape("pos_embed").last().copied().unwrap_or(0) as u64;
        let inner = shape("blocks.0.mlp.fc1.weight").first().copied().unwrap_or(0) as u64;
        let rows = |name: &str| shape(name).get(1).copied().unwrap_or(0) as u64;
        let tokens = rows("pos_embed") + rows("reg_token") + rows("cls_token");
        let heads = config.num_heads(i).unwrap_or(1) as u64;
        let activations = tokens * (BLOCK_WIDTHS * width + BLOCK_INNER_WIDTHS * inner) + SCORE_COPIES * heads * tokens * tokens;
        self.widened(&format!("{encoder}.blocks.0.")) + activations * item_size(self.dtype)
    }

    fn projector(&self) -> u64 {
        self.widened("projector.")
    }
}

fn elements(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().product::<usize>() as u64
}

/// The weight of a linear layer, a convolution or an embedding.
fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.stored_name.ends_with(".weight") && tensor.shape.len() >= 2
}

fn item_size(dtype: Dtype) -> u64 {
    if dtype == Dtype::Float32 { 4 } else { 2 }
}
