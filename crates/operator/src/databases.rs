//! Databases on shared servers: each on a key of its own, with its own back-off.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use conme_api::{Comune, CredentialStatus, DatabaseStatus, RetiringStatus, keys, reasons};
use conme_blueprint::{
    ChildRef, DatabaseDetails, DatabaseSeen, Kind, Stopped, ValidDatabase,
    amount::Amount,
    build::{Binding, CredentialNote, binding_secret},
    child, credential,
};
use conme_databases::{
    Credential, Desired, Engine, Generation, Growth, Login, Names, OtherLogin, Outcome, OwnerTag, Problem,
    Provisioned, Renewal, Retiring, Rotation, Secret, Server, Timeouts, TlsMode, rotation,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::{context::Context, dedicated, removals, world::World};

/// Databases of one Comune that are looked at for the first time are told of together if they come within this time: each
/// telling is a write, and in a crowd they come apart, as the queue serves many others between them.
const TOGETHER: Duration = Duration::from_secs(5);

/// A database above this share of its size is looked at at a faster pace, and above the second at a yet faster one.
const FILLING: [(u64, Duration); 2] = [(95, Duration::from_secs(10)), (80, Duration::from_secs(30))];
/// A size is told anew when it has changed by this part of it.
const SIZE_STEP: u64 = 20;
/// A note about a credential that is from further in the future than this was not written by an operator.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What is known of one database.
#[derive(Debug, Default)]
pub struct DatabaseState {
    /// What is told of it. None: it has not been looked at since the start.
    pub seen: Option<DatabaseSeen>,
    /// When it was looked at for the first time since the start.
    first_seen: Option<Instant>,
    task: Option<Arc<Task>>,
    /// The same one where both are equal: thousands of them are kept.
    done: Option<Arc<Task>>,
    /// What this process has found or made. It knows of it before any status tells.
    provisioned: Option<Provisioned>,
    /// The credential in force with its password, so that a Secret that was changed by hand can be put back.
    credential: Option<(Credential, Secret)>,
    /// Since when this process has known that the login before this generation is still open.
    retiring: Option<(u32, Instant)>,
    /// Which services do not work with the credential in force yet.
    behind: Option<Behind>,
    /// Unique id of the namespace that its Secret was last meant for.
    home: Option<String>,
    /// Unique ids that its Comune had before it was applied again.
    former_uids: Vec<String>,
}

impl DatabaseState {
    /// Has it looked at as soon as it is asked for again, as after a pause, also when nothing new is declared.
    pub fn look_again(&mut self) {
        self.task = None;
    }

    /// Whether it is to be looked at for the first time since the start.
    pub fn is_to_come(&self) -> bool {
        self.task.is_some() && self.seen.is_none()
    }

    /// Whether it may still wait at `now` for others of its Comune, to be told of together with them.
    pub fn may_wait(&self, now: Instant) -> bool {
        self.first_seen.is_some_and(|first| now.saturating_duration_since(first) < TOGETHER)
    }

    /// A task to keep, as the one that was done where it is equal.
    fn shared(&self, task: Task) -> Arc<Task> {
        match &self.done {
            Some(done) if **done == task => done.clone(),
            _ => Arc::new(task),
        }
    }
}

/// The services of a database that still have to go over to a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Generation of the credential.
    pub generation: u32,
    /// Names of the services.
    pub services: Vec<String>,
}

/// What has to be brought about.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    /// The login in it stands for none: which one is in force is known only when it is looked at.
    desired: Desired,
    renewal: Renewal,
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
/// `namespace_uid` is the unique id of the namespace that its Secret goes to, `former_uids` are those that the Comune had
/// before it was applied again, `behind` is what is known of its services.
pub fn submit(
    context: &Context,
    comune: &Comune,
    database: &ValidDatabase,
    namespace_uid: &str,
    former_uids: Vec<String>,
    behind: Behind,
) {
    let name = comune.name_any();
    let key = (name.clone(), database.spec.name.clone());
    let queue_key = format!("{name}/{}", database.spec.name);
    let mut world = context.world();
    let state = world.databases.entry(key).or_default();
    state.former_uids = former_uids;
    let task = task(comune, &name, database, state);
    let known = state.task.as_ref().is_some_and(|known| known.asks_the_same(&task));
    let pending = state.done.as_ref().is_none_or(|done| !done.asks_the_same(&task));
    state.task = Some(state.shared(task));
    // In a namespace that was made anew the Secret is missing, although nothing new is declared.
    let moved = state.home.as_ref().is_some_and(|home| home != namespace_uid);
    state.home = Some(namespace_uid.to_owned());
    // The last service has gone over: the credential before may end.
    let waited = |before: &Behind| before.generation == behind.generation && !before.services.is_empty();
    let caught_up = behind.services.is_empty() && state.behind.as_ref().is_some_and(waited);
    state.behind = Some(behind);
    drop(world);
    if !known || moved || caught_up {
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
        let task = task(comune, &name, database, state);
        state.done.as_ref().is_some_and(|done| !done.asks_the_same(&task))
    })
}

