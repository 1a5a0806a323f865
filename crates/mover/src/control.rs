//! How a person on the same machine asks a running program, or tells it something: over a socket that only the owner of
//! its state directory can reach.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::cli::Output;

/// Bytes of an order at most.
const MAX_ORDER: u64 = 4096;
/// Bytes of an answer at most.
const MAX_ANSWER: u64 = 16 << 20;
/// An order that takes longer is given up.
const TIME: Duration = Duration::from_secs(10);

fn path(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Listens in a state directory that this process holds alone.
pub(crate) fn listen(state: &Path) -> anyhow::Result<UnixListener> {
    let path = path(state);
    // What is there was left by a program that was killed: this one holds the directory.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers one order after another.
pub(crate) async fn serve(listener: &UnixListener, answers: impl Fn(&[u8]) -> Value, output: &Output) {
    loop {
        let answered = async {
            let (mut stream, _) = listener.accept().await?;
            timeout(TIME, answer(&mut stream, &answers)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
        };
        if let Err(error) = answered.await {
            output.warning(&format!("an order was not answered: {error}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer(stream: &mut UnixStream, answers: impl Fn(&[u8]) -> Value) -> std::io::Result<()> {
    let mut text = Vec::new();
    stream.take(MAX_ORDER).read_to_end(&mut text).await?;
    stream.write_all(answers(&text).to_string().as_bytes()).await?;
    stream.shutdown().await
}

/// Gives an order to the program that works in this state directory.
///
/// # Errors
/// When none does, or it refuses.
pub(crate) async fn ask(state: &Path, who: &str, order: &impl Serialize) -> anyhow::Result<Value> {
    let path = path(state);
    let asked = async {
        let mut stream = UnixStream::connect(&path).await.with_context(|| {
            format!("no {who} answers at {}: does it run, and is --state its directory?", path.display())
        })?;
        stream.write_all(&serde_json::to_vec(order)?).await?;
        stream.shutdown().await?;
        let mut text = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut text).await?;
        anyhow::Ok(serde_json::from_slice::<Value>(&text).context("the answer")?)
    };
    let mut answer = timeout(TIME, asked).await.with_context(|| format!("the {who} does not answer"))??;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer["ok"].take()),
    }
}
