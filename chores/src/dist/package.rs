//! `include/`, and the files for pkg-config and CMake. All paths in them are relative to the file,
//! so that the folder can be moved.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Release;
use super::libraries::{shared_names, system_flags};
use crate::setup;

const HEADERS: [&str; 3] = ["moxin_vlm.h", "moxin_vlm.hpp", "module.modulemap"];

const TEMPLATES: [(&str, &str); 5] = [
    (
        "pkgconfig/moxin_vlm.pc",
        include_str!("package/moxin_vlm.pc"),
    ),
    (
        "pkgconfig/moxin_vlm-static.pc",
        include_str!("package/moxin_vlm-static.pc"),
    ),
    (
        "pkgconfig/moxin_vlm-swift.pc",
        include_str!("package/moxin_vlm-swift.pc"),
    ),
    (
        "cmake/moxin_vlm/moxin_vlm-config.cmake",
        include_str!("package/moxin_vlm-config.cmake"),
    ),
    (
        "cmake/moxin_vlm/moxin_vlm-config-version.cmake",
        include_str!("package/moxin_vlm-config-version.cmake"),
    ),
];

/// MLX's folder in `lib/`; on Apple systems it is inside our libraries.
const MLX_FOLDER: &str = "moxin_vlm/mlx/lib";

pub fn write(release: &Release, prefix: &Path) -> Result<()> {
    let include = prefix.join("include");
    fs::create_dir_all(&include)?;
    for name in HEADERS {
        fs::copy(
            setup::repository().join("include").join(name),
            include.join(name),
        )
        .with_context(|| format!("cannot copy {name}"))?;
    }
    for (name, template) in TEMPLATES {
        let path = prefix.join("lib").join(name);
        fs::create_dir_all(path.parent().context("a file without a folder")?)?;
        fs::write(path, fill(template, release, cfg!(target_vendor = "apple")))?;
    }
    Ok(())
}

fn fill(template: &str, release: &Release, apple: bool) -> String {
    let [file, run_name, _] = shared_names(release);
    let (flags, system) = if apple {
        (String::new(), "Darwin")
    } else {
        (
            format!("-L${{libdir}}/{MLX_FOLDER} -lmlx -Wl,-rpath,${{libdir}}/{MLX_FOLDER} "),
            "Linux",
        )
    };
    template
        .replace("@VERSION@", &release.version)
        .replace("@SHARED_FILE@", &file)
        .replace("@SHARED_NAME@", &run_name)
        .replace("@STATIC_FLAGS@", &(flags + system_flags()))
        .replace(
            "@SYSTEM_LIBRARIES@",
            &system_flags()
                .replace("-framework ", "-framework@")
                .replace(' ', ";")
                .replace('@', " "),
        )
        .replace(
            "@MLX_FILE@",
            if apple {
                ""
            } else {
                "moxin_vlm/mlx/lib/libmlx.so"
            },
        )
        .replace("@SYSTEM@", system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled() {
        let release = Release {
            version: "1.2.3".into(),
            abi: 4,
            target: "x".into(),
            functions: Vec::new(),
        };
        for (name, template) in TEMPLATES {
            for apple in [false, true] {
                let text = fill(template, &release, apple);
                let place = text
                    .split('@')
                    .nth(1)
                    .filter(|word| word.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
                assert_eq!(place, None, "{name}");
                assert!(
                    !text.contains("/home") && !text.contains(env!("CARGO_MANIFEST_DIR")),
                    "{name}"
                );
            }
        }
    }
}
