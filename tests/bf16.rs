//! Tests computing in bfloat16 from pixels to logits, as on a GPU. Runs here on the CPU, slowly. A
//! single float32 input anywhere would promote everything after it, which the dtypes show.

use std::path::Path;

use mlx_rs::{Array, Dtype};
use moxin_vlm::{
    Backend, DecodeOptions, MoxinVLM, Picture, Processor, Result, compat::load_model_on,
    device::Device, nn::Want,
};

const IDS: [u32; 6] = [1, 70, 45, 88, 61, 52];

/// Returns image tokens, and the logits of the prompt's last row and of one more token.
fn run(model: &MoxinVLM, folder: &Path) -> Result<[Array; 3]> {
    let picture = Picture::open(
        Path::new("tests/parity/pictures/photo.png"),
        &DecodeOptions::default(),
    )?;
    let pixels =
        Processor::from_file(&folder.join("preprocessor_config.json"))?.process(&picture)?;
    let image = model.project(&model.encode(&pixels)?)?;
    let mut cache = model.new_cache();
    let prompt = model
        .forward_embeddings(
            &model.embed(&IDS, Some(&image))?,
            &mut cache,
            Want::Last,
            &|| Ok(()),
        )?
        .unwrap();
    let token = model
        .forward_embeddings(
            &model.embed(&[9], None)?,
            &mut cache,
            Want::Last,
            &|| Ok(()),
        )?
        .unwrap();
    Ok([image, prompt, token])
}

fn numbers(array: &Array) -> Vec<f32> {
    array
        .as_dtype(Dtype::Float32)
        .unwrap()
        .to_vec_cast::<f32>()
        .unwrap()
}

#[test]
fn bfloat16_stays_bfloat16_and_close_to_float32() {
    for name in ["naive_f32", "letterbox_bf16"] {
        let folder = Path::new("tests/parity").join(name).join("model");
        let load = |dtype| {
            let mut device = Device::new(Backend::Cpu).unwrap();
            device.dtype = dtype;
            device.run(|| {
                run(
                    &load_model_on(&folder, &device, None, &|_, _| Ok(())).unwrap(),
                    &folder,
                )
                .unwrap()
            })
        };
        let (wide, narrow) = (load(Dtype::Float32), load(Dtype::Bfloat16));
        for (stage, (wide, narrow)) in ["image tokens", "prompt", "token"]
            .iter()
            .zip(wide.iter().zip(&narrow))
        {
            assert_eq!(
                (wide.dtype(), narrow.dtype()),
                (Dtype::Float32, Dtype::Bfloat16),
                "{name}, {stage}"
            );
            let (wide, narrow) = (numbers(wide), numbers(narrow));
            let error: f32 = wide.iter().zip(&narrow).map(|(a, b)| (a - b).powi(2)).sum();
            let scale: f32 = wide.iter().map(|a| a.powi(2)).sum();
            let relative = (error / scale).sqrt();
            // bfloat16 has 8 bits of precision: 0.4 % per rounding, and a few dozen roundings in a
            // row.
            assert!(
                relative > 0.0 && relative < 0.1,
                "{name}, {stage}: relative error {relative}"
            );
        }
    }
}
