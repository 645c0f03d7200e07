//! The effect of quantization on quality: the results of `examples/quality.rs` as a page with a
//! plot.

use std::fs;

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde_json::Value;

use crate::{cargo, processor, setup};

const PAGE: &str = "docs/quantization.md";
const PLOT: &str = "docs/quantization.svg";

#[derive(clap::Args)]
pub struct Options {
    /// The number of pictures that the small model is asked about
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
            "--package",
            "moxin-vlm",
            "--example",
            "quality",
            "--",
            "--limit",
            &limit,
        ])
        .env("OPENBLAS_NUM_THREADS", "1");
    let output = cargo::output(&mut command, "the example quality failed")?;
    let report: Value =
        serde_json::from_slice(&output).context("what the example quality printed")?;
    let root = setup::repository();
    fs::create_dir_all(root.join("docs"))?;
    fs::write(root.join(PAGE), page(&report)?).with_context(|| format!("cannot write {PAGE}"))?;
    plot(&report).with_context(|| format!("cannot draw {PLOT}"))?;
    println!("Wrote {PAGE} and {PLOT}");
    Ok(())
}

/// Returns a number of the report.
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
        "# Quantization\n\
        \n\
        The affine scheme of MLX: `group_size` neighbors in a row share a scale and a bias, and a value is\n\
        `scale · q + bias`, where q has 2 to 8 bits. The modes mxfp4, mxfp8 and nvfp4 use floats of 4 or 8\n\
        bits, of which 32 or 16 share a scale. By default the language model is quantized with its embedding\n\
        and output head, with 4 bits and a group size of 64; vision encoders and projector stay as they are.\n\
        A matrix stays as it is if the group size does not divide its rows: with a group size of 128 that\n\
        holds for most of the small model.\n\
        \n\
        ```sh\n\
        cargo run --release --example save_quantized -- --model models/tiny --output tiny-4bit --bits 4\n\
        cargo run --release --example generate -- --model tiny-4bit --image models/demo.png\n\
        cargo run --release --example generate -- --quantize 4 --image models/demo.png    # while loading\n\
        ```\n\
        \n\
        ## Effect on quality\n\
        \n\
        Made by `cargo xtask quality --limit {}` on {}. For the small model of this repository: exactly\n\
        correct answers, of {asked}; perplexity on the {tokens} tokens of correct answers, and how often the\n\
        most likely token there is that of the unquantized model; the size of all weights, including vision.\n\
        For a random matrix of the size in Moxin-7B's MLP (4096 × 14336, normal, bfloat16): the relative\n\
        error of its values, and of its product with a random vector.\n\
        \n\
        | bits | group size | correct | percent | perplexity | same token | size | error of values | of a product |\n\
        |---:|---:|---:|---:|---:|---:|---:|---:|---:|\n\
        ",
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
    text += "\n![Correct answers by number of bits, one line per group size](quantization.svg)\n";
    Ok(text)
}

fn plot(report: &Value) -> Result<()> {
    let path = setup::repository().join(PLOT);
    let area = SVGBackend::new(&path, (760, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Correct answers of the small model", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(1.8..8.2, 0.0..105.0)?;
    let whole = |value: &f64| format!("{value:.0}");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("bits")
        .y_desc("percent")
        .x_labels(7)
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .light_line_style(WHITE)
        .draw()?;
    for (group_size, color) in [
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
                .map(|point| Circle::new(*point, 3, color.filled())),
        )?;
        let series = chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        let name = format!("groups of {group_size}");
        series
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
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
