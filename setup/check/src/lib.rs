//! Fails early in a build of moxin-vlm on Linux if MLX is not set up. Without this, the build would
//! end later and with the CMake output of mlx-sys. The crate has no items and no dependencies, so
//! that its build script is among the first to run.
