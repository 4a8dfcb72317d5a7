//! What was invalidated, and since when: pure, no servers and no clock.
//!
//! Each invalidation is a [`Notice`], and has an *epoch*: its place in the order in which the tier took them. A record
//! carries the newest epoch that was known when its computing began, so it is current if no later notice means it. The
//! set only grows, and the larger epoch of two stands: whoever has seen more notices can give them to who has seen fewer.
//! What has been pruned is replaced by a *floor*: records from before it cannot be judged any more, and are outdated.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::domain::{Key, ModelVersion, Namespace, Pattern, veil};

/// The most keys of one notice; [`Tier::publish`](super::Tier::publish) takes no more.
pub const NOTICE_KEYS_MAX: usize = 4096;

/// The place of a notice in the order in which the tier took them. 0 is before the first.
pub type Epoch = u64;

/// An invalidation: what meets everything that is given. Of several tags or keys one is enough.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notice {
    /// With one of these tags.
    pub tags: Vec<String>,
    /// With a tag that matches this pattern.
    pub tag_glob: Option<Pattern>,
    /// In this namespace.
    pub namespace: Option<Namespace>,
    /// In a namespace of this tenant; empty: in one that is no tenant's.
    pub tenant: Option<String>,
    /// Of this model.
    pub model: Option<ModelVersion>,
    /// Under one of these keys, at most [`NOTICE_KEYS_MAX`].
    pub keys: Vec<Key>,
    /// Computed before this Unix second of the tier.
    pub before: Option<u32>,
    /// Everything there is. Nothing given and this `false` is no notice.
    pub all: bool,
    /// Nodes mark what they hold as stale rather than remove it. The tier itself serves neither.
    pub soft: bool,
    /// Not only removed but erased, and then it means what meets *any* of the keys, the namespace, and these tags.
    pub erasure: Option<Erasure>,
}

/// An erasure, of which every node makes a receipt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasure {
    /// Its name.
    pub id: String,
    /// Tags, [veiled](veil) for it: what is to be forgotten is told to nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl Erasure {
    /// Whether a tag is one of those that are meant.
    #[must_use]
    pub fn means(&self, tag: &str) -> bool {
        !self.tags.is_empty() && self.tags.contains(&veil(&self.id, "tag", tag.as_bytes()))
    }
}

/// A notice that came from another node.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// What it says.
    pub notice: Notice,
    /// Its place in the order.
    pub epoch: Epoch,
    /// When it was published, in the tier's Unix seconds: what was computed later is not meant.
    pub published: u32,
}

/// As it stands in the log: one text for one meaning, so that saying it again raises its epoch and adds nothing.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    v: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag_glob: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    all: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    soft: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erasure: Option<Erasure>,
}

const VERSION: u32 = 1;

impl Notice {
    /// Everything.
    #[must_use]
    pub fn everything(soft: bool) -> Self {
        Self { all: true, soft, ..Self::default() }
    }

