//! `Comune`: one administration on the shared data centre.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    Classification, ComuneStatus, DeletionPolicy, Engine, Quantity, Server, Site,
    common::{DATE_PATTERN, HOSTNAME_PATTERN, NAME_PATTERN, is_false},
};

/// One administration (a municipality, a union of municipalities, the metropolitan city) on the shared data
/// centre: its environments, people, databases and services, and the local servers to take over.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "conme.venis.it",
    version = "v1alpha1",
    kind = "Comune",
    plural = "comuni",
    singular = "comune",
    shortname = "com",
    category = "conme",
    status = "ComuneStatus",
    derive = "PartialEq",
    doc = "One administration (a municipality, a union of municipalities, the metropolitan city) on the shared data centre. The operator gives it namespaces with quota and isolation, databases and services, and takes over its local servers.",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("metadata.name: a Comune's name has at most 40 characters, so that <comune>-<environment> is a valid namespace"),
    validation = Rule::new("self.metadata.name.matches('^[a-z][a-z0-9]*(-[a-z0-9]+)*$')")
        .message("metadata.name: a Comune's name is lower-case letters, digits and single hyphens and begins with a letter, such as san-stino-di-livenza"),
    validation = Rule::new("!self.metadata.name.startsWith('kube') && !self.metadata.name.startsWith('conme') && !(self.metadata.name in ['default', 'sistema', 'vm', 'openshift', 'system'])")
        .message("metadata.name: this name is reserved (kube..., conme..., default, sistema, vm, openshift, system); choose the municipality's own name"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "AVAILABLE", type_ = "string", json_path = ".status.conditions[?(@.type==\"Available\")].status"),
    printcolumn(name = "ENVIRONMENTS", type_ = "string", json_path = ".status.summary.environments"),
    printcolumn(name = "DATABASES", type_ = "string", json_path = ".status.summary.databases"),
    printcolumn(name = "SERVICES", type_ = "string", json_path = ".status.summary.services"),
    printcolumn(name = "MIGRATED", type_ = "string", json_path = ".status.summary.migrated"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.summary.cpu"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "ISTAT", type_ = "string", json_path = ".spec.entity.istat", priority = 1),
    printcolumn(name = "POPULATION", type_ = "integer", json_path = ".spec.entity.population", priority = 1),
    printcolumn(name = "TIER", type_ = "string", json_path = ".status.tier", priority = 1),
    printcolumn(name = "MEMORY", type_ = "string", json_path = ".status.summary.memory", priority = 1),
    printcolumn(name = "ORPHANS", type_ = "integer", json_path = ".status.summary.orphans", priority = 1)
)]
#[x_kube(
    validation = Rule::new("!(has(self.tier) && has(self.quota))")
        .message("give either a tier or a quota, not both").field_path(".quota"),
    validation = Rule::new("!has(oldSelf.entity.istat) || (has(self.entity.istat) && self.entity.istat == oldSelf.entity.istat)")
        .message("the ISTAT code cannot change: another administration is another Comune").field_path(".entity.istat"),
    validation = Rule::new("self.environments.all(e, !has(e.share)) || self.environments.map(e, has(e.share) ? e.share : 0).sum() <= 100")
        .message("the shares of the environments are percentages of the quota; together they are at most 100").field_path(".environments"),
    validation = Rule::new("self.environments.all(e, has(e.share)) || self.environments.all(e, !has(e.share))")
        .message("give a share to every environment or to none (then they share equally)").field_path(".environments"),
    validation = Rule::new("!has(self.databases) || self.databases.all(d, self.environments.exists(e, e.name == d.environment))")
        .message("every database belongs to one of spec.environments; a database names an environment that is not declared").field_path(".databases"),
    validation = Rule::new("!has(self.services) || self.services.all(s, self.environments.exists(e, e.name == s.environment))")
        .message("every service runs in one of spec.environments; a service names an environment that is not declared").field_path(".services"),
    validation = Rule::new("!has(self.services) || self.services.all(s, !has(s.database) || (has(self.databases) && self.databases.exists(d, d.name == s.database)))")
        .message("a service names a database that is not in spec.databases").field_path(".services"),
    validation = Rule::new("!has(self.services) || self.services.all(s, !has(s.database) || !has(self.databases) || self.databases.all(d, d.name != s.database || d.environment == s.environment))")
        .message("a service and its database belong to the same environment: production data is not bound elsewhere").field_path(".services"),
    validation = Rule::new("!has(self.servers) || self.servers.all(s, has(self.sites) && self.sites.exists(p, p.name == s.site))")
        .message("every server stands at one of spec.sites; a server names a site that is not declared").field_path(".servers")
)]
#[serde(rename_all = "camelCase")]
pub struct ComuneSpec {
    /// Who it is: kind of body, official codes, population.
    pub entity: Entity,
    /// Size band of the data centre. Absent and without a quota: chosen by population.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub tier: Option<String>,
    /// Explicit totals instead of a tier. They cover all namespaces of this administration together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Totals>,
    /// Environments, each with a namespace of its own named <comune>-<environment>. Default: produzione.
    #[serde(default = "default_environments")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(min = 1, max = 8))]
    pub environments: Vec<Environment>,
    /// Who runs workloads in the environments: users, groups, service accounts. They have no rights on quotas,
    /// limits, network policies, roles and role bindings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub administrators: Vec<Subject>,
    /// Who may look at the environments, Secrets excepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub viewers: Vec<Subject>,
    /// Traffic allowed beyond the default. By default both directions are closed but for DNS, the same
    /// environment, the ingress controller and the declared database servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Databases. Each gets an owner and an application role of its own and a binding Secret in its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 48))]
    pub databases: Vec<Database>,
    /// Services from the catalogue (`kubectl get servicetemplates`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 48))]
    pub services: Vec<Service>,
    /// Where local servers stand, each with its uplink and its calendar.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub sites: Vec<Site>,
    /// The local servers to take over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub servers: Vec<Server>,
    /// What happens to namespaces and data when this Comune is removed: Retain keeps everything (default).
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The operator changes nothing while this is set; status is still told.
    #[serde(default, skip_serializing_if = "is_false")]
    pub paused: bool,
    /// Writes of the administration's people are refused while this is set; what runs goes on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cordoned: bool,
    /// This Comune cannot be deleted while this is set.
    #[serde(default, skip_serializing_if = "is_false")]
    pub protected: bool,
}

