//! The CPU's vector instructions behind one trait, so that each kernel is written once.
//!
//! A [`Simd`] value proves that the CPU has the instructions. Kernels are generic over it and run
//! inside [`Simd::run`], which is compiled for these instructions; everything it calls must be
//! `#[inline(always)]` to be compiled for them too.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

/// Vectors of `LANES` 32-bit numbers. Loads and stores use the first `LANES` of a slice and panic
/// if it is shorter.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Float32 numbers.
    type F: Copy;
    /// Int32 numbers, or twice as many int16 numbers.
    type I: Copy;
    /// The number of lanes in a vector: 4, 8 or 16.
    const LANES: usize;
    /// The number of rows in a tile of a matrix product, which is two vectors wide: as many as the
    /// registers can keep.
    const TILE: usize;

    /// Runs a kernel, compiled for these vectors.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32]);
    /// Loads bfloat16 numbers, which are the upper halves of float32 numbers.
    fn load_bf16(self, from: &[u16]) -> Self::F;
    fn load_f16(self, from: &[u16]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Returns `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Returns the bits of the numbers.
    fn bits(self, x: Self::F) -> Self::I;
    /// Returns the numbers with these bits.
    fn float(self, x: Self::I) -> Self::F;

    fn splat_i(self, x: i32) -> Self::I;
    fn load_i(self, from: &[u32]) -> Self::I;
    fn store_i(self, x: Self::I, to: &mut [u32]);
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl(self, x: Self::I, by: i32) -> Self::I;
    /// Shifts right, filling with zeros.
    fn shr(self, x: Self::I, by: i32) -> Self::I;
    /// Converts int32 to float32, rounding to nearest.
    fn convert(self, x: Self::I) -> Self::F;
    /// Returns `sum + a₀ · b₀ + a₁ · b₁` in each lane, where a and b are pairs of int16.
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Returns the sum of the lanes of each of `LANES` vectors.
    fn sums(self, x: &[Self::I]) -> Self::I;

    /// Transposes a block of `LANES` contiguous rows and as many columns; the rows of `to` are
    /// `stride` apart.
    fn transpose(self, from: &[u32], to: &mut [u32], stride: usize);

    /// Prefetches the cache line of this address. Any address is allowed.
    fn prefetch(self, address: *const u8);

    /// Returns the sum of the lanes.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        fold(&mut lanes[..Self::LANES], |a, b| a + b)
    }

    /// Returns the largest lane.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        fold(&mut lanes[..Self::LANES], f32::max)
    }
}

/// Folds the upper half into the lower until one number is left.
#[inline(always)]
fn fold(lanes: &mut [f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = lanes.len() / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Work for [`Simd::run`].
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The kinds of vectors that a CPU may have.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Isa {
    /// Returns the best kind that this CPU has.
    pub fn best() -> Isa {
        Isa::all().pop().unwrap_or(Isa::Portable(Portable))
    }

    /// Returns all kinds that this CPU has, the best last.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Isa::Avx2));
            all.extend(Avx512::detect().map(Isa::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Isa::Neon(Neon));
        all
    }

    /// Returns the kind for reading matrices from memory, which is never slower: AVX-512's vectors
    /// are larger than a row's part of a group.
    pub fn for_vectors(self) -> Isa {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => Isa::Avx2(simd.half()),
            other => other,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "NEON",
        }
    }
}

/// `with_simd!(isa, simd => expression)`: evaluates the expression for the vectors of `isa`.
macro_rules! with_simd {
    ($isa:expr, $simd:ident => $body:expr) => {
        match $isa {
            $crate::device::cpu::simd::Isa::Portable($simd) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::device::cpu::simd::Isa::Avx2($simd) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::device::cpu::simd::Isa::Avx512($simd) => $body,
            #[cfg(target_arch = "aarch64")]
            $crate::device::cpu::simd::Isa::Neon($simd) => $body,
        }
    };
}
pub(crate) use with_simd;
