//! The page at `/`, and the policy that lets a browser run nothing else.

use std::path::Path;

use anyhow::{Context, Result};
use axum::{
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use moxin_vlm::Picture;
use sha2::{Digest, Sha256};

use crate::error::ApiError;

const HTML: &str = include_str!("page.html");

/// Where the picture is that the page begins with.
pub const EXAMPLE: &str = "/example-image";

/// The page.
pub struct Page {
    html: String,
    policy: String,
    example: Option<Vec<u8>>,
}

impl Page {
    /// Reads the picture that the page begins with, and computes the policy from the page's own
    /// script and style.
    pub fn new(example: Option<&Path>) -> Result<Page> {
        let hash = |tag: &str| {
            let digest = Sha256::digest(content(HTML, tag).as_bytes());
            format!("'sha256-{}'", BASE64_STANDARD.encode(digest))
        };
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; img-src 'self' data: blob:; \
             media-src blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; \
             frame-ancestors 'none'",
            hash("script"),
            hash("style")
        );
        let html = match example {
            Some(_) => HTML.replace("<body>", &format!("<body data-example=\"{EXAMPLE}\">")),
            None => HTML.to_owned(),
        };
        Ok(Page {
            html,
            policy,
            example: example.map(read).transpose()?,
        })
    }

    /// Returns the page.
    pub fn response(&self) -> Response {
        let headers = [
            (header::CONTENT_SECURITY_POLICY, self.policy.as_str()),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Html(self.html.clone())).into_response()
    }

    /// Returns the picture that the page begins with.
    pub fn example(&self) -> Response {
        match &self.example {
            Some(bytes) => ([(header::CONTENT_TYPE, "image/*")], bytes.clone()).into_response(),
            None => {
                ApiError::new(StatusCode::NOT_FOUND, "there is no example picture").into_response()
            }
        }
    }
}

/// Reads a picture file.
fn read(path: &Path) -> Result<Vec<u8>> {
    let about = || format!("--example-image {}", path.display());
    let bytes = std::fs::read(path).with_context(about)?;
    Picture::decode(&bytes, &Default::default()).with_context(about)?;
    Ok(bytes)
}

/// Returns the content of the only element with this tag.
fn content<'t>(html: &'t str, tag: &str) -> &'t str {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let after = html.split_once(&open).map_or("", |(_, after)| after);
    after.split_once(&close).map_or("", |(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style() {
        for tag in ["script", "style"] {
            assert!(!content(HTML, tag).trim().is_empty(), "{tag}");
            assert_eq!(HTML.matches(&format!("<{tag}")).count(), 1, "{tag}");
        }
        let policy = Page::new(None).unwrap().policy;
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
