//! Tests the result of `cargo xtask dist`: a folder that is moved before it is used, and its
//! archive. Programs are built with it in every way that the README and docs/packaging.md name, by the tools that users
//! have, and all must give the answers of the Rust API.
#![cfg(unix)]

mod programs;

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use moxin_vlm::{DecodeOptions, Event, GenerationOptions, LoadOptions, Model, Op, Picture, Role};

use programs::{compiler, succeed};

const HEADER: &str = include_str!("../include/moxin_vlm.h");
const CPP_HEADER: &str = include_str!("../include/moxin_vlm.hpp");
const README: &str = include_str!("../README.md");
const PACKAGING: &str = include_str!("../docs/packaging.md");
const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"];
const QUESTIONS: [&str; 2] = ["What is written?", "Describe the picture."];
const EXAMPLES: [&str; 3] = ["c/describe.c", "c/chat.c", "cpp/describe.cpp"];

// Programs.

#[test]
fn programs_build_with_the_lines_of_the_readme() {
    let folder = scratch("readme");
    for (fence, name) in [("```c\n", "ask.c"), ("```cpp\n", "ask.cpp")] {
        fs::write(folder.join(name), block(fence)).unwrap();
    }
    std::os::unix::fs::symlink(in_repository("models"), folder.join("models")).unwrap();
    let shells: Vec<&str> = [README, PACKAGING]
        .iter()
        .flat_map(|page| page.split("```sh\n").skip(1))
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block)
        .filter(|block| block.contains("-o ask"))
        .collect();
    assert_eq!(shells.len(), 5, "{shells:?}");
    for shell in shells {
        if shell.contains("pkg-config") && !has_pkg_config() {
            continue;
        }
        // All lines but those that make the package, which is there.
        let lines = shell
            .lines()
            .filter(|line| !line.starts_with("cargo ") && !line.starts_with("PREFIX="));
        let script: Vec<&str> = lines.collect();
        let (_, expected) = script.last().unwrap().split_once("./ask    # ").unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-ec", &script.join("\n")])
            .current_dir(&folder)
            .env("PREFIX", &prefix().folder);
        let answer = succeed(own_environment(&mut command));
        assert_eq!(answer.trim(), expected, "{shell}");
    }

    // The same lines build the examples.
    for example in EXAMPLES {
        let (compiler, source) = if example.ends_with(".c") {
            ("cc ", "ask.c")
        } else {
            ("c++ ", "ask.cpp")
        };
        let line = README
            .lines()
            .find(|line| line.starts_with(compiler))
            .unwrap()
            .split(" -o ")
            .next()
            .unwrap();
        let line = line.replace(
            source,
            &in_repository("examples").join(example).to_string_lossy(),
        ) + " -o program";
        let mut shell = Command::new("sh");
        succeed(own_environment(
            shell
                .args(["-c", &line])
                .current_dir(&folder)
                .env("PREFIX", &prefix().folder),
        ));
        assert_answers(&folder.join("program"), example);
    }
}

#[test]
fn programs_build_with_pkg_config() {
    if !has_pkg_config() {
        return;
    }
    let folder = scratch("pkg-config");
    for package in ["moxin_vlm", "moxin_vlm-static"] {
        for example in EXAMPLES {
            let program = folder.join("program");
            build_with_pkg_config(
                &in_repository("examples").join(example),
                package,
                &program,
                prefix(),
            );
            assert_eq!(
                needs_our_library(&program),
                package == "moxin_vlm",
                "{package}"
            );
            assert_answers(&program, example);
        }
    }
    // If the shared library is not installed, the usual flags for static linking are enough.
    let only_static = folder.join("only-static");
    succeed(
        Command::new("cp")
            .arg("-R")
            .arg(&prefix().folder)
            .arg(&only_static),
    );
    for entry in fs::read_dir(only_static.join("lib")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "a") {
            fs::remove_file(path).unwrap();
        }
    }
    let program = folder.join("program");
    let only_static = Prefix {
        folder: only_static,
    };
    build_with_pkg_config(
        &in_repository("examples/c/describe.c"),
        "--static moxin_vlm",
        &program,
        &only_static,
    );
    assert_answers(&program, "c/describe.c");
}

