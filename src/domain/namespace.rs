//! A corpus's own part of the cache: the same text in two namespaces is two entries. A tenant's namespaces are its own: they are
//! written `TENANT/NAME`, and no name that a client gives has a slash.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// The longest tenant's name, in bytes.
const TENANT_BYTES_MAX: usize = 64;

/// A name of up to 128 letters, digits and `. _ : -`, after its tenant's and a slash if it is a tenant's; the default namespace's
/// is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Namespace(String);

/// Who has namespaces of its own: a name of 1 to 64 letters, digits and `. _ : -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// Which namespaces somebody may touch: all there are, or one tenant's and those that are public.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reach(Option<Pinned>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pinned {
    /// Empty: the namespaces that are no tenant's.
    tenant: Arc<str>,
    public: Arc<[Namespace]>,
}

/// Why a string cannot name a namespace, or a tenant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NamespaceError {
    /// Longer than 128 bytes.
    #[error("a namespace has at most {NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that is not a letter, a digit or one of `. _ : -`.
    #[error("a namespace is made of ASCII letters, digits and . _ : - only; {0:?} is none of them")]
    Character(char),
    /// A tenant's name.
    #[error("a tenant's name is 1 to {TENANT_BYTES_MAX} ASCII letters, digits and . _ : -; {0:?} is not")]
    Tenant(String),
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._:-".contains(c)
}

impl Namespace {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is too long or has a character outside the allowed set.
    pub fn new(name: &str) -> Result<Self, NamespaceError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(NamespaceError::TooLong(name.len()));
        }
        match name.chars().find(|c| !is_allowed(*c)) {
            Some(c) => Err(NamespaceError::Character(c)),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// Reads a name as it is stored: `TENANT/NAME`, or a name that is no tenant's.
    ///
    /// # Errors
    /// As for [`Namespace::new`] and [`Tenant::new`].
    pub fn qualified(text: &str) -> Result<Self, NamespaceError> {
        match text.split_once('/') {
            None => Self::new(text),
            Some((tenant, name)) => Ok(Self::new(name)?.of(Tenant::new(tenant)?.as_str())),
        }
    }

    fn of(&self, tenant: &str) -> Self {
        Self(format!("{tenant}/{}", self.0))
    }

    /// The name as it is stored; empty for the default namespace.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whose it is; empty if it is no tenant's.
    #[must_use]
    pub fn tenant(&self) -> &str {
        owner(&self.0)
    }
}

/// Whose a namespace is, by its name as it is stored; empty if it is no tenant's.
#[must_use]
pub fn owner(name: &str) -> &str {
    name.split_once('/').map_or("", |(tenant, _)| tenant)
}

impl TryFrom<String> for Namespace {
    type Error = NamespaceError;

    /// As [`Namespace::qualified`].
    fn try_from(text: String) -> Result<Self, NamespaceError> {
        Self::qualified(&text)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Tenant {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long, or has a character outside the allowed set.
    pub fn new(name: &str) -> Result<Self, NamespaceError> {
        if (1..=TENANT_BYTES_MAX).contains(&name.len()) && name.chars().all(is_allowed) {
            Ok(Self(name.into()))
        } else {
            Err(NamespaceError::Tenant(name.chars().take(2 * TENANT_BYTES_MAX).collect()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Reach {
    /// All namespaces.
    #[must_use]
    pub fn everything() -> Self {
        Self(None)
    }

    /// A tenant's namespaces, or those that are no tenant's, and the public ones.
    #[must_use]
    pub fn of(tenant: Option<&Tenant>, public: Arc<[Namespace]>) -> Self {
        let tenant = tenant.map_or_else(|| "".into(), |tenant| Arc::clone(&tenant.0));
        Self(Some(Pinned { tenant, public }))
    }

    /// Whose namespaces it is: empty for those that are no tenant's, `None` for all.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.0.as_ref().map(|pinned| &*pinned.tenant)
    }

    /// Whether a namespace, by its name as it is stored, is in it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let Some(Pinned { tenant, public }) = &self.0 else { return true };
        owner(name) == &**tenant || public.iter().any(|namespace| namespace.as_str() == name)
    }

    /// A name as it is stored, as it is called here: the tenant's own without the tenant.
    #[must_use]
    pub fn called<'a>(&self, name: &'a str) -> &'a str {
        match (&self.0, name.split_once('/')) {
            (Some(pinned), Some((tenant, own))) if tenant == &*pinned.tenant => own,
            _ => name,
        }
    }

    /// Where a name leads from here: to the public namespace of that name if there is one, else to the tenant's own. `None`: to
    /// another tenant's.
    #[must_use]
    pub fn pin(&self, namespace: Namespace) -> Option<Namespace> {
        let Some(Pinned { tenant, public }) = &self.0 else { return Some(namespace) };
        match namespace.tenant() {
            "" if tenant.is_empty() || public.contains(&namespace) => Some(namespace),
            "" => Some(namespace.of(tenant)),
            of => (of == &**tenant).then_some(namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Namespace {
        Namespace::qualified(text).unwrap()
    }

    #[test]
    fn a_name_of_a_client_has_no_slash_and_a_stored_one_at_most_the_tenants() {
        assert_eq!(Namespace::new("a/x"), Err(NamespaceError::Character('/')));
        assert_eq!((name("a/x").tenant(), name("a/").tenant(), name("x").tenant()), ("a", "a", ""));
        assert_eq!(Namespace::qualified("a/x/y"), Err(NamespaceError::Character('/')));
        for bad in ["/x", "ä/x", &format!("{}/x", "t".repeat(65))] {
            assert!(matches!(Namespace::qualified(bad), Err(NamespaceError::Tenant(_))), "{bad}");
        }
    }

    #[test]
    fn a_tenant_reaches_its_own_and_the_public_namespaces_and_no_others() {
        let public: Arc<[Namespace]> = [name("shared")].into();
        let a = Reach::of(Some(&Tenant::new("a").unwrap()), Arc::clone(&public));
        let unnamed = Reach::of(None, public);
        for (stored, of_a, of_unnamed) in [
            ("a/x", true, false),
            ("a/", true, false),
            ("a/shared", true, false),
            ("shared", true, true),
            ("x", false, true),
            ("", false, true),
            ("a", false, true),
            ("ab/x", false, false),
            ("b/x", false, false),
            ("b/shared", false, false),
        ] {
            assert_eq!((a.has(stored), unnamed.has(stored)), (of_a, of_unnamed), "{stored}");
            assert!(Reach::everything().has(stored));
        }
    }

    #[test]
    fn a_name_leads_to_the_tenants_own_namespace_unless_it_is_public() {
        let public: Arc<[Namespace]> = [name("shared")].into();
        let a = Reach::of(Some(&Tenant::new("a").unwrap()), Arc::clone(&public));
        for (given, leads) in
            [("x", Some("a/x")), ("", Some("a/")), ("shared", Some("shared")), ("a/x", Some("a/x")), ("b/x", None)]
        {
            assert_eq!(a.pin(name(given)), leads.map(name), "{given}");
            assert_eq!(Reach::everything().pin(name(given)), Some(name(given)));
        }
        assert_eq!(Reach::of(None, public).pin(name("x")), Some(name("x")));
        assert_eq!((a.called("a/x"), a.called("shared"), Reach::everything().called("a/x")), ("x", "shared", "a/x"));
    }
}
