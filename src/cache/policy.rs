//! How long entries live, and how they are kept fresh, by what they are: rules over namespaces and tags.
//!
//! A policy names the entries it is for by patterns and says their time to live, how far that is spread, when a hit
//! recomputes them ahead of its end, and whether they are pinned. For one entry counts, in this order: what its request
//! says; the first policy (by name) one of whose tag patterns matches one of its tags; the first one of whose namespace
//! patterns matches its namespace; the policy `default`. In patterns `*` stands for any characters and `?` for one.
//!
//! Pure: knows no clock and no file, and asks no store.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::{Key, Pattern};
use crate::reuse;
use crate::store::Durability;

/// The policy for what no other matches.
pub const DEFAULT_POLICY: &str = "default";

/// The longest time to live: fifty years, in seconds.
pub const TTL_SECONDS_MAX: u64 = 1_576_800_000;

/// What a policy says of the entries it is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// How long an entry lives; for ever if `None`. From a second to fifty years.
    pub ttl: Option<Duration>,
    /// The share of `ttl`, 0 to 1, by which an entry may live shorter: how much is fixed by its key, so that entries
    /// written together do not all expire together.
    pub jitter: f64,
    /// The last share of an entry's life, 0 (never) to below 1, in which a hit has it computed anew in the background.
    pub refresh_ahead: f64,
    /// Whether entries are kept when room is needed. They still expire.
    pub pinned: bool,
    /// When a near-duplicate's vector will do for a text; never if `None`.
    pub reuse: Option<reuse::Terms>,
    /// Whether entries are looked for and kept in the tier shared with other machines, if there is one.
    pub shared: bool,
    /// What entries survive, where that is more than the store promises for all.
    pub durability: Option<Durability>,
    /// The most entries that a namespace of the policy's may have, each namespace by itself. Asked by namespace alone, whatever the tags.
    pub quota: Option<u64>,
}

/// A policy as written down: what it is for, and what it says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Patterns of namespaces; the pattern `""` is the default namespace's.
    pub namespaces: Vec<String>,
    /// Patterns of tags.
    pub tags: Vec<String>,
    /// What it says.
    pub terms: Terms,
}

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the policy {policy}: {field} {problem}")]
pub struct PolicyError {
    /// The policy's name.
    pub policy: String,
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// Checked policies, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// In the order of their names, without the default.
    terms: Vec<Terms>,
    default: Terms,
    tags: Patterns,
    namespaces: Patterns,
    refresh_ahead_max: f64,
}

/// Patterns, each with the number of its policy, in ascending order of those.
#[derive(Clone, Debug, Default)]
struct Patterns(Vec<(Pattern, usize)>);

impl Policies {
    /// Checks rules, by name.
    ///
    /// # Errors
    /// When a value is out of range, a policy is for nothing, or a pattern stands twice: the error names the policy and
    /// the field.
    pub fn new(rules: &BTreeMap<String, Rule>) -> Result<Self, PolicyError> {
        let mut policies = Self::default();
        let (mut tags, mut namespaces) = (Collector::new("tags"), Collector::new("namespaces"));
        for (name, rule) in rules {
            check(name, rule)?;
            policies.refresh_ahead_max = policies.refresh_ahead_max.max(rule.terms.refresh_ahead);
            if name == DEFAULT_POLICY {
                policies.default = rule.terms;
                continue;
            }
            let number = policies.terms.len();
            policies.terms.push(rule.terms);
            tags.add(name, number, &rule.tags)?;
            namespaces.add(name, number, &rule.namespaces)?;
        }
        policies.tags = tags.finish();
        policies.namespaces = namespaces.finish();
        Ok(policies)
    }

    /// What holds for an entry with these tags in this namespace ("" for the default one).
    #[must_use]
    pub fn terms(&self, namespace: &str, tags: &[String]) -> &Terms {
        let by_tag = tags.iter().filter_map(|tag| self.tags.first(tag)).min();
        let policy = by_tag.or_else(|| self.namespaces.first(namespace));
        policy.map_or(&self.default, |number| &self.terms[number])
    }

    /// The most entries that a namespace may have; any number if `None`. By the namespace alone: entries of one namespace share one
    /// bound, whichever policies their tags have.
    #[must_use]
    pub fn quota(&self, namespace: &str) -> Option<u64> {
        self.namespaces.first(namespace).map_or(&self.default, |number| &self.terms[number]).quota
    }

    /// The largest share of a life in which any policy refreshes ahead; 0 if none does.
    #[must_use]
    pub fn refresh_ahead_max(&self) -> f64 {
        self.refresh_ahead_max
    }
}

