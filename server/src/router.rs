//! All endpoints, and the checks before them.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    api::{chat, describe, messages, openapi, responses, service},
    app::App,
    args::AccessArgs,
    error::{ApiError, for_anthropic},
    page::EXAMPLE,
};

/// The scope of a request's conversations in the prefix cache: 0, or the key's.
#[derive(Clone, Copy)]
pub struct Scope(pub u64);

/// Returns the endpoints.
pub fn router(app: Arc<App>, access: &AccessArgs) -> anyhow::Result<Router> {
    let anthropic = Router::new()
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .method_not_allowed_fallback(wrong_method);
    let keyed = Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/describe", post(describe::describe))
        .route("/v1/models", get(service::models))
        .route("/v1/models/{*id}", get(service::model))
        .route("/metrics", get(service::metrics))
        .method_not_allowed_fallback(wrong_method);
    let key = || from_fn_with_state(app.clone(), check_key);
    let rules = from_fn_with_state(app.clone(), check_origin);
    let open = Router::new()
        .route("/", get(service::page))
        .route(EXAMPLE, get(service::example))
        .route("/health", get(service::health))
        .route("/openapi.json", get(openapi::document))
        .method_not_allowed_fallback(wrong_method);
    let mut router = open
        .merge(keyed.route_layer(key()))
        .merge(
            anthropic
                .route_layer(key())
                .layer(map_response(for_anthropic)),
        )
        .fallback(no_such_path)
        .layer(rules);
    if !access.allow_origin.is_empty() {
        router = router.layer(cors(access)?);
    }
    Ok(router
        .layer(from_fn_with_state(app.clone(), check_host))
        .layer(from_fn_with_state(app.clone(), finish))
        .with_state(app))
}

fn cors(access: &AccessArgs) -> anyhow::Result<CorsLayer> {
    let origins = access
        .allow_origin
        .iter()
        .map(|origin| origin.parse::<HeaderValue>());
    Ok(CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.collect::<Result<Vec<_>, _>>()?))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("anthropic-version"),
        ]))
}

async fn check_host(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let host = request.uri().host().map(str::to_owned);
    app.access.check_host(request.headers(), host.as_deref())?;
    Ok(next.run(request).await)
}

async fn check_origin(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    app.access.check_origin(request.headers())?;
    Ok(next.run(request).await)
}

async fn check_key(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let scope = app.access.check_key(request.headers())?;
    request.extensions_mut().insert(Scope(scope));
    Ok(next.run(request).await)
}

/// Counts and logs a request, and adds the headers that every response has. Nothing of the content
/// is logged.
async fn finish(
    State(app): State<Arc<App>>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let clock = Instant::now();
    let endpoint = match &matched {
        Some(path) => path.as_str().to_owned(),
        None => "other".to_owned(),
    };
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    app.metrics.request(&endpoint, status);
    tracing::info!("{method} {endpoint} {status} in {:.1?}", clock.elapsed());
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-frame-options", "DENY"),
    ] {
        let name = HeaderName::from_static(name);
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn no_such_path() -> Response {
    ApiError::new(StatusCode::NOT_FOUND, "there is no such path")
        .code("unknown_path")
        .into_response()
}

async fn wrong_method() -> Response {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path has no such method",
    )
    .into_response()
}
