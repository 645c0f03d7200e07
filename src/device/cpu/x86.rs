//! AVX2 and AVX-512. The functions are Intel's:
//! <https://www.intel.com/content/www/us/en/docs/intrinsics-guide/index.html>.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::simd::{Kernel, Simd};

/// A CPU with AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// A CPU with AVX-512 and its instructions for small integers (VNNI).
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx2 {
    pub fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    /// Transposes the first four rows of 8 words: each 128-bit lane has four of their columns. Lane
    /// l of vector j is column 4 · l + j.
    #[inline(always)]
    fn quads(self, rows: &[u32]) -> [__m256; 4] {
        let load = [
            self.load_i(rows),
            self.load_i(&rows[8..]),
            self.load_i(&rows[16..]),
            self.load_i(&rows[24..]),
        ];
        let [a, b, c, d] = [
            self.float(load[0]),
            self.float(load[1]),
            self.float(load[2]),
            self.float(load[3]),
        ];
        // SAFETY: as in `instructions`.
        unsafe {
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xEE>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
            ]
        }
    }
}

impl Avx512 {
    pub fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        (has && Avx2::detect().is_some()).then_some(Avx512(()))
    }

    /// Transposes the first four rows of 16 words: each 128-bit lane has four of their columns.
    /// Lane l of vector j is column 4 · l + j.
    #[inline(always)]
    fn quads(self, rows: &[u32]) -> [__m512i; 4] {
        let [a, b, c, d] = [
            self.load_i(rows),
            self.load_i(&rows[16..]),
            self.load_i(&rows[32..]),
            self.load_i(&rows[48..]),
        ];
        // SAFETY: as in `instructions`.
        unsafe {
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    /// Returns the same CPU, for vectors of half the size.
    #[inline(always)]
    pub fn half(self) -> Avx2 {
        Avx2(())
    }
}

/// Methods that are one instruction each.
macro_rules! instructions {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($argument: $kind),*) -> $result {
            // SAFETY: `self` exists only if the CPU has the instruction; it accesses no memory.
            unsafe { $body }
        })*
    };
}

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    const LANES: usize = 8;
    const TILE: usize = 6;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only if the CPU has these instructions.
        unsafe { inner(self, kernel) }
    }

    instructions! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        bits(x: __m256) -> __m256i = _mm256_castps_si256(x);
        float(x: __m256i) -> __m256 = _mm256_castsi256_ps(x);
        splat_i(x: i32) -> __m256i = _mm256_set1_epi32(x);
        add_i(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        shl(x: __m256i, by: i32) -> __m256i = _mm256_sll_epi32(x, _mm_cvtsi32_si128(by));
        shr(x: __m256i, by: i32) -> __m256i = _mm256_srl_epi32(x, _mm_cvtsi32_si128(by));
        convert(x: __m256i) -> __m256 = _mm256_cvtepi32_ps(x);
        dot_pairs(sum: __m256i, a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
        prefetch(address: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16]) -> __m256 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                _mm_loadu_si128(from.as_ptr().cast()),
            )))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> __m256 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i(self, from: &[u32]) -> __m256i {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_i(self, x: __m256i, to: &mut [u32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn sums(self, x: &[__m256i]) -> __m256i {
        assert!(x.len() >= Self::LANES);
        // SAFETY: as in `instructions`.
        unsafe {
            let low =
                _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
            let high =
                _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
            _mm256_add_epi32(
                _mm256_permute2x128_si256::<0x20>(low, high),
                _mm256_permute2x128_si256::<0x31>(low, high),
            )
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[u32], to: &mut [u32], stride: usize) {
        let [upper, lower] = [self.quads(from), self.quads(&from[32..])];
        // SAFETY: as in `instructions`.
        let columns = unsafe {
            [
                _mm256_permute2f128_ps::<0x20>(upper[0], lower[0]),
                _mm256_permute2f128_ps::<0x20>(upper[1], lower[1]),
                _mm256_permute2f128_ps::<0x20>(upper[2], lower[2]),
                _mm256_permute2f128_ps::<0x20>(upper[3], lower[3]),
                _mm256_permute2f128_ps::<0x31>(upper[0], lower[0]),
                _mm256_permute2f128_ps::<0x31>(upper[1], lower[1]),
                _mm256_permute2f128_ps::<0x31>(upper[2], lower[2]),
                _mm256_permute2f128_ps::<0x31>(upper[3], lower[3]),
            ]
        };
        for (i, column) in columns.into_iter().enumerate() {
            self.store_i(self.bits(column), &mut to[i * stride..]);
        }
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const LANES: usize = 16;
    const TILE: usize = 12;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        fn inner<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only if the CPU has these instructions.
        unsafe { inner(self, kernel) }
    }

    instructions! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        bits(x: __m512) -> __m512i = _mm512_castps_si512(x);
        float(x: __m512i) -> __m512 = _mm512_castsi512_ps(x);
        splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        shl(x: __m512i, by: i32) -> __m512i = _mm512_sll_epi32(x, _mm_cvtsi32_si128(by));
        shr(x: __m512i, by: i32) -> __m512i = _mm512_srl_epi32(x, _mm_cvtsi32_si128(by));
        convert(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        dot_pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_dpwssd_epi32(sum, a, b);
        prefetch(address: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16]) -> __m512 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                _mm256_loadu_si256(from.as_ptr().cast()),
            )))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> __m512 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i(self, from: &[u32]) -> __m512i {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_i(self, x: __m512i, to: &mut [u32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn sums(self, x: &[__m512i]) -> __m512i {
        assert!(x.len() >= Self::LANES);
        // SAFETY: as in `instructions`.
        unsafe {
            let mut halves = [_mm256_setzero_si256(); 16];
            for i in 0..16 {
                halves[i] = _mm256_add_epi32(
                    _mm512_castsi512_si256(x[i]),
                    _mm512_extracti64x4_epi64::<1>(x[i]),
                );
            }
            let (low, high) = halves.split_at(8);
            _mm512_inserti64x4::<1>(
                _mm512_castsi256_si512(self.half().sums(low)),
                self.half().sums(high),
            )
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[u32], to: &mut [u32], stride: usize) {
        let quads = [
            self.quads(from),
            self.quads(&from[64..]),
            self.quads(&from[128..]),
            self.quads(&from[192..]),
        ];
        for j in 0..4 {
            // SAFETY: as in `instructions`.
            unsafe {
                // Columns j and j + 8, then j + 4 and j + 12, of the rows 0 to 7 and of 8 to 15.
                let (upper, lower) = (
                    _mm512_shuffle_i32x4::<0x88>(quads[0][j], quads[1][j]),
                    _mm512_shuffle_i32x4::<0x88>(quads[2][j], quads[3][j]),
                );
                self.store_i(
                    _mm512_shuffle_i32x4::<0x88>(upper, lower),
                    &mut to[j * stride..],
                );
                self.store_i(
                    _mm512_shuffle_i32x4::<0xDD>(upper, lower),
                    &mut to[(j + 8) * stride..],
                );
                let (upper, lower) = (
                    _mm512_shuffle_i32x4::<0xDD>(quads[0][j], quads[1][j]),
                    _mm512_shuffle_i32x4::<0xDD>(quads[2][j], quads[3][j]),
                );
                self.store_i(
                    _mm512_shuffle_i32x4::<0x88>(upper, lower),
                    &mut to[(j + 4) * stride..],
                );
                self.store_i(
                    _mm512_shuffle_i32x4::<0xDD>(upper, lower),
                    &mut to[(j + 12) * stride..],
                );
            }
        }
    }
}
