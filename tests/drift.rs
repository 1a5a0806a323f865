//! Whatever somebody changes, adds or deletes by hand on what the operator keeps is put back exactly as it was,
//! however they go about it; what belongs to the tenants and to the cluster's own controllers is left alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use conme_api::keys;
use conme_blueprint::{Kind, child};
use conme_stories::{
    Credentials, DataCentre, Entry, PATIENCE, entity, eventually, http_get, operator_writes, refusal,
};
use conme_testbed::install;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// How long nothing may be written before it is taken that nothing will be.
const WINDOW: Duration = Duration::from_secs(2);

// ---------------------------------------------------------------------------------------------- the Comune

/// A Comune with a child of every kind, and everything that it has when it is ready.
struct Town {
    data_centre: DataCentre,
    name: String,
    since: Timestamp,
    before: Snapshot,
}

type Address = (Kind, String, String);
type Snapshot = BTreeMap<Address, (String, Value)>;

impl Town {
    async fn found(data_centre: DataCentre, name: &str, istat: u32) -> Result<Self> {
        let template = |name: &str, version: Value| {
            json!({
                "apiVersion": "conme.venis.it/v1alpha1", "kind": "ServiceTemplate", "metadata": {"name": name},
                "spec": {
                    "displayName": name, "description": "For a story.", "licence": "EUPL-1.2", "source": "invented",
                    "defaultVersion": "1", "versions": [version],
                },
            })
        };
        let web = template(
            "dri-web",
            json!({
                "version": "1", "image": "registry.example/web:1", "runAsUser": 1000,
                "ports": [{"name": "http", "port": 8080}],
                "env": [{"name": "GREETING", "value": "ciao"}, {"name": "DATABASE", "fromBinding": "uri"}],
                "files": [{"path": "/etc/web/web.conf", "content": "name=$(comune.name)"}],
                "resources": {"cpu": "50m", "memory": "32Mi"},
                "autoscaling": {"minReplicas": 1, "maxReplicas": 3, "cpuPercent": 70},
            }),
        );
        let archive = template(
            "dri-archive",
            json!({
                "version": "1", "image": "registry.example/archive:1", "runAsUser": 1000,
                "resources": {"cpu": "50m", "memory": "32Mi"}, "replicas": 1,
                "volumes": [{"name": "data", "path": "/data", "kind": "Persistent", "size": "1Gi"}],
            }),
        );
        install::apply(
            data_centre.instance(),
            &json!({"apiVersion": "v1", "kind": "List", "items": [web, archive]}),
        )
        .await?;
        let since = Timestamp::now();
        let spec = json!({
            "entity": entity(name, istat),
            "quota": {"cpu": 2, "memory": "4Gi", "storage": "20Gi", "pods": 40, "services": 10},
            "environments": [{"name": "produzione", "share": 80}, {"name": "collaudo", "share": 20}],
            "administrators": [{"kind": "Group", "name": format!("{name}-ced")}],
            "viewers": [{"kind": "User", "name": format!("{name}-viewer")}],
            "network": {"egress": [{"description": "proxy", "cidrs": ["198.51.100.10/32"], "ports": [3128]}]},
            "databases": [{
                "name": "sito", "engine": "postgresql", "environment": "produzione",
                "placement": {"shared": "pg-venis-1"}, "connectionLimit": 5,
            }],
            "services": [
                {"name": "web", "template": "dri-web", "environment": "produzione", "database": "sito"},
                {"name": "archive", "template": "dri-archive", "environment": "produzione"},
            ],
        });
        data_centre.apply(name, spec).await?;
        data_centre.ready(name).await?;
        let mut town = Self { data_centre, name: name.to_owned(), since, before: Snapshot::new() };
        town.available().await?;
        quiet(&town, WINDOW).await?;
        town.before = town.snapshot().await?;
        Ok(town)
    }

    async fn shared(name: &str, istat: u32) -> Result<Self> {
        Self::found(DataCentre::shared().await?, name, istat).await
    }

    fn namespace(&self) -> String {
        format!("{}-produzione", self.name)
    }

    async fn available(&self) -> Result<()> {
        let available = |comune: &conme_api::Comune| {
            ["Ready", "Available"].iter().all(|type_| {
                conme_stories::condition(comune, type_).is_some_and(|(status, ..)| status == "True")
            })
        };
        self.data_centre.comune_where(&self.name, "ready and available", available).await.map(|_| ())
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        self.data_centre.api(kind, &self.namespace())
    }

    fn address(&self, child: &Child) -> Address {
        if child.kind == Kind::Namespace {
            (Kind::Namespace, String::new(), self.namespace())
        } else {
            (child.kind, self.namespace(), child.name.to_owned())
        }
    }

