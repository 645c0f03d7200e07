//! Counts and times, in the text format of Prometheus.

use std::time::Duration;

use moxin_vlm::{Stats, device::memory_stats, generate::prefix_pool_bytes};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::app::App;

/// The counts and times of a server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    prompt_tokens: Counter,
    cancelled: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    wait: Histogram,
    first_token: Histogram,
    per_token: Histogram,
    active: Gauge,
    waiting: Gauge,
    loaded: Gauge,
    memory: Gauge,
    prefix_cache: Gauge,
}

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    endpoint: String,
    status: u16,
}

impl Metrics {
    /// Creates the metrics, all at 0.
    pub fn new() -> Metrics {
        let times = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("moxin"),
            requests: Family::default(),
            prompt_tokens: Counter::default(),
            cancelled: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            wait: times(),
            first_token: times(),
            per_token: times(),
            active: Gauge::default(),
            waiting: Gauge::default(),
            loaded: Gauge::default(),
            memory: Gauge::default(),
            prefix_cache: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests", self.requests.clone());
        for (name, help, counter) in [
            (
                "prompt_tokens",
                "Prompt positions of answers",
                &self.prompt_tokens,
            ),
            (
                "cancelled_requests",
                "Requests whose client left before the answer was complete",
                &self.cancelled,
            ),
            (
                "cached_prompt_tokens",
                "Prompt positions that were not read again",
                &self.cached_tokens,
            ),
            (
                "generated_tokens",
                "Generated tokens",
                &self.generated_tokens,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, histogram) in [
            ("wait", "Time that requests wait for a place", &self.wait),
            (
                "first_token",
                "Time to the first token, without waiting",
                &self.first_token,
            ),
            (
                "per_token",
                "Mean time of a token of an answer",
                &self.per_token,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        for (name, help, gauge) in [
            (
                "active_requests",
                "Requests that are being answered",
                &self.active,
            ),
            (
                "waiting_requests",
                "Requests that wait for a place",
                &self.waiting,
            ),
            ("loaded_models", "Models in memory", &self.loaded),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, gauge) in [
            ("memory", "Memory that the library uses", &self.memory),
            (
                "prefix_cache",
                "Memory of ended conversations",
                &self.prefix_cache,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
    }

    /// Counts a request.
    pub fn request(&self, endpoint: &str, status: u16) {
        let labels = Labels {
            endpoint: endpoint.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts the time that a request waited.
    pub fn waited(&self, time: Duration) {
        self.wait.observe(time.as_secs_f64());
    }

    /// Counts a request whose client left.
    pub fn cancelled(&self) {
        self.cancelled.inc();
    }

    /// Counts an answer.
    pub fn answered(&self, stats: &Stats) {
        self.prompt_tokens.inc_by(stats.prompt_tokens as u64);
        self.cached_tokens.inc_by(stats.reused_tokens as u64);
        self.generated_tokens.inc_by(stats.generated_tokens as u64);
        self.first_token.observe(stats.first_token.as_secs_f64());
        if stats.generated_tokens > 1 {
            let tokens = (stats.generated_tokens - 1) as f64;
            self.per_token.observe(stats.decode.as_secs_f64() / tokens);
        }
    }

    /// Returns the text for Prometheus.
    pub fn text(&self, app: &App) -> String {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.active.set(number(app.queue.active() as u64));
        self.waiting.set(number(app.queue.waiting() as u64));
        let loaded = app.models.all().iter().filter(|model| model.is_loaded());
        self.loaded.set(number(loaded.count() as u64));
        self.memory
            .set(number(memory_stats().map_or(0, |stats| stats.active)));
        self.prefix_cache.set(number(prefix_pool_bytes()));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
