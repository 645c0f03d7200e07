//! The CPU kernels, compiled without MLX, so that their tests run where MLX does not: under
//! AddressSanitizer, and on an emulated Arm CPU. `cargo xtask kernels-test` does both.
#![allow(dead_code)] // items that the library uses and these tests do not

#[path = "../src/device"]
mod device {
    mod cpu {
        mod attention;
        mod buffer;
        mod coded;
        mod cores;
        mod dense;
        mod gemm;
        mod math;
        mod norm;
        mod numbers;
        mod pool;
        mod portable;
        mod quantized;
        mod shared;
        mod simd;
        #[cfg(target_arch = "x86_64")]
        mod x86;

        #[cfg(target_arch = "aarch64")]
        mod neon;

        mod tests;
    }
}
