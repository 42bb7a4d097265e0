//! Sockets to listen on, and what to do about an address that can't be had.

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

/// Room for some ten thousand requests of devices, as come at once after an outage; each takes 768 bytes
/// there, and the kernel doubles what it is asked for. Its default is enough for 277.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// An address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can't be had.
    #[error(
        "{key}: can't listen on {address} ({protocol}): {cause}{}",
        advice(cause, protocol)
    )]
    Address {
        /// Where the configuration has it.
        key: String,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        cause: io::Error,
    },
    /// No socket can be had that hears nothing but one interface.
    #[error(
        "{key}: can't listen on {interface} alone: {cause}{}",
        interface_advice(cause)
    )]
    Interface {
        /// Where the configuration has it.
        key: String,
        /// The interface.
        interface: String,
        /// What the operating system says.
        cause: io::Error,
    },
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

fn interface_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENODEV) => {
            "; there is no such interface in this network namespace: make it, or configure one that `ip -br link` shows"
        }
        Some(libc::EPERM) => "; that needs CAP_NET_RAW: give it to the daemon",
        Some(_) | None => "",
    }
}

/// UDP sockets for these addresses; `key` is where the configuration has them.
///
/// # Errors
///
/// [`ListenError`] for the first that can't be had.
pub fn udp(key: &str, addresses: &[SocketAddr]) -> Result<Vec<UdpSocket>, ListenError> {
    let bind = |&address: &SocketAddr| {
        let socket = UdpSocket::bind(address)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        let socket = socket.inspect(make_room);
        socket.map_err(|cause| ListenError::Address {
            key: key.to_owned(),
            protocol: "UDP",
            address,
            cause,
        })
    };
    addresses.iter().map(bind).collect()
}

/// UDP sockets for these addresses that hear only what comes in by `interface`, and send only by it: others
/// may have the same addresses by other interfaces. Errors name `KEY.listen` and `KEY.interface`.
///
/// # Errors
///
/// [`ListenError`] for the first that can't be had.
pub fn udp_by_interface(
    key: &str,
    interface: &str,
    addresses: &[SocketAddr],
) -> Result<Vec<UdpSocket>, ListenError> {
    let listen = |&address: &SocketAddr| {
        let by_address = |cause| ListenError::Address {
            key: format!("{key}.listen"),
            protocol: "UDP",
            address,
            cause,
        };
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Datagram, flags, None)
            .map_err(|errno| by_address(errno.into()))?;
        // Before it has an address: with one, it would be in the way of others that have the same.
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface)).map_err(
            |errno| ListenError::Interface {
                key: format!("{key}.interface"),
                interface: interface.to_owned(),
                cause: errno.into(),
            },
        )?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
            .map_err(|errno| by_address(errno.into()))?;
        let socket = UdpSocket::from(socket);
        make_room(&socket);
        Ok(socket)
    };
    addresses.iter().map(listen).collect()
}

/// Has the kernel keep what comes in at once until it is read. Where it gives less room, a burst loses some datagrams,
/// which their senders repeat.
fn make_room(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &UDP_BUFFER_BYTES).is_err() {
        let _as_much_as_there_may_be = setsockopt(socket, sockopt::RcvBuf, &UDP_BUFFER_BYTES);
    }
}

/// TCP listeners for these addresses; `key` is where the configuration has them.
///
/// # Errors
///
/// [`ListenError`] for the first that can't be had.
pub fn tcp(key: &str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let bind = |&address: &SocketAddr| {
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map_err(|cause| ListenError::Address {
            key: key.to_owned(),
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
    fn a_socket_of_an_interface_hears_nothing_else_and_takes_no_address_from_others() {
        let any = "127.0.0.1:0".parse().unwrap();
        let [socket] = &udp_by_interface("realm.a", "lo", &[any]).unwrap()[..] else {
            panic!("one address, one socket");
        };
        let interface = nix::sys::socket::getsockopt(socket, sockopt::BindToDevice).unwrap();
        assert_eq!(interface.to_string_lossy().trim_end_matches('\0'), "lo");
        let address = socket.local_addr().unwrap();
        let again = udp_by_interface("realm.b", "lo", &[address]).unwrap_err();
        let again = again.to_string();
        assert!(
            again.starts_with(&format!(
                "realm.b.listen: can't listen on {address} (UDP): "
            )),
            "{again}"
        );
        let nonesuch = udp_by_interface("realm.b", "nonesuch", &[any]).unwrap_err();
        let nonesuch = nonesuch.to_string();
        assert!(
            nonesuch.starts_with("realm.b.interface: can't listen on nonesuch alone: ")
                && nonesuch.contains("`ip -br link`"),
            "{nonesuch}"
        );
    }

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
