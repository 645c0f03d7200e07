//! The C programs once more, watched: compiled with AddressSanitizer (which reports leaks too) and UndefinedBehaviorSanitizer, and run by
//! Valgrind, which also sees what the library itself reads and writes. Neither is told to overlook anything.
//!
//! The tests with Valgrind are slow and ignored here; `cargo xtask test` runs all but `the_whole_of_abi_under_valgrind`, where there is a
//! Valgrind.
#![cfg(unix)]

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use moxin_vlm::{DecodeOptions, Picture};
use tempfile::TempDir;

const ABI: &str = include_str!("c/abi.c");
const FAULTS: [&str; 4] = ["leak", "past-end", "freed", "overflow"];

/// The exit status of a program in which Valgrind saw an error.
const SEEN: i32 = 99;

fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn path(name: &str) -> String {
    in_repository(name).into_os_string().into_string().unwrap()
}

// AddressSanitizer and UndefinedBehaviorSanitizer.

#[test]
fn abi_under_the_sanitizers() {
    let program = Program::build("tests/c/abi.c", Watch::Sanitizers);
    let modes = modes();
    assert!(modes.iter().any(|mode| mode[0] == "check"), "{modes:?}");
    for arguments in modes {
        // These end the process in the middle of things.
        let status = if arguments[0].starts_with("exit-") { 42 } else { 0 };
        program.succeed(&arguments, status);
    }
}

#[test]
fn describe_under_the_sanitizers() {
    describe(&Program::build("examples/c/describe.c", Watch::Sanitizers), "16");
}

#[test]
fn the_sanitizers_see_faults() {
    let program = Program::build("tests/c/faulty.c", Watch::Sanitizers);
    for fault in FAULTS {
        // Leaks are looked for on Linux only.
        if fault != "leak" || cfg!(target_os = "linux") {
            let output = program.run(&[fault.into()]);
            assert!(!output.status.success(), "{fault} passes");
        }
    }
}

// Valgrind.

#[test]
#[ignore = "needs Valgrind"]
fn abi_under_valgrind() {
    let program = Program::build("tests/c/abi.c", Watch::Valgrind);
    let calls = modes().into_iter().find(|mode| mode[0] == "calls").expect("abi.c has the mode `calls`");
    program.succeed(&calls, 0);
}

#[test]
#[ignore = "needs Valgrind and some minutes"]
fn the_whole_of_abi_under_valgrind() {
    let program = Program::build("tests/c/abi.c", Watch::Valgrind);
    for arguments in modes().into_iter().filter(|mode| !mode[0].starts_with("exit-")) {
        program.succeed(&arguments, 0);
    }
}

#[test]
#[ignore = "needs Valgrind"]
fn describe_under_valgrind() {
    describe(&Program::build("examples/c/describe.c", Watch::Valgrind), "3");
}

#[test]
#[ignore = "needs Valgrind"]
fn valgrind_sees_faults() {
    let program = Program::build("tests/c/faulty.c", Watch::Valgrind);
    // Arithmetic it does not watch.
    for fault in FAULTS.into_iter().filter(|fault| *fault != "overflow") {
        program.succeed(&[fault.into()], SEEN);
    }
}

/// An answer and a second one, and a mistake: on every way out all is freed.
fn describe(program: &Program, max_tokens: &str) {
    let (tiny, demo) = (path("models/tiny"), path("models/demo.png"));
    let question = ["--max-tokens", max_tokens, "--prompt", "How many shapes are there?", "--prompt", "Describe the picture."];
    let arguments = |picture: &str| [&[tiny.as_str(), picture][..], &question].concat().into_iter().map(String::from).collect::<Vec<_>>();
    program.succeed(&arguments(&demo), 0);
    program.succeed(&arguments(&tiny), 1);
}

