//! Compiles mlx-c and the libraries that connect MLX with OpenBLAS; see `native/CMakeLists.txt`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::step::Steps;
use crate::wheels::find_below;
use crate::{Backend, Home, MLX_SYS_VERSION, cargo};

/// The CMake project.
pub const RECIPE: [(&str, &str); 6] = [
    ("CMakeLists.txt", include_str!("native/CMakeLists.txt")),
    ("MLXConfig.cmake", include_str!("native/MLXConfig.cmake")),
    ("half_shim.h", include_str!("native/half_shim.h")),
    ("mach_time.cpp", include_str!("native/mach_time.cpp")),
    ("openblas.S", include_str!("native/openblas.S")),
    ("check.cpp", include_str!("native/check.cpp")),
];

/// Returns the header that mlx-c's sources and bindings need on Linux.
pub fn half_shim() -> &'static str {
    include_str!("native/half_shim.h")
}

/// Returns OpenBLAS in a set-up.
pub fn openblas(home: &Path) -> PathBuf {
    home.join("scipy_openblas32/lib/libscipy_openblas.so")
}

/// MLX's wheels are made for glibc 2.35 and newer.
pub fn check_c_library() -> Result<()> {
    match Command::new("getconf").arg("GNU_LIBC_VERSION").output() {
        Ok(output) => accept_c_library(&String::from_utf8_lossy(&output.stdout)),
        Err(_) => Ok(()), // it will show when the check program runs
    }
}

fn accept_c_library(name: &str) -> Result<()> {
    let version = name.trim().strip_prefix("glibc ").unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(2), Some(35)) {
        bail!(
            "MLX needs glibc 2.35 or newer, and this system has {}: use a newer one, such as \
             Debian 12 or Ubuntu 22.04",
            if version.is_empty() {
                "another C library"
            } else {
                version
            }
        );
    }
    Ok(())
}

/// The system's C++ compiler: a program, and arguments if `$CXX` has some.
pub struct Compiler(Vec<String>);

impl Compiler {
    pub fn find() -> Result<Compiler> {
        let runs = |words: &[String]| {
            let [program, arguments @ ..] = words else {
                return false;
            };
            let output = Command::new(program)
                .args(arguments)
                .arg("--version")
                .output();
            output.is_ok_and(|output| output.status.success())
        };
        if let Ok(given) = env::var("CXX") {
            let words: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
            if !runs(&words) {
                bail!(
                    "CXX is set to {given:?}, which does not run: set it to a C++ compiler, or \
                     unset it"
                );
            }
            return Ok(Compiler(words));
        }
        ["c++", "g++", "clang++"]
            .map(|name| vec![name.to_owned()])
            .into_iter()
            .find(|words| runs(words))
            .map(Compiler)
            .context(
                "there is no C++ compiler (c++, g++ or clang++), which builds mlx-c: install \
                one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or set CXX",
            )
    }
}

