//! llama.cpp's server, compiled from the sources in the Python package, with a decoder of the small
//! model's size.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::{super::Running, wait_until_ready};
use crate::{
    python,
    setup::{self, make, step::Steps},
};

/// The name in the tables.
pub const NAME: &str = "llama-server";

/// What was compared.
pub const ABOUT: &str = "llama.cpp's `llama-server`, as llama-cpp-python 0.3.36 has it, with a \
                         decoder of the same size in\nBF16, with random numbers and the same \
                         tokens; both with two threads and four places. 64 connections\nask \
                         without a picture for 32 tokens, in turns of a minute. It computes the \
                         requests of its places\ntogether; this server computes them in turns.";

const SOURCES: &str = "llama-cpp-python==0.3.36";
const GGUF: &str = "gguf==0.19.0\nnumpy>=2,<3\n";

/// The other server.
pub struct Peer {
    pub name: &'static str,
    pub running: Running,
}

impl Peer {
    /// Builds the server if it is missing, and starts it.
    pub fn start(steps: &Steps, cache: &Path) -> Result<Peer> {
        let program = build(steps, cache)?;
        let python = python::environment(steps, cache, "gguf", GGUF)?;
        let model = cache.join("tiny-random.gguf");
        let mut write = Command::new(python);
        write
            .arg("chores/src/server/load/gguf_tiny.py")
            .arg(super::MODEL)
            .arg(&model)
            .current_dir(setup::repository());
        steps.expect(&mut write, "the model for llama.cpp could not be written")?;
        // Nothing else takes the port in the meantime.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(&program)
            .arg("--model")
            .arg(&model)
            .args(["--port", &port.to_string()])
            .args(["--parallel", "4", "--ctx-size", "8192", "--threads", "2"])
            .args(["--chat-template", "vicuna", "--no-webui"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let running = Running {
            process,
            url: format!("http://127.0.0.1:{port}"),
        };
        wait_until_ready(&running.url)?;
        Ok(Peer {
            name: NAME,
            running,
        })
    }
}

/// Returns the program, after compiling it if it is missing.
fn build(steps: &Steps, cache: &Path) -> Result<PathBuf> {
    let home = cache.join("llama-server-0.3.36");
    let program = home.join("bin/llama-server");
    let compile = |part: &Path| {
        let made = part.join("made");
        fs::create_dir_all(&made)?;
        steps.say("getting llama.cpp");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--no-deps", "--no-binary"])
            .args(["llama-cpp-python", SOURCES, "--dest"])
            .arg(part);
        steps.expect(&mut pip, "pip could not get the sources of llama.cpp")?;
        let archive = part.join("llama_cpp_python-0.3.36.tar.gz");
        let mut tar = Command::new("tar");
        tar.arg("xf").arg(archive).arg("-C").arg(part);
        steps.expect(&mut tar, "the sources could not be unpacked")?;
        let sources = part.join("llama_cpp_python-0.3.36/vendor/llama.cpp");
        steps.say("compiling llama-server (ten minutes)");
        let cmake = setup::cmake::find()?;
        let mut configure = Command::new(&cmake);
        configure
            .arg("-S")
            .arg(sources)
            .arg("-B")
            .arg(&made)
            .args(["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF"])
            .args(["-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]);
        steps.expect(&mut configure, "llama.cpp could not be configured")?;
        let mut compile = Command::new(&cmake);
        compile
            .arg("--build")
            .arg(&made)
            .args(["--target", "llama-server", "--parallel", "2"]);
        steps.expect(&mut compile, "llama.cpp could not be compiled")?;
        Ok(made)
    };
    make(&home, || program.is_file(), compile)?;
    Ok(program)
}