impl Default for Terms {
    /// For ever, and for everybody.
    fn default() -> Self {
        Self {
            ttl: None,
            jitter: 0.0,
            refresh_ahead: 0.0,
            pinned: false,
            reuse: None,
            shared: true,
            durability: None,
            quota: None,
        }
    }
}

impl Terms {
    /// When an entry written at `now` expires, in Unix seconds: after exactly `asked` if its request says so, else as
    /// the policy says, less what the key's jitter takes. `None`: never.
    #[must_use]
    pub fn expires(&self, key: &Key, asked: Option<Duration>, now: u32) -> Option<u32> {
        let seconds = match (asked, self.ttl) {
            (Some(asked), _) => asked.as_secs(),
            (None, Some(ttl)) => {
                let ttl = ttl.as_secs();
                // Rounded down, and at least a second is left.
                let shorter = ttl as f64 * self.jitter.clamp(0.0, 1.0) * fraction(key);
                ttl.saturating_sub(shorter as u64).max(1)
            }
            (None, None) => return None,
        };
        Some(now.saturating_add(u32::try_from(seconds).unwrap_or(u32::MAX)))
    }
}

/// Whether `now` lies in the last `share` of a life from `created` to `expires`, all in Unix seconds.
#[must_use]
pub fn is_in_last(share: f64, created: u32, expires: u32, now: u32) -> bool {
    let life = f64::from(expires.saturating_sub(created));
    let left = f64::from(expires.saturating_sub(now));
    share > 0.0 && left <= share * life
}

/// When the last `share` of a life begins, in Unix seconds.
#[must_use]
pub fn last_begins(share: f64, created: u32, expires: u32) -> u32 {
    let life = f64::from(expires.saturating_sub(created));
    expires.saturating_sub((share.clamp(0.0, 1.0) * life) as u32)
}

/// A number from 0 to below 1 that depends on the key alone.
fn fraction(key: &Key) -> f64 {
    // The store places entries by the first bytes: these are others.
    let bytes = key.as_bytes();
    let tail = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
    f64::from(tail) / (f64::from(u32::MAX) + 1.0)
}

fn check(name: &str, rule: &Rule) -> Result<(), PolicyError> {
    let refuse = |field, problem: String| Err(PolicyError { policy: name.to_owned(), field, problem });
    let Rule { namespaces, tags, terms } = rule;
    if name == DEFAULT_POLICY {
        if !namespaces.is_empty() {
            return refuse("namespaces", "cannot be given: the default policy is for what no other matches".to_owned());
        }
        if !tags.is_empty() {
            return refuse("tags", "cannot be given: the default policy is for what no other matches".to_owned());
        }
    } else if namespaces.is_empty() && tags.is_empty() {
        return refuse("namespaces", "or tags is needed, or the policy is for nothing".to_owned());
    }
    if tags.iter().any(String::is_empty) {
        return refuse("tags", "cannot have \"\": no tag is empty".to_owned());
    }
    if let Some(ttl) = terms.ttl
        && !(1..=TTL_SECONDS_MAX).contains(&ttl.as_secs())
    {
        return refuse("ttl", format!("cannot be {}: 1 to {TTL_SECONDS_MAX} seconds are needed", ttl.as_secs()));
    }
    if let Some(reuse) = terms.reuse {
        for (name, value) in [("min_similarity", reuse.min_similarity), ("max_violation", reuse.max_violation)] {
            if !(0.0..=1.0).contains(&value) {
                return refuse("reuse", format!("cannot have {name} {value}: 0 to 1 is needed"));
            }
        }
    }
    if terms.quota == Some(0) {
        return refuse("quota", "cannot be 0: a namespace that may have no entry is no cache".to_owned());
    }
    if terms.quota.is_some() && name != DEFAULT_POLICY && namespaces.is_empty() {
        return refuse("quota", "needs namespaces, whose entries it counts".to_owned());
    }
    if !(0.0..=1.0).contains(&terms.jitter) {
        return refuse("jitter", format!("cannot be {}: a share of the ttl from 0 to 1 is needed", terms.jitter));
    }
    if terms.jitter > 0.0 && terms.ttl.is_none() {
        return refuse("jitter", "needs a ttl, of which it is a share".to_owned());
    }
    if !(0.0..1.0).contains(&terms.refresh_ahead) {
        let problem = format!("cannot be {}: a share of the ttl from 0 to below 1 is needed", terms.refresh_ahead);
        return refuse("refresh_ahead", problem);
    }
    Ok(())
}

