//! The files of an instance.

use std::path::PathBuf;

use crate::dirs::Dirs;

/// The files of an instance.
pub(crate) struct Layout {
    dir: PathBuf,
    lock: PathBuf,
}

impl Layout {
    pub fn new(dirs: &Dirs, name: &str) -> Self {
        Self { dir: dirs.instance(name), lock: dirs.state.join(format!(".{name}.lock")) }
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// Outside the directory, which comes and goes.
    pub fn lock(&self) -> PathBuf {
        self.lock.clone()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn log(&self, program: &str) -> PathBuf {
        self.logs().join(format!("{program}.log"))
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    pub fn secrets(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    pub fn pgpass(&self) -> PathBuf {
        self.secrets().join("pgpass")
    }

    pub fn mysql_home(&self) -> PathBuf {
        self.secrets().join("mysql")
    }
}
