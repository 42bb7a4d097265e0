//! One status enquiry: a GET over a connection of its own.

use axum::body::Bytes;
use axum::http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// For all of it, from looking up the name to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// More than this isn't read of an answer's head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// More than this isn't read of an answer's body.
const MAX_BODY_BYTES: usize = 4 << 10;

/// Longest address that is asked.
const MAX_URL_BYTES: usize = 2048;

/// Where to ask how an application's servers are: `https`, or `http` on this machine itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusUrl(Uri);

/// An address can't be asked; why, and what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// It is none.
    #[error("not an address like https://app.example.com/status")]
    NotUrl,
    /// The answer could be anybody's.
    #[error(
        "only an address of this machine, 127.0.0.1 or [::1], is asked without TLS; write https"
    )]
    NotHttps,
    /// It would show wherever the address is shown.
    #[error(
        "an address with a user name or a password would show them to everybody; leave them out"
    )]
    HasUser,
    /// The part behind `#` is never sent.
    #[error("what follows a # is not sent; leave it out")]
    HasFragment,
}

impl FromStr for StatusUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.contains('#') {
            return Err(BadUrl::HasFragment);
        }
        if text.len() > MAX_URL_BYTES {
            return Err(BadUrl::NotUrl);
        }
        let uri: Uri = text.parse().map_err(|_| BadUrl::NotUrl)?;
        let authority = uri.authority().ok_or(BadUrl::NotUrl)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::HasUser);
        }
        let url = Self(uri);
        let name = ServerName::try_from(url.host()).map_err(|_| BadUrl::NotUrl)?;
        let is_here = matches!(&name, ServerName::IpAddress(ip) if IpAddr::from(*ip).is_loopback());
        match url.0.scheme_str() {
            Some("https") => Ok(url),
            Some("http") if is_here => Ok(url),
            Some("http") => Err(BadUrl::NotHttps),
            Some(_) | None => Err(BadUrl::NotUrl),
        }
    }
}

impl fmt::Display for StatusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StatusUrl {
    fn is_secure(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// Without the brackets of an IPv6 address.
    fn host(&self) -> &str {
        let host = self.0.host().unwrap_or_default();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    fn port(&self) -> u16 {
        let default = if self.is_secure() { 443 } else { 80 };
        self.0.port_u16().unwrap_or(default)
    }
}

/// How an application's servers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// They do their work; `said` if they have said so in as many words.
    Good {
        /// Whether the body has `"available": true`.
        said: bool,
    },
    /// They say themselves that they don't.
    Unavailable,
    /// There was no answer, or another one; why.
    None(String),
}

/// The authorities that certificates of application servers have to come from can't be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The configured file can't be used.
    #[error("monitoring.ca: can't read {} ({what}): it has to be a PEM file with the certificates of authorities, readable by the daemon", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// rustls can't be set up.
    #[error("TLS can't be had: {0}")]
    Tls(#[from] rustls::Error),
}

/// Asks application servers.
#[derive(Clone)]
pub struct Enquirer {
    tls: TlsConnector,
}

impl Enquirer {
    /// Trusts the authorities in this PEM file and no others; without one, those of the operating system.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`].
    pub fn new(ca: Option<&Path>) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = ca {
            let unreadable = |what: String| AuthorityError::Unreadable {
                path: path.to_owned(),
                what,
            };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| unreadable(error.to_string()))?;
            if certificates.is_empty() {
                return Err(unreadable("there is no certificate in it".to_owned()));
            }
            for certificate in certificates {
                let added = roots.add(certificate);
                added.map_err(|error| unreadable(error.to_string()))?;
            }
        } else {
            // Where there are none, no https server is trusted, and its enquiry says so.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Asks once. Who redirects elsewhere hasn't answered.
    pub(super) async fn ask(&self, url: &StatusUrl) -> Answer {
        match timeout(TIMEOUT, self.exchange(url)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Answer::None(why),
            Err(_elapsed) => Answer::None(format!("no answer in {} s", TIMEOUT.as_secs())),
        }
    }

    async fn exchange(&self, url: &StatusUrl) -> Result<Answer, String> {
        let stream = TcpStream::connect((url.host(), url.port()))
            .await
            .map_err(|error| format!("can't connect: {error}"))?;
        if !url.is_secure() {
            return get(stream, url).await;
        }
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|error| format!("no name to ask for: {error}"))?;
        let stream = self.tls.connect(name, stream).await;
        get(stream.map_err(|error| format!("no TLS: {error}"))?, url).await
    }
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &StatusUrl,
) -> Result<Answer, String> {
    let failed = |error: hyper::Error| format!("no HTTP: {error}");
    let mut client = http1::Builder::new();
    client.max_buf_size(MAX_HEAD_BYTES);
    let (mut sender, connection) = client
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    // Ends with this function, whatever the server still wants to say.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let host = url.0.authority().map_or("", |authority| authority.as_str());
    let path = url.0.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "push-ctl")
        .header(header::ACCEPT, "application/json, */*;q=0.1")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Ok(Answer::Unavailable);
    }
    if !status.is_success() {
        return Err(format!("the answer is {status}"));
    }
    // The status is what counts: who sends a page, or breaks off in its middle, has answered.
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES);
    let word = body.collect().await.ok().and_then(|body| {
        let word: Word = serde_json::from_slice(&body.to_bytes()).ok()?;
        word.available
    });
    Ok(match word {
        Some(false) => Answer::Unavailable,
        Some(true) => Answer::Good { said: true },
        None => Answer::Good { said: false },
    })
}

