//! Tests the C ABI: its header, the exported symbols, and C programs that use it.
//!
//! With `MOXIN_WATCH=sanitizers` the programs are compiled with AddressSanitizer, which also
//! detects leaks, and UndefinedBehaviorSanitizer. With `MOXIN_WATCH=valgrind` they run in Valgrind,
//! which also checks the library's own memory accesses and takes 50 times as long. Nothing is
//! suppressed in either.
#![cfg(unix)]

mod programs;

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder};
use moxin_vlm::{DecodeOptions, Event, GenerationOptions, LoadOptions, Model, Op, Picture, Role};
use serde::Deserialize;
use tempfile::TempDir;

use programs::{
    C99, LIBRARY_PATH, compiler, copy_tiny, demo, in_repository, library_folder, library_path,
    succeed, tiny,
};

const HEADER: &str = include_str!("../include/moxin_vlm.h");

// The header.

#[test]
fn the_header_compiles_alone_in_every_language() {
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("twice.c");
    fs::write(
        &source,
        "#include \"moxin_vlm.h\"\n#include \"moxin_vlm.h\"\nint main(void) \
        { return MOXIN_ABI_VERSION == 0; }\n",
    )
    .unwrap();
    for standard in ["c99", "c11", "c17", "c++11", "c++17", "c++20"] {
        let (mut command, language) = if standard.contains("++") {
            (compiler("CXX", "c++"), "c++")
        } else {
            (compiler("CC", "cc"), "c")
        };
        command
            .args(&C99[1..])
            .arg(format!("-std={standard}"))
            .args(["-fsyntax-only", "-x", language]);
        succeed(command.arg("-I").arg(in_repository("include")).arg(&source));
    }
}

#[test]
fn the_library_exports_what_the_header_declares() {
    let library = library_folder().join(format!(
        "{}moxin_vlm{}",
        env::consts::DLL_PREFIX,
        env::consts::DLL_SUFFIX
    ));
    let arguments: &[&str] = if cfg!(target_vendor = "apple") {
        &["-g", "-U"]
    } else {
        &["-D", "--defined-only"]
    };
    let listing = succeed(Command::new("nm").args(arguments).arg(&library));
    // Apple's symbols start with an underscore.
    let names = listing
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(|name| name.trim_start_matches('_'));
    // build.rs hides the symbols that mlx-rs would export, except on Apple systems.
    let mut exported: Vec<_> = names
        .filter(|&name| !(cfg!(target_vendor = "apple") && name == "default_mlx_error_handler"))
        .collect();
    exported.sort();
    let code = without_comments(HEADER);
    let mut declared = declared_functions(&code);
    declared.sort();
    assert!(declared.contains(&"moxin_session_step"), "{declared:?}");
    assert_eq!(exported, declared);
}

/// The C tests use each function of the header, and pass NULL to each that takes a pointer.
#[test]
fn every_function_is_called_by_a_c_test() {
    let tests = ["abi.c", "app.c", "check.h"]
        .map(|name| fs::read_to_string(in_repository("tests/c").join(name)).unwrap())
        .concat();
    let header = without_comments(HEADER);
    for name in declared_functions(&header) {
        let open = format!("{name}(");
        assert!(tests.contains(&open), "no C test calls {name}");
        let declaration = header
            .split(&open)
            .nth(1)
            .and_then(|rest| rest.split(')').next())
            .unwrap();
        let mut calls = tests
            .split(&open)
            .skip(1)
            .map(|rest| rest.split(';').next().unwrap_or(rest));
        assert!(
            !declaration.contains('*') || calls.any(|call| call.contains("NULL")),
            "no C test passes NULL to {name}"
        );
    }
}

fn without_comments(code: &str) -> String {
    let (first, rest) = code.split_once("/*").unwrap_or((code, ""));
    let rest = rest
        .split("/*")
        .map(|part| part.split_once("*/").map_or("", |(_, code)| code));
    first.to_owned() + &rest.collect::<String>()
}

