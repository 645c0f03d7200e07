//! Answers: a question becomes sessions of the library, whose events are passed on.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use moxin_vlm::{
    DecodeOptions, Event, FinishReason, GenerationOptions, Model, Picture, Session, Stats,
    StreamOptions, Video, VideoOptions, generate::Choice,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::spawn_blocking,
};

use crate::{
    app::App,
    error::{ApiError, Result},
    models::{InUse, Served},
    question::{Part, Question, Source, Turn},
    queue::Place,
};

/// An answer in progress. Dropping it cancels it within one layer of the model.
pub struct Answer {
    pub served: Arc<Served>,
    pub model: Model,
    /// The width and height of each picture.
    pub images: Vec<[usize; 2]>,
    pieces: UnboundedReceiver<Result<Piece>>,
    /// The first piece, which shows that the prompt can be read.
    first: Option<Result<Piece>>,
}

/// A part of an answer.
pub struct Piece {
    /// The number of the answer, from 0.
    pub choice: usize,
    pub event: Event,
    /// Counts and times so far.
    pub stats: Stats,
}

/// A whole answer.
pub struct Whole {
    pub text: String,
    pub tokens: Vec<Token>,
    pub reason: FinishReason,
    pub stats: Stats,
}

/// A token of an answer.
pub struct Token {
    pub id: u32,
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities.
    pub top: Vec<(u32, f32)>,
}

impl Token {
    /// Collects what an event tells about a token.
    pub fn new(id: u32, logprob: f32, top: &[Choice]) -> Token {
        Token {
            id,
            logprob,
            top: top.iter().map(|top| (top.token, top.logprob)).collect(),
        }
    }
}

/// A conversation that is ready to be answered.
struct Ready {
    sessions: VecDeque<Session>,
    images: Vec<[usize; 2]>,
    prompt_tokens: usize,
    place: Place,
    /// When it got its place.
    since: Instant,
    in_use: InUse,
}

impl Answer {
    /// Waits for a place, prepares the conversation, and starts answering it. `field` is the field
    /// of the request with the messages, for errors.
    pub async fn start(
        app: &Arc<App>,
        mut question: Question,
        scope: u64,
        field: &'static str,
    ) -> Result<Answer> {
        question.options.prefix_scope = scope;
        let mut ready = prepare(app, question, field).await?;
        let (served, model) = (ready.in_use.served.clone(), ready.in_use.model.clone());
        let images = std::mem::take(&mut ready.images);
        let (sender, mut pieces) = unbounded_channel();
        tokio::spawn(generate(app.clone(), ready, sender, field));
        let first = pieces.recv().await;
        match first {
            Some(Err(error)) => Err(error),
            first => Ok(Answer {
                served,
                model,
                images,
                pieces,
                first,
            }),
        }
    }

    /// Returns the next piece, or `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Piece>> {
        match self.first.take() {
            Some(piece) => Some(piece),
            None => self.pieces.recv().await,
        }
    }

    /// Collects all answers.
    pub async fn whole(mut self) -> Result<Vec<Whole>> {
        let mut all: Vec<Whole> = Vec::new();
        while let Some(piece) = self.next().await {
            let Piece {
                choice,
                event,
                stats,
            } = piece?;
            if all.len() <= choice {
                all.push(Whole {
                    text: String::new(),
                    tokens: Vec::new(),
                    reason: FinishReason::Cancelled,
                    stats,
                });
            }
            let whole = &mut all[choice];
            whole.stats = stats;
            match event {
                Event::Prefill { .. } => {}
                Event::Text {
                    text,
                    token,
                    logprob,
                    top,
                } => {
                    whole.text += &text;
                    whole.tokens.push(Token::new(token, logprob, &top));
                }
                Event::Finished { reason, text } => {
                    whole.text += &text;
                    whole.reason = reason;
                }
            }
        }
        Ok(all)
    }

    /// Collects the answer to a question that wants one.
    pub async fn only(self) -> Result<Whole> {
        let all = self.whole().await?;
        all.into_iter().next().ok_or_else(ApiError::shutting_down)
    }
}

/// Counts the tokens of a question's prompt without answering it.
pub async fn count(app: &Arc<App>, question: Question, field: &'static str) -> Result<usize> {
    Ok(prepare(app, question, field).await?.prompt_tokens)
}

