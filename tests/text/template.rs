//! Compares chat templates with transformers' rendering of them (`make_templates.py`).

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use moxin_vlm::Error;
use moxin_vlm::text::{ContentStyle, Message, Part, Role, Template};
use serde::Deserialize;
use serde_json::Value;

use crate::fixture;

#[derive(Deserialize)]
struct Fixture {
    now: String,
    tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    source: String,
    messages: Vec<Said>,
    expected: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: Value,
}

impl Case {
    fn messages(&self) -> Vec<Message> {
        let role = |name: &str| match name {
            "system" => Role::System,
            "assistant" => Role::Assistant,
            _ => Role::User,
        };
        let part = |part: &Value| {
            part["text"]
                .as_str()
                .map_or(Part::Image, |text| Part::Text(text.to_owned()))
        };
        let parts = |content: &Value| match content {
            Value::Array(list) => list.iter().map(part).collect(),
            text => vec![Part::Text(text.as_str().unwrap().to_owned())],
        };
        self.messages
            .iter()
            .map(|said| Message {
                role: role(&said.role),
                parts: parts(&said.content),
            })
            .collect()
    }

    fn style(&self) -> ContentStyle {
        if self.messages[0].content.is_array() {
            ContentStyle::Parts
        } else {
            ContentStyle::Text
        }
    }
}

fn with_tokens(tokens: &BTreeMap<String, String>, source: &str) -> Template {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(config, serde_json::to_vec(tokens).unwrap()).unwrap();
    Template::from_folder(folder.path(), Some(source))
        .unwrap()
        .unwrap()
}

#[test]
fn templates_render_as_in_transformers() {
    let Fixture { now, tokens, cases } = fixture("templates");
    let now = now
        .parse::<DateTime>()
        .unwrap()
        .to_zoned_datetime(TimeZone::UTC)
        .unwrap();
    for case in &cases {
        let template = with_tokens(&tokens, &case.source).at(now.clone());
        match (
            template.render(&case.messages(), case.style(), true),
            &case.expected,
            &case.error,
        ) {
            (Ok(text), Some(expected), None) => assert_eq!(&text, expected, "{}", case.name),
            (Err(Error::InvalidState(what)), None, Some(error)) => {
                assert!(what.contains(error), "{}: {what}", case.name)
            }
            (rendered, expected, error) => {
                panic!("{}: {rendered:?} is not {expected:?}, {error:?}", case.name)
            }
        }
    }
}

/// The time is that when the template was made or changed, however late it renders.
#[test]
fn the_time_is_fixed() {
    let template = Template::parse("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}").unwrap();
    let render = || template.render(&[], ContentStyle::Text, false).unwrap();
    let first = render();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(render(), first);
    let wrong =
        Template::parse("{{ strftime_now('%!') }}")
            .unwrap()
            .render(&[], ContentStyle::Text, false);
    assert!(matches!(wrong, Err(Error::InvalidState(_))), "{wrong:?}");
}

#[test]
fn the_callers_template_replaces_a_folders() {
    let folder = tempfile::tempdir().unwrap();
    let render = |source| {
        Template::from_folder(folder.path(), source)
            .unwrap()
            .map(|it| it.render(&[], ContentStyle::Text, false).unwrap())
    };
    assert_eq!(render(None), None);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let token = r#""bos_token": {"content": "<s>", "lstrip": false}"#;
    write(
        "tokenizer_config.json",
        &format!(
            r#"{{"chat_template": [{{"name": "default", "template": "third{{{{ bos_token }}}}"}}], {token}}}"#
        ),
    );
    assert_eq!(render(None).unwrap(), "third<s>");
    write(
        "chat_template.json",
        r#"{"chat_template": "second{{ bos_token }}"}"#,
    );
    assert_eq!(render(None).unwrap(), "second<s>");
    write("chat_template.jinja", "first{{ bos_token }}");
    assert_eq!(render(None).unwrap(), "first<s>");
    assert_eq!(render(Some("given{{ bos_token }}")).unwrap(), "given<s>");
    let wrong = Template::from_folder(folder.path(), Some("{% for"));
    assert!(matches!(wrong, Err(Error::InvalidArgument(_))), "{wrong:?}");
    write("chat_template.jinja", "{% for");
    let wrong = Template::from_folder(folder.path(), None);
    assert!(
        matches!(&wrong, Err(Error::CorruptModel { .. })),
        "{wrong:?}"
    );
}
