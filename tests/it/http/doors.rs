//! The ways in: TLS, and a listener of the operators' own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use vecmemo::access::{Access, Scope};
use vecmemo::batch;
use vecmemo::http::{self, Config, Listeners, Tls};

use super::keys::keys;
use super::{cache_of, model};

/// A certificate that nobody but the test trusts, in the two files.
fn write_certificate(folder: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.pem()
}

fn loaded(folder: &Path) -> Result<Tls, http::TlsError> {
    Tls::load(folder.join("cert.pem"), folder.join("key.pem"))
}

struct Served {
    public: SocketAddr,
    admin: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
    _folder: TempDir,
}

impl Served {
    async fn start(config: Config, with_admin: bool) -> Self {
        let (cache, folder) = cache_of(model(), batch::Config::default());
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = if with_admin { Some(TcpListener::bind("127.0.0.1:0").await.unwrap()) } else { None };
        let (at, admin_at) = (public.local_addr().unwrap(), admin.as_ref().map(|admin| admin.local_addr().unwrap()));
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(http::serve(Listeners { public, admin }, cache, config, async move {
            let _ = stopped.await;
        }));
        Self { public: at, admin: admin_at, stop, served, _folder: folder }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }
}

type Versions<'a> = &'a [&'static SupportedProtocolVersion];

/// A connection that trusts this certificate alone.
async fn shake(
    at: SocketAddr,
    trusted: &str,
    offered: &[&[u8]],
    versions: Versions<'_>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config =
        config.with_protocol_versions(versions).unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(at).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

const BOTH: Versions<'static> = &[&TLS12, &TLS13];
const H1: &[&[u8]] = &[b"http/1.1"];

/// The answer to one request on a connection that is closed behind it.
async fn asked<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, request: &str) -> String {
    let request = format!("{request}host: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // How a peer ends a connection is its own matter.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn plain(at: SocketAddr, request: &str) -> String {
    asked(TcpStream::connect(at).await.unwrap(), request).await
}

const HEALTH: &str = "GET /health HTTP/1.1\r\n";

#[tokio::test]
async fn connections_are_by_tls_of_either_version_and_protocol() {
    let folder = TempDir::new().unwrap();
    let trusted = write_certificate(folder.path());
    let served = Served::start(Config { tls: Some(loaded(folder.path()).unwrap()), ..Config::default() }, false).await;
    for versions in [&[&TLS12][..], &[&TLS13], BOTH] {
        let stream = shake(served.public, &trusted, H1, versions).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert!(asked(stream, HEALTH).await.starts_with("HTTP/1.1 200"));
    }
    let offered: &[&[u8]] = &[b"http/1.1", b"h2"];
    let mut stream = shake(served.public, &trusted, offered, BOTH).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    // The preface and empty settings; the server's own settings come first.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "{frame:?} is no frame of settings");
    drop(stream);
    // Without any protocol named it is HTTP/1.1; in the clear it is nothing.
    let stream = shake(served.public, &trusted, &[], BOTH).await.unwrap();
    assert!(asked(stream, HEALTH).await.starts_with("HTTP/1.1 200"));
    let clear = plain(served.public, HEALTH).await;
    assert!(!clear.contains("HTTP/1.1 200"), "{clear}");
    assert!(
        shake(served.public, &write_certificate(TempDir::new().unwrap().path()), H1, BOTH).await.is_err(),
        "anything is trusted"
    );
    served.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_the_connection_and_holds_up_no_drain() {
    let folder = TempDir::new().unwrap();
    write_certificate(folder.path());
    let tls = Some(loaded(folder.path()).unwrap());
    let hurried = Config { tls: tls.clone(), header_timeout: Duration::from_millis(50), ..Config::default() };
    let served = Served::start(hurried, false).await;
    for said in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(served.public).await.unwrap();
        stream.write_all(said).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{said:?} keeps a connection open");
    }
    served.stop().await;

    let patient = Config { tls, header_timeout: Duration::from_secs(3600), ..Config::default() };
    let served = Served::start(patient, false).await;
    let silent = TcpStream::connect(served.public).await.unwrap();
    let stopping = tokio::time::timeout(Duration::from_secs(20), served.stop()).await;
    assert!(stopping.is_ok(), "a connection that says nothing holds up the end");
    drop(silent);
}

#[tokio::test]
async fn a_certificate_that_changes_is_taken_up_and_open_connections_go_on() {
    let folder = TempDir::new().unwrap();
    let first = write_certificate(folder.path());
    let tls = loaded(folder.path()).unwrap();
    // Told to; and on its own, however long that takes.
    for every in [Duration::from_secs(3600), Duration::from_millis(20)] {
        let config = Config { tls: Some(tls.clone()), tls_look_every: every, ..Config::default() };
        let served = Served::start(config, false).await;
        let before = std::fs::read_to_string(folder.path().join("cert.pem")).unwrap();
        let open = shake(served.public, &before, H1, BOTH).await.unwrap();
        // Half of a change is none.
        std::fs::write(folder.path().join("cert.pem"), "nothing yet").unwrap();
        assert!(tls.reload().is_err());
        assert!(shake(served.public, &before, H1, BOTH).await.is_ok());
        let after = write_certificate(folder.path());
        if every > Duration::from_secs(60) {
            assert!(tls.reload().unwrap() && !tls.reload().unwrap());
        }
        let taken_up = async {
            while shake(served.public, &after, H1, BOTH).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), taken_up).await.expect("the certificate is taken up");
        assert!(shake(served.public, &before, H1, BOTH).await.is_err());
        assert!(asked(open, HEALTH).await.starts_with("HTTP/1.1 200"));
        served.stop().await;
    }
    assert_ne!(first, std::fs::read_to_string(folder.path().join("cert.pem")).unwrap());
}

#[test]
fn files_that_make_no_sense_are_refused_by_name_and_without_what_is_in_them() {
    let folder = TempDir::new().unwrap();
    let message = |cert: Option<&str>, key: Option<&str>| {
        write_certificate(folder.path());
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for (name, text) in [("cert.pem", cert), ("key.pem", key)] {
            match text {
                None => {}
                Some("gone") => std::fs::remove_file(folder.path().join(name)).unwrap(),
                Some("other") => std::fs::write(folder.path().join(name), &other).unwrap(),
                Some(text) => std::fs::write(folder.path().join(name), text).unwrap(),
            }
        }
        format!("{:#}", loaded(folder.path()).map(|_| ()).unwrap_err())
    };
    assert!(message(Some("gone"), None).contains("cannot read") && message(Some("gone"), None).contains("cert.pem"));
    assert!(message(None, Some("gone")).contains("key.pem"));
    assert!(message(Some("marker"), None).contains("cert.pem has no certificate in PEM"));
    assert!(message(Some("other"), None).contains("cert.pem has no certificate in PEM"));
    let broken = "-----BEGIN PRIVATE KEY-----\nmarker\n-----END PRIVATE KEY-----\n";
    for key in ["marker", "", broken] {
        let message = message(None, Some(key));
        assert!(message.contains(".pem") && !message.contains("marker"), "{message}");
    }
    assert!(message(None, Some("other")).contains("cannot be used"));
}

const OPERATORS: [&str; 6] = ["/", "/stats", "/metrics", "/admin/cache", "/admin/migrations", "/admin/aliases/fake"];
const EVERYBODYS: [&str; 2] = ["/v1/models", "/similar?key=0"];
const BOTHS: [&str; 4] = ["/health", "/ready", "/info", "/openapi.json"];

#[tokio::test]
async fn what_is_the_operators_is_served_on_their_own_listener_alone() {
    let status = |at, path: &'static str| async move {
        let answer = plain(at, &format!("GET {path} HTTP/1.1\r\n")).await;
        answer.split(' ').nth(1).unwrap_or_else(|| panic!("{path}: {answer}")).to_owned()
    };
    let apart = Served::start(Config::default(), true).await;
    let admin = apart.admin.unwrap();
    for path in OPERATORS {
        // The root's other method is everybody's.
        let absent = if path == "/" { "405" } else { "404" };
        assert_eq!(
            (status(apart.public, path).await.as_str(), status(admin, path).await.as_str()),
            (absent, "200"),
            "{path}"
        );
    }
    for path in EVERYBODYS {
        assert_ne!(status(apart.public, path).await, "404", "{path}");
        assert_eq!(status(admin, path).await, "404", "{path}");
    }
    for path in BOTHS {
        assert_eq!(
            (status(apart.public, path).await.as_str(), status(admin, path).await.as_str()),
            ("200", "200"),
            "{path}"
        );
    }
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\ncontent-length: 0\r\ncontent-type: application/json\r\n");
    let places = [
        ("/embed", (true, false)),
        ("/invalidate", (true, true)),
        ("/erase", (false, true)),
        ("/admin/reload", (false, true)),
    ];
    for (path, expected) in places {
        let (public, own) = (plain(apart.public, &post(path)).await, plain(admin, &post(path)).await);
        let is_there = |answer: &str| !answer.starts_with("HTTP/1.1 404");
        assert_eq!((is_there(&public), is_there(&own)), expected, "{path}");
    }
    apart.stop().await;
    let together = Served::start(Config::default(), false).await;
    for path in OPERATORS.into_iter().chain(BOTHS) {
        assert_eq!(status(together.public, path).await, "200", "{path}");
    }
    together.stop().await;
}

