//! Tests quantizing, saving and loading, on the small trained model.

use std::fs;
use std::path::{Path, PathBuf};

use moxin_vlm::{
    Cancel, Embedding, Error, Event, GenerationOptions, KVCache, LoadOptions, Mode, Model,
    MoxinVLM, Op, Picture, Quantization, QuantizeOptions, Role, Stage, load_model, load_tokenizer,
};
use tempfile::TempDir;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

fn load(folder: &Path, quantize: Option<QuantizeOptions>) -> Model {
    Model::load(
        folder,
        LoadOptions {
            quantize,
            ..Default::default()
        },
        Op::default(),
    )
    .unwrap()
}

fn scheme(bits: usize, group_size: usize) -> QuantizeOptions {
    QuantizeOptions {
        quantization: Quantization::affine(group_size, bits),
        ..Default::default()
    }
}

/// Returns all schemes that MLX has.
fn schemes() -> impl Iterator<Item = QuantizeOptions> {
    let affine = [2, 3, 4, 5, 6, 8]
        .into_iter()
        .flat_map(|bits| [32, 64, 128].map(|group_size| scheme(bits, group_size)));
    let others = Mode::ALL
        .into_iter()
        .filter_map(Mode::scheme)
        .map(|quantization| QuantizeOptions {
            quantization,
            ..Default::default()
        });
    affine.chain(others)
}

fn demo(model: &Model) -> Embedding {
    let picture = Picture::open(tiny().with_file_name("demo.png"), &Default::default()).unwrap();
    model.encode_image(&picture, Op::default()).unwrap()
}

/// Returns the tokens of an answer, with the bits of their log-probabilities and of the next most
/// likely ones.
fn answer(model: &Model) -> Vec<(u32, Vec<u32>)> {
    let session = model
        .session(GenerationOptions {
            max_tokens: 12,
            top_logprobs: 5,
            ..Default::default()
        })
        .unwrap();
    session.add_embedding(&demo(model)).unwrap();
    session
        .add_text(Role::User, "Describe the picture.")
        .unwrap();
    let tokens = session.generate().filter_map(|event| match event.unwrap() {
        Event::Text { token, top, .. } => Some((
            token,
            top.iter().map(|choice| choice.logprob.to_bits()).collect(),
        )),
        _ => None,
    });
    tokens.collect()
}

fn save(model: &Model, folder: &Path) -> moxin_vlm::Result<()> {
    model.save(folder, false, Op::default())
}

#[test]
fn a_saved_model_answers_bit_for_bit() {
    let dense = answer(&load(&tiny(), None));
    let (mut all, place) = (Vec::new(), TempDir::new().unwrap());
    for options in schemes() {
        let Quantization {
            group_size,
            bits,
            mode,
        } = options.quantization;
        let model = load(&tiny(), None);
        model.quantize(options.clone(), Op::default()).unwrap();
        let in_memory = answer(&model);
        assert_eq!(model.info().quantization, Some(options.quantization));
        let folder = place.path().join(format!("{mode:?}-{bits}-{group_size}"));
        save(&model, &folder).unwrap();
        let loaded = load(&folder, None);
        assert_eq!(
            answer(&loaded),
            in_memory,
            "{mode:?}, {bits} bits, groups of {group_size}"
        );
        assert_eq!(loaded.info().quantization, Some(options.quantization));
        assert_eq!(loaded.info().parameters, model.info().parameters);
        assert_eq!(
            loaded.info().fingerprint,
            model.info().fingerprint,
            "the vision part is the same"
        );
        // Quantized while loading, it is the same again.
        assert_eq!(answer(&load(&tiny(), Some(options))), in_memory);
        // Saved once more, nothing changes.
        let again = place.path().join("again");
        loaded.save(&again, true, Op::default()).unwrap();
        let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert!(weights(&again) == weights(&folder), "another file");
        all.push(in_memory);
    }
    all.push(dense);
    all.sort();
    all.dedup();
    assert!(all.len() > 12, "the schemes differ");
}

#[test]
fn the_low_level_model_quantizes_too() {
    let ids = load_tokenizer(tiny())
        .unwrap()
        .encode("In: What is written?\nOut:", true)
        .unwrap();
    let logits = |model: &MoxinVLM| -> Vec<u32> {
        let mut cache: Vec<KVCache> = model.new_cache();
        let embeds = model.embed(&ids, None).unwrap();
        let logits = model
            .forward_embeddings(&embeds, &mut cache, moxin_vlm::nn::Want::All, &|| Ok(()))
            .unwrap()
            .unwrap();
        logits
            .to_vec_cast::<f32>()
            .unwrap()
            .iter()
            .map(|value| value.to_bits())
            .collect()
    };
    let mut model = load_model(tiny()).unwrap();
    let dense = logits(&model);
    model.quantize(64, 8).unwrap();
    let quantized = logits(&model);
    assert_ne!(dense, quantized);
    let apart = dense
        .iter()
        .zip(&quantized)
        .map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs())
        .fold(0.0, f32::max);
    assert!(apart < 1.0, "8 bits are close: {apart}");
    assert!(matches!(
        model.quantize(48, 8),
        Err(Error::InvalidArgument(_))
    ));
    assert!(matches!(
        model.quantize(64, 7),
        Err(Error::InvalidArgument(_))
    ));
}

