//! Estimates the memory that a model needs, from its configuration and weight headers, before any
//! weight is read.
//!
//! On the CPU, activations are float32 and matrices keep their stored dtype. A bfloat16 matrix is
//! widened for each product, and MLX prepares all products of a layer before the first one has run,
//! so that a running layer needs float32 copies of all its matrices. On a GPU, everything has the
//! dtype of the activations and nothing is widened. Our own kernels do not widen anything either:
//! they read weights as stored. Each of their threads uses some scratch blocks, less than 1 MiB in
//! total, which are not counted.
//!
//! How many arrays of which size are alive at once depends on MLX. The factors here were measured
//! (`tests/memory.rs`, and `tests/adversary/memory.rs`, which compares them with the memory of the
//! process).
//!
//! A configuration may ask for more bytes than any number can express. All sums and products
//! therefore saturate, and `u64::MAX` bytes are never available.

use std::{collections::BTreeMap, num::Saturating};

use safetensors::tensor::Dtype as StoredDtype;

use super::{Blueprint, MediaPlan, MediumSize};
use crate::{
    checkpoint::{Checkpoint, Plan, Quantization, TensorInfo},
    device::{Arithmetic, Dtype},
    nn::{DecoderSettings, KVCache},
};

/// Numbers of bytes, and of things that have bytes.
pub(super) type Count = Saturating<u64>;

/// The memory in bytes that each part of a model's work needs. A value that overflows is
/// `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeeds {
    /// The loaded weights.
    pub weights: u64,
    /// The peak during loading: the weights, and the temporary memory of the tensor that is being
    /// read.
    pub load: u64,
    /// Keys and values per position.
    pub kv_per_token: u64,
    /// Keys, or values, per position in one layer.
    kv_of_layer: Count,
    /// The matrices of one decoder layer, widened.
    layer: Count,
    /// The output head, widened, and the logits.
    head: Count,
    /// The activations per position in a decoder layer.
    position: Count,
    /// The attention scores per pair of positions.
    pair: Count,
    /// The window mask's entries per pair of positions.
    mask: Count,
    /// The attention scores per key of a single query.
    single: Count,
    /// The maximum number of positions that a position attends to, including itself.
    window: usize,
    /// The embedding of one position.
    embedding: Count,
}

impl MemoryNeeds {
    /// Computes the needs of weights under the names that the modules use.
    pub(super) fn estimate(
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
        // On the CPU each layer is finished before the next starts. If the queue is asynchronous,
        // more of each layer stays alive. Our kernels need most in the MLP, for the gate and up
        // projections and their packed product for the last matrix, or in attention, if there are
        // many heads.
        let numbers = match dtype {
            _ if own_kernels => (three * (hidden + keys) + three * inner)
                .max(three * hidden + four * (queries + keys)),
            Dtype::Float32 => five * (hidden.max(queries) + keys) + three * inner,
            _ => ten * (hidden.max(queries) + keys) + three * inner,
        };
        // Our kernels store no scores for several queries, and the window is not an array.
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

    /// Returns the allocated bytes of the keys and values of a conversation with so many positions.
    pub fn cache(&self, positions: usize) -> u64 {
        let allocated = positions
            .checked_next_multiple_of(KVCache::STEP as usize)
            .unwrap_or(usize::MAX);
        (count(allocated) * Saturating(self.kv_per_token)).0
    }

    /// Returns the bytes that a step needs in addition to weights and cache, for a prompt of so
    /// many positions that is read in chunks of `chunk`.
    pub fn step(&self, chunk: usize, positions: usize) -> u64 {
        let chunk = chunk.min(positions);
        let seen = |positions: usize| count(positions.min(chunk.saturating_add(self.window)));
        let rows = count(chunk);
        let pair = if positions > self.window {
            self.pair + self.mask
        } else {
            self.pair
        };
        // The last chunk attends to the most positions.
        let scores = rows * seen(positions) * pair;
        // The scores of one position, and a layer's keys or values, which are copied when the cache
        // grows.
        let one = seen(positions) * self.single + count(positions) * self.kv_of_layer;
        (self.layer + one + rows * (self.position + self.embedding) + scores)
            .max(self.head)
            .0
    }

    /// Returns the bytes that a conversation needs in addition to the weights when it has grown to
    /// so many positions.
    pub fn conversation(&self, positions: usize, chunk: usize) -> u64 {
        self.cache(positions)
            .saturating_add(self.step(chunk, positions))
    }

    /// Returns the peak of a model whose picture encoding needs `vision` bytes and whose one
    /// conversation grows to so many positions.
    pub fn total(&self, vision: u64, positions: usize, chunk: usize) -> u64 {
        self.load.max(
            self.weights
                .saturating_add(vision.max(self.conversation(positions, chunk))),
        )
    }
}

/// The information in weight headers that memory estimates use.
pub struct Sizes<'a> {
    checkpoint: &'a Checkpoint,
    /// The dtype of the activations.
    dtype: Dtype,
    own_kernels: bool,
    plan: Plan<'a>,
}

