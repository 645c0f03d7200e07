//! Vectors as plain arrays, for CPUs without supported vector instructions and for the tests.

use super::simd::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

const N: usize = 8;

#[inline(always)]
fn each<T: Copy, U: Copy, R>(a: [T; N], b: [U; N], f: impl Fn(T, U) -> R) -> [R; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn first<T: Copy>(from: &[T]) -> [T; N] {
    let from = &from[..N];
    std::array::from_fn(|i| from[i])
}

/// Returns the two int16 in a lane.
#[inline(always)]
fn pair(x: i32) -> (i32, i32) {
    (i32::from(x as i16), x >> 16)
}

impl Simd for Portable {
    type F = [f32; N];
    type I = [i32; N];
    const LANES: usize = N;
    const TILE: usize = 3;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; N]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F {
        first(from)
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32]) {
        to[..N].copy_from_slice(&x);
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16]) -> Self::F {
        first(from).map(|x| f32::from_bits(u32::from(x) << 16))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> Self::F {
        first(from).map(|x| half::f16::from_bits(x).to_f32())
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        x.map(|x| x.to_bits() as i32)
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; N]
    }

    #[inline(always)]
    fn load_i(self, from: &[u32]) -> Self::I {
        first(from).map(|x| x as i32)
    }

    #[inline(always)]
    fn store_i(self, x: Self::I, to: &mut [u32]) {
        to[..N].copy_from_slice(&x.map(|x| x as u32));
    }

    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        each(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        each(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn shl(self, x: Self::I, by: i32) -> Self::I {
        x.map(|x| x << by)
    }

    #[inline(always)]
    fn shr(self, x: Self::I, by: i32) -> Self::I {
        x.map(|x| (x as u32 >> by) as i32)
    }

    #[inline(always)]
    fn convert(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let products = each(a, b, |a, b| {
            let (a, b) = (pair(a), pair(b));
            a.0 * b.0 + a.1 * b.1
        });
        self.add_i(sum, products)
    }

    #[inline(always)]
    fn sums(self, x: &[Self::I]) -> Self::I {
        first(x).map(|x| x.iter().sum())
    }

    #[inline(always)]
    fn transpose(self, from: &[u32], to: &mut [u32], stride: usize) {
        for column in 0..N {
            for row in 0..N {
                to[column * stride + row] = from[row * N + column];
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
