//! Whether a certificate still holds, by recomputing some of what was reused.
//!
//! Each audit says of one reused vector whether it violated the floor. The null hypothesis is that of the certificate: the
//! share of violations is at most the budget. Two accounts bet against it (Waudby-Smith and Ramdas, "Estimating means of
//! bounded random variables by betting", 2024); an account's wealth is evidence, for under the null no bet gains on average.
//!
//! * *Lasting* never starts anew: a mean of bets on several multiples of the budget. It finds in the end what is over the
//!   budget by little; but a long good spell makes it poor, and then it finds a change late.
//! * *Recent* starts anew whenever its wealth is below one (Page's CUSUM, an e-detector: Shin, Ramdas and Rinaldo,
//!   "E-detectors: a nonparametric framework for sequential change detection", 2023). It bets on twice the budget, and a
//!   change finds it ready after any spell. What starts anew for ever reaches any wealth in the end, so what can be
//!   promised of it is for a number of audits, not for ever.
//!
//! The evidence is the mean of both. At [`EVIDENCE_MAX`] the audit is off, for good: the certificate has to be earned
//! again. Promised, as long as every audit's chance of a violation is at most the budget: the chance to be off within n audits
//! is at most (1 + 2 n budget) / 39. (The two accounts together are at most one more than a sum of wealths, one for each violation to
//! begin with; that sum grows by at most twice the budget an audit on average, and Doob's inequality does the rest.) The bound is
//! loose; the tests here simulate, with a budget of one in twenty:
//!
//! | true share | switched off |
//! | --- | --- |
//! | twice the budget, from the first audit | half of them after about 105 audits, nine tenths after 260 |
//! | twice the budget, after 5,000 good audits | half of them after about 120 audits, nine tenths after 290 |
//! | exactly the budget | about 30 % within 1,000 audits |
//! | 0.6 of the budget | about 1 % within 1,000 audits |
//!
//! Faster is hardly possible: an audit has 0.021 nats of evidence for a doubled share of 5 % on average, and 145 of them
//! have the three that `ln 20` asks for. What can be shortened is the traffic until then: the share that is audited rises with the evidence.
//!
//! Never: reads a clock, draws a random number, forgets that it was switched off.

use std::collections::VecDeque;

/// The evidence at which a certificate is given up.
pub(super) const EVIDENCE_MAX: f64 = 20.0;
/// What the lasting account bets on, in multiples of the budget; of those that stay below one.
const MULTIPLES: [f64; 5] = [1.25, 1.5, 2.0, 3.0, 5.0];
/// What the recent account bets on.
const MULTIPLE_RECENT: f64 = 2.0;
/// So many audits are made of everything that is reused.
const ALL_UNTIL: f64 = 100.0;
/// The share that is always audited.
const SHARE_MIN: f64 = 0.05;
/// The largest budget that can be audited: twice as much has to be a share.
const BUDGET_MAX: f64 = 0.4;
/// How many cosines are kept, the latest.
const LATEST_MAX: usize = 1024;

/// The audits of one certificate.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Audit {
    floor: f32,
    budget: f64,
    audits: u64,
    violations: u64,
    /// Logarithms of the wealth of each bet of the lasting account.
    lasting: [f64; MULTIPLES.len()],
    /// The same of the recent account.
    recent: f64,
    off: bool,
    latest: VecDeque<f32>,
}

/// Why there is no audit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// Of no such promise.
    #[error(
        "can't audit a floor of {floor} with a budget of {budget}: give a floor up to 1 and a budget up to {BUDGET_MAX}"
    )]
    Promise {
        /// As given.
        floor: f32,
        /// As given.
        budget: f64,
    },
    /// What was stored is no audit.
    #[error("not an audit: {0}")]
    Malformed(&'static str),
}

