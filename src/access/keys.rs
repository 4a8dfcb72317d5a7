//! The keys there are, as a file says them:
//!
//! ```toml
//! [[key]]
//! id = "ingest-1"                                  # its name in logs
//! hash = "64 hexadecimal digits"                   # of the token, which is nowhere
//! tenant = "acme"                                  # whose namespaces it opens; not given: those that are no tenant's
//! scopes = ["embed", "search"]
//! expires = 2027-01-01T00:00:00Z                   # not given: never
//! ```
//!
//! A key with the scope `admin` and no tenant is the operator's, and opens all namespaces.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Caller, Refusal, Scope, Scopes, Token, TokenHash};
use crate::domain::{Namespace, Reach, Tenant};

/// The fewest bytes of a token that somebody has thought up: a shorter one can be guessed.
const OWN_TOKEN_BYTES_MIN: usize = 20;

/// What a single key is called in logs.
const SINGLE: &str = "single";

/// The longest id.
const ID_BYTES_MAX: usize = 64;

/// All keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys {
    keys: Vec<Key>,
    /// By the first bytes of their hashes.
    places: HashMap<u64, Vec<usize>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Key {
    id: Arc<str>,
    hash: TokenHash,
    scopes: Scopes,
    reach: Reach,
    /// In Unix seconds.
    expires: Option<u64>,
}

/// Why keys cannot be used. No message has a token in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Not what a file of keys looks like.
    #[error("{}", .0.message())]
    Malformed(#[from] toml::de::Error),
    /// One key makes no sense.
    #[error("the key {id:?}: {problem}")]
    Key {
        /// Its id.
        id: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The single key can be guessed.
    #[error("a key of less than {OWN_TOKEN_BYTES_MIN} bytes can be guessed: `vecmemo keys new` makes one that cannot")]
    Short,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "key")]
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    hash: String,
    tenant: Option<String>,
    scopes: Vec<String>,
    expires: Option<toml::value::Datetime>,
}

impl Keys {
    /// Reads a file's text. `public` are the namespaces that every tenant may use.
    ///
    /// # Errors
    /// When it is not TOML, or a key of it makes no sense: the error names it.
    pub fn parse(text: &str, public: &Arc<[Namespace]>) -> Result<Self, KeysError> {
        let File { keys } = toml::from_str(text)?;
        let mut all = Self::default();
        let mut ids = HashSet::new();
        for entry in keys {
            let id = entry.id.clone();
            if !ids.insert(id.clone()) || id == SINGLE {
                return Err(KeysError::Key { id, problem: "another has this id".to_owned() });
            }
            let key = Key::read(entry, public).map_err(|problem| KeysError::Key { id: id.clone(), problem })?;
            if all.find(&key.hash).is_some() {
                return Err(KeysError::Key { id, problem: "another has this hash".to_owned() });
            }
            all.add(key);
        }
        Ok(all)
    }

    /// Adds a single key, known by its token, that is good for everything.
    ///
    /// # Errors
    /// When it is so short that it can be guessed.
    pub fn with_single(mut self, token: &str) -> Result<Self, KeysError> {
        if token.len() < OWN_TOKEN_BYTES_MIN {
            return Err(KeysError::Short);
        }
        let hash = TokenHash::of(token.as_bytes());
        if self.find(&hash).is_none() {
            let (scopes, reach) = (Scopes::all(), Reach::everything());
            self.add(Key { id: SINGLE.into(), hash, scopes, reach, expires: None });
        }
        Ok(self)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whose keys there are: tenants' names, perhaps again and again; empty for those who are no tenant's.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter_map(|key| key.reach.tenant())
    }

    pub(super) fn admit(&self, token: &[u8], now: u64) -> Result<Caller, Refusal> {
        let key = self.find(&TokenHash::of(token)).ok_or(Refusal::Unknown)?;
        if key.expires.is_some_and(|expires| expires <= now) {
            return Err(Refusal::Expired);
        }
        Ok(Caller { id: Some(Arc::clone(&key.id)), scopes: key.scopes, reach: key.reach.clone(), account: None })
    }

