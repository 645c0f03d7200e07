//! How much memory a model takes, reckoned from its configuration and the headers of its weights before any of them is read.
//!
//! On the CPU activations are float32 and matrices keep the dtype they are stored in. A bfloat16 matrix is widened for each product, and MLX
//! makes all products of a layer ready before the first has run: so a layer in work takes the float32 copies of all its matrices. On a GPU
//! everything is in the dtype of the activations and nothing is widened. Nor is anything where our own kernels compute: they take weights as
//! they are stored. Each of their threads has some blocks to work on, under 1 MiB together, which are not reckoned.
//!
//! How many arrays of which size are alive at once is MLX's affair; the numbers here were measured (`tests/memory.rs`, and
//! `tests/adversary/memory.rs`, which compares them with what the process takes).
//!
//! A configuration may ask for more than any number of bytes can say: all sums and products saturate, and `u64::MAX` bytes are never there.

use std::{collections::BTreeMap, num::Saturating};

use mlx_rs::Dtype;

use safetensors::tensor::Dtype as StoredDtype;

use super::{VLMConfig, load::ENCODERS};
use crate::{
    checkpoint::{Checkpoint, Plan, Quantization, TensorInfo},
    device::Arithmetic,
    image::Processor,
    nn::KVCache,
};

/// Bytes, and numbers of things that have bytes.
type Count = Saturating<u64>;

/// Bytes that the parts of a model's work take. Where one is more than can be said it is `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeeds {
    /// The weights, once loaded.
    pub weights: u64,
    /// The most during loading: the weights, and what the tensor that is being read takes beyond its place among them.
    pub load: u64,
    /// What encoding a picture takes beyond the weights, its pixels included.
    pub vision: u64,
    /// Keys and values of one position.
    pub kv_per_token: u64,
    /// Matrices of one decoder layer, widened.
    layer: Count,
    /// The output head, widened, and logits.
    head: Count,
    /// Activations of one position in a decoder layer.
    position: Count,
    /// Scores of one position's attention to another.
    pair: Count,
    /// The place of one position's attention to another in the mask of a window.
    mask: Count,
    /// Scores of a single position's attention to another.
    single: Count,
    /// Positions that a position sees at most, itself included.
    window: usize,
    /// One position's embedding.
    embedding: Count,
}

impl MemoryNeeds {
    /// Computes the needs of weights under the names that the modules use.
    pub(super) fn reckon(checkpoint: &Checkpoint, config: &VLMConfig, arithmetic: Arithmetic, plan: Plan) -> MemoryNeeds {
        let Arithmetic { dtype, own_kernels } = arithmetic;
        let text = &config.text_config;
        let item = item_size(dtype);
        let sizes = Sizes { checkpoint, dtype, own_kernels, plan };
        let head_name = if text.tie_word_embeddings { "language_model.model.embed_tokens." } else { "language_model.lm_head." };
        let [heads, kv_heads, head_dim] = [text.num_attention_heads, text.num_key_value_heads, text.head_dim()].map(count);
        let (hidden, layers, inner) = (count(text.hidden_size), count(text.num_hidden_layers), count(text.intermediate_size));
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let [three, four, six, fourteen] = [3, 4, 6, 14].map(Saturating);
        // On the CPU each layer is done before the next is begun; where they are not, more of each remains. Our kernels take most in the MLP,
        // for the gate and the up projection, and what comes of them packed for the last product; or in attention, where heads are many.
        let numbers = match dtype {
            _ if own_kernels => (three * (hidden + keys) + three * inner).max(three * hidden + four * (queries + keys)),
            Dtype::Float32 => six * (hidden.max(queries) + keys) + three * inner,
            _ => fourteen * (hidden.max(queries) + keys) + three * inner,
        };
        // Our kernels keep no scores of several queries, and the window is no array to them.
        let none = Saturating(0);
        let (pair, mask, single) = if own_kernels { (none, none, heads * four) } else { (heads * item, three, none) };
        let weights = sizes.weights();
        MemoryNeeds {
            weights: weights.0,
            load: (weights + sizes.reading()).0,
            vision: sizes.vision(config).0,
            kv_per_token: (Saturating(2) * layers * keys * item).0,
            layer: sizes.widest_layer(),
            head: sizes.widened(head_name) + three * count(text.vocab_size) * item,
            position: numbers * item,
            pair,
            mask,
            single,
            window: text.sliding_window.unwrap_or(usize::MAX),
            embedding: hidden * item,
        }
    }

