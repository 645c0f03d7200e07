use moxin_vlm::Error;
use serde_json::{Value, json};

use crate::{fixture, tokenizer_of};

fn with(field: &str, value: Value) -> moxin_vlm::Result<moxin_vlm::text::Tokenizer> {
    let mut json: Value = fixture("llama");
    json[field] = value;
    tokenizer_of(&json)
}

fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

fn replace_regex(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": from}, "content": to})
}

fn sequence(list: &str, steps: &[Value]) -> Value {
    json!({"type": "Sequence", list: steps})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// The steps of real tokenizers: Llama and Mistral, Gemma, Qwen, DeepSeek, T5, CLIP, BERT.
#[test]
fn real_ones_pass() {
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    // A table of SentencePiece's: an empty trie, then "ab" and "".
    let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAGFiAAA="});
    for normalizer in [
        Value::Null,
        sequence("normalizers", &[prepend, replace(" ", "▁")]),
        replace(" ", "▁"),
        json!({"type": "NFC"}),
        sequence("normalizers", &[]),
        sequence(
            "normalizers",
            &[
                json!({"type": "NFC"}),
                replace_regex(r"\s+", " "),
                json!({"type": "Lowercase"}),
            ],
        ),
        json!({"type": "Bert", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
    ] {
        with("normalizer", normalizer.clone())
            .unwrap_or_else(|error| panic!("{normalizer}: {error}"));
    }
    let checked = with(
        "normalizer",
        sequence("normalizers", &[table, replace_regex(" {2,}", "▁")]),
    );
    // The trie is too small for the library that uses it.
    assert!(
        matches!(checked, Ok(_) | Err(Error::CorruptModel { .. })),
        "{checked:?}"
    );
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    for pre_tokenizer in [
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
        sequence("pretokenizers", &[split(qwen), byte_level.clone()]),
        sequence(
            "pretokenizers",
            &[
                json!({"type": "Digits", "individual_digits": true}),
                split(r"\p{N}{1,3}"),
                byte_level,
            ],
        ),
    ] {
        with("pre_tokenizer", pre_tokenizer.clone())
            .unwrap_or_else(|error| panic!("{pre_tokenizer}: {error}"));
    }
}

/// Each is refused by the name of its field, before anything is built from it.
#[test]
fn steps_that_multiply_text_are_refused() {
    let thousand = "x".repeat(1000);
    let growing = |n: usize| vec![replace("x", "xxxx"); n];
    let pieces = |n: usize| vec![json!({"SpecialToken": {"id": "<s>", "type_id": 0}}); n];
    let template = |single: Vec<Value>, ids: Vec<u32>| {
        let tokens: Vec<_> = ids.iter().map(|_| "<s>").collect();
        json!({"type": "TemplateProcessing", "single": single, "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": ids, "tokens": tokens}}})
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let cases = [
        (
            "normalizer",
            replace("x", &thousand),
            "normalizer can make a text 1000 times",
        ),
        (
            "normalizer",
            sequence("normalizers", &growing(4)),
            "normalizer.normalizers[3] can",
        ),
        (
            "normalizer",
            sequence(
                "normalizers",
                &[
                    sequence("normalizers", &growing(2)),
                    sequence("normalizers", &growing(2)),
                ],
            ),
            "normalizers[1] can",
        ),
        ("normalizer", replace("", &thousand), "1001 times"),
        ("normalizer", replace_regex("x*", &thousand), "1001 times"),
        (
            "normalizer",
            json!({"type": "Prepend", "prepend": thousand}),
            "normalizer can",
        ),
        (
            "normalizer",
            sequence(
                "normalizers",
                &vec![json!({"type": "Strip", "strip_left": true, "strip_right": true}); 1000],
            ),
            "steps; expected at most 64",
        ),
        (
            "normalizer",
            replace_regex(r"(?=(a|a)*b)", "x"),
            "normalizer.pattern is not a plain regular expression",
        ),
        (
            "normalizer",
            replace_regex(&thousand.repeat(10), "x"),
            "normalizer.pattern has 10000 bytes",
        ),
        (
            "pre_tokenizer",
            sequence("pretokenizers", &vec![metaspace; 3]),
            "pretokenizers[2] can",
        ),
        (
            "pre_tokenizer",
            split(&thousand.repeat(10)),
            "pre_tokenizer.pattern has 10000 bytes",
        ),
        (
            "decoder",
            replace("▁", &"x".repeat(300)),
            "decoder can make a text 100 times",
        ),
        (
            "decoder",
            replace_regex("(?:a|a)*b", ""),
            "decoder.pattern is a regular expression",
        ),
        (
            "post_processor",
            template([pieces(100), vec![text.clone()]].concat(), vec![1]),
            "post_processor.single has 101 pieces",
        ),
        (
            "post_processor",
            template(vec![pieces(1)[0].clone(), text.clone()], vec![1; 1_000_000]),
            "1000000 tokens around a text",
        ),
        (
            "added_tokens",
            json!([{"id": 0, "content": "x".repeat(2000)}]),
            "added_tokens[0].content has 2000 bytes",
        ),
    ];
    for (field, value, expected) in cases {
        let refused = with(field, value).map(drop).unwrap_err();
        assert!(
            matches!(refused, Error::UnsupportedModel { .. })
                && refused.to_string().contains(expected),
            "{field}: {expected}: {refused}"
        );
    }
    let refused = with(
        "post_processor",
        template(vec![text.clone(), text], vec![1]),
    )
    .map(drop)
    .unwrap_err();
    assert!(
        matches!(refused, Error::CorruptModel { .. })
            && refused.to_string().contains("2 times; expected once"),
        "{refused}"
    );
}

#[test]
fn an_inconsistent_tokenizer_model_is_refused() {
    let cases = [
        ("dropout", json!(0.5), "model.dropout"),
        (
            "continuing_subword_prefix",
            json!("x".repeat(100)),
            "model.continuing_subword_prefix has 100 bytes",
        ),
        (
            "end_of_word_suffix",
            json!("x".repeat(100)),
            "model.end_of_word_suffix has 100 bytes",
        ),
        (
            "max_input_chars_per_word",
            json!(1_000_000_000),
            "model.max_input_chars_per_word",
        ),
    ];
    for (field, value, expected) in cases {
        let mut json: Value = fixture("llama");
        json["model"][field] = value;
        let refused = tokenizer_of(&json).map(drop).unwrap_err();
        assert!(
            matches!(refused, Error::UnsupportedModel { .. })
                && refused.to_string().contains(expected),
            "{refused}"
        );
    }
    let mut json: Value = fixture("llama");
    json["model"]["vocab"]["x".repeat(5000)] = 5000.into();
    let refused = tokenizer_of(&json).map(drop).unwrap_err();
    assert!(
        refused.to_string().contains("a token of 5000 bytes"),
        "{refused}"
    );
}

/// The last defense: the length that a text could reach is limited even if each step is valid.
#[test]
fn a_text_that_could_become_too_long_is_refused() {
    let tokenizer = with("normalizer", replace("x", &"x".repeat(60))).unwrap();
    assert!(matches!(
        tokenizer.encode(&"x".repeat(2 << 20), false),
        Err(Error::InvalidArgument(_))
    ));
    assert!(tokenizer.encode("xy", false).unwrap().len() > 5);
}

/// Prompts are never padded or truncated.
#[test]
fn padding_of_any_length_is_ignored() {
    let padding = json!({"strategy": {"Fixed": 1_000_000_000}, "direction": "Right", "pad_to_multiple_of": 1_000_000_000, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let padded = with("padding", padding).unwrap();
    assert_eq!(
        padded.encode("In: What?", true).unwrap(),
        crate::tokenizer("llama").encode("In: What?", true).unwrap()
    );
}
