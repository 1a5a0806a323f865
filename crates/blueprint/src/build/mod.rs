//! The children of a Comune as they should be. No builder can fail: what could be wrong was found by
//! [`validate`](crate::validate()).

mod access;
mod dedicated;
mod guards;
mod service;

use std::collections::BTreeMap;

pub use access::{OPERATOR_ROLE, TENANT_ADMIN_ROLE, TENANT_VIEWER_ROLE};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use conme_api::{Engine, keys};
pub use dedicated::{dedicated_cluster, dedicated_database};
pub use guards::{DATABASES_POLICY, hard};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    capacity::Amounts,
    child::{ChildRef, Desired},
    kind::Wave,
    names,
    validate::{ValidComune, ValidEnvironment},
};

/// One environment with what is decided for it at this instant.
pub struct Plot<'a> {
    /// The environment.
    pub environment: &'a ValidEnvironment,
    /// `spec.hard` of its ResourceQuota.
    pub hard: Amounts,
    /// Set for an environment that the manifest no longer has: since when.
    pub orphaned_at: Option<String>,
    /// Unique ids of the Comune, the present one first.
    pub uids: String,
}

/// Every child of a Comune, but for the services that have to wait.
pub fn children(comune: &ValidComune, plots: &[Plot<'_>], waiting: &[&str]) -> Vec<Desired> {
    let mut children = Vec::new();
    for plot in plots {
        children.push(namespace(comune, plot));
        children.extend(guards::guards(comune, plot));
        children.extend(access::bindings(comune, plot.environment));
    }
    for service in comune.services.iter().filter(|service| !waiting.contains(&service.spec.name.as_str())) {
        children.extend(service::service(comune, service));
    }
    children
}

fn namespace(comune: &ValidComune, plot: &Plot<'_>) -> Desired {
    let environment = plot.environment;
    let level = match environment.pod_security {
        conme_api::PodSecurity::Restricted => "restricted",
        conme_api::PodSecurity::Baseline => "baseline",
    };
    let mut labels: BTreeMap<String, String> = comune.identity.clone();
    labels.insert(keys::ENVIRONMENT.into(), environment.name.clone());
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), level.into());
    }
    if comune.spec.cordoned {
        labels.insert(keys::CORDONED.into(), "true".into());
    }
    if comune.spec.protected {
        labels.insert(keys::PROTECTED.into(), "true".into());
    }
    let entity = &comune.spec.entity;
    let mut annotations: BTreeMap<&str, String> = BTreeMap::from([
        (keys::COMUNE_UID, plot.uids.clone()),
        (keys::ENTITY_KIND, entity.kind.to_string()),
        (keys::DISPLAY_NAME, entity.display_name.clone()),
    ]);
    if let Some(since) = &comune.admitted_at {
        annotations.insert(keys::ADMITTED_AT, since.clone());
    }
    let mut hostnames: Vec<&str> = comune
        .services
        .iter()
        .filter(|service| service.namespace == environment.namespace)
        .map(|service| service.hostname.as_str())
        .collect();
    hostnames.sort_unstable();
    if !hostnames.is_empty() {
        annotations.insert(keys::HOSTNAMES, hostnames.join(","));
    }
    if let Some(since) = &plot.orphaned_at {
        labels.insert(keys::ORPHANED.into(), "true".into());
        annotations.insert(keys::ORPHANED_AT, since.clone());
    }
    let at = ChildRef::of_namespace(&environment.namespace);
    let meta = json!({"labels": labels, "annotations": annotations});
    Desired::new(at, Wave::Namespaces, &comune.name, "namespace", meta, json!({}))
}

