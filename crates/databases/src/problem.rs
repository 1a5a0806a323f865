//! Why a database is not as declared, in words for a system administrator.

use std::time::Duration;

use crate::InvalidName;

/// Why a database is not as declared, and what to do next. Never holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The name of the municipality or of the database has no safe form on a server.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),

    /// The database was provisioned before, and its data is not where it was. Nothing was created in its place.
    #[error(
        "database \"{database}\" was provisioned on {since} and {missing}. Nothing was created in its place: restore the backup, or confirm that the data may be replaced"
    )]
    DataMissing {
        /// The database's name on the server.
        database: String,
        /// When it had been provisioned, or "an earlier run" when that is not known.
        since: String,
        /// What exactly is missing.
        missing: MissingData,
    },

    /// The manifest names another server than the one that holds the data. Nothing was changed.
    #[error(
        "database \"{database}\" was provisioned on {since} on the server \"{from}\", and `placement` names another one. Its data does not move by an edit, that is a migration: name \"{from}\" again. Nothing was changed on either server"
    )]
    Moved {
        /// The database's name on the server.
        database: String,
        /// When it had been provisioned, or "an earlier run" when that is not known.
        since: String,
        /// The server that holds the data.
        from: String,
    },

    /// A database or role of that name is somebody else's. Nothing was changed.
    #[error("{object} exists and is not ours to change: {found}. {advice}")]
    NotOurs {
        /// For example `database "dolo__protocollo"`.
        object: String,
        /// What its comment says.
        found: String,
        /// What to do next.
        advice: &'static str,
    },

    /// An extension that this server does not allow.
    #[error(
        "extension \"{extension}\"{needed_by} is not allowed on this server (allowed: {allowed}). Remove it, or have the data centre allow it for this server"
    )]
    ExtensionNotAllowed {
        /// The extension.
        extension: String,
        /// Empty, or which declared extension needs it.
        needed_by: String,
        /// The names that are allowed, separated by commas.
        allowed: String,
    },

    /// An extension that is allowed, but whose files are not installed on the server.
    #[error(
        "extension \"{extension}\" is allowed but not installed on this server: install its package there (often part of postgresql-contrib)"
    )]
    ExtensionUnavailable {
        /// The extension.
        extension: String,
    },

    /// The server did not answer or closed the connection.
    #[error(
        "cannot reach {server}: {message}. Check that the server runs and that its address and port are right; tried again by itself"
    )]
    Unreachable {
        /// Host and port.
        server: String,
        /// In the words of the system or the server.
        message: String,
    },

    /// The server refused the login.
    #[error(
        "{server} refused the login of role \"{user}\": {message}. Check the user and password of the credentials, and whom the server lets in (PostgreSQL: pg_hba.conf)"
    )]
    AuthenticationFailed {
        /// Host and port.
        server: String,
        /// The role.
        user: String,
        /// In the server's words.
        message: String,
    },

    /// No trusted connection to the server could be made.
    #[error(
        "no trusted connection to {server}: {message}. Check the CA and that the certificate is for this host name"
    )]
    Tls {
        /// Host and port.
        server: String,
        /// What is wrong.
        message: String,
    },

    /// The server refused a statement.
    #[error("the server refused to {doing}: {message} (SQLSTATE {sqlstate})")]
    Server {
        /// What was being done.
        doing: String,
        /// The five characters of the error code.
        sqlstate: String,
        /// In the server's words.
        message: String,
    },

    /// Another operator is at work on the same database.
    #[error("another operator is at work on database \"{database}\": tried again by itself")]
    Busy {
        /// The database's name on the server.
        database: String,
    },

    /// Another operator has replaced the credential meanwhile. Nothing was changed.
    #[error(
        "another operator has replaced the password of database \"{database}\" meanwhile (credential {found}, not {known}): tried again by itself"
    )]
    Overtaken {
        /// The database's name on the server.
        database: String,
        /// The number of the credential in force.
        found: u32,
        /// The number that the caller knows.
        known: u32,
    },

    /// A limit of time was reached.
    #[error("no answer within {} s while trying to {doing}: tried again by itself", limit.as_secs_f32())]
    Timeout {
        /// What was being done.
        doing: String,
        /// The limit.
        limit: Duration,
    },

    /// The caller withdrew its permission to write.
    #[error("stopped before: {before}")]
    Stopped {
        /// The step that was not taken.
        before: String,
    },

    /// Everything was done and yet not all is as declared: somebody changes it at the same time.
    #[error(
        "after all changes these are still to be done: {left}. Does somebody else change the same database?"
    )]
    NotConverged {
        /// What is left, separated by commas.
        left: String,
    },

    /// The server answered in a way that was not understood.
    #[error("{server} answered in an unknown form: {message}")]
    UnknownAnswer {
        /// Host and port.
        server: String,
        /// What was not understood.
        message: String,
    },
}

impl Problem {
    /// A stable CamelCase word, for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "InvalidName",
            Self::DataMissing { .. } => "DataMissing",
            Self::Moved { .. } => "Moved",
            Self::NotOurs { .. } => "NotOurs",
            Self::ExtensionNotAllowed { .. } => "ExtensionNotAllowed",
            Self::ExtensionUnavailable { .. } => "ExtensionUnavailable",
            Self::Unreachable { .. } => "ServerUnreachable",
            Self::AuthenticationFailed { .. } => "AuthenticationFailed",
            Self::Tls { .. } => "TlsFailed",
            Self::Server { .. } => "ServerRefused",
            Self::Busy { .. } => "Busy",
            Self::Overtaken { .. } => "Overtaken",
            Self::Timeout { .. } => "Timeout",
            Self::Stopped { .. } => "Stopped",
            Self::NotConverged { .. } => "NotConverged",
            Self::UnknownAnswer { .. } => "UnknownAnswer",
        }
    }

    /// Whether it can only go away when a person does something; otherwise trying again may help.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::InvalidName(_)
            | Self::DataMissing { .. }
            | Self::Moved { .. }
            | Self::NotOurs { .. }
            | Self::ExtensionNotAllowed { .. }
            | Self::ExtensionUnavailable { .. }
            | Self::AuthenticationFailed { .. }
            | Self::Tls { .. } => true,
            Self::Unreachable { .. }
            | Self::Server { .. }
            | Self::Busy { .. }
            | Self::Overtaken { .. }
            | Self::Timeout { .. }
            | Self::Stopped { .. }
            | Self::NotConverged { .. }
            | Self::UnknownAnswer { .. } => false,
        }
    }
}

/// What exactly is missing of a database that was provisioned before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MissingData {
    /// There is no database of that name.
    #[error("does not exist any more on its server")]
    Gone,
    /// The server is not the one of then: emptied, rebuilt, upgraded by a dump, or another one at the same address.
    #[error(
        "the server is not the one of then: its system identifier was {expected} and is {found} (the database {} there)",
        if *.database_present { "exists" } else { "does not exist" }
    )]
    ServerReplaced {
        /// The identity that the caller remembers.
        expected: String,
        /// The identity of the server that answered.
        found: String,
        /// Whether a database of that name is there.
        database_present: bool,
    },
    /// A `DROP DATABASE` was interrupted: the server keeps the name, the data is unusable.
    #[error("was left half dropped by an interrupted DROP DATABASE, so its data is unusable")]
    HalfDropped,
}
