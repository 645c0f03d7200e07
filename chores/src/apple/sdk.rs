//! What a linker needs of macOS: stubs of its system libraries, as text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Home, macho};

/// Writes `usr/lib` with libSystem and libc++.
pub fn write(home: &Home, folder: &Path) -> Result<PathBuf> {
    let sdk = folder.join("sdk");
    let libraries = sdk.join("usr/lib");
    fs::create_dir_all(&libraries)?;
    let system = home.path.join("ziglang/lib/libc/darwin/libSystem.tbd");
    let system =
        fs::read_to_string(&system).with_context(|| format!("cannot read {}", system.display()))?;
    fs::write(libraries.join("libSystem.tbd"), for_arm64(&system)?)?;
    fs::write(libraries.join("libc++.tbd"), cxx(home)?)?;
    Ok(sdk)
}

/// Writes `usr/lib` with the part of the iOS simulator's libSystem that its slice needs.
pub fn write_for_simulator(folder: &Path) -> Result<PathBuf> {
    let sdk = folder.join("simulator-sdk");
    fs::create_dir_all(sdk.join("usr/lib"))?;
    fs::write(
        sdk.join("usr/lib/libSystem.tbd"),
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-ios-simulator ]\ninstall-name: '/usr/lib/libSystem.B.dylib'\n\
        exports:\n  - targets: [ arm64-ios-simulator ]\n    symbols: [ '_bzero', '_memset', 'dyld_stub_binder' ]\n...\n",
    )?;
    Ok(sdk)
}

/// Adapts zig's stub: it names CPUs that this linker does not know, and of Apple silicon only the
/// system's own variant.
fn for_arm64(stub: &str) -> Result<String> {
    let mut text = String::new();
    let mut rest = stub;
    while let Some(at) = rest.find("targets:") {
        let open = at
            + rest[at..]
                .find('[')
                .context("a list of targets starts with [")?;
        let close = open
            + rest[open..]
                .find(']')
                .context("a list of targets ends with ]")?;
        let arm = rest[open..close]
            .split([',', '[', ' ', '\n'])
            .any(|target| target == "arm64e-macos");
        text += &rest[..open];
        text += if arm {
            "[ arm64-macos ]"
        } else {
            "[ x86_64-macos ]"
        };
        rest = &rest[close + 1..];
    }
    Ok(text + rest)
}

/// C++'s library gets the names that MLX's own library imports. Apple's tools built that one for
/// the same oldest macOS, so they exist there. Any other name that mlx-c needs fails the link until
/// someone has checked it.
fn cxx(home: &Home) -> Result<String> {
    let path = home.mlx().join("lib/libmlx.dylib");
    let mlx = macho::read(&path)?;
    let names: BTreeSet<&String> = mlx
        .imports
        .iter()
        .filter(|(_, library)| library.ends_with("libc++.1.dylib"))
        .map(|(name, _)| name)
        .collect();
    let names: Vec<String> = names.into_iter().map(|name| format!("'{name}'")).collect();
    Ok(format!(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '/usr/lib/libc++.1.dylib'\n\
        exports:\n  - targets: [ arm64-macos ]\n    symbols: [ {} ]\n...\n",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_those_that_the_linker_knows() {
        let stub = "targets:  [ x86_64-macos, arm64e-macos,\n  arm64e.x1-macos ]\nname: a\n  - \
            targets: [ x86_64-macos ]\n    symbols: [ _b ]\n";
        let expected = "targets:  [ arm64-macos ]\nname: a\n  - targets: [ x86_64-macos ]\n    \
            symbols: [ _b ]\n";
        assert_eq!(for_arm64(stub).unwrap(), expected);
    }
}
