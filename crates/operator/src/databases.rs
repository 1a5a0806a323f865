//! Databases on shared servers: each on a key of its own, with its own back-off.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use conme_api::{Comune, keys, reasons};
use conme_blueprint::{
    ChildRef, DatabaseSeen, Kind, ValidDatabase,
    build::{Binding, binding_secret},
    child,
};
use conme_databases::{Desired, Engine, OwnerTag, Problem, Provisioned, Secret, Server, Timeouts, TlsMode};
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::{context::Context, world::World};

/// Databases of one Comune that are looked at for the first time are told of together if they come within this time.
const TOGETHER: Duration = Duration::from_millis(500);

/// What is known of one database.
#[derive(Debug, Default)]
pub struct DatabaseState {
    /// What is told of it. None: it has not been looked at since the start.
    pub seen: Option<DatabaseSeen>,
    task: Option<Task>,
    done: Option<Task>,
    /// What this process has found or made. It knows of it before any status tells.
    provisioned: Option<Provisioned>,
    /// The password in force, so that a Secret that was changed by hand can be put back.
    password: Option<Secret>,
    /// Unique id of the namespace that its Secret was last meant for.
    home: Option<String>,
}

/// What has to be brought about.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    desired: Desired,
    server: conme_api::DatabaseServer,
    namespace: String,
    secret: String,
}

impl Task {
    /// Whether two tasks ask for the same. That a database has been provisioned meanwhile asks for nothing new.
    fn asks_the_same(&self, other: &Self) -> bool {
        let newly_provisioned = self.desired.provisioned.is_none() && other.desired.provisioned.is_some();
        let mut other = other.clone();
        if newly_provisioned {
            other.desired.provisioned = None;
        }
        *self == other
    }
}

/// Has a database looked at, if its declaration is new or its time has come.
///
/// `namespace_uid` is the unique id of the namespace that its Secret goes to.
pub fn submit(context: &Context, comune: &Comune, database: &ValidDatabase, namespace_uid: &str) {
    let name = comune.name_any();
    let key = (name.clone(), database.spec.name.clone());
    let queue_key = format!("{name}/{}", database.spec.name);
    let mut world = context.world();
    let state = world.databases.entry(key).or_default();
    let task = task(comune, &name, database, state.provisioned.clone());
    let known = state.task.as_ref().is_some_and(|known| known.asks_the_same(&task));
    let pending = state.done.as_ref().is_none_or(|done| !done.asks_the_same(&task));
    state.task = Some(task);
    // In a namespace that was made anew the Secret is missing, although nothing new is declared.
    let moved = state.home.as_ref().is_some_and(|home| home != namespace_uid);
    state.home = Some(namespace_uid.to_owned());
    drop(world);
    if !known || moved {
        context.databases.succeeded(&queue_key);
        context.databases.add(&queue_key);
    } else if !pending {
        context.databases.add_after(&queue_key, jittered(context.recheck));
    }
}

/// Whether a database was last found to be as some other declaration wanted it.
pub fn is_outdated(world: &World, comune: &Comune, database: &ValidDatabase) -> bool {
    let name = comune.name_any();
    let key = (name.clone(), database.spec.name.clone());
    world.databases.get(&key).is_some_and(|state| {
        let task = task(comune, &name, database, state.provisioned.clone());
        state.done.as_ref().is_some_and(|done| !done.asks_the_same(&task))
    })
}

