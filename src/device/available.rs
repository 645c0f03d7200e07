//! The memory that Linux still allows this process: the least of what the machine has available,
//! what each of the process's control groups allows
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html>,
//! <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>), and what its resource limits
//! allow.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, OnceLock},
};

/// Returns the bytes that this process can still allocate; `None` if the system does not say.
pub(super) fn available() -> Option<u64> {
    static SYSTEM: LazyLock<System> = LazyLock::new(|| System::new(Path::new("/")));
    SYSTEM.available()
}

/// The kernel's information in files below a root, which tests replace.
struct System {
    root: PathBuf,
    /// The mount points of control groups, which rarely change; the process's own group is read
    /// each time.
    mounts: OnceLock<Vec<Mount>>,
}

/// A hierarchy of control groups that may limit memory.
struct Mount {
    version: Version,
    /// The group of the hierarchy that is visible at `point`.
    group: PathBuf,
    point: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl System {
    fn new(root: &Path) -> System {
        System {
            root: root.into(),
            mounts: OnceLock::new(),
        }
    }

    fn available(&self) -> Option<u64> {
        [self.machine(), self.groups(), self.address_space()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the memory that the kernel calls available
    /// (<https://docs.kernel.org/filesystems/proc.html#meminfo>).
    fn machine(&self) -> Option<u64> {
        kibibytes(&self.read("proc/meminfo")?, "MemAvailable:")
    }

    /// Returns the least that any group from the process's own up to the root allows.
    fn groups(&self) -> Option<u64> {
        let own = self.read("proc/self/cgroup")?;
        let mounts = self.mounts.get_or_init(|| {
            self.read("proc/self/mountinfo")
                .map_or_else(Vec::new, |text| mounts(&text))
        });
        let left = |mount: &Mount| {
            let top = self.root.join(mount.point.strip_prefix("/").ok()?);
            let folder = top.join(
                mount
                    .version
                    .group(&own)?
                    .strip_prefix(&mount.group)
                    .unwrap_or(Path::new("")),
            );
            folder
                .ancestors()
                .take_while(|folder| folder.starts_with(&top))
                .filter_map(|folder| mount.version.left(folder))
                .min()
        };
        mounts.iter().filter_map(left).min()
    }

    /// Returns what `ulimit -v` and `ulimit -d` allow.
    fn address_space(&self) -> Option<u64> {
        let (limits, status) = (
            self.read("proc/self/limits")?,
            self.read("proc/self/status")?,
        );
        let left = |limit: &str, used: &str| {
            let limit = field(&limits, limit)?.parse::<u64>().ok()?;
            Some(limit.saturating_sub(kibibytes(&status, used)?))
        };
        [
            left("Max address space", "VmSize:"),
            left("Max data size", "VmData:"),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.root.join(file)).ok()
    }
}

impl Version {
    /// Returns the process's group from `/proc/self/cgroup`, whose lines are
    /// `number:controllers:group`. The controllers are empty in version 2.
    fn group(self, own: &str) -> Option<&Path> {
        let group = own.lines().find_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            let fits = match self {
                Version::One => controllers
                    .split(',')
                    .any(|controller| controller == "memory"),
                Version::Two => controllers.is_empty(),
            };
            fits.then_some(Path::new(group))
        })?;
        // A group outside of the namespace is written `/../other`; only what is mounted here is
        // then visible.
        Some(if group.components().any(|part| part.as_os_str() == "..") {
            Path::new("/")
        } else {
            group
        })
    }

    /// Returns what the limits in a group's folder allow; `None` if it has none.
    fn left(self, folder: &Path) -> Option<u64> {
        let (limits, usage, files): (&[&str], _, _) = match self {
            Version::One => (
                &["memory.limit_in_bytes"],
                "memory.usage_in_bytes",
                ["total_inactive_file", "total_active_file"],
            ),
            Version::Two => (
                &["memory.max", "memory.high"],
                "memory.current",
                ["inactive_file", "active_file"],
            ),
        };
        let number = |file: &str| {
            fs::read_to_string(folder.join(file))
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        let limit = limits.iter().filter_map(|file| number(file)).min()?;
        let used = number(usage)?;
        // The page cache counts as used until the kernel reclaims it, which it does readily for
        // inactive pages.
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let [idle, busy] = files.map(|name| {
            field(&stat, &format!("{name} "))
                .and_then(|text| text.parse().ok())
                .unwrap_or(0u64)
        });
        Some(limit.saturating_sub(used.saturating_sub(idle.saturating_add(busy / 2))))
    }
}

/// Returns the mounts in `/proc/self/mountinfo` that may limit memory. A line is
/// `id parent device root point options … - type source options`
/// (<https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>).
fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place
            .split(' ')
            .skip(3)
            .map(|path| PathBuf::from(unescaped(path)));
        let (group, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => {
                Version::One
            }
            _ => return None,
        };
        Some(Mount {
            version,
            group,
            point,
        })
    };
    text.lines().filter_map(mount).collect()
}

