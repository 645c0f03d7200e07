//! Tests damaged model folders and pictures: every one is refused with an error that names the
//! file, or works; nothing panics, and the process survives. Copies of the small trained model are
//! damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moxin_vlm::{
    DecodeOptions, Error, Event, GenerationOptions, LoadOptions, Model, Op, Picture, Result, Role,
    load_tokenizer,
};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = "config.json";
const PROCESSOR: &str = "preprocessor_config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

/// A copy of the model folder, to be damaged.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(TempDir::new().unwrap());
        for name in [CONFIG, PROCESSOR, GENERATION, TOKENIZER] {
            fs::copy(tiny().join(name), folder.path(name)).unwrap();
        }
        // Large, and rarely changed: [`Folder::write`] replaces the link.
        std::os::unix::fs::symlink(tiny().join(WEIGHTS), folder.path(WEIGHTS)).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        self.remove(name);
        fs::write(self.path(name), bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Changes a JSON file at `pointer`, such as `/text_config/vocab_size`.
    fn set(&self, name: &str, pointer: &str, value: Value) {
        let mut file: Value = serde_json::from_slice(&self.read(name)).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match file.pointer_mut(parent).unwrap() {
            Value::Object(fields) => drop(fields.insert(key.into(), value)),
            Value::Array(entries) => entries[key.parse::<usize>().unwrap()] = value,
            other => panic!("{parent} is {other}"),
        }
        self.write(name, file.to_string().as_bytes());
    }

    /// Changes the tensors, each a dtype, a shape and bytes.
    fn change_tensors(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>),
    ) {
        let bytes = self.read(WEIGHTS);
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let mut tensors = tensors
            .into_iter()
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        self.write(WEIGHTS, &safetensors::serialize(views, None).unwrap());
    }

    fn load(&self) -> Result<Model> {
        Model::load(self.0.path(), LoadOptions::default(), Op::default())
    }

    /// Loads the folder, which must fail with an error that contains all `words`.
    fn refused(&self, words: &[&str]) -> String {
        let began = Instant::now();
        let error = self
            .load()
            .err()
            .unwrap_or_else(|| panic!("loads, but should fail with {words:?}"));
        assert!(began.elapsed() < Duration::from_secs(20), "{error}");
        let text = self.checked(&error);
        words
            .iter()
            .for_each(|word| assert!(text.contains(word), "{word:?} is not in: {text}"));
        text
    }

    /// Loads the folder and, if that works, answers. Either may fail with an error about the model.
    fn tried(&self) {
        match self.load().and_then(|model| answer(&model)) {
            // Token ids beyond the table, and weights that cause NaN, only show when the model
            // runs.
            Ok(()) | Err(Error::InvalidArgument(_) | Error::InvalidState(_)) => {}
            Err(error) => drop(self.checked(&error)),
        }
    }

    /// Returns the text of an error, which must be about a damaged model and name a file of this
    /// folder.
    fn checked(&self, error: &Error) -> String {
        let path = match error {
            Error::NotFound { path, .. }
            | Error::CorruptModel { path, .. }
            | Error::UnsupportedModel { path, .. } => path,
            Error::Io { path, .. } => path,
            other => panic!("{other:?}"),
        };
        assert!(
            path.starts_with(self.0.path()) && path != self.0.path(),
            "{error:?}"
        );
        error.to_string()
    }
}

/// Generates one token without a question.
fn answer(model: &Model) -> Result<()> {
    let session = model.session(GenerationOptions {
        max_tokens: 1,
        ..Default::default()
    })?;
    session.add_text(Role::User, "How many?")?;
    session.generate().try_for_each(|event| event.map(drop))
}

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): the same damage in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

#[test]
fn the_copy_itself_works() {
    answer(&Folder::new().load().unwrap()).unwrap();
}

// Files that are missing, truncated, or of another kind.

