//! Asks the kernel's routes, where the controller knows of none.

use crate::datagram::narrow;
use crate::outbound::Outbound;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as Question,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use push_common::wire::PROTOCOL_UDP;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// To words, as all that is on the stack has to be.
#[repr(align(8))]
struct Aligned(Question);

/// Whether the kernel would forward a datagram that came in with `context` and goes out so.
///
/// What the controller knows is as old as what it has read from netlink last. The kernel itself knows at once
/// that a link is up again, and a route there. (A function of its own for its stack.)
#[inline(never)]
pub(crate) fn is_there(context: &XdpContext, outbound: &Outbound) -> bool {
    // SAFETY: all zeros make one.
    let mut aligned: Aligned = unsafe { core::mem::zeroed() };
    let question = &mut aligned.0;
    question.l4_protocol = PROTOCOL_UDP;
    question.sport = u16::from_ne_bytes(outbound.source_port);
    question.dport = u16::from_ne_bytes(outbound.destination_port);
    question.ifindex = context.ingress_ifindex() as u32;
    if outbound.is_v6 {
        question.family = AF_INET6;
        question.__bindgen_anon_3.ipv6_src = bytemuck::must_cast(outbound.source);
        question.__bindgen_anon_4.ipv6_dst = bytemuck::must_cast(outbound.destination);
    } else {
        question.family = AF_INET;
        question.__bindgen_anon_3.ipv4_src = narrow(outbound.source);
        question.__bindgen_anon_4.ipv4_dst = narrow(outbound.destination);
    }
    // SAFETY: the question is as long as it says.
    let answer = unsafe {
        bpf_fib_lookup(
            context.as_ptr(),
            &raw mut *question,
            size_of::<Question>() as i32,
            0,
        )
    };
    // It finds out the neighbour by itself, and what encapsulation there is.
    [
        BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_UNSUPP_LWT,
        BPF_FIB_LKUP_RET_FRAG_NEEDED,
    ]
    .contains(&(answer as u32))
}
