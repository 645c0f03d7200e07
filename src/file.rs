//! Opens files and folders whose names come from outside the library.
//!
//! A name may lead to a pipe without a writer, an endless device, or a growing file. Files are
//! therefore opened without blocking, checked through their descriptor, and read up to a limit.

use std::{
    collections::TryReserveError,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::{Errno, retry_on_intr},
};

use crate::{Error, Result};

/// The maximum size in bytes of a model's JSON file, except for its tokenizer.
pub const MAX_JSON_BYTES: u64 = 16 << 20;

/// The number of bytes of the limit per JSON value: however short a value is, it takes up to about
/// 100 bytes in memory.
const BYTES_PER_VALUE: u64 = 16;

/// Open flags: do not block, do not become the controlling terminal, close on exec.
const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Opens a regular file for reading and returns it with its size. `what` says what the file is for.
///
/// Fails with [`Error::NotFound`], [`Error::Io`], or [`Error::CorruptModel`] if it is not a regular
/// file.
pub fn open(path: &Path, what: &str) -> Result<(File, u64)> {
    open_at(CWD, path.as_os_str(), path, what, OFlags::empty())
}

/// Reads a regular file of at most `max_bytes`.
pub fn read(path: &Path, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
    read_opened(open(path, what)?, path, what, max_bytes)
}

/// Reads a JSON file of at most `max_bytes` without parsing it. Refuses a file with so many values
/// that they would fill the memory.
pub fn read_json(path: &Path, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let bytes = read(path, what, max_bytes)?;
    let max_values = max_bytes / BYTES_PER_VALUE;
    // A value follows each of these characters, except for those inside strings.
    let values = bytes
        .iter()
        .filter(|byte| matches!(byte, b'[' | b'{' | b','))
        .count() as u64;
    if values > max_values {
        return Err(Error::corrupt(
            path,
            format!("{what} has {values} values; expected at most {max_values}"),
        ));
    }
    Ok(bytes)
}

fn read_opened(
    (file, size): (File, u64),
    path: &Path,
    what: &str,
    max_bytes: u64,
) -> Result<Vec<u8>> {
    let too_long = |size| {
        Error::corrupt(
            path,
            format!("{what} has {size} bytes; expected at most {max_bytes}"),
        )
    };
    if size > max_bytes {
        return Err(too_long(size));
    }
    let mut bytes = Vec::new();
    let no_memory = |_: TryReserveError| Error::Io {
        path: path.into(),
        source: io::ErrorKind::OutOfMemory.into(),
    };
    bytes
        .try_reserve_exact(size as usize + 1)
        .map_err(no_memory)?;
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| Error::io(path, what, source))?;
    match bytes.len() as u64 {
        read if read > max_bytes => Err(too_long(read)),
        _ => Ok(bytes),
    }
}

fn open_at(
    folder: BorrowedFd,
    name: &OsStr,
    path: &Path,
    what: &str,
    flags: OFlags,
) -> Result<(File, u64)> {
    let none =
        |found: &str| Error::corrupt(path, format!("is {found}, not a file; expected {what}"));
    let failed = |errno: Errno| match errno {
        Errno::NXIO | Errno::OPNOTSUPP => none("a socket or a device"),
        _ => Error::io(path, what, errno.into()),
    };
    let follow = if flags.contains(OFlags::NOFOLLOW) {
        AtFlags::SYMLINK_NOFOLLOW
    } else {
        AtFlags::empty()
    };
    let check = |stat: &Stat| kind_of(stat).map_or(Ok(()), |kind| Err(none(kind)));
    // Opening some devices has side effects, so the type is checked first. The second check
    // decides, because the name may lead elsewhere by then.
    match statat(folder, name, follow).map_err(failed)? {
        link if FileType::from_raw_mode(link.st_mode) == FileType::Symlink => {}
        stat => check(&stat)?,
    }
    let file =
        retry_on_intr(|| openat(folder, name, FLAGS | flags, Mode::empty())).map_err(failed)?;
    let stat = fstat(&file).map_err(failed)?;
    check(&stat)?;
    Ok((file.into(), stat.st_size as u64))
}

