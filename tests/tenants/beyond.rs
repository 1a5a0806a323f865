//! What other projects for the same purpose test on themselves.

use anyhow::{Context, Result, bail};
use conme_blueprint::Kind;
use conme_stories::entity;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use http::Method;
use kube::{Client, api::ListParams};
use serde_json::{Value, json};

use crate::{
    Run,
    benchmark::may,
    report::{Check, Ours, Somebody, Tally},
    requests::{Request, list},
    world::{NOBODYS, OTHER, PRODUCTION, RBAC, TEST, World, bind, pod},
};

#[rustfmt::skip]
pub fn checks() -> Vec<(Check, Run)> {
    let check = |id, title, asks, control| Check { id, title, asks, control, answer: Ours::Same };
    vec![
        (check("CM-NS-1", "Take over or give away a namespace",
            "marks of Con.Me set, changed and removed on a municipality's namespace and on one of nobody, by every way of writing, through the subresources `status` and `finalize`, \
             with owners, finalizers and another object's uid, in two steps, by the tenant and by the steward",
            "the steward changes what is not marked, on the same namespaces and in the same ways; the SAD sets the marks"), namespaces as Run),
        (check("CM-NS-2", "Delete a namespace",
            "deletion of a municipality's namespace, confirmed by oneself or not",
            "the steward deletes a namespace of nobody"), deletions),
        (check("CM-OBJ-1", "Change what Con.Me keeps",
            "every object of Con.Me in a namespace, of every kind: replaced, patched in three ways, applied, given an owner and a finalizer, deleted alone and with all of its kind, by the tenant and by Mallory",
            "the SAD may, for every one of these requests"), managed),
        (check("CM-OBJ-2", "Extend what Con.Me keeps",
            "something of one's own beside what is declared: a port, a rule, a path, a container, a subject, a limit, a key, a pull secret, more pods",
            "the SAD may; and a tenant extends its own objects of these kinds in the same way"), extended),
        (check("CM-OBJ-3", "Pass off one's own as Con.Me's",
            "objects that carry the marks of Con.Me from the start, or get them afterwards; owners that would take data along",
            "the same objects without them"), forged),
        (check("CM-QUOTA-1", "Ten at once in two namespaces",
            "ten pods and ten claims in each of two namespaces of one municipality, all at the same time: what does not fit is refused",
            "exactly as many pods and claims are admitted as fit, and the cluster's own count is the same"), ten_at_once),
        (check("CM-HOST-1", "Take another's host names",
            "Ingresses with the host name of another municipality, a wildcard, none at all, a default backend, foreign or open TLS, annotations that name further hosts or change the controller; the same afterwards",
            "the own host name, with TLS and with annotations that are listed"), host_names),
        (check("CM-SA-1", "Become somebody else",
            "tokens of one's own, others' and the operator's accounts, impersonation, containers put into running pods, certificates, pods under accounts that are not there, nodes and bindings",
            "an account of one's own, and a pod under it"), become_somebody),
    ]
}

const NAMESPACES: &str = "/api/v1/namespaces";

fn namespace(name: &str) -> String {
    format!("{NAMESPACES}/{name}")
}

fn labels(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

fn annotations(annotations: Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

/// All ways of writing one label to a namespace.
fn every_way(name: &str, live: &Value, key: &str, value: &Value) -> Vec<Request> {
    let uri = namespace(name);
    let path = format!("/metadata/labels/{}", key.replace('/', "~1"));
    let mut changed = live.clone();
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    changed["metadata"].as_object_mut().unwrap().remove("managedFields");
    if value.is_null() {
        changed["metadata"]["labels"].as_object_mut().unwrap().remove(key);
    } else {
        changed["metadata"]["labels"][key] = value.clone();
    }
    let patch = match value {
        Value::Null => json!([{"op": "remove", "path": path}]),
        value => json!([{"op": "add", "path": path, "value": value}]),
    };
    let applied =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {key: value}}});
    let mut ways = Vec::new();
    for address in [uri.clone(), format!("{uri}/status")] {
        ways.push(Request::merge(&address, labels(json!({key: value}))));
        ways.push(Request::json_patch(&address, patch.clone()));
        ways.push(Request::update(&address, changed.clone()));
        if !value.is_null() {
            ways.push(Request::apply(&address, applied.clone()));
        }
    }
    ways.push(Request::update(&format!("{uri}/finalize"), changed));
    ways
}

