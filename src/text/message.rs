//! Messages of a conversation.

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the conversation, if the model supports them.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// No author: prompt text that is used unchanged. Control tokens spelled in it are control
    /// tokens, and nothing is added around it.
    Prompt,
}

impl Role {
    /// Returns whether a message of this role waits for an answer.
    pub fn asks(self) -> bool {
        matches!(self, Role::User | Role::Prompt)
    }

    /// Returns the name that chat templates use.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User | Role::Prompt => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The author.
    pub role: Role,
    /// Texts, pictures and videos, in order.
    pub parts: Vec<Part>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A text.
    Text(String),
    /// The next picture of the conversation.
    Image,
    /// The next video of the conversation.
    Video,
}

impl Part {
    /// Returns the text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Part::Text(text) => Some(text),
            Part::Image | Part::Video => None,
        }
    }
}

impl Message {
    fn of(role: Role, text: impl Into<String>) -> Message {
        Message {
            role,
            parts: vec![Part::Text(text.into())],
        }
    }

    /// Creates a system message.
    pub fn system(text: impl Into<String>) -> Message {
        Message::of(Role::System, text)
    }

    /// Creates a user message with one text.
    pub fn user(text: impl Into<String>) -> Message {
        Message::of(Role::User, text)
    }

    /// Creates an answer of the model.
    pub fn assistant(text: impl Into<String>) -> Message {
        Message::of(Role::Assistant, text)
    }

    /// Creates prompt text that is used unchanged.
    pub fn prompt(text: impl Into<String>) -> Message {
        Message::of(Role::Prompt, text)
    }

    /// Returns the texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Part::text)
    }

    /// Returns the texts, joined with `separator`.
    pub fn text(&self, separator: &str) -> String {
        self.texts().collect::<Vec<_>>().join(separator)
    }

    /// Returns the number of bytes in the texts.
    pub fn bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }
}
