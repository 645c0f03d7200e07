//! Products with matrices in MLX's affine format of 4 or 8 bits.
//!
//! A value of the matrix is `scale · q + bias`, with a scale and a bias for each group of neighbors
//! in a row. The values of x are rounded to int16 in the same groups, x ≈ step · i with
//! |i| <= 32767, so that a group's product is one of whole numbers:
//!
//! ```text
//! Σ (scale · q + bias) · x  ≈  step · (scale · Σ q · i + bias · Σ i)
//! ```
//!
//! The sums are exact (255 · 32767 · 128 < 2³¹) and groups are added in order, so the result does
//! not depend on the CPU's vectors, on the number of threads, or on how many rows are computed at
//! once. The rounding error is at most half a step, 1/65534 of the largest value of x in the group.
//!
//! A 32-bit word has 8 values of 4 bits or 4 of 8, the first in the lowest bits. A shift and a mask
//! produce two int16 lanes: with 4 bits, shifting by s values produces the values s and s + 4; with
//! 8 bits, s and s + 2. So x is packed in these pairs.

use super::{
    buffer::{Buffer, zeros},
    gemm::{Product, multiply, row_panels},
    numbers::{F32, Floats, Matrix, Rows, transposed, with_rows},
    pool::Pool,
    shared::Shared,
    simd::{Isa, Kernel, Simd, with_simd},
};

/// A matrix `[rows, columns]` in MLX's affine format.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub rows: usize,
    pub columns: usize,
    /// 4 or 8.
    pub bits: usize,
    /// 32, 64 or 128; divides the columns.
    pub group_size: usize,
    /// `[rows, columns · bits / 32]`
    pub words: &'a [u32],
    /// `[rows, columns / group size]`
    pub scales: Floats<'a>,
    /// `[rows, columns / group size]`, stored like the scales.
    pub biases: Floats<'a>,
}

/// The number of columns that are unpacked at once: a panel of AVX-512 then uses 32 KiB.
const BLOCK: usize = 512;

impl Affine<'_> {
    fn groups(&self) -> usize {
        self.columns / self.group_size
    }

    fn words_in_row(&self) -> usize {
        self.columns * self.bits / 32
    }

    fn words_in_group(&self) -> usize {
        self.group_size * self.bits / 32
    }

    /// Returns the number of shifts that bring all values of a word into the masked bits.
    fn shifts(&self) -> usize {
        16 / self.bits
    }

    fn check(&self) {
        assert!(matches!(self.bits, 4 | 8) && matches!(self.group_size, 32 | 64 | 128));
        assert!(self.columns.is_multiple_of(self.group_size));
        assert_eq!(self.words.len(), self.rows * self.words_in_row());
        assert_eq!(
            (self.scales.len(), self.biases.len()),
            (self.rows * self.groups(), self.rows * self.groups())
        );
        assert!(self.scales.is_like(&self.biases));
    }

    /// Computes `x [x rows, columns] · selfᵀ + bias` into `out [x rows, rows]`.
    pub fn multiply(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        self.check();
        let rows = x.len() / self.columns;
        assert_eq!(
            (x.len(), out.len()),
            (rows * self.columns, rows * self.rows)
        );
        assert!(bias.is_none_or(|bias| bias.len() == self.rows));
        match rows {
            0 => (),
            1 => {
                with_simd!(isa.for_vectors(), simd => self.multiply_vector(simd, pool, x, bias, out))
            }
            _ => with_simd!(isa, simd => {
                let x = Packed::new(simd, pool, self, x);
                multiply(simd, pool, &WithMatrix { matrix: self, x: &x }, rows, self.rows, self.columns, bias, out);
            }),
        }
    }

    fn multiply_vector<S: Simd>(
        &self,
        simd: S,
        pool: &Pool,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let x = Packed::new(simd, pool, self, x);
        let blocks = self.rows.div_ceil(S::LANES);
        let in_task = blocks.div_ceil(pool.tasks(self.words.len() * 4)).max(1);
        let out = Shared::new(out);
        pool.run(blocks.div_ceil(in_task), &|task| {
            let first = task * in_task * S::LANES;
            let out = out.part(first, (in_task * S::LANES).min(self.rows - first));
            let work = Vector {
                matrix: self,
                x: &x,
                first,
                bias,
                out,
            };
            match (self.bits, self.words_in_group()) {
                (4, 4) => simd.run(Of::<4, 4>(work)),
                (4, 8) => simd.run(Of::<4, 8>(work)),
                (4, _) => simd.run(Of::<4, 16>(work)),
                (_, 8) => simd.run(Of::<8, 8>(work)),
                (_, 16) => simd.run(Of::<8, 16>(work)),
                _ => simd.run(Of::<8, 32>(work)),
            }
        });
    }
}