fn namespaces<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let own = world.live(&namespace(PRODUCTION)).await?;
        let nobodys = world.live(&namespace(NOBODYS)).await?;
        let mut refused = Vec::new();
        for (key, value) in [
            ("conme.venis.it/comune", json!("ten-b")),
            ("conme.venis.it/comune", Value::Null),
            ("conme.venis.it/environment", json!("collaudo")),
            ("conme.venis.it/cordoned", json!("true")),
            ("conme.venis.it/protected", json!("true")),
            ("app.kubernetes.io/managed-by", Value::Null),
            ("app.kubernetes.io/managed-by", json!("somebody")),
            ("pod-security.kubernetes.io/enforce", json!("privileged")),
            ("pod-security.kubernetes.io/enforce", Value::Null),
        ] {
            refused.extend(every_way(PRODUCTION, &own, key, &value));
        }
        for (key, value) in
            [("conme.venis.it/comune", json!("ten-a")), ("app.kubernetes.io/managed-by", json!("conme"))]
        {
            refused.extend(every_way(NOBODYS, &nobodys, key, &value));
        }
        let owner = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Namespace", "name": NOBODYS, "uid": nobodys["metadata"]["uid"]},
        ]}});
        for uri in [namespace(PRODUCTION), format!("{}/status", namespace(PRODUCTION))] {
            refused.push(Request::merge(&uri, annotations(json!({"conme.venis.it/hostnames": "www.ten-b.example"}))));
            refused.push(Request::merge(&uri, annotations(json!({"conme.venis.it/adopt": "ten-b"}))));
            refused.push(Request::merge(&uri, json!({"metadata": {"finalizers": ["example.org/mine"]}})));
            refused.push(Request::merge(&uri, owner.clone()));
        }
        // Without what keeps its contents, a namespace would be gone before them.
        let mut open = own.clone();
        open["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        open["spec"]["finalizers"] = json!([]);
        refused.push(Request::update(&format!("{}/finalize", namespace(PRODUCTION)), open));
        for name in ["ten-a-nuova", "ten-nuova"] {
            let labels = json!({"conme.venis.it/comune": "ten-a", "app.kubernetes.io/managed-by": "conme"});
            refused.push(Request::create(NAMESPACES, json!({"metadata": {"name": name, "labels": labels}})));
            refused.push(Request::create(NAMESPACES, json!({"metadata": {"generateName": format!("{name}-"), "labels": labels}})));
            let applied = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
            refused.push(Request::apply(&namespace(name), applied));
        }
        for who in world.people() {
            tally.no_rights(who, &refused).await?;
        }
        tally.by_policy(&world.steward, &refused, "conme-").await?;

        // Another object's uid: nobody's to choose, so this is no policy's business.
        let mut forged = own.clone();
        forged["metadata"]["uid"] = json!("11111111-1111-4111-8111-111111111111");
        let forged = [Request::update(&namespace(PRODUCTION), forged)];
        for who in [&world.steward, &world.sad] {
            let answer = forged[0].send(&who.1).await?;
            if answer.code == 409 || answer.code == 422 {
                tally.refused += 1;
            } else {
                tally.wrong.push(format!("{} may write another uid: {} {}", who.0, answer.code, answer.message));
            }
        }

        let mut harmless = every_way(PRODUCTION, &own, "example.org/note", &json!("x"));
        harmless.extend(every_way(NOBODYS, &nobodys, "example.org/note", &json!("x")));
        harmless.push(Request::create(NAMESPACES, json!({"metadata": {"name": "ten-a-nuova"}})));
        harmless.push(Request::create(NAMESPACES, json!({"metadata": {"generateName": "ten-a-nuova-"}})));
        tally.passes(&world.steward, &harmless).await?;
        let marks = every_way(PRODUCTION, &own, "conme.venis.it/protected", &json!("true"));
        tally.passes(&world.sad, &marks).await
    }
    .boxed()
}

