//! PostgreSQL as an application sees it: with what is in a binding Secret.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::DataCentre;

/// What is in a binding Secret.
#[derive(Clone)]
pub struct Credentials(pub BTreeMap<String, String>);

impl Credentials {
    /// Reads the binding Secret of a database.
    ///
    /// # Errors
    /// When there is none.
    pub async fn of(data_centre: &DataCentre, namespace: &str, database: &str) -> Result<Self> {
        let api: Api<Secret> = Api::namespaced(data_centre.client(), namespace);
        let secret = api.get(&format!("db-{database}")).await?;
        let data = secret.data.context("an empty Secret")?;
        Ok(Self(
            data.into_iter()
                .map(|(key, value)| Ok((key, String::from_utf8(value.0)?)))
                .collect::<Result<_>>()?,
        ))
    }

    /// Administrator of a database server of the instance.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn of_administrator(data_centre: &DataCentre, server: &str) -> Result<Self> {
        let servers = data_centre.instance().databases()?;
        let server = servers.into_iter().find(|known| known.name == server).context("no such server")?;
        let password = std::fs::read_to_string(&server.admin_password_file)?.trim().to_owned();
        let uri = format!(
            "postgresql://{}:{password}@{}:{}/postgres?sslmode=require",
            server.admin_user, server.host, server.port
        );
        let ca = std::fs::read_to_string(&server.ca_file)?;
        let pairs =
            [("uri", uri), ("ca.crt", ca), ("username", server.admin_user), ("database", "postgres".into())];
        Ok(Self(pairs.map(|(key, value)| (key.to_owned(), value)).into()))
    }

    /// One value.
    ///
    /// # Panics
    /// When there is no such key.
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("no {key} in the Secret"))
    }

    /// Logs in with the address and the certificate of the Secret, into its own database or another.
    ///
    /// # Errors
    /// In the server's own words.
    pub async fn login(&self, database: Option<&str>) -> Result<Login> {
        // The driver knows `require` only; that certificate and name are checked is the TLS library's doing.
        let uri = self.get("uri").replace("sslmode=verify-full", "sslmode=require");
        let mut config = Config::from_str(&uri)?;
        if let Some(database) = database {
            config.dbname(database);
        }
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.get("ca.crt").as_bytes()) {
            roots.add(certificate.map_err(|error| anyhow::anyhow!("{error}"))?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (client, connection) = config.connect(MakeRustlsConnect::new(tls)).await.map_err(in_words)?;
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Login { client, connection })
    }
}

/// A session.
pub struct Login {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Login {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Login {
    /// Runs statements.
    ///
    /// # Errors
    /// In the server's own words.
    pub async fn run(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(in_words)
    }

    /// First column of the first row, as text.
    ///
    /// # Errors
    /// In the server's own words, or when there is no row.
    pub async fn value(&self, sql: &str) -> Result<String> {
        use tokio_postgres::SimpleQueryMessage::Row;
        let messages = self.client.simple_query(sql).await.map_err(in_words)?;
        let row =
            messages.into_iter().find_map(|message| if let Row(row) = message { Some(row) } else { None });
        Ok(row.context("no row")?.get(0).unwrap_or_default().to_owned())
    }
}

fn in_words(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(error) => anyhow::anyhow!("{}: {}", error.code().code(), error.message()),
        None => anyhow::Error::new(error),
    }
}