/// What `state` knows to have been provisioned comes from this process itself; a status may be older.
fn task(comune: &Comune, name: &str, database: &ValidDatabase, state: &DatabaseState) -> Task {
    let provisioned = provisioned(comune, &database.spec.name, state.provisioned.clone());
    let moved_from = on_record(comune, &database.spec.name)
        .filter(|told| told.provisioned_at.is_some() && told.server != database.server.name)
        .map(|told| told.server.clone());
    let limit = database.spec.connection_limit.unwrap_or(database.server.default_connection_limit);
    Task {
        desired: Desired {
            comune: name.to_owned(),
            database: database.spec.name.clone(),
            tag: OwnerTag {
                istat: comune.spec.entity.istat.clone(),
                uid: comune.metadata.uid.clone().unwrap_or_default(),
                former_uids: state.former_uids.clone(),
            },
            extensions: database.spec.extensions.iter().cloned().collect(),
            allowed_extensions: database.server.allowed_extensions.iter().cloned().collect(),
            connection_limit: i32::try_from(limit).ok(),
            locale: None,
            adopt: database.spec.adopt,
            login: Login::First,
            other_login: OtherLogin::Keep,
            generation: None,
            open: true,
            max_bytes: database
                .spec
                .max_size
                .as_ref()
                .and_then(|size| Amount::try_from(size).ok())
                .map(Amount::whole),
            moved_from,
            provisioned,
        },
        renewal: Renewal {
            requested: credential::rotation_requested(comune, &database.spec.name),
            max_age: database.server.credential_max_age.as_deref().and_then(credential::duration),
            // What the schema refuses is not there; a day is what it would have said.
            overlap: credential::duration(&database.server.credential_overlap)
                .unwrap_or(SignedDuration::from_hours(24)),
        },
        server: database.server.clone(),
        namespace: database.namespace.clone(),
        secret: database.secret.clone(),
    }
}

/// What is known to have been provisioned and must be there. None also when a person has said that it may be made anew.
///
/// `found` is what this process itself knows; a status may be older.
pub(crate) fn provisioned(
    comune: &Comune,
    database: &str,
    found: Option<Provisioned>,
) -> Option<Provisioned> {
    let told = on_record(comune, database).and_then(|told| {
        let at = told.provisioned_at.as_ref()?.parse().ok()?;
        Some(Provisioned {
            system_identifier: told.system_identifier.clone().filter(|id| !id.is_empty()),
            at,
        })
    });
    found.or(told).filter(|provisioned| {
        let confirmation = confirmation(database, provisioned);
        !words_of(comune).any(|word| word == confirmation)
    })
}

/// How to let a vanished database be created anew, with the very command.
pub(crate) fn how_to_confirm(comune: &str, database: &str, lost: &Provisioned) -> String {
    format!(
        ". To start with an empty one: kubectl annotate comune {comune} {}={} --overwrite",
        keys::CONFIRM_RECREATE,
        confirmation(database, lost)
    )
}

fn on_record<'a>(comune: &'a Comune, database: &str) -> Option<&'a DatabaseStatus> {
    comune.status.as_ref()?.databases.iter().find(|told| told.name == database)
}

/// The credential that a status tells of. None for what no operator has written.
fn credential_on_record(told: &DatabaseStatus, names: &Names) -> Option<Credential> {
    let told = told.credential.as_ref()?;
    let retiring = told.retiring.as_ref().and_then(|retiring| {
        Some(Retiring { login: names.login_of(&retiring.login)?, until: retiring.until.parse().ok()? })
    });
    Some(Credential {
        login: names.login_of(&told.login)?,
        issued_at: told.issued_at.parse().ok()?,
        generation: told.generation,
        retiring,
    })
}

fn told_credential(credential: &Credential, names: &Names) -> CredentialStatus {
    CredentialStatus {
        login: names.login(credential.login).to_owned(),
        issued_at: credential.issued_at.to_string(),
        generation: credential.generation,
        retiring: credential.retiring.as_ref().map(|retiring| RetiringStatus {
            login: names.login(retiring.login).to_owned(),
            until: retiring.until.to_string(),
        }),
    }
}

/// What people have confirmed about vanished databases.
fn words_of(comune: &Comune) -> impl Iterator<Item = &str> {
    let annotations = comune.metadata.annotations.as_ref();
    let words = annotations.and_then(|annotations| annotations.get(keys::CONFIRM_RECREATE));
    words.map(String::as_str).unwrap_or_default().split(',').map(str::trim)
}

