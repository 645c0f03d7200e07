//! Runs the tests of kernels/ where the library's own cannot run: under AddressSanitizer, and on an
//! Arm CPU. On an Arm machine one run covers both.

mod emulator;

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo::{self, add_target, cargo};
use crate::setup;

/// An Arm system whose programs can be linked without a compiler for it: Rust includes its C
/// library and a linker.
const ARM: &str = "aarch64-unknown-linux-musl";

pub fn run() -> Result<()> {
    let host = cargo::host();
    let mut tests = cargo();
    // With a target folder of its own, because the variable would cause other builds there to start
    // over.
    tests
        .args(["test", "--package", "moxin-vlm-kernels", "--target-dir"])
        .arg(setup::repository().join("target/kernels"));
    // Makes the stable compiler accept flags that start with -Z.
    tests.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS");
    // A test asks for more memory than exists.
    tests.env("ASAN_OPTIONS", "allocator_may_return_null=1");
    // In this form the flags are added to those in .cargo/mlx.toml; the variable RUSTFLAGS would
    // replace them.
    tests.args([
        "--target",
        &host,
        "--config",
        &format!("target.{host}.rustflags=['-Zsanitizer=address']"),
    ]);
    println!("The kernels on this CPU, under AddressSanitizer");
    if !cfg!(target_arch = "aarch64") {
        match arm() {
            Ok(emulator) => {
                println!(
                    "The kernels on an Arm CPU with NEON, emulated by {}",
                    emulator.display()
                );
                tests.args([
                    "--target",
                    ARM,
                    "--config",
                    &format!("target.{ARM}.linker='rust-lld'"),
                ]);
                tests.args([
                    "--config",
                    &format!("target.{ARM}.runner=['{}']", emulator.display()),
                ]);
            }
            Err(error) => println!("SKIPPED: the kernels with NEON: {error:#}"),
        }
    }
    cargo::run(&mut tests)
}

/// Prepares to build for Arm and returns the program that runs the result.
fn arm() -> Result<PathBuf> {
    add_target(ARM)?;
    emulator::find()
}
