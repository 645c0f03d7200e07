//! How well the small checkpoint answers with this library: `examples/score.rs`.

use anyhow::Result;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Only the first N pictures
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    cargo::build_example("score")?;
    let limit = options.limit.map(|limit| limit.to_string());
    let mut arguments = Vec::new();
    if let Some(limit) = &limit {
        arguments.extend(["--limit", limit]);
    }
    if options.json {
        arguments.push("--json");
    }
    cargo::run_example("score", &arguments)
}
