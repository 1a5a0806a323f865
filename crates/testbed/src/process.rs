//! Processes that outlive us: how they are started, recognised and ended.
//!
//! A pid alone is no identity, because the kernel gives it to somebody else later. A process is known by its pid
//! together with the moment of its start and the boot of the machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// In the environment of every process of an instance, with the id of the instance as its value: leftovers are
/// found by it even when the record of them is lost.
pub const MEMBER_VARIABLE: &str = "CONME_TESTBED_MEMBER";

/// The interval at which conditions are polled.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// The signals that the testbed sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
#[serde(rename_all = "UPPERCASE")]
pub enum Signal {
    /// Please end.
    Term,
    /// End at once.
    Kill,
    /// Interrupt; PostgreSQL calls it the fast shutdown.
    Int,
    /// Hang up; many programs read their configuration again.
    Hup,
    /// Freeze.
    Stop,
    /// Go on after `Stop`.
    Cont,
}

impl From<Signal> for nix::sys::signal::Signal {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Term => Self::SIGTERM,
            Signal::Kill => Self::SIGKILL,
            Signal::Int => Self::SIGINT,
            Signal::Hup => Self::SIGHUP,
            Signal::Stop => Self::SIGSTOP,
            Signal::Cont => Self::SIGCONT,
        }
    }
}

/// What `/proc/PID/stat` says, as far as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    group: i32,
    threads: u32,
    start_ticks: u64,
}

impl Stat {
    /// Its first thread may have ended while others are still at work, with all files and ports open.
    fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name of the program stands in parentheses and may itself hold spaces and parentheses.
    let rest = text.get(text.rfind(')')? + 1..)?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered as in proc(5), where the state is field 3.
    let field = |number: usize| fields.get(number - 3);
    Some(Stat {
        state: *field(3)?.as_bytes().first()?,
        group: field(5)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
    })
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?))
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// One process, never mistaken for a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since the boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The boot that the ticks count from.
    pub boot: String,
}

impl Identity {
    /// The process that has this pid now, also one that has ended but is not yet reaped.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, start_ticks: stat.start_ticks, boot: boot_id() })
    }

    /// The process that asks.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// True while this very process runs (or is stopped); false once it has ended, reaped or not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| {
            stat.start_ticks == self.start_ticks && !stat.has_ended() && boot_id() == self.boot
        })
    }

    /// Sends a signal to the process and, when it leads a group of its own, to the whole group.
    ///
    /// Returns whether it was still alive.
    ///
    /// # Errors
    /// When the operating system refuses, for example because the process belongs to another user.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(stat) = stat(self.pid).filter(|_| self.is_alive()) else { return Ok(false) };
        let pid = Pid::from_raw(self.pid);
        let signal = nix::sys::signal::Signal::from(signal);
        let sent = if stat.group == self.pid { killpg(pid, signal) } else { kill(pid, signal) };
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => bail!("cannot send {signal} to process {}: {error}", self.pid),
        }
    }
}

/// The user that a program runs as, when it is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// A program with everything that is needed to start it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Absolute path of the executable.
    pub program: PathBuf,
    /// Its arguments, without the program itself.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables set for it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether it also gets the environment of the process that starts it; else only `PATH` and `HOME`.
    #[serde(default)]
    pub inherit_env: bool,
    /// Its working directory.
    pub directory: PathBuf,
    /// Runs as another user (only root can do that).
    #[serde(default)]
    pub run_as: Option<RunAs>,
}

impl CommandSpec {
    /// A program with a clean environment.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            inherit_env: false,
            directory: directory.into(),
            run_as: None,
        }
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(key.into(), value.into());
        self
    }

    /// As a standard command, in a process group of its own and without input.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if !self.inherit_env {
            command.env_clear();
            command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &self.directory);
        }
        command.args(&self.args).envs(&self.env).current_dir(&self.directory);
        command.stdin(Stdio::null()).process_group(0);
        if let Some(user) = &self.run_as {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

/// Starts a program that goes on when we end; its output is appended to `log`.
pub(crate) fn spawn(spec: &CommandSpec, member: &str, log: &Path) -> Result<Identity> {
    let open =
        || -> std::io::Result<File> { OpenOptions::new().create(true).append(true).mode(0o600).open(log) };
    let output = open().with_context(|| format!("cannot write the log {}", log.display()))?;
    let errors = output.try_clone()?;
    let mut note = output.try_clone()?;
    let mut child = spec
        .command()
        .env(MEMBER_VARIABLE, member)
        .stdout(output)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {}", spec.program.display()))?;
    let pid = i32::try_from(child.id())?;
    // Before anybody reaps it: an ended child still has its entry in /proc.
    let identity = Identity::of(pid);
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            let _ = writeln!(note, "conme-testbed: process {pid} ended with {status}");
        }
    });
    identity.with_context(|| format!("process {pid} is not in /proc"))
}

/// One process to be ended, and how.
#[derive(Clone, Debug)]
pub(crate) struct Victim {
    pub label: String,
    pub identity: Identity,
    pub signal: Signal,
    pub patience: Duration,
}