    /// Whether it says of nothing that it is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.before.is_none() && self.selectors() == 0 && self.erasure.is_none()
    }

    /// Whether it means a record that was asked for.
    #[must_use]
    pub fn means(&self, subject: &Subject<'_>, record: &Record) -> bool {
        if let Some(erasure) = &self.erasure {
            return self.model.as_ref().is_none_or(|model| model == subject.model)
                && (self.keys.contains(subject.key)
                    || self.namespace.as_ref() == Some(subject.namespace)
                    || record.tags.iter().any(|tag| erasure.means(tag)));
        }
        let one_of = |tags: &[String]| tags.is_empty() || tags.iter().any(|tag| record.tags.contains(tag));
        !self.is_empty()
            && one_of(&self.tags)
            && self.tag_glob.as_ref().is_none_or(|glob| record.tags.iter().any(|tag| glob.matches(tag)))
            && self.namespace.as_ref().is_none_or(|namespace| namespace == subject.namespace)
            && self.tenant.as_ref().is_none_or(|tenant| tenant == subject.namespace.tenant())
            && self.model.as_ref().is_none_or(|model| model == subject.model)
            && (self.keys.is_empty() || self.keys.contains(subject.key))
            && self.before.is_none_or(|time| record.created < time)
    }

    /// How many of tags, pattern, namespace, tenant, model and keys are given.
    fn selectors(&self) -> usize {
        let given = [
            !self.tags.is_empty(),
            self.tag_glob.is_some(),
            self.namespace.is_some(),
            self.tenant.is_some(),
            self.model.is_some(),
            !self.keys.is_empty(),
        ];
        given.iter().filter(|&&given| given).count()
    }

    /// Its one text.
    pub(super) fn to_text(&self) -> String {
        let mut tags = self.tags.clone();
        tags.sort_unstable();
        tags.dedup();
        let mut keys: Vec<String> = self.keys.iter().map(Key::to_string).collect();
        keys.sort_unstable();
        keys.dedup();
        let written = Written {
            v: VERSION,
            tags,
            tag_glob: self.tag_glob.as_ref().map(|glob| glob.as_str().to_owned()),
            namespace: self.namespace.as_ref().map(|namespace| namespace.as_str().to_owned()),
            tenant: self.tenant.clone(),
            model: self.model.as_ref().map(ModelVersion::to_string),
            keys,
            before: self.before,
            all: self.all,
            soft: self.soft,
            erasure: self.erasure.clone(),
        };
        serde_json::to_string(&written).expect("strings and numbers are JSON")
    }

    /// Reads a text. One that cannot be understood may mean anything, so it means everything: vectors are lost, and
    /// none is served that was invalidated.
    pub(super) fn from_text(text: &str) -> Self {
        Self::understood(text).unwrap_or_else(|| Self::everything(true))
    }

    fn understood(text: &str) -> Option<Self> {
        let written: Written = serde_json::from_str(text).ok()?;
        if written.v != VERSION {
            return None;
        }
        let notice = Self {
            tags: written.tags,
            tag_glob: written.tag_glob.as_deref().map(Pattern::new),
            namespace: match written.namespace {
                Some(name) => Some(Namespace::qualified(&name).ok()?),
                None => None,
            },
            tenant: written.tenant,
            model: match written.model {
                Some(model) => Some(ModelVersion::from_bytes(*model.parse::<Key>().ok()?.as_bytes())),
                None => None,
            },
            keys: written.keys.iter().map(|key| key.parse().ok()).collect::<Option<_>>()?,
            before: written.before,
            all: written.all,
            soft: written.soft,
            erasure: written.erasure,
        };
        (!notice.is_empty()).then_some(notice)
    }
}

/// What a record is asked for as.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// In this namespace.
    pub namespace: &'a Namespace,
    /// By this model.
    pub model: &'a ModelVersion,
    /// Under this key.
    pub key: &'a Key,
}

/// A notice's place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    /// The notice's text.
    pub(super) text: Arc<str>,
    pub(super) epoch: Epoch,
    /// When it was published, in the tier's Unix seconds.
    pub(super) time: u32,
}

/// All that is known to be invalidated.
#[derive(Debug, Default)]
pub(super) struct Notices {
    known: HashMap<Arc<str>, (Epoch, u32)>,
    newest: Epoch,
    floor: Epoch,
    everything: Epoch,
    tags: HashMap<String, Epoch>,
    keys: HashMap<Key, Epoch>,
    namespaces: HashMap<Namespace, Epoch>,
    models: HashMap<ModelVersion, Epoch>,
    /// Those that ask for more than one thing at once.
    others: BTreeMap<(Epoch, Arc<str>), Notice>,
    /// This node's own that the tier has not taken yet, the oldest first.
    pending: VecDeque<Pending>,
    /// How many there ever were.
    tickets: u64,
}

#[derive(Debug)]
struct Pending {
    ticket: u64,
    text: Arc<str>,
    notice: Notice,
}

