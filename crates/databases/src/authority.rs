//! The authorities that a server's certificate is checked against.

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// The authorities in a PEM text; at least one.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn roots(ca_pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("the CA is not valid PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("the CA cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("the CA holds no certificate in PEM".to_owned());
    }
    Ok(roots)
}
