//! Shows the small checkpoint at work: a picture, questions about it, a follow-up, and the streamed
//! answers.

use anyhow::Result;

use crate::{cargo, setup};

const MODEL: &str = "models/tiny";
const PICTURE: &str = "models/demo.png";
const QUESTIONS: [&str; 3] = [
    "Describe the picture.",
    "What is at the top right?",
    "What is left of it?",
];

pub fn run() -> Result<()> {
    setup::ensure()?;
    cargo::build_example("generate")?;
    println!(
        "The picture: {}",
        setup::repository().join(PICTURE).display()
    );
    let mut arguments = vec!["--model", MODEL, "--image", PICTURE, "--show-image"];
    arguments.extend(QUESTIONS.iter().flat_map(|question| ["--prompt", question]));
    cargo::run_example("generate", &arguments)
}
