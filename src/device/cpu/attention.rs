//! Scaled dot-product attention.
//!
//! For several queries, keys and values are read block by block, so that only a block of scores
//! exists at a time (<https://arxiv.org/abs/2205.14135>); a single query reads them directly.

use std::ops::Range;

use super::{
    buffer::{room, zeros},
    dense::{add_tile, pack_tile},
    gemm::row_panels,
    math::exp,
    numbers::{Rows, transposed},
    pool::Pool,
    shared::Shared,
    simd::{Isa, Kernel, Simd, with_simd},
};

/// An array `[batch, heads, tokens, width]` with any strides, except that the numbers of a head are
/// contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub data: &'a [f32],
    pub shape: [usize; 4],
    /// The strides of batch, heads and tokens.
    pub strides: [usize; 3],
}

/// The keys that a query attends to.
#[derive(Clone, Copy)]
pub(crate) enum Sees<'a> {
    All,
    /// Those up to its own position; the last query is at the position of the last key. Of them the
    /// last `window`.
    Past {
        window: usize,
    },
    /// A range per query, never empty.
    Ranges(&'a [Range<usize>]),
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub queries: Heads<'a>,
    pub keys: Heads<'a>,
    pub values: Heads<'a>,
    pub sees: Sees<'a>,
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// The number of rows in a task (one query of one head each) and of keys in a block. Per thread,
/// scores use 96 KiB and packed data up to 64 KiB.
const ROWS: usize = 96;
const KEYS: usize = 256;

impl<'a> Heads<'a> {
    /// Returns the tokens of a head.
    fn head(&self, batch: usize, head: usize) -> Tokens<'a> {
        let [_, _, tokens, width] = self.shape;
        let from = batch * self.strides[0] + head * self.strides[1];
        Tokens {
            data: &self.data[from..],
            stride: self.strides[2],
            tokens,
            width,
        }
    }
}

/// `[tokens, width]`
#[derive(Clone, Copy)]
struct Tokens<'a> {
    data: &'a [f32],
    stride: usize,
    tokens: usize,
    width: usize,
}

impl<'a> Tokens<'a> {
    #[inline(always)]
    fn token(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.width]
    }
}

impl Rows for Tokens<'_> {
    fn rows(&self) -> usize {
        self.tokens
    }

    fn columns(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::F {
        simd.load(&self.token(row)[column..])
    }

    #[inline(always)]
    fn number(&self, row: usize, column: usize) -> f32 {
        self.token(row)[column]
    }

    fn address(&self, row: usize, column: usize) -> *const u8 {
        self.token(row)[column..].as_ptr().cast()
    }
}

impl Attention<'_> {
    /// Computes `[batch, queries, heads · width]` into `out`.
    pub fn run(&self, isa: Isa, pool: &Pool, out: &mut [f32]) {
        let [batch, heads, queries, _] = self.queries.shape;
        let [_, kv_heads, keys, width] = self.values.shape;
        assert_eq!(out.len(), batch * heads * queries * width);
        assert!(self.keys.shape[2] == keys && heads.is_multiple_of(kv_heads) && keys > 0);
        let worth = batch * heads * queries * keys * width > 1 << 18;
        let out = Shared::new(out);
        let group = heads / kv_heads;
        if queries == 1 {
            pool.run_if(worth, batch * kv_heads, &|task| {
                let (batch, kv_head) = (task / kv_heads, task % kv_heads);
                let out = out.part((batch * heads + kv_head * group) * width, group * width);
                with_simd!(isa, simd => simd.run(One { all: self, batch, kv_head, out }));
            });
            return;
        }
        let in_block = (ROWS / group).max(1);
        let blocks = queries.div_ceil(in_block);
        pool.run_if(worth, batch * kv_heads * blocks, &|task| {
            let (batch, kv_head, first) = (task / blocks / kv_heads, task / blocks % kv_heads, task % blocks * in_block);
            let count = in_block.min(queries - first);
            let mixed = with_simd!(isa, simd => simd.run(Block { all: self, batch, kv_head, group, first, count }));
            for (i, heads_of_query) in mixed.chunks_exact(group * width).enumerate() {
                out.write(((batch * queries + first + i) * heads + kv_head * group) * width, heads_of_query);
            }
        });
    }

    /// Returns the keys that a query attends to.
    #[inline(always)]
    fn seen(&self, query: usize) -> Range<usize> {
        let (queries, keys) = (self.queries.shape[2], self.keys.shape[2]);
        match self.sees {
            Sees::All => 0..keys,
            Sees::Ranges(ranges) => ranges[query].clone(),
            Sees::Past { window } => {
                let end = (query + 1 + keys).saturating_sub(queries);
                end.saturating_sub(window)..end
            }
        }
    }

    /// Returns the range of all keys that any of these queries attends to.
    fn seen_by_any(&self, queries: Range<usize>) -> Range<usize> {
        match self.sees {
            Sees::Ranges(ranges) => {
                let ranges = &ranges[queries];
                let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
                start..ranges.iter().map(|range| range.end).max().unwrap_or(start)
            }
            _ => self.seen(queries.start).start..self.seen(queries.end - 1).end,
        }
    }

    /// Hides the keys from `start` on that a query does not attend to; these are their scores.
    #[inline(always)]
    fn hide(&self, query: usize, start: usize, scores: &mut [f32]) {
        let seen = self.seen(query);
        let [first, end] =
            [seen.start, seen.end].map(|key| key.saturating_sub(start).min(scores.len()));
        scores[..first].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
    }
}