/// Returns the names before a parenthesis.
fn declared_functions(code: &str) -> Vec<&str> {
    let names = code.split('(').map(|part| {
        part.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .unwrap_or("")
    });
    names.filter(|name| name.starts_with("moxin_")).collect()
}

// C programs.

#[test]
fn describe_answers_as_rust_does() {
    let prompts = ["How many shapes are there?", "Describe the picture."];
    let program = Program::build("examples/c/describe.c");
    let answers = program.answers(&[], &demo(), &prompts);
    assert_same(
        &answers,
        &rust_answers(
            Picture::open(demo(), &DecodeOptions::default()).unwrap(),
            &prompts,
            256,
        ),
    );
    assert_eq!(answers[1].finish, "EndOfTurn");
    assert!(answers[1].tokens.len() > 3);

    let (tiny, demo) = (tiny(), demo());
    let text = program.run(
        &[
            tiny.as_os_str(),
            demo.as_os_str(),
            "--prompt".as_ref(),
            prompts[0].as_ref(),
        ],
        0,
    );
    assert_eq!(
        String::from_utf8(text.stdout).unwrap(),
        format!("> {}\n{}\n", prompts[0], answers[0].text)
    );

    let three = program.answers(&["--max-tokens", "3"], &demo, &prompts[1..]);
    assert_same(
        &three,
        &rust_answers(
            Picture::open(&demo, &DecodeOptions::default()).unwrap(),
            &prompts[1..],
            3,
        ),
    );
    assert_eq!(
        (three[0].tokens.len(), three[0].finish.as_str()),
        (3, "MaxTokens")
    );
}

#[test]
fn describe_turns_pictures_upright_unless_no_exif() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("turned.jpg");
    write_turned_jpeg(&path);
    let program = Program::build("examples/c/describe.c");
    let prompts = ["Describe the picture."];
    let mut logprobs = Vec::new();
    for (flags, apply_orientation) in [(&[][..], true), (&["--no-exif"][..], false)] {
        let picture = Picture::open(
            &path,
            &DecodeOptions {
                apply_orientation,
                ..Default::default()
            },
        )
        .unwrap();
        let answers = program.answers(flags, &path, &prompts);
        assert_same(&answers, &rust_answers(picture, &prompts, 256));
        logprobs.push(answers[0].logprobs.clone());
    }
    assert_ne!(logprobs[0], logprobs[1], "the two results differ");
}

#[test]
fn describe_explains_errors() {
    let folder = TempDir::new().unwrap();
    let program = Program::build("examples/c/describe.c");
    let text = folder.path().join("text.jpg");
    fs::write(&text, "This is no picture.").unwrap();
    let empty = folder.path().join("empty.png");
    fs::write(&empty, "").unwrap();
    let cut = folder.path().join("cut");
    copy_tiny(&cut);
    let weights = fs::File::options()
        .write(true)
        .open(cut.join("model.safetensors"))
        .unwrap();
    weights.set_len(1_000_000).unwrap();
    let bare = folder.path().join("bare");
    copy_tiny(&bare);
    fs::remove_file(bare.join("tokenizer.json")).unwrap();
    let (missing, not_utf8) = (folder.path().join("missing"), OsStr::from_bytes(b"caf\xe9"));
    let (tiny, demo, hello) = (tiny(), demo(), OsStr::new("Hello"));

    for (model, picture, prompt, status, name) in [
        (&missing, &demo, hello, "NOT_FOUND", "missing"),
        (&text, &demo, hello, "", "text.jpg"),
        (&cut, &demo, hello, "CORRUPT_MODEL", "model.safetensors"),
        (&bare, &demo, hello, "NOT_FOUND", "tokenizer.json"),
        (&tiny, &missing, hello, "NOT_FOUND", "missing"),
        (&tiny, &text, hello, "UNSUPPORTED_IMAGE", "text.jpg"),
        (&tiny, &empty, hello, "UNSUPPORTED_IMAGE", "empty.png"),
        (
            &tiny,
            &folder.path().to_owned(),
            hello,
            "UNSUPPORTED_IMAGE",
            "folder",
        ),
        (&tiny, &demo, not_utf8, "INVALID_ARGUMENT", "UTF-8"),
    ] {
        let output = program.run(
            &[
                model.as_os_str(),
                picture.as_os_str(),
                "--prompt".as_ref(),
                prompt,
            ],
            1,
        );
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains(name) && message.contains(&format!("MOXIN_STATUS_{status}")),
            "{model:?} {picture:?}: {message}"
        );
    }
}

