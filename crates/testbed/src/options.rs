//! What an instance shall be.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::dirs::{Dirs, check_name};

/// Which Kubernetes an instance has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Cluster {
    /// A control plane of its own with simulated hosts.
    Local {},
    /// A cluster that is there already: never started, stopped or changed by the testbed.
    Existing {
        /// The kubeconfig to use for it.
        kubeconfig: PathBuf,
    },
    /// None at all: database servers only.
    None {},
}

/// The simulated hosts of a local control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hosts {
    /// How many.
    pub count: usize,
    /// Cores of each.
    pub cores: u32,
    /// Memory of each, as a Kubernetes quantity such as `512Gi`.
    pub memory: String,
    /// Pods that each takes.
    pub pods: u32,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { count: 8, cores: 64, memory: "512Gi".into(), pods: 250 }
    }
}

/// What an instance shall be.
///
/// ```
/// use conme_testbed::Options;
/// let options = Options { postgres: 2, ..Options::new("mine") };
/// assert_eq!(options.hosts.count, 8);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// Name of the instance: lower-case letters, digits and hyphens.
    pub name: String,
    /// Where state and programs are kept; none for [`Dirs::from_env`].
    #[serde(skip)]
    pub dirs: Option<Dirs>,
    /// Its Kubernetes.
    pub cluster: Cluster,
    /// Its simulated hosts, when the cluster is local.
    pub hosts: Hosts,
    /// How many PostgreSQL servers; they are called `pg-venis-1`, `pg-venis-2` and so on.
    pub postgres: usize,
    /// How many MariaDB servers; they are called `mariadb-venis-1` and so on.
    #[serde(default)]
    pub mariadb: usize,
    /// Databases do not wait for the disk: quicker, and a crash of the *machine* may lose data.
    pub fast: bool,
}

impl Options {
    /// A local control plane with 8 hosts and one PostgreSQL server.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            dirs: None,
            cluster: Cluster::Local {},
            hosts: Hosts::default(),
            postgres: 1,
            mariadb: 0,
            fast: true,
        }
    }

    /// One PostgreSQL server without any Kubernetes: up in about two seconds.
    #[must_use]
    pub fn databases_only(name: impl Into<String>) -> Self {
        Self { cluster: Cluster::None {}, ..Self::new(name) }
    }

    /// A name that no other instance has, such as `test-3f9a01c2`.
    ///
    /// # Errors
    /// When the operating system gives no random numbers.
    pub fn unique_name(prefix: &str) -> Result<String> {
        Ok(format!("{prefix}-{}", crate::dirs::random_hex(4)?))
    }

    pub(crate) fn dirs(&self) -> Result<Dirs> {
        match &self.dirs {
            Some(dirs) => Ok(dirs.clone()),
            None => Dirs::from_env(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        if self.hosts.count > 5000 {
            bail!(
                "{} hosts are more than a control plane on one machine can simulate (5000)",
                self.hosts.count
            );
        }
        for (count, engine) in [(self.postgres, "PostgreSQL"), (self.mariadb, "MariaDB")] {
            if count > 16 {
                bail!("{count} {engine} servers are too many for one machine (16)");
            }
        }
        if self.hosts.memory.is_empty()
            || !self.hosts.memory.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
        {
            bail!("\"{}\" is not a quantity of memory such as 512Gi", self.hosts.memory);
        }
        match &self.cluster {
            Cluster::Existing { kubeconfig } if !kubeconfig.is_file() => {
                bail!("the kubeconfig {} does not exist", kubeconfig.display())
            }
            Cluster::None {} if self.postgres + self.mariadb == 0 => {
                bail!("neither a cluster nor a database server: nothing to start")
            }
            _ => Ok(()),
        }
    }
}
