//! Writes `.cargo/mlx.toml`, which tells cargo what the build script of mlx-sys would have told it.
//! Its paths are specific to this machine, so it is generated and never checked in.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use toml::{Table, Value};

use crate::{Backend, Home, MLX_VERSION};

const INCLUDE: &str = r#"include = [{ path = "mlx.toml", optional = true }]"#;

/// Writes `.cargo/mlx.toml` below a project, unless it exists and is correct.
pub fn write(project: &Path, home: &Home) -> Result<()> {
    let folder = project.join(".cargo");
    let file = folder.join("mlx.toml");
    let text = render(home)?;
    if fs::read_to_string(&file).is_ok_and(|present| present == text) {
        return Ok(());
    }
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&file, text))
        .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", file.display()))
}

/// Fails unless there is a cargo project in a folder.
pub fn check_project(project: &Path) -> Result<()> {
    if !project.join("Cargo.toml").is_file() {
        bail!(
            "{} has no Cargo.toml: name the folder of a cargo project",
            project.display()
        );
    }
    Ok(())
}

/// Makes a project's `config.toml` include `mlx.toml`, or prints how.
pub fn include(project: &Path) -> Result<()> {
    let config = project.join(".cargo/config.toml");
    match fs::read_to_string(&config) {
        Err(_) => {
            fs::write(&config, format!("{INCLUDE}\n"))
                .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", config.display()))?;
            println!(
                "Wrote .cargo/config.toml and .cargo/mlx.toml in {}",
                project.display()
            );
        }
        Ok(text) if includes_mlx(&text) => {
            println!("Wrote .cargo/mlx.toml in {}", project.display());
        }
        Ok(_) => {
            println!("Wrote .cargo/mlx.toml in {}", project.display());
            println!(
                "Add this line at the top of {}:\n\n    {INCLUDE}\n",
                config.display()
            );
        }
    }
    println!("Keep .cargo/mlx.toml out of version control: its paths are this machine's.");
    Ok(())
}

fn includes_mlx(config: &str) -> bool {
    let Ok(config) = config.parse::<Table>() else {
        return false;
    };
    let includes = config.get("include").map(Value::to_string);
    includes.is_some_and(|includes| includes.contains("mlx.toml"))
}

/// Returns the backend that a project's `mlx.toml` was written for.
pub fn backend(project: &Path) -> Option<Backend> {
    let text = fs::read_to_string(project.join(".cargo/mlx.toml")).ok()?;
    let config: Table = text.parse().ok()?;
    let mlx = config
        .get("target")?
        .get("x86_64-unknown-linux-gnu")?
        .get("mlx")?;
    Backend::from_str(mlx.get("backend")?.as_str()?, false).ok()
}

fn render(home: &Home) -> Result<String> {
    let quote = |path: &Path| -> Result<String> {
        let path = path.to_str().with_context(|| {
            format!("{} is not a UTF-8 path, which cargo needs", path.display())
        })?;
        Ok(path.to_owned())
    };
    let value = |text: String| Value::String(text);
    let libraries = quote(&home.library_folder())?;
    let run_path = value(format!("-Clink-arg=-Wl,-rpath,{libraries}"));
    Ok(format!(
        r#"# Written by moxin-vlm-setup for this machine; not to be checked in.

[target.x86_64-unknown-linux-gnu]
# Without this flag moxin-vlm has no dependencies, and says that the set-up is missing.
rustflags = ["--cfg=moxin_mlx", {run_path}]
rustdocflags = [{run_path}]

# Read by moxin-vlm-check-setup, to tell whether the flags are ignored.
[env]
MOXIN_MLX = {{ value = "{MLX_VERSION}", force = true }}

# In place of the build script of mlx-sys.
[target.x86_64-unknown-linux-gnu.mlx]
rustc-link-search = [{static_search}, {search}]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = {{ OUT_DIR = {bindings} }}
# What build scripts of crates that depend on mlx-sys see as DEP_MLX_VERSION and so on.
version = "{MLX_VERSION}"
backend = "{backend}"
libdir = {libdir}
"#,
        static_search = value(format!("native={}", quote(&home.static_library_folder())?)),
        search = value(format!("native={libraries}")),
        bindings = value(quote(&home.bindings_folder())?),
        backend = home.backend.name(),
        libdir = value(libraries.clone()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_reads_what_is_written() {
        let project = tempfile::tempdir().unwrap();
        let home = Home {
            path: "/a \"home\"\\of/mlx".into(),
            backend: Backend::Cuda,
        };
        assert_eq!(backend(project.path()), None);
        write(project.path(), &home).unwrap();

        assert_eq!(backend(project.path()), Some(Backend::Cuda));
        let text = fs::read_to_string(project.path().join(".cargo/mlx.toml")).unwrap();
        let config: Table = text.parse().unwrap();
        let target = &config["target"]["x86_64-unknown-linux-gnu"];
        assert_eq!(
            target["mlx"]["rustc-env"]["OUT_DIR"].as_str(),
            home.bindings_folder().to_str()
        );
        assert_eq!(
            target["mlx"]["libdir"].as_str(),
            home.library_folder().to_str()
        );
    }

    #[test]
    fn another_project_gets_the_include_line_but_its_own_config_is_left_alone() {
        let project = tempfile::tempdir().unwrap();
        let home = Home {
            path: "/home".into(),
            backend: Backend::Cpu,
        };
        assert!(check_project(project.path()).is_err(), "no Cargo.toml");

        fs::write(project.path().join("Cargo.toml"), "").unwrap();
        check_project(project.path()).unwrap();
        write(project.path(), &home).unwrap();
        include(project.path()).unwrap();
        let config = project.path().join(".cargo/config.toml");
        assert!(includes_mlx(&fs::read_to_string(&config).unwrap()));

        let own = "[alias]\nb = \"build\"\n";
        fs::write(&config, own).unwrap();
        include(project.path()).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), own);
        assert!(!includes_mlx(own));
    }
}
