//! Times the layers of a 7B model: `cargo run --release --example kernels`, with `--json` for
//! programs. `MOXIN_CPU_KERNELS=mlx` times MLX's kernels.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use mlx_rs::{Array, Dtype, random, transforms::eval};
use moxin_vlm::{
    Backend, KVCache, KeyValueCache, Quantization,
    device::{
        Device, cpu_threads, cpu_vectors,
        ops::{Activation, Sees, activate, attention, rotate_heads, split_heads},
    },
    nn::{GatedMlp, Linear, Matrix, QuantizedMatrix, RmsNorm},
};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Times the layers of a 7B model")]
struct Args {
    /// Prints an array of measurements instead of a table
    #[arg(long)]
    json: bool,
    /// Only operations with this text in their names
    #[arg(long, default_value = "")]
    only: String,
    /// Measurements of each operation; the median is reported
    #[arg(long, default_value_t = 7)]
    repeat: usize,
}

/// The factor of attention scores.
const FACTOR: f32 = 0.088;

/// The number of rows in a prompt with a picture.
const PROMPT: i32 = 290;

/// The (name, output, input) of a decoder layer's matrices, and of the head.
const MATRICES: [(&str, i32, i32); 5] = [
    ("q_o", 4096, 4096),
    ("k_v", 1024, 4096),
    ("gate_up", 14336, 4096),
    ("down", 4096, 14336),
    ("head", 32064, 4096),
];
/// The (output, input) of all matrices of a layer: queries, keys, values, output, gate, up, down.
const LAYER: [(i32, i32); 7] = [
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
];
const SCHEMES: [&str; 3] = ["int4", "int8", "bf16"];

struct Bench {
    args: Args,
    results: Vec<Value>,
}

impl Bench {
    /// Returns whether an operation was requested with one of its numbers of rows: making its
    /// weights takes longer than timing it.
    fn wants(&self, op: &str, scheme: &str) -> bool {
        [1, PROMPT]
            .iter()
            .any(|rows| format!("{op} {scheme} {rows}").contains(&self.args.only))
    }

