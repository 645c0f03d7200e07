//! Parses the C header that cbindgen writes. It is very regular, so a line of unknown form is an
//! error: nothing is silently left out of the reference.

use anyhow::{Context, Error, Result, anyhow, ensure};

/// The content of the header.
pub struct Header {
    /// The conventions at its top: a name, such as "Threads", and the text.
    pub rules: Vec<(String, String)>,
    pub items: Vec<Item>,
}

/// An item that the header declares.
#[derive(Debug, PartialEq)]
pub struct Item {
    pub name: String,
    pub comment: String,
    pub shape: Shape,
}

#[derive(Debug, PartialEq)]
pub enum Shape {
    /// Its value.
    Constant(String),
    /// A struct that only the library can access.
    Handle,
    Struct(Vec<Member>),
    Enum(Vec<Member>),
    /// A number, with its possible constants.
    Number(Vec<Member>),
    /// A function type of the program, as declared.
    Callback(String),
    /// A function, as declared.
    Function(String),
}

/// A field, with its type, or a constant, with its value.
#[derive(Debug, PartialEq)]
pub struct Member {
    pub name: String,
    pub comment: String,
    pub code: String,
}

/// Lines that declare nothing.
const SCAFFOLDING: [&str; 12] = [
    "",
    "#ifndef MOXIN_VLM_H",
    "#define MOXIN_VLM_H",
    "#include <stdbool.h>",
    "#include <stddef.h>",
    "#include <stdint.h>",
    "#ifdef __cplusplus",
    "extern \"C\" {",
    "#endif // __cplusplus",
    "}  // extern \"C\"",
    "#endif  // __cplusplus",
    "#endif  /* MOXIN_VLM_H */",
];

pub fn parse(text: &str) -> Result<Header> {
    let mut lines = Lines {
        lines: text.lines().collect(),
        read: 0,
    };
    ensure!(lines.next()? == "/*", lines.unknown());
    let rules = rules(&lines.comment()?)?;
    let mut items = Vec::new();
    while lines.read < lines.lines.len() {
        match lines.next()? {
            "/**" => {
                let comment = lines.comment()?;
                items.push(lines.item(comment)?);
            }
            line => ensure!(SCAFFOLDING.contains(&line), lines.unknown()),
        }
    }
    Ok(Header {
        rules,
        items: with_their_constants(items),
    })
}

/// Parses the last paragraph of the first comment: `Name Text`, with the text from the eleventh
/// column on.
fn rules(comment: &str) -> Result<Vec<(String, String)>> {
    let mut rules: Vec<(String, String)> = Vec::new();
    for line in comment.split("\n\n").last().unwrap_or_default().lines() {
        let (name, text) = line
            .split_at_checked(10)
            .with_context(|| format!("no rule: `{line}`"))?;
        match (name.trim(), rules.last_mut()) {
            ("", Some((_, rule))) => rule.extend(["\n", text]),
            ("", None) => return Err(anyhow!("a rule without a name: `{line}`")),
            (name, _) => rules.push((name.into(), text.into())),
        }
    }
    Ok(rules)
}

/// Makes constants such as MOXIN_ROLE_USER members of their type, moxin_role.
fn with_their_constants(items: Vec<Item>) -> Vec<Item> {
    let (constants, mut items): (Vec<_>, Vec<_>) = items
        .into_iter()
        .partition(|item| matches!(item.shape, Shape::Constant(_)));
    for Item {
        name,
        comment,
        shape,
    } in constants
    {
        let of = items
            .iter_mut()
            .find(|item| name.to_lowercase().starts_with(&format!("{}_", item.name)));
        match (of.map(|item| &mut item.shape), shape) {
            (Some(Shape::Number(members)), Shape::Constant(code)) => members.push(Member {
                name,
                comment,
                code,
            }),
            (_, shape) => items.push(Item {
                name,
                comment,
                shape,
            }),
        }
    }
    items
}