#[test]
fn missing_files_are_named() {
    for name in [CONFIG, PROCESSOR, TOKENIZER, WEIGHTS] {
        let folder = Folder::new();
        folder.remove(name);
        folder.refused(&[name, "not found"]);
        assert!(matches!(folder.load(), Err(Error::NotFound { .. })));
    }
    let folder = Folder::new();
    folder.remove(GENERATION);
    answer(&folder.load().unwrap()).unwrap();
    let nowhere = Model::load("no/such/folder", LoadOptions::default(), Op::default()).err();
    assert!(
        matches!(&nowhere, Some(Error::NotFound { path, .. }) if path.ends_with("no/such/folder")),
        "{nowhere:?}"
    );
    assert!(Model::load(tiny().join(CONFIG), LoadOptions::default(), Op::default()).is_err());
}

#[test]
fn folders_in_the_place_of_files_are_refused() {
    for name in [CONFIG, PROCESSOR, TOKENIZER, WEIGHTS, GENERATION] {
        let folder = Folder::new();
        folder.remove(name);
        fs::create_dir(folder.path(name)).unwrap();
        folder.refused(&[name]);
    }
}

#[test]
fn files_cut_off_are_refused() {
    let whole = fs::read(tiny().join(WEIGHTS)).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [
        0,
        1,
        7,
        8,
        9,
        header / 2,
        header - 1,
        header,
        header + 1,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        let folder = Folder::new();
        folder.write(WEIGHTS, &whole[..length]);
        folder.refused(&[WEIGHTS]);
    }
    for name in [CONFIG, PROCESSOR, GENERATION, TOKENIZER] {
        let folder = Folder::new();
        let whole = folder.read(name);
        for length in [0, 1, 2, whole.len() / 3, whole.len() / 2, whole.len() - 3] {
            folder.write(name, &whole[..length]);
            folder.refused(&[name]);
        }
        for other in [
            &b"\xff\xfe\0"[..],
            b"null",
            b"[]",
            b"\"text\"",
            b"12",
            "[".repeat(100_000).as_bytes(),
        ] {
            folder.write(name, other);
            folder.refused(&[name]);
        }
    }
}

// Bytes changed at random.

fn flip(random: &mut Random, bytes: &mut [u8]) {
    for _ in 0..=random.below(2) {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
}

#[test]
fn changed_bytes_of_json_files_do_no_harm() {
    let mut random = Random(1);
    for name in [CONFIG, PROCESSOR, GENERATION, TOKENIZER] {
        let folder = Folder::new();
        let whole = folder.read(name);
        for _ in 0..60 {
            let mut bytes = whole.clone();
            flip(&mut random, &mut bytes);
            folder.write(name, &bytes);
            folder.tried();
        }
    }
}

/// Changed digits still parse.
#[test]
fn changed_digits_of_json_files_do_no_harm() {
    let mut random = Random(2);
    for name in [CONFIG, PROCESSOR, GENERATION, TOKENIZER] {
        let folder = Folder::new();
        let whole = folder.read(name);
        let digits: Vec<usize> = (0..whole.len())
            .filter(|&i| whole[i].is_ascii_digit())
            .collect();
        for _ in 0..30 {
            let mut bytes = whole.clone();
            bytes[digits[random.below(digits.len())]] = b"0123456789"[random.below(10)];
            folder.write(name, &bytes);
            folder.tried();
        }
    }
}

#[test]
fn changed_bytes_of_the_weights_header_do_no_harm() {
    let mut random = Random(3);
    let folder = Folder::new();
    let mut bytes = folder.read(WEIGHTS);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    folder.write(WEIGHTS, &bytes);
    for round in 0..120 {
        let whole = bytes[..header].to_vec();
        // The length, which is a small part of the file, gets its share.
        let end = if round % 6 == 0 { 8 } else { header };
        flip(&mut random, &mut bytes[..end]);
        let file = fs::File::options()
            .write(true)
            .open(folder.path(WEIGHTS))
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..header], 0).unwrap();
        folder.tried();
        bytes[..header].copy_from_slice(&whole);
    }
}

// Tensors that do not match the configuration.

