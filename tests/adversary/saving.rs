//! Saving destroys nothing but the model that it replaces, gives others no access, and there is a
//! complete model at any moment.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use moxin_vlm::{Error, LoadOptions, Model, Op, Quantization, QuantizeOptions, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    child::{Limits, Program, in_child},
    programs::{copy_tiny, succeed, tiny},
};

fn load(folder: impl AsRef<Path>) -> Model {
    Model::load(folder, LoadOptions::default(), Op::default()).unwrap()
}

fn save(model: &Model, place: impl AsRef<Path>) -> Result<()> {
    model.save(place, true, Op::default())
}

/// Returns a folder for everything that a test makes, which others may enter and change.
fn open_place() -> TempDir {
    let place = TempDir::new().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
    place
}

/// Copies and loads the small model.
fn source(place: &TempDir) -> (PathBuf, Model) {
    let source = place.path().join("source");
    copy_tiny(&source);
    let model = load(&source);
    (source, model)
}

/// Returns the folders in which models are or were being written.
fn hidden(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(".moxin-vlm-")
        })
        .map(|entry| entry.path())
        .collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

// It gives others no access.

#[test]
fn other_users_cannot_enter_a_folder_being_written() {
    in_child(
        "saving::other_users_cannot_enter_a_folder_being_written",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let (_, model) = source(&place);
            let target = place.path().join("target");
            let mut seen = Vec::new();
            // The model is small: it may be written before anyone notices.
            for _ in 0..20 {
                let mut look = |_, _| {
                    seen.extend(hidden(place.path()).iter().map(|folder| mode(folder)));
                    true
                };
                model
                    .save(
                        &target,
                        true,
                        Op {
                            progress: Some(&mut look),
                            ..Op::default()
                        },
                    )
                    .unwrap();
                if !seen.is_empty() {
                    break;
                }
            }
            assert!(
                !seen.is_empty() && seen.iter().all(|mode| *mode == 0o700),
                "{seen:?}"
            );
            // At its final path it has the permissions of any new folder, and so do its files: the
            // umask of these tests is 0.
            assert_eq!(mode(&target), 0o777);
            names(&target)
                .iter()
                .for_each(|file| assert_eq!(mode(&target.join(file)), 0o666, "{file}"));
            // A folder that others could not enter stays that way.
            fs::set_permissions(&target, Permissions::from_mode(0o700)).unwrap();
            save(&model, &target).unwrap();
            assert_eq!(mode(&target), 0o700);
        },
    );
}

#[test]
fn a_link_in_a_folder_being_written_is_not_followed() {
    in_child(
        "saving::a_link_in_a_folder_being_written_is_not_followed",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let (_, model) = source(&place);
            let victim = place.path().join("victim");
            fs::write(&victim, "mine").unwrap();
            let target = place.path().join("target");
            // The configuration is written after the weights.
            let refused = (0..50).find_map(|_| {
                let mut plant = |_, _| {
                    hidden(place.path())
                        .iter()
                        .for_each(|folder| drop(symlink(&victim, folder.join("config.json"))));
                    true
                };
                let saved = model.save(
                    &target,
                    true,
                    Op {
                        progress: Some(&mut plant),
                        ..Op::default()
                    },
                );
                assert_eq!(fs::read(&victim).unwrap(), b"mine");
                assert!(hidden(place.path()).is_empty());
                saved.err()
            });
            assert!(
                matches!(&refused, Some(Error::Io { path, .. }) if path.ends_with("config.json")),
                "{refused:?}"
            );
        },
    );
}

#[test]
fn another_user_changes_nothing() {
    in_child(
        "saving::another_user_changes_nothing",
        Limits::mebibytes(512),
        || {
            let nobody = |script: &str| {
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                    "sh",
                    "-c",
                    script,
                ]);
                command
            };
            if !nobody("true")
                .output()
                .is_ok_and(|output| output.status.success())
            {
                println!("SKIPPED: only root can be another user");
                return;
            }
            let place = open_place();
            let (_, model) = source(&place);
            let victim = place.path().join("victim");
            fs::write(&victim, "mine").unwrap();
            fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
            let target = place.path().join("target");
            let plant = "while :; do for d in .moxin-vlm-*; do ln -s ../victim $d/config.json; \
                done; done 2> /dev/null";
            let mut hostile = nobody(plant).current_dir(place.path()).spawn().unwrap();
            for _ in 0..10 {
                save(&model, &target).unwrap();
            }
            hostile.kill().unwrap();
            hostile.wait().unwrap();
            assert_eq!(fs::read(&victim).unwrap(), b"mine");
            load(&target);
        },
    );
}

// It destroys nothing.

