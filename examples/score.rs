//! Counts how many questions about unseen pictures a model answers exactly right, by kind of
//! question.
//!
//!     cargo run --example score -- [--model models/tiny] [--limit N] [--json]
//!
//! Fails below 90 %.

mod heldout;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use moxin_vlm::{LoadOptions, Model, Op};

use heldout::{ask, begin};

/// The expected share of correct answers.
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
    let all_seen = heldout::read(&arguments.heldout, arguments.limit)?;
    let model = Model::load(&arguments.model, LoadOptions::default(), Op::default())?;

    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} pictures, {eta} left{msg}")?;
    let bar = ProgressBar::new(all_seen.len() as u64).with_style(style);
    let mut scores = BTreeMap::<&str, Score>::new();
    for seen in bar.wrap_iter(all_seen.iter()) {
        let picture = model.encode_image(&seen.picture, Op::default())?;
        for conversation in &seen.conversations {
            let session = begin(&model, &picture)?;
            for turn in conversation {
                let answer = ask(&session, &turn.question)?;
                let score = scores.entry(&turn.kind).or_default();
                score.asked += 1;
                score.right += usize::from(answer == turn.answer);
                if arguments.wrong && answer != turn.answer {
                    let (row, column) = (seen.row, seen.column);
                    bar.suspend(|| {
                        println!(
                            "row {row}, column {column}: {} {answer:?}, expected {:?}",
                            turn.question, turn.answer
                        )
                    });
                }
            }
        }
    }
    bar.finish_and_clear();

    let all = scores.values().fold(Score::default(), |all, one| Score {
        right: all.right + one.right,
        asked: all.asked + one.asked,
    });
    if arguments.json {
        print_json(&scores, all);
    } else {
        print_table(&scores, all);
    }
    if all.share() < EXPECTED {
        eprintln!(
            "{:.1} % of the answers are correct; expected at least {:.0} %",
            100.0 * all.share(),
            100.0 * EXPECTED
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(scores: &BTreeMap<&str, Score>, all: Score) {
    println!(
        "{:16} {:>6} {:>6} {:>9}",
        "kind", "right", "asked", "percent"
    );
    for (kind, score) in scores.iter().chain([(&"all", &all)]) {
        println!(
            "{kind:16} {:>6} {:>6} {:>9.1}",
            score.right,
            score.asked,
            100.0 * score.share()
        );
    }
}

fn print_json(scores: &BTreeMap<&str, Score>, all: Score) {
    let row = |score: &Score| serde_json::json!({ "right": score.right, "asked": score.asked, "share": score.share() });
    let kinds: BTreeMap<_, _> = scores
        .iter()
        .map(|(kind, score)| (kind, row(score)))
        .collect();
    println!(
        "{:#}",
        serde_json::json!({ "kinds": kinds, "all": row(&all) })
    );
}
