//! A municipality's ordinary day while something breaks: people edit manifests and change children by hand, applications
//! write rows, and somebody watches that nothing is lost. Whatever the fault, in the end the cluster is exactly as
//! declared.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use conme_api::{Comune, DataCenter, ServiceTemplate, keys};
use conme_blueprint::{
    ChildRef, DatabaseDetails, DatabaseSeen, Kind, Register, Site, amount::Amount, names, plan, totals_of,
    validate,
};
use conme_cluster::Index;
use conme_databases::Names;
use conme_testbed::{
    Instance,
    install::{NAMESPACE, OPERATOR},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{Credentials, DataCentre, Entry, entity, eventually, operator_writes};

/// Writes for which one edit, or one change by hand, may be the cause.
const WRITES_EACH: usize = 16;
const SERVER: &str = "pg-venis-1";
/// Children that people change by hand. Not the quotas: whoever raises one by hand breaks the invariant himself.
const TOUCHED: [Kind; 9] = [
    Kind::LimitRange,
    Kind::NetworkPolicy,
    Kind::RoleBinding,
    Kind::ServiceAccount,
    Kind::Service,
    Kind::Deployment,
    Kind::PodDisruptionBudget,
    Kind::Ingress,
    Kind::Secret,
];

/// Arguments of an operator whose day this is: nothing tells it that somebody has touched a Secret, so it looks again
/// before the story ends, and not after ten minutes.
pub const LOOKS_AGAIN: [&str; 2] = ["--recheck-seconds", "20"];

/// SplitMix64: small, and the same everywhere.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// Any number.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 on, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.throw() % end
    }

    /// A time below so many milliseconds.
    pub fn pause(&mut self, longest_ms: u64) -> Duration {
        Duration::from_millis(self.below(longest_ms))
    }
}

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// Names of Comuni and templates begin with it.
    pub prefix: &'static str,
    /// ISTAT code of the first Comune; each further one has the next.
    pub istat: u32,
    /// How many Comuni.
    pub comuni: u32,
}

/// What is declared of one Comune at the moment.
#[derive(Clone)]
struct Manifest {
    cast: Cast,
    number: u32,
    share: u32,
    collaudo: bool,
    second_database: bool,
    connections: u32,
    page: bool,
    replicas: u32,
    portal: bool,
    people: u32,
}

impl Manifest {
    fn new(cast: Cast, number: u32) -> Self {
        Self {
            cast,
            number,
            share: 80,
            collaudo: true,
            second_database: false,
            connections: 10,
            page: true,
            replicas: 1,
            portal: true,
            people: 1,
        }
    }

    fn name(&self) -> String {
        format!("{}-{}", self.cast.prefix, self.number)
    }

    fn edit(&mut self, dice: &mut Dice) {
        match dice.below(8) {
            0 => self.share = 10 + 5 * dice.below(16) as u32,
            1 => self.collaudo = !self.collaudo,
            2 => self.second_database = !self.second_database,
            3 => self.connections = 5 + dice.below(20) as u32,
            4 => self.page = !self.page,
            5 => self.replicas = 1 + dice.below(3) as u32,
            6 => self.portal = !self.portal,
            _ => self.people = dice.below(4) as u32,
        }
    }

    fn spec(&self) -> Value {
        let database = |name: &str| {
            json!({
                "name": name, "engine": "postgresql", "placement": {"shared": SERVER},
                "connectionLimit": self.connections,
            })
        };
        let prefix = self.cast.prefix;
        let (page, portal) = (format!("{prefix}-pagina"), format!("{prefix}-portale"));
        let mut environments = vec![json!({"name": "produzione", "share": self.share})];
        let mut services = Vec::new();
        if self.collaudo {
            environments.push(json!({"name": "collaudo", "share": 100 - self.share}));
            services.push(json!({"name": "prova", "template": page, "environment": "collaudo"}));
        }
        if self.page {
            services.push(json!({"name": "pagina", "template": page, "replicas": self.replicas}));
        }
        if self.portal {
            services.push(json!({"name": "portale", "template": portal, "database": "uno"}));
        }
        let mut databases = vec![database("uno")];
        if self.second_database {
            databases.push(database("due"));
        }
        let people: Vec<Value> = (0..self.people)
            .map(|person| json!({"kind": "User", "name": format!("{prefix}-{person}")}))
            .collect();
        json!({
            "entity": entity(&self.name(), self.cast.istat + self.number),
            "quota": {"cpu": "4", "memory": "8Gi", "storage": "20Gi", "pods": 40},
            "environments": environments,
            "administrators": people,
            "databases": databases,
            "services": services,
        })
    }
}

