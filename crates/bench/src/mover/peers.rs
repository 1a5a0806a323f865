//! The mover and those it is held against: how each end is started, and how it is known that all has arrived.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use conme_testbed::{Dirs, Packages, Progress, ensure_packages};
use serde::Serialize;

use super::{
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
    /// Over the network block device of QEMU: knows no differences.
    Nbdcopy,
}

impl Peer {
    /// As it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mover => "conme-mover",
            Self::Rsync => "rsync",
            Self::Borg => "borg",
            Self::Nbdcopy => "nbdcopy",
        }
    }

    /// Whether it can send only what differs, and go on after it was killed.
    pub fn knows_differences(self) -> bool {
        match self {
            Self::Mover | Self::Rsync | Self::Borg => true,
            Self::Nbdcopy => false,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Mover => 7443,
            Self::Rsync => 8730,
            Self::Borg => 7022,
            Self::Nbdcopy => 10809,
        }
    }
}

/// Port of the relay that adds delay.
const LATE: u16 = 7999;
/// A program that listens does so within this time.
const STARTING: Duration = Duration::from_secs(60);
/// The Python for which the distribution's packages are made.
const PYTHON: &str = "/usr/bin/python3";

/// The programs.
#[derive(Debug)]
pub struct Programs {
    packages: Packages,
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
        ensure!(mover.is_file(), "{} is missing: build it, as `make bench-mover` does", mover.display());
        Ok(Self { packages, mover: mover.to_owned(), level, bench: std::env::current_exe()? })
    }

    /// Versions, for the report.
    ///
    /// # Errors
    /// When one does not start.
    pub fn versions(&self) -> Result<Vec<String>> {
        let first = |mut command: Command| -> Result<String> {
            let told = String::from_utf8_lossy(&run(&mut command)?).into_owned();
            Ok(told.lines().next().unwrap_or_default().trim().to_owned())
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
        Ok(versions)
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
    peer: Peer,
    dir: tempfile::TempDir,
    archives: u32,
}

impl<'run> Place<'run> {
    /// With a fresh copy of the image, and nothing at the target.
    ///
    /// # Errors
    /// Of the disk, and when an end cannot be made ready.
    pub fn new(
        programs: &'run Programs,
        link: &'run Link,
        peer: Peer,
        image: &Path,
        parent: &Path,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mover-").tempdir_in(parent)?;
        let place = Self { programs, link, peer, dir, archives: 0 };
        run(Command::new("cp").arg("--sparse=always").arg(image).arg(place.source()))?;
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
            Peer::Nbdcopy => {
                let len = std::fs::metadata(image)?.len();
                File::create(place.target())?.set_len(len)?;
            }
        }
        File::open(place.source())?.sync_all()?;
        Ok(place)
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

    fn borg(&self, command: Command) -> Command {
        let relay = format!("{} relay --connect", self.programs.bench.display());
        let mut command = self.programs.set(command);
        command
            .arg(self.programs.bin("borg"))
            .env("BORG_BASE_DIR", self.path("borg"))
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RSH", format!("{relay} {TARGET}:{} --", self.peer.port()));
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
            Peer::Nbdcopy => {
                let mut command = programs.set(at(&programs.bin("qemu-nbd")));
                command.args(["-t", "-f", "raw", "-p", &port.to_string()]).arg(self.target());
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

    fn said(&self) -> String {
        ["source.log", "target.log"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.path(name)).ok())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The program that sends; through the relay when it is `late`.
    ///
    /// # Errors
    /// Of the disk.
    pub fn send(&mut self, late: bool) -> Result<Command> {
        let port = if late { LATE } else { self.peer.port() };
        let at = |program: &Path| self.link.command(End::Source, program);
        let programs = self.programs;
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
                command.args(["--inplace", "--ignore-times", "--compress", "--compress-choice=zstd"]);
                command.arg(self.source()).arg(format!("rsync://{TARGET}:{port}/bench/target.img"));
                command
            }
            Peer::Borg => {
                let mut command = self.borg(self.link.command(End::Source, PYTHON));
                self.archives += 1;
                let repository = self.path("repository");
                let archive = format!("ssh://target{}::{}", repository.display(), self.archives);
                let relay = format!("{} relay --connect {TARGET}:{port} --", programs.bench.display());
                command.env("BORG_RSH", relay).args(["create", "--compression", "zstd,3"]);
                command.args(["--chunker-params", "buzhash,14,20,16,4095", "--checkpoint-interval", "5"]);
                command.arg(archive).arg(self.source());
                command
            }
            Peer::Nbdcopy => {
                let mut command = programs.set(at(&programs.bin("nbdcopy")));
                command.arg("--flush").arg(self.source()).arg(format!("nbd://{TARGET}:{port}"));
                command
            }
        };
        command.current_dir(self.dir.path()).stderr(File::create(self.path("source.log"))?);
        Ok(command)
    }

    /// Compares both ends byte by byte.
    ///
    /// # Errors
    /// When they differ.
    pub fn check(&self) -> Result<()> {
        if self.peer == Peer::Borg {
            let mut command = self.borg(Command::new(PYTHON));
            let archive = format!("{}::{}", self.path("repository").display(), self.archives);
            let mut extract =
                command.args(["extract", "--stdout"]).arg(archive).stdout(Stdio::piped()).spawn()?;
            let stdout = extract.stdout.take().context("no output")?;
            run(Command::new("cmp").arg("-").arg(self.source()).stdin(stdout))?;
            let ended = extract.wait()?;
            ensure!(ended.success(), "borg extract failed: {ended}");
            return Ok(());
        }
        if let Err(error) = run(Command::new("cmp").arg(self.source()).arg(self.target())) {
            bail!("{} has left another target: {error:#}", self.peer.name());
        }
        Ok(())
    }

    /// What to say when the sending program has failed.
    pub fn failure(&self, how: std::process::ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{} failed ({how}): {}", self.peer.name(), self.said())
    }
}
