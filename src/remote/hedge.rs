//! Asking a second time when an answer is late, so that one slow connection or server does not make a fetch slow.
//!
//! ```text
//! fetch ─► each server it concerns ── answered in time ─────────────────────────────────────► its part of the answer
//!             └ nothing yet after `hedge` ─► the same once more, over another way ─► whichever answer is whole first
//!                                              └ a replica of that server, for records alone; else a second connection to it
//! ```
//!
//! Why that can serve nothing that was invalidated. A record is judged by its own epoch and by the notices that this node has taken in, never
//! by where it came from: a replica that lags has an older record, with an older epoch, or none. What makes a fetch see everything
//! published before it began is the counter, and that is asked of the log's master alone, after the fetch has begun: a part of the question with the
//! counter in it never goes to a replica. It may go over a second connection; that one is to the very process the first is to (the
//! servers' `run_id` says so), is given up with it, and so can say nothing that the first could not have said.
//!
//! At most one question in [`SHARE`] is asked twice, and [`BURST`] in a row: servers that are slow for they have too much to do are not given twice
//! as much. The late answer is waited for all the same, by nobody, for the breaker's sake.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Pipeline, Value};
use tokio::time::timeout;

use super::link::Fault;
use super::node::{Node, refusal};

/// One question in so many may be asked twice.
const SHARE: u32 = 10;
/// So many in a row, after many that were answered in time.
const BURST: u32 = 10;

/// When a question is asked twice, and how often that was done.
#[derive(Debug)]
pub(super) struct Hedge {
    after: Duration,
    /// What may be spent, [`SHARE`] for one.
    credit: AtomicU32,
    asked: AtomicU64,
    won: AtomicU64,
}

impl Hedge {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, credit: AtomicU32::new(SHARE * BURST), asked: AtomicU64::default(), won: AtomicU64::default() }
    }

    /// How many questions were asked twice, and how many of the second ones were answered first.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.asked.load(Ordering::Relaxed), self.won.load(Ordering::Relaxed))
    }

    fn earn(&self) {
        let more = |credit: u32| (credit < SHARE * BURST).then_some(credit + 1);
        // Full is full.
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn spend(&self) -> bool {
        let less = |credit: u32| credit.checked_sub(SHARE);
        self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// The answers to commands, and the connection's number, as of [`Node::call`]. `replicas` are those that may be asked in its place.
    pub(super) async fn call(
        &self,
        node: &Arc<Node>,
        replicas: &[Arc<Node>],
        commands: Pipeline,
        deadline: Instant,
    ) -> Result<(Vec<Value>, u64), Fault> {
        self.earn();
        let commands = Arc::new(commands);
        let (asked, same) = (Arc::clone(node), Arc::clone(&commands));
        // A task of its own: that it was late or failed is to be known, whoever was first.
        let mut first = tokio::spawn(async move { asked.call(&same, deadline).await });
        if let Ok(first) = timeout(self.after, &mut first).await {
            return first.unwrap_or(Err(Fault::Away));
        }
        let replica = replicas.iter().find(|replica| replica.generation() != 0);
        if (replica.is_none() && !node.has_spare()) || !self.spend() {
            return first.await.unwrap_or(Err(Fault::Away));
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let second = async {
            let answer = match replica {
                Some(replica) => replica.call(&commands, deadline).await,
                None => node.call_spare(&commands, deadline).await,
            };
            // An answer with an error in it, as of a replica that has lost its slots, is none.
            answer.ok().filter(|(values, _)| values.iter().all(|value| refusal(value).is_none()))
        };
        tokio::pin!(second);
        let (first, second) = tokio::select! {
            biased;
            first = &mut first => match first.unwrap_or(Err(Fault::Away)) {
                Ok(answer) => return Ok(answer),
                failed => (failed, second.await),
            },
            answer = &mut second => match answer {
                Some(answer) => (Err(Fault::Away), Some(answer)),
                None => (first.await.unwrap_or(Err(Fault::Away)), None),
            },
        };
        match second {
            Some(answer) => {
                self.won.fetch_add(1, Ordering::Relaxed);
                Ok(answer)
            }
            None => first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_in_ten_is_asked_twice_and_ten_in_a_row() {
        let hedge = Hedge::new(Duration::ZERO);
        assert_eq!((0..100).filter(|_| hedge.spend()).count(), 10);
        let spent = (0..1000).filter(|_| {
            hedge.earn();
            hedge.spend()
        });
        assert_eq!(spent.count(), 100);
        (0..1000).for_each(|_| hedge.earn());
        assert_eq!((0..100).filter(|_| hedge.spend()).count(), 10, "what was not spent is not saved up");
    }
}
