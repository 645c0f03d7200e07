//! The pictures that the small model has not seen, with questions, for the examples that measure
//! it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use moxin_vlm::{
    DecodeOptions, Embedding, Event, GenerationOptions, Model, Picture, PixelFormat, Role, Session,
};
use serde::Deserialize;

/// The edge of each picture on the sheet, in pixels.
const CELL: u32 = 168;

/// A picture, and conversations about it.
pub struct Seen {
    pub row: u32,
    pub column: u32,
    pub picture: Picture,
    pub conversations: Vec<Vec<Turn>>,
}

/// A question, and the correct answer.
#[derive(Deserialize)]
pub struct Turn {
    pub kind: String,
    pub question: String,
    pub answer: String,
}

/// A line of heldout.jsonl.
#[derive(Deserialize)]
struct Cell {
    row: u32,
    column: u32,
    conversations: Vec<Vec<Turn>>,
}

/// Reads heldout.png, a sheet of pictures, and heldout.jsonl, at most `limit` pictures.
pub fn read(folder: &Path, limit: Option<usize>) -> Result<Vec<Seen>> {
    let sheet = Picture::open(folder.join("heldout.png"), &DecodeOptions::default())?;
    let path = folder.join("heldout.jsonl");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let seen = |(i, line)| {
        let cell: Cell = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), i + 1))?;
        let picture = crop(&sheet, &cell)?;
        Ok(Seen {
            row: cell.row,
            column: cell.column,
            picture,
            conversations: cell.conversations,
        })
    };
    text.lines()
        .enumerate()
        .take(limit.unwrap_or(usize::MAX))
        .map(seen)
        .collect()
}

/// Cuts one picture from the sheet.
fn crop(sheet: &Picture, cell: &Cell) -> Result<Picture> {
    let (left, top) = (cell.column * CELL, cell.row * CELL);
    if left + CELL > sheet.width() || top + CELL > sheet.height() {
        bail!(
            "the sheet has no picture in row {}, column {}",
            cell.row,
            cell.column
        );
    }
    let stride = 3 * sheet.width() as usize;
    let first = top as usize * stride + 3 * left as usize;
    Ok(Picture::from_pixels(
        &sheet.rgb()[first..],
        CELL,
        CELL,
        stride,
        PixelFormat::Rgb8,
    )?)
}

/// Starts a conversation about a picture.
pub fn begin(model: &Model, picture: &Embedding) -> Result<Session> {
    let session = model.session(GenerationOptions {
        max_tokens: 64,
        ..GenerationOptions::default()
    })?;
    session.add_embedding(picture)?;
    Ok(session)
}

/// Returns the model's answer.
pub fn ask(session: &Session, question: &str) -> Result<String> {
    session.add_text(Role::User, question)?;
    let mut answer = String::new();
    for event in session.generate() {
        match event? {
            Event::Text { text, .. } | Event::Finished { text, .. } => answer.push_str(&text),
            Event::Prefill { .. } => {}
        }
    }
    Ok(answer.trim().into())
}
