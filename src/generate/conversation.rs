//! What is said in a conversation, and the rules by which a model lets it be said.

use crate::{
    Error, Result,
    image::Picture,
    models::{Limits, MediaKey, MediaPlan},
    nn::Features,
    text::{Message, Part, Role},
};

/// A picture of a conversation.
#[derive(Clone)]
pub struct ChatImage {
    /// What becomes of it.
    pub plan: MediaPlan,
    /// What it is, and what becomes of it.
    pub key: MediaKey,
    /// The picture, or what was made of it before.
    pub content: ImageContent,
}

/// What there is of a picture.
#[derive(Clone)]
pub enum ImageContent {
    /// It is encoded when its rows are read.
    Picture(Picture),
    /// Its features, from an embedding.
    Features(Features),
}

/// Messages and pictures.
#[derive(Clone)]
pub struct Conversation {
    limits: Limits,
    /// Whether a picture stands at its place in a message. Otherwise there is one, behind the first
    /// token, and it belongs to no message.
    is_marked: bool,
    messages: Vec<Message>,
    images: Vec<ChatImage>,
}

impl Conversation {
    /// An empty conversation with a model of these limits.
    pub fn new(limits: Limits, is_marked: bool) -> Conversation {
        Conversation {
            limits,
            is_marked,
            messages: Vec::new(),
            images: Vec::new(),
        }
    }

    /// The messages so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The pictures so far, in the order of their parts.
    pub fn images(&self) -> &[ChatImage] {
        &self.images
    }

    /// Adds a text to the last message where that has the same role, else begins a message.
    pub fn add_text(&mut self, role: Role, text: &str) -> Result<()> {
        self.check_text(role)?;
        let part = Part::Text(text.to_owned());
        match self.messages.last_mut() {
            Some(last) if last.role == role => last.parts.push(part),
            // A picture that came before its text.
            Some(last) if !has_text(last) && role.asks() => {
                last.role = role;
                last.parts.push(part);
            }
            _ => self.messages.push(Message {
                role,
                parts: vec![part],
            }),
        }
        Ok(())
    }

    fn check_text(&self, role: Role) -> Result<()> {
        let state = |what: &str| Err(Error::InvalidState(what.into()));
        let last = self.messages.last().map(|last| last.role);
        let raw = self
            .messages
            .iter()
            .any(|message| message.role == Role::Prompt);
        match role {
            Role::System if !self.limits.system => state(
                "this model takes no system text: its prompt format has only questions and answers",
            ),
            Role::Assistant if !self.messages.iter().any(|message| message.role.asks()) => {
                state("a conversation begins with the user's text")
            }
            Role::Assistant if !self.limits.several_messages => state(
                "this model answers one message and takes none after it; begin a new session for \
                 another question",
            ),
            Role::User | Role::Prompt
                if last == Some(Role::Assistant) && !self.limits.several_messages =>
            {
                state("this model answers one message; begin a new session for another question")
            }
            Role::User | Role::Prompt if self.asks() && last != Some(role) => state(
                "a question waits for its answer; have it answered before the next is put in \
                 another form, as raw prompt or as text",
            ),
            // Where a template writes the prompt, raw text is all of it.
            Role::User | Role::System if self.is_marked && raw => state(
                "this conversation is raw prompt text; begin a new session for messages that the \
                 model's template writes down",
            ),
            Role::Prompt if self.is_marked && !raw && self.messages.iter().any(has_text) => state(
                "this conversation is written down by the model's template; begin a new session \
                 for raw prompt text",
            ),
            _ => Ok(()),
        }
    }

    /// Adds a picture to the user's message, or begins one with it. With `replace` it takes the
    /// place of the last one where the model allows no more.
    pub fn add_image(&mut self, image: ChatImage, replace: bool) -> Result<()> {
        let state = |what: String| Err(Error::InvalidState(what));
        let is_answered = self
            .messages
            .iter()
            .any(|message| message.role == Role::Assistant);
        let is_full = self.images.len() >= self.limits.images;
        if is_full && replace && !self.images.is_empty() {
            self.images.pop();
            self.images.push(image);
            return Ok(());
        }
        if is_full {
            let most = self.limits.images;
            let images = if most == 1 {
                "one image".to_owned()
            } else {
                format!("{most} images")
            };
            return state(format!(
                "this model takes {images} a conversation; begin a new session for another"
            ));
        }
        if !self.is_marked && is_answered {
            return state(
                "this model takes its image before the first answer; begin a new session \
                to ask about an image"
                    .into(),
            );
        }
        if is_answered && !self.limits.several_messages {
            return state(
                "this model answers one message; begin a new session to ask about an image".into(),
            );
        }
        self.images.push(image);
        if self.is_marked {
            match self.messages.last_mut() {
                Some(last) if last.role.asks() => last.parts.push(Part::Image),
                _ => self.messages.push(Message {
                    role: Role::User,
                    parts: vec![Part::Image],
                }),
            }
        }
        Ok(())
    }

    /// Makes an answer a message.
    pub fn add_answer(&mut self, text: String) {
        self.messages.push(Message {
            role: Role::Assistant,
            parts: vec![Part::Text(text)],
        });
    }

    /// Whether the last message waits for an answer.
    pub fn asks(&self) -> bool {
        self.messages
            .last()
            .is_some_and(|last| last.role.asks() && has_text(last))
    }

    /// Whether there is a picture that no question has come to yet.
    pub fn has_unasked_image(&self) -> bool {
        match self.is_marked {
            true => self
                .messages
                .last()
                .is_some_and(|last| last.role.asks() && !has_text(last)),
            false => self.messages.is_empty() && !self.images.is_empty(),
        }
    }

    /// Messages up to the last answer, or those of the system that come first.
    pub fn answered(&self) -> usize {
        let last = self
            .messages
            .iter()
            .rposition(|message| message.role == Role::Assistant);
        let system = || {
            self.messages
                .iter()
                .take_while(|message| message.role == Role::System)
                .count()
        };
        last.map_or_else(system, |i| i + 1)
    }

    /// Forgets all but the first messages, with the pictures in them.
    pub fn rewind(&mut self, messages: usize) -> Result<()> {
        if messages > self.messages.len() {
            let all = self.messages.len();
            return Err(Error::InvalidArgument(format!(
                "cannot keep {messages} messages: the conversation has {all}"
            )));
        }
        self.messages.truncate(messages);
        if self.is_marked {
            let parts = self.messages.iter().flat_map(|message| &message.parts);
            self.images
                .truncate(parts.filter(|part| matches!(part, Part::Image)).count());
        }
        Ok(())
    }

    /// Takes a question back that was not answered, with its pictures. What is there after is
    /// `kept` messages.
    pub fn take_back(&mut self, kept: usize) {
        // Fewer are there where nothing is to be taken back.
        let _ = self.rewind(kept.min(self.messages.len()));
        if !self.is_marked && kept == 0 {
            self.images.clear();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.images.clear();
    }

    /// Bytes of all texts.
    pub fn bytes(&self) -> usize {
        let parts = self.messages.iter().flat_map(|message| &message.parts);
        parts
            .map(|part| {
                if let Part::Text(text) = part {
                    text.len()
                } else {
                    0
                }
            })
            .sum()
    }
}

fn has_text(message: &Message) -> bool {
    message
        .parts
        .iter()
        .any(|part| matches!(part, Part::Text(_)))
}