#[test]
fn the_abi_keeps_its_promises_to_careless_callers() {
    let folder = TempDir::new().unwrap();
    let pixels = folder.path().join("pixels.rgb");
    let picture = Picture::open(demo(), &DecodeOptions::default()).unwrap();
    fs::write(&pixels, picture.rgb()).unwrap();
    let (width, height) = (picture.width().to_string(), picture.height().to_string());
    let program = Program::build("tests/c/abi.c");
    let (tiny, demo) = (tiny(), demo());
    program.run(
        &[
            "check".as_ref(),
            tiny.as_os_str(),
            demo.as_os_str(),
            pixels.as_os_str(),
            width.as_ref(),
            height.as_ref(),
        ],
        0,
    );
}

#[test]
fn a_process_may_end_at_any_time() {
    let program = Program::build("tests/c/abi.c");
    let app = Program::build("tests/c/app.c");
    let tiny = tiny();
    for i in 0..20 {
        program.run(&["exit-leaving".as_ref(), tiny.as_os_str()], 42);
        program.run(
            &[
                "exit-stepping".as_ref(),
                tiny.as_os_str(),
                i.to_string().as_ref(),
            ],
            42,
        );
        app.run(
            &[
                "exit-streaming".as_ref(),
                tiny.as_os_str(),
                i.to_string().as_ref(),
            ],
            42,
        );
    }
    for _ in 0..5 {
        for mode in ["exit-loading", "exit-encoding", "exit-in-progress"] {
            program.run(&[mode.as_ref(), tiny.as_os_str()], 42);
        }
    }
}

#[test]
fn an_app_can_rely_on_the_header() {
    let program = Program::build("tests/c/app.c");
    let (tiny, demo, other) = (
        tiny(),
        demo(),
        in_repository("tests/parity/naive_f32/model"),
    );
    program.run(
        &[
            "check".as_ref(),
            tiny.as_os_str(),
            other.as_os_str(),
            demo.as_os_str(),
        ],
        0,
    );
}

#[test]
fn an_app_learns_that_a_model_reads_text_only() {
    let program = Program::build("tests/c/app.c");
    let (model, demo) = (in_repository("tests/models/gemma3_text/model"), demo());
    program.run(
        &["text-only".as_ref(), model.as_os_str(), demo.as_os_str()],
        0,
    );
}

/// A panic, an MLX exception and a refusal for lack of memory, at the boundary, on the engine's
/// thread and within a conversation.
#[test]
fn failures_come_back_as_statuses_and_the_next_call_works() {
    let program = Program::build("tests/c/app.c");
    let (tiny, demo) = (tiny(), demo());
    program.run(&["faults".as_ref(), tiny.as_os_str(), demo.as_os_str()], 0);
}

#[test]
fn a_model_is_quantized_saved_and_loaded_back() {
    let program = Program::build("tests/c/app.c");
    let (tiny, demo, place) = (tiny(), demo(), TempDir::new().unwrap());
    program.run(
        &[
            "quantize".as_ref(),
            tiny.as_os_str(),
            demo.as_os_str(),
            place.path().as_os_str(),
        ],
        0,
    );
    let left: Vec<_> = fs::read_dir(&place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// Killed in the middle of saving, the process leaves no model, and the source unchanged.
#[test]
fn a_kill_leaves_no_partial_model() {
    let program = Program::build("tests/c/app.c");
    let place = TempDir::new().unwrap();
    let (source, target) = (place.path().join("source"), place.path().join("target"));
    copy_tiny(&source);
    let mut command = program.command(false);
    let status = command
        .args([
            "kill-saving".as_ref(),
            source.as_os_str(),
            target.as_os_str(),
        ])
        .env(LIBRARY_PATH, library_path())
        .status();
    assert_eq!(status.unwrap().signal(), Some(9));
    assert!(!target.exists());
    for entry in fs::read_dir(tiny()).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            fs::read(&path).unwrap() == fs::read(source.join(path.file_name().unwrap())).unwrap(),
            "{path:?}"
        );
    }
    // The path is free for the next attempt.
    let model = Model::load(&source, LoadOptions::default(), Op::default()).unwrap();
    model.save(&target, false, Op::default()).unwrap();
}