    async fn get(&self, at: &Address) -> Result<Option<Value>> {
        self.data_centre.read(at.0, &at.1, &at.2).await
    }

    /// Every object of every kind in the namespaces of the Comune, the tenant's and the cluster's own included.
    async fn snapshot(&self) -> Result<Snapshot> {
        let mut all = Snapshot::new();
        for namespace in [self.namespace(), format!("{}-collaudo", self.name)] {
            for kind in Kind::ALL.into_iter().chain([Kind::Secret]) {
                let api = self.data_centre.api(kind, &namespace);
                let objects = if kind == Kind::Namespace {
                    vec![api.get(&namespace).await?]
                } else {
                    api.list(&ListParams::default()).await?.items
                };
                for object in objects {
                    let mut object = serde_json::to_value(object)?;
                    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                    tidy(kind, &mut object);
                    let home = if kind == Kind::Namespace { String::new() } else { namespace.clone() };
                    all.insert((kind, home, name), (uid, object));
                }
            }
        }
        Ok(all)
    }

    /// Nothing differs from the beginning but the identity of what was made anew.
    async fn is_as_before(&self, made_anew: &BTreeSet<Address>) -> Result<()> {
        let now = self.snapshot().await?;
        let (then, names): (BTreeSet<_>, BTreeSet<_>) = (self.before.keys().collect(), now.keys().collect());
        ensure!(
            then == names,
            "appeared or vanished: {:?}",
            then.symmetric_difference(&names).collect::<Vec<_>>()
        );
        for (at, (uid, object)) in &self.before {
            let (uid_now, mut now) = now[at].clone();
            ensure!(*uid == uid_now || made_anew.contains(at), "{at:?} is another object");
            let mut object = object.clone();
            if made_anew.contains(at) {
                forget_addresses(&mut object);
                forget_addresses(&mut now);
            }
            ensure!(object == now, "{at:?} differs:\n{object}\n{now}");
        }
        Ok(())
    }

    /// Waits until a child is exactly as before, with nobody else owning any of it.
    async fn restored(&self, at: &Address, what: &str, anew: bool) -> Result<()> {
        let (uid, object) = &self.before[at];
        let mut wanted = object.clone();
        let begin = Instant::now();
        let mut last = None;
        while begin.elapsed() < PATIENCE {
            last = self.get(at).await?;
            if let Some(mut live) = last.clone() {
                let foreign = child::has_foreign_fields(at.0, &live);
                let same_uid = live["metadata"]["uid"] == json!(uid);
                tidy(at.0, &mut live);
                if anew {
                    forget_addresses(&mut wanted);
                    forget_addresses(&mut live);
                } else {
                    ensure!(same_uid, "{what}: {at:?} was made anew instead of being repaired");
                }
                if wanted == live && !foreign && same_uid != anew {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        bail!("{what}: {at:?} is not as it was:\nwas {wanted}\nis  {}", last.unwrap_or_default())
    }

    /// The operator's writes in the namespaces of this Comune.
    fn writes(&self, since: Timestamp) -> Result<Vec<Entry>> {
        let mut entries = operator_writes(&self.data_centre, since)?;
        let own = format!("{}-", self.name);
        entries.retain(|entry| {
            let (namespace, name) = entry.object();
            namespace.starts_with(&own) || (entry.resource() == "namespaces" && name.starts_with(&own))
        });
        Ok(entries)
    }

    /// Since the beginning the operator has written to nothing but what was touched.
    fn only_touched(&self, since: Timestamp, touched: &BTreeSet<Address>) -> Result<()> {
        let touched: BTreeSet<(String, String)> =
            touched.iter().map(|(kind, _, name)| (kind.plural().to_owned(), name.clone())).collect();
        for entry in self.writes(since)? {
            let written = (entry.resource(), entry.object().1);
            ensure!(
                touched.contains(&written),
                "the operator wrote to {written:?}, which nobody had touched"
            );
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.data_centre.tidy_up(&self.name).await
    }
}

fn tidy(kind: Kind, object: &mut Value) {
    child::strip(kind, object);
    // Left out in lists.
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.name());
}

/// What the API server gives out anew with each object.
fn forget_addresses(object: &mut Value) {
    if object["kind"] == "Service"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
}

/// Waits until the operator has written nothing to the namespaces of a Comune for a while: repair comes to an end.
async fn quiet(town: &Town, window: Duration) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let since = Timestamp::now();
        tokio::time::sleep(window).await;
        if town.writes(since)?.is_empty() {
            return Ok(());
        }
    }
    bail!(
        "the operator does not come to rest: {:?}",
        town.writes(town.since)?.iter().rev().take(9).collect::<Vec<_>>()
    )
}

// ---------------------------------------------------------------------------------------------- what is done to it

type Change = fn(&mut Value);

struct Child {
    kind: Kind,
    name: &'static str,
    /// Changes a value that the operator has set.
    edit: Option<Change>,
    /// Adds something that nobody has set.
    add: Option<Change>,
}

fn child_of(kind: Kind, name: &'static str, edit: Change, add: Change) -> Child {
    Child { kind, name, edit: Some(edit), add: Some(add) }
}

fn push(list: &mut Value, element: Value) {
    if !list.is_array() {
        *list = json!([]);
    }
    list.as_array_mut().unwrap().push(element);
}

fn more_subjects(o: &mut Value) {
    push(
        &mut o["subjects"],
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}),
    );
}

