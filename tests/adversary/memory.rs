//! Memory: promises are kept whoever states the available amount: a model folder, a caller, a
//! container.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mlx_rs::Dtype;
use moxin_vlm::{
    Error, GenerationOptions, LoadOptions, Model, Op, Picture, PixelFormat, Quantization,
    QuantizeOptions, Result, Role,
    device::{CpuKernels, available_memory, memory_stats, set_memory_limits},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    child::{Limits, in_child, in_children, memory},
    pictures::png,
    programs::{copy_tiny, tiny},
};

const WEIGHTS: &str = "model.safetensors";

/// Makes a copy of the small model with another configuration.
fn with_config(folder: &TempDir, change: impl FnOnce(&mut Value)) -> PathBuf {
    let path = folder.path().join("model");
    copy_tiny(&path);
    let mut config: Value =
        serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path
}

/// Writes a weight file with only zeros, in bfloat16. It takes no space on the disk.
fn write_zeros(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
    let mut end = 0;
    let mut entries = serde_json::Map::new();
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        entries.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let header = Value::from(entries).to_string();
    let _ = fs::remove_file(path);
    let file = File::create(path).unwrap();
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)
        .unwrap();
    file.write_all_at(header.as_bytes(), 8).unwrap();
    file.set_len(8 + header.len() as u64 + end as u64).unwrap();
}

/// Returns the shapes of the small model's tensors.
fn shapes() -> BTreeMap<String, Vec<usize>> {
    let bytes = fs::read(tiny().join(WEIGHTS)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.shape().to_vec()))
        .collect()
}

fn load(folder: &Path) -> Result<Model> {
    Model::load(folder, LoadOptions::default(), Op::default())
}

fn answer(model: &Model, options: GenerationOptions, text: &str) -> Result<()> {
    let session = model.session(options)?;
    session.add_text(Role::User, text)?;
    session.generate().try_for_each(|event| event.map(drop))
}

/// Returns the two figures of an error, which must be about too little memory.
#[track_caller]
fn figures<T>(result: Result<T>) -> (u64, u64) {
    match result.err() {
        Some(Error::OutOfMemory { needed, limit, .. }) if needed > limit => (needed, limit),
        other => panic!("{other:?}"),
    }
}

/// Sizes stated in a configuration are not used for loops, and no product of them overflows.
#[test]
fn stated_sizes_are_not_trusted() {
    in_child(
        "memory::stated_sizes_are_not_trusted",
        Limits::mebibytes(256).seconds(20),
        || {
            const MOST: usize = 1 << 24;
            for fields in [
                json!({"num_hidden_layers": MOST}),
                json!({"num_hidden_layers": MOST, "num_attention_heads": MOST, "num_key_value_heads": MOST, "head_dim": MOST}),
                json!({"hidden_size": MOST, "intermediate_size": MOST, "vocab_size": MOST, "max_position_embeddings": MOST}),
            ] {
                let folder = TempDir::new().unwrap();
                let path = with_config(&folder, |config| {
                    for (name, value) in fields.as_object().unwrap() {
                        config["text_config"][name] = value.clone();
                    }
                });
                let clock = Instant::now();
                let generation = GenerationOptions {
                    max_context: Some(MOST),
                    ..Default::default()
                };
                if let Ok(estimate) = Model::estimate(&path, &LoadOptions::default(), &generation) {
                    // The small model itself needs 10 MB.
                    assert!(estimate.total > 10_000_000, "{fields}: {estimate:?}");
                }
                assert!(
                    matches!(
                        load(&path).err(),
                        Some(Error::OutOfMemory { .. } | Error::CorruptModel { .. })
                    ),
                    "{fields}"
                );
                assert!(
                    clock.elapsed() < Duration::from_secs(4),
                    "{fields}: {:?}",
                    clock.elapsed()
                );
            }
        },
    );
}

/// A model with a window attends to so little at a time that a long prompt in one chunk needs no
/// more than the estimate.
#[test]
fn a_window_needs_no_mask() {
    in_child(
        "memory::a_window_needs_no_mask",
        Limits::mebibytes(800).seconds(120),
        || {
            set_memory_limits(u64::MAX, 0).unwrap();
            let folder = TempDir::new().unwrap();
            let path = with_config(&folder, |config| {
                config["text_config"]["sliding_window"] = json!(64);
                config["text_config"]["max_position_embeddings"] = json!(65_536);
            });
            let options = LoadOptions {
                cpu_kernels: CpuKernels::Own,
                ..Default::default()
            };
            let generation = GenerationOptions {
                max_context: Some(20_100),
                prefill_chunk: 65_536,
                max_tokens: 1,
                ..Default::default()
            };
            let estimate = Model::estimate(&path, &options, &generation).unwrap();
            let before = memory("VmHWM:");
            let model = Model::load(&path, options, Op::default()).unwrap();
            answer(&model, generation, &"red ".repeat(19_900)).unwrap();
            if let (Some(before), Some(after)) = (before, memory("VmHWM:")) {
                assert!(
                    after - before < estimate.total + (64 << 20),
                    "{} MiB, {estimate:?}",
                    (after - before) >> 20
                );
            }
        },
    );
}