/// What a Secret shows of a database that no status tells of: it was provisioned when the operator made the Secret, at
/// the latest.
fn provisioned_by_secret(known: &Known, live: Option<&Value>, database: &str) -> Option<Provisioned> {
    if known.told.as_ref().is_some_and(|told| told.provisioned_at.is_some()) || known.remembered.is_some() {
        return None;
    }
    let live = live.filter(|live| child::is_of_operator(Kind::Secret, live))?;
    let at = live.pointer("/metadata/creationTimestamp")?.as_str()?.parse().ok()?;
    let provisioned = Provisioned { system_identifier: None, at };
    let confirmation = confirmation(database, &provisioned);
    (!known.confirmed.contains(&confirmation)).then_some(provisioned)
}

/// The word by which a person lets a vanished database be created anew: it holds for this loss only, because it names
/// the time at which the lost one was provisioned.
fn confirmation(database: &str, lost: &Provisioned) -> String {
    format!("{database}@{}", lost.at)
}

/// Spread by a quarter, so that what began together does not stay together.
pub(crate) fn jittered(period: Duration) -> Duration {
    let most = (period.as_millis() as u64 / 4).max(1);
    period + Duration::from_millis(u64::from(getrandom::u32().unwrap_or_default()) % most)
}

/// One pass over one database.
///
/// # Errors
/// When it is not as declared; what happened is told in the status of its Comune.
pub async fn reconcile(context: &Context, key: &str) -> anyhow::Result<()> {
    let Some((comune, database)) = key.split_once('/') else { return Ok(()) };
    if context.world().dedicated.contains_key(&(comune.to_owned(), database.to_owned())) {
        return dedicated::reconcile(context, comune, database).await;
    }
    let id = (comune.to_owned(), database.to_owned());
    if let Some(result) = removals::reconcile(context, &id).await {
        return result;
    }
    let (task, known) = {
        let mut world = context.world();
        let declared =
            world.comune(comune).filter(|comune| comune.spec.databases.iter().any(|d| d.name == database));
        let Some(comune) = declared else {
            // No longer declared: the data stays, and nobody looks after it any more.
            world.databases.remove(&id);
            return Ok(());
        };
        match world.databases.get_mut(&id) {
            Some(state) if comune.spec.paused => {
                state.look_again();
                return Ok(());
            }
            Some(state) => {
                let known = Known {
                    remembered: state.credential.clone(),
                    told: on_record(&comune, database).cloned(),
                    confirmed: words_of(&comune).map(str::to_owned).collect(),
                    behind: state.behind.clone(),
                    retiring: state.retiring,
                };
                (state.task.clone(), known)
            }
            None => return Ok(()),
        }
    };
    let Some(task) = task else { return Ok(()) };
    let retiring = known.retiring;
    // What was to come when it was decided is to come, even if its time has come meanwhile.
    let began = whole_seconds(Timestamp::now());
    let result = bring_about(context, &task, known).await;
    let (mut seen, credential, error) = match result {
        Ok((seen, credential)) => {
            context.metrics.database("ready");
            (seen, Some(credential), None)
        }
        Err(Trouble { reason, message }) => {
            context.metrics.database(reason);
            (DatabaseSeen::Failed { reason, message: message.clone() }, None, Some(message))
        }
    };
    let renewal = task.renewal.clone();
    let now_retiring = credential.as_ref().map(|(credential, _)| credential).filter(|c| c.retiring.is_some());
    let retiring = now_retiring.map(|credential| {
        let known = retiring.filter(|(generation, _)| *generation == credential.generation);
        known.unwrap_or((credential.generation, Instant::now()))
    });
    let due = credential
        .as_ref()
        .and_then(|(credential, _)| due(credential, &renewal, left(retiring, renewal.overlap), began));
    let pause = pause(context.recheck, &seen, due);
    let (changed, more_to_come) = {
        let mut world = context.world();
        let of_same = |other: &(String, String)| other.0 == id.0 && other.1 != id.1;
        let more_to_come = world.databases.iter().any(|(other, state)| of_same(other) && state.is_to_come());
        match world.databases.get_mut(&id) {
            Some(state) => {
                keep_size(state.seen.as_ref(), &mut seen);
                let was_outdated = state.done.as_ref().is_some_and(|done| !done.asks_the_same(&task));
                let changed = was_outdated || state.seen.as_ref() != Some(&seen);
                if let DatabaseSeen::Ready { system_identifier, provisioned_at, .. } = &seen {
                    let provisioned = Some(Provisioned {
                        system_identifier: Some(system_identifier.clone()).filter(|id| !id.is_empty()),
                        at: *provisioned_at,
                    });
                    // The next look has to know of it, also if nobody looks at the Comune until then: what vanishes
                    // meanwhile is missing, and not to be made for the first time.
                    let now_provisioned = |task: &Task| {
                        let mut task = task.clone();
                        task.desired.provisioned.clone_from(&provisioned);
                        task
                    };
                    state.done = Some(Arc::new(now_provisioned(&task)));
                    if let Some(next) = state.task.as_deref().filter(|next| task.asks_the_same(next)) {
                        let next = now_provisioned(next);
                        state.task = Some(state.shared(next));
                    }
                    state.provisioned = provisioned;
                }
                if credential.is_some() {
                    state.retiring = retiring;
                }
                state.credential = credential.or(state.credential.take());
                state.seen = Some(seen);
                state.first_seen.get_or_insert_with(Instant::now);
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
            context.databases.add_after(key, pause);
            Ok(())
        }
    }
}

/// For how much longer the login before a credential stays open, by the clock of this process, which does not jump. None:
/// there is none.
fn left(retiring: Option<(u32, Instant)>, overlap: SignedDuration) -> Option<Duration> {
    let overlap = Duration::try_from(overlap).unwrap_or_default();
    retiring.map(|(_, since)| overlap.saturating_sub(since.elapsed()))
}

/// In how long something is to be done about a credential: the one before it ends, or a rotation is asked for by then.
/// `open` is for how much longer the one before stays open by the clock that does not jump.
fn due(
    credential: &Credential,
    renewal: &Renewal,
    open: Option<Duration>,
    now: Timestamp,
) -> Option<Duration> {
    let until = |time: Timestamp| Duration::try_from(time.duration_since(now)).ok();
    let end =
        credential.retiring.as_ref().map(|retiring| until(retiring.until).max(open).unwrap_or_default());
    let asked = renewal.requested.iter().filter_map(|time| until(*time));
    end.into_iter().chain(asked).filter(|left| !left.is_zero()).min()
}

/// When a database is looked at again although nothing tells: sooner when it is filling up, and when something is due.
fn pause(recheck: Duration, seen: &DatabaseSeen, due: Option<Duration>) -> Duration {
    let mut pause = jittered(recheck);
    if let DatabaseSeen::Ready { details, .. } = seen
        && let Some(max) = details.max_bytes
    {
        let size = u128::from(details.size_bytes) * 100;
        let pace = FILLING.iter().find(|(percent, _)| size >= u128::from(max) * u128::from(*percent));
        if let Some((_, pace)) = pace {
            pause = pause.min(jittered(*pace));
        }
    }
    // A moment later, so that it has come when it is asked for.
    due.map_or(pause, |due| pause.min(due + Duration::from_secs(1)))
}

/// A size moves by itself: what was told stays until it is no longer about right.
fn keep_size(before: Option<&DatabaseSeen>, seen: &mut DatabaseSeen) {
    let (Some(DatabaseSeen::Ready { details: before, .. }), DatabaseSeen::Ready { details, .. }) =
        (before, seen)
    else {
        return;
    };
    let about_right = before.size_bytes.abs_diff(details.size_bytes) <= before.size_bytes / SIZE_STEP;
    if about_right && before.stopped == details.stopped && before.max_bytes == details.max_bytes {
        details.size_bytes = before.size_bytes;
    }
}

/// What is known before a database is looked at.
struct Known {
    /// By this process.
    remembered: Option<(Credential, Secret)>,
    /// By the status.
    told: Option<DatabaseStatus>,
    /// What people have confirmed about vanished databases.
    confirmed: Vec<String>,
    /// Of its services.
    behind: Option<Behind>,
    /// Since when this process has known that the login before this generation is still open.
    retiring: Option<(u32, Instant)>,
}

/// The credential in force, and its password if that is known anywhere.
///
/// The Secret is the place where a new credential takes effect; status and memory follow. So the youngest of the three
/// counts: an operator that was killed in between, or that somebody has overtaken, goes on from there.
fn in_force(
    known: &Known,
    live: Option<&Value>,
    task: &Task,
    names: &Names,
    now: Timestamp,
) -> (Credential, Option<Secret>) {
    let told = known.told.as_ref().and_then(|told| credential_on_record(told, names));
    let held = live.and_then(|secret| names.login_of(&text_of(secret, "username")?));
    let noted = live.and_then(CredentialNote::of).filter(|note| note.issued_at <= now + CLOCK_SKEW);
    let noted = noted.zip(held).map(|(note, login)| Credential {
        login,
        issued_at: note.issued_at,
        generation: note.generation,
        retiring: Some(Retiring {
            login: login.other(),
            until: note.issued_at.saturating_add(task.renewal.overlap).unwrap_or(now),
        }),
    });
    let remembered = known.remembered.as_ref().map(|(credential, _)| credential.clone());
    // Of equals the last one counts.
    let youngest = [noted, told.clone(), remembered].into_iter().flatten().max_by_key(|c| c.generation);
    let credential = youngest.unwrap_or_else(|| {
        let provisioned = task.desired.provisioned.as_ref();
        Credential::first(provisioned.map_or(now, |provisioned| provisioned.at))
    });
    let remembered = known.remembered.as_ref().filter(|(remembered, _)| {
        (remembered.generation, remembered.login) == (credential.generation, credential.login)
    });
    let password = match remembered {
        Some((_, password)) => Some(password.clone()),
        None => live.filter(|_| held == Some(credential.login)).and_then(password_of),
    };
    (credential, password)
}

/// Why a database is not as declared.
pub struct Trouble {
    /// CamelCase reason.
    pub reason: &'static str,
    /// In words, with what to do.
    pub message: String,
}

impl Trouble {
    /// Puts one together.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        let reason = match &problem {
            Problem::DataMissing { .. } => reasons::DATA_MISSING,
            Problem::Moved { .. } => reasons::MOVED,
            Problem::NotOurs { .. } => reasons::CONFLICT,
            Problem::Unreachable { .. } | Problem::Timeout { .. } => reasons::SERVER_UNREACHABLE,
            Problem::ExtensionNotAllowed { .. } | Problem::InvalidName(_) => reasons::INVALID,
            Problem::Busy { .. } | Problem::Overtaken { .. } => reasons::WAITING,
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
        trouble.message.push_str(&how_to_confirm(&desired.comune, &desired.database, provisioned));
    }
    trouble
}

