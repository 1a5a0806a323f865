//! Signatures under what an end vouches for.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use super::{Identity, IdentityError};
use crate::core::evidence::Signed;

/// Why a signature is none.
#[derive(Debug, thiserror::Error)]
pub enum NotSigned {
    /// The certificate cannot be read, or is not of the authority.
    #[error("the certificate is not of this authority, or was not good at that time: {0}")]
    Certificate(String),
    /// The signature is not of this text and key.
    #[error("the signature is not of this text")]
    Signature,
}

/// Signs a text.
///
/// # Errors
/// When the key is not one that can.
pub fn sign(identity: &Identity, text: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let key = rustls::crypto::ring::sign::any_eddsa_type(match &identity.key {
        rustls_pki_types::PrivateKeyDer::Pkcs8(key) => key,
        _ => return Err(rustls::Error::General("the key is not in PKCS#8".into()).into()),
    })?;
    let signer = key
        .choose_scheme(&[rustls::SignatureScheme::ED25519])
        .ok_or_else(|| rustls::Error::General("the key is not Ed25519".into()))?;
    Ok(signer.sign(text)?)
}

/// Who signed: the names in the certificate, when it is of the authority, was good at that time, and the signature
/// is of this text.
///
/// # Errors
/// When it is not.
pub fn signer(
    signed: &Signed,
    authority: &CertificateDer<'_>,
    at: jiff::Timestamp,
) -> Result<Vec<String>, NotSigned> {
    let wrong = |error: &dyn std::fmt::Display| NotSigned::Certificate(error.to_string());
    let certificate =
        CertificateDer::from_pem_slice(signed.certificate.as_bytes()).map_err(|error| wrong(&error))?;
    let entity = EndEntityCert::try_from(&certificate).map_err(|error| wrong(&error))?;
    let anchor = webpki::anchor_from_trusted_cert(authority).map_err(|error| wrong(&error))?;
    let seconds = u64::try_from(at.as_second()).unwrap_or(0);
    entity
        .verify_for_usage(
            &[webpki::ring::ED25519],
            &[anchor],
            &[],
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
            AnyUsage,
            None,
            None,
        )
        .map_err(|error| wrong(&error))?;
    let signature = BASE64_STANDARD.decode(&signed.signature).map_err(|_| NotSigned::Signature)?;
    entity
        .verify_signature(webpki::ring::ED25519, signed.statement.as_bytes(), &signature)
        .map_err(|_| NotSigned::Signature)?;
    Ok(entity.valid_uri_names().map(str::to_owned).collect())
}

/// Agents and receivers both sign; which of them it was is in the names.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}
