//! MariaDB as an application and as its administrator see it.

use anyhow::{Context, Result};
use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};

use crate::{Credentials, DataCentre};

/// Logs in with the address and the certificate of a Secret, into its own database or another.
///
/// # Errors
/// In the server's own words.
pub async fn mariadb_login(
    credentials: &Credentials,
    database: Option<&str>,
) -> Result<Conn, mysql_async::Error> {
    let roots = vec![credentials.get("ca.crt").as_bytes().to_vec().into()];
    let options = OptsBuilder::from_opts(Opts::from_url(credentials.get("uri"))?)
        .prefer_socket(false)
        .ssl_opts(SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(true));
    Conn::new(match database {
        Some(other) => options.db_name(Some(other)),
        None => options,
    })
    .await
}

/// Administrator of a MariaDB server of the instance.
///
/// # Errors
/// When there is no such server, or in its own words.
pub async fn mariadb_administrator(data_centre: &DataCentre, server: &str) -> Result<Conn> {
    let servers = data_centre.instance().databases()?;
    let server = servers.into_iter().find(|known| known.name == server).context("no such server")?;
    let password = std::fs::read_to_string(&server.admin_password_file)?;
    let roots = vec![std::fs::read(&server.ca_file)?.into()];
    let options = OptsBuilder::default()
        .ip_or_hostname(server.host)
        .tcp_port(server.port)
        .prefer_socket(false)
        .user(Some(server.admin_user))
        .pass(Some(password))
        .ssl_opts(SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(true));
    Ok(Conn::new(options).await?)
}
