//! Reads the metadata of a library for Apple systems.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::macho;
use object::read::macho::{LoadCommandVariant, MachHeader, MachOFile64};
use object::{Endianness, Object};

/// A dynamic library for 64-bit ARM.
#[derive(Debug, Default)]
pub struct Library {
    pub install_name: String,
    /// The oldest supported system, such as `14.0`.
    pub oldest: String,
    /// The number in `LC_BUILD_VERSION`.
    pub platform: u32,
    pub run_paths: Vec<String>,
    /// The install names of the libraries that it loads.
    pub loads: Vec<String>,
    /// The imported names, with the library of each.
    pub imports: Vec<(String, String)>,
    pub exports: Vec<String>,
    pub signed: bool,
}

pub const PLATFORM_MACOS: u32 = macho::PLATFORM_MACOS;
pub const PLATFORM_IOS: u32 = macho::PLATFORM_IOS;
pub const PLATFORM_SIMULATOR: u32 = macho::PLATFORM_IOSSIMULATOR;

pub fn read(path: &Path) -> Result<Library> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is not a library for Apple systems", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Library> {
    let file = MachOFile64::<Endianness>::parse(bytes)?;
    let header = file.macho_header();
    let endian = file.endian();
    ensure!(
        header.cputype(endian) == macho::CPU_TYPE_ARM64,
        "it is for another CPU"
    );
    ensure!(
        header.filetype(endian) == macho::MH_DYLIB,
        "it is not a dynamic library"
    );
    let mut library = Library::default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut commands = header.load_commands(endian, bytes, 0)?;
    while let Some(command) = commands.next()? {
        match command.variant()? {
            LoadCommandVariant::IdDylib(id) => {
                library.install_name = text(command.string(endian, id.dylib.name)?)
            }
            LoadCommandVariant::Dylib(dylib) => library
                .loads
                .push(text(command.string(endian, dylib.dylib.name)?)),
            LoadCommandVariant::Rpath(path) => library
                .run_paths
                .push(text(command.string(endian, path.path)?)),
            LoadCommandVariant::BuildVersion(build) => {
                let oldest = build.minos.get(endian);
                library.oldest = format!("{}.{}", oldest >> 16, oldest >> 8 & 0xff);
                library.platform = build.platform.get(endian);
            }
            LoadCommandVariant::LinkeditData(_) if command.cmd() == macho::LC_CODE_SIGNATURE => {
                library.signed = true
            }
            _ => {}
        }
    }
    library.imports = file
        .imports()?
        .iter()
        .map(|import| (text(import.name()), text(import.library())))
        .collect();
    library.exports = file
        .exports()?
        .iter()
        .map(|export| text(export.name()))
        .collect();
    library.exports.sort();
    Ok(library)
}
