//! Pictures from https:// URLs, from public addresses only.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use axum::http::StatusCode;
use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    args::Limits,
    error::{ApiError, Result},
};

/// The number of redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// The time that one picture may take.
const MAX_TIME: Duration = Duration::from_secs(20);

/// What may be fetched. Tests have rules of their own; everything else uses [`Rules::public`].
#[derive(Clone, Copy)]
struct Rules {
    scheme: &'static str,
    address: fn(IpAddr) -> bool,
}

impl Rules {
    const fn public() -> Rules {
        Rules {
            scheme: "https",
            address: is_public,
        }
    }

    /// Checks a URL before it is requested. Names are checked when they are resolved.
    fn check(&self, url: &Url) -> Result<(), String> {
        if url.scheme() != self.scheme {
            return Err(format!(
                "a picture's URL must start with {}://",
                self.scheme
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a picture's URL must not have a user name".into());
        }
        let host = url.host_str().unwrap_or_default();
        match host.trim_matches(['[', ']']).parse() {
            Ok(address) if !(self.address)(address) => Err(refused(host)),
            _ => Ok(()),
        }
    }
}

fn refused(host: &str) -> String {
    format!("{host} is not a public address; pictures are only fetched from public ones")
}

/// Fetches pictures.
pub struct Fetcher {
    client: Client,
    rules: Rules,
    max_bytes: usize,
}

impl Fetcher {
    /// Creates a fetcher of pictures as large as a request may be.
    pub fn new(limits: &Limits) -> anyhow::Result<Fetcher> {
        Fetcher::with(Rules::public(), limits.body_bytes())
    }

    fn with(rules: Rules, max_bytes: usize) -> anyhow::Result<Fetcher> {
        // Another one may be installed already; either will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let redirects = Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error("too many redirects");
            }
            match rules.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(why) => attempt.error(why),
            }
        });
        let client = Client::builder()
            .dns_resolver(Arc::new(Resolver(rules)))
            .redirect(redirects)
            .no_proxy()
            .connect_timeout(MAX_TIME / 4)
            .user_agent(concat!("moxin-server/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Fetcher {
            client,
            rules,
            max_bytes,
        })
    }

    /// Returns the content of a URL.
    pub async fn fetch(&self, url: &str) -> Result<Vec<u8>> {
        let refuse = |message: String| {
            ApiError::new(StatusCode::BAD_REQUEST, message).code("remote_image_failed")
        };
        let url = Url::parse(url).map_err(|_| refuse("the picture's URL is not valid".into()))?;
        self.rules.check(&url).map_err(refuse)?;
        match timeout(MAX_TIME, self.read(url)).await {
            Ok(read) => read.map_err(|why| refuse(format!("the picture was not fetched: {why}"))),
            Err(_) => Err(refuse(format!(
                "the picture was not fetched within {} seconds",
                MAX_TIME.as_secs()
            ))),
        }
    }

    async fn read(&self, url: Url) -> Result<Vec<u8>, String> {
        let mut response = self.client.get(url).send().await.map_err(causes)?;
        if !response.status().is_success() {
            return Err(format!("the answer was {}", response.status()));
        }
        let too_large = || format!("it is larger than {} bytes", self.max_bytes);
        if response
            .content_length()
            .is_some_and(|length| length > self.max_bytes as u64)
        {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(causes)? {
            if bytes.len() + chunk.len() > self.max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// Returns the deepest cause of an error, which says why.
fn causes(error: reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Resolves a name once, and refuses it if any of its addresses is not public. The connection uses
/// these addresses, so that a second answer of the name server has no effect.
struct Resolver(Rules);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let lookup = {
                let host = host.clone();
                move || (host, 0).to_socket_addrs().map(Vec::from_iter)
            };
            let addresses: Vec<SocketAddr> = spawn_blocking(lookup).await??;
            if addresses
                .iter()
                .any(|address| !(rules.address)(address.ip()))
            {
                return Err(refused(&host).into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Returns whether an address is on the public internet: not private, loopback, link-local (with
/// the metadata services of clouds), shared, reserved or multicast
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry/>).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(address) => is_public_v4(address),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || address.is_documentation())
}

/// Only 2000::/3 is assigned; of it, documentation, benchmarking, Teredo and ORCHID are not hosts.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    (0x2000..0x4000).contains(&a) && !(a == 0x2001 && (b < 0x200 || b == 0x0db8)) && a != 0x3fff
}

/// Returns the IPv4 address that an IPv6 address leads to: mapped, 6to4 or NAT64.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b) {
        (0x2002, _) => Some(v4(b, c)),
        (0x64, 0xff9b) => Some(v4(g, h)),
        (0, 0) if [c, d, e] == [0; 3] && (f == 0xffff || f == 0) => Some(v4(g, h)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::header::LOCATION, response::IntoResponse, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "3fff::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "192.1.0.1",
            "198.20.0.1",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    /// A server with a picture, a large file, and redirects.
    async fn serve() -> u16 {
        let go = |to: &'static str| {
            get(move || async move { (StatusCode::FOUND, [(LOCATION, to)]).into_response() })
        };
        let router = Router::new()
            .route("/picture", get(|| async { "pixels" }))
            .route("/large", get(|| async { "x".repeat(1001) }))
            .route("/loop", go("/loop"))
            .route("/here", go("/picture"))
            .route("/private", go("http://127.0.0.2/"))
            .route("/metadata", go("http://169.254.169.254/latest"))
            .route("/file", go("file:///etc/passwd"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async { axum::serve(listener, router).await });
        port
    }

    /// A fetcher for which only the server of the test is public.
    fn fetcher() -> Fetcher {
        let rules = Rules {
            scheme: "http",
            address: |address| address == IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        Fetcher::with(rules, 1000).unwrap()
    }

    #[tokio::test]
    async fn redirects_are_checked_and_sizes_limited() {
        let (port, fetcher) = (serve().await, fetcher());
        let fetch = async |path: &str| {
            let fetched = fetcher
                .fetch(&format!("http://127.0.0.1:{port}{path}"))
                .await;
            fetched.map_err(|error| error.message)
        };
        assert_eq!(fetch("/picture").await.unwrap(), b"pixels");
        assert_eq!(fetch("/here").await.unwrap(), b"pixels");
        assert!(
            fetch("/large")
                .await
                .unwrap_err()
                .contains("larger than 1000 bytes")
        );
        assert!(
            fetch("/loop")
                .await
                .unwrap_err()
                .contains("too many redirects")
        );
        assert!(
            fetch("/private")
                .await
                .unwrap_err()
                .contains("127.0.0.2 is not a public")
        );
        assert!(
            fetch("/metadata")
                .await
                .unwrap_err()
                .contains("169.254.169.254")
        );
        // The client refuses other schemes by itself.
        assert!(fetch("/file").await.is_err());
        assert!(fetch("/nothing").await.unwrap_err().contains("404"));
    }

    #[tokio::test]
    async fn names_of_private_addresses_are_refused() {
        let fetcher = Fetcher::with(Rules::public(), 1000).unwrap();
        let fetch = async |url: &str| fetcher.fetch(url).await.unwrap_err().message;
        assert!(
            fetch("https://localhost/x.png")
                .await
                .contains("localhost is not a public")
        );
        assert!(
            fetch("https://127.0.0.1/x.png")
                .await
                .contains("not a public address")
        );
        assert!(
            fetch("https://[::1]/x.png")
                .await
                .contains("not a public address")
        );
        assert!(
            fetch("https://2130706433/x.png")
                .await
                .contains("not a public address")
        );
        assert!(fetch("http://example.com/x.png").await.contains("https://"));
        assert!(fetch("file:///etc/passwd").await.contains("https://"));
        assert!(
            fetch("https://user:x@example.com/")
                .await
                .contains("user name")
        );
        assert!(fetch("/etc/passwd").await.contains("not valid"));
    }
}
