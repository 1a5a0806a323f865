//! A database on a server of its own, as objects of CloudNativePG (<https://cloudnative-pg.io>), which runs the server.
//!
//! They are not children like the others: their kinds exist only where CloudNativePG is installed, so nobody watches
//! them, and they are never deleted, because they are the data.

use conme_api::{Quantity, keys};
use serde_json::{Value, json};

use crate::validate::{ValidComune, ValidDedicated};

const API_VERSION: &str = "postgresql.cnpg.io/v1";
/// What an instance gets when the manifest does not say. Chosen by us: PostgreSQL starts with much less.
const CPU: &str = "500m";
const MEMORY: &str = "1Gi";

fn object(kind: &str, comune: &str, database: &ValidDedicated, spec: Value) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": database.secret,
            "namespace": database.namespace,
            "labels": {
                keys::COMUNE: comune,
                keys::COMPONENT: format!("database-{}", database.spec.name),
                keys::MANAGED_BY: keys::MANAGER,
            },
        },
        "spec": spec,
    })
}

/// The `Cluster`: the server and its first database, owned by the role of the binding Secret, which has to be there
/// before.
///
/// `name` is the database's on the server, `role` its owner there. Requests are limits, as quotas count both.
pub fn dedicated_cluster(comune: &ValidComune, database: &ValidDedicated, name: &str, role: &str) -> Value {
    let amount = |given: &Option<Quantity>, default: &str| {
        given.as_ref().map_or_else(|| json!(default), |given| json!(given))
    };
    let amounts = json!({
        "cpu": amount(&database.server.cpu, CPU),
        "memory": amount(&database.server.memory, MEMORY),
    });
    let mut storage = json!({"size": database.server.storage, "resizeInUseVolumes": true});
    if let Some(class) = &comune.storage_class {
        storage["storageClass"] = json!(class);
    }
    let spec = json!({
        "instances": database.server.instances,
        "storage": storage,
        "resources": {"requests": amounts, "limits": amounts},
        "enableSuperuserAccess": false,
        // Never two instances on one host: a host that fails would take the standby along.
        "affinity": {"enablePodAntiAffinity": true, "podAntiAffinityType": "required",
            "topologyKey": "kubernetes.io/hostname"},
        "bootstrap": {"initdb": {"database": name, "owner": role, "encoding": "UTF8",
            "secret": {"name": database.secret}}},
    });
    object("Cluster", &comune.name, database, spec)
}

/// The `Database`: extensions and limits of the database that the `Cluster` was begun with.
pub fn dedicated_database(comune: &ValidComune, database: &ValidDedicated, name: &str, role: &str) -> Value {
    let extensions: Vec<Value> =
        database.spec.extensions.iter().map(|name| json!({"name": name, "ensure": "present"})).collect();
    let mut spec = json!({
        "cluster": {"name": database.secret},
        "name": name,
        "owner": role,
        "ensure": "present",
        // Whatever becomes of this object, the data stays.
        "databaseReclaimPolicy": "retain",
        "extensions": extensions,
    });
    if let Some(limit) = database.spec.connection_limit {
        spec["connectionLimit"] = json!(limit);
    }
    object("Database", &comune.name, database, spec)
}
