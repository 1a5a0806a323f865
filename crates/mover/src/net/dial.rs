//! How an agent gets out: the one place where it opens a connection.

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls;

/// Calls `host:port`.
///
/// # Errors
/// When there is no answer in time, or a refusal.
pub async fn dial(address: &str) -> std::io::Result<TcpStream> {
    let stream = timeout(tls::HANDSHAKE, TcpStream::connect(address))
        .await
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"))??;
    // Without this, the end of each frame would wait for an acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok(stream)
}
