# What mlx-c's `find_package(MLX)` finds: the unpacked wheel. The wheel's own MLXConfig.cmake is
# left aside because in the CUDA wheel it asks for a whole CUDA toolkit, and headers are enough here.
add_library(mlx SHARED IMPORTED GLOBAL)
set_target_properties(mlx PROPERTIES
  IMPORTED_LOCATION "${HOME}/mlx/lib/libmlx.so"
  INTERFACE_INCLUDE_DIRECTORIES "${HOME}/mlx/include")
set(MLX_FOUND TRUE)
