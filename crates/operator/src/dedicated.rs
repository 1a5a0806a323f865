//! Databases on servers of their own: the objects that CloudNativePG makes a server of.
//!
//! Its kinds may not exist in a cluster, so nobody watches them: each database is looked at in its turn, on the queue
//! of all databases. A `Cluster` is the data itself: it is never deleted, and never made a second time without a
//! person's word.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use conme_api::{Comune, keys, reasons};
use conme_blueprint::{
    ChildRef, DatabaseSeen, Kind, ValidComune, ValidDedicated,
    build::{Binding, binding_secret, dedicated_cluster, dedicated_database},
    child,
};
use conme_databases::{Names, Provisioned};
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;

use crate::{
    context::Context,
    databases::{Trouble, how_to_confirm, is_ours, jittered, new_password, password_of, provisioned},
};

const GROUP: &str = "postgresql.cnpg.io";
/// A server that is being made is looked at again after this time.
const WAIT: Duration = Duration::from_secs(10);
/// Label by which CloudNativePG takes up a password that has changed.
const RELOAD: &str = "cnpg.io/reload";

/// What is known of one database on a server of its own.
#[derive(Debug, Default)]
pub struct DedicatedState {
    /// What is told of it. None: it has not been looked at since its declaration or the start.
    pub seen: Option<DatabaseSeen>,
    task: Option<Task>,
    /// What this process has found. It knows of it before any status tells.
    provisioned: Option<Provisioned>,
}

/// What has to be brought about.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    comune: String,
    name: String,
    namespace: String,
    secret: String,
    /// Name on the server.
    database: String,
    /// Its owner, whom the application logs in as.
    role: String,
    /// The CloudNativePG objects; the server's is first.
    cluster: Value,
    content: Value,
    adopt: bool,
    /// What a person has said about vanished databases: a new word is a reason to look again at once.
    word: Option<String>,
}

/// Has a database looked at, if its declaration is new.
pub fn submit(context: &Context, comune: &Comune, valid: &ValidComune, database: &ValidDedicated) {
    let name = comune.name_any();
    let Ok(names) = Names::new(&name, &database.spec.name) else {
        tracing::error!(comune = %name, database = %database.spec.name, "a name that the schema should have refused");
        return;
    };
    let task = Task {
        comune: name.clone(),
        name: database.spec.name.clone(),
        namespace: database.namespace.clone(),
        secret: database.secret.clone(),
        database: names.database().to_owned(),
        role: names.app().to_owned(),
        cluster: dedicated_cluster(valid, database, names.database(), names.app()),
        content: dedicated_database(valid, database, names.database(), names.app()),
        adopt: database.spec.adopt,
        word: comune.annotations().get(keys::CONFIRM_RECREATE).cloned(),
    };
    let key = (name, database.spec.name.clone());
    let queue_key = format!("{}/{}", key.0, key.1);
    let mut world = context.world();
    let state = world.dedicated.entry(key).or_default();
    if state.task.as_ref() != Some(&task) {
        state.task = Some(task);
        state.seen = None;
        context.databases.succeeded(&queue_key);
        context.databases.add(&queue_key);
    }
}

/// One pass over one database on a server of its own.
///
/// # Errors
/// When it is not as declared and nothing but a repetition helps; what happened is told in the status of its Comune.
pub async fn reconcile(context: &Context, comune: &str, database: &str) -> anyhow::Result<()> {
    let id = (comune.to_owned(), database.to_owned());
    let key = format!("{comune}/{database}");
    let (task, known) = {
        let mut world = context.world();
        let declared =
            world.comune(comune).filter(|comune| comune.spec.databases.iter().any(|d| d.name == database));
        let Some(declared) = declared else {
            // No longer declared: the server goes on, and nobody looks after it any more.
            world.dedicated.remove(&id);
            return Ok(());
        };
        let Some(state) = world.dedicated.get_mut(&id) else { return Ok(()) };
        if declared.spec.paused {
            // After the pause it is looked at again, also when nothing new is declared.
            state.task = None;
            return Ok(());
        }
        let Some(task) = state.task.clone() else { return Ok(()) };
        (task, provisioned(&declared, database, state.provisioned.clone()))
    };
    let result = bring_about(context, &task, known.as_ref()).await;
    let (seen, reason) = match result {
        Ok(seen) => (seen, "ready"),
        Err(Trouble { reason, message }) => (DatabaseSeen::Failed { reason, message }, reason),
    };
    context.metrics.database(reason);
    let changed = {
        let mut world = context.world();
        let Some(state) = world.dedicated.get_mut(&id).filter(|state| state.task.as_ref() == Some(&task))
        else {
            return Ok(());
        };
        if let DatabaseSeen::Ready { system_identifier, provisioned_at, .. } = &seen {
            state.provisioned = Some(Provisioned {
                system_identifier: Some(system_identifier.clone()).filter(|id| !id.is_empty()),
                at: *provisioned_at,
            });
        }
        let changed = state.seen.as_ref() != Some(&seen);
        state.seen = Some(seen.clone());
        changed
    };
    if changed {
        context.comuni.add(comune);
    }
    match seen {
        DatabaseSeen::Failed { reason, .. } if reason == reasons::WAITING => {
            context.databases.add_after(&key, WAIT.min(context.recheck));
            Ok(())
        }
        DatabaseSeen::Failed { message, .. } => Err(anyhow::anyhow!(message)),
        DatabaseSeen::Ready { .. } => {
            context.databases.add_after(&key, jittered(context.recheck));
            Ok(())
        }
    }
}

