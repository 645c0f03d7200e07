//! The reference of the C API, docs/c-api.md: the comments of the header, ordered by topic.

pub mod header;
mod page;
mod texts;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::setup;

pub fn run() -> Result<()> {
    let (path, page) = (path(), written()?);
    if fs::read_to_string(&path).is_ok_and(|present| present == page) {
        println!("docs/c-api.md is up to date.");
        return Ok(());
    }
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    println!("Wrote docs/c-api.md");
    Ok(())
}

fn path() -> PathBuf {
    setup::repository().join("docs/c-api.md")
}

/// Returns the page for the checked-in header.
fn written() -> Result<String> {
    let header = setup::repository().join("include/moxin_vlm.h");
    let text =
        fs::read_to_string(&header).with_context(|| format!("cannot read {}", header.display()))?;
    page::write(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_is_checked_in_is_what_the_header_gives() {
        let present = fs::read_to_string(path()).unwrap_or_default();
        assert!(
            present == written().unwrap(),
            "docs/c-api.md is out of date; write it with: cargo xtask reference"
        );
    }
}
