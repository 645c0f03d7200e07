//! Packs the prefix into one file, with its checksum.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

/// Writes `<name>.tar.gz` and `<name>.tar.gz.sha256` next to the folder of that name. Equal files
/// make an equal archive.
pub fn write(folder: &Path, name: &str) -> Result<()> {
    let file_name = format!("{name}.tar.gz");
    let path = folder.join(&file_name);
    let gzip = GzEncoder::new(File::create(&path)?, Compression::default());
    let mut archive = tar::Builder::new(gzip);
    archive.mode(tar::HeaderMode::Deterministic);
    archive.follow_symlinks(false);
    append(&mut archive, folder, Path::new(name))
        .with_context(|| format!("cannot write {}", path.display()))?;
    archive.into_inner()?.finish()?.sync_all()?;

    write_checksum(folder, &file_name)?;
    Ok(())
}

/// Writes the SHA-256 of a file in a folder next to it, as `<name>.sha256`, and returns its digits.
pub fn write_checksum(folder: &Path, name: &str) -> Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(folder.join(name))?, &mut hash)?;
    let digits: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(
        folder.join(format!("{name}.sha256")),
        format!("{digits}  {name}\n"),
    )?;
    Ok(digits)
}

/// Adds a file or folder, and everything below it, sorted by name.
fn append(archive: &mut tar::Builder<impl Write>, root: &Path, path: &Path) -> io::Result<()> {
    let source = root.join(path);
    archive.append_path_with_name(&source, path)?;
    if source.symlink_metadata()?.is_dir() {
        let mut names = fs::read_dir(source)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            append(archive, root, &path.join(name))?;
        }
    }
    Ok(())
}