async fn bring_about(
    context: &Context,
    task: &Task,
    known: Option<&Provisioned>,
) -> Result<DatabaseSeen, Trouble> {
    let place = format!("the Cluster {}/{}", task.namespace, task.secret);
    let Some(cluster) = read(context, task, "Cluster").await? else {
        if let Some(lost) = known {
            let message = format!(
                "{place} was provisioned on {} and is gone, and its data with it. Restore it from a backup under the \
                 same name{}",
                lost.at,
                how_to_confirm(&task.comune, &task.name, lost)
            );
            return Err(Trouble::new(reasons::DATA_MISSING, message));
        }
        // The server begins with the credentials that it finds.
        keep_secret(context, task).await?;
        write(context, task, "Cluster", &task.cluster, None).await?;
        write(context, task, "Database", &task.content, None).await?;
        return Err(Trouble::new(
            reasons::WAITING,
            format!("{place} was created; waiting for CloudNativePG"),
        ));
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        let message = format!("{place} is being deleted by somebody; the operator did not ask for it");
        return Err(Trouble::new(reasons::DATABASE_FAILED, message));
    }
    let labels = cluster.labels();
    let is_known = labels.get(keys::COMUNE) == Some(&task.comune)
        && labels.get(keys::MANAGED_BY).map(String::as_str) == Some(keys::MANAGER);
    if !is_known && !task.adopt {
        let message = format!(
            "{place} exists and is not Con.Me's; to take it over set adopt: true on the database `{}`",
            task.name
        );
        return Err(Trouble::new(reasons::CONFLICT, message));
    }
    let status = cluster.data.get("status").cloned().unwrap_or_default();
    let identity = status["systemID"].as_str().unwrap_or_default();
    if let Some(lost) = known
        && let Some(before) = lost.system_identifier.as_deref()
        && !identity.is_empty()
        && identity != before
    {
        let message = format!(
            "{place} holds another server's data: its identity is {identity}, that of the one provisioned on {} was \
             {before}{}",
            lost.at,
            how_to_confirm(&task.comune, &task.name, lost)
        );
        return Err(Trouble::new(reasons::DATA_MISSING, message));
    }
    keep_secret(context, task).await?;
    keep(context, task, "Cluster", &task.cluster, Some(&cluster)).await?;
    let database = read(context, task, "Database").await?;
    keep(context, task, "Database", &task.content, database.as_ref()).await?;
    if let Some(missing) = cluster_waits(&cluster, &task.cluster) {
        return Err(Trouble::new(reasons::WAITING, format!("{place}: {missing}")));
    }
    if let Some(missing) = database.as_ref().map_or(Some("it was just created".into()), database_waits) {
        let place = format!("the Database {}/{}", task.namespace, task.secret);
        return Err(Trouble::new(reasons::WAITING, format!("{place}: {missing}")));
    }
    let at = known.map_or_else(
        || Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
        |known| known.at,
    );
    Ok(DatabaseSeen::Ready {
        system_identifier: identity.to_owned(),
        provisioned_at: at,
        database: task.database.clone(),
        details: Box::default(),
    })
}

