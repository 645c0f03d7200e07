//! The C header, which cbindgen writes from src/ffi. It is checked in, so that programs need no
//! cbindgen.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::setup;

const FILE: &str = "include/moxin_vlm.h";

/// Writes the header, if it has changed.
pub fn run() -> Result<()> {
    let path = setup::repository().join(FILE);
    let header = written()?;
    if fs::read(&path).is_ok_and(|present| present == header) {
        println!("{FILE} is up to date.");
        return Ok(());
    }
    fs::write(&path, header).with_context(|| format!("cannot write {}", path.display()))?;
    println!("Wrote {FILE}");
    Ok(())
}

/// Returns the header for the current sources.
fn written() -> Result<Vec<u8>> {
    let root = setup::repository();
    let config = PathBuf::from(root).join("cbindgen.toml");
    let config = cbindgen::Config::from_file(config)
        .map_err(anyhow::Error::msg)
        .context("cbindgen.toml")?;
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/mod.rs"))
        .generate()
        .context("cbindgen cannot read src/ffi")?;
    let mut header = Vec::new();
    bindings.write(&mut header);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_up_to_date() {
        let checked_in = fs::read(setup::repository().join(FILE)).unwrap();
        assert!(
            written().unwrap() == checked_in,
            "{FILE} does not match src/ffi and cbindgen.toml: run `cargo xtask header`"
        );
    }
}
