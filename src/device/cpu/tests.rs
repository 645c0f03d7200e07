//! Tests the kernels for every kind of vector that this CPU has against sums in float64, and the
//! vector operations against scalar ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::{
    attention::{Attention, Heads, Sees},
    coded::{Code, Coded},
    dense::Dense,
    math::{Function, Gelu, GeluTanh, QuickGelu, Silu, map},
    norm::{Norm, normalize},
    numbers::Floats,
    pool::Pool,
    quantized::Affine,
    simd::{Isa, Kernel, Simd, with_simd},
};

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Random {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    /// About normally distributed, with occasional outliers as in activations.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || self.0.next_u32() as f32 / u32::MAX as f32 - 0.5;
        (0..count)
            .map(|_| {
                (0..4).map(|_| uniform()).sum::<f32>() * if uniform() > 0.499 { 30.0 } else { 1.0 }
            })
            .collect()
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
        let dot = |row: &[f64]| {
            row.iter()
                .zip(x)
                .map(|(a, b)| a * f64::from(*b))
                .sum::<f64>()
        };
        matrix
            .chunks_exact(columns)
            .zip(bias)
            .map(|(row, bias)| dot(row) + f64::from(*bias))
            .collect()
    };
    x.chunks_exact(columns).flat_map(row).collect()
}

/// The norm of the error relative to that of the result.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    assert_eq!(found.len(), expected.len());
    norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - b))
        / norm(&mut expected.iter().copied())
}

fn bf16(numbers: &[f32]) -> Vec<u16> {
    numbers
        .iter()
        .map(|x| half::bf16::from_f32(*x).to_bits())
        .collect()
}

fn f16(numbers: &[f32]) -> Vec<u16> {
    numbers
        .iter()
        .map(|x| half::f16::from_f32(*x).to_bits())
        .collect()
}

/// Each operation of a kind of vector, lane by lane and exactly.
struct Operations(Random);

impl Kernel for Operations {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let n = S::LANES;
        let stored = |x: S::F| {
            let mut to = vec![0.0; n];
            simd.store(x, &mut to);
            to.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let stored_i = |x: S::I| {
            let mut to = vec![0; n];
            simd.store_i(x, &mut to);
            to
        };
        let each = |f: &dyn Fn(usize) -> f32| (0..n).map(|i| f(i).to_bits()).collect::<Vec<u32>>();
        let each_i = |f: &dyn Fn(usize) -> i32| (0..n).map(|i| f(i) as u32).collect::<Vec<u32>>();

        let [x, y, z] = std::array::from_fn(|_| self.0.floats(n));
        let (a, b, c) = (simd.load(&x), simd.load(&y), simd.load(&z));
        assert_eq!(stored(a), each(&|i| x[i]));
        assert_eq!(stored(simd.splat(x[0])), each(&|_| x[0]));
        assert_eq!(stored(simd.add(a, b)), each(&|i| x[i] + y[i]));
        assert_eq!(stored(simd.sub(a, b)), each(&|i| x[i] - y[i]));
        assert_eq!(stored(simd.mul(a, b)), each(&|i| x[i] * y[i]));
        assert_eq!(stored(simd.div(a, b)), each(&|i| x[i] / y[i]));
        assert_eq!(stored(simd.min(a, b)), each(&|i| x[i].min(y[i])));
        assert_eq!(stored(simd.max(a, b)), each(&|i| x[i].max(y[i])));
        assert_eq!(
            stored(simd.fma(a, b, c)),
            each(&|i| x[i].mul_add(y[i], z[i]))
        );
        assert_eq!(stored_i(simd.bits(a)), stored(a));
        assert!((simd.sum(a) - x.iter().sum::<f32>()).abs() < 1e-4);
        assert_eq!(simd.largest(a), x.iter().copied().fold(f32::MIN, f32::max));
        // Of a number and NaN, in this order, NaN is both the minimum and the maximum.
        let nan = simd.splat(f32::NAN);
        for y in [simd.min(a, nan), simd.max(a, nan)] {
            assert!(
                stored(y)
                    .into_iter()
                    .all(|bits| f32::from_bits(bits).is_nan())
            );
        }

        let [p, q, r] = std::array::from_fn(|_| {
            self.0
                .words(n)
                .into_iter()
                .map(|word| word as i32)
                .collect::<Vec<i32>>()
        });
        let [d, e, f] = [&p, &q, &r].map(|x| simd.load_i(&each_i(&|i| x[i])));
        assert_eq!(stored_i(d), each_i(&|i| p[i]));
        assert_eq!(stored_i(simd.splat_i(p[0])), each_i(&|_| p[0]));
        assert_eq!(
            stored_i(simd.add_i(d, e)),
            each_i(&|i| p[i].wrapping_add(q[i]))
        );
        assert_eq!(stored_i(simd.and(d, e)), each_i(&|i| p[i] & q[i]));
        for by in [0, 1, 4, 12, 23, 31] {
            assert_eq!(stored_i(simd.shl(d, by)), each_i(&|i| p[i] << by));
            assert_eq!(
                stored_i(simd.shr(d, by)),
                each_i(&|i| (p[i] as u32 >> by) as i32)
            );
        }
        assert_eq!(stored(simd.convert(d)), each(&|i| p[i] as f32));
        assert_eq!(stored(simd.float(simd.bits(a))), stored(a));
        let dot =
            |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16) + (a >> 16) * (b >> 16);
        assert_eq!(
            stored_i(simd.dot_pairs(f, d, e)),
            each_i(&|i| r[i].wrapping_add(dot(p[i], q[i])))
        );

