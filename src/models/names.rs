//! Tensor name patterns that all architectures share.

/// Returns the canonical name of a decoder tensor, or `None` for other tensors. Checkpoints store
/// the decoder's layers under `language_model.model.` (the hub's LLaVA and PaliGemma, mlx-vlm),
/// `model.language_model.` (transformers since 4.52) or `model.` (the hub's Qwen-VL), and the head
/// next to them or one level up.
pub fn decoder_name(stored: &str) -> Option<String> {
    let is_inside = |rest: &&str| {
        ["embed_tokens.", "layers.", "norm."]
            .iter()
            .any(|part| rest.starts_with(part))
    };
    if stored.starts_with("lm_head.") {
        return Some(format!("language_model.{stored}"));
    }
    if stored.starts_with("language_model.lm_head.") {
        return Some(stored.into());
    }
    let prefixes = [
        "language_model.model.",
        "model.language_model.",
        "language_model.",
        "model.",
    ];
    let inside = prefixes
        .iter()
        .find_map(|prefix| stored.strip_prefix(prefix).filter(is_inside))?;
    Some(format!("language_model.model.{inside}"))
}

/// Returns the canonical name of a tensor of a model with a decoder and a CLIP or SigLIP encoder:
/// `vision_tower.vision_model.` starts those of the encoder, as on the hub. transformers since 4.52
/// puts `model.` before it, and 5 keeps the encoder without the inner name in memory.
pub fn with_vision_tower(stored: &str) -> String {
    if let Some(name) = decoder_name(stored) {
        return name;
    }
    let name = stored.strip_prefix("model.").unwrap_or(stored);
    match name.strip_prefix("vision_tower.") {
        Some(rest) => {
            let rest = rest.strip_prefix("vision_model.").unwrap_or(rest);
            format!("vision_tower.vision_model.{rest}")
        }
        None => name.to_owned(),
    }
}

/// Returns the name as [`with_vision_tower`] does, or `None` for tensors that a model with SigLIP
/// never reads: those that are computed, and the encoder's pooling head.
pub fn with_siglip(stored: &str) -> Option<String> {
    let name = with_vision_tower(stored);
    let is_used = !is_computed(&name) && !name.starts_with("vision_tower.vision_model.head.");
    is_used.then_some(name)
}

/// Returns whether a tensor is one that programs compute: rotary frequencies, and lists of position
/// ids.
pub fn is_computed(stored: &str) -> bool {
    stored.ends_with("rotary_emb.inv_freq") || stored.ends_with("position_ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_name() {
        for stored in [
            "language_model.model.layers.3.mlp.up_proj.weight",
            "model.language_model.layers.3.mlp.up_proj.weight",
            "model.layers.3.mlp.up_proj.weight",
        ] {
            assert_eq!(
                decoder_name(stored).as_deref(),
                Some("language_model.model.layers.3.mlp.up_proj.weight")
            );
        }
        for stored in ["lm_head.weight", "language_model.lm_head.weight"] {
            assert_eq!(
                decoder_name(stored).as_deref(),
                Some("language_model.lm_head.weight")
            );
        }
        assert_eq!(decoder_name("model.vision_tower.layers.0.weight"), None);
        assert_eq!(decoder_name("visual.blocks.0.norm1.weight"), None);
        for stored in [
            "vision_tower.vision_model.post_layernorm.bias",
            "model.vision_tower.vision_model.post_layernorm.bias",
            "model.vision_tower.post_layernorm.bias",
        ] {
            let name = "vision_tower.vision_model.post_layernorm.bias";
            assert_eq!(with_vision_tower(stored), name);
        }
    }
}
