//! Runs the programs in server/tests/clients, each with a client that others wrote, and
//! schemathesis against the server's own description.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{MODEL, PICTURE, Running, build, checks, lacks, node_folder, report, steps};
use crate::{
    cargo, python,
    setup::{self, step::Steps},
};

const FOLDER: &str = "server/tests/clients";
const QWEN: &str = "tests/models/qwen2_vl/model";

/// Returns what this chore lacks for `cargo xtask test`.
pub fn missing() -> Option<String> {
    lacks(
        &["clients-python", "clients-node"],
        &[
            ("python3", "apt-get install python3 python3-venv"),
            ("npm", "Node.js with npm"),
        ],
    )
}

#[derive(clap::Args)]
pub struct Options {
    /// Only install the clients
    #[arg(long)]
    install: bool,
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    let (steps, cache) = steps("clients")?;
    let source = setup::repository().join(FOLDER);
    let requirements = fs::read_to_string(source.join("requirements.txt"))?;
    let python = python::environment(&steps, &cache, "clients-python", &requirements)?;
    let node = node_folder(&steps, &cache, "clients-node", &source)?;
    let ray = ray(&steps, &cache)?;
    if options.install {
        return Ok(());
    }
    steps.say("building");
    let program = build()?;
    let scratch = tempfile::tempdir_in(&cache)?;
    steps.say("asking the C example");
    let expected = scratch.path().join("expected.json");
    let answers = answers_of_c(&program, scratch.path())?;
    fs::write(&expected, serde_json::to_vec(&answers)?)?;

    let qwen = format!("qwen={QWEN}");
    let server = Running::start(&program, &["--model", MODEL, "--model", &qwen])?;
    let mut passed = 0;
    for (client, program, folder) in [
        ("openai_python.py", python.as_path(), &source),
        ("anthropic_python.py", &python, &source),
        ("litellm_python.py", &python, &source),
        ("openai_node.mjs", Path::new("node"), &node),
        ("vercel_ai.mjs", Path::new("node"), &node),
    ] {
        steps.say(client);
        let mut command = Command::new(program);
        command
            .arg(folder.join(client))
            .args([&server.url, "tiny", PICTURE])
            .arg(&expected)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        passed += checks(&steps, &mut command, client)?.1;
    }
    check_description(&steps, &python, &server.url, scratch.path())?;
    drop(server);
    passed += check_ray(&steps, &ray, &program)?;
    report(passed);
    Ok(())
}

/// Runs schemathesis against /openapi.json.
fn check_description(steps: &Steps, python: &Path, url: &str, scratch: &Path) -> Result<()> {
    steps.say("schemathesis");
    let text = steps.expect(
        Command::new(python.with_file_name("schemathesis"))
            .args(["run", &format!("{url}/openapi.json")])
            .args(["--checks", CHECKS])
            .args(["--max-examples", "30", "--generation-deterministic"])
            .current_dir(scratch),
        "schemathesis found a fault",
    )?;
    let cases = text.lines().find(|line| line.contains(" generated, "));
    println!("schemathesis: {}", cases.context("no count")?.trim());
    Ok(())
}

/// Returns a Python with what examples/ray needs.
fn ray(steps: &Steps, cache: &Path) -> Result<PathBuf> {
    let folder = setup::repository().join("examples/ray");
    let requirements = fs::read_to_string(folder.join("requirements.txt"))?;
    python::environment(steps, cache, "clients-ray", &requirements)
}

/// Runs the test of examples/ray with two servers.
fn check_ray(steps: &Steps, python: &Path, server: &Path) -> Result<usize> {
    steps.say("examples/ray");
    let mut test = Command::new(python);
    test.arg("examples/ray/test_caption.py")
        .args([server, Path::new(MODEL)])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(checks(steps, &mut test, "examples/ray")?.1)
}

/// No server error, and no answer that the description does not have.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

/// Returns conversations with the answers of examples/c/describe.
fn answers_of_c(server: &Path, scratch: &Path) -> Result<Value> {
    let describe = compile(server, scratch)?;
    let (wide, tall) = (
        "tests/models/pictures/wide.png",
        "tests/models/pictures/tall.png",
    );
    let conversations = [
        (
            "one picture",
            "tiny",
            MODEL,
            json!([{"image": PICTURE}, {"text": "Describe the picture."}]),
        ),
        (
            "an earlier answer",
            "tiny",
            MODEL,
            json!([
                {"image": PICTURE}, {"text": "Describe the picture."}, {"assistant": "Shapes."},
                {"text": "How many shapes are there?"},
            ]),
        ),
        (
            "two pictures",
            "qwen",
            QWEN,
            json!([{"image": wide}, {"text": "one"}, {"image": tall}, {"text": "two"}]),
        ),
        (
            "two messages with pictures",
            "qwen",
            QWEN,
            json!([
                {"image": wide}, {"text": "one"}, {"assistant": "an answer"},
                {"image": tall}, {"text": "two"},
            ]),
        ),
    ];
    let answer = |(name, model, folder, parts): (&str, &str, &str, Value)| {
        let mut command = Command::new(&describe);
        command.args(["--json", "--max-tokens", "24", folder]);
        command
            .args(arguments(&parts))
            .current_dir(setup::repository());
        let printed = cargo::output(&mut command, "describe failed")?;
        let printed: Value = serde_json::from_slice(&printed).context("what describe printed")?;
        let last = printed["answers"]
            .as_array()
            .and_then(|answers| answers.last())
            .with_context(|| format!("describe gave no answer: {printed}"))?;
        Ok(json!({
            "name": name, "model": model, "parts": parts, "max_tokens": 24,
            "text": last["text"], "logprobs": last["logprobs"],
        }))
    };
    conversations
        .into_iter()
        .map(answer)
        .collect::<Result<Vec<_>>>()
        .map(Value::from)
}

/// Returns the arguments of describe. A text before an answer, or at the end, is a prompt.
fn arguments(parts: &Value) -> Vec<String> {
    let parts = parts.as_array().map_or(&[][..], |parts| parts);
    let mut arguments = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let ends = parts
            .get(i + 1)
            .is_none_or(|next| next.get("assistant").is_some());
        for (key, value) in part.as_object().into_iter().flatten() {
            let option = match key.as_str() {
                "text" if ends => "--prompt",
                "text" => "--text",
                other => &format!("--{other}"),
            };
            arguments.push(option.to_owned());
            arguments.push(value.as_str().unwrap_or_default().to_owned());
        }
    }
    arguments
}

/// Compiles the C example with the library beside the server.
fn compile(server: &Path, scratch: &Path) -> Result<PathBuf> {
    let Some(libraries) = server.parent() else {
        bail!("the server is in no folder")
    };
    let program = scratch.join("describe");
    cargo::run(
        Command::new("cc")
            .args(["-std=c99", "-Iinclude", "examples/c/describe.c", "-o"])
            .arg(&program)
            .arg("-L")
            .arg(libraries)
            .arg(format!("-Wl,-rpath,{}", libraries.display()))
            .args(["-lmoxin_vlm", "-lm", "-pthread"])
            .current_dir(setup::repository()),
    )?;
    Ok(program)
}
