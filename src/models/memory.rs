//! How much memory a model takes, reckoned from its configuration and the headers of its weights
//! before any of them is read.
//!
//! On the CPU activations are float32 and matrices keep the dtype they are stored in. A bfloat16
//! matrix is widened for each product, and MLX makes all products of a layer ready before the first
//! has run: so a layer in work takes the float32 copies of all its matrices. On a GPU everything is
//! in the dtype of the activations and nothing is widened. Nor is anything where our own kernels
//! compute: they take weights as they are stored. Each of their threads has some blocks to work on,
//! under 1 MiB together, which are not reckoned.
//!
//! How many arrays of which size are alive at once is MLX's affair; the numbers here were measured
//! (`tests/memory.rs`, and `tests/adversary/memory.rs`, which compares them with what the process
//! takes).
//!
//! A configuration may ask for more than any number of bytes can say: all sums and products
//! saturate, and `u64::MAX` bytes are never there.

use std::{collections::BTreeMap, num::Saturating};

use safetensors::tensor::Dtype as StoredDtype;

use super::{Blueprint, MediaPlan, MediumSize};
use crate::{
    checkpoint::{Checkpoint, Plan, Quantization, TensorInfo},
    device::{Arithmetic, Dtype},
    nn::{DecoderSettings, KVCache},
};

/// Bytes, and numbers of things that have bytes.
pub(super) type Count = Saturating<u64>;

/// Bytes that the parts of a model's work take. Where one is more than can be said it is
/// `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeeds {
    /// The weights, once loaded.
    pub weights: u64,
    /// The most during loading: the weights, and what the tensor that is being read takes beyond
    /// its place among them.
    pub load: u64,
    /// Keys and values of one position.
    pub kv_per_token: u64,
    /// Keys, or values, of one position in one layer.
    kv_of_layer: Count,
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
    pub(super) fn reckon(
        checkpoint: &Checkpoint,
        settings: &DecoderSettings,
        arithmetic: Arithmetic,
        plan: Plan,
    ) -> MemoryNeeds {
        let Arithmetic { dtype, own_kernels } = arithmetic;
        let item = item_size(dtype);
        let sizes = Sizes::new(checkpoint, arithmetic, plan);
        let head_name = if settings.tied_head {
            "language_model.model.embed_tokens."
        } else {
            "language_model.lm_head."
        };
        let [heads, kv_heads, head_dim] =
            [settings.heads, settings.kv_heads, settings.head_dim].map(count);
        let (hidden, layers, inner) = (
            count(settings.hidden_size),
            count(settings.layers),
            count(settings.intermediate_size),
        );
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let [three, four, five, ten] = [3, 4, 5, 10].map(Saturating);
        // On the CPU each layer is done before the next is begun; where they are not, more of each
        // remains. Our kernels take most in the MLP, for the gate and the up projection, and what
        // comes of them packed for the last product; or in attention, where heads are many.
        let numbers = match dtype {
            _ if own_kernels => (three * (hidden + keys) + three * inner)
                .max(three * hidden + four * (queries + keys)),
            Dtype::Float32 => five * (hidden.max(queries) + keys) + three * inner,
            _ => ten * (hidden.max(queries) + keys) + three * inner,
        };
        // Our kernels keep no scores of several queries, and the window is no array to them.
        let none = Saturating(0);
        let (pair, mask, single) = if own_kernels {
            (none, none, heads * four)
        } else {
            (heads * item, three, none)
        };
        let weights = sizes.weights();
        let window = settings
            .windows
            .iter()
            .map(|window| window.unwrap_or(usize::MAX))
            .max();
        MemoryNeeds {
            weights: weights.0,
            load: (weights + sizes.reading()).0,
            kv_per_token: (Saturating(2) * layers * keys * item).0,
            kv_of_layer: if own_kernels { keys * item } else { none },
            layer: sizes.widest_layer(),
            head: sizes.widened(head_name) + three * count(settings.vocab_size) * item,
            position: numbers * item,
            pair,
            mask,
            single,
            window: window.unwrap_or(usize::MAX),
            embedding: hidden * item,
        }
    }

    /// Returns the bytes of the keys and values of a conversation of so many positions, as they are
    /// allocated.
    pub fn cache(&self, positions: usize) -> u64 {
        let allocated = positions
            .checked_next_multiple_of(KVCache::STEP as usize)
            .unwrap_or(usize::MAX);
        (count(allocated) * Saturating(self.kv_per_token)).0
    }

    /// Returns what a step takes beyond weights and cache, of a prompt of so many positions that is
    /// read `chunk` at a time.
    pub fn step(&self, chunk: usize, positions: usize) -> u64 {
        let chunk = chunk.min(positions);
        let seen = |positions: usize| count(positions.min(chunk.saturating_add(self.window)));
        let rows = count(chunk);
        let pair = if positions > self.window {
            self.pair + self.mask
        } else {
            self.pair
        };
        // The last chunk has the most to attend to.
        let scores = rows * seen(positions) * pair;
        // One position's scores, and a layer's keys, or values, which are copied where their room
        // grows.
        let one = seen(positions) * self.single + count(positions) * self.kv_of_layer;
        (self.layer + one + rows * (self.position + self.embedding) + scores)
            .max(self.head)
            .0
    }

    /// Returns what a conversation takes beyond the weights when it has grown to so many positions.
    pub fn conversation(&self, positions: usize, chunk: usize) -> u64 {
        self.cache(positions)
            .saturating_add(self.step(chunk, positions))
    }

    /// Returns the most that a model takes where encoding a picture takes `vision`, and whose one
    /// conversation grows to so many positions.
    pub fn total(&self, vision: u64, positions: usize, chunk: usize) -> u64 {
        self.load.max(
            self.weights
                .saturating_add(vision.max(self.conversation(positions, chunk))),
        )
    }
}

