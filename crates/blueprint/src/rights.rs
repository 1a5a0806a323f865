//! The rights that the operator needs, written down once: the chart's roles are generated from this list and a test
//! asks the API server whether the operator's account has these and no others.

use serde_json::{Value, json};

use crate::{
    build::{OPERATOR_ROLE, TENANT_ADMIN_ROLE, TENANT_VIEWER_ROLE},
    kind::Kind,
};

/// One rule of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Resources, with subresources after a slash.
    pub resources: Vec<&'static str>,
    /// Verbs.
    pub verbs: Vec<&'static str>,
    /// Only objects of these names. Empty: all.
    pub names: Vec<&'static str>,
}

impl Rule {
    fn new(group: &'static str, resources: &[&'static str], verbs: &[&'static str]) -> Self {
        Self { group, resources: resources.to_vec(), verbs: verbs.to_vec(), names: Vec::new() }
    }

    /// As it stands in a manifest.
    pub fn manifest(&self) -> Value {
        let mut rule = json!({"apiGroups": [self.group], "resources": self.resources, "verbs": self.verbs});
        if !self.names.is_empty() {
            rule["resourceNames"] = json!(self.names);
        }
        rule
    }
}

/// The definition of Comuni: whether it is being deleted is asked before anything of a Comune is.
const COMUNI: &str = "comuni.conme.venis.it";

/// In the whole cluster: to read its own resources and all children but Secrets, and to write what guards a
/// namespace. No Secrets, and no writing of workloads.
pub fn cluster_rules() -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("conme.venis.it", &["comuni", "datacenters", "servicetemplates"], &["list", "watch"]),
        Rule::new(
            "conme.venis.it",
            &["comuni/status", "datacenters/status", "servicetemplates/status"],
            &["patch"],
        ),
        // Of a Comune only the finalizer is written; before anything is deleted, it is read once more.
        Rule::new("conme.venis.it", &["comuni"], &["get", "patch"]),
        Rule {
            names: vec![COMUNI],
            ..Rule::new("apiextensions.k8s.io", &["customresourcedefinitions"], &["get"])
        },
        Rule::new("events.k8s.io", &["events"], &["create", "patch"]),
        Rule::new("storage.k8s.io", &["storageclasses"], &["list", "watch"]),
    ];
    for kind in Kind::ALL {
        let verbs: &[&str] = match kind {
            // Deletion: of those of a Comune with `deletionPolicy: Delete`, on a person's confirmation.
            Kind::Namespace => &["list", "watch", "get", "create", "patch", "delete"],
            kind if kind.is_guard() => &["list", "watch", "get", "create", "patch", "delete"],
            _ => &["list", "watch"],
        };
        rules.push(Rule::new(kind.group(), &[kind.plural()], verbs));
    }
    rules.push(Rule {
        names: vec![OPERATOR_ROLE, TENANT_ADMIN_ROLE, TENANT_VIEWER_ROLE],
        ..Rule::new("rbac.authorization.k8s.io", &["clusterroles"], &["bind"])
    });
    rules
}

/// In the namespaces of the Comuni, by a RoleBinding in each: to write what services and databases need.
pub fn tenant_rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Kind::ALL
        .into_iter()
        .filter(|kind| !kind.is_guard())
        .map(|kind| {
            let verbs: &[&str] = if kind.may_be_pruned() {
                &["get", "create", "patch", "delete"]
            } else {
                &["get", "create", "patch"]
            };
            Rule::new(kind.group(), &[kind.plural()], verbs)
        })
        .collect();
    rules.push(Rule::new("", &["secrets"], &["get", "create", "patch"]));
    rules.push(Rule::new("postgresql.cnpg.io", &["clusters"], &["get", "list", "create", "patch"]));
    rules.push(Rule::new("postgresql.cnpg.io", &["databases"], &["get", "create", "patch"]));
    rules
}

/// In its own namespace: its lease, and the credentials of the database servers.
pub fn own_rules() -> Vec<Rule> {
    vec![
        Rule::new("coordination.k8s.io", &["leases"], &["get", "create", "update"]),
        Rule::new("", &["secrets"], &["get"]),
    ]
}

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// A Comune's administrators in its namespaces: workloads. Nothing on quotas, limits, network policies, roles and
/// bindings, endpoint slices; these they may only read, so that they can see what holds for them.
pub fn tenant_admin_rules() -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            "",
            &["configmaps", "secrets", "services", "serviceaccounts", "persistentvolumeclaims", "pods"],
            &WRITE,
        ),
        Rule::new("", &["pods/log"], &["get"]),
        Rule::new("", &["pods/exec", "pods/portforward", "pods/attach", "pods/eviction"], &["get", "create"]),
        Rule::new("apps", &["deployments", "statefulsets", "replicasets"], &WRITE),
        Rule::new("apps", &["deployments/scale", "statefulsets/scale"], &["get", "update", "patch"]),
        Rule::new("batch", &["jobs", "cronjobs"], &WRITE),
        Rule::new("autoscaling", &["horizontalpodautoscalers"], &WRITE),
        Rule::new("policy", &["poddisruptionbudgets"], &WRITE),
        Rule::new("networking.k8s.io", &["ingresses"], &WRITE),
    ];
    rules.extend(guards_to_read());
    rules
}