/// `found` is what this process itself knows to have been provisioned; a status may be older.
fn task(comune: &Comune, name: &str, database: &ValidDatabase, found: Option<Provisioned>) -> Task {
    let told = comune.status.as_ref().map(|status| status.databases.as_slice()).unwrap_or_default();
    let told = told.iter().find(|told| told.name == database.spec.name).and_then(|told| {
        let at = told.provisioned_at.as_ref()?.parse().ok()?;
        Some(Provisioned {
            system_identifier: told.system_identifier.clone().filter(|id| !id.is_empty()),
            at,
        })
    });
    let provisioned = found.or(told).filter(|provisioned| {
        let annotations = comune.metadata.annotations.as_ref();
        let words = annotations.and_then(|annotations| annotations.get(keys::CONFIRM_RECREATE));
        let confirmation = confirmation(&database.spec.name, provisioned);
        !words.is_some_and(|words| words.split(',').any(|word| word.trim() == confirmation))
    });
    let limit = database.spec.connection_limit.unwrap_or(database.server.default_connection_limit);
    Task {
        desired: Desired {
            comune: name.to_owned(),
            database: database.spec.name.clone(),
            tag: OwnerTag {
                istat: comune.spec.entity.istat.clone(),
                uid: comune.metadata.uid.clone().unwrap_or_default(),
            },
            extensions: database.spec.extensions.iter().cloned().collect(),
            allowed_extensions: database.server.allowed_extensions.iter().cloned().collect(),
            connection_limit: i32::try_from(limit).ok(),
            locale: None,
            adopt: database.spec.adopt,
            provisioned,
        },
        server: database.server.clone(),
        namespace: database.namespace.clone(),
        secret: database.secret.clone(),
    }
}

/// The word by which a person lets a vanished database be created anew: it holds for this loss only, because it names
/// the time at which the lost one was provisioned.
fn confirmation(database: &str, lost: &Provisioned) -> String {
    format!("{database}@{}", lost.at)
}

/// Spread by a quarter, so that what began together does not stay together.
fn jittered(period: Duration) -> Duration {
    let most = (period.as_millis() as u64 / 4).max(1);
    period + Duration::from_millis(u64::from(getrandom::u32().unwrap_or_default()) % most)
}

/// One pass over one database.
///
/// # Errors
/// When it is not as declared; what happened is told in the status of its Comune.
pub async fn reconcile(context: &Context, key: &str) -> anyhow::Result<()> {
    let Some((comune, database)) = key.split_once('/') else { return Ok(()) };
    let id = (comune.to_owned(), database.to_owned());
    let (task, remembered) = {
        let mut world = context.world();
        let declared =
            world.comune(comune).filter(|comune| comune.spec.databases.iter().any(|d| d.name == database));
        let Some(comune) = declared else {
            // No longer declared: the data stays, and nobody looks after it any more.
            world.databases.remove(&id);
            return Ok(());
        };
        match world.databases.get(&id) {
            Some(state) if !comune.spec.paused => (state.task.clone(), state.password.clone()),
            _ => return Ok(()),
        }
    };
    let Some(task) = task else { return Ok(()) };
    let result = bring_about(context, &task, remembered).await;
    let (seen, password, error) = match result {
        Ok((seen, password)) => {
            context.metrics.database("ready");
            (seen, Some(password), None)
        }
        Err(Trouble { reason, message }) => {
            context.metrics.database(reason);
            (DatabaseSeen::Failed { reason, message: message.clone() }, None, Some(message))
        }
    };
    let (changed, more_to_come) = {
        let mut world = context.world();
        let of_same = |other: &(String, String)| other.0 == id.0 && other.1 != id.1;
        let more_to_come =
            world.databases.iter().any(|(other, state)| of_same(other) && state.seen.is_none());
        match world.databases.get_mut(&id) {
            Some(state) => {
                let was_outdated = state.done.as_ref().is_some_and(|done| !done.asks_the_same(&task));
                let changed = was_outdated || state.seen.as_ref() != Some(&seen);
                if let DatabaseSeen::Ready { system_identifier, provisioned_at, .. } = &seen {
                    let provisioned = Some(Provisioned {
                        system_identifier: Some(system_identifier.clone()).filter(|id| !id.is_empty()),
                        at: *provisioned_at,
                    });
                    // The next look has to know of it, also if nobody looks at the Comune until then: what vanishes
                    // meanwhile is missing, and not to be made for the first time.
                    if let Some(next) = state.task.as_mut().filter(|next| task.asks_the_same(next)) {
                        next.desired.provisioned.clone_from(&provisioned);
                    }
                    let mut done = task;
                    done.desired.provisioned.clone_from(&provisioned);
                    state.done = Some(done);
                    state.provisioned = provisioned;
                }
                state.password = password.or(state.password.take());
                state.seen = Some(seen);
                (changed, more_to_come)
            }
            None => (false, more_to_come),
        }
    };
    if changed && more_to_come {
        context.comuni.add_after(comune, TOGETHER);
    } else if changed {
        context.comuni.add(comune);
    }
    match error {
        Some(error) => Err(anyhow::anyhow!(error)),
        None => {
            context.databases.add_after(key, jittered(context.recheck));
            Ok(())
        }
    }
}