    /// Returns the bytes of the keys and values of a conversation of so many positions, as they are allocated.
    pub fn cache(&self, positions: usize) -> u64 {
        let allocated = positions.checked_next_multiple_of(KVCache::STEP as usize).unwrap_or(usize::MAX);
        (count(allocated) * Saturating(self.kv_per_token)).0
    }

    /// Returns what a step takes beyond weights and cache, of a prompt of so many positions that is read `chunk` at a time.
    pub fn step(&self, chunk: usize, positions: usize) -> u64 {
        let chunk = chunk.min(positions);
        let seen = |positions: usize| count(positions.min(chunk.saturating_add(self.window)));
        let (rows, all) = (count(chunk), count(positions));
        let pair = if positions > self.window { self.pair + self.mask } else { self.pair };
        // The first chunk is computed with the embeddings of the whole prompt, twice; the last one has the most to attend to.
        let first = rows * seen(chunk) * pair + Saturating(2) * all * self.embedding;
        let last = rows * seen(positions) * pair + rows * self.embedding;
        let one = seen(positions) * self.single;
        (self.layer + one + rows * self.position + first.max(last)).max(self.head).0
    }

    /// Returns what a conversation takes beyond the weights when it has grown to so many positions.
    pub fn conversation(&self, positions: usize, chunk: usize) -> u64 {
        self.cache(positions).saturating_add(self.step(chunk, positions))
    }

