//! The set-up of MLX, for this repository.

use std::fs;
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

/// Unpacks a wheel, given in pip's format with its hash, into a folder of the cache folder, unless
/// the folder exists.
pub fn wheel(home: &Path, requirement: &str) -> Result<()> {
    let build = |part: &Path| {
        let (downloads, made) = (part.join("wheels"), part.join("made"));
        fs::create_dir_all(&downloads)?;
        fs::create_dir_all(&made)?;
        let steps = step::Steps::new(part.with_file_name("wheel.log"), part.to_owned());
        wheels::check_python()?;
        wheels::download(&steps, requirement, &[], &downloads)?;
        wheels::unpack(&steps, &downloads, &made, &made)?;
        Ok(made)
    };
    make(home, || home.is_dir(), build)
}
