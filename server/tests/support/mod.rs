//! A server in a process of its own, and requests to it.
#![allow(dead_code)]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// The longest that anything here may take; only reached by a test that fails.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A running server, which is killed at the end of the test.
pub struct Server {
    pub process: Child,
    /// Such as `127.0.0.1:4321`.
    pub address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the path of a file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

impl Server {
    /// Starts a server for the small model and waits until it is ready.
    pub async fn start(arguments: &[&str]) -> Server {
        let tiny = repository("models/tiny");
        let arguments = [&["--model", tiny.to_str().unwrap()], arguments].concat();
        Server::start_with(&arguments).await
    }

    /// Starts a server with these arguments and waits until it is ready.
    pub async fn start_with(arguments: &[&str]) -> Server {
        let server = Server::spawn(arguments);
        let ready = async {
            while server.get("/health").await.status != 200 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, ready).await.expect("the server is ready");
        server
    }

    /// Starts a server with these arguments.
    pub fn spawn(arguments: &[&str]) -> Server {
        let mut process = Command::new(env!("CARGO_BIN_EXE_moxin-server"))
            .args(["--port", "0", "--cpu"])
            .args(arguments)
            .env("RUST_LOG", "warn")
            .env_remove("MOXIN_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("http://").unwrap().to_owned();
        Server { process, address }
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end of the process; returns its exit status.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let clock = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(clock.elapsed() < LIMIT, "the server does not end");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// Sends bytes on a new connection; returns what comes back until the server closes it.
    pub async fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // The server may answer and close before everything is sent.
        let _ = stream.write_all(bytes).await;
        read_answer(stream).await
    }

    /// Sends a request with these headers and this body.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.send(&self.written(method, path, headers, body)).await
    }

    /// Returns the bytes of a request.
    pub fn written(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        self.request("POST", path, &headers, body.to_string().as_bytes())
            .await
    }

    pub async fn chat(&self, body: &Value) -> Answer {
        self.post("/v1/chat/completions", body).await
    }

    /// Opens a request for an answer, and leaves it open.
    pub async fn open_chat(&self, body: &Value) -> TcpStream {
        let mut stream = self.connect().await;
        let headers = [("Content-Type", "application/json")];
        let body = body.to_string();
        let request = self.written("POST", "/v1/chat/completions", &headers, body.as_bytes());
        stream.write_all(&request).await.unwrap();
        stream
    }

    /// Opens a request for an answer, waits until the answer has begun, and leaves it open.
    pub async fn open_begun_chat(&self, body: &Value) -> TcpStream {
        let mut stream = self.open_chat(body).await;
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200");
        stream
    }

    /// Returns a number of the metrics; 0 if it is not there yet.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.text();
        let line = text.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        line.map_or(0, |line| {
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
        })
    }

    /// Waits until a number of the health check is this.
    pub async fn wait_for(&self, field: &str, number: u64) {
        let clock = Instant::now();
        while self.get("/health").await.json()[field] != number {
            assert!(clock.elapsed() < LIMIT, "{field} does not become {number}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Checks that the server answers as always.
    pub async fn check_works(&self) {
        let answer = self.chat(&count_shapes()).await;
        assert_eq!(answer.text_of_choice(), "Three.", "{answer:?}");
    }

    /// Returns the resident memory of the process in bytes.
    pub fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }
}

/// Reads an answer until the server closes the connection.
pub async fn read_answer(stream: TcpStream) -> Answer {
    Answer::parse(&read_rest(stream).await)
}

/// Reads until the server closes the connection.
pub async fn read_rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset after the answer is no failure.
    let _ = timeout(LIMIT, stream.read_to_end(&mut bytes))
        .await
        .expect("the server answers");
    bytes
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    /// 0: the connection was closed without an answer.
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            return Answer {
                status: 0,
                head: String::from_utf8_lossy(bytes).into_owned(),
                body: Vec::new(),
            };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let rest = &bytes[end + 4..];
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked {
            joined(rest)
        } else {
            rest.to_vec()
        };
        Answer { status, head, body }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {} {}", self.head, self.text()))
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().skip(1);
        let pair = |line: &str| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        lines.filter_map(pair).next()
    }

    pub fn text_of_choice(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        let json = self.json();
        json["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Returns the data of all events.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        let data = |line: &str| line.strip_prefix("data: ").map(str::to_owned);
        text.lines().filter_map(data).collect()
    }

    /// Checks a typed error; returns its message.
    pub fn check_error(&self, status: u16, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.text());
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["param"], json!(param), "{error}");
        assert!(error["type"].is_string(), "{error}");
        error["message"].as_str().unwrap().to_owned()
    }
}

/// Joins the chunks of a body.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..at]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 || rest.len() < at + 4 + size {
            break;
        }
        body.extend(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    body
}

/// Returns a data: URL.
pub fn data_url(kind: &str, content: &[u8]) -> String {
    format!("data:{kind};base64,{}", BASE64_STANDARD.encode(content))
}

/// Returns the URL of the demo picture.
pub fn demo_url() -> String {
    data_url(
        "image/png",
        &std::fs::read(repository("models/demo.png")).unwrap(),
    )
}

/// Returns the URL of a small picture, another one for each number.
pub fn other_url(number: u8) -> String {
    let mut bmp = b"BM".to_vec();
    // The sizes of file and header, and 8 by 8 pixels of 24 bits:
    // https://learn.microsoft.com/en-us/windows/win32/api/wingdi/ns-wingdi-bitmapinfoheader
    for field in [54 + 192u32, 0, 54, 40, 8, 8] {
        bmp.extend(field.to_le_bytes());
    }
    bmp.extend([1, 0, 24, 0]);
    bmp.extend([0; 24]);
    bmp.extend((0..192u8).map(|i| i.wrapping_mul(number)));
    data_url("image/bmp", &bmp)
}

/// Returns a message of the user with a picture.
pub fn look(url: &str, question: &str) -> Value {
    json!({"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]})
}

/// Returns a question whose answer is "Three.".
pub fn count_shapes() -> Value {
    json!({"messages": [look(&demo_url(), "How many shapes are there?")]})
}

/// Returns a question whose answer goes on for long: nearly every token is equally likely.
pub fn ramble() -> Value {
    json!({
        "messages": [{"role": "user", "content": "Tell me everything."}],
        "temperature": 50, "seed": 0, "max_tokens": 1900, "stream": true,
    })
}