#[test]
fn modules_may_differ() {
    let eight = Quantization::affine(32, 8);
    let modules = vec![
        ("language_model.lm_head".to_owned(), Some(eight)),
        ("language_model.model.layers.0".to_owned(), Some(eight)),
        ("language_model.model.layers.1.mlp".to_owned(), None),
    ];
    let options = QuantizeOptions {
        modules,
        vision: true,
        ..scheme(4, 32)
    };
    let model = load(&tiny(), Some(options));
    let in_memory = answer(&model);
    let place = TempDir::new().unwrap();
    let folder = place.path().join("mixed");
    save(&model, &folder).unwrap();
    assert_eq!(answer(&load(&folder, None)), in_memory);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"], config["quantization_config"]);
    assert_eq!(
        (
            &config["quantization"]["bits"],
            &config["quantization"]["group_size"]
        ),
        (&4.into(), &32.into())
    );
    assert_eq!(config["quantization"]["language_model.lm_head"]["bits"], 8);
    assert!(
        config["quantization"]
            .get("language_model.model.layers.1.mlp.up_proj")
            .is_none(),
        "without scales"
    );
    // The vision part has changed: its embeddings do not belong to another model.
    assert_ne!(
        model.info().fingerprint,
        load(&tiny(), None).info().fingerprint
    );
}

#[test]
fn quantized_weights_take_less() {
    let estimate = |quantize| {
        let options = LoadOptions {
            quantize,
            ..Default::default()
        };
        Model::estimate(tiny(), &options, &GenerationOptions::default())
            .unwrap()
            .weights
    };
    let (dense, eight, four) = (
        estimate(None),
        estimate(Some(scheme(8, 64))),
        estimate(Some(scheme(4, 64))),
    );
    assert!(four < eight && eight < dense, "{four} {eight} {dense}");
    let place = TempDir::new().unwrap();
    let folder = place.path().join("four");
    save(&load(&tiny(), Some(scheme(4, 64))), &folder).unwrap();
    let saved = Model::estimate(
        &folder,
        &LoadOptions::default(),
        &GenerationOptions::default(),
    )
    .unwrap()
    .weights;
    assert_eq!(
        saved, four,
        "estimated before quantizing and from the saved folder"
    );
}

