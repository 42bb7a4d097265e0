//! Certificates of application servers. They are pinned: the one that the operator has named is taken,
//! whoever has issued it, and no other.

use super::credential_id;
use crate::sessions::records::{CredentialId, UnixTime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::fmt;
use x509_parser::parse_x509_certificate;

/// SHA-256 of a certificate's DER; what `openssl x509 -fingerprint -sha256` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of this certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Names the credential that a certificate with this fingerprint is.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        credential_id(&self.0)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// When it is valid no more.
    pub expires: UnixTime,
}

/// A text isn't a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// There is none in it.
    #[error(
        "there is no certificate in it: a PEM file with one is needed, `-----BEGIN CERTIFICATE-----`"
    )]
    NotPem,
    /// What says that it is one isn't.
    #[error("what it has as a certificate is none: {0}")]
    NotX509(String),
}

impl Certificate {
    /// The first certificate in a PEM file, which is the server's own; those that lead to its root follow.
    ///
    /// # Errors
    ///
    /// [`CertificateError`].
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        let der = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|_| CertificateError::NotPem)?;
        let not_x509 = |error: &dyn fmt::Display| CertificateError::NotX509(error.to_string());
        let (rest, parsed) = parse_x509_certificate(&der).map_err(|e| not_x509(&e))?;
        if !rest.is_empty() {
            return Err(not_x509(&"something follows it"));
        }
        let expires_s = parsed.validity().not_after.timestamp();
        let expires_ms = u64::try_from(expires_s).unwrap_or(0).saturating_mul(1000);
        Ok(Self {
            fingerprint: Fingerprint::of(&der),
            expires: UnixTime::from_millis(expires_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    #[test]
    fn the_first_certificate_of_a_file_counts() {
        let pem = |year| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["server.test".to_owned()]).unwrap();
            params.not_after = date_time_ymd(year, 1, 2);
            let certificate = params.self_signed(&key).unwrap();
            let text = format!("{}{}", key.serialize_pem(), certificate.pem());
            (text, Fingerprint::of(certificate.der()))
        };
        let ((first, fingerprint), (second, _)) = (pem(2030), pem(2040));
        let read = Certificate::from_pem(&format!("{first}{second}")).unwrap();
        let midnight = "2030-01-02T00:00:00Z".parse::<jiff::Timestamp>().unwrap();
        assert_eq!(read.fingerprint, fingerprint);
        assert_eq!(
            read.expires.as_millis(),
            u64::try_from(midnight.as_millisecond()).unwrap()
        );
        assert_eq!(
            fingerprint.to_string()[..16],
            fingerprint.id().to_string(),
            "the name is the beginning of the fingerprint"
        );
    }

    #[test]
    fn other_texts_are_refused_with_what_is_wrong() {
        assert_eq!(Certificate::from_pem(""), Err(CertificateError::NotPem));
        let key = KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(Certificate::from_pem(&key), Err(CertificateError::NotPem));
        let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            Certificate::from_pem(none),
            Err(CertificateError::NotX509(_))
        ));
    }
}