        let block = self.0.words(n * n);
        let vectors: Vec<S::I> = block
            .chunks_exact(n)
            .map(|row| simd.shr(simd.load_i(row), 8))
            .collect();
        assert_eq!(
            stored_i(simd.sums(&vectors)),
            each_i(&|i| block[i * n..][..n]
                .iter()
                .map(|word| (word >> 8) as i32)
                .sum())
        );
        let (stride, mut turned) = (n + 3, vec![7; n * (n + 3)]);
        simd.transpose(&block, &mut turned, stride);
        for (i, word) in turned.into_iter().enumerate() {
            let (row, column) = (i / stride, i % stride);
            assert_eq!(
                word,
                if column < n {
                    block[column * n + row]
                } else {
                    7
                }
            );
        }

        // Small and large numbers, and numbers outside of float16's range.
        let halves: Vec<u16> = (0..n)
            .map(|i| half::f16::from_f32(x[i] * [1.0, 1e-6, 1e4, 1e9][i % 4]).to_bits())
            .collect();
        assert_eq!(
            stored(simd.load_f16(&halves)),
            each(&|i| half::f16::from_bits(halves[i]).to_f32())
        );
        assert_eq!(
            stored(simd.load_bf16(&halves)),
            each(&|i| half::bf16::from_bits(halves[i]).to_f32())
        );

        let panics = |what: &str, f: &mut dyn FnMut()| {
            assert!(
                catch_unwind(AssertUnwindSafe(f)).is_err(),
                "{what} one number too short"
            )
        };
        panics("load", &mut || drop(stored(simd.load(&x[1..]))));
        panics("load_i", &mut || {
            drop(stored_i(simd.load_i(&block[..n - 1])))
        });
        panics("load_bf16", &mut || {
            drop(stored(simd.load_bf16(&halves[1..])))
        });
        panics("load_f16", &mut || {
            drop(stored(simd.load_f16(&halves[1..])))
        });
        panics("store", &mut || simd.store(a, &mut vec![0.0; n - 1]));
        panics("store_i", &mut || simd.store_i(d, &mut vec![0; n - 1]));
        panics("transpose from", &mut || {
            simd.transpose(&block[1..], &mut vec![0; n * n], n)
        });
        panics("transpose to", &mut || {
            simd.transpose(&block, &mut vec![0; n * n - 1], n)
        });
        simd.prefetch(std::ptr::null());
    }
}

#[test]
fn vectors_compute_as_single_numbers_do() {
    for isa in Isa::all() {
        for seed in 0..20 {
            with_simd!(isa, simd => simd.run(Operations(Random::new(seed))));
        }
    }
}

const SHAPES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (1, 37, 3),
    (2, 9, 1),
    (3, 33, 2),
    (7, 16, 5),
    (19, 70, 9),
    (300, 65, 3),
];

