//! Python environments in the cache folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::setup::step::Steps;

/// Returns the Python of an environment with these packages, after installing it if it is missing.
/// A marker shows that it is complete.
pub fn environment(steps: &Steps, cache: &Path, name: &str, requirements: &str) -> Result<PathBuf> {
    let home = cache.join(format!("{name}-{}", hash(requirements)));
    let (python, complete) = (home.join("bin/python"), home.join("complete"));
    if complete.is_file() {
        return Ok(python);
    }
    steps.say(&format!("installing {name} (minutes)"));
    fs::create_dir_all(&home)?;
    steps.expect(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home),
        "no Python environment could be made",
    )?;
    let list = home.join("requirements.txt");
    fs::write(&list, requirements)?;
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--requirement",
    ])
    .arg(&list);
    steps.expect(&mut pip, "pip could not install it")?;
    fs::write(complete, "")?;
    Ok(python)
}

/// Returns a short hash of what an environment consists of.
pub fn hash(content: &str) -> String {
    let digest = Sha256::digest(content);
    digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
