//! The command line: the models, the address, and every limit.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Serves vision-language models over HTTP, with the API of OpenAI.
#[derive(Parser, Debug, Clone)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// A model: a Hugging Face folder, or NAME=FOLDER. May be given several times; the first is
    /// loaded at once, the others on first use.
    #[arg(long, value_name = "[NAME=]FOLDER")]
    pub model: Vec<String>,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1", env = "MOXIN_HOST")]
    pub host: IpAddr,
    /// The port to listen on; 0 for any free one.
    #[arg(long, default_value_t = 8080, env = "MOXIN_PORT")]
    pub port: u16,
    /// Quantizes the language models to 2, 3, 4, 5, 6 or 8 bits while loading.
    #[arg(long, value_name = "BITS")]
    pub quantize: Option<usize>,
    /// Uses the CPU even if there is a GPU.
    #[arg(long)]
    pub cpu: bool,
    /// A picture that the page begins with.
    #[arg(long, value_name = "FILE")]
    pub example_image: Option<PathBuf>,
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub limits: Limits,
}

/// Commands beside serving.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Succeeds if a server on this machine is ready; for health checks of containers.
    Healthcheck {
        /// The port of the server.
        #[arg(long, default_value_t = 8080, env = "MOXIN_PORT")]
        port: u16,
    },
}

/// Who may use the server.
#[derive(ClapArgs, Debug, Clone, Default)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// A key that clients must send. May be given several times. A command line is visible to other
    /// users; prefer the file or the environment, where commas separate keys.
    #[arg(
        long,
        value_name = "KEY",
        env = "MOXIN_API_KEY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub api_key: Vec<String>,
    /// A file with one key per line.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// A web origin whose pages may use the server, such as https://app.example. May be given
    /// several times.
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
    /// A host name that clients may use for this server. May be given several times. Localhost and
    /// IP addresses are always allowed.
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Lets requests name pictures by https:// URLs on public addresses.
    #[arg(long)]
    pub allow_remote_images: bool,
    /// Continues conversations only for the key that they were begun with.
    #[arg(long)]
    pub isolate_keys: bool,
}

/// What one request, and all of them together, may use.
#[derive(ClapArgs, Debug, Clone)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// The maximum size of a request, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    pub max_body: usize,
    /// The maximum size of all requests that are being received or prepared, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub max_bodies: usize,
    /// The maximum number of pictures in a request.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_images: usize,
    /// The maximum number of pixels of a picture (width times height).
    #[arg(long, value_name = "N", default_value_t = 50_000_000)]
    pub max_image_pixels: u64,
    /// The maximum number of tokens in a prompt, including those of pictures.
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub max_prompt_tokens: usize,
    /// The maximum number of tokens in an answer; also the default of requests.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub max_answer_tokens: usize,
    /// The maximum number of answers to one request (`n`).
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub max_choices: usize,
    /// The number of positions in a conversation: prompt and answer. Without it, the model's default.
    #[arg(long, value_name = "N")]
    pub max_context: Option<usize>,
    /// The number of prompt positions that are read before another request takes its turn.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub prefill_chunk: usize,
    /// The number of requests that are answered at the same time, in turns.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub max_active: usize,
    /// The number of requests that may wait.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_waiting: usize,
    /// The time that a request may wait, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub max_wait_seconds: u64,
    /// The time that a request may take, in seconds, without waiting.
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub max_seconds: u64,
    /// The time for the header of a request, and between two requests of a connection, in seconds.
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub header_seconds: u64,
    /// The time for the body of a request, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub body_seconds: u64,
    /// The time after which a client that reads nothing is disconnected, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub idle_seconds: u64,
    /// The number of open connections.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_connections: usize,
    /// The time that answers in progress have after SIGTERM or SIGINT, in seconds.
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub drain_seconds: u64,
    /// The size of the cache of ended conversations, in MiB; 0 keeps none.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub prefix_cache: u64,
    /// The size of the cache of encoded pictures of each model, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub image_cache: u64,
    /// The memory that all models together may use, in MiB. Without it, only the machine limits it.
    #[arg(long, value_name = "MIB")]
    pub max_memory: Option<u64>,
}

impl Limits {
    /// Returns the maximum size of a request in bytes.
    pub fn body_bytes(&self) -> usize {
        self.max_body << 20
    }

    /// Returns the time that a request may wait.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.max_wait_seconds)
    }

    /// Returns the time that a request may take.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.max_seconds)
    }
}