    /// Times `f` and evaluates its result.
    fn time(&mut self, what: Value, f: &mut dyn FnMut() -> Result<Array>) -> Result<()> {
        let name = format!(
            "{} {} {}",
            what["op"].as_str().unwrap_or(""),
            what["scheme"].as_str().unwrap_or(""),
            what["rows"]
        );
        if !name.contains(&self.args.only) {
            return Ok(());
        }
        f()?.eval()?;
        let mut seconds = Vec::new();
        for _ in 0..self.args.repeat.max(1) {
            let begin = Instant::now();
            f()?.eval()?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        if !self.args.json {
            let rate = |field: &str| what[field].as_f64().unwrap_or(0.0) / median / 1e9;
            println!(
                "{name:32} {:10.3} ms {:8.1} GB/s {:8.1} GFLOP/s",
                median * 1e3,
                rate("bytes_read"),
                rate("flop")
            );
        }
        let mut what = what;
        what["seconds_median"] = json!(median);
        self.results.push(what);
        Ok(())
    }
}

fn matrix(scheme: &str, output: i32, input: i32) -> Result<Matrix> {
    let dense = random::normal::<f32>(&[output, input], None, Some(0.02), None)?
        .as_dtype(Dtype::Bfloat16)?;
    dense.eval()?;
    let bits = match scheme {
        "int4" => 4,
        "int8" => 8,
        _ => return Ok(Matrix::Dense(dense)),
    };
    Ok(Matrix::Quantized(QuantizedMatrix::quantize(
        &dense,
        Quantization::affine(64, bits),
    )?))
}

fn activations(shape: &[i32]) -> Result<Array> {
    let x = random::normal::<f32>(shape, None, None, None)?;
    x.eval()?;
    Ok(x)
}

/// Describes the measurement of an operation.
fn described(
    op: &str,
    scheme: &str,
    rows: i32,
    [input, output]: [i32; 2],
    bytes_read: u64,
    flop: f64,
) -> Value {
    json!({ "op": op, "scheme": scheme, "rows": rows, "in": input, "out": output, "bytes_read": bytes_read, "flop": flop })
}

/// A decoder layer of Mistral-7B's shape.
struct Layer {
    /// The projections to queries, keys and values, and the output projection.
    linears: Vec<Linear>,
    mlp: GatedMlp,
    bytes: u64,
    numbers: usize,
    norm: RmsNorm,
}

impl Layer {
    fn new(scheme: &str) -> Result<Layer> {
        let linear = |(output, input)| Ok(Linear::new(matrix(scheme, output, input)?, None));
        let mut linears: Vec<Linear> = LAYER.into_iter().map(linear).collect::<Result<_>>()?;
        let bytes = linears.iter().map(|linear| linear.weight.bytes()).sum();
        let numbers = linears
            .iter()
            .map(|linear| linear.weight.row_count() * linear.weight.columns())
            .sum();
        let mlp = linears
            .split_off(4)
            .try_into()
            .map_err(|_| anyhow::anyhow!("an MLP has three layers"))?;
        Ok(Layer {
            linears,
            mlp: GatedMlp::new(mlp, Activation::Silu),
            bytes,
            numbers,
            norm: RmsNorm::new(Array::ones::<f32>(&[4096])?, 1e-5),
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn forward(&self, x: &Array, cache: &mut KVCache) -> Result<Array> {
        let [q, k, v, o] = self.linears.as_slice() else {
            unreachable!()
        };
        let (h, offset) = (self.norm.forward(x)?, cache.offset());
        let rotate = |x: Array| rotate_heads(&x, 128, 1e4, 1.0, offset as usize);
        let (queries, keys) = (rotate(q.forward(&h)?)?, rotate(k.forward(&h)?)?);
        let sees = if x.dim(1) == 1 { Sees::All } else { Sees::Past };
        let (keys, values) = cache.update_and_fetch(keys, split_heads(&v.forward(&h)?, 128)?)?;
        let x = x.add(o.forward(&attention([&queries, &keys, &values], FACTOR, None, sees)?)?)?;
        let h = self.norm.forward(&x)?;
        Ok(x.add(self.mlp.forward(&h)?)?)
    }
}

/// Computes everything in a layer except products with matrices, whose results are `products`.
fn rest(x: &Array, products: &[Array; 7], norm: &RmsNorm, cache: &mut KVCache) -> Result<Array> {
    let [q, k, v, o, gate, up, down] = products;
    let rotate = |x: &Array| rotate_heads(x, 128, 1e4, 1.0, 0);
    norm.forward(x)?.eval()?;
    let (queries, keys) = (rotate(q)?, rotate(k)?);
    let sees = if x.dim(1) == 1 { Sees::All } else { Sees::Past };
    let (keys, values) = cache.update_and_fetch(keys, split_heads(v, 128)?)?;
    attention([&queries, &keys, &values], FACTOR, None, sees)?.eval()?;
    let x = x.add(o)?;
    norm.forward(&x)?.eval()?;
    activate(gate, Activation::Silu)?.multiply(up)?.eval()?;
    Ok(x.add(down)?)
}

fn run(bench: &mut Bench) -> Result<()> {
    for scheme in SCHEMES {
        for (name, output, input) in MATRICES {
            if !bench.wants(name, scheme) {
                continue;
            }
            let matrix = matrix(scheme, output, input)?;
            for rows in [1, PROMPT] {
                let x = activations(&[1, rows, input])?;
                let flop = 2.0 * f64::from(rows) * f64::from(output) * f64::from(input);
                let what = described(name, scheme, rows, [input, output], matrix.bytes(), flop);
                bench.time(what, &mut || Ok(matrix.apply(&x)?))?;
            }
        }
        if !bench.wants("layer", scheme) {
            continue;
        }
        let layer = Layer::new(scheme)?;
        let numbers: f64 = layer.numbers as f64;
        for rows in [1, PROMPT] {
            let x = activations(&[1, rows, 4096])?;
            let mut cache = KVCache::new();
            if rows == 1 {
                layer
                    .forward(&activations(&[1, PROMPT, 4096])?, &mut cache)?
                    .eval()?;
                eval(cache.arrays())?;
            }
            let what = described(
                "layer",
                scheme,
                rows,
                [4096, 4096],
                layer.bytes(),
                2.0 * f64::from(rows) * numbers,
            );
            bench.time(what, &mut || {
                let offset = cache.offset();
                let y = layer.forward(&x, &mut cache)?;
                y.eval()?;
                cache.truncate(offset);
                Ok(y)
            })?;
        }
    }
    for (rows, sees) in [(1, Sees::All), (PROMPT, Sees::Past)] {
        let (queries, keys) = (
            activations(&[1, 32, rows, 128])?,
            activations(&[1, 8, PROMPT, 128])?,
        );
        let values = activations(&[1, 8, PROMPT, 128])?;
        let seen = if rows == 1 {
            f64::from(PROMPT)
        } else {
            f64::from(PROMPT) / 2.0
        };
        let flop = 4.0 * f64::from(rows) * seen * 4096.0;
        let bytes = 2 * 4 * 1024 * PROMPT as u64;
        bench.time(
            described("attention", "f32", rows, [4096, 4096], bytes, flop),
            &mut || Ok(attention([&queries, &keys, &values], FACTOR, None, sees)?),
        )?;
        let gate = activations(&[1, rows, 14336])?;
        let numbers = rows as u64 * 14336;
        bench.time(
            described("silu", "f32", rows, [14336, 14336], 4 * numbers, 0.0),
            &mut || Ok(activate(&gate, Activation::Silu)?),
        )?;
        let x = activations(&[1, rows, 4096])?;
        bench.time(
            described(
                "rope",
                "f32",
                rows,
                [4096, 4096],
                4 * rows as u64 * 4096,
                0.0,
            ),
            &mut || Ok(rotate_heads(&x, 128, 1e4, 1.0, 0)?),
        )?;
    }
    let products: Vec<Array> = LAYER
        .into_iter()
        .map(|(output, _)| activations(&[1, PROMPT, output]))
        .collect::<Result<_>>()?;
    let (x, norm) = (
        activations(&[1, PROMPT, 4096])?,
        RmsNorm::new(Array::ones::<f32>(&[4096])?, 1e-5),
    );
    let products = products.try_into().expect("as many as LAYER has");
    let what = described("layer_rest", "f32", PROMPT, [4096, 4096], 0, 0.0);
    bench.time(what, &mut || {
        rest(&x, &products, &norm, &mut KVCache::new())
    })?;
    let x = activations(&[1, 256, 4304])?;
    let bytes = x.nbytes() as u64;
    bench.time(
        described("gelu", "f32", 256, [4304, 4304], bytes, 0.0),
        &mut || Ok(activate(&x, Activation::Gelu)?),
    )?;
    let heads: Vec<Array> = (0..3)
        .map(|_| activations(&[1, 16, 256, 72]))
        .collect::<Result<_>>()?;
    let flop = 4.0 * 16.0 * 256.0 * 256.0 * 72.0;
    let what = described(
        "vision_attention",
        "f32",
        256,
        [1152, 1152],
        2 * heads[0].nbytes() as u64,
        flop,
    );
    bench.time(what, &mut || {
        Ok(attention(
            [&heads[0], &heads[1], &heads[2]],
            FACTOR,
            None,
            Sees::All,
        )?)
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        args.repeat > 0,
        "--repeat 0: there would be no measurements"
    );
    let device = Device::new(Backend::Cpu)?;
    if !args.json {
        let own = device.arithmetic().own_kernels;
        println!(
            "{}, {} threads",
            if own { cpu_vectors() } else { "MLX's kernels" },
            if own { cpu_threads() } else { 1 }
        );
    }
    let mut bench = Bench {
        args,
        results: Vec::new(),
    };
    device.run(|| run(&mut bench))?;
    if bench.args.json {
        println!("{}", serde_json::to_string_pretty(&bench.results)?);
    }
    Ok(())
}