impl Audit {
    /// Of reused vectors of which at most a share of `budget` may have a true cosine below `floor`.
    ///
    /// # Errors
    /// Of a floor that is no cosine, or a budget that is not above 0 and at most 0.4.
    pub fn new(floor: f32, budget: f64) -> Result<Self, AuditError> {
        if !((-1.0..=1.0).contains(&floor) && budget > 0.0 && budget <= BUDGET_MAX) {
            return Err(AuditError::Promise { floor, budget });
        }
        let latest = VecDeque::new();
        let lasting = [0.0; MULTIPLES.len()];
        Ok(Self { floor, budget, audits: 0, violations: 0, lasting, recent: 0.0, off: false, latest })
    }

    /// Which share of what is reused is to be recomputed now: all at first, less with the number of audits down to 0.05, and
    /// more again with the evidence. 0 once it is off.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.off {
            return 0.0;
        }
        let decayed = ALL_UNTIL / (self.audits as f64).max(ALL_UNTIL);
        let suspicion = (self.evidence().ln() / EVIDENCE_MAX.ln()).clamp(0.0, 1.0);
        decayed.max(SHARE_MIN).max(suspicion)
    }

    /// Learns the true cosine of a reused vector; one that is not a number is a violation. Says whether the certificate
    /// still stands.
    pub fn observe(&mut self, cosine: f32) -> bool {
        let within = cosine >= self.floor;
        self.audits += 1;
        self.violations += u64::from(!within);
        for (wealth, gain) in self.lasting.iter_mut().zip(gains(self.budget, !within)) {
            *wealth += gain;
        }
        self.recent = self.recent.max(0.0) + gain(self.budget, MULTIPLE_RECENT, !within);
        self.off |= self.evidence() >= EVIDENCE_MAX;

        if self.latest.len() == LATEST_MAX {
            self.latest.pop_front();
        }
        self.latest.push_back(if cosine.is_finite() { cosine } else { -1.0 });
        !self.off
    }

    /// Whether it is switched off: nothing may be reused any more on this certificate.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// The evidence against the certificate; 1 says nothing.
    #[must_use]
    pub fn evidence(&self) -> f64 {
        let bets = self.lasting.iter().take(bets(self.budget));
        let lasting = bets.clone().map(|wealth| wealth.exp()).sum::<f64>() / bets.len() as f64;
        0.5 * (lasting + self.recent.exp())
    }

    /// How many were recomputed.
    #[must_use]
    pub fn audits(&self) -> u64 {
        self.audits
    }

    /// How many of those were below the floor.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// The true cosine that a share of the latest 1,024 audits is below; `None` before the first.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f32> {
        let mut latest: Vec<f32> = self.latest.iter().copied().collect();
        let at = (share.clamp(0.0, 1.0) * latest.len().saturating_sub(1) as f64).floor() as usize;
        (at < latest.len()).then(|| *latest.select_nth_unstable_by(at, f32::total_cmp).1)
    }
}

/// How many of the lasting account's bets can be made: those on shares below one.
fn bets(budget: f64) -> usize {
    MULTIPLES.iter().filter(|&&multiple| multiple * budget < 1.0).count()
}

fn gains(budget: f64, violation: bool) -> impl Iterator<Item = f64> {
    MULTIPLES.into_iter().take(bets(budget)).map(move |multiple| gain(budget, multiple, violation))
}

/// What one audit adds to the logarithm of a bet's wealth: the likelihood under a multiple of the budget by that under the budget.
fn gain(budget: f64, multiple: f64, violation: bool) -> f64 {
    if violation { multiple.ln() } else { (-multiple * budget).ln_1p() - (-budget).ln_1p() }
}

/// As it is written down.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    floor: f32,
    budget: f64,
    audits: u64,
    violations: u64,
    lasting: [f64; MULTIPLES.len()],
    recent: f64,
    off: bool,
    latest: VecDeque<f32>,
}

impl From<Audit> for Stored {
    fn from(of: Audit) -> Self {
        let Audit { floor, budget, audits, violations, lasting, recent, off, latest } = of;
        Self { floor, budget, audits, violations, lasting, recent, off, latest }
    }
}

impl TryFrom<Stored> for Audit {
    type Error = AuditError;

