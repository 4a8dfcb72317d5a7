//! Keys of a running server: made, reloaded while requests run, and never shown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::support::server::{Server, until, vecmemo};

/// A key made as people do: its table, and itself.
fn made(folder: &Path, arguments: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = vecmemo(folder).args(["keys", "new"]).args(arguments).output().unwrap();
    let (table, shown) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{shown}");
    (table, shown.trim().lines().last().unwrap().to_owned())
}

fn hang_up(server: &Server) {
    assert!(Command::new("kill").args(["-HUP", &server.id().to_string()]).status().unwrap().success());
}

fn asks(server: &Server, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    server.client().send("/embed", &[("authorization", &bearer)], r#"{"inputs": "a"}"#).unwrap().0
}

#[test]
fn a_key_is_printed_once_and_its_hash_alone_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (table, token) =
        made(folder.path(), &["--id", "reader", "--tenant", "acme", "--scope", "embed,search", "--days", "30"]);
    assert!(token.starts_with("vm_") && token.len() == 46, "{token}");
    assert!(
        !table.contains(&token) && table.contains("id = \"reader\"") && table.contains("tenant = \"acme\""),
        "{table}"
    );
    assert!(table.contains("scopes = [\"embed\", \"search\"]") && table.contains("expires = 20"), "{table}");
    let refused = vecmemo(folder.path()).args(["keys", "new", "--scope", "everything"]).output().unwrap();
    assert!(!refused.status.success() && String::from_utf8(refused.stderr).unwrap().contains("is no scope"));
}

/// While the file of keys changes again and again, who has a key that stays in it is never refused.
#[test]
fn keys_are_read_again_without_a_request_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (stays, staying) = made(folder.path(), &["--id", "stays", "--scope", "embed,admin"]);
    let (goes, going) = made(folder.path(), &["--id", "goes", "--scope", "embed"]);
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, format!("{stays}{goes}")).unwrap();
    let mut command = vecmemo(folder.path());
    command.env("VECMEMO_KEYS_FILE", &file);
    let server = Server::run(command);
    assert_eq!((asks(&server, &staying), asks(&server, &going), asks(&server, "vm_none")), (200, 200, 401));

    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(asks(&server, &staying), 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            std::fs::write(&file, &stays).unwrap();
            hang_up(&server);
            until("the key is gone", || asks(&server, &going) == 401);
            std::fs::write(&file, format!("{goes}{stays}")).unwrap();
            hang_up(&server);
            until("the key is back", || asks(&server, &going) == 200);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(answered.into_inner() > 10);

    // The other way to say it; and a file that makes no sense changes nothing.
    let bearer = format!("Bearer {staying}");
    let reload = || server.client().send("/admin/reload", &[("authorization", &bearer)], "").unwrap();
    std::fs::write(&file, &stays).unwrap();
    let (status, answer) = reload();
    assert_eq!((status, &answer["applied"]), (200, &json!(["auth"])), "{answer}");
    assert_eq!(asks(&server, &going), 401);
    for nonsense in ["", "[[key]]\nid = 1"] {
        std::fs::write(&file, nonsense).unwrap();
        let (status, answer) = reload();
        assert!(status == 422 && answer["detail"].as_str().unwrap().contains("keys.toml"), "{answer}");
        assert_eq!((asks(&server, &staying), asks(&server, &going)), (200, 401));
    }
}

#[test]
fn commands_send_the_key_of_the_environment_and_the_log_says_whose_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let key = "a-single-key-that-is-long";
    let mut command = vecmemo(folder.path());
    command.env("VECMEMO_API_KEY", key);
    let server = Server::run(command);
    let stats = |key: Option<&str>| {
        let mut command = vecmemo(folder.path());
        command.args(["stats", "--url", &server.url]);
        if let Some(key) = key {
            command.env("VECMEMO_API_KEY", key);
        }
        command.output().unwrap()
    };
    assert!(stats(Some(key)).status.success());
    let refused = stats(None);
    assert!(!refused.status.success() && String::from_utf8(refused.stderr).unwrap().contains("a key is needed"));
    let mut ending = vecmemo(folder.path());
    ending.args(["invalidate", "--url", &server.url, "--tag", "x"]).env("VECMEMO_API_KEY", key);
    assert!(ending.output().unwrap().status.success());
    until("it is logged", || {
        server.log().lines().any(|line| line.contains("action=\"remove\"") && line.contains("who=\"single\""))
    });
}

#[test]
fn an_address_that_others_reach_is_warned_of_where_there_are_no_keys() {
    let warned = |key: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = vecmemo(folder.path());
        if let Some(key) = key {
            command.env("VECMEMO_API_KEY", key);
        }
        let settings = ["--data-dir", "data", "--capacity-entries", "1024", "--listen", "0.0.0.0:0"];
        Server::with(command, &settings).log().contains("no keys are set")
    };
    assert!(warned(None));
    assert!(!warned(Some("a-single-key-that-is-long")));
}

