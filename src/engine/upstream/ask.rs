//! Texts to vectors over as many tries as it takes: paced, within the day's budget, within a deadline.
//!
//! ```text
//! ask ─► budget ─► pace ─► try ─┬─ 2xx ─► checked ─► vectors
//!          │         │          ├─ 400, 413, 422 ─► the texts are at fault: the batch is halved until it is known which
//!          │         │          ├─ 408, 409, 425, 429, 5xx, no answer ─► wait (jittered, Retry-After) ─► again
//!          │         │          └─ else ─► failed
//!          └ spent   └ too long ─► busy, with when to come again
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::EngineError;
use super::kept::Keeper;
use super::pace::Limiter;
use super::settings::Upstream;
use super::transport::{Broken, Transport};
use super::watch::{Concern, Watch};
use super::wire;
use super::world::World;

/// A text counts as one token for so many characters, until the endpoint says how many it was. English has about four,
/// so this errs to the safe side there; Chinese has about one.
const CHARACTERS_A_TOKEN: usize = 3;

/// The longest wait between two tries that nobody asked for.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest pause an endpoint can impose at once.
const HOLD_MAX: Duration = Duration::from_secs(600);
/// When to come again, if an endpoint is busy and does not say.
const RETRY_AFTER_UNSAID: Duration = Duration::from_secs(1);

/// Why a request has no vectors.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// The endpoint refuses the texts.
    Rejected(String),
    /// Not now.
    Busy { message: String, retry_after: Duration },
    /// Not at all.
    Failed(String),
}

impl Fault {
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Rejected(message) | Self::Failed(message) | Self::Busy { message, .. } => message,
        }
    }

    pub(super) fn into_error(self, model: &str) -> EngineError {
        let model = model.to_owned();
        match self {
            Self::Rejected(message) => EngineError::Input { model, message },
            Self::Busy { message, retry_after } => EngineError::Busy { model, message, retry_after },
            Self::Failed(message) => EngineError::Upstream { model, message },
        }
    }
}

/// What one try came to, when not to vectors.
enum Missed {
    /// Trying again would not help.
    Final(Fault),
    /// It may.
    Passing { fault: Fault, retry_after: Option<Duration> },
}

pub(super) struct Caller {
    pub(super) model: String,
    pub(super) dims: usize,
    pub(super) upstream: Upstream,
    pub(super) world: Arc<dyn World>,
    pub(super) watch: Arc<Watch>,
    transport: Box<dyn Transport>,
    limiter: Mutex<Limiter>,
    keeper: Mutex<Keeper>,
}

