//! Checks `verify` itself: an xcframework with one fault at a time, each of which must be reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::framework::NAME;
use super::verify;

/// The change to the xcframework, and a part of what `verify` must report.
type Fault = (&'static str, fn(&Path) -> Result<()>, &'static str);

const FAULTS: [Fault; 12] = [
    (
        "a slice is missing",
        |root| Ok(fs::remove_dir_all(root.join("ios-arm64-simulator"))?),
        "LibraryPath leads nowhere",
    ),
    (
        "a slice is for another system",
        another_system,
        "it is for platform",
    ),
    (
        "no GPU code",
        |root| Ok(fs::remove_file(resources(root).join("mlx.metallib"))?),
        "there is no GPU code",
    ),
    (
        "GPU code that is not GPU code",
        |root| replace(&resources(root).join("mlx.metallib"), b"MTLB", b"ELF "),
        "there is no GPU code",
    ),
    (
        "another version",
        |root| {
            replace(
                &resources(root).join("Info.plist"),
                b"<string>0.",
                b"<string>9.",
            )
        },
        "CFBundleShortVersionString is",
    ),
    (
        "no privacy manifest",
        |root| {
            Ok(fs::remove_file(
                resources(root).join("PrivacyInfo.xcprivacy"),
            )?)
        },
        "PrivacyInfo.xcprivacy",
    ),
    (
        "a header that the module map cannot find",
        lost_header,
        "clang cannot import the module",
    ),
    (
        "no libmlx.dylib",
        |root| Ok(fs::remove_file(binaries(root).join("libmlx.dylib"))?),
        "libmlx.dylib",
    ),
    (
        "another install name",
        |root| {
            replace(
                &binaries(root).join(NAME),
                b"@rpath/CMoxin",
                b"@rpath/Xmoxin",
            )
        },
        "the install name is",
    ),
    (
        "no run path",
        |root| {
            replace(
                &binaries(root).join(NAME),
                b"@loader_path\0",
                b"@loader_patx\0",
            )
        },
        "no run path leads to",
    ),
    ("no signature", unsigned, "it is not signed"),
    (
        "a broken link",
        broken_link,
        "Versions/Current is not a link",
    ),
];

/// Fails if a fault is not reported.
pub fn prove(
    good: &Path,
    version: &str,
    functions: &[String],
    clang: impl Fn() -> Command,
) -> Result<()> {
    let look = |folder: &Path, functions: &[String]| {
        verify::xcframework(folder, version, functions, &clang)
    };
    for (name, fault, expected) in FAULTS {
        let scratch = tempfile::tempdir_in(good.parent().unwrap_or(good))?;
        let broken = scratch.path().join("broken");
        link_folder(good, &broken)?;
        fault(&broken).with_context(|| format!("cannot insert this fault: {name}"))?;
        seen(name, expected, &look(&broken, functions)?)?;
    }
    let mut more = functions.to_vec();
    more.push("moxin_made_up".into());
    seen(
        "a function that is not exported",
        "does not export [\"_moxin_made_up\"]",
        &look(good, &more)?,
    )?;
    seen(
        "a function that the header does not have",
        "which the header does not have",
        &look(good, &functions[1..])?,
    )
}

fn seen(name: &str, expected: &str, problems: &[String]) -> Result<()> {
    ensure!(
        problems.iter().any(|problem| problem.contains(expected)),
        "this fault is not reported: {name}; reported are {problems:?}"
    );
    println!("seen: {name}");
    Ok(())
}

fn binaries(root: &Path) -> PathBuf {
    root.join(format!("macos-arm64/{NAME}.framework/Versions/A"))
}

fn resources(root: &Path) -> PathBuf {
    binaries(root).join("Resources")
}

/// Links the same files into another folder. Faults replace them with new files and never write
/// into them.
fn link_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        let kind = path.symlink_metadata()?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path)?, target)?;
        } else if kind.is_dir() {
            link_folder(&path, &target)?;
        } else {
            fs::hard_link(&path, target)?;
        }
    }
    Ok(())
}

/// Replaces a file with a new one.
fn rewrite(path: &Path, content: &[u8]) -> Result<()> {
    fs::remove_file(path)?;
    Ok(fs::write(path, content)?)
}

/// Replaces every occurrence of some bytes.
fn replace(path: &Path, from: &[u8], to: &[u8]) -> Result<()> {
    let mut content = fs::read(path)?;
    let mut changed = false;
    let mut at = 0;
    while at + from.len() <= content.len() {
        if content[at..].starts_with(from) {
            content[at..at + to.len()].copy_from_slice(to);
            changed = true;
        }
        at += 1;
    }
    ensure!(
        changed,
        "{} does not contain what is to be changed",
        path.display()
    );
    rewrite(path, &content)
}

fn another_system(root: &Path) -> Result<()> {
    let library = fs::read(root.join(format!("ios-arm64-simulator/{NAME}.framework/{NAME}")))?;
    rewrite(&binaries(root).join(NAME), &library)
}

fn lost_header(root: &Path) -> Result<()> {
    replace(
        &binaries(root).join("Modules/module.modulemap"),
        b"moxin_vlm.h",
        b"moxin_xxx.h",
    )
}

fn broken_link(root: &Path) -> Result<()> {
    let link = root.join(format!("macos-arm64/{NAME}.framework/Versions/Current"));
    fs::remove_file(&link)?;
    Ok(std::os::unix::fs::symlink("B", link)?)
}

/// Turns LC_CODE_SIGNATURE into another command, LC_DATA_IN_CODE. The header has 32 bytes; a
/// command starts with its number and its length.
fn unsigned(root: &Path) -> Result<()> {
    let path = binaries(root).join(NAME);
    let mut content = fs::read(&path)?;
    let word = |content: &[u8], at: usize| -> Result<u32> {
        Ok(u32::from_le_bytes(
            content
                .get(at..at + 4)
                .context("the file is too short")?
                .try_into()?,
        ))
    };
    let mut at = 32;
    for _ in 0..word(&content, 16)? {
        if word(&content, at)? == object::macho::LC_CODE_SIGNATURE {
            content[at..at + 4].copy_from_slice(&object::macho::LC_DATA_IN_CODE.to_le_bytes());
            return rewrite(&path, &content);
        }
        at += word(&content, at + 4)? as usize;
    }
    bail!("the library has no signature to begin with")
}