/// Waits for a place and the model, decodes the pictures, and writes the prompt.
async fn prepare(app: &Arc<App>, mut question: Question, field: &'static str) -> Result<Ready> {
    question.check(app.limits.max_images, field)?;
    let served = app.models.find(question.model.as_deref())?.clone();
    question.check_model(&served.info)?;
    app.check_running()?;
    let place = app.queue.enter().await?;
    let since = Instant::now();
    let in_use = app.models.acquire(&served).await?;
    app.fetch_images(&mut question.turns).await?;
    let app = app.clone();
    let work = move || {
        let Question {
            turns,
            options,
            choices,
            ..
        } = question;
        let seed = options.sampling.seed;
        let (session, images) = converse(&app, &in_use.model, turns, options.clone(), field)?;
        let prompt_tokens = session
            .prompt_tokens()
            .map_err(|error| ApiError::library(error, field))?;
        let most = app.limits.max_prompt_tokens;
        if prompt_tokens > most {
            let message = format!(
                "the prompt has {prompt_tokens} tokens; this server allows {most} \
                 (--max-prompt-tokens)"
            );
            return Err(ApiError::field(field, message).code("context_length_exceeded"));
        }
        let mut sessions = VecDeque::from([session]);
        for choice in 1..choices {
            // Each answer has a seed of its own; the first has the request's.
            let mut options = options.clone();
            options.sampling.seed = seed.wrapping_add(choice as u64);
            let fork = || {
                let fork = sessions[0].fork()?;
                fork.set_options(options)?;
                Ok(fork)
            };
            sessions.push_back(fork().map_err(|error| ApiError::library(error, field))?);
        }
        Ok(Ready {
            sessions,
            images,
            prompt_tokens,
            place,
            since,
            in_use,
        })
    };
    spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(ApiError::library(
            moxin_vlm::Error::Panic(error.to_string()),
            field,
        ))
    })
}

/// Returns a session with a conversation, and the width and height of its pictures.
fn converse(
    app: &App,
    model: &Model,
    turns: Vec<Turn>,
    options: GenerationOptions,
    field: &str,
) -> Result<(Session, Vec<[usize; 2]>)> {
    let session = loop {
        match model.session(options.clone()) {
            // A model that nobody uses makes room for the conversation.
            Err(moxin_vlm::Error::OutOfMemory { .. }) if app.models.unload_one() => continue,
            session => break session.map_err(|error| ApiError::library(error, field))?,
        }
    };
    let frame = DecodeOptions {
        max_pixels: app.limits.max_image_pixels,
        ..DecodeOptions::default()
    };
    let mut images = Vec::new();
    for turn in turns {
        for part in turn.parts {
            match part {
                Part::Text(text) => session
                    .add_text(turn.role, &text)
                    .map_err(|error| ApiError::library(error, &turn.field))?,
                Part::Image {
                    source: Source::Bytes(bytes),
                    budget,
                    field,
                } => {
                    let refuse = |error| ApiError::library(error, &field);
                    let picture = Picture::decode(&bytes, &frame).map_err(refuse)?;
                    images.push([picture.width() as usize, picture.height() as usize]);
                    session.add_image_within(picture, budget).map_err(refuse)?;
                }
                Part::Video {
                    bytes,
                    fps,
                    budget,
                    field,
                } => {
                    let defaults = VideoOptions::default();
                    let options = VideoOptions {
                        fps: fps.or(defaults.fps),
                        frame: frame.clone(),
                        ..defaults
                    };
                    let refuse = |error| ApiError::library(error, &field);
                    let video = Video::decode(&bytes, &options).map_err(refuse)?;
                    session.add_video_within(video, budget).map_err(refuse)?;
                }
                Part::Image { field, .. } => {
                    return Err(ApiError::field(field, "the picture was not fetched"));
                }
            }
        }
    }
    Ok((session, images))
}

/// Generates the answers one after the other. Ends early when nobody receives them any more, the
/// server ends, or the time is up. The place is free afterwards, even if the client reads slowly.
async fn generate(
    app: Arc<App>,
    ready: Ready,
    sender: UnboundedSender<Result<Piece>>,
    field: &'static str,
) {
    let Ready {
        sessions,
        place,
        since,
        in_use,
        ..
    } = ready;
    app.metrics.waited(place.waited);
    for (choice, session) in sessions.into_iter().enumerate() {
        let left = app.limits.time().saturating_sub(since.elapsed());
        if let Err(error) = generate_one(&app, &session, choice, left, &sender).await {
            if let moxin_vlm::Error::Panic(_) | moxin_vlm::Error::Backend(_) = error {
                tracing::error!("an answer failed: {error}");
                app.failed(&error);
            }
            if sender.is_closed() {
                app.metrics.cancelled();
            }
            let _ = sender.send(Err(match app.is_ending() {
                true => ApiError::shutting_down(),
                false => ApiError::library(error, field),
            }));
            break;
        }
        app.metrics.answered(&session.stats());
    }
    drop((place, in_use));
}

async fn generate_one(
    app: &App,
    session: &Session,
    choice: usize,
    time: Duration,
    sender: &UnboundedSender<Result<Piece>>,
) -> moxin_vlm::Result<()> {
    let (events, mut receiver) = unbounded_channel();
    let _cancel = CancelOnDrop(session);
    let options = StreamOptions {
        timeout: Some(time),
        ..StreamOptions::default()
    };
    session.start(options, move |event| events.send(event).is_ok())?;
    loop {
        let event = tokio::select! {
            event = receiver.recv() => event,
            () = sender.closed() => return Err(moxin_vlm::Error::Cancelled),
            () = app.ending() => return Err(moxin_vlm::Error::Cancelled),
        };
        let Some(event) = event else {
            return Err(moxin_vlm::Error::Cancelled);
        };
        let event = event?;
        let is_last = matches!(event, Event::Finished { .. });
        let piece = Piece {
            choice,
            event,
            stats: session.stats(),
        };
        if sender.send(Ok(piece)).is_err() {
            return Err(moxin_vlm::Error::Cancelled);
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Cancels what a session generates when it goes out of scope.
struct CancelOnDrop<'a>(&'a Session);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
