//! The content of a conversation, and a model's rules for it.

use crate::{
    Error, Result,
    image::Medium,
    models::{Limits, MediaKey, MediaPlan},
    nn::Features,
    text::{Message, Part, Role},
};

/// A picture or a video in a conversation.
#[derive(Clone)]
pub struct ChatMedium {
    /// How it is resized, and how many positions it takes.
    pub plan: MediaPlan,
    /// Identifies its content and its processing.
    pub key: MediaKey,
    /// The picture or video, or its features.
    pub content: MediumContent,
}

/// The content of a picture or a video.
#[derive(Clone)]
pub enum MediumContent {
    /// It is encoded when its rows are read.
    Medium(Medium),
    /// Its features, from an embedding.
    Features(Features),
}

/// Messages, pictures and videos.
#[derive(Clone)]
pub struct Conversation {
    limits: Limits,
    /// Whether a picture has a place in its message. Otherwise there is a single picture, after the
    /// first token, and it belongs to no message.
    is_marked: bool,
    messages: Vec<Message>,
    media: Vec<ChatMedium>,
}

impl Conversation {
    /// Creates an empty conversation with a model of these limits.
    pub fn new(limits: Limits, is_marked: bool) -> Conversation {
        Conversation {
            limits,
            is_marked,
            messages: Vec::new(),
            media: Vec::new(),
        }
    }

    /// Returns the messages so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Returns the pictures and videos so far, in the order of their parts.
    pub fn media(&self) -> &[ChatMedium] {
        &self.media
    }

    /// Adds a text to the last message if it has the same role, otherwise as a new message.
    pub fn add_text(&mut self, role: Role, text: &str) -> Result<()> {
        self.check_text(role)?;
        let part = Part::Text(text.to_owned());
        match self.messages.last_mut() {
            Some(last) if last.role == role => last.parts.push(part),
            // A picture was added before its text.
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
                "this model supports no system text: its prompt format has only questions and \
                    answers",
            ),
            Role::Assistant if !self.messages.iter().any(|message| message.role.asks()) => {
                state("a conversation starts with the user's text")
            }
            Role::Assistant if !self.limits.several_messages => state(
                "this model answers one message and takes none after it; start a new session for \
                    another question",
            ),
            Role::User | Role::Prompt
                if last == Some(Role::Assistant) && !self.limits.several_messages =>
            {
                state("this model answers one message; start a new session for another question")
            }
            Role::User | Role::Prompt if self.asks() && last != Some(role) => state(
                "a question waits for its answer; generate the answer before adding a question in \
                    another form (raw prompt or text)",
            ),
            // If a template writes the prompt, raw text must be the whole prompt.
            Role::User | Role::System if self.is_marked && raw => state(
                "this conversation is raw prompt text; start a new session for messages in the \
                    model's template",
            ),
            Role::Prompt if self.is_marked && !raw && self.messages.iter().any(has_text) => state(
                "this conversation uses the model's template; start a new session for raw prompt \
                    text",
            ),
            _ => Ok(()),
        }
    }

    /// Adds a picture or a video to the user's message, or starts one with it. With `replace` it
    /// replaces the last one if the model allows no more.
    pub fn add_medium(&mut self, medium: ChatMedium, replace: bool) -> Result<()> {
        let state = |what: String| Err(Error::InvalidState(what));
        let is_answered = self
            .messages
            .iter()
            .any(|message| message.role == Role::Assistant);
        let is_video = medium.plan.is_video();
        let (most, kind) = match is_video {
            true => (self.limits.videos, "video"),
            false => (self.limits.images, "image"),
        };
        let alike = self
            .media
            .iter()
            .filter(|other| other.plan.is_video() == is_video);
        let is_full = alike.count() >= most;
        if is_full && replace && !self.media.is_empty() {
            self.media.pop();
            self.media.push(medium);
            return Ok(());
        }
        if is_full {
            let media = match most {
                1 => format!("one {kind}"),
                _ => format!("{most} {kind}s"),
            };
            return state(format!(
                "this model takes {media} per conversation; start a new session for another"
            ));
        }
        if !self.is_marked && is_answered {
            return state(
                "this model takes its image before the first answer; start a new session to ask \
                    about an image"
                    .into(),
            );
        }
        if is_answered && !self.limits.several_messages {
            return state(
                "this model answers one message; start a new session to ask about an image".into(),
            );
        }
        self.media.push(medium);
        if self.is_marked {
            let part = if is_video { Part::Video } else { Part::Image };
            match self.messages.last_mut() {
                Some(last) if last.role.asks() => last.parts.push(part),
                _ => self.messages.push(Message {
                    role: Role::User,
                    parts: vec![part],
                }),
            }
        }
        Ok(())
    }

    /// Adds an answer as a message.
    pub fn add_answer(&mut self, text: String) {
        self.messages.push(Message {
            role: Role::Assistant,
            parts: vec![Part::Text(text)],
        });
    }

    /// Returns whether the last message waits for an answer.
    pub fn asks(&self) -> bool {
        self.messages
            .last()
            .is_some_and(|last| last.role.asks() && has_text(last))
    }

    /// Returns whether there is a picture without a question.
    pub fn has_unasked_image(&self) -> bool {
        match self.is_marked {
            true => self
                .messages
                .last()
                .is_some_and(|last| last.role.asks() && !has_text(last)),
            false => self.messages.is_empty() && !self.media.is_empty(),
        }
    }

    /// Returns the number of messages up to the last answer, or of the system messages at the
    /// start.
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

    /// Removes all but the first messages, with their pictures.
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
            self.media
                .truncate(parts.filter(|part| part.text().is_none()).count());
        }
        Ok(())
    }

    /// Removes a question that was not answered, with its pictures. `kept` messages remain.
    pub fn roll_back(&mut self, kept: usize) {
        // There are fewer if nothing is to be removed.
        let _ = self.rewind(kept.min(self.messages.len()));
        if !self.is_marked && kept == 0 {
            self.media.clear();
        }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.media.clear();
    }

    /// Returns the number of bytes in all texts.
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
