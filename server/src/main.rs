//! The server as a program of its own.

fn main() -> std::process::ExitCode {
    moxin_server::main()
}