fn another_subject(o: &mut Value) {
    o["subjects"][0]["name"] = json!("mallory");
}

fn everything_out(o: &mut Value) {
    push(&mut o["spec"]["egress"], json!({}));
}

/// One child of every kind, and every policy and binding.
fn children() -> Vec<Child> {
    vec![
        child_of(
            Kind::Namespace,
            "",
            |o| o["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("privileged"),
            |o| o["metadata"]["labels"]["pod-security.kubernetes.io/enforce-version"] = json!("v1.25"),
        ),
        child_of(
            Kind::ResourceQuota,
            "conme-quota",
            |o| o["spec"]["hard"]["pods"] = json!("500"),
            |o| o["spec"]["hard"]["count/jobs.batch"] = json!("3"),
        ),
        child_of(
            Kind::LimitRange,
            "conme-limits",
            |o| o["spec"]["limits"][0]["default"]["cpu"] = json!("1900m"),
            |o| o["spec"]["limits"][0]["max"] = json!({"cpu": "1900m"}),
        ),
        child_of(
            Kind::NetworkPolicy,
            "conme-default-deny",
            |o| o["spec"]["podSelector"] = json!({"matchLabels": {"nobody": "has-this"}}),
            everything_out,
        ),
        child_of(
            Kind::NetworkPolicy,
            "conme-environment",
            |o| o["spec"]["egress"][1]["ports"][0]["port"] = json!(5353),
            |o| push(&mut o["spec"]["ingress"], json!({})),
        ),
        child_of(
            Kind::NetworkPolicy,
            "conme-databases",
            |o| o["spec"]["egress"][0]["to"][0]["ipBlock"]["cidr"] = json!("0.0.0.0/0"),
            everything_out,
        ),
        child_of(
            Kind::NetworkPolicy,
            "conme-declared",
            |o| o["spec"]["egress"][0]["to"][0]["ipBlock"]["cidr"] = json!("0.0.0.0/0"),
            |o| push(&mut o["spec"]["ingress"], json!({})),
        ),
        child_of(
            Kind::NetworkPolicy,
            "web",
            |o| o["spec"]["ingress"][0]["ports"][0]["port"] = json!(22),
            |o| push(&mut o["spec"]["ingress"][0]["from"], json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
        ),
        child_of(Kind::RoleBinding, "conme-operator", another_subject, more_subjects),
        child_of(Kind::RoleBinding, "conme-administrators", another_subject, more_subjects),
        child_of(Kind::RoleBinding, "conme-viewers", another_subject, more_subjects),
        child_of(
            Kind::ServiceAccount,
            "web",
            |o| o["automountServiceAccountToken"] = json!(true),
            |o| push(&mut o["imagePullSecrets"], json!({"name": "stolen"})),
        ),
        child_of(
            Kind::ConfigMap,
            "web",
            |o| o["data"]["etc__web__web.conf"] = json!("name=mallory"),
            |o| o["data"]["more"] = json!("of it"),
        ),
        child_of(
            Kind::Service,
            "web",
            |o| o["spec"]["ports"][0]["targetPort"] = json!(9999),
            |o| {
                push(
                    &mut o["spec"]["ports"],
                    json!({"name": "more", "port": 9999, "targetPort": 9999, "protocol": "TCP"}),
                );
                push(&mut o["spec"]["externalIPs"], json!("203.0.113.7"));
            },
        ),
        child_of(
            Kind::Deployment,
            "web",
            |o| o["spec"]["template"]["spec"]["containers"][0]["image"] = json!("registry.example/mallory:1"),
            |o| {
                let pod = &mut o["spec"]["template"]["spec"];
                push(&mut pod["containers"][0]["env"], json!({"name": "MORE", "value": "of it"}));
                let mut second = pod["containers"][0].clone();
                second["name"] = json!("second");
                second["image"] = json!("registry.example/mallory:1");
                push(&mut pod["containers"], second);
                o["spec"]["minReadySeconds"] = json!(7);
            },
        ),
        child_of(
            Kind::Deployment,
            "archive",
            |o| o["spec"]["replicas"] = json!(0),
            |o| o["spec"]["template"]["metadata"]["annotations"] = json!({"example.org/more": "of it"}),
        ),
        child_of(
            Kind::HorizontalPodAutoscaler,
            "web",
            |o| o["spec"]["maxReplicas"] = json!(2),
            |o| o["spec"]["behavior"] = json!({"scaleDown": {"stabilizationWindowSeconds": 7}}),
        ),
        child_of(
            Kind::PodDisruptionBudget,
            "web",
            |o| o["spec"]["maxUnavailable"] = json!(9),
            |o| o["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow"),
        ),
        child_of(
            Kind::Ingress,
            "web",
            |o| o["spec"]["rules"][0]["host"] = json!("mallory.example"),
            |o| {
                let mut rule = o["spec"]["rules"][0].clone();
                rule["host"] = json!("more.example");
                push(&mut o["spec"]["rules"], rule);
                o["metadata"]["annotations"]["nginx.ingress.kubernetes.io/server-alias"] =
                    json!("more.example");
            },
        ),
        Child { kind: Kind::PersistentVolumeClaim, name: "archive--data", edit: None, add: None },
    ]
}

/// Adds what any object may have: a label, an annotation, a finalizer.
fn more_metadata(o: &mut Value) {
    o["metadata"]["labels"]["example.org/more"] = json!("of-it");
    o["metadata"]["annotations"]["example.org/more"] = json!("of it");
    push(&mut o["metadata"]["finalizers"], json!("example.org/hold"));
}

/// How a change is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// As `kubectl edit`: a merge patch.
    Patch,
    /// As `kubectl replace`.
    Put,
    /// As a GitOps tool: server-side apply of the whole object by another manager, with force.
    Apply,
    /// Server-side apply of the whole object under the operator's own name.
    Forged,
    /// Together with a clearance of everything that says who owns what.
    Cleared,
}

async fn make(town: &Town, at: &Address, way: Way, change: Change) -> Result<()> {
    let api = town.data_centre.api(at.0, &at.1);
    for _ in 0..20 {
        let live = town.get(at).await?.context("it is there")?;
        let mut changed = live.clone();
        change(&mut changed);
        ensure!(live != changed, "the change to {at:?} changes nothing");
        let put = |mut object: Value| async {
            object["metadata"]["managedFields"] = match way {
                Way::Cleared => json!([{}]),
                _ => object["metadata"]["managedFields"].take(),
            };
            let params = PostParams { field_manager: Some("kubectl-edit".into()), ..PostParams::default() };
            api.replace(&at.2, &params, &serde_json::from_value(object).unwrap()).await
        };
        let result = match way {
            Way::Put | Way::Cleared => put(changed).await,
            Way::Patch => {
                let params =
                    PatchParams { field_manager: Some("kubectl-edit".into()), ..PatchParams::default() };
                api.patch(&at.2, &params, &Patch::Merge(&difference(&live, &changed))).await
            }
            Way::Apply | Way::Forged => {
                let manager = if matches!(way, Way::Forged) { keys::FIELD_MANAGER } else { "argocd" };
                child::strip(at.0, &mut changed);
                api.patch(&at.2, &PatchParams::apply(manager).force(), &Patch::Apply(&changed)).await
            }
        };
        match result {
            Ok(_) => return Ok(()),
            // The status has moved on meanwhile: what people do is to try again.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("{way:?} of {at:?}")),
        }
    }
    bail!("{at:?} never holds still")
}

/// A JSON merge patch from one object to another.
fn difference(from: &Value, to: &Value) -> Value {
    let (Some(from), Some(to)) = (from.as_object(), to.as_object()) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let new = to.iter().filter(|(key, value)| from.get(*key) != Some(value)).map(|(key, value)| {
        (key.clone(), from.get(key).map_or_else(|| value.clone(), |before| difference(before, value)))
    });
    Value::Object(gone.chain(new).collect())
}

/// Every child is edited and added to in one way, one after the other; then everything is as it was.
async fn repaired(name: &str, istat: u32, way: Way) -> Result<()> {
    let town = Town::shared(name, istat).await?;
    let since = Timestamp::now();
    let mut touched = BTreeSet::new();
    for child in children() {
        let at = town.address(&child);
        touched.insert(at.clone());
        for (what, change) in [
            ("edited", child.edit),
            ("added to", child.add),
            ("metadata added", Some(more_metadata as Change)),
        ] {
            let Some(change) = change else { continue };
            make(&town, &at, way, change).await?;
            town.restored(&at, &format!("{way:?}, {what}"), false).await?;
        }
    }
    town.only_touched(since, &touched)?;
    town.available().await?;
    quiet(&town, WINDOW).await?;
    town.is_as_before(&BTreeSet::new()).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_with_kubectl_edit_is_put_back() -> Result<()> {
    repaired("dri-edit", 901_100, Way::Patch).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_with_kubectl_replace_is_put_back() -> Result<()> {
    repaired("dri-replace", 901_101, Way::Put).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_5_what_another_manager_has_applied_or_added_is_put_back() -> Result<()> {
    repaired("dri-apply", 901_102, Way::Apply).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_applied_under_the_operators_own_name_is_put_back() -> Result<()> {
    repaired("dri-forged", 901_103, Way::Forged).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_hides_who_made_it_is_put_back() -> Result<()> {
    repaired("dri-cleared", 901_104, Way::Cleared).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_beside_which_the_declared_one_would_be_invalid_is_put_back() -> Result<()> {
    let town = Town::shared("dri-invalid", 901_116).await?;
    // A port is known by its number: with the declared one beside it, there would be two of the same name.
    let at = (Kind::Service, town.namespace(), "web".to_owned());
    for way in [Way::Patch, Way::Put, Way::Cleared] {
        make(&town, &at, way, |o| o["spec"]["ports"][0]["port"] = json!(81)).await?;
        town.restored(&at, &format!("{way:?}, port renumbered"), false).await?;
    }
    quiet(&town, WINDOW).await?;
    town.is_as_before(&BTreeSet::new()).await?;
    town.end().await
}

/// The marks by which the operator knows its children.
fn marks() -> Vec<(&'static str, Change)> {
    fn unlabel(o: &mut Value) {
        let labels = o["metadata"]["labels"].as_object_mut().unwrap();
        labels.retain(|key, _| ![keys::COMUNE, keys::COMPONENT, keys::MANAGED_BY].contains(&key.as_str()));
    }
    vec![
        ("hash of another request", |o| {
            o["metadata"]["annotations"][keys::APPLIED] = json!("0123456789abcdef")
        }),
        ("no hash", |o| {
            o["metadata"]["annotations"].as_object_mut().unwrap().remove(keys::APPLIED);
        }),
        ("component changed", |o| o["metadata"]["labels"][keys::COMPONENT] = json!("mallory")),
        ("Comune changed", |o| o["metadata"]["labels"][keys::COMUNE] = json!("nessuno")),
        ("no Comune", |o| {
            o["metadata"]["labels"].as_object_mut().unwrap().remove(keys::COMUNE);
        }),
        ("another tool", |o| o["metadata"]["labels"][keys::MANAGED_BY] = json!("Helm")),
        ("no labels", unlabel),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marks_of_a_child_cannot_be_taken_off() -> Result<()> {
    let town = Town::shared("dri-marks", 901_105).await?;
    let since = Timestamp::now();
    let mut touched = BTreeSet::new();
    for child in children() {
        let at = town.address(&child);
        touched.insert(at.clone());
        for (what, change) in marks() {
            // The specification of a claim cannot be changed, so one that was asked for otherwise stays as it is.
            if child.kind == Kind::PersistentVolumeClaim && what.contains("hash") {
                continue;
            }
            make(&town, &at, Way::Put, change).await?;
            town.restored(&at, what, false).await?;
        }
    }
    town.only_touched(since, &touched)?;
    quiet(&town, WINDOW).await?;
    town.is_as_before(&BTreeSet::new()).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_was_edited_and_stripped_of_its_marks_at_once_is_put_back() -> Result<()> {
    fn disowned(o: &mut Value) {
        let labels = o["metadata"]["labels"].as_object_mut().unwrap();
        labels.retain(|key, _| ![keys::COMUNE, keys::COMPONENT, keys::MANAGED_BY].contains(&key.as_str()));
    }
    let town = Town::shared("dri-disowned", 901_106).await?;
    // Both in one request, so that the operator never sees one without the other.
    let changes: [(Kind, &str, Change); 4] = [
        (Kind::NetworkPolicy, "conme-default-deny", |o| {
            o["spec"]["podSelector"] = json!({"matchLabels": {"nobody": "has-this"}});
            everything_out(o);
            disowned(o);
        }),
        (Kind::ResourceQuota, "conme-quota", |o| {
            o["spec"]["hard"]["pods"] = json!("500");
            disowned(o);
        }),
        (Kind::RoleBinding, "conme-administrators", |o| {
            another_subject(o);
            disowned(o);
        }),
        (Kind::Deployment, "web", |o| {
            o["spec"]["template"]["spec"]["containers"][0]["image"] = json!("registry.example/mallory:1");
            disowned(o);
        }),
    ];
    for (kind, name, change) in changes {
        let at = (kind, town.namespace(), name.to_owned());
        for way in [Way::Put, Way::Apply] {
            make(&town, &at, way, change).await?;
            // An apply leaves labels that it does not mention to whoever owns them.
            town.restored(&at, &format!("{way:?}, disowned"), false).await?;
        }
    }
    town.available().await?;
    quiet(&town, WINDOW).await?;
    town.is_as_before(&BTreeSet::new()).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_deleted_is_made_again() -> Result<()> {
    let town = Town::shared("dri-deleted", 901_107).await?;
    let since = Timestamp::now();
    let mut touched = BTreeSet::new();
    // A Namespace and a volume claim in use go slowly: stories of their own.
    for child in children()
        .into_iter()
        .filter(|child| !matches!(child.kind, Kind::Namespace | Kind::PersistentVolumeClaim))
    {
        let at = town.address(&child);
        town.api(child.kind).delete(child.name, &DeleteParams::background()).await?;
        town.restored(&at, "deleted", true).await?;
        touched.insert(at);
    }
    town.only_touched(since, &touched)?;
    town.available().await?;
    quiet(&town, WINDOW).await?;
    town.is_as_before(&touched).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_deleted_at_once_is_made_again() -> Result<()> {
    let town = Town::shared("dri-all", 901_108).await?;
    let mut touched = BTreeSet::new();
    for child in children()
        .into_iter()
        .filter(|child| !matches!(child.kind, Kind::Namespace | Kind::PersistentVolumeClaim))
    {
        touched.insert(town.address(&child));
    }
    let deletions =
        touched.iter().map(|at| async { town.api(at.0).delete(&at.2, &DeleteParams::background()).await });
    for deleted in futures::future::join_all(deletions).await {
        deleted?;
    }
    for at in &touched {
        town.restored(at, "deleted with all the others", true).await?;
    }
    town.available().await?;
    quiet(&town, WINDOW).await?;
    // The Deployments of other services of the Comune: none; PodDisruptionBudget and ServiceAccount of `archive` stay.
    town.is_as_before(&touched).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_really_ends_and_is_made_again_with_everything() -> Result<()> {
    let town = Town::shared("dri-namespace", 901_109).await?;
    let before = Credentials::of(&town.data_centre, &town.namespace(), "sito").await?;
    let at = (Kind::Namespace, String::new(), town.namespace());
    town.data_centre.delete_namespace(&town.namespace()).await?;
    town.restored(&at, "namespace deleted", true).await?;
    let made_anew: BTreeSet<Address> = town
        .before
        .keys()
        .filter(|at| at.1 == town.namespace() || at.2 == town.namespace())
        .cloned()
        .collect();
    eventually("everything is there again", async || Ok(town.is_as_before(&made_anew).await.is_ok()))
        .await
        .or_else(|late| futures::executor::block_on(town.is_as_before(&made_anew)).and(Err(late)))?;
    town.available().await?;
    let after = Credentials::of(&town.data_centre, &town.namespace(), "sito").await?;
    assert_eq!(before.0, after.0, "the same database with the same password");
    after.login(None).await?.run("SELECT 1").await?;
    quiet(&town, WINDOW).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_claim_deleted_by_hand_is_made_again_and_its_old_volume_keeps_the_data() -> Result<()> {
    let town = Town::shared("dri-claim", 901_110).await?;
    let at = (Kind::PersistentVolumeClaim, town.namespace(), "archive--data".to_owned());
    let volume =
        |claim: Option<Value>| claim.and_then(|c| Some(c.pointer("/spec/volumeName")?.as_str()?.to_owned()));
    let before = volume(town.get(&at).await?).context("bound")?;
    town.api(at.0).delete(&at.2, &DeleteParams::default()).await?;
    // In use, so it stays until its pod is gone; and somebody is told.
    let waits = |comune: &conme_api::Comune| {
        conme_stories::condition(comune, "ServicesDeployed").is_some_and(|(status, _, message)| {
            status != "True" && message.contains("archive--data is being deleted")
        })
    };
    town.data_centre.comune_where(&town.name, "waiting for the claim to go", waits).await?;
    let pods: Api<Pod> = Api::namespaced(town.data_centre.client(), &town.namespace());
    let of_archive = ListParams::default().labels("conme.venis.it/service=archive");
    pods.delete_collection(&DeleteParams::default(), &of_archive).await?;
    town.restored(&at, "claim deleted", true).await?;
    eventually("it is bound again", async || Ok(volume(town.get(&at).await?).is_some())).await?;
    assert_ne!(volume(town.get(&at).await?).unwrap(), before, "an empty volume does not pose as the old one");
    let volumes: Api<k8s_openapi::api::core::v1::PersistentVolume> = Api::all(town.data_centre.client());
    assert_eq!(
        volumes.get(&before).await?.status.unwrap().phase.as_deref(),
        Some("Released"),
        "kept, with its data"
    );
    town.available().await?;
    quiet(&town, WINDOW).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_changed_any_more_is_made_anew() -> Result<()> {
    let town = Town::shared("dri-immutable", 901_111).await?;
    let config = (Kind::ConfigMap, town.namespace(), "web".to_owned());
    make(&town, &config, Way::Put, |o| {
        o["data"]["etc__web__web.conf"] = json!("name=mallory");
        o["immutable"] = json!(true);
    })
    .await?;
    town.restored(&config, "made immutable", true).await?;

    // Another role under the same name, with all the marks: the role of a binding is fixed.
    let binding = (Kind::RoleBinding, town.namespace(), "conme-administrators".to_owned());
    replaced_by(&town, &binding, |o| o["roleRef"]["name"] = json!("cluster-admin")).await?;
    town.restored(&binding, "another role", true).await?;

    // A Deployment of other pods: its selector is fixed.
    let deployment = (Kind::Deployment, town.namespace(), "archive".to_owned());
    replaced_by(&town, &deployment, |o| {
        o["spec"]["selector"]["matchLabels"]["example.org/more"] = json!("of-it");
        o["spec"]["template"]["metadata"]["labels"]["example.org/more"] = json!("of-it");
    })
    .await?;
    town.restored(&deployment, "another selector", true).await?;
    town.available().await?;
    quiet(&town, WINDOW).await?;
    town.is_as_before(&[config, binding, deployment].into()).await?;
    town.end().await
}

/// Deletes an object and makes a changed one in its place, before or after the operator has done so.
async fn replaced_by(town: &Town, at: &Address, change: Change) -> Result<()> {
    let api = town.data_centre.api(at.0, &at.1);
    let mut object = town.before[at].1.clone();
    change(&mut object);
    let object: DynamicObject = serde_json::from_value(object)?;
    eventually("the changed one is there", async || {
        match api.delete(&at.2, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other?),
        }
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

// ---------------------------------------------------------------------------------------------- what is left alone

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_the_tenant_is_not_touched() -> Result<()> {
    let town = Town::shared("dri-tenant", 901_112).await?;
    let tenant = town.data_centre.client_as("anna", &["dri-tenant-ced", "system:authenticated"]).await?;
    let metadata = json!({"name": "own", "labels": {"app": "own"}});
    let pod = json!({
        "metadata": {"labels": {"app": "own"}},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": "registry.example/own:1",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "resources": {"requests": {"cpu": "20m", "memory": "16Mi"}, "limits": {"cpu": "20m", "memory": "16Mi"}},
            }],
        },
    });
    let objects = [
        (Kind::ConfigMap, json!({"data": {"a": "1"}})),
        (Kind::Secret, json!({"stringData": {"a": "1"}})),
        (Kind::ServiceAccount, json!({})),
        (Kind::Service, json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "own"}}})),
        (Kind::Deployment, json!({"spec": {"selector": {"matchLabels": {"app": "own"}}, "template": pod}})),
    ];
    let since = Timestamp::now();
    for (kind, content) in &objects {
        let mut object = content.clone();
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.name());
        object["metadata"] = metadata.clone();
        let api = conme_stories::api_with(tenant.clone(), *kind, &town.namespace());
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        // The tenant may not put it on; whoever may must not hand the object over to the operator by it.
        let label = json!({"metadata": {"labels": {"conme.venis.it/comune": "dri-tenant"}}});
        let (code, message) = refusal(api.patch("own", &PatchParams::default(), &Patch::Merge(&label)).await);
        ensure!(code == 403 && message.contains("conme-marks"), "{code} {message}");
        town.api(*kind).patch("own", &PatchParams::default(), &Patch::Merge(&label)).await?;
    }
    quiet(&town, WINDOW).await?;
    assert!(town.writes(since)?.is_empty(), "{:?}", town.writes(since)?);
    for (kind, _) in &objects {
        town.data_centre
            .read(*kind, &town.namespace(), "own")
            .await?
            .with_context(|| format!("{kind:?} is gone"))?;
    }
    // The control: the operator is awake and sees this namespace.
    let at = (Kind::ConfigMap, town.namespace(), "web".to_owned());
    make(&town, &at, Way::Patch, more_metadata).await?;
    town.restored(&at, "control", false).await?;
    town.only_touched(since, &[at].into())?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_clusters_own_controllers_do_causes_no_write() -> Result<()> {
    let town = Town::shared("dri-scaled", 901_113).await?;
    let since = Timestamp::now();
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> =
        Api::namespaced(town.data_centre.client(), &town.namespace());
    let scale = |replicas: i32| {
        let deployments = deployments.clone();
        async move {
            let patch = json!({"spec": {"replicas": replicas}});
            deployments.patch_scale("web", &PatchParams::default(), &Patch::Merge(&patch)).await?;
            eventually("the pods follow", async || {
                let status = deployments.get("web").await?.status.unwrap_or_default();
                Ok(status.ready_replicas.unwrap_or(0) == replicas && status.replicas.unwrap_or(0) == replicas)
            })
            .await
        }
    };
    scale(3).await?;
    scale(2).await?;
    // As a controller of autoscalers and one of budgets do.
    let condition = json!({"type": "Example", "status": "True", "reason": "Story", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let scaler = json!({"status": {"currentReplicas": 2, "desiredReplicas": 2, "conditions": [condition]}});
    town.api(Kind::HorizontalPodAutoscaler)
        .patch_status("web", &PatchParams::default(), &Patch::Merge(&scaler))
        .await?;
    let address = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}});
    town.api(Kind::Ingress).patch_status("web", &PatchParams::default(), &Patch::Merge(&address)).await?;
    quiet(&town, WINDOW).await?;
    assert!(town.writes(since)?.is_empty(), "{:?}", town.writes(since)?);
    assert_eq!(
        deployments.get("web").await?.spec.unwrap().replicas,
        Some(2),
        "the operator leaves the number alone"
    );
    // The control: of a Deployment that nothing scales, the number is the operator's.
    let at = (Kind::Deployment, town.namespace(), "archive".to_owned());
    let patch = json!({"spec": {"replicas": 0}});
    deployments.patch_scale("archive", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    town.restored(&at, "scaled by hand", false).await?;
    town.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_are_counted() -> Result<()> {
    let town = Town::shared("dri-counted", 901_114).await?;
    let before = repairs(&town.data_centre, "LimitRange").await?;
    let at = (Kind::LimitRange, town.namespace(), "conme-limits".to_owned());
    make(&town, &at, Way::Patch, more_metadata).await?;
    town.restored(&at, "counted", false).await?;
    eventually("it is counted", async || Ok(repairs(&town.data_centre, "LimitRange").await? > before))
        .await?;
    town.end().await
}

/// The operator's own count of repaired children of a kind.
async fn repairs(data_centre: &DataCentre, kind: &str) -> Result<u64> {
    let (code, text) = http_get(&install::operator_url(data_centre.instance())?, "/metrics").await?;
    ensure!(code == 200, "{code}: {text}");
    let start = format!("conme_drift_repaired_total{{kind=\"{kind}\"}} ");
    Ok(text.lines().find_map(|line| line.strip_prefix(&start)).map_or(Ok(0), str::parse)?)
}

// ---------------------------------------------------------------------------------------------- Secrets

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_of_a_database_is_put_back_with_the_password_in_force() -> Result<()> {
    let data_centre = DataCentre::own("dri-secret", &["--recheck-seconds", "2"]).await?;
    let town = Town::found(data_centre, "dri-secret", 901_115).await?;
    let at = (Kind::Secret, town.namespace(), "db-sito".to_owned());
    let before = Credentials::of(&town.data_centre, &town.namespace(), "sito").await?;

    town.api(Kind::Secret).delete("db-sito", &DeleteParams::default()).await?;
    town.restored(&at, "deleted", true).await?;
    let after = Credentials::of(&town.data_centre, &town.namespace(), "sito").await?;
    assert_eq!(before.0, after.0, "the same password");
    after.login(None).await?.run("SELECT 1").await?;

    let mut town = town;
    town.before = town.snapshot().await?;
    let changes: [(&str, Change); 5] = [
        ("password edited", |o| o["data"]["password"] = json!(BASE64.encode("mallory"))),
        ("key added", |o| o["data"]["more"] = json!(BASE64.encode("of it"))),
        ("key removed", |o| {
            o["data"].as_object_mut().unwrap().remove("password");
        }),
        ("labels removed", |o| o["metadata"]["labels"] = json!({})),
        ("metadata added", |o| {
            o["metadata"]["labels"]["example.org/more"] = json!("of-it");
            o["metadata"]["annotations"] = json!({"example.org/more": "of it"});
            o["metadata"]["finalizers"] = json!(["example.org/hold"]);
        }),
    ];
    for (what, change) in changes {
        for way in [Way::Patch, Way::Put, Way::Apply, Way::Forged, Way::Cleared] {
            if (what, way) == ("labels removed", Way::Cleared) {
                // Nothing says any more whose it is; it is left alone, and the Comune says so.
                continue;
            }
            make(&town, &at, way, change).await.with_context(|| what)?;
            town.restored(&at, &format!("{way:?}, {what}"), false).await?;
        }
    }
    let after = Credentials::of(&town.data_centre, &town.namespace(), "sito").await?;
    assert_eq!(before.0, after.0);
    after.login(None).await?.run("SELECT 1").await?;

    // Read again and again, written only when somebody has touched it.
    quiet(&town, Duration::from_secs(6)).await?;
    let configs: Api<ConfigMap> = Api::namespaced(town.data_centre.client(), &town.namespace());
    ensure!(configs.get_opt("web").await?.is_some(), "the control: the namespace is alive");
    town.is_as_before(&BTreeSet::new()).await
}
