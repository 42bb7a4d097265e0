//! The first messages of a DTLS handshake (RFC 6347, 4.2.1), read and made without remembering anything.

/// Length of a cookie, as the handshake's engine has it.
pub(super) const COOKIE_LEN: usize = 32;

pub(super) type Cookie = [u8; COOKIE_LEN];

const RECORD_HEADER_LEN: usize = 13;
const HANDSHAKE_HEADER_LEN: usize = 12;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HELLO_VERIFY_REQUEST: u8 = 3;
/// DTLS 1.0, which a `HelloVerifyRequest` says whatever the version will be.
const DTLS_1_0: [u8; 2] = [0xFE, 0xFF];
const RANDOM_LEN: usize = 32;

/// A whole `ClientHello` in one record, which is all that is in the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientHello<'a> {
    record_version: [u8; 2],
    record_sequence: [u8; 6],
    /// What tells this handshake from others of the same client.
    pub(super) random: [u8; RANDOM_LEN],
    /// Version, random and session id.
    before_cookie: &'a [u8],
    pub(super) cookie: &'a [u8],
    /// Cipher suites and all that follows.
    after_cookie: &'a [u8],
}

/// The `ClientHello` that the datagram is, if it is one.
pub(super) fn client_hello(datagram: &[u8]) -> Option<ClientHello<'_>> {
    let (record, message) = datagram.split_first_chunk::<RECORD_HEADER_LEN>()?;
    let [kind, major, minor, epoch @ .., _, _, _, _, _, _, high, low] = record;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if *kind != HANDSHAKE || *epoch != [0, 0] || message.len() != length {
        return None;
    }
    let record_sequence = record[5..11].try_into().ok()?;
    let (handshake, body) = message.split_first_chunk::<HANDSHAKE_HEADER_LEN>()?;
    let [kind, length @ .., _, _, _, _, _, _, _, _] = handshake;
    let (offset, fragment_length) = (&handshake[6..9], &handshake[9..12]);
    let is_whole = offset == [0; 3] && fragment_length == length && u24(length) == body.len();
    if *kind != CLIENT_HELLO || !is_whole {
        return None;
    }
    let random = body.get(2..2 + RANDOM_LEN)?.try_into().ok()?;
    let session_len = usize::from(*body.get(2 + RANDOM_LEN)?);
    let (before_cookie, rest) = body.split_at_checked(3 + RANDOM_LEN + session_len)?;
    let (cookie_len, rest) = rest.split_first()?;
    let (cookie, after_cookie) = rest.split_at_checked(usize::from(*cookie_len))?;
    Some(ClientHello {
        record_version: [*major, *minor],
        record_sequence,
        random,
        before_cookie,
        cookie,
        after_cookie,
    })
}

impl ClientHello<'_> {
    /// The answer that asks for `cookie`. It is shorter than what it answers, as there may be somebody else
    /// at that address.
    pub(super) fn ask_for(&self, cookie: &Cookie) -> Vec<u8> {
        let mut body = DTLS_1_0.to_vec();
        body.push(u8::try_from(COOKIE_LEN).expect("a cookie is short"));
        body.extend(cookie);
        // With the record's number of what it answers, as nothing is counted yet.
        record(DTLS_1_0, self.record_sequence, HELLO_VERIFY_REQUEST, &body)
    }

    /// As the client must have sent it first, without a cookie. The transcript that both sides sign begins with
    /// the one that has the cookie, so it needn't be the same in every bit. `None` if the client can't have sent
    /// one before.
    pub(super) fn as_at_first(&self) -> Option<Vec<u8>> {
        let mut sequence = [0; 8];
        sequence[2..].copy_from_slice(&self.record_sequence);
        let before = u64::from_be_bytes(sequence).checked_sub(1)?.to_be_bytes();
        let body = [self.before_cookie, &[0], self.after_cookie].concat();
        let sequence = before[2..].try_into().expect("six of eight bytes");
        Some(record(self.record_version, sequence, CLIENT_HELLO, &body))
    }
}

/// A record of a handshake message that is number 0 of its side, in one fragment.
fn record(version: [u8; 2], sequence: [u8; 6], kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a datagram is short");
    let [_, length @ ..] = length.to_be_bytes();
    let record_length = u16::try_from(HANDSHAKE_HEADER_LEN + body.len()).expect("as above");
    let mut record = Vec::with_capacity(RECORD_HEADER_LEN + HANDSHAKE_HEADER_LEN + body.len());
    record.push(HANDSHAKE);
    record.extend(version);
    record.extend([0; 2]);
    record.extend(sequence);
    record.extend(record_length.to_be_bytes());
    record.push(kind);
    record.extend(length);
    record.extend([0; 5]);
    record.extend(length);
    record.extend(body);
    record
}

fn u24(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |sum, &byte| sum << 8 | usize::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Record number 1: version, random, a session id of 2 bytes, this cookie, and a cipher suite.
    fn hello(cookie: &[u8]) -> Vec<u8> {
        let mut body = vec![0xFE, 0xFD];
        body.extend([7; RANDOM_LEN]);
        body.extend([2, 1, 2]);
        body.push(u8::try_from(cookie.len()).unwrap());
        body.extend(cookie);
        body.extend([0, 2, 0xC0, 0xA8, 1, 0]);
        record([0xFE, 0xFD], [0, 0, 0, 0, 0, 1], CLIENT_HELLO, &body)
    }

    #[test]
    fn a_client_hello_is_taken_apart_and_brought_back_to_the_first_one() {
        let datagram = hello(&[9; COOKIE_LEN]);
        let read = client_hello(&datagram).unwrap();
        assert_eq!(
            (read.random, read.cookie),
            ([7; RANDOM_LEN], &[9; COOKIE_LEN][..])
        );
        let first = read.as_at_first().unwrap();
        let mut expected = hello(&[]);
        expected[10] = 0;
        assert_eq!(first, expected);
        assert_eq!(client_hello(&first).unwrap().as_at_first(), None);
    }

    #[test]
    fn a_cookie_is_asked_for_by_less_than_was_sent() {
        let datagram = hello(&[]);
        let answer = client_hello(&datagram).unwrap().ask_for(&[9; COOKIE_LEN]);
        assert_eq!(
            answer[..13],
            [22, 0xFE, 0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0, 47]
        );
        assert_eq!(answer[13..25], [3, 0, 0, 35, 0, 0, 0, 0, 0, 0, 0, 35]);
        assert_eq!(answer[25..28], [0xFE, 0xFF, 32]);
        assert_eq!(answer[28..], [9; COOKIE_LEN]);
        assert!(answer.len() <= datagram.len());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(cut in 0..90_usize, at in 0..90_usize, byte in any::<u8>()) {
            let mut datagram = hello(&[9; 5]);
            let at = at.min(datagram.len() - 1);
            datagram[at] = byte;
            datagram.truncate(cut);
            if let Some(hello) = client_hello(&datagram) {
                let _ = (hello.ask_for(&[0; COOKIE_LEN]), hello.as_at_first());
            }
        }
    }
}