/// The Namespace of a Comune that is gone: everything about it stays as it is, and it says since when.
///
/// `labels` and `annotations` are those that it has now.
pub fn abandoned_namespace(
    comune: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    since: &str,
) -> Desired {
    let ours = |key: &&String| {
        let key = key.as_str();
        (key.starts_with("conme.venis.it/") || key.starts_with("pod-security.kubernetes.io/"))
            && ![keys::APPLIED, keys::ADOPT].contains(&key)
    };
    let mut labels: BTreeMap<&String, &String> = labels.iter().filter(|(key, _)| ours(key)).collect();
    let mut annotations: BTreeMap<&String, &String> =
        annotations.iter().filter(|(key, _)| ours(key)).collect();
    let (orphaned, truth) = (keys::ORPHANED.to_owned(), "true".to_owned());
    let (orphaned_at, since) = (keys::ORPHANED_AT.to_owned(), since.to_owned());
    labels.insert(&orphaned, &truth);
    annotations.insert(&orphaned_at, &since);
    let meta = json!({"labels": labels, "annotations": annotations});
    Desired::new(ChildRef::of_namespace(name), Wave::Namespaces, comune, "namespace", meta, json!({}))
}

/// The contents of the binding Secret of a database, in the layout of the Service Binding specification
/// (<https://servicebinding.io/spec/core/1.1.0/>).
pub struct Binding<'a> {
    /// Kind of the server.
    pub engine: Engine,
    /// Host of the server.
    pub host: &'a str,
    /// Port of the server.
    pub port: u16,
    /// Name of the database on the server.
    pub database: &'a str,
    /// Role of the application.
    pub username: &'a str,
    /// Its password.
    pub password: &'a str,
    /// Certificates that the server is known by (PEM).
    pub ca: Option<&'a str>,
    /// What is noted on the Secret about a credential that is not the first; see [`CredentialNote`].
    pub credential: Option<CredentialNote>,
}

/// What a binding Secret tells of its credential, in an annotation: the Secret is the one place where a new credential
/// and the note about it are written together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialNote {
    /// 1 for the first credential; that one is not noted.
    pub generation: u32,
    /// When its password was made.
    pub issued_at: Timestamp,
}

impl CredentialNote {
    /// Reads the note of a live Secret.
    pub fn of(secret: &Value) -> Option<Self> {
        let (generation, issued_at) =
            secret.pointer("/metadata/annotations")?.get(keys::CREDENTIAL)?.as_str()?.split_once('@')?;
        Some(Self { generation: generation.parse().ok()?, issued_at: issued_at.parse().ok()? })
    }
}

/// The binding Secret of a database.
pub fn binding_secret(comune: &str, namespace: &str, database: &str, binding: &Binding<'_>) -> Value {
    let Binding { engine, host, port, database: name, username, password, ca, credential } = binding;
    let mut data = json!({
        "type": binding_type(*engine),
        "provider": "conme",
        "host": host,
        "port": port.to_string(),
        "hostport": format!("{host}:{port}"),
        "database": name,
        "username": username,
        "password": password,
        "uri": uri(binding),
    });
    if let Some(ca) = ca {
        data["ca.crt"] = json!(ca);
    }
    let encoded: Value = data
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), json!(BASE64.encode(value.as_str().unwrap_or_default()))))
        .collect();
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names::binding_secret(database),
            "namespace": namespace,
            "labels": {
                keys::COMUNE: comune,
                keys::COMPONENT: format!("database-{database}"),
                keys::MANAGED_BY: keys::MANAGER,
            },
        },
        "type": format!("servicebinding.io/{}", binding_type(*engine)),
        "data": encoded,
    });
    if let Some(CredentialNote { generation, issued_at }) = credential {
        secret["metadata"]["annotations"] = json!({keys::CREDENTIAL: format!("{generation}@{issued_at}")});
    }
    secret
}

/// The word by which libraries for service bindings know a server: for them MariaDB is a server of the protocol of MySQL.
fn binding_type(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgresql => "postgresql",
        Engine::Mariadb => "mysql",
    }
}

/// One address with everything, as the clients of the server read it. Those of MariaDB know the scheme `mysql` and take
/// TLS from settings of their own: there is no word for it that all of them understand.
fn uri(binding: &Binding<'_>) -> String {
    let Binding { engine, host, port, database, username, password, .. } = binding;
    match engine {
        Engine::Postgresql => {
            format!("postgresql://{username}:{password}@{host}:{port}/{database}?sslmode=verify-full")
        }
        Engine::Mariadb => format!("mysql://{username}:{password}@{host}:{port}/{database}"),
    }
}