/// A Comune's viewers in its namespaces: everything but Secrets, and no way into a pod.
pub fn tenant_viewer_rules() -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            "",
            &["configmaps", "services", "serviceaccounts", "persistentvolumeclaims", "pods"],
            &READ,
        ),
        Rule::new("", &["pods/log"], &["get"]),
        Rule::new("apps", &["deployments", "statefulsets", "replicasets"], &READ),
        Rule::new("batch", &["jobs", "cronjobs"], &READ),
        Rule::new("autoscaling", &["horizontalpodautoscalers"], &READ),
        Rule::new("policy", &["poddisruptionbudgets"], &READ),
        Rule::new("networking.k8s.io", &["ingresses"], &READ),
    ];
    rules.extend(guards_to_read());
    rules
}

fn guards_to_read() -> Vec<Rule> {
    vec![
        Rule::new("", &["resourcequotas", "limitranges", "events"], &READ),
        Rule::new("events.k8s.io", &["events"], &READ),
        Rule::new("networking.k8s.io", &["networkpolicies"], &READ),
        Rule::new("rbac.authorization.k8s.io", &["rolebindings"], &READ),
        Rule::new("postgresql.cnpg.io", &["clusters", "databases"], &READ),
    ]
}

/// People of the SAD who administer the whole: the resources of Con.Me.
pub fn sad_admin_rules() -> Vec<Rule> {
    vec![
        Rule::new("conme.venis.it", &["comuni", "datacenters", "servicetemplates", "migrations"], &WRITE),
        Rule::new(
            "conme.venis.it",
            &["comuni/status", "datacenters/status", "servicetemplates/status", "migrations/status"],
            &["get"],
        ),
        Rule::new("", &["namespaces"], &["get", "list", "watch", "patch"]),
    ]
}

/// People of the SAD who look.
pub fn sad_viewer_rules() -> Vec<Rule> {
    vec![
        Rule::new("conme.venis.it", &["comuni", "datacenters", "servicetemplates", "migrations"], &READ),
        Rule::new("", &["namespaces"], &READ),
    ]
}

/// The ClusterRoles of the chart: name, what it is for, rules.
pub fn cluster_roles() -> Vec<(&'static str, &'static str, Vec<Rule>)> {
    vec![
        (
            "conme-operator",
            "The operator in the whole cluster: no Secrets, no writing of workloads.",
            cluster_rules(),
        ),
        (
            OPERATOR_ROLE,
            "The operator in the namespaces of the Comuni, where it binds this role itself.",
            tenant_rules(),
        ),
        (TENANT_ADMIN_ROLE, "Administrators of a Comune in its own namespaces.", tenant_admin_rules()),
        (TENANT_VIEWER_ROLE, "Viewers of a Comune in its own namespaces.", tenant_viewer_rules()),
        ("conme-sad-admin", "People of the SAD who administer the Comuni.", sad_admin_rules()),
        ("conme-sad-viewer", "People of the SAD who look at the Comuni.", sad_viewer_rules()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_has_a_wildcard_and_none_gives_secrets_to_the_whole_cluster() {
        for (name, _, rules) in cluster_roles() {
            assert!(rules.iter().all(|rule| !format!("{:?}", rule.manifest()).contains('*')), "{name}");
        }
        assert!(cluster_rules().iter().all(|rule| !rule.resources.contains(&"secrets")));
    }

    #[test]
    fn workloads_are_written_only_where_the_operator_has_bound_itself() {
        for rule in
            cluster_rules().iter().filter(|rule| ["apps", "autoscaling", "policy"].contains(&rule.group))
        {
            assert_eq!(rule.verbs, ["list", "watch"], "{rule:?}");
        }
    }

    #[test]
    fn rule_9_migrations_are_for_people_of_the_sad_and_nobody_else() {
        for (name, _, rules) in cluster_roles() {
            let on_them = rules.iter().any(|rule| {
                rule.group == "conme.venis.it"
                    && rule.resources.iter().any(|resource| resource.starts_with("migrations"))
            });
            assert_eq!(on_them, name.starts_with("conme-sad-"), "{name}");
        }
    }

    #[test]
    fn tenants_have_no_rights_on_what_guards_them() {
        for rule in tenant_admin_rules() {
            for guard in
                ["resourcequotas", "limitranges", "networkpolicies", "rolebindings", "roles", "namespaces"]
            {
                assert!(!rule.resources.contains(&guard) || rule.verbs == READ, "{rule:?}");
            }
            assert!(!rule.resources.contains(&"endpointslices") && !rule.resources.contains(&"endpoints"));
        }
    }
}
