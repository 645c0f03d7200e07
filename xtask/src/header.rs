//! The C header: written by build.rs, copied to include/ and checked in. A test of the library
//! compares the two.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo::cargo, setup};

const NAME: &str = "moxin_vlm.h";

pub fn run() -> Result<()> {
    setup::ensure()?;
    let written = built_header()?;
    let folder = setup::repository().join("include");
    let checked_in = folder.join(NAME);
    let text = fs::read(&written).with_context(|| format!("cannot read {}", written.display()))?;
    if fs::read(&checked_in).is_ok_and(|present| present == text) {
        println!("include/{NAME} is up to date.");
        return Ok(());
    }
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&checked_in, &text))
        .with_context(|| format!("cannot write {}", checked_in.display()))?;
    println!("Wrote include/{NAME}");
    Ok(())
}

/// Returns the path of the header that build.rs wrote: in one of the output folders that cargo
/// reports.
fn built_header() -> Result<PathBuf> {
    let mut check = cargo();
    check.args([
        "check",
        "--package",
        "moxin-vlm",
        "--lib",
        "--examples",
        "--message-format=json-render-diagnostics",
    ]);
    let output = check
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the library does not build, see above");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let headers = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let folder = message.get("out_dir")?.as_str()?;
        Some(PathBuf::from(folder).join(NAME))
    });
    headers
        .into_iter()
        .find(|header| header.is_file())
        .with_context(|| format!("build.rs wrote no {NAME}"))
}