async fn bring_about(
    context: &Context,
    task: &Task,
    known: Known,
) -> Result<(DatabaseSeen, (Credential, Secret)), Trouble> {
    let names = task.desired.names().map_err(Problem::from)?;
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
    let mut desired = task.desired.clone();
    if desired.provisioned.is_none() {
        desired.provisioned = provisioned_by_secret(&known, live.as_ref(), &desired.database);
    }
    let now = whole_seconds(Timestamp::now());
    let (credential, password) = in_force(&known, live.as_ref(), task, &names, now);
    let mut credential = credential.not_from_the_future(now, CLOCK_SKEW);
    let behind = known.behind.filter(|behind| behind.generation == credential.generation);
    // Whoever holds the login before has all of its time, also when the clock has jumped.
    let has_run = known.retiring.is_some_and(|(generation, _)| generation == credential.generation)
        && left(known.retiring, task.renewal.overlap).is_some_and(|left| left.is_zero());
    let handed_out = has_run && behind.as_ref().is_some_and(|behind| behind.services.is_empty());
    let on_record = known.remembered.is_some()
        || known.told.as_ref().is_some_and(|told| told.credential.is_some())
        || credential.generation > 1;
    let mut generation = Generation { number: credential.generation, handed_out: true };
    let (password, other_login) = match (password, rotation(&credential, &task.renewal, now, handed_out)) {
        // A database that has never been made has nothing to rotate.
        (Some(_), Rotation::Begin) if desired.provisioned.is_some() => {
            credential = credential.successor(now, task.renewal.overlap);
            generation = Generation { number: credential.generation, handed_out: false };
            (new_password()?, OtherLogin::Keep)
        }
        (Some(password), Rotation::Begin) => (password, OtherLogin::Keep),
        (Some(password), Rotation::Stay(other_login)) => (password, other_login),
        (None, _) => {
            // The one in force is lost: whoever holds it is shut out, and has to be told of the new one.
            if known.told.is_some_and(|told| told.provisioned_at.is_some()) {
                credential.generation = credential.generation.saturating_add(1);
                credential.issued_at = now;
                generation = Generation { number: credential.generation, handed_out: false };
            }
            (new_password()?, OtherLogin::Keep)
        }
    };
    secure(context, &task.server.name, &server).await?;
    (desired.login, desired.other_login) = (credential.login, other_login);
    desired.generation = on_record.then_some(generation);
    let still_leading = |_: &str| context.leadership.holds();
    let mut outcome = conme_databases::ensure_while(&server, &desired, &password, still_leading)
        .await
        .map_err(|problem| in_words(problem, &desired))?;
    if other_login != OtherLogin::Keep && !outcome.other_login_open {
        credential.retiring = None;
    }
    if !on_record {
        // Status and Secret were lost: the server still knows how many there were.
        credential.generation = credential.generation.max(outcome.generation);
    }
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
        credential: (credential.generation > 1)
            .then_some(CredentialNote { generation: credential.generation, issued_at: credential.issued_at }),
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
        let replaces =
            live.as_ref().is_some_and(|live| CredentialNote::of(live) != CredentialNote::of(&wanted));
        let written = match &live {
            // Handing out a credential that somebody else has replaced meanwhile would shut the applications out.
            Some(live) if replaces => context.executor.replace(&at, &wanted, live).await,
            live => {
                if live.is_some() {
                    context.metrics.drift_repaired(at.kind.name());
                }
                context.executor.write(&at, &wanted, live.is_some()).await
            }
        };
        written.map_err(|error| {
            Trouble::new(reasons::API_ERROR, format!("{at}: {}", conme_cluster::words(&error)))
        })?;
    }
    if desired.generation.is_some_and(|generation| !generation.handed_out) {
        // From here on, an operator that has missed this changes nothing.
        desired.generation = Some(Generation { number: credential.generation, handed_out: true });
        outcome = conme_databases::ensure_while(&server, &desired, &password, still_leading)
            .await
            .map_err(|problem| in_words(problem, &desired))?;
    }
    let details = details(task, &names, &credential, &outcome, behind.as_ref());
    let seen = DatabaseSeen::Ready {
        system_identifier: outcome.provisioned.system_identifier.unwrap_or_default(),
        provisioned_at: outcome.provisioned.at,
        database: outcome.binding.database,
        details: Box::new(details),
    };
    Ok((seen, (credential, password)))
}