/// Turns scores to `cap · tanh(score / cap)`, through `tanh(x) = 1 - 2 / (1 + exp(2 x))`.
#[inline(always)]
fn cap_softly<S: Simd>(simd: S, scores: &mut [f32], cap: f32) {
    let capped = |x: S::F| {
        let e = exp(simd, simd.mul(x, simd.splat(2.0 / cap)));
        let below = simd.div(simd.splat(2.0), simd.add(e, simd.splat(1.0)));
        simd.mul(simd.sub(simd.splat(1.0), below), simd.splat(cap))
    };
    let whole = scores.len() / S::LANES * S::LANES;
    for scores in scores[..whole].chunks_exact_mut(S::LANES) {
        simd.store(capped(simd.load(scores)), scores);
    }
    let mut rest = [0.0; 16];
    let left = scores.len() - whole;
    rest[..left].copy_from_slice(&scores[whole..]);
    simd.store(capped(simd.load(&rest)), &mut rest);
    scores[whole..].copy_from_slice(&rest[..left]);
}

/// Lower than any score.
const LOWEST: f32 = -1e30;

/// Turns scores into `exp(score - largest)` and returns their sum. Hidden keys, with minus
/// infinity, become so small that they do not count.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32], largest: f32) -> f32 {
    let (top, mut sum) = (simd.splat(largest), simd.splat(0.0));
    let whole = scores.len() / S::LANES * S::LANES;
    let (vectors, rest) = scores.split_at_mut(whole);
    for scores in vectors.chunks_exact_mut(S::LANES) {
        let y = exp(simd, simd.sub(simd.load(scores), top));
        sum = simd.add(sum, y);
        simd.store(y, scores);
    }
    if rest.is_empty() {
        return simd.sum(sum);
    }
    let mut padded = [f32::NEG_INFINITY; 16];
    padded[..rest.len()].copy_from_slice(rest);
    let y = exp(simd, simd.sub(simd.load(&padded), top));
    simd.store(y, &mut padded);
    rest.copy_from_slice(&padded[..rest.len()]);
    simd.sum(sum) + rest.iter().sum::<f32>()
}

#[inline(always)]
fn maximum<S: Simd>(simd: S, scores: &[f32]) -> f32 {
    let whole = scores.len() / S::LANES * S::LANES;
    let mut top = simd.splat(LOWEST);
    for scores in scores[..whole].chunks_exact(S::LANES) {
        top = simd.max(top, simd.load(scores));
    }
    scores[whole..]
        .iter()
        .copied()
        .fold(simd.largest(top), f32::max)
}

/// One query of each head that shares keys and values.
struct One<'a> {
    all: &'a Attention<'a>,
    batch: usize,
    kv_head: usize,
    /// `[heads, width]`
    out: &'a mut [f32],
}

impl Kernel for One<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let all = self.all;
        let (keys, values) = (
            all.keys.head(self.batch, self.kv_head),
            all.values.head(self.batch, self.kv_head),
        );
        let heads = self.out.len() / values.width;
        let whole = keys.width / S::LANES * S::LANES;
        let seen = all.seen(0);
        let mut scores = zeros(heads * seen.len());
        for (i_key, key) in seen.clone().enumerate() {
            let numbers = keys.token(key);
            for head in 0..heads {
                let query = all
                    .queries
                    .head(self.batch, self.kv_head * heads + head)
                    .token(0);
                let mut sum = simd.splat(0.0);
                for i in (0..whole).step_by(S::LANES) {
                    sum = simd.fma(simd.load(&query[i..]), simd.load(&numbers[i..]), sum);
                }
                let rest: f32 = (whole..keys.width).map(|i| query[i] * numbers[i]).sum();
                scores[head * seen.len() + i_key] = (simd.sum(sum) + rest) * all.scale;
            }
        }
        if let Some(cap) = all.softcap {
            cap_softly(simd, &mut scores, cap);
        }
        let whole = values.width / S::LANES * S::LANES;
        self.out.fill(0.0);
        for (scores, out) in scores
            .chunks_exact_mut(seen.len())
            .zip(self.out.chunks_exact_mut(values.width))
        {
            let largest = maximum(simd, scores);
            let total = exponentials(simd, scores, largest);
            for (value, score) in seen.clone().zip(&*scores) {
                let numbers = values.token(value);
                for i in (0..whole).step_by(S::LANES) {
                    let sum = simd.fma(
                        simd.splat(*score),
                        simd.load(&numbers[i..]),
                        simd.load(&out[i..]),
                    );
                    simd.store(sum, &mut out[i..]);
                }
                for i in whole..values.width {
                    out[i] += score * numbers[i];
                }
            }
            out.iter_mut().for_each(|out| *out /= total);
        }
    }
}

