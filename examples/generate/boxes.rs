//! Boxes and points in an answer, as a table and as a picture.

use std::{
    fs,
    io::{Cursor, IsTerminal, stdout},
    path::Path,
};

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage};
use moxin_vlm::{Location, Picture, Place};

/// Colors that are easy to tell apart (<https://jfly.uni-koeln.de/color/>).
const COLORS: [[u8; 3]; 7] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
];

fn color(i: usize) -> [u8; 3] {
    COLORS[i % COLORS.len()]
}

/// Prints the locations, each with the color that [`draw`] gives it.
pub fn print(locations: &[Location]) {
    for (i, Location { label, place }) in locations.iter().enumerate() {
        let mark = match stdout().is_terminal() {
            true => {
                let [red, green, blue] = color(i);
                format!("\x1b[38;2;{red};{green};{blue}m■\x1b[0m ")
            }
            false => String::new(),
        };
        let place = match place {
            Place::Box {
                left,
                top,
                right,
                bottom,
            } => format!("{left:.0}, {top:.0} to {right:.0}, {bottom:.0}"),
            Place::Point { x, y } => format!("{x:.0}, {y:.0}"),
        };
        println!("  {mark}{label}: {place}");
    }
}

/// Writes the picture with the locations on it, as PNG.
pub fn draw(picture: &Picture, locations: &[Location], path: &Path) -> Result<()> {
    let (width, height) = (picture.width(), picture.height());
    let mut canvas = RgbImage::from_raw(width, height, picture.rgb().to_vec())
        .context("the picture's pixels")?;
    let line = (width.max(height) as f32 / 300.0).max(2.0);
    for (i, location) in locations.iter().enumerate() {
        let color = Rgb(color(i));
        match location.place {
            Place::Box {
                left,
                top,
                right,
                bottom,
            } => {
                // The four sides, inside the box.
                fill(&mut canvas, [left, top, right, top + line], color);
                fill(&mut canvas, [left, bottom - line, right, bottom], color);
                fill(&mut canvas, [left, top, left + line, bottom], color);
                fill(&mut canvas, [right - line, top, right, bottom], color);
            }
            Place::Point { x, y } => {
                let around = [
                    x - 2.0 * line,
                    y - 2.0 * line,
                    x + 2.0 * line,
                    y + 2.0 * line,
                ];
                fill(&mut canvas, around, color);
            }
        }
    }
    let mut png = Cursor::new(Vec::new());
    canvas.write_to(&mut png, ImageFormat::Png)?;
    write(path, png.get_ref()).with_context(|| path.display().to_string())
}

fn fill(canvas: &mut RgbImage, [left, top, right, bottom]: [f32; 4], color: Rgb<u8>) {
    let clamp = |at: f32, side: u32| at.round().clamp(0.0, side as f32) as u32;
    let (width, height) = canvas.dimensions();
    for y in clamp(top, height)..clamp(bottom, height) {
        for x in clamp(left, width)..clamp(right, width) {
            canvas.put_pixel(x, y, color);
        }
    }
}

/// Replaces a file at once.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    fs::write(&part, bytes)?;
    fs::rename(&part, path).inspect_err(|_| drop(fs::remove_file(&part)))?;
    Ok(())
}