struct Lines<'a> {
    lines: Vec<&'a str>,
    read: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str> {
        let line = self
            .lines
            .get(self.read)
            .context("the header ends in the middle of something")?;
        self.read += 1;
        Ok(line)
    }

    /// Returns the error for the line that was read last.
    fn unknown(&self) -> Error {
        let line = self
            .read
            .checked_sub(1)
            .and_then(|index| self.lines.get(index))
            .unwrap_or(&"");
        anyhow!(
            "line {} of the header: `{line}` has a form that chores/src/reference/header.rs does \
                not know",
            self.read
        )
    }

    /// Parses a comment whose first line was already read.
    fn comment(&mut self) -> Result<String> {
        let mut text = Vec::new();
        loop {
            match self.next()?.trim_start() {
                "*/" => return Ok(text.join("\n")),
                line => {
                    let line = line.strip_prefix('*').with_context(|| self.unknown())?;
                    text.push(line.strip_prefix(' ').unwrap_or(line));
                }
            }
        }
    }

    /// Parses the item after a comment.
    fn item(&mut self, comment: String) -> Result<Item> {
        let line = self.next()?;
        if let Some((name, value)) = line
            .strip_prefix("#define ")
            .and_then(|define| define.split_once(' '))
        {
            return Ok(Item {
                name: name.into(),
                comment,
                shape: Shape::Constant(value.into()),
            });
        }
        if let Some(name) = between(line, "typedef enum ", " {") {
            return Ok(Item {
                name: name.into(),
                comment,
                shape: Shape::Enum(self.members(name, enumerator)?),
            });
        }
        if let Some(name) = between(line, "typedef struct ", " {") {
            return Ok(Item {
                name: name.into(),
                comment,
                shape: Shape::Struct(self.members(name, field)?),
            });
        }
        let mut declaration = line.to_owned();
        while !declaration.ends_with(';') {
            declaration.extend(["\n", self.next()?]);
        }
        let (name, shape) = declared(&declaration).with_context(|| self.unknown())?;
        Ok(Item {
            name: name.into(),
            comment,
            shape,
        })
    }

    /// Parses the members of a struct or enum, up to its end.
    fn members(
        &mut self,
        of: &str,
        read: fn(&str) -> Option<(&str, String)>,
    ) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        loop {
            match self.next()?.trim_start() {
                "/**" => {
                    let comment = self.comment()?;
                    let (name, code) =
                        read(self.next()?.trim_start()).with_context(|| self.unknown())?;
                    members.push(Member {
                        name: name.into(),
                        comment,
                        code,
                    });
                }
                line => {
                    ensure!(line == format!("}} {of};"), self.unknown());
                    return Ok(members);
                }
            }
        }
    }
}

/// `NAME = 1,`
fn enumerator(line: &str) -> Option<(&str, String)> {
    let (name, value) = line.strip_suffix(',')?.split_once(" = ")?;
    is_name(name).then(|| (name, value.into()))
}

/// `const char *name;` or `char name[32];`
fn field(line: &str) -> Option<(&str, String)> {
    let line = line.strip_suffix(';')?;
    let (line, size) = line.split_at(line.find('[').unwrap_or(line.len()));
    let (of, name) = line.split_at(line.rfind([' ', '*'])? + 1);
    (is_name(name) && of.chars().all(|c| is_name_character(c) || " *".contains(c)))
        .then(|| (name, format!("{}{size}", of.trim_end())))
}

/// Parses a declaration of one statement: its name and shape.
fn declared(declaration: &str) -> Option<(&str, Shape)> {
    let Some(of) = declaration.strip_prefix("typedef ") else {
        let (head, _) = declaration
            .split_once('(')
            .filter(|_| declaration.ends_with(");"))?;
        let name = head.rsplit([' ', '*']).next()?;
        return name
            .starts_with("moxin_")
            .then(|| (name, Shape::Function(declaration.into())));
    };
    if let Some((_, rest)) = of.split_once("(*") {
        return Some((
            rest.split_once(")(")?.0,
            Shape::Callback(declaration.into()),
        ));
    }
    if let Some((tag, name)) = between(of, "struct ", ";").and_then(|names| names.split_once(' ')) {
        return (tag == name).then_some((name, Shape::Handle));
    }
    between(of, "uint32_t ", ";")
        .filter(|name| is_name(name))
        .map(|name| (name, Shape::Number(Vec::new())))
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_name_character)
}

