//! Just enough of an HTTPS client to ask the API server whether it is ready and to create hosts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Speaks to one server on 127.0.0.1 with a client certificate.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    tls: Arc<ClientConfig>,
    port: u16,
}

/// What the server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).context("the API server has not answered in JSON")
    }
}

impl Client {
    pub fn new(port: u16, ca: &Path, cert: &Path, key: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(
            CertificateDer::from_pem_file(ca).with_context(|| format!("cannot read {}", ca.display()))?,
        )?;
        let chain = vec![
            CertificateDer::from_pem_file(cert).with_context(|| format!("cannot read {}", cert.display()))?,
        ];
        let key =
            PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {}", key.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Self { tls: Arc::new(tls), port })
    }

    /// One request on a connection of its own.
    pub async fn request(
        &self,
        method: &'static str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<Answer> {
        let (client, path) = (self.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || client.blocking(method, &path, body.as_ref())).await?
    }

    fn blocking(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> Result<Answer> {
        let socket = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, self.port).into(), TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        socket.set_nodelay(true)?;
        let server = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.tls), server)?, socket);
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        // HTTP/1.0, so that the answer is never chunked and ends with the connection.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nUser-Agent: conme-testbed\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body)?;
        stream.flush()?;
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        parse(&raw)
    }
}

fn parse(raw: &[u8]) -> Result<Answer> {
    let end = raw
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer has no end of its head")?;
    let (head, body) = raw.split_at(end);
    let status = String::from_utf8_lossy(head)
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("the answer has no status")?;
    let body = body.get(4..).unwrap_or_default().to_vec();
    if (100..600).contains(&status) {
        Ok(Answer { status, body })
    } else {
        bail!("the answer has the status {status}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = parse(b"HTTP/1.0 201 Created\r\nA: b\r\n\r\n{\"a\":1}\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.json().unwrap()["a"].as_i64()), (201, Some(1)));
        assert!(parse(b"HTTP/1.0 200 OK\r\n").is_err());
        assert!(parse(b"nonsense\r\n\r\n").is_err());
    }
}
