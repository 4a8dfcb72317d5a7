//! One connection from its first request to its last, and how all of them are told to end.
//!
//! A connection on which nothing was asked yet is not closed at once: its first request may be on its way, and whoever sent it
//! could not tell a request that was never read from one that was lost. On a connection that was kept he can.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower::Service as _;

use super::connection::{Busy, Connection};
use super::limits::Config;
use super::unsent::Unsent;

/// How long a connection that is told to end may take to say what it was made for.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Connections that are told to end together.
pub(super) struct Connections(watch::Sender<bool>);

/// What one of them hears by; it is there for as long as the connection is.
pub(super) type Told = watch::Receiver<bool>;

impl Default for Connections {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Connections {
    pub(super) fn told(&self) -> Told {
        self.0.subscribe()
    }

    /// Tells all, and ends when they have.
    pub(super) async fn end(&self) {
        self.0.send_replace(true);
        self.0.closed().await;
    }
}

/// Answers what comes by a connection until it ends.
pub(super) async fn converse<S>(
    stream: S,
    config: &Config,
    router: Router,
    builder: &Builder<TokioExecutor>,
    mut told: Told,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let busy = Busy::default();
    let io = TokioIo::new(Connection::new(stream, busy.clone(), config.idle_timeout, config.write_timeout));
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
}
