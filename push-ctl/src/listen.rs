//! Sockets to listen on, and what to do about an address that can't be had.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// An address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "{key}: can't listen on {address} ({protocol}): {cause}{}",
    advice(cause, protocol)
)]
pub struct ListenError {
    key: &'static str,
    protocol: &'static str,
    address: SocketAddr,
    cause: io::Error,
}

fn advice(error: &io::Error, protocol: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let protocol = protocol.chars().next().unwrap_or_default().to_ascii_lowercase();
            format!("; stop what uses it (`ss -nlp{protocol}` shows it), or configure another port")
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface has this address: configure one that `ip address` shows".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: give it to the daemon, or configure another port".to_owned()
        }
        _ => String::new(),
    }
}

/// UDP sockets for these addresses; `key` is where the configuration has them.
///
/// # Errors
///
/// [`ListenError`] for the first that can't be had.
pub fn udp(key: &'static str, addresses: &[SocketAddr]) -> Result<Vec<UdpSocket>, ListenError> {
    let bind = |&address: &SocketAddr| {
        let socket = UdpSocket::bind(address)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        socket.map_err(|cause| ListenError {
            key,
            protocol: "UDP",
            address,
            cause,
        })
    };
    addresses.iter().map(bind).collect()
}

/// TCP listeners for these addresses; `key` is where the configuration has them.
///
/// # Errors
///
/// [`ListenError`] for the first that can't be had.
pub fn tcp(key: &'static str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let bind = |&address: &SocketAddr| {
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map_err(|cause| ListenError {
            key,
            protocol: "TCP",
            address,
            cause,
        })
    };
    addresses.iter().map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_can_not_be_had_is_named_with_what_to_do() {
        let taken = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let holder = UdpSocket::bind(taken).unwrap();
        let error = udp("internal.listen", &[taken]).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("internal.listen: can't listen on {taken} (UDP): ")),
            "{error}"
        );
        assert!(error.contains("`ss -nlpu` shows it"), "{error}");
        drop(holder);
        let error = tcp("external.listen", &["192.0.2.1:8443".parse().unwrap()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("(TCP)") && error.contains("no interface has this address"),
            "{error}"
        );
    }
}
