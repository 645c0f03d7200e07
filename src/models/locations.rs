//! Boxes and points in answers, in the pixels of the picture.

use serde_json::{Deserializer, Value};

/// How a model writes boxes and points in its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounding {
    /// As tokens for top, left, bottom and right, in 1024ths of the picture: `<loc0256>` …, then
    /// the label (PaliGemma, <https://arxiv.org/abs/2407.07726>, 3.2).
    LocTokens,
    /// As JSON or as pairs `(x,y),(x,y)`, in thousandths of the picture (Qwen2-VL,
    /// <https://arxiv.org/abs/2409.12191>, 2.2; Qwen3-VL).
    Thousandths,
    /// As JSON or as pairs, in pixels of the picture as resized for the encoder (Qwen2.5-VL,
    /// <https://arxiv.org/abs/2502.13923>, 2.1.1).
    ResizedPixels,
}

/// Something in a picture that an answer names.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    /// The label; empty if the answer has none.
    pub label: String,
    /// The place.
    pub place: Place,
}

/// A place in a picture: pixels of the upright original, from its top left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// A box.
    Box {
        /// The left edge.
        left: f32,
        /// The top edge.
        top: f32,
        /// The right edge, not less than `left`.
        right: f32,
        /// The bottom edge, not less than `top`.
        bottom: f32,
    },
    /// A point.
    Point {
        /// The distance from the left edge.
        x: f32,
        /// The distance from the top edge.
        y: f32,
    },
}

/// The marks that Qwen-VL writes around labels and boxes. Decoded text lacks them, because they are
/// special tokens.
const MARKS: [&str; 4] = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
];

impl Grounding {
    /// Returns the places in an answer about a picture of `size` (width, height) that reached the
    /// encoder with `resized` pixels. What is outside the picture is moved to its edge; what cannot
    /// be read, such as the last box of an answer that was cut off, is left out.
    pub(crate) fn locate(
        self,
        answer: &str,
        size: [usize; 2],
        resized: [usize; 2],
    ) -> Vec<Location> {
        let (found, range) = match self {
            Grounding::LocTokens => (loc_tokens(answer), [1024.0; 2]),
            Grounding::Thousandths => (json_or_pairs(answer), [1000.0; 2]),
            Grounding::ResizedPixels => (json_or_pairs(answer), resized.map(|side| side as f64)),
        };
        let to_pixels = |axis: usize, at: f64| {
            let side = size[axis] as f64;
            (at / range[axis] * side).clamp(0.0, side) as f32
        };
        let place = |numbers: &[f64]| match *numbers {
            [x, y] => Place::Point {
                x: to_pixels(0, x),
                y: to_pixels(1, y),
            },
            _ => Place::Box {
                left: to_pixels(0, numbers[0].min(numbers[2])),
                top: to_pixels(1, numbers[1].min(numbers[3])),
                right: to_pixels(0, numbers[0].max(numbers[2])),
                bottom: to_pixels(1, numbers[1].max(numbers[3])),
            },
        };
        found
            .into_iter()
            .map(|Found { label, numbers }| Location {
                label,
                place: place(&numbers),
            })
            .collect()
    }
}

/// A place in the units of the model: x, y of a point, or of two corners.
#[derive(Debug, PartialEq)]
struct Found {
    label: String,
    numbers: Vec<f64>,
}

/// Reads `<loc0000>` to `<loc1023>`: four in a row are a box, two are a point; the label follows,
/// up to the next `<loc` or `;`. `<seg000>` tokens, which describe a mask, are skipped.
fn loc_tokens(answer: &str) -> Vec<Found> {
    let mut all = Vec::new();
    let mut rest = answer;
    while let Some(at) = rest.find("<loc") {
        rest = &rest[at..];
        let mut yx = Vec::new();
        while let Some((number, after)) = numbered(rest, "<loc", 4) {
            yx.push(f64::from(number));
            rest = after;
        }
        while let Some((_, after)) = numbered(rest, "<seg", 3) {
            rest = after;
        }
        let end = rest.find("<loc").unwrap_or(rest.len());
        let end = rest[..end].find(';').unwrap_or(end);
        // Each axis is written y first.
        let numbers: Vec<f64> = yx.chunks_exact(2).flat_map(|yx| [yx[1], yx[0]]).collect();
        if let (2 | 4, true) = (yx.len(), yx.iter().all(|number| *number < 1024.0)) {
            all.push(Found {
                label: rest[..end].trim().to_owned(),
                numbers,
            });
        }
        // What starts like a token but is none.
        rest = match yx.is_empty() {
            true => &rest["<loc".len()..],
            false => &rest[end..],
        };
    }
    all
}

