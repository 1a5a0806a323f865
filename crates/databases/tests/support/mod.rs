//! A real PostgreSQL server for a test: own data directory, own CA, TLS only, gone with the test.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, OnceLock},
    time::Duration,
};

use conme_databases::{Engine, Secret, Server, Timeouts, TlsMode};
use nix::unistd::User;
use tokio_postgres::{Client, SimpleQueryMessage};

pub const ADMIN: &str = "postgres";
pub const ADMIN_PASSWORD: &str = "the-administrator's \"own\" password";
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Stopped and removed when dropped, and also when the test's process dies in whatever way: its
/// guardian sees the end of a pipe.
pub struct Postgres {
    pub port: u16,
    pub ca_pem: String,
    guardian: Child,
    lifeline: Option<ChildStdin>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Log {
    fn wait_for(&self, text: &str) -> Result<Vec<String>, String> {
        let lines = self.lines.lock().unwrap();
        let found = |lines: &(Vec<String>, bool)| lines.1 || lines.0.iter().any(|line| line.contains(text));
        let (lines, timeout) = self.grown.wait_timeout_while(lines, PATIENCE, |lines| !found(lines)).unwrap();
        let seen = lines.0.iter().any(|line| line.contains(text));
        if seen && !timeout.timed_out() { Ok(lines.0.clone()) } else { Err(lines.0.join("\n")) }
    }
}

impl Postgres {
    /// One server for all the tests of the process that need nothing special.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    pub fn start() -> Self {
        Self::start_at(None)
    }

    pub fn start_at(port: Option<u16>) -> Self {
        // Another process may take the port between asking for a free one and using it.
        for _ in 0..5 {
            match Self::try_start(port.unwrap_or_else(free_port)) {
                Ok(server) => return server,
                Err(log) if log.contains("could not bind") => {}
                Err(log) => panic!("the server did not start:\n{log}"),
            }
        }
        panic!("no free port");
    }

    fn try_start(port: u16) -> Result<Self, String> {
        let user = server_user();
        let dir = tempfile::Builder::new().prefix("conme-databases-").tempdir().unwrap().keep();
        own(&dir, user.as_ref(), 0o700);
        let (ca_pem, cert_pem, key_pem) = certificates();
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            own(&path, user.as_ref(), 0o600);
            path
        };
        let cert = write("server.crt", &cert_pem);
        let key = write("server.key", &key_pem);
        let hba = write("pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n");
        let password = write("password", ADMIN_PASSWORD);

        let bin = binaries();
        let data = dir.join("data");
        let mut initdb = as_user(Command::new(bin.join("initdb")), user.as_ref());
        let made = initdb
            .args(["--no-sync", "--locale=C.UTF-8", "--encoding=UTF8", "--auth=scram-sha-256"])
            .arg(format!("--username={ADMIN}"))
            .arg(format!("--pwfile={}", password.display()))
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));

        // The shell outlives its parent just long enough to stop the server and to remove its files.
        let script = r#"dir=$1; shift; "$@" </dev/null & server=$!
cat >/dev/null; kill -INT $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$dir""#;
        let mut guardian = as_user(Command::new("/bin/sh"), user.as_ref());
        guardian.args(["-c", script, "guardian"]).arg(&dir).arg(bin.join("postgres")).arg("-D").arg(&data);
        for setting in [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", cert.display()),
            format!("ssl_key_file={}", key.display()),
            format!("hba_file={}", hba.display()),
            "fsync=off".to_owned(),
            "log_statement=all".to_owned(),
            "log_line_prefix=%m [%p] %u@%d ".to_owned(),
            "max_connections=200".to_owned(),
            "shared_buffers=32MB".to_owned(),
        ] {
            guardian.arg("-c").arg(setting);
        }
        let mut guardian =
            // A group of its own: an interrupt from the keyboard must not end the guardian before it has cleaned up.
            guardian.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lifeline = guardian.stdin.take();
        let stderr = guardian.stderr.take().unwrap();
        let log = Arc::new(Log::default());
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                writer.lines.lock().unwrap().0.push(line);
                writer.grown.notify_all();
            }
            writer.lines.lock().unwrap().1 = true;
            writer.grown.notify_all();
        });
        let server = Self { port, ca_pem, guardian, lifeline, log };
        // A server that cannot start says so and ends; its guardian then still waits for us.
        match server.log.wait_for("database system is ready to accept connections") {
            Ok(_) => Ok(server),
            Err(log) => Err(log),
        }
    }

    /// How the crate under test reaches it.
    pub fn server(&self) -> Server {
        Server {
            engine: Engine::Postgresql,
            host: "127.0.0.1".to_owned(),
            port: self.port,
            tls: TlsMode::VerifyFull { ca_pem: self.ca_pem.clone() },
            admin_user: ADMIN.to_owned(),
            admin_password: Secret::new(ADMIN_PASSWORD),
            timeouts: Timeouts {
                connect: Duration::from_secs(30),
                lock: Duration::from_secs(30),
                ..Default::default()
            },
        }
    }

    /// A login independent of the crate under test.
    pub async fn login(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut roots = rustls::RootCertStore::empty();
        use rustls_pki_types::pem::PemObject;
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user(user)
            .password(password)
            .dbname(database)
            .ssl_mode(tokio_postgres::config::SslMode::Require)
            .connect(tokio_postgres_rustls::MakeRustlsConnect::new(tls))
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn admin(&self, database: &str) -> Client {
        self.login(database, ADMIN, ADMIN_PASSWORD).await.unwrap()
    }

    /// All that the server has logged until now.
    pub async fn log(&self) -> Vec<String> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let mark = format!("end-of-log-{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.admin("postgres").await.simple_query(&format!("select '{mark}'")).await.unwrap();
        // All processes of the server write into one pipe; what was logged before the mark comes before it.
        self.log.wait_for(&mark).unwrap()
    }

    /// Stops the server and waits until it is gone.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.lifeline.take());
        let _ = self.guardian.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end();
    }
}

/// The first column of all rows.
pub async fn column(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap();
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("(null)").to_owned()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// PostgreSQL refuses to run as root.
fn server_user() -> Option<User> {
    nix::unistd::geteuid().is_root().then(|| {
        let find = |name| User::from_name(name).ok().flatten();
        find("postgres").or_else(|| find("nobody")).expect("a user to run the server as")
    })
}

fn as_user(mut command: Command, user: Option<&User>) -> Command {
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

fn own(path: &Path, user: Option<&User>, mode: u32) {
    if let Some(user) = user {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn binaries() -> PathBuf {
    let has_server = |dir: &PathBuf| dir.join("initdb").exists() && dir.join("postgres").exists();
    let mut packaged: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|dirs| dirs.flatten().map(|dir| dir.path().join("bin")).filter(has_server).collect())
        .unwrap_or_default();
    packaged.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(has_server)
        .or_else(|| packaged.pop())
        .expect("a PostgreSQL server (initdb, postgres) in PATH or /usr/lib/postgresql")
}

fn certificates() -> (String, String, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let cert = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    (ca_pem, cert.pem(), key.serialize_pem())
}
