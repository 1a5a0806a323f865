//! Connections to a server, and the server's errors in words.

use std::{error::Error as _, time::Duration};

use mysql_async::{
    Conn, DriverError, Error, IoError, OptsBuilder, ServerError, SslOpts,
    prelude::{FromRow, Queryable},
};
use tokio::time::timeout;

use super::Step;
use crate::{Problem, Secret, Server, Timeouts, TlsMode, authority};

/// How long a connection may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
/// The largest answer that is expected, in bytes; asking the server for its own limit would be one round trip more.
const LARGEST_PACKET: usize = 16 << 20;

/// The server's error codes that mean something here.
mod code {
    pub const DATABASE_FULL: [u16; 2] = [1021, 1114];
    pub const WRONG_PASSWORD: [u16; 2] = [1045, 1698];
    /// The password has expired: setting it is what is needed.
    pub const EXPIRED: [u16; 2] = [1820, 1862];
    pub const TOO_MANY_CONNECTIONS: [u16; 3] = [1040, 1203, 1226];
    /// This host may not connect, or was shut out after many failures; the account is locked.
    pub const NOT_LET_IN: [u16; 3] = [1129, 1130, 4151];
    pub const SHUTDOWN: u16 = 1053;
    pub const STATEMENT_TIMEOUT: u16 = 1969;
    pub const LOCK_TIMEOUT: u16 = 1205;
}

/// Why a connection was not made.
pub(super) enum Refusal {
    /// The password of the account is another one, or it has none.
    WrongPassword(Problem),
    /// The server or the account takes no more connections at the moment.
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

/// A connection that is logged in. Dropped without [`Session::close`], it is closed in the background.
pub struct Session {
    connection: Conn,
    address: String,
    limits: Timeouts,
}

impl Session {
    /// Connects as the administrator.
    ///
    /// # Errors
    /// [`Problem::Unreachable`], [`Problem::Tls`], [`Problem::AuthenticationFailed`], [`Problem::Timeout`] and
    /// [`Problem::Server`].
    pub async fn admin(server: &Server) -> Result<Self, Problem> {
        let mut session = Self::open(server, None, &server.admin_user, &server.admin_password).await?;
        // Quotes are then the only characters with a meaning in a text; an interrupted statement leaves no half of it.
        let settings = format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES', max_statement_time = {}, lock_wait_timeout = {}",
            session.limits.statement.as_secs_f64(),
            session.limits.lock.as_secs().max(1),
        );
        session.run(&settings, "prepare the session").await?;
        Ok(session)
    }

    pub(super) async fn open(
        server: &Server,
        database: Option<&str>,
        user: &str,
        password: &Secret,
    ) -> Result<Self, Refusal> {
        let address = format!("{}:{}", server.host, server.port);
        let limits = server.timeouts.clone();
        let tls = |message: String| Refusal::Other(Problem::Tls { server: address.clone(), message });
        let TlsMode::VerifyFull { ca_pem } = &server.tls else {
            return Err(tls("accounts of MariaDB are made for TLS only, and no CA is configured".to_owned()));
        };
        // The library would take an empty or a broken text for no authority at all.
        authority::roots(ca_pem).map_err(tls)?;
        let roots = vec![ca_pem.clone().into_bytes().into()];
        let options = OptsBuilder::default()
            .ip_or_hostname(&server.host)
            .tcp_port(server.port)
            // A server on this host would else be asked for a socket, which has no TLS.
            .prefer_socket(false)
            .user(Some(user))
            .pass(Some(password.expose()))
            .db_name(database)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .max_allowed_packet(Some(LARGEST_PACKET))
            .wait_timeout(Some(usize::MAX))
            .stmt_cache_size(0)
            .ssl_opts(SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(true));
        let connection = timeout(limits.connect, Conn::new(options))
            .await
            .map_err(|_| {
                Refusal::Other(Problem::Timeout {
                    doing: format!("connect to {address}"),
                    limit: limits.connect,
                })
            })?
            .map_err(|error| refusal(&error, &address, user))?;
        Ok(Self { connection, address, limits })
    }

    /// Says goodbye to the server, so that it has let go of the session's locks soon.
    pub async fn close(self) {
        // Whoever does not answer a goodbye is cut off by the drop.
        let _ = timeout(FAREWELL, self.connection.disconnect()).await;
    }

    /// Runs one step's statements.
    ///
    /// # Errors
    /// As any statement on the server.
    pub async fn execute(&mut self, step: &Step) -> Result<(), Problem> {
        self.run_all(&step.sql(), &step.words()).await
    }

    pub(super) async fn run_all(&mut self, statements: &[String], doing: &str) -> Result<(), Problem> {
        for sql in statements {
            self.run(sql, doing).await?;
        }
        Ok(())
    }

    /// Waits for a lock that is held until the session ends. `Ok(false)` when somebody else keeps it.
    pub(super) async fn lock(&mut self, name: &str) -> Result<bool, Problem> {
        let seconds = self.limits.lock.as_secs_f64();
        let doing = "take the lock of the database";
        let got: Option<Option<i64>> = self
            .connection
            .exec_first("SELECT GET_LOCK(?, ?)", (format!("conme/{name}"), seconds))
            .await
            .map_err(|error| self.problem(&error, doing))?;
        Ok(got.flatten() == Some(1))
    }

    async fn run(&mut self, sql: &str, doing: &str) -> Result<(), Problem> {
        self.connection.query_drop(sql).await.map_err(|error| self.problem(&error, doing))
    }

