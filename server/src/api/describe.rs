//! `POST /v1/describe`: one picture, one question, one answer.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
};
use moxin_vlm::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    answer::Answer,
    app::App,
    error::Result,
    json::{receive, refuse_rest},
    options::{Asked, budget, source},
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
    /// The number of tokens in the description.
    tokens: usize,
    /// The time to the first token, in milliseconds.
    prefill_ms: f64,
    tokens_per_second: f64,
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
    let whole = Answer::start(&app, question, scope, "prompt")
        .await?
        .only()
        .await?;
    Ok(Json(Description {
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
            budget: budget(None, None, "image")?,
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
