//! A complete model folder, damaged: files of other types, sizes and content, and settings and
//! tensor headers with other values. A folder that the library accepts must then answer, be saved,
//! and load again.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use moxin_vlm::device::set_memory_limits;
use moxin_vlm::{
    Error, GenerationOptions, LoadOptions, Model, Op, Picture, PixelFormat, Quantization,
    QuantizeOptions, Role,
};
use serde_json::{Value, json};

use super::folder;

/// The maximum number of damages to a folder.
const DAMAGES: usize = 4;

/// The bytes that the library may use, far more than the small model needs.
const MEMORY: u64 = 256 << 20;

/// The file with the weights, and the file that names shards.
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Stands for a duplicate key until the text is written.
const TWIN: &str = "\u{1}twin";

/// Damages a model folder as the bytes say, and uses the result.
pub fn model_folder(bytes: &[u8]) {
    let (model, outside) = (folder().join("model"), folder().join("outside"));
    for folder in [&model, &outside] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir(folder).expect("a temporary folder");
        for (name, content) in original() {
            fs::write(folder.join(name), content).expect("a temporary file");
        }
    }
    let mut input = Unstructured::new(bytes);
    let mut damaged = Folder { model, outside };
    let damages = input.int_in_range(0..=DAMAGES).unwrap_or(0);
    // The end of the input is the end of the damages.
    let _ = (0..damages).try_for_each(|_| damaged.damage(&mut input));
    set_memory_limits(MEMORY, MEMORY).expect("limits");
    damaged.try_out(input.ratio(1, 3).unwrap_or(false));
    set_memory_limits(u64::MAX, MEMORY).expect("limits");
}

/// Returns the files of the smallest model in tests/parity.
fn original() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/crop_siglip/model");
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.expect("a file");
            (
                entry.file_name().into_string().expect("UTF-8"),
                fs::read(entry.path()).expect("a file"),
            )
        };
        let mut files: Vec<_> = fs::read_dir(folder)
            .expect("a model in tests/parity")
            .map(read)
            .collect();
        files.sort();
        files
    })
}

/// Returns the value, if there is one; an error must be one of a damaged model.
fn checked<T>(result: moxin_vlm::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(
            Error::NotFound { .. }
            | Error::Io { .. }
            | Error::CorruptModel { .. }
            | Error::UnsupportedModel { .. }
            | Error::OutOfMemory { .. }
            | Error::ContextFull { .. }
            | Error::InvalidArgument(_),
        ) => None,
        Err(Error::InvalidState(what)) if what.starts_with("the model produced") => None,
        Err(error) => panic!("not an error of a damaged model: {error:?}"),
    }
}

struct Folder {
    model: PathBuf,
    /// A target of links: another folder with the same files.
    outside: PathBuf,
}

impl Folder {
    /// Does one kind of damage, unless an earlier one makes it impossible.
    fn damage(&mut self, input: &mut Unstructured) -> Result<()> {
        let path = self.model.join(name(input)?);
        match input.int_in_range(0..=15)? {
            0 => drop(fs::remove_file(&path)),
            1 => drop(fs::rename(&path, self.model.join(name(input)?))),
            2 => self.link(&path, input)?,
            3 => {
                let _ = fs::remove_file(&path);
                let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
                // SAFETY: a C string that outlives the call.
                unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
            }
            4 => {
                let _ = fs::remove_file(&path);
                let _ = fs::create_dir(&path);
            }
            5 | 6 => {
                let size = if input.arbitrary()? {
                    input.int_in_range(0..=1 << 19)?
                } else {
                    1 << input.int_in_range(0..=36)?
                };
                if is_file(&path) {
                    File::options()
                        .write(true)
                        .open(&path)
                        .and_then(|file| file.set_len(size))
                        .expect("a temporary file");
                }
            }
            7 | 8 => {
                let (at, bytes) = (
                    input.int_in_range(0..=1 << 19)?,
                    input.bytes(input.len().min(4))?,
                );
                if is_file(&path) {
                    let mut file = File::options()
                        .write(true)
                        .open(&path)
                        .expect("a temporary file");
                    file.seek(SeekFrom::Start(at))
                        .and_then(|_| file.write_all(bytes))
                        .expect("a temporary file");
                }
            }
            9 => self.divide(input)?,
            10 | 11 => self.edit_header(input)?,
            _ => edit_json(&path, input)?,
        }
        Ok(())
    }

