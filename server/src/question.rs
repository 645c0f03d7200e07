//! A conversation that is to be answered, whatever the form it came in.

use moxin_vlm::{Budget, GenerationOptions, ModelInfo, Role};

use crate::error::{ApiError, Result};

/// What a client asks.
pub struct Question {
    /// The name of the model; `None`: the first one.
    pub model: Option<String>,
    /// The conversation; the last turn is the user's.
    pub turns: Vec<Turn>,
    pub options: GenerationOptions,
    /// The number of answers.
    pub choices: usize,
}

/// The content of one message.
pub struct Turn {
    pub role: Role,
    pub parts: Vec<Part>,
    /// The field that the message came in, such as `messages.2`.
    pub field: String,
}

/// A part of a message.
pub enum Part {
    Text(String),
    Image {
        source: Source,
        budget: Budget,
        /// The field that the picture came in.
        field: String,
    },
    Video {
        /// The content of a file.
        bytes: Vec<u8>,
        /// The number of frames to read per second.
        fps: Option<f64>,
        budget: Budget,
        /// The field that the video came in.
        field: String,
    },
}

/// Where a picture is.
pub enum Source {
    /// The content of a picture file.
    Bytes(Vec<u8>),
    /// An https:// URL.
    Url(String),
}

impl Question {
    /// Checks what every model and every form of request has in common. `field` has the messages.
    pub fn check(&self, max_images: usize, field: &str) -> Result<()> {
        match self.turns.last() {
            None => return Err(ApiError::field(field, format!("{field} is empty"))),
            Some(last) if last.role != Role::User => {
                let message = "the last message must be the user's: answers are not continued";
                return Err(ApiError::field(&last.field, message));
            }
            Some(_) => {}
        }
        let mut images = 0;
        for turn in &self.turns {
            let is_medium = |part: &&Part| !matches!(part, Part::Text(_));
            let here = turn.parts.iter().filter(is_medium).count();
            images += here;
            if turn.role != Role::User && here > 0 {
                return Err(ApiError::field(
                    &turn.field,
                    "pictures and videos are only possible in the user's messages",
                ));
            }
            if turn.role == Role::User && turn.parts.iter().all(Part::is_blank) {
                return Err(ApiError::field(&turn.field, "the message has no text"));
            }
        }
        if images > max_images {
            let message = format!(
                "{images} pictures and videos; this server allows {max_images} (--max-images)"
            );
            return Err(ApiError::field(field, message).code("too_many_images"));
        }
        Ok(())
    }

    /// Checks that the model takes pictures and videos if there are any, before they are fetched.
    pub fn check_model(&self, model: &ModelInfo) -> Result<()> {
        for part in self.turns.iter().flat_map(|turn| &turn.parts) {
            let (field, refusal) = match part {
                Part::Image { field, .. } if model.max_images == 0 => {
                    (field, "this model reads text only; it takes no pictures")
                }
                Part::Video { field, .. } if model.max_videos == 0 => {
                    (field, "this model takes no videos; send frames as pictures")
                }
                _ => continue,
            };
            return Err(ApiError::field(field, refusal));
        }
        Ok(())
    }
}

impl Part {
    fn is_blank(&self) -> bool {
        match self {
            Part::Text(text) => text.trim().is_empty(),
            Part::Image { .. } | Part::Video { .. } => true,
        }
    }
}