impl Caller {
    pub(super) fn new(
        model: &str,
        dims: usize,
        upstream: &Upstream,
        folder: &Path,
        transport: Box<dyn Transport>,
        world: Arc<dyn World>,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            model: model.to_owned(),
            dims,
            upstream: upstream.clone(),
            world,
            watch: Arc::new(Watch::new()),
            transport,
            limiter: Mutex::new(Limiter::new(upstream)),
            keeper: Mutex::new(Keeper::open(folder, model)?),
        })
    }

    /// What is kept; each change is complete before anything that can panic.
    pub(super) fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each text's vector or why it has none. A batch that is refused for its texts is halved until it is known for which,
    /// as long as `splits` last: enough to find two, not enough to ask for each text of a batch that is refused as such.
    pub(super) fn ask_each(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, Fault>> {
        let mut splits = 2 * (texts.len().max(1).ilog2() as usize + 1);
        self.halve(texts, &mut splits)
    }

    fn halve(&self, texts: &[&str], splits: &mut usize) -> Vec<Result<Vec<f32>, Fault>> {
        match self.ask(texts) {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(Fault::Rejected(_)) if texts.len() > 1 && *splits > 0 => {
                *splits -= 1;
                let (left, right) = texts.split_at(texts.len() / 2);
                let mut vectors = self.halve(left, splits);
                vectors.extend(self.halve(right, splits));
                vectors
            }
            Err(Fault::Rejected(message)) if texts.len() > 1 => {
                let fault = Fault::Failed(format!("{} texts were refused together: {message}", texts.len()));
                vec![Err(fault); texts.len()]
            }
            Err(fault) => vec![Err(fault); texts.len()],
        }
    }

    /// All texts' vectors in one request, or none.
    pub(super) fn ask(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Fault> {
        let body = wire::request(&self.upstream, texts);
        let deadline = self.world.now() + self.upstream.deadline();
        // While nothing comes back, every batch tries once: waiting as long for each would hold up those who can be told.
        let retries = if self.watch.has(Concern::Failing) { 0 } else { self.upstream.retries };
        let mut tried = 0;
        let outcome = loop {
            let (fault, retry_after) = match self.attempt(&body, texts, deadline) {
                Ok(vectors) => break Ok(vectors),
                Err(Missed::Final(fault)) => break Err(fault),
                Err(Missed::Passing { fault, retry_after }) => (fault, retry_after),
            };
            let pause = pause(tried, self.upstream.backoff(), retry_after, self.world.random());
            if tried == retries || self.world.now() + pause >= deadline {
                break Err(fault);
            }
            tried += 1;
            self.watch.retries.inc();
            tracing::debug!(model = self.model, tried, ?pause, fault = fault.message(), "the upstream is asked again");
            self.world.sleep(pause);
        };
        match &outcome {
            Ok(_) => self.watch.clear(Concern::Failing),
            Err(Fault::Failed(message)) => {
                self.watch.errors.inc();
                self.watch.raise(Concern::Failing, format!("failing: {message}"));
            }
            Err(_) => {
                self.watch.errors.inc();
            }
        }
        outcome
    }

    fn attempt(&self, body: &[u8], texts: &[&str], deadline: Duration) -> Result<Vec<Vec<f32>>, Missed> {
        let characters: usize = texts.iter().map(|text| text.chars().count()).sum();
        let guessed = characters.div_ceil(CHARACTERS_A_TOKEN).max(1) as u64;
        self.wait_for_turn(guessed, deadline).map_err(Missed::Final)?;
        self.spend(guessed).map_err(Missed::Final)?;

        let started = self.world.now();
        let timeout = self.upstream.timeout().min(deadline.saturating_sub(started)).max(Duration::from_millis(1));
        self.watch.requests.inc();
        let limit = wire::answer_bytes_max(texts.len(), self.dims);
        let reply = self.transport.post(body, timeout, limit, self.world.unix_seconds());
        self.watch.seconds.observe(self.world.now().saturating_sub(started).as_secs_f64());

        let passing = |message: String| Missed::Passing { fault: Fault::Failed(message), retry_after: None };
        let reply = match reply {
            Ok(reply) => reply,
            Err(Broken::Unsent(message)) => {
                self.settle(guessed, 0);
                return Err(passing(format!("it cannot be reached: {message}")));
            }
            // What was sent may have been computed, and billed.
            Err(Broken::Lost(message)) => {
                self.settle(guessed, guessed);
                return Err(passing(message));
            }
            Err(Broken::Endless) => {
                self.settle(guessed, guessed);
                let message =
                    format!("the answer is longer than {limit} bytes, more than {} vectors can be", texts.len());
                return Err(Missed::Final(Fault::Failed(message)));
            }
        };
        if (200..300).contains(&reply.status) {
            let answer = wire::answer(self.upstream.dialect, &reply.body, texts.len(), self.dims);
            let billed = answer.as_ref().ok().and_then(|answer| answer.tokens).or(reply.tokens).unwrap_or(guessed);
            self.settle(guessed, billed);
            return answer.map(|answer| answer.vectors).map_err(|message| Missed::Final(Fault::Failed(message)));
        }
        self.settle(guessed, 0);
        let words = wire::complaint(&reply.body, reply.plain_text, texts, self.transport.key());
        Err(self.missed(reply.status, words.as_deref(), reply.retry_after))
    }

    /// What a status that is no success means.
    fn missed(&self, status: u16, words: Option<&str>, retry_after: Option<Duration>) -> Missed {
        let words = words.map(|words| format!(": {words}")).unwrap_or_default();
        let failed = |advice: String| Missed::Final(Fault::Failed(format!("it answers {status}{words}{advice}")));
        match status {
            300..400 => failed(", a redirect, which is not followed: set base_url to where it leads".to_owned()),
            400 | 413 | 422 => Missed::Final(Fault::Rejected(format!("it answers {status}{words}"))),
            401 | 403 => failed(match &self.upstream.key_variable {
                Some(variable) => format!("; check the key in the environment variable {variable}"),
                None => "; it wants a key: name the environment variable that holds it in key_variable".to_owned(),
            }),
            404 => failed("; check base_url and model".to_owned()),
            408 | 409 | 425 | 429 | 500..600 => {
                let fault = match retry_after {
                    Some(wait) => {
                        self.limiter().hold(self.world.now() + wait.min(HOLD_MAX));
                        Some(wait)
                    }
                    None => (status == 429).then_some(RETRY_AFTER_UNSAID),
                };
                let message = format!("it answers {status}{words}");
                let fault = match fault {
                    Some(retry_after) => Fault::Busy { message, retry_after },
                    None => Fault::Failed(message),
                };
                Missed::Passing { fault, retry_after }
            }
            _ => failed(String::new()),
        }
    }

    /// Waits until the rate limits allow a request of so many tokens.
    fn wait_for_turn(&self, tokens: u64, deadline: Duration) -> Result<(), Fault> {
        let now = self.world.now();
        let turn = self.limiter().take(now, tokens, deadline.saturating_sub(now));
        let wait = turn.map_err(|retry_after| Fault::Busy {
            message: "its rate limits leave no room before the deadline".to_owned(),
            retry_after,
        })?;
        self.watch.wait_seconds.observe(wait.as_secs_f64());
        if !wait.is_zero() {
            self.world.sleep(wait);
        }
        Ok(())
    }

    /// Takes tokens off the day's budget.
    fn spend(&self, tokens: u64) -> Result<(), Fault> {
        let per_day = self.upstream.budget_tokens_per_day;
        let taken = self.keeper().kept.spent.take(self.world.unix_seconds(), tokens, per_day);
        let Err(retry_after) = taken else {
            self.watch.clear(Concern::Spent);
            return Ok(());
        };
        self.limiter().correct(tokens, 0);
        self.watch.over_budget.inc();
        let most = per_day.unwrap_or_default();
        let message = format!(
            "the budget of {most} tokens a day is spent; the next day begins in {} minutes (UTC), or raise budget_tokens_per_day",
            retry_after.as_secs().div_ceil(60)
        );
        self.watch.raise(Concern::Spent, message.clone());
        Err(Fault::Busy { message, retry_after })
    }

    /// Puts what a request cost in place of what it was thought to.
    fn settle(&self, guessed: u64, used: u64) {
        self.watch.tokens.inc_by(used);
        self.limiter().correct(guessed, used);
        let mut keeper = self.keeper();
        keeper.kept.spent.correct(guessed, used);
        if self.upstream.budget_tokens_per_day.is_some() && used > 0 {
            self.saved(keeper.save());
        }
    }

    /// Notes whether something kept could be written.
    pub(super) fn saved(&self, outcome: Result<(), EngineError>) {
        match outcome {
            Ok(()) => self.watch.clear(Concern::Unsaved),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                self.watch.raise(Concern::Unsaved, format!("what has to survive a restart is not: {error}{cause}"));
            }
        }
    }
}