    fn find(&self, hash: &TokenHash) -> Option<&Key> {
        let places = self.places.get(&hash.place())?;
        places.iter().map(|&place| &self.keys[place]).find(|key| key.hash == *hash)
    }

    fn add(&mut self, key: Key) {
        self.places.entry(key.hash.place()).or_default().push(self.keys.len());
        self.keys.push(key);
    }
}

impl Key {
    fn read(entry: Entry, public: &Arc<[Namespace]>) -> Result<Self, String> {
        let Entry { id, hash, tenant, scopes, expires } = entry;
        check_id(&id)?;
        let hash = TokenHash::parse(&hash).ok_or("hash is 64 hexadecimal digits, as `vecmemo keys new` prints them")?;
        let tenant = tenant.as_deref().map(Tenant::new).transpose().map_err(|error| error.to_string())?;
        let scopes = read_scopes(&scopes)?;
        let reach = match &tenant {
            None if scopes.has(Scope::Admin) => Reach::everything(),
            tenant => Reach::of(tenant.as_ref(), Arc::clone(public)),
        };
        let expires = expires.map(|time| unix_seconds(&time.to_string())).transpose()?;
        Ok(Self { id: id.into(), hash, scopes, reach, expires })
    }
}

fn check_id(id: &str) -> Result<(), String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if (1..=ID_BYTES_MAX).contains(&id.len()) && id.chars().all(is_allowed) {
        Ok(())
    } else {
        Err(format!("an id is 1 to {ID_BYTES_MAX} ASCII letters, digits and . _ : -"))
    }
}

fn read_scopes(words: &[String]) -> Result<Scopes, String> {
    if words.is_empty() {
        return Err("scopes is empty: it is good for nothing".to_owned());
    }
    words.iter().map(|word| word.parse::<Scope>().map_err(|error| error.to_string())).collect()
}

fn unix_seconds(time: &str) -> Result<u64, String> {
    let parsed = OffsetDateTime::parse(time, &Rfc3339);
    let parsed = parsed.map_err(|_| "expires is a time with its offset, such as 2027-01-01T00:00:00Z".to_owned())?;
    Ok(u64::try_from(parsed.unix_timestamp()).unwrap_or(0))
}

/// A key in the making: a new token, and what the file says of it.
#[derive(Debug)]
pub struct NewKey {
    /// What its user is to be given. It can never be shown again.
    pub token: Token,
    /// The table for the file.
    pub table: String,
}

