//! What limits and isolates a namespace: quota, limits, network policies.

use serde_json::{Value, json};

use super::Plot;
use crate::{
    amount::{Amount, notation},
    capacity::Amounts,
    child::{ChildRef, Desired},
    kind::{Kind, Wave},
    validate::{ValidComune, rules_of},
};

const ISOLATION: &str = "isolation";
/// The network policy that leads to the servers of an environment's databases.
pub const DATABASES_POLICY: &str = "conme-databases";

/// Totals by the names that ResourceQuotas use: vCPU and memory count as requests and as limits.
pub fn hard(totals: &Amounts) -> Amounts {
    let mut hard = Amounts::new();
    for (resource, amount) in totals {
        match resource.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                hard.insert(format!("requests.{resource}"), *amount);
                hard.insert(format!("limits.{resource}"), *amount);
            }
            "storage" => {
                hard.insert("requests.storage".into(), *amount);
            }
            _ => {
                hard.insert(resource.clone(), *amount);
            }
        }
    }
    hard
}

pub(super) fn guards(comune: &ValidComune, plot: &Plot<'_>) -> Vec<Desired> {
    let namespace = &plot.environment.namespace;
    let guard = |kind: Kind, name: &str, component: &str, spec: Value| {
        let at = ChildRef::new(kind, namespace, name);
        Desired::new(at, Wave::Guards, &comune.name, component, json!({}), json!({"spec": spec}))
    };
    let mut guards = vec![
        guard(Kind::ResourceQuota, "conme-quota", "quota", quota(&plot.hard)),
        guard(Kind::LimitRange, "conme-limits", "limits", limits()),
        guard(Kind::NetworkPolicy, "conme-default-deny", ISOLATION, default_deny()),
        guard(Kind::NetworkPolicy, "conme-environment", ISOLATION, same_environment(comune)),
    ];
    if let Some(spec) = databases(comune, namespace) {
        guards.push(guard(Kind::NetworkPolicy, DATABASES_POLICY, ISOLATION, spec));
    }
    if let Some(spec) = dedicated(comune, namespace) {
        guards.push(guard(Kind::NetworkPolicy, "conme-dedicated", ISOLATION, spec));
    }
    if let Some(spec) = declared_rules(comune, &plot.environment.name) {
        guards.push(guard(Kind::NetworkPolicy, "conme-declared", ISOLATION, spec));
    }
    guards
}

fn quota(hard: &Amounts) -> Value {
    let texts: serde_json::Map<String, Value> = hard
        .iter()
        .map(|(resource, amount): (&String, &Amount)| {
            (resource.clone(), json!(amount.text(notation(resource))))
        })
        .collect();
    json!({"hard": texts})
}

/// What a container gets that says nothing: with a quota on vCPU and memory, it could not be created otherwise.
fn limits() -> Value {
    json!({"limits": [{
        "type": "Container",
        "default": {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"},
        "defaultRequest": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "100Mi"},
    }]})
}

fn default_deny() -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": []})
}

fn same_environment(comune: &ValidComune) -> Value {
    let network = &comune.network;
    let dns_ports = json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]);
    let mut dns_peers = vec![json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": network.dns_namespace}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    })];
    dns_peers.extend(network.node_local_dns.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})));
    json!({
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}]}],
        "egress": [{"to": [{"podSelector": {}}]}, {"to": dns_peers, "ports": dns_ports}],
    })
}

/// To the servers of the environment's databases, by address and port: policies know no names.
fn databases(comune: &ValidComune, namespace: &str) -> Option<Value> {
    let mut servers: Vec<_> = comune
        .databases
        .iter()
        .filter(|database| database.namespace == namespace)
        .map(|database| &database.server)
        .collect();
    servers.sort_by(|a, b| a.name.cmp(&b.name));
    servers.dedup_by(|a, b| a.name == b.name);
    let egress: Vec<Value> = servers
        .iter()
        .map(|server| {
            let peers: Vec<Value> =
                server.cidrs.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
            json!({"to": peers, "ports": [{"protocol": "TCP", "port": server.port}]})
        })
        .collect();
    (!egress.is_empty()).then(|| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": egress}))
}

/// Around the servers of the environment's own: CloudNativePG's operator reaches them, and they reach the API server
/// (<https://cloudnative-pg.io/documentation/current/networking>).
fn dedicated(comune: &ValidComune, namespace: &str) -> Option<Value> {
    let api_server = comune.network.api_server.as_ref()?;
    let clusters: Vec<&str> = comune
        .dedicated
        .iter()
        .filter(|database| database.namespace == namespace)
        .map(|database| database.secret.as_str())
        .collect();
    let tcp = |ports: &[u16]| -> Vec<Value> {
        ports.iter().map(|port| json!({"protocol": "TCP", "port": port})).collect()
    };
    let blocks: Vec<Value> = api_server.cidrs.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
    let operator = json!({
        "namespaceSelector":
            {"matchLabels": {"kubernetes.io/metadata.name": comune.network.cloud_native_pg_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "cloudnative-pg"}},
    });
    (!clusters.is_empty()).then(|| {
        json!({
            "podSelector":
                {"matchExpressions": [{"key": "cnpg.io/cluster", "operator": "In", "values": clusters}]},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [operator], "ports": tcp(&[8000, 5432])}],
            "egress": [{"to": blocks, "ports": tcp(&api_server.ports)}],
        })
    })
}

fn declared_rules(comune: &ValidComune, environment: &str) -> Option<Value> {
    let network = comune.spec.network.as_ref()?;
    let rules = |rules, peers: &str| -> Vec<Value> {
        rules_of(rules, environment)
            .map(|rule| {
                let blocks: Vec<Value> =
                    rule.cidrs.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
                let ports: Vec<Value> =
                    rule.ports.iter().map(|port| json!({"protocol": "TCP", "port": port})).collect();
                let mut rule = json!({peers: blocks});
                if !ports.is_empty() {
                    rule["ports"] = json!(ports);
                }
                rule
            })
            .collect()
    };
    let (ingress, egress) = (rules(&network.ingress, "from"), rules(&network.egress, "to"));
    if ingress.is_empty() && egress.is_empty() {
        return None;
    }
    // Both directions are named and set, also when empty: a list that nobody owns could be filled by somebody else.
    Some(json!({
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }))
}
