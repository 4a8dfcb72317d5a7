//! Answers that are not wholly sent, and by when each has to be: a client that takes one by drops, or none of it while the
//! connection is alive otherwise (HTTP/2 lets it), is let go.
//!
//! What is counted are the bytes themselves: they are given up when the system has taken them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

/// An answer has to be taken at least so quickly, once the time for its beginning is over.
const BYTES_A_SECOND_MIN: u64 = 64 << 10;

/// A connection's answers.
#[derive(Clone)]
pub(super) struct Unsent(Arc<Answers>);

struct Answers {
    patience: Duration,
    due: Mutex<Due>,
}

#[derive(Default)]
struct Due {
    next: u64,
    times: Vec<(u64, Instant)>,
}

impl Unsent {
    /// Answers that may each take so long to begin with.
    pub(super) fn new(patience: Duration) -> Self {
        Self(Arc::new(Answers { patience, due: Mutex::default() }))
    }

    /// An answer's body, on its way from now on.
    pub(super) fn watch(&self, body: Body) -> Body {
        let bytes = match body.size_hint().exact() {
            Some(0) => return body,
            Some(bytes) => bytes,
            None => body.size_hint().lower(),
        };
        let allowed = self.0.patience + Duration::from_secs(bytes / BYTES_A_SECOND_MIN);
        let mut due = self.0.due();
        let number = due.next;
        due.next += 1;
        due.times.push((number, Instant::now() + allowed));
        drop(due);
        let untaken = Some(Arc::new(Untaken { answers: Arc::clone(&self.0), number }));
        Body::new(Watched { body, untaken })
    }

    /// Ends when an answer was not taken in time: at the latest once more its patience after that.
    pub(super) async fn overdue(&self) {
        loop {
            let now = Instant::now();
            let earliest = self.0.due().times.iter().map(|(_, time)| *time).min();
            if earliest.is_some_and(|earliest| earliest <= now) {
                return;
            }
            let later = now + self.0.patience;
            sleep_until(earliest.map_or(later, |earliest| earliest.min(later))).await;
        }
    }
}

impl Answers {
    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One answer; gone with the last of its bytes.
struct Untaken {
    answers: Arc<Answers>,
    number: u64,
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.answers.due().times.retain(|(number, _)| *number != self.number);
    }
}

struct Watched {
    body: Body,
    untaken: Option<Arc<Untaken>>,
}

/// Bytes that an answer is counted by.
struct Counted {
    bytes: Bytes,
    _untaken: Option<Arc<Untaken>>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        let untaken = if this.body.is_end_stream() { this.untaken.take() } else { this.untaken.clone() };
        let counted = |bytes: Bytes| Bytes::from_owner(Counted { bytes, _untaken: untaken });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn an_answer_is_overdue_until_its_last_byte_is_given_up() {
        let unsent = Unsent::new(Duration::from_millis(20));
        let mut taken = unsent.watch(Body::from("taken"));
        drop(taken.frame().await.unwrap().unwrap());
        let waiting = tokio::time::timeout(Duration::from_millis(200), unsent.overdue()).await;
        assert!(waiting.is_err(), "nothing is on its way");

        let mut kept = unsent.watch(Body::from("kept"));
        let bytes = kept.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(kept);
        tokio::time::timeout(Duration::from_secs(20), unsent.overdue()).await.expect("its time is over");
        drop(bytes);
        let waiting = tokio::time::timeout(Duration::from_millis(200), unsent.overdue()).await;
        assert!(waiting.is_err(), "it was given up");
    }

    #[test]
    fn a_long_answer_has_longer() {
        let unsent = Unsent::new(Duration::from_secs(30));
        let began = Instant::now();
        let _body = unsent.watch(Body::from(vec![0; 100 * BYTES_A_SECOND_MIN as usize]));
        let allowed = unsent.0.due().times[0].1 - began;
        assert!((130..131).contains(&allowed.as_secs()), "{allowed:?}");
    }
}
