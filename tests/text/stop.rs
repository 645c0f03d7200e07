use moxin_vlm::Error;
use moxin_vlm::generate::{StopOutcome, StopStrings};

use crate::Random;

fn stops(strings: &[&str]) -> StopStrings {
    StopStrings::new(strings.iter().map(|s| s.to_string()).collect()).unwrap()
}

fn outcome(text: &str, stopped: bool) -> StopOutcome {
    StopOutcome { text: text.into(), stopped }
}

#[test]
fn cuts_at_a_stop_string_across_pieces() {
    let mut stop = stops(&["\nIn:", "END"]);
    assert_eq!(stop.push("a red\n"), outcome("a red", false));
    assert_eq!(stop.push("I"), outcome("", false));
    assert_eq!(stop.push("t is\nIn"), outcome("\nIt is", false));
    assert_eq!(stop.push(": next END"), outcome("", true));
    assert_eq!(stop.push("more"), outcome("", true));
    assert_eq!(stop.finish(), "");
}

#[test]
fn gives_back_what_was_held_at_the_end() {
    let mut stop = stops(&["</answer>"]);
    assert_eq!(stop.push("yes</ans"), outcome("yes", false));
    assert_eq!(stop.finish(), "</ans");
}

#[test]
fn without_stop_strings_passes_everything_on() {
    let mut stop = stops(&[]);
    assert_eq!(stop.push("any text"), outcome("any text", false));
    assert_eq!(stop.finish(), "");
}

#[test]
fn takes_the_string_that_is_complete_first_and_the_longest_of_equals() {
    assert_eq!(stops(&["abcd", "c"]).push("xabcd"), outcome("xab", true));
    assert_eq!(stops(&["c", "abc"]).push("xabcd"), outcome("x", true));
    assert_eq!(stops(&["aab"]).push("aaab"), outcome("a", true));
}

#[test]
fn refuses_an_empty_string() {
    let error = StopStrings::new(vec!["a".into(), String::new()]).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)) && error.to_string().contains("2 of 2"), "{error}");
}

/// Character by character: does the text so far end with a stop string?
fn naive(text: &str, strings: &[String]) -> (String, bool) {
    for (end, c) in text.char_indices().map(|(i, c)| (i + c.len_utf8(), c)) {
        assert!(text[..end].ends_with(c));
        if let Some(longest) = strings.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max() {
            return (text[..end - longest].into(), true);
        }
    }
    (text.into(), false)
}

/// Short texts over few characters, of one to four bytes, are full of near misses.
#[test]
fn agrees_with_a_naive_search_however_the_text_is_cut() {
    let mut random = Random::new(8);
    let mut word = |length: usize| (0..length).map(|_| *random.pick(&['a', 'b', 'é', '👍'])).collect::<String>();
    let mut sizes = Random::new(9);
    let mut hits = 0;
    for _ in 0..4000 {
        let strings: Vec<String> = (0..sizes.below(4)).map(|_| word(1 + sizes.below(5))).collect();
        let text = word(sizes.below(24));
        let mut stop = StopStrings::new(strings.clone()).unwrap();
        let (mut found, mut stopped) = (String::new(), false);
        let chars: Vec<char> = text.chars().collect();
        let mut rest = &chars[..];
        while !rest.is_empty() && !stopped {
            let (piece, after) = rest.split_at(sizes.below(rest.len().min(5) + 1));
            let outcome = stop.push(&piece.iter().collect::<String>());
            (rest, stopped) = (after, outcome.stopped);
            found += &outcome.text;
            // Nothing is held that could not begin a stop string.
            if !stopped {
                let held = &text[found.len()..text.len() - rest.iter().map(|c| c.len_utf8()).sum::<usize>()];
                assert!(held.is_empty() || strings.iter().any(|s| s.starts_with(held)), "{strings:?} {text:?} holds {held:?}");
            }
        }
        found += &stop.finish();
        assert_eq!((found, stopped), naive(&text, &strings), "{strings:?} {text:?}");
        hits += usize::from(stopped);
    }
    assert!(hits > 500, "only {hits} texts were stopped");
}
