//! Runs compilers and other programs for tests, and finds the files that they use.
#![allow(dead_code)] // each test uses some of it

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Flags for C programs.
pub const C99: [&str; 5] = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// The environment variable with the folders of shared libraries.
pub const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Returns `$CC` or `$CXX`, which may have flags, or the system's compiler.
pub fn compiler(variable: &str, usual: &str) -> Command {
    let choice = env::var(variable).unwrap_or_else(|_| usual.into());
    let mut words = choice.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(usual));
    command.args(words);
    command
}

/// Returns the output of a program, which must succeed.
pub fn succeed(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the path of a file in the repository.
pub fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns the path of the small model.
pub fn tiny() -> PathBuf {
    in_repository("models/tiny")
}

/// Returns the path of a picture for it.
pub fn demo() -> PathBuf {
    in_repository("models/demo.png")
}

/// Copies the small model into a new folder.
pub fn copy_tiny(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for entry in fs::read_dir(tiny()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
}

/// Cargo puts the shared library next to the tests that it is built for.
pub fn library_folder() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// Returns a search path with the library of these tests first: cargo's own, which precedes a
/// program's, starts with the folder of an earlier `cargo build`.
pub fn library_path() -> OsString {
    let others = env::var_os(LIBRARY_PATH).unwrap_or_default();
    let others = env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    env::join_paths([library_folder()].into_iter().chain(others)).unwrap()
}
