//! The local data centre for the demo, the tests and the benchmarks. Never shipped.
//!
//! An [`Instance`] is a real Kubernetes control plane (etcd, API server, controller manager, scheduler) with simulated
//! hosts (kwok) and real PostgreSQL and MariaDB servers, all ordinary processes on the loopback interface: no container
//! engine, no root. The programs are built once per machine from pinned Go modules; the database servers are those of
//! the distribution.
//!
//! Its directory lies outside the checkout (see [`Dirs`]); several instances run side by side. For a test that needs
//! one of its own, [`Ephemeral`] removes it at the end.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod control_plane;
mod debian;
pub mod demo;
mod dirs;
mod faketime;
mod helper;
mod http;
pub mod install;
mod instance;
mod kubeconfig;
mod lock;
mod mariadb;
mod options;
mod packages;
mod pki;
mod ports;
mod postgres;
mod process;
mod progress;
mod server;
mod state;
mod tools;
mod user;

pub use dirs::{Dirs, check_name};
pub use faketime::ensure_faketime;
pub use instance::{ClusterStatus, Condition, Ephemeral, Instance, ProgramStatus, Status};
pub use mariadb::ensure_mariadb;
pub use options::{Cluster, Hosts, Options};
pub use packages::{Packages, ensure_packages};
pub use postgres::ensure_postgres;
pub use process::{CommandSpec, Identity, MEMBER_VARIABLE, Member, RunAs, Signal, members};
pub use progress::{Progress, Step, complain};
pub use server::{Server, ensure_server, ensure_server_tools};
pub use state::{DatabaseEndpoint, Engine, ProgramKind};
pub use tools::{Tools, version_of};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_time_can_be_spawned() {
        fn is_send<T: Send>(_: T) {}
        let progress = Progress::silent();
        is_send(Instance::up(Options::new("demo"), &progress));
        is_send(Ephemeral::up(Options::new("demo"), &progress));
    }
}
