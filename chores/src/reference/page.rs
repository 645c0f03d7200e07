//! Writes the reference as Markdown.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, Result, bail, ensure};

use super::header::{Header, Item, Member, Shape, is_name_character, parse};
use super::texts::{ADVICE, ANY, INTRODUCTION, PICTURE, STATUSES, TOPICS, Topic};

const STATUS: &str = "MOXIN_STATUS_";

/// Returns the page for a header.
pub fn write(text: &str) -> Result<String> {
    let header = parse(text)?;
    let page = Page {
        names: names(&header),
        header: &header,
    }
    .write()?;
    check_complete(text, &page)?;
    Ok(page)
}

/// A header with the names that can be linked to.
struct Page<'a> {
    header: &'a Header,
    names: HashSet<&'a str>,
}

/// Returns all names except the fields of structs.
fn names(header: &Header) -> HashSet<&str> {
    let members = header.items.iter().flat_map(|item| match &item.shape {
        Shape::Enum(members) | Shape::Number(members) => members.as_slice(),
        _ => &[],
    });
    header
        .items
        .iter()
        .map(|item| item.name.as_str())
        .chain(members.map(|member| member.name.as_str()))
        .collect()
}

impl<'a> Page<'a> {
    fn write(&self) -> Result<String> {
        let mut topics: Vec<Vec<&Item>> = TOPICS.iter().map(|_| Vec::new()).collect();
        for item in &self.header.items {
            topics[topic_of(&item.name)?].push(item);
        }
        for items in &mut topics {
            items.sort_by_key(|item| matches!(item.shape, Shape::Function(_)));
        }
        let mut page = vec![
            "<!-- Written by `cargo xtask reference` from the comments in include/moxin_vlm.h, \
             which are those in src/ffi. -->"
                .into(),
            "# The C API".into(),
            INTRODUCTION.into(),
            contents(&topics),
            "## The rules".into(),
        ];
        for (name, text) in &self.header.rules {
            page.push(format!("### {name}\n\n{}", self.linked(text)?));
        }
        page.push(format!("## In pictures\n\n{PICTURE}"));
        for (Topic { title, about, .. }, items) in TOPICS.iter().zip(&topics) {
            page.push(format!("## {title}\n\n{about}").trim_end().into());
            for item in items {
                page.push(self.item(item).with_context(|| item.name.clone())?);
            }
        }
        Ok(page.join("\n\n") + "\n")
    }

    fn item(
        &self,
        Item {
            name,
            comment,
            shape,
        }: &Item,
    ) -> Result<String> {
        let comment = self.linked(comment)?;
        let heading = match shape {
            // Not only the name: a constant and a function may differ only in case, and links to
            // headings ignore case.
            Shape::Constant(_) => format!("### Constant {}", anchor(name)),
            _ => format!("### `{name}`"),
        };
        let kind = if *shape == Shape::Handle {
            "*Handle.* "
        } else {
            ""
        };
        let code = match shape {
            Shape::Function(code) | Shape::Callback(code) => format!("```c\n{code}\n```\n\n"),
            Shape::Constant(value) => format!("```c\n#define {name} {value}\n```\n\n"),
            _ => String::new(),
        };
        let table = match shape {
            Shape::Struct(fields) => self.fields(fields)?,
            Shape::Enum(statuses) if name == "moxin_status" => {
                format!("\n\n{STATUSES}{}", self.statuses(statuses)?)
            }
            Shape::Enum(constants) | Shape::Number(constants) => self.constants(constants)?,
            _ => String::new(),
        };
        Ok(format!("{heading}\n\n{code}{kind}{comment}{table}"))
    }

    fn constants(&self, constants: &[Member]) -> Result<String> {
        let row =
            |Member {
                 name,
                 comment,
                 code,
             }: &Member| Ok(vec![anchor(name), code.clone(), self.cell(comment)?]);
        Ok(table(
            &["constant", "value", "meaning"],
            constants.iter().map(row).collect::<Result<_>>()?,
        ))
    }

