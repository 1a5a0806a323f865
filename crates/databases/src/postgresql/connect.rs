//! Connections to a server, and the server's errors in words.

use std::{error::Error as _, sync::Arc, time::Duration};

use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    Client, Config, Connection, Error, NoTls,
    config::SslMode,
    error::SqlState,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Removal, Step};
use crate::{Problem, Secret, Server, TlsMode, authority};

/// How long a connection may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a connection was not made.
pub(super) enum Refusal {
    /// The password of the role is another one, or it has none.
    WrongPassword(Problem),
    /// The server or the database takes no more connections at the moment.
    Full(Problem),
    /// Everything else.
    Other(Problem),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::WrongPassword(problem) | Refusal::Full(problem) | Refusal::Other(problem) => problem,
        }
    }
}

/// A connection that is logged in. Dropped without [`Session::close`], the connection is cut.
pub struct Session {
    client: Client,
    connection: AbortOnDrop,
    address: String,
    limits: crate::Timeouts,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Connects as the administrator to a database of the server.
    ///
    /// # Errors
    /// [`Problem::Unreachable`], [`Problem::Tls`], [`Problem::AuthenticationFailed`], [`Problem::Timeout`] and
    /// [`Problem::Server`].
    pub async fn admin(server: &Server, database: &str) -> Result<Self, Problem> {
        Ok(Self::open(server, database, &server.admin_user, &server.admin_password).await?)
    }

    pub(super) async fn open(
        server: &Server,
        database: &str,
        user: &str,
        password: &Secret,
    ) -> Result<Self, Refusal> {
        let address = format!("{}:{}", server.host, server.port);
        let limits = server.timeouts.clone();
        let mut config = Config::new();
        config
            .host(&server.host)
            .port(server.port)
            .dbname(database)
            .user(user)
            .password(password.expose())
            .application_name("conme")
            .connect_timeout(limits.connect)
            .keepalives_idle(Duration::from_secs(30))
            // An empty search path: whatever a tenant puts into its schemas, the administrator never calls it by
            // a name without a schema. And a database whose growth is stopped does not stop the administrator.
            .options(format!(
                "-c search_path= -c default_transaction_read_only=off -c statement_timeout={} -c lock_timeout={}",
                limits.statement.as_millis(),
                limits.lock.as_millis(),
            ));
        let dial = async {
            match &server.tls {
                TlsMode::Disabled => {
                    config.ssl_mode(SslMode::Disable);
                    config.connect(NoTls).await.map(|(client, connection)| (client, spawn(connection)))
                }
                TlsMode::VerifyFull { ca_pem } => {
                    config.ssl_mode(SslMode::Require);
                    let tls = tls_config(ca_pem).map_err(|message| {
                        Refusal::Other(Problem::Tls { server: address.clone(), message })
                    })?;
                    config
                        .connect(MakeRustlsConnect::new(tls))
                        .await
                        .map(|(client, connection)| (client, spawn(connection)))
                }
            }
            .map_err(|error| refusal(&error, &address, user))
        };
        let (client, connection) = timeout(limits.connect, dial).await.map_err(|_| {
            Refusal::Other(Problem::Timeout {
                doing: format!("connect to database \"{database}\" on {address}"),
                limit: limits.connect,
            })
        })??;
        Ok(Self { client, connection, address, limits })
    }

    /// Says goodbye to the server, so that it has let go of the session's locks soon.
    pub async fn close(self) {
        let Self { client, mut connection, .. } = self;
        drop(client);
        // Whoever does not answer a goodbye is cut off by the drop.
        let _ = timeout(FAREWELL, &mut connection.0).await;
    }

    /// Runs one step's statement.
    ///
    /// # Errors
    /// As any statement on the server.
    pub async fn execute(&self, step: &Step) -> Result<(), Problem> {
        self.client.batch_execute(&step.sql()).await.map_err(|error| self.problem(&error, &step.words()))
    }

    /// Runs one step of a removal.
    pub(super) async fn remove(&self, step: &Removal) -> Result<(), Problem> {
        self.client.batch_execute(&step.sql()).await.map_err(|error| self.problem(&error, &step.words()))
    }

