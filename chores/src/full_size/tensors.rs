//! The tensors of a checkpoint: names, shapes, and initial values.

/// The sizes of a Prismatic checkpoint.
pub struct Sizes {
    pub dino: Encoder,
    pub siglip: Encoder,
    /// The edge of a patch in pixels, and the number of patches in a picture.
    pub patch: usize,
    pub patches: usize,
    pub decoder: Decoder,
}

/// A vision transformer.
pub struct Encoder {
    pub width: usize,
    pub depth: usize,
    /// The number of values inside the MLP.
    pub inner: usize,
}

/// A vision transformer in the layout of CLIP and SigLIP.
pub struct Clip {
    pub width: usize,
    pub depth: usize,
    pub inner: usize,
    pub patch: usize,
    pub patches: usize,
}

/// Qwen2-VL's vision transformer.
pub struct QwenVision {
    pub width: usize,
    pub depth: usize,
    pub inner: usize,
    /// The number of values in a patch.
    pub patch: usize,
    /// The number of values in merged patches.
    pub merged: usize,
    pub output: usize,
    /// Whether the norms and the MLPs are those of the Llama family, as in Qwen2.5-VL.
    pub is_llama_like: bool,
}

/// A decoder of the Llama family.
pub struct Decoder {
    pub width: usize,
    pub layers: usize,
    /// The number of values in all queries of a token.
    pub queries: usize,
    /// The number of values in all keys, or values, of a token.
    pub keys: usize,
    pub inner: usize,
    pub vocabulary: usize,
}

/// The sizes of <https://huggingface.co/moxin-org/Moxin-7B-VLM>: DINOv2 ViT-L/14 with registers,
/// SigLIP so400m/14, Moxin-7B.
pub const MOXIN_7B: Sizes = Sizes {
    dino: Encoder {
        width: 1024,
        depth: 24,
        inner: 4096,
    },
    siglip: Encoder {
        width: 1152,
        depth: 27,
        inner: 4304,
    },
    patch: 14,
    patches: 256,
    decoder: Decoder {
        width: 4096,
        layers: 36,
        queries: 4096,
        keys: 1024,
        inner: 14336,
        vocabulary: 32064,
    },
};

pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub fill: Fill,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fill {
    Random,
    /// The values at the start of training: 1 for the weights of norms, 0.1 for LayerScale.
    Constant(f32),
}

impl Tensor {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the size in bfloat16.
    pub fn bytes(&self) -> usize {
        2 * self.elements()
    }
}

/// Returns all tensors of a checkpoint, including those that the forward pass never reads.
pub fn tensors(sizes: &Sizes) -> Vec<Tensor> {
    let mut list = List(Vec::new());
    list.dino("vision_backbone.featurizer", sizes);
    list.siglip("vision_backbone.fused_featurizer", sizes);
    let (seen, width) = (sizes.dino.width + sizes.siglip.width, sizes.decoder.width);
    list.linear("projector.fc1", 4 * seen, seen);
    list.linear("projector.fc2", width, 4 * seen);
    list.linear("projector.fc3", width, width);
    list.decoder("language_model", &sizes.decoder);
    list.0
}

