//! Compares pictures with Pillow and torchvision: `tests/image/make_images.py` draws the pictures
//! and writes the expected results.

use std::path::{Path, PathBuf};

use moxin_vlm::Error;
use moxin_vlm::image::{DecodeOptions, Picture};
use moxin_vlm::models::prismatic::{Processor, Strategy};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    process: Vec<ProcessCase>,
    decode: Vec<DecodeCase>,
}

/// A picture through a processor: to the tensor `name`, or to a picture before normalization.
#[derive(Deserialize)]
struct ProcessCase {
    name: String,
    picture: String,
    config: serde_json::Value,
    square: Option<String>,
}

/// A file that decodes to the tensor `expected`, each sample within `tolerance`.
#[derive(Deserialize)]
struct DecodeCase {
    file: String,
    expected: String,
    tolerance: u8,
    apply_orientation: bool,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/image")
        .join(name)
}

fn cases() -> Cases {
    serde_json::from_slice(&std::fs::read(file("cases.json")).unwrap()).unwrap()
}

fn open(name: &str) -> Picture {
    Picture::open(file(name), &DecodeOptions::default()).unwrap()
}

fn processor(config: &serde_json::Value) -> moxin_vlm::Result<Processor> {
    Processor::from_json(&config.to_string(), Path::new("preprocessor_config.json"))
}

