//! The programs of the control plane and their flags.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::dirs::{create_dir, write_file};
use crate::kubeconfig;
use crate::options::Hosts;
use crate::pki::{Pki, Usage};
use crate::process::CommandSpec;
use crate::state::{Program, ProgramKind};
use crate::tools::{Tools, version_of};

/// The annotation by which kwok knows the hosts that it simulates.
const FAKE: &str = "kwok.x-k8s.io/node";

/// Name of a simulated host, counted from 1.
pub(crate) fn host_name(number: usize) -> String {
    format!("host-{number:02}")
}

/// A simulated host as a Node with its capacity; kwok makes it ready.
pub(crate) fn node(number: usize, hosts: &Hosts) -> serde_json::Value {
    let name = host_name(number);
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let size = json!({
        "cpu": hosts.cores.to_string(),
        "memory": hosts.memory,
        "pods": hosts.pods.to_string(),
        "ephemeral-storage": "1Ti",
    });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": { FAKE: "fake" },
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": arch,
                "conme.venis.it/pool": "generale",
            },
        },
        "status": { "capacity": size, "allocatable": size },
    })
}

/// True when pods can be scheduled to the Node: it is ready, and the taint for those that are not is gone.
pub(crate) fn is_schedulable(node: &serde_json::Value) -> bool {
    let entries = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let ready = entries(&node["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let tainted = entries(&node["spec"]["taints"])
        .iter()
        .any(|taint| taint["key"].as_str().is_some_and(|key| key.starts_with("node.kubernetes.io/")));
    ready && !tainted
}

const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

/// The files and flags of one control plane.
pub(crate) struct ControlPlane<'a> {
    pub instance: &'a str,
    pub dir: &'a Path,
    pub pki: &'a Pki,
    pub tools: &'a Tools,
}

impl ControlPlane<'_> {
    fn command(&self, program: &str) -> CommandSpec {
        CommandSpec::new(self.tools.program(program), self.dir)
    }

    fn program(&self, name: &str, kind: ProgramKind, command: CommandSpec, port: Option<u16>) -> Program {
        Program { port, version: version_of(name).map(str::to_owned), ..Program::new(name, kind, command) }
    }

    /// Makes everything that does not depend on a port.
    pub fn prepare(&self) -> Result<()> {
        create_dir(&self.dir.join("etcd"), 0o700)?;
        self.pki.issue("etcd", "etcd", None, Usage::Both)?;
        self.pki.issue("etcd-client", "kube-apiserver", None, Usage::Client)?;
        self.pki.issue("apiserver", "kube-apiserver", None, Usage::Server)?;
        self.pki.issue("admin", "kubernetes-admin", Some("system:masters"), Usage::Client)?;
        self.pki.issue("controller-manager", "system:kube-controller-manager", None, Usage::Client)?;
        self.pki.issue("scheduler", "system:kube-scheduler", None, Usage::Client)?;
        self.pki.issue("kwok", "system:kwok", Some("system:masters"), Usage::Client)?;
        self.pki.key_pair("service-accounts")?;
        write_file(&self.dir.join("audit-policy.yaml"), 0o644, AUDIT_POLICY.as_bytes())
    }

    /// Writes the kubeconfigs for an API server on this port.
    pub fn write_kubeconfigs(&self, port: u16) -> Result<()> {
        let server = format!("https://127.0.0.1:{port}");
        for (file, user) in [
            ("kubeconfig", "admin"),
            ("pki/controller-manager.kubeconfig", "controller-manager"),
            ("pki/scheduler.kubeconfig", "scheduler"),
            ("pki/kwok.kubeconfig", "kwok"),
        ] {
            let (ca, cert, key) = (self.pki.ca(), self.pki.cert(user), self.pki.key(user));
            let text = kubeconfig::text(self.instance, user, &server, &ca, &cert, &key)?;
            write_file(&self.dir.join(file), 0o600, text.as_bytes())?;
        }
        Ok(())
    }

    /// etcd. It asks for certificates also on the loopback interface: who reads it owns the cluster.
    pub fn etcd(&self, port: u16, peer_port: u16) -> Program {
        let (cert, key, ca) = (self.pki.cert("etcd"), self.pki.key("etcd"), self.pki.ca());
        let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("https://127.0.0.1:{peer_port}"));
        let command = self.command("etcd").args([
            "--name=default".to_owned(),
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            format!("--cert-file={}", cert.display()),
            format!("--key-file={}", key.display()),
            format!("--trusted-ca-file={}", ca.display()),
            "--client-cert-auth".to_owned(),
            format!("--peer-cert-file={}", cert.display()),
            format!("--peer-key-file={}", key.display()),
            format!("--peer-trusted-ca-file={}", ca.display()),
            "--peer-client-cert-auth".to_owned(),
            "--unsafe-no-fsync".to_owned(),
            "--quota-backend-bytes=4294967296".to_owned(),
            "--log-level=warn".to_owned(),
        ]);
        self.program("etcd", ProgramKind::Etcd, command, Some(port))
    }

    /// The API server.
    pub fn api_server(&self, port: u16, etcd_port: u16) -> Program {
        let pki = self.pki;
        let command = self.command("kube-apiserver").args([
            format!("--etcd-servers=https://127.0.0.1:{etcd_port}"),
            format!("--etcd-cafile={}", pki.ca().display()),
            format!("--etcd-certfile={}", pki.cert("etcd-client").display()),
            format!("--etcd-keyfile={}", pki.key("etcd-client").display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            // No pod runs for real, so nobody needs the addresses behind the service "kubernetes", and a machine
            // without a route to the outside has none to offer.
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--tls-cert-file={}", pki.cert("apiserver").display()),
            format!("--tls-private-key-file={}", pki.key("apiserver").display()),
            format!("--client-ca-file={}", pki.ca().display()),
            "--anonymous-auth=false".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--api-audiences=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", self.dir.join("pki/service-accounts.pub").display()),
            format!("--service-account-signing-key-file={}", pki.key("service-accounts").display()),
            "--service-account-extend-token-expiration=false".to_owned(),
            format!("--audit-policy-file={}", self.dir.join("audit-policy.yaml").display()),
            format!("--audit-log-path={}", self.dir.join("audit.log").display()),
            "--audit-log-maxsize=2048".to_owned(),
            "--audit-log-maxbackup=2".to_owned(),
            "--profiling=false".to_owned(),
        ]);
        self.program("kube-apiserver", ProgramKind::ApiServer, command, Some(port))
    }

    /// The clients of the API server: controller manager, scheduler, kwok. They listen nowhere.
    pub fn workers(&self) -> Vec<Program> {
        let kubeconfig = |user: &str| {
            format!("--kubeconfig={}", self.dir.join(format!("pki/{user}.kubeconfig")).display())
        };
        let manager = self.command("kube-controller-manager").args([
            kubeconfig("controller-manager"),
            "--secure-port=0".to_owned(),
            // There is only one: electing it would only add waiting and writes.
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            // With the default of 20 requests a second its start alone takes five seconds.
            "--kube-api-qps=300".to_owned(),
            "--kube-api-burst=600".to_owned(),
            format!("--service-account-private-key-file={}", self.pki.key("service-accounts").display()),
            format!("--root-ca-file={}", self.pki.ca().display()),
            format!("--cluster-signing-cert-file={}", self.pki.ca().display()),
            format!("--cluster-signing-key-file={}", self.pki.ca_key().display()),
            "--profiling=false".to_owned(),
        ]);
        let scheduler = self.command("kube-scheduler").args([
            kubeconfig("scheduler"),
            "--secure-port=0".to_owned(),
            "--kube-api-qps=300".to_owned(),
            "--kube-api-burst=600".to_owned(),
            "--leader-elect=false".to_owned(),
            "--profiling=false".to_owned(),
        ]);
        let kwok = self.command("kwok").args([
            kubeconfig("kwok"),
            format!("--config={}", self.tools.stages().display()),
            "--manage-all-nodes=false".to_owned(),
            format!("--manage-nodes-with-annotation-selector={FAKE}=fake"),
            "--node-lease-duration-seconds=40".to_owned(),
            "--cidr=10.128.0.0/14".to_owned(),
        ]);
        vec![
            self.program("kube-controller-manager", ProgramKind::Worker, manager, None),
            self.program("kube-scheduler", ProgramKind::Worker, scheduler, None),
            self.program("kwok", ProgramKind::Worker, kwok, None),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_what_the_options_say() {
        let node = node(3, &Hosts { cores: 16, memory: "64Gi".into(), ..Hosts::default() });
        assert_eq!(node["metadata"]["name"], "host-03");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "host-03");
        assert_eq!(node["metadata"]["labels"]["conme.venis.it/pool"], "generale");
        assert_eq!(node["status"]["allocatable"]["cpu"], "16");
        assert_eq!(node["status"]["capacity"]["memory"], "64Gi");
        assert_eq!(node["metadata"]["annotations"]["kwok.x-k8s.io/node"], "fake");
    }

    #[test]
    fn a_host_counts_when_ready_and_untainted() {
        let mut node = node(1, &Hosts::default());
        assert!(!is_schedulable(&node));
        node["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
        assert!(is_schedulable(&node));
        node["spec"]["taints"] = json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }]);
        assert!(!is_schedulable(&node));
    }
}
