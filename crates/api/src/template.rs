//! `ServiceTemplate`: one entry of the service catalogue.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Engine, PodSecurity, Quantity,
    common::{NAME_PATTERN, is_false},
};

/// One entry of the service catalogue: a product with its parameters and versions.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "conme.venis.it",
    version = "v1alpha1",
    kind = "ServiceTemplate",
    plural = "servicetemplates",
    singular = "servicetemplate",
    shortname = "svct",
    category = "conme",
    status = "ServiceTemplateStatus",
    derive = "PartialEq",
    doc = "One entry of the service catalogue: a product with its parameters and versions, from which the services of the administrations are made.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "PRODUCT", type_ = "string", json_path = ".spec.displayName"),
    printcolumn(name = "DEFAULT", type_ = "string", json_path = ".spec.defaultVersion"),
    printcolumn(name = "IN USE", type_ = "integer", json_path = ".status.inUse"),
    printcolumn(name = "LICENCE", type_ = "string", json_path = ".spec.licence", priority = 1),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self.versions.exists(v, v.version == self.defaultVersion)")
    .message("the default version is one of spec.versions").field_path(".defaultVersion"))]
#[serde(rename_all = "camelCase")]
pub struct ServiceTemplateSpec {
    /// Name of the product.
    #[schemars(length(min = 1, max = 128))]
    pub display_name: String,
    /// What it is for, in a sentence.
    #[schemars(length(min = 1, max = 512))]
    pub description: String,
    /// Licence of the software, as an SPDX identifier where there is one.
    #[schemars(length(min = 1, max = 64))]
    pub licence: String,
    /// Where the software and the facts in this entry come from.
    #[schemars(length(min = 1, max = 256))]
    pub source: String,
    /// What an administration can set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub parameters: Vec<Parameter>,
    /// Version that a service gets when it names none.
    #[schemars(length(min = 1, max = 40))]
    pub default_version: String,
    /// Versions on offer.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["version".into()]))]
    #[schemars(length(min = 1, max = 16))]
    pub versions: Vec<TemplateVersion>,
}

/// Type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Any text.
    String,
    /// A whole number.
    Integer,
    /// true or false.
    Boolean,
}

/// Something that an administration can set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.default) && has(self.required) && self.required)")
    .message("a parameter with a default is not required").field_path(".required"))]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// Name, as $(name) in values.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z][a-zA-Z0-9]*$"))]
    pub name: String,
    /// string, integer or boolean.
    #[serde(rename = "type")]
    pub type_: ParameterType,
    /// What it means, with its unit.
    #[schemars(length(min = 1, max = 256))]
    pub description: String,
    /// Value when a service gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub default: Option<String>,
    /// A service must give it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub required: bool,
    /// The only values allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(rename = "enum")]
    #[schemars(length(max = 64), inner(length(max = 128)))]
    pub enum_: Vec<String>,
    /// Smallest value of an integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// Largest value of an integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<i64>,
}

/// A version on offer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateVersion {
    /// Version of the product, quoted: "3.0.11".
    #[schemars(length(min = 1, max = 40))]
    pub version: String,
    /// Container image with tag.
    #[schemars(length(min = 1, max = 256))]
    pub image: String,
    /// Arguments of the container. $(name) stands for a parameter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 512)))]
    pub args: Vec<String>,
    /// Ports that the container listens on; the first is the one that the Ingress leads to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 8))]
    pub ports: Vec<Port>,
    /// Environment of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
    /// Files put into the container from a ConfigMap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    #[schemars(length(max = 16))]
    pub files: Vec<ConfigFile>,
    /// How to tell that it answers. Absent: the first port accepts connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// vCPU and memory of a pod.
    pub resources: Resources,
    /// Other resources for administrations of a tier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["tier".into()]))]
    #[schemars(length(max = 16))]
    pub resources_by_tier: Vec<TierResources>,
    /// Pods when a service does not say. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 50))]
    pub replicas: u32,
    /// More pods under load. Ignored for a service that sets its replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Directories that the container writes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub volumes: Vec<Volume>,
    /// Numeric user that the container runs as. Absent: the image's own, which must not be root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub run_as_user: Option<i64>,
    /// Weakest Pod Security Standard that it runs under: restricted (default) or baseline.
    #[serde(default)]
    pub pod_security: PodSecurity,
    /// What it needs around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<Requires>,
}

