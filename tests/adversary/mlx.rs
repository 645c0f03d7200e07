//! MLX's own failures: each is an error with MLX's message, and nothing computed with it is used.

use mlx_rs::{Array, linalg::inv};
use moxin_vlm::{Backend, device::Device};

use crate::{
    child::{Limits, Program, in_child},
    programs::{demo, tiny},
};

/// Failures in evaluation, on MLX's own thread: while weights are read and quantized, in an
/// encoding, and in a second turn.
#[test]
fn failures_are_errors_and_leave_nothing_behind() {
    if !cfg!(debug_assertions) {
        return println!("SKIPPED: a release build has no fault injection");
    }
    Program::build("mlx.c").run(&[tiny().as_os_str(), demo().as_os_str()], Limits::default());
}

/// Documents behavior that the library depends on: an error on the thread of a stream is reported
/// once, to whoever waits, and all arrays of that evaluation then count as computed. A conversation
/// therefore discards its keys and values.
#[test]
fn mlx_reports_a_failure_once_and_calls_the_rest_computed() {
    in_child(
        "mlx::mlx_reports_a_failure_once_and_calls_the_rest_computed",
        Limits::default(),
        || {
            Device::new(Backend::Cpu).unwrap().run(|| {
                let singular = inv(Array::from_slice(&[0.0f32; 4], &[2, 2])).unwrap();
                let between = singular.sum(None).unwrap();
                let last = between.add(Array::from_f32(1.0)).unwrap();
                let error = last.eval().unwrap_err();
                assert!(error.what().contains("LU factorization"), "{error}");
                assert!(between.eval().is_ok() && last.eval().is_ok());
                let sum = Array::from_f32(1.0).add(Array::from_f32(2.0)).unwrap();
                assert_eq!(sum.try_item_cast::<f32>().unwrap(), 3.0);
            });
        },
    );
}
