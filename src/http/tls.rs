//! TLS for connections: a certificate and its key from two files in PEM, read again when they change.
//!
//! Promises: TLS 1.2 and 1.3 alone, by rustls and ring; HTTP/2 and HTTP/1.1 by ALPN; connections that are open go on with the certificate
//! they began with; files that make no sense change nothing. No message has anything of the key in it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// What the two sides may speak, the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate and its key. Cloning is cheap, and all clones are one.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    certificate: PathBuf,
    key: PathBuf,
    /// Replaced as a whole.
    acceptor: RwLock<TlsAcceptor>,
    /// A digest of what the files held when they were last read, whether or not it could be used.
    seen: Mutex<[u8; 32]>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not PEM of what it should be.
    #[error("{path} has no {what} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The two do not fit, or cannot be used at all.
    #[error("the certificate of {path} and its key cannot be used: {source}")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads a certificate, with the chain that leads to it, and its key.
    ///
    /// # Errors
    /// When one of them is not there, is not what it should be, or does not fit the other.
    pub fn load(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let (certificate, key) = (certificate.into(), key.into());
        let (chain, secret) = (read(&certificate)?, read(&key)?);
        let acceptor = RwLock::new(acceptor(&certificate, &chain, &key, &secret)?);
        let seen = Mutex::new(digest(&chain, &secret));
        Ok(Self { shared: Arc::new(Shared { certificate, key, acceptor, seen }) })
    }

    /// Reads the files again, and has connections begin with what they hold now. Says whether that is something else. Blocks for the disk.
    ///
    /// # Errors
    /// As for [`Tls::load`]; then nothing changes.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Shared { certificate, key, .. } = &*self.shared;
        let (chain, secret) = (read(certificate)?, read(key)?);
        self.take(&chain, &secret)?;
        Ok(self.see(digest(&chain, &secret)))
    }

    /// As [`Tls::reload`], if the files are others than when they were last looked at: what cannot be used is complained of once.
    pub(super) fn look(&self) -> Result<bool, TlsError> {
        let Shared { certificate, key, .. } = &*self.shared;
        let (chain, secret) = (read(certificate)?, read(key)?);
        if !self.see(digest(&chain, &secret)) {
            return Ok(false);
        }
        // What was seen, and not what may be there by now.
        self.take(&chain, &secret).map(|()| true)
    }

    /// Notes what the files hold. Whether that is something else.
    fn see(&self, now: [u8; 32]) -> bool {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, now) != now
    }

    /// Has connections begin with these from now on.
    fn take(&self, chain: &[u8], secret: &[u8]) -> Result<(), TlsError> {
        let Shared { certificate, key, acceptor: current, .. } = &*self.shared;
        let next = acceptor(certificate, chain, key, secret)?;
        *current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.shared.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({})", self.shared.certificate.display())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn digest(chain: &[u8], secret: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(chain.len() as u64).to_le_bytes()).update(chain).update(secret);
    *hasher.finalize().as_bytes()
}

fn acceptor(certificate: &Path, chain: &[u8], key: &Path, secret: &[u8]) -> Result<TlsAcceptor, TlsError> {
    let missing = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
    let chain: Result<Vec<CertificateDer<'static>>, pem::Error> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| missing(certificate, "certificate"))?;
    let secret = PrivateKeyDer::from_pem_slice(secret).map_err(|_| missing(key, "private key"))?;
    let unusable = |source| TlsError::Unusable { path: certificate.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(unusable)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
