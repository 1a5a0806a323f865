//! Brings a municipality's database on a *shared* server to the declared state; knows nothing of Kubernetes.
//!
//! A caller says what it wants ([`Desired`]) and where ([`Server`]), calls [`ensure`], and gets an [`Outcome`] with
//! what was changed (nothing, when all is as declared: the second run writes nothing on the server) or a [`Problem`]
//! in words for a system administrator. What to do is decided in a pure function ([`postgresql::plan`],
//! [`mariadb::plan`]), what is done is a list of typed steps ([`postgresql::Step`], [`mariadb::Step`]); only the thin
//! modules around them talk to the server.
//!
//! **Bringing a database about never deletes data.** No [`postgresql::Step`] and no [`mariadb::Step`] drops a database, a
//! role or an extension, and a database that was provisioned before and has vanished is never created anew
//! ([`Problem::DataMissing`]). What drops a database is apart, has types of its own ([`postgresql::Removal`],
//! [`mariadb::Removal`]) and refuses what is not provably the municipality's: [`drop_database_while`].

mod authority;
mod call;
mod credential;
mod growth;
mod identifiers;
pub mod mariadb;
mod model;
pub mod postgresql;
mod problem;
mod secret;
mod tag;

pub use credential::{Credential, Renewal, Retiring, Rotation, rotation};
pub use growth::{Before, growth};
pub use identifiers::{InvalidName, Login, MAX_IDENTIFIER_BYTES, Names, database_name};
pub use model::{
    Binding, Desired, Engine, Generation, Growth, Marked, OtherLogin, Outcome, OwnerTag, Provisioned,
    Removed, Secured, Server, Timeouts, TlsMode,
};
pub use problem::{MissingData, Problem};
pub use secret::Secret;

/// Brings one database to the declared state and proves that the application can log in.
///
/// The whole call is bounded by [`Timeouts::total`]. It may be called at the same time for different databases of the
/// same server; two calls for the same database (also from two operators) wait for each other.
///
/// # Errors
/// See [`Problem`]; what was done before the error stays, and the next call goes on from there.
pub async fn ensure(server: &Server, desired: &Desired, password: &Secret) -> Result<Outcome, Problem> {
    ensure_while(server, desired, password, |_| true).await
}

/// As [`ensure`], but asks `go_on`, with the words of the step, right before each step that writes.
///
/// A caller that lost its right to act meanwhile (its lease, for example) answers `false`: nothing more is written.
///
/// # Errors
/// [`Problem::Stopped`] when `go_on` said no, and those of [`ensure`].
pub async fn ensure_while(
    server: &Server,
    desired: &Desired,
    password: &Secret,
    go_on: impl Fn(&str) -> bool + Send + Sync,
) -> Result<Outcome, Problem> {
    match server.engine {
        Engine::Postgresql => {
            let go_on = |step: &postgresql::Step| go_on(&step.words());
            postgresql::ensure(server, desired, password, &go_on).await
        }
        Engine::Mariadb => mariadb::ensure(server, desired, password, &go_on).await,
    }
}

/// Closes what a server leaves open to everybody by default: `CONNECT` on the maintenance databases of PostgreSQL,
/// accounts without name and the database `test` of MariaDB.
///
/// For the server as a whole: call it before the first [`ensure`] on a server and then at a slow pace. Changes only
/// what needs it.
///
/// # Errors
/// See [`Problem`].
pub async fn secure_server(server: &Server) -> Result<Secured, Problem> {
    match server.engine {
        Engine::Postgresql => postgresql::secure_server(server).await,
        Engine::Mariadb => mariadb::secure_server(server).await,
    }
}

/// Drops one database with its roles or accounts, after ending the sessions in it. What is gone already is no error.
///
/// Asks `go_on`, with the words of the step, right before each step. Whoever calls has a person's word for it.
///
/// # Errors
/// [`Problem::NotOurs`] when the database is not provably of `desired.tag`; nothing was dropped then.
/// [`Problem::Stopped`] when `go_on` said no, and those of any call.
pub async fn drop_database_while(
    server: &Server,
    desired: &Desired,
    go_on: impl Fn(&str) -> bool + Send + Sync,
) -> Result<Removed, Problem> {
    match server.engine {
        Engine::Postgresql => postgresql::remove(server, desired, &go_on).await,
        Engine::Mariadb => mariadb::remove(server, desired, &go_on).await,
    }
}

/// All databases of a server that carry the mark of some municipality, whether it still exists or not. Writes nothing.
///
/// # Errors
/// See [`Problem`].
pub async fn marked_databases(server: &Server) -> Result<Vec<Marked>, Problem> {
    match server.engine {
        Engine::Postgresql => postgresql::marked_databases(server).await,
        Engine::Mariadb => mariadb::marked_databases(server).await,
    }
}