/// Reads a token such as `<loc0123>` at the start, and returns its number and the rest.
fn numbered<'a>(text: &'a str, start: &str, digits: usize) -> Option<(u32, &'a str)> {
    let rest = text.strip_prefix(start)?;
    let number = rest.get(..digits)?;
    let after = rest[digits..].strip_prefix('>')?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Some((number.parse().ok()?, after)))?
}

/// Reads JSON objects if there are any, otherwise pairs.
fn json_or_pairs(answer: &str) -> Vec<Found> {
    let found = json(answer);
    if found.is_empty() {
        pairs(answer)
    } else {
        found
    }
}

/// Reads JSON objects with `bbox_2d` or `point_2d`, wherever they are in the answer: in a list, in a
/// Markdown block, or in a list that was cut off.
fn json(answer: &str) -> Vec<Found> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(start) = answer[at..].find('{') {
        at += start;
        let mut values = Deserializer::from_str(&answer[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                objects(&value, &mut all);
                at += values.byte_offset();
            }
            _ => at += 1,
        }
    }
    all
}

/// Adds the places in a value and in everything inside it. serde_json limits how deep that is.
fn objects(value: &Value, all: &mut Vec<Found>) {
    let fields = match value {
        Value::Array(values) => return values.iter().for_each(|value| objects(value, all)),
        Value::Object(fields) => fields,
        _ => return,
    };
    let label = ["label", "text_content"].into_iter();
    let label = label.filter_map(|name| fields.get(name)?.as_str()).next();
    for (name, count) in [("bbox_2d", 4), ("point_2d", 2)] {
        let numbers = fields.get(name).and_then(Value::as_array);
        let numbers: Option<Vec<f64>> = numbers
            .filter(|numbers| numbers.len() == count)
            .and_then(|numbers| numbers.iter().map(Value::as_f64).collect());
        all.extend(numbers.map(|numbers| Found {
            label: label.unwrap_or_default().to_owned(),
            numbers,
        }));
    }
    fields.values().for_each(|value| objects(value, all));
}

/// Reads boxes `(x,y),(x,y)`, each with the text before it as its label: what is between
/// `<|object_ref_start|>` and `<|object_ref_end|>` or, without these, the line. Boxes that follow
/// each other have one label.
fn pairs(answer: &str) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    let (mut at, mut text_start) = (0, 0);
    while let Some(open) = answer[at..].find('(') {
        at += open;
        let corners = corner(&answer[at..]).and_then(|(first, rest)| {
            let (second, rest) = corner(rest.trim_start().strip_prefix(',')?.trim_start())?;
            Some(([first, second].concat(), rest))
        });
        let Some((numbers, rest)) = corners else {
            at += 1;
            continue;
        };
        let label = match (label(&answer[text_start..at]), all.last()) {
            (label, Some(last)) if label.is_empty() => last.label.clone(),
            (label, _) => label,
        };
        all.push(Found { label, numbers });
        at = answer.len() - rest.len();
        text_start = at;
    }
    all
}

/// Reads `(x,y)` at the start, and returns it and the rest.
fn corner(text: &str) -> Option<([f64; 2], &str)> {
    let text = text.strip_prefix('(')?;
    // No longer, so that a text of brackets is not read again and again.
    let end = text.bytes().take(40).position(|byte| byte == b')')?;
    let (inside, rest) = (&text[..end], &text[end + 1..]);
    let (x, y) = inside.split_once(',')?;
    let number = |text: &str| {
        let text = text.trim();
        let is_plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.'));
        is_plain.then(|| text.parse::<f64>().ok())?
    };
    Some(([number(x)?, number(y)?], rest))
}