    fn try_from(stored: Stored) -> Result<Self, AuditError> {
        let Stored { floor, budget, audits, violations, lasting, recent, off, latest } = stored;
        Self::new(floor, budget)?;
        if violations > audits || latest.len() as u64 != audits.min(LATEST_MAX as u64) {
            return Err(AuditError::Malformed("its counts contradict each other"));
        }
        if !lasting.iter().chain([&recent]).all(|wealth| wealth.is_finite()) {
            return Err(AuditError::Malformed("an account is not a finite number"));
        }
        if !latest.iter().all(|cosine| cosine.is_finite()) {
            return Err(AuditError::Malformed("a cosine is not a finite number"));
        }
        let audit = Self { floor, budget, audits, violations, lasting, recent, off, latest };
        if !off && audit.evidence() >= EVIDENCE_MAX {
            return Err(AuditError::Malformed("it should be switched off and is not"));
        }
        Ok(audit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::draws::Draws;
    use super::*;

    const FLOOR: f32 = 0.95;
    const BUDGET: f64 = 0.05;

    fn observe(audit: &mut Audit, draws: &mut Draws, violations: f64) -> bool {
        audit.observe(if draws.happens(violations) { 0.9 } else { 0.99 })
    }

    /// After how many of `audits_max` audits each of some audits is off, sorted; those that are not are left out.
    fn delays(start: &Audit, draws: &mut Draws, violations: f64, repetitions: usize, audits_max: u32) -> Vec<u32> {
        let mut delays: Vec<u32> = (0..repetitions)
            .filter_map(|_| {
                let mut audit = start.clone();
                (1..=audits_max).find(|_| !observe(&mut audit, draws, violations))
            })
            .collect();
        delays.sort_unstable();
        delays
    }

    #[test]
    fn twice_the_budget_is_found_within_150_audits_at_the_beginning_and_after_a_long_good_spell() {
        let mut draws = Draws::new(3);
        let fresh = Audit::new(FLOOR, BUDGET).unwrap();
        let mut old = fresh.clone();
        for _ in 0..5000 {
            observe(&mut old, &mut draws, 0.02);
        }
        let mut spotless = fresh.clone();
        for _ in 0..5000 {
            spotless.observe(1.0);
        }
        for (name, start) in [("fresh", fresh), ("old", old), ("spotless", spotless)] {
            assert!(!start.is_off(), "{name}");
            let delays = delays(&start, &mut draws, 2.0 * BUDGET, 1000, 1500);
            assert!(delays.len() >= 990, "{name}: {} of 1000", delays.len());
            let (median, most) = (delays[500], delays[900]);
            assert!((80..=150).contains(&median) && most <= 350, "{name}: {median}, {most}");
        }
    }

    #[test]
    fn far_more_than_the_budget_is_found_at_once() {
        let mut draws = Draws::new(5);
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        for _ in 0..3000 {
            audit.observe(1.0);
        }
        let delays = delays(&audit, &mut draws, 0.5, 500, 200);
        assert!(delays.len() == 500 && delays[250] <= 15, "{:?}", delays.get(250));
    }

    #[test]
    fn a_share_just_over_the_budget_is_found_in_the_end() {
        let mut draws = Draws::new(6);
        let audit = Audit::new(FLOOR, BUDGET).unwrap();
        let delays = delays(&audit, &mut draws, 1.4 * BUDGET, 300, 5000);
        assert!(delays.len() >= 295 && delays[150] <= 800, "{} {:?}", delays.len(), delays.get(150));
    }

    #[test]
    fn what_keeps_its_promise_is_seldom_switched_off() {
        let mut draws = Draws::new(4);
        let audit = Audit::new(FLOOR, BUDGET).unwrap();
        for (share, off_max) in [(1.0, 0.35), (0.6, 0.03), (0.2, 0.005)] {
            let off = delays(&audit, &mut draws, share * BUDGET, 1000, 1000).len() as f64 / 1000.0;
            assert!(off <= off_max, "{share}: {off}");
        }
    }

    #[test]
    fn under_the_null_no_bet_gains_on_average() {
        for budget in [0.001, 0.01, 0.05, 0.4] {
            for multiple in &MULTIPLES[..bets(budget)] {
                let mean = budget * gain(budget, *multiple, true).exp()
                    + (1.0 - budget) * gain(budget, *multiple, false).exp();
                assert!((mean - 1.0).abs() < 1e-12, "{budget} {multiple}: {mean}");
                // A share below the budget only lessens it: a violation is what a bet gains by.
                assert!(gain(budget, *multiple, true) > gain(budget, *multiple, false));
            }
        }
        assert!(bets(BUDGET_MAX) >= 3);
    }

    #[test]
    fn everything_is_audited_at_first_a_twentieth_later_and_more_when_it_looks_bad() {
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        for _ in 0..100 {
            assert_eq!(audit.share(), 1.0);
            audit.observe(1.0);
        }
        for _ in 0..300 {
            audit.observe(1.0);
        }
        assert!((audit.share() - 0.25).abs() < 1e-9);
        for _ in 0..3000 {
            audit.observe(1.0);
        }
        assert!((audit.share() - 0.05).abs() < 1e-9);
        for _ in 0..4 {
            audit.observe(0.0);
        }
        assert!(audit.share() > 0.5, "{}", audit.share());
    }

    #[test]
    fn once_off_it_stays_off_and_counts_on() {
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        while audit.observe(0.0) {}
        let audits = audit.audits();
        for _ in 0..1000 {
            assert!(!audit.observe(1.0));
        }
        assert!(audit.is_off() && audit.share() == 0.0 && audit.audits() == audits + 1000);
        assert_eq!(audit.violations(), audits);
    }

    #[test]
    fn quantiles_are_of_the_latest_and_no_number_counts_as_the_worst() {
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        assert_eq!(audit.quantile(0.5), None);
        for i in 0..3000u16 {
            audit.observe(f32::from(i % 1000) / 1000.0);
        }
        let median = audit.quantile(0.5).unwrap();
        assert!((0.45..0.55).contains(&median), "{median}");
        assert_eq!((audit.quantile(0.0), audit.quantile(1.0)), (Some(0.0), Some(0.999)));
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        audit.observe(f32::NAN);
        assert_eq!((audit.violations(), audit.quantile(0.01)), (1, Some(-1.0)));
    }

    #[test]
    fn a_restart_changes_nothing() {
        let mut draws = Draws::new(8);
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        for _ in 0..1500 {
            observe(&mut audit, &mut draws, 0.03);
        }
        let text = serde_json::to_string(&audit).unwrap();
        let back: Audit = serde_json::from_str(&text).unwrap();
        assert_eq!(back, audit);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        for (floor, budget) in [(2.0, 0.05), (f32::NAN, 0.05), (0.9, 0.0), (0.9, 0.5), (0.9, f64::NAN)] {
            assert!(matches!(Audit::new(floor, budget), Err(AuditError::Promise { .. })));
        }
        let mut audit = Audit::new(FLOOR, BUDGET).unwrap();
        audit.observe(1.0);
        let text = serde_json::to_string(&audit).unwrap();
        for (good, bad) in [
            ("\"violations\":0", "\"violations\":2"),
            ("\"audits\":1", "\"audits\":7"),
            ("\"latest\":[1.0]", "\"latest\":[1e99]"),
            ("\"latest\":[1.0]", "\"latest\":[]"),
            ("\"recent\":", "\"recent\":1e9,\"was\":"),
            ("\"budget\":0.05", "\"budget\":0.9"),
        ] {
            assert!(text.contains(good), "{text}");
            assert!(serde_json::from_str::<Audit>(&text.replace(good, bad)).is_err(), "{bad}");
        }
        let rich = text.replace("\"recent\":", "\"recent\":50.0,\"was\":");
        assert!(serde_json::from_str::<Audit>(&rich).is_err());
    }
}
