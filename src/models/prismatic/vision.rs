//! Prismatic's vision: one or two encoders side by side, with their features joined by channel, and
//! the projector.

use std::path::Path;

use super::{FusedMLPProjector, VLMConfig, load_projector};
use crate::{
    Error, Result,
    checkpoint::{Checkpoint, LoadContext, Weights},
    device::{
        Dtype, Tensor,
        ops::{concat, floats},
    },
    image::Pixels,
    models::{MediaPlan, Vision},
    nn::{Features, Matrix, ViTConfig, ViTEncoder, load_vit_encoder},
};

/// The paths of the encoders' tensors, in the order in which their features are concatenated.
pub(super) const ENCODERS: [&str; 2] = [
    "vision_backbone.featurizer",
    "vision_backbone.fused_featurizer",
];

/// One or two vision encoders (DINOv2 then SigLIP) and the projector.
#[derive(Debug, Clone)]
pub struct PrismaticVision {
    /// The encoders.
    pub encoders: Vec<ViTEncoder>,
    /// From their features to the decoder's space.
    pub projector: FusedMLPProjector,
}

impl PrismaticVision {
    /// Loads encoders of these depths, and the projector.
    pub(super) fn load(
        weights: &Weights,
        config: &VLMConfig,
        depths: [usize; 2],
        path: &Path,
        dtype: Dtype,
    ) -> Result<Self> {
        let encoders = (0..config.timm_model_ids.len())
            .map(|i| load_encoder(weights, config, i, depths[i], path, dtype))
            .collect::<Result<Vec<_>>>()?;
        let projector = load_projector_for(weights, &encoders, config, path, dtype)?;
        Ok(PrismaticVision {
            encoders,
            projector,
        })
    }

    /// Returns the features of each encoder, `[1, patches, width]`. `progress` receives the
    /// fraction that is complete, 0 to 1, after every block; an error from it ends the work.
    pub fn encode_by_blocks(
        &self,
        pixels: &Pixels,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let blocks: usize = self.encoders.iter().map(ViTEncoder::blocks).sum();
        let mut done = 0;
        let mut each = || {
            done += 1;
            progress(done as f32 / blocks as f32)
        };
        let encoders = self.encoders.iter().enumerate();
        encoders
            .map(|(i, encoder)| {
                encoder.forward_by_blocks(&self.encoder_input(pixels, i)?, &mut each)
            })
            .collect()
    }

    /// Projects encoder features to the decoder's space, `[1, patches, hidden]`. Calls `poll`
    /// before every layer; an error from it ends the work.
    pub fn project_by_layers(
        &self,
        features: &[Tensor],
        poll: &dyn Fn() -> Result<()>,
    ) -> Result<Tensor> {
        let features: Vec<&Tensor> = features.iter().collect();
        self.projector
            .forward_by_layers(&concat(&features, -1)?, poll)
    }

    /// Returns the `i`th encoder's part of the pixels, `[1, height, width, 3]`.
    fn encoder_input(&self, pixels: &Pixels, i: usize) -> Result<Tensor> {
        let plane = pixels.height * pixels.width;
        let share = pixels
            .data
            .get(i * 3 * plane..(i + 1) * 3 * plane)
            .ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{} channels of pixels; the model has {} encoders of 3",
                    pixels.channels,
                    self.encoders.len()
                ))
            })?;
        let planes = floats(share, &[1, 3, pixels.height as i32, pixels.width as i32]);
        Ok(planes.transpose_axes(&[0, 2, 3, 1])?)
    }
}

