//! Clients that measure: each a thread with one connection at a time.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// What is sent, to whom, and for how long.
pub struct Load {
    pub url: String,
    pub connections: usize,
    pub time: Duration,
    pub bodies: Vec<Body>,
    /// One of so many answers is broken off, at a random moment; 0: none.
    pub broken: u64,
}

/// The body of a request.
pub struct Body(String);

impl Body {
    /// Returns a question without a picture, whose answer has 32 tokens at most.
    pub fn text() -> Body {
        let question = "word ".repeat(40);
        Body::new(json!([{"role": "user", "content": question}]), 50.0)
    }

    fn new(messages: Value, temperature: f32) -> Body {
        let body = json!({
            "model": "tiny", "messages": messages, "stream": true, "max_tokens": 32,
            "temperature": temperature, "seed": 0,
        });
        Body(body.to_string())
    }
}

/// Returns questions with and without a picture, short and long.
pub fn bodies(picture: &[u8]) -> Vec<Body> {
    let url = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(picture));
    let look = |question: &str| {
        json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]}])
    };
    let mut follow_up = look("How many shapes are there?");
    if let Some(messages) = follow_up.as_array_mut() {
        messages.push(json!({"role": "assistant", "content": "Three."}));
        messages.push(json!({"role": "user", "content": "Describe the picture."}));
    }
    vec![
        Body::new(look("Describe the picture."), 0.0),
        Body::new(look("How many shapes are there?"), 0.0),
        Body::new(follow_up, 0.0),
        Body::new(
            json!([{"role": "user", "content": "word ".repeat(400)}]),
            50.0,
        ),
        Body::text(),
    ]
}

/// What a client saw.
#[derive(Default)]
pub struct Outcome {
    /// The number of whole answers, and of those that it broke off.
    pub whole: usize,
    pub broken: usize,
    /// The seconds to the first text of each answer, and between two texts.
    pub first: Vec<f64>,
    pub between: Vec<f64>,
    pub failures: Vec<String>,
    pub seconds: f64,
}

impl Outcome {
    /// Joins what several clients saw, and sorts the times.
    pub fn merge(outcomes: Vec<Outcome>) -> Outcome {
        let mut all = Outcome::default();
        for outcome in outcomes {
            all.whole += outcome.whole;
            all.broken += outcome.broken;
            all.first.extend(outcome.first);
            all.between.extend(outcome.between);
            all.failures.extend(outcome.failures);
            all.seconds = all.seconds.max(outcome.seconds);
        }
        all.first.sort_by(f64::total_cmp);
        all.between.sort_by(f64::total_cmp);
        all
    }
}

/// Returns the value below which this fraction of sorted values is.
pub fn percentile(values: &[f64], fraction: f64) -> f64 {
    let last = values.len().saturating_sub(1);
    let at = (last as f64 * fraction).round() as usize;
    values.get(at).copied().unwrap_or(0.0)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |values: &[f64], fraction| 1e3 * percentile(values, fraction);
        write!(
            f,
            "{} answers ({:.1} a second), {} broken off, {} failed; first token p50 {:.1} ms, p95 \
             {:.1} ms; a token p50 {:.2} ms, p95 {:.2} ms",
            self.whole,
            self.whole as f64 / self.seconds,
            self.broken,
            self.failures.len(),
            milliseconds(&self.first, 0.5),
            milliseconds(&self.first, 0.95),
            milliseconds(&self.between, 0.5),
            milliseconds(&self.between, 0.95),
        )
    }
}

