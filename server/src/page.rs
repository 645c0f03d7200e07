//! The page at `/`, and the policy that lets a browser run nothing else.

use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page.html");

/// The page.
pub struct Page {
    policy: String,
}

impl Page {
    /// Computes the policy from the page's own script and style.
    pub fn new() -> Page {
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
        Page { policy }
    }

    /// Returns the page.
    pub fn response(&self) -> Response {
        let headers = [
            (header::CONTENT_SECURITY_POLICY, self.policy.as_str()),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Html(HTML)).into_response()
    }
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
        let policy = Page::new().policy;
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
