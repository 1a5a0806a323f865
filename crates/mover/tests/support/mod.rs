//! The program itself, on loopback, in directories of its own.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Everything here ends within this time, or the test fails.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A site with an authority, and the directories of both ends.
pub struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        site.ok(&["ca", "init", "--dir", "ca", "--municipality", "prova"]);
        site.ok(&["ca", "receiver", "--dir", "ca", "--target", "disk", "--out", "receiver"]);
        site
    }

    /// A site whose agent has enrolled.
    pub fn enrolled() -> Self {
        let site = Self::new();
        let place = Running::start(&site, &["ca", "serve", "--dir", "ca", "--listen", "127.0.0.1:0"]);
        site.token("srv1", "disk", &place.address(), "token.json");
        site.ok(&["enrol", "--token", "token.json", "--state", "agent"]);
        site
    }

    pub fn token(&self, source: &str, target: &str, enrol: &str, out: &str) {
        self.token_with(source, target, enrol, "127.0.0.1:1", out);
    }

    /// The token of the only server, which says where the receiver is, too.
    pub fn token_for(&self, enrol: &str, receive: &str) {
        self.token_with("srv1", "disk", enrol, receive, "token.json");
    }

    fn token_with(&self, source: &str, target: &str, enrol: &str, receive: &str, out: &str) {
        self.ok(&[
            "ca",
            "token",
            "--dir",
            "ca",
            "--source",
            source,
            "--target",
            target,
            "--enrol",
            enrol,
            "--receive",
            receive,
            "--out",
            out,
        ]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conme-mover"));
        command.args(["--output", "json"]).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// As a person calls it.
    pub fn plain(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conme-mover"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn ok(&self, args: &[&str]) -> Vec<Value> {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        events(&output.stdout)
    }

    pub fn receiver(&self, more: &[&str]) -> Running {
        self.receiving("--target", "copy", more)
    }

    /// A receiver with an option that says where it writes to.
    pub fn receiving(&self, option: &str, place: &str, more: &[&str]) -> Running {
        let args = [
            "receive",
            "--identity",
            "receiver",
            "--state",
            "received",
            "--listen",
            "127.0.0.1:0",
            option,
            place,
        ];
        Running::start(self, &[&args, more].concat())
    }

    pub fn agent(&self, address: &str, more: &[&str]) -> Running {
        let args = ["agent", "--state", "agent", "--source", "disk", "--connect", address];
        Running::start(self, &[&args, more].concat())
    }
}

/// What a program told, but for how far it was at each moment.
pub fn events(output: &[u8]) -> Vec<Value> {
    let events = output.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    events.filter(|event: &Value| event["event"] != "progress").collect()
}

/// A program that runs, and is ended at the latest when the test is.
pub struct Running {
    child: Child,
    events: Receiver<Value>,
    pub seen: Vec<Value>,
}

impl Running {
    /// Waits until the receiver has acknowledged something to this agent; gives how many units.
    pub fn acknowledged(&mut self) -> u64 {
        loop {
            let now = self.event("progress")["tally"]["units_acknowledged"].as_u64().unwrap();
            if now > 0 {
                return now;
            }
        }
    }

    pub fn start(site: &Site, args: &[&str]) -> Self {
        Self::spawn(site.command(args))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (send, events) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for event in
                lines.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
            {
                if send.send(event).is_err() {
                    return;
                }
            }
        });
        Self { child, events, seen: Vec::new() }
    }

    /// Waits for an event.
    pub fn event(&mut self, name: &str) -> Value {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if event["event"] == name {
                        return event;
                    }
                }
                Err(error) => panic!("no {name}: {error}; there were {:#?}", self.seen),
            }
        }
    }

    /// Waits for the next event, whatever it is.
    pub fn any_event(&mut self) -> Value {
        match self.events.recv_timeout(LIMIT) {
            Ok(event) => {
                self.seen.push(event.clone());
                event
            }
            Err(error) => panic!("no event: {error}; there were {:#?}", self.seen),
        }
    }

    /// Waits for an event, or until the program ends.
    pub fn event_or_end(&mut self, name: &str) -> Option<Value> {
        let until = Instant::now() + LIMIT;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if event["event"] == name {
                        return Some(event);
                    }
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(error) => panic!("no {name}: {error}; there were {:#?}", self.seen),
            }
        }
    }

    pub fn address(&self) -> String {
        // Not through `event`: the place has to be usable without `mut`.
        let event = self.events.recv_timeout(LIMIT).unwrap();
        assert_eq!(event["event"], "listening", "{event}");
        event["address"].as_str().unwrap().to_owned()
    }

    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// SIGKILL: nothing is tidied up.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it ends by itself, with all that it told.
    pub fn end(&mut self) -> ExitStatus {
        self.end_within(LIMIT)
    }

    /// As [`Running::end`], for what takes long by its nature.
    pub fn end_within(&mut self, limit: Duration) -> ExitStatus {
        let until = Instant::now() + limit;
        // It has ended when nobody can tell anything any more.
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) => self.seen.push(event),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(error) => panic!("it does not end: {error}; there were {:#?}", self.seen),
            }
        }
    }

    /// The last event of that name that was seen.
    pub fn last(&self, name: &str) -> &Value {
        self.seen.iter().rev().find(|event| event["event"] == name).unwrap_or_else(|| {
            panic!("no {name} in {:#?}", self.seen);
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Content that does not compress, different for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// An image with noise, text, zeros that are written, and holes, and an end that fits no block.
pub fn image(path: &Path, mib: u64) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len((mib << 20) + 777).unwrap();
    for at in 0..mib {
        match at % 4 {
            0 => file.write_all_at(&noise(at, 1 << 20), at << 20).unwrap(),
            1 => file.write_all_at(&b"anagrafe ".repeat(100_000)[..700_000], at << 20).unwrap(),
            2 => file.write_all_at(&vec![0; 1 << 20], at << 20).unwrap(),
            _ => {}
        }
    }
    file.write_all_at(b"fine", (mib << 20) + 773).unwrap();
    file.sync_all().unwrap();
    file
}

/// The seed of a test with random input: that of `CONME_SEED`, else another one each time. What plays it again is
/// printed, and seen when the test fails.
pub fn seed(test: &str) -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("CONME_SEED")
        .map_or_else(|_| now(), |seed| seed.parse().expect("CONME_SEED is a number"));
    println!("again: CONME_SEED={seed} cargo test -p conme-mover {test}");
    seed
}

/// Tries until there is something, or the test fails.
pub fn until<T>(what: &str, mut tried: impl FnMut() -> Option<T>) -> T {
    until_within(LIMIT, what, &mut tried)
}

/// The same with a limit of its own.
pub fn until_within<T>(limit: Duration, what: &str, mut tried: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = tried() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether all that a test needs is there; says so when it is not.
pub fn possible(test: &str, needs: &str, is_there: bool) -> bool {
    if !is_there {
        println!("SKIPPED: {test} needs {needs}");
    }
    is_there
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this is root, and there are loop devices.
pub fn has_loops() -> bool {
    let probe = Command::new("losetup").arg("--find").output();
    is_root() && probe.is_ok_and(|output| output.status.success())
}

/// Whether both files have the same content.
pub fn same(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    if a.metadata().unwrap().len() != b.metadata().unwrap().len() {
        return false;
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = a.read(&mut left).unwrap();
        b.read_exact(&mut right[..count]).unwrap();
        if left[..count] != right[..count] {
            return false;
        }
        if count == 0 {
            return true;
        }
    }
}
