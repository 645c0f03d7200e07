//! NEON, which every 64-bit Arm processor has. The functions are Arm's:
//! <https://developer.arm.com/architectures/instruction-sets/intrinsics/>.
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use super::simd::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Methods that are one instruction each.
macro_rules! instructions {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($argument: $kind),*) -> $result {
            // SAFETY: every CPU of this architecture has the instruction; it accesses no memory.
            unsafe { $body }
        })*
    };
}

/// Loads and stores of a vector.
macro_rules! memory {
    ($($name:ident($from:ident: &[$item:ty]) -> $result:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $from: &[$item]) -> $result {
            assert!($from.len() >= Self::LANES);
            // SAFETY: the slice is long enough.
            unsafe { $body }
        })*
    };
}

impl Simd for Neon {
    type F = float32x4_t;
    type I = int32x4_t;
    const LANES: usize = 4;
    const TILE: usize = 6;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    instructions! {
        splat(x: f32) -> float32x4_t = vdupq_n_f32(x);
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
        sub(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32(a, b);
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
        div(a: float32x4_t, b: float32x4_t) -> float32x4_t = vdivq_f32(a, b);
        min(a: float32x4_t, b: float32x4_t) -> float32x4_t = vminq_f32(a, b);
        max(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmaxq_f32(a, b);
        fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
        bits(x: float32x4_t) -> int32x4_t = vreinterpretq_s32_f32(x);
        float(x: int32x4_t) -> float32x4_t = vreinterpretq_f32_s32(x);
        splat_i(x: i32) -> int32x4_t = vdupq_n_s32(x);
        add_i(a: int32x4_t, b: int32x4_t) -> int32x4_t = vaddq_s32(a, b);
        and(a: int32x4_t, b: int32x4_t) -> int32x4_t = vandq_s32(a, b);
        shl(x: int32x4_t, by: i32) -> int32x4_t = vshlq_s32(x, vdupq_n_s32(by));
        shr(x: int32x4_t, by: i32) -> int32x4_t = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(-by)));
        convert(x: int32x4_t) -> float32x4_t = vcvtq_f32_s32(x);
    }

    memory! {
        load(from: &[f32]) -> float32x4_t = vld1q_f32(from.as_ptr());
        load_bf16(from: &[u16]) -> float32x4_t = vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr())));
        load_i(from: &[u32]) -> int32x4_t = vld1q_s32(from.as_ptr().cast());
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> float32x4_t {
        let from = &from[..4];
        let numbers: [f32; 4] = std::array::from_fn(|i| half::f16::from_bits(from[i]).to_f32());
        self.load(&numbers)
    }

    #[inline(always)]
    fn store(self, x: float32x4_t, to: &mut [f32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { vst1q_f32(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_i(self, x: int32x4_t, to: &mut [u32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { vst1q_s32(to.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: as in `instructions`.
        unsafe {
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
        }
    }

    #[inline(always)]
    fn sums(self, x: &[int32x4_t]) -> int32x4_t {
        // SAFETY: as in `instructions`.
        unsafe { vpaddq_s32(vpaddq_s32(x[0], x[1]), vpaddq_s32(x[2], x[3])) }
    }

    #[inline(always)]
    fn transpose(self, from: &[u32], to: &mut [u32], stride: usize) {
        assert!(from.len() >= 16);
        // SAFETY: the slice is long enough. The load reads every fourth word, so it deinterleaves
        // columns.
        let columns = unsafe { vld4q_s32(from.as_ptr().cast()) };
        for (i, column) in [columns.0, columns.1, columns.2, columns.3]
            .into_iter()
            .enumerate()
        {
            self.store_i(column, &mut to[i * stride..]);
        }
    }

    /// Does nothing: the CPU detects sequential reads by itself.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