#[test]
fn programs_build_with_cmake() {
    let Some(cmake) = cmake() else { return };
    let folder = scratch("cmake");
    let mut project = "cmake_minimum_required(VERSION 3.16)\nproject(examples LANGUAGES C CXX)\nset(CMAKE_CXX_STANDARD 17)\n\
                       find_package(moxin_vlm 0.3 REQUIRED)\nfind_package(moxin_vlm REQUIRED)\n"
        .to_owned();
    let kinds = [
        ("shared", "moxin_vlm::moxin_vlm"),
        ("static", "moxin_vlm::static"),
    ];
    for (kind, target) in kinds {
        for (i, example) in EXAMPLES.iter().enumerate() {
            let source = in_repository("examples").join(example);
            project += &format!("add_executable({kind}{i} \"{}\")\n", source.display());
            project += &format!("target_link_libraries({kind}{i} PRIVATE {target})\n");
        }
    }
    fs::write(folder.join("CMakeLists.txt"), project).unwrap();
    configure_and_build(&cmake, &folder);
    for (kind, _) in kinds {
        for (i, example) in EXAMPLES.iter().enumerate() {
            let program = folder.join(format!("build/{kind}{i}"));
            assert_eq!(needs_our_library(&program), kind == "shared", "{kind}");
            assert_answers(&program, example);
        }
    }

    // The project of docs/packaging.md, and one that asks for a missing version.
    let readme = scratch("cmake-readme");
    fs::write(readme.join("ask.c"), block("```c\n")).unwrap();
    fs::write(readme.join("CMakeLists.txt"), block("```cmake\n")).unwrap();
    configure_and_build(&cmake, &readme);
    let answer = succeed(
        own_environment(&mut Command::new(readme.join("build/ask"))).current_dir(in_repository("")),
    );
    assert_eq!(answer, "The word FISH.\n");
    fs::write(
        readme.join("CMakeLists.txt"),
        block("```cmake\n").replace("moxin_vlm 0.3", "moxin_vlm 0.4"),
    )
    .unwrap();
    let output = configure(&cmake, &readme).output().unwrap();
    assert!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains(env!("CARGO_PKG_VERSION")),
        "{output:?}"
    );
}

#[test]
fn the_archive_is_the_folder() {
    let folder = scratch("archive");
    let (archive, checksum) = (
        prefix().archive(),
        prefix().archive().with_added_extension("sha256"),
    );
    let line = fs::read_to_string(checksum).unwrap();
    let name = archive.file_name().unwrap().to_str().unwrap();
    let sum = if cfg!(target_vendor = "apple") {
        "shasum -a 256"
    } else {
        "sha256sum"
    };
    let digits = succeed(
        Command::new("sh")
            .arg("-c")
            .arg(format!("{sum} {}", archive.display())),
    );
    assert_eq!(
        line,
        format!("{}  {name}\n", digits.split_whitespace().next().unwrap())
    );

    succeed(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&folder),
    );
    let unpacked = folder.join(name.strip_suffix(".tar.gz").unwrap());
    assert_eq!(listing(&unpacked), listing(&prefix().folder));
    succeed(
        Command::new("diff")
            .arg("-r")
            .arg(&unpacked)
            .arg(&prefix().folder),
    );
    if has_pkg_config() {
        let program = folder.join("program");
        build_with_pkg_config(
            &in_repository("examples/c/describe.c"),
            "moxin_vlm",
            &program,
            &Prefix { folder: unpacked },
        );
        assert_answers(&program, "c/describe.c");
    }
}

