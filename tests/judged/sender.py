"""An application's server, from the documented format alone: scapy makes the frames.

The trigger is the table in push-common/src/wire.rs; its key is derived as push-common/src/token.rs
says; SipHash-2-4 with 128 bits of output is from the paper of Aumasson and Bernstein, and its
reference implementation.

    sender.py vectors FILE   test vectors: makes each datagram, and says how many are as in FILE
    sender.py send FILE      sends what FILE orders; a line of JSON about each trigger
    sender.py ask FILE       sends triggers that ask for an acknowledgement; a line about each one that came back
"""

import hashlib
import hmac
import json
import struct
import sys
import threading

MASK = 2**64 - 1


def siphash_128(key, message):
    def rotate(word, bits):
        return (word << bits | word >> (64 - bits)) & MASK

    def rounds(count):
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0 = (v0 + v1) & MASK
            v1 = rotate(v1, 13) ^ v0
            v0 = rotate(v0, 32)
            v2 = (v2 + v3) & MASK
            v3 = rotate(v3, 16) ^ v2
            v0 = (v0 + v3) & MASK
            v3 = rotate(v3, 21) ^ v0
            v2 = (v2 + v1) & MASK
            v1 = rotate(v1, 17) ^ v2
            v2 = rotate(v2, 32)

    k0, k1 = struct.unpack("<QQ", key)
    v0 = k0 ^ 0x736F6D6570736575
    v1 = k1 ^ 0x646F72616E646F6D ^ 0xEE
    v2 = k0 ^ 0x6C7967656E657261
    v3 = k1 ^ 0x7465646279746573
    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xEE
    rounds(4)
    first = v0 ^ v1 ^ v2 ^ v3
    v1 ^= 0xDD
    rounds(4)
    return struct.pack("<QQ", first, v0 ^ v1 ^ v2 ^ v3)


def hkdf_sha256(secret, info, length):
    """RFC 5869 without salt; up to 32 bytes."""
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)[:length]


# The first test vector of SipHash's reference implementation, and test case 3 of RFC 5869.
assert siphash_128(bytes(range(16)), b"").hex() == "a3817f04ba25a8e66df67214c7550293"
assert hkdf_sha256(b"\x0b" * 22, b"", 16).hex() == "8da4e775a563c18f715f802a063c5a31"

ACKNOWLEDGE, ACKNOWLEDGEMENT = 1, 2


def key_of(token):
    prefix, digits = token[:4], token[4:]
    assert prefix == "ptk_" and len(digits) == 32
    return hkdf_sha256(bytes.fromhex(digits), b"push trigger v1", 16)


def datagram(key, session_id, generation, sequence, payload, flags=0):
    signed = struct.pack(
        ">3sBBBHQQ", b"\xf5\x50\x53", 1, flags, generation, len(payload), int(session_id, 16), sequence
    )
    return signed + siphash_128(key, signed + payload) + payload


def vectors(file):
    agreed = 0
    for vector in json.load(open(file))["valid"]:
        made = datagram(
            key_of(vector["token"]),
            vector["session_id"],
            vector["token_generation"],
            vector["sequence"],
            bytes.fromhex(vector["payload"]),
            vector["flags"],
        )
        assert made.hex() == vector["datagram"], vector["name"]
        agreed += 1
    print(agreed)


class Session:
    def __init__(self, order):
        self.id = order["id"]
        self.key = key_of(open(order["token_file"]).read().strip())
        self.generation = order["token_generation"]
        self.sequence = 0

    def trigger(self, payload, flags=0):
        self.sequence += 1
        return datagram(self.key, self.id, self.generation, self.sequence, payload, flags)


