//! Compares image primitives and decoders with Pillow and transformers, by hashes:
//! `tests/image/make_primitives.py` and `tests/image/make_corpus.py` made the expected ones.

use std::{collections::BTreeMap, fs, path::Path};

use moxin_vlm::{
    DecodeOptions, Picture,
    image::{Filter, Normalization, center_crop, crop, pad, planes, rescale, resize, smart_resize},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Primitives {
    resized: Vec<Made>,
    cropped: Vec<Made>,
    cut: Vec<Cut>,
    padded: Vec<Padded>,
    values: Vec<Values>,
    sizes: Vec<[usize; 7]>,
}

#[derive(Deserialize)]
struct Made {
    picture: String,
    #[serde(default)]
    filter: String,
    size: [usize; 2],
    sha256: String,
}

#[derive(Deserialize)]
struct Cut {
    picture: String,
    place: [usize; 2],
    size: [usize; 2],
    sha256: String,
}

#[derive(Deserialize)]
struct Padded {
    picture: String,
    border: [usize; 4],
    sha256: String,
}

#[derive(Deserialize)]
struct Values {
    picture: String,
    rescaled: String,
    planes: String,
}

#[derive(Deserialize)]
struct Decoded {
    size: [u32; 2],
    sha256: String,
}

fn primitives() -> Primitives {
    serde_json::from_slice(&fs::read("tests/image/primitives.json").unwrap()).unwrap()
}

fn picture(name: &str) -> Picture {
    Picture::open(
        Path::new("tests/models/pictures").join(format!("{name}.png")),
        &Default::default(),
    )
    .unwrap()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn digest_floats(values: &[f32]) -> String {
    digest(
        &values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<_>>(),
    )
}

#[test]
fn every_filter_resizes_as_pillow() {
    for Made {
        picture: name,
        filter,
        size: [width, height],
        sha256,
    } in primitives().resized
    {
        let kind = match filter.as_str() {
            "nearest" => Filter::Nearest,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            other => panic!("{other}"),
        };
        let resized = resize(&picture(&name), width, height, kind).unwrap();
        assert_eq!(
            digest(resized.rgb()),
            sha256,
            "{name} to {width} x {height}, {filter}"
        );
    }
}

#[test]
fn cropping_and_padding_match_transformers_and_pillow() {
    let primitives = primitives();
    for Made {
        picture: name,
        size: [width, height],
        sha256,
        ..
    } in primitives.cropped
    {
        let cropped = center_crop(&picture(&name), width, height).unwrap();
        assert_eq!(
            digest(cropped.rgb()),
            sha256,
            "{name} to {width} x {height}"
        );
    }
    for Cut {
        picture: name,
        place,
        size,
        sha256,
    } in primitives.cut
    {
        let cut = crop(&picture(&name), place, size).unwrap();
        assert_eq!(digest(cut.rgb()), sha256, "{name} at {place:?}, {size:?}");
    }
    for Padded {
        picture: name,
        border,
        sha256,
    } in primitives.padded
    {
        assert_eq!(
            digest(pad(&picture(&name), border, [10, 20, 30]).unwrap().rgb()),
            sha256,
            "{name}"
        );
    }
    for (width, height) in [(0, 5), (5, 0), (70_000, 5)] {
        assert!(center_crop(&picture("wide"), width, height).is_err());
        assert!(crop(&picture("wide"), [0, 0], [width, height]).is_err());
        assert!(resize(&picture("wide"), width, height, Filter::Nearest).is_err());
    }
    assert!(pad(&picture("wide"), [usize::MAX, 0, 0, 0], [0; 3]).is_err());
}

#[test]
fn values_match_transformers() {
    let normalization = Normalization {
        factor: 1.0 / 255.0,
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
    };
    for Values {
        picture: name,
        rescaled,
        planes: expected,
    } in primitives().values
    {
        let picture = picture(&name);
        // Ours are ordered by pixel, the reference's by plane.
        let values = rescale(&picture, normalization.factor).unwrap();
        let by_plane: Vec<f32> = (0..3)
            .flat_map(|channel| values.iter().skip(channel).step_by(3).copied())
            .collect();
        assert_eq!(digest_floats(&by_plane), rescaled, "{name}");
        assert_eq!(
            digest_floats(&planes(&picture, &normalization).unwrap()),
            expected,
            "{name}"
        );
    }
}

#[test]
fn smart_resize_matches_transformers() {
    for [height, width, factor, least, most, to_height, to_width] in primitives().sizes {
        let found = smart_resize(height, width, factor, least, most).unwrap_or([0, 0]);
        assert_eq!(
            found,
            [to_height, to_width],
            "{width} x {height} by {factor}, {least} to {most}"
        );
    }
}

/// Files from real encoders. [`Picture`]'s documentation lists the differences from Pillow.
#[test]
fn files_are_decoded_as_pillow_decodes_them() {
    let folder = Path::new("tests/image/corpus");
    let expected: BTreeMap<String, Decoded> =
        serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    assert!(expected.len() > 40);
    let mut wrong = Vec::new();
    for (name, Decoded { size, sha256 }) in expected {
        let picture = Picture::open(folder.join(&name), &DecodeOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!([picture.width(), picture.height()], size, "{name}");
        if digest(picture.rgb()) != sha256 {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A file truncated anywhere is refused.
#[test]
fn a_truncated_jpeg_is_refused() {
    for name in ["420_61x47.jpg", "progressive_33x90.jpg", "cmyk.jpg"] {
        let bytes = fs::read(Path::new("tests/image/corpus").join(name)).unwrap();
        for length in (0..bytes.len() - 1).step_by(7) {
            assert!(
                Picture::decode(&bytes[..length], &DecodeOptions::default()).is_err(),
                "{name} cut to {length} bytes"
            );
        }
    }
}

/// Inks of different sizes are refused by name, because the decoder would misplace them.
#[test]
fn subsampled_inks_are_refused() {
    let mut bytes = fs::read("tests/image/corpus/cmyk.jpg").unwrap();
    // The frame header of a baseline file: its length, 8 bits, two sides, four components.
    let at = bytes
        .windows(5)
        .position(|window| window == [0xff, 0xc0, 0, 20, 8])
        .unwrap();
    let first = at + 11;
    assert_eq!(bytes[first], 0x11);
    bytes[first] = 0x22;
    let error = Picture::decode(&bytes, &DecodeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("subsampled inks"), "{error}");
}
