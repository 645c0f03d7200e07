//! Fuzzes the architectures' reading of settings before a weight is read, and chat templates.

use std::{fs, path::Path};

use moxin_vlm::{
    Budget, Error, Message, Part, Role,
    models::{MediumSize, ModelFolder, PlacedMedium},
    text::{ContentStyle, Template},
};

use super::{checked, folder, write};

const ARCHITECTURES: [&str; 7] = [
    "paligemma",
    "qwen2_vl",
    "llava",
    "gemma3",
    "gemma3_text",
    "qwen2_5_vl",
    "smolvlm",
];

/// The number of an architecture, its `config.json`, and after a NUL its
/// `preprocessor_config.json`.
pub fn blueprint(bytes: &[u8]) {
    let Some((number, rest)) = bytes.split_first() else {
        return;
    };
    let name = ARCHITECTURES[usize::from(*number) % ARCHITECTURES.len()];
    let mut files = rest.splitn(2, |byte| *byte == 0);
    write("config.json", files.next().unwrap_or_default());
    write("preprocessor_config.json", files.next().unwrap_or_default());
    let weights = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/models")
        .join(name)
        .join("model/model.safetensors");
    fs::copy(weights, folder().join("model.safetensors")).expect("the weights of a fixture");
    let opened = checked(ModelFolder::open(&folder()));
    fs::remove_file(folder().join("model.safetensors")).expect("a file that was just written");
    let Some(model) = opened else { return };
    let blueprint = &model.blueprint;
    let limits = blueprint.limits();
    assert!(limits.context > 0 && !limits.default_prompt.is_empty());
    assert!(
        blueprint.decoder().layers <= 4,
        "as many as there are weights of"
    );
    for (width, height) in [(1, 1), (640, 480), (65_535, 400), (3, 3_000)] {
        let budget = Budget {
            max_pixels: Some(200_000),
            max_tokens: Some(40_000),
            ..Budget::default()
        };
        let plan = match model.plan(MediumSize { width, height }, budget) {
            Ok(plan) => plan,
            Err(Error::InvalidArgument(what)) => {
                assert!(!what.is_empty());
                continue;
            }
            Err(error) => panic!("not an error of a size: {error:?}"),
        };
        let features = plan.features();
        assert!(
            features > 0 && blueprint.preprocess_memory(MediumSize { width, height }, &plan) > 0
        );
        if features < 10_000 {
            let run = 3..3 + features;
            let placed = [PlacedMedium {
                runs: vec![run],
                plan: &plan,
            }];
            let rows = features + 9;
            assert_eq!(blueprint.positions(rows, &placed).len(), rows);
            assert!(
                blueprint
                    .spans(rows, &placed)
                    .iter()
                    .all(|span| span.end <= rows)
            );
        }
    }
}

/// A chat template, and after a NUL a user's text.
pub fn template(bytes: &[u8]) {
    let mut parts = bytes
        .splitn(2, |byte| *byte == 0)
        .map(String::from_utf8_lossy);
    let (source, text) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default().into_owned(),
    );
    let template = match Template::parse(&source) {
        Ok(template) => template,
        Err(Error::InvalidArgument(what)) => return assert!(!what.is_empty()),
        Err(error) => panic!("not an error of a template: {error:?}"),
    };
    let messages = [
        Message::system("Be brief."),
        Message {
            role: Role::User,
            parts: vec![Part::Image, Part::Text(text)],
        },
        Message::assistant("A circle."),
        Message::user("And?"),
    ];
    for style in [ContentStyle::Text, ContentStyle::Parts] {
        match template.render(&messages, style, true) {
            Ok(rendered) => assert!(rendered.len() < 4 << 20),
            Err(Error::InvalidState(what)) => assert!(!what.is_empty()),
            Err(error) => panic!("not an error of a template: {error:?}"),
        }
    }
}