def frames(order):
    """What is below a trigger: names, and layers of scapy."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
    from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

    ether = Ether(src=order["mac"], dst=order["gateway_mac"])
    ip = IP(src=order["addresses"][0], dst=order["gateway_addresses"][0])
    ipv6 = IPv6(src=order["addresses"][1], dst=order["gateway_addresses"][1])
    udp = UDP(sport=order["port"], dport=order["gateway_port"])
    provider, customer = Dot1AD(vlan=300), Dot1Q(vlan=100, prio=5)
    options = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    return {
        "IPv4": ether / ip / udp,
        "IPv4 without UDP checksum": ether / ip / UDP(sport=udp.sport, dport=udp.dport, chksum=0),
        "IPv4 in a VLAN": ether / customer / ip / udp,
        "IPv4 in a provider's VLAN": ether / provider / customer / ip / udp,
        "IPv6": ether / ipv6 / udp,
        "IPv6 with hop-by-hop options": ether / ipv6 / IPv6ExtHdrHopByHop() / udp,
        "IPv6 with destination options": ether / ipv6 / IPv6ExtHdrDestOpt() / udp,
        "IPv6 with both in a VLAN": ether / customer / ipv6 / options / udp,
        "IPv6 in a provider's VLAN": ether / provider / customer / ipv6 / udp,
    }


def send(order):
    from scapy.config import conf
    from scapy.layers.inet import UDP
    from scapy.layers.l2 import Ether

    sessions = [Session(session) for session in order["sessions"]]
    nic = conf.L2socket(iface=order["nic"])

    def go(session, what, framing, trigger, spoilt=None):
        frame = Ether(bytes(framing / trigger))
        if spoilt:
            frame[UDP].chksum ^= spoilt
        nic.send(frame)
        about = {"session": session, "what": what, "datagram": trigger.hex()}
        print(json.dumps(about))

    for what, framing in frames(order).items():
        for number, session in enumerate(sessions):
            for length in order["payload_bytes"]:
                payload = bytes(at & 0xFF for at in range(length))
                go(number, what, framing, session.trigger(payload))
    plain = frames(order)["IPv4"]
    for number, session in enumerate(sessions):
        go(number, "damaged", plain, session.trigger(b"damaged"), spoilt=0x0100)
        session.key = bytes(16)
        go(number, "forged", plain, session.trigger(b"forged"))


def ask(order):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
    from scapy.sendrecv import AsyncSniffer, sendp

    def tags(frame):
        return [(tag.name, frame[tag].vlan) for tag in (Dot1AD, Dot1Q) if tag in frame]

    sessions = [Session(session) for session in order["sessions"]]
    for what, framing in frames(order).items():
        for session in sessions:
            trigger = session.trigger(b"", ACKNOWLEDGE)
            sent = Ether(bytes(framing / trigger))
            ready = threading.Event()
            sniffer = AsyncSniffer(
                iface=order["nic"],
                lfilter=lambda frame: UDP in frame and frame[UDP].sport == order["gateway_port"],
                count=1,
                timeout=10,
                started_callback=ready.set,
            )
            sniffer.start()
            assert ready.wait(10), "scapy doesn't listen"
            sendp(sent, iface=order["nic"], verbose=False)
            sniffer.join()
            assert sniffer.results, f"{what}: nothing came back"
            got = sniffer.results[0]

            expected = datagram(
                session.key, session.id, session.generation, session.sequence, b"", ACKNOWLEDGEMENT
            )
            assert bytes(got[UDP].payload) == expected, f"{what}: {got!r}"
            assert (got[UDP].sport, got[UDP].dport) == (sent[UDP].dport, sent[UDP].sport)
            ip = IP if IP in sent else IPv6
            assert (got[ip].src, got[ip].dst) == (sent[ip].dst, sent[ip].src), f"{what}: {got!r}"
            assert tags(got) == tags(sent), f"{what}: {got!r}"
            assert len(bytes(got)) <= len(bytes(sent)), f"{what}: more came back"
            # scapy makes anew what is missing.
            again = got.copy()
            del again[UDP].chksum
            if ip is IP:
                del again[IP].chksum
            assert bytes(again) == bytes(got), f"{what}: a checksum is wrong in {got!r}"
            print(json.dumps({"what": what, "datagram": expected.hex()}))


if __name__ == "__main__":
    task, path = sys.argv[1:]
    if task == "vectors":
        vectors(path)
    else:
        {"send": send, "ask": ask}[task](json.load(open(path)))
