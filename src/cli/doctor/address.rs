//! Whether the address to serve on is free, or served by the service that has the folder.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use tokio::net::TcpSocket;

use super::finding::{Finding, fail, ok};
use super::holder::Holder;
use crate::cli::client::Client;
use crate::config::Settings;

const CHECK: &str = "address";

pub(super) fn check(settings: &Settings, holder: Option<&Holder>) -> Finding {
    let listen = settings.listen;
    let Err(error) = bind(listen) else { return ok(CHECK, format!("{listen} is free")) };
    if error.kind() == ErrorKind::AddrInUse && holder.is_some() && serves(listen) {
        return ok(CHECK, format!("{listen} is served by vecmemo"));
    }
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "stop what serves there, or choose another address with --listen",
        ErrorKind::PermissionDenied => {
            "choose a port from 1024 on, or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE"
        }
        _ => "choose an address of this machine with --listen, such as 127.0.0.1:8080 or 0.0.0.0:8080",
    };
    fail(CHECK, format!("cannot listen on {listen}: {error}"), advice)
}

/// Takes the address for a moment, as a server would, without listening: nobody connects to us.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

/// Whether one of us answers there.
fn serves(listen: SocketAddr) -> bool {
    let reached = match listen {
        SocketAddr::V4(_) if listen.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], listen.port())),
        SocketAddr::V6(_) if listen.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, listen.port()))
        }
        _ => listen,
    };
    Client::new(&format!("http://{reached}")).get_json("/info").is_ok_and(|info| info["fingerprint"].is_string())
}
