//! Malicious model folders: their content cannot block the engine, fill the memory, or load and
//! then fail to compute.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use moxin_vlm::{
    Cancel, DecodeOptions, Error, GenerationOptions, LoadOptions, Model, Op, Picture, Quantization,
    QuantizeOptions, Result, resume, suspend,
};
use safetensors::{
    SafeTensors,
    tensor::{Dtype, TensorView},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    child::{Limits, in_child},
    programs::{copy_tiny, demo, succeed, tiny},
};

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const INDEX: &str = "model.safetensors.index.json";
const PROCESSOR: &str = "preprocessor_config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";

/// Such a folder must be refused within this time; most of it is for busy machines.
const AT_ONCE: Duration = Duration::from_secs(5);

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of the small model, to be damaged.
struct Folder {
    path: PathBuf,
    _place: TempDir,
}

impl Folder {
    fn new() -> Folder {
        let place = TempDir::new().unwrap();
        let path = place.path().join("model");
        copy_tiny(&path);
        Folder {
            path,
            _place: place,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let _ = fs::remove_file(self.path(name));
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Changes a field of a JSON file.
    fn set(&self, name: &str, pointer: &str, value: Value) {
        let mut file: Value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[key] = value;
        self.write(name, file.to_string());
    }

    fn change_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let bytes = fs::read(self.path(WEIGHTS)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let mut tensors = tensors
            .into_iter()
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        self.write(WEIGHTS, safetensors::serialize(views, None).unwrap());
    }

    fn load(&self) -> Result<Model> {
        Model::load(&self.path, LoadOptions::default(), Op::default())
    }

    /// Loads the folder, which must fail quickly, and returns the error.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> Error {
        let clock = Instant::now();
        let error = self
            .load()
            .err()
            .unwrap_or_else(|| panic!("loads, but should fail with {words:?}"));
        let text = error.to_string();
        assert!(clock.elapsed() < AT_ONCE, "{:?}: {text}", clock.elapsed());
        words
            .iter()
            .for_each(|word| assert!(text.contains(word), "{word:?} is not in: {text}"));
        error
    }
}

/// Things that are not files, or too long for one.
const THINGS: [&str; 5] = ["pipe", "device", "socket", "folder", "sparse file"];

/// Creates one of them.
fn put(thing: &str, path: &Path) {
    match thing {
        "pipe" => drop(succeed(Command::new("mkfifo").arg(path))),
        "device" => symlink("/dev/zero", path).unwrap(),
        "socket" => drop(UnixListener::bind(path).unwrap()),
        "folder" => fs::create_dir(path).unwrap(),
        _ => File::create(path).unwrap().set_len(1 << 40).unwrap(),
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    }
    .unwrap();
}

#[test]
fn special_files_are_refused_at_once() {
    in_child(
        "folder::special_files_are_refused_at_once",
        Limits::mebibytes(256).seconds(30),
        || {
            for name in [CONFIG, PROCESSOR, GENERATION, TOKENIZER, WEIGHTS, INDEX] {
                let folder = Folder::new();
                if name == INDEX {
                    remove(&folder.path(WEIGHTS));
                } else {
                    remove(&folder.path(name));
                }
                let path = folder.path(name);
                for thing in THINGS {
                    put(thing, &path);
                    let error = folder.refused(&[name]);
                    assert!(
                        matches!(error, Error::CorruptModel { .. }),
                        "{name}, {thing}: {error:?}"
                    );
                    assert!(
                        thing == "sparse file" || error.to_string().contains("not a file"),
                        "{name}, {thing}: {error}"
                    );
                    let looked_at = [CONFIG, PROCESSOR, WEIGHTS, INDEX].contains(&name);
                    assert_eq!(
                        Model::inspect(&folder.path).is_err(),
                        looked_at,
                        "{name}, {thing}"
                    );
                    remove(&path);
                }
            }
        },
    );
}

#[test]
fn a_file_replaced_by_a_pipe_does_not_block() {
    in_child(
        "folder::a_file_replaced_by_a_pipe_does_not_block",
        Limits::mebibytes(256).seconds(30),
        || {
            let folder = Folder::new();
            let (path, text) = (folder.path(CONFIG), fs::read(folder.path(CONFIG)).unwrap());
            let (file, pipe) = (folder.path("file"), folder.path("pipe"));
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        put("pipe", &pipe);
                        fs::rename(&pipe, &path).unwrap();
                        fs::write(&file, &text).unwrap();
                        fs::rename(&file, &path).unwrap();
                    }
                });
                for _ in 0..2000 {
                    let inspected = Model::inspect(&folder.path);
                    assert!(
                        matches!(inspected, Ok(_) | Err(Error::CorruptModel { .. })),
                        "{inspected:?}"
                    );
                }
                done.store(true, Ordering::Relaxed);
            });
        },
    );
}

