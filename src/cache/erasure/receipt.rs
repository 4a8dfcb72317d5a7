//! What an erasure came to, in a form that can be kept as proof: it names nothing that was erased.
//!
//! A receipt is one line of JSON. Its last field digests the rest, and one field the receipt before it, so that a receipt that
//! was changed, and one that is missing from the middle, can be seen.

use serde::{Deserialize, Serialize};

/// The first words of every receipt, and the version of what follows.
const FORMAT: &str = "vecmemo erasure 1";

/// What an erasure came to on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// What this is, and of which version.
    pub format: String,
    /// The erasure's name; the same on every machine that is told of it.
    pub id: String,
    /// When it was asked for, in Unix seconds.
    pub asked: u32,
    /// When this was written, in Unix seconds.
    pub completed: u32,
    /// Who asked, if they said so; `another machine` for one that came by the shared tier.
    pub by: Option<String>,
    /// Why, if they said so.
    pub reason: Option<String>,
    /// What was asked for.
    pub selector: Selected,
    /// Fingerprints of the models whose entries were looked at.
    pub models: Vec<String>,
    /// What was erased, by key.
    pub keys: ErasedKeys,
    /// What was erased, by place.
    pub erased: Places,
    /// The shared tier; `None` where there is none, or where it was the tier that told of the erasure.
    pub tier: Option<TierState>,
    /// Exports of these models that are known, and may hold what was erased: they are others' to erase.
    pub exports: Vec<KnownExport>,
    /// Entries that have the same vector as one that was erased, were not asked for and are still there: other spellings of the same text.
    pub same_vector: usize,
    /// What could not be looked at, or is out of reach.
    pub not_erased: Vec<String>,
    /// What is still to be done, and is tried again until it is: another receipt of the same name says when.
    pub pending: Vec<String>,
    /// Whether everything named above is on the medium.
    pub synced: bool,
    /// Whether the process ended in the middle, and another completed it.
    pub resumed: bool,
    /// The digest of the receipt before this one; `None` for the first.
    pub previous: Option<String>,
    /// BLAKE3 of this receipt as JSON with an empty digest.
    pub digest: String,
}

/// What was asked for, without saying it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// `keys`, `inputs`, `tags` or `namespace`.
    pub kind: String,
    /// A veil for each: [`crate::domain::veil`] of the erasure's id, the kind in the singular (`key`, `input`, `tag`, `namespace`) and what was
    /// given. Whoever knows that can show that it is the one.
    pub veils: Vec<String>,
    /// Whether other spellings of the same tokens were asked for too.
    pub copies: bool,
}

/// The keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedKeys {
    /// How many: those of entries that were there, and those named in the request.
    pub count: usize,
    /// BLAKE3 of the file that has a veil of each: `erasures/ID.keys` in the data folder.
    pub digest: String,
}

/// What was erased, by place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// Entries: records zeroed.
    pub entries: usize,
    /// Rows overwritten: theirs, and those that entries which had gone before had left.
    pub rows: usize,
    /// Lines by which other spellings find an entry.
    pub token_keys: u64,
    /// Lists of tags, and payloads.
    pub attachments: u64,
    /// Texts that reuse has learnt.
    pub reuse_texts: usize,
    /// Texts that were answered with another's vector.
    pub reuse_aliases: usize,
    /// Parts of the graph that were given up.
    pub graph_segments: usize,
}

/// How the shared tier took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierState {
    /// Whether every other machine is told: it is served nothing of this any more, and erases what it has.
    pub published: bool,
    /// Whether the servers have forgotten the records.
    pub removed: bool,
    /// How many records that were, at most.
    pub records: usize,
}

/// An export that was made of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownExport {
    /// Where it was written.
    pub path: String,
    /// When, in Unix seconds.
    pub made: u32,
    /// How many entries it has.
    pub entries: u64,
    /// Of the entries that were erased, how many had been stored before it was made; older versions of others may be in it too.
    pub holds: usize,
    /// Whether something is still there.
    pub there: bool,
}

impl Receipt {
    /// A receipt of nothing yet.
    pub(super) fn begun(id: &str) -> Self {
        Self {
            format: FORMAT.to_owned(),
            id: id.to_owned(),
            asked: 0,
            completed: 0,
            by: None,
            reason: None,
            selector: Selected::default(),
            models: Vec::new(),
            keys: ErasedKeys::default(),
            erased: Places::default(),
            tier: None,
            exports: Vec::new(),
            same_vector: 0,
            not_erased: Vec::new(),
            pending: Vec::new(),
            synced: false,
            resumed: false,
            previous: None,
            digest: String::new(),
        }
    }

    /// With its digest, after another receipt.
    pub(super) fn sealed(self, previous: Option<String>) -> Self {
        let receipt = Self { previous, ..self };
        Self { digest: receipt.computed_digest(), ..receipt }
    }

    /// Whether it is as it was written, as far as it can say itself.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.format == FORMAT && self.digest == self.computed_digest()
    }

    fn computed_digest(&self) -> String {
        let bare = Self { digest: String::new(), ..self.clone() };
        let json = serde_json::to_vec(&bare).expect("a receipt is strings and numbers");
        blake3::hash(&json).to_hex().to_string()
    }
}

impl std::ops::AddAssign for Places {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.rows += other.rows;
        self.token_keys += other.token_keys;
        self.attachments += other.attachments;
        self.reuse_texts += other.reuse_texts;
        self.reuse_aliases += other.reuse_aliases;
        self.graph_segments += other.graph_segments;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_that_was_changed_is_not_intact() {
        let sealed = Receipt::begun("an id").sealed(Some("the one before".to_owned()));
        assert!(sealed.is_intact());
        let read: Receipt = serde_json::from_str(&serde_json::to_string(&sealed).unwrap()).unwrap();
        assert_eq!((read.is_intact(), &read), (true, &sealed));
        let changes: [fn(&mut Receipt); 4] = [
            |receipt| receipt.erased.entries += 1,
            |receipt| receipt.previous = None,
            |receipt| receipt.pending.push("tier".to_owned()),
            |receipt| receipt.digest.clear(),
        ];
        for change in changes {
            let mut changed = sealed.clone();
            change(&mut changed);
            assert!(!changed.is_intact());
        }
    }
}
