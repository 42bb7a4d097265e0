//! Asks the kernel's routes, where the controller knows of none.

#[cfg(feature = "by-route")]
use crate::datagram::Link;
use crate::datagram::{Address, narrow};
use crate::maps::notes;
use crate::packet::Frame;
use crate::shared::load;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as Question, xdp_md,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use push_common::verdict::Verdict;
use push_common::wire::PROTOCOL_UDP;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// To words, as all that is on the stack has to be.
#[repr(align(8))]
struct Aligned(Question);

/// Whether the kernel would forward a datagram that came in so and goes out so.
///
/// What the controller knows is as old as what it has read from netlink last. The kernel itself knows at once
/// that a link is up again, and a route there.
#[inline(always)]
pub(crate) fn is_there(
    frame: Frame<'_>,
    is_v6: bool,
    (source, destination): (Address, Address),
    ports: [[u8; 2]; 2],
) -> Result<bool, Verdict> {
    // SAFETY: the notes are this CPU's alone.
    unsafe { (*notes()?).addresses = [source, destination] };
    Ok(push_is_there(
        frame.context(),
        u32::from(is_v6),
        bytemuck::must_cast(ports),
    ) != 0)
}

global! {
    /// [`is_there`], from and to the addresses in the notes.
    fn push_is_there(context: *mut xdp_md, is_v6: u32, ports: u32) -> u64 {
        // SAFETY: the context is the kernel's own, and the notes are this CPU's alone.
        unsafe {
            let frame = Frame::new(context);
            let ports = bytemuck::must_cast(ports);
            u64::from(notes().is_ok_and(|notes| {
                // By whole words, as what is on the stack has to be aligned, and a copy wouldn't be.
                let addresses = load(&raw const (*notes).addresses);
                knows_a_way(frame, is_v6 != 0, addresses, ports)
            }))
        }
    }
}

#[inline(always)]
fn knows_a_way(frame: Frame<'_>, is_v6: bool, addresses: [Address; 2], ports: [u16; 2]) -> bool {
    // It finds out the neighbour by itself, and what encapsulation there is.
    [
        BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_UNSUPP_LWT,
        BPF_FIB_LKUP_RET_FRAG_NEEDED,
    ]
    .contains(&ask(frame, is_v6, addresses, ports).0)
}

/// For comparison: the way as the kernel says, asked for each packet; as it was, if the kernel doesn't know all of it.
#[cfg(feature = "by-route")]
#[inline(always)]
pub(crate) fn find(
    frame: Frame<'_>,
    is_v6: bool,
    addresses: [Address; 2],
    ports: [[u8; 2]; 2],
    link: Link,
    interface: u32,
) -> Result<(Link, u32), Verdict> {
    let notes = notes()?;
    // SAFETY: the notes are this CPU's alone.
    unsafe { (*notes).addresses = addresses };
    let ports = bytemuck::must_cast(ports);
    let found = push_way(frame.context(), u32::from(is_v6), ports) as u32;
    if found == 0 {
        return Ok((link, interface));
    }
    // SAFETY: as above.
    let [[to, from], _] = unsafe { load(&raw const (*notes).addresses) };
    Ok((Link { to, from, ..link }, found))
}

#[cfg(feature = "by-route")]
global! {
    /// [`find`], from and to the addresses in the notes, in whose place it leaves MAC addresses. Returns the index of
    /// the NIC, or 0.
    fn push_way(context: *mut xdp_md, is_v6: u32, ports: u32) -> u64 {
        let Ok(notes) = notes() else {
            return 0;
        };
        // SAFETY: the context is the kernel's own, and the notes are this CPU's alone.
        unsafe {
            let addresses = load(&raw const (*notes).addresses);
            let ports = bytemuck::must_cast(ports);
            let (answer, question) = ask(Frame::new(context), is_v6 != 0, addresses, ports);
            if answer != BPF_FIB_LKUP_RET_SUCCESS {
                return 0;
            }
            let [a, b, c, d, e, f] = question.0.dmac;
            let [g, h, i, j, k, l] = question.0.smac;
            let to = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
            let from = u64::from_ne_bytes([g, h, i, j, k, l, 0, 0]);
            (*notes).addresses = [[to, from], [0, 0]];
            u64::from(question.0.ifindex)
        }
    }
}

/// What the kernel's routes say, and what they have filled in.
#[inline(always)]
fn ask(
    frame: Frame<'_>,
    is_v6: bool,
    [source, destination]: [Address; 2],
    [source_port, destination_port]: [u16; 2],
) -> (u32, Aligned) {
    // SAFETY: all zeros make one.
    let mut aligned: Aligned = unsafe { core::mem::zeroed() };
    let question = &mut aligned.0;
    question.l4_protocol = PROTOCOL_UDP;
    question.sport = source_port;
    question.dport = destination_port;
    question.ifindex = frame.interface();
    if is_v6 {
        question.family = AF_INET6;
        question.__bindgen_anon_3.ipv6_src = bytemuck::must_cast(source);
        question.__bindgen_anon_4.ipv6_dst = bytemuck::must_cast(destination);
    } else {
        question.family = AF_INET;
        question.__bindgen_anon_3.ipv4_src = narrow(source);
        question.__bindgen_anon_4.ipv4_dst = narrow(destination);
    }
    // SAFETY: the question is as long as it says.
    let answer = unsafe {
        bpf_fib_lookup(
            frame.context().cast(),
            &raw mut *question,
            size_of::<Question>() as i32,
            0,
        )
    };
    (answer as u32, aligned)
}
