//! Single programs of a running instance: the operator beside it, and faults for the tests.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use super::Instance;
use crate::dirs::check_name;
use crate::helper::tail;
use crate::ports;
use crate::process::{self, CommandSpec, Identity, POLL, Signal, end, members};
use crate::progress::Progress;
use crate::state::{Program, ProgramKind};
use crate::{mariadb, postgres};

/// How long a program may take until it is ready, on a machine that is busy with something else.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(120);

impl Instance {
    /// Starts a further program as part of the instance, for example the operator. It gets `KUBECONFIG` and the
    /// programs of the instance in `PATH` unless `command` sets them; its output goes to a log. `down` stops it.
    ///
    /// One that has run under that name and ended is replaced. Does not wait until it is of use: only the program
    /// itself knows when that is.
    ///
    /// # Errors
    /// When a program with that name runs, or it cannot be started.
    pub async fn start(&self, name: &str, mut command: CommandSpec) -> Result<Identity> {
        check_name(name)?;
        let _lock = self.lock(&Progress::silent()).await?;
        let mut state = self.state()?;
        if let Some(known) = state.program(name) {
            if known.kind != ProgramKind::Extra {
                bail!("\"{name}\" is a part of the instance itself: choose another name");
            }
            if known.is_alive() {
                bail!("\"{name}\" runs already: stop it first");
            }
        }
        if let Ok(kubeconfig) = self.kubeconfig() {
            command
                .env
                .entry("KUBECONFIG".into())
                .or_insert_with(|| kubeconfig.to_string_lossy().into_owned());
        }
        let path = command.inherit_env.then(|| std::env::var("PATH").ok()).flatten();
        let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        command.env.entry("PATH".into()).or_insert_with(|| format!("{}:{path}", self.bin_dir().display()));
        let mut program = Program::new(name, ProgramKind::Extra, command);
        let process = process::spawn(&program.command, &state.id, &self.log(name))?;
        program.process = Some(process.clone());
        program.started = Some(Timestamp::now());
        state.put(program);
        state.save(&self.layout().state())?;
        Ok(process)
    }

    /// Starts a program again with the command and port that it had, and waits until it is ready. Does nothing when
    /// it runs.
    ///
    /// # Errors
    /// When the instance has no such program, or it does not get ready.
    pub async fn start_program(&self, name: &str) -> Result<()> {
        let log = self.log(name);
        let log_from = log_length(&log);
        let program = {
            let _lock = self.lock(&Progress::silent()).await?;
            let mut state = self.state()?;
            let id = state.id.clone();
            let program = state.program_mut(name)?;
            if !program.is_alive() {
                if program.kind == ProgramKind::Postgres {
                    // The children of a killed server hold its shared memory for a moment.
                    wait_for_children(program).await?;
                    let _ = std::fs::remove_file(program.command.directory.join("postmaster.pid"));
                }
                program.process = Some(process::spawn(&program.command, &id, &log)?);
                program.started = Some(Timestamp::now());
            }
            let program = program.clone();
            state.save(&self.layout().state())?;
            program
        };
        self.wait_until_ready(&program, log_from).await
    }

    /// Stops one program in its own way and waits until it has ended; [`Instance::start_program`] brings it back on
    /// the same port. Does nothing when it does not run.
    ///
    /// # Errors
    /// When the instance has no such program, or it does not end.
    pub async fn stop_program(&self, name: &str) -> Result<()> {
        self.stop_program_with(name, None).await
    }

    /// As [`Instance::stop_program`], with a signal of choice; who does not end in time is killed.
    ///
    /// # Errors
    /// As for [`Instance::stop_program`].
    pub async fn stop_program_with(&self, name: &str, signal: Option<Signal>) -> Result<()> {
        let _lock = self.lock(&Progress::silent()).await?;
        let mut state = self.state()?;
        let program = state.program_mut(name)?;
        if let Some(mut victim) = program.victim() {
            victim.signal = signal.unwrap_or(victim.signal);
            tokio::task::spawn_blocking(move || end(&[victim])).await??;
        }
        program.process = None;
        let program = program.clone();
        state.save(&self.layout().state())?;
        wait_for_children(&program).await
    }

    /// Sends a signal to a program, as a fault would: the instance still expects it to run. After
    /// [`Signal::Kill`] waits until it has ended. Returns whether it was alive.
    ///
    /// # Errors
    /// When the instance has no such program or the signal cannot be sent.
    pub async fn kill(&self, name: &str, signal: Signal) -> Result<bool> {
        let mut state = self.state()?;
        let Some(process) = state.program_mut(name)?.process.clone() else { return Ok(false) };
        let sent = process.signal(signal)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while signal == Signal::Kill && process.is_alive() {
            if Instant::now() > deadline {
                bail!("{name} (process {}) does not end even when killed", process.pid);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(sent)
    }

    /// Whether a program runs now.
    ///
    /// # Errors
    /// When the instance has no such program.
    pub fn is_alive(&self, name: &str) -> Result<bool> {
        Ok(self.state()?.program_mut(name)?.is_alive())
    }

    /// Waits until a program that was just started is of use; `log_from` is where its log began.
    pub(super) async fn wait_until_ready(&self, program: &Program, log_from: u64) -> Result<()> {
        let begin = Instant::now();
        loop {
            let ready = match program.kind {
                ProgramKind::ApiServer => self.api_is_ready(program.port).await,
                ProgramKind::Etcd => program.port.is_some_and(ports::answers),
                ProgramKind::Postgres => postgres::server::is_ready(&program.command.directory),
                ProgramKind::Mariadb => {
                    let data = &program.command.directory;
                    mariadb::server::is_ready(data, program.process.as_ref(), program.port).await
                }
                // Their work shows whether they do it.
                ProgramKind::Worker | ProgramKind::Extra => true,
            };
            let problem = if !program.is_alive() {
                "ended right after its start".to_owned()
            } else if ready {
                return Ok(());
            } else if begin.elapsed() > READY_LIMIT {
                format!("is not ready after {} s", READY_LIMIT.as_secs())
            } else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            let log = self.log(&program.name);
            let end = tail(&log_since(&log, log_from).unwrap_or_default(), 15);
            bail!("{} {problem}; the end of its log {}:\n{end}", program.name, log.display());
        }
    }
}

pub(super) fn log_length(log: &Path) -> u64 {
    std::fs::metadata(log).map(|meta| meta.len()).unwrap_or(0)
}

/// What was written to a log since it had that length.
pub(super) fn log_since(log: &Path, from: u64) -> Result<String> {
    let mut file = std::fs::File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Waits until nobody works in the data directory of a PostgreSQL server that has ended.
async fn wait_for_children(program: &Program) -> Result<()> {
    if program.kind != ProgramKind::Postgres || program.is_alive() {
        return Ok(());
    }
    let data = &program.command.directory;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !members("", std::slice::from_ref(data)).is_empty() {
        if Instant::now() > deadline {
            bail!("processes of {} still work in {}", program.name, data.display());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