/// What a server may say besides its status; the rest of it is its own business.
#[derive(Deserialize)]
struct Word {
    available: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn only_addresses_that_can_be_asked_safely_are_taken() {
        for good in [
            "https://app.example.com",
            "https://app.example.com:8443/status?for=push",
            "https://192.0.2.1/",
            "https://[2001:db8::1]:444/status",
            "http://127.0.0.1:8080/status",
            "http://[::1]/",
        ] {
            let url: StatusUrl = good.parse().unwrap_or_else(|e| panic!("{good}: {e}"));
            assert!(url.to_string().starts_with(good), "{url}");
        }
        for (bad, why) in [
            ("", BadUrl::NotUrl),
            ("/status", BadUrl::NotUrl),
            ("app.example.com:443", BadUrl::NotUrl),
            ("ftp://app.example.com/", BadUrl::NotUrl),
            ("https://", BadUrl::NotUrl),
            ("https://app_$.example.com/", BadUrl::NotUrl),
            ("http://app.example.com/", BadUrl::NotHttps),
            ("http://localhost/", BadUrl::NotHttps),
            ("http://192.0.2.1/", BadUrl::NotHttps),
            ("https://me:secret@app.example.com/", BadUrl::HasUser),
            ("https://app.example.com/#top", BadUrl::HasFragment),
        ] {
            assert_eq!(bad.parse::<StatusUrl>(), Err(why), "{bad}");
        }
    }

    /// Answers one connection with these bytes, and gives what was asked.
    async fn asked(answer: &'static [u8]) -> (Answer, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // Who has heard enough may have gone.
            let _gone = stream.write_all(answer).await;
            String::from_utf8(request).unwrap()
        });
        let url = format!("http://{address}/status?for=push").parse().unwrap();
        let answer = Enquirer::new(None).unwrap().ask(&url).await;
        (answer, server.await.unwrap())
    }

    #[tokio::test]
    async fn answers_are_understood() {
        let good = |said| Answer::Good { said };
        for (answer, expected) in [
            (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], good(false)),
            (b"HTTP/1.0 200 OK\r\n\r\n<html>", good(false)),
            (b"HTTP/1.1 200 OK\r\n\r\n{\"load\": 1}", good(false)),
            (b"HTTP/1.1 200 OK\r\n\r\n{\"available\": true}", good(true)),
            (
                b"HTTP/1.1 200 OK\r\n\r\n{\"available\": false, \"until\": 1}",
                Answer::Unavailable,
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"available\": false}",
                good(false),
            ),
            (b"HTTP/1.1 503 Later\r\n\r\n", Answer::Unavailable),
        ] {
            let text = String::from_utf8_lossy(answer);
            assert_eq!(asked(answer).await.0, expected, "{text}");
        }
        for (answer, why) in [
            (&b"HTTP/1.1 500 Oh\r\n\r\n"[..], "500"),
            (
                b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\n\r\n",
                "302",
            ),
            (b"SSH-2.0\r\n", "no HTTP"),
            (b"", "no HTTP"),
        ] {
            let (got, _) = asked(answer).await;
            assert!(
                matches!(&got, Answer::None(text) if text.contains(why)),
                "{got:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_read_to_its_end() {
        let long = format!(
            "HTTP/1.1 200 OK\r\n\r\n{{\"available\": false}}{}",
            " ".repeat(1 << 20)
        );
        let (answer, _) = asked(long.leak().as_bytes()).await;
        assert_eq!(answer, Answer::Good { said: false });
        let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
        let (answer, _) = asked(long.leak().as_bytes()).await;
        assert!(matches!(answer, Answer::None(_)), "{answer:?}");
    }

    #[tokio::test]
    async fn the_request_has_what_it_takes_and_no_more() {
        let (_, request) = asked(b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert!(request.starts_with("GET /status?for=push HTTP/1.1\r\nhost: 127.0.0.1:"));
        assert!(request.contains("connection: close\r\n"), "{request}");
    }

    #[tokio::test]
    async fn who_can_not_be_reached_or_trusted_has_not_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let enquirer = Enquirer::new(None).unwrap();
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{address}/").parse().unwrap();
            let answer = enquirer.ask(&url).await;
            assert!(matches!(&answer, Answer::None(why) if why.contains("can't connect")));
        }
    }

    #[test]
    fn a_file_without_authorities_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        for (text, what) in [(None, "No such file"), (Some("nothing"), "no certificate")] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let error = Enquirer::new(Some(&path)).err().unwrap().to_string();
            assert!(error.contains("ca.pem") && error.contains(what), "{error}");
        }
    }
}