impl Patterns {
    /// The first policy one of whose patterns matches.
    fn first(&self, name: &str) -> Option<usize> {
        self.0.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, policy)| *policy)
    }
}

/// Patterns being gathered.
struct Collector {
    field: &'static str,
    patterns: Vec<(Pattern, usize)>,
    /// Whose each pattern is.
    owners: BTreeMap<String, String>,
}

impl Collector {
    fn new(field: &'static str) -> Self {
        Self { field, patterns: Vec::new(), owners: BTreeMap::new() }
    }

    fn add(&mut self, policy: &str, number: usize, patterns: &[String]) -> Result<(), PolicyError> {
        let field = self.field;
        for pattern in patterns {
            if let Some(owner) = self.owners.insert(pattern.clone(), policy.to_owned()) {
                let problem = format!("cannot have {pattern:?}: the policy {owner} has it already");
                return Err(PolicyError { policy: policy.to_owned(), field, problem });
            }
            self.patterns.push((Pattern::new(pattern), number));
        }
        Ok(())
    }

    fn finish(self) -> Patterns {
        Patterns(self.patterns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(namespaces: &[&str], tags: &[&str], ttl_seconds: u64) -> Rule {
        let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
        let terms = Terms { ttl: Some(Duration::from_secs(ttl_seconds)), ..Terms::default() };
        Rule { namespaces: owned(namespaces), tags: owned(tags), terms }
    }

    fn policies(rules: &[(&str, Rule)]) -> Result<Policies, PolicyError> {
        Policies::new(&rules.iter().map(|(name, rule)| ((*name).to_owned(), rule.clone())).collect())
    }

    fn ttl(policies: &Policies, namespace: &str, tags: &[&str]) -> Option<u64> {
        let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
        policies.terms(namespace, &tags).ttl.map(|ttl| ttl.as_secs())
    }

    fn key(number: u32) -> Key {
        Key::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn a_tag_is_asked_before_a_namespace_and_that_before_the_default() {
        let all = policies(&[
            ("default", rule(&[], &[], 1)),
            ("documents", rule(&["docs.*", "archive"], &["doc:*"], 2)),
            ("queries", rule(&["queries"], &["query:*", "q?"], 3)),
        ])
        .unwrap();
        assert_eq!(ttl(&all, "", &[]), Some(1));
        assert_eq!(ttl(&all, "docs.2024:x", &[]), Some(2));
        assert_eq!(ttl(&all, "archive", &["unknown"]), Some(2));
        assert_eq!(ttl(&all, "docs.a", &["query:7"]), Some(3));
        assert_eq!(ttl(&all, "queries", &["doc:a/b/c"]), Some(2));
        assert_eq!(ttl(&all, "queries", &["q1"]), Some(3));
        assert_eq!(ttl(&all, "archives", &["a doc:1"]), Some(1));
        assert_eq!(ttl(&Policies::default(), "docs", &["doc:1"]), None);
    }

    #[test]
    fn of_several_policies_that_match_the_first_by_name_counts_whatever_the_order_of_tags() {
        let all = policies(&[("a", rule(&[], &["x:*"], 1)), ("b", rule(&[], &["*:1", "y"], 2))]).unwrap();
        assert_eq!(ttl(&all, "", &["x:1"]), Some(1));
        assert_eq!(ttl(&all, "", &["y", "x:2"]), Some(1));
        assert_eq!(ttl(&all, "", &["y"]), Some(2));
    }

    #[test]
    fn a_quota_goes_by_the_namespace_whatever_the_tags() {
        let with = |rule: Rule, quota| Rule { terms: Terms { quota: Some(quota), ..rule.terms }, ..rule };
        let all = policies(&[
            ("default", with(rule(&[], &[], 1), 7)),
            ("documents", with(rule(&["docs.*"], &["doc:*"], 2), 3)),
            ("queries", rule(&["queries"], &["query:*"], 3)),
        ])
        .unwrap();
        assert_eq!([all.quota("docs.a"), all.quota("queries"), all.quota("")], [Some(3), None, Some(7)]);
        assert_eq!(Policies::default().quota("docs.a"), None);
    }

    #[test]
    fn the_empty_pattern_is_the_default_namespace() {
        let all = policies(&[("unnamed", rule(&[""], &[], 5))]).unwrap();
        assert_eq!((ttl(&all, "", &[]), ttl(&all, "named", &[])), (Some(5), None));
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused_by_its_name_and_field() {
        let with = |terms: Terms| Rule { terms, ..rule(&["a"], &[], 60) };
        let terms = Terms { ttl: Some(Duration::from_secs(60)), ..Terms::default() };
        for (bad, words) in [
            (("p", rule(&["a"], &[], 0)), ["p", "ttl cannot be 0"]),
            (("p", rule(&["a"], &[], TTL_SECONDS_MAX + 1)), ["p", "ttl cannot be 1576800001"]),
            (("p", with(Terms { jitter: 1.5, ..terms })), ["p", "jitter cannot be 1.5"]),
            (("p", with(Terms { jitter: f64::NAN, ..terms })), ["p", "jitter cannot be NaN"]),
            (("p", with(Terms { jitter: 0.5, ttl: None, ..terms })), ["p", "jitter needs a ttl"]),
            (("p", with(Terms { refresh_ahead: 1.0, ..terms })), ["p", "refresh_ahead cannot be 1"]),
            (("p", with(Terms { refresh_ahead: -0.1, ..terms })), ["p", "refresh_ahead cannot be -0.1"]),
            (("p", with(Terms { quota: Some(0), ..terms })), ["p", "quota cannot be 0"]),
            (
                ("p", Rule { terms: Terms { quota: Some(9), ..terms }, ..rule(&[], &["t"], 60) }),
                ["p", "quota needs namespaces"],
            ),
            (("p", rule(&[], &[], 60)), ["p", "namespaces or tags is needed"]),
            (("default", rule(&["a"], &[], 60)), ["default", "namespaces cannot be given"]),
            (("default", rule(&[], &["a"], 60)), ["default", "tags cannot be given"]),
            (("p", rule(&[], &["a", ""], 60)), ["p", "tags cannot have \"\": no tag is empty"]),
            (("p", rule(&[], &["a", "a"], 60)), ["p", "tags cannot have \"a\": the policy p has it"]),
        ] {
            let message = policies(&[bad]).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("the policy {}: ", words[0])) && message.contains(words[1]),
                "{message}"
            );
        }
    }

    #[test]
    fn two_policies_for_the_same_pattern_are_refused_by_both_names() {
        let twice = policies(&[("a", rule(&["n"], &["t"], 1)), ("b", rule(&[], &["t"], 2))]).unwrap_err().to_string();
        assert_eq!(twice, "the policy b: tags cannot have \"t\": the policy a has it already");
        // A tag pattern and a namespace pattern that read the same are two things.
        assert!(policies(&[("a", rule(&["t"], &[], 1)), ("b", rule(&[], &["t"], 2))]).is_ok());
    }

    #[test]
    fn jitter_shortens_lives_by_the_key_and_spreads_them_evenly() {
        let terms = Terms { ttl: Some(Duration::from_secs(1000)), jitter: 0.25, ..Terms::default() };
        let mut quarters = [0; 4];
        for number in 0..4000 {
            let expires = terms.expires(&key(number), None, 5000).unwrap();
            assert_eq!(Some(expires), terms.expires(&key(number), None, 5000), "the same key, the same life");
            assert!((5751..=6000).contains(&expires), "{expires}");
            quarters[((6000 - expires) * 4 / 250) as usize] += 1;
        }
        assert!(quarters.iter().all(|&count| (800..1200).contains(&count)), "{quarters:?}");
        assert_eq!(terms.expires(&key(1), Some(Duration::from_secs(7)), 5000), Some(5007), "a request's own is exact");
    }

    #[test]
    fn lives_have_no_end_before_a_second_nor_after_the_clock() {
        let all = Terms { ttl: Some(Duration::from_secs(1)), jitter: 1.0, ..Terms::default() };
        assert!((0..100).all(|number| all.expires(&key(number), None, 10) == Some(11)));
        assert_eq!(all.expires(&key(1), Some(Duration::MAX), 10), Some(u32::MAX));
        assert_eq!(Terms::default().expires(&key(1), None, 10), None);
    }

    #[test]
    fn the_last_share_of_a_life_is_where_it_is_refreshed_ahead() {
        assert!(!is_in_last(0.2, 100, 200, 179) && is_in_last(0.2, 100, 200, 180) && is_in_last(0.2, 100, 200, 199));
        assert!(is_in_last(0.2, 100, 200, 300), "past its end");
        assert!(!is_in_last(0.0, 100, 200, 200), "no share is never");
        assert_eq!(last_begins(0.2, 100, 200), 180);
        assert_eq!(last_begins(0.0, 100, 200), 200);
    }
}