#[test]
fn tensors_that_do_not_fit_are_named() {
    const NAME: &str = "language_model.model.layers.2.mlp.down_proj.weight";
    let folder = Folder::new();
    folder.change_tensors(|tensors| drop(tensors.remove(NAME)));
    folder.refused(&[
        WEIGHTS,
        NAME,
        "missing",
        "down_proj",
        "layers.2.mlp.gate_proj.weight",
    ]);

    let folder = Folder::new();
    folder.change_tensors(|tensors| {
        let tensor = tensors.remove(NAME).unwrap();
        tensors.insert(NAME.replace("down", "dawn"), tensor);
    });
    folder.refused(&[NAME, "missing", "dawn_proj"]);

    for shape in [vec![512, 192], vec![192 * 512], vec![1, 192, 512]] {
        let folder = Folder::new();
        folder.change_tensors(|tensors| tensors.get_mut(NAME).unwrap().1 = shape.clone());
        folder.refused(&[WEIGHTS, NAME, &format!("{shape:?}"), "expected [192, 512]"]);
    }

    let folder = Folder::new();
    folder.change_tensors(|tensors| tensors.get_mut(NAME).unwrap().0 = Dtype::I16);
    folder.refused(&[WEIGHTS, NAME, "I16", "BF16"]);

    for name in [
        "vision_backbone.featurizer.pos_embed",
        "vision_backbone.featurizer.reg_token",
        "vision_backbone.featurizer.patch_embed.proj.weight",
        "vision_backbone.fused_featurizer.blocks.0.mlp.fc1.weight",
        "projector.fc1.weight",
    ] {
        // Sizes are derived from these: an empty one or one with fewer axes must not pass.
        for shape in [vec![0], vec![]] {
            let folder = Folder::new();
            folder.change_tensors(|tensors| {
                *tensors.get_mut(name).unwrap() = (
                    Dtype::BF16,
                    shape.clone(),
                    vec![0; 2 * usize::from(shape.is_empty())],
                )
            });
            let module = if name.starts_with("projector") {
                name
            } else {
                name.rsplit_once("featurizer").unwrap().0
            };
            folder.refused(&[module]);
        }
        let folder = Folder::new();
        folder.change_tensors(|tensors| drop(tensors.remove(name)));
        // Registers are optional; the rest then does not match.
        match folder.load() {
            Ok(_) => assert!(name.ends_with("reg_token")),
            Err(error) => assert!(
                folder
                    .checked(&error)
                    .contains(name.rsplit('.').nth(1).unwrap())
            ),
        }
    }
}

#[test]
fn damaged_values_are_reported_when_they_matter() {
    let folder = Folder::new();
    folder.change_tensors(|tensors| {
        let (_, _, data) = tensors.get_mut("language_model.model.norm.weight").unwrap();
        data.fill(0xff);
    });
    let model = folder.load().unwrap();
    let failed = answer(&model);
    assert!(
        matches!(&failed, Err(Error::InvalidState(what)) if what.contains("NaN")),
        "{failed:?}"
    );
}

// Configurations that are invalid or do not match the weights.

#[test]
fn absurd_values_are_refused_by_name() {
    let absurd = [
        json!(-1),
        json!(0),
        json!(1e30),
        json!(0.5),
        json!("4"),
        json!(true),
        json!([]),
        json!({}),
        Value::Null,
    ];
    let sizes = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "sliding_window",
        "head_dim",
    ];
    let folder = Folder::new();
    let whole = folder.read(CONFIG);
    for field in sizes {
        for value in &absurd {
            let sound = match field {
                "rms_norm_eps" => *value == json!(0.5),
                "rope_theta" => *value == json!(1e30),
                "sliding_window" | "head_dim" => value.is_null(),
                _ => false,
            };
            folder.write(CONFIG, &whole);
            folder.set(CONFIG, &format!("/text_config/{field}"), value.clone());
            if sound {
                drop(folder.load().unwrap())
            } else {
                drop(folder.refused(&[CONFIG, field]))
            }
        }
    }
    for field in [
        "model_type",
        "text_config",
        "image_sizes",
        "timm_model_ids",
        "timm_override_kwargs",
        "timm_override_act_layers",
    ] {
        for value in [
            json!(-1),
            json!("4"),
            json!(true),
            json!([[]]),
            json!([-1, {}]),
            Value::Null,
        ] {
            folder.write(CONFIG, &whole);
            folder.set(CONFIG, &format!("/{field}"), value);
            folder.refused(&[CONFIG, field]);
        }
    }
}

