//! Frameworks and the xcframework around them
//! (<https://developer.apple.com/documentation/bundleresources/placing-content-in-a-bundle>,
//! <https://developer.apple.com/documentation/xcode/creating-a-multi-platform-binary-framework-bundle>).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plist::{Dictionary, Value};

use super::{IOS, MACOS};
use crate::setup;

/// The name of the framework and of the module that Swift imports.
pub const NAME: &str = "CMoxinVLM";

const IDENTIFIER: &str = "ai.moxin.CMoxinVLM";

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Platform {
    MacOs,
    Ios,
    Simulator,
}

impl Platform {
    pub const ALL: [Platform; 3] = [Platform::MacOs, Platform::Ios, Platform::Simulator];

    /// Returns the folder of its slice.
    pub fn folder(self) -> &'static str {
        match self {
            Platform::MacOs => "macos-arm64",
            Platform::Ios => "ios-arm64",
            Platform::Simulator => "ios-arm64-simulator",
        }
    }

    /// Returns its name in Info.plist.
    pub fn bundle_name(self) -> &'static str {
        match self {
            Platform::MacOs => "MacOSX",
            Platform::Ios => "iPhoneOS",
            Platform::Simulator => "iPhoneSimulator",
        }
    }

    /// Returns the oldest supported system, and its key in Info.plist.
    pub fn oldest(self) -> (&'static str, &'static str) {
        match self {
            Platform::MacOs => (MACOS, "LSMinimumSystemVersion"),
            Platform::Ios | Platform::Simulator => (IOS, "MinimumOSVersion"),
        }
    }

    /// Returns the paths of the library and of resources in the framework: macOS has versions, iOS
    /// does not.
    pub fn places(self) -> (&'static str, &'static str) {
        if self == Platform::MacOs {
            ("Versions/A", "Versions/A/Resources")
        } else {
            ("", "")
        }
    }

    /// Returns the path by which programs find the library.
    pub fn install_name(self) -> String {
        Path::new("@rpath")
            .join(format!("{NAME}.framework"))
            .join(self.places().0)
            .join(NAME)
            .to_string_lossy()
            .into_owned()
    }
}

/// The content of a framework.
pub struct Slice {
    pub platform: Platform,
    pub library: PathBuf,
    /// MLX's own library, if it is not linked into ours.
    pub mlx: Option<PathBuf>,
    /// MLX's GPU code; the simulator has none.
    pub metallib: Option<PathBuf>,
    pub symbols: Option<PathBuf>,
}

impl Slice {
    /// Returns an empty slice.
    pub fn of(platform: Platform) -> Slice {
        Slice {
            platform,
            library: PathBuf::new(),
            mlx: None,
            metallib: None,
            symbols: None,
        }
    }
}

/// Writes an xcframework with these slices into a new folder.
pub fn write(slices: &[Slice], version: &str, folder: &Path) -> Result<()> {
    let mut libraries = Vec::new();
    for slice in slices {
        let platform = slice.platform;
        let root = folder.join(platform.folder());
        write_framework(slice, version, &root.join(format!("{NAME}.framework")))?;
        let mut entry = Dictionary::new();
        entry.insert(
            "BinaryPath".into(),
            format!(
                "{NAME}.framework/{}",
                Path::new(platform.places().0).join(NAME).display()
            )
            .into(),
        );
        entry.insert("LibraryIdentifier".into(), platform.folder().into());
        entry.insert("LibraryPath".into(), format!("{NAME}.framework").into());
        entry.insert(
            "SupportedArchitectures".into(),
            Value::Array(vec!["arm64".into()]),
        );
        entry.insert(
            "SupportedPlatform".into(),
            if platform == Platform::MacOs {
                "macos"
            } else {
                "ios"
            }
            .into(),
        );
        if platform == Platform::Simulator {
            entry.insert("SupportedPlatformVariant".into(), "simulator".into());
        }
        if let Some(symbols) = &slice.symbols {
            copy_folder(
                symbols,
                &root.join("dSYMs").join(format!("{NAME}.framework.dSYM")),
            )?;
            entry.insert("DebugSymbolsPath".into(), "dSYMs".into());
        }
        libraries.push(Value::Dictionary(entry));
    }
    let mut info = Dictionary::new();
    info.insert("AvailableLibraries".into(), Value::Array(libraries));
    info.insert("CFBundlePackageType".into(), "XFWK".into());
    info.insert("XCFrameworkFormatVersion".into(), "1.0".into());
    write_plist(info, &folder.join("Info.plist"))
}

fn write_framework(slice: &Slice, version: &str, folder: &Path) -> Result<()> {
    let platform = slice.platform;
    let (binaries, resources) = platform.places();
    let (binaries, resources) = (folder.join(binaries), folder.join(resources));
    let (headers, modules) = (binaries.join("Headers"), binaries.join("Modules"));
    for new in [&binaries, &resources, &headers, &modules] {
        fs::create_dir_all(new)?;
    }
    copy(&slice.library, &binaries.join(NAME))?;
    if let Some(mlx) = &slice.mlx {
        copy(mlx, &binaries.join("libmlx.dylib"))?;
    }
    if let Some(metallib) = &slice.metallib {
        copy(metallib, &resources.join("mlx.metallib"))?;
    }
    copy(
        &setup::repository().join("include/moxin_vlm.h"),
        &headers.join("moxin_vlm.h"),
    )?;
    fs::write(
        modules.join("module.modulemap"),
        format!("framework module {NAME} {{\n  umbrella header \"moxin_vlm.h\"\n  export *\n}}\n"),
    )?;
    write_plist(info(platform, version), &resources.join("Info.plist"))?;
    fs::write(
        resources.join("PrivacyInfo.xcprivacy"),
        include_str!("PrivacyInfo.xcprivacy"),
    )?;
    if platform == Platform::MacOs {
        symlink("A", folder.join("Versions/Current"))?;
        for name in [NAME, "Headers", "Modules", "Resources"] {
            symlink(format!("Versions/Current/{name}"), folder.join(name))?;
        }
    }
    Ok(())
}

fn info(platform: Platform, version: &str) -> Dictionary {
    let (oldest, oldest_key) = platform.oldest();
    let mut info = Dictionary::new();
    for (key, value) in [
        ("CFBundleDevelopmentRegion", "en"),
        ("CFBundleExecutable", NAME),
        ("CFBundleIdentifier", IDENTIFIER),
        ("CFBundleInfoDictionaryVersion", "6.0"),
        ("CFBundleName", NAME),
        ("CFBundlePackageType", "FMWK"),
        ("CFBundleShortVersionString", version),
        ("CFBundleVersion", version),
        (oldest_key, oldest),
    ] {
        info.insert(key.into(), value.into());
    }
    info.insert(
        "CFBundleSupportedPlatforms".into(),
        Value::Array(vec![platform.bundle_name().into()]),
    );
    info
}

fn write_plist(content: Dictionary, path: &Path) -> Result<()> {
    plist::to_file_xml(path, &Value::Dictionary(content))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?
        } else {
            copy(&path, &target)?
        }
    }
    Ok(())
}