fn deletions<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let uid = world.live(&namespace(PRODUCTION)).await?["metadata"]["uid"].clone();
        let confirmation = format!("{PRODUCTION}/{}", uid.as_str().context("a uid")?);
        let requests = [
            Request::delete(&namespace(PRODUCTION)),
            Request::delete(&format!("{}?propagationPolicy=Orphan", namespace(PRODUCTION))),
            Request::delete(&format!("{}?gracePeriodSeconds=0", namespace(OTHER))),
            Request::merge(
                &namespace(PRODUCTION),
                annotations(json!({"conme.venis.it/confirm-delete": confirmation})),
            ),
        ];
        for who in world.people() {
            tally.no_rights(who, &requests).await?;
        }
        tally.by_policy(&world.steward, &requests, "conme-").await?;
        tally.passes(&world.steward, &[Request::delete(&namespace(NOBODYS))]).await
    }
    .boxed()
}

/// Everything of Con.Me in the production of the first municipality.
async fn objects(world: &World) -> Result<Vec<(Kind, String, Value)>> {
    let selector = ListParams::default().labels("app.kubernetes.io/managed-by=conme");
    let mut objects = Vec::new();
    for kind in Kind::ALL.into_iter().chain([Kind::Secret]).filter(|kind| *kind != Kind::Namespace) {
        let found = world.data_centre().api(kind, PRODUCTION).list(&selector).await?;
        anyhow::ensure!(!found.items.is_empty(), "there is no {kind:?} of Con.Me");
        for object in found {
            let name = object.metadata.name.clone().context("a name")?;
            let uri = format!("{}/{name}", list(PRODUCTION, &kind.api_version(), kind.plural()));
            let mut live = world.live(&uri).await?;
            let metadata = live["metadata"].as_object_mut().context("metadata")?;
            // What else writes to it meanwhile is not what is asked here.
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
            objects.push((kind, uri, live));
        }
    }
    Ok(objects)
}

/// What guards a namespace tenants have no rights on; on the rest, they have.
fn is_guard(kind: Kind) -> bool {
    matches!(kind, Kind::ResourceQuota | Kind::LimitRange | Kind::NetworkPolicy | Kind::RoleBinding)
}

/// Refused to the tenants, by their rights or by the policy, and to Mallory by the policy.
async fn nobodys_to_change(world: &World, tally: &mut Tally, kind: Kind, requests: &[Request]) -> Result<()> {
    for who in world.people() {
        if is_guard(kind) {
            tally.no_rights(who, requests).await?;
        } else {
            // Where a mark is touched, or the object is an Ingress, two policies say no, and either may be heard.
            tally.by_policy(who, requests, "conme-").await?;
        }
    }
    tally.by_policy(&world.mallory, requests, "conme-").await
}

