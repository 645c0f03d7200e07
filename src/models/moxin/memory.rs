//! How much memory a model takes, reckoned from its configuration and the headers of its weights before any of them is read.
//!
//! On the CPU activations are float32 and matrices keep the dtype they are stored in. A bfloat16 matrix is widened for each product, and MLX
//! makes all products of a layer ready before the first has run: so a layer in work takes the float32 copies of all its matrices. On a GPU
//! everything is in the dtype of the activations and nothing is widened. Nor is anything where our own kernels compute: they take weights as
//! they are stored. Each of their threads has some blocks to work on, under 1 MiB together, which are not reckoned.
//!
//! How many arrays of which size are alive at once is MLX's affair; the numbers here were measured (`tests/memory.rs`).

use mlx_rs::Dtype;

use safetensors::tensor::Dtype as StoredDtype;

use super::{VLMConfig, load::ENCODERS};
use crate::{
    checkpoint::{Checkpoint, Plan, Quantization, TensorInfo},
    device::Arithmetic,
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
    /// One position's embedding.
    embedding: u64,
}

impl MemoryNeeds {
    /// For weights under the names that the modules use, which were checked to fit the configuration.
    pub(super) fn reckon(checkpoint: &Checkpoint, config: &VLMConfig, arithmetic: Arithmetic, plan: Plan) -> MemoryNeeds {
        let Arithmetic { dtype, own_kernels } = arithmetic;
        let text = &config.text_config;
        let item = item_size(dtype);
        let sizes = Sizes { checkpoint, dtype, own_kernels, plan };
        let language = "language_model.model.layers";
        let layer = (0..text.num_hidden_layers).map(|i| sizes.widened(&format!("{language}.{i}."))).max().unwrap_or(0);
        let head_name = if text.tie_word_embeddings { "language_model.model.embed_tokens." } else { "language_model.lm_head." };
        let width = (text.hidden_size + text.num_key_value_heads * text.head_dim()) as u64;
        // On the CPU each layer is done before the next is begun; where they are not, more of each remains. Our kernels take most in the MLP:
        // the gate and the up projection, and what comes of them packed for the last product.
        let (widths, inners, pairs) = match dtype {
            _ if own_kernels => (3, 3, 0),
            Dtype::Float32 => (6, 3, 1),
            _ => (14, 3, 1),
        };
        let weights = sizes.weights();
        MemoryNeeds {
            weights,
            load: weights + sizes.reading(),
            vision: sizes.vision(config),
            kv_per_token: 2 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim()) as u64 * item,
            layer,
            head: sizes.widened(head_name) + 3 * text.vocab_size as u64 * item,
            position: (widths * width + inners * text.intermediate_size as u64) * item,
            pair: pairs * text.num_attention_heads as u64 * item,
            embedding: text.hidden_size as u64 * item,
        }
    }

    /// The keys and values of a conversation of so many positions, as they are allocated.
    pub fn cache(&self, positions: usize) -> u64 {
        positions.next_multiple_of(KVCache::STEP as usize) as u64 * self.kv_per_token
    }

    /// What a step takes beyond weights and cache, of a prompt of so many positions that is read `chunk` at a time.
    pub fn step(&self, chunk: usize, positions: usize) -> u64 {
        let (chunk, positions) = (chunk.min(positions) as u64, positions as u64);
        // The first chunk is computed with the embeddings of the whole prompt, twice; the last one has the most to attend to.
        let first = chunk * chunk * self.pair + 2 * positions * self.embedding;
        let last = chunk * positions * self.pair + chunk * self.embedding;
        (self.layer + chunk * self.position + first.max(last)).max(self.head)
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

/// What the headers of a checkpoint tell.
struct Sizes<'a> {
    checkpoint: &'a Checkpoint,
    /// Of the activations.
    dtype: Dtype,
    own_kernels: bool,
    plan: Plan<'a>,
}

