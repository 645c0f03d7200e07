//! `POST /v1/describe`: one picture, one question, one answer.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
};
use moxin_vlm::{Budget, Location, Place, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    answer::Answer,
    app::App,
    error::{ApiError, Result},
    json::{receive, refuse_rest},
    options::{Asked, source},
    question::{Part, Question, Turn},
    router::Scope,
};

/// A request for a description.
#[derive(Deserialize, JsonSchema)]
pub struct DescribeRequest {
    /// The name of the model; the first one if it is missing.
    model: Option<String>,
    /// The picture: a `data:` URL with base64; `https:` where the server allows it.
    image: String,
    /// The question; what the model was trained with if it is missing.
    prompt: Option<String>,
    /// The maximum number of tokens in the answer.
    max_tokens: Option<u32>,
    /// 0, the default, always takes the most likely token.
    temperature: Option<f32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A description.
#[derive(Serialize, JsonSchema)]
pub struct Description {
    description: String,
    /// The boxes and points in the description, in pixels of the upright picture; missing if the
    /// model writes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    locations: Option<Vec<Located>>,
    /// The number of tokens in the description.
    tokens: usize,
    /// The time to the first token, in milliseconds.
    prefill_ms: f64,
    tokens_per_second: f64,
}

/// Something in the picture that the description names: a box or a point.
#[derive(Serialize, JsonSchema)]
struct Located {
    /// Empty if the description has none.
    label: String,
    /// Left, top, right, bottom.
    #[serde(rename = "box", skip_serializing_if = "Option::is_none")]
    edges: Option<[f32; 4]>,
    /// The distances from the left and from the top edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    point: Option<[f32; 2]>,
}

impl From<Location> for Located {
    fn from(Location { label, place }: Location) -> Located {
        let (edges, point) = match place {
            Place::Box {
                left,
                top,
                right,
                bottom,
            } => (Some([left, top, right, bottom]), None),
            Place::Point { x, y } => (None, Some([x, y])),
        };
        Located {
            label,
            edges,
            point,
        }
    }
}

/// Describes a picture.
pub async fn describe(
    State(app): State<Arc<App>>,
    Extension(Scope(scope)): Extension<Scope>,
    request: Request,
) -> Result<Json<Description>> {
    let received = receive::<DescribeRequest>(&app, request).await?;
    let question = received.content.question(&app)?;
    drop(received);
    let answer = Answer::start(&app, question, scope, "prompt").await?;
    let (model, images) = (answer.model.clone(), answer.images.clone());
    let whole = answer.only().await?;
    let locations = match images.first() {
        Some([width, height]) if model.info().grounding => Some(
            model
                .locate(&whole.text, *width, *height, Budget::default())
                .map_err(|error| ApiError::library(error, "image"))?,
        ),
        _ => None,
    };
    let locations = locations.map(|all| all.into_iter().map(Located::from).collect());
    Ok(Json(Description {
        locations,
        description: whole.text,
        tokens: whole.stats.generated_tokens,
        prefill_ms: 1e3 * whole.stats.first_token.as_secs_f64(),
        tokens_per_second: whole.stats.decode_rate(),
    }))
}

impl DescribeRequest {
    fn question(&self, app: &App) -> Result<Question> {
        refuse_rest(&self.rest, "", &[], &[])?;
        let served = app.models.find(self.model.as_deref())?;
        let prompt = match &self.prompt {
            Some(prompt) => prompt.clone(),
            None => served.info.default_prompt.to_owned(),
        };
        let options = Asked {
            max_tokens: self.max_tokens,
            max_tokens_field: "max_tokens",
            temperature: self.temperature,
            ..Asked::default()
        };
        let picture = Part::Image {
            source: source(&self.image, "image")?,
            budget: Budget::default(),
            field: "image".into(),
        };
        Ok(Question {
            model: self.model.clone(),
            turns: vec![Turn {
                role: Role::User,
                parts: vec![picture, Part::Text(prompt)],
                field: "prompt".into(),
            }],
            options: options.options(&app.limits)?,
            choices: 1,
        })
    }
}