/// Every function that does not need an object from another.
#[test]
fn any_function_may_be_called_first() {
    let program = Program::build("tests/c/app.c");
    let tiny = tiny();
    for name in [
        "backend_available",
        "build_info",
        "cancel_new",
        "image_from_pixels",
        "memory_set_limits",
        "memory_stats_get",
        "memory_trim",
        "model_estimate",
        "model_inspect",
        "model_load",
        "resume",
        "set_log",
        "set_metallib_path",
        "suspend",
    ] {
        program.run(&["first".as_ref(), name.as_ref(), tiny.as_os_str()], 0);
    }
}

#[test]
fn threads_interfere_safely() {
    let program = Program::build("tests/c/stress.c");
    let tiny = tiny();
    for seed in ["1", "2"] {
        program.run(&[tiny.as_os_str(), "150".as_ref(), seed.as_ref()], 0);
    }
}

/// The tools detect a leak, an overflow, a use after free, and undefined arithmetic.
#[test]
fn sanitizers_and_valgrind_detect_faults() {
    let program = Program::build("tests/c/faulty.c");
    let seen: &[&str] = match watch() {
        Watch::Nothing => &[],
        Watch::Sanitizers => &["leak", "past-end", "freed", "overflow"],
        // It does not check arithmetic.
        Watch::Valgrind => &["leak", "past-end", "freed"],
    };
    program.run(&["nothing".as_ref()], 0);
    seen.iter()
        .for_each(|fault| drop(program.run(&[fault.as_ref()], SEEN)));
}

/// The tool that checks a running program.
#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Nothing,
    Sanitizers,
    Valgrind,
}

fn watch() -> Watch {
    match env::var("MOXIN_WATCH").as_deref() {
        Err(_) => Watch::Nothing,
        Ok("sanitizers") => Watch::Sanitizers,
        Ok("valgrind") => Watch::Valgrind,
        Ok(other) => panic!("MOXIN_WATCH is {other}; expected sanitizers or valgrind"),
    }
}

/// The exit status of a program with a detected fault.
const SEEN: i32 = 99;

/// The exit status of programs that end early, when much is not freed yet.
const IN_THE_MIDDLE: i32 = 42;

/// A C program built with the library that cargo built for these tests.
struct Program {
    path: PathBuf,
    _folder: TempDir,
}

impl Program {
    fn build(source: &str) -> Program {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("program");
        let libraries = library_folder();
        let mut command = compiler("CC", "cc");
        command
            .args(C99)
            .arg("-g")
            .arg("-I")
            .arg(in_repository("include"))
            .arg(in_repository(source))
            .arg("-o")
            .arg(&path);
        if watch() == Watch::Sanitizers {
            command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
        }
        command
            .arg("-L")
            .arg(&libraries)
            .arg(format!("-Wl,-rpath,{}", libraries.display()))
            .args(["-lmoxin_vlm", "-lm", "-pthread"]);
        succeed(&mut command);
        Program {
            path,
            _folder: folder,
        }
    }

