//! Shows the small checkpoint at work: a picture, questions about it, a follow-up, and the streamed
//! answers.

use anyhow::Result;

use moxin_vlm_setup::run as run_program;

use crate::{cargo, repository};

const MODEL: &str = "models/tiny";
const PICTURE: &str = "models/demo.png";
const QUESTIONS: [&str; 3] = [
    "Describe the picture.",
    "What is at the top right?",
    "What is left of it?",
];

pub fn run() -> Result<()> {
    moxin_vlm_setup::ensure(repository())?;
    let generate = ["--profile", "demo", "--package", "moxin-vlm"];
    let generate = [&generate[..], &["--example", "generate"]].concat();
    run_program(cargo().arg("build").args(&generate))?;
    println!(
        "This build compiles fast and runs slowly: times and rates are not those of a release."
    );
    println!("The picture: {}", repository().join(PICTURE).display());
    let questions = QUESTIONS.iter().flat_map(|question| ["--prompt", question]);
    run_program(
        cargo()
            .args(["run", "--quiet"])
            .args(&generate)
            .args(["--", "--model", MODEL, "--image", PICTURE, "--show-image"])
            .args(questions),
    )
}
