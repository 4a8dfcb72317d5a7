//! A connection's silence, bounded: a peer that neither reads nor sends is let go.
//!
//! Reading may pause for as long as a request is being answered, since the client has nothing to send then. The clocks
//! start only when a read or write finds nothing to do, and are not touched by those that succeed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How many requests of one connection are being answered, and whether there ever was one.
#[derive(Clone, Default)]
pub(super) struct Busy(Arc<Requests>);

#[derive(Default)]
struct Requests {
    answering: AtomicUsize,
    any: AtomicBool,
}

/// One of them.
pub(super) struct BusyGuard(Busy);

impl Busy {
    pub(super) fn guard(&self) -> BusyGuard {
        self.0.answering.fetch_add(1, Ordering::Relaxed);
        self.0.any.store(true, Ordering::Relaxed);
        BusyGuard(self.clone())
    }

    /// Whether a request has come on this connection.
    pub(super) fn was_asked(&self) -> bool {
        self.0.any.load(Ordering::Relaxed)
    }

    fn is_busy(&self) -> bool {
        self.0.answering.load(Ordering::Relaxed) > 0
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection with clocks.
pub(super) struct Connection<S> {
    stream: S,
    busy: Busy,
    reading: Clock,
    writing: Clock,
}

impl<S> Connection<S> {
    pub(super) fn new(stream: S, busy: Busy, idle: Duration, write: Duration) -> Self {
        Self { stream, busy, reading: Clock::new(idle), writing: Clock::new(write) }
    }
}

/// Runs from the first wait after progress.
struct Clock {
    limit: Duration,
    /// Allocated at the first wait, then set anew.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Whether the alarm is set.
    runs: bool,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        Self { limit, alarm: None, runs: false }
    }

    fn stop(&mut self) {
        self.runs = false;
    }

    /// Ready once the limit has passed without [`Clock::stop`].
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        if !self.runs {
            self.runs = true;
            let deadline = Instant::now() + limit;
            // It may ring up to a quarter of the limit early: cheaper than setting it anew at every wait.
            if alarm.deadline() + limit / 4 < deadline || alarm.is_elapsed() {
                alarm.as_mut().reset(deadline);
            }
        }
        alarm.as_mut().poll(context)
    }
}

fn silent(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the peer {what} for too long"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        if outcome.is_ready() || this.busy.is_busy() {
            this.reading.stop();
            return outcome;
        }
        ready!(this.reading.poll(context));
        Poll::Ready(Err(silent("sent nothing")))
    }
}

impl<S> Connection<S> {
    /// What a write or flush came to, with the clock that runs while it waits.
    fn written<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.writing.stop();
            return outcome;
        }
        ready!(self.writing.poll(context));
        Poll::Ready(Err(silent("took nothing")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(context, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.written(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(context);
        this.written(context, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(context);
        this.written(context, outcome)
    }
}
