//! Who may do what in a namespace: bindings to the chart's own roles.

use conme_api::{Subject, SubjectKind};
use serde_json::{Value, json};

use crate::{
    child::{ChildRef, Desired},
    kind::{Kind, Wave},
    validate::{ValidComune, ValidEnvironment},
};

/// ClusterRole of a Comune's administrators: workloads, no rights on what guards the namespace.
pub const TENANT_ADMIN_ROLE: &str = "conme-tenant-admin";
/// ClusterRole of a Comune's viewers: everything but Secrets.
pub const TENANT_VIEWER_ROLE: &str = "conme-tenant-viewer";
/// ClusterRole that the operator binds to itself in each namespace of a Comune.
pub const OPERATOR_ROLE: &str = "conme-operator-tenant";

pub(super) fn bindings(comune: &ValidComune, environment: &ValidEnvironment) -> Vec<Desired> {
    let binding = |name: &str, wave: Wave, role: &str, subjects: Vec<Value>| {
        let at = ChildRef::new(Kind::RoleBinding, &environment.namespace, name);
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
        let content = json!({"roleRef": role, "subjects": subjects});
        Desired::new(at, wave, &comune.name, "access", json!({}), content)
    };
    let (namespace, account) = &comune.operator;
    let operator = json!({"kind": "ServiceAccount", "namespace": namespace, "name": account});
    let mut bindings = vec![binding("conme-operator", Wave::Guards, OPERATOR_ROLE, vec![operator])];
    for (name, role, people) in [
        ("conme-administrators", TENANT_ADMIN_ROLE, &comune.spec.administrators),
        ("conme-viewers", TENANT_VIEWER_ROLE, &comune.spec.viewers),
    ] {
        if !people.is_empty() {
            bindings.push(binding(name, Wave::Contents, role, people.iter().map(subject).collect()));
        }
    }
    bindings
}

fn subject(subject: &Subject) -> Value {
    match subject.kind {
        SubjectKind::ServiceAccount => {
            json!({"kind": "ServiceAccount", "namespace": subject.namespace, "name": subject.name})
        }
        kind => {
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{kind:?}"), "name": subject.name})
        }
    }
}
