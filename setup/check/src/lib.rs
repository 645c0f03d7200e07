//! Ends a build of moxin-vlm on Linux at once if MLX is not set up. Otherwise the build would end
//! later, with the CMake output of mlx-sys. The crate has no items.
