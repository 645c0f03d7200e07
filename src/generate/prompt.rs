//! From messages to rows: the one place that turns a conversation into the model's input.

use std::{ops::Range, sync::Arc};

use jiff::ZonedDateTime;

use super::ChatMedium;
use crate::{
    Error, Result,
    models::{Blueprint, Marker, MediaKey, MediaPlan, PlacedMedium, PromptFormat},
    nn::Row,
    text::{self, Message, PromptEncoder, Role, Template, Tokenizer},
};

/// What markers stand for.
const KINDS: [&str; 2] = ["image", "video"];

/// Returns the index of a plan's kind in [`KINDS`].
fn kind(plan: &MediaPlan) -> usize {
    usize::from(plan.is_video())
}

/// The feature in a row, if there is one: its medium, and its index.
pub type Source = Option<(MediaKey, u32)>;

/// A conversation as the model's input, one row per position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The rows.
    pub rows: Vec<Row>,
    /// The feature in each row.
    pub sources: Vec<Source>,
    /// For each picture and video, the rows of its runs.
    pub media: Vec<Vec<Range<usize>>>,
    /// Whether a span would be longer if the prompt were.
    pub grows: bool,
    /// The text and tokens it was made from.
    pub written: Written,
}

/// A prompt as text and as tokens, with a marker for each run of features.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// The tokens.
    pub ids: Vec<u32>,
}

impl Written {
    /// Adds an answer: its text, and the generated tokens, which need not be those that the
    /// tokenizer makes from the text.
    pub fn with_answer(mut self, text: &str, ids: &[u32]) -> Written {
        self.text.push_str(text);
        self.ids.extend(ids);
        self
    }
}

impl Prompt {
    /// Returns the number of rows in the longest span, whose rows attend to each other in both
    /// directions; 1 if there is none.
    pub fn longest_span(&self) -> usize {
        let ahead = |(i, row): (usize, &Row)| (row.reach as usize).saturating_sub(i);
        self.rows.iter().enumerate().map(ahead).max().unwrap_or(1)
    }

    /// Returns the largest number of rows, at most `most`, after which the prompt can be cut
    /// without cutting a span.
    pub fn cut(&self, most: usize) -> usize {
        let (mut cut, mut reach) = (0, 0);
        for (i, row) in self.rows[..most].iter().enumerate() {
            reach = reach.max(row.reach as usize);
            if reach <= i + 1 {
                cut = i + 1;
            }
        }
        cut
    }

    /// Returns the rows from `from` on that are computed together: `size` rows, or more if a span
    /// ends later.
    pub fn chunk(&self, from: usize, size: usize) -> Range<usize> {
        let total = self.rows.len();
        let mut end = from.saturating_add(size).min(total);
        let mut seen = from;
        while seen < end {
            end = end.max(self.rows[seen].reach as usize).min(total);
            seen += 1;
        }
        from..end
    }
}

/// The content of a prompt. Any thread may write the prompt.
#[derive(Debug, Clone)]
pub struct PromptRequest {
    messages: Vec<Message>,
    plans: Vec<MediaPlan>,
    keys: Vec<MediaKey>,
    answers: bool,
    answered: Vec<Written>,
}

impl PromptRequest {
    /// Requests the prompt of a conversation or, if `answers` is false, of its beginning up to the
    /// last picture or video.
    pub fn new(messages: &[Message], media: &[ChatMedium], answers: bool) -> PromptRequest {
        PromptRequest {
            messages: messages.to_vec(),
            plans: media.iter().map(|medium| medium.plan.clone()).collect(),
            keys: media.iter().map(|medium| medium.key).collect(),
            answers,
            answered: Vec::new(),
        }
    }

    /// Adds earlier prompts with their answers, shorter ones first. If the new prompt starts with
    /// one of them, followed by a control token, its tokens are reused and only the rest is
    /// tokenized.
    pub fn after(self, answered: &[Written]) -> PromptRequest {
        PromptRequest {
            answered: answered.to_vec(),
            ..self
        }
    }

    /// Returns the number of bytes in all texts.
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(Message::bytes).sum()
    }
}

/// Writes the prompts of one model. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct PromptWriter {
    blueprint: Arc<dyn Blueprint>,
    format: PromptFormat,
    /// The markers of [`KINDS`].
    markers: [Option<Marker>; 2],
    encoder: PromptEncoder,
    /// The folder's own template, or its architecture's.
    template: Option<Template>,
}

