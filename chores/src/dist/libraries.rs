//! `lib/`: the shared and the static library, made from cargo's static library, and the parts of
//! MLX that they need.
//!
//! Cargo's static library has all symbols of all crates, of the Rust runtime and of mlx-c; two such
//! libraries in one program would clash. It is therefore linked into one object in which everything
//! but the header's functions is local. Both libraries are made from that object.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Release, tool};
use crate::setup::step::Steps;

const APPLE: bool = cfg!(target_vendor = "apple");

/// MLX and its dependencies in a set-up; the last folder has the BLAS that MLX loads by its full
/// name. They find each other through these folders, which therefore keep their names.
const MLX: [&str; 3] = ["mlx/lib", "mlx_cpu.libs", "scipy_openblas32/lib"];
const MLX_FILES: [&str; 4] = [
    "libmlx.so",
    "libblas-",
    "liblapack-",
    "libscipy_openblas.so",
];

/// Returns what a program needs with the static library, except for MLX. On Apple systems MLX is
/// inside it; that has not been run yet.
pub fn system_flags() -> &'static str {
    if APPLE {
        "-lc++ -lobjc -framework Foundation -framework Metal -framework Accelerate"
    } else {
        "-lstdc++ -lgcc_s -lpthread -lm -ldl"
    }
}

/// Returns the file's name, the name that linked programs look for, and the name that `-lmoxin_vlm`
/// finds.
pub fn shared_names(release: &Release) -> [String; 3] {
    let Release { abi, version, .. } = release;
    if APPLE {
        [
            format!("libmoxin_vlm.{abi}.{version}.dylib"),
            format!("libmoxin_vlm.{abi}.dylib"),
            "libmoxin_vlm.dylib".to_owned(),
        ]
    } else {
        [
            format!("libmoxin_vlm.so.{abi}.{version}"),
            format!("libmoxin_vlm.so.{abi}"),
            "libmoxin_vlm.so".to_owned(),
        ]
    }
}

pub fn write(
    steps: &Steps,
    library: &Path,
    release: &Release,
    mlx: Option<&Path>,
    part: &Path,
    lib: &Path,
) -> Result<()> {
    fs::create_dir_all(lib)?;
    match mlx {
        Some(mlx) => copy_mlx(mlx, &lib.join("moxin_vlm"))?,
        None => copy_metallib(lib)?,
    }
    let object = part.join("moxin_vlm.o");
    link_object(steps, library, release, part, &object)?;
    link_shared(steps, &object, release, part, lib)?;
    let archive = lib.join("libmoxin_vlm.a");
    let mut ar = if APPLE {
        Command::new("libtool")
    } else {
        Command::new("ar")
    };
    ar.args(if APPLE {
        &["-static", "-o"][..]
    } else {
        &["crsD"]
    })
    .arg(archive)
    .arg(object);
    tool(steps, &mut ar, "cannot write the static library")
}

/// Links one object from everything that the header's functions reach, in which every other name is
/// local.
fn link_object(
    steps: &Steps,
    library: &Path,
    release: &Release,
    part: &Path,
    object: &Path,
) -> Result<()> {
    let mut link = linker();
    link.args(["-nostdlib", "-r"]);
    if APPLE {
        link.arg(format!(
            "-Wl,-exported_symbols_list,{}",
            export_list(release, part)?.display()
        ));
        link.arg(format!("-Wl,-force_load,{}", library.display()))
            .arg("-o")
            .arg(object);
        return tool(steps, &mut link, "cannot link the static library");
    }
    // Without its groups, in which C++ compilers put inline functions: a program's linker would
    // keep one group per name, and drop ours although its names are local.
    link.args(["-Wl,--gc-sections", "-Wl,--force-group-allocation"]);
    link.args(
        release
            .functions
            .iter()
            .map(|name| format!("-Wl,--require-defined={name}")),
    );
    tool(
        steps,
        link.arg("-o").arg(object).arg(library),
        "cannot link the static library",
    )?;

    localize(steps, object)?;
    // objcopy ignores the "unique" names that C++ compilers give some constants, so these are made
    // weak first.
    let symbols = steps.expect(
        Command::new("nm")
            .args(["-g", "--defined-only"])
            .arg(object),
        "cannot list symbols",
    )?;
    let unique = symbols
        .lines()
        .filter_map(|line| line.split_once(" u "))
        .map(|(_, name)| format!("--weaken-symbol={name}"));
    tool(
        steps,
        Command::new("objcopy").args(unique).arg(object),
        "cannot hide what the static library does not export",
    )?;
    localize(steps, object)
}

