//! Two network namespaces with a shaped link between them, and a relay that adds delay.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// The source's address on the link.
pub const SOURCE: &str = "10.231.0.1";
/// The target's.
pub const TARGET: &str = "10.231.0.2";

/// An end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The local server.
    Source,
    /// The data centre.
    Target,
}

/// Two namespaces and the link between them; gone when dropped.
#[derive(Debug)]
pub struct Link {
    name: String,
}

impl Link {
    /// Makes it, at `mbit` megabits a second in both directions, or unshaped.
    ///
    /// # Errors
    /// Without root.
    pub fn up(mbit: Option<u32>) -> Result<Self> {
        let link = Self { name: format!("conme-bench-{}", std::process::id()) };
        for end in [End::Source, End::Target] {
            // What a run that was killed has left has the number of a process that is gone.
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

    /// Bytes that have gone over the link in both directions, headers included.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn bytes(&self) -> Result<u64> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.namespace(End::Source), "-s", "-j", "link", "show", "dev", "bench"]);
        let told: serde_json::Value = serde_json::from_slice(&run(&mut command)?)?;
        let of = |way: &str| told[0]["stats64"][way]["bytes"].as_u64().context("ip tells no counts");
        Ok(of("tx")? + of("rx")?)
    }

    /// Whether somebody listens at this port of the target.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn listens(&self, port: u16) -> Result<bool> {
        let told = run(self.command(End::Target, "cat").arg("/proc/net/tcp").arg("/proc/net/tcp6"))?;
        let place = format!(":{port:04X}");
        Ok(String::from_utf8_lossy(&told).lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(1).is_some_and(|local| local.ends_with(&place)) && fields.get(3) == Some(&"0A")
        }))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
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