    fn fields(&self, fields: &[Member]) -> Result<String> {
        let has_defaults = fields.iter().any(|field| default(&field.comment).is_some());
        let row = |Member {
                       name,
                       comment,
                       code,
                   }: &Member| {
            let mut row = vec![
                self.type_link(code),
                format!("`{name}`"),
                self.cell(comment)?,
            ];
            if has_defaults {
                row.push(self.cell(default(comment).unwrap_or_default())?);
            }
            Ok(row)
        };
        let titles = ["type", "field", "meaning", "default"];
        Ok(table(
            &titles[..if has_defaults { 4 } else { 3 }],
            fields.iter().map(row).collect::<Result<_>>()?,
        ))
    }

    /// Returns a C type, linked to the library's type in it.
    fn type_link(&self, code: &str) -> String {
        match code
            .split(|c| !is_name_character(c))
            .find(|word| self.names.contains(word))
        {
            Some(name) => link(code, name),
            None => format!("`{code}`"),
        }
    }

    fn statuses(&self, statuses: &[Member]) -> Result<String> {
        let known: Vec<_> = ADVICE
            .iter()
            .map(|(name, _)| format!("{STATUS}{name}"))
            .collect();
        let present: Vec<_> = statuses.iter().map(|status| status.name.clone()).collect();
        ensure!(
            known == present,
            "the advice in chores/src/reference/texts.rs is for {known:?}; the header has \
             {present:?}"
        );
        let failures = self.failures_of_all();
        let row = |(
            Member {
                name,
                comment,
                code,
            },
            (short, advice),
        ): (&Member, &(&str, &str))| {
            let named = failures
                .iter()
                .filter(|(_, statuses)| statuses.contains(short))
                .map(|(function, _)| link(function, function));
            let named = named.collect::<Vec<_>>().join(", ");
            let who = match (ANY.contains(short), named.as_str()) {
                (true, "") => "any function".into(),
                (true, named) => format!("any function; explained in {named}"),
                (false, "") if *short == "OK" => "any function".into(),
                (false, "") => {
                    bail!("no function's comment lists {short} as an error: add it in src/ffi")
                }
                (false, named) => named.into(),
            };
            Ok(vec![
                anchor(name),
                code.clone(),
                self.cell(comment)?,
                who,
                self.cell(advice)?,
            ])
        };
        let rows = statuses
            .iter()
            .zip(&ADVICE)
            .map(row)
            .collect::<Result<_>>()?;
        Ok(table(
            &[
                "status",
                "number",
                "what it means",
                "who returns it",
                "what to do",
            ],
            rows,
        ))
    }

    /// Returns the functions that can fail, with the statuses that their comments name.
    fn failures_of_all(&self) -> Vec<(&'a str, BTreeSet<&'a str>)> {
        let can_fail = |item: &&Item| matches!(&item.shape, Shape::Function(code) if code.contains("struct moxin_error **error)"));
        self.header
            .items
            .iter()
            .filter(can_fail)
            .map(|item| (item.name.as_str(), self.failures(item)))
            .collect()
    }

