//! The certificate of the external interface: the configured one, or one that the daemon makes for itself.

use super::client_certificates::AnyCertificate;
use crate::config::External;
use crate::credentials::Fingerprint;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{info, warn};

/// The certificate and key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{key}: can't read {} ({what}): it has to be a PEM file with {expected}, readable by the daemon", path.display())]
    Unreadable {
        /// Where the configuration names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What should be in it.
        expected: &'static str,
    },
    /// They don't belong together, or rustls doesn't know what they are.
    #[error("external.certificate: {} and {} can't be used together: {what}", certificate.display(), key.display())]
    Unusable {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A pair can't be made.
    #[error("can't make {}: {what}", path.display())]
    NotMade {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What rustls needs to serve with the configured certificate; without one, with a self-signed one in
/// `state_dir` that is made, for `names`, when it isn't there.
///
/// # Errors
///
/// [`TlsError`].
pub fn server_config(
    external: &External,
    state_dir: &Path,
    names: &[IpAddr],
) -> Result<Arc<ServerConfig>, TlsError> {
    let (certificate, key) = match (&external.certificate, &external.private_key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        (Some(_), None) | (None, Some(_)) | (None, None) => self_signed(state_dir, names)?,
    };
    let unreadable = |key, path: &Path, expected| {
        let path = path.to_owned();
        move |what: String| TlsError::Unreadable {
            key,
            path,
            what,
            expected,
        }
    };
    let no_certificate = unreadable(
        "external.certificate",
        &certificate,
        "a certificate, and those that lead to its root",
    );
    let chain = read_chain(&certificate).map_err(no_certificate)?;
    let no_key = unreadable(
        "external.private_key",
        &key,
        "the private key of the certificate",
    );
    let private_key =
        PrivateKeyDer::from_pem_file(&key).map_err(|error| no_key(error.to_string()))?;
    let unusable = |error: rustls::Error| TlsError::Unusable {
        certificate: certificate.clone(),
        key: key.clone(),
        what: error.to_string(),
    };

    let sha256 = Fingerprint::of(&chain[0]);
    info!(certificate = %certificate.display(), %sha256, "certificate of the external interface");
    if external.certificate.is_none() {
        warn_of_missing_names(&chain[0], names, &certificate);
    }
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::new(AnyCertificate(provider)))
        .with_single_cert(chain, private_key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// At least one certificate.
fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match chain {
        Ok(chain) if chain.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(error.to_string()),
    }
}

/// A pair that was made for other listen addresses still works, for who doesn't look at names.
fn warn_of_missing_names(certificate: &CertificateDer<'_>, names: &[IpAddr], path: &Path) {
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else {
        return;
    };
    for &name in names {
        if verify_server_name(&parsed, &ServerName::IpAddress(name.into())).is_err() {
            let certificate = path.display();
            warn!(%name, %certificate, "the self-signed certificate is not for this listen address; remove it to have one made that is");
        }
    }
}

/// The paths of a self-signed certificate and its key. The certificate is written last: where it is, the
/// key is complete.
fn self_signed(state_dir: &Path, names: &[IpAddr]) -> Result<(PathBuf, PathBuf), TlsError> {
    let certificate_path = state_dir.join("external.crt");
    let key_path = state_dir.join("external.key");
    if certificate_path.exists() {
        return Ok((certificate_path, key_path));
    }
    let not_made = |error: rcgen::Error| TlsError::NotMade {
        path: certificate_path.clone(),
        what: error.to_string(),
    };
    let key = KeyPair::generate().map_err(not_made)?;
    let mut params =
        CertificateParams::new(names.iter().map(IpAddr::to_string).collect::<Vec<_>>())
            .map_err(not_made)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "push gateway, self-signed");
    let certificate = params.self_signed(&key).map_err(not_made)?;
    let write = |path: &Path, text: &str, mode| {
        write_whole(path, text, mode).map_err(|error| TlsError::NotMade {
            path: path.to_owned(),
            what: error.to_string(),
        })
    };
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&certificate_path, &certificate.pem(), 0o644)?;
    info!(certificate = %certificate_path.display(), "made a self-signed certificate");
    Ok((certificate_path, key_path))
}

/// Writes a file so that it is there complete, or not at all.
fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let unfinished = path.with_added_extension("new");
    let _absent = fs::remove_file(&unfinished);
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NONE: External = External {
        listen: Vec::new(),
        certificate: None,
        private_key: None,
    };

    fn names() -> Vec<IpAddr> {
        vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]
    }

    #[test]
    fn a_self_signed_pair_is_made_once_and_its_key_is_secret() {
        let directory = tempfile::tempdir().unwrap();
        server_config(&NONE, directory.path(), &names()).unwrap();
        let key = directory.path().join("external.key");
        let made = fs::read(&key).unwrap();
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        server_config(&NONE, directory.path(), &names()).unwrap();
        assert_eq!(fs::read(&key).unwrap(), made);
        let chain = read_chain(&directory.path().join("external.crt")).unwrap();
        let parsed = ParsedCertificate::try_from(&chain[0]).unwrap();
        for name in names() {
            verify_server_name(&parsed, &ServerName::IpAddress(name.into())).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn files_that_can_not_be_used_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        server_config(&NONE, directory.path(), &names()).unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(
            path("other.key"),
            KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        let cases = [
            (
                "missing",
                "external.key",
                "external.certificate: can't read",
                "missing",
            ),
            (
                "empty",
                "external.key",
                "there is no certificate in it",
                "empty",
            ),
            (
                "external.crt",
                "missing",
                "external.private_key: can't read",
                "missing",
            ),
            (
                "external.crt",
                "empty",
                "external.private_key: can't read",
                "empty",
            ),
            (
                "external.crt",
                "other.key",
                "can't be used together",
                "other.key",
            ),
        ];
        for (certificate, key, expected, file) in cases {
            let external = External {
                certificate: Some(path(certificate)),
                private_key: Some(path(key)),
                ..NONE
            };
            let error = server_config(&external, directory.path(), &names())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected) && error.contains(file), "{error}");
        }
    }
}
