//! The tier without servers: a map in memory that several nodes may share, with troubles to order. For tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};

use super::breaker::{Breaker, BreakerState};
use super::link::{Answer, Fault, Link, Page, Read, Standing, Work};
use super::node::Bells;
use super::notices::{Epoch, Logged};
use super::survey::Survey;
use super::url::Address;
use crate::domain::Key;

/// What all nodes share. Copies share it as well.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<World>>);

/// What is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Answers come that much later.
    Slow(Duration),
    /// No answers come.
    Silent,
    /// Requests fail at once.
    Failing,
    /// Records come with a byte changed.
    Damaging,
    /// It is full: what is to be written is refused.
    Full,
}

#[derive(Debug, Default)]
struct World {
    records: HashMap<Key, (Vec<u8>, Instant)>,
    leases: HashMap<Key, (u64, Instant)>,
    counter: Epoch,
    notices: HashMap<Arc<str>, (Epoch, u32)>,
    trouble: Trouble,
    ahead_ms: i64,
    bells: Vec<Bells>,
}

impl Memory {
    /// Begins or ends a trouble, for all nodes.
    pub fn set_trouble(&self, trouble: Trouble) {
        let mut world = self.world();
        world.trouble = trouble;
        world.bells.iter().for_each(|bells| bells.change.notify_one());
    }

    /// Sets its clock ahead of the machine's, or behind.
    pub fn set_clock_ahead(&self, ahead_ms: i64) {
        self.world().ahead_ms = ahead_ms;
    }

    /// How many records it holds, expired ones among them.
    #[must_use]
    pub fn records(&self) -> usize {
        self.world().records.len()
    }

    /// Changes the bytes under a key, if there are any.
    pub fn change(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some((bytes, _)) = self.world().records.get_mut(key) {
            change(bytes);
        }
    }

    /// Forgets the notices after an epoch, as a replica does that takes over too early.
    pub fn lose_notices_after(&self, epoch: Epoch) {
        let mut world = self.world();
        world.notices.retain(|_, (at, _)| *at <= epoch);
        world.counter = world.counter.min(epoch);
    }

