//! Checks a finished xcframework for problems on a Mac that Linux can detect.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use plist::{Dictionary, Value};

use super::framework::{NAME, Platform};
use super::macho::{self, Library};

/// Returns everything that is wrong with an xcframework. `clang` checks the module map by importing
/// it.
pub fn xcframework(
    folder: &Path,
    version: &str,
    functions: &[String],
    clang: impl Fn() -> Command,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let info = read_plist(&folder.join("Info.plist"))?;
    let entries = info
        .get("AvailableLibraries")
        .and_then(Value::as_array)
        .context("Info.plist lists no AvailableLibraries")?;
    if entries.is_empty() {
        problems.push("Info.plist lists no slice".into());
    }
    for entry in entries.iter().filter_map(Value::as_dictionary) {
        let identifier = text(entry, "LibraryIdentifier");
        let Some(platform) = Platform::ALL
            .into_iter()
            .find(|platform| platform.folder() == identifier)
        else {
            problems.push(format!(
                "Info.plist lists {identifier:?}, which is an unknown slice"
            ));
            continue;
        };
        let slice = folder.join(identifier);
        let framework = slice.join(text(entry, "LibraryPath"));
        for (key, path) in [
            ("LibraryPath", framework.clone()),
            ("BinaryPath", slice.join(text(entry, "BinaryPath"))),
        ] {
            if !path.exists() {
                problems.push(format!("{identifier}: {key} leads nowhere"));
            }
        }
        let symbols = entry.get("DebugSymbolsPath").and_then(Value::as_string);
        if symbols.is_some_and(|symbols| !slice.join(symbols).is_dir()) {
            problems.push(format!("{identifier}: DebugSymbolsPath leads nowhere"));
        }
        let found = self::framework(&framework, platform, version, functions, &clang)?;
        problems.extend(
            found
                .into_iter()
                .map(|problem| format!("{identifier}: {problem}")),
        );
    }
    Ok(problems)
}

fn framework(
    folder: &Path,
    platform: Platform,
    version: &str,
    functions: &[String],
    clang: &impl Fn() -> Command,
) -> Result<Vec<String>> {
    let (binaries, resources) = platform.places();
    let (binaries, resources) = (folder.join(binaries), folder.join(resources));
    let mut problems = Vec::new();
    match macho::read(&binaries.join(NAME)) {
        Ok(binary) => problems.extend(slice_library(&binary, platform, functions, &binaries)),
        Err(error) => problems.push(format!("{error:#}")),
    }
    problems.extend(plists(&resources, platform, version));
    if platform != Platform::Simulator {
        // The first bytes of every compiled Metal library.
        let metallib = fs::read(resources.join("mlx.metallib")).unwrap_or_default();
        if !metallib.starts_with(b"MTLB") {
            problems.push(format!(
                "there is no GPU code where MLX expects it: {}",
                resources.join("mlx.metallib").display()
            ));
        }
    }
    if platform == Platform::MacOs {
        let links = [
            ("Versions/Current", "A"),
            (NAME, "Versions/Current/CMoxinVLM"),
            ("Resources", "Versions/Current/Resources"),
        ];
        for (link, target) in links {
            if fs::read_link(folder.join(link)).ok().as_deref() != Some(Path::new(target)) {
                problems.push(format!("{link} is not a link to {target}"));
            }
        }
    }
    problems.extend(import(folder, clang())?);
    Ok(problems)
}

/// Returns what is wrong with our library in a slice, and with MLX's next to it.
fn slice_library(
    binary: &Library,
    platform: Platform,
    functions: &[String],
    binaries: &Path,
) -> Vec<String> {
    let mut problems = library(binary, functions, platform);
    problems.extend(loads(NAME, binary, binaries));
    problems
}

