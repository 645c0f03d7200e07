//! The name of this machine's CPU, for pages with figures.

use std::fs;

/// Returns the CPU and its cores, as Linux describes them.
pub fn name() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| {
            line.strip_prefix(name)?
                .split_once(": ")
                .map(|(_, value)| value.trim().to_owned())
        })
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    // Some hosts hide the model's name; its numbers still identify the CPU.
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(number)) => {
            format!("{cores} cores of {model} (family {family}, model {number})")
        }
        _ => format!("{cores} cores of {model}"),
    }
}