    /// Returns the most that a model takes whose pictures are encoded and whose one conversation grows to so many positions.
    pub fn total(&self, positions: usize, chunk: usize) -> u64 {
        self.load.max(self.weights.saturating_add(self.vision.max(self.conversation(positions, chunk))))
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
    fn item(&self, tensor: &TensorInfo) -> Count {
        if self.stays(tensor) { count(tensor.dtype.bitsize() / 8) } else { item_size(self.dtype) }
    }

    /// Bytes of a tensor once it is loaded.
    fn held(&self, name: &str, tensor: &TensorInfo) -> Count {
        match self.planned(name, tensor) {
            Some(quantization) => Saturating(quantization.bytes(elements(tensor).0, self.item(tensor).0)),
            None => elements(tensor) * self.item(tensor),
        }
    }

    fn weights(&self) -> Count {
        self.tensors("").map(|(name, tensor)| self.held(name, tensor)).fold(Saturating(0), |sum, bytes| sum + bytes)
    }

    /// What reading the largest tensor takes beyond its place: its bytes as they are in the file and, where it does not stay so, the array
    /// that is made of them first.
    fn reading(&self) -> Count {
        let extra = |(name, tensor): (&str, &TensorInfo)| match self.planned(name, tensor) {
            None if self.stays(tensor) => Saturating(tensor.bytes),
            _ => Saturating(2) * Saturating(tensor.bytes),
        };
        self.tensors("").map(extra).max().unwrap_or_default()
    }

    /// Float32 copies of what is stored in another dtype below a path: matrices, or the scales of those that are quantized.
    fn widened(&self, prefix: &str) -> Count {
        self.tensors(prefix).map(|(name, tensor)| self.wide(name, tensor)).fold(Saturating(0), |sum, bytes| sum + bytes)
    }

    /// The same of the decoder layer that has most of it. Layers are those that the weights have: a configuration may state any number.
    fn widest_layer(&self) -> Count {
        const LAYERS: &str = "language_model.model.layers.";
        let mut layers = BTreeMap::<_, Count>::new();
        for (name, tensor) in self.tensors(LAYERS) {
            *layers.entry(name[LAYERS.len()..].split('.').next()).or_default() += self.wide(name, tensor);
        }
        layers.into_values().max().unwrap_or_default()
    }

    /// The float32 copy of a tensor, where one is made.
    fn wide(&self, name: &str, tensor: &TensorInfo) -> Count {
        let widens = (is_matrix(tensor) || is_scale(tensor)) && tensor.dtype != StoredDtype::U32 && self.item(tensor).0 < 4;
        if self.own_kernels || self.dtype != Dtype::Float32 || !widens {
            return Saturating(0);
        }
        let numbers = match self.planned(name, tensor) {
            Some(quantization) => Saturating(2) * elements(tensor) / count(quantization.group_size),
            None => elements(tensor),
        };
        Saturating(4) * numbers
    }

    /// What encoding a picture takes: first its pixels are made, then they are held while the encoders and the projector work. On the CPU
    /// each of these is done before the next is begun.
    fn vision(&self, config: &VLMConfig) -> Count {
        let encoders = (0..config.timm_model_ids.len()).map(|i| self.encoder(config, i));
        let edges = || config.image_sizes.iter().take(encoders.len());
        let floats = edges().map(|size| Saturating(12) * square(*size)).fold(Saturating(0), |sum, bytes| sum + bytes);
        let making = edges().next().map_or(0, |size| Processor::working_bytes(*size, *size));
        let parts = encoders.clone().max().unwrap_or_default().max(self.projector(config));
        let on_device = if self.dtype == Dtype::Float32 { Saturating(0) } else { floats };
        floats + Saturating(making).max(parts + on_device)
    }

    /// An encoder's block at work, with the pixels.
    fn encoder(&self, config: &VLMConfig, i: usize) -> Count {
        let encoder = ENCODERS[i];
        let rows = |name: &str| self.size(&format!("{encoder}.{name}"), 1);
        let (width, inner) = (rows("blocks.0.mlp.fc1.weight"), self.size(&format!("{encoder}.blocks.0.mlp.fc1.weight"), 0));
        let tokens = rows("pos_embed") + rows("reg_token") + rows("cls_token");
        let heads = count(config.num_heads(i).unwrap_or(1));
        let pixels = Saturating(3) * square(config.image_sizes[i]);
        let [two, three, four, five, ten] = [2, 3, 4, 5, 10].map(Saturating);
        let activations = match self.own_kernels {
            true => tokens * (four * width + three * inner) + two * pixels,
            false => tokens * (ten * width + five * inner) + heads * tokens * tokens + two * pixels,
        };
        self.widened(&format!("{encoder}.blocks.0.")) + activations * item_size(self.dtype)
    }

    fn projector(&self, config: &VLMConfig) -> Count {
        let (inner, input) = (self.size("projector.fc1.weight", 0), self.size("projector.fc1.weight", 1));
        let tokens = self.size(&format!("{}.pos_embed", ENCODERS[0]), 1);
        let outside = input + count(config.text_config.hidden_size);
        let activations = match self.own_kernels {
            true => tokens * (Saturating(3) * inner + outside),
            false => tokens * (Saturating(4) * inner + Saturating(2) * outside),
        };
        self.widened("projector.") + activations * item_size(self.dtype)
    }

    /// One side of a tensor.
    fn size(&self, name: &str, axis: usize) -> Count {
        count(self.checkpoint.info(name).and_then(|tensor| tensor.shape.get(axis)).copied().unwrap_or(0))
    }
}

fn count(size: usize) -> Count {
    Saturating(size as u64)
}

fn square(edge: usize) -> Count {
    count(edge) * count(edge)
}

fn elements(tensor: &TensorInfo) -> Count {
    tensor.shape.iter().map(|size| count(*size)).fold(Saturating(1), |product, size| product * size)
}

/// The weight of a linear layer, a convolution or an embedding.
fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.stored_name.ends_with(".weight") && tensor.shape.len() >= 2
}

/// Scales and biases of a quantized matrix.
fn is_scale(tensor: &TensorInfo) -> bool {
    tensor.stored_name.ends_with(".scales") || tensor.stored_name.ends_with(".biases")
}

