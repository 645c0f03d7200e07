//! Writes a new model folder next to its final path, and renames it when it is complete.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, fchmod, fsync, mkdirat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;
use serde_json::Value;

use crate::{
    Error, Result,
    file::{Folder, Identity, MAX_JSON_BYTES},
    process,
};

/// The prefix of the hidden folder in which a model is written.
const PART: &str = ".moxin-vlm-part-";

/// The prefix of the hidden folder for a folder that is being replaced, if that takes two steps.
const ASIDE: &str = ".moxin-vlm-old-";

/// What the path of a saved model is for.
const PLACE: &str = "the place for the model";

/// A model folder that is being written, next to its final path. If it is dropped before it is
/// published, nothing remains.
///
/// It is in a hidden folder whose name starts with [`PART`] and which only this user may enter. If
/// the process is killed, that folder remains, and the final path is unchanged.
pub(crate) struct NewFolder {
    /// The final path: the parent folder, the name in it, and both as an absolute path.
    place: PathBuf,
    name: OsString,
    parent: Folder,
    /// Where it is written.
    part_name: String,
    part: Folder,
    /// The permissions that it gets when it is published.
    mode: Mode,
    /// The folder that it replaces.
    old: Option<Folder>,
}

impl NewFolder {
    /// Creates a folder next to `place`, for a model loaded from `source`.
    ///
    /// Only an empty folder or a model folder can be replaced: see [`check_replaceable`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the path exists and `overwrite` is false, or if it must not be
    /// replaced; [`Error::NotFound`] and [`Error::Io`].
    pub fn beside(place: &Path, overwrite: bool, source: &Folder) -> Result<NewFolder> {
        let place = std::path::absolute(place).map_err(|error| Error::io(place, PLACE, error))?;
        let (Some(folder), Some(name)) = (place.parent(), place.file_name()) else {
            return Err(Error::InvalidArgument(format!(
                "{} cannot be the path of a folder",
                place.display()
            )));
        };
        let parent = Folder::open(folder, PLACE).map_err(|error| match error {
            Error::InvalidArgument(_) => Error::io(folder, PLACE, Errno::NOTDIR.into()), // with the system's own message
            error => error,
        })?;
        let name = name.to_owned();
        let old = old_folder(&parent, &name, &place, overwrite, source)?;
        let (part_name, part) = make_hidden(&parent, PART)?;
        let mut new = NewFolder {
            place,
            name,
            parent,
            part_name,
            part,
            mode: Mode::RWXU,
            old,
        };
        new.mode = new.usual_mode()?;
        if let Some(old) = &new.old {
            new.mode &=
                Mode::from_raw_mode(old.stat()?.st_mode) | Mode::SUID | Mode::SGID | Mode::SVTX;
        }
        Ok(new)
    }

    /// Returns the folder to write to.
    pub fn folder(&self) -> &Folder {
        &self.part
    }

    /// Moves the folder to its final path. A folder that is replaced is removed afterwards; at
    /// every moment there is a complete one.
    pub fn publish(self) -> Result<()> {
        // If a file system has no permissions of its own, or cannot sync folders, that is accepted.
        let _ = fchmod(&self.part, self.mode);
        let _ = fsync(&self.part);
        match &self.old {
            None => rename_new(&self.parent, &self.part_name, &self.name)
                .map_err(|errno| self.failed(errno))?,
            Some(old) => self.replace(old)?,
        }
        let _ = fsync(&self.parent);
        Ok(())
    }

    fn replace(&self, old: &Folder) -> Result<()> {
        let exchange = || {
            exchange(&self.parent, &self.part_name, &self.name).map_err(|errno| self.failed(errno))
        };
        exchange()?;
        // Another program may have put something else there in the meantime, which must not be
        // removed.
        let is_ours =
            Some(old.identity()?) == identity_in(&self.parent, OsStr::new(&self.part_name));
        if let Err(what) = check_replaceable(old).and_then(|()| {
            if is_ours {
                Ok(())
            } else {
                Err("it is another folder now".into())
            }
        }) {
            exchange()?;
            let place = self.place.display();
            return Err(Error::InvalidState(format!(
                "{place} changed while the model was written and was not replaced: {what}"
            )));
        }
        if let Err(error) = remove(&self.parent, &self.part_name, old) {
            log::warn!(
                "{} was replaced; what was there before could not be removed: {error}",
                self.place.display()
            );
        }
        Ok(())
    }

