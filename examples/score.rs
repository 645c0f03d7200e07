//! How many questions about pictures that it never saw a model answers exactly right, by kind of question.
//!
//!     cargo run --example score -- [--model models/tiny] [--limit N] [--json]
//!
//! Fails below 90 %.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use moxin_vlm::{DecodeOptions, Embedding, Event, GenerationOptions, LoadOptions, Model, Op, Picture, PixelFormat, Role, Session};
use serde::Deserialize;

/// Edge of each picture on the sheet, in pixels.
const CELL: u32 = 168;

/// The share of right answers that is expected.
const EXPECTED: f64 = 0.9;

/// Score a model on the held-out pictures
#[derive(Parser)]
struct Arguments {
    /// Folder of the model
    #[arg(long, default_value = "models/tiny")]
    model: PathBuf,
    /// Folder with heldout.png, a sheet of pictures, and heldout.jsonl, the questions and answers
    #[arg(long, default_value = "models/tiny-training")]
    heldout: PathBuf,
    /// Only the first N pictures
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
    /// Show each wrong answer
    #[arg(long)]
    wrong: bool,
}

/// A line of heldout.jsonl.
#[derive(Deserialize)]
struct Cell {
    row: u32,
    column: u32,
    conversations: Vec<Vec<Turn>>,
}

#[derive(Deserialize)]
struct Turn {
    kind: String,
    question: String,
    answer: String,
}

#[derive(Clone, Copy, Default)]
struct Score {
    right: usize,
    asked: usize,
}

impl Score {
    fn share(self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let sheet = Picture::open(arguments.heldout.join("heldout.png"), &DecodeOptions::default())?;
    let mut cells = read_cells(&arguments.heldout.join("heldout.jsonl"))?;
    cells.truncate(arguments.limit.unwrap_or(usize::MAX));
    let model = Model::load(&arguments.model, LoadOptions::default(), Op::default())?;

    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} pictures, {eta} left{msg}")?;
    let bar = ProgressBar::new(cells.len() as u64).with_style(style);
    let mut scores = BTreeMap::<&str, Score>::new();
    for cell in bar.wrap_iter(cells.iter()) {
        let picture = model.encode_image(&crop(&sheet, cell)?, Op::default())?;
        for conversation in &cell.conversations {
            let session = begin(&model, &picture)?;
            for turn in conversation {
                let answer = ask(&session, &turn.question)?;
                let score = scores.entry(&turn.kind).or_default();
                score.asked += 1;
                score.right += usize::from(answer == turn.answer);
                if arguments.wrong && answer != turn.answer {
                    let Cell { row, column, .. } = cell;
                    bar.suspend(|| println!("row {row}, column {column}: {} {answer:?}, expected {:?}", turn.question, turn.answer));
                }
            }
        }
    }
    bar.finish_and_clear();

    let all = scores.values().fold(Score::default(), |all, one| Score { right: all.right + one.right, asked: all.asked + one.asked });
    if arguments.json {
        print_json(&scores, all);
    } else {
        print_table(&scores, all);
    }
    if all.share() < EXPECTED {
        eprintln!("{:.1} % of the answers are right; at least {:.0} % are expected", 100.0 * all.share(), 100.0 * EXPECTED);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn read_cells(path: &Path) -> Result<Vec<Cell>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let cell = |(i, line)| serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), i + 1));
    text.lines().enumerate().map(cell).collect()
}

/// One picture of the sheet.
fn crop(sheet: &Picture, cell: &Cell) -> Result<Picture> {
    let (left, top) = (cell.column * CELL, cell.row * CELL);
    if left + CELL > sheet.width() || top + CELL > sheet.height() {
        bail!("the sheet has no picture in row {}, column {}", cell.row, cell.column);
    }
    let stride = 3 * sheet.width() as usize;
    let first = top as usize * stride + 3 * left as usize;
    Ok(Picture::from_pixels(&sheet.rgb()[first..], CELL, CELL, stride, PixelFormat::Rgb8)?)
}

fn begin(model: &Model, picture: &Embedding) -> Result<Session> {
    let session = model.session(GenerationOptions { max_tokens: 64, ..GenerationOptions::default() })?;
    session.add_embedding(picture)?;
    Ok(session)
}

fn ask(session: &Session, question: &str) -> Result<String> {
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

fn print_table(scores: &BTreeMap<&str, Score>, all: Score) {
    println!("{:16} {:>6} {:>6} {:>9}", "kind", "right", "asked", "per cent");
    for (kind, score) in scores.iter().chain([(&"all", &all)]) {
        println!("{kind:16} {:>6} {:>6} {:>9.1}", score.right, score.asked, 100.0 * score.share());
    }
}

fn print_json(scores: &BTreeMap<&str, Score>, all: Score) {
    let row = |score: &Score| serde_json::json!({ "right": score.right, "asked": score.asked, "share": score.share() });
    let kinds: BTreeMap<_, _> = scores.iter().map(|(kind, score)| (kind, row(score))).collect();
    println!("{:#}", serde_json::json!({ "kinds": kinds, "all": row(&all) }));
}