impl PromptWriter {
    /// Creates a writer for a model whose folder has this tokenizer and template, and whose answers
    /// end with these tokens.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] if the tokenizer has no token for pictures, or spells it
    /// differently; [`Error::NotFound`] if a template is needed and there is none.
    pub fn new(
        blueprint: Arc<dyn Blueprint>,
        tokenizer: &Tokenizer,
        template: Option<Template>,
        end: &[u32],
    ) -> Result<PromptWriter> {
        let format = blueprint.format();
        let template = match &format {
            PromptFormat::Template { default, .. } => match (template, default) {
                (None, Some(source)) => Some(Template::parse(source)?),
                (template, _) => template,
            },
            PromptFormat::Plain { .. } => None,
        };
        let mut controls = end.to_vec();
        let markers = [format.marker().cloned(), blueprint.video_marker()];
        for (marker, name) in markers.iter().zip(KINDS) {
            let Some(Marker {
                text,
                id,
                placeholder,
            }) = marker
            else {
                continue;
            };
            if tokenizer.token_id(text) != Some(*id) {
                let found = tokenizer
                    .token_id(text)
                    .map_or("none".to_owned(), |id| id.to_string());
                let what = format!(
                    "its token {text} for {name}s has the id {found}; config.json says {id}"
                );
                return Err(tokenizer.at_fault(what));
            }
            let place = tokenizer.token_id(placeholder).ok_or_else(|| {
                tokenizer.at_fault(format!("it has no token {placeholder} for {name}s"))
            })?;
            controls.extend([*id, place]);
        }
        let encoder = PromptEncoder::new(tokenizer, &controls)?;
        Ok(PromptWriter {
            blueprint,
            format,
            markers,
            encoder,
            template,
        })
    }

    /// Returns the same writer with `now` as the fixed current time.
    pub fn at(self, now: ZonedDateTime) -> PromptWriter {
        PromptWriter {
            template: self.template.map(|template| template.at(now)),
            ..self
        }
    }

    /// Returns whether prompts have places for pictures. Otherwise there is a single picture, after
    /// the first token.
    pub fn is_marked(&self) -> bool {
        !matches!(self.format, PromptFormat::Plain { marker: None, .. })
    }

    /// Checks by its length alone that a text may fit into a context of so many positions.
    pub fn check_room(&self, bytes: usize, positions: usize) -> Result<()> {
        self.encoder.check_room(bytes, positions)
    }

    /// Estimates the memory that writing a prompt needs.
    pub fn memory(&self, request: &PromptRequest) -> u64 {
        self.encoder.memory(request.bytes())
    }

    /// Writes a prompt.
    ///
    /// # Errors
    /// [`Error::InvalidState`] if the model's template refuses the conversation, or does not have a
    /// place for each picture; the errors of [`PromptEncoder::encode`].
    pub fn write(&self, request: &PromptRequest) -> Result<Prompt> {
        let mut text = self.text(request)?;
        let framed = match &self.format {
            PromptFormat::Plain { framed, .. } => *framed,
            PromptFormat::Template { .. } => true,
        };
        for (i, marker) in self.markers.iter().enumerate() {
            let Some(marker) = marker else { continue };
            let plans = request.plans.iter().filter(|plan| kind(plan) == i);
            let markups: Vec<&str> = plans.map(|plan| plan.markup.as_str()).collect();
            text = text.replace_markers(&marker.placeholder, KINDS[i], &markups)?;
        }
        self.with_media(self.tokens(&text, request, framed)?, request)
    }

    /// Returns the tokens of a prompt; tokens that were generated before stay as they are.
    fn tokens(
        &self,
        prompt: &text::Prompt,
        request: &PromptRequest,
        framed: bool,
    ) -> Result<Written> {
        for Written { text, ids } in request
            .answered
            .iter()
            .rev()
            .filter(|written| prompt.text().starts_with(&written.text))
        {
            let rest = prompt.after(text.len());
            if self.encoder.starts_with_control(&rest) {
                let ids = [&ids[..], &self.encoder.encode(&rest, false)?].concat();
                return Ok(Written {
                    text: prompt.text().to_owned(),
                    ids,
                });
            }
        }
        Ok(Written {
            text: prompt.text().to_owned(),
            ids: self.encoder.encode(prompt, framed)?,
        })
    }

