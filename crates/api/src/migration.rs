//! `Migration`: one workload of a local server on its way.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::NAME_PATTERN;

/// Largest number of approvals of a [`Migration`]. The chart's policy compares as many.
pub const MAX_APPROVALS: usize = 64;

/// One workload of a local server on its way into the data centre, and who has approved what of it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "conme.venis.it",
    version = "v1alpha1",
    kind = "Migration",
    plural = "migrations",
    singular = "migration",
    shortname = "mig",
    category = "conme",
    namespaced,
    status = "MigrationStatus",
    derive = "PartialEq",
    doc = "One workload of a local server on its way into the data centre, in the namespace <comune>-sistema. This version keeps and guards the approvals that people give; nothing is moved yet.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "COMUNE", type_ = "string", json_path = ".spec.comune"),
    printcolumn(name = "SERVER", type_ = "string", json_path = ".spec.server"),
    printcolumn(name = "WORKLOAD", type_ = "string", json_path = ".spec.workload"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "CUTOVER", type_ = "string", json_path = ".spec.cutover", priority = 1),
    printcolumn(name = "EPOCH", type_ = "integer", json_path = ".status.epoch", priority = 1)
)]
#[x_kube(
    validation = Rule::new("self.comune == oldSelf.comune && self.server == oldSelf.server && self.workload == oldSelf.workload")
        .message("what is migrated cannot change, approvals speak of it: make a Migration for the other workload"),
    validation = Rule::new("(self.cutover == 'At') == has(self.cutoverAt)")
        .message("give a time exactly when cutover is At").field_path(".cutoverAt"),
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSpec {
    /// The Comune that the server belongs to.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub comune: String,
    /// One of spec.servers of that Comune.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub server: String,
    /// One of the workloads of that server.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub workload: String,
    /// When the workload is to be switched over, once that is approved (default Manual).
    #[serde(default)]
    pub cutover: Cutover,
    /// The time of the cut-over, where cutover is At (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), extend("format" = "date-time"))]
    pub cutover_at: Option<String>,
    /// What people have approved. Each person of the SAD adds entries in their own name, at the end and for the
    /// epoch that status tells; no entry is ever changed or taken away.
    #[serde(default)]
    #[schemars(length(max = MAX_APPROVALS))]
    pub approvals: Vec<Approval>,
}

/// When a workload is switched over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Cutover {
    /// When a person says so.
    #[default]
    Manual,
    /// At a given time.
    At,
    /// As soon as everything is ready.
    WhenReady,
}

/// A decision of a migration that takes a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    /// The source is closed and the rest copied.
    Cutover,
    /// The data centre's copy is the one in force.
    Commit,
    /// The source is the one in force again.
    Rollback,
}

/// The word of one person on one stage in one epoch.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// Epoch that it holds for: that of status, 1 where there is none.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub epoch: u32,
    /// What is approved: Cutover, Commit or Rollback.
    pub stage: Stage,
    /// The user name, as the API server knows it, of the person who adds this entry (`kubectl auth whoami`).
    #[schemars(length(min = 1, max = 256))]
    pub approved_by: String,
    /// When, by that person's word (RFC 3339). When it was stored stands in the API server's audit log.
    #[schemars(length(max = 35), extend("format" = "date-time"))]
    pub at: String,
    /// What else there is to say, such as the number of an act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub note: Option<String>,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The source is looked at.
    Assessing,
    /// It can begin.
    Ready,
    /// Data is copied while the source is in use.
    Replicating,
    /// What is left to copy is little enough.
    CutoverReady,
    /// The source is being closed.
    Fencing,
    /// The copy is examined while it is closed.
    Validating,
    /// The copy is the one in force.
    Committed,
    /// Nothing is left to be done.
    Completed,
    /// Held by a person.
    Paused,
    /// On the way back to the source.
    RollingBack,
    /// The source is in force again.
    RolledBack,
    /// A person is needed.
    Failed,
}

/// What the operator tells of a migration.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// Number of the attempt that approvals are given for. Begins with 1, also where it is absent, and only grows:
    /// approvals of an attempt that failed do not count for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub epoch: Option<u32>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