/// Makes everything local except what the header declares.
fn localize(steps: &Steps, object: &Path) -> Result<()> {
    let mut objcopy = Command::new("objcopy");
    objcopy.args([
        "--wildcard",
        "--keep-global-symbol=moxin_*",
        "--strip-unneeded",
    ]);
    // Rust's standard library contains its intermediate code, which is useless here.
    objcopy.args(["--remove-section=.llvmbc", "--remove-section=.llvmcmd"]);
    tool(
        steps,
        objcopy.arg(object),
        "cannot hide what the static library does not export",
    )
}

fn link_shared(
    steps: &Steps,
    object: &Path,
    release: &Release,
    part: &Path,
    lib: &Path,
) -> Result<()> {
    let [file, run_name, link_name] = shared_names(release);
    let mut link = linker();
    link.arg("-o").arg(lib.join(&file)).arg(object);
    if APPLE {
        link.args(["-dynamiclib", "-Wl,-dead_strip", "-Wl,-x"])
            .arg(format!("-Wl,-install_name,@rpath/{run_name}"));
        link.arg(format!(
            "-Wl,-exported_symbols_list,{}",
            export_list(release, part)?.display()
        ));
    } else {
        link.args([
            "-shared",
            "-s",
            "-Wl,--gc-sections",
            "-Wl,--no-undefined",
            "-Wl,-rpath,$ORIGIN/moxin_vlm/mlx/lib",
        ]);
        link.arg(format!("-Wl,-soname,{run_name}")).arg(format!(
            "-Wl,--version-script={}",
            export_list(release, part)?.display()
        ));
        link.arg("-L")
            .arg(lib.join("moxin_vlm/mlx/lib"))
            .arg("-lmlx");
    }
    tool(
        steps,
        link.args(system_flags().split(' ')),
        "cannot link the shared library",
    )?;
    symlink(&file, lib.join(&run_name))?;
    symlink(&run_name, lib.join(link_name))?;
    Ok(())
}

/// Writes the header's functions in the form that the system's linker reads.
fn export_list(release: &Release, part: &Path) -> Result<PathBuf> {
    let path = part.join("exports");
    let names = |before: &str, after: &str| {
        release
            .functions
            .iter()
            .map(|name| format!("{before}{name}{after}\n"))
            .collect::<String>()
    };
    let text = if APPLE {
        names("_", "")
    } else {
        format!("{{ global:\n{}local: *; }};\n", names("", ";"))
    };
    fs::write(&path, text)?;
    Ok(path)
}

/// Returns the C compiler, which knows how to call the linker.
fn linker() -> Command {
    let choice = env::var("CC").unwrap_or_default();
    let mut words = choice.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("cc"));
    command.args(words);
    command
}

fn copy_mlx(mlx: &Path, destination: &Path) -> Result<()> {
    let mut missing = MLX_FILES.to_vec();
    for folder in MLX {
        let source = mlx.join(folder);
        if !source.is_dir() {
            bail!(
                "{} has no {folder}: only MLX for the CPU can be packaged (`cargo xtask setup \
                 --backend cpu`)",
                mlx.display()
            );
        }
        fs::create_dir_all(destination.join(folder))?;
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(found) = missing.iter().position(|file| name.starts_with(file)) else {
                continue;
            };
            missing.remove(found);
            fs::copy(entry.path(), destination.join(folder).join(&name))
                .with_context(|| format!("cannot copy {name}"))?;
        }
    }
    if !missing.is_empty() {
        bail!("{} has no {}", mlx.display(), missing.join(" and no "));
    }
    Ok(())
}

/// Copies MLX's GPU code, which MLX expects next to the library that it is in.
fn copy_metallib(lib: &Path) -> Result<()> {
    fs::copy(metallib()?, lib.join("mlx.metallib"))?;
    Ok(())
}

/// Returns MLX's GPU code, which mlx-sys keeps below the home folder.
pub fn metallib() -> Result<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = env::var_os("MLX_RS_METAL_PATH") {
        folders.push(PathBuf::from(folder));
    } else if let Some(home) = env::var_os("HOME") {
        let all = fs::read_dir(Path::new(&home).join(".mlx/lib"))
            .context("no MLX GPU code in ~/.mlx/lib: has the library been built?")?;
        folders.extend(all.filter_map(|entry| Some(entry.ok()?.path())));
    }
    let files = folders.iter().map(|folder| folder.join("mlx.metallib"));
    let newest = files
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file)))
        .max();
    let (_, file) =
        newest.context("there is no mlx.metallib in ~/.mlx/lib or $MLX_RS_METAL_PATH")?;
    Ok(file)
}