/// Why a database is not as declared.
struct Trouble {
    reason: &'static str,
    message: String,
}

impl Trouble {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        let reason = match &problem {
            Problem::DataMissing { .. } => reasons::DATA_MISSING,
            Problem::NotOurs { .. } => reasons::CONFLICT,
            Problem::Unreachable { .. } | Problem::Timeout { .. } => reasons::SERVER_UNREACHABLE,
            Problem::ExtensionNotAllowed { .. } | Problem::InvalidName(_) => reasons::INVALID,
            Problem::Busy { .. } => reasons::WAITING,
            _ => reasons::DATABASE_FAILED,
        };
        Self::new(reason, problem.to_string())
    }
}

/// What to do about vanished data is said with the very command.
fn in_words(problem: Problem, desired: &Desired) -> Trouble {
    let missing = matches!(problem, Problem::DataMissing { .. });
    let mut trouble = Trouble::from(problem);
    if let Some(provisioned) = desired.provisioned.as_ref().filter(|_| missing) {
        trouble.message.push_str(&format!(
            ". To start with an empty one: kubectl annotate comune {} {}={} --overwrite",
            desired.comune,
            keys::CONFIRM_RECREATE,
            confirmation(&desired.database, provisioned)
        ));
    }
    trouble
}

async fn bring_about(
    context: &Context,
    task: &Task,
    remembered: Option<Secret>,
) -> Result<(DatabaseSeen, Secret), Trouble> {
    let server = server(context, &task.server).await?;
    let at = ChildRef::new(Kind::Secret, &task.namespace, &task.secret);
    let live = context.executor.read(&at).await.map_err(|error| {
        Trouble::new(reasons::API_ERROR, format!("{at}: {}", conme_cluster::words(&error)))
    })?;
    if let Some(live) = live.as_ref().filter(|live| !is_ours(live, &task.desired.comune)) {
        let owner = live.pointer("/metadata/labels/conme.venis.it~1comune").and_then(Value::as_str);
        return Err(Trouble::new(
            reasons::CONFLICT,
            format!(
                "the Secret {}/{} exists and {}; delete or rename it, the credentials belong there",
                task.namespace,
                task.secret,
                owner.map_or_else(
                    || "is not managed by Con.Me".into(),
                    |owner| format!("belongs to `{owner}`")
                )
            ),
        ));
    }
    let password = match remembered.or_else(|| live.as_ref().and_then(password_of)) {
        Some(password) => password,
        None => new_password()?,
    };
    secure(context, &task.server.name, &server).await?;
    let still_leading = |_: &str| *context.leads.borrow();
    let outcome = conme_databases::ensure_while(&server, &task.desired, &password, still_leading)
        .await
        .map_err(|problem| in_words(problem, &task.desired))?;
    for change in &outcome.changed {
        tracing::info!(comune = %task.desired.comune, database = %task.desired.database, %change, "database");
    }
    let ca = match &server.tls {
        TlsMode::VerifyFull { ca_pem } => Some(ca_pem.as_str()),
        TlsMode::Disabled => None,
    };
    let binding = Binding {
        engine: task.server.engine,
        host: &outcome.binding.host,
        port: outcome.binding.port,
        database: &outcome.binding.database,
        username: &outcome.binding.username,
        password: password.expose(),
        ca,
    };
    let wanted = binding_secret(&task.desired.comune, &task.namespace, &task.desired.database, &binding);
    // All of it is the operator's, so nothing may be missing and nothing may be there besides, whoever has put it there.
    let intact = live.as_ref().is_some_and(|live| {
        let mut bare = live.clone();
        child::strip(at.kind, &mut bare);
        child::holds(&wanted, &bare)
            && child::holds(&bare, &wanted)
            && !child::has_foreign_fields(at.kind, live)
    });
    if !intact {
        if live.is_some() {
            context.metrics.drift_repaired(at.kind.name());
        }
        context.executor.write(&at, &wanted, live.is_some()).await.map_err(|error| {
            Trouble::new(reasons::API_ERROR, format!("{at}: {}", conme_cluster::words(&error)))
        })?;
    }
    let seen = DatabaseSeen::Ready {
        system_identifier: outcome.provisioned.system_identifier.unwrap_or_default(),
        provisioned_at: outcome.provisioned.at,
        database: outcome.binding.database,
    };
    Ok((seen, password))
}