    /// Runs it; it must end by itself, with this exit status.
    fn run(&self, arguments: &[&OsStr], status: i32) -> Output {
        let mut command = self.command(status != IN_THE_MIDDLE);
        let output = command
            .args(arguments)
            .env(LIBRARY_PATH, library_path())
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {}\n{errors}",
            output.status
        );
        output
    }

    /// Returns the program with its tool; without leak detection if it deliberately leaves things
    /// behind.
    fn command(&self, leaks: bool) -> Command {
        if watch() == Watch::Valgrind {
            let mut command = Command::new("valgrind");
            let leaks = if leaks {
                "--leak-check=full"
            } else {
                "--leak-check=no"
            };
            command.args([
                "--quiet",
                leaks,
                "--show-leak-kinds=definite",
                "--errors-for-leak-kinds=definite",
                "--num-callers=30",
            ]);
            // Threads take turns; otherwise one that spins would block the others.
            command
                .args(["--fair-sched=yes", &format!("--error-exitcode={SEEN}")])
                .arg(&self.path);
            // One thread, and no instructions that Valgrind does not support.
            command
                .env("OPENBLAS_NUM_THREADS", "1")
                .env("OPENBLAS_CORETYPE", "Haswell");
            return command;
        }
        let mut command = Command::new(&self.path);
        // Apple's compiler does not detect leaks.
        let leaks = u8::from(leaks && cfg!(target_os = "linux"));
        command.env("ASAN_OPTIONS", format!("exitcode={SEEN}:detect_leaks={leaks}:detect_stack_use_after_return=1:strict_string_checks=1"));
        command.env("LSAN_OPTIONS", format!("exitcode={SEEN}"));
        command.env(
            "UBSAN_OPTIONS",
            format!("exitcode={SEEN}:print_stacktrace=1"),
        );
        command
    }

    /// Returns the output of `describe --json` for other arguments.
    fn answers_to(&self, arguments: &[String]) -> Vec<Answer> {
        let arguments: Vec<&OsStr> = ["--json".as_ref()]
            .into_iter()
            .chain(arguments.iter().map(OsStr::new))
            .collect();
        serde_json::from_slice::<Answers>(&self.run(&arguments, 0).stdout)
            .unwrap()
            .answers
    }

    /// Returns the output of `describe --json`.
    fn answers(&self, flags: &[&str], picture: &Path, prompts: &[&str]) -> Vec<Answer> {
        let mut arguments: Vec<&OsStr> = flags.iter().map(OsStr::new).collect();
        let tiny = tiny();
        arguments.extend(["--json".as_ref(), tiny.as_os_str(), picture.as_os_str()]);
        prompts
            .iter()
            .for_each(|prompt| arguments.extend([OsStr::new("--prompt"), OsStr::new(*prompt)]));
        let output = self.run(&arguments, 0);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        serde_json::from_slice::<Answers>(&output.stdout)
            .unwrap()
            .answers
    }
}