pub struct List(pub Vec<Tensor>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize], fill: Fill) {
        self.0.push(Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            fill,
        });
    }

    fn random(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.add(name, shape, Fill::Random);
    }

    pub fn linear(&mut self, name: &str, output: usize, input: usize) {
        self.random(format!("{name}.weight"), &[output, input]);
        self.random(format!("{name}.bias"), &[output]);
    }

    fn layer_norm(&mut self, name: &str, width: usize) {
        self.rms_norm(name, width);
        self.random(format!("{name}.bias"), &[width]);
    }

    fn rms_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], Fill::Constant(1.0));
    }

    fn dino(&mut self, name: &str, sizes: &Sizes) {
        let width = sizes.dino.width;
        self.random(format!("{name}.cls_token"), &[1, 1, width]);
        self.random(format!("{name}.reg_token"), &[1, 4, width]);
        self.encoder(name, &sizes.dino, sizes);
        for i in 0..sizes.dino.depth {
            for scale in ["ls1", "ls2"] {
                self.add(
                    format!("{name}.blocks.{i}.{scale}.scale_factor"),
                    &[width],
                    Fill::Constant(0.1),
                );
            }
        }
    }

    fn siglip(&mut self, name: &str, sizes: &Sizes) {
        let Encoder { width, inner, .. } = sizes.siglip;
        self.encoder(name, &sizes.siglip, sizes);
        self.random(format!("{name}.attn_pool.latent"), &[1, 1, width]);
        self.linear(&format!("{name}.attn_pool.q"), width, width);
        self.linear(&format!("{name}.attn_pool.kv"), 2 * width, width);
        self.linear(&format!("{name}.attn_pool.proj"), width, width);
        self.layer_norm(&format!("{name}.attn_pool.norm"), width);
        self.mlp(&format!("{name}.attn_pool.mlp"), width, inner);
    }

    /// Adds the tensors that both encoders have.
    fn encoder(&mut self, name: &str, encoder: &Encoder, sizes: &Sizes) {
        let width = encoder.width;
        self.random(format!("{name}.pos_embed"), &[1, sizes.patches, width]);
        self.random(
            format!("{name}.patch_embed.proj.weight"),
            &[width, 3, sizes.patch, sizes.patch],
        );
        self.random(format!("{name}.patch_embed.proj.bias"), &[width]);
        for i in 0..encoder.depth {
            let block = format!("{name}.blocks.{i}");
            self.layer_norm(&format!("{block}.norm1"), width);
            self.linear(&format!("{block}.attn.qkv"), 3 * width, width);
            self.linear(&format!("{block}.attn.proj"), width, width);
            self.layer_norm(&format!("{block}.norm2"), width);
            self.mlp(&format!("{block}.mlp"), width, encoder.inner);
        }
        self.layer_norm(&format!("{name}.norm"), width);
    }

    fn mlp(&mut self, name: &str, width: usize, inner: usize) {
        self.linear(&format!("{name}.fc1"), inner, width);
        self.linear(&format!("{name}.fc2"), width, inner);
    }

    fn decoder(&mut self, name: &str, decoder: &Decoder) {
        self.layers(&format!("{name}.model"), decoder, false);
        self.random(
            format!("{name}.lm_head.weight"),
            &[decoder.vocabulary, decoder.width],
        );
    }

    /// Adds a decoder without its head, optionally with biases of queries, keys and values.
    pub fn layers(&mut self, name: &str, decoder: &Decoder, biases: bool) {
        let &Decoder {
            width,
            queries,
            keys,
            inner,
            vocabulary,
            ..
        } = decoder;
        self.random(format!("{name}.embed_tokens.weight"), &[vocabulary, width]);
        for i in 0..decoder.layers {
            let layer = format!("{name}.layers.{i}");
            self.rms_norm(&format!("{layer}.input_layernorm"), width);
            for (matrix, output, input) in [
                ("self_attn.q_proj", queries, width),
                ("self_attn.k_proj", keys, width),
                ("self_attn.v_proj", keys, width),
                ("self_attn.o_proj", width, queries),
                ("mlp.gate_proj", inner, width),
                ("mlp.up_proj", inner, width),
                ("mlp.down_proj", width, inner),
            ] {
                self.random(format!("{layer}.{matrix}.weight"), &[output, input]);
                if biases
                    && ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
                        .contains(&matrix)
                {
                    self.random(format!("{layer}.{matrix}.bias"), &[output]);
                }
            }
            self.rms_norm(&format!("{layer}.post_attention_layernorm"), width);
        }
        self.rms_norm(&format!("{name}.norm"), width);
    }

    pub fn clip(&mut self, name: &str, clip: &Clip) {
        let &Clip {
            width,
            inner,
            patch,
            patches,
            ..
        } = clip;
        self.random(
            format!("{name}.embeddings.patch_embedding.weight"),
            &[width, 3, patch, patch],
        );
        self.random(format!("{name}.embeddings.patch_embedding.bias"), &[width]);
        self.random(
            format!("{name}.embeddings.position_embedding.weight"),
            &[patches, width],
        );
        for i in 0..clip.depth {
            let layer = format!("{name}.encoder.layers.{i}");
            self.layer_norm(&format!("{layer}.layer_norm1"), width);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&format!("{layer}.self_attn.{projection}"), width, width);
            }
            self.layer_norm(&format!("{layer}.layer_norm2"), width);
            self.mlp(&format!("{layer}.mlp"), width, inner);
        }
        self.layer_norm(&format!("{name}.post_layernorm"), width);
    }

    pub fn qwen_vision(&mut self, name: &str, vision: &QwenVision) {
        let &QwenVision {
            width,
            inner,
            merged,
            output,
            ..
        } = vision;
        self.random(
            format!("{name}.patch_embed.proj.weight"),
            &[width, 3, 2, 14, vision.patch / 84],
        );
        for i in 0..vision.depth {
            let block = format!("{name}.blocks.{i}");
            self.qwen_norm(&format!("{block}.norm1"), vision);
            self.linear(&format!("{block}.attn.qkv"), 3 * width, width);
            self.linear(&format!("{block}.attn.proj"), width, width);
            self.qwen_norm(&format!("{block}.norm2"), vision);
            if vision.is_llama_like {
                self.linear(&format!("{block}.mlp.gate_proj"), inner, width);
                self.linear(&format!("{block}.mlp.up_proj"), inner, width);
                self.linear(&format!("{block}.mlp.down_proj"), width, inner);
            } else {
                self.mlp(&format!("{block}.mlp"), width, inner);
            }
        }
        self.qwen_norm(&format!("{name}.merger.ln_q"), vision);
        self.linear(&format!("{name}.merger.mlp.0"), merged, merged);
        self.linear(&format!("{name}.merger.mlp.2"), output, merged);
    }

    fn qwen_norm(&mut self, name: &str, vision: &QwenVision) {
        if vision.is_llama_like {
            self.rms_norm(name, vision.width);
        } else {
            self.layer_norm(name, vision.width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// timm's numbers for the two encoders; Mistral-7B's 7,241,732,096 with four more layers and 64
    /// more tokens.
    #[test]
    fn the_real_sizes_give_the_real_numbers_of_parameters() {
        let tensors = tensors(&MOXIN_7B);
        let count = |prefix: &str| {
            let part: Vec<&Tensor> = tensors
                .iter()
                .filter(|tensor| tensor.name.starts_with(prefix))
                .collect();
            let elements: usize = part.iter().map(|tensor| tensor.elements()).sum();
            (part.len(), (elements as f64 / 1e5).round() / 10.0)
        };
        assert_eq!(count("vision_backbone.featurizer."), (343, 303.2));
        assert_eq!(count("vision_backbone.fused_featurizer."), (342, 427.7));
        assert_eq!(count("projector."), (6, 71.4));
        assert_eq!(count("language_model."), (36 * 9 + 3, 8114.7));
    }
}