    /// Replaces a file with a link: to its copy outside, to another file, to itself, to a folder,
    /// or to nothing.
    fn link(&self, path: &Path, input: &mut Unstructured) -> Result<()> {
        let target = match input.int_in_range(0..=5)? {
            0 => self.model.join(name(input)?),
            1 => path.to_owned(),
            2 => self.outside.clone(),
            3 => self.outside.join("missing"),
            4 => Path::new("../outside").join(path.file_name().unwrap_or_default()),
            _ => self.outside.join(name(input)?),
        };
        let _ = fs::remove_file(path);
        let _ = symlink(target, path);
        Ok(())
    }

    /// Moves the weights into a shard named by an index.
    fn divide(&self, input: &mut Unstructured) -> Result<()> {
        let path = self.model.join(WEIGHTS);
        let Some((header, _)) = tensors(&path) else {
            return Ok(());
        };
        let shard = *input.choose(&[
            "model-00001-of-00001.safetensors",
            "../outside/model.safetensors",
            ".",
            "",
            "x",
            INDEX,
        ])?;
        let names = header
            .as_object()
            .into_iter()
            .flat_map(|header| header.keys())
            .filter(|name| *name != "__metadata__");
        let weight_map: serde_json::Map<_, _> =
            names.map(|name| (name.clone(), json!(shard))).collect();
        put(
            &self.model.join(INDEX),
            json!({ "weight_map": weight_map }).to_string().as_bytes(),
        );
        let _ = fs::rename(path, self.model.join(shard));
        Ok(())
    }

    /// Changes a value in the header of the weights.
    fn edit_header(&self, input: &mut Unstructured) -> Result<()> {
        let path = self.model.join(WEIGHTS);
        if let Some((mut header, data)) = tensors(&path) {
            let header = edit(&mut header, input)?;
            let content = [
                &(header.len() as u64).to_le_bytes(),
                header.as_bytes(),
                &data,
            ]
            .concat();
            put(&path, &content);
        }
        Ok(())
    }

    /// Uses the folder as an app does: inspecting, estimating, loading, a picture, an answer,
    /// saving, and the saved folder.
    fn try_out(&self, quantized: bool) {
        let quantize = QuantizeOptions {
            quantization: Quantization::affine(32, 4),
            vision: true,
            ..QuantizeOptions::default()
        };
        let options = LoadOptions {
            memory_limit: Some(MEMORY / 4),
            quantize: quantized.then_some(quantize),
            ..LoadOptions::default()
        };
        let generation = GenerationOptions {
            max_tokens: 2,
            max_context: Some(256),
            ..GenerationOptions::default()
        };
        checked(Model::inspect(&self.model));
        checked(Model::estimate(&self.model, &options, &generation));
        let Some(model) = checked(Model::load(&self.model, options.clone(), Op::default())) else {
            return;
        };
        let picture =
            Picture::from_pixels(&[200; 15], 5, 3, 5, PixelFormat::Gray8).expect("a picture");
        checked(model.encode_image(&picture, Op::default()));
        if let Some(session) = checked(model.session(generation)) {
            checked(session.add_image(picture));
            checked(session.add_text(Role::User, "What <unk> is it?"));
            session.generate().for_each(|event| drop(checked(event)));
        }
        let saved = folder().join("saved");
        let _ = fs::remove_dir_all(&saved);
        if checked(model.save(&saved, false, Op::default())).is_some() {
            let options = LoadOptions {
                quantize: None,
                ..options
            };
            Model::load(&saved, options, Op::default()).expect("what was saved can be loaded");
        }
    }
}

/// Returns the name of a file that models have, or another name.
fn name(input: &mut Unstructured) -> Result<String> {
    const OTHERS: [&str; 5] = [
        INDEX,
        "chat_template.jinja",
        "special_tokens_map.json",
        "notes.txt",
        "model-00001-of-00001.safetensors",
    ];
    let i = input.int_in_range(0..=original().len() + OTHERS.len() - 1)?;
    Ok(original().get(i).map_or_else(
        || OTHERS[i - original().len()].to_owned(),
        |(name, _)| name.clone(),
    ))
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|kind| kind.is_file())
}

/// Writes a file, replacing anything but a folder.
fn put(path: &Path, content: &[u8]) {
    let _ = fs::remove_file(path);
    let _ = fs::write(path, content);
}

