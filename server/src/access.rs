//! Who may use the server: host names, origins and keys.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result, bail};
use axum::http::{HeaderMap, StatusCode, header};

use crate::{args::AccessArgs, error::ApiError};

/// The rules for requests, before they are read.
pub struct Access {
    keys: Vec<blake3::Hash>,
    hosts: Vec<String>,
    origins: Vec<String>,
    isolate_keys: bool,
}

impl Access {
    /// Reads the rules.
    pub fn new(args: &AccessArgs) -> Result<Access> {
        let mut keys = args.api_key.clone();
        if let Some(path) = &args.api_key_file {
            keys.extend(keys_in(path)?);
        }
        if keys.iter().any(|key| key.trim().is_empty()) {
            bail!("an API key is empty");
        }
        Ok(Access {
            keys: keys
                .iter()
                .map(|key| blake3::hash(key.trim().as_bytes()))
                .collect(),
            hosts: args
                .allow_host
                .iter()
                .map(|host| host.to_lowercase())
                .collect(),
            origins: args.allow_origin.clone(),
            isolate_keys: args.isolate_keys,
        })
    }

    /// Returns whether clients need a key.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Checks the name that a client uses for this server. A page of another site can reach a
    /// server on this machine under a name of its own (DNS rebinding), but not under an address.
    pub fn check_host(&self, headers: &HeaderMap, uri_host: Option<&str>) -> Result<(), ApiError> {
        let host = match headers.get(header::HOST) {
            Some(value) => value.to_str().ok().map(str::to_owned),
            None => uri_host.map(str::to_owned),
        };
        let Some(host) = host else {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "the request has no readable Host header",
            ));
        };
        let name = name_of(&host).to_lowercase();
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if is_address || name == "localhost" || self.hosts.contains(&name) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("this server does not know the host name {name:?}; allow it with --allow-host"),
        )
        .code("host_not_allowed"))
    }

    /// Checks the web page that a request comes from, if it comes from one.
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return Ok(());
        };
        let origin = origin.to_str().unwrap_or("unreadable");
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let own = origin.split_once("://").map(|(_, rest)| rest);
        if (own.is_some() && own == host) || self.origins.iter().any(|allowed| allowed == origin) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("pages of {origin:?} may not use this server; allow them with --allow-origin"),
        )
        .code("origin_not_allowed"))
    }

    /// Checks the key of a request; returns the scope of its conversations.
    pub fn check_key(&self, headers: &HeaderMap) -> Result<u64, ApiError> {
        if !self.has_keys() {
            return Ok(0);
        }
        let Some(given) = key_of(headers) else {
            let message = "an API key is needed: send it as 'Authorization: Bearer KEY'";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("missing_api_key"));
        };
        // Hashes are compared in constant time, and all of them, so that times tell nothing about
        // the keys.
        let given = blake3::hash(given.as_bytes());
        let matches = self
            .keys
            .iter()
            .fold(0, |matches, key| matches + u32::from(*key == given));
        if matches == 0 {
            let message = "the API key is not one of this server's";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"));
        }
        let [a, b, c, d, e, f, g, h, ..] = *given.as_bytes();
        Ok(match self.isolate_keys {
            true => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            false => 0,
        })
    }
}

/// Returns the keys in a file, one per line.
fn keys_in(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: the API keys cannot be read", path.display()))?;
    let keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        bail!("{}: there is no API key in the file", path.display());
    }
    Ok(keys)
}

/// Returns a host without its port.
fn name_of(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_inclusive(']').next().unwrap_or(host);
    }
    host.split(':').next().unwrap_or(host)
}

/// Returns the key in OpenAI's header, or in Anthropic's.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                header::HeaderName::from_static(name),
                value.parse().unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn access(keys: &[&str], isolate_keys: bool) -> Access {
        Access::new(&AccessArgs {
            api_key: keys.iter().map(|key| key.to_string()).collect(),
            allow_host: vec!["Pictures.Example".into()],
            allow_origin: vec!["https://app.example".into()],
            isolate_keys,
            ..AccessArgs::default()
        })
        .unwrap()
    }

    #[test]
    fn only_known_names_reach_the_server() {
        let check = |host| access(&[], false).check_host(&headers(&[("host", host)]), None);
        for known in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:1",
            "[::1]:8080",
            "[::1]",
            "10.0.0.7",
            "pictures.example:443",
        ] {
            assert!(check(known).is_ok(), "{known}");
        }
        for unknown in [
            "evil.example",
            "localhost.evil.example:8080",
            "",
            "127.0.0.1.nip.io",
        ] {
            assert_eq!(check(unknown).unwrap_err().status, 403, "{unknown}");
        }
    }

    #[test]
    fn only_known_pages_use_the_server() {
        let check = |origin| {
            access(&[], false)
                .check_origin(&headers(&[("host", "localhost:8080"), ("origin", origin)]))
        };
        assert!(check("http://localhost:8080").is_ok());
        assert!(check("https://app.example").is_ok());
        for unknown in [
            "http://localhost:3000",
            "https://evil.example",
            "null",
            "http://app.example",
        ] {
            assert_eq!(check(unknown).unwrap_err().status, 403, "{unknown}");
        }
        assert!(access(&[], false).check_origin(&headers(&[])).is_ok());
    }

    #[test]
    fn keys_are_checked_and_separated() {
        let access_one = access(&["one", "two"], true);
        let scope = |name, value| access_one.check_key(&headers(&[(name, value)]));
        let one = scope("authorization", "Bearer one").unwrap();
        assert_eq!(scope("x-api-key", "one").unwrap(), one);
        assert_ne!(scope("authorization", "bearer two").unwrap(), one);
        for wrong in ["Bearer on", "Bearer one1", "Basic one", "one", "Bearer "] {
            assert_eq!(
                scope("authorization", wrong).unwrap_err().status,
                401,
                "{wrong}"
            );
        }
        assert_eq!(access_one.check_key(&headers(&[])).unwrap_err().status, 401);
        let shared = access(&["one", "two"], false);
        assert_eq!(
            shared.check_key(&headers(&[("x-api-key", "two")])).unwrap(),
            0
        );
        assert_eq!(access(&[], true).check_key(&headers(&[])).unwrap(), 0);
    }

    #[test]
    fn an_empty_key_is_refused() {
        let with = |key: &str| {
            Access::new(&AccessArgs {
                api_key: vec![key.into()],
                ..AccessArgs::default()
            })
        };
        assert!(with(" ").is_err() && with("").is_err() && with("x").is_ok());
    }
}
