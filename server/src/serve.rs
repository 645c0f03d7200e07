//! Listening, the limits of connections, and the end.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::{
    app::{App, Phase},
    args::{Args, Limits},
    router::router,
};

/// The maximum size of a request's header, in bytes.
const MAX_HEADER: usize = 64 << 10;

/// The time that connections have to write the last bytes of cancelled answers.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until a signal ends it. Calls `listening` with the address once connections are accepted.
pub async fn serve(args: Args, listening: impl FnOnce(SocketAddr)) -> Result<()> {
    let app = Arc::new(App::new(&args)?);
    let router = router(app.clone(), &args.access)?;
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address}: cannot listen there (--host, --port)"))?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() && !app.access.has_keys() {
        tracing::warn!(
            "{address} can be reached from other machines, and needs no key (--api-key)"
        );
    }
    tracing::info!("listening on http://{address}");
    listening(address);
    let loading = tokio::spawn({
        let app = app.clone();
        async move { app.load().await }
    });
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(args.limits.max_connections));
    let mut stop = pin!(signal());
    let mut drained = None;
    loop {
        tokio::select! {
            accepted = accept(&listener, &places) => {
                let (stream, place) = accepted;
                let connection = connection(stream, &args.limits, router.clone());
                let watched = connections.watch(connection);
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = watched.await {
                        tracing::debug!("a connection ended: {error}");
                    }
                });
            }
            () = &mut stop => {
                match drained {
                    None => {
                        tracing::info!("shutting down; again to end at once");
                        app.enter(Phase::Draining);
                        drained = Some(tokio::spawn(drain(app.clone())));
                    }
                    Some(_) => break,
                }
                stop.set(signal());
            }
            () = finished(&mut drained) => break,
        }
    }
    app.enter(Phase::Ending);
    loading.abort();
    drop(listener);
    let _ = timeout(LAST_WORDS, connections.shutdown()).await;
    tracing::info!("ended");
    Ok(())
}

/// Waits for a connection and a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                // Such as too many open files: others close soon.
                tracing::warn!("a connection could not be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Returns a connection that ends when its client is too slow.
fn connection(
    stream: TcpStream,
    limits: &Limits,
    router: Router,
) -> impl GracefulConnection<Error = hyper::Error> + Send + 'static {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_secs(limits.idle_seconds)));
    let service = router.map_request(|request: Request<Incoming>| request.map(Body::new));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits.header_seconds))
        .max_buf_size(MAX_HEADER)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(service),
        )
}

/// Waits until all answers are complete, or the time for that is over.
async fn drain(app: Arc<App>) {
    let limit = Duration::from_secs(app.limits.drain_seconds);
    let clock = Instant::now();
    while app.queue.active() > 0 && clock.elapsed() < limit {
        sleep(Duration::from_millis(20)).await;
    }
    if app.queue.active() > 0 {
        tracing::warn!(
            "{} answers are cancelled after {} seconds (--drain-seconds)",
            app.queue.active(),
            limit.as_secs()
        );
    }
}

async fn finished(task: &mut Option<tokio::task::JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

/// Waits for SIGTERM or SIGINT.
async fn signal() {
    async fn wait() -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    }
    if let Err(error) = wait().await {
        tracing::warn!("signals cannot be received: {error}");
        std::future::pending::<()>().await;
    }
}