impl Notices {
    /// Takes one in. False if it was known with this epoch or a later one, or lies under the floor.
    pub(super) fn merge(&mut self, logged: &Logged) -> bool {
        let &Logged { ref text, epoch, time } = logged;
        if epoch <= self.floor {
            return false;
        }
        let before = match self.known.get(text) {
            Some(&(known, _)) if known >= epoch => return false,
            Some(&(known, _)) => Some(known),
            None => None,
        };
        self.known.insert(Arc::clone(text), (epoch, time));
        self.newest = self.newest.max(epoch);
        let notice = Notice::from_text(text);
        match (notice.selectors(), notice.before) {
            _ if notice.erasure.is_some() => self.take(before, epoch, text, notice),
            (0, None) => self.everything = self.everything.max(epoch),
            (1, None) if notice.tag_glob.is_none() && notice.tenant.is_none() => {
                notice.tags.into_iter().for_each(|tag| raise(&mut self.tags, tag, epoch));
                notice.keys.into_iter().for_each(|key| raise(&mut self.keys, key, epoch));
                notice.namespace.into_iter().for_each(|name| raise(&mut self.namespaces, name, epoch));
                notice.model.into_iter().for_each(|model| raise(&mut self.models, model, epoch));
            }
            _ => self.take(before, epoch, text, notice),
        }
        true
    }

    /// Takes one in that has to be asked as a whole.
    fn take(&mut self, before: Option<Epoch>, epoch: Epoch, text: &Arc<str>, notice: Notice) {
        if let Some(before) = before {
            self.others.remove(&(before, Arc::clone(text)));
        }
        self.others.insert((epoch, Arc::clone(text)), notice);
    }

    /// Forgets what was pruned from the log.
    pub(super) fn raise_floor(&mut self, floor: Epoch) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        self.newest = self.newest.max(floor);
        self.known.retain(|_, (epoch, _)| *epoch > floor);
        self.tags.retain(|_, epoch| *epoch > floor);
        self.keys.retain(|_, epoch| *epoch > floor);
        self.namespaces.retain(|_, epoch| *epoch > floor);
        self.models.retain(|_, epoch| *epoch > floor);
        self.others.retain(|(epoch, _), _| *epoch > floor);
    }

    /// Whether a record may not be served any more.
    pub(super) fn outdate(&self, subject: &Subject<'_>, record: &Record) -> bool {
        let since = record.epoch;
        if self.pending.iter().any(|pending| pending.notice.means(subject, record)) {
            return true;
        }
        if since >= self.newest {
            return false;
        }
        since < self.floor
            || since < self.everything
            || since < epoch_of(&self.keys, subject.key)
            || since < epoch_of(&self.namespaces, subject.namespace)
            || since < epoch_of(&self.models, subject.model)
            || record.tags.iter().any(|tag| since < epoch_of(&self.tags, tag.as_str()))
            || self.others.range((since + 1, "".into())..).any(|(_, notice)| notice.means(subject, record))
    }

    /// Those that a log lacks or has with an earlier epoch.
    pub(super) fn missing_in(&self, log: &HashMap<Arc<str>, Epoch>) -> Vec<Logged> {
        self.known
            .iter()
            .filter(|(text, (epoch, _))| log.get(*text).is_none_or(|known| known < epoch))
            .map(|(text, &(epoch, time))| Logged { text: Arc::clone(text), epoch, time })
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Answers with its ticket: one that [`pop_pending`](Self::pop_pending) answers with, or a later one, has it sent.
    pub(super) fn push_pending(&mut self, text: Arc<str>) -> u64 {
        let notice = Notice::from_text(&text);
        self.tickets += 1;
        self.pending.push_back(Pending { ticket: self.tickets, text, notice });
        self.tickets
    }

    /// The place of a notice by its text; 0 if it is not known.
    pub(super) fn epoch_of_text(&self, text: &str) -> Epoch {
        self.known.get(text).map_or(0, |&(epoch, _)| epoch)
    }

    pub(super) fn first_pending(&self) -> Option<Arc<str>> {
        self.pending.front().map(|pending| Arc::clone(&pending.text))
    }

    /// The tier has taken the first of them.
    pub(super) fn pop_pending(&mut self) -> Option<u64> {
        self.pending.pop_front().map(|pending| pending.ticket)
    }

    /// Their texts, the oldest first.
    pub(super) fn pending(&self) -> Vec<Arc<str>> {
        self.pending.iter().map(|pending| Arc::clone(&pending.text)).collect()
    }

    pub(super) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Makes one of all that wait to be sent and mean a tenant's entries alone, for each tenant; and one of all others, if those alone are
    /// more than `others_max`. It says more than they did, and of nobody else.
    pub(super) fn collapse_pending(&mut self, others_max: usize) -> u64 {
        let mut owners: BTreeMap<String, bool> = BTreeMap::new();
        self.pending.retain(|Pending { notice, .. }| {
            let of_namespace = || notice.namespace.as_ref().map(|namespace| namespace.tenant().to_owned());
            let Some(owner) = notice.tenant.clone().or_else(of_namespace) else { return true };
            let soft = owners.entry(owner).or_insert(true);
            *soft &= notice.soft;
            false
        });
        if self.pending.len() > others_max {
            let soft = self.pending.iter().all(|pending| pending.notice.soft) && owners.values().all(|soft| *soft);
            self.pending.clear();
            return self.push_pending(Notice::everything(soft).to_text().into());
        }
        for (tenant, soft) in owners {
            let notice = Notice { tenant: Some(tenant), all: true, soft, ..Notice::default() };
            self.push_pending(notice.to_text().into());
        }
        self.tickets
    }
}