#[test]
fn the_source_is_never_replaced() {
    in_child(
        "saving::the_source_is_never_replaced",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let source = place.path().join("source");
            copy_tiny(&source);
            let other = place.path().join("other");
            fs::create_dir(&other).unwrap();
            // Another model of the same name, in the process's current folder.
            copy_tiny(&other.join("source"));
            fs::write(other.join("source/README.md"), "another").unwrap();
            std::env::set_current_dir(place.path()).unwrap();
            let model = load("source");
            std::env::set_current_dir(&other).unwrap();
            symlink(&source, place.path().join("link")).unwrap();
            symlink(place.path(), other.join("up")).unwrap();
            let before = names(&source);
            for way in [
                "../source",
                "../link",
                "up/source",
                "../other/../source",
                "../source/",
                "../source/.",
            ] {
                let refused = save(&model, way);
                assert!(
                    matches!(&refused, Err(Error::InvalidArgument(what)) if what.contains("was loaded from")),
                    "{way}: {refused:?}"
                );
            }
            assert_eq!(names(&source), before);
            // Files are still copied from the source.
            save(&model, place.path().join("target")).unwrap();
            assert_eq!(
                fs::read(place.path().join("target/README.md")).unwrap(),
                fs::read(tiny().join("README.md")).unwrap()
            );
            // The other one is not the source, despite its name.
            save(&model, "source").unwrap();
            load(&source);
        },
    );
}

#[test]
fn a_folder_containing_the_source_is_never_replaced() {
    in_child(
        "saving::a_folder_containing_the_source_is_never_replaced",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let top = place.path().join("top");
            let source = top.join("models/source");
            fs::create_dir_all(top.join("models")).unwrap();
            copy_tiny(&source);
            let model = load(&source);
            symlink(&top, place.path().join("link")).unwrap();
            for folder in [&top, &top.join("models")] {
                fs::copy(tiny().join("config.json"), folder.join("config.json")).unwrap();
            }
            for way in [
                "top",
                "top/models",
                "link",
                "link/models",
                "link/models/../models",
            ] {
                let refused = save(&model, place.path().join(way));
                let names_both =
                    |what: &str| what.contains(way) && what.contains(&*source.to_string_lossy());
                assert!(
                    matches!(&refused, Err(Error::InvalidArgument(what)) if names_both(what)),
                    "{way}: {refused:?}"
                );
            }
            assert!(matches!(save(&model, "/"), Err(Error::InvalidArgument(_))));
            load(&source);
            // A new folder below the source does not affect it.
            model
                .save(source.join("saved"), false, Op::default())
                .unwrap();
            load(source.join("saved"));
            load(&source);
            // Neither does replacing this one.
            save(&model, source.join("saved")).unwrap();
            load(source.join("saved"));
        },
    );
}

#[test]
fn only_a_models_folder_is_replaced() {
    in_child(
        "saving::only_a_models_folder_is_replaced",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let (_, model) = source(&place);
            let target = place.path().join("target");
            let config = r#"{"model_type":"llava"}"#;
            let files: [(&[(&str, &str)], &str); 7] = [
                (&[("diary.txt", "Dear diary")], "neither empty"),
                (&[("config.json", "{}")], "neither empty"),
                (&[("config.json", "[")], "neither empty"),
                (&[("config.json", config), ("photos/one.jpg", "")], "photos"),
                (&[("config.json", config), (".git/HEAD", "")], ".git"),
                (&[("config.json/x", config)], "config.json"),
                (&[("empty/none", "")], "empty"),
            ];
            for (files, word) in files {
                for (name, text) in files {
                    let path = target.join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, text).unwrap();
                }
                let before = names(&target);
                let refused = save(&model, &target);
                assert!(
                    matches!(&refused, Err(Error::InvalidArgument(what)) if what.contains(word)),
                    "{word}: {refused:?}"
                );
                assert_eq!(names(&target), before);
                fs::remove_dir_all(&target).unwrap();
            }
            fs::write(&target, "a file").unwrap();
            assert!(
                matches!(save(&model, &target), Err(Error::InvalidArgument(what)) if what.contains("not a folder"))
            );
            fs::remove_file(&target).unwrap();
            symlink(place.path().join("nowhere"), &target).unwrap();
            assert!(
                matches!(save(&model, &target), Err(Error::InvalidArgument(what)) if what.contains("link"))
            );
            assert!(
                matches!(model.save(&target, false, Op::default()), Err(Error::InvalidArgument(what)) if what.contains("already"))
            );
            fs::remove_file(&target).unwrap();
            // An empty folder, and any model folder, may be replaced.
            fs::create_dir(&target).unwrap();
            save(&model, &target).unwrap();
            fs::remove_dir_all(&target).unwrap();
            fs::create_dir(&target).unwrap();
            fs::write(target.join("config.json"), config).unwrap();
            fs::write(target.join("pytorch_model.bin"), "").unwrap();
            save(&model, &target).unwrap();
            load(&target);
            assert_eq!(names(place.path()), ["source", "target"]);
        },
    );
}

