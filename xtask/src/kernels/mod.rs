//! The tests of kernels/, where the library's cannot go: under AddressSanitizer, and on an Arm
//! processor. Where this one is that, one run is both.

mod emulator;

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo::{self, add_target, cargo};
use crate::setup;

/// An Arm system whose programs can be linked without any compiler for it: Rust brings its C
/// library and a linker.
const ARM: &str = "aarch64-unknown-linux-musl";

pub fn run() -> Result<()> {
    let host = cargo::host();
    let mut tests = cargo();
    // With a target folder of its own: what else is built there would be built anew because of the
    // variable.
    tests
        .args(["test", "--package", "moxin-vlm-kernels", "--target-dir"])
        .arg(setup::repository().join("target/kernels"));
    // Lets the stable compiler take the flags that begin with -Z.
    tests.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS");
    // A test asks for more memory than there is.
    tests.env("ASAN_OPTIONS", "allocator_may_return_null=1");
    // In this form the flags join those in .cargo/mlx.toml; the variable RUSTFLAGS would replace
    // them.
    tests.args([
        "--target",
        &host,
        "--config",
        &format!("target.{host}.rustflags=['-Zsanitizer=address']"),
    ]);
    println!("The kernels on this processor, under AddressSanitizer");
    if !cfg!(target_arch = "aarch64") {
        match arm() {
            Ok(emulator) => {
                println!(
                    "The kernels on an Arm processor with NEON, emulated by {}",
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

/// What it takes to build for Arm and to run that: the program that runs it.
fn arm() -> Result<PathBuf> {
    add_target(ARM)?;
    emulator::find()
}
