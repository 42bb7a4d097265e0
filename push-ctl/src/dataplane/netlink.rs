//! What the kernel says about a NIC.

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};

/// The XDP program on a NIC.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttachedProgram {
    pub(super) program_id: u32,
    /// `native`, `generic`, `offloaded`, or `several`.
    pub(super) mode: &'static str,
}

/// The XDP program that is attached to the NIC with this index, if there is such a NIC, and it has one.
pub(super) async fn attached_program(interface: u32) -> Result<Option<AttachedProgram>> {
    Ok(link(interface).await?.as_ref().and_then(program_on))
}

/// The NIC with this index, if there is one.
pub(super) async fn link(interface: u32) -> Result<Option<LinkMessage>> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let answer = handle
        .link()
        .get()
        .match_index(interface)
        .execute()
        .try_next()
        .await;
    connection.abort();
    match answer {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        answer => answer
            .with_context(|| format!("cannot ask the kernel about the NIC with index {interface}")),
    }
}

/// The XDP program that is attached to this NIC, if one is.
pub(super) fn program_on(link: &LinkMessage) -> Option<AttachedProgram> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Xdp(xdp) => program_of(xdp),
            _ => None,
        })
}

fn program_of(attributes: &[LinkXdp]) -> Option<AttachedProgram> {
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        LinkXdp::Attached(XdpAttached::Hardware) => Some("offloaded"),
        LinkXdp::Attached(XdpAttached::Multiple) => Some("several"),
        _ => None,
    })?;
    let program_id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    Some(AttachedProgram { program_id, mode })
}