/// How long to wait before the next try: full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015), after the wait
/// that was asked for, so that those who were all told the same moment do not all come then.
fn pause(tried: u32, backoff: Duration, retry_after: Option<Duration>, random: f64) -> Duration {
    match retry_after {
        Some(asked) => asked + backoff.mul_f64(random),
        None => backoff.saturating_mul(1 << tried.min(16)).min(BACKOFF_MAX).mul_f64(random),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::super::settings::tests::upstream;
    use super::super::transport::Reply;
    use super::super::world::tests::Staged;
    use super::*;

    /// Answers what it was told to, in order; then vectors.
    struct Script {
        replies: Mutex<VecDeque<Result<Reply, Broken>>>,
        sent: Arc<Mutex<Vec<usize>>>,
        refuse: &'static str,
    }

    impl Transport for Script {
        fn post(&self, body: &[u8], _: Duration, _: u64, _: u64) -> Result<Reply, Broken> {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            let texts = body["input"].as_array().unwrap();
            self.sent.lock().unwrap().push(texts.len());
            if let Some(reply) = self.replies.lock().unwrap().pop_front() {
                return reply;
            }
            if texts.iter().any(|text| text.as_str().unwrap().contains(self.refuse)) {
                return Ok(reply(400, None, r#"{"error": {"message": "too long"}}"#));
            }
            let items: Vec<_> =
                texts.iter().map(|text| serde_json::json!({"embedding": [text.as_str().unwrap().len(), 1]})).collect();
            Ok(reply(200, None, &serde_json::json!({"data": items, "usage": {"total_tokens": 7}}).to_string()))
        }

        fn key(&self) -> Option<&str> {
            None
        }
    }

    fn reply(status: u16, retry_after: Option<u64>, body: &str) -> Reply {
        let retry_after = retry_after.map(Duration::from_secs);
        Reply { status, retry_after, tokens: None, plain_text: false, body: body.as_bytes().to_vec() }
    }

    struct Rig {
        caller: Caller,
        world: Arc<Staged>,
        sent: Arc<Mutex<Vec<usize>>>,
        folder: tempfile::TempDir,
    }

    impl Rig {
        fn new(more: &str, random: f64, replies: Vec<Result<Reply, Broken>>) -> Self {
            let (world, sent) = (Arc::new(Staged::new(random)), Arc::default());
            let folder = tempfile::tempdir().unwrap();
            let script = Script { replies: Mutex::new(replies.into()), sent: Arc::clone(&sent), refuse: "bad" };
            let shared: Arc<dyn World> = world.clone();
            let caller = Caller::new("m", 2, &upstream(more), folder.path(), Box::new(script), shared).unwrap();
            Self { caller, world, sent, folder }
        }

        fn slept(&self) -> Vec<f64> {
            self.world.slept.lock().unwrap().iter().map(Duration::as_secs_f64).collect()
        }

        fn sent(&self) -> Vec<usize> {
            self.sent.lock().unwrap().clone()
        }
    }

    #[test]
    fn waits_double_under_full_jitter_and_stop_at_the_longest() {
        let backoff = Duration::from_secs(1);
        let waits: Vec<f64> = (0..8).map(|tried| pause(tried, backoff, None, 0.5).as_secs_f64()).collect();
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]);
        assert_eq!(pause(3, backoff, None, 0.0), Duration::ZERO);
        assert_eq!(pause(3, backoff, Some(Duration::from_secs(7)), 0.5), Duration::from_millis(7500));
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_is_not() {
        for status in [408, 409, 429, 500, 502, 503, 529] {
            let rig = Rig::new(
                "backoff_seconds = 1.0",
                0.5,
                vec![Ok(reply(status, None, "")), Err(Broken::Unsent("x".to_owned()))],
            );
            assert_eq!(rig.caller.ask(&["abc"]), Ok(vec![vec![3.0, 1.0]]), "{status}");
            assert_eq!(rig.slept(), [0.5, 1.0], "{status}");
        }
        for status in [301, 308, 401, 402, 403, 404, 405, 410, 451] {
            let rig = Rig::new("", 0.5, vec![Ok(reply(status, Some(1), ""))]);
            let fault = rig.caller.ask(&["abc"]).unwrap_err();
            assert!(matches!(fault, Fault::Failed(_)) && fault.message().contains(&status.to_string()), "{fault:?}");
            assert_eq!(rig.sent(), [1], "{status}");
        }
    }

    #[test]
    fn a_named_wait_is_kept_by_all_and_one_past_the_deadline_is_told_at_once() {
        let rig = Rig::new("backoff_seconds = 1.0", 0.0, vec![Ok(reply(429, Some(20), ""))]);
        assert!(rig.caller.ask(&["abc"]).is_ok());
        assert_eq!(rig.slept(), [20.0]);

        let rig = Rig::new("", 0.0, vec![Ok(reply(429, Some(120), ""))]);
        let busy =
            |fault: Fault| matches!(fault, Fault::Busy { retry_after, .. } if retry_after >= Duration::from_secs(100));
        assert!(busy(rig.caller.ask(&["abc"]).unwrap_err()));
        // The next request is not even sent, until then.
        assert!(busy(rig.caller.ask(&["abc"]).unwrap_err()));
        assert_eq!((rig.sent(), rig.slept()), (vec![1], vec![]));
        rig.world.pass(Duration::from_secs(120));
        assert!(rig.caller.ask(&["abc"]).is_ok());
    }

    #[test]
    fn all_tries_end_within_the_deadline() {
        let down = || Ok(reply(503, None, ""));
        let rig = Rig::new(
            "backoff_seconds = 8.0\ndeadline_seconds = 20.0\nretries = 9",
            1.0,
            (0..9).map(|_| down()).collect(),
        );
        assert!(rig.caller.ask(&["abc"]).is_err());
        assert_eq!(rig.slept(), [8.0]);
    }

    #[test]
    fn while_it_is_down_each_batch_tries_once_and_an_answer_ends_that() {
        let down = || Ok(reply(500, None, ""));
        let rig = Rig::new("retries = 2\nbackoff_seconds = 0.1", 1.0, (0..4).map(|_| down()).collect());
        assert!(rig.caller.ask(&["abc"]).is_err());
        assert_eq!(rig.sent().len(), 3);
        assert!(super::super::super::Monitor::trouble(&*rig.caller.watch).unwrap().contains("500"));
        assert!(rig.caller.ask(&["abc"]).is_err());
        assert_eq!(rig.sent().len(), 4);
        assert!(rig.caller.ask(&["abc"]).is_ok());
        assert_eq!(super::super::super::Monitor::trouble(&*rig.caller.watch), None);
    }

    #[test]
    fn a_text_that_is_refused_fails_alone() {
        let rig = Rig::new("", 0.0, Vec::new());
        let texts = ["a", "b", "c", "d", "e", "bad", "g", "h"];
        let outcomes = rig.caller.ask_each(&texts);
        let failed: Vec<usize> = (0..8).filter(|&index| outcomes[index].is_err()).collect();
        assert_eq!(failed, [5]);
        assert_eq!(outcomes[5], Err(Fault::Rejected("it answers 400: too long".to_owned())));
        assert_eq!(rig.sent(), [8, 4, 4, 2, 1, 1, 2]);
    }

    #[test]
    fn a_batch_refused_as_such_is_not_asked_for_text_by_text() {
        let rig = Rig::new("", 0.0, Vec::new());
        let outcomes = rig.caller.ask_each(&["bad"; 128]);
        assert!(outcomes.iter().all(Result::is_err));
        assert!(rig.sent().len() <= 33, "{} requests", rig.sent().len());
    }

    #[test]
    fn the_budget_holds_across_restarts_and_ends_at_midnight() {
        let rig = Rig::new("budget_tokens_per_day = 10", 0.0, Vec::new());
        assert!(rig.caller.ask(&["abc"]).is_ok());
        let again = Caller::new(
            "m",
            2,
            &rig.caller.upstream,
            rig.folder.path(),
            Box::new(Script { replies: Mutex::default(), sent: Arc::clone(&rig.sent), refuse: "bad" }),
            Arc::clone(&rig.caller.world),
        )
        .unwrap();
        let fault = again.ask(&["twelve chars"]).unwrap_err();
        assert!(matches!(&fault, Fault::Busy { retry_after, .. } if retry_after.as_secs() == 100), "{fault:?}");
        assert!(fault.message().contains("budget_tokens_per_day"), "{fault:?}");
        assert_eq!((rig.sent(), again.watch.over_budget.get()), (vec![1], 1));
        rig.world.pass(Duration::from_secs(100));
        assert!(again.ask(&["twelve chars"]).is_ok());
    }
}
