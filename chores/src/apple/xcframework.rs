//! `cargo xtask xcframework`: everything that an app on macOS or iOS embeds, zipped, with the
//! checksum for Package.swift.
//!
//! On a Mac all slices are built: stock mlx-sys with Metal, linked by Xcode's clang. On Linux there
//! are only the macOS slice from `link` and the simulator's; a file in it says that it is unproven.
//! The code for a Mac has been type-checked but never run.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use zip::write::SimpleFileOptions;

use super::framework::{NAME, Platform, Slice};
use super::{Home, IOS, MACOS, faults, framework, link, sdk, simulator, verify};
use crate::setup::step::Steps;
use crate::{cargo, dist, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Output folder [default: apple in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only check this finished xcframework
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    verify: Option<PathBuf>,
    /// Also insert faults into copies of it, one at a time, and check that each is reported
    #[arg(long)]
    prove: bool,
}

const UNPROVEN: &str = "This xcframework was assembled on Linux. It has never been loaded on a Mac: use it to try the packaging, and build the one that you\n\
    ship on a Mac with `cargo xtask xcframework`. It has no slice for iOS devices.\n";

pub fn run(options: Options) -> Result<()> {
    let tools = Tools::find()?;
    let metadata = cargo::metadata(&["--no-deps"])?;
    let version = cargo::version(&metadata)?;
    if let Some(folder) = options.verify {
        check(&tools, &folder, &version)?;
        println!("{}: no problem can be detected here", folder.display());
        return if options.prove {
            prove(&tools, &folder, &version)
        } else {
            Ok(())
        };
    }
    let output = match options.output {
        Some(output) => output,
        None => cargo::target_folder(&metadata)?.join("apple"),
    };
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let steps = Steps::new(output.join("xcframework.log"), output.clone());
    let scratch = tempfile::tempdir_in(&output)?;

    let slices = tools.slices(&steps, scratch.path(), &version)?;
    steps.say("assembling");
    let part = scratch.path().join(format!("{NAME}.xcframework"));
    framework::write(&slices, &version, &part)?;
    if let Tools::Linux(_) = tools {
        fs::write(part.join("UNPROVEN.txt"), UNPROVEN)?;
    }
    steps.say("checking it");
    check(&tools, &part, &version)?;
    if options.prove {
        prove(&tools, &part, &version)?;
    }
    steps.say("zipping");
    let label = if let Tools::Linux(_) = tools {
        "-unproven"
    } else {
        ""
    };
    let archive = format!("{NAME}-{version}{label}.xcframework.zip");
    zip(&part, &scratch.path().join(&archive))?;
    // Returns what `swift package compute-checksum` prints.
    let checksum = dist::write_checksum(scratch.path(), &archive)?;

    let finished = output.join(format!("{NAME}.xcframework"));
    if finished.exists() {
        fs::rename(&finished, scratch.path().join("old"))?;
    }
    fs::rename(part, &finished)?;
    for name in [archive.clone(), format!("{archive}.sha256")] {
        fs::rename(scratch.path().join(&name), output.join(&name))?;
    }
    println!(
        "{}\n{}\nchecksum {checksum}",
        finished.display(),
        output.join(archive).display()
    );
    Ok(())
}

/// Fails with everything that is wrong.
fn check(tools: &Tools, folder: &Path, version: &str) -> Result<()> {
    let problems = verify::xcframework(folder, version, &dist::header_functions()?, || {
        tools.clang()
    })?;
    if !problems.is_empty() {
        bail!(
            "{} is not correct:\n- {}",
            folder.display(),
            problems.join("\n- ")
        );
    }
    Ok(())
}

/// Fails if a fault is not reported.
fn prove(tools: &Tools, folder: &Path, version: &str) -> Result<()> {
    faults::prove(folder, version, &dist::header_functions()?, || {
        tools.clang()
    })
}

/// The tools that build the slices.
enum Tools {
    Mac,
    Linux(Home),
}

impl Tools {
    fn find() -> Result<Tools> {
        if cfg!(target_os = "macos") {
            Ok(Tools::Mac)
        } else {
            Ok(Tools::Linux(Home::ensure()?))
        }
    }

    /// Returns a clang that knows Apple's modules.
    fn clang(&self) -> Command {
        match self {
            Tools::Mac => xcrun("macosx"),
            Tools::Linux(home) => home.compiler(&["cc", "-target", "aarch64-macos"]),
        }
    }

    fn slices(&self, steps: &Steps, scratch: &Path, version: &str) -> Result<Vec<Slice>> {
        let simulator = Slice {
            library: self.simulator(steps, scratch, version)?,
            ..Slice::of(Platform::Simulator)
        };
        match self {
            Tools::Linux(home) => {
                let macos = Slice {
                    library: link::link(steps, home, scratch, None)?,
                    mlx: Some(home.mlx().join("lib/libmlx.dylib")),
                    metallib: Some(home.mlx().join("lib/mlx.metallib")),
                    ..Slice::of(Platform::MacOs)
                };
                Ok(vec![macos, simulator])
            }
            Tools::Mac => Ok(vec![
                mac_slice(steps, scratch, Platform::MacOs)?,
                mac_slice(steps, scratch, Platform::Ios)?,
                simulator,
            ]),
        }
    }

    fn simulator(&self, steps: &Steps, scratch: &Path, version: &str) -> Result<PathBuf> {
        steps.say("building the simulator's slice");
        let (source, object, library) = (
            scratch.join("simulator.c"),
            scratch.join("simulator.o"),
            scratch.join("simulator"),
        );
        fs::write(&source, simulator::source(version)?)?;
        let install_name = Platform::Simulator.install_name();
        let include = setup::repository().join("include");
        match self {
            Tools::Mac => {
                let mut clang = xcrun("iphonesimulator");
                clang.args([
                    "-arch",
                    "arm64",
                    &format!("-mios-simulator-version-min={IOS}"),
                    "-dynamiclib",
                    "-O1",
                    "-install_name",
                    &install_name,
                ]);
                clang
                    .arg("-I")
                    .arg(include)
                    .arg(source)
                    .arg("-o")
                    .arg(&library);
                steps.expect(&mut clang, "the simulator's slice cannot be built")?;
            }
            Tools::Linux(home) => {
                let mut compile = home.compiler(&[
                    "cc",
                    "-target",
                    &format!("aarch64-ios.{IOS}-simulator"),
                    "-O1",
                    "-fno-sanitize=all",
                ]);
                // zig has no C headers for iOS; those for macOS have the same few functions.
                compile
                    .arg("-isystem")
                    .arg(home.path.join("ziglang/lib/libc/include/any-darwin-any"));
                compile
                    .arg("-I")
                    .arg(include)
                    .arg("-c")
                    .arg(source)
                    .arg("-o")
                    .arg(&object);
                steps.expect(&mut compile, "the simulator's slice cannot be compiled")?;
                let mut lld = link::linker(home, scratch, &dist::header_functions()?)?;
                lld.args([
                    "-platform_version",
                    "ios-simulator",
                    IOS,
                    IOS,
                    "-install_name",
                    &install_name,
                    "-adhoc_codesign",
                ]);
                lld.arg("-syslibroot")
                    .arg(sdk::write_for_simulator(scratch)?)
                    .arg(object)
                    .args(["-lSystem", "-o"])
                    .arg(&library);
                steps.expect(&mut lld, "the simulator's slice cannot be linked")?;
            }
        }
        Ok(library)
    }
}

/// Builds, links and strips one slice on a Mac.
fn mac_slice(steps: &Steps, scratch: &Path, platform: Platform) -> Result<Slice> {
    let (target, sdk, oldest) = match platform {
        Platform::MacOs => (
            "aarch64-apple-darwin",
            "macosx",
            format!("-mmacosx-version-min={MACOS}"),
        ),
        _ => (
            "aarch64-apple-ios",
            "iphoneos",
            format!("-mios-version-min={IOS}"),
        ),
    };
    super::add_target(target)?;
    steps.say(&format!(
        "building the library for {target} (many minutes the first time: MLX with Metal)"
    ));
    let archive = dist::static_library(&["--profile", "release", "--target", target])?;
    let exports = link::export_list(scratch, &dist::header_functions()?)?;
    let library = scratch.join(platform.folder());
    let mut clang = xcrun(sdk);
    clang.args([
        "-arch",
        "arm64",
        &oldest,
        "-dynamiclib",
        "-Wl,-dead_strip",
        "-install_name",
        &platform.install_name(),
    ]);
    clang
        .arg(format!("-Wl,-exported_symbols_list,{}", exports.display()))
        .arg(format!("-Wl,-force_load,{}", archive.display()));
    clang
        .args([
            "-lc++",
            "-lobjc",
            "-framework",
            "Foundation",
            "-framework",
            "Metal",
            "-framework",
            "Accelerate",
            "-o",
        ])
        .arg(&library);
    steps.expect(
        &mut clang,
        &format!("the library for {target} cannot be linked"),
    )?;
    let symbols = scratch.join(format!("{}.dSYM", platform.folder()));
    steps.expect(
        Command::new("dsymutil")
            .arg(&library)
            .arg("-o")
            .arg(&symbols),
        "dsymutil failed",
    )?;
    steps.expect(
        Command::new("strip").arg("-x").arg(&library),
        "strip failed",
    )?;
    steps.expect(
        Command::new("codesign")
            .args(["--force", "--sign", "-"])
            .arg(&library),
        "codesign failed",
    )?;
    Ok(Slice {
        library,
        metallib: Some(dist::metallib()?),
        symbols: Some(symbols),
        ..Slice::of(platform)
    })
}

fn xcrun(sdk: &str) -> Command {
    let mut command = Command::new("xcrun");
    command.args(["--sdk", sdk, "clang"]);
    command.env("MACOSX_DEPLOYMENT_TARGET", MACOS);
    command
}

/// Zips a folder with its links.
fn zip(folder: &Path, archive: &Path) -> Result<()> {
    let mut writer = zip::ZipWriter::new(File::create(archive)?);
    let parent = folder.parent().context("a folder is inside another")?;
    add(&mut writer, parent, folder)?;
    writer.finish()?.flush()?;
    Ok(())
}

fn add(writer: &mut zip::ZipWriter<File>, root: &Path, path: &Path) -> Result<()> {
    let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
    let metadata = path.symlink_metadata()?;
    // All files get the same date, so that equal content makes an equal archive.
    let options = SimpleFileOptions::default()
        .unix_permissions(metadata.permissions().mode() & 0o777)
        .large_file(false);
    if metadata.is_symlink() {
        return Ok(writer.add_symlink(name, fs::read_link(path)?.to_string_lossy(), options)?);
    }
    if metadata.is_dir() {
        let mut entries = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        return entries
            .iter()
            .try_for_each(|entry| add(writer, root, entry));
    }
    writer.start_file(name, options)?;
    io::copy(&mut File::open(path)?, writer)?;
    Ok(())
}