fn details(
    task: &Task,
    names: &Names,
    credential: &Credential,
    outcome: &Outcome,
    behind: Option<&Behind>,
) -> DatabaseDetails {
    let retirement = credential.retiring.as_ref().map(|retiring| {
        let login = names.login(retiring.login);
        let waits_for = match behind.map(|behind| behind.services.as_slice()) {
            Some([]) if outcome.other_sessions > 0 => {
                ", when no session uses it any more: restart what still does".to_owned()
            }
            Some([]) | None => String::new(),
            Some(services) => format!(", when its services have gone over: {}", services.join(", ")),
        };
        format!("the login {login} of before ends on {}{waits_for}", retiring.until)
    });
    DatabaseDetails {
        as_told: false,
        credential: Some(told_credential(credential, names)),
        retirement,
        size_bytes: outcome.size_bytes,
        max_bytes: task.desired.max_bytes,
        stopped: match (outcome.growth, task.server.engine) {
            (Growth::Free, _) => Stopped::No,
            (Growth::Stopped, conme_api::Engine::Postgresql) => Stopped::ReadOnly,
            (Growth::Stopped, conme_api::Engine::Mariadb) => Stopped::DeleteOnly,
            (Growth::Closed, _) => Stopped::Closed,
        },
        undeclared_extensions: outcome.undeclared_extensions.clone(),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
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

pub(crate) fn is_ours(secret: &Value, comune: &str) -> bool {
    let label = |pointer: &str| secret.pointer(pointer).and_then(Value::as_str);
    let managed = label("/metadata/labels/app.kubernetes.io~1managed-by") == Some(keys::MANAGER)
        && label("/metadata/labels/conme.venis.it~1comune") == Some(comune);
    // A tenant may have taken the labels off; what the operator wrote it still knows by its field manager.
    managed || child::is_of_operator(Kind::Secret, secret)
}

pub(crate) fn password_of(secret: &Value) -> Option<Secret> {
    text_of(secret, "password").map(Secret::new)
}

/// A value of a Secret that is not empty.
fn text_of(secret: &Value, key: &str) -> Option<String> {
    let encoded = secret.get("data")?.get(key)?.as_str()?;
    let text = String::from_utf8(BASE64.decode(encoded).ok()?).ok()?;
    (!text.is_empty()).then_some(text)
}

/// 160 random bits in letters and digits: no character of it has a meaning in an address or a shell.
pub(crate) fn new_password() -> Result<Secret, Trouble> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyzABCDEFGH";
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Trouble::new(reasons::DATABASE_FAILED, format!("no random numbers: {error}")))?;
    let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    Ok(Secret::new(text))
}