    /// Returns the permissions of a new folder, such as `0777` without the bits in the process's
    /// umask. Asks the file system, because the umask can only be read by setting it for all
    /// threads.
    fn usual_mode(&self) -> Result<Mode> {
        const PROBE: &str = "mode";
        let mode = mkdirat(&self.part, PROBE, Mode::RWXU | Mode::RWXG | Mode::RWXO)
            .and_then(|()| statat(&self.part, PROBE, AtFlags::SYMLINK_NOFOLLOW))
            .and_then(|stat| {
                unlinkat(&self.part, PROBE, AtFlags::REMOVEDIR)
                    .map(|()| Mode::from_raw_mode(stat.st_mode))
            });
        mode.map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::io(&self.place, PLACE, errno.into())
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // After publishing it has another name, and nothing has this one. In a forked child it
        // belongs to the parent. If the system cannot identify the folder, it stays.
        let is_there = self
            .part
            .identity()
            .is_ok_and(|part| Some(part) == identity_in(&self.parent, OsStr::new(&self.part_name)));
        if is_there && !process::is_forked() {
            let _ = remove(&self.parent, &self.part_name, &self.part);
        }
    }
}

/// Returns the folder that is to be replaced, if there is one.
fn old_folder(
    parent: &Folder,
    name: &OsStr,
    place: &Path,
    overwrite: bool,
    source: &Folder,
) -> Result<Option<Folder>> {
    let refuse = |what: String| {
        Err(Error::InvalidArgument(format!(
            "{} {what}",
            place.display()
        )))
    };
    let failed = |errno: Errno| Error::io(place, PLACE, errno.into());
    let found = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(failed)?,
    };
    if !overwrite {
        return refuse("already exists; allow overwriting, or save to another folder".into());
    }
    // Also through links.
    let target = statat(parent, name, AtFlags::empty())
        .map(|stat| Identity::of(&stat))
        .ok();
    if target == Some(source.identity()?) {
        return refuse("is the folder that the model was loaded from; save to another".into());
    }
    if target.is_some_and(|target| is_inside(source, target)) {
        return refuse(format!(
            "contains {}, which the model was loaded from; save to another folder",
            source.path().display()
        ));
    }
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => {
            return refuse("is a link; save to the folder that it leads to, or remove it".into());
        }
        _ => return refuse("is not a folder; save to another path, or remove it".into()),
    }
    let old = parent.inner(name, PLACE)?;
    match check_replaceable(&old) {
        Ok(()) => Ok(Some(old)),
        Err(what) => refuse(format!(
            "is not replaced: {what}. Save to another folder, or remove this one"
        )),
    }
}

/// Returns whether a folder is inside another, at any depth.
fn is_inside(folder: &Folder, other: Identity) -> bool {
    let Ok(mut inner) = folder.try_clone() else {
        return false;
    };
    while let (Ok(outer), Ok(here)) = (inner.outer(), inner.identity()) {
        match outer.identity() {
            Ok(identity) if identity == other => return true,
            Ok(identity) if identity != here => inner = outer,
            _ => return false, // the root is its own parent
        }
    }
    false
}

/// Explains why a folder must not be replaced. It may be if it is empty or a model folder: one with
/// only files, among them a config.json with a `model_type`. A folder that contains other folders
/// is thus never removed.
fn check_replaceable(folder: &Folder) -> Result<(), String> {
    let entries = folder.entries().map_err(|error| error.to_string())?;
    let is_plain = |kind: &FileType| matches!(kind, FileType::RegularFile | FileType::Symlink);
    if let Some((name, kind)) = entries.iter().find(|(_, kind)| !is_plain(kind)) {
        let kind = if *kind == FileType::Directory {
            "the folder"
        } else {
            "something that is not a file,"
        };
        return Err(format!(
            "it contains {kind} {}, which no saved model does",
            name.to_string_lossy()
        ));
    }
    if entries.is_empty() {
        return Ok(());
    }
    let config = folder.read(
        OsStr::new("config.json"),
        "a model's configuration",
        MAX_JSON_BYTES,
    );
    let config: Option<Value> = config
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match config
        .as_ref()
        .and_then(|config| config.get("model_type"))
        .is_some_and(Value::is_string)
    {
        true => Ok(()),
        false => Err(
            "it is neither empty nor a model folder, which has a config.json with a model_type"
                .into(),
        ),
    }
}

