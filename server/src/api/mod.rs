//! The endpoints, one module per API.

pub mod chat;
pub mod describe;
pub mod messages;
pub mod openapi;
pub mod responses;
pub mod service;

use std::time::SystemTime;

use uuid::Uuid;

/// Returns a new id that starts with `prefix`.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::new_v4().simple())
}

/// Returns the current time in seconds since 1970.
fn now() -> u64 {
    crate::models::seconds(SystemTime::now())
}