/// `count` queries from `first` on, for each of the `group` heads that share keys and values.
struct Block<'a> {
    all: &'a Attention<'a>,
    batch: usize,
    kv_head: usize,
    group: usize,
    first: usize,
    count: usize,
}

impl Kernel for Block<'_> {
    /// `[queries, heads, width]`
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Block {
            all,
            batch,
            kv_head,
            group,
            first,
            count,
        } = self;
        let (keys, values) = (
            all.keys.head(batch, kv_head),
            all.values.head(batch, kv_head),
        );
        let rows = count * group;
        let width = 2 * S::LANES;
        let strips = values.width.div_ceil(width);

        // The queries, packed as tiles.
        let mut scaled = room(rows * keys.width);
        for row in 0..rows {
            let query = all
                .queries
                .head(batch, kv_head * group + row % group)
                .token(first + row / group);
            scaled.extend(query.iter().map(|x| x * all.scale));
        }
        let packed_queries = pack_rows::<S>(&scaled, rows);
        let (mut packed, mut scores) = (zeros(keys.width.max(KEYS) * width), zeros(rows * KEYS));
        // Per query: the largest score so far, the sum of the exponentials, and the weighted sum of
        // values, [strips, queries, two vectors].
        let (mut largest, mut totals, mut mixed) = (
            vec![LOWEST; rows],
            vec![0.0f32; rows],
            zeros(strips * rows * width),
        );

        // None of these queries attends beyond this range. Blocks start where they would without a
        // window.
        let Range {
            start: lowest,
            end: last,
        } = all.seen_by_any(first..first + count);
        for start in (lowest / KEYS * KEYS..last).step_by(KEYS) {
            let in_block = KEYS.min(last - start);
            let mut product = zeros(rows * width);
            for panel in (0..in_block).step_by(width) {
                transposed(
                    simd,
                    &keys,
                    start + panel,
                    width,
                    0,
                    keys.width,
                    &mut packed,
                );
                product.fill(0.0);
                add_tiles(
                    simd,
                    &packed_queries,
                    rows,
                    &packed[..keys.width * width],
                    &mut product,
                );
                let used = width.min(in_block - panel);
                for (row, product) in product.chunks_exact(width).enumerate() {
                    scores[row * in_block + panel..][..used].copy_from_slice(&product[..used]);
                }
            }
            for row in 0..rows {
                let scores = &mut scores[row * in_block..][..in_block];
                if let Some(cap) = all.softcap {
                    cap_softly(simd, scores, cap);
                }
                all.hide(first + row / group, start, scores);
                let top = largest[row].max(maximum(simd, scores));
                let factor = (largest[row] - top).exp();
                totals[row] = totals[row] * factor + exponentials(simd, scores, top);
                largest[row] = top;
                if factor != 1.0 {
                    for strip in mixed.chunks_exact_mut(rows * width) {
                        strip[row * width..][..width]
                            .iter_mut()
                            .for_each(|x| *x *= factor);
                    }
                }
            }
            let weights = pack_rows::<S>(&scores[..rows * in_block], rows);
            for (strip, mixed) in mixed.chunks_exact_mut(rows * width).enumerate() {
                let used = width.min(values.width - strip * width);
                for (i, to) in packed.chunks_exact_mut(width).take(in_block).enumerate() {
                    let from = &values.token(start + i)[strip * width..][..used];
                    to[used..].fill(0);
                    to.iter_mut()
                        .zip(from)
                        .for_each(|(to, from)| *to = from.to_bits());
                }
                add_tiles(simd, &weights, rows, &packed[..in_block * width], mixed);
            }
        }
        let mut out = room(rows * values.width);
        for (row, total) in totals.into_iter().enumerate() {
            for (strip, mixed) in mixed.chunks_exact(rows * width).enumerate() {
                let used = width.min(values.width - strip * width);
                out.extend(mixed[row * width..][..used].iter().map(|x| x / total));
            }
        }
        out
    }
}

/// Packs rows for [`add_tiles`].
#[inline(always)]
fn pack_rows<S: Simd>(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows;
    let mut packed = zeros(x.len());
    for (row, height) in row_panels(rows, S::TILE) {
        pack_tile(
            &x[row * columns..],
            columns,
            height,
            &mut packed[row * columns..][..height * columns],
        );
    }
    packed
}

/// Adds the product of packed rows and `matrix [columns, two vectors]` to `y [rows, two vectors]`.
#[inline(always)]
fn add_tiles<S: Simd>(simd: S, x: &[f32], rows: usize, matrix: &[u32], y: &mut [f32]) {
    let (columns, width) = (x.len() / rows, 2 * S::LANES);
    for (row, height) in row_panels(rows, S::TILE) {
        let x = &x[row * columns..][..height * columns];
        let y = &mut y[row * width..][..height * width];
        match height {
            12 => add_tile::<S, 12>(simd, x, matrix, y),
            6 => add_tile::<S, 6>(simd, x, matrix, y),
            3 => add_tile::<S, 3>(simd, x, matrix, y),
            _ => add_tile::<S, 1>(simd, x, matrix, y),
        }
    }
}