/// Closes what a server leaves open to everyone, before the first tenant is let in and then at a slow pace.
async fn secure(context: &Context, name: &str, server: &Server) -> Result<(), Trouble> {
    let is_due = |secured: &HashMap<String, Instant>| {
        secured.get(name).is_none_or(|at| at.elapsed() > context.recheck)
    };
    let mut secured = context.secured.lock().await;
    if is_due(&secured) {
        let done = conme_databases::secure_server(server).await?;
        for change in &done.changed {
            tracing::info!(server = name, %change, "database server");
        }
        for open in &done.open_databases {
            tracing::warn!(
                server = name,
                database = open,
                "every role of this server may connect to a database that is not Con.Me's"
            );
        }
        secured.insert(name.to_owned(), Instant::now());
    }
    Ok(())
}

fn is_ours(secret: &Value, comune: &str) -> bool {
    let label = |pointer: &str| secret.pointer(pointer).and_then(Value::as_str);
    let managed = label("/metadata/labels/app.kubernetes.io~1managed-by") == Some(keys::MANAGER)
        && label("/metadata/labels/conme.venis.it~1comune") == Some(comune);
    // A tenant may have taken the labels off; what the operator wrote it still knows by its field manager.
    managed || child::is_of_operator(Kind::Secret, secret)
}

fn password_of(secret: &Value) -> Option<Secret> {
    let encoded = secret.pointer("/data/password")?.as_str()?;
    let text = String::from_utf8(BASE64.decode(encoded).ok()?).ok()?;
    (!text.is_empty()).then(|| Secret::new(text))
}

/// 160 random bits in letters and digits: no character of it has a meaning in an address or a shell.
fn new_password() -> Result<Secret, Trouble> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyzABCDEFGH";
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Trouble::new(reasons::DATABASE_FAILED, format!("no random numbers: {error}")))?;
    let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    Ok(Secret::new(text))
}

/// The server with its administrator's credentials, read anew each time: they may have been changed.
async fn server(context: &Context, server: &conme_api::DatabaseServer) -> Result<Server, Trouble> {
    let api: Api<KubeSecret> = Api::namespaced(context.client.clone(), &context.namespace);
    let name = &server.admin_secret;
    let place = format!("the Secret {}/{name} of the database server `{}`", context.namespace, server.name);
    let secret = context
        .calls
        .make("GET", api.get_opt(name))
        .await
        .map_err(|error| {
            Trouble::new(reasons::API_ERROR, format!("{place}: {}", conme_cluster::words(&error)))
        })?
        .ok_or_else(|| {
            Trouble::new(
                reasons::WAITING,
                format!("{place} does not exist; create it with the keys username, password and ca.crt"),
            )
        })?;
    let data: HashMap<String, String> = secret
        .data
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)))
        .collect();
    let key = |key: &str| {
        data.get(key)
            .cloned()
            .ok_or_else(|| Trouble::new(reasons::INVALID, format!("{place} has no key `{key}`")))
    };
    let engine = match server.engine {
        conme_api::Engine::Postgresql => Engine::Postgresql,
        conme_api::Engine::Mariadb => Engine::Mariadb,
    };
    Ok(Server {
        engine,
        host: server.host.clone(),
        port: server.port,
        tls: TlsMode::VerifyFull { ca_pem: key("ca.crt")? },
        admin_user: key("username")?,
        admin_password: Secret::new(key("password")?),
        timeouts: Timeouts::default(),
    })
}