#[test]
fn pictures_in_special_files_are_refused_at_once() {
    in_child(
        "folder::pictures_in_special_files_are_refused_at_once",
        Limits::mebibytes(256).seconds(30),
        || {
            let place = TempDir::new().unwrap();
            let path = place.path().join("picture.png");
            for thing in THINGS {
                put(thing, &path);
                let error = Picture::open(&path, &DecodeOptions::default()).unwrap_err();
                assert!(
                    matches!(error, Error::UnsupportedImage { .. }),
                    "{thing}: {error:?}"
                );
                assert!(
                    error.to_string().contains("picture.png"),
                    "{thing}: {error}"
                );
                remove(&path);
            }
            Picture::open(
                demo(),
                &DecodeOptions {
                    max_pixels: u64::MAX,
                    ..DecodeOptions::default()
                },
            )
            .unwrap();
        },
    );
}

#[test]
fn a_shard_in_a_special_file_is_refused_at_once() {
    in_child(
        "folder::a_shard_in_a_special_file_is_refused_at_once",
        Limits::mebibytes(256).seconds(30),
        || {
            let folder = Folder::new();
            fs::rename(folder.path(WEIGHTS), folder.path("one.safetensors")).unwrap();
            folder.write(
                INDEX,
                json!({ "weight_map": { "lm_head.weight": "shard.safetensors" } }).to_string(),
            );
            let path = folder.path("shard.safetensors");
            for thing in THINGS {
                put(thing, &path);
                assert!(matches!(
                    folder.refused(&["shard.safetensors"]),
                    Error::CorruptModel { .. }
                ));
                remove(&path);
            }
        },
    );
}

#[test]
fn reading_a_folder_does_not_need_the_engine() {
    in_child(
        "folder::reading_a_folder_does_not_need_the_engine",
        Limits::mebibytes(512).seconds(60),
        || {
            let folder = Folder::new();
            folder.load().unwrap();
            // A suspended engine does nothing. Errors in a folder are found all the same.
            suspend(AT_ONCE).unwrap();
            folder.write(TOKENIZER, "{}");
            assert!(matches!(folder.load(), Err(Error::CorruptModel { .. })));
            copy(TOKENIZER, &folder);
            folder.write(PROCESSOR, "[]");
            assert!(matches!(folder.load(), Err(Error::CorruptModel { .. })));
            copy(PROCESSOR, &folder);
            assert!(matches!(folder.load(), Err(Error::Suspended)));
            resume();
            folder.load().unwrap();
        },
    );
}

fn copy(name: &str, folder: &Folder) {
    fs::copy(tiny().join(name), folder.path(name)).unwrap();
}

#[test]
fn reading_a_folder_can_be_cancelled_and_time_out() {
    in_child(
        "folder::reading_a_folder_can_be_cancelled_and_time_out",
        Limits::mebibytes(512).seconds(60),
        || {
            let folder = Folder::new();
            let load = |op| Model::load(&folder.path, LoadOptions::default(), op).map(drop);
            let cancel = Cancel::new();
            cancel.trigger();
            folder.write(TOKENIZER, "{}");
            assert!(matches!(
                load(Op {
                    cancel: Some(cancel),
                    ..Op::default()
                }),
                Err(Error::Cancelled)
            ));
            // The configuration takes longer than the limit; the tokenizer after it is not read.
            let padding = "0,".repeat(900_000);
            folder.set(
                CONFIG,
                "/padding",
                serde_json::from_str(&format!("[{padding}0]")).unwrap(),
            );
            assert!(matches!(
                load(Op {
                    timeout: Some(Duration::from_millis(1)),
                    ..Op::default()
                }),
                Err(Error::Timeout)
            ));
            assert!(matches!(
                load(Op::default()),
                Err(Error::CorruptModel { .. })
            ));
        },
    );
}

