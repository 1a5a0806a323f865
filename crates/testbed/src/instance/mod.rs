//! A local data centre: a handle to its directory. What runs is always read from there, so that several processes
//! may hold handles to the same instance.

mod down;
mod ephemeral;
mod layout;
mod programs;
mod status;
mod up;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub use ephemeral::Ephemeral;
pub use status::{ClusterStatus, Condition, ProgramStatus, Status};

use crate::dirs::{Dirs, check_name};
use crate::lock::Lock;
use crate::options::{Cluster, Options};
use crate::progress::Progress;
use crate::state::{DatabaseEndpoint, State};
use layout::Layout;

/// A local data centre.
///
/// Dropping it changes nothing: an instance runs until [`Instance::down`]. For a test, see [`Ephemeral`].
#[derive(Clone, Debug)]
pub struct Instance {
    dirs: Dirs,
    name: String,
}

impl Instance {
    /// Starts an instance and waits until it is of use; one that runs already is left alone.
    ///
    /// A stopped one is started again with its data and, as long as they are free, its ports. When this fails or the
    /// future is dropped, everything that it has started is stopped again.
    ///
    /// # Errors
    /// When a program cannot be built or does not start; the text holds the end of its log.
    pub async fn up(options: Options, progress: &Progress) -> Result<Self> {
        up::up(options, None, progress).await
    }

    /// A handle to an instance that exists, running or not.
    ///
    /// # Errors
    /// When there is no instance with that name.
    pub fn open(dirs: &Dirs, name: &str) -> Result<Self> {
        check_name(name)?;
        let instance = Self { dirs: dirs.clone(), name: name.to_owned() };
        instance.state()?;
        Ok(instance)
    }

    /// All instances, by name.
    ///
    /// # Errors
    /// When the directory of the states cannot be read.
    pub fn list(dirs: &Dirs) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(&dirs.state) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", dirs.state.display())),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| check_name(name).is_ok() && Layout::new(dirs, name).state().is_file())
            .collect();
        names.sort();
        Ok(names.into_iter().map(|name| Self { dirs: dirs.clone(), name }).collect())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.layout().dir()
    }

    /// What it was last started with.
    ///
    /// # Errors
    /// When the instance is gone.
    pub fn options(&self) -> Result<Options> {
        Ok(Options { dirs: Some(self.dirs.clone()), ..self.state()?.options })
    }

    /// Path of the kubeconfig of an administrator (mode 0600), or of the existing cluster.
    ///
    /// # Errors
    /// When the instance has no cluster.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        match self.state()?.options.cluster {
            Cluster::Local {} => Ok(self.layout().kubeconfig()),
            Cluster::Existing { kubeconfig } => Ok(kubeconfig),
            Cluster::None {} => bail!("the instance \"{}\" has no cluster, only database servers", self.name),
        }
    }

    /// Directory with `kubectl`, `helm`, `psql`, `mariadb` and the like.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.layout().bin()
    }

    /// Path of a program such as `kubectl`; whether it exists depends on the kind of the instance.
    #[must_use]
    pub fn bin(&self, program: &str) -> PathBuf {
        self.layout().bin().join(program)
    }

    /// The log of every request to the API server, as JSON lines; exists when the cluster is local.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.layout().audit_log()
    }

    /// Path of the log of a program.
    #[must_use]
    pub fn log(&self, program: &str) -> PathBuf {
        self.layout().log(program)
    }

    /// Directory of the logs.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.layout().logs()
    }

    /// A file in the format of `PGPASSFILE` for all database servers.
    #[must_use]
    pub fn pgpass(&self) -> PathBuf {
        self.layout().pgpass()
    }

    /// A directory for `MYSQL_HOME`: its options make `mariadb` the administrator of the first MariaDB server.
    #[must_use]
    pub fn mysql_home(&self) -> PathBuf {
        self.layout().mysql_home()
    }

    /// The database servers.
    ///
    /// # Errors
    /// When the instance is gone.
    pub fn databases(&self) -> Result<Vec<DatabaseEndpoint>> {
        Ok(self.state()?.databases)
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::new(&self.dirs, &self.name)
    }

    pub(crate) fn state(&self) -> Result<State> {
        match State::load(&self.layout().state())? {
            Some(state) => Ok(state),
            None => bail!(
                "there is no instance \"{}\" (in {}); `up` makes one",
                self.name,
                self.dirs.state.display()
            ),
        }
    }

    pub(crate) async fn lock(&self, progress: &Progress) -> Result<Lock> {
        let waiting = format!("  … another process works on \"{}\": waiting for it", self.name);
        Lock::acquire(&self.layout().lock(), &waiting, progress).await
    }
}