fn raise<K: Eq + Hash>(epochs: &mut HashMap<K, Epoch>, key: K, epoch: Epoch) {
    let known = epochs.entry(key).or_default();
    *known = epoch.max(*known);
}

/// 0 for what is not in there: no record's epoch is less.
fn epoch_of<K, Q>(epochs: &HashMap<K, Epoch>, key: &Q) -> Epoch
where
    K: Borrow<Q> + Eq + Hash,
    Q: Eq + Hash + ?Sized,
{
    epochs.get(key).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(byte: u8) -> ModelVersion {
        ModelVersion::from_bytes([byte; 32])
    }

    fn logged(notice: &Notice, epoch: Epoch) -> Logged {
        Logged { text: notice.to_text().into(), epoch, time: 100 }
    }

    fn tagged(epoch: Epoch, tags: &[&str]) -> Record {
        Record { epoch, created: 50, tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..Record::default() }
    }

    fn every_selector() -> Notice {
        Notice {
            tags: vec!["b".into(), "a".into(), "b".into()],
            tag_glob: Some(Pattern::new("a*")),
            namespace: Some(Namespace::new("n").unwrap()),
            tenant: Some(String::new()),
            model: Some(model(1)),
            keys: vec![Key::from_bytes([2; 32]), Key::from_bytes([1; 32])],
            before: Some(60),
            all: false,
            soft: true,
            erasure: None,
        }
    }

    #[test]
    fn one_meaning_has_one_text() {
        let notice = every_selector();
        let other = Notice {
            tags: vec!["a".into(), "b".into()],
            keys: vec![Key::from_bytes([1; 32]), Key::from_bytes([2; 32])],
            ..notice.clone()
        };
        assert_eq!(notice.to_text(), other.to_text());
        assert_eq!(Notice::from_text(&notice.to_text()), other);
        assert_eq!(Notice { tags: vec!["x".into()], ..Notice::default() }.to_text(), r#"{"v":1,"tags":["x"]}"#);
    }

    #[test]
    fn what_is_not_understood_means_everything() {
        for text in
            ["", "{}", "{\"v\":2,\"tags\":[\"x\"]}", "{\"v\":1}", "{\"v\":1,\"colour\":1}", "{\"v\":1,\"keys\":[\"\"]}"]
        {
            assert_eq!(Notice::from_text(text), Notice::everything(true), "{text}");
        }
    }

    /// Each selector by itself, and that all have to be met.
    #[test]
    fn a_notice_means_what_meets_all_it_gives() {
        let (name, other) = (Namespace::new("n").unwrap(), Namespace::default());
        let (key, version) = (Key::from_bytes([1; 32]), model(1));
        let subject = Subject { namespace: &name, model: &version, key: &key };
        let record = tagged(3, &["a1", "b"]);
        let notice = every_selector();
        assert!(notice.means(&subject, &record));
        assert!(!notice.means(&Subject { namespace: &other, ..subject }, &record));
        assert!(!notice.means(&Subject { model: &model(2), ..subject }, &record));
        assert!(!notice.means(&Subject { key: &Key::from_bytes([3; 32]), ..subject }, &record));
        assert!(!notice.means(&subject, &tagged(3, &["a1"])));
        assert!(!notice.means(&subject, &tagged(3, &["b"])));
        assert!(!notice.means(&subject, &Record { created: 60, ..record.clone() }));
        assert!(!Notice::default().means(&subject, &record));
        let (of_a, name) =
            (Notice { tenant: Some("a".to_owned()), ..Notice::default() }, Namespace::qualified("a/n").unwrap());
        assert!(of_a.means(&Subject { namespace: &name, ..subject }, &record) && !of_a.means(&subject, &record));
        assert_eq!(Notice::from_text(&of_a.to_text()), of_a);
    }

    #[test]
    fn an_erasure_means_any_of_what_it_gives_and_names_no_tag() {
        let (name, other) = (Namespace::new("n").unwrap(), Namespace::default());
        let (key, version) = (Key::from_bytes([1; 32]), model(1));
        let subject = |namespace| Subject { namespace, model: &version, key: &key };
        let erasure = Erasure { id: "e".into(), tags: vec![veil("e", "tag", b"person:7")] };
        let by_tag = Notice { erasure: Some(erasure.clone()), ..Notice::default() };
        assert!(by_tag.means(&subject(&other), &tagged(3, &["a", "person:7"])));
        assert!(!by_tag.means(&subject(&other), &tagged(3, &["person:8"])));
        let by_key =
            Notice { keys: vec![key], erasure: Some(Erasure { tags: vec![], ..erasure }), ..Notice::default() };
        assert!(by_key.means(&subject(&other), &tagged(3, &[])));
        assert!(!by_key.means(&Subject { key: &Key::from_bytes([2; 32]), ..subject(&other) }, &tagged(3, &[])));
        let by_name = Notice { namespace: Some(name.clone()), keys: vec![], ..by_key.clone() };
        assert!(by_name.means(&subject(&name), &tagged(3, &[])) && !by_name.means(&subject(&other), &tagged(3, &[])));
        let both = Notice { keys: vec![key], ..by_tag };
        assert!(both.means(&subject(&other), &tagged(3, &[])) && !both.to_text().contains("person"));
        assert_eq!(Notice::from_text(&both.to_text()), both);
        let mut notices = Notices::default();
        notices.merge(&logged(&both, 5));
        assert!(notices.outdate(&subject(&other), &tagged(4, &[])));
        assert!(!notices.outdate(&subject(&other), &tagged(5, &[])));
    }

    #[test]
    fn only_later_notices_outdate_a_record() {
        let (name, key, version) = (Namespace::new("n").unwrap(), Key::from_bytes([1; 32]), model(1));
        let subject = Subject { namespace: &name, model: &version, key: &key };
        let single = |change: &dyn Fn(&mut Notice)| {
            let mut notice = Notice::default();
            change(&mut notice);
            notice
        };
        for notice in [
            single(&|notice| notice.tags = vec!["a1".into()]),
            single(&|notice| notice.tag_glob = Some(Pattern::new("a*"))),
            single(&|notice| notice.namespace = Some(Namespace::new("n").unwrap())),
            single(&|notice| notice.tenant = Some(String::new())),
            single(&|notice| notice.model = Some(model(1))),
            single(&|notice| notice.keys = vec![Key::from_bytes([1; 32])]),
            single(&|notice| notice.before = Some(60)),
            Notice::everything(false),
            every_selector(),
        ] {
            let mut notices = Notices::default();
            assert!(notices.merge(&logged(&notice, 5)), "{notice:?}");
            assert!(!notices.merge(&logged(&notice, 4)), "an earlier epoch of it says nothing new");
            assert!(notices.outdate(&subject, &tagged(4, &["a1", "b"])), "{notice:?}");
            assert!(!notices.outdate(&subject, &tagged(5, &["a1", "b"])), "{notice:?}");
            assert!(notices.merge(&logged(&notice, 9)));
            assert!(notices.outdate(&subject, &tagged(8, &["a1", "b"])), "{notice:?}");
            notices.raise_floor(9);
            assert!(notices.outdate(&subject, &tagged(8, &[])), "it cannot be judged any more");
            assert!(!notices.outdate(&subject, &tagged(9, &["a1", "b"])));
            assert_eq!((notices.len(), notices.others.len()), (0, 0));
        }
    }

    #[test]
    fn what_waits_to_be_sent_outdates_whatever_the_epoch() {
        let (name, key, version) = (Namespace::default(), Key::from_bytes([1; 32]), model(1));
        let subject = Subject { namespace: &name, model: &version, key: &key };
        let mut notices = Notices::default();
        notices.push_pending(r#"{"v":1,"tags":["a"]}"#.into());
        assert!(notices.outdate(&subject, &tagged(Epoch::MAX, &["a"])));
        assert!(!notices.outdate(&subject, &tagged(0, &["b"])));
        notices.collapse_pending(0);
        assert_eq!(notices.pending_len(), 1);
        assert!(notices.outdate(&subject, &tagged(0, &["b"])));
        assert_eq!(notices.pop_pending(), Some(2));
        assert!(!notices.outdate(&subject, &tagged(0, &["a"])));
    }

    #[test]
    fn too_many_notices_become_one_for_each_tenant_and_mean_nothing_of_the_others() {
        let mut notices = Notices::default();
        let one = |tag: &str| Notice { tags: vec![tag.into()], soft: true, ..Notice::default() };
        let of = |tenant: &str, tag: &str| Notice { tenant: Some(tenant.into()), ..one(tag) };
        let namespace = Some(Namespace::qualified("b/n").unwrap());
        let hard = Notice { namespace, soft: false, ..one("y") };
        for notice in [of("a", "x"), of("a", "z"), one("everybody's"), hard] {
            notices.push_pending(notice.to_text().into());
        }
        let last = notices.collapse_pending(1);
        let all = |tenant: &str, soft| Notice { tenant: Some(tenant.into()), all: true, soft, ..Notice::default() };
        let expected = [one("everybody's"), all("a", true), all("b", false)].map(|notice| notice.to_text());
        assert_eq!(notices.pending().iter().map(|text| text.to_string()).collect::<Vec<_>>(), expected);
        let tickets: Vec<u64> = std::iter::from_fn(|| notices.pop_pending()).collect();
        assert_eq!(tickets.last(), Some(&last));
    }

    #[test]
    fn what_a_log_lost_is_what_it_lacks_or_has_older() {
        let mut notices = Notices::default();
        let one = |tag: &str| Notice { tags: vec![tag.into()], ..Notice::default() };
        for (tag, epoch) in [("a", 1), ("b", 2), ("c", 3)] {
            notices.merge(&logged(&one(tag), epoch));
        }
        let log = HashMap::from([(one("a").to_text().into(), 1), (one("c").to_text().into(), 2)]);
        let mut missing: Vec<Epoch> = notices.missing_in(&log).iter().map(|logged| logged.epoch).collect();
        missing.sort_unstable();
        assert_eq!(missing, [2, 3]);
    }
}