#[test]
fn json_does_not_fill_memory() {
    in_child(
        "folder::json_does_not_fill_memory",
        Limits::mebibytes(512).seconds(120),
        || {
            let zeros = |bytes: usize| format!("[{}0]", "0,".repeat(bytes / 2));
            for (name, bytes) in [
                (CONFIG, 60 << 20),
                (CONFIG, 15 << 20),
                (TOKENIZER, 60 << 20),
                (PROCESSOR, 15 << 20),
                (GENERATION, 15 << 20),
            ] {
                let folder = Folder::new();
                let mut text = fs::read_to_string(folder.path(name)).unwrap();
                let field = if name == TOKENIZER {
                    "\"pre_tokenizer\""
                } else {
                    "\"padding\""
                };
                text = text.replacen('{', &format!("{{{field}:{},", zeros(bytes)), 1);
                folder.write(name, text);
                let error = folder.load().err().unwrap();
                assert!(matches!(error, Error::CorruptModel { .. }), "{error:?}");
                assert!(error.to_string().contains("expected at most"), "{error}");
            }
        },
    );
}

#[test]
fn json_that_is_nested_is_refused() {
    in_child(
        "folder::json_that_is_nested_is_refused",
        Limits::mebibytes(256),
        || {
            for name in [CONFIG, PROCESSOR, GENERATION, TOKENIZER, INDEX] {
                for depth in [1_000, 100_000, 4_000_000] {
                    let folder = Folder::new();
                    if name == INDEX {
                        remove(&folder.path(WEIGHTS));
                    }
                    let deep = ["[", "{\"a\":"]
                        .map(|open| format!("{{\"padding\":{}", open.repeat(depth)));
                    for text in deep {
                        folder.write(name, text);
                        folder.refused(&[name]);
                    }
                }
            }
        },
    );
}

#[test]
fn an_index_of_many_files_is_refused() {
    in_child(
        "folder::an_index_of_many_files_is_refused",
        Limits::mebibytes(256).seconds(30),
        || {
            let folder = Folder::new();
            remove(&folder.path(WEIGHTS));
            for (count, exist) in [(100_000, false), (200, true)] {
                let map: BTreeMap<String, String> = (0..count)
                    .map(|i| (format!("w{i}"), format!("{i}.safetensors")))
                    .collect();
                for (name, file) in map.iter().filter(|_| exist) {
                    let header = format!(
                        r#"{{"{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#
                    );
                    folder.write(
                        file,
                        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat(),
                    );
                }
                folder.write(INDEX, json!({ "weight_map": map }).to_string());
                let error = folder.refused(&[INDEX, &format!("{count} files")]);
                assert!(matches!(error, Error::UnsupportedModel { .. }), "{error:?}");
            }
        },
    );
}