#[test]
fn processed_pictures_are_those_of_torchvision_and_pillow() {
    let expected = std::fs::read(file("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    for case in cases().process {
        let mut config = case.config;
        if case.square.is_some() {
            // Without normalization except for the division by 255.
            config["tvf_normalize_params"] = serde_json::json!([{"mean": [0, 0, 0], "std": [1, 1, 1]}, {"mean": [0, 0, 0], "std": [1, 1, 1]}]);
        }
        let processor = processor(&config).unwrap();
        let pixels = processor.process(&open(&case.picture)).unwrap();
        let (name, size) = (&case.name, processor.size());
        assert_eq!(
            [pixels.channels, pixels.height, pixels.width],
            [3 * processor.encoders(), size, size],
            "{name}"
        );

        let expected: Vec<f32> = match case.square {
            None => {
                let tensor = expected.tensor(name).unwrap();
                assert_eq!(tensor.dtype(), Dtype::F32);
                tensor
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect()
            }
            Some(square) => {
                let square = open(&square);
                let plane = |channel: usize| {
                    square
                        .rgb()
                        .iter()
                        .skip(channel % 3)
                        .step_by(3)
                        .map(|&sample| f32::from(sample) / 255.0)
                };
                (0..pixels.channels).flat_map(plane).collect()
            }
        };
        assert_eq!(pixels.data.len(), expected.len(), "{name}");
        let different = pixels
            .data
            .iter()
            .zip(&expected)
            .filter(|(found, expected)| found.to_bits() != expected.to_bits())
            .count();
        assert_eq!(
            different,
            0,
            "{name}: {different} of {} values differ",
            expected.len()
        );
    }
}

#[test]
fn decoded_pictures_are_those_of_pillow() {
    let expected = std::fs::read(file("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let mut wrong = Vec::new();
    for case in cases().decode {
        let options = DecodeOptions {
            apply_orientation: case.apply_orientation,
            ..DecodeOptions::default()
        };
        let tensor = expected.tensor(&case.expected).unwrap();
        match Picture::open(file(&case.file), &options) {
            Ok(picture)
                if [picture.height() as usize, picture.width() as usize, 3] == tensor.shape() =>
            {
                let worst = picture
                    .rgb()
                    .iter()
                    .zip(tensor.data())
                    .map(|(found, expected)| found.abs_diff(*expected))
                    .max()
                    .unwrap();
                if worst > case.tolerance {
                    wrong.push(format!(
                        "{}: off by {worst}, allowed {}",
                        case.expected, case.tolerance
                    ));
                }
            }
            other => wrong.push(format!(
                "{}: {other:?}, expected {:?}",
                case.expected,
                tensor.shape()
            )),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_format_is_detected_from_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.jpg");
    std::fs::copy(file("rgb.png"), &path).unwrap();
    assert_eq!(
        Picture::open(&path, &DecodeOptions::default()).unwrap(),
        open("rgb.png")
    );
}

#[test]
fn files_that_declare_too_much_are_refused() {
    for entry in std::fs::read_dir(file("hostile")).unwrap() {
        let path = entry.unwrap().path();
        let started = std::time::Instant::now();
        let error = Picture::open(&path, &DecodeOptions::default()).unwrap_err();
        assert!(
            matches!(&error, Error::UnsupportedImage { path: Some(named), .. } if *named == path),
            "{error:?}"
        );
        // Decoding the declared sizes would take at least seconds.
        assert!(
            started.elapsed().as_millis() < 500,
            "{}: took {:?}",
            path.display(),
            started.elapsed()
        );
    }
    let error = Picture::open(file("hostile/side-20000.png"), &DecodeOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("20000 x 20000") && error.contains("100000000"),
        "{error}"
    );
}

#[test]
fn the_limit_on_pixels_is_the_callers() {
    // rgb.png has 24 x 16 pixels.
    let open = |max_pixels| {
        Picture::open(
            file("rgb.png"),
            &DecodeOptions {
                max_pixels,
                ..DecodeOptions::default()
            },
        )
    };
    assert!(open(24 * 16).is_ok());
    let error = open(24 * 16 - 1).unwrap_err().to_string();
    assert!(
        error.contains("rgb.png") && error.contains("24 x 16") && error.contains("383"),
        "{error}"
    );
}

#[test]
fn bytes_that_are_not_a_picture_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let options = DecodeOptions::default();
    for (path, expected) in [
        (
            write("text.jpg", b"This is not a photo.\n"),
            "text, not a picture",
        ),
        (write("empty.png", b""), "an empty file"),
        (folder.path().to_path_buf(), "a folder"),
    ] {
        let error = Picture::open(&path, &options).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::UnsupportedImage { .. }), "{text}");
        assert!(
            text.contains(expected) && text.contains(path.to_str().unwrap()),
            "{text}"
        );
    }
    let missing = folder.path().join("missing.png");
    assert!(
        matches!(Picture::open(&missing, &options), Err(Error::NotFound { path, .. }) if path == missing)
    );
}

#[test]
fn a_truncated_file_is_refused() {
    for name in [
        "rgb.png",
        "palette.gif",
        "rgb.bmp",
        "rgb.webp",
        "lossy.webp",
        "rgb.tiff",
        "lzw.tiff",
        "rgb.jpg",
        "progressive.jpg",
        "cmyk.jpg",
    ] {
        let bytes = std::fs::read(file(name)).unwrap();
        for length in (0..bytes.len() * 9 / 10).step_by(7) {
            let error = Picture::decode(&bytes[..length], &DecodeOptions::default());
            assert!(
                matches!(error, Err(Error::UnsupportedImage { .. })),
                "{name} cut to {length} of {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    let options = DecodeOptions {
        max_pixels: 1_000_000,
        ..DecodeOptions::default()
    };
    for name in [
        "rgb.png",
        "palette.gif",
        "palette.bmp",
        "rgba.webp",
        "lossy.webp",
        "lzw.tiff",
        "progressive.jpg",
        "orientation-6.webp",
    ] {
        let bytes = std::fs::read(file(name)).unwrap();
        for bit in (0..bytes.len() * 8).step_by(11) {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Err(error) = Picture::decode(&bytes, &options) {
                assert!(
                    matches!(error, Error::UnsupportedImage { path: None, .. }),
                    "{name}, bit {bit}: {error}"
                );
            }
        }
    }
}

#[test]
fn the_longest_and_thinnest_pictures_are_processed() {
    let pixels = [40, 200, 90].repeat(65_535);
    for (width, height) in [(1, 65_535), (65_535, 1)] {
        let picture = Picture::from_pixels(
            &pixels,
            width,
            height,
            width as usize * 3,
            moxin_vlm::image::PixelFormat::Rgb8,
        )
        .unwrap();
        for strategy in ["resize-naive", "resize-crop", "letterbox"] {
            let processor = processor(&serde_json::json!({"image_resize_strategy": strategy, "input_sizes": [[3, 32, 32]]})).unwrap();
            let pixels = processor.process(&picture).unwrap();
            // A single color; for a letterbox this position is in the border.
            let red = if strategy == "letterbox" { 127.0 } else { 40.0 };
            assert_eq!(
                pixels.data[32 * 16 + 3],
                (red / 255.0 - 0.5) / 0.5,
                "{strategy} of {width} x {height}"
            );
        }
    }
}

#[test]
fn missing_settings_have_the_defaults_of_the_original_processor() {
    let processor = processor(&serde_json::json!({})).unwrap();
    assert_eq!(processor.strategy(), Strategy::Letterbox { fill: [127; 3] });
    assert_eq!((processor.size(), processor.encoders()), (224, 1));
    let pixels = processor.process(&open("ramp-16x16.png")).unwrap();
    // The corners are the first and last value of the ramp, 0 and 255.
    assert_eq!(
        (pixels.data.first(), pixels.data.last()),
        (Some(&-1.0), Some(&1.0))
    );
}

#[test]
fn saved_settings_take_precedence() {
    // As published checkpoints have it: `means` as in timm, and rounded to bfloat16.
    let settings = serde_json::json!({
        "image_resize_strategy": "letterbox", "input_sizes": [[3, 16, 16]], "means": [[0.485, 0.456, 0.406]], "stds": [[0.229, 0.224, 0.225]],
        "tvf_resize_params": [{"size": [16, 16], "interpolation": 3, "max_size": null, "antialias": true}], "tvf_do_letterbox": false,
        "tvf_normalize_params": [{"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]}],
    });
    let processor = processor(&settings).unwrap();
    assert_eq!(processor.strategy(), Strategy::ResizeNaive);
    let pixels = processor.process(&open("ramp-16x16.png")).unwrap();
    // 117 / 512 is 0.228515625.
    assert_eq!(pixels.data[0], -0.484375 / (117.0 / 512.0));
}

#[test]
fn the_letterbox_has_the_color_of_the_last_encoders_mean() {
    let settings = serde_json::json!({
        "input_sizes": [[3, 8, 8], [3, 8, 8]], "means": [[0.1, 0.2, 0.3], [0.485, 0.456, 0.406]], "stds": [[1, 1, 1], [1, 1, 1]],
    });
    assert_eq!(
        processor(&settings).unwrap().strategy(),
        Strategy::Letterbox {
            fill: [123, 116, 103]
        }
    );
}

#[test]
fn wrong_settings_are_named() {
    use serde_json::json;
    for (field, settings) in [
        (
            "image_resize_strategy",
            json!({"image_resize_strategy": "stretch"}),
        ),
        ("image_resize_strategy", json!({"image_resize_strategy": 5})),
        (
            "image_processor_type",
            json!({"image_processor_type": "SiglipImageProcessor"}),
        ),
        ("input_sizes", json!({"input_sizes": []})),
        ("input_sizes", json!({"input_sizes": [[3, 0, 0]]})),
        ("input_sizes", json!({"input_sizes": [[3, 4097, 4097]]})),
        ("input_sizes", json!({"input_sizes": [[3, 224, 200]]})),
        ("input_sizes", json!({"input_sizes": [[1, 224, 224]]})),
        (
            "input_sizes",
            json!({"input_sizes": [[3, 224, 224], [3, 384, 384]]}),
        ),
        ("input_sizes", json!({"input_sizes": [[3, 224]]})),
        ("input_sizes", json!({"input_sizes": [[3, -1, -1]]})),
        ("interpolations", json!({"interpolations": ["bilinear"]})),
        (
            "interpolations",
            json!({"interpolations": ["bicubic", "bicubic"]}),
        ),
        ("means", json!({"means": [[0.5, 0.5]]})),
        (
            "means",
            json!({"means": [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]}),
        ),
        (
            "means",
            json!({"means": [[0.5, 0.5, 1e60]], "image_resize_strategy": "resize-crop"}),
        ),
        ("means", json!({"means": [[0.5, 0.5, 1.5]]})),
        ("stds", json!({"stds": [[0.5, 0.0, 0.5]]})),
        ("stds", json!({"stds": "0.5"})),
        (
            "tvf_normalize_params",
            json!({"tvf_normalize_params": [{"mean": [0, 0, 0], "std": [1, 0, 1]}]}),
        ),
        (
            "tvf_normalize_params",
            json!({"tvf_normalize_params": [{"mean": [0, 0, 0]}]}),
        ),
        ("tvf_normalize_params", json!({"tvf_normalize_params": []})),
        (
            "tvf_resize_params",
            json!({"tvf_resize_params": [{"size": 200, "interpolation": 3}]}),
        ),
        (
            "tvf_resize_params",
            json!({"tvf_resize_params": [{"size": [], "interpolation": 3}]}),
        ),
        (
            "tvf_resize_params",
            json!({"tvf_resize_params": [{"size": 224, "interpolation": 2}]}),
        ),
        (
            "tvf_resize_params",
            json!({"tvf_resize_params": [{"size": 224, "interpolation": 3, "max_size": 400}]}),
        ),
        (
            "tvf_do_letterbox",
            json!({"tvf_do_letterbox": true, "image_resize_strategy": "resize-naive"}),
        ),
        (
            "tvf_letterbox_fill",
            json!({"tvf_letterbox_fill": [0, 0, 256]}),
        ),
        (
            "tvf_crop_params",
            json!({"tvf_crop_params": [{"output_size": [224, 100]}]}),
        ),
    ] {
        let error = processor(&settings).unwrap_err();
        assert!(
            matches!(
                error,
                Error::CorruptModel { .. } | Error::UnsupportedModel { .. }
            ),
            "{settings}: {error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("preprocessor_config.json") && text.contains(&format!("`{field}`")),
            "{settings}: {text}"
        );
    }
    for json in ["", "[]", "{", "{} {}"] {
        let error = Processor::from_json(json, Path::new("preprocessor_config.json"));
        assert!(matches!(error, Err(Error::CorruptModel { .. })), "{json}");
    }
    let missing = Processor::from_file(Path::new("no/preprocessor_config.json"));
    assert!(matches!(missing, Err(Error::NotFound { .. })));
}
