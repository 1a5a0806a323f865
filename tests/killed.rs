//! The operator is killed again and again, at moments that nobody chose, while manifests change and people interfere
//! by hand. In the end the cluster is exactly as declared, and nothing of what it held has been lost on the way.
//!
//! `CONME_SEED` repeats a run with the same edits and pauses (it is printed), `CONME_KILLS` sets how often (20).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
use conme_stories::{Credentials, DataCentre, entity, eventually, operator_writes};
use conme_testbed::{
    Signal,
    install::{NAMESPACE, OPERATOR},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const COMUNI: u32 = 8;
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

/// SplitMix64: small, and the same everywhere.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.throw() % end
    }

    fn pause(&mut self, longest_ms: u64) -> Duration {
        Duration::from_millis(self.below(longest_ms))
    }
}

/// What is declared of one Comune at the moment.
#[derive(Clone)]
struct Manifest {
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
    fn new(number: u32) -> Self {
        Self {
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
        format!("kil-{}", self.number)
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
        let mut environments = vec![json!({"name": "produzione", "share": self.share})];
        let mut services = Vec::new();
        if self.collaudo {
            environments.push(json!({"name": "collaudo", "share": 100 - self.share}));
            services.push(json!({"name": "prova", "template": "kil-pagina", "environment": "collaudo"}));
        }
        if self.page {
            services.push(json!({"name": "pagina", "template": "kil-pagina", "replicas": self.replicas}));
        }
        if self.portal {
            services.push(json!({"name": "portale", "template": "kil-portale", "database": "uno"}));
        }
        let mut databases = vec![database("uno")];
        if self.second_database {
            databases.push(database("due"));
        }
        let people: Vec<Value> =
            (0..self.people).map(|person| json!({"kind": "User", "name": format!("kil-{person}")})).collect();
        json!({
            "entity": entity(&self.name(), 902_100 + self.number),
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
}

impl Story {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// People who edit manifests and children.
async fn people(story: Arc<Story>, mut dice: Dice, mut manifests: Vec<Manifest>) -> Result<(u32, u32)> {
    let (mut edits, mut drifts) = (0, 0);
    while !story.is_over() {
        let chosen = dice.below(manifests.len() as u64) as usize;
        let manifest = &mut manifests[chosen];
        if dice.below(3) > 0 {
            manifest.edit(&mut dice);
            story.data_centre.apply(&manifest.name(), manifest.spec()).await?;
            edits += 1;
        } else if interfere(&story.data_centre, &mut dice, &manifest.name()).await? {
            drifts += 1;
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
    let client = story.data_centre.client();
    let labels = ListParams::default().labels(&format!("{}={}", keys::MANAGED_BY, keys::MANAGER));
    let quotas: Api<ResourceQuota> = Api::all(client.clone());
    let namespaces: Api<Namespace> = Api::all(client);
    let mut uids: BTreeMap<String, String> = BTreeMap::new();
    let mut samples = 0;
    while !story.is_over() {
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
        samples += u32::from(!sums.is_empty());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok((samples, uids))
}

/// Writes a row into every database as soon as it is Ready for the first time.
async fn archivist(story: Arc<Story>) -> Result<BTreeSet<String>> {
    let mut marked = BTreeSet::new();
    while !story.is_over() {
        for comune in story.data_centre.comuni().list(&ListParams::default()).await?.items {
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
async fn left_to_do(data_centre: &DataCentre) -> Result<Vec<String>> {
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

/// With the operator stopped, what is changed by hand is found; started again, it is put right.
async fn that_look_finds_what_is_wrong(data_centre: &DataCentre) -> Result<()> {
    let instance = data_centre.instance();
    instance.stop_program(OPERATOR).await?;
    let namespace = "kil-0-produzione";
    data_centre
        .api(Kind::NetworkPolicy, namespace)
        .delete("conme-environment", &DeleteParams::default())
        .await?;
    let label = Patch::Merge(json!({"metadata": {"labels": {"by-hand": "1"}}}));
    data_centre
        .api(Kind::LimitRange, namespace)
        .patch("conme-limits", &PatchParams::default(), &label)
        .await?;
    let left = left_to_do(data_centre).await?;
    assert_eq!(left.len(), 2, "{left:#?}");
    instance.start_program(OPERATOR).await?;
    eventually("it is put right", || async { Ok(left_to_do(data_centre).await?.is_empty()) }).await
}

/// Whether the operator is alive, and the end of its log.
fn last_words(data_centre: &DataCentre) -> Result<String> {
    let instance = data_centre.instance();
    let log = std::fs::read_to_string(instance.log(OPERATOR))?;
    let lines: Vec<&str> = log.lines().collect();
    let end = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
    Ok(format!("the operator is alive: {}; its last words:\n{end}", instance.is_alive(OPERATOR)?))
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_the_operator_brings_about_exactly_what_is_declared() -> Result<()> {
    let seed = number("CONME_SEED", Timestamp::now().as_nanosecond() as u64);
    let kills = number("CONME_KILLS", 20);
    println!("seed {seed}, {kills} kills; to repeat it: CONME_SEED={seed} CONME_KILLS={kills}");
    let mut dice = Dice(seed);
    let data_centre = DataCentre::own("kil", &[]).await?;
    data_centre.two_templates("kil").await?;
    let begin = Timestamp::now();
    let story = Arc::new(Story { data_centre, over: AtomicBool::new(false) });
    let manifests: Vec<Manifest> = (0..COMUNI).map(Manifest::new).collect();
    for manifest in &manifests {
        story.data_centre.apply(&manifest.name(), manifest.spec()).await?;
    }
    let mut people = tokio::spawn(people(story.clone(), Dice(dice.throw()), manifests));
    let mut guard = tokio::spawn(guard(story.clone()));
    let mut archivist = tokio::spawn(archivist(story.clone()));

    let instance = story.data_centre.instance();
    for _ in 0..kills {
        // Sometimes in the middle of its start, sometimes in the middle of its work.
        tokio::time::sleep(dice.pause(2500)).await;
        if !instance.kill(OPERATOR, Signal::Kill).await? {
            bail!("seed {seed}: the operator had ended by itself; {}", last_words(&story.data_centre)?);
        }
        instance.start_program(OPERATOR).await?;
        // One that has found something wrong ends the story at once.
        ensure!(
            !people.is_finished() && !guard.is_finished() && !archivist.is_finished(),
            stopped(&mut people, &mut guard, &mut archivist).await
        );
    }
    let last_edit = Instant::now();
    story.data_centre.operator_gets_ready(async || Ok(())).await?;
    story.over.store(true, Ordering::Release);
    let (edits, drifts) = people.await??;
    // What is marked is marked before the end; what came last is looked at below.
    let marked = archivist.await??;
    let (samples, uids) = guard.await??;

    for number in 0..COMUNI {
        if let Err(error) = story.data_centre.ready(&format!("kil-{number}")).await {
            bail!("seed {seed}: {error:#}\n{}", last_words(&story.data_centre)?);
        }
    }
    let settled = last_edit.elapsed();
    // What somebody changed by hand right before the end may still be on its way to the operator.
    eventually("nothing is left to do", || async { Ok(left_to_do(&story.data_centre).await?.is_empty()) })
        .await
        .with_context(|| format!("seed {seed}"))?;
    // And it stays so: a second look, after everything that the first could have set off.
    let left = left_to_do(&story.data_centre).await?;
    assert!(left.is_empty(), "seed {seed}: {left:#?}");

    that_look_finds_what_is_wrong(&story.data_centre).await?;

    let namespaces: Api<Namespace> = Api::all(story.data_centre.client());
    for (name, uid) in &uids {
        assert_eq!(
            namespaces.get(name).await?.uid().as_ref(),
            Some(uid),
            "seed {seed}: the namespace {name}"
        );
    }
    let administrator = Credentials::of_administrator(&story.data_centre, SERVER)?;
    for database in &marked {
        let login =
            administrator.login(Some(database)).await.with_context(|| format!("seed {seed}: {database}"))?;
        assert_eq!(&login.value("select string_agg(di, ',') from segno").await?, database, "seed {seed}");
    }
    let mut opened = 0;
    for comune in story.data_centre.comuni().list(&ListParams::default()).await?.items {
        for database in &comune.spec.databases {
            let namespace = format!("{}-produzione", comune.name_any());
            let credentials = Credentials::of(&story.data_centre, &namespace, &database.name).await?;
            let login = credentials.login(None).await.with_context(|| format!("seed {seed}: {namespace}"))?;
            login.run("create table if not exists ultimo (a int)").await?;
            opened += 1;
        }
    }
    let writes = operator_writes(&story.data_centre, begin)?;
    let (writes, failed) = (writes.len(), writes.iter().filter(|entry| entry.code() >= 500).count());
    println!(
        "{edits} edits, {drifts} changes by hand, {writes} writes of the operator ({failed} failed), {samples} samples of \
         quotas, {} namespaces, {} databases marked, {opened} Secrets used; as declared {settled:.1?} after the last kill",
        uids.len(),
        marked.len(),
    );
    // It was a story about something.
    assert!(u64::from(edits) >= kills && drifts > 0 && u64::from(samples) >= kills, "seed {seed}");
    assert!(marked.len() >= COMUNI as usize && writes > COMUNI as usize * 10, "seed {seed}");
    Ok(())
}

/// What went wrong with the first of them that has ended too early.
async fn stopped<A: std::fmt::Debug, B: std::fmt::Debug, C: std::fmt::Debug>(
    people: &mut tokio::task::JoinHandle<Result<A>>,
    guard: &mut tokio::task::JoinHandle<Result<B>>,
    archivist: &mut tokio::task::JoinHandle<Result<C>>,
) -> String {
    tokio::select! {
        ended = people => format!("people: {ended:?}"),
        ended = guard => format!("guard: {ended:?}"),
        ended = archivist => format!("archivist: {ended:?}"),
    }
}