/// The environments of a Comune that declares none: `produzione`.
pub fn default_environments() -> Vec<Environment> {
    vec![Environment { name: "produzione".into(), share: None, pod_security: PodSecurity::Restricted }]
}

fn default_environment() -> String {
    "produzione".into()
}

/// Kind of administration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EntityKind {
    /// A municipality.
    Comune,
    /// A union of municipalities; it has no ISTAT code and its members have dates.
    Unione,
    /// The metropolitan city.
    CittaMetropolitana,
}

impl std::fmt::Display for EntityKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Comune => "Comune",
            Self::Unione => "Unione",
            Self::CittaMetropolitana => "CittaMetropolitana",
        })
    }
}

/// Who the administration is.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.kind != 'Comune' || has(self.istat)")
        .message("a Comune needs its ISTAT code of 6 digits").field_path(".istat"),
    validation = Rule::new("self.kind != 'Unione' || !has(self.istat)")
        .message("a Unione has no ISTAT code: leave it out").field_path(".istat"),
    validation = Rule::new("self.kind == 'Unione' || !has(self.members)")
        .message("only a Unione has members").field_path(".members")
)]
#[serde(rename_all = "camelCase")]
pub struct Entity {
    /// Comune, Unione or CittaMetropolitana.
    pub kind: EntityKind,
    /// Official name, for people: "Comune di Dolo".
    #[schemars(length(min = 1, max = 128))]
    pub display_name: String,
    /// ISTAT code of the municipality: 6 digits, quoted ("027012"). Required for a Comune, absent for a Unione.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 6), regex(pattern = "^[0-9]{6}$"))]
    pub istat: Option<String>,
    /// Code in the index of public administrations (IPA), such as c_d325. Compared without regard to case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = "^[A-Za-z0-9_]+$"))]
    pub ipa: Option<String>,
    /// Belfiore (cadastral) code: a letter and three digits, such as D325.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4), regex(pattern = "^[A-Z][0-9]{3}$"))]
    pub belfiore: Option<String>,
    /// Residents. Decides the tier when neither tier nor quota is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub population: Option<u32>,
    /// The administration's own Internet domain, as it is (never computed from the name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = HOSTNAME_PATTERN))]
    pub domain: Option<String>,
    /// Members of a Unione, with the dates of their membership.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub members: Vec<Member>,
}