/// The values of x as int16, packed for the tiles of [`row_panels`]; for a tile of height `H`,
/// everything is ordered as `[.., H]`.
struct Packed {
    /// `[groups, shifts, words of a group, H]`
    pairs: Buffer<u32>,
    /// The value of an int16 step, `[groups, H]`.
    steps: Buffer<f32>,
    /// The sums of the int16, `[groups, H]`. They are integers below 2²⁴.
    sums: Buffer<f32>,
}

impl Packed {
    fn new<S: Simd>(simd: S, pool: &Pool, matrix: &Affine, x: &[f32]) -> Packed {
        let (rows, groups) = (x.len() / matrix.columns, matrix.groups());
        let (mut pairs, mut steps, mut sums) = (
            Buffer::zeros(x.len() / 2),
            Buffer::zeros(rows * groups),
            Buffer::zeros(rows * groups),
        );
        let panels: Vec<_> = row_panels(rows, S::TILE).collect();
        let shared = (
            Shared::new(&mut pairs),
            Shared::new(&mut steps),
            Shared::new(&mut sums),
        );
        let pack = |panel: usize| {
            let (row, height) = panels[panel];
            let pairs = shared
                .0
                .part(row * matrix.columns / 2, height * matrix.columns / 2);
            let (steps, sums) = (
                shared.1.part(row * groups, height * groups),
                shared.2.part(row * groups, height * groups),
            );
            simd.run(Pack {
                matrix,
                x: &x[row * matrix.columns..],
                height,
                pairs,
                steps,
                sums,
            });
        };
        pool.run_if(x.len() > 1 << 16, panels.len(), &pack);
        Packed { pairs, steps, sums }
    }
}

/// Packs the rows of one tile.
struct Pack<'a> {
    matrix: &'a Affine<'a>,
    x: &'a [f32],
    height: usize,
    pairs: &'a mut [u32],
    steps: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Pack { matrix, height, .. } = self;
        let (words, in_word) = (matrix.words_in_group(), 32 / matrix.bits);
        let mut whole = [0; 128];
        for row in 0..height {
            let x =
                self.x[row * matrix.columns..][..matrix.columns].chunks_exact(matrix.group_size);
            for (group, x) in x.enumerate() {
                let whole = &mut whole[..matrix.group_size];
                let (step, sum) = round(x, whole);
                self.steps[group * height + row] = step;
                self.sums[group * height + row] = sum as f32;
                let pairs = &mut self.pairs[group * matrix.group_size / 2 * height..]
                    [..matrix.group_size / 2 * height];
                for (word, x) in whole.chunks_exact(in_word).enumerate() {
                    let (low, high) = x.split_at(in_word / 2);
                    for (shift, (low, high)) in low.iter().zip(high).enumerate() {
                        pairs[(shift * words + word) * height + row] =
                            (low & 0xFFFF | high << 16) as u32;
                    }
                }
            }
        }
    }
}

/// Rounds the values of a group to multiples of a step, which is returned with their sum. The step
/// of a group with an infinity or NaN is not finite either.
#[inline(always)]
fn round(x: &[f32], to: &mut [i32]) -> (f32, i32) {
    // As integers, the bits of positive floats have the order of the floats, with NaN above all.
    let largest = f32::from_bits(
        x.iter()
            .fold(0, |largest, x| largest.max(x.to_bits() & 0x7FFF_FFFF)),
    );
    if largest < 1e-30 {
        to.fill(0);
        return (0.0, 0);
    }
    // A float of this size has no fraction bits: adding it rounds, to the nearest even.
    const ROUND: f32 = 12_582_912.0;
    let factor = 32767.0 / largest;
    let mut sum = 0i32;
    for (x, to) in x.iter().zip(&mut *to) {
        let whole = (x * factor + ROUND).to_bits() as i16;
        *to = i32::from(whole);
        sum += i32::from(whole);
    }
    (largest / 32767.0, sum)
}

