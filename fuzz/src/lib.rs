//! The fuzz targets: each takes any bytes, which the library must accept or refuse with a suitable
//! [`Error`]. A panic, a hang, or unbounded memory is a fault. `cargo xtask fuzz` runs them under
//! libFuzzer; tests/replay.rs runs them on the corpus and on random changes of it.

mod blueprint;
mod c_abi;
mod model_folder;

use std::env;
use std::fs::{self, File};
use std::panic;
use std::path::{Path, PathBuf};

pub use blueprint::{blueprint, template};
pub use c_abi::{c_abi, c_calls};
pub use model_folder::model_folder;
use moxin_vlm::checkpoint::{Checkpoint, LoadContext};
use moxin_vlm::text::StreamDecoder;
use moxin_vlm::{
    DecodeOptions, Error, Picture, PixelFormat, Processor, Result, VLMConfig, load_tokenizer,
};
use serde_json::Value;
use tempfile::TempDir;

/// A target's name, its function, and how many random changes of its corpus tests/replay.rs tries.
pub type Target = (&'static str, fn(&[u8]), usize);

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("blueprint", blueprint, 4000),
    ("c_abi", c_abi, 4000),
    ("c_calls", c_calls, 1200),
    ("config", config, 4000),
    ("image", image, 4000),
    ("index", index, 4000),
    ("model_folder", model_folder, 1000),
    ("preprocessor", preprocessor, 4000),
    ("safetensors", safetensors, 4000),
    ("safetensors_header", safetensors_header, 4000),
    ("template", template, 4000),
    ("tokenizer", tokenizer, 4000),
];

/// The entry of a libFuzzer program.
#[macro_export]
macro_rules! fuzz {
    ($target:ident) => {
        libfuzzer_sys::fuzz_target!(init: $crate::panic_as_usual(), |data: &[u8]| $crate::$target(data));
    };
}

/// libFuzzer's crate makes every panic end the process; the library catches those of the
/// `tokenizers` crate, which are not faults. A panic that leaves a target still ends the process.
pub fn panic_as_usual() {
    drop(panic::take_hook());
}

/// Returns this thread's folder for files, for functions that only read paths: in memory, if
/// possible, because saving waits for the disk.
fn folder() -> PathBuf {
    thread_local!(static FOLDER: TempDir = new_folder().expect("a temporary folder"));
    FOLDER.with(|folder| folder.path().to_owned())
}

fn new_folder() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() && env::var_os("TMPDIR").is_none() {
        TempDir::new_in(memory)
    } else {
        TempDir::new()
    }
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("a temporary file");
    path
}

/// Returns the value, if there is one; an error must name a file, as for damaged models.
fn checked<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::CorruptModel { path, what } | Error::UnsupportedModel { path, what }) => {
            assert!(
                path.starts_with(folder()) && !what.is_empty(),
                "{}: {what:?}",
                path.display()
            );
            None
        }
        Err(Error::NotFound { .. } | Error::Io { .. }) => None,
        Err(error) => panic!("not an error of a damaged file: {error:?}"),
    }
}

/// A `config.json`.
pub fn config(bytes: &[u8]) {
    let Some(config) = checked(VLMConfig::from_file(&write("config.json", bytes))) else {
        return;
    };
    for i in 0..config.timm_model_ids.len() {
        // Either may be an error: the name is unknown.
        let _ = (config.num_heads(i), config.activation(i));
    }
    assert!(config.text_config.head_dim() > 0);
    config.text_config.eos_token_id.to_vec();
}

/// A `preprocessor_config.json`.
pub fn preprocessor(bytes: &[u8]) {
    let Some(processor) = checked(Processor::from_file(&write(
        "preprocessor_config.json",
        bytes,
    ))) else {
        return;
    };
    if processor.size() > 64 {
        return;
    }
    for (width, height) in [(5, 3), (1, 300), (64, 64)] {
        let pixels = vec![200; width as usize * height as usize];
        let picture =
            Picture::from_pixels(&pixels, width, height, width as usize, PixelFormat::Gray8)
                .expect("a picture");
        let pixels = processor
            .process(&picture)
            .expect("every picture has a result");
        assert_eq!(
            (pixels.channels, pixels.height),
            (3 * processor.encoders(), processor.size())
        );
        assert_eq!(
            pixels.data.len(),
            pixels.channels * pixels.height * pixels.width
        );
    }
}

