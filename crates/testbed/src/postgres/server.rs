//! One PostgreSQL server: its data directory, its configuration and how to tell that it is ready.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::binaries::Binaries;
use crate::dirs::{create_dir, random_hex, write_file};
use crate::helper;
use crate::pki::{Pki, Usage};
use crate::process::{CommandSpec, MEMBER_VARIABLE, RunAs};
use crate::user;

/// The superuser of every server.
pub(crate) const ADMIN: &str = "conme_admin";

/// Name of the server with this number, counted from 1.
pub(crate) fn name(number: usize) -> String {
    format!("pg-venis-{number}")
}

/// What all servers of an instance share.
pub(crate) struct Common<'a> {
    pub binaries: &'a Binaries,
    pub run_as: Option<&'a RunAs>,
    /// Parent of the data directories.
    pub home: &'a Path,
    /// Directory of the password files.
    pub secrets: &'a Path,
    pub pki: &'a Pki,
    /// Mark of the instance.
    pub member: &'a str,
    pub fast: bool,
}

/// A server about to be started.
pub(crate) struct Server {
    pub name: String,
    data: PathBuf,
    pub password_file: PathBuf,
}

impl Server {
    /// Makes the data directory unless it exists, and writes the configuration anew.
    pub async fn prepare(common: &Common<'_>, name: &str) -> Result<Self> {
        let dir = common.home.join(name);
        create_dir(&dir, 0o700)?;
        user::give(&dir, common.run_as)?;
        let server = Self {
            name: name.to_owned(),
            data: dir.join("data"),
            password_file: common.secrets.join(format!("{name}.password")),
        };
        if server.data.join("PG_VERSION").exists() {
            server.check_version(common).await?;
        } else {
            server.create(common, &dir).await?;
        }
        server.configure(common)?;
        // Nobody works there any more (the caller has made sure), but the number in it may be that of another process by now.
        let _ = std::fs::remove_file(server.data.join("postmaster.pid"));
        Ok(server)
    }

    async fn check_version(&self, common: &Common<'_>) -> Result<()> {
        let major = std::fs::read_to_string(self.data.join("PG_VERSION"))?;
        let programs = common.binaries.version().await?;
        if programs.split('.').next() != Some(major.trim()) {
            bail!(
                "the data of {} are of PostgreSQL {}, but the programs are {programs}: remove the instance with `down --purge`, \
                 or name the old programs with CONME_POSTGRES_BIN",
                self.name,
                major.trim()
            );
        }
        Ok(())
    }

    async fn create(&self, common: &Common<'_>, dir: &Path) -> Result<()> {
        let password = random_hex(16)?;
        write_file(&self.password_file, 0o600, password.as_bytes())?;
        // initdb reads it as the other user.
        let handed = dir.join("password");
        write_file(&handed, 0o600, password.as_bytes())?;
        user::give(&handed, common.run_as)?;
        let made = self.initdb(common, dir, &handed).await;
        std::fs::remove_file(&handed)?;
        made
    }

    async fn initdb(&self, common: &Common<'_>, dir: &Path, password: &Path) -> Result<()> {
        // Made beside and renamed, so that half a data directory is never taken for a whole one.
        let part = dir.join("data.part");
        let mut result = Ok(());
        for locale in ["--locale=C.UTF-8", "--no-locale"] {
            if part.exists() {
                std::fs::remove_dir_all(&part)
                    .with_context(|| format!("cannot remove {}", part.display()))?;
            }
            let mut spec = common.binaries.command("initdb", dir).args([
                "--pgdata",
                &part.to_string_lossy(),
                "--username",
                ADMIN,
                "--pwfile",
                &password.to_string_lossy(),
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--data-checksums",
                "--no-sync",
                locale,
            ]);
            spec.run_as = common.run_as.cloned();
            // If we are killed meanwhile, `down` finds it.
            spec = spec.env(MEMBER_VARIABLE, common.member);
            result = helper::run(spec.command(), &format!("create the data directory of {}", self.name))
                .await
                .map(drop);
            if result.is_ok() {
                std::fs::rename(&part, &self.data)?;
                break;
            }
        }
        result
    }

    fn configure(&self, common: &Common<'_>) -> Result<()> {
        common.pki.issue(&self.name, "localhost", None, Usage::Server)?;
        let read =
            |path: PathBuf| std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
        let mut files = vec![
            ("server.crt", read(common.pki.cert(&self.name))?),
            ("server.key", read(common.pki.key(&self.name))?),
            ("pg_hba.conf", HBA.into()),
            ("conme.conf", configuration(common.fast).into()),
        ];
        let main = self.data.join("postgresql.conf");
        let mut text = String::from_utf8_lossy(&read(main)?).into_owned();
        if !text.contains(INCLUDE) {
            text.push_str(INCLUDE);
            files.push(("postgresql.conf", text.into_bytes()));
        }
        for (name, content) in files {
            let path = self.data.join(name);
            write_file(&path, 0o600, &content)?;
            user::give(&path, common.run_as)?;
        }
        Ok(())
    }

    /// How it is started.
    pub fn command(&self, common: &Common<'_>, port: u16) -> CommandSpec {
        let data = self.data.to_string_lossy();
        let mut spec =
            common.binaries.command("postgres", &self.data).args(["-D", &data, "-p", &port.to_string()]);
        spec.run_as = common.run_as.cloned();
        spec
    }
}

/// What PostgreSQL says about itself in the last line of its pid file.
pub(crate) fn is_ready(data: &Path) -> bool {
    std::fs::read_to_string(data.join("postmaster.pid"))
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
}

const INCLUDE: &str = "\ninclude 'conme.conf'\n";

/// Nobody without TLS and password; there is no socket in the file system.
const HBA: &str = "\
# Written by conme-testbed at every start.
hostssl all         all all scram-sha-256
hostssl replication all all scram-sha-256
";

fn configuration(fast: bool) -> String {
    let mut text = "\
# Written by conme-testbed at every start.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
ssl_min_protocol_version = 'TLSv1.2'
password_encryption = 'scram-sha-256'
max_connections = 200
shared_buffers = 32MB
max_wal_size = 256MB
min_wal_size = 64MB
wal_level = logical
jit = off
logging_collector = off
log_line_prefix = '%m [%p] %q%u@%d '
"
    .to_owned();
    if fast {
        text.push_str("fsync = off\nfull_page_writes = off\nsynchronous_commit = off\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_enters_without_tls() {
        for line in HBA.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("hostssl ") && line.ends_with("scram-sha-256"), "{line}");
        }
    }

    #[test]
    fn only_the_fast_one_does_not_wait_for_the_disk() {
        assert!(configuration(true).contains("fsync = off"));
        assert!(!configuration(false).contains("fsync"));
    }

    #[test]
    fn ready_is_the_eighth_line() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_ready(dir.path()));
        let file = dir.path().join("postmaster.pid");
        std::fs::write(&file, "1\n/d\n2\n3\n\n127.0.0.1\n  4 5\nstarting\n").unwrap();
        assert!(!is_ready(dir.path()));
        std::fs::write(&file, "1\n/d\n2\n3\n\n127.0.0.1\n  4 5\nready   \n").unwrap();
        assert!(is_ready(dir.path()));
    }
}