    pub(super) async fn rows<T: FromRow + Send + 'static>(
        &mut self,
        sql: &str,
        params: Vec<&str>,
    ) -> Result<Vec<T>, Problem> {
        let params: Vec<mysql_async::Value> = params.into_iter().map(Into::into).collect();
        let doing = "read the state of the server";
        self.connection
            .exec_map(sql, mysql_async::Params::from(params), |row: mysql_async::Row| {
                mysql_async::from_row_opt::<T>(row)
            })
            .await
            .map_err(|error| self.problem(&error, doing))?
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| self.unknown_answer(error.to_string()))
    }

    pub(super) fn unknown_answer(&self, message: impl Into<String>) -> Problem {
        Problem::UnknownAnswer { server: self.address.clone(), message: message.into() }
    }

    fn problem(&self, error: &Error, doing: &str) -> Problem {
        let doing = doing.to_owned();
        match error {
            Error::Server(refused) => match refused.code {
                code::STATEMENT_TIMEOUT => Problem::Timeout { doing, limit: self.limits.statement },
                code::LOCK_TIMEOUT => Problem::Timeout { doing, limit: self.limits.lock },
                code::SHUTDOWN => {
                    Problem::Unreachable { server: self.address.clone(), message: refused.message.clone() }
                }
                _ => refused_to(doing, refused),
            },
            Error::Driver(DriverError::ConnectionClosed) | Error::Io(_) => {
                Problem::Unreachable { server: self.address.clone(), message: chain(error) }
            }
            Error::Driver(_) | Error::Other(_) | Error::Url(_) => self.unknown_answer(chain(error)),
        }
    }
}

fn refused_to(doing: String, refused: &ServerError) -> Problem {
    let mut message = refused.message.clone();
    // "Errcode: 28" is the operating system's word for it, inside of many errors.
    let full = code::DATABASE_FULL.contains(&refused.code)
        || message.contains("No space left on device")
        || message.contains("Errcode: 28")
        || message.contains("error 28");
    if full {
        message.push_str(". The disk of the server is full: make room there, nothing else helps");
    }
    Problem::Server { doing, sqlstate: refused.state.clone(), message }
}

fn refusal(error: &Error, address: &str, user: &str) -> Refusal {
    let (server, user) = (address.to_owned(), user.to_owned());
    match error {
        Error::Server(refused) => {
            let message = refused.message.clone();
            let failed = || Problem::AuthenticationFailed {
                server: server.clone(),
                user: user.clone(),
                message: message.clone(),
            };
            match refused.code {
                found if code::WRONG_PASSWORD.contains(&found) || code::EXPIRED.contains(&found) => {
                    Refusal::WrongPassword(failed())
                }
                found if code::NOT_LET_IN.contains(&found) => Refusal::Other(failed()),
                found if code::TOO_MANY_CONNECTIONS.contains(&found) => {
                    Refusal::Full(Problem::Unreachable { server, message })
                }
                code::SHUTDOWN => Refusal::Other(Problem::Unreachable { server, message }),
                _ => Refusal::Other(refused_to(format!("let account \"{user}\" in"), refused)),
            }
        }
        Error::Driver(DriverError::NoClientSslFlagFromServer) => Refusal::Other(Problem::Tls {
            server,
            message: "the server offers no TLS; configure its certificate".to_owned(),
        }),
        Error::Driver(DriverError::UnknownAuthPlugin { name }) => {
            Refusal::Other(Problem::AuthenticationFailed {
                server,
                user,
                message: format!("the account logs in by the plugin {name}, which is not supported here"),
            })
        }
        Error::Io(IoError::Tls(_)) => Refusal::Other(Problem::Tls { server, message: chain(error) }),
        Error::Io(IoError::Io(inner)) if is_tls(inner) => {
            Refusal::Other(Problem::Tls { server, message: chain(error) })
        }
        Error::Io(_) | Error::Driver(_) | Error::Other(_) | Error::Url(_) => {
            Refusal::Other(Problem::Unreachable { server, message: chain(error) })
        }
    }
}

/// The handshake hands its errors on inside of an error of input and output.
fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn said(code: u16, message: &str) -> Error {
        Error::Server(ServerError { code, message: message.to_owned(), state: "HY000".to_owned() })
    }

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        for (code, message) in [
            (1021, "Disk full (/tmp/#sql-1.MAI); waiting for someone to free some space..."),
            (1114, "The table 'owners' is full"),
            (3, "Error writing file './dolo__sito/db.opt' (Errcode: 28 \"No space left on device\")"),
        ] {
            let Error::Server(refused) = said(code, message) else { panic!("{message}") };
            let told = refused_to("create database dolo__sito".to_owned(), &refused).to_string();
            assert!(told.contains(message) && told.contains("make room there"), "{told}");
        }
        let Error::Server(refused) = said(1007, "Can't create database") else { panic!("another") };
        assert!(!refused_to(String::new(), &refused).to_string().contains("room"));
    }

    #[test]
    fn who_is_refused_is_told_from_who_finds_no_room() {
        let kind = |code| match refusal(&said(code, "words"), "h:1", "u") {
            Refusal::WrongPassword(problem) => ("password", problem.reason()),
            Refusal::Full(problem) => ("full", problem.reason()),
            Refusal::Other(problem) => ("other", problem.reason()),
        };
        assert_eq!(kind(1045), ("password", "AuthenticationFailed"));
        assert_eq!(kind(1862), ("password", "AuthenticationFailed"));
        assert_eq!(kind(1040), ("full", "ServerUnreachable"));
        assert_eq!(kind(1226), ("full", "ServerUnreachable"));
        assert_eq!(kind(4151), ("other", "AuthenticationFailed"));
        assert_eq!(kind(1053), ("other", "ServerUnreachable"));
        assert_eq!(kind(1049), ("other", "ServerRefused"));
    }
}