/// Ctrl-C during an answer ends the answer and not the program; while nothing is running it ends
/// the program.
#[test]
fn chat_ends_an_answer_on_ctrl_c() {
    if !has_pkg_config() {
        return;
    }
    let program = scratch("chat").join("program");
    build_with_pkg_config(
        &in_repository("examples/c/chat.c"),
        "moxin_vlm",
        &program,
        prefix(),
    );
    let cancelled = (0..20).any(|_| {
        let mut command = Command::new(&program);
        own_environment(&mut command)
            .arg(in_repository("models/tiny"))
            .arg(in_repository("models/demo.png"));
        let mut chat = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let interrupt =
            |chat: &Child| succeed(Command::new("kill").args(["-INT", &chat.id().to_string()]));
        let mut questions = chat.stdin.take().unwrap();
        let mut answers = BufReader::new(chat.stdout.take().unwrap());
        writeln!(questions, "{}", QUESTIONS[1]).unwrap();
        answers.read_exact(&mut [0; 4]).unwrap();
        interrupt(&chat);
        let mut rest = String::new();
        answers.read_line(&mut rest).unwrap();
        let asked_again = writeln!(questions, "{}", QUESTIONS[0]).is_ok();
        let mut second = String::new();
        answers.read_line(&mut second).unwrap();
        if !asked_again || second.is_empty() {
            chat.wait().unwrap();
            return false; // the answer was complete before the signal arrived, which therefore ended the program
        }
        interrupt(&chat);
        let output = chat.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("(cancelled"),
            "{output:?}"
        );
        assert_eq!(
            second,
            rust_answers().lines().next().unwrap().to_owned() + "\n",
            "the next question gets its answer"
        );
        true
    });
    assert!(cancelled, "no signal arrived in the middle of an answer");
}

// The libraries and headers.

