//! Places for requests: a few are answered at the same time, some more may wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{args::Limits, error::ApiError};

/// The queue of requests.
pub struct Queue {
    places: Arc<Semaphore>,
    all: usize,
    waiting: AtomicUsize,
    max_waiting: usize,
    max_wait: Duration,
}

/// A request's place, until it is dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    /// The time that the request waited.
    pub waited: Duration,
}

impl Queue {
    /// Creates an empty queue.
    pub fn new(limits: &Limits) -> Queue {
        Queue {
            places: Arc::new(Semaphore::new(limits.max_active)),
            all: limits.max_active,
            waiting: AtomicUsize::new(0),
            max_waiting: limits.max_waiting,
            max_wait: limits.wait(),
        }
    }

    /// Returns the number of requests that are being answered.
    pub fn active(&self) -> usize {
        self.all - self.places.available_permits()
    }

    /// Returns the number of requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Waits for a place; requests get theirs in the order of their arrival.
    ///
    /// # Errors
    /// 429 if too many wait already; 503 if the wait takes too long.
    pub async fn enter(&self) -> Result<Place, ApiError> {
        let clock = Instant::now();
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(Place {
                _permit: permit,
                waited: Duration::ZERO,
            });
        }
        let Some(_waiting) = Waiting::join(&self.waiting, self.max_waiting) else {
            let message = format!(
                "{} requests wait already; this server allows no more (--max-waiting)",
                self.max_waiting
            );
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
                .code("queue_full")
                .retry(5));
        };
        match timeout(self.max_wait, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place {
                _permit: permit,
                waited: clock.elapsed(),
            }),
            Ok(Err(_)) => Err(ApiError::shutting_down()),
            Err(_) => {
                let message = format!(
                    "the request waited for {} seconds (--max-wait-seconds) without a place",
                    self.max_wait.as_secs()
                );
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
                    .code("queue_timeout")
                    .retry(10))
            }
        }
    }

    /// Ends the waiting of all requests, and refuses new ones that would have to wait.
    pub fn close(&self) {
        self.places.close();
    }
}

/// A request that waits, also if its client goes away.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn join(waiting: &AtomicUsize, most: usize) -> Option<Waiting<'_>> {
        if waiting.fetch_add(1, Ordering::SeqCst) >= most {
            waiting.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(Waiting(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(max_waiting: usize, max_wait: Duration) -> Arc<Queue> {
        Arc::new(Queue {
            places: Arc::new(Semaphore::new(1)),
            all: 1,
            waiting: AtomicUsize::new(0),
            max_waiting,
            max_wait,
        })
    }

    #[tokio::test]
    async fn requests_wait_their_turn_and_no_longer_than_allowed() {
        let queue = queue(1, Duration::from_millis(20));
        let place = queue.enter().await.unwrap();
        assert_eq!((queue.active(), place.waited), (1, Duration::ZERO));
        let error = queue.enter().await.err().unwrap();
        assert_eq!(
            (error.status.as_u16(), error.code),
            (503, Some("queue_timeout"))
        );
        drop(place);
        assert_eq!((queue.active(), queue.waiting()), (0, 0));
        queue.enter().await.unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_client_that_leaves_makes_room() {
        let queue = queue(1, Duration::from_secs(60));
        let _place = queue.enter().await.unwrap();
        let waits = tokio::spawn({
            let queue = queue.clone();
            async move { queue.enter().await.map(drop) }
        });
        while queue.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let error = queue.enter().await.err().unwrap();
        assert_eq!(
            (error.status.as_u16(), error.code),
            (429, Some("queue_full"))
        );
        assert!(error.retry_after.is_some());
        waits.abort();
        let _ = waits.await;
        assert_eq!(queue.waiting(), 0);
        queue.close();
        let error = queue.enter().await.err().unwrap();
        assert_eq!(error.code, Some("shutting_down"));
    }
}
