//! The models this library runs, one folder an architecture.

pub mod moxin;
