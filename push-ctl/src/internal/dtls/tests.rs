//! Handshakes with dimpl's own client, in memory.

use super::*;
use dimpl::PskResolver;

const IDENTITY: &[u8] = b"phone-7";
const KEY: &[u8] = b"sixteen bytes at least";

struct Device {
    dtls: Dtls,
    address: SocketAddr,
    connected: bool,
    heard: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Secret(&'static [u8]);

impl PskResolver for Secret {
    fn resolve(&self, _identity: &[u8]) -> Option<Vec<u8>> {
        Some(self.0.to_vec())
    }
}

impl Device {
    fn new(port: u16, key: &'static [u8], now: Instant) -> Self {
        let config = dimpl::Config::builder()
            .with_crypto_provider(rust_crypto::default_provider())
            .with_psk_client(IDENTITY.to_vec(), Arc::new(Secret(key)))
            .build()
            .unwrap();
        let mut dtls = Dtls::new_12_psk(Arc::new(config), now);
        dtls.set_active(true);
        dtls.handle_timeout(now).unwrap();
        Self {
            dtls,
            address: SocketAddr::from(([10, 0, 0, 2], port)),
            connected: false,
            heard: Vec::new(),
        }
    }

    fn said(&mut self) -> Vec<Vec<u8>> {
        let (mut said, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
        loop {
            match self.dtls.poll_output(&mut buffer) {
                Output::Packet(datagram) => said.push(datagram.to_vec()),
                Output::Connected => self.connected = true,
                Output::ApplicationData(message) => self.heard.push(message.to_vec()),
                Output::Timeout(_) => return said,
                // For SRTP, which nobody speaks here.
                Output::KeyingMaterial(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Goes on until nobody has anything to say; what the gateway has heard.
    fn talk(&mut self, gateway: &Secured, now: Instant) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        loop {
            let said = self.said();
            if said.is_empty() {
                return heard;
            }
            for datagram in said {
                let effects = gateway.receive(&datagram, self.address, now);
                heard.extend(effects.heard);
                for answer in effects.send {
                    self.hear(&answer);
                }
            }
        }
    }

    fn hear(&mut self, datagram: &[u8]) {
        // A client that can't go on says so by an error.
        let _over = self.dtls.handle_packet(datagram);
    }
}

fn gateway() -> Secured {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, format!("phone-7 {}", hex::encode(KEY))).unwrap();
    Secured::new(Keys::read(&path).unwrap()).unwrap()
}

fn counts(gateway: &Secured) -> (usize, usize) {
    let connections = gateway.connections();
    (connections.greeting.len(), connections.open.len())
}

#[test]
fn who_has_the_key_talks_and_is_talked_to() {
    let (gateway, now) = (gateway(), Instant::now());
    let mut device = Device::new(7000, KEY, now);
    assert_eq!(gateway.route(device.address), None);
    assert_eq!(
        gateway.seal(b"nobody there", device.address),
        [] as [Vec<u8>; 0]
    );
    device.talk(&gateway, now);
    assert!(device.connected);
    assert_eq!(counts(&gateway), (0, 1));

    device.dtls.send_application_data(b"hello").unwrap();
    assert_eq!(device.talk(&gateway, now), [b"hello"]);
    for datagram in gateway.seal(b"hello yourself", device.address) {
        assert!(!datagram.windows(5).any(|window| window == b"hello"));
        device.hear(&datagram);
    }
    assert_eq!(device.talk(&gateway, now), [] as [Vec<u8>; 0]);
    assert_eq!(device.heard, [b"hello yourself"]);

    // What is for another port of it goes the same way; what is for others doesn't.
    let other_port = SocketAddr::from(([10, 0, 0, 2], 7001));
    assert_eq!(gateway.route(other_port), Some(device.address));
    assert_eq!(gateway.route(SocketAddr::from(([10, 0, 0, 3], 7000))), None);

    // After a restart of the device there is one connection again, the new one.
    let mut again = Device::new(7000, KEY, now);
    again.talk(&gateway, now);
    assert!(again.connected);
    assert_eq!(counts(&gateway), (0, 1));
    again.dtls.send_application_data(b"again").unwrap();
    assert_eq!(again.talk(&gateway, now), [b"again"]);
}

#[test]
fn nothing_is_remembered_of_who_has_not_brought_a_cookie() {
    let (gateway, now) = (gateway(), Instant::now());
    let mut device = Device::new(7000, KEY, now);
    let first = device.said().remove(0);
    for port in 1..=5000 {
        let from = SocketAddr::from(([10, 0, 0, 3], port));
        let effects = gateway.receive(&first, from, now);
        let [answer] = &effects.send[..] else {
            panic!("{effects:?}");
        };
        assert!(answer.len() <= first.len(), "no amplification");
        assert!(gateway.receive(&[22; 60], from, now).send.is_empty());
    }
    assert_eq!(counts(&gateway), (0, 0));

    // A cookie is good for one address, one client, and for one to two minutes.
    let answer = gateway.receive(&first, device.address, now).send.remove(0);
    device.hear(&answer);
    let second = device.said().remove(0);
    let elsewhere = SocketAddr::from(([10, 0, 0, 2], 7001));
    let late = now + 2 * EPOCH;
    for (from, at) in [(elsewhere, now), (device.address, late)] {
        let answer = gateway.receive(&second, from, at).send.remove(0);
        assert_eq!(answer[13], 3, "a HelloVerifyRequest");
        assert_eq!(counts(&gateway), (0, 0));
    }
    gateway.receive(&second, device.address, now);
    assert_eq!(counts(&gateway), (1, 0));
}

#[test]
fn handshakes_end_and_are_only_so_many() {
    let (gateway, now) = (gateway(), Instant::now());
    let begin = |port| {
        let mut device = Device::new(port, KEY, now);
        let first = device.said().remove(0);
        let answer = gateway.receive(&first, device.address, now).send.remove(0);
        device.hear(&answer);
        let second = device.said().remove(0);
        gateway.receive(&second, device.address, now);
        device
    };
    let mut established = Device::new(60_000, KEY, now);
    established.talk(&gateway, now);
    for port in 1..=u16::try_from(HANDSHAKES.get()).unwrap() + 10 {
        begin(port);
    }
    assert_eq!(counts(&gateway), (HANDSHAKES.get(), 1));
    // They get no answer: the gateway says the same again, and then forgets them.
    let mut at = now;
    assert!(!gateway.tick(at + Duration::from_secs(2)).is_empty());
    while counts(&gateway).0 > 0 {
        at += Duration::from_secs(1);
        assert!(at < now + Duration::from_secs(120), "never forgotten");
        gateway.tick(at);
    }
    assert_eq!(counts(&gateway), (0, 1));
}

#[test]
fn who_has_another_key_is_not_connected() {
    let (gateway, now) = (gateway(), Instant::now());
    let mut device = Device::new(7000, b"sixteen bytes, but others", now);
    device.talk(&gateway, now);
    assert!(!device.connected);
    assert_eq!(counts(&gateway).1, 0);
}