fn managed<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let mut kinds = Vec::new();
        for (kind, uri, live) in objects(world).await? {
            let name = &live["metadata"]["name"];
            let head = json!({"apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": name, "labels": {"example.org/note": "x"}}});
            let mut changed = live.clone();
            changed["metadata"]["annotations"]["example.org/note"] = json!("x");
            let mut stripped = live.clone();
            stripped["metadata"]["labels"].as_object_mut().context("labels")?.remove("app.kubernetes.io/managed-by");
            let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "ten-own", "uid": "11111111-1111-4111-8111-111111111111"}]);
            let mut requests = vec![
                Request::update(&uri, changed),
                Request::update(&uri, stripped),
                Request::merge(&uri, labels(json!({"app.kubernetes.io/managed-by": null}))),
                Request::merge(&uri, annotations(json!({"example.org/note": "x"}))),
                Request::json_patch(&uri, json!([{"op": "replace", "path": "/metadata/labels/conme.venis.it~1comune", "value": "ten-b"}])),
                Request::apply(&uri, head),
                Request::merge(&uri, json!({"metadata": {"ownerReferences": owner}})),
                Request::merge(&uri, json!({"metadata": {"finalizers": ["example.org/mine"]}})),
                Request::delete(&uri),
            ];
            // Replaced only with the version that it has at that moment, which its controller changes.
            if kind == Kind::PodDisruptionBudget {
                requests.retain(|request| request.method != Method::PUT);
            }
            if !kinds.contains(&kind) {
                kinds.push(kind);
                let all = list(PRODUCTION, &kind.api_version(), kind.plural());
                requests.push(Request::delete(&format!("{all}?labelSelector=app.kubernetes.io/managed-by%3Dconme")));
            }
            nobodys_to_change(world, tally, kind, &requests).await?;
            tally.passes(&world.sad, &requests).await?;
        }
        // Subresources: the tenant has rights on one of them, Mallory on all.
        let deployment = format!("{}/sito", list(PRODUCTION, "apps/v1", "deployments"));
        let scale = [Request::merge(&format!("{deployment}/scale"), json!({"spec": {"replicas": 0}}))];
        nobodys_to_change(world, tally, Kind::Deployment, &scale).await?;
        tally.passes(&world.sad, &scale).await?;
        let marked = labels(json!({"example.org/note": "x"}));
        let status = [
            Request::merge(&format!("{deployment}/status"), marked.clone()),
            Request::merge(&format!("{}/sito/status", list(PRODUCTION, "v1", "services")), marked.clone()),
            Request::merge(&format!("{}/sito/status", list(PRODUCTION, "networking.k8s.io/v1", "ingresses")), marked.clone()),
            Request::merge(&format!("{}/conme-quota/status", list(PRODUCTION, "v1", "resourcequotas")), marked),
        ];
        for who in world.people() {
            tally.no_rights(who, &status).await?;
        }
        tally.by_policy(&world.mallory, &status, "conme-").await?;
        tally.passes(&world.sad, &status).await
    }
    .boxed()
}

/// What somebody could add beside what is declared, by kind.
fn additions(kind: Kind, name: &Value) -> Vec<Request> {
    let head = |content: Value| {
        let mut object =
            json!({"apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": name}});
        for (key, value) in content.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        object
    };
    let uri = format!(
        "{}/{}",
        list(PRODUCTION, &kind.api_version(), kind.plural()),
        name.as_str().unwrap_or_default()
    );
    match kind {
        Kind::ResourceQuota => vec![
            Request::apply(&uri, head(json!({"spec": {"hard": {"count/jobs.batch": "500"}}}))),
            Request::merge(&uri, json!({"spec": {"hard": {"pods": "500"}}})),
        ],
        Kind::LimitRange => vec![Request::json_patch(
            &uri,
            json!([{"op": "add", "path": "/spec/limits/-", "value": {"type": "Pod", "max": {"cpu": "64"}}}]),
        )],
        Kind::NetworkPolicy => vec![
            Request::merge(&uri, json!({"spec": {"egress": [{}]}})),
            Request::apply(&uri, head(json!({"spec": {"ingress": [{}]}}))),
        ],
        Kind::RoleBinding => vec![Request::json_patch(
            &uri,
            json!([{"op": "add", "path": "/subjects/-", "value": {"kind": "User", "name": "friend", "apiGroup": "rbac.authorization.k8s.io"}}]),
        )],
        Kind::ServiceAccount => vec![
            Request::merge(&uri, json!({"imagePullSecrets": [{"name": "own"}]})),
            Request::merge(&uri, json!({"automountServiceAccountToken": true})),
        ],
        Kind::ConfigMap => vec![
            Request::merge(&uri, json!({"data": {"more": "x"}})),
            Request::merge(&uri, json!({"immutable": true})),
        ],
        Kind::Secret => vec![Request::merge(&uri, json!({"data": {"more": "eA=="}}))],
        Kind::Service => vec![
            Request::apply(
                &uri,
                head(json!({"spec": {"ports": [{"name": "more", "port": 9999, "protocol": "TCP"}]}})),
            ),
            Request::merge(&uri, json!({"spec": {"publishNotReadyAddresses": true}})),
        ],
        Kind::Deployment => vec![
            Request::apply(
                &uri,
                head(
                    json!({"spec": {"template": {"spec": {"containers": [{"name": "more", "image": "registry.example/more:1"}]}}}}),
                ),
            ),
            Request::merge(&uri, json!({"spec": {"paused": true}})),
        ],
        Kind::HorizontalPodAutoscaler => vec![Request::merge(&uri, json!({"spec": {"maxReplicas": 9}}))],
        Kind::PodDisruptionBudget => {
            vec![Request::merge(&uri, json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}}))]
        }
        Kind::Ingress => vec![
            Request::json_patch(
                &uri,
                json!([{"op": "add", "path": "/spec/rules/-", "value": ingress_rule("www.ten-a.example")}]),
            ),
            Request::merge(&uri, annotations(json!({"nginx.ingress.kubernetes.io/proxy-body-size": "1g"}))),
        ],
        // A larger claim is refused where its class cannot grow, before a policy is asked.
        Kind::PersistentVolumeClaim | Kind::Namespace => Vec::new(),
    }
}