// It copies nothing foreign.

#[test]
fn foreign_files_are_not_copied() {
    in_child(
        "saving::foreign_files_are_not_copied",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let (source, model) = source(&place);
            let secret = place.path().join("secret");
            fs::write(&secret, "secret").unwrap();
            symlink(&secret, source.join("notes.txt")).unwrap();
            symlink(&secret, source.join("keys.json")).unwrap();
            fs::write(source.join("LICENSE"), "MIT").unwrap();
            fs::write(source.join("training.md"), "").unwrap();
            let target = place.path().join("target");
            save(&model, &target).unwrap();
            let copied = [
                "LICENSE",
                "README.md",
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "preprocessor_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ];
            assert_eq!(names(&target), copied);
            // Even files that a model has are not copied from elsewhere.
            for (name, link) in [
                ("README.md", secret.to_str().unwrap()),
                ("README.md", "../secret"),
                ("README.md", "../../blobs/secret"),
                ("tokenizer.json", "../secret"),
                ("generation_config.json", "/dev/zero"),
                ("vocab.json", "nowhere/else"),
            ] {
                let (path, aside) = (source.join(name), source.join("aside"));
                let _ = fs::rename(&path, &aside);
                symlink(link, &path).unwrap();
                let refused = save(&model, &target);
                let says = |what: &str| what.contains(name) && what.contains(link);
                assert!(
                    matches!(&refused, Err(Error::InvalidArgument(what)) if says(what)),
                    "{name}: {refused:?}"
                );
                fs::remove_file(&path).unwrap();
                let _ = fs::rename(&aside, &path);
            }
            let _ = fs::remove_file(source.join("README.md"));
            succeed(Command::new("mkfifo").arg(source.join("README.md")));
            assert!(matches!(
                save(&model, &target),
                Err(Error::CorruptModel { .. })
            ));
            fs::remove_file(source.join("README.md")).unwrap();
            // A model needs its tokenizer.
            fs::rename(source.join("tokenizer.json"), source.join("other.json")).unwrap();
            assert!(matches!(save(&model, &target), Err(Error::NotFound { .. })));
            // A link to another file of the folder counts as one of its own.
            symlink("other.json", source.join("tokenizer.json")).unwrap();
            save(&model, &target).unwrap();
            assert!(
                fs::symlink_metadata(target.join("tokenizer.json"))
                    .unwrap()
                    .is_file()
            );
            load(&target);
            assert_eq!(names(place.path()), ["secret", "source", "target"]);
        },
    );
}

#[test]
fn a_snapshot_of_hugging_faces_cache_is_saved() {
    in_child(
        "saving::a_snapshot_of_hugging_faces_cache_is_saved",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let cache = place.path().join("models--moxin-org--tiny");
            let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots/0123abcd"));
            fs::create_dir_all(&snapshot).unwrap();
            copy_tiny(&blobs);
            for name in names(&blobs) {
                symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
            }
            let model = load(&snapshot);
            let target = place.path().join("target");
            save(&model, &target).unwrap();
            assert_eq!(names(&target), names(&tiny()));
            for name in names(&target)
                .iter()
                .filter(|name| name.starts_with("tokenizer"))
            {
                assert_eq!(
                    fs::read(target.join(name)).unwrap(),
                    fs::read(tiny().join(name)).unwrap(),
                    "{name}"
                );
            }
            // Through a link to the cache too.
            symlink(&cache, place.path().join("link")).unwrap();
            save(&load(place.path().join("link/snapshots/0123abcd")), &target).unwrap();
            // The cache's own links lead to files in `blobs`, and nowhere else.
            fs::write(place.path().join("secret"), "secret").unwrap();
            fs::remove_file(blobs.join("README.md")).unwrap();
            symlink("../../secret", blobs.join("README.md")).unwrap();
            assert!(save(&model, &target).is_err());
            fs::remove_file(snapshot.join("README.md")).unwrap();
            symlink("../../../secret", snapshot.join("README.md")).unwrap();
            assert!(
                matches!(save(&model, &target), Err(Error::InvalidArgument(what)) if what.contains("README.md"))
            );
            fs::remove_file(snapshot.join("README.md")).unwrap();
            fs::rename(&blobs, cache.join("others")).unwrap();
            symlink("others", &blobs).unwrap();
            assert!(save(&model, &target).is_err());
        },
    );
}