/// Decodes a path in which blanks, tabs, newlines and backslashes are written as a backslash and
/// three octal digits.
fn unescaped(path: &str) -> String {
    [
        (r"\040", " "),
        (r"\011", "\t"),
        (r"\012", "\n"),
        (r"\134", r"\"),
    ]
    .iter()
    .fold(path.into(), |path, (code, text)| path.replace(code, text))
}

/// Returns the first word after `name` in the line that starts with it.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const MEMINFO: &str = "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\n";
    const ONE: &str =
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
    const TWO: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    /// The memory available in a system with these files.
    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = TempDir::new().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        System::new(root.path()).available()
    }

    #[test]
    fn a_machine_alone_has_what_it_says() {
        assert_eq!(available(&[("proc/meminfo", MEMINFO)]), Some(1_024_000));
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[("proc/meminfo", "MemAvailable: much\n")]), None);
        assert_eq!(
            available(&[("proc/meminfo", "MemAvailable: 99999999999999999999 kB\n")]),
            None
        );
        assert_eq!(
            available(&[("proc/meminfo", "MemAvailable: 18446744073709551615 kB\n")]),
            None
        );
    }

    #[test]
    fn the_tightest_group_counts() {
        let version_2 = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/app.slice/app/work\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/memory.stat", "inactive_file 5\n"),
            ("sys/fs/cgroup/app.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/app.slice/memory.high", "700000\n"),
            ("sys/fs/cgroup/app.slice/memory.current", "400000\n"),
            (
                "sys/fs/cgroup/app.slice/memory.stat",
                "anon 1\nworkingset 7\ninactive_file 1000\nactive_file 500\n",
            ),
            ("sys/fs/cgroup/app.slice/app/memory.max", "900000\n"),
            ("sys/fs/cgroup/app.slice/app/memory.high", "max\n"),
            ("sys/fs/cgroup/app.slice/app/memory.current", "200000\n"),
            ("sys/fs/cgroup/app.slice/app/work/memory.max", "max\n"),
            (
                "sys/fs/cgroup/app.slice/app/work/memory.current",
                "200000\n",
            ),
        ];
        assert_eq!(available(&version_2), Some(300_000 + 1250));
        let version_1 = [
            ("proc/meminfo", MEMINFO),
            (
                "proc/self/cgroup",
                "9:name=systemd:/x\n4:cpu,memory:/a/b\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                &format!("1 1 0:5 / / rw - ext4 /dev/vda rw\n{TWO}{ONE}"),
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "500000\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "499000\n"),
            (
                "sys/fs/cgroup/memory/a/memory.stat",
                "inactive_file 77\ntotal_inactive_file 2000\ntotal_active_file 3\n",
            ),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "400000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "10\n"),
        ];
        assert_eq!(available(&version_1), Some(3001));
    }

    #[test]
    fn a_full_group_leaves_nothing() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/a/memory.max", "1000\n"),
            ("sys/fs/cgroup/a/memory.current", "1500\n"),
        ];
        assert_eq!(available(&files), Some(0));
    }

    /// In a container without its own namespace, the mount starts at the container's group, and the
    /// path is the host's. A path may contain blanks, and a process may have been moved from
    /// elsewhere.
    #[test]
    fn a_container_sees_its_part() {
        let limit = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        let usage = "sys/fs/cgroup/memory/memory.usage_in_bytes";
        for (group, mounted) in [
            ("/docker/1 2", r"/docker/1\0402"),
            ("/docker/x", "/docker/x"),
            ("/../other", "/"),
            ("/elsewhere", "/docker"),
        ] {
            let files = [
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", &format!("4:memory:{group}\n")),
                (
                    "proc/self/mountinfo",
                    &format!(
                        "35 31 0:32 {mounted} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
                    ),
                ),
                (limit, "2000"),
                (usage, "500"),
            ];
            assert_eq!(available(&files), Some(1500), "{group} at {mounted}");
        }
        let inner = [
            ("proc/self/cgroup", "4:memory:/docker/x/inner\n"),
            (
                "proc/self/mountinfo",
                "35 31 0:32 /docker/x /groups ro - cgroup cgroup rw,memory\n",
            ),
            ("groups/memory.limit_in_bytes", "2000"),
            ("groups/memory.usage_in_bytes", "500"),
            ("groups/inner/memory.limit_in_bytes", "1000"),
            ("groups/inner/memory.usage_in_bytes", "400"),
        ];
        assert_eq!(available(&inner), Some(600));
    }

    #[test]
    fn garbage_limits_nothing() {
        for (group, mountinfo, limit) in [
            ("", TWO, "5"),
            ("0:", TWO, "5"),
            ("::::", TWO, "5"),
            ("0::/a", "", "5"),
            ("0::/a", " - \n- cgroup2\n1 2 3 - cgroup2 x y\n", "5"),
            ("0::/a", TWO, ""),
            ("0::/a", TWO, "-1"),
            ("0::/a", TWO, "all of it"),
            ("4:cpu:/a", ONE, "5"),
        ] {
            let files = [
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", group),
                ("proc/self/mountinfo", mountinfo),
                ("sys/fs/cgroup/a/memory.max", limit),
                ("sys/fs/cgroup/a/memory.current", "4"),
                ("proc/self/limits", "Max address space\nMax data size x y\n"),
                ("proc/self/status", "VmSize: \nVmData: 7\n"),
            ];
            assert_eq!(
                available(&files),
                Some(1_024_000),
                "{group:?} {mountinfo:?} {limit:?}"
            );
        }
    }

    #[test]
    fn resource_limits_count() {
        let status = "Name:\tx\nVmPeak:\t9 kB\nVmSize:\t 100 kB\nVmData:\t 40 kB\n";
        for (address_space, data, left) in [
            ("unlimited", "unlimited", 1_024_000),
            ("204800", "unlimited", 102_400),
            ("unlimited", "51200", 10_240),
            ("1000", "unlimited", 0),
        ] {
            let limits = format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max data size             {data}            unlimited            bytes\n\
                 Max address space         {address_space}            unlimited            bytes\n"
            );
            let files = [
                ("proc/meminfo", MEMINFO),
                ("proc/self/limits", &limits),
                ("proc/self/status", status),
            ];
            assert_eq!(available(&files), Some(left), "{address_space} {data}");
        }
    }
}