#[test]
fn both_libraries_export_the_functions_of_the_header_and_nothing_else() {
    let code: String = HEADER
        .split("/*")
        .map(|part| part.split_once("*/").map_or(part, |(_, code)| code))
        .collect();
    let names = code.split('(').map(|part| {
        part.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .unwrap_or("")
    });
    let mut declared: Vec<&str> = names.filter(|name| name.starts_with("moxin_")).collect();
    declared.sort();
    assert!(declared.contains(&"moxin_session_step"));
    let forgotten: Vec<_> = declared
        .iter()
        .filter(|name| !CPP_HEADER.contains(*name))
        .collect();
    assert!(
        forgotten.is_empty(),
        "moxin_vlm.hpp does not use {forgotten:?}"
    );

    let shared = format!(
        "lib/{}moxin_vlm{}",
        env::consts::DLL_PREFIX,
        env::consts::DLL_SUFFIX
    );
    let apple = cfg!(target_vendor = "apple");
    for (file, arguments) in [
        (
            shared.as_str(),
            if apple {
                ["-g", "-U"]
            } else {
                ["-D", "--defined-only"]
            },
        ),
        (
            "lib/libmoxin_vlm.a",
            if apple {
                ["-g", "-U"]
            } else {
                ["-g", "--defined-only"]
            },
        ),
    ] {
        let text = succeed(
            Command::new("nm")
                .args(arguments)
                .arg(prefix().folder.join(file)),
        );
        let names = text
            .lines()
            .filter(|line| line.split(' ').count() == 3)
            .filter_map(|line| line.split(' ').next_back());
        let mut exported: Vec<&str> = names.map(|name| name.trim_start_matches('_')).collect();
        exported.sort();
        assert_eq!(exported, declared, "{file}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_shared_library_has_a_version_and_finds_mlx_beside_it() {
    let abi = HEADER
        .lines()
        .find_map(|line| line.strip_prefix("#define MOXIN_ABI_VERSION "))
        .unwrap();
    let lib = prefix().folder.join("lib");
    assert_eq!(
        fs::read_link(lib.join("libmoxin_vlm.so")).unwrap(),
        Path::new(&format!("libmoxin_vlm.so.{abi}"))
    );
    let file = format!("libmoxin_vlm.so.{abi}.{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        fs::read_link(lib.join(format!("libmoxin_vlm.so.{abi}"))).unwrap(),
        Path::new(&file)
    );

    let dynamic = succeed(Command::new("readelf").arg("-d").arg(lib.join(&file)));
    let values = |tag: &str| -> Vec<String> {
        let lines = dynamic.lines().filter(|line| line.contains(tag));
        lines
            .map(|line| line.split(['[', ']']).nth(1).unwrap().to_owned())
            .collect()
    };
    assert_eq!(values("(SONAME)"), [format!("libmoxin_vlm.so.{abi}")]);
    assert_eq!(values("(RUNPATH)"), ["$ORIGIN/moxin_vlm/mlx/lib"]);
    let system = [
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "libm.so.6",
        "libc.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "ld-linux-x86-64.so.2",
    ];
    let others: Vec<String> = values("(NEEDED)")
        .into_iter()
        .filter(|name| !system.contains(&name.as_str()))
        .collect();
    assert_eq!(others, ["libmlx.so"]);
}

#[test]
fn the_cpp_header_has_no_warnings() {
    let folder = scratch("hpp");
    let source = folder.join("twice.cpp");
    fs::write(
        &source,
        "#include \"moxin_vlm.hpp\"\n#include \"moxin_vlm.hpp\"\nint main() {}\n",
    )
    .unwrap();
    let mut compilers = vec![compiler("CXX", "c++")];
    if Command::new("clang++").arg("--version").output().is_ok() {
        compilers.push(Command::new("clang++"));
    }
    for mut command in compilers {
        for standard in ["-std=c++17", "-std=c++20"] {
            let include = prefix().folder.join("include");
            let mut again = Command::new(command.get_program());
            again
                .args(command.get_args())
                .args(STRICT)
                .args([standard, "-fsyntax-only", "-I"])
                .arg(include)
                .arg(&source);
            succeed(&mut again);
        }
        succeed(command.arg("--version"));
    }
}

#[test]
fn the_cpp_header_keeps_its_promises() {
    if !has_pkg_config() {
        return;
    }
    let program = scratch("wrapper").join("program");
    build_with_pkg_config(
        &in_repository("tests/cpp/wrapper.cpp"),
        "moxin_vlm",
        &program,
        prefix(),
    );
    let arguments = [
        "models/tiny",
        "models/demo.png",
        "tests/models/qwen2_vl/model",
    ];
    let mut command = Command::new(program);
    succeed(own_environment(command.args(arguments.map(in_repository))));
}

#[test]
fn licenses_of_all_contents_are_included() {
    let licenses = prefix().folder.join("licenses");
    let mut parts = vec!["LICENSE-MIT", "LICENSE-APACHE", "mlx-c/LICENSE"];
    if cfg!(target_os = "linux") {
        parts.extend([
            "mlx_cpu-0.32.2/LICENSE",
            "scipy_openblas32-0.3.34.481.3/LICENSE.txt",
        ]);
    }
    parts
        .iter()
        .for_each(|name| assert!(licenses.join(name).is_file(), "{name}"));
    let crates = listing(&licenses.join("crates"));
    for name in ["tokenizers-", "image-", "mlx-rs-", "libc-"] {
        assert!(
            crates
                .iter()
                .any(|path| path.starts_with(name) && path.ends_with("/ABOUT")),
            "{name}"
        );
    }
    assert!(
        !crates
            .iter()
            .any(|path| path.starts_with("cbindgen-") || path.starts_with("clap-")),
        "not linked: {crates:?}"
    );
}

// Packaging.

#[test]
fn a_killed_run_leaves_no_partial_package() {
    let folder = scratch("killed");
    let made = || -> Vec<String> {
        let names = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.contains("moxin-vlm-") && !name.ends_with("-lock"))
            .collect()
    };
    let mut killed = 0;
    for delay in [0, 300, 900, 1800] {
        let mut child = dist(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while made().is_empty() && begin.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(delay));
        if child.try_wait().unwrap().is_some() {
            break; // this machine is that fast
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let left = made();
        assert!(
            !left.is_empty() && left.iter().all(|name| name.starts_with(".moxin-vlm-part-")),
            "{left:?}"
        );
        killed += 1;
    }
    assert!(killed > 0);
    succeed(&mut dist(&folder));
    let left = made();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(
        left.iter().all(|name| name.starts_with("moxin-vlm-")),
        "{left:?}"
    );
}

/// The folder that `cargo xtask dist` made, moved to another place.
struct Prefix {
    folder: PathBuf,
}

impl Prefix {
    fn pkg_config(&self) -> PathBuf {
        self.folder.join("lib/pkgconfig")
    }

    fn archive(&self) -> PathBuf {
        let made = fs::read_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("dist/made")).unwrap();
        let mut files = made.map(|entry| entry.unwrap().path());
        files
            .find(|path| path.extension().is_some_and(|extension| extension == "gz"))
            .unwrap()
    }
}

fn prefix() -> &'static Prefix {
    static PREFIX: OnceLock<Prefix> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let made = scratch("made");
        let text = succeed(&mut dist(&made));
        assert!(text.contains("linking") && text.contains("MB"), "{text}");
        let names = fs::read_dir(&made)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let folder = names
            .into_iter()
            .find(|path| path.is_dir())
            .expect("a folder");
        let moved = scratch("moved").join("elsewhere");
        fs::rename(folder, &moved).unwrap();
        Prefix { folder: moved }
    })
}

