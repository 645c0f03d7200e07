//! What hostile clients send, and that the next request works.

mod support;

use std::{
    collections::VecDeque,
    io::Write,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{Server, count_shapes, data_url, look, other_url, ramble, read_answer, read_rest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_body_of_a_gigabyte_is_refused_before_it_is_received() {
    let server = Server::start(&[]).await;
    let before = server.memory();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        server.address,
        1u64 << 30
    );
    let answer = server.send(head.as_bytes()).await;
    assert!(answer.check_error(413, None).contains("--max-body"));

    // Without a length it is received up to the limit.
    let mut stream = server.connect().await;
    let head = head.replace(
        &format!("Content-Length: {}", 1u64 << 30),
        "Transfer-Encoding: chunked",
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sends = tokio::spawn(async move {
        let chunk = [b"100000\r\n", &[b' '; 1 << 20][..], b"\r\n"].concat();
        let mut sent = 0;
        while sent < 1 << 10 && writer.write_all(&chunk).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let mut answer = vec![0; 12];
    reader.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
    drop(reader);
    assert!(sends.await.unwrap() < 1 << 10, "everything was received");
    server.check_works().await;
    assert!(server.memory() < before + (200 << 20));
}

#[tokio::test]
async fn slow_headers_do_not_keep_others_out() {
    const PLACES: usize = 512;
    let places = PLACES.to_string();
    let server = Server::start(&["--header-seconds", "1", "--max-connections", &places]).await;
    let mut slow = VecDeque::new();
    for i in 0..10_000 {
        let mut stream = server.connect().await;
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: loc").await;
        slow.push_back(stream);
        // At the end there are more than there are places, which all have a limit.
        if i < 9_000 && slow.len() > PLACES - 8 {
            slow.pop_front();
        }
    }
    assert!(slow.len() > PLACES);
    server.check_works().await;
    drop(slow);
    server.check_works().await;
}

#[tokio::test]
async fn a_header_that_never_ends_is_refused() {
    let server = Server::start(&["--header-seconds", "1"]).await;
    let long = format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = server.send(long.as_bytes()).await;
    assert!([0, 431].contains(&answer.status), "{answer:?}");
    let clock = Instant::now();
    let mut stream = server.connect().await;
    stream.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
    read_answer(stream).await;
    assert!(clock.elapsed() < Duration::from_secs(30));
    server.check_works().await;
}

#[tokio::test]
async fn pictures_that_are_none_are_refused() {
    let server = Server::start(&[]).await;
    let field = "messages[0].content[0].image_url.url";
    let refused = async |url: &str| {
        let answer = server
            .chat(&json!({"messages": [look(url, "What is this?")]}))
            .await;
        answer.check_error(400, Some(field))
    };
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>";
    for (kind, content) in [
        ("image/svg+xml", &svg[..]),
        ("image/png", svg),
        ("text/html", b"<!doctype html><img src=x onerror=alert(1)>"),
        ("image/png", b""),
        ("image/png", b"\x89PNG\r\n\x1a\n"),
    ] {
        refused(&data_url(kind, content)).await;
    }
    let huge = png_of(70_000, 70_000);
    assert!(
        refused(&data_url("image/png", &huge))
            .await
            .contains("70000")
    );
    for url in [
        "file:///etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1/x.png",
        "ftp://example.com/x.png",
        "data:image/png,abc",
        "data:image/png;base64,*",
        "data:image/png;base64",
        "",
    ] {
        let message = refused(url).await;
        assert!(!message.contains("root:"), "{message}");
    }
    assert!(
        refused("https://example.com/x.png")
            .await
            .contains("--allow-remote-images")
    );
    server.check_works().await;
}

/// Returns a PNG that says it is this large, with a few of its pixels.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut pixels = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    pixels.write_all(&[0; 1000]).unwrap();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, content) in [
        (b"IHDR", header),
        (b"IDAT", pixels.finish().unwrap()),
        (b"IEND", Vec::new()),
    ] {
        let chunk = [&name[..], &content].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        png.extend((content.len() as u32).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc.sum().to_be_bytes());
    }
    png
}

#[tokio::test]
async fn remote_pictures_come_from_public_addresses_only() {
    let server = Server::start(&["--allow-remote-images"]).await;
    for url in [
        "https://127.0.0.1/x.png",
        "https://localhost/x.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:10.0.0.1]/x.png",
    ] {
        let answer = server
            .chat(&json!({"messages": [look(url, "What is this?")]}))
            .await;
        let field = "messages[0].content[0].image_url.url";
        let message = answer.check_error(400, Some(field));
        assert!(message.contains("public"), "{message}");
    }
    server.check_works().await;
}

#[tokio::test]
async fn other_names_and_pages_are_refused() {
    let server = Server::start(&["--allow-origin", "https://app.example"]).await;
    for host in [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
    ] {
        let answer = server
            .request("GET", "/v1/models", &[("Host", host)], b"")
            .await;
        answer.check_error(403, None);
    }
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        let headers = [("Origin", origin)];
        let answer = server
            .post_with("/v1/chat/completions", &headers, &count_shapes())
            .await;
        answer.check_error(403, None);
        assert!(answer.header("access-control-allow-origin").is_none());
    }
    // A form of another page needs no permission of the browser, but its type is refused.
    let form = [("Content-Type", "text/plain")];
    let answer = server
        .request("POST", "/v1/chat/completions", &form, b"{}")
        .await;
    answer.check_error(415, None);
    let allowed = [("Origin", "https://app.example")];
    let answer = server
        .post_with("/v1/chat/completions", &allowed, &count_shapes())
        .await;
    assert_eq!(answer.text_of_choice(), "Three.");
    assert_eq!(
        answer.header("access-control-allow-origin").as_deref(),
        Some("https://app.example")
    );
    let ask = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "POST"),
        (
            "Access-Control-Request-Headers",
            "authorization,content-type",
        ),
    ];
    let answer = server
        .request("OPTIONS", "/v1/chat/completions", &ask, b"")
        .await;
    assert_eq!(answer.status, 200);
    let allowed = answer.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization"), "{allowed}");
}

