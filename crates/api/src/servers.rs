//! Sites and local servers of an administration: what is to be taken over.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Classification, Quantity,
    common::{NAME_PATTERN, TIME_PATTERN},
};

/// A place where local servers stand.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Site {
    /// Name, such as municipio.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Upload capacity of its link in Mbit/s.
    #[schemars(range(min = 1, max = 100_000))]
    pub uplink_mbps: u32,
    /// When data may be moved and how fast. Absent: the data centre's default windows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub windows: Vec<Window>,
}

/// Day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Hours in which data may be moved.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Days on which the window opens: Mon, Tue, Wed, Thu, Fri, Sat, Sun.
    #[schemars(length(min = 1, max = 7))]
    pub days: Vec<Day>,
    /// Opening time, HH:MM, Europe/Rome.
    #[schemars(length(max = 5), regex(pattern = TIME_PATTERN))]
    pub from: String,
    /// Closing time, HH:MM; earlier than from means the next morning.
    #[schemars(length(max = 5), regex(pattern = TIME_PATTERN))]
    pub to: String,
    /// Most that may be used of the link, in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub cap_mbps: Option<u32>,
}

/// Whether a local server is a machine or a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// A physical machine.
    Physical,
    /// A virtual machine on a local hypervisor.
    Virtual,
}

/// A local server to take over.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.workloads) || self.workloads.all(w, !has(w.disk) || (has(self.disks) && self.disks.exists(d, d.name == w.disk.disk)))")
    .message("a workload names a disk that is not in this server's disks").field_path(".workloads"))]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Name within the Comune, such as srv-protocollo.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// One of spec.sites.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub site: String,
    /// physical or virtual.
    pub kind: ServerKind,
    /// Operating system.
    pub os: OperatingSystem,
    /// Number of processors that it sees.
    #[schemars(range(min = 1, max = 512))]
    pub vcpus: u32,
    /// Memory: 16Gi.
    pub memory: Quantity,
    /// Its disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub disks: Vec<Disk>,
    /// What is to be moved from it, each as a migration of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub workloads: Vec<Workload>,
}

/// An operating system as the tables of end-of-support dates name it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatingSystem {
    /// Product, such as ubuntu, windows-server, centos.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub product: String,
    /// Version, quoted: "14.04", "2012-r2".
    #[schemars(length(min = 1, max = 40))]
    pub version: String,
}

/// A disk of a local server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name of the device without /dev/: sda.
    #[schemars(length(min = 1, max = 40), regex(pattern = "^[A-Za-z0-9_/-]+$"))]
    pub name: String,
    /// Size: 500Gi.
    pub size: Quantity,
}

/// Way of migrating, by PNRR measure 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Transfer of the infrastructure as it is (lift and shift).
    A,
    /// Upgrade of the application in the cloud.
    B,
}

/// One thing to be moved from a local server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.disk), has(self.files), has(self.postgresql), has(self.mariadb)].filter(x, x).size() == 1")
    .message("a workload is exactly one of disk, files, postgresql, mariadb"))]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Name within the server.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// A (lift and shift) or B (upgrade).
    pub mode: Mode,
    /// Classification as decided by the administration. Without it the workload may not migrate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// A whole disk, which becomes a virtual machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskWorkload>,
    /// A tree of files, which becomes a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesWorkload>,
    /// A PostgreSQL database, which moves into one of spec.databases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<DatabaseWorkload>,
    /// A MariaDB or MySQL database, which moves into one of spec.databases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mariadb: Option<DatabaseWorkload>,
}

/// A disk to move.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskWorkload {
    /// One of the server's disks.
    #[schemars(length(min = 1, max = 40))]
    pub disk: String,
}

/// Files to move.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesWorkload {
    /// Absolute path on the local server: /srv/documenti.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/"))]
    pub path: String,
    /// Volume claim that it becomes.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub volume: String,
    /// Environment of that volume.
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME_PATTERN))]
    pub environment: String,
}

/// A database to move.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseWorkload {
    /// One of spec.databases: the target.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME_PATTERN))]
    pub database: String,
    /// Name of the database on the local server.
    #[schemars(length(min = 1, max = 63))]
    pub source_database: String,
}