/// One member of a Unione. It may be outside the programme.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.from) || !has(self.until) || self.from <= self.until")
    .message("the membership ends before it begins: until is earlier than from").field_path(".until"))]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Name of the member, as a Comune resource would be named: santa-maria-di-sala.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// First day of the membership, YYYY-MM-DD. Absent: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10), regex(pattern = DATE_PATTERN))]
    pub from: Option<String>,
    /// Last day of the membership, YYYY-MM-DD. Absent: still a member, or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10), regex(pattern = DATE_PATTERN))]
    pub until: Option<String>,
}

/// Totals for all namespaces of an administration together.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// vCPU, both as requests and as limits: 8, 500m.
    pub cpu: Quantity,
    /// Memory, both as requests and as limits: 16Gi.
    pub memory: Quantity,
    /// Storage of all volume claims: 200Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Quantity>,
    /// Scratch space on the hosts' own disks: 20Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
    /// Number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub pods: Option<u32>,
    /// Number of Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub services: Option<u32>,
    /// Number of Services of type LoadBalancer. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub load_balancers: Option<u32>,
    /// Numbers of further objects by the name that quotas use, such as configmaps, secrets, jobs.batch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "counts_of_objects")]
    pub objects: BTreeMap<String, u32>,
}

/// Schema of [`Totals::objects`]: at most 32 names, each with a number up to a million. Without a maximum the
/// API server would take numbers that a `u32` does not hold, and the operator could not read the resource.
/// (schemars gives bounds to lists and texts, not to maps.)
fn counts_of_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
        "maxProperties": 32,
    })
}

/// Schema of [`Service::parameters`]: at most 64, each a text of up to 4,096 characters.
fn values_of_parameters(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 4096},
        "maxProperties": 64,
    })
}

/// Pod Security Standard that the API server enforces in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PodSecurity {
    /// Current best practice: no root, no privileges. The default.
    #[default]
    Restricted,
    /// Prevents known privilege escalations; for software that must run as root in its container.
    Baseline,
}

/// An environment of the administration: one namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(self.name in ['sistema', 'vm', 'kube', 'default', 'system'])")
    .message("this environment name is reserved for the operator (sistema, vm, kube, default, system)").field_path(".name"))]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// Name, such as produzione or collaudo.
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Percentage of the administration's quota. Give it to every environment or to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub share: Option<u32>,
    /// Pod Security Standard enforced in the namespace: restricted (default) or baseline.
    #[serde(default)]
    pub pod_security: PodSecurity,
}

/// Kind of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SubjectKind {
    /// A user as the API server knows it.
    User,
    /// A group as the API server knows it.
    Group,
    /// A service account, for example of a pipeline.
    ServiceAccount,
}

/// A person, group or service account.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("(self.kind == 'ServiceAccount') == has(self.namespace)")
        .message("a ServiceAccount needs its namespace; a User or a Group has none").field_path(".namespace"),
    validation = Rule::new("!self.name.startsWith('system:')")
        .message("names that begin with system: belong to Kubernetes itself and cannot administer a Comune").field_path(".name"),
    validation = Rule::new("self.kind != 'ServiceAccount' || self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')")
        .message("the name of a ServiceAccount is lower-case letters, digits, hyphens and dots, such as ci-dolo").field_path(".name")
)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// User, Group or ServiceAccount.
    pub kind: SubjectKind,
    /// Name as the API server knows it, such as dolo-ced.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of a ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME_PATTERN))]
    pub namespace: Option<String>,
}

/// Traffic allowed beyond the default.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Who may reach the pods of an environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub ingress: Vec<TrafficRule>,
    /// What the pods of an environment may reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub egress: Vec<TrafficRule>,
}

/// Address ranges and ports that are allowed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.cidrs.all(c, isCIDR(c))")
    .message("an address range is written in CIDR notation, such as 10.20.0.0/16").field_path(".cidrs"))]