pub fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: &str =
        "/*\n * A title.\n *\n * Results   Of two\n *           lines.\n * Text      UTF-8.\n */\n";

    fn items(code: &str) -> Result<Vec<Item>> {
        parse(&format!("{TOP}{code}")).map(|header| header.items)
    }

    fn item(name: &str, comment: &str, shape: Shape) -> Item {
        Item {
            name: name.into(),
            comment: comment.into(),
            shape,
        }
    }

    fn member(name: &str, comment: &str, code: &str) -> Member {
        Member {
            name: name.into(),
            comment: comment.into(),
            code: code.into(),
        }
    }

    #[test]
    fn rules_stand_at_the_top() {
        let expected = [
            ("Results".into(), "Of two\nlines.".into()),
            ("Text".into(), "UTF-8.".into()),
        ];
        assert_eq!(parse(TOP).unwrap().rules, expected);
        assert!(parse("/*\n * Title.\n *\n *           no name\n */\n").is_err());
    }

    #[test]
    fn declarations_of_one_statement() {
        let code = "/**\n * Opaque.\n */\ntypedef struct moxin_a moxin_a;\n\n\
                    /**\n * Told.\n */\ntypedef bool (*moxin_fn)(void *user_data);\n\
                    #ifdef __cplusplus\nextern \"C\" {\n#endif // __cplusplus\n\n\
                    /**\n * Does it.\n *\n * Fails.\n */\nenum moxin_status moxin_do(int a,\n                           int b);\n\
                    /**\n * Says it.\n */\nconst char *moxin_say(void);\n";
        let expected = [
            item("moxin_a", "Opaque.", Shape::Handle),
            item(
                "moxin_fn",
                "Told.",
                Shape::Callback("typedef bool (*moxin_fn)(void *user_data);".into()),
            ),
            item(
                "moxin_do",
                "Does it.\n\nFails.",
                Shape::Function(
                    "enum moxin_status moxin_do(int a,\n                           int b);".into(),
                ),
            ),
            item(
                "moxin_say",
                "Says it.",
                Shape::Function("const char *moxin_say(void);".into()),
            ),
        ];
        assert_eq!(items(code).unwrap(), expected);
    }

    #[test]
    fn members_of_structs_and_enums() {
        let code = "/**\n * S.\n */\ntypedef struct moxin_s {\n    /**\n     * One.\n     */\n    size_t one;\n    /**\n     * Two.\n     */\n    \
                    const char *const *two;\n    /**\n     * Three.\n     */\n    char three[32];\n} moxin_s;\n\
                    /**\n * E.\n */\ntypedef enum moxin_e {\n    /**\n     * First.\n     */\n    MOXIN_E_FIRST = 0,\n} moxin_e;\n";
        let fields = vec![
            member("one", "One.", "size_t"),
            member("two", "Two.", "const char *const *"),
            member("three", "Three.", "char[32]"),
        ];
        let expected = [
            item("moxin_s", "S.", Shape::Struct(fields)),
            item(
                "moxin_e",
                "E.",
                Shape::Enum(vec![member("MOXIN_E_FIRST", "First.", "0")]),
            ),
        ];
        assert_eq!(items(code).unwrap(), expected);
    }

    #[test]
    fn constants_belong_to_their_type() {
        let code = "/**\n * The end.\n */\n#define MOXIN_END SIZE_MAX\n/**\n * Whose.\n */\ntypedef uint32_t moxin_role;\n\
                    /**\n * Yours.\n */\n#define MOXIN_ROLE_USER 1\n";
        let expected = [
            item(
                "moxin_role",
                "Whose.",
                Shape::Number(vec![member("MOXIN_ROLE_USER", "Yours.", "1")]),
            ),
            item("MOXIN_END", "The end.", Shape::Constant("SIZE_MAX".into())),
        ];
        assert_eq!(items(code).unwrap(), expected);
    }

    #[test]
    fn unknown_shapes_are_errors() {
        for (code, line) in [
            ("int moxin_without_a_comment(void);\n", 8),
            ("#if defined(MOXIN_APPLE)\n", 8),
            (
                "/**\n * A union.\n */\ntypedef union moxin_u moxin_u;\n",
                11,
            ),
            ("/**\n * Not ours.\n */\nint another(void);\n", 11),
            ("/**\n * Variable.\n */\nextern int moxin_variable;\n", 11),
            (
                "/**\n * S.\n */\ntypedef struct moxin_s {\n    int without_a_comment;\n} \
                 moxin_s;\n",
                12,
            ),
            (
                "/**\n * S.\n */\ntypedef struct moxin_s \
                 {\n    /**\n     * Bits.\n     */\n    int a : 3;\n} moxin_s;\n",
                15,
            ),
            (
                "/**\n * S.\n */\ntypedef struct moxin_s \
                 {\n    /**\n     * Function.\n     */\n    int (*f)(int, int);\n} moxin_s;\n",
                15,
            ),
            (
                "/**\n * S.\n */\ntypedef struct moxin_s {\n} moxin_t;\n",
                12,
            ),
        ] {
            let error = format!("{:#}", items(code).unwrap_err());
            assert!(error.contains(&format!("line {line} ")), "{error}");
        }
        assert!(items("/**\n * No end.\n").is_err());
        assert!(items("/**\n * No end.\n */\nint moxin_f(int a,\n").is_err());
    }
}
