//! Compares quantization with MLX's own Python package; `tests/quantize/README.md` describes how
//! its arrays and its folder were made.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlx_rs::{Array, Dtype};
use moxin_vlm::{
    Backend, Error, LoadOptions, Mode, Model, MoxinVLM, Op, Picture, Processor, Quantization,
    compat::load_model_on,
    device::{CpuKernels, Device},
    load_tokenizer,
    models::prismatic::pure_prompt,
    nn::Want,
    nn::{Matrix, QuantizedMatrix},
    text::Message,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOLERANCE: f32 = 5e-4;
/// Our kernels round activations to int16. Logits reach 15 here, and differ by up to 3.1e-3.
const INT16_TOLERANCE: f32 = 5e-3;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantize")
}

fn arrays(file: &Path) -> HashMap<String, Array> {
    Array::load_safetensors(file).unwrap()
}

/// Returns dtype, shape and bytes; arrays with equal parts are equal.
fn parts(array: &Array) -> (Dtype, Vec<i32>, Vec<u8>) {
    let bytes = match array.dtype() {
        Dtype::Uint8 => array.try_as_slice::<u8>().unwrap().to_vec(),
        Dtype::Uint32 => array
            .try_as_slice::<u32>()
            .unwrap()
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect(),
        Dtype::Bfloat16 => array
            .try_as_slice::<half::bf16>()
            .unwrap()
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect(),
        other => panic!("{other:?}"),
    };
    (array.dtype(), array.shape().to_vec(), bytes)
}

#[test]
fn every_scheme_packs_and_unpacks_as_mlx_does() {
    Device::new(Backend::Cpu).unwrap().run(|| {
        let theirs = arrays(&fixtures().join("schemes.safetensors"));
        let all_rows = Array::from_slice(&[0u32, 1, 2, 3, 4, 5, 6, 7], &[8]);
        let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
            [32, 64, 128].map(|group_size| Quantization::affine(group_size, bits))
        });
        for scheme in affine.chain(Mode::ALL.into_iter().filter_map(Mode::scheme)) {
            let ours = QuantizedMatrix::quantize(&theirs["matrix"], scheme).unwrap();
            let numbers = Matrix::Quantized(ours.clone())
                .rows(&all_rows, Dtype::Bfloat16)
                .unwrap();
            numbers.eval().unwrap();
            for (part, ours) in ours.parts().chain([("dequantized", &numbers)]) {
                let name = format!(
                    "{}-{}-{}.{part}",
                    scheme.mode.name().to_string_lossy(),
                    scheme.bits,
                    scheme.group_size
                );
                assert!(parts(ours) == parts(&theirs[&name]), "{name}");
            }
        }
    });
}

fn assert_close(name: &str, ours: &Array, theirs: &Array, tolerance: f32) {
    let (ours, theirs) = (
        ours.to_vec_cast::<f32>().unwrap(),
        theirs.to_vec_cast::<f32>().unwrap(),
    );
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let apart =
        ours.iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(
                0.0,
                |most: f32, apart| if apart <= most { most } else { apart },
            );
    assert!(
        apart <= tolerance,
        "{name}: up to {apart} from PyTorch's numbers"
    );
}

fn logits(vlm: &MoxinVLM, ids: &[u32], image: Option<&Array>) -> Array {
    vlm.forward_embeddings(
        &vlm.embed(ids, image).unwrap(),
        &mut vlm.new_cache(),
        Want::All,
        &|| Ok(()),
    )
    .unwrap()
    .unwrap()
}

/// With MLX's kernels, and with ours, which round activations to int16.
#[test]
fn a_folder_of_mlx_gives_the_logits_of_its_numbers() {
    for (kernels, tolerance) in [
        (CpuKernels::Mlx, TOLERANCE),
        (CpuKernels::Own, INT16_TOLERANCE),
    ] {
        let device = Device::new(Backend::Cpu).unwrap().with_cpu_kernels(kernels);
        device.run(|| compare_logits(&device, tolerance));
    }
}

