//! Messages: what a conversation is made of.

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions above the conversation, where the model takes them.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
    /// Nobody: prompt text that is used as it is. Control tokens spelt in it are control tokens,
    /// and nothing is put around it.
    Prompt,
}

impl Role {
    /// Whether a message of this role waits for an answer.
    pub fn asks(self) -> bool {
        matches!(self, Role::User | Role::Prompt)
    }

    /// The name that chat templates use.
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
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in this order.
    pub parts: Vec<Part>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A text.
    Text(String),
    /// The next picture of the conversation.
    Image,
}

impl Part {
    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Part::Text(text) => Some(text),
            Part::Image => None,
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

    /// Instructions above the conversation.
    pub fn system(text: impl Into<String>) -> Message {
        Message::of(Role::System, text)
    }

    /// A text of the user's.
    pub fn user(text: impl Into<String>) -> Message {
        Message::of(Role::User, text)
    }

    /// An answer of the model's.
    pub fn assistant(text: impl Into<String>) -> Message {
        Message::of(Role::Assistant, text)
    }

    /// Prompt text that is used as it is.
    pub fn prompt(text: impl Into<String>) -> Message {
        Message::of(Role::Prompt, text)
    }

    /// Its texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Part::text)
    }

    /// Its texts, with `separator` between them.
    pub fn text(&self, separator: &str) -> String {
        self.texts().collect::<Vec<_>>().join(separator)
    }

    /// Bytes of its texts.
    pub fn bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }
}