#[tokio::test]
async fn lengths_that_lie_end_the_request() {
    let server = Server::start(&["--body-seconds", "1"]).await;
    let head = |length: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n",
            server.address
        )
    };
    // More than comes: the server waits, but not forever.
    let answer = server.send(format!("{}{{}}", head("100")).as_bytes()).await;
    answer.check_error(408, None);
    // Less than comes: the rest is no request.
    let answer = server
        .send(format!("{}{{}}GET / HTTP/1.1\r\n\r\n", head("1")).as_bytes())
        .await;
    answer.check_error(400, None);
    for length in ["-1", "x", "99999999999999999999999"] {
        let answer = server
            .send(format!("{}{{}}", head(length)).as_bytes())
            .await;
        assert!([400, 413].contains(&answer.status), "{length}: {answer:?}");
    }
    // Two lengths could be read in two ways.
    let two = head("2").replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(
        server.send(format!("{two}{{}}").as_bytes()).await.status,
        400
    );
    // A client that leaves in the middle.
    let mut stream = server.connect().await;
    stream
        .write_all(format!("{}{{}}", head("100")).as_bytes())
        .await
        .unwrap();
    drop(stream);
    server.check_works().await;
}

#[tokio::test]
async fn broken_json_is_refused() {
    let server = Server::start(&[]).await;
    let kind = [("Content-Type", "application/json")];
    let deep = format!("{{\"messages\": {}", "[".repeat(1_000_000));
    let deep_closed = format!("{{\"messages\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    for body in [
        &b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}"[..],
        b"\xff",
        b"{",
        b"null",
        b"[]",
        b"\"messages\"",
        deep.as_bytes(),
        deep_closed.as_bytes(),
    ] {
        for path in ["/v1/chat/completions", "/v1/describe", "/v1/responses"] {
            let answer = server.request("POST", path, &kind, body).await;
            assert_eq!(answer.status, 400, "{answer:?}");
            assert!(answer.json()["error"]["message"].is_string());
        }
        let answer = server.request("POST", "/v1/messages", &kind, body).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    server.check_works().await;
}

