//! What a person on the same machine asks a running agent, or tells it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::Output;
use crate::control;
use crate::core::calendar::{Calendar, Rate};
use crate::core::lease::TRICKLE;
use crate::core::line::{Line, Said};
use crate::identity::write_private;

/// Who is asked, when nobody answers.
pub(super) const WHO: &str = "agent";

/// What an agent is asked or told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Order {
    /// What it does.
    Status,
    /// What holds from now on; without it, what the command line said.
    Say { said: Option<Said> },
    /// The next round begins now.
    Round,
}

/// What persons said to this agent, and what they may see of it.
#[derive(Debug)]
pub(super) struct Person {
    path: PathBuf,
    line: watch::Sender<Line>,
    caps: watch::Sender<Option<u64>>,
    pub(super) round: Notify,
    output: Output,
    writing: Mutex<()>,
}

impl Person {
    /// With the cap of the command line, and what was said before.
    pub(super) fn load(state: &Path, cap: Option<Rate>, output: &Output) -> anyhow::Result<Self> {
        let path = state.join("said.json");
        let said: Option<Said> = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is not what this program writes: delete it", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let line = Line { calendar: Calendar::constant(cap), said };
        if line.is_paused(Timestamp::now()) {
            output.warning("a person has paused this agent: it waits for `conme-mover resume`");
        }
        let caps = watch::Sender::new(bytes(&line, Timestamp::now()));
        let line = watch::Sender::new(line);
        Ok(Self { path, line, caps, round: Notify::new(), output: output.clone(), writing: Mutex::default() })
    }

    /// What may be sent, in bytes each second, as it changes.
    pub(super) fn caps(&self) -> watch::Receiver<Option<u64>> {
        self.caps.subscribe()
    }

    /// Keeps what may be sent at what holds now, and answers.
    pub(super) async fn serve(self: Arc<Self>, listener: tokio::net::UnixListener) {
        let answer = |text: &[u8]| self.answer(text);
        tokio::join!(control::serve(&listener, answer, &self.output), self.keep());
    }

    async fn keep(&self) {
        let mut line = self.line.subscribe();
        loop {
            let now = Timestamp::now();
            let (cap, next) = {
                let line = line.borrow_and_update();
                (bytes(&line, now), line.next_change(now))
            };
            self.caps.send_if_modified(|old| std::mem::replace(old, cap) != cap);
            let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
            let ended = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is of this very value: it cannot be gone.
                _ = line.changed() => {}
                () = ended => {}
            }
        }
    }

    fn answer(&self, text: &[u8]) -> Value {
        match serde_json::from_slice(text) {
            Ok(Order::Status) => json!({ "ok": self.status() }),
            Ok(Order::Say { said }) => match self.say(said) {
                Ok(()) => json!({ "ok": self.status() }),
                Err(error) => json!({ "error": format!("{error:#}") }),
            },
            Ok(Order::Round) => {
                self.round.notify_one();
                json!({ "ok": self.status() })
            }
            Err(error) => json!({ "error": format!("not an order of this version: {error}") }),
        }
    }

    fn say(&self, said: Option<Said>) -> anyhow::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Written down before it holds: an agent that is started again stays paused.
        write_private(&self.path, &serde_json::to_vec(&said)?)?;
        self.line.send_modify(|line| line.said = said);
        Ok(())
    }

    fn status(&self) -> Value {
        let (line, now) = (self.line.borrow(), Timestamp::now());
        json!({
            "paused": line.is_paused(now),
            "cap": line.cap_at(now),
            "until": line.next_change(now),
            "last": self.output.last(),
        })
    }
}

/// Paused, it still says that it is there.
fn bytes(line: &Line, now: Timestamp) -> Option<u64> {
    line.cap_at(now).map(|cap| cap.content().max(TRICKLE))
}
