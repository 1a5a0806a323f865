//! Two network namespaces with a shaped link between them, and a relay that adds delay.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;

/// The source's address on the link.
pub const SOURCE: &str = "10.231.0.1";
/// The target's.
pub const TARGET: &str = "10.231.0.2";

/// How namespaces begin; the number of the process that made them comes next.
const NAMED: &str = "conme-bench-";

/// An end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The local server.
    Source,
    /// The data centre.
    Target,
}

/// Bytes that have gone over the link, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wire {
    /// From the source to the target.
    pub there: u64,
    /// From the target to the source.
    pub back: u64,
}

impl Wire {
    /// Both directions.
    pub fn both(self) -> u64 {
        self.there + self.back
    }

    /// What has gone since `before`.
    pub fn since(self, before: Self) -> Self {
        Self { there: self.there - before.there, back: self.back - before.back }
    }
}

/// Two namespaces and the link between them; gone when dropped.
#[derive(Debug)]
pub struct Link {
    name: String,
    /// The counts of the source's end. Open, so that asking costs no process, whose time would be taken for the peer's.
    counts: Option<File>,
}

impl Link {
    /// Makes it, at `mbit` megabits a second in both directions, or unshaped.
    ///
    /// # Errors
    /// Without root.
    pub fn up(mbit: Option<u32>) -> Result<Self> {
        let mut link = Self { name: format!("{NAMED}{}", std::process::id()), counts: None };
        for end in [End::Source, End::Target] {
            ip(&["netns", "add", &link.namespace(end)])?;
        }
        let (source, target) = (link.namespace(End::Source), link.namespace(End::Target));
        let pair =
            ["link", "add", "bench", "netns", &source, "type", "veth", "peer", "name", "bench", "netns"];
        ip(&[&pair[..], &[&target]].concat())?;
        for (end, address) in [(End::Source, SOURCE), (End::Target, TARGET)] {
            let name = link.namespace(end);
            ip(&["-n", &name, "addr", "add", &format!("{address}/24"), "dev", "bench"])?;
            ip(&["-n", &name, "link", "set", "bench", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            if let Some(mbit) = mbit {
                // Enough for a tenth of a second's hundredth part, and never less than a few packets.
                let burst = (mbit * 125).max(10_000).to_string();
                let rate = format!("{mbit}mbit");
                let shape = ["qdisc", "add", "dev", "bench", "root", "tbf", "rate", &rate, "burst", &burst];
                let mut tc = Command::new("tc");
                tc.args(["-n", &name]).args(shape).args(["latency", "100ms"]);
                run(&mut tc)?;
            }
        }
        let open = || Ok(File::open("/proc/thread-self/net/dev")?);
        link.counts = Some(link.inside(End::Source, open)?);
        Ok(link)
    }

    /// The namespace of an end.
    pub fn namespace(&self, end: End) -> String {
        format!("{}-{}", self.name, if end == End::Source { "source" } else { "target" })
    }

    /// A program that will run at this end.
    pub fn command(&self, end: End, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(end)]).arg(program).stdin(Stdio::null());
        command
    }

    /// Does something on a thread that is in the namespace of an end.
    fn inside<T: Send>(&self, end: End, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.file(end))?;
        let enter = || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(anyhow::Error::from);
        let on_thread = thread::scope(|scope| scope.spawn(|| enter().and_then(|()| what())).join());
        on_thread.map_err(|_| anyhow!("the thread in the namespace has panicked"))?
    }

    /// The file that stands for the namespace of an end.
    pub fn file(&self, end: End) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(end))
    }

    /// Bytes that have gone over the link since it is there.
    ///
    /// # Errors
    /// When Linux does not tell.
    pub fn bytes(&self) -> Result<Wire> {
        let mut text = [0; 4096];
        let len = self.counts.as_ref().context("the link is not up")?.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default());
        counts(&text).context("Linux tells no counts of the link")
    }

    /// Whether somebody listens at this port of the target.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn listens(&self, port: u16) -> Result<bool> {
        self.inside(End::Target, || {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            Ok(listens_in(&read("tcp")?, port) || listens_in(&read("tcp6")?, port))
        })
    }
}

/// The counts of the interface `bench` in `/proc/net/dev`, seen from the source.
fn counts(text: &str) -> Option<Wire> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("bench:"))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Eight counts of what was received, then those of what was sent; bytes come first.
    Some(Wire { there: *fields.get(8)?, back: *fields.first()? })
}

/// Whether `/proc/net/tcp` has a socket that listens at this port.
fn listens_in(table: &str, port: u16) -> bool {
    let place = format!(":{port:04X}");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&place)) && fields.get(3) == Some(&"0A")
    })
}

impl Drop for Link {
    fn drop(&mut self) {
        // An open count would keep the namespace.
        self.counts = None;
        for end in [End::Source, End::Target] {
            if let Err(error) = ip(&["netns", "delete", &self.namespace(end)]) {
                conme_testbed::complain(&format!("remove it by hand: {error:#}"));
            }
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args)).map(drop)
}