#[tokio::test]
async fn metrics_are_open_on_the_operators_listener_unless_they_say_otherwise() {
    for (metrics_open, expected) in [(None, "200"), (Some(false), "401"), (Some(true), "200")] {
        let (keys, _) = keys(&[("k", "", &[Scope::Admin])], &[], None);
        let served = Served::start(Config { access: Access::new(keys), metrics_open, ..Config::default() }, true).await;
        let admin = served.admin.unwrap();
        let answer = plain(admin, "GET /metrics HTTP/1.1\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{metrics_open:?}: {answer}");
        assert!(plain(admin, "GET /stats HTTP/1.1\r\n").await.starts_with("HTTP/1.1 401"));
        served.stop().await;
    }
}

/// Connections that fill the one listener leave the other's alone.
#[tokio::test]
async fn operators_are_served_though_the_other_listener_is_full() {
    let served = Served::start(Config { connections_max: 1, ..Config::default() }, true).await;
    let full = TcpStream::connect(served.public).await.unwrap();
    let asking = plain(served.admin.unwrap(), HEALTH);
    let answer = tokio::time::timeout(Duration::from_secs(20), asking).await.expect("the operator is let in");
    assert!(answer.starts_with("HTTP/1.1 200"));
    drop(full);
    served.stop().await;
}

#[tokio::test]
async fn what_a_browser_sends_for_another_sites_page_changes_nothing() {
    let served = Served::start(Config::default(), false).await;
    let from = |site: &str| {
        format!(
            "POST /invalidate HTTP/1.1\r\ncontent-length: 0\r\ncontent-type: application/json\r\nsec-fetch-site: {site}\r\n"
        )
    };
    for site in ["cross-site", "same-site"] {
        assert!(plain(served.public, &from(site)).await.starts_with("HTTP/1.1 403"), "{site}");
    }
    for site in ["same-origin", "none"] {
        assert!(plain(served.public, &from(site)).await.starts_with("HTTP/1.1 400"), "{site}");
    }
    let reading = "GET /stats HTTP/1.1\r\nsec-fetch-site: cross-site\r\n";
    assert!(plain(served.public, reading).await.starts_with("HTTP/1.1 200"));
    served.stop().await;
}
