//! The number of cores that this process may use.

use std::{collections::BTreeSet, fs, path::Path};

/// Returns the number of cores that this process may use. Two CPUs of one core count once: their
/// threads would wait for the same units.
pub(super) fn cores() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    match cores_of(&allowed_cpus(&status), Path::new("/sys/devices/system/cpu")) {
        0 => cpus,
        // A quota may allow fewer.
        cores => cores.min(cpus),
    }
}

/// Returns the CPUs that a thread may run on, from its `/proc` status.
fn allowed_cpus(status: &str) -> Vec<usize> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap_or_default();
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// Returns the number of cores that these CPUs belong to, from the folder in which the system
/// describes them. A CPU without a description counts as a core of its own.
fn cores_of(cpus: &[usize], folder: &Path) -> usize {
    let siblings = |cpu: &usize| {
        fs::read_to_string(folder.join(format!("cpu{cpu}/topology/thread_siblings_list")))
    };
    let cores: BTreeSet<String> = cpus
        .iter()
        .map(|cpu| siblings(cpu).map_or(cpu.to_string(), |list| list.trim().into()))
        .collect();
    cores.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these CPUs, each with the CPUs that share its core.
    fn system(name: &str, cpus: &[(usize, &str)]) -> std::path::PathBuf {
        let folder =
            std::env::temp_dir().join(format!("moxin-cores-{name}-{}", std::process::id()));
        for (cpu, siblings) in cpus {
            let topology = folder.join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(
                topology.join("thread_siblings_list"),
                format!("{siblings}\n"),
            )
            .unwrap();
        }
        folder
    }

    #[test]
    fn cpus_of_one_core_count_once() {
        let folder = system(
            "siblings",
            &[(0, "0,4"), (1, "1,5"), (4, "0,4"), (5, "1,5")],
        );
        assert_eq!(cores_of(&[0, 1, 4, 5], &folder), 2);
        assert_eq!(cores_of(&[0, 4], &folder), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_cpu_that_is_offline_does_not_hide_those_behind_it() {
        let folder = system("offline", &[(0, "0"), (2, "2"), (3, "3")]);
        assert_eq!(cores_of(&[0, 2, 3], &folder), 3);
        assert_eq!(cores_of(&[2, 3, 7], &folder), 3, "7 is not described");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_list_of_cpus_is_read() {
        let of = |list: &str| {
            allowed_cpus(&format!(
                "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\n"
            ))
        };
        assert_eq!(of("0-2,5,7-8"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(of("3"), [3]);
        assert!(allowed_cpus("").is_empty());
    }
}
