#!/usr/bin/env python3
"""Sends a push trigger, and waits for its acknowledgement; with nothing but Python 3.8.

    APP_KEY=pak_... TOKEN=ptk_... python3 sender.py https://198.51.100.1:8443 SESSION TEXT [CA.pem]

CA.pem is for a gateway with a certificate of its own making. `push-ctl guide trigger` explains each step.
"""
import hashlib, hmac, json, os, socket, ssl, struct, sys, time, urllib.request


def siphash_2_4_128(key, message):
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def mix(a, b, turn, turn_sum=0):
        v[a] = (v[a] + v[b]) % 2**64
        v[b] = (v[b] << turn | v[b] >> 64 - turn) % 2**64 ^ v[a]
        v[a] = (v[a] << turn_sum | v[a] >> 64 - turn_sum) % 2**64

    def rounds(count):
        for _ in range(count):
            mix(0, 1, 13, 32), mix(2, 3, 16), mix(0, 3, 21), mix(2, 1, 17, 32)

    for (word,) in struct.iter_unpack("<Q", message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    halves = []
    for register, mark in (2, 0xEE), (1, 0xDD):
        v[register] ^= mark
        rounds(4)
        halves.append(v[0] ^ v[1] ^ v[2] ^ v[3])
    return struct.pack("<QQ", *halves)


def tag_key(token):  # HKDF-SHA-256 (RFC 5869) without salt; 16 bytes are less than one block
    secret = hmac.digest(bytes(32), bytes.fromhex(token[len("ptk_"):]), "sha256")
    return hmac.digest(secret, b"push trigger v1" + b"\x01", "sha256")[:16]


def signed(key, flags, generation, session, sequence, payload):
    head = struct.pack(">4sBBHQQ", b"\xf5PS\x01", flags, generation, len(payload), int(session, 16), sequence)
    return head + siphash_2_4_128(key, head + payload) + payload


def validate(gateway, session, token, app_key, ca=None):
    headers = {"Authorization": "Bearer " + app_key, "Content-Type": "application/json"}
    body = json.dumps({"token": token}).encode()
    request = urllib.request.Request(f"{gateway}/v1/sessions/{session}/validate", body, headers)
    with urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=ca)) as answer:
        return json.load(answer)


def main(gateway, session, text, ca=None):
    token, key = os.environ["TOKEN"], tag_key(os.environ["TOKEN"])
    granted = validate(gateway, session, token, os.environ["APP_KEY"], ca)
    generation, sequence = granted["token_generation"], int(time.time() * 100)  # never less than the last one + 1
    address = (granted["trigger_addresses"][0], granted["trigger_port"])
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(5)
        udp.sendto(signed(key, 1, generation, session, sequence, text.encode()), address)  # 1: acknowledge it
        acknowledged = udp.recv(2048) == signed(key, 2, generation, session, sequence, b"")
    print("delivered" if acknowledged else "something else came back")


if __name__ == "__main__":
    main(*sys.argv[1:])