// There is a complete model at any moment.

#[test]
fn readers_always_find_a_model_while_it_is_replaced() {
    in_child(
        "saving::readers_always_find_a_model_while_it_is_replaced",
        Limits::mebibytes(1024),
        || {
            // In memory if possible: 200 times 7 MB, each of them synced.
            let memory = Path::new("/dev/shm");
            let place = if memory.is_dir() {
                TempDir::new_in(memory).unwrap()
            } else {
                TempDir::new().unwrap()
            };
            let (source, dense) = source(&place);
            let quantize = Some(QuantizeOptions {
                quantization: Quantization::affine(64, 4),
                ..Default::default()
            });
            let quantized = Model::load(
                &source,
                LoadOptions {
                    quantize,
                    ..Default::default()
                },
                Op::default(),
            )
            .unwrap();
            let target = place.path().join("target");
            save(&dense, &target).unwrap();
            let (done, reads, loads) = (
                AtomicBool::new(false),
                AtomicUsize::new(0),
                AtomicUsize::new(0),
            );
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let config: Value =
                            serde_json::from_slice(&fs::read(target.join("config.json")).unwrap())
                                .unwrap();
                        assert_eq!(config["model_type"], "prismatic");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
                // Everything that is loaded is from one of the two.
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        load(&target);
                        loads.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(20)); // the engine is also what saves
                    }
                });
                for i in 0..200 {
                    save(if i % 2 == 0 { &quantized } else { &dense }, &target).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            println!("{reads:?} configurations read, {loads:?} models loaded");
            assert!(reads.into_inner() > 1000 && loads.into_inner() > 5);
            assert_eq!(names(place.path()), ["source", "target"]);
        },
    );
}

#[test]
fn a_killed_process_leaves_a_complete_model() {
    let program = Program::build("saving.c");
    in_child(
        "saving::a_killed_process_leaves_a_complete_model",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let (source, target) = (tiny(), place.path().join("target"));
            save(&load(&source), &target).unwrap();
            for i in 0..12 {
                let mut command =
                    program.command(&[OsStr::new("kill"), source.as_os_str(), target.as_os_str()]);
                let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
                // After its first save, at various moments.
                child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
                thread::sleep(Duration::from_millis(3 * i));
                child.kill().unwrap();
                child.wait().unwrap();
                load(&target);
                // Leftovers are recognizable by their names, and only this user can enter them.
                for left in hidden(place.path()) {
                    assert!(
                        left.file_name()
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .starts_with(".moxin-vlm-part-"),
                        "{left:?}"
                    );
                    fs::remove_dir_all(left).unwrap();
                }
                assert_eq!(names(place.path()), ["target"]);
            }
        },
    );
}

#[test]
fn a_forked_child_does_not_touch_its_parents_folder() {
    let (program, place) = (Program::build("saving.c"), open_place());
    let (source, target) = (tiny(), place.path().join("target"));
    program.run(
        &[OsStr::new("fork"), source.as_os_str(), target.as_os_str()],
        Limits::mebibytes(512),
    );
    load(&target);
    assert_eq!(names(place.path()), ["target"]);
}

#[test]
fn a_folder_that_changes_is_not_replaced() {
    in_child(
        "saving::a_folder_that_changes_is_not_replaced",
        Limits::mebibytes(512),
        || {
            let place = open_place();
            let (_, model) = source(&place);
            let target = place.path().join("target");
            fs::create_dir(&target).unwrap();
            let mut change = |_, _| {
                let _ = fs::create_dir(target.join("precious"));
                true
            };
            let refused = (0..50).find_map(|_| {
                model
                    .save(
                        &target,
                        true,
                        Op {
                            progress: Some(&mut change),
                            ..Op::default()
                        },
                    )
                    .err()
            });
            // In time for the last check, or for the next save.
            assert!(
                matches!(&refused, Some(Error::InvalidState(what) | Error::InvalidArgument(what)) if what.contains("precious"))
            );
            assert!(target.join("precious").is_dir());
            assert_eq!(names(place.path()), ["source", "target"]);
            // A folder that appears in the meantime at a free path stays.
            let other = place.path().join("other");
            let refused = (0..50).find_map(|_| {
                let _ = fs::remove_dir_all(&other);
                let mut come = |_, _| {
                    let _ = fs::create_dir(&other);
                    true
                };
                model
                    .save(
                        &other,
                        false,
                        Op {
                            progress: Some(&mut come),
                            ..Op::default()
                        },
                    )
                    .err()
            });
            assert!(matches!(refused, Some(Error::Io { .. })), "{refused:?}");
            assert_eq!(names(&other), [""; 0]);
        },
    );
}