/// Ends and removes what a run that was killed has left: its namespaces, and the programs in them.
///
/// # Errors
/// When something cannot be removed.
pub fn sweep_links() -> Result<()> {
    for name in names(Path::new("/run/netns"))? {
        if made_by(&name, NAMED).is_none_or(is_running) {
            continue;
        }
        let inside = run(Command::new("ip").args(["netns", "pids", &name]))?;
        for pid in String::from_utf8_lossy(&inside).split_whitespace() {
            let pid = Pid::from_raw(pid.parse()?);
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("end process {pid}")),
            }
        }
        ip(&["netns", "delete", &name])?;
    }
    Ok(())
}

fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Removes directories of `parent` whose names begin with `prefix` and the number of a process that is gone.
///
/// # Errors
/// When one cannot be removed.
pub fn sweep_dirs(parent: &Path, prefix: &str) -> Result<()> {
    for name in names(parent)? {
        if made_by(&name, prefix).is_some_and(|pid| !is_running(pid)) {
            let dir = parent.join(name);
            std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
    }
    Ok(())
}

/// Names in a directory; none when there is no directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// The number of the process that made something with such a name.
fn made_by(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

/// Runs it to its end.
///
/// # Errors
/// With what it said, when it fails.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {}", output.status, said.trim());
    Ok(output.stdout)
}

/// Carries connections, each direction `delay` late; or lets a program serve each, or connects its own input and output.
///
/// # Errors
/// When an address is not to be had.
pub fn relay(args: &super::RelayArgs) -> Result<()> {
    if let Some(address) = &args.connect {
        wait_for(std::io::stdin())?;
        wait_for(std::io::stdout())?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut up = stream.try_clone()?;
        thread::spawn(move || {
            // An end on either side ends it.
            let _ = pass(&mut std::io::stdin().lock(), &mut up);
            let _ = up.shutdown(Shutdown::Write);
        });
        let mut down = stream;
        return Ok(pass(&mut down, &mut std::io::stdout().lock())?);
    }
    let listener = TcpListener::bind(args.listen.as_deref().context("--listen or --connect")?)?;
    let delay = Duration::from_millis(args.delay_ms);
    for near in listener.incoming() {
        let near = near?;
        near.set_nodelay(true)?;
        if let Some(to) = &args.to {
            let far = TcpStream::connect(to)?;
            far.set_nodelay(true)?;
            late(near.try_clone()?, far.try_clone()?, delay);
            late(far, near, delay);
        } else if let Some((program, rest)) = args.program.split_first() {
            let mut child =
                Command::new(program).args(rest).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
                bail!("{program} has no input or output");
            };
            let (mut from, mut to) = (near.try_clone()?, near);
            thread::spawn(move || pass(&mut from, &mut stdin));
            thread::spawn(move || {
                let _ = pass(&mut stdout, &mut to);
                let _ = to.shutdown(Shutdown::Both);
                child.wait()
            });
        }
    }
    Ok(())
}

/// casync hands over pipes that do not wait for content, which only ssh expects.
fn wait_for(pipe: impl AsFd) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL)?);
    fcntl(&pipe, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

fn pass(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}

fn late(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    // Room for more than any window that fits into the delay.
    let (send, due) = sync_channel::<(Instant, Vec<u8>)>(4096);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if send.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (at, content) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&content).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Whether this process runs in a namespace: the two files name the same.
pub fn is_in(pid: &Path, namespace: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let of = |path: &Path| std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
    of(&pid.join("ns/net")).is_some_and(|one| Some(one) == of(namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_there_and_back_are_told_apart() {
        let text = "Inter-|   Receive                            |  Transmit\n \
                    face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs\n    \
                    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n \
                    bench: 1200 7 0 0 0 0 0 0 990011 80 0 0 0 0 0 0\n";
        let wire = counts(text).unwrap();
        assert_eq!(wire, Wire { there: 990_011, back: 1200 });
        assert_eq!(wire.since(Wire { there: 11, back: 200 }), Wire { there: 990_000, back: 1000 });
        assert_eq!(counts("    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n"), None);
    }

    #[test]
    fn what_a_killed_run_left_is_known_by_its_number_and_nothing_else_is_touched() {
        assert_eq!(made_by("conme-bench-77-source", NAMED), Some(77));
        assert_eq!(made_by("mover-77-x9Yz", "mover-"), Some(77));
        for other in ["conme-bench-", "conme-bench-a-source", "conme-benchmark-77", "mover-77"] {
            assert_eq!(made_by(other, NAMED), None, "{other}");
        }
        let parent = tempfile::tempdir().unwrap();
        let alive = format!("left-{}-a", std::process::id());
        for name in [&alive, "left-4194305-a", "kept-4194305-a"] {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        // No process has a number that high.
        sweep_dirs(parent.path(), "left-").unwrap();
        let mut left = names(parent.path()).unwrap();
        left.sort();
        assert_eq!(left, ["kept-4194305-a", alive.as_str()]);
    }

    #[test]
    fn only_a_socket_that_listens_counts() {
        let line =
            |local: &str, state: &str| format!("   0: {local} 00000000:0000 {state} 00000000:00000000\n");
        assert!(listens_in(&line("0200E70A:1D13", "0A"), 7443));
        assert!(!listens_in(&line("0200E70A:1D13", "01"), 7443));
        assert!(!listens_in(&line("0200E70A:1D14", "0A"), 7443));
    }
}
