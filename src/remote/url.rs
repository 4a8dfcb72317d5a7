//! Where the tier is: one address that names its servers and how they are kept.
//!
//! ```text
//! redis://[user:password@]host[:6379][/database]                       one server
//! redis-sentinel://[user:password@]host[:26379],…/master[/database]    a master that sentinels know
//! redis-cluster://[user:password@]host[:6379],…                        a cluster, by some of its nodes
//! ```
//!
//! `rediss`, `rediss-sentinel` and `rediss-cluster` are the same over TLS; `valkey…` is another spelling of `redis…`.
//! A server's certificate is checked against those that the system trusts, or those in the file that `SSL_CERT_FILE` names, unless
//! [`Certificates`](super::Certificates) say otherwise.
//! `?sentinel_user=…&sentinel_password=…` is what sentinels are told, where they ask. `%` escapes what would end a part.
//!
//! Never shown, in any error or by any formatting: user and password.

use std::fmt;
use std::str::FromStr;

const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// The most addresses in one URL.
const ADDRESSES_MAX: usize = 64;

/// A parsed address. Its text leaves user and password out.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    pub(super) tls: bool,
    pub(super) kind: Kind,
    pub(super) addresses: Vec<Address>,
    pub(super) database: i64,
    pub(super) login: Login,
    pub(super) sentinel_login: Login,
}

/// How the servers are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Single,
    Sentinel { master: String },
    Cluster,
}

/// What a server is told of who is there.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

/// A server's host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an IP address, an IPv6 one without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// Why a text is no address of a tier. None of them repeats what was given, for there may be a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not one of the schemes.
    #[error(
        "the address begins with redis://, redis-sentinel:// or redis-cluster://, or rediss… for TLS, or valkey…: \
         this one does not"
    )]
    Scheme,
    /// No host, an empty one, or one with characters no host has.
    #[error("the address has an empty or malformed host")]
    Host,
    /// Not a number from 1 to 65535.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// More hosts than are useful.
    #[error("the address names more than {ADDRESSES_MAX} hosts")]
    TooMany,
    /// `redis://` with several hosts.
    #[error("redis:// names one host: several are a redis-sentinel:// or a redis-cluster://")]
    Several,
    /// `redis-sentinel://` without a master's name.
    #[error("redis-sentinel:// needs the master's name: redis-sentinel://host:26379/mymaster")]
    Master,
    /// Not a number from 0 to 65535, or one where there can be none.
    #[error("the database is a number after the last slash; a cluster has none")]
    Database,
    /// A `%` that two hexadecimal digits do not follow, or bytes that are no text.
    #[error("a % in the address is followed by two hexadecimal digits: write %25 for the sign itself")]
    Escape,
    /// A parameter that is not known.
    #[error("the address takes sentinel_user and sentinel_password after its ?, and nothing else")]
    Parameter,
}

impl Url {
    /// Whether connections are over TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(UrlError::Scheme)?;
        let scheme = scheme.to_ascii_lowercase();
        let name = scheme.strip_prefix("redis").or_else(|| scheme.strip_prefix("valkey")).ok_or(UrlError::Scheme)?;
        let (tls, name) = match name.strip_prefix('s') {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match place.rsplit_once('@') {
            Some((login, hosts)) => (Login::parse(login)?, hosts),
            None => (Login::default(), place),
        };
        let mut path = path.split('/').filter(|part| !part.is_empty());
        let (kind, port) = match name {
            "" => (Kind::Single, SERVER_PORT),
            "-sentinel" => (Kind::Sentinel { master: unescape(path.next().ok_or(UrlError::Master)?)? }, SENTINEL_PORT),
            "-cluster" => (Kind::Cluster, SERVER_PORT),
            _ => return Err(UrlError::Scheme),
        };
        let database = match path.next() {
            Some(_) if kind == Kind::Cluster => return Err(UrlError::Database),
            Some(number) => number.parse::<u16>().map_err(|_| UrlError::Database)?.into(),
            None => 0,
        };
        if path.next().is_some() {
            return Err(UrlError::Database);
        }
        let addresses: Vec<Address> = hosts
            .split(',')
            .take(ADDRESSES_MAX + 1)
            .map(|host| Address::parse(host, port))
            .collect::<Result<_, _>>()?;
        match addresses.len() {
            2.. if kind == Kind::Single => return Err(UrlError::Several),
            count if count > ADDRESSES_MAX => return Err(UrlError::TooMany),
            _ => {}
        }
        let mut sentinel_login = Login::default();
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sentinel_user", user)) => sentinel_login.user = Some(unescape(user)?),
                Some(("sentinel_password", password)) => sentinel_login.password = Some(unescape(password)?),
                _ => return Err(UrlError::Parameter),
            }
        }
        Ok(Self { tls, kind, addresses, database, login, sentinel_login })
    }
}

