//! Sets up MLX on Linux. On macOS, mlx-sys builds MLX itself; on Linux its build script cannot.
//! This crate assembles MLX from published parts and tells cargo to use that instead:
//!
//! 1. `wheels`: MLX, OpenBLAS and the build tools, as wheels pinned by version and hash.
//! 2. `bindings.rs`: the Rust declarations of mlx-c that mlx-sys would have generated.
//! 3. `native`: mlx-c, from the sources inside mlx-sys; OpenBLAS in place of the wheel's BLAS.
//! 4. `cargo_config`: `.cargo/mlx.toml`, which makes cargo skip the build script of mlx-sys.
//!
//! The result is in the user's cache folder, under a name computed from all its inputs, and is
//! shared by all clones. It is built next to its final path and renamed when complete.

pub mod apt;
mod cargo_config;
pub mod cmake;
mod native;
pub mod step;
pub mod wheels;

pub use native::{executable, half_shim, mlx_c_sources, openblas};

use std::env::{
    self,
    consts::{ARCH, OS},
};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use sha2::{Digest, Sha256};

use step::Steps;

/// The version of MLX in the wheels, and the version of mlx-sys whose mlx-c was written for it.
const MLX_VERSION: &str = "0.32.2";
const MLX_SYS_VERSION: &str = "0.7.0";

/// The Rust declarations of mlx-c. A chore of the repository writes them with bindgen, and checks
/// that they are those of [`MLX_SYS_VERSION`].
const BINDINGS: &str = include_str!("../bindings/x86_64-unknown-linux-gnu.rs");

/// The prefix of the folders in which a set-up is built.
const PART: &str = "part-";

/// The device that MLX computes on.
#[derive(Clone, Copy, PartialEq, Debug, ValueEnum)]
pub enum Backend {
    Cpu,
    /// NVIDIA GPUs, through CUDA 13
    Cuda,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        }
    }
}

/// Gets MLX for the project in a folder if it is missing, configures cargo there to use it, and
/// reports what it finds and does.
pub fn for_project(project: &Path, backend: Option<Backend>) -> Result<()> {
    if !is_needed(OS, ARCH)? {
        println!("Nothing to set up: on macOS cargo builds MLX itself, with Metal.");
        return Ok(());
    }
    cargo_config::check_project(project)?;
    let home = prepare(project, backend)?;
    println!("MLX {MLX_VERSION} is ready in {}", home.path.display());
    if env::var_os("RUSTFLAGS").is_some() {
        println!(
            "Note: RUSTFLAGS is set, so cargo ignores the flags in .cargo/mlx.toml; add \
             --cfg=moxin_mlx -Clink-arg=-Wl,-rpath,{}",
            home.library_folder().display()
        );
    }
    cargo_config::include(project)
}

/// Gets MLX for the project in a folder if it is missing; silent otherwise. The project's
/// `.cargo/config.toml` must include `mlx.toml`. Returns MLX's folder if it needs a set-up.
pub fn ensure(project: &Path) -> Result<Option<PathBuf>> {
    if !is_needed(OS, ARCH)? {
        return Ok(None);
    }
    Ok(Some(prepare(project, None)?.path))
}

/// Returns whether this kind of machine needs the set-up; an error if there is no MLX for it.
fn is_needed(os: &str, arch: &str) -> Result<bool> {
    match (os, arch) {
        ("macos", "aarch64") => Ok(false),
        ("macos", _) => {
            bail!("MLX needs a Mac with Apple silicon; this one has an Intel processor")
        }
        ("linux", "x86_64") => Ok(true),
        ("linux", "aarch64") => bail!(
            "mlx-rs 0.33 does not compile on 64-bit ARM Linux (its 16-bit float types differ \
             there): use x86-64 Linux, or a Mac with Apple silicon"
        ),
        ("linux", other) => bail!(
            "there is no MLX for Linux on {other} CPUs: use x86-64 Linux, or a Mac with Apple \
                silicon"
        ),
        (other, _) => bail!(
            "there is no MLX for {other}: use x86-64 Linux (on Windows: inside WSL), or a Mac with \
             Apple silicon"
        ),
    }
}

