//! What each command does.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use conme_testbed::{
    Cluster, CommandSpec, Condition, Dirs, Instance, Options, Progress, Signal, Tools, demo, ensure_mariadb,
    ensure_postgres,
    install::{self, Installation},
};

use super::args::{Args, Command, InstallArgs, Output, UpArgs};
use super::signals::{Outcome, interruptible};
use super::{logs, run, table};

/// The instance when none is named.
const DEFAULT_NAME: &str = "demo";

/// Exit code for an instance that does not run as it should.
const NOT_RUNNING: u8 = 3;

/// Runs a command and returns the exit code.
pub(crate) async fn run(args: Args) -> Result<u8> {
    let mut dirs = Dirs::from_env()?;
    if let Some(state) = args.state_dir {
        dirs.state = std::path::absolute(state)?;
    }
    if let Some(cache) = args.cache_dir {
        dirs.cache = std::path::absolute(cache)?;
    }
    let name = args.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
    let open = || Instance::open(&dirs, &name);
    let progress = Progress::stderr();

    match args.command {
        Command::Build => {
            let work = async {
                Tools::ensure(&dirs, &progress).await?;
                let postgres = ensure_postgres(&dirs, &progress).await?;
                let mariadb = ensure_mariadb(&dirs, &progress).await?;
                let cache = dirs.cache.display();
                progress.note(&format!(
                    "all programs are in {cache}; PostgreSQL is {postgres}, MariaDB is {mariadb}"
                ));
                Ok(0)
            };
            code(interruptible(work).await?)
        }
        Command::Up(up) => {
            let options = options(&dirs, &name, &up)?;
            let work = async {
                let instance = Instance::up(options, &progress).await?;
                progress
                    .note(&format!("use it with: eval \"$(conme-testbed --name {} env)\"", instance.name()));
                Ok(0)
            };
            code(interruptible(work).await?)
        }
        Command::Down { purge } => {
            conme_testbed::check_name(&name)?;
            match Instance::open(&dirs, &name) {
                Ok(instance) => instance.down(purge, &progress).await?,
                Err(_) if !dirs.instance(&name).join("state.json").exists() => {
                    progress.note(&format!("there is no instance \"{name}\": nothing to stop"));
                }
                Err(error) => return Err(error),
            }
            Ok(0)
        }
        Command::Status { output } => {
            let status = open()?.status().await?;
            print(&match output {
                Output::Table => table::status(&status),
                Output::Json => serde_json::to_string_pretty(&status)? + "\n",
                Output::Yaml => {
                    serde_saphyr::to_string(&status).context("cannot print the status as YAML")?
                }
            })?;
            Ok(if status.condition == Condition::Running { 0 } else { NOT_RUNNING })
        }
        Command::List { output } => {
            let mut all = Vec::new();
            for instance in Instance::list(&dirs)? {
                all.push(instance.status().await?);
            }
            print(&match output {
                Output::Table => table::list(&all),
                Output::Json => serde_json::to_string_pretty(&all)? + "\n",
                Output::Yaml => serde_saphyr::to_string(&all).context("cannot print the list as YAML")?,
            })?;
            Ok(0)
        }
        Command::Kubeconfig => {
            print(&format!("{}\n", open()?.kubeconfig()?.display()))?;
            Ok(0)
        }
        Command::Env => {
            let instance = open()?;
            let mut text = String::new();
            for (key, value) in run::variables(&instance)? {
                text.push_str(&format!("export {key}={}\n", quoted(&value)));
            }
            text.push_str(&format!(
                "export PATH={}:\"$PATH\"\n",
                quoted(&instance.bin_dir().to_string_lossy())
            ));
            print(&text)?;
            Ok(0)
        }
        Command::Logs { program, follow, tail } => {
            let instance = open()?;
            let work = logs::print(&instance, program.as_deref(), follow, tail);
            tokio::select! {
                result = work => result.map(|()| 0),
                _ = tokio::signal::ctrl_c() => Ok(0),
            }
        }
        Command::Start { program, env, command } => start(&open()?, &program, env, &command, &progress).await,
        Command::Stop { program, signal } => stop(&open()?, &program, signal, &progress).await,
        Command::Run { up, command } => {
            let name = match args.name {
                Some(name) => name,
                None => Options::unique_name("run")?,
            };
            // Most commands need none, and it costs some seconds.
            let up = UpArgs { mariadb: up.mariadb.or(Some(0)), ..up };
            let options = options(&dirs, &name, &up)?;
            run::run(options, &dirs, &command, &progress).await
        }
        Command::Install(args) => {
            let what = installation(args)?;
            let options = options(&dirs, &name, &UpArgs::default())?;
            let work = async {
                let instance = Instance::up(options, &progress).await?;
                install::install(&instance, &what, &progress).await?;
                Ok(0)
            };
            code(interruptible(work).await?)
        }
        Command::Demo(args) => {
            let begin = Instant::now();
            let what = installation(args)?;
            let options = options(&dirs, &name, &UpArgs::default())?;
            // The members use one, and this instance may have been made without.
            let options = Options { mariadb: options.mariadb.max(1), ..options };
            let work = async {
                let instance = Instance::up(options, &progress).await?;
                let shown = demo::demonstrate(&instance, &what, &progress).await?;
                let took = begin.elapsed().as_secs_f64();
                print(&format!(
                    "\n{}\nThe data centre runs; it took {took:.0} s.\n\n{}\n",
                    shown.table, shown.next
                ))?;
                Ok(0)
            };
            code(interruptible(work).await?)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "conme-testbed", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(0)
        }
    }
}