impl<'a> Sizes<'a> {
    /// Reads the sizes of weights under the names that the modules use, quantized as `plan` says.
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

    /// Returns whether this library's own kernels compute.
    pub fn own_kernels(&self) -> bool {
        self.own_kernels
    }

    /// Returns the bytes per activation.
    pub fn item(&self) -> u64 {
        item_size(self.dtype).0
    }

    /// Returns the bytes that encoding a picture needs in addition to the weights. First its pixels
    /// are made; they stay while the encoder and the projector work.
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

    /// Returns whether a tensor keeps its stored form: on the CPU the parts of matrices, and
    /// quantized tensors everywhere.
    fn stays(&self, tensor: &TensorInfo) -> bool {
        tensor.dtype == StoredDtype::U32
            || self.dtype == Dtype::Float32 && (is_matrix(tensor) || is_scale(tensor))
    }

    /// Returns the scheme in which a matrix is quantized while it is loaded.
    fn planned(&self, name: &str, tensor: &TensorInfo) -> Option<Quantization> {
        let path = name
            .strip_suffix(".weight")
            .filter(|_| tensor.shape.len() == 2 && tensor.dtype != StoredDtype::U32)?;
        (self.plan)(path, tensor.shape[1])
    }

    /// Returns the bytes per value of a tensor that is loaded without quantization.
    fn item_of(&self, tensor: &TensorInfo) -> Count {
        if self.stays(tensor) {
            count(tensor.dtype.bitsize() / 8)
        } else {
            item_size(self.dtype)
        }
    }

    /// Returns the bytes of a loaded tensor.
    fn loaded_bytes(&self, name: &str, tensor: &TensorInfo) -> Count {
        match self.planned(name, tensor) {
            Some(quantization) => {
                Saturating(quantization.bytes(elements(tensor).0, self.item_of(tensor).0))
            }
            None => elements(tensor) * self.item_of(tensor),
        }
    }

    fn weights(&self) -> Count {
        self.tensors("")
            .map(|(name, tensor)| self.loaded_bytes(name, tensor))
            .fold(Saturating(0), |sum, bytes| sum + bytes)
    }

    /// Returns the temporary memory for reading the largest tensor: its bytes in the file and, if
    /// it is converted, the intermediate array.
    fn reading(&self) -> Count {
        let extra = |(name, tensor): (&str, &TensorInfo)| match self.planned(name, tensor) {
            None if self.stays(tensor) => Saturating(tensor.bytes),
            _ => Saturating(2) * Saturating(tensor.bytes),
        };
        self.tensors("").map(extra).max().unwrap_or_default()
    }

    /// Returns the float32 copies of everything below a path that is stored in another dtype:
    /// matrices, or the scales of quantized ones.
    pub(super) fn widened(&self, prefix: &str) -> Count {
        self.tensors(prefix)
            .map(|(name, tensor)| self.wide(name, tensor))
            .fold(Saturating(0), |sum, bytes| sum + bytes)
    }

    /// Returns the same for the decoder layer that needs most. The layers are those in the weights,
    /// because a configuration may state any number.
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

    /// Returns the bytes of a tensor's float32 copy, if one is made.
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

    /// Returns one dimension of a tensor.
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

/// Returns whether a tensor is the weight of a linear layer, a convolution or an embedding.
fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.stored_name.ends_with(".weight") && tensor.shape.len() >= 2
}

/// Returns whether a tensor has the scales or biases of a quantized matrix.
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
    use crate::nn::{Activation, Rope, RopeKind, RopeScaling};
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

    /// Settings in which every size is `size`, except for those of each layer.
    fn settings(size: usize, window: Option<usize>) -> DecoderSettings {
        let rope = Rope {
            theta: 1e4,
            scaling: RopeScaling::Linear(1.0),
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
            qk_norm: false,
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

    /// The needs of so many layers of one value each, with the given settings.
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
        MemoryNeeds::estimate(
            &Checkpoint::open(folder.path()).unwrap(),
            settings,
            arithmetic,
            &|_, _| None,
        )
    }

    /// Every size that a configuration can state at its maximum, and beyond.
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

    /// Positions outside of a window need no memory.
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
