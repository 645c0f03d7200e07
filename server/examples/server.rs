//! Serves a model over HTTP, with the API of OpenAI.
//!
//! ```text
//! cargo run --release --example server -- --model models/tiny --port 8080
//! ```

fn main() -> std::process::ExitCode {
    moxin_server::main()
}