/// `cargo xtask dist`, with the library that cargo built for these tests.
fn dist(output: &Path) -> Command {
    static XTASK: OnceLock<PathBuf> = OnceLock::new();
    let program = XTASK.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--profile",
            "chores",
            "--package",
            "xtask",
            "--message-format=json",
        ]);
        let messages = succeed(build.current_dir(in_repository("")));
        let messages = messages
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        PathBuf::from(
            messages
                .filter_map(|message| message["executable"].as_str().map(str::to_owned))
                .next()
                .expect("xtask"),
        )
    });
    let library = env::current_exe().unwrap().with_file_name("libmoxin_vlm.a");
    let mut command = Command::new(program);
    command
        .arg("dist")
        .arg("--output")
        .arg(output)
        .arg("--library")
        .arg(library);
    command
}

/// Returns an empty folder that stays after the tests, for inspection.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("dist")
        .join(name);
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns the first block of a kind in the README or docs/packaging.md.
fn block(fence: &str) -> &'static str {
    let page = if README.contains(fence) {
        README
    } else {
        PACKAGING
    };
    let (_, rest) = page.split_once(fence).expect(fence);
    rest.split_once("```").unwrap().0
}

fn build_with_pkg_config(source: &Path, package: &str, program: &Path, prefix: &Prefix) {
    let (compiler, standard) = if source.extension().unwrap() == "c" {
        ("cc", "-std=c99")
    } else {
        ("c++", "-std=c++17")
    };
    let strict = STRICT.join(" ");
    let (source, program) = (source.display(), program.display());
    let line = format!(
        "{compiler} {standard} {strict} {source} $(pkg-config --cflags --libs {package}) -o \
         {program}"
    );
    let mut shell = Command::new("sh");
    succeed(
        shell
            .args(["-c", &line])
            .env("PKG_CONFIG_PATH", prefix.pkg_config()),
    );
}

fn configure(cmake: &Path, project: &Path) -> Command {
    let mut command = Command::new(cmake);
    command
        .arg("-S")
        .arg(project)
        .arg("-B")
        .arg(project.join("build"));
    command.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().folder.display()));
    command
}

fn configure_and_build(cmake: &Path, project: &Path) {
    succeed(&mut configure(cmake, project));
    succeed(
        Command::new(cmake)
            .arg("--build")
            .arg(project.join("build")),
    );
}