/// Returns header and data of a small safetensors file.
fn tensors(path: &Path) -> Option<(Value, Vec<u8>)> {
    let content = content(path)?;
    let length = usize::try_from(u64::from_le_bytes(*content.first_chunk()?)).ok()?;
    let (header, data) = content[8..].split_at_checked(length)?;
    Some((serde_json::from_slice(header).ok()?, data.to_owned()))
}

/// Returns the content of a small file.
fn content(path: &Path) -> Option<Vec<u8>> {
    let size = fs::symlink_metadata(path)
        .ok()
        .filter(|kind| kind.is_file())?
        .len();
    if size < 1 << 20 {
        fs::read(path).ok()
    } else {
        None
    }
}

/// Changes a value in a JSON file.
fn edit_json(path: &Path, input: &mut Unstructured) -> Result<()> {
    if let Some(mut value) = content(path).and_then(|content| serde_json::from_slice(&content).ok())
    {
        let text = edit(&mut value, input)?;
        put(path, text.as_bytes());
    }
    Ok(())
}

/// Replaces, removes or duplicates a value; returns the text.
fn edit(value: &mut Value, input: &mut Unstructured) -> Result<String> {
    let mut paths = Vec::new();
    collect_paths(value, &mut String::new(), &mut paths);
    let Some(path) = paths.get(input.int_in_range(0..=paths.len().max(1) - 1)?) else {
        return Ok(value.to_string());
    };
    let (parent, key) = path.rsplit_once('/').unwrap_or_default();
    let key = key.replace("~1", "/").replace("~0", "~");
    let odd = odd_value(value, path, input)?;
    match (input.int_in_range(0..=7)?, value.pointer_mut(parent)) {
        (0, Some(Value::Object(map))) => drop(map.remove(&key)),
        (0, Some(Value::Array(list))) => drop(key.parse().map(|i: usize| list.remove(i))),
        (1, Some(Value::Object(map))) => drop(map.insert(TWIN.into(), odd)),
        (1, Some(Value::Array(list))) => list.push(odd),
        _ => *value.pointer_mut(path).expect("one of its paths") = odd,
    }
    let twin = serde_json::to_string(TWIN).expect("a string");
    Ok(value
        .to_string()
        .replace(&twin, &Value::String(key).to_string()))
}

/// Collects the JSON pointers of all values within a value.
fn collect_paths(value: &Value, path: &mut String, paths: &mut Vec<String>) {
    let length = path.len();
    let mut visit = |key: &str, child: &Value| {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        paths.push(path.clone());
        collect_paths(child, path, paths);
        path.truncate(length);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, child)| visit(key, child)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(i, child)| visit(&i.to_string(), child)),
        _ => (),
    }
}

/// Returns an unexpected value, or another value of the same document.
fn odd_value(document: &Value, path: &str, input: &mut Unstructured) -> Result<Value> {
    const NUMBERS: [f64; 12] = [
        0.0,
        1.0,
        -1.0,
        2.0,
        3.0,
        64.0,
        0.5,
        -0.0,
        1e-30,
        1e300,
        16_777_216.0,
        1e6,
    ];
    const WHOLE: [u64; 10] = [
        0,
        1,
        2,
        7,
        4096,
        65_536,
        1 << 24,
        1 << 32,
        1 << 53,
        u64::MAX,
    ];
    Ok(match input.int_in_range(0..=9)? {
        0 => Value::Null,
        1 => json!(input.arbitrary::<bool>()?),
        2 => json!(*input.choose(&NUMBERS)?),
        3 | 4 => json!(*input.choose(&WHOLE)?),
        5 => json!(input.arbitrary::<i64>()?),
        6 => json!(*input.choose(&[
            "", "x", "../x", "mistral", "<s>", "BF16", "F64", "U32", "false"
        ])?),
        7 => json!("ab".repeat(1 << input.int_in_range(0..=16)?)),
        8 => match input.int_in_range(0..=3)? {
            0 => json!([]),
            1 => json!({}),
            2 => json!([document.pointer(path)]),
            _ => (0..input.int_in_range(1..=120)?).fold(json!(0), |inner, _| json!([inner])),
        },
        // The same number, and one more or less.
        _ => match document.pointer(path).and_then(Value::as_u64) {
            Some(number) => json!(number.wrapping_add(*input.choose(&[1, 2, u64::MAX, number])?)),
            None => json!([1, 2, 3]),
        },
    })
}