#[test]
fn headers_do_not_fill_memory() {
    in_child(
        "folder::headers_do_not_fill_memory",
        Limits::mebibytes(512).seconds(60),
        || {
            // One file of small tensors, and several with long headers.
            let folder = Folder::new();
            let tensors: Vec<String> = (0..1_500_000)
                .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
                .collect();
            let header = format!("{{{}}}", tensors.join(","));
            drop(tensors);
            folder.write(
                WEIGHTS,
                [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat(),
            );
            drop(header);
            assert!(matches!(
                folder.refused(&[WEIGHTS, "header"]),
                Error::UnsupportedModel { .. }
            ));

            remove(&folder.path(WEIGHTS));
            let mut map = BTreeMap::new();
            for i in 0..4 {
                let header = format!(
                    r#"{{"w{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}{}}}"#,
                    " ".repeat(5 << 20)
                );
                folder.write(
                    &format!("{i}.safetensors"),
                    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat(),
                );
                map.insert(format!("w{i}"), format!("{i}.safetensors"));
            }
            folder.write(INDEX, json!({ "weight_map": map }).to_string());
            assert!(matches!(
                folder.refused(&["3.safetensors", "all files"]),
                Error::UnsupportedModel { .. }
            ));
        },
    );
}

#[test]
fn missing_layers_are_found_before_any_work() {
    in_child(
        "folder::missing_layers_are_found_before_any_work",
        Limits::mebibytes(256).seconds(20),
        || {
            for layers in [1 << 24, 1 << 20, 5] {
                let folder = Folder::new();
                folder.set(CONFIG, "/text_config/num_hidden_layers", json!(layers));
                folder.refused(&[
                    CONFIG,
                    "num_hidden_layers",
                    &layers.to_string(),
                    "language_model.model.layers.4.",
                    "missing",
                ]);
                let clock = Instant::now();
                assert!(matches!(
                    Model::inspect(&folder.path),
                    Err(Error::CorruptModel { .. })
                ));
                let estimate = Model::estimate(
                    &folder.path,
                    &LoadOptions::default(),
                    &GenerationOptions::default(),
                );
                assert!(
                    matches!(estimate, Err(Error::CorruptModel { .. })),
                    "{estimate:?}"
                );
                assert!(clock.elapsed() < AT_ONCE);
            }
        },
    );
}

// Whatever loads must be able to compute.

#[test]
fn a_group_size_that_does_not_divide_is_refused() {
    in_child(
        "folder::a_group_size_that_does_not_divide_is_refused",
        Limits::mebibytes(512),
        || {
            const MODULE: &str = "language_model.model.layers.1.self_attn.q_proj";
            // 192 values in a row: a group of 128 and a part of one.
            let folder = Folder::new();
            folder.change_tensors(|tensors| {
                tensors.insert(
                    format!("{MODULE}.weight"),
                    (Dtype::U32, vec![192, 24], vec![0; 192 * 24 * 4]),
                );
                for name in ["scales", "biases"] {
                    tensors.insert(
                        format!("{MODULE}.{name}"),
                        (Dtype::BF16, vec![192, 2], vec![0; 192 * 2 * 2]),
                    );
                }
            });
            folder.set(
                CONFIG,
                "/quantization",
                json!({ "group_size": 128, "bits": 4 }),
            );
            let error = folder.refused(&[MODULE, "192", "128", "does not divide"]);
            assert!(matches!(error, Error::CorruptModel { .. }), "{error:?}");
            // The same if only this module's scheme is wrong.
            folder.set(
                CONFIG,
                "/quantization",
                json!({ "group_size": 64, "bits": 4, MODULE: { "group_size": 128, "bits": 4 } }),
            );
            folder.refused(&[MODULE, "192", "128", "does not divide"]);
        },
    );
}

#[test]
fn an_encoder_of_no_patches_is_refused() {
    in_child(
        "folder::an_encoder_of_no_patches_is_refused",
        Limits::mebibytes(512),
        || {
            let folder = Folder::new();
            let zeros = |shape: &[usize]| {
                (
                    Dtype::BF16,
                    shape.to_vec(),
                    vec![0; 2 * shape.iter().product::<usize>()],
                )
            };
            folder.change_tensors(|tensors| {
                tensors.retain(|name, _| {
                    !name.contains("fused_featurizer")
                        && !name.starts_with("projector")
                        && !name.contains("reg_token")
                });
                tensors.insert(
                    "vision_backbone.featurizer.pos_embed".into(),
                    zeros(&[1, 1, 96]),
                );
                tensors.insert("projector.fc1.weight".into(), zeros(&[192, 96]));
                tensors.insert("projector.fc2.weight".into(), zeros(&[192, 192]));
            });
            folder.set(
                CONFIG,
                "/timm_model_ids",
                json!(["vit_large_patch14_reg4_dinov2.lvd142m"]),
            );
            folder.set(CONFIG, "/image_sizes", json!([13]));
            folder.write(
                PROCESSOR,
                json!({ "image_resize_strategy": "resize-naive", "input_sizes": [[3, 13, 13]] })
                    .to_string(),
            );
            let error = folder.refused(&[CONFIG, "image_sizes[0] is 13", "patch of 14 pixels"]);
            assert!(matches!(error, Error::CorruptModel { .. }), "{error:?}");
        },
    );
}

#[test]
fn tokens_around_every_text_are_in_the_vocabulary() {
    in_child(
        "folder::tokens_around_every_text_are_in_the_vocabulary",
        Limits::mebibytes(512),
        || {
            let folder = Folder::new();
            folder.set(
                TOKENIZER,
                "/post_processor/special_tokens/<s>/ids",
                json!([576]),
            );
            let error = folder.refused(&[TOKENIZER, "576", "vocab_size"]);
            assert!(matches!(error, Error::CorruptModel { .. }), "{error:?}");
        },
    );
}

#[test]
fn pixels_are_finite() {
    in_child("folder::pixels_are_finite", Limits::mebibytes(512), || {
        let folder = Folder::new();
        folder.set(
            PROCESSOR,
            "/tvf_normalize_params/1/mean",
            json!([1e10, 0.5, 0.5]),
        );
        folder.set(
            PROCESSOR,
            "/tvf_normalize_params/1/std",
            json!([1e-30, 0.5, 0.5]),
        );
        let error = folder.refused(&[PROCESSOR, "tvf_normalize_params", "infinite"]);
        assert!(matches!(error, Error::CorruptModel { .. }), "{error:?}");
    });
}

// Folders that change, and paths of all kinds.

#[test]
fn weights_that_change_while_they_are_loaded_are_refused() {
    in_child(
        "folder::weights_that_change_while_they_are_loaded_are_refused",
        Limits::mebibytes(512),
        || {
            let folder = Folder::new();
            let weights = File::options()
                .write(true)
                .open(folder.path(WEIGHTS))
                .unwrap();
            let length = weights.metadata().unwrap().len();
            // The model is small: it may be loaded before anyone notices.
            let mut tries = 0..50;
            let error = tries.find_map(|i| {
                let mut changed = false;
                let mut change = |_, part: f32| {
                    if !changed && part < 0.9 {
                        changed = true;
                        weights.write_all_at(&[7], length - 1).unwrap();
                        weights
                            .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(i))
                            .unwrap();
                    }
                    true
                };
                let op = Op {
                    progress: Some(&mut change),
                    ..Op::default()
                };
                Model::load(&folder.path, LoadOptions::default(), op).err()
            });
            let error = error.expect("an error in 50 tries");
            assert!(
                matches!(&error, Error::CorruptModel { what, .. } if what.contains("changed while")),
                "{error:?}"
            );
        },
    );
}