impl Load {
    /// Runs all clients.
    pub fn run(&self) -> Vec<Outcome> {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..self.connections)
                .map(|number| scope.spawn(move || self.client(number as u64)))
                .collect();
            let outcomes = clients.into_iter().map(|client| client.join());
            outcomes.flatten().collect()
        })
    }

    fn client(&self, number: u64) -> Outcome {
        let (clock, mut random) = (Instant::now(), Random(number + 1));
        let mut outcome = Outcome::default();
        while clock.elapsed() < self.time {
            let body = &self.bodies[random.below(self.bodies.len() as u64) as usize];
            let breaks = self.broken > 0 && random.below(self.broken) == 0;
            // Before the answer begins, or somewhere in it.
            let patience = breaks.then(|| Duration::from_millis(random.below(1000)));
            match self.ask(body, patience, &mut outcome) {
                Ok(true) => outcome.whole += 1,
                Ok(false) => outcome.broken += 1,
                Err(error) => outcome.failures.push(error.to_string()),
            }
        }
        outcome.seconds = clock.elapsed().as_secs_f64();
        outcome
    }

    /// Asks once; returns whether the whole answer came, and false if the client's patience ended.
    fn ask(
        &self,
        Body(body): &Body,
        patience: Option<Duration>,
        outcome: &mut Outcome,
    ) -> io::Result<bool> {
        let clock = Instant::now();
        let mut stream = connect(&self.url)?;
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let mut latest: Option<Instant> = None;
        let mut answer = Chunks::new(&mut reader, patience.map(|patience| clock + patience));
        loop {
            match answer.line() {
                Ok(line) if line.starts_with("data: [DONE]") => return Ok(true),
                Ok(line) if line.starts_with("data: ") && has_text(&line) => {
                    let now = Instant::now();
                    match latest {
                        None => outcome.first.push((now - clock).as_secs_f64()),
                        Some(before) => outcome.between.push((now - before).as_secs_f64()),
                    }
                    latest = Some(now);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns whether a chunk of an answer has text.
fn has_text(line: &str) -> bool {
    let chunk: Value = serde_json::from_str(&line["data: ".len()..]).unwrap_or_default();
    chunk["choices"][0]["delta"]["content"]
        .as_str()
        .is_some_and(|text| !text.is_empty())
}

fn connect(url: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Returns whether a server is ready.
pub fn is_ready(url: &str) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = connect(url)?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer.contains(" 200 "))
    };
    ask().unwrap_or(false)
}

/// The lines of an answer in chunks, until a moment in which the client leaves.
struct Chunks<'r> {
    reader: &'r mut BufReader<TcpStream>,
    until: Option<Instant>,
    has_begun: bool,
    content: Vec<u8>,
}

impl<'r> Chunks<'r> {
    fn new(reader: &'r mut BufReader<TcpStream>, until: Option<Instant>) -> Chunks<'r> {
        Chunks {
            reader,
            until,
            has_begun: false,
            content: Vec::new(),
        }
    }

    /// Returns the next line.
    fn line(&mut self) -> io::Result<String> {
        if !self.has_begun {
            self.begin()?;
        }
        loop {
            if let Some(end) = self.content.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.content.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let size = self.raw_line()?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk)?;
            if size == 0 {
                return Err(io::Error::other("the answer ended without [DONE]"));
            }
            self.content.extend(&chunk[..size]);
        }
    }

    /// Reads the head of the answer.
    fn begin(&mut self) -> io::Result<()> {
        let status = self.raw_line()?;
        while !self.raw_line()?.trim().is_empty() {}
        self.has_begun = true;
        match status.contains(" 200 ") {
            true => Ok(()),
            false => {
                let mut rest = String::new();
                self.reader.read_to_string(&mut rest)?;
                Err(io::Error::other(format!("{}: {rest}", status.trim())))
            }
        }
    }

    /// Reads a line of the connection.
    fn raw_line(&mut self) -> io::Result<String> {
        if let Some(until) = self.until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
        }
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(io::Error::other("the connection was closed")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Ok(_) => Ok(line),
            Err(error) => Err(error),
        }
    }
}

/// Numbers that need no quality: <https://en.wikipedia.org/wiki/Xorshift>.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_sorted_values() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.95)),
            (50.0, 95.0)
        );
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
