//! The application's server of a probe: one HTTPS request, and triggers.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// More than any answer has.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Where to send triggers, and as what.
#[derive(Debug)]
pub(super) struct Validated {
    /// The address and port.
    pub(super) to: SocketAddr,
    /// The generation of the token.
    pub(super) token_generation: u8,
}

/// Why a token wasn't validated.
#[derive(Debug)]
pub(super) enum NotValidated {
    /// There was no answer.
    Unreachable(String),
    /// There was one: its status, and what it says.
    Refused(u16, String),
}

impl From<io::Error> for NotValidated {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// The host, as in a certificate, and the port of `https://HOST:PORT`.
pub(super) fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let authority = url.strip_prefix("https://")?.trim_end_matches('/');
    if authority.is_empty() || authority.contains('/') {
        return None;
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host, port.parse().ok()?))
        }
        Some(_) | None => {
            let host = authority.trim_start_matches('[').trim_end_matches(']');
            Some((host, 443))
        }
    }
}

/// By whose certificates a gateway is known.
pub(super) type Trust = Arc<ClientConfig>;

/// Proves to the gateway that the token is known.
pub(super) fn validate(
    (host, port): (&str, u16),
    trust: Trust,
    session: &str,
    token: &str,
    app_key: &str,
    limit: Duration,
) -> Result<Validated, NotValidated> {
    let address = (host, port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::other(format!("{host} has no address")))?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(trust, name).map_err(io::Error::other)?;
    let socket = TcpStream::connect_timeout(&address, limit)?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    let mut stream = StreamOwned::new(connection, socket);
    let body = json!({ "token": token }).to_string();
    write!(
        stream,
        "POST /v1/sessions/{session}/validate HTTP/1.1\r\nHost: {host}:{port}\r\n\
         Authorization: Bearer {app_key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer) {
        // Some close without a word; whether the answer is whole is seen by its JSON.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
        Ok(_) | Err(_) => {}
    }
    read_answer(&answer, address.ip())
}

/// Trusts those whose certificates are in this file.
pub(super) fn trusting(ca: &Path) -> io::Result<Trust> {
    let unreadable =
        |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", ca.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unreadable(&error))? {
        // A bundle may have some that can't be used.
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        let _unusable = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(unreadable(&"no certificate in it"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn read_answer(answer: &[u8], gateway: IpAddr) -> Result<Validated, NotValidated> {
    let not_understood = || NotValidated::Unreachable("what answers isn't a gateway".to_owned());
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(not_understood)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status: u16 = status.ok_or_else(not_understood)?;
    let body: Value = serde_json::from_str(body).map_err(|_| not_understood())?;
    if status != 200 {
        let detail = body["detail"].as_str().unwrap_or_default();
        return Err(NotValidated::Refused(status, detail.to_owned()));
    }
    let addresses = body["trigger_addresses"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
    let mut addresses: Vec<_> = addresses.collect();
    // The IP version that the server is known to have.
    addresses.sort_by_key(|address| address.is_ipv4() != gateway.is_ipv4());
    let port = body["trigger_port"].as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok());
    let generation = body["token_generation"].as_u64();
    let generation = generation.and_then(|generation| u8::try_from(generation).ok());
    match (addresses.first(), port, generation) {
        (Some(&address), Some(port), Some(token_generation)) => Ok(Validated {
            to: SocketAddr::new(address, port),
            token_generation,
        }),
        _ => Err(not_understood()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_external_interface_is_taken_apart() {
        let cases = [
            ("https://198.51.100.1:8443", Some(("198.51.100.1", 8443))),
            ("https://[2001:db8::1]:8443/", Some(("2001:db8::1", 8443))),
            ("https://[2001:db8::1]", Some(("2001:db8::1", 443))),
            ("https://push.example", Some(("push.example", 443))),
            ("https://push.example:x", None),
            ("https://push.example/v1", None),
            ("http://push.example", None),
            ("https://", None),
        ];
        for (url, expected) in cases {
            assert_eq!(host_and_port(url), expected, "{url}");
        }
    }

    #[test]
    fn an_answer_is_understood_or_its_refusal_told() {
        let gateway = "198.51.100.1".parse().unwrap();
        let right = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n{\"trigger_addresses\": [\"2001:db8::1\", \"198.51.100.1\"], \"trigger_port\": 5050, \"token_generation\": 3}";
        let validated = read_answer(right, gateway).unwrap();
        assert_eq!(validated.to, "198.51.100.1:5050".parse().unwrap());
        assert_eq!(validated.token_generation, 3);
        let refused = b"HTTP/1.1 401 Unauthorized\r\n\r\n{\"detail\": \"not a key\"}";
        let Err(NotValidated::Refused(401, detail)) = read_answer(refused, gateway) else {
            panic!("not refused");
        };
        assert_eq!(detail, "not a key");
        for nonsense in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n{}", b"SSH-2.0\r\n\r\n"] {
            let outcome = read_answer(nonsense, gateway);
            assert!(matches!(outcome, Err(NotValidated::Unreachable(_))));
        }
    }
}