#[serde(rename_all = "camelCase")]
pub struct TrafficRule {
    /// What it is for, for people.
    #[schemars(length(min = 1, max = 128))]
    pub description: String,
    /// Environment it applies to. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = NAME_PATTERN))]
    pub environment: Option<String>,
    /// Address ranges in CIDR notation.
    #[schemars(length(min = 1, max = 32), inner(length(max = 43)))]
    pub cidrs: Vec<String>,
    /// TCP ports. Absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
}

/// A database of the administration.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.engine == oldSelf.engine")
        .message("the engine of a database cannot change: declare a new database and migrate the data").field_path(".engine"),
    validation = Rule::new("has(self.placement.shared) == has(oldSelf.placement.shared) && (!has(self.placement.shared) || self.placement.shared == oldSelf.placement.shared)")
        .message("a database does not move by editing its placement: declare a new database and migrate the data").field_path(".placement"),
    validation = Rule::new("!has(oldSelf.placement.dedicated) || self.environment == oldSelf.environment")
        .message("a database on a server of its own stays in its environment, with its server: declare a new database and migrate the data").field_path(".environment"),
    validation = Rule::new("self.engine == 'postgresql' || !has(self.extensions)")
        .message("extensions exist for postgresql only").field_path(".extensions")
)]
#[serde(rename_all = "camelCase")]
pub struct Database {
    /// Name within this Comune. On the server it is called <comune>__<name>.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// postgresql or mariadb.
    pub engine: Engine,
    /// Where it lives: on a shared server of the data centre, or on one of its own.
    pub placement: Placement,
    /// Environment whose namespace gets the binding Secret. Default: produzione.
    #[serde(default = "default_environment")]
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME_PATTERN))]
    pub environment: String,
    /// Extensions to install, out of those that the server allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    pub extensions: Vec<String>,
    /// Concurrent connections of the application. Default: the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub connection_limit: Option<u32>,
    /// Size on the server's disk, in bytes, beyond which a warning is given and then growth stopped: 50Gi. At least 16Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Quantity>,
    /// Classification of the data, as decided by the administration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// Take over a database of this name that exists and belongs to nobody.
    #[serde(default, skip_serializing_if = "is_false")]
    pub adopt: bool,
    /// What happens to the data when this database leaves the manifest: Retain keeps it (default).
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Where a database lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Placement {
    /// Name of a database server of the DataCenter.
    Shared(#[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))] String),
    /// A server of its own.
    Dedicated(Dedicated),
}

/// A PostgreSQL server of its own, run by CloudNativePG in the namespace of the environment.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dedicated {
    /// Number of instances: 1, or 3 for high availability.
    #[schemars(range(min = 1, max = 9))]
    pub instances: u32,
    /// Size of each instance's volume: 100Gi.
    pub storage: Quantity,
    /// vCPU of each instance, out of the quota: 1. Default: 500m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory of each instance, out of the quota: 4Gi. Default: 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// A service from the catalogue.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!self.name.startsWith('conme') && !(self.name in ['default', 'kube-root-ca.crt'])")
    .message("this service name is reserved (default, conme...): objects of that name guard the namespace").field_path(".name"))]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name within the Comune; its objects are called so.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// ServiceTemplate that it comes from.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME_PATTERN))]
    pub template: String,
    /// Version of the template. Absent: the template's default version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub version: Option<String>,
    /// Environment that it runs in. Default: produzione.
    #[serde(default = "default_environment")]
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME_PATTERN))]
    pub environment: String,
    /// Host name under which it is reached. Absent: <service>.<comune>.<domain of the data centre> in produzione,
    /// <service>.<environment>.<comune>.<domain> elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = HOSTNAME_PATTERN))]
    pub hostname: Option<String>,
    /// Number of pods. Absent: as the template says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 50))]
    pub replicas: Option<u32>,
    /// Parameters of the template, as text: {theme: comune}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "values_of_parameters")]
    pub parameters: BTreeMap<String, String>,
    /// One of spec.databases, bound to the service by its Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub database: Option<String>,
    /// Classification of the service, as decided by the administration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
}