    /// Returns the conversation as text.
    fn text(&self, request: &PromptRequest) -> Result<text::Prompt> {
        let messages = &request.messages[..];
        // Raw prompt text, with the answers to it, is the whole of a prompt that a template would
        // write.
        let is_raw =
            self.is_marked() && messages.iter().any(|message| message.role == Role::Prompt);
        match &self.format {
            _ if is_raw => {
                let mut prompt = text::Prompt::default();
                for message in messages {
                    match message.role {
                        Role::Prompt => prompt.push_markup(&message.text("")),
                        _ => prompt.push(&message.text("")),
                    }
                }
                Ok(prompt)
            }
            PromptFormat::Plain { render, .. } => render(if request.answers || self.is_marked() {
                messages
            } else {
                &[]
            }),
            PromptFormat::Template { content, .. } => {
                let none = "this model's folder has no chat template (chat_template.jinja, \
                    chat_template.json, or in tokenizer_config.json)";
                let template = self
                    .template
                    .as_ref()
                    .ok_or_else(|| Error::InvalidState(none.into()))?;
                let (masked, mask) = self.encoder.mask(messages)?;
                Ok(self
                    .encoder
                    .unmask(&template.render(&masked, *content, request.answers)?, &mask))
            }
        }
    }

    /// Converts tokens to rows, with features in place of the markers of pictures and videos, or
    /// after the first token if there are no markers.
    fn with_media(&self, written: Written, request: &PromptRequest) -> Result<Prompt> {
        let mut runs = [0, 1].map(|of| {
            let plans = request.plans.iter().enumerate();
            plans
                .filter(move |(_, plan)| kind(plan) == of)
                .flat_map(|(medium, plan)| plan.runs.iter().map(move |run| (medium, *run)))
        });
        let mut prompt = Unplaced {
            ids: Vec::new(),
            sources: Vec::new(),
            media: vec![Vec::new(); request.plans.len()],
        };
        for (i, id) in written.ids.iter().enumerate() {
            let is_its =
                |marker: &Option<Marker>| matches!(marker, Some(marker) if marker.id == *id);
            match self.markers.iter().position(is_its) {
                Some(of) => {
                    let (medium, run) = runs[of].next().ok_or_else(|| miscounted(request))?;
                    prompt.push_run(medium, run, *id, request.keys[medium]);
                }
                None => {
                    prompt.ids.push(*id);
                    prompt.sources.push(None);
                }
            }
            if self.markers[0].is_none() && i == 0 {
                for (medium, run) in runs[0].by_ref() {
                    prompt.push_run(medium, run, Row::NO_ID, request.keys[medium]);
                }
            }
        }
        if runs.iter_mut().any(|runs| runs.next().is_some()) {
            return Err(miscounted(request));
        }
        let Unplaced {
            mut ids,
            mut sources,
            media,
        } = prompt;
        // Without a question, the prompt ends with its last picture.
        if !request.answers {
            let end = media
                .iter()
                .flatten()
                .map(|run| run.end)
                .max()
                .unwrap_or(ids.len());
            ids.truncate(end);
            sources.truncate(end);
        }
        let placed: Vec<PlacedMedium> = media
            .iter()
            .zip(&request.plans)
            .map(|(runs, plan)| PlacedMedium {
                runs: runs.clone(),
                plan,
            })
            .collect();
        let positions = self.blueprint.positions(ids.len(), &placed);
        let mut rows: Vec<Row> = ids
            .iter()
            .zip(positions)
            .enumerate()
            .map(|(i, (id, position))| Row::causal(*id, position, i))
            .collect();
        let spans = self.blueprint.spans(ids.len(), &placed);
        for span in &spans {
            for row in &mut rows[span.clone()] {
                row.reach = span.end as u32;
                if self.blueprint.spans_exceed_windows() {
                    row.from = span.start as u32;
                }
            }
        }
        Ok(Prompt {
            rows,
            sources,
            media,
            grows: spans != self.blueprint.spans(ids.len() + 1, &placed),
            written,
        })
    }
}

/// Rows without positions.
struct Unplaced {
    ids: Vec<u32>,
    sources: Vec<Source>,
    media: Vec<Vec<Range<usize>>>,
}

impl Unplaced {
    fn push_run(&mut self, medium: usize, run: usize, id: u32, key: MediaKey) {
        let first: usize = self.media[medium].iter().map(Range::len).sum();
        let start = self.ids.len();
        self.ids.extend(std::iter::repeat_n(id, run));
        self.sources
            .extend((first..first + run).map(|i| Some((key, i as u32))));
        self.media[medium].push(start..start + run);
    }
}

fn miscounted(request: &PromptRequest) -> Error {
    let media = request.plans.len();
    Error::InvalidState(format!(
        "the prompt does not have one place for each run of features of its {media} images and \
            videos; does tokenizer.json belong to the model?"
    ))
}