/// Returns what is wrong with the libraries that one loads, and that these load in turn: they must
/// be the system's, or next to it in the framework.
fn loads(name: &str, library: &Library, binaries: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for load in &library.loads {
        if load.starts_with("/usr/lib/") || load.starts_with("/System/Library/") {
            continue;
        }
        let Some(beside) = load.strip_prefix("@rpath/") else {
            problems.push(format!("{name} loads {load}, which is not on every system"));
            continue;
        };
        if !library.run_paths.iter().any(|path| {
            ["@loader_path", "@loader_path/", "@loader_path/."].contains(&path.as_str())
        }) {
            problems.push(format!(
                "{name} loads {load}, but no run path leads to the one next to it"
            ));
        }
        match macho::read(&binaries.join(beside)) {
            Ok(other) => {
                if !other.signed {
                    problems.push(format!("{beside} is not signed and would not be loaded"));
                }
                problems.extend(loads(beside, &other, binaries));
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    problems
}

/// Returns what is wrong with our library on any platform.
pub fn library(library: &Library, functions: &[String], platform: Platform) -> Vec<String> {
    let mut problems = Vec::new();
    if library.install_name != platform.install_name() {
        problems.push(format!(
            "the install name is {}, not {}",
            library.install_name,
            platform.install_name()
        ));
    }
    let mut expected: Vec<String> = functions.iter().map(|name| format!("_{name}")).collect();
    expected.sort();
    let missing: Vec<&String> = expected
        .iter()
        .filter(|name| !library.exports.contains(name))
        .collect();
    let strange: Vec<&String> = library
        .exports
        .iter()
        .filter(|name| !expected.contains(name))
        .collect();
    if !missing.is_empty() {
        problems.push(format!("it does not export {missing:?}"));
    }
    if !strange.is_empty() {
        problems.push(format!(
            "it exports {strange:?}, which the header does not have"
        ));
    }
    let system = match platform {
        Platform::MacOs => macho::PLATFORM_MACOS,
        Platform::Ios => macho::PLATFORM_IOS,
        Platform::Simulator => macho::PLATFORM_SIMULATOR,
    };
    let (oldest, _) = platform.oldest();
    if (library.platform, library.oldest.as_str()) != (system, oldest) {
        problems.push(format!(
            "it is for platform {} from {} on, not {system} from {oldest} on",
            library.platform, library.oldest
        ));
    }
    if !library.signed {
        problems.push("it is not signed, not even ad hoc: Apple silicon does not load it".into());
    }
    problems
}

fn plists(resources: &Path, platform: Platform, version: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let (oldest, oldest_key) = platform.oldest();
    match read_plist(&resources.join("Info.plist")) {
        Ok(info) => {
            let expected = [
                ("CFBundleExecutable", NAME),
                ("CFBundlePackageType", "FMWK"),
                ("CFBundleShortVersionString", version),
                ("CFBundleVersion", version),
                (oldest_key, oldest),
            ];
            for (key, value) in expected
                .into_iter()
                .filter(|(key, value)| text(&info, key) != *value)
            {
                problems.push(format!(
                    "Info.plist: {key} is {:?}, not {value:?}",
                    text(&info, key)
                ));
            }
        }
        Err(error) => problems.push(format!("{error:#}")),
    }
    match read_plist(&resources.join("PrivacyInfo.xcprivacy")) {
        Ok(privacy)
            if privacy.get("NSPrivacyTracking").and_then(Value::as_boolean) != Some(false) =>
        {
            problems.push("the privacy manifest does not declare that nothing is tracked".into());
        }
        Ok(_) => {}
        Err(error) => problems.push(format!("{error:#}")),
    }
    problems
}

/// Imports the module with clang.
fn import(framework: &Path, mut clang: Command) -> Result<Vec<String>> {
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("import.m");
    fs::write(
        &source,
        format!(
            "@import {NAME};\nenum moxin_status status = MOXIN_STATUS_OK;\nuint32_t (*abi)(void) = \
             moxin_abi_version;\n"
        ),
    )?;
    clang
        .args(["-c", "-fmodules", "-Werror", "-o"])
        .arg(scratch.path().join("import.o"));
    clang.arg("-F").arg(framework.parent().unwrap_or(framework));
    clang
        .arg(format!(
            "-fmodules-cache-path={}",
            scratch.path().join("modules").display()
        ))
        .arg(source);
    let output = clang.output().context("cannot run clang")?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let reason = text
        .lines()
        .find(|line| line.contains("error"))
        .unwrap_or("clang reports nothing");
    Ok(vec![format!("clang cannot import the module: {reason}")])
}

fn read_plist(path: &Path) -> Result<Dictionary> {
    let value = Value::from_file(path)
        .with_context(|| format!("{} is not a property list", path.display()))?;
    value
        .into_dictionary()
        .with_context(|| format!("{} is no dictionary", path.display()))
}

fn text<'a>(dictionary: &'a Dictionary, key: &str) -> &'a str {
    dictionary
        .get(key)
        .and_then(Value::as_string)
        .unwrap_or_default()
}
