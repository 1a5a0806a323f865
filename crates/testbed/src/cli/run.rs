//! `run`: an instance for the time of one command.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use conme_testbed::{Dirs, Engine, Ephemeral, Identity, Instance, Options, Progress, Signal};

use super::signals::{Outcome, Signals, interruptible};

/// How long the command may take to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) async fn run(
    options: Options,
    dirs: &Dirs,
    command: &[String],
    progress: &Progress,
) -> Result<u8> {
    let instance = match interruptible(Ephemeral::up(options, progress)).await? {
        Outcome::Done(instance) => instance,
        Outcome::Interrupted(number) => return Ok(128 + number),
    };
    let status = attend(&instance, dirs, command).await;
    // Also when the command could not be started. Interrupting it again only repeats what is under way.
    let removed = instance.down(true, progress).await;
    let code = exit_code(status?);
    removed?;
    Ok(code)
}

/// Runs the command and hands on what asks it to end.
async fn attend(instance: &Instance, dirs: &Dirs, command: &[String]) -> Result<ExitStatus> {
    let (program, arguments) = command.split_first().context("there is no command to run")?;
    let mut signals = Signals::listen()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .envs(variables(instance)?)
        .env("CONME_TESTBED_NAME", instance.name())
        .env("CONME_STATE_DIR", &dirs.state)
        .env("CONME_CACHE_DIR", &dirs.cache)
        .env("PATH", format!("{}:{path}", instance.bin_dir().display()))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let process = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Identity::of);
    let number = tokio::select! {
        status = child.wait() => return status.context("lost the command"),
        number = signals.next() => number,
    };
    // A Ctrl-C at the terminal has reached the command too; being told twice does no harm.
    let signal = if number == 2 { Signal::Int } else { Signal::Term };
    if let Some(process) = process {
        process.signal(signal)?;
    }
    if let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await {
        return status.context("lost the command");
    }
    child.start_kill().context("cannot kill the command")?;
    child.wait().await.context("lost the command")
}

/// What makes the usual clients use the instance, apart from `PATH`.
pub(crate) fn variables(instance: &Instance) -> Result<Vec<(&'static str, String)>> {
    let mut variables = Vec::new();
    if let Ok(kubeconfig) = instance.kubeconfig() {
        variables.push(("KUBECONFIG", kubeconfig.to_string_lossy().into_owned()));
    }
    let databases = instance.databases()?;
    if databases.iter().any(|database| database.engine == Engine::Mariadb) {
        variables.push(("MYSQL_HOME", instance.mysql_home().to_string_lossy().into_owned()));
    }
    if let Some(database) = databases.iter().find(|database| database.engine == Engine::Postgresql) {
        variables.push(("PGPASSFILE", instance.pgpass().to_string_lossy().into_owned()));
        variables.push(("PGSSLROOTCERT", database.ca_file.to_string_lossy().into_owned()));
    }
    Ok(variables)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_command_as_a_shell_gives_it() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
    }
}