/// Numbers that are the same in each run (<https://prng.di.unimi.it/splitmix64.c>).
struct Random(u64);

impl Random {
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        choices[((z ^ (z >> 31)) % choices.len() as u64) as usize]
    }
}

/// Writes a model of random shape, with weights of zero.
fn random_model(random: &mut Random, path: &Path) {
    let kv_heads = random.of(&[1, 2, 4]);
    let heads = kv_heads * random.of(&[1, 2, 4]);
    let head_dim = random.of(&[16, 32, 64]);
    let (hidden, inner) = (random.of(&[256, 512, 768]), random.of(&[512, 1024, 2048]));
    let (layers, vocabulary) = (random.of(&[1, 2, 3]), random.of(&[576, 5000, 20_000]));
    let window = random.of(&[None, None, Some(50), Some(700)]);
    let mut config: Value =
        serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
    let text = json!({
        "model_type": "mistral", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "sliding_window": window,
        "max_position_embeddings": 65_536,
    });
    config["text_config"] = text;
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    let mut all = shapes();
    all.retain(|name, _| !name.starts_with("language_model."));
    let projector = all["projector.fc1.weight"][0];
    all.insert("projector.fc2.weight".into(), vec![hidden, projector]);
    all.insert("projector.fc2.bias".into(), vec![hidden]);
    all.insert("projector.fc3.weight".into(), vec![hidden, hidden]);
    all.insert("projector.fc3.bias".into(), vec![hidden]);
    let model = "language_model.model";
    for name in ["embed_tokens", "lm_head"] {
        let path = if name == "lm_head" {
            "language_model.lm_head".into()
        } else {
            format!("{model}.{name}")
        };
        all.insert(format!("{path}.weight"), vec![vocabulary, hidden]);
    }
    all.insert(format!("{model}.norm.weight"), vec![hidden]);
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![heads * head_dim, hidden]),
            ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head_dim]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            all.insert(format!("{model}.layers.{layer}.{name}.weight"), shape);
        }
    }
    write_zeros(&path.join(WEIGHTS), &all);
}

fn text_config(path: &Path) -> Value {
    let config: Value =
        serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
    config["text_config"].clone()
}

/// Memory of the process that is not estimated: threads and their stacks, the tokenizer, overhead
/// of the allocator and BLAS.
const SLACK: u64 = 12 << 20;

/// Compares the estimate for models of random shape with the peak memory of the process, from
/// loading to the last token.
#[test]
fn the_estimate_holds_for_the_process() {
    const RUNS: usize = 8;
    in_children(
        "memory::the_estimate_holds_for_the_process",
        Limits::mebibytes(1500).seconds(120),
        RUNS,
        |run| {
            let mut random = Random(run as u64);
            // Buffers kept for reuse are not estimated: they stay only if there is room besides
            // what is needed.
            set_memory_limits(u64::MAX, 0).unwrap();
            let folder = TempDir::new().unwrap();
            let path = with_config(&folder, |_| ());
            random_model(&mut random, &path);
            let quantize = random.of(&[None, Some(4), Some(8)]);
            let quantize = quantize.map(|bits| QuantizeOptions {
                quantization: Quantization::affine(64, bits),
                ..Default::default()
            });
            let cpu_kernels = random.of(&[CpuKernels::Own, CpuKernels::Mlx]);
            let dtype = random.of(&[None, None, Some(Dtype::Bfloat16)]);
            let options = LoadOptions {
                quantize,
                cpu_kernels,
                dtype,
                ..Default::default()
            };
            let context = random.of(&[300, 700]);
            let prefill_chunk = random.of(&[64, 512, 65_536]);
            let generation = GenerationOptions {
                max_context: Some(context),
                prefill_chunk,
                max_tokens: 3,
                ..Default::default()
            };
            let estimate = Model::estimate(&path, &options, &generation).unwrap();
            // The library's code is read from its file as it runs.
            let held = || Some(memory("VmHWM:")?.saturating_sub(memory("RssFile:")?));
            let Some(before) = held() else {
                println!("SKIPPED: no /proc to read the process's memory from");
                return;
            };
            let taken = || held().unwrap() - before;
            let what = format!(
                "{cpu_kernels:?}, {dtype:?}, {context} positions by {prefill_chunk}, {estimate:?}, \
                 {}",
                text_config(&path)
            );
            let model = Model::load(&path, options, Op::default()).unwrap();
            let load = taken();
            let picture =
                Picture::from_pixels(&[99; 300 * 200 * 3], 300, 200, 900, PixelFormat::Rgb8)
                    .unwrap();
            let embedding = model.encode_image(&picture, Op::default()).unwrap();
            let vision = taken();
            let session = model.session(generation).unwrap();
            session.add_embedding(&embedding).unwrap();
            session
                .add_text(Role::User, &"red ".repeat(context - 90))
                .unwrap();
            session.generate().for_each(|event| drop(event.unwrap()));
            let taken = taken();
            println!(
                "NOTE: {run}: estimated {} MiB; taken {} to load, {} with vision, {} in all, {} \
                 counted: {what}",
                estimate.total >> 20,
                load >> 20,
                vision >> 20,
                taken >> 20,
                memory_stats().unwrap().peak >> 20
            );
            assert!(
                taken <= estimate.total + SLACK,
                "{taken} bytes taken: {what}"
            );
            assert!(
                estimate.total <= 2 * taken + SLACK,
                "{taken} bytes taken: {what}"
            );
        },
    );
}

