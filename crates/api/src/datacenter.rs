//! `DataCenter`: the capacity that all administrations share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    DataClass, Engine, Quantity, Totals, Window,
    common::{DURATION_PATTERN, HOSTNAME_PATTERN, NAME_PATTERN, POSITIVE_DURATION_PATTERN},
};

/// The capacity that all administrations share: hosts, size bands, database servers, ingress, network.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "conme.venis.it",
    version = "v1alpha1",
    kind = "DataCenter",
    plural = "datacenters",
    singular = "datacenter",
    shortname = "dc",
    category = "conme",
    status = "DataCenterStatus",
    derive = "PartialEq",
    doc = "The capacity that all administrations share: hosts, size bands, database servers, ingress, network. The operator serves one of them, by default the one named venis.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(
        name = "READY",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "COMUNI", type_ = "string", json_path = ".status.summary.comuni"),
    printcolumn(name = "HOSTS", type_ = "integer", json_path = ".status.summary.hosts"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.summary.cpu"),
    printcolumn(name = "MEMORY", type_ = "string", json_path = ".status.summary.memory"),
    printcolumn(name = "STORAGE", type_ = "string", json_path = ".status.summary.storage"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "ORPHANS", type_ = "integer", json_path = ".status.purge.count", priority = 1)
)]
#[x_kube(validation = Rule::new("self.pools.exists(p, p.hosts > self.reserve.hosts)")
    .message("the reserve is as large as every pool: nothing would be left to give").field_path(".reserve.hosts"))]
#[serde(rename_all = "camelCase")]
pub struct DataCenterSpec {
    /// For people: "Data centre Venis, Vega (Marghera)".
    #[schemars(length(min = 1, max = 128))]
    pub display_name: String,
    /// Groups of equal hosts.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(min = 1, max = 32))]
    pub pools: Vec<Pool>,
    /// How much more may be promised than there is, per resource.
    #[serde(default)]
    pub overcommit: Overcommit,
    /// What must stay free.
    #[serde(default)]
    pub reserve: Reserve,
    /// Size bands by population.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(min = 1, max = 16))]
    pub tiers: Vec<Tier>,
    /// Database servers that administrations share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub database_servers: Vec<DatabaseServer>,
    /// How services are reached from outside.
    pub ingress: IngressSettings,
    /// Storage classes that administrations may use; the first is the default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    pub storage_classes: Vec<String>,
    /// Addresses inside the cluster.
    #[serde(default)]
    pub network: NetworkSettings,
    /// How data is moved into the data centre.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationSettings>,
    /// Figures for reports on energy, each with its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<EnergySettings>,
}

/// A group of equal hosts.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Name; nodes of the pool carry it as the label conme.venis.it/pool.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Number of hosts.
    #[schemars(range(min = 1, max = 10_000))]
    pub hosts: u32,
    /// Processor cores of one host.
    #[schemars(range(min = 1, max = 1024))]
    pub cores: u32,
    /// Memory of one host: 512Gi.
    pub memory: Quantity,
    /// Storage that one host brings in: 10Ti.
    pub storage: Quantity,
    /// Classes of data that may live here. Absent: ordinario only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub classes: Vec<DataClass>,
}

/// How much more may be promised than there is: 400 means four vCPU per core.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overcommit {
    /// vCPU promised per core, in percent. Default 400.
    #[serde(default = "cpu_overcommit")]
    #[schemars(range(min = 100, max = 2000))]
    pub cpu_percent: u32,
    /// Memory promised, in percent of what there is. Default 100.
    #[serde(default = "no_overcommit")]
    #[schemars(range(min = 100, max = 300))]
    pub memory_percent: u32,
    /// Storage promised, in percent of what there is. Default 100.
    #[serde(default = "no_overcommit")]
    #[schemars(range(min = 100, max = 300))]
    pub storage_percent: u32,
}

fn cpu_overcommit() -> u32 {
    400
}

fn no_overcommit() -> u32 {
    100
}

impl Default for Overcommit {
    fn default() -> Self {
        Self { cpu_percent: cpu_overcommit(), memory_percent: 100, storage_percent: 100 }
    }
}

/// What must stay free.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reserve {
    /// Failures of hosts that each pool survives. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub hosts: u32,
}

fn one() -> u32 {
    1
}

impl Default for Reserve {
    fn default() -> Self {
        Self { hosts: 1 }
    }
}

/// A size band.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tier {
    /// Name, such as piccolo.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Largest population of the band. Absent: no limit. The smallest band that fits is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_population: Option<u32>,
    /// Totals that an administration of this band gets.
    pub quota: Totals,
}

/// A database server that administrations share.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.cidrs.all(c, isCIDR(c))")
    .message("an address range is written in CIDR notation, such as 10.20.0.0/16").field_path(".cidrs"))]