#[test]
fn affine_products_are_those_of_float64() {
    let mut random = Random::new(1);
    for bits in [4, 8] {
        for group_size in [32, 64, 128] {
            for (x_rows, rows, groups) in SHAPES {
                let columns = groups * group_size;
                // None starts at an aligned address.
                let words = &random.words(1 + rows * columns * bits / 32)[1..];
                let x = &random.floats(1 + x_rows * columns)[1..];
                let (scales, biases, bias) = (
                    random.floats(rows * groups),
                    random.floats(rows * groups),
                    random.floats(rows),
                );
                let center = f32::from(1u8 << (bits - 1));
                let biases: Vec<f32> = scales
                    .iter()
                    .zip(&biases)
                    .map(|(scale, bias)| bias - scale * center)
                    .collect();
                let halves = (bf16(&scales), bf16(&biases), f16(&scales), f16(&biases));
                let stored = [
                    (Floats::F32(&scales), Floats::F32(&biases)),
                    (Floats::Bf16(&halves.0), Floats::Bf16(&halves.1)),
                    (Floats::F16(&halves.2), Floats::F16(&halves.3)),
                ];
                for (scales, biases) in stored {
                    let affine = Affine {
                        rows,
                        columns,
                        bits,
                        group_size,
                        words,
                        scales,
                        biases,
                    };
                    let number = |i: usize| {
                        let code = words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
                        f64::from(scales.get(i / group_size)) * f64::from(code)
                            + f64::from(biases.get(i / group_size))
                    };
                    let matrix: Vec<f64> = (0..rows * columns).map(number).collect();
                    let expected = reference(x, columns, &matrix, &bias);
                    let mut first: Option<Vec<f32>> = None;
                    for isa in Isa::all() {
                        let what = format!(
                            "{} bits by {group_size}, {x_rows} x {columns} x {rows}, {}",
                            bits,
                            isa.name()
                        );
                        let mut found = vec![f32::NAN; x_rows * rows];
                        affine.multiply(isa, &pool(1), x, Some(&bias), &mut found);
                        assert!(
                            error(&found, &expected) < 1e-4,
                            "{what}: {}",
                            error(&found, &expected)
                        );
                        // The same values for all vectors, with more threads, and for a single row.
                        assert!(*first.get_or_insert(found.clone()) == found, "{what}");
                        let mut threaded = vec![f32::NAN; x_rows * rows];
                        affine.multiply(isa, &pool(3), x, Some(&bias), &mut threaded);
                        assert!(threaded == found, "{what}, 3 threads");
                        let mut alone = vec![f32::NAN; rows];
                        affine.multiply(
                            isa,
                            &pool(1),
                            &x[(x_rows - 1) * columns..],
                            Some(&bias),
                            &mut alone,
                        );
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
    let (words, scales) = (
        random.words(rows * columns / 4),
        random.floats(rows * columns / 64),
    );
    let affine = Affine {
        rows,
        columns,
        bits: 8,
        group_size: 64,
        words: &words,
        scales: Floats::F32(&scales),
        biases: Floats::F32(&scales),
    };
    let numbers = bf16(&random.floats(rows * columns));
    let dense = Dense {
        rows,
        columns,
        numbers: Floats::Bf16(&numbers),
    };
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
    let affine = Affine {
        rows: 1,
        columns: 256,
        bits: 4,
        group_size: 64,
        words: &words,
        scales: Floats::F32(&ones),
        biases: Floats::F32(&ones),
    };
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
    for (x_rows, rows, columns) in [
        (1, 1, 1),
        (1, 37, 3),
        (2, 9, 31),
        (1, 50, 300),
        (3, 33, 64),
        (19, 70, 301),
        (300, 65, 129),
    ] {
        let numbers = random.floats(1 + rows * columns);
        let (x, bias) = (
            &random.floats(1 + x_rows * columns)[1..],
            random.floats(rows),
        );
        let (bf16, f16) = (bf16(&numbers), f16(&numbers));
        for numbers in [
            Floats::F32(&numbers[1..]),
            Floats::Bf16(&bf16[1..]),
            Floats::F16(&f16[1..]),
        ] {
            let matrix: Vec<f64> = (0..rows * columns)
                .map(|i| f64::from(numbers.get(i)))
                .collect();
            let expected = reference(x, columns, &matrix, &bias);
            for isa in Isa::all() {
                let mut found = vec![f32::NAN; x_rows * rows];
                Dense {
                    rows,
                    columns,
                    numbers,
                }
                .multiply(isa, &pool(2), x, Some(&bias), &mut found);
                assert!(
                    error(&found, &expected) < 1e-6,
                    "{x_rows} x {columns} x {rows}, {}: {}",
                    isa.name(),
                    error(&found, &expected)
                );
            }
        }
    }
}

/// Including codes that do not end with a word.
#[test]
fn coded_products_are_those_of_float64() {
    let mut random = Random::new(4);
    for (bits, group_size) in [(2, 32), (3, 64), (5, 32), (6, 128), (8, 64)] {
        let (x_rows, rows, columns) = (3, 11, 2 * group_size);
        let words = random.words(rows * columns * bits / 32);
        let (scales, biases, x) = (
            random.floats(2 * rows),
            random.floats(2 * rows),
            random.floats(x_rows * columns),
        );
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let bit = |i: usize| f64::from(bytes[i / 8] >> (i % 8) & 1);
        let code = |i: usize| {
            (0..bits)
                .map(|j| bit(i * bits + j) * f64::from(1 << j))
                .sum::<f64>()
        };
        let number = |i: usize| {
            f64::from(scales[i / group_size]) * code(i) + f64::from(biases[i / group_size])
        };
        let matrix: Vec<f64> = (0..rows * columns).map(number).collect();
        let code = Code::Affine {
            scales: Floats::F32(&scales),
            biases: Floats::F32(&biases),
        };
        for isa in Isa::all() {
            let mut found = vec![f32::NAN; x_rows * rows];
            Coded {
                rows,
                columns,
                bits,
                group_size,
                words: &words,
                code,
            }
            .multiply(isa, &pool(2), &x, None, &mut found);
            let error = error(&found, &reference(&x, columns, &matrix, &vec![0.0; rows]));
            assert!(error < 1e-6, "{bits} bits, {}: {error}", isa.name());
        }
    }
}

/// Heads that share keys, heads that are apart in memory, more keys and queries than a block has,
/// and widths that fill no vector.
#[test]
fn attention_is_that_of_float64() {
    let mut random = Random::new(5);
    for (queries, keys, heads, kv_heads, width) in [
        (1, 1, 1, 1, 3),
        (1, 300, 4, 2, 16),
        (3, 7, 2, 1, 5),
        (130, 300, 2, 2, 20),
        (100, 600, 4, 1, 40),
    ] {
        let room = keys + 5;
        let (q, k, v) = (
            random.floats(heads * queries * width),
            random.floats(kv_heads * room * width),
            random.floats(kv_heads * room * width),
        );
        let in_cache = |data| Heads {
            data,
            shape: [1, kv_heads, keys, width],
            strides: [kv_heads * room * width, room * width, width],
        };
        // Queries as a projection returns them: a token's heads next to each other.
        let by_token = Heads {
            data: &q,
            shape: [1, heads, queries, width],
            strides: [q.len(), width, heads * width],
        };
        let windows = [usize::MAX, 1, 2, 63, 256, 300].map(|window| Sees::Past { window });
        // Prefixes that all attend to, and what follows them; some attend to little.
        let ranges: Vec<_> = (0..queries)
            .map(|query| query % 7 * keys / 20..(keys - queries + query + 1).max(keys * 2 / 3))
            .collect();
        let cases = windows
            .into_iter()
            .chain([Sees::All, Sees::Ranges(&ranges)]);
        for (sees, softcap) in cases.flat_map(|sees| [(sees, None), (sees, Some(0.7))]) {
            let sees_key = |query: usize, key: usize| match sees {
                Sees::All => true,
                Sees::Ranges(ranges) => ranges[query].contains(&key),
                Sees::Past { window } => {
                    let own = query + keys - queries;
                    key <= own && own - key < window
                }
            };
            let mut expected = Vec::new();
            for (query, head) in
                (0..queries).flat_map(|query| (0..heads).map(move |head| (query, head)))
            {
                let at = |data: &[f32], key: usize, i: usize| {
                    f64::from(data[((head / (heads / kv_heads)) * room + key) * width + i])
                };
                let score = |key| {
                    let score = (0..width)
                        .map(|i| f64::from(q[(query * heads + head) * width + i]) * at(&k, key, i))
                        .sum::<f64>()
                        * 0.3;
                    softcap.map_or(score, |cap| {
                        f64::from(cap) * (score / f64::from(cap)).tanh()
                    })
                };
                let weights: Vec<f64> = (0..keys)
                    .map(|key| {
                        if sees_key(query, key) {
                            score(key).exp()
                        } else {
                            0.0
                        }
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                expected.extend((0..width).map(|i| {
                    weights
                        .iter()
                        .enumerate()
                        .map(|(key, weight)| weight * at(&v, key, i))
                        .sum::<f64>()
                        / total
                }));
            }
            for isa in Isa::all() {
                let mut found = vec![f32::NAN; expected.len()];
                let attention = Attention {
                    queries: by_token,
                    keys: in_cache(&k),
                    values: in_cache(&v),
                    sees,
                    scale: 0.3,
                    softcap,
                };
                attention.run(isa, &pool(2), &mut found);
                assert!(
                    error(&found, &expected) < 2e-6,
                    "{queries} x {keys}, {}: {}",
                    isa.name(),
                    error(&found, &expected)
                );
            }
        }
    }
}

/// A function of each number; vectors also end within the numbers, and there is more than one task.
fn check_function<F: Function>(function: impl Fn() -> F, expected: impl Fn(f64) -> f64) {
    let mut random = Random::new(6);
    for len in [1, 21, 40_000] {
        let x: Vec<f32> = random.floats(len).into_iter().map(|x| 4.0 * x).collect();
        let times = random.floats(len);
        let alone: Vec<f64> = x.iter().map(|x| expected(f64::from(*x))).collect();
        let product: Vec<f64> = alone
            .iter()
            .zip(&times)
            .map(|(y, times)| y * f64::from(*times))
            .collect();
        for isa in Isa::all() {
            let mut found = vec![f32::NAN; len];
            map(isa, &pool(2), function(), Some(&x), None, &mut found);
            assert!(
                error(&found, &alone) < 1e-6,
                "{len}, {}: {}",
                isa.name(),
                error(&found, &alone)
            );
            found.copy_from_slice(&x);
            map(isa, &pool(2), function(), None, Some(&times), &mut found);
            assert!(
                error(&found, &product) < 1e-6,
                "{len}, {}: {}",
                isa.name(),
                error(&found, &product)
            );
            found.fill(f32::NAN);
            map(isa, &pool(2), function(), None, None, &mut found);
            assert!(found.iter().all(|y| y.is_nan()), "{len}, {}", isa.name());
        }
    }
}

#[test]
fn functions_are_those_of_float64() {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    // By Simpson's rule.
    let erf = |x: f64| {
        let at = |i: u32| {
            (-(x * f64::from(i) / 200.0).powi(2)).exp()
                * if i.is_multiple_of(2) { 2.0 } else { 4.0 }
        };
        ((0..=200).map(at).sum::<f64>() - at(0) / 2.0 - at(200) / 2.0) * x / 600.0
            * std::f64::consts::FRAC_2_SQRT_PI
    };
    check_function(|| Silu, |x| x * logistic(x));
    check_function(|| QuickGelu, |x| x * logistic(1.702 * x));
    check_function(
        || Gelu,
        |x| x * (1.0 + erf((x / 2f64.sqrt()).clamp(-6.0, 6.0))) / 2.0,
    );
    check_function(
        || GeluTanh,
        |x| x * logistic((8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))),
    );
}

#[test]
fn normalized_rows_are_those_of_float64() {
    let mut random = Random::new(7);
    for (rows, width) in [(1, 1), (3, 5), (7, 64), (300, 131)] {
        let (x, weight, bias) = (
            random.floats(rows * width),
            random.floats(width),
            random.floats(width),
        );
        let normalized = |centred: bool| {
            let row = |x: &[f32]| -> Vec<f64> {
                let mean = |f: &dyn Fn(f64) -> f64| {
                    x.iter().map(|x| f(f64::from(*x))).sum::<f64>() / width as f64
                };
                let center = if centred { mean(&|x| x) } else { 0.0 };
                let factor = 1.0 / (mean(&|x| (x - center).powi(2)) + 1e-5).sqrt();
                let bias = |i: usize| if centred { f64::from(bias[i]) } else { 0.0 };
                (0..width)
                    .map(|i| (f64::from(x[i]) - center) * factor * f64::from(weight[i]) + bias(i))
                    .collect()
            };
            x.chunks_exact(width).flat_map(row).collect::<Vec<f64>>()
        };
        let layer = Norm::Layer {
            weight: &weight,
            bias: &bias,
        };
        for (norm, expected) in [
            (Norm::Rms { weight: &weight }, normalized(false)),
            (layer, normalized(true)),
        ] {
            for isa in Isa::all() {
                let mut found = vec![f32::NAN; rows * width];
                normalize(isa, &pool(2), norm, 1e-5, &x, &mut found);
                assert!(
                    error(&found, &expected) < 1e-6,
                    "{rows} x {width}, {}: {}",
                    isa.name(),
                    error(&found, &expected)
                );
            }
        }
    }
}