    /// Waits for a lock that is held until the session ends. `Ok(false)` when somebody else keeps it.
    pub(super) async fn lock(&self, key: i64) -> Result<bool, Problem> {
        match self.client.query_typed("select pg_advisory_lock($1)", &[(&key, Type::INT8)]).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(false),
            Err(error) => Err(self.problem(&error, "take the lock of the database")),
        }
    }

    pub(super) async fn text(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<String, Problem> {
        let row = self
            .client
            .query_typed_one(sql, params)
            .await
            .map_err(|error| self.problem(&error, "read the state of the server"))?;
        row.try_get(0).map_err(|error| self.unknown_answer(&error))
    }

    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<T, Problem> {
        serde_json::from_str(&self.text(sql, params).await?).map_err(|error| self.unknown_answer(&error))
    }

    fn unknown_answer(&self, error: &dyn std::error::Error) -> Problem {
        Problem::UnknownAnswer { server: self.address.clone(), message: error.to_string() }
    }

    fn problem(&self, error: &Error, doing: &str) -> Problem {
        let Some(refused) = error.as_db_error() else {
            return Problem::Unreachable { server: self.address.clone(), message: chain(error) };
        };
        let doing = doing.to_owned();
        match refused.code() {
            &SqlState::QUERY_CANCELED => Problem::Timeout { doing, limit: self.limits.statement },
            &SqlState::LOCK_NOT_AVAILABLE => Problem::Timeout { doing, limit: self.limits.lock },
            code if is_shutdown(code) => {
                Problem::Unreachable { server: self.address.clone(), message: refused.message().to_owned() }
            }
            code => Problem::Server { doing, sqlstate: code.code().to_owned(), message: words(refused) },
        }
    }
}

fn spawn<S, T>(connection: Connection<S, T>) -> AbortOnDrop
where
    Connection<S, T>: Future<Output = Result<(), Error>> + Send + 'static,
{
    AbortOnDrop(tokio::spawn(async move {
        // Whoever waits for an answer on this connection gets the error too.
        if let Err(error) = connection.await {
            tracing::debug!(error = %chain(&error), "connection to a database server ended");
        }
    }))
}

fn tls_config(ca_pem: &str) -> Result<ClientConfig, String> {
    let roots = authority::roots(ca_pem)?;
    // The provider is named here: nothing depends on a default that another part of the program might set.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn refusal(error: &Error, address: &str, user: &str) -> Refusal {
    let server = address.to_owned();
    let user = user.to_owned();
    if let Some(refused) = error.as_db_error() {
        let message = words(refused);
        return match refused.code() {
            &SqlState::INVALID_PASSWORD => {
                Refusal::WrongPassword(Problem::AuthenticationFailed { server, user, message })
            }
            &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                Refusal::Other(Problem::AuthenticationFailed { server, user, message })
            }
            &SqlState::TOO_MANY_CONNECTIONS => Refusal::Full(Problem::Unreachable { server, message }),
            code if is_shutdown(code) => Refusal::Other(Problem::Unreachable { server, message }),
            code => Refusal::Other(Problem::Server {
                doing: format!("let role \"{user}\" in"),
                sqlstate: code.code().to_owned(),
                message,
            }),
        };
    }
    // The client library tells the kind of such an error by its text alone (covered by tests).
    let kind = error.to_string();
    let message = chain(error);
    Refusal::Other(if kind.contains("TLS") {
        Problem::Tls { server, message }
    } else if kind.contains("authentication") {
        Problem::AuthenticationFailed { server, user, message }
    } else {
        Problem::Unreachable { server, message }
    })
}

/// The server goes down, comes up or recovers.
fn is_shutdown(code: &SqlState) -> bool {
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
}

fn words(error: &tokio_postgres::error::DbError) -> String {
    let mut words = error.message().to_owned();
    for more in [error.detail(), error.hint()].into_iter().flatten() {
        words.push_str("; ");
        words.push_str(more);
    }
    words
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
