//! Enrolment: a server with a token gets the certificate for a key that never leaves it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::dial::dial;
use super::{tls, wire};
use crate::cli::Output;
use crate::core::frame::{BadFrame, Frame, MAX_TEXT, Reader, Writer};
use crate::identity::{About, Authority, Identity, Role, Token, write_private};

/// Calls that may be answered at once; nobody has to prove anything to be one of them.
const CALLS: usize = 16;
/// All that a call may take.
const CALL: Duration = Duration::from_secs(30);
const REQUEST: usize = 4096;
const CERTIFICATE: usize = 8192;

/// What is said at enrolment, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Request { id: String, secret: String, request: Vec<u8> },
    Issued { certificate: String },
    Refused { text: String },
}

impl Frame for Said {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Request { id, secret, request } => {
                Writer::new(0x61).text(id, 64).text(secret, 128).counted(request)
            }
            Self::Issued { certificate } => Writer::new(0x62).text(certificate, CERTIFICATE),
            Self::Refused { text } => Writer::new(0x63).text(text, MAX_TEXT),
        }
        .finish()
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            0x61 => Some(64 + 128 + REQUEST + 12),
            0x62 => Some(CERTIFICATE + 4),
            0x63 => Some(MAX_TEXT + 4),
            _ => None,
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut from = Reader { kind, left: content };
        let said = match kind {
            0x61 => Self::Request {
                id: from.text(64)?,
                secret: from.text(128)?,
                request: from.counted(REQUEST)?.to_vec(),
            },
            0x62 => Self::Issued { certificate: from.text(CERTIFICATE)? },
            0x63 => Self::Refused { text: from.text(MAX_TEXT)? },
            _ => return Err(BadFrame::Kind(kind)),
        };
        from.end(said)
    }
}

/// Issues certificates until the process is ended.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(authority: Authority, listen: SocketAddr, output: Output) -> anyhow::Result<()> {
    let (certificate, key) = authority.enrolment(jiff::Timestamp::now())?;
    let config = tls::enrolment(
        CertificateDer::from_pem_slice(certificate.as_bytes()).context("the certificate of this place")?,
        PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the key of this place")?,
    )?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    output.listening(listener.local_addr()?);
    let (authority, calls) = (Arc::new(authority), Arc::new(Semaphore::new(CALLS)));
    loop {
        let permit = Arc::clone(&calls).acquire_owned().await?;
        let (stream, from) = match listener.accept().await {
            Ok(call) => call,
            Err(error) => {
                output.warning(&format!("a call could not be taken: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (authority, config, output) = (Arc::clone(&authority), Arc::clone(&config), output.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(CALL, answer(authority, config, stream)).await {
                Ok(Ok(id)) => output.note(&format!("token {id}: a certificate was issued to {from}")),
                Ok(Err(error)) => output.warning(&format!("{from}: {error:#}")),
                Err(_) => output.warning(&format!("{from}: took longer than {} s", CALL.as_secs())),
            }
        });
    }
}

async fn answer(
    authority: Arc<Authority>,
    config: Arc<rustls::ServerConfig>,
    stream: TcpStream,
) -> anyhow::Result<String> {
    let mut stream = tls::accept(config, stream).await?;
    let Some(Said::Request { id, secret, request }) = wire::read(&mut stream).await? else {
        bail!("asked for nothing");
    };
    let token = id.clone();
    let redeemed =
        tokio::task::spawn_blocking(move || authority.redeem(&id, &secret, &request, jiff::Timestamp::now()))
            .await?;
    // Who guesses tokens is not told how close the guess was.
    let said = match &redeemed {
        Ok(certificate) => Said::Issued { certificate: certificate.clone() },
        Err(_) => Said::Refused {
            text: "the token is not valid (any more) for this server: ask the data centre for a new one"
                .into(),
        },
    };
    stream.write_all(&said.encode()).await?;
    stream.shutdown().await?;
    redeemed?;
    Ok(token)
}

/// Makes a key in the state directory and gets a certificate for it.
///
/// # Errors
/// When the token is refused, the place cannot be reached or is not of the token's authority.
pub async fn enrol(token: &Token, state: &Path) -> anyhow::Result<About> {
    let dir = state.join("identity");
    if dir.join("certificate.pem").exists() {
        bail!("{} holds an identity already: use another --state, or remove it first", dir.display());
    }
    // The key is kept before it is sent anywhere: if the answer is lost, the same key asks again.
    crate::identity::make_private_dir(&dir)?;
    let key_path = dir.join("key.pem");
    let key = if key_path.exists() {
        KeyPair::from_pem(&crate::identity::read(&key_path)?)?
    } else {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        write_private(&key_path, key.serialize_pem().as_bytes())?;
        key
    };
    let request = CertificateParams::default().serialize_request(&key)?;
    let authority =
        CertificateDer::from_pem_slice(token.authority.as_bytes()).context("the token's authority")?;
    let address = &token.enrol.address;
    let stream = dial(address)
        .await
        .with_context(|| format!("{address} cannot be reached: check the network and the proxy"))?;
    let mut stream = tls::connect(tls::enrolling(&authority)?, &token.enrol.name, stream)
        .await
        .with_context(|| format!("{address} is not the place that the token names"))?;
    let said =
        Said::Request { id: token.id.clone(), secret: token.secret.clone(), request: request.der().to_vec() };
    stream.write_all(&said.encode()).await?;
    stream.flush().await?;
    let certificate = match wire::read(&mut stream).await? {
        Some(Said::Issued { certificate }) => certificate,
        Some(Said::Refused { text }) => bail!(text),
        _ => bail!("{address} gave no answer: try again"),
    };
    let about = About {
        role: Role::Agent,
        municipality: token.municipality.clone(),
        source: Some(token.source.clone()),
        target: token.target.clone(),
        name: token.receive.name.clone(),
        address: Some(token.receive.address.clone()),
    };
    Identity::save(&dir, &about, &certificate, &key.serialize_pem(), &token.authority)?;
    Ok(about)
}