/// Creates a folder with a new hidden name that only this user may enter.
fn make_hidden(parent: &Folder, prefix: &str) -> Result<(String, Folder)> {
    loop {
        let name = hidden_name(prefix);
        match mkdirat(parent, &*name, Mode::RWXU) {
            Err(Errno::EXIST) => continue,
            made => made.map_err(|errno| Error::io(parent.path(), PLACE, errno.into()))?,
        }
        let folder = parent.inner(OsStr::new(&name), PLACE)?;
        return Ok((name, folder));
    }
}

fn hidden_name(prefix: &str) -> String {
    // A hasher of the standard library has random keys.
    format!(
        "{prefix}{:016x}",
        RandomState::new().build_hasher().finish()
    )
}

fn identity_in(parent: &Folder, name: &OsStr) -> Option<Identity> {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .ok()
        .map(|stat| Identity::of(&stat))
}

/// Removes a folder that contains only files.
fn remove(parent: &Folder, name: &str, folder: &Folder) -> Result<()> {
    let failed = |errno: Errno| Error::io(&parent.path().join(name), "a folder", errno.into());
    let _ = fchmod(folder, Mode::RWXU); // it may be read-only
    for (file, _) in folder.entries()? {
        unlinkat(folder, &file, AtFlags::empty()).map_err(failed)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Returns whether the file system, or the system, does not support a way of renaming.
fn is_unknown(errno: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP].contains(&errno)
}

/// Renames a folder to a name that does not exist.
fn rename_new(parent: &Folder, from: &str, to: &OsStr) -> Result<(), Errno> {
    match renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE) {
        Err(errno) if is_unknown(errno) => renameat(parent, from, parent, to),
        done => done,
    }
}

/// Exchanges two folders. If the file system cannot do it at once, `name` is missing for a moment.
fn exchange(parent: &Folder, part: &str, name: &OsStr) -> Result<(), Errno> {
    match renameat_with(parent, part, parent, name, RenameFlags::EXCHANGE) {
        Err(errno) if is_unknown(errno) => exchange_in_steps(parent, part, name),
        done => done,
    }
}

fn exchange_in_steps(parent: &Folder, part: &str, name: &OsStr) -> Result<(), Errno> {
    let aside = hidden_name(ASIDE);
    renameat(parent, name, parent, &*aside)?;
    if let Err(errno) = rename_new(parent, part, name) {
        renameat(parent, &*aside, parent, name)?;
        return Err(errno);
    }
    renameat(parent, &*aside, parent, part)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn folders_are_exchanged_in_steps_where_they_must() {
        let place = tempfile::TempDir::new().unwrap();
        let (parent, name) = (
            Folder::open(place.path(), PLACE).unwrap(),
            OsStr::new("model"),
        );
        let (part, old) = (place.path().join("part"), place.path().join("model"));
        let names = || {
            let mut names: Vec<_> = parent
                .entries()
                .unwrap()
                .into_iter()
                .map(|(name, _)| name.into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        fs::create_dir(&part).unwrap();
        fs::create_dir(&old).unwrap();
        fs::write(part.join("new"), "").unwrap();
        fs::write(old.join("old"), "").unwrap();
        for (there, aside) in [("new", "old"), ("old", "new")] {
            exchange_in_steps(&parent, "part", name).unwrap();
            assert!(old.join(there).exists() && part.join(aside).exists());
            assert_eq!(names(), ["model", "part"]);
        }
        // If the new folder cannot be moved there, the old one is moved back.
        assert_eq!(exchange_in_steps(&parent, "none", name), Err(Errno::NOENT));
        assert!(old.join("old").exists());
        assert_eq!(names(), ["model", "part"]);
    }
}