/// The server with its administrator's credentials, read anew each time: they may have been changed.
pub async fn server(context: &Context, server: &conme_api::DatabaseServer) -> Result<Server, Trouble> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kube::Resource;
    use serde_json::json;

    const APP: &str = "dolo__dati__app";
    const APP2: &str = "dolo__dati__app2";

    fn at(time: &str) -> Timestamp {
        format!("2026-03-0{time}:00:00Z").parse().unwrap()
    }

    fn task() -> Task {
        Task {
            desired: Desired {
                comune: "dolo".into(),
                database: "dati".into(),
                tag: OwnerTag { istat: None, uid: "u".into(), former_uids: Vec::new() },
                extensions: [].into(),
                allowed_extensions: [].into(),
                connection_limit: None,
                locale: None,
                adopt: false,
                login: Login::First,
                other_login: OtherLogin::Keep,
                generation: None,
                open: true,
                max_bytes: None,
                moved_from: None,
                provisioned: Some(Provisioned { system_identifier: None, at: at("1T00") }),
            },
            renewal: Renewal {
                requested: Vec::new(),
                max_age: None,
                overlap: SignedDuration::from_hours(24),
            },
            server: serde_json::from_value(json!({
                "name": "pg", "engine": "postgresql", "host": "h", "port": 1, "cidrs": [], "adminSecret": "s",
            }))
            .unwrap(),
            namespace: "dolo-produzione".into(),
            secret: "db-dati".into(),
        }
    }

    fn secret(username: &str, password: &str, note: Option<&str>) -> Value {
        let data = json!({"username": BASE64.encode(username), "password": BASE64.encode(password)});
        json!({"metadata": {"annotations": {keys::CREDENTIAL: note}}, "data": data})
    }

    fn told(generation: u32, login: &str) -> Option<DatabaseStatus> {
        let status = json!({
            "name": "dati", "ready": true, "reason": "", "message": "", "server": "pg", "database": "", "secret": "",
            "provisionedAt": at("1T00").to_string(),
            "credential": {"login": login, "issuedAt": at("2T00").to_string(), "generation": generation},
        });
        serde_json::from_value(status).unwrap()
    }

    fn remembered(generation: u32, login: Login, password: &str) -> Option<(Credential, Secret)> {
        let credential = Credential { login, issued_at: at("2T00"), generation, retiring: None };
        Some((credential, Secret::new(password)))
    }

    /// Login, generation and password that count.
    fn counts(
        remembered: Option<(Credential, Secret)>,
        told: Option<DatabaseStatus>,
        live: Option<Value>,
    ) -> (Login, u32, Option<String>) {
        let known = Known { remembered, told, confirmed: Vec::new(), behind: None, retiring: None };
        let task = task();
        let names = task.desired.names().unwrap();
        let (credential, password) = in_force(&known, live.as_ref(), &task, &names, at("4T00"));
        (credential.login, credential.generation, password.map(|password| password.expose().to_owned()))
    }

    #[test]
    fn the_youngest_of_secret_status_and_memory_counts() {
        let some = |text: &str| Some(text.to_owned());
        let note = |generation: u32| Some(format!("{generation}@{}", at("3T00")));
        // A database of the version before: the Secret has no note, the status no credential.
        assert_eq!(counts(None, None, Some(secret(APP, "p", None))), (Login::First, 1, some("p")));
        assert_eq!(counts(None, None, None), (Login::First, 1, None));
        // Killed after the Secret was written and before anything else was.
        let live = || Some(secret(APP2, "new", note(2).as_deref()));
        assert_eq!(counts(None, told(1, APP), live()), (Login::Second, 2, some("new")));
        assert_eq!(
            counts(remembered(1, Login::First, "old"), told(1, APP), live()),
            (Login::Second, 2, some("new"))
        );
        // A Secret that was changed by hand, or is gone, is put back from memory.
        for by_hand in [None, Some(secret(APP2, "mine", note(2).as_deref())), Some(secret(APP, "mine", None))]
        {
            let known = remembered(2, Login::Second, "new");
            assert_eq!(counts(known, told(2, APP2), by_hand), (Login::Second, 2, some("new")));
        }
        // Nobody remembers: it is lost.
        assert_eq!(counts(None, told(2, APP2), None), (Login::Second, 2, None));
        assert_eq!(counts(None, told(2, APP2), Some(secret(APP, "x", None))), (Login::Second, 2, None));
        assert_eq!(
            counts(None, told(1, APP), Some(secret("postgres", "x", note(9).as_deref()))),
            (Login::First, 1, None)
        );
        // A note that no operator can have written yet.
        let future = Some(secret(APP2, "x", Some("9@2027-01-01T00:00:00Z")));
        assert_eq!(counts(None, told(1, APP), future), (Login::First, 1, None));
    }

    #[test]
    fn a_status_that_was_lost_leaves_the_login_before_its_time() {
        let known =
            Known { remembered: None, told: None, confirmed: Vec::new(), behind: None, retiring: None };
        let task = task();
        let names = task.desired.names().unwrap();
        let live = secret(APP2, "p", Some(&format!("2@{}", at("3T00"))));
        let (credential, _) = in_force(&known, Some(&live), &task, &names, at("4T00"));
        assert_eq!(credential.retiring, Some(Retiring { login: Login::First, until: at("4T00") }));
        // What the status tells is read as it was written.
        let status = DatabaseStatus {
            credential: Some(told_credential(&credential, &names)),
            ..told(1, APP).unwrap()
        };
        assert_eq!(credential_on_record(&status, &names), Some(credential));
    }

    fn seen(size_bytes: u64, max_bytes: Option<u64>) -> DatabaseSeen {
        let details = DatabaseDetails { size_bytes, max_bytes, ..DatabaseDetails::default() };
        DatabaseSeen::Ready {
            system_identifier: String::new(),
            provisioned_at: at("1T00"),
            database: String::new(),
            details: Box::new(details),
        }
    }

    #[test]
    fn databases_that_are_new_are_told_of_together_and_wait_for_one_another_for_a_while_only() {
        let comune = |told: Option<&str>| -> Comune {
            let told = told.map(|reason| {
                let of = |name: &str| {
                    json!({"name": name, "ready": false, "reason": reason, "message": "", "server": "pg",
                           "database": "", "secret": ""})
                };
                json!({"databases": [of("dati"), of("sito")]})
            });
            let database = |name: &str| {
                let placement = json!({"shared": "pg"});
                json!({"name": name, "engine": "postgresql", "placement": placement, "environment": "produzione"})
            };
            serde_json::from_value(json!({
                "apiVersion": Comune::api_version(&()), "kind": Comune::kind(&()), "metadata": {"name": "dolo"},
                "spec": {
                    "entity": {"kind": "Comune", "displayName": "Comune di Dolo"},
                    "environments": [{"name": "produzione"}],
                    "databases": [database("dati"), database("sito")],
                },
                "status": told,
            }))
            .unwrap()
        };
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let state = |seen: Option<DatabaseSeen>| DatabaseState {
            task: Some(Arc::new(task())),
            first_seen: seen.is_some().then_some(begin),
            seen,
            ..DatabaseState::default()
        };
        let mut world = World::new("venis");
        let id = |database: &str| ("dolo".to_owned(), database.to_owned());
        world.databases.insert(id("dati"), state(Some(seen(1, None))));
        let shown = |world: &World, told, seconds| world.databases_seen(&comune(told), at(seconds)).len();
        // Nobody else is to come.
        assert_eq!(shown(&world, None, 0.0), 1);
        world.databases.insert(id("sito"), state(None));
        for told in [None, Some(reasons::IN_PROGRESS)] {
            assert_eq!(shown(&world, told, 0.1), 0);
            assert_eq!(shown(&world, told, 4.9), 0);
            assert_eq!(shown(&world, told, 5.0), 1);
        }
        // What has been told stays.
        assert_eq!(shown(&world, Some(reasons::AS_DECLARED), 0.1), 1);
        world.databases.insert(id("sito"), state(Some(seen(1, None))));
        assert_eq!(shown(&world, None, 0.1), 2);
        // One that is not looked at, as its Comune is paused, holds nothing up.
        world.databases.insert(id("sito"), DatabaseState::default());
        assert_eq!(shown(&world, None, 0.1), 1);
    }

    #[test]
    fn a_database_that_fills_up_is_looked_at_more_often() {
        let recheck = Duration::from_secs(300);
        let pause = |percent: u64| pause(recheck, &seen(percent, Some(100)), None).as_secs();
        assert!(pause(79) >= 300 && (30..40).contains(&pause(80)) && (10..14).contains(&pause(95)));
        assert!(super::pause(recheck, &seen(1 << 40, None), None) >= recheck);
        let minute = Duration::from_secs(60);
        assert_eq!(super::pause(recheck, &seen(1, None), Some(minute)).as_secs(), 61);
    }

    #[test]
    fn what_is_due_has_a_look_of_its_own() {
        let seconds = |seconds: u64| Some(Duration::from_secs(seconds));
        let now = at("1T00");
        let later = |seconds: i64| now + SignedDuration::from_secs(seconds);
        let asked = |time: Timestamp| Renewal { requested: vec![time], ..Renewal::default() };
        let alone = Credential::first(now);
        assert_eq!(due(&alone, &Renewal::default(), None, now), None);
        // Also a part of a second away, as when somebody has just said "now".
        assert_eq!(due(&alone, &asked(later(1)), None, now), seconds(1));
        assert_eq!(due(&alone, &asked(later(-1)), None, now), None);
        let ends = Retiring { login: Login::First, until: later(60) };
        let before = Credential { retiring: Some(ends), ..alone };
        assert_eq!(due(&before, &Renewal::default(), None, now), seconds(60));
        assert_eq!(due(&before, &asked(later(9)), None, now), seconds(9));
        // Over by a clock that has jumped, and not by the other.
        assert_eq!(due(&before, &Renewal::default(), seconds(30), later(900)), seconds(30));
        assert_eq!(due(&before, &Renewal::default(), seconds(0), later(900)), None);
    }

    #[test]
    fn a_size_that_hardly_moves_is_no_news() {
        let moved = |bytes: u64| {
            let mut now = seen(bytes, None);
            keep_size(Some(&seen(1000, None)), &mut now);
            now == seen(1000, None)
        };
        assert!(moved(1050) && moved(950) && !moved(1051) && !moved(949));
    }
}