impl Login {
    /// `user:password`, `:password`, or a password alone.
    fn parse(text: &str) -> Result<Self, UrlError> {
        let (user, password) = text.split_once(':').unwrap_or(("", text));
        let given = |part: &str| if part.is_empty() { Ok(None) } else { unescape(part).map(Some) };
        Ok(Self { user: given(user)?, password: given(password)? })
    }
}

impl Address {
    /// `host`, `host:port`, `[::1]:port`.
    pub(super) fn parse(text: &str, port: u16) -> Result<Self, UrlError> {
        let (host, number) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(UrlError::Host)?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(UrlError::Port)?) })
            }
            None => match text.split_once(':') {
                Some((host, number)) => (host, Some(number)),
                None => (text, None),
            },
        };
        let usual = |c: char| c.is_ascii_alphanumeric() || "._-:%".contains(c);
        if host.is_empty() || !host.chars().all(usual) {
            return Err(UrlError::Host);
        }
        let port = match number {
            Some(number) => number.parse().ok().filter(|&port| port != 0).ok_or(UrlError::Port)?,
            None => port,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss" } else { "redis" })?;
        f.write_str(match self.kind {
            Kind::Single => "://",
            Kind::Sentinel { .. } => "-sentinel://",
            Kind::Cluster => "-cluster://",
        })?;
        for (index, address) in self.addresses.iter().enumerate() {
            write!(f, "{}{address}", if index == 0 { "" } else { "," })?;
        }
        if let Kind::Sentinel { master } = &self.kind {
            write!(f, "/{master}")?;
        }
        if self.database != 0 {
            write!(f, "/{}", self.database)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn unescape(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |index: usize| after.get(index).and_then(|&digit| (digit as char).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Err(UrlError::Escape) };
        bytes.push((high * 16 + low) as u8);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_address_is_read() {
        let one = parsed("redis://cache.internal");
        assert_eq!((one.tls, &one.kind, one.database), (false, &Kind::Single, 0));
        assert_eq!(one.addresses, [Address { host: "cache.internal".into(), port: 6379 }]);
        let secured = parsed("valkeys://me:p%40ss%3a@[::1]:7000/3");
        assert_eq!((secured.tls, secured.database), (true, 3));
        assert!(secured.login == Login { user: Some("me".into()), password: Some("p@ss:".into()) });
        assert_eq!(secured.addresses, [Address { host: "::1".into(), port: 7000 }]);
        let watched = parsed("redis-sentinel://:secret@a,b:27000/main/2?sentinel_password=other");
        assert_eq!(watched.kind, Kind::Sentinel { master: "main".into() });
        assert_eq!(watched.addresses[0].port, 26379);
        assert_eq!((watched.addresses[1].port, watched.database), (27000, 2));
        assert_eq!(watched.sentinel_login.password.as_deref(), Some("other"));
        let cluster = parsed("rediss-cluster://a,b,c:1");
        assert!(cluster.tls && cluster.kind == Kind::Cluster && cluster.addresses.len() == 3);
    }

    #[test]
    fn no_text_of_an_address_has_its_secrets() {
        let url = parsed("redis-sentinel://alice:hunter2@a,[::2]/main/1?sentinel_user=bob&sentinel_password=hunter3");
        assert_eq!(url.to_string(), "redis-sentinel://a:26379,[::2]:26379/main/1");
        assert_eq!(format!("{url:?}"), url.to_string());
    }

    #[test]
    fn each_fault_has_its_name() {
        for (text, error) in [
            ("http://a", UrlError::Scheme),
            ("redis:a", UrlError::Scheme),
            ("redis-other://a", UrlError::Scheme),
            ("redis://", UrlError::Host),
            ("redis://a b", UrlError::Host),
            ("redis://[::1", UrlError::Host),
            ("redis://a:0", UrlError::Port),
            ("redis://a:65536", UrlError::Port),
            ("redis://a,b", UrlError::Several),
            ("redis-sentinel://a", UrlError::Master),
            ("redis://a/x", UrlError::Database),
            ("redis://a/1/2", UrlError::Database),
            ("redis-cluster://a/1", UrlError::Database),
            ("redis://:%zz@a", UrlError::Escape),
            ("redis://:%ff@a", UrlError::Escape),
            ("redis://a?password=1", UrlError::Parameter),
        ] {
            assert_eq!(text.parse::<Url>(), Err(error), "{text}");
        }
        assert_eq!(format!("redis-cluster://{}a", "a,".repeat(64)).parse::<Url>(), Err(UrlError::TooMany));
    }
}
