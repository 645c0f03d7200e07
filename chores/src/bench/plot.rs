//! Draws the report as bars.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Device, Report, Row};

const WIDTH: u32 = 900;
const BAR: i32 = 26;
const TOP: i32 = 56;

/// Two columns of bars, decoding and prompt, with a row per program and form; the line in a bar of
/// decoding is memory's limit.
pub fn draw(path: &Path, report: &Report) -> Result<()> {
    let rows: Vec<&Row> = report
        .rows
        .iter()
        .filter(|row| row.decode.is_some() && row.prefill.is_some())
        .collect();
    let height = TOP + BAR * rows.len() as i32 + 16;
    let area = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let decode: Vec<f64> = rows
        .iter()
        .filter_map(|row| Some(row.decode.as_ref()?.rate()))
        .collect();
    let prefill: Vec<f64> = rows
        .iter()
        .filter_map(|row| Some(row.prefill.as_ref()?.rate()))
        .collect();
    let ceilings: Vec<Option<f64>> = rows
        .iter()
        .map(|row| Some(report.bandwidth(row.device)? / row.bytes_per_token()?))
        .collect();
    for (i, row) in rows.iter().enumerate() {
        let device = if row.device == Device::Gpu {
            ", GPU"
        } else {
            ""
        };
        let program = row.program.split(',').next().unwrap_or_default();
        let text = format!("{program}, {}{device}", row.scheme);
        area.draw(&Text::new(
            text,
            (12, TOP + BAR * i as i32 + 6),
            ("sans-serif", 12),
        ))?;
    }
    bars(
        &area,
        "decoding, tokens/s (line: memory's limit)",
        360,
        250,
        &rows,
        &decode,
        &ceilings,
    )?;
    bars(
        &area,
        "prompt, tokens/s",
        660,
        190,
        &rows,
        &prefill,
        &vec![None; rows.len()],
    )?;
    area.present()
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Draws a bar for each value, `width` pixels for the largest.
fn bars(
    area: &DrawingArea<SVGBackend, Shift>,
    title: &str,
    left: i32,
    width: i32,
    rows: &[&Row],
    values: &[f64],
    ceilings: &[Option<f64>],
) -> Result<()> {
    let most = values
        .iter()
        .copied()
        .chain(ceilings.iter().flatten().copied())
        .fold(0.0, f64::max);
    let pixels = |value: f64| left + (value / most * f64::from(width)) as i32;
    area.draw(&Text::new(title.to_owned(), (left, 24), ("sans-serif", 13)))?;
    for (i, ((row, value), ceiling)) in rows.iter().zip(values).zip(ceilings).enumerate() {
        let (top, bottom) = (TOP + BAR * i as i32, TOP + BAR * (i as i32 + 1) - 6);
        let color = if row.is_ours() {
            RGBColor(31, 119, 180)
        } else {
            RGBColor(175, 175, 175)
        };
        area.draw(&Rectangle::new(
            [(left, top), (pixels(*value).max(left + 1), bottom)],
            color.filled(),
        ))?;
        let mut end = pixels(*value);
        if let Some(ceiling) = ceiling {
            let x = pixels(*ceiling);
            area.draw(&PathElement::new(
                [(x, top - 2), (x, bottom + 2)],
                BLACK.stroke_width(2),
            ))?;
            end = end.max(x);
        }
        let text = if *value < 1.0 {
            format!("{value:.3}")
        } else {
            format!("{value:.1}")
        };
        area.draw(&Text::new(text, (end + 5, top + 4), ("sans-serif", 11)))?;
    }
    Ok(())
}