fn item_size(dtype: Dtype) -> Count {
    if dtype == Dtype::Float32 { Saturating(4) } else { Saturating(2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Mode;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    const ARITHMETICS: [Arithmetic; 3] = [
        Arithmetic { dtype: Dtype::Float32, own_kernels: true },
        Arithmetic { dtype: Dtype::Float32, own_kernels: false },
        Arithmetic { dtype: Dtype::Bfloat16, own_kernels: false },
    ];

    /// The needs of so many layers of one number each, with a configuration that says what it likes.
    fn needs(layers: usize, config: serde_json::Value, arithmetic: Arithmetic) -> MemoryNeeds {
        let folder = TempDir::new().unwrap();
        let entry = |i: usize| {
            let name = format!("language_model.model.layers.{i}.mlp.up_proj.weight");
            (name, json!({"dtype": "BF16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2]}))
        };
        let header = serde_json::Value::from((0..layers).map(entry).collect::<serde_json::Map<_, _>>()).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; 2 * layers]].concat();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let config: VLMConfig = serde_json::from_value(config).unwrap();
        MemoryNeeds::reckon(&Checkpoint::open(folder.path()).unwrap(), &config, arithmetic, &|_, _| None)
    }

    /// Every size that a configuration can state at its largest, and beyond.
    #[test]
    fn what_is_too_large_to_say_is_the_largest_number() {
        for size in [1 << 24, usize::MAX] {
            let text = json!({
                "hidden_size": size, "num_hidden_layers": size, "num_attention_heads": size, "num_key_value_heads": size, "head_dim": size,
                "intermediate_size": size, "vocab_size": size, "max_position_embeddings": size, "sliding_window": null,
            });
            let heads = [json!({"num_heads": usize::MAX}), json!({"num_heads": usize::MAX})];
            let config =
                json!({"model_type": "prismatic", "text_config": text, "image_sizes": [size, size], "timm_override_kwargs": heads});
            for arithmetic in ARITHMETICS {
                let needs = needs(3, config.clone(), arithmetic);
                assert_eq!(needs.kv_per_token, u64::MAX, "{arithmetic:?}");
                for positions in [1, 256, 1 << 24, usize::MAX] {
                    assert_eq!(needs.cache(positions), u64::MAX, "{arithmetic:?}, {positions}");
                    assert_eq!(needs.conversation(positions, 1), u64::MAX, "{arithmetic:?}, {positions}");
                    assert_eq!(needs.total(positions, usize::MAX), u64::MAX, "{arithmetic:?}, {positions}");
                    assert!(needs.step(positions, positions) >= 1 << 24, "{arithmetic:?}, {positions}");
                }
            }
        }
        for mode in Mode::ALL {
            let scheme = mode.scheme().unwrap_or(Quantization::affine(64, 4));
            assert!(scheme.bytes(u64::MAX, u64::MAX) >= u64::MAX / 8, "{mode:?}");
        }
    }

    /// The layers are counted in the checkpoint, each tensor once, whatever the configuration states.
    #[test]
    fn many_layers_take_no_time() {
        let config = json!({"model_type": "prismatic", "text_config": {"num_hidden_layers": 1 << 24}});
        let clock = std::time::Instant::now();
        let needs = needs(20_000, config, ARITHMETICS[1]);
        assert_eq!((needs.layer.0, needs.weights), (4, 40_000));
        assert!(clock.elapsed().as_secs() < 10, "{:?}", clock.elapsed());
    }

    /// What a window hides takes nothing.
    #[test]
    fn a_window_bounds_the_scores() {
        let config = |window| json!({"model_type": "prismatic", "text_config": {"sliding_window": window}});
        for arithmetic in ARITHMETICS {
            let [near, far] = [json!(64), json!(null)].map(|window| needs(1, config(window), arithmetic));
            assert!(near.step(512, 40_000) < far.step(512, 40_000), "{arithmetic:?}");
            assert_eq!(near.step(512, 64), far.step(512, 64), "{arithmetic:?}");
        }
    }
}
