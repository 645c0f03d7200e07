//! Writes the C header to OUT_DIR. `cargo xtask header` copies it to include/, and a test compares
//! the two.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=src/ffi");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let builder = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/mod.rs"));
    builder
        .generate()
        .expect("the C header")
        .write_to_file(out.join("moxin_vlm.h"));

    // `cargo xtask setup` sets the location of MLX. Its run path in cargo's configuration is lost
    // if RUSTFLAGS is set.
    if let Some(libdir) = env::var_os("DEP_MLX_LIBDIR") {
        println!(
            "cargo::rustc-link-arg=-Wl,-rpath,{}",
            libdir.to_string_lossy()
        );
    }

    // rustc exports the C functions of every crate, and mlx-rs has one,
    // `default_mlx_error_handler`. Apple's linker has no such option; `cargo xtask dist` links with
    // an export list of its own on all systems.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
}