fn one() -> u32 {
    1
}

/// A port of the container.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, such as http.
    #[schemars(length(min = 1, max = 15), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Port number, TCP.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// Key of the binding Secret of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BindingKey {
    /// Host of the database server.
    Host,
    /// Port of the database server.
    Port,
    /// Host and port in one, host:port.
    Hostport,
    /// Name of the database.
    Database,
    /// Name of the application's role.
    Username,
    /// Its password.
    Password,
    /// All of it in one address.
    Uri,
}

impl BindingKey {
    /// The key in the Secret.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Port => "port",
            Self::Hostport => "hostport",
            Self::Database => "database",
            Self::Username => "username",
            Self::Password => "password",
            Self::Uri => "uri",
        }
    }
}

/// One variable of the environment.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.value) != has(self.fromBinding)")
    .message("a variable has either a value or fromBinding"))]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Text. $(name) stands for a parameter; $(hostname), $(comune.name), $(comune.displayName), $(comune.istat),
    /// $(comune.ipa), $(comune.belfiore), $(comune.domain) and $(environment) are filled in from the Comune.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
    /// Key of the binding Secret of the service's database: host, port, hostport, database, username, password or uri.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_binding: Option<BindingKey>,
}

/// A file from a ConfigMap.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigFile {
    /// Absolute path in the container.
    #[schemars(length(min = 2, max = 256), regex(pattern = "^/([A-Za-z0-9._-]+/)*[A-Za-z0-9._-]+$"))]
    pub path: String,
    /// Contents. $(name) as in values of the environment.
    #[schemars(length(max = 16384))]
    pub content: String,
}

/// How to tell that the container answers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Path asked for by HTTP on the first port. Absent: a TCP connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^/"))]
    pub http_path: Option<String>,
    /// Seconds that it may take to start. Default 120.
    #[serde(default = "startup_seconds")]
    #[schemars(range(min = 5, max = 3600))]
    pub startup_seconds: u32,
}

fn startup_seconds() -> u32 {
    120
}

/// vCPU and memory of a pod. The pod may use up to the limit and is sure of the request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// vCPU that the pod is sure of: 100m.
    pub cpu: Quantity,
    /// Memory, request and limit alike: 512Mi.
    pub memory: Quantity,
    /// vCPU that the pod may use at most. Absent: the same as cpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<Quantity>,
}

/// Resources of a pod for administrations of a tier.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierResources {
    /// Name of the tier.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub tier: String,
    /// vCPU and memory of a pod.
    pub resources: Resources,
}

/// More pods under load.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas")
    .message("minReplicas is larger than maxReplicas").field_path(".minReplicas"))]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Fewest pods.
    #[schemars(range(min = 1, max = 50))]
    pub min_replicas: u32,
    /// Most pods.
    #[schemars(range(min = 1, max = 50))]
    pub max_replicas: u32,
    /// Average use of the requested vCPU to aim at, in percent.
    #[schemars(range(min = 10, max = 95))]
    pub cpu_percent: u32,
}

/// Whether the contents of a volume survive the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeKind {
    /// A volume claim: data of the administration, never deleted with the service.
    Persistent,
    /// Scratch space that goes with the pod.
    Ephemeral,
}

/// A directory that the container writes to.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Name; the claim is called <service>--<name>.
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Absolute path in the container.
    #[schemars(length(min = 2, max = 256), regex(pattern = "^/"))]
    pub path: String,
    /// Persistent or Ephemeral.
    pub kind: VolumeKind,
    /// Size: 8Gi.
    pub size: Quantity,
}

/// What a version needs around it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requires {
    /// Engines of which it needs a database; any one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub database: Vec<Engine>,
    /// National platforms it talks to: spid, cie, pagopa, pdnd, appio, send, anpr. For information.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 40)))]
    pub integrations: Vec<String>,
    /// Other software it needs and that this entry does not bring, such as redis or solr. For information.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 40)))]
    pub components: Vec<String>,
}

/// What the operator tells of a template.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTemplateStatus {
    /// Generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; Ready says whether services can be made from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Number of services made from it.
    #[serde(default)]
    pub in_use: u32,
    /// Number of services by version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["version".into()]))]
    pub versions: Vec<VersionUse>,
}

/// How many services run a version.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionUse {
    /// Version.
    pub version: String,
    /// Number of services.
    pub services: u32,
}
