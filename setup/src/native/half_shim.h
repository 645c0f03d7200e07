// Force-included before every mlx-c source on Linux, and before its headers when the Rust bindings
// are made. It provides two things that mlx-c 0.7.0 expects from a Mac:
//
// 1. 16-bit float types. `mlx/c/half.h` defines them on ARM only, but mlx-rs needs them everywhere.
//    Claiming its include guard here replaces it.
// 2. `std::format`, which GCC has only from version 13 on. mlx-c uses it for messages whose
//    placeholders are all plain `{}`.
#ifndef MLX_HALF_H
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16

#ifdef __cplusplus

#include <sstream>
#include <string>
#include <string_view>

#include <mlx/types/half_types.h>

using mlx::core::bfloat16_t;
using mlx::core::float16_t;

#if __has_include(<version>)
#include <version>
#endif
#ifndef __cpp_lib_format
namespace std {

// Replaces the next `{}` of the pattern with each argument.
template <typename... Args>
string format(string_view pattern, const Args &...args) {
    ostringstream out;
    auto put = [&](const auto &value) {
        auto hole = pattern.find("{}");
        if (hole == string_view::npos) return;
        out << pattern.substr(0, hole) << value;
        pattern.remove_prefix(hole + 2);
    };
    (put(args), ...);
    out << pattern;
    return out.str();
}

} // namespace std
#else
#include <format>
#endif

#else // C, only read by bindgen: the shapes that mlx-rs expects of the two types

#include <stdint.h>

typedef __fp16 float16_t;
typedef uint16_t bfloat16_t;

#endif // __cplusplus

#endif // MLX_HALF_H
