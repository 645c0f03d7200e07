use std::collections::HashMap;

use moxin_vlm::text::StreamDecoder;
use moxin_vlm::text::Tokenizer;
use serde_json::{Value, json};

use crate::tokenizer::Cases;
use crate::{Random, STYLES, fixture, tokenizer, tokenizer_of};

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    pieces.push(decoder.finish().unwrap());
    pieces
}

#[test]
fn joins_to_what_transformers_decodes() {
    let cases: HashMap<String, Cases> = fixture("tokens");
    for style in STYLES {
        let tokenizer = tokenizer(style);
        for case in &cases[style].texts {
            assert_eq!(
                streamed(&tokenizer, &case.ids).concat(),
                case.decoded,
                "{style}: {:?}",
                case.text
            );
        }
        for case in &cases[style].decoded {
            assert_eq!(
                streamed(&tokenizer, &case.ids).concat(),
                case.text,
                "{style}: {:?}",
                case.ids
            );
        }
    }
}

/// Random tokens, mostly bytes, including special tokens and ids beyond the vocabulary.
#[test]
fn joins_to_the_whole_decoding_of_random_tokens() {
    let mut random = Random::new(2);
    for style in STYLES {
        let tokenizer = tokenizer(style);
        let emoji = tokenizer.encode("👍🎉é", false).unwrap();
        for _ in 0..1500 {
            let ids: Vec<u32> = (0..random.below(24))
                .flat_map(|_| match random.below(6) {
                    0 => vec![random.below(tokenizer.vocab_size() + 5) as u32],
                    1 => emoji.clone(),
                    2 => emoji[..random.below(emoji.len())].to_vec(),
                    3 => vec![random.below(4) as u32],
                    _ => vec![random.below(tokenizer.vocab_size()) as u32],
                })
                .collect();
            assert_eq!(
                streamed(&tokenizer, &ids).concat(),
                tokenizer.decode(&ids).unwrap(),
                "{style}: {ids:?}"
            );
        }
    }
}

/// The decoders of other models: Gemma's strips nothing, some strip more; one without a decoder
/// joins tokens with spaces.
#[test]
fn follows_the_steps_of_the_decoder() {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let gemma = json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    let strips_three = json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 3, "stop": 0}]});
    let without_bytes = json!({"type": "Sequence", "decoders": [replace, {"type": "Fuse"}]});
    let mut random = Random::new(3);
    for decoder in [
        gemma,
        strips_three,
        without_bytes,
        json!({"type": "BPEDecoder", "suffix": "."}),
        json!(null),
    ] {
        let mut json: Value = fixture("llama");
        json["decoder"] = decoder.clone();
        let tokenizer = tokenizer_of(&json).unwrap();
        let space = tokenizer.token_id("▁").unwrap();
        for _ in 0..300 {
            let mut ids = vec![space; random.below(5)];
            ids.extend((0..random.below(12)).map(|_| random.below(tokenizer.vocab_size()) as u32));
            assert_eq!(
                streamed(&tokenizer, &ids).concat(),
                tokenizer.decode(&ids).unwrap(),
                "{decoder}: {ids:?}"
            );
        }
    }
}

/// Text is returned as soon as possible: whole words at once, an emoji with its last byte (byte
/// level) or at the end of its run (byte fallback).
#[test]
fn does_not_hold_back_settled_text() {
    let tokenizer = tokenizer("byte_level");
    let ids = tokenizer.encode("Hi 👍🎉!", false).unwrap();
    let mut decoder = StreamDecoder::new(&tokenizer);
    let mut done = String::new();
    for (i, &id) in ids.iter().enumerate() {
        done += &decoder.push(id).unwrap();
        let whole = tokenizer.decode(&ids[..=i]).unwrap();
        assert_eq!(done, whole.trim_end_matches('\u{FFFD}'));
    }

    let tokenizer = crate::tokenizer("llama");
    let mut ids = tokenizer.encode("red 👍🎉", false).unwrap();
    ids.push(tokenizer.token_id("▁").unwrap());
    let pieces = streamed(&tokenizer, &ids);
    assert!(pieces.concat().starts_with("red 👍🎉"));
    assert_eq!(pieces[ids.len() - 1], "👍🎉 ");
    assert_eq!(pieces[ids.len()], "");
}

#[test]
fn ends_with_replacement_characters_for_incomplete_bytes() {
    for style in ["llama", "byte_level"] {
        let tokenizer = tokenizer(style);
        let ids = tokenizer.encode("a👍", false).unwrap();
        let cut = &ids[..ids.len() - 1];
        let pieces = streamed(&tokenizer, cut);
        assert_eq!(pieces.concat(), tokenizer.decode(cut).unwrap());
        assert!(
            pieces[cut.len()].ends_with('\u{FFFD}'),
            "{style}: {pieces:?}"
        );
    }
}

#[test]
fn drops_white_space_at_the_front_on_demand() {
    for style in ["llama", "byte_level"] {
        let tokenizer = tokenizer(style);
        for text in ["  \n a red  square ", "\n\n", "x  "] {
            let ids = tokenizer.encode(text, false).unwrap();
            let mut decoder = StreamDecoder::new(&tokenizer).trim_start();
            let mut joined: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
            joined += &decoder.finish().unwrap();
            assert_eq!(joined, text.trim_start(), "{style}");
        }
    }
}

/// After a token nothing is stripped: joined with the text before it, the rest equals the whole.
#[test]
fn continues_after_a_token() {
    for style in STYLES {
        let tokenizer = tokenizer(style);
        let ids = tokenizer
            .encode("In: a red square, 👍 and two circles", false)
            .unwrap();
        for cut in 1..ids.len() {
            if tokenizer.is_special(ids[cut - 1])
                || tokenizer.decode(&ids[..cut]).unwrap().ends_with('\u{FFFD}')
            {
                continue;
            }
            let mut decoder = StreamDecoder::after(&tokenizer, ids[cut - 1]);
            let mut text = tokenizer.decode(&ids[..cut]).unwrap();
            ids[cut..]
                .iter()
                .for_each(|&id| text += &decoder.push(id).unwrap());
            text += &decoder.finish().unwrap();
            assert_eq!(text, tokenizer.decode(&ids).unwrap(), "{style}: {cut}");
        }
    }
}