#[serde(rename_all = "camelCase")]
pub struct DatabaseServer {
    /// Name by which databases refer to it.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// postgresql or mariadb.
    pub engine: Engine,
    /// Host name or address, as in its certificate.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Address ranges of the server: network policies know no names.
    #[schemars(length(min = 1, max = 16), inner(length(max = 43)))]
    pub cidrs: Vec<String>,
    /// Secret in the operator's namespace with the keys username, password and ca.crt.
    #[schemars(length(min = 1, max = 253))]
    pub admin_secret: String,
    /// Extensions that databases may ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub allowed_extensions: Vec<String>,
    /// Connections of one application where the manifest names none. Default 20.
    #[serde(default = "default_connection_limit")]
    #[schemars(range(min = 1, max = 1000))]
    pub default_connection_limit: u32,
    /// Passwords of applications that are older are replaced: 90d, 2160h. Absent: only on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 7), regex(pattern = POSITIVE_DURATION_PATTERN))]
    pub credential_max_age: Option<String>,
    /// How long the password before stays valid at least, so that nobody is shut out. Default 24h; 0s ends it at once.
    #[serde(default = "default_credential_overlap")]
    #[schemars(length(max = 7), regex(pattern = DURATION_PATTERN))]
    pub credential_overlap: String,
    /// Classes of data that may live here. Absent: ordinario only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub classes: Vec<DataClass>,
}

fn default_credential_overlap() -> String {
    "24h".into()
}

fn default_connection_limit() -> u32 {
    20
}

/// How services are reached from outside.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressSettings {
    /// Ingress class of the controller.
    #[schemars(length(min = 1, max = 63))]
    pub class_name: String,
    /// Namespace that the ingress controller runs in; it may reach the services.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Domain under which services get a host name when the manifest gives none.
    #[schemars(length(max = 150), regex(pattern = HOSTNAME_PATTERN))]
    pub domain: String,
    /// Issuer of certificates (cert-manager ClusterIssuer). Absent: TLS ends elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster_issuer: Option<String>,
}

/// Addresses inside the cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSettings {
    /// Namespace of the cluster's DNS service. Default kube-system.
    #[serde(default = "dns_namespace")]
    #[schemars(length(min = 1, max = 63))]
    pub dns_namespace: String,
    /// Address ranges of node-local DNS caches, if there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 43)))]
    pub node_local_dns: Vec<String>,
    /// Where the API server is. Needed for databases on servers of their own only: their pods speak with it, and
    /// nothing else in a municipality's namespaces may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_server: Option<Endpoints>,
    /// Namespace of the operator of CloudNativePG, which runs databases on servers of their own. Default cnpg-system.
    #[serde(default = "cloud_native_pg_namespace")]
    #[schemars(length(min = 1, max = 63))]
    pub cloud_native_pg_namespace: String,
}

/// Addresses and ports of something that runs elsewhere.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// Address ranges in CIDR notation.
    #[schemars(length(min = 1, max = 16), inner(length(max = 43)))]
    pub cidrs: Vec<String>,
    /// TCP ports.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
}

fn cloud_native_pg_namespace() -> String {
    "cnpg-system".into()
}

fn dns_namespace() -> String {
    "kube-system".into()
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            dns_namespace: dns_namespace(),
            node_local_dns: Vec::new(),
            api_server: None,
            cloud_native_pg_namespace: cloud_native_pg_namespace(),
        }
    }
}

/// How data is moved into the data centre.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSettings {
    /// Address of the gateway, host:port.
    #[schemars(length(min = 1, max = 253))]
    pub gateway: String,
    /// Migrations that may copy at the same time.
    #[schemars(range(min = 1, max = 1000))]
    pub slots: u32,
    /// When data may be moved at sites without windows of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub windows: Vec<Window>,
}

/// A figure with its source.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sourced {
    /// The figure.
    pub value: Quantity,
    /// Where it comes from, or the word ASSUMPTION with the reason.
    #[schemars(length(min = 1, max = 256))]
    pub source: String,
}

/// Figures for reports on energy.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnergySettings {
    /// Power usage effectiveness of the data centre.
    pub pue: Sourced,
    /// Price in euro per kWh.
    pub price_per_kwh: Sourced,
    /// Carbon intensity in gCO2eq per kWh.
    pub carbon_grams_per_kwh: Sourced,
}

/// What the operator tells of the data centre.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataCenterStatus {
    /// Generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; Ready says whether the data centre keeps its reserve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Figures for the columns of `kubectl get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<DataCenterSummary>,
    /// What may be promised in all, the reserve already taken off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Amounts>,
    /// What has been promised to admitted administrations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<Amounts>,
    /// What can still be promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<Amounts>,
    /// What is kept although no manifest asks for it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge: Option<PurgeList>,
}

/// What is kept although no manifest asks for it any more: to be looked through by the SAD. Nothing on it is ever deleted
/// by the operator.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeList {
    /// How much there is in all.
    pub count: u32,
    /// The oldest of it, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<PurgeItem>,
}

/// Something that is kept although no manifest asks for it any more.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeItem {
    /// What it is: Namespace, Database, PersistentVolumeClaim.
    pub kind: String,
    /// Its name; for a database server/database, for a volume claim namespace/claim.
    pub name: String,
    /// Name of the Comune that it belonged to.
    pub comune: String,
    /// ISTAT code of the administration, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub istat: Option<String>,
    /// Since when (RFC 3339).
    pub since: String,
}

/// Amounts of the three resources that are promised.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// vCPU.
    pub cpu: Quantity,
    /// Memory.
    pub memory: Quantity,
    /// Storage.
    pub storage: Quantity,
}

/// Figures for the columns of `kubectl get`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataCenterSummary {
    /// Admitted / declared administrations.
    pub comuni: String,
    /// Hosts in all pools.
    pub hosts: u32,
    /// vCPU promised / capacity.
    pub cpu: String,
    /// Memory promised / capacity.
    pub memory: String,
    /// Storage promised / capacity.
    pub storage: String,
}
