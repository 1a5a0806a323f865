//! How a person on the same machine asks the gateway, or tells it something: over a socket that only the owner of the
//! state directory can reach.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::shared::Shared;
use crate::core::line::Said;

/// Bytes of an order at most.
const MAX_ORDER: u64 = 4096;
/// Bytes of an answer at most.
const MAX_ANSWER: u64 = 16 << 20;
/// An order that takes longer is given up.
const TIME: Duration = Duration::from_secs(10);

/// What a gateway is asked or told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Order {
    /// Everything that it knows.
    Status,
    /// What holds for a site from now on; without `said`, its calendar.
    Say {
        /// The site.
        site: String,
        /// What.
        said: Option<Said>,
    },
}

fn path(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Listens in a state directory that this process holds alone.
pub(super) fn listen(state: &Path) -> anyhow::Result<UnixListener> {
    let path = path(state);
    // What is there was left by a gateway that was killed: this one holds the directory.
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
pub(super) async fn serve(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let answered = async {
            let (mut stream, _) = listener.accept().await?;
            timeout(TIME, answer(&mut stream, shared)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
        };
        if let Err(error) = answered.await {
            shared.output.warning(&format!("an order was not answered: {error}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer(stream: &mut UnixStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let mut text = Vec::new();
    stream.take(MAX_ORDER).read_to_end(&mut text).await?;
    let answer = match serde_json::from_slice(&text) {
        Ok(Order::Status) => json!({ "ok": shared.status() }),
        Ok(Order::Say { site, said }) => match shared.say(&site, said) {
            Ok(status) => json!({ "ok": status }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        },
        Err(error) => json!({ "error": format!("not an order of this version: {error}") }),
    };
    stream.write_all(answer.to_string().as_bytes()).await?;
    stream.shutdown().await
}

/// Gives an order to the gateway that works in this state directory.
///
/// # Errors
/// When none does, or it refuses.
pub async fn ask(state: &Path, order: &Order) -> anyhow::Result<Value> {
    let path = path(state);
    let asked = async {
        let mut stream = UnixStream::connect(&path).await.with_context(|| {
            format!("no gateway answers at {}: is --state that of `conme-mover gateway run`?", path.display())
        })?;
        stream.write_all(&serde_json::to_vec(order)?).await?;
        stream.shutdown().await?;
        let mut text = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut text).await?;
        anyhow::Ok(serde_json::from_slice::<Value>(&text).context("the gateway's answer")?)
    };
    let mut answer = timeout(TIME, asked).await.context("the gateway does not answer")??;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer["ok"].take()),
    }
}
