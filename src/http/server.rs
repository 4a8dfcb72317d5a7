//! Accepting connections within limits, and ending in order.
//!
//! ```text
//! serving ─ told to stop ─► draining: accepted requests are finished, new ones answered 503 and `Connection: close`
//!                              └ all finished, or out of time ─► nothing is accepted ─► cache drained ─► returned
//! ```

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cache::Catalogue;

use super::conversation::{Connections, Told, converse};
use super::limits::Config;
use super::metrics::Held;
use super::{Service, router, routes};

/// How long nothing is accepted after the system refused to (it is out of files or memory).
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// How long connections that came while draining may take, once everything accepted before is finished.
const LATECOMERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Hyper's smallest buffer.
const BUFFER_BYTES_MIN: usize = 8 << 10;

/// Where requests come from.
#[derive(Debug)]
pub struct Listeners {
    /// For everybody: everything, or what is not the operators' alone.
    pub public: TcpListener,
    /// For operators: what is theirs is served here alone if there is one.
    pub admin: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    /// One for everything.
    fn from(public: TcpListener) -> Self {
        Self { public, admin: None }
    }
}

/// Serves one cache or several until `shutdown` ends, then drains: what was accepted is answered, the cache is drained.
///
/// # Errors
/// When the cache's store cannot be synced at the end. Troubles of single connections end those alone.
pub async fn serve(
    listeners: impl Into<Listeners>,
    models: impl Into<Catalogue>,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let drain_timeout = config.drain_timeout;
    let catalogue = models.into();
    let service = Service::new(catalogue.clone(), config);
    let _looking = service.look_at_certificates();
    let doors = Doors::of(listeners.into(), &service);
    let accepted = Connections::default();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            (door, stream, room) = doors.accept() => door.spawn(stream, room, accepted.told()),
        }
    }
    service.start_draining();
    let latecomers = Connections::default();
    let finished = tokio::time::timeout(drain_timeout, accepted.end());
    let mut finished = pin!(finished);
    let in_time = loop {
        tokio::select! {
            outcome = &mut finished => break outcome.is_ok(),
            (door, stream, room) = doors.accept() => door.spawn(stream, room, latecomers.told()),
        }
    };
    doors.accept_rest(&latecomers);
    if !in_time {
        tracing::warn!(?drain_timeout, "some accepted requests did not finish in time and are given up");
    }
    // Latecomers are refused at once; who is slower than this to read its refusal does without.
    let _ = tokio::time::timeout(LATECOMERS_TIMEOUT, latecomers.end()).await;
    catalogue.drain().await.map_err(io::Error::other)
}

/// Each listener with what it serves.
struct Doors {
    public: (TcpListener, Server),
    admin: Option<(TcpListener, Server)>,
}

impl Doors {
    fn of(Listeners { public, admin }: Listeners, service: &Service) -> Self {
        let routes = if admin.is_some() { routes::public } else { router };
        let of_admin = |listener| {
            let service = Service { is_admin: true, ..service.clone() };
            (listener, Server::new(service.clone(), routes::admin(service)))
        };
        Self { public: (public, Server::new(service.clone(), routes(service.clone()))), admin: admin.map(of_admin) }
    }

    /// The next connection, of whichever listener, once there is room for one more of its own.
    async fn accept(&self) -> (&Server, TcpStream, OwnedSemaphorePermit) {
        let of_admin = async {
            match &self.admin {
                Some((listener, server)) => (server, server.accept(listener).await),
                None => std::future::pending().await,
            }
        };
        let (listener, server) = &self.public;
        tokio::select! {
            (stream, room) = server.accept(listener) => (server, stream, room),
            (server, (stream, room)) = of_admin => (server, stream, room),
        }
    }

    /// Takes what has connected and closes the listeners.
    fn accept_rest(self, latecomers: &Connections) {
        for (listener, server) in std::iter::once(self.public).chain(self.admin) {
            server.accept_rest(listener, latecomers);
        }
    }
}

/// A task that ends with this.
struct Looking(tokio::task::JoinHandle<()>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Service {
    /// Looks at the certificate's files now and then, if there is one.
    fn look_at_certificates(&self) -> Option<Looking> {
        let config = &self.shared.config;
        let (tls, every) = (config.tls.clone()?, config.tls_look_every);
        Some(Looking(tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let tls = tls.clone();
                match tokio::task::spawn_blocking(move || tls.look()).await {
                    Ok(Ok(false)) => {}
                    Ok(Ok(true)) => tracing::info!("connections begin with another certificate from now on"),
                    Ok(Err(error)) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "the certificate stays as it was");
                    }
                    Err(_) => return,
                }
            }
        })))
    }
}

struct Server {
    service: Service,
    router: Router,
    builder: Arc<Builder<TokioExecutor>>,
    room: Arc<Semaphore>,
}

impl Server {
    fn new(service: Service, router: Router) -> Self {
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

    fn spawn(&self, stream: TcpStream, room: OwnedSemaphorePermit, told: Told) {
        let metrics = &self.service.shared.metrics;
        metrics.accepted.inc();
        let open = Held::new(&metrics.connections);
        // Answers are written whole: waiting to fill a packet only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let (service, router, builder) = (self.service.clone(), self.router.clone(), Arc::clone(&self.builder));
        tokio::spawn(async move {
            let _held = (room, open);
            let config = &service.shared.config;
            let Some(tls) = &config.tls else { return converse(stream, config, router, &builder, told).await };
            // Who has not finished shaking hands has asked for nothing: nobody drains for it.
            let handshake = tokio::select! {
                handshake = tokio::time::timeout(config.header_timeout, tls.acceptor().accept(stream)) => handshake,
                () = service.draining() => return,
            };
            match handshake {
                Ok(Ok(stream)) => converse(stream, config, router, &builder, told).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        });
    }
}

/// Whether an error of `accept` is about the connection that was to be accepted, which is gone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