/// Returns cargo in a folder.
pub fn cargo(folder: &Path) -> Command {
    // Cargo sets this for the programs it runs.
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(folder);
    command
}

/// Runs a program whose output goes to the user.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("{} failed ({status})", program.display());
    }
    Ok(())
}

/// Returns a complete MLX, after configuring cargo in a project to use it.
fn prepare(project: &Path, backend: Option<Backend>) -> Result<Home> {
    let backend = backend
        .or_else(|| cargo_config::backend(project))
        .unwrap_or(Backend::Cpu);
    let home = Home::new(&cache_folder()?, backend);
    if !home.is_complete() {
        install(&home, project)?;
    }
    cargo_config::write(project, &home)?;
    Ok(home)
}

/// Returns the folder for complete set-ups and other large files: `$MOXIN_MLX_HOME`, or `moxin-vlm`
/// in the user's cache folder.
pub fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(given) = env::var_os("MOXIN_MLX_HOME") {
        return absolute("MOXIN_MLX_HOME")
            .ok_or_else(|| anyhow!("MOXIN_MLX_HOME is {given:?}: use an absolute path"));
    }
    let cache =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let cache = cache.context(
        "neither HOME nor XDG_CACHE_HOME is set: set MOXIN_MLX_HOME to a folder for MLX",
    )?;
    Ok(cache.join("moxin-vlm"))
}

/// A set-up of MLX on disk.
struct Home {
    path: PathBuf,
    backend: Backend,
}

impl Home {
    fn new(cache: &Path, backend: Backend) -> Home {
        let name = format!(
            "mlx-{MLX_VERSION}-{}-{}",
            backend.name(),
            recipe_hash(backend)
        );
        Home {
            path: cache.join(name),
            backend,
        }
    }

    /// A folder gets its name only when it is complete; the files are checked all the same, because
    /// cache folders get cleaned.
    fn is_complete(&self) -> bool {
        [
            self.library_folder().join("libmlx.so"),
            self.static_library_folder().join("libmlxc.a"),
            self.bindings_folder().join("bindings.rs"),
            openblas(&self.path),
        ]
        .iter()
        .all(|file| file.is_file())
    }

    fn library_folder(&self) -> PathBuf {
        self.path.join("mlx/lib")
    }

    fn static_library_folder(&self) -> PathBuf {
        self.path.join("lib")
    }

    fn bindings_folder(&self) -> PathBuf {
        self.path.join("bindings")
    }
}