/// What the headers of a checkpoint tell of the memory that work takes.
pub struct Sizes<'a> {
    checkpoint: &'a Checkpoint,
    /// Of the activations.
    dtype: Dtype,
    own_kernels: bool,
    plan: Plan<'a>,
}

impl<'a> Sizes<'a> {
    /// The sizes of weights under the names that the modules use, quantized as `plan` says.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        arithmetic: Arithmetic,
        plan: Plan<'a>,
    ) -> Sizes<'a> {
        let Arithmetic { dtype, own_kernels } = arithmetic;
        Sizes {
            checkpoint,
            dtype,
            own_kernels,
            plan,
        }
    }

    /// Whether the kernels of this library compute.
    pub fn own_kernels(&self) -> bool {
        self.own_kernels
    }

    /// Bytes of an activation.
    pub fn item(&self) -> u64 {
        item_size(self.dtype).0
    }

    /// Returns the bytes that encoding a picture takes beyond the weights. First its pixels are
    /// made, then they are held while the encoder and the projector work.
    pub fn vision(&self, blueprint: &dyn Blueprint, size: MediumSize, plan: &MediaPlan) -> u64 {
        let pixels = blueprint.pixel_bytes(plan);
        let making = blueprint.preprocess_memory(size, plan);
        let on_device = if self.dtype == Dtype::Float32 {
            0
        } else {
            pixels
        };
        pixels.saturating_add(
            making.max(
                blueprint
                    .vision_memory(plan, self)
                    .saturating_add(on_device),
            ),
        )
    }

    fn tensors<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s TensorInfo)> {
        let names = self
            .checkpoint
            .tensor_names()
            .filter(move |name| name.starts_with(prefix));
        names.filter_map(|name| Some((name, self.checkpoint.info(name)?)))
    }

    /// Whether a tensor stays as it is stored: on the CPU what matrices are made of, and quantized
    /// ones everywhere.
    fn stays(&self, tensor: &TensorInfo) -> bool {
        tensor.dtype == StoredDtype::U32
            || self.dtype == Dtype::Float32 && (is_matrix(tensor) || is_scale(tensor))
    }

    /// The scheme that a matrix is quantized in while it is loaded.
    fn planned(&self, name: &str, tensor: &TensorInfo) -> Option<Quantization> {
        let path = name
            .strip_suffix(".weight")
            .filter(|_| tensor.shape.len() == 2 && tensor.dtype != StoredDtype::U32)?;
        (self.plan)(path, tensor.shape[1])
    }

    /// Bytes of a number of a tensor once it is loaded, not quantized.
    fn item_of(&self, tensor: &TensorInfo) -> Count {
        if self.stays(tensor) {
            count(tensor.dtype.bitsize() / 8)
        } else {
            item_size(self.dtype)
        }
    }

    /// Bytes of a tensor once it is loaded.
    fn held(&self, name: &str, tensor: &TensorInfo) -> Count {
        match self.planned(name, tensor) {
            Some(quantization) => {
                Saturating(quantization.bytes(elements(tensor).0, self.item_of(tensor).0))
            }
            None => elements(tensor) * self.item_of(tensor),
        }
    }

    fn weights(&self) -> Count {
        self.tensors("")
            .map(|(name, tensor)| self.held(name, tensor))
            .fold(Saturating(0), |sum, bytes| sum + bytes)
    }

    /// What reading the largest tensor takes beyond its place: its bytes as they are in the file
    /// and, where it does not stay so, the array that is made of them first.
    fn reading(&self) -> Count {
        let extra = |(name, tensor): (&str, &TensorInfo)| match self.planned(name, tensor) {
            None if self.stays(tensor) => Saturating(tensor.bytes),
            _ => Saturating(2) * Saturating(tensor.bytes),
        };
        self.tensors("").map(extra).max().unwrap_or_default()
    }

    /// Float32 copies of what is stored in another dtype below a path: matrices, or the scales of
    /// those that are quantized.
    pub(super) fn widened(&self, prefix: &str) -> Count {
        self.tensors(prefix)
            .map(|(name, tensor)| self.wide(name, tensor))
            .fold(Saturating(0), |sum, bytes| sum + bytes)
    }

    /// The same of the decoder layer that has most of it. Layers are those that the weights have: a
    /// configuration may state any number.
    fn widest_layer(&self) -> Count {
        const LAYERS: &str = "language_model.model.layers.";
        let mut layers = BTreeMap::<_, Count>::new();
        for (name, tensor) in self.tensors(LAYERS) {
            *layers
                .entry(name[LAYERS.len()..].split('.').next())
                .or_default() += self.wide(name, tensor);
        }
        layers.into_values().max().unwrap_or_default()
    }

    /// The float32 copy of a tensor, where one is made.
    fn wide(&self, name: &str, tensor: &TensorInfo) -> Count {
        let widens = (is_matrix(tensor) || is_scale(tensor))
            && tensor.dtype != StoredDtype::U32
            && self.item_of(tensor).0 < 4;
        if self.own_kernels || self.dtype != Dtype::Float32 || !widens {
            return Saturating(0);
        }
        let numbers = match self.planned(name, tensor) {
            Some(quantization) => Saturating(2) * elements(tensor) / count(quantization.group_size),
            None => elements(tensor),
        };
        Saturating(4) * numbers
    }

    /// One side of a tensor.
    pub(super) fn size(&self, name: &str, axis: usize) -> Count {
        count(
            self.checkpoint
                .info(name)
                .and_then(|tensor| tensor.shape.get(axis))
                .copied()
                .unwrap_or(0),
        )
    }
}

