//! Measures the C ABI: the cost of a call, and that memory does not grow. Each measurement runs a C
//! program from tests/c with the release library.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use plotters::prelude::*;

use crate::{cargo, setup};

const MODEL: &str = "models/tiny";

#[derive(clap::Args)]
pub struct SoakOptions {
    /// The number of conversations
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    cycles: usize,
    /// The output file of the plot
    #[arg(long, value_name = "FILE", default_value = "docs/soak.svg")]
    plot: PathBuf,
}

#[derive(clap::Args)]
pub struct CallCostOptions {
    /// The number of answers to measure
    #[arg(long, value_name = "N", default_value_t = 200)]
    answers: usize,
}

/// The program's output after every hundredth cycle.
struct Sample {
    cycle: f64,
    resident: f64,
    active: f64,
    handles: f64,
}

/// Runs conversations, and fails if memory or handles grow.
pub fn soak(options: SoakOptions) -> Result<()> {
    let cycles = options.cycles.to_string();
    let plot = setup::repository().join(&options.plot);
    fs::create_dir_all(plot.parent().context("the plot needs a folder")?)?;
    let mut samples = Vec::new();
    run("soak", &[MODEL, &cycles], |numbers| {
        let [cycle, resident, active, handles] = numbers else {
            bail!("the program printed {numbers:?}")
        };
        samples.push(Sample {
            cycle: *cycle,
            resident: *resident,
            active: *active,
            handles: *handles,
        });
        if samples.len() % 10 == 0 {
            println!(
                "{cycle:>7} cycles: {:.2} MB resident, {:.2} MB in use by MLX, {handles} handles",
                resident / 1e6,
                active / 1e6
            );
        }
        Ok(())
    })?;
    ensure!(
        samples.len() >= 10,
        "at least 1000 cycles are needed for a result"
    );
    draw(&plot, &samples)?;
    println!("Drawn in {}", options.plot.display());

    let resident: Vec<f64> = samples.iter().map(|sample| sample.resident).collect();
    let (first, last) = quarters(&resident);
    let growth = last / first - 1.0;
    println!(
        "Resident memory, first and last quarter after warm-up: {:.2} and {:.2} MB, {:+.2} %",
        last / 1e6,
        first / 1e6,
        growth * 100.0
    );
    ensure!(growth < 0.01, "resident memory grows");
    // The model, while it exists.
    ensure!(
        settled(&samples).iter().all(|sample| sample.handles == 1.0),
        "handles grow"
    );
    Ok(())
}

/// Returns what was measured after the warm-up, the first tenth, in which caches fill and the
/// allocator reaches its size.
fn settled<T>(samples: &[T]) -> &[T] {
    &samples[samples.len() / 10..]
}

/// Returns the medians of the first and the last quarter after the warm-up.
pub fn quarters(samples: &[f64]) -> (f64, f64) {
    let settled = settled(samples);
    let quarter = settled.len().div_ceil(4);
    let of = |part: &[f64]| median(part.iter().copied());
    (
        of(&settled[..quarter]),
        of(&settled[settled.len() - quarter..]),
    )
}

fn draw(path: &Path, samples: &[Sample]) -> Result<()> {
    let line = |bytes: fn(&Sample) -> f64| -> Vec<(f64, f64)> {
        let points = samples.iter();
        points
            .map(|sample| (sample.cycle, bytes(sample) / 1e6))
            .collect()
    };
    let lines = [
        ("resident", line(|sample| sample.resident)),
        ("in use by MLX", line(|sample| sample.active)),
    ];
    plot_memory(path, "Conversations", "cycles", &lines)
}

/// Plots megabytes over something else; several lines have a legend.
pub fn plot_memory(
    path: &Path,
    caption: &str,
    over: &str,
    lines: &[(&str, Vec<(f64, f64)>)],
) -> Result<()> {
    const COLORS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 120, 40)];
    let points = || lines.iter().flat_map(|(_, points)| points);
    let last = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let most = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let area = SVGBackend::new(path, (760, 320)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, 0.0..most * 1.15)?;
    let whole = |value: &f64| format!("{value:.0}");
    chart
        .configure_mesh()
        .x_desc(over)
        .y_desc("MB")
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .light_line_style(WHITE)
        .draw()?;
    for ((name, points), color) in lines.iter().zip(COLORS) {
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.2))
            .background_style(WHITE)
            .draw()?;
    }
    area.present()
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Measures the cost of a step beyond its work: entering the library, and switching to the engine's
/// thread and back.
pub fn call_cost(options: CallCostOptions) -> Result<()> {
    let (mut rows, mut plain) = (Vec::new(), 0.0);
    run(
        "call_cost",
        &[MODEL, "models/demo.png", &options.answers.to_string()],
        |numbers| {
            match numbers {
                [steps, outside, inside] => rows.push((*steps, *outside, *inside)),
                [nanoseconds] => plain = *nanoseconds,
                _ => bail!("the program printed {numbers:?}"),
            }
            Ok(())
        },
    )?;
    let step = median(rows.iter().map(|(steps, _, inside)| inside / steps / 1e3));
    let cost = median(
        rows.iter()
            .map(|(steps, outside, inside)| (outside - inside) / steps / 1e3),
    );
    println!(
        "{} answers of {} tokens; medians over answers:",
        rows.len(),
        rows.first().map_or(0.0, |row| row.0)
    );
    println!("  a step of the small model, inside   {step:>8.1} µs");
    println!(
        "  its call from C, beyond that        {cost:>8.1} µs, {:.2} %",
        cost / step * 100.0
    );
    println!(
        "  a call that needs no turn           {:>8.3} µs",
        plain / 1e3
    );
    Ok(())
}

/// Returns the median; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Builds and runs a program of tests/c with the release library; each line that it prints is a
/// list of numbers.
fn run(name: &str, arguments: &[&str], mut line: impl FnMut(&[f64]) -> Result<()>) -> Result<()> {
    setup::ensure()?;
    cargo::run(cargo::cargo().args(["build", "--release", "--package", "moxin-vlm", "--lib"]))?;
    let root = setup::repository();
    let libraries = cargo::target_folder(&cargo::metadata(&["--no-deps"])?)?.join("release");
    let program = libraries.join(name);
    let mut compile = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
    compile
        .args(["-std=c99", "-O1", "-I"])
        .arg(root.join("include"))
        .arg(root.join("tests/c").join(name).with_extension("c"));
    compile
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(&libraries)
        .arg(format!("-Wl,-rpath,{}", libraries.display()));
    cargo::run(compile.args(["-lmoxin_vlm", "-pthread"]))?;
    // With a small model, two threads of OpenBLAS cost more by waiting for each other than they
    // save.
    let mut child = Command::new(&program)
        .args(arguments)
        .current_dir(root)
        .env("OPENBLAS_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    for text in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let numbers: Result<Vec<f64>, _> = text?.split_whitespace().map(str::parse).collect();
        line(&numbers.context("the program printed something other than numbers")?)?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}