impl Sizes<'_> {
    fn tensors<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s TensorInfo)> {
        let names = self.checkpoint.tensor_names().filter(move |name| name.starts_with(prefix));
        names.filter_map(|name| Some((name, self.checkpoint.info(name)?)))
    }

    /// Whether a tensor stays as it is stored: on the CPU what matrices are made of, and quantized ones everywhere.
    fn stays(&self, tensor: &TensorInfo) -> bool {
        tensor.dtype == StoredDtype::U32 || self.dtype == Dtype::Float32 && (is_matrix(tensor) || is_scale(tensor))
    }

    /// The scheme that a matrix is quantized in while it is loaded.
    fn planned(&self, name: &str, tensor: &TensorInfo) -> Option<Quantization> {
        let path = name.strip_suffix(".weight").filter(|_| tensor.shape.len() == 2 && tensor.dtype != StoredDtype::U32)?;
        (self.plan)(path, tensor.shape[1])
    }

    /// Bytes of a number of a tensor once it is loaded, not quantized.
    fn item(&self, tensor: &TensorInfo) -> u64 {
        if self.stays(tensor) { tensor.dtype.bitsize() as u64 / 8 } else { item_size(self.dtype) }
    }

    /// Bytes of a tensor once it is loaded.
    fn held(&self, name: &str, tensor: &TensorInfo) -> u64 {
        match self.planned(name, tensor) {
            Some(quantization) => quantization.bytes(elements(tensor), self.item(tensor)),
            None => elements(tensor) * self.item(tensor),
        }
    }

    fn weights(&self) -> u64 {
        self.tensors("").map(|(name, tensor)| self.held(name, tensor)).sum()
    }

    /// What reading the largest tensor takes beyond its place: its bytes as they are in the file and, where it does not stay so, the array
    /// that is made of them first.
    fn reading(&self) -> u64 {
        let extra = |(name, tensor): (&str, &TensorInfo)| match self.planned(name, tensor) {
            None if self.stays(tensor) => tensor.bytes,
            _ => 2 * tensor.bytes,
        };
        self.tensors("").map(extra).max().unwrap_or(0)
    }

    /// Float32 copies of what is stored in another dtype below a path: matrices, or the scales of those that are quantized.
    fn widened(&self, prefix: &str) -> u64 {
        let wide = |(name, tensor): (&str, &TensorInfo)| {
            let numbers = match self.planned(name, tensor) {
                Some(quantization) => 2 * elements(tensor) / quantization.group_size as u64,
                None => elements(tensor),
            };
            let widens = (is_matrix(tensor) || is_scale(tensor)) && tensor.dtype != StoredDtype::U32 && self.item(tensor) < 4;
            if self.dtype == Dtype::Float32 && !self.own_kernels && widens { 4 * numbers } else { 0 }
        };
        self.tensors(prefix).map(wide).sum()
    }

    /// What encoding a picture takes. On the CPU each part is done before the next is begun.
    fn vision(&self, config: &VLMConfig) -> u64 {
        let encoders = (0..config.timm_model_ids.len()).map(|i| self.encoder(config, i));
        let pixels: u64 = config.image_sizes.iter().take(encoders.len()).map(|size| 12 * size.pow(2) as u64).sum();
        let projector = self.projector(config);
        let parts = encoders.max().unwrap_or(0).max(projector);
        if self.dtype == Dtype::Float32 { parts } else { parts + pixels }
    }

    /// An encoder's block at work, with the pixels.
    fn encoder(&self, config: &VLMConfig, i: usize) -> u64 {
        let encoder = ENCODERS[i];
        let rows = |name: &str| self.size(&format!("{encoder}.{name}"), 1);
        let (width, inner) = (rows("blocks.0.mlp.fc1.weight"), self.size(&format!("{encoder}.blocks.0.mlp.fc1.weight"), 0));
        let tokens = rows("pos_embed") + rows("reg_token") + rows("cls_token");
        let heads = config.num_heads(i).unwrap_or(1) as u64;
        let pixels = 3 * config.image_sizes[i].pow(2) as u64;
        let activations = match self.own_kernels {
            true => tokens * (4 * width + 3 * inner) + 2 * pixels,
            false => tokens * (10 * width + 5 * inner) + heads * tokens * tokens + 2 * pixels,
        };
        self.widened(&format!("{encoder}.blocks.0.")) + activations * item_size(self.dtype)
    }

    fn projector(&self, config: &VLMConfig) -> u64 {
        let (inner, input) = (self.size("projector.fc1.weight", 0), self.size("projector.fc1.weight", 1));
        let tokens = self.size(&format!("{}.pos_embed", ENCODERS[0]), 1);
        let outside = input + config.text_config.hidden_size as u64;
        let activations = match self.own_kernels {
            true => tokens * (3 * inner + outside),
            false => tokens * (4 * inner + 2 * outside),
        };
        self.widened("projector.") + activations * item_size(self.dtype)
    }

    /// One side of a tensor.
    fn size(&self, name: &str, axis: usize) -> u64 {
        self.checkpoint.info(name).and_then(|tensor| tensor.shape.get(axis)).map_or(0, |size| *size as u64)
    }
}

fn elements(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().product::<usize>() as u64
}

/// The weight of a linear layer, a convolution or an embedding.
fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.stored_name.ends_with(".weight") && tensor.shape.len() >= 2
}

/// Scales and biases of a quantized matrix.
fn is_scale(tensor: &TensorInfo) -> bool {
    tensor.stored_name.ends_with(".scales") || tensor.stored_name.ends_with(".biases")
}

fn item_size(dtype: Dtype) -> u64 {
    if dtype == Dtype::Float32 { 4 } else { 2 }
}