/// What a `Cluster` still waits for.
fn cluster_waits(cluster: &DynamicObject, wanted: &Value) -> Option<String> {
    let status = cluster.data.get("status").filter(|status| status["phase"].is_string());
    let Some(status) = status else {
        return Some(
            "waiting for CloudNativePG, which has not taken it up; is its operator running and watching this namespace?"
                .into(),
        );
    };
    let instances = wanted["spec"]["instances"].as_i64().unwrap_or_default();
    let ready = status["readyInstances"].as_i64().unwrap_or_default();
    let phase = status["phase"].as_str().unwrap_or_default();
    let condition = status["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == "Ready");
    let is_ready = condition.is_some_and(|one| one["status"] == "True");
    (!is_ready || ready < instances).then(|| format!("{ready} of {instances} instances are ready ({phase})"))
}

/// What a `Database` still waits for.
fn database_waits(database: &DynamicObject) -> Option<String> {
    let status = database.data.get("status").cloned().unwrap_or_default();
    let current = status["observedGeneration"].as_i64() == database.metadata.generation;
    if status["applied"] == true && current {
        return None;
    }
    let message = status["message"].as_str().filter(|message| !message.is_empty());
    Some(message.map_or_else(|| "waiting for CloudNativePG to apply it".into(), str::to_owned))
}

fn api(context: &Context, task: &Task, kind: &str) -> Api<DynamicObject> {
    let plural = format!("{}s", kind.to_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", kind), &plural);
    Api::namespaced_with(context.client.clone(), &task.namespace, &resource)
}

fn refused(task: &Task, kind: &str, error: &kube::Error) -> Trouble {
    let words = conme_cluster::words(error);
    Trouble::new(reasons::API_ERROR, format!("the {kind} {}/{}: {words}", task.namespace, task.secret))
}

async fn read(context: &Context, task: &Task, kind: &str) -> Result<Option<DynamicObject>, Trouble> {
    let found = match context.calls.make("GET", api(context, task, kind).get(&task.secret)).await {
        Ok(found) => Some(found),
        // Either the object or its very kind does not exist; the API server answers the latter in plain text.
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        Err(error) => return Err(refused(task, kind, &error)),
    };
    if found.is_none() && !is_served(context).await? {
        return Err(Trouble::new(
            reasons::WAITING,
            "waiting for CloudNativePG: this cluster does not serve postgresql.cnpg.io/v1. Install CloudNativePG \
             (https://cloudnative-pg.io), or place the database on a shared server",
        ));
    }
    Ok(found)
}

/// The servers in a namespace, whoever has made them; none where nobody knows CloudNativePG's kinds.
///
/// # Errors
/// When it cannot be told; then the namespace may not be deleted.
pub async fn servers_in(context: &Context, namespace: &str) -> anyhow::Result<Vec<String>> {
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", "Cluster"), "clusters");
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource);
    match context.calls.make("GET", api.list_metadata(&ListParams::default())).await {
        Ok(found) => Ok(found.iter().map(ResourceExt::name_any).collect()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => anyhow::bail!(
            "whether {namespace} holds database servers cannot be told, so it is not deleted: {}",
            conme_cluster::words(&error)
        ),
    }
}

/// Whether the API server knows CloudNativePG's kinds.
async fn is_served(context: &Context) -> Result<bool, Trouble> {
    let groups = context.calls.make("GET", context.client.list_api_groups()).await.map_err(|error| {
        Trouble::new(
            reasons::API_ERROR,
            format!("the kinds of this cluster: {}", conme_cluster::words(&error)),
        )
    })?;
    Ok(groups.groups.iter().any(|group| group.name == GROUP))
}

/// Writes an object if it is not there or not as it should be.
async fn keep(
    context: &Context,
    task: &Task,
    kind: &str,
    wanted: &Value,
    live: Option<&DynamicObject>,
) -> Result<(), Trouble> {
    let live = match live {
        None => None,
        Some(live) => Some(serde_json::to_value(live).map_err(|error| {
            Trouble::new(reasons::API_ERROR, format!("the {kind} {} cannot be read: {error}", task.secret))
        })?),
    };
    match &live {
        Some(live) if child::holds(wanted, live) => Ok(()),
        live => write(context, task, kind, wanted, live.as_ref()).await,
    }
}

async fn write(
    context: &Context,
    task: &Task,
    kind: &str,
    wanted: &Value,
    live: Option<&Value>,
) -> Result<(), Trouble> {
    if !context.leadership.holds() {
        return Err(Trouble::new(reasons::WAITING, "another operator leads"));
    }
    let api = api(context, task, kind);
    let written = match live {
        None => {
            let object: DynamicObject = serde_json::from_value(wanted.clone()).map_err(|error| {
                Trouble::new(reasons::API_ERROR, format!("the {kind} cannot be written: {error}"))
            })?;
            let params =
                PostParams { field_manager: Some(keys::FIELD_MANAGER.into()), ..PostParams::default() };
            context.calls.make("POST", api.create(&params, &object)).await
        }
        Some(live) => {
            let mut body = wanted.clone();
            body["metadata"]["uid"] = live["metadata"]["uid"].clone();
            let params = PatchParams::apply(keys::FIELD_MANAGER).force();
            context
                .calls
                .make("PATCH", async {
                    api.patch(&task.secret, &params, &conme_cluster::apply(&body)?).await
                })
                .await
        }
    };
    match written {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(Trouble::new(
            reasons::WAITING,
            format!(
                "waiting for CloudNativePG: this cluster does not serve the kind {kind} of postgresql.cnpg.io/v1"
            ),
        )),
        Err(error) => Err(refused(task, kind, &error)),
    }
}

/// The binding Secret: made before the server, which takes its password from it; its authority is known later.
async fn keep_secret(context: &Context, task: &Task) -> Result<(), Trouble> {
    let at = ChildRef::new(Kind::Secret, &task.namespace, &task.secret);
    let failed = |error: kube::Error| {
        Trouble::new(reasons::API_ERROR, format!("{at}: {}", conme_cluster::words(&error)))
    };
    let live = context.executor.read(&at).await.map_err(failed)?;
    if live.as_ref().is_some_and(|live| !is_ours(live, &task.comune)) {
        let message =
            format!("{at} exists and is not Con.Me's; delete or rename it, the credentials belong there");
        return Err(Trouble::new(reasons::CONFLICT, message));
    }
    let password = match live.as_ref().and_then(password_of) {
        Some(password) => password,
        None => new_password()?,
    };
    let authority = ChildRef::new(Kind::Secret, &task.namespace, format!("{}-ca", task.secret));
    let authority = context.executor.read(&authority).await.map_err(failed)?;
    let ca = authority.and_then(|secret| {
        let encoded = secret.pointer("/data/ca.crt")?.as_str()?.to_owned();
        String::from_utf8(BASE64.decode(encoded).ok()?).ok()
    });
    let host = format!("{}-rw.{}.svc", task.secret, task.namespace);
    let binding = Binding {
        engine: conme_api::Engine::Postgresql,
        host: &host,
        port: 5432,
        database: &task.database,
        username: &task.role,
        password: password.expose(),
        ca: ca.as_deref(),
        credential: None,
    };
    let mut wanted = binding_secret(&task.comune, &task.namespace, &task.name, &binding);
    wanted["metadata"]["labels"][RELOAD] = "true".into();
    let intact = live.as_ref().is_some_and(|live| {
        let mut bare = live.clone();
        child::strip(at.kind, &mut bare);
        child::holds(&wanted, &bare) && child::holds(&bare, &wanted)
    });
    if !intact {
        context.executor.write(&at, &wanted, live.is_some()).await.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, generation: i64, status: Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "postgresql.cnpg.io/v1", "kind": kind,
            "metadata": {"name": "db-anagrafe", "generation": generation},
            "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_cluster_that_nobody_has_taken_up_is_not_ready() {
        let wanted = json!({"spec": {"instances": 3}});
        let waits = |status| cluster_waits(&object("Cluster", 1, status), &wanted);
        assert!(waits(json!({})).unwrap().contains("has not taken it up"));
        assert!(waits(Value::Null).unwrap().contains("has not taken it up"));
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let two = json!({"phase": "Creating replica", "readyInstances": 2, "conditions": ready});
        assert_eq!(waits(two).unwrap(), "2 of 3 instances are ready (Creating replica)");
        let not = json!({"phase": "Failing over", "readyInstances": 3, "conditions": [{"type": "Ready", "status": "False"}]});
        assert!(waits(not).is_some());
        assert_eq!(waits(json!({"phase": "healthy", "readyInstances": 3, "conditions": ready})), None);
    }

    #[test]
    fn a_database_is_ready_when_its_last_edit_was_applied() {
        let waits = |status| database_waits(&object("Database", 2, status));
        assert!(waits(Value::Null).is_some());
        assert!(waits(json!({"applied": true, "observedGeneration": 1})).is_some());
        let refused = json!({"applied": false, "observedGeneration": 2, "message": "no such extension"});
        assert_eq!(waits(refused).unwrap(), "no such extension");
        assert_eq!(waits(json!({"applied": true, "observedGeneration": 2})), None);
    }
}
