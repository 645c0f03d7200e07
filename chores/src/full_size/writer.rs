//! Writes random weights as safetensors shards with their index, using a few megabytes of memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::json;

use super::tensors::{Fill, Tensor};

/// The number of values that are drawn once; tensors are assembled from parts of them, as fast as
/// the disk allows.
const POOL: usize = 1 << 22;
const STRETCH: usize = 1 << 16;

/// Small enough that nothing overflows after 36 layers; transformers' initial value for Mistral.
const DEVIATION: f32 = 0.02;

/// Writes all shards of at most `shard_bytes` (with at least one tensor) and
/// `model.safetensors.index.json`. `progress` receives the bytes written so far.
pub fn write(
    folder: &Path,
    tensors: &[Tensor],
    shard_bytes: usize,
    progress: &mut dyn FnMut(usize),
) -> io::Result<()> {
    let shards = shards(tensors, shard_bytes);
    let mut filler = Filler::new();
    let mut weight_map = BTreeMap::new();
    let mut written = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join(&name))?);
        write_header(&mut file, shard)?;
        for tensor in *shard {
            filler.write(&mut file, tensor)?;
            written += tensor.bytes();
            progress(written);
            weight_map.insert(tensor.name.as_str(), name.clone());
        }
        file.flush()?;
    }
    let index = json!({ "metadata": { "total_size": written }, "weight_map": weight_map });
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        format!("{index:#}\n"),
    )
}

/// Splits the list where a shard would become too large.
fn shards(tensors: &[Tensor], most: usize) -> Vec<&[Tensor]> {
    let mut shards = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > first && bytes + tensor.bytes() > most {
            shards.push(&tensors[first..i]);
            (first, bytes) = (i, 0);
        }
        bytes += tensor.bytes();
    }
    shards.push(&tensors[first..]);
    shards
}

/// Writes the length of the header, and the header, which says where each tensor is in the data.
fn write_header(file: &mut impl Write, tensors: &[Tensor]) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    // The data must start at a multiple of eight.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())
}

struct Filler {
    random: SplitMix,
    /// Normally distributed bfloat16 values.
    pool: Vec<u8>,
}

impl Filler {
    /// Always draws the same numbers.
    fn new() -> Filler {
        let mut random = SplitMix(0);
        let pool = (0..POOL)
            .flat_map(|_| bfloat16(DEVIATION * random.normal()))
            .collect();
        Filler { random, pool }
    }

    fn write(&mut self, file: &mut impl Write, tensor: &Tensor) -> io::Result<()> {
        let mut left = tensor.elements();
        while left > 0 {
            let count = left.min(STRETCH);
            match tensor.fill {
                Fill::Constant(value) => file.write_all(&bfloat16(value).repeat(count))?,
                Fill::Random => {
                    let start = self.random.next() as usize % (POOL - count);
                    file.write_all(&self.pool[2 * start..2 * (start + count)])?;
                }
            }
            left -= count;
        }
        Ok(())
    }
}

/// Returns the little-endian bytes, rounded to nearest.
fn bfloat16(value: f32) -> [u8; 2] {
    (((value.to_bits() + 0x8000) >> 16) as u16).to_le_bytes()
}

/// The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns an approximately normal number with deviation 1: the sum of four uniform numbers,
    /// each with a variance of 1/12.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: f32 = (0..4)
            .map(|i| (bits >> (16 * i)) as u16 as f32 / 65536.0)
            .sum();
        (sum - 2.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::{Dtype, SafeTensors};

    use super::super::tensors::{Decoder, Encoder, Sizes, tensors};
    use super::*;

    const SMALL: Sizes = Sizes {
        dino: Encoder {
            width: 8,
            depth: 2,
            inner: 32,
        },
        siglip: Encoder {
            width: 12,
            depth: 3,
            inner: 40,
        },
        patch: 14,
        patches: 4,
        decoder: Decoder {
            width: 16,
            layers: 2,
            queries: 16,
            keys: 8,
            inner: 24,
            vocabulary: 64,
        },
    };

    #[test]
    fn the_shards_hold_all_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = tensors(&SMALL);
        let bytes: usize = tensors.iter().map(Tensor::bytes).sum();
        let mut told = 0;
        write(folder.path(), &tensors, bytes / 3, &mut |written| {
            told = written
        })
        .unwrap();
        assert_eq!(told, bytes);

        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&read("model.safetensors.index.json")).unwrap();
        assert_eq!(index["metadata"]["total_size"], bytes);
        assert_eq!(
            index["weight_map"].as_object().unwrap().len(),
            tensors.len()
        );
        let mut values = Vec::new();
        for tensor in &tensors {
            let shard = read(index["weight_map"][&tensor.name].as_str().unwrap());
            assert_eq!(u64::from_le_bytes(shard[..8].try_into().unwrap()) % 8, 0);
            let shard = SafeTensors::deserialize(&shard).unwrap();
            let view = shard.tensor(&tensor.name).unwrap();
            assert_eq!(
                (view.dtype(), view.shape()),
                (Dtype::BF16, tensor.shape.as_slice()),
                "{}",
                tensor.name
            );
            let numbers = view
                .data()
                .chunks_exact(2)
                .map(|two| f32::from_bits(u32::from_le_bytes([0, 0, two[0], two[1]])));
            match tensor.fill {
                Fill::Random => values.extend(numbers),
                Fill::Constant(value) => assert!(
                    numbers
                        .into_iter()
                        .all(|number| (number - value).abs() < 1e-3),
                    "{}",
                    tensor.name
                ),
            }
        }
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let deviation =
            (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
        assert!(
            mean.abs() < 1e-3 && (deviation - DEVIATION).abs() < 1e-3,
            "{mean} {deviation}"
        );
    }

    #[test]
    fn shards_are_as_large_as_allowed() {
        let tensors = tensors(&SMALL);
        let total: usize = tensors.iter().map(Tensor::bytes).sum();
        assert_eq!(shards(&tensors, total).len(), 1);
        let half = total / 2;
        let cut = shards(&tensors, half);
        assert!(cut.len() >= 2);
        assert!(
            cut.iter()
                .all(|shard| shard.iter().map(Tensor::bytes).sum::<usize>() <= half)
        );
        assert_eq!(
            cut.iter().map(|shard| shard.len()).sum::<usize>(),
            tensors.len()
        );
    }
}
