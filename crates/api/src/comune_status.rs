//! What the operator tells of a `Comune`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the operator tells of a Comune.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComuneStatus {
    /// Generation of the manifest that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. Ready says whether everything is as declared; Available whether the services' pods are up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Figures for the columns of `kubectl get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Size band in force; "explicit" when spec.quota is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// When this Comune was first admitted (RFC 3339). Decides who keeps what two of them ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seniority: Option<String>,
    /// Namespaces that the operator made for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub namespaces: Vec<NamespaceStatus>,
    /// Its databases and where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub databases: Vec<DatabaseStatus>,
    /// Its services and how they are reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub services: Vec<ServiceStatus>,
    /// Its local servers and how far they have been taken over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub servers: Vec<ServerStatus>,
    /// Limit and use over all its namespaces, by the names that quotas use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaStatus>,
    /// What no manifest asks for any more and is kept because it may hold data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<Orphan>,
    /// Set while it is being deleted and deletionPolicy is Delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<DeletionStatus>,
}

/// How far the deletion of a Comune is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeletionStatus {
    /// When it was deleted by somebody (RFC 3339).
    pub requested_at: String,
    /// When the operator first saw the confirmation (RFC 3339). Absent: it is missing or was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<String>,
    /// Nothing is deleted before this time (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_after: Option<String>,
    /// Seconds of the grace period that operators have seen pass, by clocks that do not jump; told in steps. Nothing is
    /// deleted before all of it has passed by this count, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub seen_seconds: Option<i64>,
}

/// Figures for the columns of `kubectl get`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Number of environments that are ready.
    pub environments: String,
    /// Databases as declared / declared.
    pub databases: String,
    /// Services as declared / declared.
    pub services: String,
    /// Workloads taken over / declared.
    pub migrated: String,
    /// vCPU requested / limit.
    pub cpu: String,
    /// Memory requested / limit.
    pub memory: String,
    /// What is kept although the manifest does not ask for it any more.
    #[serde(default)]
    pub orphans: u32,
}

/// A namespace that the operator made.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceStatus {
    /// Name of the namespace.
    pub name: String,
    /// Environment that it implements.
    pub environment: String,
    /// Its unique id, by which the operator knows it again.
    pub uid: String,
}

/// A database.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    /// Name in the manifest.
    pub name: String,
    /// Whether it is as declared.
    pub ready: bool,
    /// CamelCase reason.
    pub reason: String,
    /// In words, with what to do next.
    pub message: String,
    /// Server that it was provisioned on.
    pub server: String,
    /// Name of the database on that server.
    pub database: String,
    /// Secret with its credentials, as namespace/name.
    pub secret: String,
    /// Identifier of the server's data directory when it was provisioned: shows when the data is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// When it was provisioned (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned_at: Option<String>,
    /// Size on the server's disk, and how large it may be: 46Gi/50Gi. Told anew when it has changed by a twentieth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// The credential in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialStatus>,
    /// Extensions that are installed and not declared: kept, as data may depend on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undeclared_extensions: Vec<String>,
}

/// The credential of a database.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialStatus {
    /// Role that applications log in as.
    pub login: String,
    /// When its password was made (RFC 3339).
    pub issued_at: String,
    /// 1 for the first; pods are restarted when it grows.
    pub generation: u32,
    /// The login before it, while it is still open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring: Option<RetiringStatus>,
}

/// A login that has been replaced and is still open.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetiringStatus {
    /// Role.
    pub login: String,
    /// It is not closed before this time (RFC 3339), nor while a service or a session uses it.
    pub until: String,
}

/// A service.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Name in the manifest.
    pub name: String,
    /// Namespace that it runs in.
    pub namespace: String,
    /// Where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Version in force.
    pub version: String,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are wanted.
    pub desired: i32,
}

/// A local server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Name in the manifest.
    pub name: String,
    /// Workloads taken over.
    pub migrated: u32,
    /// Workloads declared.
    pub workloads: u32,
    /// Workloads without a classification: they may not migrate.
    pub unclassified: u32,
}

/// Limit and use.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaStatus {
    /// Total limit by resource.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limit: BTreeMap<String, String>,
    /// Use by resource, over all namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used: BTreeMap<String, String>,
    /// Resources of which more is used than the limit allows: nothing is evicted, nothing new is admitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over_limit: Vec<String>,
}

/// Something that is kept although no manifest asks for it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// What it is: Namespace, Database, PersistentVolumeClaim.
    pub kind: String,
    /// Its name; for a database server/database.
    pub name: String,
    /// Since when (RFC 3339).
    pub since: String,
}