#[test]
fn folder_names_may_be_of_any_kind() {
    in_child(
        "folder::folder_names_may_be_of_any_kind",
        Limits::mebibytes(512),
        || {
            let place = TempDir::new().unwrap();
            let link = place.path().join("link");
            symlink(tiny(), &link).unwrap();
            Model::inspect(&link).unwrap();
            // Bytes that are not UTF-8; some file systems do not allow such names.
            let odd = place.path().join(OsStr::from_bytes(b"\xff\xfe model"));
            match symlink(tiny(), &odd) {
                Ok(()) => drop(Model::inspect(&odd).unwrap()),
                Err(error) => println!("SKIPPED: a name that is not UTF-8: {error}"),
            }
            let looped = place.path().join("loop");
            symlink(&looped, &looped).unwrap();
            assert!(matches!(Model::inspect(&looped), Err(Error::Io { .. })));
            assert!(matches!(
                Model::inspect(OsStr::from_bytes(b"a\0b")),
                Err(Error::Io { .. })
            ));
            assert!(matches!(Model::inspect(""), Err(Error::NotFound { .. })));
            assert!(matches!(
                Model::inspect(tiny().join(CONFIG)),
                Err(Error::InvalidArgument(_))
            ));
            assert!(matches!(
                Model::inspect("/dev/zero"),
                Err(Error::InvalidArgument(_))
            ));
        },
    );
}

// Embeddings belong to one model.

#[test]
fn one_bit_changes_the_fingerprint() {
    in_child(
        "folder::one_bit_changes_the_fingerprint",
        Limits::mebibytes(512),
        || {
            let picture = Picture::open(demo(), &DecodeOptions::default()).unwrap();
            let quantized = Some(QuantizeOptions {
                quantization: Quantization::affine(32, 8),
                vision: true,
                ..Default::default()
            });
            for quantize in [None, quantized] {
                let options = LoadOptions {
                    quantize,
                    ..LoadOptions::default()
                };
                let load =
                    |folder: &Path| Model::load(folder, options.clone(), Op::default()).unwrap();
                let model = load(&tiny());
                let embedding = model.encode_image(&picture, Op::default()).unwrap();
                for name in [
                    "projector.fc1.weight",
                    "projector.fc2.weight",
                    "vision_backbone.fused_featurizer.blocks.1.mlp.fc1.weight",
                ] {
                    let folder = Folder::new();
                    folder.change_tensors(|tensors| {
                        let data = &mut tensors.get_mut(name).unwrap().2;
                        let middle = data.len() / 2;
                        data[middle] ^= 1;
                    });
                    let other = load(&folder.path);
                    assert_ne!(other.info().fingerprint, model.info().fingerprint, "{name}");
                    let session = other.session(GenerationOptions::default()).unwrap();
                    let added = session.add_embedding(&embedding);
                    assert!(
                        matches!(&added, Err(Error::InvalidArgument(what)) if what.contains("another model")),
                        "{name}: {added:?}"
                    );
                }
                // The language model does not matter, and a model loaded again is the same.
                let folder = Folder::new();
                folder.change_tensors(|tensors| {
                    tensors
                        .get_mut("language_model.model.norm.weight")
                        .unwrap()
                        .2[100] ^= 1
                });
                let same = load(&folder.path);
                assert_eq!(same.info().fingerprint, model.info().fingerprint);
                same.session(GenerationOptions::default())
                    .unwrap()
                    .add_embedding(&embedding)
                    .unwrap();
            }
        },
    );
}