fn extended<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        for (kind, _, live) in objects(world).await? {
            let requests = additions(kind, &live["metadata"]["name"]);
            nobodys_to_change(world, tally, kind, &requests).await?;
            tally.passes(&world.sad, &requests).await?;
        }
        let own = format!("{}/ten-own", list(PRODUCTION, "v1", "configmaps"));
        let service = format!("{}/ten-service", list(PRODUCTION, "v1", "services"));
        let requests = [
            Request::merge(&own, json!({"data": {"more": "x"}})),
            Request::merge(&own, labels(json!({"example.org/note": "x"}))),
            Request::merge(&service, json!({"spec": {"publishNotReadyAddresses": true}})),
            Request::delete(&own),
        ];
        for who in world.people() {
            tally.passes(who, &requests).await?;
        }
        Ok(())
    }
    .boxed()
}

fn forged<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let maps = list(PRODUCTION, "v1", "configmaps");
        let own = format!("{maps}/ten-own");
        let map = |metadata: Value| {
            let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}});
            if object["metadata"]["name"].is_null() {
                object["metadata"]["name"] = json!("tenants-map");
            }
            object
        };
        let comune = world.live("/apis/conme.venis.it/v1alpha1/comuni/ten-a").await?["metadata"]["uid"].clone();
        let owned = json!([{"apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "name": "ten-a", "uid": comune}]);
        let managed = json!({"app.kubernetes.io/managed-by": "conme"});
        let mut template = pod("tenants-pod", "10m");
        template["metadata"]["labels"]["conme.venis.it/service"] = json!("sito");
        let refused = [
            Request::create(&maps, map(json!({"labels": managed}))),
            Request::create(&maps, map(json!({"labels": {"conme.venis.it/comune": "ten-a"}}))),
            Request::create(&maps, map(json!({"annotations": {"conme.venis.it/applied": "x"}}))),
            Request::create(&maps, map(json!({"ownerReferences": owned}))),
            Request::merge(&own, labels(managed.clone())),
            Request::json_patch(&own, json!([{"op": "add", "path": "/metadata/labels", "value": managed}])),
            Request::apply(&own, map(json!({"name": "ten-own", "labels": managed}))),
            Request::merge(&own, json!({"metadata": {"ownerReferences": owned}})),
            Request::create(&list(PRODUCTION, "v1", "pods"), template),
        ];
        let mut passes = vec![
            Request::create(&maps, map(json!({"labels": {"app.kubernetes.io/managed-by": "helm"}}))),
            Request::merge(&own, labels(json!({"app.kubernetes.io/managed-by": "helm"}))),
            Request::apply(&own, map(json!({"name": "ten-own", "labels": {"example.org/note": "x"}}))),
        ];
        passes.push(Request::create(&list(PRODUCTION, "v1", "pods"), pod("tenants-pod", "10m")));
        for who in [&world.administrator, &world.robot, &world.mallory] {
            tally.by_policy(who, &refused, "conme-").await?;
            tally.passes(who, &passes).await?;
        }
        Ok(())
    }
    .boxed()
}

/// Whether an object is admitted; asks again where several were counted on the same figures, as the API server wants.
async fn admitted(client: &Client, request: &Request) -> Result<bool> {
    for _ in 0..100 {
        let answer = request.send(client).await?;
        match answer.code {
            201 => return Ok(true),
            403 if answer.message.contains("exceeded quota") => return Ok(false),
            409 | 500 if answer.message.contains("resourcequotas") => {}
            _ => bail!("{}: {} {}", request.uri, answer.code, answer.message),
        }
    }
    bail!("never an answer: {}", request.uri)
}

fn ten_at_once<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let data_centre = world.data_centre();
        let spec = json!({
            "entity": entity("ten-c", 901_502),
            "quota": {"cpu": 2, "memory": "4Gi", "storage": "20Gi", "pods": 40, "services": 10},
            "environments": [{"name": "produzione", "share": 50}, {"name": "collaudo", "share": 50}],
            "administrators": [{"kind": "Group", "name": "ten-c-ced"}],
        });
        data_centre.apply("ten-c", spec).await?;
        data_centre.ready("ten-c").await?;
        let client = data_centre.client_as("carla", &["ten-c-ced", "system:authenticated"]).await?;
        let namespaces = ["ten-c-produzione", "ten-c-collaudo"];
        let requests: Vec<Request> = (0..10)
            .flat_map(|number| namespaces.map(|namespace| (number, namespace)))
            .flat_map(|(number, namespace)| {
                let name = format!("n-{number}");
                let claim = json!({
                    "metadata": {"name": name},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2560Mi"}}},
                });
                [
                    Request::really_create(&list(namespace, "v1", "pods"), pod(&name, "250m")),
                    Request::really_create(&list(namespace, "v1", "persistentvolumeclaims"), claim),
                ]
            })
            .collect();
        let answers = join_all(requests.iter().map(|request| admitted(&client, request))).await;
        let answers = answers.into_iter().collect::<Result<Vec<bool>>>()?;
        tally.passed += answers.iter().filter(|admitted| **admitted).count();
        tally.refused += answers.iter().filter(|admitted| !**admitted).count();
        for namespace in namespaces {
            for (plural, fitting) in [("pods", 4), ("persistentvolumeclaims", 4)] {
                let there = world.live(&list(namespace, "v1", plural)).await?;
                let count = there["items"].as_array().map_or(0, Vec::len);
                tally.holds(&format!("{fitting} {plural} fit into {namespace}, and {count} are there"), count == fitting);
            }
            // It is counted when something is admitted, so at no time too late.
            let quota = world.live(&format!("{}/conme-quota", list(namespace, "v1", "resourcequotas"))).await?;
            for (resource, used) in [("requests.cpu", "1"), ("requests.storage", "10Gi")] {
                let counted = &quota["status"]["used"][resource];
                tally.holds(&format!("{used} of {resource} are used in {namespace}: {counted}"), counted == used);
            }
        }
        data_centre.tidy_up("ten-c").await
    }
    .boxed()
}