/// The ways to run abi.c, as the comment at its top lists them: each a mode and its arguments. A new one is found here by itself.
fn modes() -> Vec<Vec<String>> {
    let lines = ABI.lines().map_while(|line| if line == " */" { None } else { Some(line) });
    let usages = lines.filter_map(|line| line.strip_prefix(" *   abi "));
    let words = |usage: &str| usage.split("  ").next().unwrap_or_default().split(' ').map(argument).collect();
    usages.map(words).collect()
}

fn argument(word: &str) -> String {
    match word {
        "MODEL" => path("models/tiny"),
        "IMAGE" => path("models/demo.png"),
        "RGB" | "WIDTH" | "HEIGHT" | "MILLISECONDS" => word.into(),
        mode if mode.chars().all(|c| c.is_ascii_lowercase() || c == '-') => mode.into(),
        other => panic!("abi.c takes {other}, which tests/sanitize.rs does not know"),
    }
}

/// What runs beside a program.
#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Sanitizers,
    Valgrind,
}

/// A C program built against the library that cargo built for these tests.
struct Program {
    folder: TempDir,
    watch: Watch,
    size: [String; 2],
}

impl Program {
    fn build(source: &str, watch: Watch) -> Program {
        let folder = TempDir::new().unwrap();
        let picture = Picture::open(in_repository("models/demo.png"), &DecodeOptions::default()).unwrap();
        fs::write(folder.path().join("RGB"), picture.rgb()).unwrap();
        let program = Program { folder, watch, size: [picture.width().to_string(), picture.height().to_string()] };

        let choice = env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut words = choice.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or("cc"));
        command.args(words).args(["-std=c99", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
        if watch == Watch::Sanitizers {
            command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]);
        }
        command.arg("-I").arg(in_repository("include")).arg(in_repository(source)).arg("-o").arg(program.path());
        command.arg("-L").arg(library_folder()).args(["-lmoxin_vlm", "-lm", "-pthread"]);
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
        program
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("program")
    }

    /// Runs it; it must end by itself, with this exit status, which no report of a fault has.
    fn succeed(&self, arguments: &[String], status: i32) {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}\n{errors}", output.status);
    }

    fn run(&self, arguments: &[String]) -> Output {
        let mut command = match self.watch {
            Watch::Sanitizers => Command::new(self.path()),
            Watch::Valgrind => {
                let mut command = Command::new("valgrind");
                command.args(["--quiet", "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
                // Threads take turns; without this one that spins would hold up the others.
                command.args([&format!("--error-exitcode={SEEN}"), "--fair-sched=yes", "--num-callers=30"]);
                command.arg(self.path());
                command
            }
        };
        for argument in arguments {
            match argument.as_str() {
                "RGB" => command.arg(self.folder.path().join("RGB")),
                "WIDTH" => command.arg(&self.size[0]),
                "HEIGHT" => command.arg(&self.size[1]),
                "MILLISECONDS" => command.arg("5"),
                _ => command.arg(argument),
            };
        }
        // A process that ends in the middle of things frees nothing.
        let leaks = cfg!(target_os = "linux") && !arguments[0].starts_with("exit-");
        command.env("ASAN_OPTIONS", format!("detect_leaks={}:detect_stack_use_after_return=1:strict_string_checks=1", u8::from(leaks)));
        command.env("UBSAN_OPTIONS", "print_stacktrace=1").env(LIBRARY_PATH, library_path());
        // One thread, and no instructions that Valgrind does not know.
        command.env("OPENBLAS_NUM_THREADS", "1").env("OPENBLAS_CORETYPE", "Haswell");
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }
}

/// Cargo puts the shared library beside the tests that it is built for.
fn library_folder() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

const LIBRARY_PATH: &str = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// The library of these tests first: cargo's own search path begins with the folder of what `cargo build` made, maybe long ago.
fn library_path() -> OsString {
    let others = env::var_os(LIBRARY_PATH).unwrap_or_default();
    let others = env::split_paths(&others).filter(|path| path.as_os_str() != OsStr::new(""));
    env::join_paths([library_folder()].into_iter().chain(others)).unwrap()
}
