//! What tells about the server: the page, models, health and metrics.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use moxin_vlm::ModelInfo;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    app::{App, Phase},
    error::Result,
    models::Served,
};

/// The models of the server.
#[derive(Serialize, JsonSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelBody>,
}

/// A model.
#[derive(Serialize, JsonSchema)]
pub struct ModelBody {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    moxin: Properties,
}

/// What a model can do.
#[derive(Serialize, JsonSchema)]
struct Properties {
    /// The architecture, as named in config.json.
    model_type: String,
    /// `text`, and `image` if it takes pictures.
    modalities: Vec<&'static str>,
    /// The number of positions that the model was made for.
    context: usize,
    /// The maximum number of pictures in a conversation; null: as many as fit; 0: the model reads
    /// text only.
    max_images: Option<usize>,
    /// Whether a conversation can continue after an answer.
    several_messages: bool,
    /// Whether the model supports system text.
    system: bool,
    /// The question to use when the user asks nothing.
    default_prompt: &'static str,
    /// Whether it is in memory.
    loaded: bool,
}

/// The state of the server.
#[derive(Serialize, JsonSchema)]
pub struct Health {
    /// `loading`, `ready`, `draining` or `failed`.
    status: &'static str,
    uptime_seconds: u64,
    active_requests: usize,
    waiting_requests: usize,
    /// Why a model could not be loaded.
    load_failure: Option<String>,
    /// The latest answer that failed because of the library or the machine.
    last_failure: Option<LastFailure>,
}

#[derive(Serialize, JsonSchema)]
struct LastFailure {
    message: String,
    /// In seconds since 1970.
    at: u64,
    /// The number of such failures.
    count: u64,
}

impl ModelBody {
    fn new(served: &Served) -> ModelBody {
        let ModelInfo {
            model_type,
            context_length,
            max_images,
            max_videos,
            several_messages,
            system,
            default_prompt,
            ..
        } = &served.info;
        ModelBody {
            id: served.name.clone(),
            object: "model",
            created: served.created,
            owned_by: "moxin-vlm",
            moxin: Properties {
                model_type: model_type.clone(),
                modalities: match (max_images, max_videos) {
                    (0, _) => vec!["text"],
                    (_, 0) => vec!["text", "image"],
                    _ => vec!["text", "image", "video"],
                },
                context: *context_length,
                max_images: (*max_images != usize::MAX).then_some(*max_images),
                several_messages: *several_messages,
                system: *system,
                default_prompt,
                loaded: served.is_loaded(),
            },
        }
    }
}

/// Returns the page.
pub async fn page(State(app): State<Arc<App>>) -> Response {
    app.page.response()
}

/// Returns the picture that the page begins with.
pub async fn example(State(app): State<Arc<App>>) -> Response {
    app.page.example()
}

/// Lists the models.
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: app
            .models
            .all()
            .iter()
            .map(|served| ModelBody::new(served))
            .collect(),
    })
}

/// Returns a model.
pub async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<ModelBody>> {
    Ok(Json(ModelBody::new(app.models.find(Some(&name))?)))
}

/// Tells whether the server is ready: 200 if it is, otherwise 503.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, code) = match app.phase() {
        Phase::Loading => ("loading", StatusCode::SERVICE_UNAVAILABLE),
        Phase::Ready if app.models.has_failed() => ("failed", StatusCode::SERVICE_UNAVAILABLE),
        Phase::Ready => ("ready", StatusCode::OK),
        Phase::Draining | Phase::Ending => ("draining", StatusCode::SERVICE_UNAVAILABLE),
    };
    let health = Health {
        status,
        uptime_seconds: app.started.elapsed().as_secs(),
        active_requests: app.queue.active(),
        waiting_requests: app.queue.waiting(),
        load_failure: app.models.failure(),
        last_failure: app.failure().map(|failure| LastFailure {
            message: failure.message,
            at: failure.at,
            count: failure.count,
        }),
    };
    (code, Json(health)).into_response()
}

/// Returns counts and times for Prometheus.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(&app)).into_response()
}
