//! CMake for the tests, which build programs with it: the system's, or on Linux the wheel that the
//! set-up of MLX uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::step::{Steps, runs};
use crate::{cache_folder, make, native, wheels};

/// Prints its path.
pub fn run() -> Result<()> {
    println!("{}", find()?.display());
    Ok(())
}

/// Returns its path, after getting it if the system has none.
pub fn find() -> Result<PathBuf> {
    let system = PathBuf::from("cmake");
    if runs(&system) {
        return Ok(system);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("there is no cmake: install it");
    }
    let pinned = wheels::pinned("cmake").context("no cmake among the wheels")?;
    let version = pinned
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .replace("==", "-");
    let home = cache_folder()?.join(version);
    let program = home.join("cmake/data/bin/cmake");
    if !runs(&program) {
        make(&home, || runs(&program), |part| build(pinned, part))?;
    }
    if !runs(&program) {
        bail!("{} does not run", program.display());
    }
    Ok(program)
}

/// Unpacks the wheel.
fn build(pinned: &str, part: &Path) -> Result<PathBuf> {
    let (downloads, made) = (part.join("wheels"), part.join("made"));
    fs::create_dir_all(&downloads)?;
    let steps = Steps::new(part.with_file_name("cmake.log"), part.to_owned());
    wheels::check_python()?;
    wheels::download(&steps, pinned, &[], &downloads)?;
    wheels::unpack(&steps, &downloads, &made, &made)?;
    for name in ["cmake", "ctest"] {
        native::executable(made.join("cmake/data/bin").join(name))?;
    }
    Ok(made)
}