/// Returns twelve hexadecimal digits that change with every input of a set-up.
fn recipe_hash(backend: Backend) -> String {
    let mut hash = Sha256::new_with_prefix(MLX_SYS_VERSION);
    hash.update(BINDINGS);
    for text in wheels::requirements(backend) {
        hash.update(text);
    }
    for (name, text) in native::RECIPE {
        hash.update(name);
        hash.update(text);
    }
    hash.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Makes `home` from the mlx-c sources that a project depends on, and explains disk problems.
fn install(home: &Home, project: &Path) -> Result<()> {
    let cache = home.path.parent().unwrap_or(&home.path);
    let build = |part: &Path| build(part, home, project);
    make(&home.path, || home.is_complete(), build).map_err(|error| {
        match error.downcast_ref::<io::Error>() {
            Some(io) if io.kind() == io::ErrorKind::StorageFull => anyhow!(
                "the disk of {} is full: free some space (0.5 GB, for cuda 6 GB), or set \
                 MOXIN_MLX_HOME to a folder on another disk",
                cache.display()
            ),
            Some(io) => anyhow!(
                "cannot write to {} ({io}): set MOXIN_MLX_HOME to a writable folder",
                cache.display()
            ),
            None => error,
        }
    })
}

/// Makes a folder in the cache folder, unless another process has just made it. `build` gets an
/// empty folder next to it and returns the part of it that is moved to the final path when
/// complete.
pub fn make(
    home: &Path,
    is_complete: impl Fn() -> bool,
    build: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<()> {
    let cache = home.parent().unwrap_or(home);
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join("lock"))?;
    if lock.try_lock().is_err() {
        println!("Another set-up is running; waiting for it …");
        lock.lock()?;
    }
    if is_complete() {
        return Ok(()); // the other one made it
    }

    remove_parts(cache)?;
    let part = cache.join(format!("{PART}{}", std::process::id()));
    fs::create_dir_all(&part)?;
    let outcome = build(&part).and_then(|made| {
        remove(home)?;
        Ok(fs::rename(made, home)?)
    });
    remove(&part).ok(); // otherwise the next run removes it
    outcome
}

/// Builds everything in `part`; returns the folder of the result.
fn build(part: &Path, home: &Home, project: &Path) -> Result<PathBuf> {
    let folder = |name: &str| -> Result<PathBuf> {
        let path = part.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let (downloads, tools, made) = (folder("wheels")?, folder("tools")?, folder("home")?);
    let made = Home {
        path: made,
        backend: home.backend,
    };
    let steps = Steps::new(part.with_file_name("setup.log"), folder("tmp")?);

    native::check_c_library()?;
    wheels::check_python()?;
    let compiler = native::Compiler::find()?;
    let mlx_c = mlx_c_sources(project)?;

    steps.say(&format!(
        "fetching MLX {MLX_VERSION} ({}) and its build tools",
        home.backend.name()
    ));
    wheels::download(
        &steps,
        &wheels::requirements(home.backend).concat(),
        &[],
        &downloads,
    )?;
    steps.say("unpacking");
    wheels::unpack(&steps, &downloads, &made.path, &tools)?;
    fs::create_dir_all(made.bindings_folder())?;
    fs::write(made.bindings_folder().join("bindings.rs"), BINDINGS)?;
    let recipe = native::write_recipe(&folder("native")?)?;
    steps.say("building mlx-c (a minute or so)");
    let built = native::build(&steps, &tools, &recipe, &mlx_c, &compiler, &made)?;
    let found = native::check(&steps, &built, home.backend)?;
    steps.say(&found);
    Ok(made.path)
}

/// Removes what interrupted runs have left. The caller has the lock.
fn remove_parts(cache: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PART))
        {
            remove(&path).ok(); // its compiler may still be running
        }
    }
    Ok(())
}

/// Removes a folder if it exists.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_without_mlx_are_told_why() {
        assert!(is_needed("linux", "x86_64").unwrap());
        assert!(!is_needed("macos", "aarch64").unwrap());
        for (os, arch, word) in [
            ("linux", "aarch64", "ARM"),
            ("linux", "riscv64", "riscv64"),
            ("macos", "x86_64", "Intel"),
            ("windows", "x86_64", "WSL"),
            ("freebsd", "x86_64", "freebsd"),
        ] {
            let message = is_needed(os, arch).unwrap_err().to_string();
            assert!(message.contains(word), "{os} {arch}: {message}");
            assert_eq!(message.lines().count(), 1);
        }
    }

    #[test]
    fn each_backend_has_its_own_folder_of_which_all_parts_are_needed() {
        let cache = tempfile::tempdir().unwrap();
        let home = Home::new(cache.path(), Backend::Cpu);
        assert_ne!(home.path, Home::new(cache.path(), Backend::Cuda).path);

        let files = ["mlx/lib/libmlx.so", "lib/libmlxc.a", "bindings/bindings.rs"];
        for file in files
            .map(|file| home.path.join(file))
            .into_iter()
            .chain([openblas(&home.path)])
        {
            assert!(!home.is_complete());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        assert!(home.is_complete());
    }
}