#[test]
fn contradictions_are_explained() {
    for (name, pointer, value, words) in [
        (
            CONFIG,
            "/model_type",
            json!("blip"),
            &["blip", "prismatic"][..],
        ),
        (
            CONFIG,
            "/text_config/model_type",
            json!("llama"),
            &["llama", "mistral"],
        ),
        (
            CONFIG,
            "/text_config/num_hidden_layers",
            json!(1_000_000),
            &["language_model.model.layers.4.", "missing"],
        ),
        (
            CONFIG,
            "/text_config/num_attention_heads",
            json!(7),
            &["num_attention_heads", "7"],
        ),
        (
            CONFIG,
            "/text_config/num_key_value_heads",
            json!(4),
            &["num_key_value_heads", "(4)"],
        ),
        (
            CONFIG,
            "/text_config/num_key_value_heads",
            json!(3),
            &["k_proj.weight", "[64, 192]", "[96, 192]"],
        ),
        (
            CONFIG,
            "/text_config/vocab_size",
            json!(575),
            &["embed_tokens.weight", "[576, 192]", "[575, 192]"],
        ),
        (
            CONFIG,
            "/text_config/vocab_size",
            json!(1 << 24),
            &["embed_tokens.weight", "[576, 192]", "[16777216, 192]"],
        ),
        (
            CONFIG,
            "/text_config/hidden_size",
            json!(1 << 24),
            &["projector.fc2.weight", "16777216"],
        ),
        (
            CONFIG,
            "/text_config/intermediate_size",
            json!(513),
            &["mlp.", "513"],
        ),
        (
            CONFIG,
            "/text_config/head_dim",
            json!(64),
            &["q_proj.weight", "[384, 192]"],
        ),
        (
            CONFIG,
            "/image_sizes/1",
            json!(224),
            &["112", "224", PROCESSOR],
        ),
        (
            CONFIG,
            "/timm_model_ids",
            json!(["vit_so400m_patch14_siglip_224"]),
            &["input_sizes", "1 encoders"],
        ),
        (
            CONFIG,
            "/timm_override_kwargs/0/num_heads",
            json!(0),
            &["0 attention heads"],
        ),
        (
            CONFIG,
            "/timm_override_kwargs/0/num_heads",
            json!(7),
            &["7 attention heads", "96"],
        ),
        (
            CONFIG,
            "/timm_override_act_layers/0",
            json!("tanh"),
            &["tanh", "timm_override_act_layers"],
        ),
        (
            PROCESSOR,
            "/input_sizes",
            json!([[3, 224, 224], [3, 224, 224]]),
            &["tvf_resize_params", "224"],
        ),
        (
            PROCESSOR,
            "/input_sizes",
            json!([[3, 112, 112]]),
            &[PROCESSOR, "expected 1"],
        ),
        (PROCESSOR, "/input_sizes", json!([]), &["input_sizes"]),
        (
            PROCESSOR,
            "/input_sizes",
            json!([[3, 0, 0], [3, 0, 0]]),
            &["input_sizes"],
        ),
        (
            PROCESSOR,
            "/tvf_do_letterbox",
            json!(true),
            &["tvf_do_letterbox", "tvf_resize_params"],
        ),
        (
            PROCESSOR,
            "/tvf_normalize_params/0/std",
            json!([0.0, 1.0, 1.0]),
            &["tvf_normalize_params"],
        ),
        (
            PROCESSOR,
            "/tvf_resize_params/0/interpolation",
            json!(2),
            &["tvf_resize_params", "bicubic"],
        ),
        (
            PROCESSOR,
            "/image_processor_type",
            json!("CLIPImageProcessor"),
            &["CLIPImageProcessor"],
        ),
        (GENERATION, "/eos_token_id", json!(-1), &["eos_token_id"]),
        (
            GENERATION,
            "/eos_token_id",
            json!("</s>"),
            &["eos_token_id"],
        ),
    ] {
        let folder = Folder::new();
        folder.set(name, pointer, value);
        folder.refused(words);
    }
    // The size in both files, but not in the weights.
    let folder = Folder::new();
    let settings = String::from_utf8(folder.read(PROCESSOR))
        .unwrap()
        .replace("112", "126");
    folder.write(PROCESSOR, settings.as_bytes());
    folder.set(CONFIG, "/image_sizes", json!([126, 126]));
    folder.refused(&["126", "81 patches", "pos_embed", "64 positions"]);
}

