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

/// Returns whether a tensor is one that programs compute: rotary frequencies, and lists of position
/// ids.
pub fn is_computed(stored: &str) -> bool {
    stored.ends_with("rotary_emb.inv_freq") || stored.ends_with("position_ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_decoder_has_one_name() {
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
    }
}
