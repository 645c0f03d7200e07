//! Element-wise functions: exponentials and the activations made from them, accurate to about one
//! unit in the last place.
#![allow(clippy::excessive_precision)] // in the precision of their sources

use super::{
    pool::Pool,
    shared::Shared,
    simd::{Isa, Kernel, Simd, with_simd},
};

/// A function of one number.
pub(super) trait Function: Sync {
    /// Must be `#[inline(always)]`.
    fn at<S: Simd>(simd: S, x: S::F) -> S::F;
}

/// `x · sigmoid(x)`.
pub(crate) struct Silu;
/// `x · sigmoid(1.702 x)`.
pub(crate) struct QuickGelu;
/// `x · Φ(x)`, through the error function.
pub(crate) struct Gelu;
/// The tanh approximation of GELU.
pub(crate) struct GeluTanh;

impl Function for Silu {
    #[inline(always)]
    fn at<S: Simd>(simd: S, x: S::F) -> S::F {
        logistic(simd, x, 1.0)
    }
}

impl Function for QuickGelu {
    #[inline(always)]
    fn at<S: Simd>(simd: S, x: S::F) -> S::F {
        logistic(simd, x, 1.702)
    }
}

impl Function for GeluTanh {
    /// (1 + tanh(u)) / 2 is the logistic function of 2u.
    #[inline(always)]
    fn at<S: Simd>(simd: S, x: S::F) -> S::F {
        let factor = simd.fma(simd.mul(x, x), simd.splat(0.044715), simd.splat(1.0));
        let inner = simd.mul(simd.mul(x, factor), simd.splat(-2.0 * 0.797_884_56));
        simd.div(x, simd.add(exp(simd, inner), simd.splat(1.0)))
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn at<S: Simd>(simd: S, x: S::F) -> S::F {
        let half = simd.mul(x, simd.splat(0.5));
        simd.fma(
            half,
            erf(
                simd,
                simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)),
            ),
            half,
        )
    }
}

/// Returns `x / (1 + exp(-factor · x))`.
#[inline(always)]
fn logistic<S: Simd>(simd: S, x: S::F, factor: f32) -> S::F {
    simd.div(
        x,
        simd.add(exp(simd, simd.mul(x, simd.splat(-factor))), simd.splat(1.0)),
    )
}

/// Returns `c[0] · xⁿ + .. + c[n]`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::F, c: [f32; N]) -> S::F {
    let mut sum = simd.splat(c[0]);
    for c in &c[1..] {
        sum = simd.fma(sum, x, simd.splat(*c));
    }
    sum
}

/// Returns the exponential; arguments beyond float32's range are clamped, and NaN stays NaN. The
/// polynomial is that of Cephes (<https://netlib.org/cephes/>, `expf`).
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // If one argument is NaN, these return the second.
    let x = simd.min(simd.splat(88.37), simd.max(simd.splat(-87.33), x));
    // exp(x) = 2ⁿ · exp(r). A float of this size has no fraction bits, and n is in its lowest bits.
    let magic = simd.splat(12_582_912.0);
    let shifted = simd.fma(x, simd.splat(std::f32::consts::LOG2_E), magic);
    let n = simd.sub(shifted, magic);
    let r = simd.fma(n, simd.splat(-0.693_359_4), x);
    let r = simd.fma(n, simd.splat(2.121_944_4e-4), r);
    let c = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5.000_000_1e-1,
    ];
    let p = simd.add(
        simd.fma(polynomial(simd, r, c), simd.mul(r, r), r),
        simd.splat(1.0),
    );
    simd.float(simd.add_i(simd.bits(p), simd.shl(simd.bits(shifted), 23)))
}

/// Returns the error function, as in Eigen
/// (<https://gitlab.com/libeigen/eigen/-/blob/3.4.0/unsupported/Eigen/src/SpecialFunctions/SpecialFunctionsImpl.h>).
#[inline(always)]
fn erf<S: Simd>(simd: S, x: S::F) -> S::F {
    let x = simd.min(simd.splat(4.0), simd.max(simd.splat(-4.0), x));
    let square = simd.mul(x, x);
    let above = [
        -2.726_142_3e-10,
        2.770_681_5e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_599_9e-3,
        -1.609_603_3e-2,
    ];
    let below = [
        -1.456_607_2e-5,
        -2.133_740_5e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ];
    simd.div(
        simd.mul(x, polynomial(simd, square, above)),
        polynomial(simd, square, below),
    )
}

/// Writes `function(x)` for every number, times `times` if given; without `x`, of the content of
/// `out`.
pub(super) fn map<F: Function>(
    isa: Isa,
    pool: &Pool,
    _: F,
    x: Option<&[f32]>,
    times: Option<&[f32]>,
    out: &mut [f32],
) {
    let len = out.len();
    assert!(
        [x, times]
            .iter()
            .flatten()
            .all(|numbers| numbers.len() == len)
    );
    const PART: usize = 1 << 14;
    let out = Shared::new(out);
    pool.run_if(len > 2 * PART, len.div_ceil(PART), &|part| {
        let range = part * PART..((part + 1) * PART).min(len);
        let out = out.part(range.start, range.len());
        if let Some(x) = x {
            out.copy_from_slice(&x[range.clone()]);
        }
        let map = Map::<F> {
            numbers: out,
            times: times.map(|times| &times[range]),
            function: std::marker::PhantomData,
        };
        with_simd!(isa, simd => simd.run(map));
    });
}

struct Map<'a, F> {
    numbers: &'a mut [f32],
    times: Option<&'a [f32]>,
    function: std::marker::PhantomData<F>,
}

impl<F: Function> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Map { numbers, times, .. } = self;
        let whole = numbers.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            let mut y = F::at(simd, simd.load(&numbers[i..]));
            if let Some(times) = times {
                y = simd.mul(y, simd.load(&times[i..]));
            }
            simd.store(y, &mut numbers[i..]);
        }
        let mut rest = [0.0; 16];
        let left = numbers.len() - whole;
        rest[..left].copy_from_slice(&numbers[whole..]);
        let y = F::at(simd, simd.load(&rest));
        simd.store(y, &mut rest);
        for i in 0..left {
            numbers[whole + i] = rest[i] * times.map_or(1.0, |times| times[whole + i]);
        }
    }
}
