//! See the crate's documentation.

use std::env;

fn main() {
    println!("cargo::rerun-if-env-changed=MOXIN_MLX");
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    // `.cargo/mlx.toml` sets the variable.
    if system == "linux" && env::var_os("MOXIN_MLX").is_none() {
        println!(
            "cargo::error=MLX is not set up for this project. Run `cargo install moxin-vlm-setup`, \
             then `moxin-vlm-setup` in the project's folder (in moxin-vlm's own repository: `cargo \
             xtask setup`)"
        );
    }
}
