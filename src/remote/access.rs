//! How the servers are reached: where they are, and by which certificates.
//!
//! Files are read once, when the tier is started: what is wrong with them is said then, and not by a connection that never comes about.
//! Private keys are never shown.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use redis::{ClientTlsConfig, TlsCertificates};

use super::StartError;
use super::url::Url;

/// The longest file of certificates that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Files of certificates, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Whose certificates the servers' may be signed by, in place of those that the system trusts.
    pub authority: Option<PathBuf>,
    /// What this node shows to servers that ask who it is: its certificate and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// An address, and what connecting to it takes.
pub(super) struct Access {
    url: Url,
    pub(super) certificates: Option<TlsCertificates>,
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or has not what it should, or the address is none of TLS.
    pub(super) fn new(url: &Url, files: &Certificates) -> Result<Self, StartError> {
        let Certificates { authority, identity } = files;
        let url = url.clone();
        if authority.is_none() && identity.is_none() {
            return Ok(Self { url, certificates: None });
        }
        if !url.tls {
            return Err(StartError::NotTls);
        }
        let root_cert = authority.as_deref().map(|path| read(path, "CERTIFICATE")).transpose()?;
        let client_tls = match identity {
            Some((certificate, key)) => Some(ClientTlsConfig {
                client_cert: read(certificate, "CERTIFICATE")?,
                client_key: read(key, "PRIVATE KEY")?,
            }),
            None => None,
        };
        Ok(Self { url, certificates: Some(TlsCertificates { client_tls, root_cert }) })
    }
}

impl Deref for Access {
    type Target = Url;

    fn deref(&self) -> &Url {
        &self.url
    }
}

/// A file in PEM that has something of a kind in it.
fn read(path: &Path, kind: &'static str) -> Result<Vec<u8>, StartError> {
    let unreadable = |source| StartError::Certificate { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8_lossy(&bytes);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{kind}-----"));
    match text.lines().any(begins) {
        true => Ok(bytes),
        false => Err(StartError::NotPem { path: path.to_owned(), kind }),
    }
}
