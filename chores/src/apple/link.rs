//! Links the dynamic library for macOS on Linux: mlx-c is compiled by zig, our code by rustc, and
//! both are linked by rustc's linker against the libmlx.dylib of MLX's wheel. An undefined name
//! fails the link.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::framework::Platform;
use super::{Home, MACOS, TARGETS, add_target, macho, sdk};
use crate::setup::{self, step::Steps};
use crate::{cargo, dist};

#[derive(clap::Args)]
pub struct Options {
    /// Output folder for the library and MLX's [default: apple in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Also check that a function which MLX does not have fails the link
    #[arg(long)]
    prove: bool,
}

pub fn run(options: Options) -> Result<()> {
    let output = match options.output {
        Some(output) => output,
        None => cargo::target_folder(&cargo::metadata(&["--no-deps"])?)?.join("apple"),
    };
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let steps = Steps::new(output.join("link.log"), output.clone());
    let home = Home::ensure()?;
    let library = link(&steps, &home, &output, None)?;
    if options.prove {
        prove(&steps, &home, &output)?;
    }
    println!(
        "{}: arm64, macOS {MACOS} or newer, exports the header's functions; it has never been \
         loaded on a Mac",
        library.display()
    );
    Ok(())
}

/// Links the library into a folder, checks it, and returns its path. libmlx.dylib and mlx.metallib
/// are in [`Home::mlx`]. `needed` is a name that it must refer to.
pub fn link(steps: &Steps, home: &Home, output: &Path, needed: Option<&str>) -> Result<PathBuf> {
    let scratch = tempfile::tempdir_in(output)?;
    let objects = mlx_c(steps, home)?;
    let (target, _) = TARGETS[0];
    add_target(target)?;
    steps.say("building the library for macOS (minutes the first time)");
    let archive = build(home, scratch.path(), &objects, target)?;
    steps.say("linking");
    let functions = dist::header_functions()?;
    let library = output.join("CMoxinVLM");
    let install_name = Platform::MacOs.install_name();
    let mut command = linker(home, scratch.path(), &functions)?;
    command.args([
        "-platform_version",
        "macos",
        MACOS,
        MACOS,
        "-install_name",
        &install_name,
        "-rpath",
        "@loader_path",
    ]);
    command
        .arg("-syslibroot")
        .arg(sdk::write(home, scratch.path())?)
        .arg("-force_load")
        .arg(archive);
    command
        .arg(home.mlx().join("lib/libmlx.dylib"))
        .args(["-lc++", "-lSystem", "-o"])
        .arg(&library);
    command.args(needed.iter().flat_map(|name| ["-u", name]));
    steps.expect(&mut command, "the library cannot be linked for macOS")?;
    let problems = look(&macho::read(&library)?, &functions);
    if !problems.is_empty() {
        bail!(
            "{} is not correct:\n- {}",
            library.display(),
            problems.join("\n- ")
        );
    }
    Ok(library)
}

/// Checks that an undefined name fails the link and is reported, and that one of MLX's does not.
fn prove(steps: &Steps, home: &Home, output: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(output)?;
    link(steps, home, scratch.path(), Some("_mlx_array_new"))?;
    match link(steps, home, scratch.path(), Some("_mlx_made_up")) {
        Err(error) if format!("{error:#}").contains("_mlx_made_up") => {
            println!("reported: a function that MLX does not have");
            Ok(())
        }
        Err(error) => {
            Err(error.context("the link failed, but not for the function that is missing"))
        }
        Ok(_) => bail!("this fault is not reported: a function that MLX does not have"),
    }
}