impl Vision for PrismaticVision {
    fn encode(
        &self,
        pixels: &Pixels,
        _: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features> {
        let features = self.encode_by_blocks(pixels, progress)?;
        let rows = self.project_by_layers(&features, &|| progress(1.0))?;
        Features::from_batch(&rows)
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = Vec::new();
        for (encoder, path) in self.encoders.iter_mut().zip(ENCODERS) {
            encoder.matrices(path, &mut all);
        }
        self.projector.matrices("projector", &mut all);
        all
    }
}

/// Returns the number of patches per picture, according to the first encoder's weights.
pub(super) fn patches(checkpoint: &Checkpoint, config: &VLMConfig) -> Result<usize> {
    let context = LoadContext::new(checkpoint, &|_, _| Ok(()));
    let vit = ViTConfig {
        image_size: config.image_sizes[0],
        ..shapes_of(&context.weights().at(ENCODERS[0]))?
    };
    Ok(vit.num_patches())
}

/// Returns the number of blocks in each encoder, for weights under their canonical names.
pub(super) fn depths(checkpoint: &Checkpoint) -> [usize; 2] {
    ENCODERS.map(|encoder| depth(checkpoint, encoder))
}

/// Resolves the name variants of the format: timm's own (`gamma`), the native training checkpoints'
/// (`dino_featurizer`, `projector.projector.0`, `llm_backbone.llm`), and newer transformers' (a
/// leading `model.`).
pub(super) fn canonical_name(name: &str) -> String {
    let parts = ["vision_backbone.", "projector.", "language_model."];
    let name = name
        .strip_prefix("model.")
        .filter(|rest| parts.iter().any(|part| rest.starts_with(part)))
        .unwrap_or(name);
    let mut name = name
        .replace(
            "vision_backbone.dino_featurizer.",
            "vision_backbone.featurizer.",
        )
        .replace(
            "vision_backbone.siglip_featurizer.",
            "vision_backbone.fused_featurizer.",
        )
        .replace("llm_backbone.llm.", "language_model.")
        .replace("projector.projector.", "projector.");
    for (position, layer) in [("0", "fc1"), ("2", "fc2"), ("4", "fc3")] {
        name = name.replace(
            &format!("projector.{position}."),
            &format!("projector.{layer}."),
        );
    }
    if name.starts_with("vision_backbone.")
        && let Some(stem) = name.strip_suffix(".gamma")
    {
        name = format!("{stem}.scale_factor");
    }
    match name.strip_prefix("language_model.") {
        Some(rest) if !rest.starts_with("model.") && !rest.starts_with("lm_head.") => {
            format!("language_model.model.{rest}")
        }
        None if name.starts_with("lm_head.") => format!("language_model.{name}"),
        _ => name,
    }
}

/// Returns the number of blocks of an encoder by the highest block number: a gap is then a missing
/// tensor, not a shallower model.
fn depth(checkpoint: &Checkpoint, encoder: &str) -> usize {
    let prefix = format!("{encoder}.blocks.");
    let blocks = checkpoint.tensor_names().filter_map(|name| {
        name.strip_prefix(&prefix)?
            .split('.')
            .next()?
            .parse::<usize>()
            .ok()
    });
    blocks.max().map_or(0, |last| last.saturating_add(1))
}

/// Returns whether a tensor is unused. The last block of an encoder, its final norm and its pooling
/// head are in the file, but features are taken before them; rotary frequencies are computed.
pub(super) fn is_unused(name: &str, depths: [usize; 2]) -> bool {
    if name.ends_with("rotary_emb.inv_freq") {
        return true;
    }
    ENCODERS.iter().zip(depths).any(|(encoder, depth)| {
        let Some(rest) = name
            .strip_prefix(encoder)
            .and_then(|rest| rest.strip_prefix('.'))
        else {
            return false;
        };
        let last = format!("blocks.{}.", depth.saturating_sub(1));
        rest.starts_with("norm.")
            || rest.starts_with("attn_pool.")
            || rest.starts_with("head.")
            || rest.starts_with(&last)
    })
}

fn load_encoder(
    weights: &Weights,
    config: &VLMConfig,
    i: usize,
    depth: usize,
    config_path: &Path,
    dtype: Dtype,
) -> Result<ViTEncoder> {
    let weights = weights.at(ENCODERS[i]);
    let unsupported = |what: String| Error::unsupported(config_path, what);
    let vit = ViTConfig {
        num_heads: config.num_heads(i).map_err(unsupported)?,
        activation: config.activation(i).map_err(unsupported)?,
        image_size: config.image_sizes[i],
        depth,
        ..shapes_of(&weights)?
    };
    check_encoder(&vit, i).map_err(|what| Error::corrupt(config_path, what))?;
    load_vit_encoder(&weights, vit, dtype)
}

/// Derives an encoder's settings from the shapes of its tensors.
fn shapes_of(weights: &Weights) -> Result<ViTConfig> {
    let size = |name: &str, axis: usize| -> Result<usize> {
        // If an axis is missing, any size will do: loading compares whole shapes.
        Ok(weights.shape(name)?.get(axis).copied().unwrap_or(1))
    };
    Ok(ViTConfig {
        embed_dim: size("patch_embed.proj.weight", 0)?,
        patch_size: size("patch_embed.proj.weight", 3)?,
        num_positions: size("pos_embed", 1)?,
        intermediate_dim: size("blocks.0.mlp.fc1.weight", 0)?,
        has_cls_token: weights.has("cls_token"),
        num_registers: if weights.has("reg_token") {
            size("reg_token", 1)?
        } else {
            0
        },
        has_layer_scale: weights.has("blocks.0.ls1.scale_factor"),
        ..ViTConfig::dinov2_large()
    })
}

fn check_encoder(vit: &ViTConfig, i: usize) -> Result<(), String> {
    let encoder = ENCODERS[i];
    if vit.num_heads == 0 || !vit.embed_dim.is_multiple_of(vit.num_heads) {
        return Err(format!(
            "{encoder} is {} wide, which {} attention heads do not divide",
            vit.embed_dim, vit.num_heads
        ));
    }
    let patches = vit.num_patches();
    if patches == 0 {
        return Err(format!(
            "image_sizes[{i}] is {}, less than one patch of {} pixels: {encoder} would have no \
                features",
            vit.image_size, vit.patch_size
        ));
    }
    let with_class_token =
        vit.has_cls_token && vit.num_registers == 0 && vit.num_positions == patches + 1;
    if vit.num_positions != patches && !with_class_token {
        return Err(format!(
            "image_sizes[{i}] is {}, which makes {patches} patches of {} pixels; \
                {encoder}.pos_embed has {} positions",
            vit.image_size, vit.patch_size, vit.num_positions
        ));
    }
    Ok(())
}

fn load_projector_for(
    weights: &Weights,
    encoders: &[ViTEncoder],
    config: &VLMConfig,
    config_path: &Path,
    dtype: Dtype,
) -> Result<FusedMLPProjector> {
    let patches: Vec<usize> = encoders
        .iter()
        .map(|encoder| encoder.config.num_patches())
        .collect();
    if patches.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Error::corrupt(
            config_path,
            format!("the encoders make {patches:?} patches of a picture; expected the same number"),
        ));
    }
    let width = encoders
        .iter()
        .map(|encoder| encoder.config.embed_dim)
        .sum();
    load_projector(
        &weights.at("projector"),
        width,
        config.text_config.hidden_size,
        dtype,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_name() {
        for (stored, name) in [
            (
                "vision_backbone.featurizer.blocks.0.ls1.gamma",
                "vision_backbone.featurizer.blocks.0.ls1.scale_factor",
            ),
            (
                "vision_backbone.dino_featurizer.cls_token",
                "vision_backbone.featurizer.cls_token",
            ),
            (
                "vision_backbone.siglip_featurizer.norm.bias",
                "vision_backbone.fused_featurizer.norm.bias",
            ),
            (
                "model.vision_backbone.fused_featurizer.pos_embed",
                "vision_backbone.fused_featurizer.pos_embed",
            ),
            ("projector.0.weight", "projector.fc1.weight"),
            ("projector.projector.4.bias", "projector.fc3.bias"),
            ("model.projector.fc2.bias", "projector.fc2.bias"),
            (
                "language_model.model.layers.0.mlp.up_proj.weight",
                "language_model.model.layers.0.mlp.up_proj.weight",
            ),
            (
                "llm_backbone.llm.model.layers.3.mlp.up_proj.weight",
                "language_model.model.layers.3.mlp.up_proj.weight",
            ),
            (
                "llm_backbone.llm.lm_head.weight",
                "language_model.lm_head.weight",
            ),
            (
                "model.language_model.layers.3.mlp.up_proj.weight",
                "language_model.model.layers.3.mlp.up_proj.weight",
            ),
            (
                "model.language_model.embed_tokens.weight",
                "language_model.model.embed_tokens.weight",
            ),
            ("lm_head.weight", "language_model.lm_head.weight"),
        ] {
            assert_eq!(canonical_name(stored), name);
        }
    }

    #[test]
    fn the_forward_pass_needs_no_last_block() {
        let depths = [24, 27];
        assert!(is_unused(
            "vision_backbone.featurizer.blocks.23.mlp.fc1.bias",
            depths
        ));
        assert!(!is_unused(
            "vision_backbone.featurizer.blocks.22.mlp.fc1.bias",
            depths
        ));
        assert!(!is_unused(
            "vision_backbone.featurizer.blocks.2.norm1.bias",
            depths
        ));
        assert!(is_unused(
            "vision_backbone.fused_featurizer.blocks.26.norm1.bias",
            depths
        ));
        assert!(is_unused(
            "vision_backbone.fused_featurizer.attn_pool.latent",
            depths
        ));
        assert!(is_unused("vision_backbone.featurizer.norm.bias", depths));
        assert!(!is_unused("language_model.model.norm.weight", depths));
    }
}
