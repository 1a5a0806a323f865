//! What a caller asks for and what it gets back: plain values.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use crate::{InvalidName, Names, Secret};

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
    /// Whether the application's login was proved; `false` when all its connections are in use.
    pub login_proved: bool,
    /// For the application's binding.
    pub binding: Binding,
}

/// What [`crate::secure_server`] did and saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secured {
    /// What was changed, in a few words each; empty when nothing had to be.
    pub changed: Vec<String>,
    /// Other databases that every role of the server may connect to: not ours to change.
    pub open_databases: Vec<String>,
}
