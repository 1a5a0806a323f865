//! What an instance is and does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use super::Instance;
use crate::http::Client;
use crate::options::Cluster;
use crate::state::{DatabaseEndpoint, Program, ProgramKind, State};

/// Whether an instance is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Condition {
    /// Everything runs.
    Running,
    /// Nothing runs.
    Stopped,
    /// Some of it runs.
    Degraded,
}

/// One program of an instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// For example `kube-apiserver`.
    pub name: String,
    /// What it is.
    pub kind: ProgramKind,
    /// Whether its process runs.
    pub running: bool,
    /// Its process, when it runs.
    pub pid: Option<i32>,
    /// Its version, when known.
    pub version: Option<String>,
    /// The port on 127.0.0.1 that it serves, if any.
    pub port: Option<u16>,
    /// When it was last started.
    pub started: Option<Timestamp>,
    /// Its log.
    pub log: PathBuf,
}

/// The Kubernetes of an instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// False for a cluster that was there before.
    pub local: bool,
    /// Kubeconfig of an administrator.
    pub kubeconfig: PathBuf,
    /// URL of the API server, when local.
    pub server: Option<String>,
    /// Log of the requests, when local.
    pub audit_log: Option<PathBuf>,
    /// Number of simulated hosts.
    pub hosts: usize,
}

/// What an instance is and does.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Whether it is of use.
    pub condition: Condition,
    /// The programs that should run and do not, or do not answer.
    pub missing: Vec<String>,
    /// Its Kubernetes, if any.
    pub cluster: Option<ClusterStatus>,
    /// Its database servers.
    pub databases: Vec<DatabaseEndpoint>,
    /// Databases do not wait for the disk (a crash of the machine may lose data).
    pub fast: bool,
    /// Its programs, in the order of their start.
    pub programs: Vec<ProgramStatus>,
    /// Directory with `kubectl`, `helm`, `psql`.
    pub bin_dir: PathBuf,
    /// Directory of the logs.
    pub log_dir: PathBuf,
    /// Directory of everything that belongs to it.
    pub dir: PathBuf,
}

impl Instance {
    /// Looks at every process, and asks the API server whether it is ready (for at most 3 s).
    ///
    /// # Errors
    /// When the instance is gone.
    pub async fn status(&self) -> Result<Status> {
        let state = self.state()?;
        let mut missing: Vec<String> = state
            .programs
            .iter()
            .filter(|program| program.is_missing())
            .map(|program| program.name.clone())
            .collect();
        let api_server = state.programs.iter().find(|program| program.kind == ProgramKind::ApiServer);
        if let Some(program) = api_server.filter(|program| program.is_alive()) {
            let answer = tokio::time::timeout(Duration::from_secs(3), self.api_is_ready(program.port)).await;
            if answer != Ok(true) {
                missing.push(format!("{} (does not answer)", program.name));
            }
        }
        let condition = match (state.ready && missing.is_empty(), state.any_alive()) {
            (true, _) => Condition::Running,
            (false, true) => Condition::Degraded,
            (false, false) => Condition::Stopped,
        };
        if condition == Condition::Stopped {
            missing.clear();
        }
        Ok(Status {
            name: self.name.clone(),
            condition,
            missing,
            cluster: self.cluster_status(&state),
            databases: state.databases.clone(),
            fast: state.options.fast,
            programs: state.programs.iter().map(|program| self.program_status(program)).collect(),
            bin_dir: self.bin_dir(),
            log_dir: self.log_dir(),
            dir: self.dir(),
        })
    }

    fn cluster_status(&self, state: &State) -> Option<ClusterStatus> {
        match &state.options.cluster {
            Cluster::Local {} => Some(ClusterStatus {
                local: true,
                kubeconfig: self.layout().kubeconfig(),
                server: state
                    .programs
                    .iter()
                    .find(|program| program.kind == ProgramKind::ApiServer)
                    .and_then(|program| program.port)
                    .map(|port| format!("https://127.0.0.1:{port}")),
                audit_log: Some(self.audit_log()),
                hosts: state.options.hosts.count,
            }),
            Cluster::Existing { kubeconfig } => Some(ClusterStatus {
                local: false,
                kubeconfig: kubeconfig.clone(),
                server: None,
                audit_log: None,
                hosts: 0,
            }),
            Cluster::None {} => None,
        }
    }

    fn program_status(&self, program: &Program) -> ProgramStatus {
        let running = program.is_alive();
        ProgramStatus {
            name: program.name.clone(),
            kind: program.kind,
            running,
            pid: program.process.as_ref().filter(|_| running).map(|process| process.pid),
            version: program.version.clone(),
            port: program.port,
            started: program.started,
            log: self.log(&program.name),
        }
    }

    /// A client of the local API server with the rights of an administrator.
    pub(super) fn api(&self, port: u16) -> Result<Client> {
        let pki = self.layout().pki();
        Client::new(port, &pki.join("ca.crt"), &pki.join("admin.crt"), &pki.join("admin.key"))
    }

    pub(super) async fn api_is_ready(&self, port: Option<u16>) -> bool {
        let Some(client) = port.and_then(|port| self.api(port).ok()) else { return false };
        client.request("GET", "/readyz", None).await.is_ok_and(|answer| answer.status == 200)
    }
}
