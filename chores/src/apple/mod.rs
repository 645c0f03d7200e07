//! The builds for Apple systems, as far as Linux can check them. Nothing here has been run on a
//! Mac.
//!
//! - `check`: clippy for macOS and iOS, with the bindings that mlx-sys would generate there.
//! - `link`: the dynamic library for macOS, against the libmlx.dylib of MLX's wheel.
//! - `xcframework`: frameworks for Swift and Objective-C. On a Mac the complete ones, on Linux what
//!   `link` produces.
//! - `verify`: checks a finished xcframework, wherever it was built.
//!
//! Their tools are in the cache folder, under a name computed from all their inputs: [`Home`].

pub mod check;
mod faults;
mod framework;
pub mod link;
mod macho;
mod sdk;
mod simulator;
mod verify;
pub mod xcframework;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::bindings;
use crate::cargo::add_target;
use crate::setup::{self, step::Steps, wheels};
use crate::test;

/// The oldest supported systems. Package.swift has the same numbers.
const MACOS: &str = "14.0";
const IOS: &str = "17.0";

const WHEELS: &str = include_str!("wheels.txt");

/// The targets of bindgen: Rust's name, and clang's.
const TARGETS: [(&str, &str); 2] = [
    ("aarch64-apple-darwin", "arm64-apple-macosx14.0"),
    ("aarch64-apple-ios", "arm64-apple-ios17.0"),
];

/// The tools, complete.
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Installs the tools if they are missing.
    fn ensure() -> Result<Home> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!(
                "this chore replaces a Mac on x86-64 Linux; on a Mac, use cargo and Xcode: `cargo \
                    xtask xcframework`"
            );
        }
        setup::ensure()?;
        let home = Home::locate()?;
        if !home.path.is_dir() {
            setup::make(&home.path, || home.path.is_dir(), Home::build)?;
        }
        Ok(home)
    }

    /// Returns where the tools are, or would be.
    fn locate() -> Result<Home> {
        let hash = Sha256::new_with_prefix(WHEELS)
            .chain_update(include_str!("mod.rs"))
            .finalize();
        let hash: String = hash[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Home {
            path: setup::cache_folder()?.join(format!("apple-{hash}")),
        })
    }

    /// Installs everything in `part`; returns the folder.
    fn build(part: &Path) -> Result<PathBuf> {
        let folder = |name: &str| -> Result<PathBuf> {
            let path = part.join(name);
            fs::create_dir_all(&path)?;
            Ok(path)
        };
        let (downloads, tools, made) = (
            folder("wheels")?,
            folder("tools")?,
            Home {
                path: folder("home")?,
            },
        );
        let steps = Steps::new(part.with_file_name("apple.log"), folder("tmp")?);
        wheels::check_python()?;
        steps.say("fetching a compiler with Apple's headers, and MLX for macOS (170 MB)");
        wheels::download(&steps, WHEELS, &["macosx_14_0_arm64"], &downloads)?;
        steps.say("unpacking");
        wheels::unpack(&steps, &downloads, &made.path, &tools)?;
        setup::executable(made.zig())?;
        steps.say("writing the Rust bindings of mlx-c for macOS and iOS");
        for (target, clang) in TARGETS {
            made.write_bindings(&steps, &tools, target, clang)?;
        }
        Ok(made.path)
    }

    fn zig(&self) -> PathBuf {
        self.path.join("ziglang/zig")
    }

    /// Returns MLX's wheel for macOS.
    fn mlx(&self) -> PathBuf {
        self.path.join("mlx")
    }

    /// Returns a zig command, which includes clang.
    fn compiler(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.zig());
        let cache = self.path.join("zig-cache");
        command
            .args(arguments)
            .env("ZIG_GLOBAL_CACHE_DIR", &cache)
            .env("ZIG_LOCAL_CACHE_DIR", &cache);
        command
    }

    fn bindings(&self, target: &str) -> PathBuf {
        self.path.join("bindings").join(target)
    }

    /// Writes the bindings as mlx-sys's build script would write them on a Mac. The compiler's
    /// arguments are passed in the variable that bindgen reads.
    fn write_bindings(&self, steps: &Steps, tools: &Path, target: &str, clang: &str) -> Result<()> {
        let folder = self.bindings(target);
        fs::create_dir_all(&folder)?;
        let empty = folder.join("empty.h"); // Apple's own headers need no help, unlike Linux's
        fs::write(&empty, "")?;
        let headers = self.path.join("ziglang/lib");
        let apple = headers.join("libc/include/any-darwin-any");
        let libclang = wheels::find_below(tools, "native/libclang.so")?;
        let output = folder.join("bindings.rs");
        let mut command = bindings::generate(&libclang, &empty, &headers.join("include"), &output)?;
        let arguments = format!(
            "--target={clang} -march=armv8.6-a+bf16 -nostdlibinc -isystem '{}'",
            apple.display()
        );
        steps.expect(
            command.env("BINDGEN_EXTRA_CLANG_ARGS", arguments),
            &format!("cannot write the bindings for {target}"),
        )?;
        Ok(())
    }

    /// Makes cargo use these bindings, and link `libraries`, instead of running mlx-sys's build
    /// script. Returns the file for `--config`.
    fn cargo_config(&self, folder: &Path, library_folder: Option<&Path>) -> Result<PathBuf> {
        let quote = |path: &Path| toml::Value::String(path.to_string_lossy().into_owned());
        let (search, libraries) = match library_folder {
            Some(folder) => (format!("native={}", folder.display()), "\"static=mlxc\""),
            None => (format!("native={}", self.path.display()), ""),
        };
        let tables = TARGETS.map(|(target, _)| {
            format!(
                "[target.{target}.mlx]\nrustc-link-search = [{}]\nrustc-link-lib = \
                 [{libraries}]\nrustc-env = {{ OUT_DIR = {} }}\n",
                toml::Value::String(search.clone()),
                quote(&self.bindings(target))
            )
        });
        let path = folder.join("cargo.toml");
        fs::write(&path, tables.concat())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Returns what `check` lacks.
pub fn lacks() -> Option<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some("x86-64 Linux; on a Mac the other steps compile for it".to_owned());
    }
    let is_there = Home::locate().is_ok_and(|home| home.path.is_dir());
    if !is_there && !test::may_download() {
        return Some(
            "`cargo xtask apple-check` once, which gets 170 MB, or MOXIN_DOWNLOAD=1".to_owned(),
        );
    }
    TARGETS.iter().find_map(|(target, _)| {
        add_target(target)
            .err()
            .map(|_| format!("rustup target add {target}"))
    })
}
