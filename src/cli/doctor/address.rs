//! Whether the addresses to serve on are free, or served by the service that has the folder.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpSocket;
use ureq::tls::TlsConfig;

use super::finding::{Finding, fail, ok};
use super::holder::Holder;
use crate::config::Settings;

const CHECK: &str = "address";

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The address for all, and the one for operators if they have one of their own.
pub(super) fn check(settings: &Settings, holder: Option<&Holder>) -> Vec<Finding> {
    let taken = [Some((settings.listen, "--listen")), settings.admin_listen.map(|address| (address, "--admin-listen"))];
    let mut findings: Vec<Finding> =
        taken.into_iter().flatten().map(|(address, setting)| check_one(address, setting, holder)).collect();
    if settings.admin_listen == Some(settings.listen) && settings.listen.port() != 0 {
        let advice = "give operators another address with --admin-listen";
        findings.push(fail(CHECK, format!("{} cannot be both --listen and --admin-listen", settings.listen), advice));
    }
    findings
}

fn check_one(listen: SocketAddr, setting: &str, holder: Option<&Holder>) -> Finding {
    let Err(error) = bind(listen) else { return ok(CHECK, format!("{listen} is free")) };
    if error.kind() == ErrorKind::AddrInUse && holder.is_some() && serves(listen) {
        return ok(CHECK, format!("{listen} is served by vecmemo"));
    }
    let advice = match error.kind() {
        ErrorKind::AddrInUse => format!("stop what serves there, or choose another address with {setting}"),
        ErrorKind::PermissionDenied => {
            "choose a port from 1024 on, or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => format!("choose an address of this machine with {setting}, such as 127.0.0.1:8080 or 0.0.0.0:8080"),
    };
    fail(CHECK, format!("cannot listen on {listen}: {error}"), &advice)
}

/// Takes the address for a moment, as a server would, without listening: nobody connects to us.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

/// Whether one of us answers there: who has the folder is known, and that it is well there is what is asked, without a key. Whose
/// certificate it shows is not: nothing is told to it.
fn serves(listen: SocketAddr) -> bool {
    let reached = match listen {
        SocketAddr::V4(_) if listen.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], listen.port())),
        SocketAddr::V6(_) if listen.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, listen.port()))
        }
        _ => listen,
    };
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .tls_config(TlsConfig::builder().disable_verification(true).build())
        .build()
        .new_agent();
    ["http", "https"].iter().any(|scheme| {
        let answer = agent.get(format!("{scheme}://{reached}/health")).call();
        answer.is_ok_and(|answer| answer.status() == 200)
    })
}