/// What is shared by those who are at work at the same time.
struct Story {
    data_centre: DataCentre,
    over: AtomicBool,
    /// Databases that hold a row.
    marked: AtomicUsize,
}

impl Story {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Whether the API server was away: it gave no answer, or one that says so.
fn is_outage(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// What people do when the API server is away: they try again later.
fn bear(error: anyhow::Error) -> Result<()> {
    if error.downcast_ref::<kube::Error>().is_some_and(is_outage) { Ok(()) } else { Err(error) }
}

/// People who edit manifests and children.
async fn people(story: Arc<Story>, mut dice: Dice, mut manifests: Vec<Manifest>) -> Result<(u32, u32)> {
    let (mut edits, mut drifts) = (0, 0);
    while !story.is_over() {
        let chosen = dice.below(manifests.len() as u64) as usize;
        let manifest = &mut manifests[chosen];
        if dice.below(3) > 0 {
            manifest.edit(&mut dice);
            match story.data_centre.apply(&manifest.name(), manifest.spec()).await {
                Ok(_) => edits += 1,
                Err(error) => bear(error)?,
            }
        } else {
            match interfere(&story.data_centre, &mut dice, &manifest.name()).await {
                Ok(done) => drifts += u32::from(done),
                Err(error) => bear(error)?,
            }
        }
        tokio::time::sleep(dice.pause(150)).await;
    }
    Ok((edits, drifts))
}

/// Changes or deletes a child by hand, as an administrator of the cluster might.
async fn interfere(data_centre: &DataCentre, dice: &mut Dice, comune: &str) -> Result<bool> {
    let kind = TOUCHED[dice.below(TOUCHED.len() as u64) as usize];
    let api: Api<kube::api::DynamicObject> = Api::all_with(data_centre.client(), &kind.api_resource());
    let mut found =
        api.list(&ListParams::default().labels(&format!("{}={comune}", keys::COMUNE))).await?.items;
    // Lists come in order, so that a seed leads to the same choice among the same objects.
    if found.is_empty() {
        return Ok(false);
    }
    let object = found.swap_remove(dice.below(found.len() as u64) as usize);
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api = data_centre.api(kind, &namespace);
    let merge = |body: Value| {
        let api = api.clone();
        let name = name.clone();
        async move { api.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await.map(|_| ()) }
    };
    let done = match dice.below(4) {
        0 => api.delete(&name, &DeleteParams::background()).await.map(|_| ()),
        1 => merge(json!({"metadata": {"labels": {"by-hand": "1"}}})).await,
        2 => merge(json!({"metadata": {"labels": {keys::COMUNE: null, keys::MANAGED_BY: null}}})).await,
        _ => match kind {
            Kind::Deployment => merge(json!({"spec": {"replicas": 7}})).await,
            Kind::NetworkPolicy => merge(json!({"spec": {"ingress": [{}], "egress": [{}]}})).await,
            Kind::RoleBinding => {
                let somebody =
                    json!({"kind": "User", "name": "ladro", "apiGroup": "rbac.authorization.k8s.io"});
                merge(json!({"subjects": [somebody]})).await
            }
            Kind::Secret => merge(json!({"stringData": {"password": "sbagliata"}})).await,
            Kind::LimitRange => merge(json!({"spec": {"limits": []}})).await,
            Kind::Service => {
                merge(json!({"spec": {"ports": [{"name": "http", "port": 81, "targetPort": 81}]}})).await
            }
            _ => merge(json!({"metadata": {"annotations": {"by-hand": "1"}}})).await,
        },
    };
    match done {
        Ok(()) => Ok(true),
        // Gone or changed meanwhile by the operator.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What must hold at every moment: the sum of the quotas never exceeds the total, and no namespace is another.
async fn guard(story: Arc<Story>) -> Result<(u32, BTreeMap<String, String>)> {
    let mut uids: BTreeMap<String, String> = BTreeMap::new();
    let mut samples = 0;
    while !story.is_over() {
        match look(&story.data_centre, &mut uids).await {
            Ok(found) => samples += u32::from(found),
            Err(error) => bear(error)?,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok((samples, uids))
}

async fn look(data_centre: &DataCentre, uids: &mut BTreeMap<String, String>) -> Result<bool> {
    let client = data_centre.client();
    let labels = ListParams::default().labels(&format!("{}={}", keys::MANAGED_BY, keys::MANAGER));
    let quotas: Api<ResourceQuota> = Api::all(client.clone());
    let namespaces: Api<Namespace> = Api::all(client);
    let mut sums: BTreeMap<(String, String), Amount> = BTreeMap::new();
    for quota in quotas.list(&labels).await?.items {
        let comune = quota.labels()[keys::COMUNE].clone();
        let spec = quota.spec.and_then(|spec| spec.hard).unwrap_or_default();
        let enforced = quota.status.and_then(|status| status.hard).unwrap_or_default();
        for (resource, total) in [("requests.cpu", "4"), ("requests.memory", "8Gi"), ("pods", "40")] {
            let amount =
                |hard: &BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
                    hard.get(resource).map(|quantity| Amount::parse(&quantity.0).expect("a quantity"))
                };
            let held = amount(&spec).max(amount(&enforced)).unwrap_or_default();
            let sum = sums.entry((comune.clone(), resource.to_owned())).or_default();
            *sum += held;
            let total = Amount::parse(total).expect("a quantity");
            ensure!(*sum <= total, "the namespaces of {comune} may hold more {resource} than its total");
        }
    }
    for namespace in namespaces.list(&labels).await?.items {
        let (name, uid) = (namespace.name_any(), namespace.uid().unwrap_or_default());
        ensure!(namespace.metadata.deletion_timestamp.is_none(), "the namespace {name} is being deleted");
        let known = uids.entry(name.clone()).or_insert_with(|| uid.clone());
        ensure!(*known == uid, "the namespace {name} is another one than before");
    }
    Ok(!sums.is_empty())
}

/// Writes a row into every database as soon as it is Ready for the first time.
async fn archivist(story: Arc<Story>) -> Result<BTreeSet<String>> {
    let mut marked = BTreeSet::new();
    while !story.is_over() {
        let comuni = match story.data_centre.comuni().list(&ListParams::default()).await {
            Ok(comuni) => comuni.items,
            Err(error) => {
                bear(error.into())?;
                Vec::new()
            }
        };
        for comune in comuni {
            for database in comune.status.map(|status| status.databases).unwrap_or_default() {
                let namespace = format!("{}-produzione", comune.metadata.name.as_deref().unwrap_or_default());
                if !database.ready || marked.contains(&database.database) {
                    continue;
                }
                // Somebody may just have deleted the Secret or changed it by hand: then the next time.
                let Ok(credentials) = Credentials::of(&story.data_centre, &namespace, &database.name).await
                else {
                    continue;
                };
                let Ok(login) = credentials.login(None).await else { continue };
                let sql = format!(
                    "create table segno (di text); insert into segno values ('{}')",
                    database.database
                );
                login.run(&sql).await.with_context(|| format!("the mark of {}", database.database))?;
                marked.insert(database.database);
                story.marked.store(marked.len(), Ordering::Release);
            }
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Ok(marked)
}

/// Everything that is in the cluster of the operator's kinds, read anew.
async fn index(data_centre: &DataCentre) -> Result<Index> {
    let mut index = Index::default();
    for kind in Kind::ALL {
        let api: Api<kube::api::DynamicObject> = Api::all_with(data_centre.client(), &kind.api_resource());
        let mut params = ListParams::default();
        if kind != Kind::Namespace {
            params = params.labels(&format!("{}={}", keys::MANAGED_BY, keys::MANAGER));
        }
        for object in api.list(&params).await?.items {
            let mut value = serde_json::to_value(&object)?;
            value["apiVersion"] = kind.api_version().into();
            value["kind"] = kind.name().into();
            index.seen(kind, value);
        }
    }
    Ok(index)
}

/// What would still have to be done, from a fresh look at everything: nothing, if the cluster is as declared.
///
/// # Errors
/// What the API server answers, or when a Comune cannot be built at all.
pub async fn left_to_do(data_centre: &DataCentre) -> Result<Vec<String>> {
    let client = data_centre.client();
    let comuni: Vec<Comune> = data_centre.comuni().list(&ListParams::default()).await?.items;
    let data_center: DataCenter = Api::all(client.clone()).get("venis").await?;
    let templates: Vec<ServiceTemplate> = Api::all(client).list(&ListParams::default()).await?.items;
    let templates = templates.into_iter().map(|template| (template.name_any(), Arc::new(template))).collect();
    let mut register = Register::default();
    register.set_data_center(Some(data_center.clone()));
    comuni.iter().for_each(|comune| drop(register.put(comune)));
    let index = index(data_centre).await?;
    let mut left = Vec::new();
    for comune in &comuni {
        let name = comune.name_any();
        let operator = (NAMESPACE, OPERATOR);
        let mut site = Site {
            storage_classes: None,
            data_center: Some(&data_center),
            templates: &templates,
            register: &mut register,
            operator,
        };
        let verdict = validate(comune, &mut site);
        left.extend(
            verdict.problems.iter().map(|problem| format!("{name}: {}: {}", problem.path, problem.message)),
        );
        let valid = verdict.valid.context("a Comune that can be built")?;
        let (_, wanted) =
            totals_of(&comune.spec, &data_center).map_err(|problem| anyhow::anyhow!(problem.message))?;
        ensure!(valid.totals == wanted, "{name} has another total than it asks for");
        let namespaces: Vec<String> = comune
            .spec
            .environments
            .iter()
            .map(|environment| names::namespace(&name, &environment.name))
            .collect();
        let mut observed = index.observe(&name, &namespaces);
        let status = comune.status.clone().unwrap_or_default();
        observed.own_namespaces = status.namespaces.iter().map(|namespace| namespace.uid.clone()).collect();
        for told in status.databases.iter().filter(|told| told.ready) {
            let seen = DatabaseSeen::Ready {
                system_identifier: told.system_identifier.clone().unwrap_or_default(),
                provisioned_at: told.provisioned_at.as_deref().unwrap_or_default().parse()?,
                database: told.database.clone(),
                details: Box::new(DatabaseDetails::default()),
            };
            observed.databases.insert(told.name.clone(), seen);
        }
        let plan = plan(&valid, &observed, Timestamp::now());
        left.extend(plan.actions().map(|action| format!("{name}: {}: {action:?}", action.at())));
        left.extend(plan.waits.iter().map(|wait| format!("{name}: {}", wait.message)));
        left.extend(plan.clashes.iter().map(|clash| format!("{name}: {}", clash.message)));
    }
    // Secrets are not part of a plan: each belongs to a database that is, or was, declared.
    let secrets: Api<Secret> = Api::all(data_centre.client());
    let labels = ListParams::default().labels(&format!("{}={}", keys::MANAGED_BY, keys::MANAGER));
    for secret in secrets.list(&labels).await?.items {
        let at = ChildRef::new(Kind::Secret, secret.namespace().unwrap_or_default(), secret.name_any());
        if !at.namespace.ends_with("-produzione") || !["db-uno", "db-due"].contains(&at.name.as_str()) {
            left.push(format!("{at} belongs to nothing that was ever declared"));
        }
    }
    Ok(left)
}

/// Whether the operator is alive, and the end of its log.
///
/// # Errors
/// When it was never started.
pub fn last_words(instance: &Instance) -> Result<String> {
    let log = std::fs::read_to_string(instance.log(OPERATOR))?;
    let lines: Vec<&str> = log.lines().collect();
    let end = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
    Ok(format!("the operator is alive: {}; its last words:\n{end}", instance.is_alive(OPERATOR)?))
}

/// A number from the environment, for runs that are longer or are to be repeated.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The seed of a run: that of `CONME_SEED`, else another one each time. It is printed.
pub fn seed() -> u64 {
    let seed = number("CONME_SEED", Timestamp::now().as_nanosecond() as u64);
    println!("seed {seed}; to repeat it: CONME_SEED={seed}");
    seed
}

/// A day's work that goes on in the background while the story breaks things.
pub struct Load {
    story: Arc<Story>,
    cast: Cast,
    seed: u64,
    begin: Timestamp,
    people: JoinHandle<Result<(u32, u32)>>,
    guard: JoinHandle<Result<(u32, BTreeMap<String, String>)>>,
    archivist: JoinHandle<Result<BTreeSet<String>>>,
}

/// What a day has brought.
#[derive(Clone, Debug)]
pub struct Day {
    /// Manifests that were edited.
    pub edits: u32,
    /// Children that were changed by hand.
    pub drifts: u32,
    /// Times at which all quotas were looked at.
    pub samples: u32,
    /// Databases that hold a row of this day.
    pub marked: usize,
    /// Writes of the operator, as the API server has recorded them, its lease aside.
    pub writes: usize,
    /// Namespaces that there were.
    pub namespaces: usize,
}

impl Load {
    /// Declares the Comuni and sets everybody to work. `data_centre` is the story's own.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn begin(data_centre: DataCentre, cast: Cast, seed: u64) -> Result<Self> {
        let mut dice = Dice(seed);
        data_centre.two_templates(cast.prefix).await?;
        let begin = Timestamp::now();
        let story =
            Arc::new(Story { data_centre, over: AtomicBool::new(false), marked: AtomicUsize::new(0) });
        let manifests: Vec<Manifest> = (0..cast.comuni).map(|number| Manifest::new(cast, number)).collect();
        for manifest in &manifests {
            story.data_centre.apply(&manifest.name(), manifest.spec()).await?;
        }
        Ok(Self {
            cast,
            seed,
            begin,
            people: tokio::spawn(people(story.clone(), Dice(dice.throw()), manifests)),
            guard: tokio::spawn(guard(story.clone())),
            archivist: tokio::spawn(archivist(story.clone())),
            story,
        })
    }

    /// Where it happens.
    pub fn data_centre(&self) -> &DataCentre {
        &self.story.data_centre
    }

    /// Waits until there is something to be lost: a database that holds a row.
    ///
    /// # Errors
    /// When there is none in time, or somebody has found something wrong.
    pub async fn has_something_to_lose(&mut self) -> Result<()> {
        let story = self.story.clone();
        let marked = || async { Ok(story.marked.load(Ordering::Acquire) > 0) };
        let waited = eventually("a database holds a row", marked).await;
        self.goes_on().await?;
        waited.with_context(|| format!("seed {}", self.seed))
    }

    /// Goes on as before.
    ///
    /// # Errors
    /// When one of them has found something wrong, with what it is: the story ends at once.
    pub async fn goes_on(&mut self) -> Result<()> {
        let wrong = if self.people.is_finished() {
            format!("people: {:?}", (&mut self.people).await)
        } else if self.guard.is_finished() {
            format!("guard: {:?}", (&mut self.guard).await)
        } else if self.archivist.is_finished() {
            format!("archivist: {:?}", (&mut self.archivist).await)
        } else {
            return Ok(());
        };
        bail!("seed {}: {wrong}", self.seed)
    }

    /// Ends the day and looks at everything: each Comune is Ready, the cluster is exactly as declared and stays so, no
    /// namespace is another, no row is lost, nothing is there twice, and every Secret opens its database. `meanwhile` is
    /// done while the operator is waited for.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn end(&mut self, meanwhile: impl AsyncFn(&DataCentre) -> Result<()>) -> Result<Day> {
        let (seed, cast, data_centre) = (self.seed, self.cast, &self.story.data_centre);
        let instance = data_centre.instance();
        let last_edit = Instant::now();
        data_centre.operator_gets_ready(|| meanwhile(data_centre)).await?;
        self.story.over.store(true, Ordering::Release);
        let (edits, drifts) = (&mut self.people).await?.with_context(|| format!("seed {seed}"))?;
        // What is marked is marked before the end; what came last is looked at below.
        let marked = (&mut self.archivist).await?.with_context(|| format!("seed {seed}"))?;
        let (samples, uids) = (&mut self.guard).await?.with_context(|| format!("seed {seed}"))?;

        for number in 0..cast.comuni {
            if let Err(error) = data_centre.ready(&format!("{}-{number}", cast.prefix)).await {
                bail!("seed {seed}: {error:#}\n{}", last_words(instance)?);
            }
        }
        let settled = last_edit.elapsed();
        // What somebody changed by hand right before the end may still be on its way to the operator.
        let clean =
            eventually("nothing is left to do", || async { Ok(left_to_do(data_centre).await?.is_empty()) });
        if let Err(error) = clean.await {
            let left = left_to_do(data_centre).await?;
            bail!("seed {seed}: {error:#}: {left:#?}\n{}", last_words(instance)?);
        }
        // And it stays so: a second look, after everything that the first could have set off.
        data_centre.comuni_at_rest().await.with_context(|| format!("seed {seed}"))?;
        let left = left_to_do(data_centre).await?;
        ensure!(left.is_empty(), "seed {seed}: {left:#?}");

        let namespaces: Api<Namespace> = Api::all(data_centre.client());
        for (name, uid) in &uids {
            let now = namespaces.get(name).await?.uid();
            ensure!(now.as_ref() == Some(uid), "seed {seed}: the namespace {name} is another one: {now:?}");
        }
        self.story.rows_are_there(&marked).await.with_context(|| format!("seed {seed}"))?;
        self.story.nothing_is_there_twice().await.with_context(|| format!("seed {seed}"))?;
        // No plan knows of Secrets: one that was deleted by hand right before the end may still be on its way back.
        let back = || async { Ok(self.story.every_secret_opens().await.is_ok()) };
        let waited = eventually("every Secret opens its database", back).await;
        let opened = self.story.every_secret_opens().await;
        let opened = opened.with_context(|| format!("seed {seed}: {waited:?}"))?;
        let writes = operator_writes(data_centre, self.begin)?;
        let passes = data_centre.metrics().await?.sum("controller_runtime_reconcile_total", &[]) as u64;
        let objects = index(data_centre).await?.len();
        // An edit or a change by hand may touch what one environment has, the status, two events; a call whose answer was
        // lost is made again. A loop without a pause would make thousands.
        let most = 2 * objects + WRITES_EACH * (edits + drifts) as usize;
        ensure!(
            writes.len() <= most,
            "seed {seed}: {} writes, at most {most}: {}",
            writes.len(),
            by_object(&writes)
        );
        // Each write is seen by a watch, which asks for a pass.
        let most = 3 * (writes.len() as u64 + u64::from(edits + drifts)) + 100;
        ensure!(passes <= most, "seed {seed}: {passes} passes, at most {most}");
        let failed = writes.iter().filter(|entry| entry.code() >= 500).count();
        let day = Day {
            edits,
            drifts,
            samples,
            marked: marked.len(),
            writes: writes.len(),
            namespaces: uids.len(),
        };
        println!(
            "{edits} edits, {drifts} changes by hand, {objects} objects, {} writes ({failed} failed) and {passes} passes of the operator, {samples} samples of \
             quotas, {} namespaces, {} databases marked, {opened} Secrets used; as declared {settled:.1?} after the last fault",
            day.writes, day.namespaces, day.marked,
        );
        // It was a story about something.
        ensure!(edits > 0 && drifts > 0 && samples > 0, "seed {seed}: nothing happened: {day:?}");
        ensure!(day.marked > 0, "seed {seed}: no databases: {day:?}");
        ensure!(day.writes > cast.comuni as usize * 10, "seed {seed}: too few writes: {day:?}");
        Ok(day)
    }
}

/// What was written most, for a person who has to find out why.
fn by_object(writes: &[Entry]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for entry in writes {
        let (namespace, name) = entry.object();
        *counts.entry(format!("{} {namespace}/{name} {}", entry.resource(), entry.code())).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let lines: Vec<String> =
        counts.iter().take(15).map(|(what, count)| format!("{count} × {what}")).collect();
    lines.join("\n")
}

impl Story {
    async fn rows_are_there(&self, marked: &BTreeSet<String>) -> Result<()> {
        let administrator = Credentials::of_administrator(&self.data_centre, SERVER)?;
        for database in marked {
            let login = administrator.login(Some(database)).await.with_context(|| database.clone())?;
            let rows = login.value("select string_agg(di, ',') from segno").await?;
            ensure!(rows == *database, "the row of {database} is {rows:?}");
        }
        Ok(())
    }

    /// Databases and logins on the server are those of what was declared at some time, each with its mark.
    async fn nothing_is_there_twice(&self) -> Result<()> {
        let login = Credentials::of_administrator(&self.data_centre, SERVER)?.login(None).await?;
        let list = async |sql: &str| -> Result<BTreeSet<String>> {
            let sql = format!("select coalesce(string_agg(name, ','), '') from ({sql}) as names (name)");
            Ok(login
                .value(&sql)
                .await?
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect())
        };
        let databases =
            list("select datname from pg_database where not datistemplate and datname <> 'postgres'").await?;
        let mut known = BTreeSet::new();
        for comune in self.data_centre.comuni().list(&ListParams::default()).await?.items {
            for database in ["uno", "due"] {
                let name = Names::new(&comune.name_any(), database)?.database().to_owned();
                known.insert(name);
            }
            for database in &comune.spec.databases {
                let name = Names::new(&comune.name_any(), &database.name)?.database().to_owned();
                ensure!(databases.contains(&name), "there is no database {name}");
            }
        }
        let strange: Vec<&String> = databases.difference(&known).collect();
        ensure!(strange.is_empty(), "databases that nobody declared: {strange:?}");
        let roles = list("select rolname from pg_roles where rolname !~ '^pg_' and not rolsuper").await?;
        let of_known = |role: &&String| {
            ["__owner", "__app", "__app2"]
                .iter()
                .any(|end| role.strip_suffix(end).is_some_and(|name| databases.contains(name)))
        };
        let strange: Vec<&String> = roles.iter().filter(|role| !of_known(role)).collect();
        ensure!(strange.is_empty(), "roles of nothing: {strange:?}");
        Ok(())
    }

    async fn every_secret_opens(&self) -> Result<usize> {
        let mut opened = 0;
        for comune in self.data_centre.comuni().list(&ListParams::default()).await?.items {
            for database in &comune.spec.databases {
                let namespace = format!("{}-produzione", comune.name_any());
                let credentials = Credentials::of(&self.data_centre, &namespace, &database.name).await?;
                let login = credentials.login(None).await.with_context(|| namespace.clone())?;
                login.run("create table if not exists ultimo (a int)").await?;
                opened += 1;
            }
        }
        Ok(opened)
    }
}