#[test]
fn a_cancelled_quantization_leaves_the_model_as_it_was() {
    let place = TempDir::new().unwrap();
    let folder = place.path().join("copy");
    copy(&tiny(), &folder);
    let expected = answer(&load(&folder, Some(scheme(4, 32))));
    let mut cancelled = 0;
    for change in [false, true] {
        let model = load(&folder, None);
        let before = answer(&model);
        if change {
            // The folder has changed: replaced matrices must be kept.
            let weights = fs::File::options()
                .append(true)
                .open(folder.join("model.safetensors"))
                .unwrap();
            weights
                .set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        }
        for stop_at in [0.0, 0.0, 0.1, 0.3] {
            let mut progress = |stage: Stage, part: f32| {
                assert_eq!(stage, Stage::Quantize);
                part < stop_at
            };
            match model.quantize(
                scheme(4, 32),
                Op {
                    progress: Some(&mut progress),
                    ..Default::default()
                },
            ) {
                Err(Error::Cancelled) => {
                    cancelled += 1;
                    assert_eq!(answer(&model), before);
                    assert_eq!(model.info().quantization, None);
                }
                // The model is small: it may be done before the cancellation is noticed.
                Ok(()) => {
                    assert_eq!(answer(&model), expected);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(cancelled > 0);
    let model = load(&tiny(), None);
    let before = answer(&model);
    let cancel = Cancel::new();
    cancel.trigger();
    assert!(matches!(
        model.quantize(
            scheme(4, 32),
            Op {
                cancel: Some(cancel),
                ..Default::default()
            }
        ),
        Err(Error::Cancelled)
    ));
    model.quantize(scheme(4, 32), Op::default()).unwrap();
    assert_ne!(answer(&model), before);
    assert!(matches!(
        model.quantize(scheme(8, 32), Op::default()),
        Err(Error::InvalidState(_))
    ));
}

#[test]
fn saving_is_safe() {
    let place = TempDir::new().unwrap();
    let (source, target) = (place.path().join("source"), place.path().join("target"));
    copy(&tiny(), &source);
    let model = load(&source, Some(scheme(4, 64)));
    let left = || {
        let mut names: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    // Cancelled in the middle, it leaves nothing.
    let mut progress = |stage: Stage, part: f32| {
        assert_eq!(stage, Stage::Save);
        part < 0.5
    };
    let op = Op {
        progress: Some(&mut progress),
        ..Default::default()
    };
    assert!(matches!(
        model.save(&target, false, op),
        Err(Error::Cancelled)
    ));
    assert_eq!(left(), ["source"]);

    save(&model, &target).unwrap();
    assert_eq!(left(), ["source", "target"]);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "generation_config.json",
    ] {
        assert!(
            fs::read(source.join(name)).unwrap() == fs::read(target.join(name)).unwrap(),
            "{name}"
        );
    }
    // An existing folder stays, unless overwriting is allowed; the source is never removed.
    assert!(
        matches!(save(&model, &target), Err(Error::InvalidArgument(what)) if what.contains("target"))
    );
    assert!(matches!(
        model.save(&source, true, Op::default()),
        Err(Error::InvalidArgument(_))
    ));
    fs::write(target.join("mine.txt"), "mine").unwrap();
    let op = Op {
        cancel: None,
        progress: Some(&mut |_, part| part < 0.5),
        timeout: None,
    };
    assert!(matches!(
        model.save(&target, true, op),
        Err(Error::Cancelled)
    ));
    assert!(target.join("mine.txt").exists());
    model.save(&target, true, Op::default()).unwrap();
    assert!(!target.join("mine.txt").exists());
    assert_eq!(left(), ["source", "target"]);
    assert!(matches!(
        save(&model, &place.path().join("no/such/parent")),
        Err(Error::NotFound { .. })
    ));
    model.unload().unwrap();
    assert!(matches!(
        save(&model, &place.path().join("third")),
        Err(Error::InvalidState(_))
    ));
}

#[test]
fn errors_in_a_config_are_named() {
    let place = TempDir::new().unwrap();
    let folder = place.path().join("four");
    save(&load(&tiny(), Some(scheme(4, 64))), &folder).unwrap();
    let path = folder.join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (quantization, expected) in [
        (serde_json::Value::Null, "quantization"),
        (serde_json::json!({"group_size": 64, "bits": 7}), "7 bits"),
        (
            serde_json::json!({"group_size": 48, "bits": 4}),
            "group size of 48",
        ),
        (
            serde_json::json!({"group_size": 64, "bits": 8}),
            "has shape",
        ),
        (
            serde_json::json!({"group_size": 32, "bits": 4}),
            "has shape",
        ),
        (
            serde_json::json!({"group_size": 64, "bits": 4, "mode": "mxfp4"}),
            "mxfp4 always has 4 bits and a group size of 32",
        ),
        (
            serde_json::json!({"group_size": 32, "bits": 4, "mode": "mxfp4"}),
            "has shape",
        ),
        (
            serde_json::json!({"group_size": 64, "bits": 4, "mode": "int4"}),
            "int4",
        ),
        (
            serde_json::json!({"quant_method": "gptq", "bits": 4}),
            "gptq",
        ),
        (
            serde_json::json!({"group_size": 64, "bits": 4, "language_model.lm_head": {"bits": 3, "group_size": 64}}),
            "lm_head",
        ),
        (serde_json::json!(4), "an object"),
    ] {
        let mut wrong = config.clone();
        let fields = wrong.as_object_mut().unwrap();
        fields.remove("quantization_config");
        fields.insert("quantization".into(), quantization.clone());
        fs::write(&path, wrong.to_string()).unwrap();
        let error = Model::load(&folder, LoadOptions::default(), Op::default())
            .err()
            .unwrap();
        assert!(
            matches!(
                error,
                Error::CorruptModel { .. } | Error::UnsupportedModel { .. }
            ),
            "{quantization}: {error:?}"
        );
        assert!(
            error.to_string().contains(expected),
            "{quantization}: {error}"
        );
    }
    // Written by older versions of MLX: no mode, and only one of the two fields.
    let mut old = config.clone();
    old.as_object_mut().unwrap().remove("quantization");
    old["quantization_config"]
        .as_object_mut()
        .unwrap()
        .remove("mode");
    fs::write(&path, old.to_string()).unwrap();
    assert!(Model::load(&folder, LoadOptions::default(), Op::default()).is_ok());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
