//! What an instance remembers about itself, in `state.json`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::dirs::{random_hex, write_file};
use crate::options::Options;
use crate::process::{CommandSpec, Identity, Signal, Victim};

const FORMAT: u32 = 1;

/// What a program is; also decides when it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramKind {
    /// A further program, for example the operator.
    Extra,
    /// kwok, the scheduler and the controller manager: clients of the API server.
    Worker,
    /// The API server.
    ApiServer,
    /// etcd. An API server that loses it first hangs in its shutdown and keeps its port.
    Etcd,
    /// A PostgreSQL server.
    Postgres,
    /// A MariaDB server.
    Mariadb,
}

impl ProgramKind {
    /// In the order in which they are stopped.
    pub(crate) const ORDER: [Self; 6] =
        [Self::Extra, Self::Worker, Self::ApiServer, Self::Etcd, Self::Postgres, Self::Mariadb];

    pub(crate) fn stop_signal(self) -> Signal {
        // The fast shutdown of PostgreSQL; SIGTERM would wait for all clients to leave.
        if self == Self::Postgres { Signal::Int } else { Signal::Term }
    }

    pub(crate) fn patience(self) -> Duration {
        Duration::from_secs(if matches!(self, Self::Worker | Self::Etcd) { 10 } else { 20 })
    }
}

/// One program of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Program {
    pub name: String,
    pub kind: ProgramKind,
    pub version: Option<String>,
    /// The port on 127.0.0.1 that it serves, if any.
    pub port: Option<u16>,
    pub command: CommandSpec,
    /// None when it was stopped on purpose.
    pub process: Option<Identity>,
    pub started: Option<Timestamp>,
}

impl Program {
    pub fn new(name: impl Into<String>, kind: ProgramKind, command: CommandSpec) -> Self {
        Self { name: name.into(), kind, version: None, port: None, command, process: None, started: None }
    }

    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_some_and(Identity::is_alive)
    }

    /// Not running although it should. A further program that was stopped on purpose is not missed.
    pub fn is_missing(&self) -> bool {
        !self.is_alive() && (self.process.is_some() || self.kind != ProgramKind::Extra)
    }

    pub fn victim(&self) -> Option<Victim> {
        Some(Victim {
            label: self.name.clone(),
            identity: self.process.clone()?,
            signal: self.kind.stop_signal(),
            patience: self.kind.patience(),
        })
    }
}

/// The kind of a database server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// PostgreSQL.
    #[serde(rename = "PostgreSQL")]
    Postgresql,
    /// MariaDB.
    #[serde(rename = "MariaDB")]
    Mariadb,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Postgresql => "PostgreSQL",
            Self::Mariadb => "MariaDB",
        })
    }
}

/// How to reach a database server of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseEndpoint {
    /// For example `pg-venis-1` or `mariadb-venis-1`.
    pub name: String,
    /// What kind it is.
    pub engine: Engine,
    /// For example `15.18`.
    pub version: String,
    /// `127.0.0.1`.
    pub host: String,
    /// TCP port; TLS only.
    pub port: u16,
    /// PEM file with the authority that signed the certificate of the server.
    pub ca_file: PathBuf,
    /// A superuser.
    pub admin_user: String,
    /// File (mode 0600) with the password of that user, without a line end.
    pub admin_password_file: PathBuf,
}

/// Where the database servers of an instance are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServersHome {
    /// Parent of the data directories; outside the instance when its user could not reach it there.
    pub dir: PathBuf,
}

/// What an instance remembers about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    format: u32,
    /// Marks the processes of this instance.
    pub id: String,
    pub created: Timestamp,
    pub options: Options,
    /// Whether the last `up` came to its end and no `down` followed.
    pub ready: bool,
    /// The process whose end makes this instance worthless (that of a test).
    pub owner: Option<Identity>,
    #[serde(alias = "postgres")]
    pub servers: Option<ServersHome>,
    pub programs: Vec<Program>,
    pub databases: Vec<DatabaseEndpoint>,
}

impl State {
    pub fn new(options: Options) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            id: random_hex(16)?,
            created: Timestamp::now(),
            options,
            ready: false,
            owner: None,
            servers: None,
            programs: Vec::new(),
            databases: Vec::new(),
        })
    }

    /// The state in a file, or none when there is no such file.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let state: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a state of this program", path.display()))?;
        if state.format != FORMAT {
            bail!(
                "{} was written by another version of this program (format {})",
                path.display(),
                state.format
            );
        }
        Ok(Some(state))
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        write_file(path, 0o600, &serde_json::to_vec_pretty(self)?)
    }

    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.name == name)
    }

    pub fn program_mut(&mut self, name: &str) -> Result<&mut Program> {
        let known = self.programs.iter().map(|program| program.name.clone()).collect::<Vec<_>>().join(", ");
        let instance = self.options.name.clone();
        self.programs
            .iter_mut()
            .find(|program| program.name == name)
            .with_context(|| format!("the instance \"{instance}\" has no program \"{name}\"; it has {known}"))
    }

    /// Adds a program or replaces the one with its name.
    pub fn put(&mut self, program: Program) {
        match self.programs.iter_mut().find(|known| known.name == program.name) {
            Some(known) => *known = program,
            None => self.programs.push(program),
        }
    }

    /// The directories in which a database server of this instance works.
    pub fn data_dirs(&self) -> Vec<PathBuf> {
        self.servers.iter().map(|home| home.dir.clone()).collect()
    }

    pub fn any_alive(&self) -> bool {
        self.programs.iter().any(Program::is_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kind: ProgramKind) -> Program {
        Program::new("p", kind, CommandSpec::new("/bin/true", "/").args(["-x"]).env("A", "b"))
    }

    #[test]
    fn a_state_survives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(State::load(&path).unwrap(), None);
        let mut state = State::new(Options::new("demo")).unwrap();
        let mut one = program(ProgramKind::Postgres);
        one.process = Identity::own();
        one.started = Some(Timestamp::now());
        state.put(one);
        state.save(&path).unwrap();
        let loaded = State::load(&path).unwrap().unwrap();
        assert_eq!(loaded, state);
        assert!(loaded.any_alive());
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::fs::write(&path, "{}").unwrap();
        assert!(State::load(&path).is_err());
        let mut state = State::new(Options::new("demo")).unwrap();
        state.format = 99;
        state.save(&path).unwrap();
        assert!(State::load(&path).unwrap_err().to_string().contains("99"));
    }

    #[test]
    fn only_what_should_run_is_missed() {
        assert!(program(ProgramKind::Etcd).is_missing());
        let mut extra = program(ProgramKind::Extra);
        assert!(!extra.is_missing(), "stopped on purpose");
        extra.process = Some(Identity { pid: 1, start_ticks: u64::MAX, boot: "another".into() });
        assert!(extra.is_missing(), "died");
        extra.process = Identity::own();
        assert!(!extra.is_missing());
    }

    #[test]
    fn clients_stop_before_the_api_server_and_that_before_etcd() {
        let mut sorted = ProgramKind::ORDER;
        sorted.sort();
        assert_eq!(sorted, ProgramKind::ORDER);
        assert!(ProgramKind::Worker < ProgramKind::ApiServer && ProgramKind::ApiServer < ProgramKind::Etcd);
    }
}