/// Returns whether a program was linked with the shared library.
fn needs_our_library(program: &Path) -> bool {
    let mut command = if cfg!(target_vendor = "apple") {
        Command::new("otool")
    } else {
        Command::new("readelf")
    };
    let listing = succeed(
        command
            .arg(if cfg!(target_vendor = "apple") {
                "-L"
            } else {
                "-d"
            })
            .arg(program),
    );
    listing.contains("libmoxin_vlm")
}

/// Runs one of the examples and compares its output with the Rust API.
fn assert_answers(program: &Path, example: &str) {
    let (model, picture) = (
        in_repository("models/tiny"),
        in_repository("models/demo.png"),
    );
    let mut command = Command::new(program);
    own_environment(command.arg(model).arg(picture));
    let text = match example {
        "c/describe.c" => {
            let arguments = QUESTIONS.iter().flat_map(|question| ["--prompt", question]);
            let json = succeed(command.arg("--json").args(arguments));
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            json["answers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|answer| answer["text"].as_str().unwrap().to_owned() + "\n")
                .collect()
        }
        "c/chat.c" => {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            writeln!(child.stdin.take().unwrap(), "{}", QUESTIONS.join("\n\n")).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        }
        _ => succeed(command.args(QUESTIONS)),
    };
    assert_eq!(text, rust_answers(), "{example}");
}

/// Returns a line for each question.
fn rust_answers() -> &'static str {
    static ANSWERS: OnceLock<String> = OnceLock::new();
    ANSWERS.get_or_init(|| {
        let model = Model::load(
            in_repository("models/tiny"),
            LoadOptions::default(),
            Op::default(),
        )
        .unwrap();
        let session = model.session(GenerationOptions::default()).unwrap();
        session
            .add_image(
                Picture::open(in_repository("models/demo.png"), &DecodeOptions::default()).unwrap(),
            )
            .unwrap();
        let mut answers = String::new();
        for question in QUESTIONS {
            session.add_text(Role::User, question).unwrap();
            for event in session.generate() {
                if let Event::Text { text, .. } | Event::Finished { text, .. } = event.unwrap() {
                    answers += &text;
                }
            }
            answers += "\n";
        }
        assert!(answers.len() > 60, "{answers}");
        answers
    })
}

/// Returns the names of all files below a folder.
fn listing(folder: &Path) -> Vec<String> {
    let text = succeed(
        Command::new("find")
            .args([".", "!", "-type", "d"])
            .current_dir(folder),
    );
    let mut names: Vec<String> = text
        .lines()
        .map(|line| line.trim_start_matches("./").to_owned())
        .collect();
    names.sort();
    names
}

fn has_pkg_config() -> bool {
    let here = Command::new("pkg-config")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !here {
        skipped(
            "there is no pkg-config, so nothing was built with it; install pkgconf or pkg-config",
        );
    }
    here
}

/// Returns the system's CMake, or the one that the chores fetch.
fn cmake() -> Option<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args([
            "run",
            "--quiet",
            "--profile",
            "chores",
            "--package",
            "xtask",
            "--",
            "cmake",
        ])
        .current_dir(in_repository(""));
    let output = command.output().unwrap();
    if !output.status.success() {
        skipped(&format!(
            "there is no CMake, so nothing was built with it: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
        return None;
    }
    Some(PathBuf::from(
        String::from_utf8(output.stdout).unwrap().trim(),
    ))
}

/// Prints a reason past the test harness, which captures the output of passing tests.
/// `cargo xtask test` counts these lines.
fn skipped(why: &str) {
    writeln!(io::stdout().lock(), "\nSKIPPED: {}", why.replace('\n', " ")).unwrap();
}

/// A program must find the libraries by itself; cargo tells tests where they are.
fn own_environment(command: &mut Command) -> &mut Command {
    command
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("DYLD_FALLBACK_LIBRARY_PATH")
}