/// A picture of at most a million pixels.
pub fn image(bytes: &[u8]) {
    for apply_orientation in [true, false] {
        let options = DecodeOptions {
            apply_orientation,
            max_pixels: 1_000_000,
        };
        match Picture::decode(bytes, &options) {
            Ok(picture) => {
                let pixels = picture.width() as usize * picture.height() as usize;
                assert!(
                    (1..=1_000_000).contains(&pixels) && picture.rgb().len() == 3 * pixels,
                    "{picture:?}"
                );
            }
            Err(Error::UnsupportedImage { path: None, what }) => assert!(!what.is_empty()),
            Err(error) => panic!("not an error of a picture: {error:?}"),
        }
    }
}

/// A `tokenizer.json`.
pub fn tokenizer(bytes: &[u8]) {
    const TEXT: &str = "In: How many <unk> café 漢字 👍?\n<0x0A> \u{FFFD}</s>";
    write("tokenizer.json", bytes);
    let Some(tokenizer) = checked(load_tokenizer(folder())) else {
        return;
    };
    let ids = checked(tokenizer.encode(TEXT, true)).unwrap_or_else(|| vec![0, 1, 2, u32::MAX]);
    let ids = &ids[..ids.len().min(64)];
    checked(tokenizer.decode(ids));
    let mut decoder = StreamDecoder::new(&tokenizer).trim_start();
    for &id in ids {
        tokenizer.is_special(id);
        if checked(decoder.push(id)).is_none() {
            return;
        }
    }
    checked(decoder.finish());
}

/// A complete `model.safetensors`.
pub fn safetensors(bytes: &[u8]) {
    write("model.safetensors", bytes);
    read_all(&folder());
}

/// The header of a `model.safetensors`. Its length is put before it, and as many zeros after it as
/// its offsets ask for, so that the last checks are reached too.
pub fn safetensors_header(header: &[u8]) {
    let ends = |tensor: &Value| tensor.pointer("/data_offsets/1").and_then(Value::as_u64);
    let tensors = serde_json::from_slice::<Value>(header).unwrap_or_default();
    let data = tensors
        .as_object()
        .and_then(|tensors| tensors.values().filter_map(ends).max())
        .unwrap_or(0)
        .min(1 << 16);
    let path = write(
        "model.safetensors",
        &[&(header.len() as u64).to_le_bytes(), header].concat(),
    );
    let file = File::options()
        .write(true)
        .open(path)
        .expect("a temporary file");
    file.set_len(8 + header.len() as u64 + data)
        .expect("a temporary file");
    read_all(&folder());
}

/// A `model.safetensors.index.json`, next to the two shards of the checkpoint's tests.
pub fn index(bytes: &[u8]) {
    let shards = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoint/sharded");
    for name in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ] {
        if !folder().join(name).exists() {
            fs::copy(shards.join(name), folder().join(name)).expect("the shards in tests/fixtures");
        }
    }
    write("model.safetensors.index.json", bytes);
    read_all(&folder());
}

/// Opens the checkpoint and, if that works, reads every tensor as bytes and into MLX.
fn read_all(folder: &Path) {
    let Some(checkpoint) = checked(Checkpoint::open(folder)) else {
        return;
    };
    let mut total = 0;
    let no_progress = |_, _| Ok(());
    let context = LoadContext::new(&checkpoint, &no_progress);
    for name in checkpoint.tensor_names() {
        let tensor = checkpoint.info(name).expect("a tensor of that name");
        total += tensor.bytes;
        let bytes = checked(tensor.read()).expect("what the header promised");
        assert_eq!(bytes.len() as u64, tensor.bytes);
        if let Some(array) = checked(context.weights().load(name, &tensor.shape)) {
            assert_eq!(array.nbytes() as u64, tensor.bytes);
        }
    }
    assert_eq!(total, checkpoint.total_bytes());
    checkpoint.parameter_count();
    checked(checkpoint.rename(|name| Some(name.replace("a", ""))));
}
