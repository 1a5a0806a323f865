//! The mover and those it is held against: how each end is started, and how it is known that all has arrived.

use std::{
    fs::File,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conme_testbed::{Dirs, Packages, Progress, ensure_packages};
use serde::Serialize;

use super::{
    image,
    link::{End, Link, TARGET, run},
    meter::Held,
};

/// Who moves the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Con.Me's own.
    Mover,
    /// In place, compressed.
    Rsync,
    /// Into a repository.
    Borg,
    /// Into a store of chunks.
    Casync,
    /// Over the network block device of QEMU: knows no differences.
    Nbdcopy,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Mover, Self::Rsync, Self::Borg, Self::Casync, Self::Nbdcopy];

    /// As it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mover => "conme-mover",
            Self::Rsync => "rsync",
            Self::Borg => "borg",
            Self::Casync => "casync",
            Self::Nbdcopy => "nbdcopy",
        }
    }

    /// Whether it can send only what differs, and go on after it was killed; the others have only a first copy.
    pub fn knows_differences(self) -> bool {
        match self {
            Self::Mover | Self::Rsync | Self::Borg | Self::Casync => true,
            Self::Nbdcopy => false,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Mover => 7443,
            Self::Rsync => 8730,
            Self::Borg => 7022,
            Self::Casync => 7023,
            Self::Nbdcopy => 10809,
        }
    }
}

/// How directories of places begin; the number of the process comes next.
pub const DIRS: &str = "mover-";
/// Port of the relay that adds delay.
const LATE: u16 = 7999;
/// A program that listens does so within this time.
const STARTING: Duration = Duration::from_secs(60);
/// How borg cuts: a disk changes in place, so at fixed places; smaller chunks cost more than they save.
const BORG_CHUNKS: &str = "fixed,16384";
/// The Python for which the distribution's packages are made.
const PYTHON: &str = "/usr/bin/python3";

/// The first line that a program says of its version; some begin with the path by which they were started.
fn version(told: &str) -> String {
    let line = told.lines().next().unwrap_or_default().trim();
    let name = line.split_whitespace().next().unwrap_or_default();
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    line.get(path..).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The highest level of zstd that keeps up with a link on one core: what a careful person would choose for a peer that
/// does not choose by itself.
pub fn level(mbit: u32) -> u8 {
    match mbit {
        0 => 1,
        1..50 => 12,
        50..200 => 6,
        200.. => 3,
    }
}

/// The programs.
#[derive(Debug)]
pub struct Programs {
    packages: Packages,
    casync: Packages,
    mover: PathBuf,
    level: Option<u8>,
    bench: PathBuf,
}

impl Programs {
    /// Unpacks those of the distribution; `mover` is Con.Me's own, with this level of zstd.
    ///
    /// # Errors
    /// When they cannot be fetched, or the mover was not built.
    pub async fn ready(dirs: &Dirs, mover: &Path, level: Option<u8>, progress: &Progress) -> Result<Self> {
        let wanted =
            ["rsync", "borgbackup", "python3-msgpack", "python3-packaging", "qemu-utils", "libnbd-bin"];
        let packages = ensure_packages(dirs, "bench-peers", &wanted, progress).await?;
        let casync = ensure_packages(dirs, "bench-casync", &["casync"], progress).await?;
        ensure!(mover.is_file(), "{} is missing: build it, as `make bench-mover` does", mover.display());
        Ok(Self { packages, casync, mover: mover.to_owned(), level, bench: std::env::current_exe()? })
    }

    /// Versions, for the report.
    ///
    /// # Errors
    /// When one does not start.
    pub fn versions(&self) -> Result<Vec<String>> {
        let first = |mut command: Command| -> Result<String> {
            let told = String::from_utf8_lossy(&run(command.stdout(Stdio::piped()))?).into_owned();
            ensure!(!told.trim().is_empty(), "{command:?} tells no version");
            Ok(version(&told))
        };
        let mut versions = vec![first({
            let mut command = Command::new(&self.mover);
            command.arg("--version");
            command
        })?];
        for program in ["rsync", "nbdcopy", "qemu-nbd"] {
            let mut command = self.set(Command::new(self.bin(program)));
            command.arg("--version");
            versions.push(first(command)?);
        }
        let mut borg = self.set(Command::new(PYTHON));
        borg.arg(self.bin("borg")).arg("--version");
        versions.push(first(borg)?);
        let mut casync = self.casync();
        casync.arg("--version");
        versions.push(first(casync)?);
        Ok(versions)
    }

    /// casync, with the libraries that it came with.
    fn casync(&self) -> Command {
        self.with_casync(Command::new(self.casync_bin()))
    }

    fn casync_bin(&self) -> PathBuf {
        self.casync.tree.join("usr/bin/casync")
    }

    fn with_casync(&self, mut command: Command) -> Command {
        command.env("LD_LIBRARY_PATH", &self.casync.libraries).stdout(Stdio::null());
        command
    }

    fn bin(&self, program: &str) -> PathBuf {
        self.packages.tree.join("usr/bin").join(program)
    }

    fn set(&self, mut command: Command) -> Command {
        command
            .env("LD_LIBRARY_PATH", &self.packages.libraries)
            .env("PYTHONPATH", self.packages.tree.join("usr/lib/python3/dist-packages"))
            .stdout(Stdio::null());
        command
    }
}

/// Where one peer works on one link: the source, the target, and what each end remembers.
pub struct Place<'run> {
    programs: &'run Programs,
    link: &'run Link,
    /// The rate of the link in Mbit/s; 0 is unshaped.
    mbit: u32,
    peer: Peer,
    dir: tempfile::TempDir,
    archives: u32,
}

