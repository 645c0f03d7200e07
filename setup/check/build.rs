//! See the crate's documentation.

use std::env;

fn main() {
    println!("cargo::rerun-if-env-changed=MOXIN_MLX");
    let vendor = env::var("CARGO_CFG_TARGET_VENDOR").unwrap_or_default();
    // `.cargo/mlx.toml` defines the cfg and the variable.
    if vendor == "apple" || env::var_os("CARGO_CFG_MOXIN_MLX").is_some() {
        return;
    }
    if env::var_os("MOXIN_MLX").is_some() {
        println!(
            "cargo::error=The compiler does not get the flags in .cargo/mlx.toml. If RUSTFLAGS is \
             set, unset it, or add the flags to it. Otherwise the file is old: run \
             `moxin-vlm-setup` again (here: `cargo xtask setup`)"
        );
    } else {
        println!(
            "cargo::error=MLX is not set up for this project. Run `cargo install moxin-vlm-setup`, \
             then `moxin-vlm-setup` in the project's folder (in moxin-vlm's own repository: `cargo \
             xtask setup`)"
        );
    }
}
