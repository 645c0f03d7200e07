use moxin_vlm::Error;
use moxin_vlm::generate::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopOutcome, StopStrings};

use crate::Random;

fn stops(strings: &[&str]) -> StopStrings {
    StopStrings::new(strings.iter().map(|s| s.to_string()).collect()).unwrap()
}

fn outcome(text: &str, stopped: bool) -> StopOutcome {
    StopOutcome {
        text: text.into(),
        stopped,
    }
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
fn returns_held_back_text_at_the_end() {
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
fn takes_the_first_complete_string_and_the_longest_of_equals() {
    assert_eq!(stops(&["abcd", "c"]).push("xabcd"), outcome("xab", true));
    assert_eq!(stops(&["c", "abc"]).push("xabcd"), outcome("x", true));
    assert_eq!(stops(&["aab"]).push("aaab"), outcome("a", true));
}

#[test]
fn refuses_an_empty_string() {
    let error = StopStrings::new(vec!["a".into(), String::new()]).unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument(_)) && error.to_string().contains("2 of 2"),
        "{error}"
    );
}

#[test]
fn refuses_too_many_and_too_long_strings() {
    let most = vec!["x".repeat(MAX_STOP_BYTES); MAX_STOP_STRINGS];
    StopStrings::new(most.clone()).unwrap();

    let error = StopStrings::new([most.clone(), vec!["y".into()]].concat()).unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument(_))
            && error.to_string().contains("65 stop strings; at most 64"),
        "{error}"
    );

    let error = StopStrings::new(vec!["a".into(), "é".repeat(MAX_STOP_BYTES)]).unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument(_))
            && error
                .to_string()
                .contains("2 of 2 has 2048 bytes; 1 to 1024"),
        "{error}"
    );
}

/// Checks after each character whether the text so far ends with a stop string.
fn naive(text: &str, strings: &[String]) -> (String, bool) {
    for (end, c) in text.char_indices().map(|(i, c)| (i + c.len_utf8(), c)) {
        assert!(text[..end].ends_with(c));
        if let Some(longest) = strings
            .iter()
            .filter(|s| text[..end].ends_with(s.as_str()))
            .map(String::len)
            .max()
        {
            return (text[..end - longest].into(), true);
        }
    }
    (text.into(), false)
}

/// Returns the longest suffix of the text that is a prefix of a stop string.
fn naive_held<'a>(text: &'a str, strings: &[String]) -> &'a str {
    let ends = text.char_indices().map(|(i, _)| &text[i..]);
    ends.filter(|end| strings.iter().any(|s| s.starts_with(end)))
        .max_by_key(|end| end.len())
        .unwrap_or("")
}

/// Short texts of few characters, of one to four bytes, have many near misses.
#[test]
fn agrees_with_a_naive_search_however_the_text_is_cut() {
    let mut random = Random::new(8);
    let mut word = |length: usize| {
        (0..length)
            .map(|_| *random.pick(&['a', 'b', 'é', '👍']))
            .collect::<String>()
    };
    let mut sizes = Random::new(9);
    let mut hits = 0;
    for round in 0..6000 {
        // A third of the rounds has many strings, and long ones.
        let (count, longest) = if round % 3 == 0 {
            (MAX_STOP_STRINGS + 1, 40)
        } else {
            (4, 5)
        };
        let strings: Vec<String> = (0..sizes.below(count))
            .map(|_| word(1 + sizes.below(longest)))
            .collect();
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
            // Text that may start a stop string is held back, and nothing else.
            if !stopped {
                let read = &text[..text.len() - rest.iter().map(|c| c.len_utf8()).sum::<usize>()];
                assert_eq!(
                    &read[found.len()..],
                    naive_held(read, &strings),
                    "{strings:?} {text:?}"
                );
            }
        }
        found += &stop.finish();
        assert_eq!(
            (found, stopped),
            naive(&text, &strings),
            "{strings:?} {text:?}"
        );
        hits += usize::from(stopped);
    }
    assert!(hits > 500, "only {hits} texts were stopped");
}