    pub(super) fn link(&self, bells: &Bells) -> Arc<dyn Link> {
        self.world().bells.push(bells.clone());
        let mut breaker = Breaker::new(Instant::now());
        breaker.probed(true, Instant::now(), 0.0);
        Arc::new(MemoryLink {
            memory: self.clone(),
            access: Mutex::new(Access { breaker, generation: 1, error: None }),
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (now.as_millis() as u64).saturating_add_signed(self.ahead_ms)
    }

    fn log(&mut self, text: &str, time: u32) -> Logged {
        self.counter += 1;
        let text: Arc<str> = text.into();
        self.notices.insert(Arc::clone(&text), (self.counter, time));
        self.bells.iter().for_each(|bells| bells.hint.notify_one());
        Logged { text, epoch: self.counter, time }
    }

    fn work(&mut self, work: &Work) -> Result<(), Fault> {
        let full = Fault::Refused { code: "OOM".into(), detail: "memory is full".into() };
        match work {
            Work::Set { .. } if self.trouble == Trouble::Full => return Err(full),
            Work::Set { key, bytes, ttl_ms, lease } => {
                self.records.insert(*key, (bytes.to_vec(), Instant::now() + Duration::from_millis(*ttl_ms)));
                if let Some(token) = *lease {
                    self.release(key, token);
                }
            }
            Work::Remove { key } => {
                self.records.remove(key);
            }
            Work::Release { key, token } => self.release(key, *token),
        }
        Ok(())
    }

    fn release(&mut self, key: &Key, token: u64) {
        if self.leases.get(key).is_some_and(|&(held, _)| held == token) {
            self.leases.remove(key);
        }
    }

    fn is_leased(&self, key: &Key) -> bool {
        self.leases.get(key).is_some_and(|&(_, until)| until > Instant::now())
    }
}

/// One node's way to it.
struct MemoryLink {
    memory: Memory,
    access: Mutex<Access>,
}

struct Access {
    breaker: Breaker,
    generation: u64,
    error: Option<String>,
}

impl MemoryLink {
    fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> Trouble {
        self.memory.world().trouble
    }

    /// What stands between a request and its answer.
    async fn pass(&self, deadline: Instant) -> Result<(), Fault> {
        let begun = Instant::now();
        if self.generation() == 0 {
            return Err(Fault::Away);
        }
        let passed = match self.trouble() {
            Trouble::Slow(delay) => {
                let slept = sleep_until((Instant::now() + delay).into());
                timeout_at(deadline.into(), slept).await.map_err(|_| Fault::Timeout)
            }
            Trouble::Silent => {
                sleep_until(deadline.into()).await;
                Err(Fault::Timeout)
            }
            Trouble::Failing => Err(Fault::Lost("ordered by a test".into())),
            Trouble::None | Trouble::Damaging | Trouble::Full => Ok(()),
        };
        let mut access = self.access();
        let now = Instant::now();
        match &passed {
            Ok(()) => access.breaker.answered(),
            Err(fault) => {
                access.error = Some(fault.to_string());
                match fault {
                    Fault::Lost(_) => access.breaker.lost(now, 0.0),
                    _ => access.breaker.failed(begun, now, 0.0),
                };
            }
        }
        passed
    }
}

impl Link for MemoryLink {
    /// A probe costs nothing here: it is made whenever one is due.
    fn generation(&self) -> u64 {
        let trouble = self.trouble();
        let mut access = self.access();
        let now = Instant::now();
        if access.breaker.due().is_some_and(|due| due <= now) {
            access.breaker.probe();
            let well = !matches!(trouble, Trouble::Silent | Trouble::Failing);
            access.breaker.probed(well, now, 0.0);
            access.generation += u64::from(well);
        }
        if access.breaker.state() == BreakerState::Closed { access.generation } else { 0 }
    }

    fn read<'a>(&'a self, keys: &'a [Key], leases: bool, deadline: Instant) -> Answer<'a, Read> {
        Box::pin(async move {
            let generation = self.generation();
            if let Err(fault) = self.pass(deadline).await {
                let values = vec![Err(fault.clone()); keys.len()];
                return Read { values, leased: vec![false; keys.len()], counter: Err(fault), generation };
            }
            let world = self.memory.world();
            let found = |key: &Key| {
                let (bytes, until) = world.records.get(key)?;
                let mut bytes = bytes.clone();
                if let (Trouble::Damaging, Some(last)) = (world.trouble, bytes.last_mut()) {
                    *last ^= 1;
                }
                (*until > Instant::now()).then_some(bytes)
            };
            Read {
                values: keys.iter().map(|key| Ok(found(key))).collect(),
                leased: keys.iter().filter(|_| leases).map(|key| world.is_leased(key)).collect(),
                counter: Ok(world.counter),
                generation,
            }
        })
    }

    fn work<'a>(&'a self, work: &'a [Work], deadline: Instant) -> Answer<'a, Vec<Result<(), Fault>>> {
        Box::pin(async move {
            match self.pass(deadline).await {
                Ok(()) => {
                    let mut world = self.memory.world();
                    work.iter().map(|work| world.work(work)).collect()
                }
                Err(fault) => vec![Err(fault); work.len()],
            }
        })
    }

    fn claim<'a>(
        &'a self,
        keys: &'a [Key],
        token: u64,
        ttl_ms: u64,
        deadline: Instant,
    ) -> Answer<'a, Vec<Result<bool, Fault>>> {
        Box::pin(async move {
            if let Err(fault) = self.pass(deadline).await {
                return vec![Err(fault); keys.len()];
            }
            let mut world = self.memory.world();
            let until = Instant::now() + Duration::from_millis(ttl_ms);
            keys.iter()
                .map(|key| {
                    let free = !world.is_leased(key);
                    if free {
                        world.leases.insert(*key, (token, until));
                    }
                    Ok(free)
                })
                .collect()
        })
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [(Key, u64)],
        ttl_ms: u64,
        deadline: Instant,
    ) -> Answer<'a, Vec<Result<bool, Fault>>> {
        Box::pin(async move {
            if let Err(fault) = self.pass(deadline).await {
                return vec![Err(fault); leases.len()];
            }
            let mut world = self.memory.world();
            let until = Instant::now() + Duration::from_millis(ttl_ms);
            let renewed = leases.iter().map(|(key, token)| {
                let ours = world.is_leased(key) && world.leases.get(key).is_some_and(|(held, _)| held == token);
                if ours {
                    world.leases.insert(*key, (*token, until));
                }
                Ok(ours)
            });
            renewed.collect()
        })
    }

    fn publish<'a>(
        &'a self,
        text: &'a str,
        _: u64,
        least: Epoch,
        deadline: Instant,
    ) -> Answer<'a, Result<(Logged, Epoch), Fault>> {
        Box::pin(async move {
            self.pass(deadline).await?;
            let mut world = self.memory.world();
            let time = (world.now_ms() / 1000) as u32;
            let before = world.notices.get(text).map_or(0, |&(epoch, _)| epoch);
            world.counter = world.counter.max(least);
            Ok((world.log(text, time), before))
        })
    }

    fn since(&self, epoch: Epoch, deadline: Instant) -> Answer<'_, Result<Page, Fault>> {
        Box::pin(async move {
            self.pass(deadline).await?;
            let world = self.memory.world();
            let mut notices: Vec<Logged> = world
                .notices
                .iter()
                .filter(|(_, (at, _))| *at > epoch)
                .map(|(text, &(epoch, time))| Logged { text: Arc::clone(text), epoch, time })
                .collect();
            notices.sort_unstable_by_key(|logged| logged.epoch);
            Ok(Page { counter: world.counter, floor: 0, now_ms: world.now_ms(), notices, more: false })
        })
    }

    fn restore<'a>(
        &'a self,
        notices: &'a [Logged],
        counter: Epoch,
        deadline: Instant,
    ) -> Answer<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.pass(deadline).await?;
            let mut world = self.memory.world();
            world.counter = world.counter.max(counter);
            for logged in notices {
                if world.notices.get(&logged.text).is_none_or(|&(epoch, _)| epoch < logged.epoch) {
                    world.log(&logged.text, logged.time);
                }
            }
            Ok(())
        })
    }

    fn standing(&self) -> Vec<Standing> {
        let access = self.access();
        vec![Standing {
            address: Address { host: "memory".into(), port: 0 },
            state: access.breaker.state(),
            openings: access.breaker.openings(),
            error: access.error.clone(),
        }]
    }

    fn survey(&self, _: Instant) -> Answer<'_, Survey> {
        Box::pin(async { Survey { kind: "memory", ..Survey::default() } })
    }
}

/// Wakes nobody: for a link whose node is gone.
impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.memory.world().bells.retain(|bells| Arc::<Notify>::strong_count(&bells.change) > 1);
    }
}