fn ingress_rule(host: &str) -> Value {
    let backend = json!({"service": {"name": "ten-service", "port": {"number": 80}}});
    let mut rule = json!({"http": {"paths": [{"path": "/more", "pathType": "Prefix", "backend": backend}]}});
    if !host.is_empty() {
        rule["host"] = json!(host);
    }
    rule
}

fn host_names<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        const OWN: &str = "www.ten-a.example";
        const THEIRS: &str = "www.ten-b.example";
        let ingresses = list(PRODUCTION, "networking.k8s.io/v1", "ingresses");
        let ingress = |name: &str, host: &str| {
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
                "spec": {"ingressClassName": "nginx", "rules": [ingress_rule(host)]},
            })
        };
        let made = Request::really_create(&ingresses, ingress("ten-ingress", OWN))
            .send(&world.administrator.1)
            .await?;
        tally.holds(&format!("an Ingress with the own host name is made ({})", made.message), made.passes());
        let with = |key: &str, value: Value| {
            let mut object = ingress("tenants-ingress", OWN);
            match key {
                "annotations" => object["metadata"]["annotations"] = value,
                key => object["spec"][key] = value,
            }
            Request::create(&ingresses, object)
        };
        let created = |host: &str| Request::create(&ingresses, ingress("tenants-ingress", host));
        let mut refused = vec![
            created(THEIRS),
            created("*.ten-b.example"),
            created("*.example"),
            created(""),
            created("ten-a.example"),
            created("sub.www.ten-a.example"),
            with("rules", json!([ingress_rule(OWN), ingress_rule(THEIRS)])),
            with("rules", json!([ingress_rule(OWN), ingress_rule("")])),
            with("defaultBackend", json!({"service": {"name": "ten-service", "port": {"number": 80}}})),
            with("tls", json!([{"hosts": [THEIRS], "secretName": "own"}])),
            with("tls", json!([{"hosts": [OWN, THEIRS], "secretName": "own"}])),
            with("tls", json!([{"secretName": "own"}])),
        ];
        for (key, value) in [
            ("nginx.ingress.kubernetes.io/server-alias", THEIRS),
            ("nginx.ingress.kubernetes.io/server-snippet", "return 200;"),
            ("nginx.ingress.kubernetes.io/configuration-snippet", "return 200;"),
            ("nginx.ingress.kubernetes.io/permanent-redirect", "https://www.ten-b.example"),
            ("nginx.ingress.kubernetes.io/auth-url", "https://www.ten-b.example"),
            ("nginx.ingress.kubernetes.io/from-to-www-redirect", "true"),
            ("nginx.ingress.kubernetes.io/canary", "true"),
            ("external-dns.alpha.kubernetes.io/hostname", THEIRS),
            ("traefik.ingress.kubernetes.io/router.tls.domains.0.main", THEIRS),
            ("haproxy.org/backend-config-snippet", "x"),
            ("kubernetes.io/ingress.class", "nginx"),
        ] {
            refused.push(with("annotations", json!({key: value})));
        }
        // Admitted with its own name, and changed afterwards.
        let made = format!("{ingresses}/ten-ingress");
        let rules = json!([ingress_rule(THEIRS)]);
        refused.extend([
            Request::merge(&made, json!({"spec": {"rules": rules}})),
            Request::json_patch(
                &made,
                json!([{"op": "replace", "path": "/spec/rules/0/host", "value": THEIRS}]),
            ),
            Request::json_patch(
                &made,
                json!([{"op": "add", "path": "/spec/rules/-", "value": ingress_rule(THEIRS)}]),
            ),
            Request::json_patch(&made, json!([{"op": "remove", "path": "/spec/rules/0/host"}])),
            Request::update(&made, ingress("ten-ingress", THEIRS)),
            Request::apply(&made, ingress("ten-ingress", "*.example")),
            Request::merge(&made, annotations(json!({"nginx.ingress.kubernetes.io/server-alias": THEIRS}))),
        ]);
        let passes = [
            created(OWN),
            with("tls", json!([{"hosts": [OWN], "secretName": "own"}])),
            with("annotations", json!({"nginx.ingress.kubernetes.io/proxy-body-size": "10m"})),
            Request::merge(&made, labels(json!({"example.org/note": "x"}))),
            Request::json_patch(
                &made,
                json!([{"op": "replace", "path": "/spec/rules/0/http/paths/0/path", "value": "/other"}]),
            ),
        ];
        // A name is of one environment: that of the service which has it.
        let elsewhere = list(TEST, "networking.k8s.io/v1", "ingresses");
        refused.push(Request::create(&elsewhere, ingress("tenants-ingress", OWN)));
        for who in [&world.administrator, &world.robot, &world.mallory] {
            // Mallory has its rights in one namespace only.
            let some = if who.0 == world.mallory.0 { &refused[..refused.len() - 1] } else { &refused[..] };
            tally.by_policy(who, some, "conme-hostnames").await?;
            tally.passes(who, &passes).await?;
        }
        tally.passes(&world.sad, &[created(THEIRS)]).await
    }
    .boxed()
}

