//! One MariaDB server: its data directory, its configuration and how to tell that it is ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncReadExt;

use super::binaries::Binaries;
use crate::dirs::{create_dir, random_hex, write_file};
use crate::helper;
use crate::pki::{Pki, Usage};
use crate::process::{CommandSpec, Identity, MEMBER_VARIABLE, RunAs};
use crate::state::DatabaseEndpoint;
use crate::user;

/// The administrator of every server; there is no `root`.
pub(crate) const ADMIN: &str = "conme_admin";

const PID_FILE: &str = "mariadbd.pid";
/// In the data directory: the version of the programs that made it.
const VERSION_FILE: &str = "mysql_upgrade_info";

/// Name of the server with this number, counted from 1.
pub(crate) fn name(number: usize) -> String {
    format!("mariadb-venis-{number}")
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
    dir: PathBuf,
    pub password_file: PathBuf,
}

impl Server {
    /// Makes the data directory unless it exists, and writes the configuration anew.
    pub async fn prepare(common: &Common<'_>, name: &str) -> Result<Self> {
        let dir = common.home.join(name);
        create_dir(&dir, 0o700)?;
        user::give(&dir, common.run_as)?;
        let password_file = common.secrets.join(format!("{name}.password"));
        let server = Self { name: name.to_owned(), dir, password_file };
        create_dir(&server.temporary(), 0o700)?;
        user::give(&server.temporary(), common.run_as)?;
        if server.data().exists() {
            server.check_version(common).await?;
        } else {
            server.create(common).await?;
        }
        server.configure(common)?;
        Ok(server)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// One of its own: a server that starts clears away what it finds there, also what another one is using.
    fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    async fn check_version(&self, common: &Common<'_>) -> Result<()> {
        let made_by = std::fs::read_to_string(self.data().join(VERSION_FILE)).unwrap_or_default();
        let programs = common.binaries.version().await?;
        let series = |version: &str| version.split('.').take(2).map(str::to_owned).collect::<Vec<_>>();
        if series(made_by.trim()) != series(&programs) {
            bail!(
                "the data of {} are of MariaDB {}, but the programs are {programs}: remove the instance with `down --purge`",
                self.name,
                made_by.trim()
            );
        }
        Ok(())
    }

    async fn create(&self, common: &Common<'_>) -> Result<()> {
        write_file(&self.password_file, 0o600, random_hex(16)?.as_bytes())?;
        // Made beside and renamed, so that half a data directory is never taken for a whole one.
        let part = self.dir.join("data.part");
        if part.exists() {
            std::fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        let mut spec = common.binaries.install_db(&self.dir).args([
            "--no-defaults".to_owned(),
            format!("--datadir={}", part.display()),
            format!("--tmpdir={}", self.temporary().display()),
            "--auth-root-authentication-method=normal".to_owned(),
            "--skip-test-db".to_owned(),
            "--skip-name-resolve".to_owned(),
        ]);
        spec.run_as = common.run_as.cloned();
        // If we are killed meanwhile, `down` finds it.
        spec = spec.env(MEMBER_VARIABLE, common.member);
        helper::run(spec.command(), &format!("create the data directory of {}", self.name)).await?;
        Ok(std::fs::rename(&part, self.data())?)
    }

    fn configure(&self, common: &Common<'_>) -> Result<()> {
        common.pki.issue(&self.name, "localhost", None, Usage::Server)?;
        let read =
            |path: PathBuf| std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
        let password = String::from_utf8_lossy(&read(self.password_file.clone())?).into_owned();
        let files = [
            ("ca.crt", read(common.pki.ca())?),
            ("server.crt", read(common.pki.cert(&self.name))?),
            ("server.key", read(common.pki.key(&self.name))?),
            ("init.sql", accounts(password.trim()).into_bytes()),
            ("server.cnf", configuration(&common.binaries.options(), &self.dir, common.fast).into_bytes()),
        ];
        for (name, content) in files {
            let path = self.dir.join(name);
            write_file(&path, 0o600, &content)?;
            user::give(&path, common.run_as)?;
        }
        Ok(())
    }

    /// How it is started.
    pub fn command(&self, common: &Common<'_>, port: u16) -> CommandSpec {
        let mut spec = common.binaries.server(&self.data()).args([
            format!("--defaults-file={}", self.dir.join("server.cnf").display()),
            format!("--port={port}"),
        ]);
        spec.run_as = common.run_as.cloned();
        spec
    }
}

/// Whether the server that is this process greets on its port.
pub(crate) async fn is_ready(data: &Path, process: Option<&Identity>, port: Option<u16>) -> bool {
    let (Some(process), Some(port)) = (process, port) else { return false };
    // Written when it has its port: else somebody else's server might be the one that greets there.
    let text = std::fs::read_to_string(data.join(PID_FILE)).unwrap_or_default();
    text.trim() == process.pid.to_string() && greets(port).await
}

/// The first packet of a server that lets people in carries version 10 of the protocol.
async fn greets(port: u16) -> bool {
    let greeting = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut packet = [0; 5];
        stream.read_exact(&mut packet).await.ok()?;
        Some(packet[4] == 10)
    };
    tokio::time::timeout(Duration::from_secs(1), greeting).await.ok().flatten().unwrap_or(false)
}

/// What the server does at every start before it lets anybody in.
fn accounts(password: &str) -> String {
    format!(
        "\
CREATE USER IF NOT EXISTS '{ADMIN}'@'%' IDENTIFIED BY '{password}';
GRANT ALL PRIVILEGES ON *.* TO '{ADMIN}'@'%' WITH GRANT OPTION;
DELETE FROM mysql.global_priv WHERE User = 'root';
FLUSH PRIVILEGES;
"
    )
}

fn configuration(programs: &str, dir: &Path, fast: bool) -> String {
    let dir = dir.display();
    let mut text = format!(
        "\
# Written by conme-testbed at every start.
[mariadbd]
{programs}datadir={dir}/data
tmpdir={dir}/tmp
pid-file={dir}/data/{PID_FILE}
init-file={dir}/init.sql
bind-address=127.0.0.1
socket=
skip-name-resolve
require-secure-transport=ON
ssl-ca={dir}/ca.crt
ssl-cert={dir}/server.crt
ssl-key={dir}/server.key
tls-version=TLSv1.2,TLSv1.3
character-set-server=utf8mb4
max-connections=200
innodb-buffer-pool-size=64M
innodb-log-file-size=32M
key-buffer-size=1M
performance-schema=OFF
"
    );
    if fast {
        // Handed to the system at each commit (2, not 0): the crash of a server loses nothing, only that of the machine.
        text.push_str(
            "innodb-flush-method=nosync\ninnodb-flush-log-at-trx-commit=2\ninnodb-doublewrite=OFF\n",
        );
    }
    text
}

/// Writes the options by which the clients of MariaDB are administrators of a server.
pub(crate) fn write_client_options(dir: &Path, endpoint: &DatabaseEndpoint) -> Result<()> {
    create_dir(dir, 0o700)?;
    let file = &endpoint.admin_password_file;
    let password =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = format!(
        "# Written by conme-testbed at every start.\n[client]\nhost={}\nport={}\nprotocol=tcp\nuser={}\npassword={}\n\
         ssl-ca={}\nssl-verify-server-cert\n",
        endpoint.host,
        endpoint.port,
        endpoint.admin_user,
        password.trim(),
        endpoint.ca_file.display()
    );
    write_file(&dir.join("my.cnf"), 0o600, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_enters_without_tls() {
        for fast in [true, false] {
            let text = configuration("", Path::new("/d"), fast);
            assert!(text.contains("require-secure-transport=ON") && text.contains("bind-address=127.0.0.1"));
            assert_eq!(text.contains("nosync"), fast, "only the fast one does not wait for the disk");
        }
    }

    #[tokio::test]
    async fn ready_is_who_has_the_port_and_greets() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = Some(listener.local_addr().unwrap().port());
        let own = Identity::own().unwrap();
        let greeter = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &[74, 0, 0, 0, 10, b'x']).await;
            }
        });
        assert!(!is_ready(dir.path(), Some(&own), port).await, "it has written no number");
        std::fs::write(dir.path().join(PID_FILE), "1\n").unwrap();
        assert!(!is_ready(dir.path(), Some(&own), port).await, "that of another process");
        std::fs::write(dir.path().join(PID_FILE), format!("{}\n", own.pid)).unwrap();
        assert!(is_ready(dir.path(), Some(&own), port).await);
        greeter.abort();
        let _ = greeter.await;
        assert!(!is_ready(dir.path(), Some(&own), port).await, "nobody greets");
    }
}
