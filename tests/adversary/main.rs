//! Attacks on the library, each in a process of its own with limits on time, memory, threads and files. SECURITY.md says what is promised
//! against whom, and which test here shows it.
#![cfg(unix)]

mod answers;
#[allow(dead_code)] // each platform uses some of it
mod child;
mod failures;
mod folder;
mod memory;
mod mlx;
mod pictures;
mod process;
#[path = "../programs/mod.rs"]
mod programs;
mod saving;
mod text;
