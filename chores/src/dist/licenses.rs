//! `licenses/`: our own, and those of everything that the libraries contain.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::setup;

/// The prefixes of license file names, in lower case.
const NAMES: [&str; 5] = ["licen", "copying", "copyright", "notice", "unlicense"];

pub fn write(metadata: &Value, mlx: Option<&Path>, folder: &Path) -> Result<()> {
    copy(setup::repository(), folder)?;
    let crates = folder.join("crates");
    for package in linked_packages(metadata)? {
        let manifest = Path::new(
            package["manifest_path"]
                .as_str()
                .context("a crate without a manifest")?,
        );
        let source = manifest.parent().context("a manifest without a folder")?;
        let name = format!("{}-{}", text(package, "name"), text(package, "version"));
        let destination = crates.join(&name);
        copy(source, &destination)?;
        let about = format!(
            "{name}\nlicence: {}\nsource: {}\n",
            text(package, "license"),
            text(package, "repository")
        );
        fs::write(destination.join("ABOUT"), about)?;
        if text(package, "name") == "mlx-sys" {
            copy(&source.join("src/mlx-c"), &folder.join("mlx-c"))?;
        }
    }
    if let Some(mlx) = mlx {
        for entry in fs::read_dir(mlx)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Some(wheel) = name.strip_suffix(".dist-info") {
                copy(&path.join("licenses"), &folder.join(wheel))?;
            }
        }
    }
    Ok(())
}

/// Returns the crates that are linked into the library: itself, and its run-time dependencies.
fn linked_packages(metadata: &Value) -> Result<Vec<&Value>> {
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo resolves nothing")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo knows no packages")?;
    let root = packages
        .iter()
        .find(|package| package["name"] == "moxin-vlm")
        .context("cargo knows no moxin-vlm")?;
    let mut waiting = vec![root["id"].as_str().context("a package without an id")?];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        let Some(node) = nodes.iter().find(|node| node["id"] == id) else {
            continue;
        };
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            let Some(id) = dependency["pkg"].as_str() else {
                continue;
            };
            if kinds.any(|kind| kind["kind"].is_null()) && seen.insert(id) {
                waiting.push(id);
            }
        }
    }
    Ok(packages
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| seen.contains(id)))
        .collect())
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or("unknown")
}

/// Copies the licenses in a folder.
fn copy(source: &Path, destination: &Path) -> Result<()> {
    fs::create_dir_all(destination)?;
    for entry in
        fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file()
            && NAMES
                .iter()
                .any(|license| name.to_lowercase().starts_with(license))
        {
            fs::copy(entry.path(), destination.join(name))?;
        }
    }
    Ok(())
}