impl<'run> Place<'run> {
    /// With a source that `fill` writes, and nothing at the target; it lies in a directory of its own in `parent`.
    ///
    /// # Errors
    /// Of the disk, and when an end cannot be made ready.
    pub fn new(
        programs: &'run Programs,
        link: &'run Link,
        mbit: u32,
        peer: Peer,
        parent: &Path,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let prefix = format!("{DIRS}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?;
        let place = Self { programs, link, mbit, peer, dir, archives: 0 };
        fill(&place.source())?;
        match peer {
            Peer::Mover => place.enrol()?,
            Peer::Rsync => {
                let path = place.dir.path().display();
                let text =
                    format!("use chroot = no\n[bench]\npath = {path}\nread only = no\nuid = 0\ngid = 0\n");
                std::fs::write(place.path("rsyncd.conf"), text)?;
            }
            Peer::Borg => {
                let mut command = place.borg(Command::new(PYTHON));
                run(command.args(["init", "-e", "none"]).arg(place.path("repository")))?;
            }
            Peer::Casync => std::fs::create_dir(place.path("repository"))?,
            Peer::Nbdcopy => {
                let len = std::fs::metadata(place.source())?.len();
                File::create(place.target())?.set_len(len)?;
            }
        }
        Ok(place)
    }

    /// Everything that lies here is durable, and cold.
    ///
    /// # Errors
    /// Of the disk.
    pub fn cool(&self) -> Result<()> {
        image::cool(self.dir.path())
    }

    /// The image that is moved.
    pub fn source(&self) -> PathBuf {
        self.path("source.img")
    }

    fn target(&self) -> PathBuf {
        self.path("target.img")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mover(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.programs.mover);
        run(command.args(["--output", "json"]).args(args).current_dir(self.dir.path())).map(drop)
    }

    fn enrol(&self) -> Result<()> {
        self.mover(&["ca", "init", "--dir", "ca", "--municipality", "prova"])?;
        self.mover(&["ca", "receiver", "--dir", "ca", "--target", "disk", "--out", "receiver"])?;
        let mut serve = self.programs.set(self.link.command(End::Target, &self.programs.mover));
        serve.args(["ca", "serve", "--dir", "ca", "--listen"]).arg(format!("{TARGET}:7444"));
        let _serving = Held::start(serve.current_dir(self.dir.path()).stderr(Stdio::null()))?;
        self.until_listening(7444)?;
        let (enrol, receive) = (format!("{TARGET}:7444"), format!("{TARGET}:7443"));
        let token = ["ca", "token", "--dir", "ca", "--source", "srv1", "--target", "disk", "--out", "token"];
        self.mover(&[&token[..], &["--enrol", &enrol, "--receive", &receive]].concat())?;
        let mut command = self.link.command(End::Source, &self.programs.mover);
        let enrol = ["enrol", "--token", "token", "--state", "agent"];
        run(command.args(enrol).current_dir(self.dir.path())).map(drop)
    }

    /// What a program runs in place of `ssh`.
    fn shell(&self, port: u16) -> String {
        format!("{} relay --connect {TARGET}:{port} --", self.programs.bench.display())
    }

    fn borg(&self, command: Command) -> Command {
        let mut command = self.programs.set(command);
        command
            .arg(self.programs.bin("borg"))
            .env("BORG_BASE_DIR", self.path("borg"))
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RSH", self.shell(self.peer.port()));
        command
    }

    /// Starts what has to run at the target, with a relay that is so late.
    ///
    /// # Errors
    /// When it does not come to listen.
    pub fn serve(&self, late: Option<Duration>) -> Result<Vec<Held>> {
        let port = self.peer.port();
        let (programs, at) = (self.programs, |program: &Path| self.link.command(End::Target, program));
        let mut command = match self.peer {
            Peer::Mover => {
                let mut command = programs.set(at(&programs.mover));
                command.args(["receive", "--identity", "receiver", "--state", "received", "--listen"]);
                command.arg(format!("{TARGET}:{port}")).arg("--target").arg(self.target());
                command
            }
            Peer::Rsync => {
                let mut command = programs.set(at(&programs.bin("rsync")));
                command.args(["--daemon", "--no-detach", "--port", &port.to_string(), "--config"]);
                command.arg(self.path("rsyncd.conf"));
                command
            }
            Peer::Borg => {
                let mut command = programs.set(at(&programs.bench));
                command.args(["relay", "--listen", &format!("{TARGET}:{port}"), "--", PYTHON]);
                command.arg(programs.bin("borg")).arg("serve").env("BORG_BASE_DIR", self.path("borg-target"));
                command
            }
            Peer::Casync => {
                let mut command = programs.with_casync(at(&programs.bench));
                command.args(["relay", "--listen", &format!("{TARGET}:{port}"), "--"]);
                command.arg(programs.casync_bin()).args(["push", "-", "-"]);
                command.arg(self.path("repository/disk.caibx")).arg(self.path("repository/store.castr"));
                command
            }
            Peer::Nbdcopy => {
                let mut command = programs.set(at(&programs.bin("qemu-nbd")));
                // Four clients: nbdcopy opens as many connections then.
                command.args(["-t", "-e", "4", "-f", "raw", "-p", &port.to_string()]).arg(self.target());
                command
            }
        };
        let log = File::create(self.path("target.log"))?;
        let mut held = vec![Held::start(command.current_dir(self.dir.path()).stderr(log))?];
        self.until_listening(port)?;
        if let Some(delay) = late {
            let mut relay = at(&programs.bench);
            relay.args(["relay", "--listen", &format!("{TARGET}:{LATE}"), "--to"]);
            relay.arg(format!("{TARGET}:{port}")).args(["--delay-ms", &delay.as_millis().to_string()]);
            held.push(Held::start(&mut relay)?);
            self.until_listening(LATE)?;
        }
        Ok(held)
    }

    fn until_listening(&self, port: u16) -> Result<()> {
        let until = Instant::now() + STARTING;
        while !self.link.listens(port)? {
            ensure!(Instant::now() < until, "nobody listens at port {port} of the target: {}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The last that both ends have said.
    pub fn said(&self) -> String {
        let end = |name: &str| {
            let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            lines[lines.len().saturating_sub(4)..].join(" | ")
        };
        format!("source: {}; target: {}", end("source.log"), end("target.log"))
    }

    /// The program that sends; through the relay when it is `late`.
    ///
    /// # Errors
    /// Of the disk.
    pub fn send(&mut self, late: bool) -> Result<Command> {
        let port = if late { LATE } else { self.peer.port() };
        let at = |program: &Path| self.link.command(End::Source, program);
        let (programs, level) = (self.programs, level(self.mbit));
        let mut command = match self.peer {
            Peer::Mover => {
                let mut command = programs.set(at(&programs.mover));
                command.args(["agent", "--state", "agent", "--connect", &format!("{TARGET}:{port}")]);
                if let Some(level) = programs.level {
                    command.args(["--level", &level.to_string()]);
                }
                command.arg("--source").arg(self.source());
                command
            }
            Peer::Rsync => {
                let mut command = programs.set(at(&programs.bin("rsync")));
                command.args(["--inplace", "--ignore-times", "--fsync", "--compress-choice=zstd"]);
                // Its own choice for a large file, 28 KiB, costs seven times a scattered change.
                command.args(["--compress", &format!("--compress-level={level}"), "--block-size=4096"]);
                command.arg(self.source()).arg(format!("rsync://{TARGET}:{port}/bench/target.img"));
                command
            }
            Peer::Borg => {
                let mut command = self.borg(self.link.command(End::Source, PYTHON));
                self.archives += 1;
                let repository = self.path("repository");
                let archive = format!("ssh://target{}::{}", repository.display(), self.archives);
                command.env("BORG_RSH", self.shell(port)).args(["create", "--sparse", "--compression"]);
                command.arg(format!("zstd,{level}")).args(["--chunker-params", BORG_CHUNKS]);
                command.args(["--checkpoint-interval", "5"]);
                command.arg(archive).arg(self.source());
                command
            }
            Peer::Casync => {
                let script = self.path("ssh");
                std::fs::write(&script, format!("#!/bin/sh\nexec {} \"$@\"\n", self.shell(port)))?;
                std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700))?;
                let there = |name: &str| format!("target:{}", self.path("repository").join(name).display());
                let mut command = programs.with_casync(at(&programs.casync_bin()));
                command.env("CASYNC_SSH_PATH", script).args(["make", "--what=blob-index"]);
                command.arg("--compression=zstd").arg(format!("--store={}", there("store.castr")));
                command.arg(there("disk.caibx")).arg(self.source());
                command
            }
            Peer::Nbdcopy => {
                let mut command = programs.set(at(&programs.bin("nbdcopy")));
                command
                    .args(["--flush", "--destination-is-zero"])
                    .arg(self.source())
                    .arg(format!("nbd://{TARGET}:{port}"));
                command
            }
        };
        command.current_dir(self.dir.path()).stderr(File::create(self.path("source.log"))?);
        Ok(command)
    }

    /// Compares both ends byte by byte; what lies in a repository is taken out of it first.
    ///
    /// # Errors
    /// When they differ.
    pub fn check(&self) -> Result<()> {
        match self.peer {
            Peer::Mover | Peer::Rsync | Peer::Nbdcopy => self.same(&self.target()),
            Peer::Borg => {
                let mut command = self.borg(Command::new(PYTHON));
                let archive = format!("{}::{}", self.path("repository").display(), self.archives);
                let stdout = File::create(self.path("extracted.img"))?;
                command.args(["extract", "--stdout"]).arg(archive).stdout(stdout);
                command.stderr(File::create(self.path("source.log"))?);
                let ended = command.status()?;
                ensure!(ended.success(), "borg extract failed ({ended}): {}", self.said());
                self.extracted()
            }
            Peer::Casync => {
                let mut command = self.programs.casync();
                command.arg(format!("--store={}", self.path("repository/store.castr").display()));
                command.args(["--punch-holes=yes", "extract"]).arg(self.path("repository/disk.caibx"));
                run(command.arg(self.path("extracted.img")))?;
                self.extracted()
            }
        }
    }

    fn extracted(&self) -> Result<()> {
        let path = self.path("extracted.img");
        self.same(&path)?;
        Ok(std::fs::remove_file(path)?)
    }

    fn same(&self, copy: &Path) -> Result<()> {
        image::same(&self.source(), copy).with_context(|| format!("{} left another copy", self.peer.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_a_name_and_a_port_of_its_own() {
        let mut ports: Vec<u16> = Peer::ALL.iter().map(|peer| peer.port()).collect();
        let mut names: Vec<&str> = Peer::ALL.iter().map(|peer| peer.name()).collect();
        ports.sort_unstable();
        names.sort_unstable();
        ports.dedup();
        names.dedup();
        assert_eq!((ports.len(), names.len()), (Peer::ALL.len(), Peer::ALL.len()));
        assert!(!ports.contains(&LATE));
    }

    #[test]
    fn a_version_names_no_place_of_this_machine() {
        assert_eq!(
            version("/cache/tree/usr/bin/qemu-nbd 7.2 (Debian 1/2)\nCopyright\n"),
            "qemu-nbd 7.2 (Debian 1/2)"
        );
        assert_eq!(version("rsync  version 3.5.0\n"), "rsync version 3.5.0");
    }

    #[test]
    fn the_thinner_the_link_the_more_peers_compress() {
        assert_eq!([10, 100, 1000, 0].map(level), [12, 6, 3, 1]);
    }
}