/// Every architecture through the C ABI: the conversations of `tests/models`, and transformers'
/// tokens.
#[test]
fn describe_talks_with_every_model() {
    let program = Program::build("examples/c/describe.c");
    for name in [
        "paligemma",
        "paligemma2",
        "qwen2_vl",
        "qwen2_vl_untied",
        "qwen2_5_vl",
        "qwen2_5_vl_untied",
        "qwen2_vl/video_",
        "qwen2_5_vl/video_",
        "llava",
        "gemma3",
        "gemma3_saved",
        "gemma3_text",
        "smolvlm",
        "idefics3",
    ] {
        // The cases of videos are in files of their own.
        let (name, prefix) = name.split_once('/').unwrap_or((name, ""));
        let folder = in_repository("tests/models").join(name);
        let cases = fs::read(folder.join(format!("{prefix}cases.json"))).unwrap();
        let cases: serde_json::Value = serde_json::from_slice(&cases).unwrap();
        for (scenario, case) in cases.as_object().unwrap() {
            let mut arguments = vec![
                folder.join("model").display().to_string(),
                "--max-tokens".into(),
                "24".into(),
            ];
            let picture = |name: &serde_json::Value| {
                in_repository("tests/models/pictures")
                    .join(format!("{}.png", name.as_str().unwrap()))
            };
            let mut add =
                |option: &str, value: String| arguments.extend([option.to_owned(), value]);
            if let Some(text) = case["text"].as_str() {
                case["images"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .for_each(|name| add("--image", picture(name).display().to_string()));
                add("--prompt", text.into());
            }
            if let Some(tokens) = case["budget"]["max_tokens"].as_u64() {
                add("--max-image-tokens", tokens.to_string());
            }
            for message in case["messages"].as_array().into_iter().flatten() {
                let parts = message["content"].as_array().unwrap();
                for (i, part) in parts.iter().enumerate() {
                    let is_last_text = !parts[i + 1..].iter().any(|part| part["type"] == "text");
                    match (part["text"].as_str(), message["role"].as_str().unwrap()) {
                        (None, _) if part["type"] == "video" => {
                            let name = part["name"].as_str().unwrap();
                            let frames = in_repository("tests/models/videos").join(name);
                            add("--frames", frames.display().to_string());
                            add("--fps", part["fps"].to_string());
                        }
                        (None, _) => add("--image", picture(&part["name"]).display().to_string()),
                        (Some(text), "system") => add("--system", text.into()),
                        (Some(text), "assistant") => add("--assistant", text.into()),
                        (Some(text), _) if is_last_text && i + 1 == parts.len() => {
                            add("--prompt", text.into())
                        }
                        (Some(text), _) => add("--text", text.into()),
                    }
                }
            }
            if case["budget"]["tiles"] == false {
                arguments.insert(0, "--no-tiles".into());
            }
            // A picture after the last text has no text after it that asks.
            if arguments[arguments.len() - 2] != "--prompt" {
                arguments.extend(["--prompt".into(), String::new()]);
            }
            let greedy: Vec<u32> = serde_json::from_value(case["greedy"].clone()).unwrap();
            let answers = program.answers_to(&arguments);
            let tokens = &answers.last().unwrap().tokens;
            assert!(
                !tokens.is_empty() && greedy.starts_with(tokens),
                "{name} {scenario}: {tokens:?}, not {greedy:?}"
            );
        }
    }
}

#[derive(Deserialize)]
struct Answers {
    answers: Vec<Answer>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish: String,
}

fn assert_same(c: &[Answer], rust: &[Answer]) {
    assert_eq!(c.len(), rust.len());
    for (c, rust) in c.iter().zip(rust) {
        assert_eq!(
            (&c.text, &c.tokens, &c.finish),
            (&rust.text, &rust.tokens, &rust.finish)
        );
        assert_eq!(c.logprobs.len(), rust.logprobs.len());
        assert!(
            c.logprobs
                .iter()
                .zip(&rust.logprobs)
                .all(|(c, rust)| (c - rust).abs() <= 1e-6),
            "{c:?} {rust:?}"
        );
    }
}

/// Runs a conversation through the Rust API.
fn rust_answers(picture: Picture, prompts: &[&str], max_tokens: usize) -> Vec<Answer> {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let model =
        MODEL.get_or_init(|| Model::load(tiny(), LoadOptions::default(), Op::default()).unwrap());
    let session = model
        .session(GenerationOptions {
            max_tokens,
            ..Default::default()
        })
        .unwrap();
    session.add_image(picture).unwrap();
    let ask = |prompt: &&str| {
        session.add_text(Role::User, prompt).unwrap();
        let mut answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            finish: String::new(),
        };
        for event in session.generate() {
            match event.unwrap() {
                Event::Prefill { .. } => {}
                Event::Text {
                    text,
                    token,
                    logprob,
                    ..
                } => {
                    answer.text += &text;
                    answer.tokens.push(token);
                    answer.logprobs.push(logprob);
                }
                Event::Finished { reason, text } => {
                    answer.text += &text;
                    answer.finish = format!("{reason:?}");
                }
            }
        }
        answer
    };
    prompts.iter().map(ask).collect()
}

/// Writes the demo picture as a JPEG whose orientation is a quarter turn.
fn write_turned_jpeg(path: &Path) {
    let picture = Picture::open(demo(), &DecodeOptions::default()).unwrap();
    // TIFF, little-endian, with its directory at 8: one entry, tag 0x0112 (orientation), type 3 (16
    // bits), count 1, value 6; no next one.
    let exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut encoder = JpegEncoder::new(fs::File::create(path).unwrap());
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    encoder
        .write_image(
            picture.rgb(),
            picture.width(),
            picture.height(),
            ExtendedColorType::Rgb8,
        )
        .unwrap();
}