fn become_somebody<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let tokens: Vec<Request> = [
            (TEST, "pipeline"),
            (PRODUCTION, "mallory"),
            (PRODUCTION, "default"),
            (OTHER, "sito"),
            ("conme-system", "conme-operator"),
            ("kube-system", "namespace-controller"),
        ]
        .into_iter()
        .map(|(namespace, account)| Request::create(&format!("{}/{account}/token", list(namespace, "v1", "serviceaccounts")), token.clone()))
        .collect();
        let pods = list(PRODUCTION, "v1", "pods");
        let service_pods = world.live(&format!("{pods}?labelSelector=conme.venis.it/service%3Dsito&limit=1")).await?;
        let running = service_pods["items"][0]["metadata"]["name"].as_str().context("a pod of the service")?.to_owned();
        let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "registry.example/debug:1"}]}});
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "tenants-csr"},
            "spec": {"request": "eA==", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]},
        });
        let certificates = list("", "certificates.k8s.io/v1", "certificatesigningrequests");
        let host = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": running}, "target": {"apiVersion": "v1", "kind": "Node", "name": "host-01"}});
        let mut refused = tokens;
        refused.extend([
            Request::merge(&format!("{pods}/{running}/ephemeralcontainers"), debug),
            Request::merge(&format!("{pods}/{running}/status"), json!({"status": {"podIP": "10.0.0.1"}})),
            Request::merge(&format!("{pods}/{running}/resize"), json!({"spec": {}})),
            Request::create(&format!("{pods}/{running}/binding"), host),
            Request::get(&format!("{pods}/{running}/proxy")),
            Request::create(&certificates, request),
            Request::merge(&format!("{certificates}/tenants-csr/approval"), json!({})),
            Request::create(&list(PRODUCTION, RBAC, "rolebindings"), bind("own", "conme-operator-tenant", json!({"kind": "ServiceAccount", "name": "pipeline", "namespace": TEST}))),
            Request::merge(&format!("{}/host-01", list("", "v1", "nodes")), labels(json!({"mine": "yes"}))),
            Request::create(&list("conme-system", "v1", "pods"), pod("tenants-pod", "10m")),
            Request::create(&list("kube-system", "v1", "pods"), pod("tenants-pod", "10m")),
        ]);
        for who in world.people() {
            tally.no_rights(who, &refused).await?;
        }
        // Not what reaches through to a pod: a simulated one does not answer.
        let asked: Vec<Request> = refused.iter().filter(|request| !request.uri.ends_with("/proxy")).cloned().collect();
        tally.has_rights(&world.sad, &asked).await?;

        // With a token, so that the header is the tenant's own and not that of the story.
        let maps = list(TEST, "v1", "configmaps");
        for name in ["kubernetes-admin",
            "ten-a-viewer",
            "ten-b-viewer", "system:serviceaccount:conme-system:conme-operator", "system:kube-controller-manager"] {
            for who in [&world.robot, &world.mallory] {
                tally.no_rights(who, &[Request::get(&maps).impersonating(name)]).await?;
            }
        }
        tally.passes(&world.sad, &[Request::get(&maps).impersonating("ten-a-viewer")]).await?;
        for verb in ["impersonate"] {
            for resource in ["users", "groups", "serviceaccounts"] {
                for who in world.people() {
                    if may(&who.1, TEST, verb, "", resource).await? {
                        tally.wrong.push(format!("{} may {verb} {resource}", who.0));
                    } else {
                        tally.refused += 1;
                    }
                }
            }
        }

        let under = |account: &str| {
            let mut pod = pod("tenants-pod", "10m");
            pod["spec"]["serviceAccountName"] = json!(account);
            Request::create(&list(TEST, "v1", "pods"), pod)
        };
        let account = json!({"metadata": {"name": "tenants-account"}});
        let own = [Request::create(&list(TEST, "v1", "serviceaccounts"), account), under("pipeline")];
        for who in world.people() {
            tally.refused(who, &[under("conme-operator"), under("namespace-controller")], "not found").await?;
            tally.passes(who, &own).await?;
        }
        // What an account that the tenant makes may do is nothing.
        let fresh = Somebody::from(("an account nobody has named", world.data_centre().client_as("system:serviceaccount:ten-a-collaudo:own", &["system:serviceaccounts", "system:serviceaccounts:ten-a-collaudo", "system:authenticated"]).await?));
        let own_things = [
            Request::get(&list(TEST, "v1", "secrets")),
            Request::get(&list(TEST, "v1", "pods")),
            Request::get(&list(TEST, "v1", "configmaps")),
            Request::create(&list(TEST, "v1", "pods"), pod("tenants-pod", "10m")),
        ];
        tally.no_rights(&fresh, &own_things).await?;
        tally.passes(&world.robot, &own_things).await
    }
    .boxed()
}