#[tokio::test]
async fn values_out_of_range_name_their_field() {
    let server = Server::start(&["--max-choices", "2"]).await;
    let with = |field: &str, value: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Hello"}]});
        body[field] = value;
        body
    };
    for (field, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!(1e300)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(-0.5)),
        ("top_p", json!(1.5)),
        ("min_p", json!(2)),
        ("top_k", json!(-1)),
        ("repetition_penalty", json!(0)),
        ("frequency_penalty", json!(2.5)),
        ("presence_penalty", json!(-3)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_tokens", json!(1_000_000)),
        ("max_completion_tokens", json!(0)),
        ("n", json!(0)),
        ("n", json!(3)),
        ("n", json!(1e10)),
        ("seed", json!(1.5)),
        ("stop", json!(vec!["x"; 1000])),
        ("stop", json!([""])),
        ("stop", json!("x".repeat(2000))),
        ("stop", json!(7)),
        ("top_logprobs", json!(5)),
        ("max_pixels", json!(0)),
        ("max_image_tokens", json!(0)),
        ("max_image_tokens", json!(-1)),
        ("tiles", json!("no")),
        ("stream_options", json!({"include_usage": true})),
        ("tools", json!([{"type": "function"}])),
        ("response_format", json!({"type": "json_object"})),
        ("logit_bias", json!({"1": 2})),
        ("audio", json!({"voice": "x"})),
        ("store", json!(true)),
        ("made_up", json!(1)),
        ("messages", json!([])),
        ("messages", json!("Hello")),
    ] {
        let answer = server.chat(&with(field, value.clone())).await;
        assert_eq!(answer.status, 400, "{field} {value}: {}", answer.text());
        let param = answer.json()["error"]["param"].clone();
        assert_eq!(param, field, "{value}: {}", answer.text());
    }
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let body = format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}], \"temperature\": {number}}}"
        );
        let kind = [("Content-Type", "application/json")];
        let answer = server
            .request("POST", "/v1/chat/completions", &kind, body.as_bytes())
            .await;
        assert_eq!(answer.status, 400, "{number}");
    }
    server.check_works().await;
}