fn compare_logits(device: &Device, tolerance: f32) {
    let folder = fixtures().join("mlx-4bit");
    let theirs = arrays(&fixtures().join("expected.safetensors"));
    let turn = Message::user("What is there in the picture?");
    let ids = load_tokenizer(&folder)
        .unwrap()
        .encode(&pure_prompt(&[turn]).unwrap(), true)
        .unwrap();
    assert_eq!(ids, theirs["ids"].to_vec_cast::<u32>().unwrap());
    let picture = Picture::open(
        fixtures()
            .with_file_name("parity")
            .join("pictures/photo.png"),
        &Default::default(),
    )
    .unwrap();
    let pixels = Processor::from_file(&folder.join("preprocessor_config.json"))
        .unwrap()
        .process(&picture)
        .unwrap();

    let vlm = load_model_on(&folder, device, None, &|_, _| Ok(())).unwrap();
    let image = vlm.project(&vlm.encode(&pixels).unwrap()).unwrap();
    assert_close(
        "the picture's tokens",
        &image,
        &theirs["projected"],
        tolerance,
    );
    assert_close(
        "logits with the picture",
        &logits(&vlm, &ids, Some(&image)),
        &theirs["picture.logits"],
        tolerance,
    );
    assert_close(
        "logits without it",
        &logits(&vlm, &ids, None),
        &theirs["text.logits"],
        tolerance,
    );
}

fn load(folder: &Path) -> moxin_vlm::Result<Model> {
    Model::load(
        folder,
        LoadOptions {
            backend: Backend::Cpu,
            ..Default::default()
        },
        Op::default(),
    )
}

/// Makes a copy of MLX's folder with another quantization.
fn with_quantization(place: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let folder = place.join("copy");
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(fixtures().join("mlx-4bit")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join("config.json");
    let mut config = config(&folder);
    change(&mut config["quantization"]);
    fs::write(path, config.to_string()).unwrap();
    folder
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// An exception to the scheme of most modules must match their shapes.
#[test]
fn exceptions_by_path_are_respected() {
    let place = TempDir::new().unwrap();
    assert_eq!(
        load(&fixtures().join("mlx-4bit"))
            .unwrap()
            .info()
            .quantization,
        Some(Quantization::affine(64, 4))
    );
    for module in [
        "language_model.lm_head",
        "language_model.model.embed_tokens",
    ] {
        let without = with_quantization(place.path(), |quantization| {
            quantization.as_object_mut().unwrap().remove(module);
        });
        assert!(
            matches!(load(&without), Err(Error::CorruptModel { what, .. }) if what.contains(module)),
            "{module}"
        );
    }
    // A module that is declared as not quantized has no scales; if it has some, one of the two is
    // wrong.
    let wrong = with_quantization(place.path(), |quantization| {
        quantization["projector.fc1"] = json!(false)
    });
    assert!(
        matches!(load(&wrong), Err(Error::CorruptModel { what, .. }) if what.contains("projector.fc1"))
    );
}

/// Saved by us, it equals MLX's: the same tensors, each in its own scheme, including those of a
/// block that is never used.
#[test]
fn a_folder_of_mlx_is_saved_as_it_is() {
    let (place, source) = (TempDir::new().unwrap(), fixtures().join("mlx-4bit"));
    let folder = place.path().join("saved");
    load(&source)
        .unwrap()
        .save(&folder, false, Op::default())
        .unwrap();
    let tensors = |folder: &Path| {
        let arrays = arrays(&folder.join("model.safetensors"));
        let mut tensors: Vec<_> = arrays
            .iter()
            .map(|(name, array)| (name.clone(), parts(array)))
            .collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    assert!(tensors(&folder) == tensors(&source));
    let (before, after) = (
        &config(&source)["quantization"],
        &config(&folder)["quantization"],
    );
    for scheme in ["group_size", "bits"] {
        assert_eq!(after[scheme], before[scheme]);
        for (module, exception) in before
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, exception)| exception.is_object())
        {
            assert_eq!(after[module][scheme], exception[scheme], "{module}");
        }
    }
}