/// Returns the mask of the lowest value in each half of a word.
#[inline(always)]
fn mask(bits: usize) -> i32 {
    if bits == 4 { 0x000F_000F } else { 0x00FF_00FF }
}

/// The product with one row of x, for some rows of the matrix.
struct Vector<'a> {
    matrix: &'a Affine<'a>,
    x: &'a Packed,
    first: usize,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

/// The same, with the bits and the words of a group known at compile time.
struct Of<'a, const BITS: usize, const WORDS: usize>(Vector<'a>);

impl<const BITS: usize, const WORDS: usize> Kernel for Of<'_, BITS, WORDS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Of(this) = self;
        this.run::<S, BITS, WORDS>(simd);
    }
}

impl Vector<'_> {
    /// Processes as many rows as a vector has lanes: first the products of their groups with x, row
    /// by row because the CPU prefetches best in one place; then the weighted sums of these
    /// products, one row per lane.
    #[inline(always)]
    fn run<S: Simd, const BITS: usize, const WORDS: usize>(self, simd: S) {
        let Affine {
            scales,
            biases,
            words,
            ..
        } = *self.matrix;
        let (groups, in_row) = (self.matrix.groups(), self.matrix.words_in_row());
        // `[groups / lanes, rows, lanes]`, so that a block of it can be transposed.
        let mut products = zeros(groups.next_multiple_of(S::LANES) * S::LANES);
        for (i, out) in self.out.chunks_mut(S::LANES).enumerate() {
            let first = self.first + i * S::LANES;
            for row in 0..out.len() {
                scales.prefetch(simd, (first + S::LANES + row) * groups, groups);
                biases.prefetch(simd, (first + S::LANES + row) * groups, groups);
                let words = &words[(first + row) * in_row..][..in_row];
                row_times_vector::<S, BITS, WORDS>(
                    simd,
                    words,
                    self.x,
                    &mut products[row * S::LANES..],
                );
            }
            let y = with_rows!([scales, biases], self.matrix.rows, groups, [scales, biases] => {
                weighted(simd, &products, first, [&scales, &biases], self.x)
            });
            let mut sums = [0.0; 16];
            simd.store(y, &mut sums);
            out.copy_from_slice(&sums[..out.len()]);
            if let Some(bias) = self.bias {
                out.iter_mut()
                    .zip(&bias[first..])
                    .for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Returns the products of the rows' groups, weighted with the groups' scales, biases and steps and
/// added up; rows past the last may have any value.
#[inline(always)]
fn weighted<S: Simd, R: Rows>(
    simd: S,
    products: &[u32],
    first: usize,
    [scales, biases]: [&R; 2],
    x: &Packed,
) -> S::F {
    let (groups, last) = (scales.columns(), scales.rows() - 1);
    let x_sums = Matrix {
        numbers: F32(&x.sums),
        rows: 1,
        columns: groups,
    };
    let mut y = simd.splat(0.0);
    let (mut rows, mut columns) = ([0; 256], [0; 256]);
    for (block, products) in products.chunks_exact(S::LANES * S::LANES).enumerate() {
        let group = block * S::LANES;
        let count = S::LANES.min(groups - group);
        let sums = x_sums.vector_or_rest(simd, 0, group);
        for (i, (products, to)) in products
            .chunks_exact(S::LANES)
            .zip(rows.chunks_exact_mut(S::LANES))
            .enumerate()
        {
            let row = (first + i).min(last);
            let (scale, bias) = (
                scales.vector_or_rest(simd, row, group),
                biases.vector_or_rest(simd, row, group),
            );
            let product = simd.convert(simd.load_i(products));
            simd.store_i(simd.bits(weigh(simd, product, scale, bias, sums)), to);
        }
        simd.transpose(&rows, &mut columns, S::LANES);
        for (column, step) in columns
            .chunks_exact(S::LANES)
            .zip(&x.steps[group..][..count])
        {
            y = simd.fma(simd.float(simd.load_i(column)), simd.splat(*step), y);
        }
    }
    y
}

/// How many bytes ahead memory is prefetched: less is too late, more is evicted before it is used.
const AHEAD: usize = 6 << 10;

/// Computes the products of a row's groups with x, as many at a time as a vector has lanes.
#[inline(always)]
fn row_times_vector<S: Simd, const BITS: usize, const WORDS: usize>(
    simd: S,
    row: &[u32],
    x: &Packed,
    products: &mut [u32],
) {
    let mask = simd.splat_i(mask(BITS));
    let mut sums = [simd.splat_i(0); 16];
    let groups = row.as_chunks::<WORDS>().0.chunks(S::LANES);
    let pairs = x.pairs.as_chunks::<WORDS>().0.chunks(S::LANES * 16 / BITS);
    for ((groups, pairs), products) in groups
        .zip(pairs)
        .zip(products.chunks_mut(S::LANES * S::LANES))
    {
        for (group, ((words, pairs), sum)) in groups
            .iter()
            .zip(pairs.chunks_exact(16 / BITS))
            .zip(&mut sums)
            .enumerate()
        {
            if WORDS >= 16 || (group * WORDS).is_multiple_of(16) {
                for line in (0..WORDS).step_by(16) {
                    simd.prefetch(
                        words
                            .as_ptr()
                            .wrapping_byte_add(AHEAD)
                            .wrapping_add(line)
                            .cast(),
                    );
                }
            }
            *sum = simd.splat_i(0);
            for i in (0..WORDS).step_by(S::LANES) {
                let word = load_some(simd, &words[i..], WORDS);
                for (shift, pairs) in pairs.iter().enumerate() {
                    let numbers = simd.and(simd.shr(word, (shift * BITS) as i32), mask);
                    *sum = simd.dot_pairs(*sum, numbers, load_some(simd, &pairs[i..], WORDS));
                }
            }
        }
        simd.store_i(simd.sums(&sums[..S::LANES]), products);
    }
}

/// Returns `scale · product + bias · sum`.
#[inline(always)]
fn weigh<S: Simd>(simd: S, product: S::F, scale: S::F, bias: S::F, sum: S::F) -> S::F {
    simd.fma(bias, sum, simd.mul(product, scale))
}

/// Returns `y + step · (scale · product + bias · sum)`.
#[inline(always)]
fn add_group<S: Simd>(
    simd: S,
    product: S::F,
    scale: S::F,
    bias: S::F,
    step: f32,
    sum: f32,
    y: S::F,
) -> S::F {
    simd.fma(
        weigh(simd, product, scale, bias, simd.splat(sum)),
        simd.splat(step),
        y,
    )
}

/// Loads a vector of words, or the `count` that exist, padded with zeros.
#[inline(always)]
fn load_some<S: Simd>(simd: S, from: &[u32], count: usize) -> S::I {
    if count >= S::LANES {
        return simd.load_i(from);
    }
    let mut words = [0; 16];
    words[..count].copy_from_slice(&from[..count]);
    simd.load_i(&words)
}

#[inline(always)]
fn two_vectors<S: Simd>(simd: S, from: &[u32]) -> [S::F; 2] {
    [
        simd.float(simd.load_i(from)),
        simd.float(simd.load_i(&from[S::LANES..])),
    ]
}

/// The product with several rows of x.
struct WithMatrix<'a> {
    matrix: &'a Affine<'a>,
    x: &'a Packed,
}

/// Two vectors of rows of the matrix, for a block of their columns.
#[derive(Default)]
struct Block {
    /// `[groups, shifts, words of a group, two vectors]`
    pairs: Vec<u32>,
    /// `[groups, two vectors]`
    scales: Vec<u32>,
    /// `[groups, two vectors]`
    biases: Vec<u32>,
}

impl WithMatrix<'_> {
    /// Returns the groups of a block.
    fn block(&self, block: usize) -> std::ops::Range<usize> {
        let groups = BLOCK / self.matrix.group_size;
        block * groups..((block + 1) * groups).min(self.matrix.groups())
    }
}

impl Product for WithMatrix<'_> {
    type Block = Block;

    fn blocks(&self) -> usize {
        self.matrix.columns.div_ceil(BLOCK)
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, simd: S, first: usize, block: usize, packed: &mut Block) {
        let (matrix, width) = (self.matrix, 2 * S::LANES);
        let groups = self.block(block);
        let words = matrix.words_in_group();
        packed
            .pairs
            .resize(groups.len() * matrix.group_size / 2 * width, 0);
        packed.scales.resize(groups.len() * width, 0);
        packed.biases.resize(groups.len() * width, 0);
        let (from, count) = (groups.start, groups.len());
        let Affine {
            rows,
            scales,
            biases,
            ..
        } = *matrix;
        with_rows!([scales], rows, matrix.groups(), [all] => transposed(simd, &all, first, width, from, count, &mut packed.scales));
        with_rows!([biases], rows, matrix.groups(), [all] => transposed(simd, &all, first, width, from, count, &mut packed.biases));
        let mask = simd.splat_i(mask(matrix.bits));
        let (mut rows, mut columns) = ([0; 256], [0; 256]);
        let count = groups.len() * words;
        for side in (0..width).step_by(S::LANES) {
            for start in (0..count).step_by(S::LANES) {
                let some = S::LANES.min(count - start);
                for (i, to) in rows.chunks_exact_mut(S::LANES).take(S::LANES).enumerate() {
                    let row = (first + side + i).min(matrix.rows - 1);
                    let from = &matrix.words
                        [row * matrix.words_in_row() + groups.start * words + start..][..some];
                    simd.store_i(load_some(simd, from, some), to);
                }
                simd.transpose(&rows, &mut columns, S::LANES);
                for (i, column) in columns.chunks_exact(S::LANES).take(some).enumerate() {
                    let (group, word) = ((start + i) / words, (start + i) % words);
                    let column = simd.load_i(column);
                    for shift in 0..matrix.shifts() {
                        let pair = group * matrix.group_size / 2 + shift * words + word;
                        let numbers =
                            simd.and(simd.shr(column, (shift * matrix.bits) as i32), mask);
                        simd.store_i(numbers, &mut packed.pairs[pair * width + side..]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const H: usize>(
        &self,
        simd: S,
        row: usize,
        block: usize,
        packed: &Block,
        y: &mut [f32],
    ) {
        let (pairs, width) = (self.matrix.group_size / 2, 2 * S::LANES);
        let (columns, groups) = (self.matrix.columns, self.matrix.groups());
        for (i, group) in self.block(block).enumerate() {
            let x = &self.x.pairs[row * columns / 2 + group * pairs * H..][..pairs * H];
            let mut sums = [[simd.splat_i(0); 2]; H];
            for (x, numbers) in x
                .as_chunks::<H>()
                .0
                .iter()
                .zip(packed.pairs[i * pairs * width..].chunks_exact(width))
            {
                let numbers = [simd.load_i(numbers), simd.load_i(&numbers[S::LANES..])];
                for h in 0..H {
                    let x = simd.splat_i(x[h] as i32);
                    sums[h] = [
                        simd.dot_pairs(sums[h][0], x, numbers[0]),
                        simd.dot_pairs(sums[h][1], x, numbers[1]),
                    ];
                }
            }
            let at = row * groups + group * H;
            let (steps, totals) = (
                &self.x.steps[at..].as_chunks::<H>().0[0],
                &self.x.sums[at..].as_chunks::<H>().0[0],
            );
            let (scales, biases) = (
                two_vectors(simd, &packed.scales[i * width..]),
                two_vectors(simd, &packed.biases[i * width..]),
            );
            let y = &mut y[..H * width];
            for h in 0..H {
                let (step, total) = (steps[h], totals[h]);
                let left = &mut y[h * width..][..S::LANES];
                simd.store(
                    add_group(
                        simd,
                        simd.convert(sums[h][0]),
                        scales[0],
                        biases[0],
                        step,
                        total,
                        simd.load(left),
                    ),
                    left,
                );
                let right = &mut y[h * width + S::LANES..][..S::LANES];
                simd.store(
                    add_group(
                        simd,
                        simd.convert(sums[h][1]),
                        scales[1],
                        biases[1],
                        step,
                        total,
                        simd.load(right),
                    ),
                    right,
                );
            }
        }
    }
}