pub(super) fn count(size: usize) -> Count {
    Saturating(size as u64)
}

fn elements(tensor: &TensorInfo) -> Count {
    tensor
        .shape
        .iter()
        .map(|size| count(*size))
        .fold(Saturating(1), |product, size| product * size)
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
    if dtype == Dtype::Float32 {
        Saturating(4)
    } else {
        Saturating(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Mode;
    use crate::nn::{Activation, Rope, RopeKind};
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    const ARITHMETICS: [Arithmetic; 3] = [
        Arithmetic {
            dtype: Dtype::Float32,
            own_kernels: true,
        },
        Arithmetic {
            dtype: Dtype::Float32,
            own_kernels: false,
        },
        Arithmetic {
            dtype: Dtype::Bfloat16,
            own_kernels: false,
        },
    ];

    /// Settings whose sizes are all that, but for those of each layer.
    fn settings(size: usize, window: Option<usize>) -> DecoderSettings {
        let rope = Rope {
            theta: 1e4,
            scaling: 1.0,
            kind: RopeKind::Sequential,
        };
        DecoderSettings {
            vocab_size: size,
            hidden_size: size,
            intermediate_size: size,
            layers: size,
            heads: size,
            kv_heads: size,
            head_dim: size,
            qkv_bias: false,
            norm_eps: 1e-6,
            norm_adds_one: false,
            post_norms: false,
            gate: Activation::Silu,
            embedding_scale: None,
            tied_head: false,
            attention_scale: 1.0,
            attention_softcap: None,
            final_softcap: None,
            windows: vec![window],
            ropes: vec![rope],
        }
    }

    /// The needs of so many layers of one number each, with settings that say what they like.
    fn needs(layers: usize, settings: &DecoderSettings, arithmetic: Arithmetic) -> MemoryNeeds {
        let folder = TempDir::new().unwrap();
        let entry = |i: usize| {
            let name = format!("language_model.model.layers.{i}.mlp.up_proj.weight");
            (
                name,
                json!({"dtype": "BF16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2]}),
            )
        };
        let header =
            serde_json::Value::from((0..layers).map(entry).collect::<serde_json::Map<_, _>>())
                .to_string();
        let file = [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            &vec![0; 2 * layers],
        ]
        .concat();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        MemoryNeeds::reckon(
            &Checkpoint::open(folder.path()).unwrap(),
            settings,
            arithmetic,
            &|_, _| None,
        )
    }

    /// Every size that a configuration can state at its largest, and beyond.
    #[test]
    fn what_is_too_large_to_say_is_the_largest_number() {
        for size in [1 << 24, usize::MAX] {
            for arithmetic in ARITHMETICS {
                let needs = needs(3, &settings(size, None), arithmetic);
                assert_eq!(needs.kv_per_token, u64::MAX, "{arithmetic:?}");
                for positions in [1, 256, 1 << 24, usize::MAX] {
                    assert_eq!(
                        needs.cache(positions),
                        u64::MAX,
                        "{arithmetic:?}, {positions}"
                    );
                    assert_eq!(
                        needs.conversation(positions, 1),
                        u64::MAX,
                        "{arithmetic:?}, {positions}"
                    );
                    assert_eq!(
                        needs.total(0, positions, usize::MAX),
                        u64::MAX,
                        "{arithmetic:?}, {positions}"
                    );
                    assert!(
                        needs.step(positions, positions) >= 1 << 24,
                        "{arithmetic:?}, {positions}"
                    );
                }
            }
        }
        for mode in Mode::ALL {
            let scheme = mode.scheme().unwrap_or(Quantization::affine(64, 4));
            assert!(scheme.bytes(u64::MAX, u64::MAX) >= u64::MAX / 8, "{mode:?}");
        }
    }

    /// The layers are counted in the checkpoint, each tensor once, whatever the configuration
    /// states.
    #[test]
    fn many_layers_take_no_time() {
        let clock = std::time::Instant::now();
        let needs = needs(20_000, &settings(1 << 24, None), ARITHMETICS[1]);
        assert_eq!((needs.layer.0, needs.weights), (4, 40_000));
        assert!(clock.elapsed().as_secs() < 10, "{:?}", clock.elapsed());
    }

    /// What a window hides takes nothing.
    #[test]
    fn a_window_bounds_the_scores() {
        for arithmetic in ARITHMETICS {
            let [near, far] =
                [Some(64), None].map(|window| needs(1, &settings(64, window), arithmetic));
            assert!(
                near.step(512, 40_000) < far.step(512, 40_000),
                "{arithmetic:?}"
            );
            assert_eq!(near.step(512, 64), far.step(512, 64), "{arithmetic:?}");
        }
    }
}