#[tokio::test]
async fn a_key_is_needed_where_there_are_keys() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "from-a-file\n\n  and-another \n").unwrap();
    let path = keys.path().to_str().unwrap();
    let server = Server::start(&["--api-key", "first", "--api-key-file", path]).await;
    for (name, value) in [
        ("Authorization", "Bearer first"),
        ("Authorization", "bearer from-a-file"),
        ("x-api-key", "and-another"),
    ] {
        let answer = server
            .post_with("/v1/chat/completions", &[(name, value)], &count_shapes())
            .await;
        assert_eq!(answer.text_of_choice(), "Three.", "{value}");
    }
    for (name, value) in [
        ("Authorization", "Bearer firs"),
        ("Authorization", "Bearer first2"),
        ("Authorization", "Bearer "),
        ("Authorization", "Basic Zmlyc3Q="),
        ("x-api-key", ""),
        ("Accept", "*/*"),
    ] {
        for path in ["/v1/chat/completions", "/v1/responses", "/v1/describe"] {
            let answer = server
                .post_with(path, &[(name, value)], &count_shapes())
                .await;
            answer.check_error(401, None);
        }
        let answer = server
            .post_with("/v1/messages", &[(name, value)], &count_shapes())
            .await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    server.get("/metrics").await.check_error(401, None);
    server.get("/v1/models").await.check_error(401, None);
    assert_eq!(server.get("/").await.status, 200);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn clients_may_leave_at_any_stage() {
    let server = Server::start(&[
        "--max-active",
        "1",
        "--image-cache",
        "0",
        "--prefix-cache",
        "0",
    ])
    .await;
    server.check_works().await;
    let answered = server.metric("moxin_generated_tokens_total").await;
    let cancelled = async || server.metric("moxin_cancelled_requests_total").await;

    // While it waits.
    let first = server.open_begun_chat(&ramble()).await;
    let second = server.open_chat(&count_shapes()).await;
    server.wait_for("waiting_requests", 1).await;
    drop(second);
    server.wait_for("waiting_requests", 0).await;

    // While tokens are generated.
    drop(first);
    server.wait_for("active_requests", 0).await;
    assert_eq!(cancelled().await, 1);

    // While the picture is encoded, or the prompt is read: the client leaves as soon as the
    // request has its place.
    let long = "word ".repeat(1200);
    for message in [
        look(&other_url(3), "How many shapes are there?"),
        json!({"role": "user", "content": long}),
    ] {
        let stream = server.open_chat(&json!({"messages": [message]})).await;
        server.wait_for("active_requests", 1).await;
        drop(stream);
        server.wait_for("active_requests", 0).await;
    }
    // Nothing of these answers was completed.
    assert_eq!(
        server.metric("moxin_generated_tokens_total").await,
        answered
    );
    server.check_works().await;
}

#[tokio::test]
async fn the_end_waits_for_answers_but_not_forever() {
    let mut server = Server::start(&["--max-active", "20", "--drain-seconds", "4"]).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(server.open_begun_chat(&ramble()).await);
    }
    server.signal("TERM");
    // New requests are refused meanwhile.
    let clock = Instant::now();
    while server.get("/health").await.json()["status"] != "draining" {
        assert!(clock.elapsed() < support::LIMIT);
    }
    assert_eq!(server.get("/health").await.status, 503);
    let answer = server.chat(&count_shapes()).await;
    assert!(answer.check_error(503, None).contains("shutting down"));
    assert!(answer.header("retry-after").is_some());
    for stream in streams {
        let rest = String::from_utf8(read_rest(stream).await).unwrap();
        let mut data = rest.lines().filter_map(|line| line.strip_prefix("data: "));
        let last: Value = serde_json::from_str(data.next_back().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "shutting_down", "{last}");
    }
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn answers_end_before_the_server_does() {
    let mut server = Server::start(&[]).await;
    let mut short = ramble();
    short["max_tokens"] = json!(40);
    let stream = server.open_chat(&short).await;
    server.wait_for("active_requests", 1).await;
    server.signal("INT");
    let answer = read_answer(stream).await;
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut server = Server::start(&["--drain-seconds", "600"]).await;
    let _stream = server.open_chat(&ramble()).await;
    server.wait_for("active_requests", 1).await;
    server.signal("TERM");
    let clock = Instant::now();
    while server.get("/health").await.json()["status"] != "draining" {
        assert!(clock.elapsed() < support::LIMIT);
    }
    server.signal("TERM");
    assert!(server.ended().await.success());
    assert!(clock.elapsed() < Duration::from_secs(60));
}

/// SECURITY.md names every test of this file, and no other.
#[test]
fn security_md_names_every_attack() {
    let page = include_str!("../../SECURITY.md");
    let (_, section) = page
        .split_once("### A hostile client of the server")
        .unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut promised: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
    promised.sort();
    promised.dedup();
    let source = include_str!("attacks.rs");
    let after = source.split("#[tokio::test]\n").skip(1);
    let mut tests: Vec<&str> = after
        .filter_map(|rest| rest.strip_prefix("async fn ")?.split('(').next())
        .collect();
    tests.sort();
    assert_eq!(promised, tests);
}
