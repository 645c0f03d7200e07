//! CMake for the tests, which build programs with it: the system's, or on Linux the wheel that the set-up of MLX builds with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::step::Steps;
use super::{PART, cache_folder, native, remove, wheels};

/// Prints where it is.
pub fn run() -> Result<()> {
    println!("{}", find()?.display());
    Ok(())
}

fn find() -> Result<PathBuf> {
    let system = PathBuf::from("cmake");
    if runs(&system) {
        return Ok(system);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("there is no cmake: install it");
    }
    let pinned = wheels::pinned("cmake").context("no cmake among the wheels")?;
    let version = pinned.split_whitespace().next().unwrap_or_default().replace("==", "-");
    let home = cache_folder()?.join(version);
    let program = home.join("cmake/data/bin/cmake");
    if !runs(&program) {
        install(pinned, &home)?;
    }
    if !runs(&program) {
        bail!("{} does not run", program.display());
    }
    Ok(program)
}

fn runs(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Unpacks the wheel beside its folder, under the set-up's lock, and moves it there.
fn install(pinned: &str, home: &Path) -> Result<()> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let part = cache.join(format!("{PART}cmake-{}", std::process::id()));
    let outcome = build(pinned, &part, home);
    remove(&part).ok(); // else the next set-up does it
    outcome
}

fn build(pinned: &str, part: &Path, home: &Path) -> Result<()> {
    let (downloads, made) = (part.join("wheels"), part.join("made"));
    fs::create_dir_all(&downloads)?;
    let steps = Steps::new(part.with_file_name("cmake.log"), part.to_owned());
    wheels::check_python()?;
    wheels::download(&steps, pinned, &[], &downloads)?;
    wheels::unpack(&steps, &downloads, &made, &made)?;
    for name in ["cmake", "ctest"] {
        native::executable(made.join("cmake/data/bin").join(name))?;
    }
    remove(home)?;
    Ok(fs::rename(made, home)?)
}
