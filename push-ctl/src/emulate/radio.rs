//! One socket for any number of devices, each at an address of its own.
//!
//! It is bound to no address. For each datagram that comes in the kernel tells to which address it was sent, and
//! for each that goes out it is told from which (`IP_PKTINFO`, `IPV6_PKTINFO`). Thousands of addresses
//! needn't be configured one by one for that: a route can make all of a prefix local ("any-IP").

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use tokio::io::Interest;

/// Room for what the gateway answers while the devices are busy. Each datagram counts for more than a
/// kilobyte there.
const BUFFER_BYTES: usize = 64 << 20;

/// The socket.
#[derive(Debug)]
pub struct Radio {
    socket: tokio::net::UdpSocket,
    gateway: SocketAddr,
}

/// A datagram that came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its length.
    pub length: usize,
    /// The address of the device that it is for.
    pub device: IpAddr,
    /// Whether it came from the gateway.
    pub from_gateway: bool,
}

impl Radio {
    /// A socket on this port for devices that speak to `gateway`. Has to be called in a runtime of tokio's.
    ///
    /// # Errors
    ///
    /// The port can't be had.
    pub fn tuned_to(gateway: SocketAddr, port: u16) -> io::Result<Self> {
        let any: IpAddr = match gateway {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, port))?;
        socket.set_nonblocking(true)?;
        match gateway {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        // As much of it as there may be; without CAP_NET_ADMIN that is little.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        Ok(Self {
            socket: tokio::net::UdpSocket::from_std(socket)?,
            gateway,
        })
    }

    /// The port.
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell.
    pub fn port(&self) -> io::Result<u16> {
        self.socket.local_addr().map(|address| address.port())
    }

    /// Waits until something has come in, or, if it is to, until something can go out.
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell.
    pub async fn ready(&self, to_send: bool) -> io::Result<()> {
        let interest = if to_send {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        self.socket.ready(interest).await.map(drop)
    }

    /// Sends to the gateway from this address.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if it has to wait, or the kernel knows no way, or the address isn't of this machine.
    pub fn send(&self, device: IpAddr, datagram: &[u8]) -> io::Result<()> {
        let to = SockaddrStorage::from(self.gateway);
        let parts = [IoSlice::new(datagram)];
        let send = |source: ControlMessage<'_>| {
            let fd = self.fd();
            sendmsg(fd, &parts, &[source], MsgFlags::empty(), Some(&to)).map(drop)
        };
        self.socket.try_io(Interest::WRITABLE, || {
            let sent = match device {
                IpAddr::V4(v4) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                })),
                IpAddr::V6(v6) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: v6.octets(),
                    },
                    ipi6_ifindex: 0,
                })),
            };
            sent.map_err(io::Error::from)
        })
    }

    /// Receives into `buffer`.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing has come in.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        self.socket.try_io(Interest::READABLE, || {
            let mut space = cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let fd = self.fd();
            let got =
                recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
            let mut device = None;
            for message in got.cmsgs()? {
                if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
                    device = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
                } else if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
                    device = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
            }
            let device = device.ok_or_else(|| {
                io::Error::other("the kernel doesn't tell to which address a datagram was sent")
            })?;
            let from = got.address.and_then(|address| {
                let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
            });
            Ok(Arrival {
                length: got.bytes,
                device,
                from_gateway: from.is_some_and(|from| is_same(from, self.gateway)),
            })
        })
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Whether two are the same place; a scope or flow label makes no other one of it.
#[must_use]
pub fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

/// The address from which this machine speaks to `gateway` unless told otherwise.
///
/// # Errors
///
/// The kernel knows no way there.
pub fn usual_address(gateway: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match gateway {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(gateway)?;
    socket.local_addr().map(|address| address.ip())
}

/// Whether a device can be at this address.
///
/// # Errors
///
/// It isn't an address of this machine, mostly.
pub fn is_ours(address: IpAddr) -> io::Result<()> {
    UdpSocket::bind((address, 0)).map(drop)
}
