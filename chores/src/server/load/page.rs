//! The figures as a page, and the memory as a plot.

use std::{fmt::Write, fs};

use anyhow::{Context, Result};

use super::{
    Memory, Options,
    client::{Outcome, percentile},
    peer,
};
use crate::{
    measure::{median, plot_memory, quarters},
    setup,
};

const PAGE: &str = "docs/server-load.md";
const PLOT: &str = "docs/server-load.svg";

/// Returns how much the memory of the last quarter is above that of the first, after warm-up.
pub fn growth(memory: &Memory) -> f64 {
    let resident: Vec<f64> = memory.iter().map(|(_, bytes)| *bytes).collect();
    let (first, last) = quarters(&resident);
    last / first - 1.0
}

/// Writes the page and the plot.
pub fn write(
    options: &Options,
    alone: &Outcome,
    memory: &Memory,
    turns: &[(&str, Outcome)],
) -> Result<()> {
    draw(memory)?;
    let mut text = format!(
        "# The server under load\n\nMade by `cargo xtask load` on a machine with {} processor \
         threads, which the clients share with the\nserver. The model is the small one in \
         models/tiny.\n\n## {} connections for {} minutes\n\nQuestions with a picture and without \
         one, short and long, streamed; a third of the answers is broken\noff at a random moment.\n\n",
        std::thread::available_parallelism()?,
        options.connections,
        options.minutes,
    );
    let rows = [("moxin-server", alone)];
    table(&mut text, &rows)?;
    writeln!(
        text,
        "\n{} answers were broken off by the client; {} of the others failed. Resident memory, \
         last quarter\nbeside the first after warm-up: {:+.1} %.\n\n![Resident memory of the server \
         in those minutes](server-load.svg)",
        alone.broken,
        alone.failures.len(),
        100.0 * growth(memory),
    )?;
    if !turns.is_empty() {
        compare(&mut text, turns)?;
    }
    fs::write(setup::repository().join(PAGE), text).context(PAGE)
}

fn compare(text: &mut String, turns: &[(&str, Outcome)]) -> Result<()> {
    writeln!(text, "\n## Beside {}\n\n{}\n", peer::NAME, peer::ABOUT)?;
    let rows: Vec<(&str, &Outcome)> = turns.iter().map(|(name, all)| (*name, all)).collect();
    table(text, &rows)?;
    let of = |wanted: bool, figure: &dyn Fn(&Outcome) -> f64| {
        let chosen = turns
            .iter()
            .filter(|(name, _)| (*name == peer::NAME) == wanted);
        median(chosen.map(|(_, outcome)| figure(outcome)))
    };
    writeln!(text, "\nMedians of the rounds, llama.cpp's over ours:\n")?;
    writeln!(
        text,
        "| first token p50 | p95 | a token p50 | p95 | answers a second |"
    )?;
    writeln!(text, "|---:|---:|---:|---:|---:|")?;
    let figures: [&dyn Fn(&Outcome) -> f64; 5] = [
        &|all| percentile(&all.first, 0.5),
        &|all| percentile(&all.first, 0.95),
        &|all| percentile(&all.between, 0.5),
        &|all| percentile(&all.between, 0.95),
        &|all| all.whole as f64 / all.seconds,
    ];
    let ratios = figures.map(|figure| format!("{:.2}", of(true, figure) / of(false, figure)));
    writeln!(text, "| {} |", ratios.join(" | "))?;
    Ok(())
}

fn table(text: &mut String, rows: &[(&str, &Outcome)]) -> Result<()> {
    writeln!(
        text,
        "| | answers | a second | first token p50 | p95 | a token p50 | p95 |"
    )?;
    writeln!(text, "|---|---:|---:|---:|---:|---:|---:|")?;
    for (name, all) in rows {
        let milliseconds = |values: &[f64], fraction| 1e3 * percentile(values, fraction);
        writeln!(
            text,
            "| {name} | {} | {:.1} | {:.0} ms | {:.0} ms | {:.1} ms | {:.1} ms |",
            all.whole,
            all.whole as f64 / all.seconds,
            milliseconds(&all.first, 0.5),
            milliseconds(&all.first, 0.95),
            milliseconds(&all.between, 0.5),
            milliseconds(&all.between, 0.95),
        )?;
    }
    Ok(())
}

fn draw(memory: &Memory) -> Result<()> {
    let points = memory.iter();
    let points = points.map(|(seconds, bytes)| (seconds / 60.0, bytes / 1e6));
    let lines = [("resident", points.collect())];
    let path = setup::repository().join(PLOT);
    plot_memory(&path, "Resident memory of the server", "minutes", &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_measured_after_warm_up() {
        let flat = (0..100).map(|i| (f64::from(i), if i < 9 { 1.0 } else { 10.0 }));
        assert_eq!(growth(&flat.collect()), 0.0);
        let rising = (0..100).map(|i| (f64::from(i), f64::from(i + 100)));
        assert!(growth(&rising.collect()) > 0.4);
    }
}
