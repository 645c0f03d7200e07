//! A Debian with Swift in a folder, for Linux machines without Swift. Debian 13 packages Swift
//! 6.0.3 with its tests, formatter and docc, so only its mirror is needed. Programs run in it by
//! chroot, with the folders they use mounted at their own paths. All mounts belong to a namespace
//! of the one command and disappear with it, however it ends.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::apt::Apt;
use crate::setup::step::{Steps, runs};
use crate::setup::{self, cache_folder, remove};

const SUITE: &str = "trixie";
const PACKAGES: &str = "swiftlang,libc6-dev,libstdc++-14-dev,pkg-config,git";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// Mounts the folders before `--` at their own paths below the root, and runs the rest there.
const ENTER: &str = r#"
root=$1; shift
while [ "$1" != -- ]; do mkdir -p "$root$1"; mount --bind "$1" "$root$1"; shift; done; shift
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"#;

pub struct Debian {
    root: PathBuf,
}

impl Debian {
    /// Returns the one in the cache folder, complete or not.
    fn cached() -> Result<Debian> {
        Ok(Debian {
            root: cache_folder()?.join(format!("swift-{SUITE}")),
        })
    }

    /// Returns whether there is one in the cache folder.
    pub fn is_there() -> bool {
        Debian::cached().is_ok_and(|debian| debian.is_complete())
    }

    fn is_complete(&self) -> bool {
        // A link that resolves only inside.
        self.root.join("usr/bin/swift").is_symlink() || self.root.join("usr/bin/swift").is_file()
    }

    /// Returns what a machine needs to have one.
    pub fn obstacle() -> Option<&'static str> {
        let is_root = Command::new("id")
            .arg("-u")
            .output()
            .is_ok_and(|output| output.stdout == b"0\n");
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            Some("Swift 6.0 or newer, from swift.org")
        } else if !is_root {
            Some("Swift 6.0 or newer, from swift.org; or root, for a Debian with Swift in a folder")
        } else if !runs("debootstrap") && !runs("dpkg-deb") {
            Some(
                "Swift 6.0 or newer, from swift.org; or debootstrap, for a Debian with Swift in a \
                 folder",
            )
        } else {
            None
        }
    }

    /// Returns the one in the cache folder, after making it if it is missing: 3 GB, in some
    /// minutes.
    pub fn open() -> Result<Debian> {
        if let Some(obstacle) = Debian::obstacle() {
            bail!("there is no Swift 6 here; it needs: {obstacle}");
        }
        let debian = Debian::cached()?;
        if !debian.is_complete() {
            setup::make(&debian.root, || debian.is_complete(), build)?;
        }
        Ok(debian)
    }

    /// Returns a program in the root, in a folder of the host, with that and other folders of the
    /// host at their own paths. Its child processes end with it.
    pub fn command(&self, program: &str, folder: &Path, mounts: &[&Path]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-ec",
                ENTER,
                "sh",
            ])
            .arg(&self.root);
        command
            .args(mounts)
            .args(["--", "env", "-C"])
            .arg(folder)
            .arg(program);
        command.env(
            "PATH",
            "/usr/bin:/bin:/usr/sbin:/sbin:/usr/libexec/swift/bin",
        );
        command
    }
}

fn build(part: &Path) -> Result<PathBuf> {
    fs::create_dir(part.join("tmp"))?;
    let steps = Steps::new(part.with_file_name("swift.log"), part.join("tmp"));
    let root = part.join(SUITE);
    let (program, files) = debootstrap(&steps, part)?;
    steps.say(
        "no Swift here: getting Debian 13 with its Swift (3 GB, in the cache folder; a few \
        minutes)",
    );
    // In a namespace of its own: its mounts must be gone when an incomplete root is removed.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child"])
        .arg(program)
        .arg("--variant=minbase");
    command
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(&root)
        .arg(mirror());
    if let Some(files) = files {
        command.env("DEBOOTSTRAP_DIR", files);
    }
    steps.expect(
        &mut command,
        "cannot make a Debian (set MOXIN_DEBIAN_MIRROR to use another mirror)",
    )?;
    remove(&root.join("var/cache/apt"))?;
    steps.say("Swift is ready");
    Ok(root)
}

/// Returns the system's, or one that is unpacked without being installed, with the folder of its
/// files.
fn debootstrap(steps: &Steps, part: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let system = PathBuf::from("debootstrap");
    if Command::new(&system).arg("--version").output().is_ok() {
        return Ok((system, None));
    }
    let unpacked = part.join("debootstrap");
    Apt::new(steps, part)?.unpack("debootstrap", &unpacked)?;
    Ok((
        unpacked.join("usr/sbin/debootstrap"),
        Some(unpacked.join("usr/share/debootstrap")),
    ))
}

/// Returns `$MOXIN_DEBIAN_MIRROR`, or the mirror of this machine's packages if it is a Debian.
fn mirror() -> String {
    let folder = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    let files = folder
        .filter_map(|entry| Some(entry.ok()?.path()))
        .chain([PathBuf::from("/etc/apt/sources.list")]);
    let sources: String = files
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    env::var("MOXIN_DEBIAN_MIRROR")
        .ok()
        .or_else(|| mirror_in(&sources))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

fn mirror_in(sources: &str) -> Option<String> {
    let lines = sources
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'));
    words
        .find(|word| word.starts_with("http") && word.ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_machine() {
        let debian = "Types: deb\n# http://snapshot.example/debian\nURIs: \
            http://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(
            mirror_in(debian).as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(
            mirror_in("deb https://one.example/debian bookworm main\n").as_deref(),
            Some("https://one.example/debian")
        );
        assert_eq!(
            mirror_in("deb http://archive.example/ubuntu noble main\n"),
            None
        );
    }

    #[test]
    fn mounts_come_before_the_program() {
        let debian = Debian {
            root: "/root-of-debian".into(),
        };
        let command = debian.command(
            "swift",
            Path::new("/a"),
            &[Path::new("/a"), Path::new("/b")],
        );
        let arguments: Vec<_> = command
            .get_args()
            .skip(8)
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            arguments,
            [
                "/root-of-debian",
                "/a",
                "/b",
                "--",
                "env",
                "-C",
                "/a",
                "swift"
            ]
        );
    }
}
