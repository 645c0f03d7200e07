//! Injected failures, which show that real ones become errors.

use std::{sync::Mutex, time::Duration};

use mlx_rs::{Array, linalg::inv};

use super::require_within;
use crate::{Error, Result};

/// Fails if the tests ask for it with the environment variable `MOXIN_TEST_FAULT`. Not part of
/// release builds.
///
/// The value is a kind, `@` and a place, such as `panic@engine`: the place fails whenever it is
/// reached. With `:3` appended, it fails only the third time it is reached since the variable has
/// this value. The kinds are
///
/// * `panic`; `mlx`, an operation that MLX refuses; `memory`, a refusal of this library;
/// * `cancel`, `suspend` and `timeout`, as if the operation had to stop here;
/// * `eval`, an error that MLX finds on its own thread during evaluation;
/// * `slow`, no failure, but the place takes 400 milliseconds.
pub(crate) fn inject(place: &str) -> Result<()> {
    due(place).map_or(Ok(()), |kind| fail(&kind, place))
}

/// Does the same as [`inject`]. A fault of the kind `eval` becomes part of `x` and occurs when that
/// is evaluated.
pub(crate) fn inject_into(place: &str, x: Array) -> Result<Array> {
    match due(place).as_deref() {
        None => Ok(x),
        Some("eval") => Ok(x.add(fails_in_evaluation()?.as_dtype(x.dtype())?)?),
        Some(kind) => fail(kind, place).map(|()| x),
    }
}

fn fail(kind: &str, place: &str) -> Result<()> {
    match kind {
        "panic" => panic!("on purpose, at {place}"),
        "mlx" => Array::from_slice(&[1.0f32, 2.0], &[1, 2])
            .matmul(Array::from_slice(&[1.0f32], &[1, 1]))
            .map(drop)
            .map_err(Error::from),
        "memory" => require_within("a test", u64::MAX, Some(u64::MAX - 1)),
        "cancel" => Err(Error::Cancelled),
        "suspend" => Err(Error::Suspended),
        "timeout" => Err(Error::Timeout),
        "eval" => Ok(fails_in_evaluation()?.eval()?),
        "slow" => {
            std::thread::sleep(Duration::from_millis(400));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Returns the kind of fault that a place currently has.
fn due(place: &str) -> Option<String> {
    static PASSES: Mutex<(String, u64)> = Mutex::new((String::new(), 0));
    if !cfg!(debug_assertions) {
        return None;
    }
    let wanted = std::env::var("MOXIN_TEST_FAULT").unwrap_or_default();
    let mut passes = PASSES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if passes.0 != wanted {
        *passes = (wanted.clone(), 0);
    }
    let (kind, rest) = wanted.split_once('@')?;
    let (at, pass) = rest
        .split_once(':')
        .map_or((rest, None), |(at, pass)| (at, pass.parse().ok()));
    if at != place {
        return None;
    }
    passes.1 += 1;
    pass.is_none_or(|pass: u64| pass == passes.1)
        .then(|| kind.to_owned())
}

/// A value that cannot be computed: the inverse of a singular matrix, which MLX finds out on the
/// thread of its stream.
fn fails_in_evaluation() -> Result<Array> {
    Ok(inv(Array::from_slice(&[0.0f32; 4], &[2, 2]))?.sum(None)?)
}
