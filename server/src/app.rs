//! The state that all requests share.

use std::{
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    access::Access,
    args::{Args, Limits},
    error::{ApiError, Result},
    lock,
    metrics::Metrics,
    models::{Models, seconds},
    page::Page,
    question::{Part, Source, Turn},
    queue::Queue,
    remote::Fetcher,
};

/// The state of the server.
pub struct App {
    pub access: Access,
    pub limits: Limits,
    pub metrics: Metrics,
    pub models: Models,
    pub page: Page,
    pub queue: Queue,
    fetcher: Option<Fetcher>,
    /// The KiB that may still be received.
    bodies: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
    failures: Mutex<Option<Failure>>,
    pub started: Instant,
}

/// The life of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Phase {
    /// The first model is being loaded.
    Loading,
    Ready,
    /// Answers in progress go on; new requests are refused.
    Draining,
    /// Answers in progress are cancelled.
    Ending,
}

/// The latest failure of the library.
#[derive(Debug, Clone)]
pub struct Failure {
    pub message: String,
    /// In seconds since 1970.
    pub at: u64,
    /// The number of failures so far.
    pub count: u64,
}

impl App {
    /// Reads the folders of the models, and the keys.
    pub fn new(args: &Args) -> anyhow::Result<App> {
        let fetcher = match args.access.allow_remote_images {
            true => Some(Fetcher::new(&args.limits)?),
            false => None,
        };
        Ok(App {
            access: Access::new(&args.access)?,
            metrics: Metrics::new(),
            models: Models::new(args)?,
            page: Page::new(args.example_image.as_deref())?,
            queue: Queue::new(&args.limits),
            fetcher,
            bodies: Arc::new(Semaphore::new(args.limits.max_bodies << 10)),
            limits: args.limits.clone(),
            phase: watch::Sender::new(Phase::Loading),
            failures: Mutex::new(None),
            started: Instant::now(),
        })
    }

    /// Loads the first model.
    pub async fn load(&self) -> Result<()> {
        let loaded = self.models.acquire(&self.models.all()[0]).await;
        self.enter(Phase::Ready);
        loaded.map(drop)
    }

    /// Returns the current phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Enters a later phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let is_later = phase > *current;
            if is_later {
                *current = phase;
            }
            is_later
        });
        if phase >= Phase::Draining {
            self.queue.close();
        }
    }

    /// Fails if the server takes no new requests.
    pub fn check_running(&self) -> Result<()> {
        match self.phase() >= Phase::Draining {
            true => Err(ApiError::shutting_down()),
            false => Ok(()),
        }
    }

    /// Returns whether answers in progress are cancelled.
    pub fn is_ending(&self) -> bool {
        self.phase() == Phase::Ending
    }

    /// Waits until answers in progress are cancelled.
    pub async fn ending(&self) {
        let mut phases = self.phase.subscribe();
        if phases
            .wait_for(|phase| *phase == Phase::Ending)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Remembers a failure of the library, for the health check.
    pub fn failed(&self, error: &moxin_vlm::Error) {
        let mut failures = lock(&self.failures);
        let count = failures.as_ref().map_or(0, |failure| failure.count) + 1;
        *failures = Some(Failure {
            message: error.to_string(),
            at: seconds(SystemTime::now()),
            count,
        });
    }

    /// Returns the latest failure of the library.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failures).clone()
    }

    /// Reserves room for a request of so many bytes.
    pub fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.bodies
            .clone()
            .try_acquire_many_owned(kib)
            .map_err(|_| {
                let message = "too much request data is being received; try again (--max-bodies)";
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
                    .code("too_much_data")
                    .retry(2)
            })
    }

    /// Replaces the URLs of pictures by their contents.
    pub async fn fetch_images(&self, turns: &mut [Turn]) -> Result<()> {
        for part in turns.iter_mut().flat_map(|turn| &mut turn.parts) {
            let Part::Image { source, field, .. } = part else {
                continue;
            };
            if let Source::Url(url) = source {
                let Some(fetcher) = &self.fetcher else {
                    let message = "this server fetches no pictures; send a data: URL, or start it \
                                   with --allow-remote-images";
                    return Err(ApiError::field(&*field, message).code("remote_images_off"));
                };
                let bytes = fetcher.fetch(url).await.map_err(|error| error.at(field))?;
                *source = Source::Bytes(bytes);
            }
        }
        Ok(())
    }
}
