//! Sets linker arguments.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