/// Everything that needs much memory, when little is left: each is refused with both figures, and
/// small operations still work.
fn requests_are_refused_when_little_memory_is_left() {
    let limit = available_memory().unwrap();
    let folder = TempDir::new().unwrap();
    let path = with_config(&folder, |config| {
        config["text_config"]["max_position_embeddings"] = json!(1 << 20)
    });
    let model = load(&path).unwrap();

    let large = TempDir::new().unwrap();
    let large = with_config(&large, |config| {
        config["text_config"]["vocab_size"] = json!(1_500_000)
    });
    let mut all = shapes();
    for name in [
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    ] {
        all.get_mut(name).unwrap()[0] = 1_500_000;
    }
    write_zeros(&large.join(WEIGHTS), &all);
    let (needed, left) = figures(load(&large));
    assert!(
        needed > 1_000_000_000 && left < limit,
        "{needed} {left} {limit}"
    );

    let long = GenerationOptions {
        max_context: Some(1 << 20),
        ..Default::default()
    };
    figures(model.session(long.clone()));
    figures(Picture::decode(&png(9999, 9999, &[]), &Default::default()));

    // Something that fits when the session starts, and no longer when it is asked.
    let options = GenerationOptions {
        max_context: Some(3000),
        max_tokens: 2,
        ..Default::default()
    };
    let session = model.session(options.clone()).unwrap();
    let ballast = vec![1u8; (available_memory().unwrap() - (5 << 20)) as usize];
    session.add_text(Role::User, &"red ".repeat(2800)).unwrap();
    figures(session.prefill(Op::default()));
    assert!(ballast.iter().all(|byte| *byte == 1));
    drop(ballast);
    session
        .add_text(Role::User, "How many shapes are there?")
        .unwrap();
    session.generate().for_each(|event| drop(event.unwrap()));
    answer(&model, options, "How many?").unwrap();
}

/// Returns a folder of a control group in which this test may create groups.
fn group_folder(controller: &str) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = own
        .lines()
        .find_map(|line| line.split_once(':')?.1.strip_prefix(controller))?
        .strip_prefix(":/")?
        .to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let kind = if controller.is_empty() {
        "cgroup2"
    } else {
        "cgroup"
    };
    mounts.lines().find_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        let fits = rest.split(' ').next() == Some(kind) && rest.contains(controller);
        Some(Path::new(place.split(' ').nth(4)?).join(&group))
            .filter(|folder| fits && folder.is_dir())
    })
}

/// A group within one that has a limit. Removed when dropped.
struct Group(PathBuf);

impl Group {
    /// Creates a group with a limit, in version 1 or 2, and one without in it.
    fn new(bytes: u64) -> Option<Group> {
        let name = format!("moxin-{}", std::process::id());
        let one =
            group_folder("memory").map(|folder| (folder.join(&name), "memory.limit_in_bytes"));
        let two = group_folder("").map(|folder| (folder.join(&name), "memory.max"));
        [one, two]
            .into_iter()
            .flatten()
            .find_map(|(folder, limit)| {
                let group = Group(folder);
                fs::create_dir_all(group.0.join("inner")).ok()?;
                fs::write(group.0.join(limit), bytes.to_string()).ok()?;
                Some(group)
            })
    }

    fn inner(&self) -> PathBuf {
        self.0.join("inner")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.inner());
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_is_a_limit() {
    in_child(
        "memory::a_control_group_is_a_limit",
        Limits::default(),
        || {
            let Some(group) = Group::new(96 << 20) else {
                return println!(
                    "SKIPPED: there is no memory control group in which this test may create \
                        others"
                );
            };
            let enter = |folder: &Path| {
                fs::write(folder.join("cgroup.procs"), std::process::id().to_string()).unwrap()
            };
            enter(&group.inner());
            let limit = available_memory().unwrap();
            assert!(limit <= 96 << 20, "{limit}");
            requests_are_refused_when_little_memory_is_left();
            enter(group.0.parent().unwrap());
        },
    );
}

#[test]
fn the_address_space_is_a_limit() {
    if !cfg!(target_os = "linux") {
        return println!("SKIPPED: only Linux reports the address space of a process");
    }
    let limits = Limits {
        address_space: Some(800 << 20),
        ..Limits::default()
    };
    in_child("memory::the_address_space_is_a_limit", limits, || {
        let limit = available_memory().unwrap();
        assert!(limit < 800 << 20, "{limit}");
        requests_are_refused_when_little_memory_is_left();
    });
}
