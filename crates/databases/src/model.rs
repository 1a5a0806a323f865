//! What a caller asks for and what it gets back: plain values.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use crate::{InvalidName, Login, Names, Secret};

/// The kind of database server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL, 13 or later.
    Postgresql,
    /// MariaDB, 10.6 or later.
    Mariadb,
}

/// How a connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsMode {
    /// TLS, with the server's certificate and name checked against these authorities only.
    VerifyFull {
        /// One or more CA certificates in PEM.
        ca_pem: String,
    },
    /// No encryption: for a PostgreSQL server on the loopback interface only.
    Disabled,
}

/// The limits of time of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From dialling to a connection that is logged in.
    pub connect: Duration,
    /// One statement on the server.
    pub statement: Duration,
    /// Waiting for a lock that somebody else holds, also for another operator at work on the same database.
    pub lock: Duration,
    /// The whole call.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            statement: Duration::from_secs(60),
            lock: Duration::from_secs(10),
            total: Duration::from_secs(180),
        }
    }
}

/// A shared database server and how to log in there as its administrator.
#[derive(Debug, Clone)]
pub struct Server {
    /// What kind of server it is.
    pub engine: Engine,
    /// Host name or IP address; the server's certificate must be for it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Encryption of all connections.
    pub tls: TlsMode,
    /// The administrator: a superuser of PostgreSQL, an account with all privileges and `GRANT OPTION` of MariaDB.
    pub admin_user: String,
    /// The administrator's password.
    pub admin_password: Secret,
    /// Limits of time.
    pub timeouts: Timeouts,
}

/// Who a database belongs to, as written into the comments on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerTag {
    /// ISTAT code of the municipality (6 digits); a union of municipalities has none.
    pub istat: Option<String>,
    /// The uid of the municipality's resource. It changes when the resource is created anew.
    pub uid: String,
    /// Uids that its resource had before: what carries one of them is this administration's, too.
    pub former_uids: Vec<String>,
}

/// The memory of a database that was provisioned, kept by the caller and handed back on every call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// The server's own identity: `system_identifier` of PostgreSQL, the id in the registry of MariaDB. Absent when the
    /// server does not tell it.
    pub system_identifier: Option<String>,
    /// When the database was first as declared, in whole seconds.
    pub at: Timestamp,
}

/// The declared state of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The municipality's name.
    pub comune: String,
    /// The database's name within the municipality.
    pub database: String,
    /// Who it belongs to.
    pub tag: OwnerTag,
    /// Extensions that must be there. One that is no longer declared is never dropped, only reported.
    pub extensions: BTreeSet<String>,
    /// Extensions that this server allows; the site's decision.
    ///
    /// Extensions are installed by the administrator into a schema where the application may create objects, so only
    /// ones that are safe against that belong here (those of PostgreSQL itself are).
    pub allowed_extensions: BTreeSet<String>,
    /// The most connections of the application at a time; unlimited when absent.
    pub connection_limit: Option<i32>,
    /// Locale for a database that is made; that of the server's `template0` when absent.
    pub locale: Option<String>,
    /// Take over a database or roles of that name that carry nobody's tag.
    pub adopt: bool,
    /// The login whose password is handed to [`crate::ensure`] and proved.
    pub login: Login,
    /// What becomes of the other login.
    pub other_login: OtherLogin,
    /// Which of the credentials of this database it is, so that a caller whom another one has overtaken does no harm;
    /// absent when that is not known.
    pub generation: Option<Generation>,
    /// Whether the application may enter at all. A database that is being filled by a migration is closed: no login,
    /// no right to connect, sessions ended.
    pub open: bool,
    /// The size on disk, in bytes, at which growth is stopped; never when absent.
    pub max_bytes: Option<u64>,
    /// The name of the server on which it was provisioned, when the manifest names another one by now.
    pub moved_from: Option<String>,
    /// What the caller remembers of an earlier success.
    ///
    /// To start with an empty database after data was lost for good, a person's word is needed; the caller then
    /// passes `None` here.
    pub provisioned: Option<Provisioned>,
}

impl Desired {
    /// The names on the server.
    ///
    /// # Errors
    /// [`InvalidName`] when the municipality or the database has a name with no safe form.
    pub fn names(&self) -> Result<Names, InvalidName> {
        Names::new(&self.comune, &self.database)
    }
}

/// What becomes of the login that is not in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherLogin {
    /// It stays as it is: applications may still hold it.
    Keep,
    /// It is closed if no session uses it, after the login in force has been proved.
    CloseWhenUnused,
    /// It is closed, after the login in force has been proved, and its sessions are ended.
    Close,
}

/// A credential among those that a database has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// 1 for the first, one more with each that followed.
    pub number: u32,
    /// Whether the applications have been handed it. From then on no older one is put in force, and no other one of the
    /// same number.
    pub handed_out: bool,
}

/// Whether a database may grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Growth {
    /// As much as it likes.
    #[default]
    Free,
    /// It has reached its size: sessions are read-only unless a person says otherwise in theirs to clear up, and nothing
    /// new can be made.
    Stopped,
    /// It went on growing although it was stopped: the application cannot log in any more.
    Closed,
}

/// What an application needs to connect, beside its password and the CA, which the caller has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Host name or IP address of the server.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The database's name on the server.
    pub database: String,
    /// The role to log in as.
    pub username: String,
}

/// A database that is as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was changed, in a few words each; empty when everything was as declared.
    pub changed: Vec<String>,
    /// To be remembered by the caller.
    pub provisioned: Provisioned,
    /// The server's version, for example `15.18`.
    pub server_version: String,
    /// The database's size on disk, in bytes.
    pub size_bytes: u64,
    /// Extensions that are installed and neither declared nor needed by a declared one.
    pub undeclared_extensions: Vec<String>,
    /// Roles that are not of this system and may connect to the database (backup, monitoring): left alone, reported.
    pub other_grantees: Vec<String>,
    /// Whether the application's login was proved; `false` when all its connections are in use, and when the database
    /// is closed.
    pub login_proved: bool,
    /// Whether the login that is not in force may still log in.
    pub other_login_open: bool,
    /// How many sessions of the login that is not in force there were.
    pub other_sessions: u32,
    /// The number of the last credential that is known on the server to have been handed out.
    pub generation: u32,
    /// Whether it may grow.
    pub growth: Growth,
    /// For the application's binding.
    pub binding: Binding,
}

/// What [`crate::drop_database_while`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What was dropped, in a few words each; empty when nothing was left.
    pub changed: Vec<String>,
}

/// A database of a server that carries the mark of some municipality.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its name on the server.
    pub on_server: String,
    /// The municipality's name.
    pub comune: String,
    /// The database's name within the municipality.
    pub database: String,
    /// ISTAT code of the municipality, if it has one.
    pub istat: Option<String>,
}

/// What [`crate::secure_server`] did and saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secured {
    /// What was changed, in a few words each; empty when nothing had to be.
    pub changed: Vec<String>,
    /// Other databases that every role of the server may connect to: not ours to change.
    pub open_databases: Vec<String>,
}