/// Everything that the program says, at its most talkative, with secrets that can be told from all else.
#[test]
fn no_secret_is_in_a_log_an_answer_an_error_or_the_printed_settings() {
    const KEY: &str = "marker-key-0123456789-marker";
    const PASSWORD: &str = "marker-password-marker";
    let folder = tempfile::tempdir().unwrap();
    let (table, token) = made(folder.path(), &["--id", "tenants", "--tenant", "acme", "--scope", "embed"]);
    std::fs::write(folder.path().join("keys.toml"), &table).unwrap();
    let url = format!("redis://someone:{PASSWORD}@127.0.0.1:1");
    let secretive = |mut command: Command| {
        command.env("VECMEMO_API_KEY", KEY).env("VECMEMO_REMOTE_URL", &url).env("VECMEMO_KEYS_FILE", "keys.toml");
        command.env("VECMEMO_LOG", "trace");
        command
    };
    let mut server = Server::run(secretive(vecmemo(folder.path())));
    let mut said = String::new();
    let wrong = "marker-wrong-marker";
    for key in [KEY, token.as_str(), wrong, ""] {
        let bearer = format!("Bearer {key}");
        for headers in [[("authorization", bearer.as_str())], [("x-api-key", key)]] {
            for path in ["/embed", "/v1/embeddings", "/search", "/invalidate", "/admin/reload", "/nowhere", "/lookup"] {
                let (_, answer) = server.client().send(path, &headers, r#"{"inputs": "a", "input": "a"}"#).unwrap();
                writeln!(said, "{answer}").unwrap();
            }
            for path in ["/stats", "/metrics", "/info", "/openapi.json", "/ready", "/admin/cache", "/v1/models"] {
                writeln!(said, "{}", server.client().get_with(path, &headers).unwrap().1).unwrap();
            }
        }
    }
    for arguments in [
        &["config"][..],
        &["cluster", "status"],
        &["stats", "--url", &server.url],
        &["warm", "--url", "http://127.0.0.1:1", "/dev/null"],
        &["--help"],
        &["serve", "--help"],
        &["config", "--config", "absent.toml"],
    ] {
        let Output { stdout, stderr, .. } = secretive(vecmemo(folder.path())).args(arguments).output().unwrap();
        said.push_str(&String::from_utf8(stdout).unwrap());
        said.push_str(&String::from_utf8(stderr).unwrap());
    }
    for broken in [
        format!("[auth]\napi_key = {KEY}\n"),
        format!("[auth]\napi_key = [\"{KEY}\"]\n"),
        "[auth]\napi_key = \"marker-short\"\n".to_owned(),
        format!("[remote]\nurl = redis://x:{PASSWORD}@y\n"),
        format!("[remote]\nurl = \"redis://x:{PASSWORD}@\"\n"),
    ] {
        std::fs::write(folder.path().join("broken.toml"), broken).unwrap();
        let mut command = vecmemo(folder.path());
        let settings = ["serve", "--config", "broken.toml", "--listen", "127.0.0.1:0"];
        let Output { status, stderr, .. } = command.args(settings).output().unwrap();
        let message = String::from_utf8(stderr).unwrap();
        assert!(!status.success(), "{message}");
        said.push_str(&message);
    }
    assert!(server.stop().success());
    said.push_str(&server.log());
    assert!(said.contains("TRACE") && said.contains("who=\"tenants\""), "the log says little: {said:.2000}");
    let line = said.lines().find(|line| line.contains("marker") || line.contains(&token));
    assert_eq!(line, None);
}

/// With TLS and a listener for operators: what the program says of itself, and that SIGHUP has both read again.
#[test]
fn a_certificate_is_read_again_with_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    };
    write();
    let mut command = vecmemo(folder.path());
    command.env("VECMEMO_TLS_CERT", "cert.pem").env("VECMEMO_TLS_KEY", "key.pem");
    command.env("VECMEMO_ADMIN_LISTEN", "127.0.0.1:0");
    let server = Server::run(command);
    assert!(server.url.starts_with("https://"), "{}", server.url);
    assert!(server.log().contains("operators are served here alone"));
    // Who asks by the command line trusts it by its file; the doctor looks at no certificate.
    let health = |trusted: &str| {
        let mut command = vecmemo(folder.path());
        let asked = command.args(["search", "--url", &server.url, "a text"]).env("SSL_CERT_FILE", trusted);
        let output = asked.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(health("cert.pem").0, "{health:?}", health = health("cert.pem"));
    let (answered, said) = health("/dev/null");
    assert!(!answered && said.contains("SSL_CERT_FILE"), "{said}");
    let port = server.url.rsplit(':').next().unwrap();
    let mut doctor = vecmemo(folder.path());
    doctor.args(["doctor", "--json", "--listen", &format!("127.0.0.1:{port}")]);
    let found = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    assert!(found.contains("is served by vecmemo"), "{found}");
    write();
    hang_up(&server);
    until("the certificate is read again", || {
        server.log().contains("read the configuration again applied=[\"tls_cert\"]")
    });
    std::fs::write(folder.path().join("key.pem"), "marker").unwrap();
    hang_up(&server);
    until("the problem is told", || server.log().contains("the configuration stays as it was"));
    assert!(!server.log().contains("marker"));
    let refused = vecmemo(folder.path()).args(["config", "--tls-cert", "cert.pem"]).output().unwrap();
    assert!(String::from_utf8(refused.stderr).unwrap().contains("tls_key is needed too"));
}
