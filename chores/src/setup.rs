//! The set-up of MLX, for this repository.

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use moxin_vlm_setup::{
    apt, cache_folder, cmake, executable, half_shim, make, mlx_c_sources, openblas, remove, step,
    wheels,
};

/// Returns the root of the repository.
pub fn repository() -> &'static Path {
    let chores = Path::new(env!("CARGO_MANIFEST_DIR"));
    chores.parent().unwrap_or(chores)
}

/// Gets MLX if it is missing; silent otherwise. Returns its folder if MLX needs a set-up.
pub fn ensure() -> Result<Option<PathBuf>> {
    moxin_vlm_setup::ensure(repository())
}
