//! Tests the dependencies between modules: a model is one folder, one module computes, and the C
//! ABI uses only the runtime.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the source files below a folder.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// Returns the code of a file, without comments and unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A new architecture is one folder and one line in the list; no other file knows its name.
#[test]
fn nothing_but_its_folder_names_an_architecture() {
    let folders: Vec<String> = fs::read_dir("src/models")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(folders.len() >= 4, "{folders:?}");
    // The list; the names of moxin-vlm-mlx, and the page that shows them.
    let may = ["src/models/mod.rs", "src/compat.rs", "src/lib.rs"].map(PathBuf::from);
    for path in sources("src")
        .into_iter()
        .filter(|path| !may.contains(path))
    {
        let text = code(&path).to_lowercase();
        for name in &folders {
            let is_own = path.starts_with(Path::new("src/models").join(name));
            assert!(
                is_own || !text.contains(name.as_str()),
                "{} names {name}",
                path.display()
            );
        }
    }
}

#[test]
fn models_compute_through_one_room() {
    for path in ["src/nn", "src/models", "src/generate"]
        .into_iter()
        .flat_map(sources)
    {
        assert!(
            !code(&path).contains("mlx_rs"),
            "{} names mlx-rs",
            path.display()
        );
        assert!(
            !code(&path).contains("::kernels("),
            "{} asks which kernels are active",
            path.display()
        );
    }
}

#[test]
fn the_c_abi_sees_the_runtime_alone() {
    for path in sources("src/ffi") {
        let text = code(&path);
        let uses = text
            .split("use crate::")
            .skip(1)
            .map(|rest| rest.split(';').next().unwrap());
        for names in uses {
            let outside = names.replace("Error", "").replace("Result", "");
            let rooms = [
                "checkpoint",
                "compat",
                "device",
                "error",
                "file",
                "generate",
                "image",
                "models",
                "nn",
                "panic",
                "process",
                "text",
            ];
            let first = |room: &&str| {
                outside.starts_with(*room) || outside.contains(&format!("\n    {room}::"))
            };
            assert!(
                !rooms.iter().any(first),
                "{}: use crate::{names}",
                path.display()
            );
        }
        assert!(!text.contains("mlx_rs"), "{} names mlx-rs", path.display());
    }
    assert!(
        !code(Path::new("src/panic.rs")).contains("crate::"),
        "panic.rs depends on something"
    );
}
