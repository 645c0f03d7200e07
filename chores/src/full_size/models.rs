//! The models of which checkpoints can be written: published sizes, small tokenizers, and settings.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::tensors::{self, Clip, Decoder, List, MOXIN_7B, QwenVision, Tensor};
use crate::setup;

/// A model of which a random checkpoint can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// Moxin-7B VLM
    #[value(name = "moxin-7b")]
    Moxin7b,
    /// PaliGemma 3B at 224 pixels
    #[value(name = "paligemma-3b")]
    PaliGemma3b,
    /// Qwen2-VL 2B
    #[value(name = "qwen2-vl-2b")]
    Qwen2Vl2b,
    /// Qwen2.5-VL 3B
    #[value(name = "qwen2.5-vl-3b")]
    Qwen25Vl3b,
}

/// <https://huggingface.co/google/paligemma-3b-pt-224/blob/main/config.json>
const PALIGEMMA_3B: Decoder = Decoder {
    width: 2048,
    layers: 18,
    queries: 2048,
    keys: 256,
    inner: 16_384,
    vocabulary: 257_216,
};
const SIGLIP: Clip = Clip {
    width: 1152,
    depth: 27,
    inner: 4304,
    patch: 14,
    patches: 256,
};

/// <https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/config.json>
const QWEN2_VL_2B: Decoder = Decoder {
    width: 1536,
    layers: 28,
    queries: 1536,
    keys: 256,
    inner: 8960,
    vocabulary: 151_936,
};
const QWEN_VISION: QwenVision = QwenVision {
    width: 1280,
    depth: 32,
    inner: 5120,
    patch: 1176,
    merged: 5120,
    output: 1536,
    is_llama_like: false,
};

/// <https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/config.json>
const QWEN2_5_VL_3B: Decoder = Decoder {
    width: 2048,
    layers: 36,
    queries: 2048,
    keys: 256,
    inner: 11_008,
    vocabulary: 151_936,
};
const QWEN2_5_VISION: QwenVision = QwenVision {
    inner: 3420,
    output: 2048,
    is_llama_like: true,
    ..QWEN_VISION
};

impl Model {
    /// Returns the name of its folder in the cache.
    pub fn folder(self) -> &'static str {
        match self {
            Model::Moxin7b => "moxin-7b-random",
            Model::PaliGemma3b => "paligemma-3b-random",
            Model::Qwen2Vl2b => "qwen2-vl-2b-random",
            Model::Qwen25Vl3b => "qwen2.5-vl-3b-random",
        }
    }

    /// Returns its tensors.
    pub fn tensors(self) -> Vec<Tensor> {
        let mut list = List(Vec::new());
        match self {
            Model::Moxin7b => return tensors::tensors(&MOXIN_7B),
            Model::PaliGemma3b => {
                list.clip("vision_tower.vision_model", &SIGLIP);
                list.linear(
                    "multi_modal_projector.linear",
                    PALIGEMMA_3B.width,
                    SIGLIP.width,
                );
                list.layers("language_model.model", &PALIGEMMA_3B, false);
            }
            Model::Qwen2Vl2b => {
                list.qwen_vision("visual", &QWEN_VISION);
                list.layers("model", &QWEN2_VL_2B, true);
            }
            Model::Qwen25Vl3b => {
                list.qwen_vision("visual", &QWEN2_5_VISION);
                list.layers("model", &QWEN2_5_VL_3B, true);
            }
        }
        list.0
    }

    /// Returns the folder whose tokenizer is used. It has fewer ids than the real one; all of them
    /// are valid here.
    fn source(self) -> PathBuf {
        let folder = match self {
            Model::Moxin7b => "models/tiny",
            Model::PaliGemma3b => "tests/models/paligemma/model",
            Model::Qwen2Vl2b => "tests/models/qwen2_vl/model",
            Model::Qwen25Vl3b => "tests/models/qwen2_5_vl/model",
        };
        setup::repository().join(folder)
    }

    /// Returns the other files of its folder.
    pub fn files(self) -> Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ] {
            let path = self.source().join(name);
            if path.is_file() {
                files.push((
                    name.to_owned(),
                    fs::read_to_string(&path)
                        .with_context(|| format!("cannot read {}", path.display()))?,
                ));
            }
        }
        let settings = match self {
            Model::Moxin7b => super::moxin(),
            Model::PaliGemma3b => vec![
                ("config.json", paligemma(&self.config()?)),
                ("preprocessor_config.json", siglip_processor()),
            ],
            Model::Qwen2Vl2b => vec![
                ("config.json", qwen2_vl(&self.config()?)),
                ("preprocessor_config.json", qwen_processor()),
            ],
            Model::Qwen25Vl3b => vec![
                ("config.json", qwen2_5_vl(&self.config()?)),
                ("preprocessor_config.json", qwen_processor()),
            ],
        };
        files.extend(
            settings
                .into_iter()
                .map(|(name, value)| (name.to_owned(), format!("{value:#}\n"))),
        );
        Ok(files)
    }

    /// Returns the configuration that has the tokenizer's ids.
    fn config(self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(
            self.source().join("config.json"),
        )?)?)
    }
}

fn paligemma(small: &Value) -> Value {
    json!({
        "model_type": "paligemma",
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "hidden_size": 2048,
        "image_token_index": small["image_token_index"],
        "pad_token_id": 0,
        "projection_dim": 2048,
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18,
            "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32", "vocab_size": 257_216,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,
            "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14, "projection_dim": 2048, "vision_use_head": false,
        },
        "vocab_size": 257_216,
    })
}

fn siglip_processor() -> Value {
    json!({
        "do_convert_rgb": null, "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor", "image_seq_length": 256, "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor", "resample": 3, "rescale_factor": 0.003_921_568_627_450_98,
        "size": { "height": 224, "width": 224 },
    })
}

fn qwen2_vl(small: &Value) -> Value {
    let config = json!({
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28,
        "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] }, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151_936,
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
        },
    });
    with_ids(config, small)
}

fn qwen2_5_vl(small: &Value) -> Value {
    let config = json!({
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 128_000,
        "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] }, "sliding_window": 32768,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151_936,
        "vision_config": {
            "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280, "in_chans": 3,
            "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
        },
    });
    with_ids(config, small)
}

/// Adds the ids of the small tokenizer.
fn with_ids(mut config: Value, small: &Value) -> Value {
    for name in [
        "bos_token_id",
        "eos_token_id",
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    ] {
        config[name] = small[name].clone();
    }
    config
}

fn qwen_processor() -> Value {
    json!({
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73], "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11], "max_pixels": 12_845_056, "merge_size": 2, "min_pixels": 3136,
        "patch_size": 14, "processor_class": "Qwen2VLProcessor", "temporal_patch_size": 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published sizes: 2.92, 2.21 and 3.75 billion parameters.
    #[test]
    fn the_real_sizes_give_the_real_numbers_of_parameters() {
        let count = |model: Model| {
            (model.tensors().iter().map(Tensor::elements).sum::<usize>() as f64 / 1e6).round()
        };
        assert_eq!(count(Model::PaliGemma3b), 2923.0);
        assert_eq!(count(Model::Qwen2Vl2b), 2209.0);
        assert_eq!(count(Model::Qwen25Vl3b), 3755.0);
    }
}
