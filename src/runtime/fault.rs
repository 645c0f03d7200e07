//! Failures on purpose, for the tests: `MOXIN_TEST_FAULT=panic@engine` makes the engine's next job panic. A release build has none of this.

use mlx_rs::Array;

use crate::{Error, Result, device::require};

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
