//! What an agent does with its rounds: one, or one after another, or the last one with a cut-over.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::person::Person;
use super::{INCOMPLETE, Output, REOPENED, STUCK};
use crate::core::cutover::{Hooks, Phase};
use crate::core::frame::RoundKind;
use crate::core::rounds::Past;
use crate::hooks::CutOver;
use crate::identity::{Identity, write_private};
use crate::net::agent::{self, AgentError, Settings, Told};

/// What is to be done.
pub(super) enum Wish {
    /// One round, and a proof after it when that is wanted.
    One { prove: bool },
    /// Round after round, until ended.
    Rounds { every: Option<Duration> },
    /// The last round, with these hooks; the source may stand still for so long.
    CutOver { hooks: Hooks, within: Duration },
}

/// What all rounds need.
pub(super) struct Mover<'a> {
    pub(super) settings: &'a Settings,
    pub(super) identity: &'a Arc<Identity>,
    pub(super) rate: &'a watch::Receiver<Option<u64>>,
    pub(super) output: &'a Output,
    pub(super) person: &'a Person,
}

impl Mover<'_> {
    pub(super) async fn go(&self, wish: Wish) -> anyhow::Result<ExitCode> {
        match wish {
            Wish::One { prove } => {
                let copied = self.copy().await?;
                if prove {
                    // A proof has read everything, or it does not come to its end.
                    self.prove().await?;
                    return Ok(ExitCode::SUCCESS);
                }
                let lacking = copied.tree.as_ref().map_or(0, |tree| tree.tally.lacking);
                Ok(if lacking > 0 { ExitCode::from(INCOMPLETE) } else { ExitCode::SUCCESS })
            }
            Wish::Rounds { every } => self.rounds(every).await,
            Wish::CutOver { hooks, within } => self.cut_over(&hooks, within).await,
        }
    }

    async fn prove(&self) -> Result<agent::Round, AgentError> {
        let proven = self.round(RoundKind::Proof).await?;
        self.output.round_over(RoundKind::Proof, &proven);
        Ok(proven)
    }

    async fn round(&self, kind: RoundKind) -> Result<agent::Round, AgentError> {
        agent::round(self.settings, self.identity, kind, self.rate, self.output).await
    }

    /// A copy, and what it says about how much changes.
    async fn copy(&self) -> anyhow::Result<agent::Round> {
        let path = self.settings.state.join("rounds.json");
        let past = past(&path)?;
        self.settings.told.send_modify(|told| told.churn = past.and_then(|past| past.churn));
        let began = Timestamp::now();
        let copied = self.round(RoundKind::Copy).await?;
        self.output.round_over(RoundKind::Copy, &copied);
        let now = Past::after(past, began, Timestamp::now(), copied.wire);
        write_private(&path, &serde_json::to_vec_pretty(&now)?)?;
        self.settings.told.send_replace(Told { left: Some(0), churn: now.churn });
        Ok(copied)
    }

    async fn rounds(&self, every: Option<Duration>) -> anyhow::Result<ExitCode> {
        let mut asked = signal(SignalKind::user_defined1())?;
        let mut ended = Ended::new()?;
        let path = self.settings.state.join("rounds.json");
        loop {
            if let Some(past) = past(&path)? {
                let now = Timestamp::now();
                let next = past.next(every);
                if next > now {
                    self.output.next_round(next, past.churn);
                    let pause = Duration::try_from(next.duration_since(now)).unwrap_or_default();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.person.round.notified() => self.output.note("a round was asked for: it begins now"),
                        _ = asked.recv() => self.output.note("a round was asked for: it begins now"),
                        () = ended.wait() => return Ok(ExitCode::SUCCESS),
                    }
                }
            }
            tokio::select! {
                copied = self.copy() => drop(copied?),
                // What was acknowledged stays so: the round goes on when the agent is started again.
                () = ended.wait() => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    async fn cut_over(&self, hooks: &Hooks, within: Duration) -> anyhow::Result<ExitCode> {
        let mut ended = Ended::new()?;
        // What changed until now goes while people still work, so that the source stands still the shorter.
        let copied = tokio::select! {
            copied = self.copy() => copied?,
            () = ended.wait() => bail!("ended before anything was stopped: the source works as before"),
        };
        if copied.tree.as_ref().is_some_and(|tree| tree.tally.lacking > 0) {
            bail!("something could not be read, see above: nothing was stopped");
        }
        let mut cut = CutOver::new(&self.settings.state, self.output);
        let shut = async {
            for hook in hooks.iter() {
                cut.run(hook).await?;
            }
            rustix::fs::sync();
            let proven = self.prove().await?;
            if hooks.iter().any(|hook| hook.phase == Phase::Freeze) {
                cut.undo(true).await?;
            }
            anyhow::Ok(proven.round)
        };
        let shut = tokio::select! {
            shut = tokio::time::timeout(within, shut) => match shut {
                Ok(shut) => shut,
                Err(_) => Err(anyhow::anyhow!("not done within {} s", within.as_secs())),
            },
            () = ended.wait() => Err(anyhow::anyhow!("this program was asked to end")),
        };
        // Not remembered is not committed.
        let committed = shut.and_then(|round| cut.commit(round).map(|()| round).map_err(Into::into));
        match committed {
            Ok(round) => {
                self.output.cut_over(round, &self.settings.state);
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                self.output.error(&error.context("the cut-over fails; what was begun is taken back"));
                Ok(reopen(&mut cut, self.output).await)
            }
        }
    }
}

/// Opens the source again, and says with which code the program ends.
pub(super) async fn reopen(cut: &mut CutOver, output: &Output) -> ExitCode {
    match cut.undo(false).await {
        Ok(()) => {
            output.reopened();
            ExitCode::from(REOPENED)
        }
        Err(error) => {
            output.error(&error.into());
            ExitCode::from(STUCK)
        }
    }
}

/// Takes back what a cut-over left that was cut off, before anything else is done.
pub(super) async fn recover(state: &Path, output: &Output) -> anyhow::Result<Option<ExitCode>> {
    let Some(mut cut) = CutOver::load(state, output)? else { return Ok(None) };
    if let Some(at) = cut.journal().committed {
        bail!(
            "this server was cut over at {at}: its copy may be in use, and would be written over. To work with this \
             server again, `conme-mover reopen` opens it"
        );
    }
    output.warning("a cut-over was cut off before it was done: what it had begun is taken back");
    let code = reopen(&mut cut, output).await;
    Ok((code == ExitCode::from(STUCK)).then_some(code))
}

/// A person opens the source again.
pub(super) async fn reopen_source(state: &Path, output: &Output) -> anyhow::Result<ExitCode> {
    let _held = crate::identity::lock(state)?;
    let Some(mut cut) = CutOver::load(state, output)? else {
        bail!("{} remembers no cut-over: there is nothing to open again", state.display());
    };
    let code = reopen(&mut cut, output).await;
    Ok(if code == ExitCode::from(REOPENED) { ExitCode::SUCCESS } else { code })
}

fn past(path: &Path) -> anyhow::Result<Option<Past>> {
    match std::fs::read(path) {
        Ok(text) => {
            let form = || format!("{} is not what this program writes: delete it", path.display());
            Ok(Some(serde_json::from_slice(&text).with_context(form)?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Somebody wants this program to end.
struct Ended([tokio::signal::unix::Signal; 3]);

impl Ended {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn wait(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