impl NewKey {
    /// Makes one that ends at `expires`, in Unix seconds, or never.
    ///
    /// # Errors
    /// When id, tenant, scopes or time make no sense, or the system has no randomness: what is wrong.
    pub fn new(id: &str, tenant: Option<&str>, scopes: &[Scope], expires: Option<u64>) -> Result<Self, String> {
        let token = Token::random().map_err(|error| format!("the system gives no randomness: {error}"))?;
        let words: Vec<String> = scopes.iter().map(|scope| format!("\"{scope}\"")).collect();
        let mut table = format!("[[key]]\nid = \"{id}\"\nhash = \"{}\"\n", token.hash());
        if let Some(tenant) = tenant {
            writeln!(table, "tenant = \"{tenant}\"").expect("memory can be written to");
        }
        writeln!(table, "scopes = [{}]", words.join(", ")).expect("memory can be written to");
        if let Some(expires) = expires {
            let time =
                i64::try_from(expires).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
            let time = time.and_then(|time| time.format(&Rfc3339).ok()).ok_or("that is too long for a time")?;
            writeln!(table, "expires = {time}").expect("memory can be written to");
        }
        // What is printed is what is read.
        Keys::parse(&table, &Arc::from([])).map_err(|error| error.to_string())?;
        Ok(Self { token, table })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;

    fn public() -> Arc<[Namespace]> {
        [Namespace::new("shared").unwrap()].into()
    }

    fn made(id: &str, tenant: Option<&str>, scopes: &[Scope], expires: Option<u64>) -> NewKey {
        NewKey::new(id, tenant, scopes, expires).unwrap()
    }

    #[test]
    fn a_new_key_is_read_back_as_what_it_was_made_for() {
        let key = made("ingest", Some("acme"), &[Scope::Embed, Scope::Search], Some(2_000_000_000));
        assert!(!key.table.contains(key.token.reveal()), "{}", key.table);
        let access = Access::new(Keys::parse(&key.table, &public()).unwrap());
        let token = Some(key.token.reveal().as_bytes());
        let caller = access.admit(token, 1_999_999_999).unwrap();
        assert_eq!((caller.id(), caller.reach().tenant()), (Some("ingest"), Some("acme")));
        let may: Vec<Scope> = Scope::ALL.into_iter().filter(|scope| caller.may(*scope)).collect();
        assert_eq!(may, [Scope::Embed, Scope::Search]);
        assert_eq!(access.admit(token, 2_000_000_000).unwrap_err(), Refusal::Expired);
        assert_eq!(access.admit(None, 0).unwrap_err(), Refusal::Missing);
        assert_eq!(access.admit(Some(b"vm_another"), 0).unwrap_err(), Refusal::Unknown);
    }

    #[test]
    fn only_an_admin_without_a_tenant_reaches_everything() {
        let reach = |tenant, scopes: &[Scope]| {
            let key = made("k", tenant, scopes, None);
            let access = Access::new(Keys::parse(&key.table, &public()).unwrap());
            let caller = access.admit(Some(key.token.reveal().as_bytes()), 0).unwrap();
            (caller.reach().tenant().map(str::to_owned), caller.is_operator())
        };
        assert_eq!(reach(None, &[Scope::Admin]), (None, true));
        assert_eq!(reach(None, &[Scope::Embed, Scope::Invalidate]), (Some(String::new()), false));
        assert_eq!(reach(Some("a"), &[Scope::Admin]), (Some("a".to_owned()), false));
    }

    #[test]
    fn a_single_key_is_good_for_everything_and_must_not_be_guessable() {
        assert!(matches!(Keys::default().with_single("secret"), Err(KeysError::Short)));
        let access = Access::new(Keys::default().with_single("a-token-that-is-long-enough").unwrap());
        let caller = access.admit(Some(b"a-token-that-is-long-enough"), 0).unwrap();
        assert!(caller.is_operator() && caller.may(Scope::Admin) && caller.id() == Some("single"));
    }

    #[test]
    fn without_keys_everybody_may_do_everything() {
        let access = Access::default();
        let caller = access.admit(None, 0).unwrap();
        assert!(access.is_open() && caller.may(Scope::Admin) && caller.id().is_none() && !caller.is_operator());
        assert!(access.replace(Keys::default().with_single("a-token-that-is-long-enough").unwrap()));
        assert!(!access.is_open() && access.admit(None, 0).is_err());
    }

    #[test]
    fn a_key_that_makes_no_sense_is_refused_by_its_id() {
        let hash = "0".repeat(64);
        let other = "1".repeat(64);
        let key = |rest: &str| format!("[[key]]\nid = \"k\"\nhash = \"{hash}\"\n{rest}\n");
        for (file, words) in [
            (key("scopes = []"), "the key \"k\": scopes is empty"),
            (key("scopes = [\"read\"]"), "\"read\" is no scope"),
            (key("scopes = [\"embed\"]\ntenant = \"a/b\""), "a tenant's name"),
            (key("scopes = [\"embed\"]\nexpires = 2027-01-01"), "expires is a time with its offset"),
            (key("scopes = [\"embed\"]\nsecret = 1"), "unknown field `secret`"),
            (key("scopes = [\"embed\"]").replace(&hash, "12"), "64 hexadecimal digits"),
            (key("scopes = [\"embed\"]").replace("\"k\"", "\"a b\""), "an id is"),
            (format!("{0}{0}", key("scopes = [\"embed\"]")), "another has this id"),
            (
                format!("{}{}", key("scopes = [\"embed\"]"), key("scopes = [\"embed\"]").replace("\"k\"", "\"l\"")),
                "the key \"l\": another has this hash",
            ),
            (key("scopes = [\"embed\"]").replace("\"k\"", "\"single\"").replace(&hash, &other), "another has this id"),
        ] {
            let message = Keys::parse(&file, &public()).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
