//! Stopping an instance, in the order in which its programs can bear it, and proving that nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Instance;
use crate::lock::Lock;
use crate::process::{Member, POLL, Signal, Victim, end, members};
use crate::progress::{Progress, complain};
use crate::state::{Program, ProgramKind, State};
use crate::user;

/// What a stop has done.
#[derive(Debug, Default)]
pub(super) struct Stopped {
    /// How many programs ran.
    pub programs: usize,
    /// Those that had to be killed.
    pub killed: Vec<String>,
}

impl Instance {
    /// Stops everything and, with `purge`, removes all data. Does nothing when there is no such instance.
    ///
    /// An existing cluster is left alone.
    ///
    /// # Errors
    /// When a process cannot be ended or a file not be removed.
    pub async fn down(&self, purge: bool, progress: &Progress) -> Result<()> {
        if !self.layout().state().exists() {
            progress.note(&format!("there is no instance \"{}\": nothing to stop", self.name));
            return Ok(());
        }
        let lock = self.lock(progress).await?;
        let step = progress.step(&format!("stopping \"{}\"", self.name));
        let instance = self.clone();
        let stopped = tokio::task::spawn_blocking(move || stop_everything(&instance)).await??;
        let detail = match (stopped.programs, stopped.killed.as_slice()) {
            (0, _) => "nothing ran".to_owned(),
            (count, []) => format!("{count} programs ended, no process is left"),
            (count, killed) => {
                format!("{count} programs ended ({} killed), no process is left", killed.join(", "))
            }
        };
        step.done(&detail);
        if purge {
            let step = progress.step("removing its data");
            self.remove_files()?;
            step.done("");
            lock.remove();
        }
        Ok(())
    }

    /// The processes of this instance that run now, whether recorded or not.
    ///
    /// # Errors
    /// When the instance is gone.
    pub fn members(&self) -> Result<Vec<Member>> {
        let state = self.state()?;
        Ok(members(&state.id, &state.data_dirs()))
    }

    fn remove_files(&self) -> Result<()> {
        let Some(state) = State::load(&self.layout().state())? else { return Ok(()) };
        let dir = self.dir();
        if let Some(home) = &state.servers {
            user::remove_home(&home.dir, &dir)?;
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }

    /// Stops and removes, blocking: for `Drop`.
    pub(super) fn purge_blocking(&self) -> Result<()> {
        if !self.layout().state().exists() {
            return Ok(());
        }
        // Whoever holds the lock for so long hangs, and the instance is to go in any case.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut lock = None;
        while lock.is_none() && Instant::now() < deadline {
            lock = Lock::attempt(&self.layout().lock())?;
            if lock.is_none() {
                std::thread::sleep(POLL);
            }
        }
        stop_everything(self)?;
        self.remove_files()?;
        if let Some(lock) = lock {
            lock.remove();
        }
        Ok(())
    }
}

/// Stops all programs of the instance, then whatever else carries its mark. Blocks for seconds.
pub(super) fn stop_everything(instance: &Instance) -> Result<Stopped> {
    let path = instance.layout().state();
    let mut stopped = Stopped::default();
    let Some(mut state) = State::load(&path)? else { return Ok(stopped) };
    for kind in ProgramKind::ORDER {
        let alive = |program: &&Program| program.kind == kind && program.is_alive();
        let victims: Vec<Victim> = state.programs.iter().filter(alive).filter_map(Program::victim).collect();
        stopped.programs += victims.len();
        stopped.killed.extend(end(&victims)?);
    }
    sweep(&state)?;
    for program in &mut state.programs {
        program.process = None;
    }
    state.ready = false;
    state.save(&path)?;
    Ok(stopped)
}

/// Ends what no record knows: children of further programs, or what a killed `up` had just started.
fn sweep(state: &State) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = members(&state.id, &state.data_dirs());
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("these processes do not end: {left:?}");
        }
        let victims: Vec<Victim> = left
            .into_iter()
            .map(|member| Victim {
                label: member.program,
                identity: member.identity,
                signal: Signal::Term,
                patience: Duration::from_secs(3),
            })
            .collect();
        end(&victims)?;
    }
}

/// Stops what `up` has started unless it came to its end: also when its future is dropped by Ctrl-C.
pub(super) struct Rollback(Option<Instance>);

impl Rollback {
    pub fn new(instance: &Instance) -> Self {
        Self(Some(instance.clone()))
    }

    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        if let Some(instance) = &self.0
            && let Err(error) = stop_everything(instance)
        {
            complain(&format!("cannot stop what was started of \"{}\": {error:#}", instance.name));
        }
    }
}