    /// Returns the statuses after "Errors:", and those of the function in "those of NAME".
    fn failures(&self, function: &'a Item) -> BTreeSet<&'a str> {
        let paragraphs: Vec<_> = function
            .comment
            .split("\n\n")
            .filter_map(|paragraph| Some(paragraph.strip_prefix("Errors:")?.trim_start()))
            .collect();
        let own = paragraphs
            .iter()
            .flat_map(|text| text.split(|c| !is_name_character(c)))
            .map(|word| word.strip_prefix(STATUS).unwrap_or(word))
            .filter(|word| self.is_status(word));
        let names = paragraphs
            .iter()
            .filter_map(|text| text.strip_prefix("those of"))
            .filter_map(|text| text.trim_start().split(|c| !is_name_character(c)).next());
        let others = names.filter_map(|name| {
            self.header
                .items
                .iter()
                .find(|item| item.name == name && item.name != function.name)
        });
        own.chain(others.flat_map(|other| self.failures(other)))
            .collect()
    }

    fn is_status(&self, word: &str) -> bool {
        self.names.contains(format!("{STATUS}{word}").as_str())
    }

    /// Formats the text of a comment for a table cell.
    fn cell(&self, text: &str) -> Result<String> {
        Ok(self
            .linked(text)?
            .replace('|', "\\|")
            .replace("\n\n", "<br>")
            .replace('\n', " "))
    }

    /// Formats the text of a comment, with names as links or as code. Existing code stays.
    fn linked(&self, text: &str) -> Result<String> {
        let parts = text.split('`').enumerate().map(|(i, part)| {
            if i % 2 == 0 {
                self.words_linked(part)
            } else {
                Ok(part.into())
            }
        });
        Ok(parts.collect::<Result<Vec<_>>>()?.join("`"))
    }

    fn words_linked(&self, text: &str) -> Result<String> {
        let (mut linked, mut rest) = (String::new(), text);
        while let Some(start) = rest.find(is_name_character) {
            let (before, word, after) = split_word(rest, start);
            linked.push_str(&before.replace('<', "&lt;"));
            linked.push_str(&self.word(word)?);
            rest = after;
        }
        Ok(linked + &rest.replace('<', "&lt;"))
    }

    fn word(&self, word: &str) -> Result<String> {
        let of_type = word.strip_suffix("_*").map(str::to_lowercase);
        let name = of_type.as_deref().unwrap_or(word);
        if self.names.contains(name) {
            return Ok(link(word, name));
        }
        if word.to_lowercase().starts_with("moxin_") {
            bail!("a comment names {word}, which the header does not have");
        }
        let short = [STATUS, "MOXIN_EVENT_KIND_"].map(|prefix| format!("{prefix}{word}"));
        Ok(
            match short.iter().find(|name| self.names.contains(name.as_str())) {
                Some(name) => link(word, name),
                None if word.contains(['_', '*']) => format!("`{word}`"),
                None => word.into(),
            },
        )
    }
}

/// Splits text around the word that starts at `start`; `*pointer`, `pointer->field` and `NAMES_*`
/// count as words.
fn split_word(text: &str, start: usize) -> (&str, &str, &str) {
    let end_of_name = |from: usize| {
        text[from..]
            .find(|c| !is_name_character(c))
            .map_or(text.len(), |length| from + length)
    };
    let mut end = end_of_name(start);
    while text[end..].starts_with("->") {
        end = end_of_name(end + 2);
    }
    if text[..end].ends_with('_') && text[end..].starts_with('*') {
        end += 1;
    }
    let start = if text[..start].ends_with('*') {
        start - 1
    } else {
        start
    };
    let (before, rest) = text.split_at(start);
    let (word, after) = rest.split_at(end - start);
    (before, word, after)
}

/// Returns the topic of an item.
fn topic_of(name: &str) -> Result<usize> {
    let lower = name.to_lowercase();
    let fits = |prefix: &&&str| {
        lower
            .strip_prefix(**prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let longest = |topic: &Topic| {
        topic
            .names
            .iter()
            .filter(fits)
            .map(|prefix| prefix.len())
            .max()
    };
    let (fit, index) = TOPICS
        .iter()
        .enumerate()
        .map(|(index, topic)| (longest(topic), index))
        .max()
        .unwrap_or_default();
    ensure!(
        fit.is_some(),
        "{name} belongs to no topic: add it to one in chores/src/reference/texts.rs"
    );
    Ok(index)
}

/// Returns a field's default if its comment states it: in "Default: 1, from all." or "0, the
/// default: from all."
fn default(comment: &str) -> Option<&str> {
    comment
        .split(". ")
        .find_map(|sentence| match sentence.strip_prefix("Default: ") {
            Some(value) => value.trim_end_matches('.').split(", ").next(),
            None if sentence.contains("the default") => sentence.split([',', ':']).next(),
            None => None,
        })
}

fn contents(topics: &[Vec<&Item>]) -> String {
    let mut lines = vec![
        "## Contents\n".into(),
        "- [The rules](#the-rules)".into(),
        "- [In pictures](#in-pictures)".into(),
    ];
    for (Topic { title, .. }, items) in TOPICS.iter().zip(topics) {
        let names: Vec<_> = items
            .iter()
            .map(|item| link(&item.name, &item.name))
            .collect();
        lines.push(format!(
            "- [{title}](#{}): {}",
            title.to_lowercase().replace(' ', "-"),
            names.join(", ")
        ));
    }
    lines.join("\n")
}

fn table(titles: &[&str], rows: Vec<Vec<String>>) -> String {
    let head = format!(
        "| {} |\n|{}",
        titles.join(" | "),
        "---|".repeat(titles.len())
    );
    let rows: Vec<_> = rows
        .iter()
        .map(|row| format!("| {} |", row.join(" | ")))
        .collect();
    format!("\n\n{head}\n{}", rows.join("\n"))
}

fn link(text: &str, name: &str) -> String {
    format!("[`{text}`](#{})", id(name))
}

/// Returns a constant with the anchor that links to it use.
fn anchor(name: &str) -> String {
    format!("<a id=\"{}\"></a>`{name}`", id(name))
}

/// Returns the target of links to a name: its heading, or a constant in kebab case.
fn id(name: &str) -> String {
    if name.contains(|c: char| c.is_ascii_uppercase()) {
        name.to_lowercase().replace('_', "-")
    } else {
        name.into()
    }
}

/// Checks, independently of the parser, that every name in the header's code is on the page exactly
/// once.
fn check_complete(header: &str, page: &str) -> Result<()> {
    let code = header
        .lines()
        .filter(|line| !line.trim_start().starts_with(['*', '/']));
    let words = code.flat_map(|line| line.split(|c| !is_name_character(c)));
    let names: BTreeSet<_> = words
        .filter(|word| word.to_lowercase().starts_with("moxin_"))
        .filter(|word| *word != "MOXIN_VLM_H")
        .collect();
    for name in names {
        let heading = format!("\n### `{name}`\n");
        match page.matches(&heading).count() + page.matches(&anchor(name)).count() {
            1 => {}
            count => bail!("{name} has {count} places in the reference; it must have one"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"/*
 * Title.
 *
 * Results   Freed with moxin_error_free.
 */

/**
 * How it ended.
 */
typedef enum moxin_status {
    /**
     * Well.
     */
    MOXIN_STATUS_OK = 0,
    /**
     * Not there.
     */
    MOXIN_STATUS_NOT_FOUND = 8,
    /**
     * At work.
     */
    MOXIN_STATUS_BUSY = 6,
} moxin_status;

/**
 * Why.
 */
typedef struct moxin_error moxin_error;

/**
 * Whose: one of MOXIN_ROLE_*.
 */
typedef uint32_t moxin_role;

/**
 * Yours.
 */
#define MOXIN_ROLE_USER 1

/**
 * Frees it.
 */
void moxin_error_free(struct moxin_error *error);

/**
 * Others are BUSY meanwhile.
 *
 * Errors: NOT_FOUND.
 */
enum moxin_status moxin_image_open(const char *path, struct moxin_error **error);

/**
 * Copies it.
 *
 * Errors: those of moxin_image_open.
 */
enum moxin_status moxin_image_copy(struct moxin_error **error);

/**
 * Shows it.
 *
 * Errors: those of
 * moxin_image_open; MOXIN_STATUS_BUSY.
 */
enum moxin_status moxin_image_show(struct moxin_error **error);
"#;

    fn with_page<T>(check: impl FnOnce(&Page) -> T) -> T {
        let header = parse(HEADER).unwrap();
        check(&Page {
            names: names(&header),
            header: &header,
        })
    }

    #[test]
    fn names_in_comments_become_links() {
        with_page(|page| {
            let linked = |text: &str| page.linked(text).unwrap();
            assert_eq!(
                linked("see moxin_error_free."),
                "see [`moxin_error_free`](#moxin_error_free)."
            );
            assert_eq!(
                linked("BUSY, MOXIN_STATUS_BUSY"),
                "[`BUSY`](#moxin-status-busy), [`MOXIN_STATUS_BUSY`](#moxin-status-busy)"
            );
            assert_eq!(
                linked("one of MOXIN_ROLE_*."),
                "one of [`MOXIN_ROLE_*`](#moxin_role)."
            );
            assert_eq!(
                linked("*out_error, *x, a->struct_size, 2 * two"),
                "`*out_error`, `*x`, `a->struct_size`, 2 * two"
            );
            assert_eq!(
                linked("`moxin_error x;` is <code>"),
                "`moxin_error x;` is &lt;code>"
            );
            assert_eq!(page.cell("a|b\nc\n\nd").unwrap(), "a\\|b c<br>d");
            assert_eq!(
                page.type_link("const struct moxin_error *"),
                "[`const struct moxin_error *`](#moxin_error)"
            );
            assert_eq!(page.type_link("const char *"), "`const char *`");
            assert!(
                page.linked("moxin_gone")
                    .unwrap_err()
                    .to_string()
                    .contains("moxin_gone")
            );
        });
    }

    #[test]
    fn statuses_that_functions_fail_with() {
        with_page(|page| {
            let expected = [
                ("moxin_image_open", BTreeSet::from(["NOT_FOUND"])),
                ("moxin_image_copy", BTreeSet::from(["NOT_FOUND"])),
                ("moxin_image_show", BTreeSet::from(["NOT_FOUND", "BUSY"])),
            ];
            assert_eq!(page.failures_of_all(), expected);
        });
    }

    #[test]
    fn a_status_without_advice_is_an_error() {
        assert!(format!("{:#}", write(HEADER).unwrap_err()).contains("texts.rs"));
    }

    #[test]
    fn defaults_are_read_from_comments() {
        assert_eq!(
            default("So many. Default: 100,000,000."),
            Some("100,000,000")
        );
        assert_eq!(default("Default: 1, from all."), Some("1"));
        assert_eq!(default("Bytes. 0, the default: what is there."), Some("0"));
        assert_eq!(
            default("0: always the most likely, the default. Higher: more varied."),
            Some("0")
        );
        assert_eq!(default("Bytes."), None);
    }

    #[test]
    fn every_name_has_a_topic() {
        let title = |name: &str| TOPICS[topic_of(name).unwrap()].title;
        assert_eq!(title("moxin_session_new"), "Sessions");
        assert_eq!(title("moxin_session_stats"), "Generating");
        assert_eq!(title("moxin_memory_stats_get"), "Memory");
        assert_eq!(title("moxin_memory_estimate"), "Models");
        assert_eq!(title("MOXIN_STRLEN"), "Library");
        assert!(topic_of("moxin_sessions").is_err());
    }

    #[test]
    fn every_name_has_one_place() {
        let header = "/**\n * moxin_in_a_comment\n */\nint moxin_f(void);\n#define MOXIN_C 1\n";
        let page = "\n### `moxin_f`\n\n<a id=\"moxin-c\"></a>`MOXIN_C`";
        assert!(check_complete(header, page).is_ok());
        assert!(check_complete(header, "\n### `moxin_f`\n").is_err());
        assert!(check_complete(header, &format!("{page}\n### `moxin_f`\n")).is_err());
    }
}
