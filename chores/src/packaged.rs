//! Tests the crates as they are published: packages them, unpacks them outside of the repository,
//! and does what the README tells a Rust user to do.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use crate::cargo::{self, cargo};
use crate::setup;

const CRATES: [&str; 3] = ["moxin-vlm-check-setup", "moxin-vlm", "moxin-vlm-setup"];
const ANSWER: &str = "Three.";

pub fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let version = unpack(folder.path())?;
    let program = folder.path().join("my-program");
    write_program(&program, &version)?;

    println!("Without the set-up, the build must say what to do");
    let output = build(&program, "build").output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success()
            && text.contains("cargo install moxin-vlm-setup")
            && !text.contains("mlx-sys"),
        "the build without the set-up does not say so:\n{text}"
    );

    println!("moxin-vlm-setup, in the program's folder");
    let installed = folder.path().join("installed");
    let mut install = cargo();
    cargo::run(
        install
            .args(["install", "--locked", "--debug", "--path"])
            .arg(folder.path().join("moxin-vlm-setup"))
            .arg("--root")
            .arg(&installed)
            .current_dir(folder.path()),
    )?;
    cargo::run(Command::new(installed.join("bin/moxin-vlm-setup")).current_dir(&program))?;

    println!("The README's program");
    let output = build(&program, "run").output()?;
    let answer = String::from_utf8_lossy(&output.stdout);
    ensure!(
        answer.trim() == ANSWER,
        "the program printed {answer:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("It printed {ANSWER}");

    println!("With RUSTFLAGS, cargo ignores the set-up: the build must say so");
    let output = build(&program, "build")
        .env("RUSTFLAGS", "-Dwarnings")
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains("RUSTFLAGS") && !text.contains("mlx-sys"),
        "the build with RUSTFLAGS does not name it:\n{text}"
    );
    Ok(())
}

/// Packages the crates and unpacks them below a folder, each under its name without the version,
/// which is returned.
fn unpack(folder: &Path) -> Result<String> {
    let metadata = cargo::metadata(&["--no-deps"])?;
    let target = cargo::target_folder(&metadata)?;
    let version = cargo::version(&metadata)?;
    let mut package = cargo();
    package.args(["package", "--no-verify", "--allow-dirty"]);
    for name in CRATES {
        package.args(["--package", name]);
    }
    cargo::run(&mut package)?;
    for name in CRATES {
        let archive = target.join(format!("package/{name}-{version}.crate"));
        let file = File::open(&archive).with_context(|| archive.display().to_string())?;
        tar::Archive::new(GzDecoder::new(file)).unpack(folder)?;
        fs::rename(folder.join(format!("{name}-{version}")), folder.join(name))?;
    }
    Ok(version)
}

/// Writes a cargo project with the README's program, beside a copy of the small model.
fn write_program(program: &Path, version: &str) -> Result<()> {
    let readme = fs::read_to_string(setup::repository().join("README.md"))?;
    let (_, rest) = readme.split_once("```rust\n").context("README.md")?;
    let (source, _) = rest.split_once("```").context("README.md")?;
    fs::create_dir_all(program.join("src"))?;
    fs::write(program.join("src/main.rs"), source)?;
    // The crates are not in the registry yet.
    let patches = CRATES[..2]
        .iter()
        .map(|name| format!("{name} = {{ path = \"../{name}\" }}\n"));
    let patches: String = patches.collect();
    // Little is compiled without optimization, and one answer needs none.
    let manifest = format!(
        "[package]\nname = \"my-program\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nmoxin-vlm = \"{version}\"\n\n[patch.crates-io]\n{patches}\n\
         [profile.dev]\ndebug = false\n"
    );
    fs::write(program.join("Cargo.toml"), manifest)?;
    fs::copy(
        setup::repository().join("Cargo.lock"),
        program.join("Cargo.lock"),
    )?;
    let models = setup::repository().join("models");
    std::os::unix::fs::symlink(models, program.join("models"))?;
    Ok(())
}

/// Returns a cargo command in the program's folder, which shares the repository's target folder.
fn build(program: &Path, verb: &str) -> Command {
    let mut command = cargo();
    command
        .arg(verb)
        .current_dir(program)
        .env("CARGO_TARGET_DIR", setup::repository().join("target"))
        .env_remove("MOXIN_MLX")
        .env_remove("RUSTFLAGS");
    command
}
