//! Answers as server-sent events.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::unfold;
use moxin_vlm::Stats;
use serde::Serialize;

use crate::{
    answer::{Answer, Piece},
    error::{ApiError, Result},
};

/// Writes the events of an answer in one API's form.
pub trait Writer: Send + 'static {
    /// Writes what comes before the answer. `stats` knows the prompt.
    fn start(&mut self, stats: &Stats) -> Vec<Event>;
    /// Writes a part of the answer.
    fn piece(&mut self, piece: Piece) -> Vec<Event>;
    /// Writes what comes after the answer.
    fn end(&mut self) -> Vec<Event>;
    /// Writes an error, after which nothing follows.
    fn error(&mut self, error: &ApiError) -> Vec<Event>;
}

/// Returns an event with JSON.
pub fn event(data: &impl Serialize) -> Event {
    with_json(Event::default(), data)
}

/// Returns an event of this type with JSON.
pub fn named_event(kind: &str, data: &impl Serialize) -> Event {
    with_json(Event::default().event(kind), data)
}

fn with_json(event: Event, data: &impl Serialize) -> Event {
    // What the server writes has only strings as keys, so it is always JSON.
    event.json_data(data).unwrap_or_else(|_| Event::default())
}

/// Streams an answer. Its first piece is awaited, so that a prompt that cannot be read is answered
/// with an error status.
pub async fn stream(mut answer: Answer, mut writer: impl Writer) -> Result<Response> {
    let mut events = VecDeque::new();
    if let Some(piece) = answer.next().await {
        let piece = piece?;
        events.extend(writer.start(&piece.stats));
        events.extend(writer.piece(piece));
    }
    let state = State {
        answer: Some(answer),
        writer,
        events,
    };
    let stream = unfold(state, |mut state| async {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(10));
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // Proxies such as nginx would collect the events otherwise.
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(response)
}

struct State<W> {
    /// `None` after its end.
    answer: Option<Answer>,
    writer: W,
    /// Events that are ready.
    events: VecDeque<Event>,
}

impl<W: Writer> State<W> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let events = match self.answer.as_mut()?.next().await {
                Some(Ok(piece)) => self.writer.piece(piece),
                Some(Err(error)) => {
                    self.answer = None;
                    self.writer.error(&error)
                }
                None => {
                    self.answer = None;
                    self.writer.end()
                }
            };
            self.events.extend(events);
        }
    }
}
