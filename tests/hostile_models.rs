//! Tests folders of every architecture, damaged field by field: each results in an error that names
//! file and field, never in a panic, and a folder that loads is asked a question.

use std::{
    fs,
    path::{Path, PathBuf},
};

use moxin_vlm::{
    Backend, Error, GenerationOptions, LoadOptions, Model, Op, Picture, PixelFormat, Role,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = "config.json";
const PROCESSOR: &str = "preprocessor_config.json";

fn copy(name: &str) -> (TempDir, PathBuf) {
    let place = TempDir::new().unwrap();
    let path = place.path().join("model");
    fs::create_dir(&path).unwrap();
    for entry in fs::read_dir(Path::new("tests/models").join(name).join("model")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
    }
    (place, path)
}

fn change(path: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = path.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Sets a field by its pointer, or removes it if the value is null.
fn set(json: &mut Value, pointer: &str, value: &Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = json
        .pointer_mut(parent)
        .and_then(Value::as_object_mut)
        .unwrap();
    match value.is_null() {
        true => drop(parent.remove(name)),
        false => drop(parent.insert(name.into(), value.clone())),
    }
}

fn load(path: &Path) -> Result<Model, Error> {
    Model::load(
        path,
        LoadOptions {
            backend: Backend::Cpu,
            ..Default::default()
        },
        Op::default(),
    )
}

#[test]
fn a_wrong_field_is_named() {
    let cases = [
        (
            "paligemma",
            CONFIG,
            "/text_config/model_type",
            json!("gemma9"),
            &["text_config.model_type", "gemma2"][..],
        ),
        (
            "paligemma",
            CONFIG,
            "/text_config/hidden_size",
            json!(0),
            &["text_config.hidden_size"],
        ),
        (
            "paligemma",
            CONFIG,
            "/text_config/hidden_size",
            json!("wide"),
            &["config.json"],
        ),
        (
            "paligemma",
            CONFIG,
            "/text_config/num_key_value_heads",
            json!(3),
            &["num_key_value_heads"],
        ),
        (
            "paligemma",
            CONFIG,
            "/text_config/head_dim",
            json!(5),
            &["head_dim"],
        ),
        (
            "paligemma",
            CONFIG,
            "/text_config/num_hidden_layers",
            json!(16_777_216),
            &["layers"],
        ),
        (
            "paligemma",
            CONFIG,
            "/text_config/rms_norm_eps",
            json!(-1.0),
            &["rms_norm_eps"],
        ),
        (
            "paligemma",
            CONFIG,
            "/vision_config/image_size",
            json!(3),
            &["vision_config.image_size"],
        ),
        (
            "paligemma",
            CONFIG,
            "/vision_config/image_size",
            json!(70),
            &["size"],
        ),
        (
            "paligemma",
            CONFIG,
            "/vision_config/num_attention_heads",
            json!(7),
            &["attention heads"],
        ),
        (
            "paligemma",
            CONFIG,
            "/vision_config/hidden_act",
            json!("relu"),
            &["hidden_act", "relu"],
        ),
        (
            "paligemma",
            CONFIG,
            "/vision_config/patch_size",
            json!(0.5),
            &["vision_config"],
        ),
        (
            "paligemma",
            CONFIG,
            "/image_token_index",
            json!(5),
            &["tokenizer.json", "<image>"],
        ),
        (
            "paligemma",
            CONFIG,
            "/image_token_index",
            json!(1e12),
            &["image_token_index"],
        ),
        (
            "paligemma",
            PROCESSOR,
            "/image_processor_type",
            json!("CLIPImageProcessor"),
            &["CLIPImageProcessor", "SiglipImageProcessor"],
        ),
        (
            "paligemma",
            PROCESSOR,
            "/size",
            json!({"height": 28, "width": 28}),
            &["size", "28", "56"],
        ),
        ("paligemma", PROCESSOR, "/resample", json!(9), &["resample"]),
        (
            "paligemma",
            PROCESSOR,
            "/do_normalize",
            json!(false),
            &["do_normalize"],
        ),
        (
            "paligemma",
            PROCESSOR,
            "/image_std",
            json!([0, 0, 0]),
            &["image_std"],
        ),
        (
            "paligemma",
            PROCESSOR,
            "/image_mean",
            json!([0.5]),
            &["image_mean"],
        ),
        (
            "paligemma",
            PROCESSOR,
            "/rescale_factor",
            json!("x"),
            &["rescale_factor"],
        ),
        (
            "qwen2_5_vl",
            CONFIG,
            "/vision_config/fullatt_block_indexes",
            json!([1, 4]),
            &["fullatt_block_indexes", "4 blocks"],
        ),
        (
            "qwen2_5_vl",
            CONFIG,
            "/vision_config/window_size",
            json!(27),
            &["window_size", "28"],
        ),
        (
            "qwen2_5_vl",
            CONFIG,
            "/vision_config/out_hidden_size",
            json!(32),
            &["out_hidden_size", "64"],
        ),
        (
            "qwen2_5_vl",
            CONFIG,
            "/vision_config/intermediate_size",
            json!(0),
            &["intermediate_size"],
        ),
        (
            "qwen2_5_vl",
            CONFIG,
            "/vision_config/hidden_size",
            json!(30),
            &["hidden_size"],
        ),
        (
            "qwen2_5_vl",
            CONFIG,
            "/vision_config/window_size",
            json!(-1),
            &["vision_config"],
        ),
        (
            "qwen2_5_vl",
            PROCESSOR,
            "/patch_size",
            json!(16),
            &["patch_size"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/rope_scaling/mrope_section",
            json!([2, 3]),
            &["mrope_section"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/rope_scaling/mrope_section",
            json!([2, 3, 18_446_744_073_709_551_615_u64]),
            &["mrope_section"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/rope_scaling",
            Value::Null,
            &["mrope_section"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/rope_scaling/type",
            json!("yarn"),
            &["yarn"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/use_sliding_window",
            json!(true),
            &["use_sliding_window"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/vision_config/embed_dim",
            json!(30),
            &["embed_dim"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/vision_config/num_heads",
            json!(0),
            &["num_heads"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/vision_config/mlp_ratio",
            json!(1e300),
            &["mlp_ratio"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/vision_config/spatial_merge_size",
            json!(1000),
            &["vision_config"],
        ),
        (
            "qwen2_vl",
            CONFIG,
            "/vision_config/depth",
            json!(4),
            &["blocks"],
        ),
        (
            "qwen2_vl",
            PROCESSOR,
            "/image_processor_type",
            json!("SiglipImageProcessorFast"),
            &["SiglipImageProcessorFast", "Qwen2VLImageProcessor"],
        ),
        (
            "qwen2_vl",
            PROCESSOR,
            "/patch_size",
            json!(16),
            &["patch_size"],
        ),
        (
            "qwen2_vl",
            PROCESSOR,
            "/min_pixels",
            json!(50_000),
            &["min_pixels"],
        ),
        (
            "qwen2_vl",
            PROCESSOR,
            "/max_pixels",
            json!(0),
            &["max_pixels"],
        ),
        (
            "llava",
            CONFIG,
            "/text_config/model_type",
            json!("mistral"),
            &["text_config.model_type", "llama"],
        ),
        (
            "llava",
            CONFIG,
            "/vision_feature_layer",
            json!(-9),
            &["vision_feature_layer"],
        ),
        (
            "llava",
            CONFIG,
            "/vision_feature_layer",
            json!([1, 2]),
            &["vision_feature_layer"],
        ),
        (
            "llava",
            CONFIG,
            "/vision_feature_select_strategy",
            json!("all"),
            &["vision_feature_select_strategy"],
        ),
        (
            "llava",
            CONFIG,
            "/projector_hidden_act",
            json!("tanh"),
            &["projector_hidden_act"],
        ),
        (
            "llava",
            PROCESSOR,
            "/crop_size",
            json!({"height": 84, "width": 84}),
            &["crop_size"],
        ),
        (
            "llava",
            PROCESSOR,
            "/size",
            json!({"shortest_edge": 20}),
            &["shortest_edge"],
        ),
        (
            "llava",
            PROCESSOR,
            "/do_center_crop",
            json!(false),
            &["do_center_crop"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/model_type",
            json!("gemma9"),
            &["text_config.model_type", "gemma3_text"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/sliding_window",
            json!(0),
            &["sliding_window"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/sliding_window_pattern",
            json!(0),
            &["sliding_window_pattern", "1 to 1024"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/sliding_window_pattern",
            json!(16_777_216),
            &["sliding_window_pattern"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/layer_types",
            json!(["full_attention"]),
            &["layer_types", "1 entries", "4"],
        ),
        (
            "gemma3_saved",
            CONFIG,
            "/text_config/layer_types",
            json!([
                "full_attention",
                "sliding_attention",
                "chunked_attention",
                "full_attention"
            ]),
            &["layer_types", "chunked_attention"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/query_pre_attn_scalar",
            json!(-1),
            &["query_pre_attn_scalar"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/rope_local_base_freq",
            json!(0.5),
            &["rotary positions", "0.5"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/rope_scaling",
            json!({"rope_type": "yarn", "factor": 8}),
            &["yarn"],
        ),
        (
            "gemma3_saved",
            CONFIG,
            "/text_config/rope_parameters/full_attention/factor",
            json!(0.5),
            &["rotary positions", "0.5"],
        ),
        (
            "gemma3_saved",
            CONFIG,
            "/text_config/rope_parameters/sliding_attention/rope_theta",
            json!(0),
            &["rotary positions"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/attn_logit_softcapping",
            json!(50),
            &["attn_logit_softcapping", "50"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/use_bidirectional_attention",
            json!(true),
            &["use_bidirectional_attention"],
        ),
        (
            "gemma3",
            CONFIG,
            "/text_config/hidden_activation",
            json!("relu"),
            &["hidden_activation", "relu"],
        ),
        (
            "gemma3",
            CONFIG,
            "/mm_tokens_per_image",
            json!(0),
            &["mm_tokens_per_image"],
        ),
        (
            "gemma3",
            CONFIG,
            "/mm_tokens_per_image",
            json!(8),
            &["mm_tokens_per_image", "8"],
        ),
        (
            "gemma3",
            CONFIG,
            "/mm_tokens_per_image",
            json!(16),
            &["mm_tokens_per_image", "divisor of 6"],
        ),
        (
            "gemma3",
            CONFIG,
            "/mm_tokens_per_image",
            json!("many"),
            &["mm_tokens_per_image"],
        ),
        (
            "gemma3",
            CONFIG,
            "/image_token_index",
            json!(5),
            &["tokenizer.json", "<image_soft_token>"],
        ),
        (
            "gemma3",
            PROCESSOR,
            "/do_pan_and_scan",
            json!(true),
            &["do_pan_and_scan"],
        ),
        (
            "gemma3",
            PROCESSOR,
            "/size",
            json!({"height": 56, "width": 56}),
            &["size", "56", "42"],
        ),
        (
            "gemma3_text",
            CONFIG,
            "/final_logit_softcapping",
            json!(30),
            &["final_logit_softcapping"],
        ),
        (
            "gemma3_text",
            CONFIG,
            "/num_hidden_layers",
            json!(16_777_216),
            &["layers"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/text_config/model_type",
            json!("gemma"),
            &["text_config.model_type", "llama"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/scale_factor",
            json!(3),
            &["scale_factor", "4 patches"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/scale_factor",
            json!(0),
            &["scale_factor"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/vision_config/patch_size",
            json!(0),
            &["vision_config.patch_size"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/vision_config/image_size",
            json!(29),
            &["max_image_size", "28", "29"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/vision_config/num_channels",
            json!(1),
            &["num_channels"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/text_config/rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            &["low_freq_factor"],
        ),
        (
            "smolvlm",
            CONFIG,
            "/text_config/rope_scaling",
            json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }),
            &["high_freq_factor"],
        ),
        (
            "smolvlm",
            PROCESSOR,
            "/max_image_size/longest_edge",
            json!(56),
            &["max_image_size", "28", "56"],
        ),
        (
            "smolvlm",
            PROCESSOR,
            "/size",
            json!({"height": 28, "width": 28}),
            &["size", "longest_edge"],
        ),
        (
            "smolvlm",
            PROCESSOR,
            "/size/longest_edge",
            json!(2_000_000),
            &["size.longest_edge", "896"],
        ),
        (
            "smolvlm",
            PROCESSOR,
            "/do_image_splitting",
            json!("yes"),
            &["do_image_splitting"],
        ),
        (
            "smolvlm",
            PROCESSOR,
            "/do_resize",
            json!(false),
            &["do_resize"],
        ),
    ];
    for (name, file, pointer, value, needles) in cases {
        let (_place, path) = copy(name);
        change(&path, file, |json| set(json, pointer, &value));
        let what = format!("{name}, {file}{pointer} = {value}");
        let error = load(&path)
            .err()
            .unwrap_or_else(|| panic!("{what}: loaded"));
        assert!(
            matches!(
                error,
                Error::CorruptModel { .. } | Error::UnsupportedModel { .. }
            ),
            "{what}: {error:?}"
        );
        let text = error.to_string();
        assert!(
            needles.iter().all(|needle| text.contains(needle)),
            "{what}: {text}"
        );
    }
}

/// A value of another type is damage, not something that is not supported.
#[test]
fn a_field_of_another_type_is_corrupt() {
    for name in [
        "paligemma",
        "qwen2_vl",
        "qwen2_5_vl",
        "llava",
        "gemma3",
        "smolvlm",
    ] {
        let (_place, path) = copy(name);
        change(&path, CONFIG, |json| {
            set(json, "/vision_config/patch_size", &json!("x"))
        });
        let error = load(&path).err().unwrap();
        assert!(
            matches!(error, Error::CorruptModel { .. }),
            "{name}: {error:?}"
        );
    }
}

/// The processor's aliases, and transformers 5's file for it.
#[test]
fn processors_are_known_by_all_their_names() {
    for (name, kind) in [
        ("paligemma", "SiglipImageProcessor"),
        ("qwen2_vl", "Qwen2VLImageProcessor"),
        ("qwen2_5_vl", "Qwen2VLImageProcessor"),
        ("llava", "CLIPImageProcessor"),
        ("gemma3", "Gemma3ImageProcessor"),
        ("smolvlm", "SmolVLMImageProcessor"),
        ("smolvlm", "Idefics3ImageProcessor"),
    ] {
        for suffix in ["", "Fast", "Pil"] {
            let (_place, path) = copy(name);
            change(&path, PROCESSOR, |json| {
                set(
                    json,
                    "/image_processor_type",
                    &json!(format!("{kind}{suffix}")),
                )
            });
            load(&path).unwrap();
            let settings: Value =
                serde_json::from_slice(&fs::read(path.join(PROCESSOR)).unwrap()).unwrap();
            fs::remove_file(path.join(PROCESSOR)).unwrap();
            fs::write(
                path.join("processor_config.json"),
                json!({"image_processor": settings}).to_string(),
            )
            .unwrap();
            load(&path).unwrap();
            fs::write(
                path.join("processor_config.json"),
                json!({"processor_class": "X"}).to_string(),
            )
            .unwrap();
            assert!(matches!(load(&path), Err(Error::NotFound { .. })), "{name}");
        }
    }
}

/// A tokenizer without the text that stands for a picture in prompts.
#[test]
fn a_missing_placeholder_is_named() {
    let (_place, path) = copy("gemma3");
    let file = path.join("tokenizer.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("<start_of_image>", "<start_of_photo>")).unwrap();
    let error = load(&path).err().unwrap();
    assert!(matches!(error, Error::CorruptModel { .. }), "{error}");
    assert!(error.to_string().contains("<start_of_image>"), "{error}");
}

/// A tensor that is missing, and one of another shape.
#[test]
fn a_missing_tensor_is_named() {
    for (name, tensor) in [
        (
            "paligemma",
            "vision_tower.vision_model.post_layernorm.weight",
        ),
        ("paligemma", "multi_modal_projector.linear.bias"),
        (
            "paligemma2",
            "language_model.model.layers.2.pre_feedforward_layernorm.weight",
        ),
        ("qwen2_vl", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen2_vl", "visual.merger.ln_q.weight"),
        ("qwen2_5_vl", "visual.blocks.2.mlp.gate_proj.weight"),
        (
            "llava",
            "vision_tower.vision_model.embeddings.class_embedding",
        ),
        ("llava", "language_model.lm_head.weight"),
        (
            "gemma3",
            "language_model.model.layers.1.self_attn.q_norm.weight",
        ),
        ("gemma3", "multi_modal_projector.mm_soft_emb_norm.weight"),
        ("gemma3", "multi_modal_projector.mm_input_projection_weight"),
        (
            "gemma3_text",
            "model.layers.3.post_feedforward_layernorm.weight",
        ),
        ("smolvlm", "model.connector.modality_projection.proj.weight"),
        ("smolvlm", "model.vision_model.post_layernorm.bias"),
    ] {
        let (_place, path) = copy(name);
        let file = path.join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.tensor(tensor).is_ok(), "{tensor}");
        let rest: Vec<_> = tensors
            .tensors()
            .into_iter()
            .filter(|(name, _)| name != tensor)
            .collect();
        fs::write(&file, safetensors::serialize(rest, None).unwrap()).unwrap();
        let result = load(&path);
        // A missing projector bias means no bias; a missing head means a tied one.
        if tensor.ends_with("linear.bias") || tensor.ends_with("lm_head.weight") {
            result.unwrap();
            continue;
        }
        let error = result
            .err()
            .unwrap_or_else(|| panic!("{tensor}"))
            .to_string();
        assert!(
            error.contains(tensor.rsplit('.').nth(1).unwrap()),
            "{tensor}: {error}"
        );
    }
}

/// A template is untrusted: it ends, its memory is limited, and its failures are errors.
#[test]
fn a_hostile_template_is_an_error() {
    for (template, needle) in [
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            "template",
        ),
        (
            "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
            "template",
        ),
        (
            "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
            "template",
        ),
        (
            "{{ raise_exception('no pictures today') }}",
            "no pictures today",
        ),
        (
            "{{ messages[0]['content'][0]['text'] * 100000000 }}",
            "template",
        ),
        ("{{ 'x' * 1000000000000 }}", "template"),
        ("{{ undefined.field.of.nothing }}", "template"),
        ("nothing of pictures", "<|image_pad|>"),
    ] {
        let (_place, path) = copy("qwen2_vl");
        fs::write(path.join("chat_template.jinja"), template).unwrap();
        let model = load(&path).unwrap();
        let session = model.session(GenerationOptions::default()).unwrap();
        let picture = Picture::from_pixels(&[7; 3 * 64], 8, 8, 24, PixelFormat::Rgb8).unwrap();
        session.add_image(picture).unwrap();
        session.add_text(Role::User, "What?").unwrap();
        let clock = std::time::Instant::now();
        let error = session.step().expect_err(template);
        assert!(error.to_string().contains(needle), "{template}: {error}");
        assert!(
            clock.elapsed().as_secs() < 20,
            "{template}: {:?}",
            clock.elapsed()
        );
    }
    for template in ["{% for", "{{ x | nosuchfilter }}", "{% unknown %}"] {
        let (_place, path) = copy("qwen2_vl");
        fs::write(path.join("chat_template.jinja"), template).unwrap();
        match load(&path) {
            Err(error) => assert!(
                error.to_string().contains("chat_template.jinja"),
                "{template}: {error}"
            ),
            Ok(model) => {
                let session = model.session(GenerationOptions::default()).unwrap();
                session.add_text(Role::User, "What?").unwrap();
                assert!(session.step().is_err(), "{template}");
            }
        }
    }
}
