//! Panics that become errors, and failures on purpose that show it.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use mlx_rs::Array;

use crate::{Error, Result, device::require};

/// Calls `f`; a panic in it becomes an error.
pub fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(Error::Panic(panic_text(panic.as_ref()))))
}

/// The text of a caught panic.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
}

/// For the tests: `MOXIN_TEST_FAULT=panic@engine` makes the engine's next job panic. A release build has none of this.
///
/// Fails where the environment asks for it: `panic`, `mlx` (an exception in MLX) or `memory` (a refusal), `@` and the place.
pub fn inject(place: &str) -> Result<()> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let Ok(wanted) = std::env::var("MOXIN_TEST_FAULT") else { return Ok(()) };
    match wanted.strip_suffix(place).and_then(|fault| fault.strip_suffix('@')) {
        Some("panic") => panic!("on purpose, at {place}"),
        Some("mlx") => {
            Array::from_slice(&[1.0f32, 2.0], &[1, 2]).matmul(Array::from_slice(&[1.0f32], &[1, 1])).map(drop).map_err(Error::from)
        }
        Some("memory") => require("a test", u64::MAX, u64::MAX - 1),
        _ => Ok(()),
    }
}
