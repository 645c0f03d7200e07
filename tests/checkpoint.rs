//! Tests reading model folders: files written by the Python libraries, and invalid files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mlx_rs::Dtype;
use moxin_vlm::checkpoint::{Checkpoint, LoadContext, read_json};
use moxin_vlm::{Error, Result};
use safetensors::tensor::TensorView;
use serde::Deserialize;
use tempfile::TempDir;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

// Files of the Python libraries.

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoint")
        .join(name)
}

#[test]
fn loads_what_python_wrote() -> Result<()> {
    let written = [
        ("blocks.0.weight", Dtype::Float32, vec![4, 6]),
        ("blocks.1.weight", Dtype::Bfloat16, vec![3, 2, 5]),
        ("norm.weight", Dtype::Float16, vec![7]),
        ("scale", Dtype::Float32, vec![]),
    ];
    for folder in ["single", "sharded"] {
        let checkpoint = Checkpoint::open(&fixture(folder))?;
        assert_eq!(
            checkpoint.tensor_names().collect::<Vec<_>>(),
            written.each_ref().map(|w| w.0)
        );
        assert_eq!(checkpoint.total_bytes(), 174, "total_size of the index");
        assert_eq!(checkpoint.parameter_count(), 24 + 30 + 7 + 1);

        let context = LoadContext::new(&checkpoint, &|_, _| Ok(()));
        for (name, dtype, shape) in &written {
            let array = context.weights().load(name, shape)?;
            assert_eq!(array.dtype(), *dtype, "{folder}: {name}");
            assert_eq!(
                array
                    .shape()
                    .iter()
                    .map(|&n| n as usize)
                    .collect::<Vec<_>>(),
                *shape
            );
            let expected: Vec<f32> = (0..array.size()).map(|i| i as f32 / 4.0 - 1.0).collect();
            let floats = array.as_dtype(Dtype::Float32)?;
            assert_eq!(
                floats.try_as_slice::<f32>().unwrap(),
                expected,
                "{folder}: {name}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_single_file_takes_precedence_over_an_index() -> Result<()> {
    let folder = TempDir::new().unwrap();
    fs::copy(fixture("single").join(SINGLE), folder.path().join(SINGLE)).unwrap();
    fs::write(folder.path().join(INDEX), "damaged").unwrap();
    assert_eq!(
        Checkpoint::open(folder.path())?.path(),
        folder.path().join(SINGLE)
    );
    Ok(())
}

// Files made here.

/// Makes a safetensors file: header length, header, data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// Two F32 tensors, `a.weight` [2, 3] and `b.bias` [5], in 44 bytes of data.
fn two_tensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b.bias":{"dtype":"F32","shape":[5],"data_offsets":[24,44]}}"#;
    file(header, &(0..44).collect::<Vec<u8>>())
}

/// Makes a folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open_error(files: &[(&str, &[u8])]) -> Error {
    Checkpoint::open(folder(files).path()).unwrap_err()
}

/// Returns the text of an error, which must be about a damaged file and name that file.
#[track_caller]
fn corrupt(error: Error, file_name: &str) -> String {
    let text = error.to_string();
    match error {
        Error::CorruptModel { path, .. } => {
            assert_eq!(path.file_name().unwrap(), file_name, "{text}")
        }
        other => panic!("expected CorruptModel, found {other:?}"),
    }
    text
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = two_tensors();
    for length in 0..whole.len() {
        corrupt(open_error(&[(SINGLE, &whole[..length])]), SINGLE);
    }
    let longer = [&whole[..], &[0]].concat();
    assert_says(
        &corrupt(open_error(&[(SINGLE, &longer)]), SINGLE),
        &["take 44 bytes", "has 45"],
    );
}

#[test]
fn a_wrong_header_length_is_refused() {
    let whole = two_tensors();
    let true_length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    for length in [
        0,
        1,
        true_length - 1,
        true_length + 1,
        whole.len() as u64,
        99_999_999,
        100_000_001,
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let mut lying = whole.clone();
        lying[..8].copy_from_slice(&length.to_le_bytes());
        corrupt(open_error(&[(SINGLE, &lying)]), SINGLE);
    }
}

#[test]
fn flipped_bits_in_the_header_change_no_data() {
    let whole = two_tensors();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(SINGLE);
    let mut random = 1u64;
    let mut next = |below: u64| {
        // Knuth's MMIX generator: the same flips in every run.
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..600 {
        let mut flipped = whole.clone();
        for _ in 0..=next(3) {
            flipped[next(header_end) as usize] ^= 1 << next(8);
        }
        fs::write(&path, &flipped).unwrap();
        match Checkpoint::open(folder.path()) {
            // A flip in a name, or in white space, is no inconsistency; the data must be unchanged.
            Ok(checkpoint) => {
                let mut data: Vec<Vec<u8>> = checkpoint
                    .tensor_names()
                    .map(|name| checkpoint.info(name).unwrap().read().unwrap())
                    .collect();
                data.sort();
                assert_eq!(data.concat(), (0..44).collect::<Vec<u8>>());
                opened += 1;
            }
            Err(error) => {
                assert!(
                    matches!(
                        error,
                        Error::CorruptModel { .. } | Error::UnsupportedModel { .. }
                    ),
                    "{error:?}"
                );
                assert_says(&error.to_string(), &[SINGLE]);
                refused += 1;
            }
        }
    }
    assert!(
        opened > 20 && refused > 200,
        "{opened} opened, {refused} refused"
    );
}

#[test]
fn inconsistent_headers_are_refused_by_tensor() {
    let data = [0; 24];
    let cases: &[(&str, &[&str])] = &[
        // Shapes and dtypes.
        (
            r#"{"w":{"dtype":"F32","shape":[2,4],"data_offsets":[0,24]}}"#,
            &["`w`", "F32 [2, 4] takes 32 bytes", "0 to 24"],
        ),
        (
            r#"{"w":{"dtype":"F16","shape":[2,3],"data_offsets":[0,24]}}"#,
            &["`w`", "takes 12 bytes"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,24]}}"#,
            &["`w`", "not a whole number of bytes"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,24]}}"#,
            &["`w`", "not a whole number of bytes"],
        ),
        (
            r#"{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,24]}}"#,
            &["`w`", "not a whole number of bytes"],
        ),
        (
            r#"{"w":{"dtype":"Q9","shape":[6],"data_offsets":[0,24]}}"#,
            &["`w.dtype`", "`Q9`", "`BF16`", "column"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[-6],"data_offsets":[0,24]}}"#,
            &["`w.shape[0]`", "-6"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":"6","data_offsets":[0,24]}}"#,
            &["`w.shape`"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[1e300],"data_offsets":[0,24]}}"#,
            &["`w.shape[0]`"],
        ),
        (
            r#"{"w":{"shape":[6],"data_offsets":[0,24]}}"#,
            &["`w`", "dtype"],
        ),
        // Offsets.
        (
            r#"{"w":{"dtype":"F32","shape":[6],"data_offsets":[24,0]}}"#,
            &["`w`", "24 to 0"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24,48]}}"#,
            &["`w.data_offsets`"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[7],"data_offsets":[0,28]}}"#,
            &["take 28 bytes", "has 24"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[6],"data_offsets":[18446744073709551592,18446744073709551615]}}"#,
            &["`w`"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[5],"data_offsets":[4,24]}}"#,
            &["`w` starts at byte 4", "expected 0"],
        ),
        (
            r#"{"v":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#,
            &["`w` starts at byte 8", "expected 16", "overlap"],
        ),
        (
            r#"{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}}"#,
            &["`w` starts at byte 16", "expected 8", "gap"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}"#,
            &["`w` is listed twice"],
        ),
        // The header as a whole.
        (r#"{}"#, &["take 0 bytes", "has 24"]),
        (r#"[]"#, &["an object with an entry for each tensor"]),
        (r#"{"w":null}"#, &["`w`"]),
        (
            r#"{"__metadata__":{"format":[]}}"#,
            &["`__metadata__.format`"],
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}} {}"#,
            &["trailing"],
        ),
    ];
    for (header, parts) in cases {
        assert_says(
            &corrupt(open_error(&[(SINGLE, &file(header, &data))]), SINGLE),
            parts,
        );
    }
    let bad_utf8 = [&2u64.to_le_bytes()[..], b"\xff}"].concat();
    corrupt(open_error(&[(SINGLE, &bad_utf8)]), SINGLE);
    let deep = file(&format!(r#"{{"w":{}"#, "[".repeat(1_000_000)), &[]);
    corrupt(open_error(&[(SINGLE, &deep)]), SINGLE);
    let deep_in_ignored = file(&format!(r#"{{"w":{{"x":{}"#, "[".repeat(1_000_000)), &[]);
    corrupt(open_error(&[(SINGLE, &deep_in_ignored)]), SINGLE);
}

#[test]
fn tensors_beyond_mlx_are_refused() {
    let header = r#"{"w":{"dtype":"F32","shape":[2147483648,0],"data_offsets":[0,0]}}"#;
    let error = open_error(&[(SINGLE, &file(header, &[]))]);
    assert!(matches!(error, Error::UnsupportedModel { .. }), "{error:?}");
    assert_says(
        &error.to_string(),
        &[SINGLE, "`w`", "[2147483648, 0]", "2147483647"],
    );

    // 2 GiB that take no space on disk.
    let header = file(
        r#"{"w":{"dtype":"U8","shape":[2,1073741824],"data_offsets":[0,2147483648]}}"#,
        &[],
    );
    let folder = folder(&[(SINGLE, &header)]);
    let file = File::options()
        .write(true)
        .open(folder.path().join(SINGLE))
        .unwrap();
    file.set_len(header.len() as u64 + (1 << 31)).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::UnsupportedModel { .. }), "{error:?}");
}

#[test]
fn folders_without_weights_are_refused() {
    let folder = folder(&[("a_file", b"")]);
    let error = Checkpoint::open(&folder.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_says(&error.to_string(), &["nowhere"]);

    let error = Checkpoint::open(&folder.path().join("a_file")).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    assert_says(&error.to_string(), &["a_file", "not a folder"]);

    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_says(&error.to_string(), &[SINGLE, INDEX]);

    fs::create_dir(folder.path().join(SINGLE)).unwrap();
    assert_says(
        &corrupt(Checkpoint::open(folder.path()).unwrap_err(), SINGLE),
        &["not a file"],
    );
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    // A link to itself: unreadable even for root.
    let looped = TempDir::new().unwrap();
    symlink(looped.path().join(SINGLE), looped.path().join(SINGLE)).unwrap();
    let error = Checkpoint::open(looped.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_says(&error.to_string(), &[SINGLE]);

    // Opening a pipe without a writer would block forever.
    let piped = TempDir::new().unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(piped.path().join(SINGLE))
        .status()
        .unwrap();
    assert!(made.success());
    corrupt(Checkpoint::open(piped.path()).unwrap_err(), SINGLE);
}

#[test]
fn an_index_may_not_leave_its_folder() {
    let outside = folder(&[("evil.safetensors", &two_tensors())]);
    let inside = outside.path().join("model");
    fs::create_dir_all(inside.join("sub")).unwrap();
    fs::copy(
        outside.path().join("evil.safetensors"),
        inside.join("sub/evil.safetensors"),
    )
    .unwrap();
    let absolute = outside.path().join("evil.safetensors");
    for shard in [
        "../evil.safetensors",
        absolute.to_str().unwrap(),
        "sub/evil.safetensors",
        "sub/../../evil.safetensors",
        "./x",
        "..",
        ".",
        "/",
        "",
    ] {
        fs::write(
            inside.join(INDEX),
            serde_json::json!({"weight_map": {"a.weight": shard}}).to_string(),
        )
        .unwrap();
        let text = corrupt(Checkpoint::open(&inside).unwrap_err(), INDEX);
        assert_says(&text, &["`a.weight`", &format!("`{shard}`"), "same folder"]);
    }
}

#[test]
fn an_index_must_match_its_shards() {
    let index = |map: &str| {
        format!(r#"{{"metadata":{{"total_size":44}},"weight_map":{map}}}"#).into_bytes()
    };
    let shard = two_tensors();

    let error = open_error(&[
        (
            INDEX,
            &index(r#"{"a.weight":"one.safetensors","b.bias":"two.safetensors"}"#),
        ),
        ("one.safetensors", &shard),
    ]);
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_says(&error.to_string(), &["two.safetensors", "`b.bias`", INDEX]);

    let error = open_error(&[
        (
            INDEX,
            &index(r#"{"a.weight":"one.safetensors","c":"one.safetensors"}"#),
        ),
        ("one.safetensors", &shard),
    ]);
    assert_says(&corrupt(error, INDEX), &["`c`", "one.safetensors"]);

    let error = open_error(&[
        (INDEX, &index(r#"{"a.weight":"one.safetensors"}"#)),
        ("one.safetensors", &shard[..shard.len() - 1]),
    ]);
    corrupt(error, "one.safetensors");

    let error = open_error(&[(INDEX, &index("{\"a.weight\":\"nul\\u0000\"}"))]);
    assert_says(&corrupt(error, INDEX), &["`a.weight`", "same folder"]);
}

#[test]
fn an_index_of_wrong_types_is_refused_by_field() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["EOF"]),
        ("[]", &["struct Index"]),
        ("{}", &["weight_map"]),
        (r#"{"weight_map":[]}"#, &["`weight_map`", "line 1"]),
        (
            "{\n\"weight_map\":{\"a\":7}}",
            &["`weight_map.a`", "line 2"],
        ),
        (r#"{"weight_map":{"a":null}}"#, &["`weight_map.a`"]),
        (
            r#"{"weight_map":{"a":"x"},"weight_map":{}}"#,
            &["duplicate field `weight_map`"],
        ),
        (r#"{"weight_map":{"a":"x""#, &["EOF"]),
    ];
    for (json, parts) in cases {
        assert_says(
            &corrupt(open_error(&[(INDEX, json.as_bytes())]), INDEX),
            parts,
        );
    }
    let deep = format!(r#"{{"metadata":{}"#, "[".repeat(1_000_000));
    corrupt(open_error(&[(INDEX, deep.as_bytes())]), INDEX);
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error() {
    let whole = two_tensors();
    for length in [
        0,
        8,
        100,
        whole.len() - 44,
        whole.len() - 20,
        whole.len() - 1,
    ] {
        let folder = folder(&[(SINGLE, &whole)]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        File::options()
            .write(true)
            .open(folder.path().join(SINGLE))
            .unwrap()
            .set_len(length as u64)
            .unwrap();

        let context = LoadContext::new(&checkpoint, &|_, _| Ok(()));
        let cut = context.weights().load("b.bias", &[5]).unwrap_err();
        assert_says(
            &corrupt(cut, SINGLE),
            &["`b.bias`", "ends within this tensor"],
        );
        // The tensors before the cut are still valid.
        assert_eq!(
            context.weights().load("a.weight", &[2, 3]).is_ok(),
            length >= whole.len() - 20
        );
    }
}

// The view that models load through.

/// Layers 0, 1 and 20 of a list, a tensor of integers, two spellings of a scale, each of 4 bytes,
/// and an empty tensor.
fn small_model() -> TempDir {
    let shapes = [
        ("net.layers.0.w", "F32", "[1]"),
        ("net.layers.1.w", "BF16", "[2,1]"),
        ("net.layers.20.w", "F32", "[1]"),
        ("net.layers_of.0.w", "F32", "[1]"),
        ("net.positions", "I32", "[1]"),
        ("net.ls1.gamma", "F32", "[1]"),
        ("net.ls1.scale_factor", "F32", "[1]"),
    ];
    let mut entries: Vec<String> = (0..)
        .zip(shapes)
        .map(|(i, (name, dtype, shape))| {
            format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{}]}}"#,
                4 * i,
                4 * i + 4
            )
        })
        .collect();
    entries.push(r#""net.empty":{"dtype":"F32","shape":[3,0],"data_offsets":[28,28]}"#.into());
    folder(&[(
        SINGLE,
        &file(
            &format!("{{{}}}", entries.join(",")),
            &(0..28).collect::<Vec<u8>>(),
        ),
    )])
}

fn without_gamma(stored: &str) -> Option<String> {
    (!stored.ends_with("gamma")).then(|| stored.replace("net.", "model."))
}

#[test]
fn weights_are_found_by_path() -> Result<()> {
    let folder = small_model();
    let checkpoint = Checkpoint::open(folder.path())?.rename(without_gamma)?;
    let context = LoadContext::new(&checkpoint, &|_, _| Ok(()));
    let model = context.weights().at("model");

    assert_eq!(model.count("layers"), 2, "up to the first gap");
    assert_eq!(model.count("positions"), 0);
    assert!(model.has("layers.0.w") && model.at("layers").at(0).has("w"));
    assert!(!model.has("layers.0") && !model.has("layers.2.w") && !model.has("ls1.gamma"));
    assert_eq!(model.at("layers").at(1).path("w"), "model.layers.1.w");
    assert_eq!(model.at("layers.1").shape("w")?, [2, 1]);

    let array = model.at("layers").at(1).load("w", &[2, 1])?;
    let view = TensorView::try_from(&array).unwrap();
    assert_eq!(
        (view.dtype(), view.data()),
        (safetensors::Dtype::BF16, &[4, 5, 6, 7][..])
    );
    assert_eq!(model.load("empty", &[3, 0])?.size(), 0);
    assert_eq!(
        context.unused(),
        [
            "model.layers.0.w",
            "model.layers.20.w",
            "model.layers_of.0.w",
            "model.ls1.scale_factor",
            "model.positions"
        ]
    );
    Ok(())
}

#[test]
fn missing_and_misshapen_tensors_are_named_in_full() -> Result<()> {
    let folder = small_model();
    let checkpoint = Checkpoint::open(folder.path())?.rename(without_gamma)?;
    let context = LoadContext::new(&checkpoint, &|_, _| Ok(()));
    let model = context.weights().at("model");

    let text = corrupt(
        model.at("layers").at(1).load("w", &[1, 2]).unwrap_err(),
        SINGLE,
    );
    assert_says(
        &text,
        &[
            "`model.layers.1.w`",
            "stored as `net.layers.1.w`",
            "[2, 1]",
            "expected [1, 2]",
        ],
    );
    let text = corrupt(
        model.at("layers").at(2).load("w", &[1]).unwrap_err(),
        SINGLE,
    );
    assert_says(
        &text,
        &[
            "`model.layers.2.w` is missing",
            "`model.layers` has model.layers.0.w, model.layers.1.w, model.layers.20.w",
        ],
    );
    let text = corrupt(model.shape("ls1.bias").unwrap_err(), SINGLE);
    assert_says(
        &text,
        &[
            "`model.ls1.bias` is missing",
            "`model.ls1` has model.ls1.scale_factor",
        ],
    );
    assert_says(
        &corrupt(context.weights().shape("other.w").unwrap_err(), SINGLE),
        &["`other.w` is missing", "no tensor"],
    );

    assert_says(
        &corrupt(model.shape("empty").unwrap_err(), SINGLE),
        &["`model.empty`", "is empty", "[3, 0]"],
    );
    assert_says(
        &corrupt(model.load("empty", &[3, 1]).unwrap_err(), SINGLE),
        &["[3, 0]", "expected [3, 1]"],
    );
    let error = model.load("positions", &[1]).unwrap_err();
    assert!(matches!(error, Error::UnsupportedModel { .. }), "{error:?}");
    assert_says(
        &error.to_string(),
        &[SINGLE, "`model.positions`", "I32", "BF16, F16 or F32"],
    );
    Ok(())
}

#[test]
fn two_spellings_of_one_tensor_are_refused() {
    let folder = small_model();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let text = corrupt(
        checkpoint
            .rename(|name| Some(name.replace("gamma", "scale_factor")))
            .unwrap_err(),
        SINGLE,
    );
    assert_says(&text, &["`net.ls1.gamma`", "`net.ls1.scale_factor`"]);
}

#[test]
fn progress_counts_each_tensor_once_and_can_cancel() -> Result<()> {
    let folder = small_model();
    let checkpoint = Checkpoint::open(folder.path())?;
    let calls = RefCell::new(Vec::new());
    let progress = |done, total| {
        calls.borrow_mut().push((done, total));
        if done < 12 {
            Ok(())
        } else {
            Err(Error::Cancelled)
        }
    };
    let context = LoadContext::new(&checkpoint, &progress);
    let net = context.weights().at("net");
    net.load("layers.0.w", &[1])?;
    net.load("layers.0.w", &[1])?;
    net.load("layers.20.w", &[1])?;
    assert!(matches!(
        net.load("layers.1.w", &[2, 1]),
        Err(Error::Cancelled)
    ));
    assert_eq!(*calls.borrow(), [(4, 28), (4, 28), (8, 28), (12, 28)]);
    Ok(())
}

// JSON.

#[derive(Debug, Deserialize)]
struct Config {
    text_config: BTreeMap<String, u32>,
}

#[test]
fn json_errors_name_file_field_and_position() {
    let read = |text: &[u8]| {
        read_json::<Config>(
            &folder(&[("config.json", text)]).path().join("config.json"),
            "the configuration",
        )
    };
    assert_eq!(
        read(br#"{"text_config":{"layers":36},"other":1}"#)
            .unwrap()
            .text_config["layers"],
        36
    );

    let text = corrupt(
        read(b"{\"text_config\":\n  {\"layers\": \"36\"}}").unwrap_err(),
        "config.json",
    );
    assert_says(&text, &["`text_config.layers`", "\"36\"", "u32", "line 2"]);
    corrupt(read(b"").unwrap_err(), "config.json");
    corrupt(
        read(b"{\"text_config\":{\"\xff\":1}}").unwrap_err(),
        "config.json",
    );

    let missing = read_json::<Config>(&folder(&[]).path().join("config.json"), "the configuration")
        .unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    assert_says(&missing.to_string(), &["config.json", "the configuration"]);

    // Nested deeper than the stack allows, in a field that is read and in one that is not.
    let bomb = "[".repeat(1_000_000);
    corrupt(
        read(format!(r#"{{"text_config":{bomb}"#).as_bytes()).unwrap_err(),
        "config.json",
    );
    corrupt(
        read(format!(r#"{{"other":{bomb}"#).as_bytes()).unwrap_err(),
        "config.json",
    );
    let any = folder(&[("any.json", bomb.as_bytes())]);
    corrupt(
        read_json::<serde_json::Value>(&any.path().join("any.json"), "anything").unwrap_err(),
        "any.json",
    );

    let huge = folder(&[("huge.json", b"{}")]);
    let path = huge.path().join("huge.json");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len((16 << 20) + 1)
        .unwrap();
    assert_says(
        &corrupt(
            read_json::<Config>(&path, "the configuration").unwrap_err(),
            "huge.json",
        ),
        &["16777217", "16777216"],
    );
}
