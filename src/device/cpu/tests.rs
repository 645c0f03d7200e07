//! The products on every kind of vector that this processor has, beside sums in float64.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::{
    attention::{Attention, Heads, Sees},
    coded::{Code, Coded},
    dense::Dense,
    numbers::Floats,
    pool::Pool,
    quantized::Affine,
    simd::Isa,
};

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Random {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    /// About normal, with a value far off now and then as activations have them.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || self.0.next_u32() as f32 / u32::MAX as f32 - 0.5;
        (0..count).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * if uniform() > 0.499 { 30.0 } else { 1.0 }).collect()
    }

    fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.0.next_u32()).collect()
    }
}

fn pool(threads: usize) -> Pool {
    let pool = Pool::new();
    pool.set_threads(threads);
    pool
}

/// `x · matrixᵀ + bias` in float64.
fn reference(x: &[f32], columns: usize, matrix: &[f64], bias: &[f32]) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
        matrix.chunks_exact(columns).zip(bias).map(|(row, bias)| dot(row) + f64::from(*bias)).collect()
    };
    x.chunks_exact(columns).flat_map(row).collect()
}

/// The length of the error beside that of the result.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    assert_eq!(found.len(), expected.len());
    norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - b)) / norm(&mut expected.iter().copied())
}

fn bf16(numbers: &[f32]) -> Vec<u16> {
    numbers.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect()
}

fn f16(numbers: &[f32]) -> Vec<u16> {
    numbers.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect()
}

const SHAPES: [(usize, usize, usize); 7] = [(1, 1, 1), (1, 37, 3), (2, 9, 1), (3, 33, 2), (7, 16, 5), (19, 70, 9), (300, 65, 3)];

#[test]
fn affine_products_are_those_of_float64() {
    let mut random = Random::new(1);
    for bits in [4, 8] {
        for group_size in [32, 64, 128] {
            for (x_rows, rows, groups) in SHAPES {
                let columns = groups * group_size;
                // None begins where a vector would like it to.
                let words = &random.words(1 + rows * columns * bits / 32)[1..];
                let x = &random.floats(1 + x_rows * columns)[1..];
                let (scales, biases, bias) = (random.floats(rows * groups), random.floats(rows * groups), random.floats(rows));
                let centre = f32::from(1u8 << (bits - 1));
                let biases: Vec<f32> = scales.iter().zip(&biases).map(|(scale, bias)| bias - scale * centre).collect();
                let halves = (bf16(&scales), bf16(&biases), f16(&scales), f16(&biases));
                let stored = [
                    (Floats::F32(&scales), Floats::F32(&biases)),
                    (Floats::Bf16(&halves.0), Floats::Bf16(&halves.1)),
                    (Floats::F16(&halves.2), Floats::F16(&halves.3)),
                ];
                for (scales, biases) in stored {
                    let affine = Affine { rows, columns, bits, group_size, words, scales, biases };
                    let number = |i: usize| {
                        let code = words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
                        f64::from(scales.get(i / group_size)) * f64::from(code) + f64::from(biases.get(i / group_size))
                    };
                    let matrix: Vec<f64> = (0..rows * columns).map(number).collect();
                    let expected = reference(x, columns, &matrix, &bias);
                    let mut first: Option<Vec<f32>> = None;
                    for isa in Isa::all() {
                        let what = format!("{} bits by {group_size}, {x_rows} x {columns} x {rows}, {}", bits, isa.name());
                        let mut found = vec![f32::NAN; x_rows * rows];
                        affine.multiply(isa, &pool(1), x, Some(&bias), &mut found);
                        assert!(error(&found, &expected) < 1e-4, "{what}: {}", error(&found, &expected));
                        // Number for number the same on all vectors, with more threads, and for one row alone.
                        assert!(*first.get_or_insert(found.clone()) == found, "{what}");
                        let mut threaded = vec![f32::NAN; x_rows * rows];
                        affine.multiply(isa, &pool(3), x, Some(&bias), &mut threaded);
                        assert!(threaded == found, "{what}, 3 threads");
                        let mut alone = vec![f32::NAN; rows];
                        affine.multiply(isa, &pool(1), &x[(x_rows - 1) * columns..], Some(&bias), &mut alone);
                        assert!(alone == found[(x_rows - 1) * rows..], "{what}, one row");
                    }
                }
            }
        }
    }
}

