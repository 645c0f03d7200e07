//! The Rust declarations of mlx-c, written from its headers with bindgen as the build script of
//! mlx-sys writes them. Those for Linux are part of the set-up, so that it needs no bindgen.
//!
//! bindgen finds libclang through an environment variable, so it runs in a process of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, step::Steps, wheels};

/// The bindings in the set-up, below the root of the repository.
const FILE: &str = "setup/bindings/x86_64-unknown-linux-gnu.rs";

#[derive(clap::Args)]
pub struct Options {
    /// Only check that the bindings in the set-up are those of mlx-sys
    #[arg(long)]
    check: bool,
}

/// The arguments of the process that runs bindgen.
#[derive(clap::Args)]
pub struct Generate {
    mlx_c: PathBuf,
    shim: PathBuf,
    compiler_headers: PathBuf,
    output: PathBuf,
}

/// Returns what this chore lacks for `cargo xtask test`.
pub fn lacks() -> Option<String> {
    (!cfg!(all(target_os = "linux", target_arch = "x86_64")))
        .then(|| "x86-64 Linux, for which the bindings are".to_owned())
}

/// Writes the bindings for Linux, or compares them.
pub fn run(options: Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let steps = Steps::new(folder.path().join("log"), folder.path().to_owned());
    let shim = folder.path().join("half_shim.h");
    fs::write(&shim, setup::half_shim())?;
    let written = folder.path().join("bindings.rs");
    let mut command = generate(&libclang()?, &shim, &compiler_headers()?, &written)?;
    steps.expect(&mut command, "cannot write the Rust bindings of mlx-c")?;

    let place = setup::repository().join(FILE);
    if !options.check {
        fs::create_dir_all(place.parent().unwrap_or(&place))?;
        fs::copy(&written, &place)?;
        println!("Wrote {FILE}");
    } else if fs::read(&written)? != fs::read(&place)? {
        bail!("{FILE} is out of date; write it with: cargo xtask bindings");
    }
    Ok(())
}

/// Returns the command that writes bindings. Its environment may set BINDGEN_EXTRA_CLANG_ARGS.
pub fn generate(
    libclang: &Path,
    shim: &Path,
    compiler_headers: &Path,
    output: &Path,
) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command
        .arg("generate-bindings")
        .arg(setup::mlx_c_sources(setup::repository())?)
        .args([shim, compiler_headers, output])
        .env("LIBCLANG_PATH", libclang);
    Ok(command)
}

/// Runs in the process that [`generate`] describes.
pub fn run_bindgen(options: Generate) -> Result<()> {
    let mut headers = Vec::new();
    for entry in fs::read_dir(options.mlx_c.join("mlx/c"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            headers.push(path.to_string_lossy().into_owned());
        }
    }
    headers.sort();

    bindgen::Builder::default()
        .headers(headers)
        .rust_target("1.73".parse().context("bindgen knows Rust 1.73")?)
        .clang_arg(format!("-I{}", options.mlx_c.display()))
        .clang_args(["-include", &options.shim.to_string_lossy()])
        // The libclang wheel has no headers of its own.
        .clang_args(["-isystem", &options.compiler_headers.to_string_lossy()])
        // Only mlx-c's own: those of the C library differ between systems.
        .allowlist_item("_?mlx_.*|MLX_.*|_?float16_t|_?bfloat16_t")
        .formatter(bindgen::Formatter::Prettyplease)
        .layout_tests(false)
        .generate()?
        .write_to_file(options.output)?;
    Ok(())
}

/// Returns libclang in the cache folder, after getting its wheel if it is missing.
fn libclang() -> Result<PathBuf> {
    const WHEEL: &str = include_str!("libclang.txt");
    let home = setup::cache_folder()?.join("libclang-18.1.1");
    setup::wheel(&home, WHEEL)?;
    wheels::find_below(&home, "native/libclang.so")
}

/// Returns the folder with the C++ compiler's own headers, such as `stddef.h`.
fn compiler_headers() -> Result<PathBuf> {
    let output = Command::new("c++")
        .arg("-print-file-name=include")
        .output()
        .context("cannot run c++")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}
