//! A real server over TLS, with certificates of an authority that the system does not know.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::live::{Server, available, free_port};
use super::*;

const EXTENSIONS: &str = "[req]\ndistinguished_name=name\n[name]\n[authority]\nbasicConstraints=critical,CA:TRUE\n\
                          [server]\nsubjectAltName=IP:127.0.0.1\n[client]\nextendedKeyUsage=clientAuth\n";

/// Whether there is a program that makes certificates.
fn can_sign() -> bool {
    let found = Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|done| done.success());
    if !found {
        eprintln!("not tested: there is no openssl on the PATH");
    }
    found
}

/// Certificates in a folder: of an authority, and of a server and a client that it has signed.
struct Papers(tempfile::TempDir);

impl Papers {
    fn new() -> Self {
        let papers = Self(tempfile::tempdir().unwrap());
        fs::write(papers.0.path().join("extensions"), EXTENSIONS).unwrap();
        papers.sign(&["-subj", "/CN=authority", "-extensions", "authority"], "authority");
        for name in ["server", "client"] {
            let subject = format!("/CN={name}");
            let signed = ["-subj", &subject, "-extensions", name, "-CA", "authority.pem", "-CAkey", "authority.key"];
            papers.sign(&signed, name);
        }
        papers
    }

    fn sign(&self, arguments: &[&str], name: &str) {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-config", "extensions", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-nodes", "-days", "2"]).args(arguments).current_dir(self.0.path());
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn authority(&self) -> Certificates {
        Certificates { authority: Some(self.path("authority.pem")), identity: None }
    }

    fn identity(&self) -> Certificates {
        let identity = Some((self.path("client.pem"), self.path("client.key")));
        Certificates { identity, ..self.authority() }
    }
}

/// A server, and its address over TLS.
fn server(papers: &Papers, auth_clients: &str) -> (Server, String) {
    let port = free_port();
    let path = |name| papers.path(name).to_string_lossy().into_owned();
    let (port_text, authority) = (port.to_string(), path("authority.pem"));
    let (certificate, key) = (path("server.pem"), path("server.key"));
    let options = ["--tls-port", &port_text, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let trust = ["--tls-ca-cert-file", &authority, "--tls-auth-clients", auth_clients];
    (Server::start(&[&options[..], &trust].concat()), format!("rediss://127.0.0.1:{port}"))
}

fn secured(certificates: Certificates) -> Config {
    Config { certificates, ..config() }
}

/// Why the tier does not come about.
fn refusal(url: &str, certificates: Certificates) -> String {
    let tier = Tier::start(&url.parse().unwrap(), secured(certificates)).unwrap();
    until("it is refused", SOON, || tier.figures().servers[0].error.is_some());
    assert!(!tier.figures().ready);
    tier.figures().servers[0].error.clone().unwrap()
}

#[test]
fn a_server_is_used_over_tls_and_one_of_another_authority_is_refused() {
    if !available() || !can_sign() {
        return;
    }
    let (papers, others) = (Papers::new(), Papers::new());
    let (_server, url) = server(&papers, "no");
    // The second connection, and those of events and replicas, are made in the same way.
    let hedging = Config { hedge: Some(Duration::from_secs(1)), ..secured(papers.authority()) };
    let [a, b] = [hedging, secured(papers.authority())].map(|config| Machine::at(&url, config));
    a.put(key(1), &["x"]);
    assert_eq!(b.get(&key(1)), Some(record(&["x"])));
    assert!(b.tier.publish(&of_tag("x")));
    assert_eq!(a.get(&key(1)), None);
    assert!(a.tier.survey().servers[0].up);
    for wrong in [Certificates::default(), others.authority()] {
        let said = refusal(&url, wrong);
        assert!(said.contains("signed by nobody that is trusted here") && said.contains("ca_file"), "{said}");
    }
}

#[test]
fn a_server_that_asks_who_is_there_is_shown_a_certificate() {
    if !available() || !can_sign() {
        return;
    }
    let (papers, others) = (Papers::new(), Papers::new());
    let (_server, url) = server(&papers, "yes");
    let machine = Machine::at(&url, secured(papers.identity()));
    machine.put(key(1), &[]);
    assert!(machine.get(&key(1)).is_some());
    let said = refusal(&url, papers.authority());
    assert!(said.contains("cert_file"), "{said}");
    let stranger = Certificates { identity: others.identity().identity, ..papers.authority() };
    refusal(&url, stranger);
}

#[test]
fn files_that_are_no_certificates_are_refused_by_name_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (text, absent) = (folder.path().join("text"), folder.path().join("absent"));
    fs::write(&text, "-----BEGIN CERTIFICATE REQUEST-----\n").unwrap();
    let start = |url: &str, authority: &Path| {
        let certificates = Certificates { authority: Some(authority.to_owned()), identity: None };
        Tier::start(&url.parse().unwrap(), secured(certificates)).map(drop).unwrap_err()
    };
    assert!(matches!(start("rediss://a", &text), StartError::NotPem { kind: "CERTIFICATE", .. }));
    assert!(matches!(start("rediss://a", &absent), StartError::Certificate { path, .. } if path == absent));
    assert!(matches!(start("redis://a", &text), StartError::NotTls));
    let identity = Some((text.clone(), text.clone()));
    let certificates = Certificates { authority: None, identity };
    let refused = Tier::start(&"rediss://a".parse().unwrap(), secured(certificates)).map(drop).unwrap_err();
    assert!(refused.to_string().contains("text has no CERTIFICATE"), "{refused}");
}