/// Returns what a file is that is not a regular file.
fn kind_of(stat: &Stat) -> Option<&'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a folder"),
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Identifies a file or folder, whatever its names are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64, u64);

impl Identity {
    /// Returns the identity from a stat result.
    #[allow(clippy::unnecessary_cast)] // the types differ between systems
    pub fn of(stat: &Stat) -> Identity {
        Identity(stat.st_dev as u64, stat.st_ino as u64)
    }
}

/// An open folder. It stays the same folder even if its path or the current folder of the process
/// changes.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    descriptor: OwnedFd,
}

impl Folder {
    /// Opens a folder. `what` says what it is for.
    ///
    /// Fails with [`Error::NotFound`], [`Error::Io`], or [`Error::InvalidArgument`] if it is not a
    /// folder.
    pub fn open(path: &Path, what: &str) -> Result<Folder> {
        if path.as_os_str().is_empty() {
            return Err(Error::NotFound {
                path: path.into(),
                what: what.into(),
            });
        }
        let path = std::path::absolute(path).map_err(|error| Error::io(path, what, error))?;
        Folder::open_at(CWD, path.as_os_str(), &path, what, OFlags::empty())
    }

    /// Opens a folder inside this one, but not through a link.
    pub fn inner(&self, name: &OsStr, what: &str) -> Result<Folder> {
        Folder::open_at(
            self.as_fd(),
            name,
            &self.path.join(name),
            what,
            OFlags::NOFOLLOW,
        )
    }

    /// Opens the parent folder.
    pub fn outer(&self) -> Result<Folder> {
        let name = OsStr::new("..");
        Folder::open_at(
            self.as_fd(),
            name,
            &self.path.join(name),
            "a folder",
            OFlags::empty(),
        )
    }

    fn open_at(
        folder: BorrowedFd,
        name: &OsStr,
        path: &Path,
        what: &str,
        flags: OFlags,
    ) -> Result<Folder> {
        let flags = FLAGS | OFlags::DIRECTORY | flags;
        let descriptor =
            retry_on_intr(|| openat(folder, name, flags, Mode::empty())).map_err(|errno| {
                match errno {
                    Errno::NOTDIR => Error::InvalidArgument(format!(
                        "{} is not a folder; expected {what}",
                        path.display()
                    )),
                    _ => Error::io(path, what, errno.into()),
                }
            })?;
        Ok(Folder {
            path: path.into(),
            descriptor,
        })
    }

    /// Returns the path by which it was opened, made absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the same folder once more.
    pub fn try_clone(&self) -> Result<Folder> {
        let descriptor = self
            .descriptor
            .try_clone()
            .map_err(|error| Error::io(&self.path, "a folder", error))?;
        Ok(Folder {
            path: self.path.clone(),
            descriptor,
        })
    }

    /// Returns the folder's stat result.
    pub fn stat(&self) -> Result<Stat> {
        fstat(&self.descriptor).map_err(|errno| Error::io(&self.path, "a folder", errno.into()))
    }

    /// Returns the identity of the folder.
    pub fn identity(&self) -> Result<Identity> {
        Ok(Identity::of(&self.stat()?))
    }

    /// Reads a regular file of at most `max_bytes` in the folder, but not through a link.
    pub fn read(&self, name: &OsStr, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        read_opened(
            open_at(self.as_fd(), name, &path, what, OFlags::NOFOLLOW)?,
            &path,
            what,
            max_bytes,
        )
    }

    /// Creates a new file for writing.
    pub fn create(&self, name: &str) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = retry_on_intr(|| openat(self, name, flags, Mode::from_raw_mode(0o666)));
        file.map(File::from)
            .map_err(|errno| Error::io(&self.path.join(name), "a file to write", errno.into()))
    }

    /// Lists the names in the folder with their types.
    pub fn entries(&self) -> Result<Vec<(std::ffi::CString, FileType)>> {
        let failed = |errno: Errno| Error::io(&self.path, "a folder", errno.into());
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.descriptor).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_owned();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(self, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            entries.push((name, FileType::from_raw_mode(stat.st_mode)));
        }
        Ok(entries)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