/// Returns the mlx-c sources inside mlx-sys, which cargo fetches if needed.
pub fn mlx_c_sources(project: &Path) -> Result<PathBuf> {
    let output = cargo(project)
        .args(["metadata", "--quiet", "--format-version=1"])
        .arg("--filter-platform=x86_64-unknown-linux-gnu")
        // As `.cargo/mlx.toml` does, which may be missing; without it there is no mlx-sys.
        .arg("--config=target.x86_64-unknown-linux-gnu.rustflags=['--cfg=moxin_mlx']")
        .env_remove("RUSTFLAGS")
        .output()
        .map_err(|error| anyhow!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        bail!(
            "cargo cannot get the sources of mlx-sys: check the network, and that `cargo fetch` \
             works\n{}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("what `cargo metadata` printed")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mlx_sys = packages
        .into_iter()
        .find(|package| package["name"] == "mlx-sys")
        .with_context(|| {
            format!(
                "{} does not depend on moxin-vlm: add it first (`cargo add moxin-vlm`)",
                project.display()
            )
        })?;
    if mlx_sys["version"] != MLX_SYS_VERSION {
        bail!(
            "Cargo.lock has mlx-sys {}, but this set-up is for {MLX_SYS_VERSION}: use the \
             moxin-vlm-setup of the same version as moxin-vlm",
            mlx_sys["version"]
        );
    }
    let manifest = Path::new(mlx_sys["manifest_path"].as_str().unwrap_or_default());
    Ok(manifest.with_file_name("src").join("mlx-c"))
}

/// Writes the CMake project into a folder, and returns the folder.
pub fn write_recipe(folder: &Path) -> Result<PathBuf> {
    for (name, text) in RECIPE {
        fs::write(folder.join(name), text)?;
    }
    Ok(folder.to_owned())
}

/// Compiles everything into `home`; returns the folder with the check program.
pub fn build(
    steps: &Steps,
    tools: &Path,
    recipe: &Path,
    mlx_c: &Path,
    compiler: &Compiler,
    home: &Home,
) -> Result<PathBuf> {
    let cmake = executable(find_below(tools, "bin/cmake")?)?;
    let ninja = executable(find_below(tools, "scripts/ninja")?)?;
    let folder = recipe.join("build");
    let define = |name: &str, value: &Path| format!("-D{name}={}", value.display());

    let mut configure = Command::new(&cmake);
    configure
        .args(["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-S"])
        .arg(recipe)
        .arg("-B")
        .arg(&folder)
        .arg(define("CMAKE_MAKE_PROGRAM", &ninja))
        .arg(define("HOME", &home.path))
        .arg(define("MLX_C", mlx_c))
        .arg(format!("-DBLAS={}", reference_blas(&home.path)?.join(";")))
        .arg(format!("-DCUDA={}", home.backend == Backend::Cuda))
        .env("CXX", compiler.0.join(" "));
    steps.expect(&mut configure, "cmake cannot configure the build of mlx-c")?;

    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut build = Command::new(&cmake);
    build
        .arg("--build")
        .arg(&folder)
        .arg(format!("--parallel={cores}"));
    steps.expect(&mut build, "mlx-c does not compile")?;
    Ok(folder)
}

/// Returns the BLAS and LAPACK files in the MLX wheel.
fn reference_blas(home: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(home)? {
        let folder = entry?.path();
        if folder
            .extension()
            .is_none_or(|extension| extension != "libs")
        {
            continue;
        }
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libblas-") || name.starts_with("liblapack-") {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    if found.len() != 2 {
        bail!("the MLX wheel should have one libblas and one liblapack, but has {found:?}");
    }
    Ok(found)
}

/// Runs a matrix product with the result, and prints its speed.
pub fn check(steps: &Steps, folder: &Path, backend: Backend) -> Result<String> {
    let failure = match steps.run(&mut Command::new(folder.join("check")))? {
        Ok(rate) => {
            return Ok(format!(
                "checked: f32 matrix products run at {} GFLOP/s on OpenBLAS",
                rate.trim()
            ));
        }
        Err(failure) => failure,
    };
    if backend == Backend::Cuda && failure.text.contains("libcuda.so.1") {
        return Ok(
            "not checked: this machine has no NVIDIA driver, so the CUDA build of MLX cannot run"
                .into(),
        );
    }
    Err(match failure.code {
        Some(2) => anyhow!(
            "MLX on OpenBLAS multiplies incorrectly on this machine: please report it with the \
                name of the CPU"
        ),
        Some(3) => anyhow!("MLX does not use the OpenBLAS that was installed: please report it"),
        _ => steps.report("MLX was built but does not run", &failure),
    })
}

/// Python's zipfile does not set the permission to execute.
pub fn executable(file: PathBuf) -> Result<PathBuf> {
    #[cfg(unix)]
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_foreign_c_libraries_are_refused() {
        for name in ["glibc 2.35\n", "glibc 2.41", "glibc 3.0"] {
            accept_c_library(name).unwrap();
        }
        for name in ["glibc 2.31\n", "glibc 2.9", ""] {
            let message = accept_c_library(name).unwrap_err().to_string();
            assert!(message.contains("glibc 2.35 or newer"), "{message}");
        }
    }

    #[test]
    fn the_wheel_must_carry_the_blas_that_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let libraries = home.path().join("mlx_cpu.libs");
        fs::create_dir(&libraries).unwrap();
        for name in ["libblas-1.so.3", "libgfortran-1.so.5"] {
            fs::write(libraries.join(name), "").unwrap();
        }
        assert!(reference_blas(home.path()).is_err());
        fs::write(libraries.join("liblapack-1.so.3"), "").unwrap();
        assert_eq!(reference_blas(home.path()).unwrap().len(), 2);
    }
}