#[test]
fn an_end_token_that_does_not_exist_never_comes() {
    let folder = Folder::new();
    for ids in [json!(u32::MAX), json!([]), json!([99_999])] {
        folder.set(GENERATION, "/eos_token_id", ids);
        let session = folder
            .load()
            .unwrap()
            .session(GenerationOptions {
                max_tokens: 8,
                ..Default::default()
            })
            .unwrap();
        session.add_text(Role::User, "How many?").unwrap();
        let events: Vec<Event> = session.generate().map(|event| event.unwrap()).collect();
        assert_eq!(
            events
                .iter()
                .filter(|event| matches!(event, Event::Text { .. }))
                .count(),
            8
        );
    }
}

// Tokenizers that do not match the model.

#[test]
fn token_ids_beyond_the_table_are_refused() {
    let folder = Folder::new();
    let tokenizer = load_tokenizer(tiny()).unwrap();
    let id = tokenizer.encode("In: How many?", true).unwrap()[1];
    folder.set(
        TOKENIZER,
        &format!("/model/vocab/{}", tokenizer.token_text(id).unwrap()),
        json!(5000),
    );
    let model = folder.load().unwrap();
    for _ in 0..2 {
        let refused = answer(&model);
        assert!(
            matches!(&refused, Err(Error::InvalidArgument(what)) if what.contains("5000") && what.contains("576")),
            "{refused:?}"
        );
    }
}

#[test]
fn a_tokenizer_without_tokens_for_a_prompt_is_refused() {
    let folder = Folder::new();
    folder.set(
        TOKENIZER,
        "/normalizer",
        json!({"type": "Replace", "pattern": {"Regex": "(?s).+"}, "content": ""}),
    );
    folder.set(TOKENIZER, "/post_processor", Value::Null);
    let refused = answer(&folder.load().unwrap());
    assert!(
        matches!(&refused, Err(Error::InvalidState(what)) if what.contains("no tokens")),
        "{refused:?}"
    );
}

// Pictures.

/// Makes a PNG file that declares its size, and has at most 64 bytes of pixels.
fn png(width: u32, height: u32) -> Vec<u8> {
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, 2, 0, 0, 0],
    ]
    .concat();
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &[0; 64]),
    ]
    .concat()
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    // CRC-32, bit by bit.
    let step = |crc: u32, _| {
        if crc & 1 == 1 {
            (crc >> 1) ^ 0xedb8_8320
        } else {
            crc >> 1
        }
    };
    let crc = !body.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), step)
    });
    [
        &(data.len() as u32).to_be_bytes()[..],
        &body,
        &crc.to_be_bytes(),
    ]
    .concat()
}

#[test]
fn files_that_are_not_pictures_are_refused() {
    let folder = TempDir::new().unwrap();
    let demo = fs::read(tiny().with_file_name("demo.png")).unwrap();
    for (name, bytes, word) in [
        ("text.jpg", b"Dear Sir or Madam,".to_vec(), "text"),
        ("empty.png", Vec::new(), "empty"),
        ("huge.png", png(65_535, 65_535), "65535 x 65535"),
        ("small.png", png(10, 10), "PNG"),
        ("cut.png", demo[..demo.len() / 2].to_vec(), "PNG"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        for error in [
            Picture::open(&path, &DecodeOptions::default()),
            Picture::decode(&bytes, &DecodeOptions::default()),
        ] {
            let error = error.unwrap_err();
            assert!(
                matches!(error, Error::UnsupportedImage { .. }) && error.to_string().contains(word),
                "{error}"
            );
        }
        let error = Picture::open(&path, &DecodeOptions::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(matches!(
        Picture::open(folder.path().join("none.png"), &DecodeOptions::default()),
        Err(Error::NotFound { .. })
    ));
}
