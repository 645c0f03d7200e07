//! Vectors of the processor, so that a kernel is written once.
//!
//! A [`Simd`] value is the proof that the processor has the instructions. Kernels are generic over
//! it and run inside [`Simd::run`], which is compiled for these instructions; all that it calls
//! must be `#[inline(always)]` to be compiled for them too.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

/// Vectors of `LANES` numbers of 32 bits. Loads and stores take the first `LANES` of a slice and
/// panic where it is shorter.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Float32 numbers.
    type F: Copy;
    /// Int32 numbers, or twice as many int16 ones.
    type I: Copy;
    /// Numbers in a vector: 4, 8 or 16.
    const LANES: usize;
    /// Rows of a tile of a matrix product, which is two vectors wide: as many as the registers
    /// hold.
    const TILE: usize;

    /// Runs a kernel, compiled for these vectors.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32]);
    /// The float32 numbers whose upper halves these are.
    fn load_bf16(self, from: &[u16]) -> Self::F;
    fn load_f16(self, from: &[u16]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The bits of the numbers.
    fn bits(self, x: Self::F) -> Self::I;
    /// The numbers of the bits.
    fn float(self, x: Self::I) -> Self::F;

    fn splat_i(self, x: i32) -> Self::I;
    fn load_i(self, from: &[u32]) -> Self::I;
    fn store_i(self, x: Self::I, to: &mut [u32]);
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl(self, x: Self::I, by: i32) -> Self::I;
    /// Zeros come in from the left.
    fn shr(self, x: Self::I, by: i32) -> Self::I;
    /// Int32 to float32, rounded to the nearest.
    fn convert(self, x: Self::I) -> Self::F;
    /// `sum + a₀ · b₀ + a₁ · b₁` in each lane, a and b being pairs of int16.
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The sum of the lanes of each of `LANES` vectors.
    fn sums(self, x: &[Self::I]) -> Self::I;

    /// Transposes a block of `LANES` rows, which lie side by side, and as many columns; the rows of
    /// `to` are `stride` apart.
    fn transpose(self, from: &[u32], to: &mut [u32], stride: usize);

    /// Has the line of this address brought near. Any address will do.
    fn prefetch(self, address: *const u8);

    /// The sum of the lanes.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        fold(&mut lanes[..Self::LANES], |a, b| a + b)
    }

    /// The largest lane.
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
    /// To be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vectors that a processor may have.
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
    /// The best that this processor has.
    pub fn best() -> Isa {
        Isa::all().pop().unwrap_or(Isa::Portable(Portable))
    }

    /// All that this processor has, the best last.
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

    /// The vectors for reading matrices from memory, which are never slower for that: those of
    /// AVX-512 are larger than what a row has of a group.
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

/// `with_simd!(isa, simd => expression)`: the expression, for the vectors that `isa` is.
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
