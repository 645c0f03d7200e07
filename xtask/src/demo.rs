//! Shows the small checkpoints at work: a picture or a clip, questions about it, and the streamed
//! answers.

use anyhow::Result;

use moxin_vlm_setup::run as run_program;

use crate::{cargo, repository};

/// What is shown.
struct Show {
    model: &'static str,
    /// The option for the file: `--image` or `--video`.
    option: &'static str,
    file: &'static str,
    questions: &'static [&'static str],
}

const PICTURE: Show = Show {
    model: "models/tiny",
    option: "--image",
    file: "models/demo.png",
    questions: &[
        "Describe the picture.",
        "What is at the top right?",
        "What is left of it?",
    ],
};

const CLIP: Show = Show {
    model: "models/video",
    option: "--video",
    file: "models/demo.gif",
    questions: &["Describe the video.", "What stands still?"],
};

/// Shows a picture or, if asked, a video.
pub fn run(video: bool) -> Result<()> {
    let show = if video { CLIP } else { PICTURE };
    moxin_vlm_setup::ensure(repository())?;
    let generate = ["--profile", "demo", "--package", "moxin-vlm"];
    let generate = [&generate[..], &["--example", "generate"]].concat();
    run_program(cargo().arg("build").args(&generate))?;
    println!(
        "This build compiles fast and runs slowly: times and rates are not those of a release."
    );
    println!("The file: {}", repository().join(show.file).display());
    let questions = show
        .questions
        .iter()
        .flat_map(|question| ["--prompt", question]);
    run_program(
        cargo()
            .args(["run", "--quiet"])
            .args(&generate)
            .args([
                "--",
                "--model",
                show.model,
                show.option,
                show.file,
                "--show-image",
            ])
            .args(questions),
    )
}