/// Large enough that the work is divided.
#[test]
fn the_number_of_threads_does_not_matter() {
    let mut random = Random::new(2);
    let (rows, columns) = (1030, 1024);
    let (words, scales) = (random.words(rows * columns / 4), random.floats(rows * columns / 64));
    let affine =
        Affine { rows, columns, bits: 8, group_size: 64, words: &words, scales: Floats::F32(&scales), biases: Floats::F32(&scales) };
    let numbers = bf16(&random.floats(rows * columns));
    let dense = Dense { rows, columns, numbers: Floats::Bf16(&numbers) };
    for x_rows in [1, 5] {
        let x = random.floats(x_rows * columns);
        let with = |threads| {
            let (mut a, mut b) = (vec![0.0; x_rows * rows], vec![0.0; x_rows * rows]);
            affine.multiply(Isa::best(), &pool(threads), &x, None, &mut a);
            dense.multiply(Isa::best(), &pool(threads), &x, None, &mut b);
            (a, b)
        };
        let alone = with(1);
        for threads in [2, 3, 16] {
            assert!(with(threads) == alone, "{threads} threads, {x_rows} rows");
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let words = [0x1234_5678; 32];
    let ones = [1.0; 4];
    let affine =
        Affine { rows: 1, columns: 256, bits: 4, group_size: 64, words: &words, scales: Floats::F32(&ones), biases: Floats::F32(&ones) };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for rows in [1, 2] {
            let mut x = vec![1.0; rows * 256];
            x[70] = bad;
            for isa in Isa::all() {
                let mut found = vec![0.0; rows];
                affine.multiply(isa, &pool(1), &x, None, &mut found);
                assert!(!found[0].is_finite(), "{bad} gave {}", found[0]);
                assert!(found[1..].iter().all(|y| y.is_finite()));
            }
        }
    }
}

#[test]
fn dense_products_are_those_of_float64() {
    let mut random = Random::new(3);
    for (x_rows, rows, columns) in [(1, 1, 1), (1, 37, 3), (2, 9, 31), (1, 50, 300), (3, 33, 64), (19, 70, 301), (300, 65, 129)] {
        let numbers = random.floats(1 + rows * columns);
        let (x, bias) = (&random.floats(1 + x_rows * columns)[1..], random.floats(rows));
        let (bf16, f16) = (bf16(&numbers), f16(&numbers));
        for numbers in [Floats::F32(&numbers[1..]), Floats::Bf16(&bf16[1..]), Floats::F16(&f16[1..])] {
            let matrix: Vec<f64> = (0..rows * columns).map(|i| f64::from(numbers.get(i))).collect();
            let expected = reference(x, columns, &matrix, &bias);
            for isa in Isa::all() {
                let mut found = vec![f32::NAN; x_rows * rows];
                Dense { rows, columns, numbers }.multiply(isa, &pool(2), x, Some(&bias), &mut found);
                assert!(error(&found, &expected) < 1e-6, "{x_rows} x {columns} x {rows}, {}: {}", isa.name(), error(&found, &expected));
            }
        }
    }
}

/// Codes that do not end with a word, too.
#[test]
fn coded_products_are_those_of_float64() {
    let mut random = Random::new(4);
    for (bits, group_size) in [(2, 32), (3, 64), (5, 32), (6, 128), (8, 64)] {
        let (x_rows, rows, columns) = (3, 11, 2 * group_size);
        let words = random.words(rows * columns * bits / 32);
        let (scales, biases, x) = (random.floats(2 * rows), random.floats(2 * rows), random.floats(x_rows * columns));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let bit = |i: usize| f64::from(bytes[i / 8] >> (i % 8) & 1);
        let code = |i: usize| (0..bits).map(|j| bit(i * bits + j) * f64::from(1 << j)).sum::<f64>();
        let number = |i: usize| f64::from(scales[i / group_size]) * code(i) + f64::from(biases[i / group_size]);
        let matrix: Vec<f64> = (0..rows * columns).map(number).collect();
        let code = Code::Affine { scales: Floats::F32(&scales), biases: Floats::F32(&biases) };
        for isa in Isa::all() {
            let mut found = vec![f32::NAN; x_rows * rows];
            Coded { rows, columns, bits, group_size, words: &words, code }.multiply(isa, &pool(2), &x, None, &mut found);
            let error = error(&found, &reference(&x, columns, &matrix, &vec![0.0; rows]));
            assert!(error < 1e-6, "{bits} bits, {}: {error}", isa.name());
        }
    }
}

/// Heads that share keys, heads that lie apart in memory, more keys and queries than a block has, and widths that fill no vector.
#[test]
fn attention_is_that_of_float64() {
    let mut random = Random::new(5);
    for (queries, keys, heads, kv_heads, width) in
        [(1, 1, 1, 1, 3), (1, 300, 4, 2, 16), (3, 7, 2, 1, 5), (130, 300, 2, 2, 20), (100, 600, 4, 1, 40)]
    {
        let room = keys + 5;
        let (q, k, v) =
            (random.floats(heads * queries * width), random.floats(kv_heads * room * width), random.floats(kv_heads * room * width));
        let mask: Vec<bool> = (0..queries * keys).map(|i| i % keys == 0 || !random.0.next_u32().is_multiple_of(3)).collect();
        let in_cache = |data| Heads { data, shape: [1, kv_heads, keys, width], strides: [kv_heads * room * width, room * width, width] };
        // Queries as a projection leaves them: a token's heads side by side.
        let by_token = Heads { data: &q, shape: [1, heads, queries, width], strides: [q.len(), width, heads * width] };
        for sees in [Sees::All, Sees::Past, Sees::Mask(&mask)] {
            let sees_key = |query: usize, key: usize| match sees {
                Sees::All => true,
                Sees::Past => key + queries <= query + keys,
                Sees::Mask(mask) => mask[query * keys + key],
            };
            if queries > keys && matches!(sees, Sees::Past) {
                continue;
            }
            let mut expected = Vec::new();
            for (query, head) in (0..queries).flat_map(|query| (0..heads).map(move |head| (query, head))) {
                let at = |data: &[f32], key: usize, i: usize| f64::from(data[((head / (heads / kv_heads)) * room + key) * width + i]);
                let score = |key| (0..width).map(|i| f64::from(q[(query * heads + head) * width + i]) * at(&k, key, i)).sum::<f64>() * 0.3;
                let weights: Vec<f64> = (0..keys).map(|key| if sees_key(query, key) { score(key).exp() } else { 0.0 }).collect();
                let total: f64 = weights.iter().sum();
                expected.extend(
                    (0..width).map(|i| weights.iter().enumerate().map(|(key, weight)| weight * at(&v, key, i)).sum::<f64>() / total),
                );
            }
            for isa in Isa::all() {
                let mut found = vec![f32::NAN; expected.len()];
                let attention = Attention { queries: by_token, keys: in_cache(&k), values: in_cache(&v), sees, scale: 0.3 };
                attention.run(isa, &pool(2), &mut found);
                assert!(error(&found, &expected) < 2e-6, "{queries} x {keys}, {}: {}", isa.name(), error(&found, &expected));
            }
        }
    }
}
