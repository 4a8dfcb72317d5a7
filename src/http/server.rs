//! Accepting connections within limits, and ending in order.
//!
//! ```text
//! serving ─ told to stop ─► draining: accepted requests are finished, new ones answered 503 and `Connection: close`
//!                              └ all finished, or out of time ─► nothing is accepted ─► cache drained ─► returned
//! ```
//!
//! A connection on which nothing was asked yet is not closed at once: its first request may be on its way, and whoever sent it
//! could not tell a request that was never read from one that was lost. On a connection that was kept he can.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::Service as _;

use crate::cache::Catalogue;

use super::connection::{Busy, Connection};
use super::limits::Config;
use super::metrics::Held;
use super::unsent::Unsent;
use super::{Service, router};

/// How long nothing is accepted after the system refused to (it is out of files or memory).
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// How long connections that came while draining may take, once everything accepted before is finished.
const LATECOMERS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection that is told to end may take to say what it was made for.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Hyper's smallest buffer.
const BUFFER_BYTES_MIN: usize = 8 << 10;

/// Serves one cache or several on a listener until `shutdown` ends, then drains: what was accepted is answered, the cache is drained.
///
/// # Errors
/// When the cache's store cannot be synced at the end. Troubles of single connections end those alone.
pub async fn serve(
    listener: TcpListener,
    models: impl Into<Catalogue>,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let drain_timeout = config.drain_timeout;
    let catalogue = models.into();
    let service = Service::new(catalogue.clone(), config);
    let server = Server::new(service.clone());
    let accepted = Connections::default();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            (stream, room) = server.accept(&listener) => server.spawn(stream, room, accepted.told()),
        }
    }

    tracing::info!("stopping: accepted requests are finished, new ones refused");
    service.start_draining();
    let latecomers = Connections::default();
    let finished = tokio::time::timeout(drain_timeout, accepted.end());
    let mut finished = pin!(finished);
    let in_time = loop {
        tokio::select! {
            outcome = &mut finished => break outcome.is_ok(),
            (stream, room) = server.accept(&listener) => server.spawn(stream, room, latecomers.told()),
        }
    };
    server.accept_rest(listener, &latecomers);
    if !in_time {
        tracing::warn!(?drain_timeout, "some accepted requests did not finish in time and are given up");
    }
    // Latecomers are refused at once; who is slower than this to read its refusal does without.
    let _ = tokio::time::timeout(LATECOMERS_TIMEOUT, latecomers.end()).await;
    catalogue.drain().await.map_err(io::Error::other)
}

/// Connections that are told to end together.
struct Connections(watch::Sender<bool>);

/// What one of them hears by; it is there for as long as the connection is.
type Told = watch::Receiver<bool>;

impl Default for Connections {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Connections {
    fn told(&self) -> Told {
        self.0.subscribe()
    }

    /// Tells all, and ends when they have.
    async fn end(&self) {
        self.0.send_replace(true);
        self.0.closed().await;
    }
}

struct Server {
    service: Service,
    router: Router,
    builder: Arc<Builder<TokioExecutor>>,
    room: Arc<Semaphore>,
}

impl Server {
    fn new(service: Service) -> Self {
        let config = &service.shared.config;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_headers(config.headers_max)
            .max_buf_size(config.header_bytes_max.max(BUFFER_BYTES_MIN));
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(config.idle_timeout)
            .max_concurrent_streams(config.http2_streams_max)
            .max_header_list_size(u32::try_from(config.header_bytes_max).unwrap_or(u32::MAX));
        let room = Arc::new(Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
        let router = router(service.clone());
        Self { service, router, builder: Arc::new(builder), room }
    }

    /// The next connection, once there is room for one more.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, OwnedSemaphorePermit) {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, room),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "the system refuses a connection");
                    tokio::time::sleep(PAUSE_AFTER_REFUSAL).await;
                }
            }
        }
    }

    /// Takes what has connected and closes the listener: what the system still held would be reset, and its clients could not
    /// tell that nothing was done for them.
    fn accept_rest(&self, listener: TcpListener, latecomers: &Connections) {
        // Asked directly: the runtime may not have heard of the latest yet.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    if let Ok(stream) = stream {
                        self.spawn(stream, room, latecomers.told());
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn spawn(&self, stream: TcpStream, room: OwnedSemaphorePermit, mut told: Told) {
        let metrics = &self.service.shared.metrics;
        metrics.accepted.inc();
        let open = Held::new(&metrics.connections);
        // Answers are written whole: waiting to fill a packet only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let (config, busy) = (&self.service.shared.config, Busy::default());
        let io = TokioIo::new(Connection::new(stream, busy.clone(), config.idle_timeout, config.write_timeout));
        let router = self.router.clone();
        let asked = busy.clone();
        let unsent = Unsent::new(config.write_timeout);
        let watching = unsent.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (guard, answering) = (busy.guard(), router.clone().call(request.map(Body::new)));
            let watching = watching.clone();
            async move {
                let answer = answering.await;
                drop(guard);
                answer.map(|answer| answer.map(|body| watching.watch(body))).map_err(|never: Infallible| never)
            }
        });
        let builder = Arc::clone(&self.builder);
        tokio::spawn(async move {
            let _held = (room, open);
            let mut connection = pin!(builder.serve_connection(io, service).into_owned());
            let ending = async {
                // The sender is gone only when the whole service was.
                let _ = told.wait_for(|told| *told).await;
                if !asked.was_asked() {
                    tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
                }
            };
            let (mut ending, mut overdue) = (pin!(ending), pin!(unsent.overdue()));
            let mut is_ending = false;
            loop {
                tokio::select! {
                    outcome = &mut connection => {
                        if let Err(error) = outcome {
                            tracing::debug!(%error, "a connection ended early");
                        }
                        return;
                    }
                    () = &mut overdue => {
                        tracing::debug!("a connection was closed: its peer took an answer too slowly");
                        return;
                    }
                    () = &mut ending, if !is_ending => {
                        is_ending = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        });
    }
}

/// Whether an error of `accept` is about the connection that was to be accepted, which is gone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