/// Asks all of them to end, waits, and kills those that do not. Blocks; the labels of those killed are returned.
pub(crate) fn end(victims: &[Victim]) -> Result<Vec<String>> {
    let begin = Instant::now();
    for victim in victims {
        victim.identity.signal(victim.signal)?;
        if victim.signal != Signal::Kill {
            // A frozen process acts on nothing else.
            victim.identity.signal(Signal::Cont)?;
        }
    }
    let mut killed = Vec::new();
    let mut left: Vec<&Victim> = victims.iter().collect();
    loop {
        left.retain(|victim| victim.identity.is_alive());
        if left.is_empty() {
            return Ok(killed);
        }
        for victim in &left {
            let waited = begin.elapsed();
            if waited > victim.patience && !killed.contains(&victim.label) {
                victim.identity.signal(Signal::Kill)?;
                killed.push(victim.label.clone());
            }
            if waited > victim.patience + Duration::from_secs(10) {
                bail!("{} (process {}) does not end even when killed", victim.label, victim.identity.pid);
            }
        }
        std::thread::sleep(POLL);
    }
}

/// A process that belongs to an instance, found by looking at all processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Which process.
    pub identity: Identity,
    /// Name of the program, as the kernel knows it.
    pub program: String,
}

/// All processes that carry the mark of the instance, or are PostgreSQL working in one of its data directories
/// (PostgreSQL overwrites its environment with its title, so that the mark is lost). An empty mark is carried by none.
#[must_use]
pub fn members(member: &str, data_dirs: &[PathBuf]) -> Vec<Member> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let mark = format!("{MEMBER_VARIABLE}={member}");
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if u32::try_from(pid) == Ok(own) {
            continue;
        }
        let program =
            std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        let marked = || {
            std::fs::read(entry.path().join("environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|item| item == mark.as_bytes()))
        };
        let in_data = || {
            program == "postgres"
                && std::fs::read_link(entry.path().join("cwd"))
                    .is_ok_and(|cwd| data_dirs.iter().any(|dir| cwd.starts_with(dir)))
        };
        if !in_data() && (member.is_empty() || !marked()) {
            continue;
        }
        if let Some(identity) = Identity::of(pid).filter(Identity::is_alive) {
            found.push(Member { identity, program });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_an_awkward_name() {
        let text = "42 (a) b (c) S 1 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11";
        assert_eq!(parse_stat(text), Some(Stat { state: b'S', group: 42, threads: 1, start_ticks: 987_654 }));
        assert_eq!(parse_stat("42 (x S"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let stat = |state, threads| Stat { state, group: 42, threads, start_ticks: 1 };
        assert!(!stat(b'S', 4).has_ended());
        assert!(!stat(b'Z', 2).has_ended());
        assert!(stat(b'Z', 1).has_ended());
        assert!(stat(b'X', 0).has_ended());
    }

    #[test]
    fn another_process_with_the_same_pid_is_somebody_else() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        let earlier = Identity { start_ticks: own.start_ticks + 1, ..own.clone() };
        assert!(!earlier.is_alive());
        let other_boot = Identity { boot: "another".into(), ..own };
        assert!(!other_boot.is_alive());
        assert!(!other_boot.signal(Signal::Kill).unwrap(), "must not be sent");
    }

    #[test]
    fn a_program_is_started_marked_found_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let member = crate::dirs::random_hex(8).unwrap();
        // The grandchild shows that the whole group is ended.
        let spec = CommandSpec::new("/bin/sh", dir.path()).args(["-c", "echo hello; sleep 600 & wait"]);
        let identity = spawn(&spec, &member, &log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while members(&member, &[]).len() < 2 {
            assert!(Instant::now() < deadline, "{:?}", members(&member, &[]));
            std::thread::sleep(POLL);
        }
        assert!(identity.is_alive());
        let victim = Victim {
            label: "sh".into(),
            identity: identity.clone(),
            signal: Signal::Term,
            patience: Duration::from_secs(5),
        };
        assert_eq!(end(&[victim]).unwrap(), Vec::<String>::new());
        assert!(!identity.is_alive());
        while !members(&member, &[]).is_empty() {
            assert!(Instant::now() < deadline, "{:?}", members(&member, &[]));
            std::thread::sleep(POLL);
        }
        assert!(std::fs::read_to_string(&log).unwrap().starts_with("hello\n"));
    }

    #[test]
    fn who_does_not_listen_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let member = crate::dirs::random_hex(8).unwrap();
        let spec = CommandSpec::new("/bin/sh", dir.path())
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
        let identity = spawn(&spec, &member, &log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !std::fs::read_to_string(&log).unwrap().contains("ready") {
            assert!(Instant::now() < deadline);
            std::thread::sleep(POLL);
        }
        let victim = Victim {
            label: "deaf".into(),
            identity: identity.clone(),
            signal: Signal::Term,
            patience: Duration::from_millis(100),
        };
        assert_eq!(end(&[victim]).unwrap(), ["deaf"]);
        assert!(!identity.is_alive());
    }
}