/// Returns `libmlxc.a`, compiled once per folder.
fn mlx_c(steps: &Steps, home: &Home) -> Result<PathBuf> {
    let folder = home.path.join("mlx-c");
    if folder.join("libmlxc.a").is_file() {
        return Ok(folder);
    }
    steps.say("compiling mlx-c for macOS (a minute or two)");
    let part = tempfile::tempdir_in(&home.path)?;
    let sources = setup::mlx_c_sources(setup::repository())?;
    let mut objects = Vec::new();
    for entry in fs::read_dir(sources.join("mlx/c"))? {
        let source = entry?.path();
        if source
            .extension()
            .is_none_or(|extension| extension != "cpp")
        {
            continue;
        }
        let object = part
            .path()
            .join(source.file_stem().unwrap_or_default())
            .with_extension("o");
        let mut compile = home.compiler(&[
            "c++",
            "-target",
            &format!("aarch64-macos.{MACOS}"),
            "-std=gnu++20",
            "-O2",
            "-fno-sanitize=all",
        ]);
        // With availability, so that nothing is used from C++'s library that this macOS lacks;
        // without sized deletion, which MLX's own library does not use either: see `sdk`.
        compile.args([
            "-fno-sized-deallocation",
            "-U_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS",
        ]);
        compile
            .args([
                "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1",
                "-c",
                "-I",
            ])
            .arg(&sources)
            .arg("-I")
            .arg(home.mlx().join("include"));
        steps.expect(
            compile.arg(&source).arg("-o").arg(&object),
            &format!("cannot compile {}", source.display()),
        )?;
        objects.push(object);
    }
    steps.expect(
        home.compiler(&["ar", "rcs"])
            .arg(part.path().join("libmlxc.a"))
            .args(&objects),
        "cannot write libmlxc.a",
    )?;
    let made = part.keep();
    fs::rename(&made, &folder)?;
    Ok(folder)
}

/// Builds our static library with mlx-c inside.
fn build(home: &Home, scratch: &Path, mlx_c: &Path, target: &str) -> Result<PathBuf> {
    let config = home.cargo_config(scratch, Some(mlx_c))?;
    let config = config
        .to_str()
        .context("the temporary folder's path is not UTF-8")?;
    dist::static_library(&[
        "--profile",
        "release",
        "--target",
        target,
        "--config",
        config,
    ])
}

/// Writes a file with the functions to export, in the form of Apple's linkers.
pub fn export_list(scratch: &Path, functions: &[String]) -> Result<PathBuf> {
    let path = scratch.join("exports");
    fs::write(
        &path,
        functions
            .iter()
            .map(|name| format!("_{name}\n"))
            .collect::<String>(),
    )?;
    Ok(path)
}

/// Returns rustc's linker for Mach-O, with the functions to export.
pub fn linker(home: &Home, scratch: &Path, functions: &[String]) -> Result<Command> {
    let exports = export_list(scratch, functions)?;
    let output = Command::new("rustc")
        .args(["--print", "target-libdir"])
        .output()
        .context("cannot run rustc")?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let lld = libraries
        .parent()
        .context("rustc's libraries are not in a folder")?
        .join("bin/rust-lld");
    if !lld.is_file() {
        bail!(
            "this Rust has no linker for other systems: {} is missing; rustup's toolchains have it",
            lld.display()
        );
    }
    let mut command = Command::new(lld);
    command
        .args([
            "-flavor",
            "darwin",
            "-arch",
            "arm64",
            "-dylib",
            "-dead_strip",
            "-exported_symbols_list",
        ])
        .arg(exports);
    command.current_dir(&home.path);
    Ok(command)
}

/// Returns what is wrong with a library for macOS.
fn look(library: &macho::Library, functions: &[String]) -> Vec<String> {
    let mut problems = super::verify::library(library, functions, Platform::MacOs);
    let known = [
        "@rpath/libmlx.dylib",
        "/usr/lib/libc++.1.dylib",
        "/usr/lib/libSystem.B.dylib",
    ];
    let strangers = library
        .loads
        .iter()
        .filter(|name| !known.contains(&name.as_str()));
    problems.extend(strangers.map(|name| format!("it loads {name}")));
    problems
}
