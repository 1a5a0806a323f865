//! Frames over a stream.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::core::frame::{BadFrame, Frame, HEADER, header};
use crate::core::pace::{Pace, QUANTUM};

/// A peer that says nothing for so long is gone; each end asks well before.
pub const SILENCE: Duration = Duration::from_secs(60);
/// After so much silence an agent asks whether the receiver is there.
pub const PING: Duration = Duration::from_secs(15);

/// Why a stream of frames ends.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// What came is no frame.
    #[error("the other end does not keep to the protocol: {0}")]
    Frame(#[from] BadFrame),
    /// Nothing came for too long.
    #[error("nothing was heard for {} s", SILENCE.as_secs())]
    Silence,
}

/// The next frame; `None` when the peer has closed the stream between two.
///
/// # Errors
/// When the connection breaks, is silent, or carries something else.
pub async fn read<F: Frame>(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<F>, WireError> {
    loop {
        let mut head = [0; HEADER];
        match timeout(SILENCE, stream.read_exact(&mut head)).await {
            Err(_) => return Err(WireError::Silence),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(_)) => {}
        }
        let head = header::<F>(head)?;
        let mut content = vec![0; head.len];
        let mut filled = 0;
        while filled < content.len() {
            match timeout(SILENCE, stream.read(&mut content[filled..])).await {
                Err(_) => return Err(WireError::Silence),
                Ok(Ok(0)) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                Ok(Ok(count)) => filled += count,
                Ok(Err(error)) => return Err(error.into()),
            }
        }
        if !head.skip {
            return Ok(Some(F::decode(head.kind, &content)?));
        }
    }
}

/// Writes what comes, at the pace that is allowed, until nothing more comes. When nothing comes for a while,
/// `ping` is sent, if there is one.
///
/// # Errors
/// When the connection breaks.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    mut frames: mpsc::Receiver<Vec<u8>>,
    mut rate: watch::Receiver<Option<u64>>,
    ping: Option<Vec<u8>>,
) -> Result<(), WireError> {
    let began = Instant::now();
    let mut pace = Pace::new(*rate.borrow_and_update());
    loop {
        let frame = match timeout(PING, frames.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) => match &ping {
                Some(ping) => ping.clone(),
                None => continue,
            },
        };
        for quantum in frame.chunks(QUANTUM) {
            loop {
                pace.set_rate(*rate.borrow_and_update(), began.elapsed());
                let before = pace;
                match pace.reserve(began.elapsed(), quantum.len()) {
                    Some(at) => tokio::select! {
                        () = sleep_until(began + at) => break,
                        // Another rate: what was reserved at the old one is given back.
                        Ok(()) = rate.changed() => pace = before,
                    },
                    // Everything is stopped. The receiver hears nothing, so it is asked whether it is there.
                    None => match timeout(PING, rate.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Ok(()),
                        Err(_) => {}
                    },
                }
            }
            timeout(SILENCE, stream.write_all(quantum)).await.map_err(|_| WireError::Silence)??;
        }
        timeout(SILENCE, stream.flush()).await.map_err(|_| WireError::Silence)??;
    }
    stream.shutdown().await?;
    Ok(())
}
