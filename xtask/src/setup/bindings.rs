//! Writes `bindings.rs` from mlx-c's headers with bindgen, like the build script of mlx-sys.
//!
//! bindgen finds libclang through an environment variable, so it runs in a process of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::native::Compiler;
use super::step::Steps;
use super::wheels::find_below;

/// This file: a change in it makes a new set-up.
pub const RECIPE: &str = include_str!("bindings.rs");

#[derive(clap::Args)]
pub struct Options {
    mlx_c: PathBuf,
    shim: PathBuf,
    compiler_headers: String,
    output: PathBuf,
}

/// Writes `bindings.rs` into a new folder.
pub fn generate(
    steps: &Steps,
    tools: &Path,
    mlx_c: &Path,
    recipe: &Path,
    compiler: &Compiler,
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut command = Command::new(env::current_exe()?);
    command
        .arg("bindings")
        .arg(mlx_c)
        .arg(recipe.join("half_shim.h"))
        .arg(compiler.headers()?)
        .arg(folder.join("bindings.rs"))
        .env("LIBCLANG_PATH", find_below(tools, "native/libclang.so")?);
    steps.expect(&mut command, "cannot write the Rust bindings of mlx-c")?;
    Ok(())
}

/// Runs in the process that `generate` starts.
pub fn run(options: Options) -> Result<()> {
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
        .clang_args(["-isystem", &options.compiler_headers]) // the libclang wheel has none
        .blocklist_function("malloc|realloc")
        .generate()?
        .write_to_file(options.output)?;
    Ok(())
}