/// Returns the label in the text before a box.
fn label(before: &str) -> String {
    let [ref_start, ref_end, ..] = MARKS;
    let marked = before
        .rsplit_once(ref_start)
        .and_then(|(_, rest)| rest.split_once(ref_end));
    let text = match marked {
        Some((label, _)) => label.to_owned(),
        None => {
            let text = MARKS
                .iter()
                .fold(before.to_owned(), |text, mark| text.replace(mark, ""));
            text.rsplit('\n').next().unwrap_or_default().to_owned()
        }
    };
    let is_separator = |c: char| c.is_whitespace() || ",;:".contains(c);
    text.trim_matches(is_separator).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: [usize; 2] = [2000, 512];
    const RESIZED: [usize; 2] = [500, 250];

    fn locate(grounding: Grounding, answer: &str) -> Vec<(String, Vec<f32>)> {
        let numbers = |place: Place| match place {
            Place::Box {
                left,
                top,
                right,
                bottom,
            } => vec![left, top, right, bottom],
            Place::Point { x, y } => vec![x, y],
        };
        grounding
            .locate(answer, SIZE, RESIZED)
            .into_iter()
            .map(|Location { label, place }| (label, numbers(place)))
            .collect()
    }

    fn expected(all: &[(&str, &[f32])]) -> Vec<(String, Vec<f32>)> {
        let owned = |(label, numbers): &(&str, &[f32])| (label.to_string(), numbers.to_vec());
        all.iter().map(owned).collect()
    }

    #[test]
    fn loc_tokens_are_boxes_y_first() {
        let answer = "<loc0256><loc0512><loc0512><loc0768> cat ; \
                      <loc0000><loc0000><loc1023><loc0064><seg001><seg127> left part; \
                      <loc0512><loc0256> tail";
        let found = locate(Grounding::LocTokens, answer);
        assert_eq!(
            found,
            expected(&[
                ("cat", &[1000.0, 128.0, 1500.0, 256.0]),
                ("left part", &[0.0, 0.0, 125.0, 511.5]),
                ("tail", &[500.0, 256.0]),
            ])
        );
    }

    #[test]
    fn other_loc_tokens_are_left_out() {
        for answer in [
            "no box",
            "<loc",
            "<loc12>",
            "<loc9999><loc0001><loc0001><loc0001> beyond",
            "<loc0001><loc0002><loc0003> three",
            "<locé234>",
        ] {
            assert_eq!(locate(Grounding::LocTokens, answer), [], "{answer}");
        }
        let found = locate(Grounding::LocTokens, "<loc1><loc0512><loc0512> end");
        assert_eq!(found, expected(&[("end", &[1000.0, 256.0])]));
    }

    /// The example in Qwen2.5-VL's documentation, cut off after two objects
    /// (<https://github.com/QwenLM/Qwen2.5-VL/blob/main/cookbooks/spatial_understanding.ipynb>).
    #[test]
    fn json_is_read_as_far_as_it_goes() {
        let answer = "```json\n[\n\t{\"bbox_2d\": [50, 25, 100, 125], \"label\": \"a {small} cat\"},\n\
                      \t{\"point_2d\": [\"1\", 2]},\n\
                      \t{\"point_2d\": [250, 125.5], \"label\": \"nose\"},\n\t{\"bbox_2d\": [34, 5";
        let found = locate(Grounding::ResizedPixels, answer);
        assert_eq!(
            found,
            expected(&[
                ("a {small} cat", &[200.0, 51.2, 400.0, 256.0]),
                ("nose", &[1000.0, 257.024]),
            ])
        );
        let thousandths = locate(Grounding::Thousandths, answer);
        assert_eq!(thousandths[0].1, [100.0, 12.8, 200.0, 64.0]);
    }

    #[test]
    fn objects_inside_others_are_found() {
        let answer =
            "{\"objects\": [{\"bbox_2d\": [1000, 500, 0, 0], \"text_content\": \"EXIT\"}]}";
        let found = locate(Grounding::Thousandths, answer);
        assert_eq!(found, expected(&[("EXIT", &[0.0, 0.0, 2000.0, 256.0])]));
    }

    #[test]
    fn pairs_have_the_label_before_them() {
        let marked = "<|object_ref_start|>the (left) cat<|object_ref_end|><|box_start|>(100,250),\
                      (200,500)<|box_end|><|box_start|>(0,0),(2000,1000)<|box_end|>";
        let boxes = [
            ("the (left) cat", &[200.0f32, 128.0, 400.0, 256.0][..]),
            ("the (left) cat", &[0.0, 0.0, 2000.0, 512.0]),
        ];
        assert_eq!(locate(Grounding::Thousandths, marked), expected(&boxes));
        // As the decoder of tokens writes it.
        let plain = MARKS
            .iter()
            .fold(marked.to_owned(), |text, mark| text.replace(mark, ""));
        assert_eq!(locate(Grounding::Thousandths, &plain), expected(&boxes));
        let lines = "Here they are:\ncat: (0,0), (500, 500)\ndog: (500,500),(1000,1000)";
        let labels: Vec<String> = locate(Grounding::Thousandths, lines)
            .into_iter()
            .map(|(label, _)| label)
            .collect();
        assert_eq!(labels, ["cat", "dog"]);
        for none in [
            "(1,2)",
            "(1,2),(3",
            "(1,2),(a,4)",
            "f(x), g(y)",
            "((((,,,))))",
            "(1e9,0),(1,1)",
        ] {
            assert_eq!(locate(Grounding::Thousandths, none), [], "{none}");
        }
    }

    /// Answers that invite reading the same text again and again.
    #[test]
    fn long_answers_take_no_time() {
        let clock = std::time::Instant::now();
        for piece in [
            "{",
            "{\"a\":",
            "{\"a\":\"",
            "(",
            "(1,",
            "(1,1),",
            "<loc",
            "<loc0001>",
        ] {
            let answer = piece.repeat(200_000 / piece.len());
            for grounding in [Grounding::LocTokens, Grounding::Thousandths] {
                assert!(grounding.locate(&answer, SIZE, RESIZED).len() <= 100_000);
            }
        }
        println!("{:?}", clock.elapsed());
    }
}