fn installation(args: InstallArgs) -> Result<Installation> {
    let mut what = Installation::from_checkout(args.checkout)?;
    what.operator_args = args.operator_args;
    Ok(what)
}

fn code(outcome: Outcome<u8>) -> Result<u8> {
    Ok(match outcome {
        Outcome::Done(code) => code,
        Outcome::Interrupted(number) => 128 + number,
    })
}

/// To the standard output; a reader that has had enough (such as `head`) is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// For a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What is asked for; the rest as the instance was last started, or the defaults.
fn options(dirs: &Dirs, name: &str, up: &UpArgs) -> Result<Options> {
    let mut options = match Instance::open(dirs, name) {
        Ok(instance) => instance.options()?,
        Err(_) => Options { mariadb: 1, ..Options::new(name) },
    };
    options.dirs = Some(dirs.clone());
    if up.existing {
        let kubeconfig = match &up.kubeconfig {
            Some(path) => path.clone(),
            None => std::env::var_os("KUBECONFIG")
                .and_then(|value| std::env::split_paths(&value).find(|path| path.is_file()))
                .context("--existing needs --kubeconfig FILE or the variable KUBECONFIG")?,
        };
        options.cluster = Cluster::Existing { kubeconfig: std::path::absolute(kubeconfig)? };
    } else if up.no_cluster {
        options.cluster = Cluster::None {};
    }
    let hosts = &mut options.hosts;
    hosts.count = up.nodes.unwrap_or(hosts.count);
    hosts.cores = up.cores.unwrap_or(hosts.cores);
    hosts.memory = up.memory.clone().unwrap_or_else(|| hosts.memory.clone());
    hosts.pods = up.pods.unwrap_or(hosts.pods);
    options.postgres = up.postgres.unwrap_or(options.postgres);
    options.mariadb = up.mariadb.unwrap_or(options.mariadb);
    if up.fast || up.durable {
        options.fast = up.fast;
    }
    Ok(options)
}

/// How long a program that was started is watched for an early end, such as a wrong argument.
const WATCHED: Duration = Duration::from_millis(500);

async fn start(
    instance: &Instance,
    program: &str,
    env: Vec<(String, String)>,
    command: &[String],
    progress: &Progress,
) -> Result<u8> {
    let Some((executable, arguments)) = command.split_first() else {
        if !env.is_empty() {
            bail!("--env needs a command: without one, the program is started as it was");
        }
        instance.start_program(program).await?;
        progress.note(&format!("{program} runs; its log is {}", instance.log(program).display()));
        return Ok(0);
    };
    let mut spec =
        CommandSpec::new(find_executable(executable)?, std::env::current_dir()?).args(arguments.to_vec());
    spec.inherit_env = true;
    spec.env = env.into_iter().collect();
    let process = instance.start(program, spec).await?;
    let begin = Instant::now();
    while begin.elapsed() < WATCHED {
        if !process.is_alive() {
            bail!("{program} ended right after its start; see {}", instance.log(program).display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    progress.note(&format!(
        "{program} runs as process {}; its log is {}",
        process.pid,
        instance.log(program).display()
    ));
    Ok(0)
}

async fn stop(instance: &Instance, program: &str, signal: Option<Signal>, progress: &Progress) -> Result<u8> {
    let ran = instance.is_alive(program)?;
    instance.stop_program_with(program, signal).await?;
    progress.note(&format!("{program} {}", if ran { "has ended" } else { "did not run" }));
    Ok(0)
}

/// Absolute, so that it can be started again from elsewhere.
fn find_executable(name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).with_context(|| format!("no such program: {name}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("there is no program \"{name}\" in PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_quote_is_safe_in_a_shell() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn what_is_not_asked_for_has_its_default() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { state: dir.path().into(), cache: dir.path().into() };
        let up = UpArgs { nodes: Some(3), durable: true, ..UpArgs::default() };
        let options = options(&dirs, "demo", &up).unwrap();
        assert_eq!(
            (options.hosts.count, options.hosts.cores, options.postgres, options.mariadb, options.fast),
            (3, 64, 1, 1, false)
        );
    }
}
