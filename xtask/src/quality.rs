//! What quantization costs in quality: `examples/quality.rs`, as a page with a plot.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use plotters::prelude::*;
use serde_json::Value;

use crate::{cargo, processor, setup};

const PAGE: &str = "docs/quantization.md";
const PLOT: &str = "docs/quantization.svg";

#[derive(clap::Args)]
pub struct Options {
    /// Pictures of which the small model is asked
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    let limit = options.limit.to_string();
    let mut command = cargo::cargo();
    command
        .args([
            "run",
            "--release",
            "--example",
            "quality",
            "--",
            "--limit",
            &limit,
        ])
        .env("OPENBLAS_NUM_THREADS", "1");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the example quality failed, see above");
    }
    let report: Value =
        serde_json::from_slice(&output.stdout).context("what the example quality printed")?;
    let root = setup::repository();
    fs::create_dir_all(root.join("docs"))?;
    fs::write(root.join(PAGE), page(&report)?).with_context(|| format!("cannot write {PAGE}"))?;
    plot(&report).with_context(|| format!("cannot draw {PLOT}"))?;
    println!("Wrote {PAGE} and {PLOT}");
    Ok(())
}

/// A number of the report.
fn number(row: &Value, field: &str) -> Result<f64> {
    row[field]
        .as_f64()
        .with_context(|| format!("the report has no {field}"))
}

fn rows(report: &Value) -> Result<&[Value]> {
    Ok(report["rows"]
        .as_array()
        .context("the report has no rows")?)
}

fn page(report: &Value) -> Result<String> {
    let all = rows(report)?;
    let dense = all.first().context("the report is empty")?;
    let (asked, tokens) = (number(dense, "asked")?, number(dense, "tokens")?);
    let mut text = format!(
        "# Quantization\n\n\
        MLX's affine scheme: `group_size` neighbours in a row share a scale and a bias, and a number is `scale · q + bias`, q having 2 to 8\n\
        bits; or its modes mxfp4, mxfp8 and nvfp4: floats of 4 or 8 bits, of which 32 or 16 share a scale. By default the language model is\n\
        quantized with its embedding and output head, affine, in 4 bits and groups of 64; vision encoders and projector stay as they are. Where\n\
        a group size does not divide a matrix's rows, that matrix stays as it is: with groups of 128 most of the small model's do.\n\n\
        ```sh\n\
        cargo run --release --example save_quantized -- --model models/tiny --output tiny-4bit --bits 4\n\
        cargo run --release --example generate -- --model tiny-4bit --image models/demo.png\n\
        cargo run --release --example generate -- --quantize 4 --image models/demo.png    # while it is read\n\
        ```\n\n\
        ## What it costs in quality\n\n\
        Made by `cargo xtask quality --limit {}` on {}. The small model of this repository: answers that are exactly right, of {asked};\n\
        perplexity on the {tokens} tokens of right answers, and how often its likeliest token there is that of the unquantized model; size of\n\
        all its weights, the vision part included. Of a random matrix as large as those of Moxin-7B's MLP (4096 × 14336, normal, bfloat16): the\n\
        relative error of its numbers, and of its product with a random vector.\n\n\
        | bits | group | right | per cent | perplexity | same token | size | error of numbers | of a product |\n\
        |---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        report["pictures"],
        processor::name()
    );
    for row in all {
        let (right, size) = (number(row, "right")?, number(row, "weights")? / 1e6);
        let scheme = match row["bits"].as_u64() {
            Some(bits) => match row["mode"].as_str() {
                None | Some("affine") => format!("{bits} | {}", row["group_size"]),
                Some(mode) => format!("{bits}, {mode} | {}", row["group_size"]),
            },
            None => "as stored | ".into(),
        };
        let errors = match &row["matrix"] {
            Value::Null => " | ".into(),
            matrix => format!(
                "{:.3} % | {:.3} %",
                number(matrix, "numbers")? * 100.0,
                number(matrix, "product")? * 100.0
            ),
        };
        text += &format!(
            "| {scheme} | {right} | {:.1} | {:.4} | {:.2} % | {size:.2} MB | {errors} |\n",
            right / asked * 100.0,
            number(row, "perplexity")?,
            number(row, "same_token")? * 100.0
        );
    }
    text += "\n![Right answers by number of bits, a line for each group size](quantization.svg)\n";
    Ok(text)
}

fn plot(report: &Value) -> Result<()> {
    let path = setup::repository().join(PLOT);
    let area = SVGBackend::new(&path, (760, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Right answers of the small model", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(1.8..8.2, 0.0..105.0)?;
    let whole = |value: &f64| format!("{value:.0}");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("bits")
        .y_desc("per cent")
        .x_labels(7)
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .light_line_style(WHITE)
        .draw()?;
    for (group_size, colour) in [
        (32, RGBColor(31, 119, 180)),
        (64, RGBColor(214, 120, 40)),
        (128, RGBColor(60, 150, 80)),
    ] {
        let mut points = Vec::new();
        for row in rows(report)?
            .iter()
            .filter(|row| row["group_size"] == group_size && row["mode"] == "affine")
        {
            points.push((
                number(row, "bits")?,
                number(row, "right")? / number(row, "asked")? * 100.0,
            ));
        }
        chart.draw_series(
            points
                .iter()
                .map(|point| Circle::new(*point, 3, colour.filled())),
        )?;
        let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        let name = format!("groups of {group_size}");
        series
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    labels
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK.mix(0.2))
        .background_style(WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}
