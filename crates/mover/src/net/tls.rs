//! TLS 1.3, both ends with a certificate of the one authority that counts.

use std::sync::Arc;
use std::time::Duration;

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use webpki::EndEntityCert;

use crate::core::frame::ALPN;
use crate::identity::{Identity, IdentityError};

/// A handshake that takes longer is given up.
pub const HANDSHAKE: Duration = Duration::from_secs(15);
/// The protocol of the place where certificates are issued.
pub const ENROL_ALPN: &[u8] = b"conme-mover-enrol/1";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(roots)
}

/// What a receiver needs to be called: only agents of its authority get past the handshake.
///
/// # Errors
/// When the identity does not fit together.
pub fn receiver(identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&identity.authority)?), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    Ok(finished(config, ALPN))
}

/// What the place needs where certificates are issued. Who calls has none yet.
///
/// # Errors
/// When certificate and key do not fit.
pub fn enrolment(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(finished(config, ENROL_ALPN))
}

fn finished(mut config: ServerConfig, alpn: &[u8]) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    // A session that is resumed would outlive its certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// What an agent needs to call its receiver.
///
/// # Errors
/// When the identity does not fit together.
pub fn agent(identity: &Identity) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(&identity.authority)?)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// What a server needs that has no certificate yet: it trusts the authority of its token and nobody else.
///
/// # Errors
/// When the authority is none.
pub fn enrolling(authority: &CertificateDer<'static>) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(authority)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ENROL_ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Calls by this name.
///
/// # Errors
/// When the handshake fails or takes too long.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    name: &str,
    stream: S,
) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
    let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, stream);
    tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// Answers a call.
///
/// # Errors
/// When the handshake fails or takes too long.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
) -> std::io::Result<tokio_rustls::server::TlsStream<S>> {
    let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
    tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// The names in the certificate of a peer that has passed the handshake.
pub fn names<'a>(certificates: Option<&'a [CertificateDer<'a>]>) -> Vec<String> {
    let Some([certificate, ..]) = certificates else { return Vec::new() };
    let Ok(entity) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    entity.valid_uri_names().map(str::to_owned).collect()
}
