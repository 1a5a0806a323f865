//! What the admission policies refuse, on a data centre whose operator is stopped, so that nothing is put back by it.
//!
//! Every request that has to be refused stands beside those that have to pass. Then each policy is taken away in turn,
//! and what it refused has to pass: so it is this policy that refuses, and neither a missing right nor another policy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use conme_stories::{DataCentre, entity, eventually};
use conme_testbed::install::OPERATOR;
use futures::future::join_all;
use http::{HeaderMap, Method, Request};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams, client::Body};
use serde_json::{Value, json};

const NS: &str = "pol-a-produzione";
const CORDONED: &str = "pol-b-collaudo";
const PROTECTED: &str = "pol-b-produzione";
const SYSTEM: &str = "pol-a-sistema";

// ---------------------------------------------------------------------------------------------- requests

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// An administrator of `pol-a`.
    Tenant,
    /// An administrator of `pol-b`, whose namespace `collaudo` is cordoned.
    Cordoned,
    /// A service account in a namespace of `pol-a` with the rights of its administrators.
    Account,
    /// Service accounts of `pol-a` and `pol-b` that somebody has made `cluster-admin` of their namespaces.
    Mallory,
    MalloryB,
    /// Somebody who was given rights on namespaces and definitions of the whole cluster.
    Nora,
    /// The operator, with more rights than the chart gives it.
    Operator,
    /// A person of the SAD, with the chart's role and no other.
    Sad,
    /// A service account with that role.
    SadAccount,
    /// What the cluster deletes with: namespaces with all that is in them, and what has lost its owner.
    Namespaces,
    Garbage,
    /// The administrator of the cluster.
    Admin,
}

/// What is asked. Whatever would change something is a dry run.
#[derive(Clone, Debug)]
enum Act {
    Create(String, Value),
    Merge(String, Value),
    Apply(String, Value),
    /// The live object with a change, as `kubectl replace`.
    Put(String, fn(&mut Value)),
    Delete(String),
    /// All that the address lists.
    DeleteAll(String),
    Get(String),
    /// Nothing stands behind a simulated pod: only whether it is refused can be told.
    Connect(String),
}

struct Answer {
    code: u16,
    message: String,
    headers: HeaderMap,
}

impl Answer {
    /// Name of the policy that has refused.
    fn policy(&self) -> Option<&str> {
        self.message.split("ValidatingAdmissionPolicy '").nth(1)?.split('\'').next()
    }

    fn passes(&self, act: &Act) -> bool {
        match act {
            // The simulated host does not answer; the API server's own no would be a 403.
            Act::Connect(_) => self.code != 403,
            _ => (200..300).contains(&self.code),
        }
    }
}

async fn send(
    client: &Client,
    method: Method,
    uri: &str,
    content_type: &str,
    body: &Value,
) -> Result<Answer> {
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", content_type)
        .body(Body::from(bytes))?;
    let (head, body) = client.send(request).await?.into_parts();
    let text = String::from_utf8_lossy(&body.collect_bytes().await?).into_owned();
    let message = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|status| Some(status["message"].as_str()?.to_owned()))
        .unwrap_or(text);
    Ok(Answer { code: head.status.as_u16(), message, headers: head.headers })
}

fn dry(uri: &str) -> String {
    format!("{uri}{}dryRun=All", if uri.contains('?') { '&' } else { '?' })
}

fn at(namespace: &str, plural: &str, rest: &str) -> String {
    let root = match plural.split('/').next().unwrap_or_default() {
        "deployments" | "replicasets" | "statefulsets" | "daemonsets" => "apis/apps/v1",
        "jobs" | "cronjobs" => "apis/batch/v1",
        "ingresses" | "networkpolicies" => "apis/networking.k8s.io/v1",
        "roles" | "rolebindings" => "apis/rbac.authorization.k8s.io/v1",
        "endpointslices" => "apis/discovery.k8s.io/v1",
        "httproutes" => "apis/gateway.networking.k8s.io/v1",
        "clusters" => "apis/postgresql.cnpg.io/v1",
        "migrations" => "apis/conme.venis.it/v1alpha1",
        _ => "api/v1",
    };
    let rest = if rest.is_empty() { String::new() } else { format!("/{rest}") };
    format!("/{root}/namespaces/{namespace}/{plural}{rest}")
}

fn namespace(name: &str) -> String {
    format!("/api/v1/namespaces/{name}")
}

const NAMESPACES: &str = "/api/v1/namespaces";
const CONME: &str = "/apis/conme.venis.it/v1alpha1";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

struct World {
    data_centre: DataCentre,
    clients: Vec<(Who, Client)>,
}

impl World {
    fn client(&self, who: Who) -> Client {
        self.clients.iter().find(|(known, _)| *known == who).expect("everybody is known").1.clone()
    }

    async fn ask(&self, who: Who, act: &Act) -> Result<Answer> {
        let client = self.client(who);
        let json = "application/json";
        match act {
            Act::Create(list, body) => send(&client, Method::POST, &dry(list), json, body).await,
            Act::Merge(uri, patch) => {
                send(&client, Method::PATCH, &dry(uri), "application/merge-patch+json", patch).await
            }
            Act::Apply(uri, body) => {
                let uri = dry(&format!("{uri}?fieldManager=story&force=true"));
                send(&client, Method::PATCH, &uri, "application/apply-patch+yaml", body).await
            }
            Act::Put(uri, change) => {
                // Of this one there is nothing to read.
                let live = self.get(uri.trim_end_matches("/finalize")).await?;
                // The cluster's own controllers write to it as well: what people do is to try again.
                for _ in 0..20 {
                    let mut object = live.clone();
                    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
                    change(&mut object);
                    let answer = send(&client, Method::PUT, &dry(uri), json, &object).await?;
                    if answer.code != 409 {
                        return Ok(answer);
                    }
                }
                bail!("{uri} never holds still")
            }
            Act::Delete(uri) => send(&client, Method::DELETE, &dry(uri), json, &Value::Null).await,
            Act::DeleteAll(uri) => send(&client, Method::DELETE, &dry(uri), json, &Value::Null).await,
            Act::Get(uri) => send(&client, Method::GET, uri, json, &Value::Null).await,
            Act::Connect(uri) => send(&client, Method::POST, uri, json, &Value::Null).await,
        }
    }

    /// As the administrator of the cluster, and really.
    async fn write(&self, method: Method, uri: &str, body: Value) -> Result<Value> {
        let content_type =
            if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", content_type)
            .body(serde_json::to_vec(&body)?)?;
        self.data_centre.client().request(request).await.with_context(|| uri.to_owned())
    }

    async fn get(&self, uri: &str) -> Result<Value> {
        let request = Request::get(uri).body(Vec::new())?;
        self.data_centre.client().request(request).await.with_context(|| uri.to_owned())
    }

    async fn label(&self, uri: &str, labels: Value) -> Result<Value> {
        self.write(Method::PATCH, uri, json!({"metadata": {"labels": labels}})).await
    }

    async fn annotate(&self, uri: &str, annotations: Value) -> Result<Value> {
        self.write(Method::PATCH, uri, json!({"metadata": {"annotations": annotations}})).await
    }

    /// Sets the confirmation without which an object may not be deleted.
    async fn confirm_deletion(&self, uri: &str) -> Result<()> {
        let live = self.get(uri).await?;
        let text = |key: &str| live["metadata"][key].as_str().unwrap_or_default();
        let confirmation = format!("{}/{}", text("name"), text("uid"));
        self.annotate(uri, json!({"conme.venis.it/confirm-delete": confirmation})).await?;
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------- the tables

/// Requests that a policy refuses, and their twins that pass.
struct Rule {
    policy: &'static str,
    refused: Vec<Refused>,
    allowed: Vec<(Who, Act)>,
}

struct Refused {
    who: Who,
    act: Act,
    /// Words of the refusal.
    words: &'static str,
    /// Something else refuses it as well.
    twice: bool,
}

impl Rule {
    fn new(policy: &'static str) -> Self {
        Self { policy, refused: Vec::new(), allowed: Vec::new() }
    }

    fn refuses(mut self, who: Who, act: Act, words: &'static str) -> Self {
        self.refused.push(Refused { who, act, words, twice: false });
        self
    }

    fn refuses_beside_others(mut self, who: Who, act: Act, words: &'static str) -> Self {
        self.refused.push(Refused { who, act, words, twice: true });
        self
    }

    fn allows(mut self, who: Who, act: Act) -> Self {
        self.allowed.push((who, act));
        self
    }
}

fn labels(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

fn annotations(annotations: Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

fn object(kind: &str, name: &str, content: Value) -> Value {
    let api_version = match kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => "apps/v1",
        "Job" | "CronJob" => "batch/v1",
        "Ingress" | "NetworkPolicy" => "networking.k8s.io/v1",
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => "rbac.authorization.k8s.io/v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "HTTPRoute" => "gateway.networking.k8s.io/v1",
        "Cluster" => "postgresql.cnpg.io/v1",
        "Eviction" => "policy/v1",
        "Comune" | "DataCenter" | "Migration" => "conme.venis.it/v1alpha1",
        _ => "v1",
    };
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    for (key, value) in content.as_object().into_iter().flatten() {
        match key.as_str() {
            "labels" | "annotations" | "ownerReferences" | "finalizers" => {
                object["metadata"][key] = value.clone();
            }
            _ => object[key] = value.clone(),
        }
    }
    object
}

fn marked_namespace(name: &str, comune: &str, level: &str) -> Value {
    let labels = json!({
        "app.kubernetes.io/managed-by": "conme", "conme.venis.it/comune": comune,
        "pod-security.kubernetes.io/enforce": level,
    });
    object("Namespace", name, json!({"labels": labels}))
}

fn owned_by_comune() -> Value {
    json!([{"apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "name": "pol-a", "uid": "11111111-1111-4111-8111-111111111111"}])
}

fn rule_2_marks_of_namespaces() -> Rule {
    let own = || namespace(NS);
    let words = "only Con.Me and the SAD may add, change or remove conme.venis.it/";
    let who = Who::Nora;
    let mut rule = Rule::new("conme-namespace-marks")
            .refuses(who, Act::Merge(own(), labels(json!({"conme.venis.it/comune": "pol-b"}))), words)
            .refuses(who, Act::Merge(own(), labels(json!({"conme.venis.it/comune": null}))), words)
            .refuses(who, Act::Merge(own(), labels(json!({"conme.venis.it/protected": "true"}))), words)
            .refuses(who, Act::Merge(namespace(CORDONED), labels(json!({"conme.venis.it/cordoned": null}))), words)
            .refuses(who, Act::Merge(own(), annotations(json!({"conme.venis.it/hostnames": "www.pol-b.example"}))), words)
            .refuses(who, Act::Merge(format!("{}/status", own()), labels(json!({"conme.venis.it/comune": null}))), words)
            .refuses(who, Act::Put(own(), |o| o["metadata"]["labels"] = json!({})), "may add, change or remove")
            .refuses(
                who,
                Act::Merge(own(), labels(json!({"app.kubernetes.io/managed-by": null}))),
                "app.kubernetes.io/managed-by",
            )
            .refuses(
                who,
                Act::Merge(namespace("pol-foreign"), labels(json!({"app.kubernetes.io/managed-by": "conme"}))),
                "app.kubernetes.io/managed-by",
            )
            .refuses(
                who,
                Act::Merge(own(), labels(json!({"pod-security.kubernetes.io/enforce": "privileged"}))),
                "pod-security.kubernetes.io/enforce",
            )
            .refuses(who, Act::Merge(own(), json!({"metadata": {"finalizers": ["example.org/hold"]}})), "finalizers")
            // Without that of the cluster, a namespace would be gone before what is in it.
            .refuses(
                who,
                Act::Put(format!("{}/finalize", own()), |o| o["spec"]["finalizers"] = json!([])),
                "finalizers",
            )
            .refuses(
                who,
                Act::Create(NAMESPACES.into(), marked_namespace("pol-c-produzione", "pol-c", "restricted")),
                "may add, change or remove",
            )
            .refuses(
                who,
                Act::Apply(
                    namespace("pol-foreign"),
                    object("Namespace", "pol-foreign", json!({"labels": {"conme.venis.it/comune": "pol-a"}})),
                ),
                words,
            )
            .allows(who, Act::Merge(own(), labels(json!({"example.org/more": "of-it"}))))
            .allows(who, Act::Merge(own(), annotations(json!({"example.org/more": "of it"}))))
            .allows(who, Act::Merge(format!("{}/status", own()), labels(json!({"example.org/more": "of-it"}))))
            .allows(who, Act::Create(NAMESPACES.into(), object("Namespace", "nora", json!({}))))
            .allows(
                who,
                Act::Merge(
                    namespace("pol-foreign"),
                    json!({"metadata": {
                        "labels": {"pod-security.kubernetes.io/enforce": "privileged", "app.kubernetes.io/managed-by": "Helm"},
                        "finalizers": ["example.org/hold"],
                    }}),
                ),
            );
    let owned = json!({"metadata": {"ownerReferences": owned_by_comune()}});
    for who in [Who::Admin, Who::Sad, Who::Operator] {
        rule = rule.refuses(who, Act::Merge(own(), owned.clone()), "ownerReferences").allows(
            who,
            Act::Merge(own(), annotations(json!({"conme.venis.it/hostnames": "www.pol-a.example"}))),
        );
    }
    rule.allows(Who::Nora, Act::Merge(namespace("pol-foreign"), owned))
        .allows(Who::Sad, Act::Merge(own(), labels(json!({"conme.venis.it/cordoned": "true"}))))
        .allows(Who::Operator, Act::Merge(own(), labels(json!({"conme.venis.it/orphaned": "true"}))))
        .allows(Who::Operator, Act::Merge(own(), labels(json!({"conme.venis.it/protected": "true"}))))
}

fn rule_2_marks_in_namespaces() -> Rule {
    let list = || at(NS, "configmaps", "");
    let own = || at(NS, "configmaps", "own");
    let config = |content: Value| object("ConfigMap", "new", content);
    let mut rule = Rule::new("conme-marks");
    for who in [Who::Tenant, Who::Account, Who::Mallory] {
        rule = rule
            .refuses(
                who,
                Act::Create(list(), config(json!({"labels": {"conme.venis.it/service": "sito"}}))),
                "conme.venis.it/service",
            )
            .refuses(
                who,
                Act::Merge(own(), annotations(json!({"conme.venis.it/applied": "0123"}))),
                "conme.venis.it/applied",
            )
            .refuses(
                who,
                Act::Merge(own(), labels(json!({"app.kubernetes.io/managed-by": "conme"}))),
                "app.kubernetes.io/managed-by",
            )
            .refuses(
                who,
                Act::Merge(at(NS, "configmaps", "marked"), labels(json!({"conme.venis.it/note": null}))),
                "conme.venis.it/note",
            )
            .refuses(
                who,
                Act::Put(own(), |o| o["metadata"]["labels"] = json!({"conme.venis.it/comune": "pol-a"})),
                "conme.venis.it/comune",
            )
            .refuses(
                who,
                Act::Apply(own(), object("ConfigMap", "own", json!({"labels": {"conme.venis.it/x": "y"}}))),
                "conme.venis.it/x",
            )
            .refuses(
                who,
                Act::Create(list(), config(json!({"ownerReferences": owned_by_comune()}))),
                "may be owned by its Comune",
            )
            .allows(
                who,
                Act::Create(list(), config(json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}}))),
            )
            .allows(who, Act::Merge(own(), annotations(json!({"example.org/applied": "0123"}))))
            .allows(who, Act::Merge(at(NS, "configmaps", "marked"), json!({"data": {"a": "2"}})))
            .allows(who, Act::Put(own(), |o| o["metadata"]["labels"] = json!({"app": "own"})))
            .allows(who, Act::Apply(own(), object("ConfigMap", "own", json!({"data": {"b": "1"}}))));
    }
    let status = || at(NS, "persistentvolumeclaims", "own/status");
    rule.refuses(
        Who::Mallory,
        Act::Merge(status(), labels(json!({"conme.venis.it/comune": "pol-b"}))),
        "conme.venis.it/comune",
    )
    .refuses(
        Who::Admin,
        Act::Create(list(), config(json!({"ownerReferences": owned_by_comune()}))),
        "may be owned by its Comune",
    )
    .allows(Who::Mallory, Act::Merge(status(), labels(json!({"example.org/more": "of-it"}))))
    .allows(Who::Admin, Act::Merge(own(), labels(json!({"conme.venis.it/comune": "pol-a"}))))
    .allows(Who::Operator, Act::Merge(own(), labels(json!({"conme.venis.it/comune": "pol-a"}))))
    .allows(
        Who::Tenant,
        Act::Create(
            list(),
            config(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "own", "uid": "11111111-1111-4111-8111-111111111111"}]})),
        ),
    )
}

fn rule_2_what_the_operator_keeps(replica_set: &str, pod: &str) -> Rule {
    let words = "is kept as declared by Con.Me; change the Comune pol-a instead";
    let mut rule = Rule::new("conme-managed-objects");
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "registry.example/other:1"}]}}}});
    let eviction = object("Eviction", pod, json!({}));
    for who in [Who::Tenant, Who::Account, Who::Mallory] {
        rule = rule
            .refuses(
                who,
                Act::Merge(at(NS, "secrets", "db-archivio"), json!({"data": {"password": "eA=="}})),
                words,
            )
            .refuses(who, Act::Delete(at(NS, "secrets", "db-archivio")), words)
            .refuses(who, Act::Merge(at(NS, "deployments", "sito"), image.clone()), words)
            .refuses(
                who,
                Act::Put(at(NS, "deployments", "sito"), |o| o["spec"]["paused"] = json!(true)),
                words,
            )
            .refuses(
                who,
                Act::Apply(
                    at(NS, "services", "sito"),
                    object("Service", "sito", json!({"spec": {"selector": {"app": "own"}}})),
                ),
                words,
            )
            .refuses(
                who,
                Act::Merge(at(NS, "deployments", "sito/scale"), json!({"spec": {"replicas": 0}})),
                words,
            )
            .refuses(who, Act::Merge(at(NS, "replicasets", replica_set), image.clone()), words)
            .refuses(who, Act::Delete(at(NS, "services", "sito")), words)
            .refuses(who, Act::Delete(at(NS, "ingresses", "sito")), words)
            .refuses(who, Act::DeleteAll(at(NS, "deployments", "")), words)
            .refuses(
                who,
                Act::DeleteAll(format!(
                    "{}?labelSelector=app.kubernetes.io/managed-by=conme",
                    at(NS, "secrets", "")
                )),
                words,
            )
            .allows(who, Act::Get(at(NS, "secrets", "db-archivio")))
            .allows(who, Act::Merge(at(NS, "deployments", "own"), image.clone()))
            .allows(who, Act::Put(at(NS, "deployments", "own"), |o| o["spec"]["paused"] = json!(true)))
            .allows(who, Act::Merge(at(NS, "deployments", "own/scale"), json!({"spec": {"replicas": 0}})))
            .allows(who, Act::Delete(at(NS, "deployments", "own")))
            .allows(who, Act::DeleteAll(format!("{}?labelSelector=app=own", at(NS, "deployments", ""))))
            .allows(who, Act::Delete(at(NS, "pods", pod)))
            .allows(who, Act::Create(at(NS, "pods", &format!("{pod}/eviction")), eviction.clone()));
    }
    rule.refuses_beside_others(
        Who::Mallory,
        Act::Delete(at(NS, "networkpolicies", "conme-default-deny")),
        "Con.Me",
    )
    .refuses_beside_others(
        Who::Mallory,
        Act::Merge(at(NS, "resourcequotas", "conme-quota"), json!({"spec": {"hard": {"pods": "500"}}})),
        "Con.Me",
    )
    .allows(Who::Admin, Act::Merge(at(NS, "deployments", "sito"), image.clone()))
    .allows(Who::Admin, Act::Delete(at(NS, "secrets", "db-archivio")))
    .allows(Who::Operator, Act::Merge(at(NS, "deployments", "sito"), image))
    .allows(
        Who::Operator,
        Act::Merge(at(NS, "secrets", "db-archivio"), json!({"data": {"password": "eA=="}})),
    )
}

fn rule_2_confirmations_are_the_sads() -> Rule {
    let crd = || format!("{CRDS}/comuni.conme.venis.it");
    let adopt = || annotations(json!({"conme.venis.it/adopt": "pol-a"}));
    let confirm = || annotations(json!({"conme.venis.it/confirm-delete": "x/y"}));
    let recreate =
        || annotations(json!({"conme.venis.it/confirm-recreate": "archivio@2026-11-22T09:31:42Z"}));
    let comune = || format!("{CONME}/comuni/pol-a");
    Rule::new("conme-confirmations")
        .refuses(
            Who::Operator,
            Act::Merge(namespace(NS), adopt()),
            "only a person of the SAD may set conme.venis.it/adopt",
        )
        .refuses(Who::Operator, Act::Merge(namespace(NS), confirm()), "conme.venis.it/confirm-delete")
        .refuses(
            Who::Operator,
            Act::Merge(namespace("pol-b-confermata"), confirm()),
            "conme.venis.it/confirm-delete",
        )
        .refuses(Who::Nora, Act::Merge(crd(), confirm()), "conme.venis.it/confirm-delete")
        .refuses(
            Who::Nora,
            Act::Merge(format!("{}/status", crd()), confirm()),
            "conme.venis.it/confirm-delete",
        )
        .refuses(Who::Nora, Act::Merge(comune(), recreate()), "conme.venis.it/confirm-recreate")
        .refuses_beside_others(Who::Operator, Act::Merge(comune(), recreate()), "conme-")
        .refuses_beside_others(
            Who::Nora,
            Act::Merge(namespace("pol-foreign"), adopt()),
            "conme.venis.it/adopt",
        )
        .allows(Who::Nora, Act::Merge(crd(), annotations(json!({"example.org/more": "of it"}))))
        .allows(Who::Nora, Act::Merge(comune(), annotations(json!({"example.org/more": "of it"}))))
        .allows(Who::Sad, Act::Merge(comune(), recreate()))
        .allows(Who::Sad, Act::Merge(namespace("pol-foreign"), adopt()))
        .allows(Who::Sad, Act::Merge(namespace(NS), confirm()))
        .allows(Who::Admin, Act::Merge(crd(), confirm()))
        // Once it has been used.
        .allows(
            Who::Operator,
            Act::Merge(
                namespace("pol-b-confermata"),
                annotations(json!({"conme.venis.it/confirm-delete": null})),
            ),
        )
}

fn rule_2_namespaces_of_the_operator() -> Rule {
    let who = Who::Operator;
    let marks = |comune: &str| {
        labels(json!({
            "app.kubernetes.io/managed-by": "conme", "conme.venis.it/comune": comune,
            "pod-security.kubernetes.io/enforce": "restricted",
        }))
    };
    let list = || NAMESPACES.to_owned();
    Rule::new("conme-operator-namespaces")
        .refuses(
            who,
            Act::Create(list(), object("Namespace", "pol-c-produzione", json!({}))),
            "carry its labels",
        )
        .refuses(
            who,
            Act::Create(list(), marked_namespace("pol-c-produzione", "pol-d", "restricted")),
            "called after their Comune",
        )
        .refuses(
            who,
            Act::Create(list(), marked_namespace("pol-c-produzione", "pol-c", "privileged")),
            "pod security level",
        )
        .refuses(
            who,
            Act::Create(list(), marked_namespace("kube-produzione", "kube", "restricted")),
            "belongs to the cluster",
        )
        .refuses(
            who,
            Act::Merge(namespace("pol-a-estranea"), marks("pol-a")),
            "kubectl annotate namespace pol-a-estranea conme.venis.it/adopt=pol-a",
        )
        .refuses(
            who,
            Act::Merge(namespace("pol-a-vecchia"), marks("pol-a-vecchia")),
            "called after their Comune",
        )
        .refuses(who, Act::Merge(namespace("kube-system"), marks("kube")), "belongs to the cluster")
        .refuses(who, Act::Merge(namespace("conme-system"), marks("conme")), "belongs to the cluster")
        .refuses(
            who,
            Act::Merge(namespace("default"), labels(json!({"example.org/more": "of-it"}))),
            "belongs to the cluster",
        )
        .refuses(
            who,
            Act::Merge(namespace("pol-foreign"), labels(json!({"example.org/more": "of-it"}))),
            "carry its labels",
        )
        .refuses(
            who,
            Act::Apply(
                namespace("pol-foreign"),
                object("Namespace", "pol-foreign", json!({"annotations": {"example.org/more": "of it"}})),
            ),
            "carry its labels",
        )
        .refuses(who, Act::Merge(namespace(NS), marks("pol")), "is not of the Comune pol;")
        .refuses(who, Act::Delete(namespace("pol-foreign")), "namespaces of municipalities")
        .refuses(who, Act::Delete(namespace("conme-system")), "belongs to the cluster")
        .refuses(who, Act::Delete(namespace(PROTECTED)), "not protected")
        .allows(who, Act::Create(list(), marked_namespace("pol-c-produzione", "pol-c", "baseline")))
        .allows(who, Act::Merge(namespace(NS), marks("pol-a")))
        // With the word of the SAD.
        .allows(who, Act::Merge(namespace("pol-a-vecchia"), marks("pol-a")))
        // Its own, from which somebody has taken the marks.
        .allows(who, Act::Merge(namespace("pol-a-spoglia"), marks("pol-a")))
        // Its own, on which somebody has put a name that does not fit.
        .allows(who, Act::Merge(namespace("pol-a-rubata"), marks("pol-a")))
        .allows(who, Act::Delete(namespace("pol-a-collaudo")))
        .allows(Who::Nora, Act::Merge(namespace("default"), labels(json!({"example.org/more": "of-it"}))))
}

fn quota(name: &str) -> Value {
    object("ResourceQuota", name, json!({"spec": {"hard": {"pods": "10"}}}))
}

fn closed(name: &str) -> Value {
    object("NetworkPolicy", name, json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}))
}

fn binding(kind: &str, role: &str) -> Value {
    let subject = json!({"kind": "ServiceAccount", "name": "conme-operator", "namespace": "conme-system"});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role});
    object("RoleBinding", "new", json!({"roleRef": role, "subjects": [subject]}))
}

fn rule_7_guards_of_the_operator() -> Rule {
    let words = "in namespaces of municipalities only";
    let mut rule = Rule::new("conme-operator-guards");
    for elsewhere in ["kube-system", "default", "pol-foreign", "conme-system"] {
        rule = rule
            .refuses(Who::Operator, Act::Create(at(elsewhere, "resourcequotas", ""), quota("new")), words)
            .refuses(Who::Operator, Act::Create(at(elsewhere, "networkpolicies", ""), closed("new")), words)
            .refuses(
                Who::Operator,
                Act::Create(
                    at(elsewhere, "rolebindings", ""),
                    binding("ClusterRole", "conme-operator-tenant"),
                ),
                words,
            )
            .allows(Who::Admin, Act::Create(at(elsewhere, "networkpolicies", ""), closed("new")));
    }
    rule.refuses(Who::Operator, Act::Delete(at("pol-foreign", "networkpolicies", "somebodys")), words)
        .refuses(
            Who::Operator,
            Act::Merge(
                at("pol-foreign", "networkpolicies", "somebodys"),
                json!({"spec": {"podSelector": {}}}),
            ),
            words,
        )
        .allows(Who::Operator, Act::Create(at(NS, "resourcequotas", ""), quota("new")))
        .allows(Who::Operator, Act::Create(at(NS, "networkpolicies", ""), closed("new")))
        .allows(
            Who::Operator,
            Act::Create(at(NS, "rolebindings", ""), binding("ClusterRole", "conme-operator-tenant")),
        )
        .allows(Who::Operator, Act::Delete(at(NS, "networkpolicies", "conme-default-deny")))
}

fn rule_7_roles_of_the_operator() -> Rule {
    let words = "and nothing else";
    let list = || at(NS, "rolebindings", "");
    let mut rule = Rule::new("conme-operator-roles");
    for role in ["cluster-admin", "admin", "edit", "conme-sad-admin", "conme-operator"] {
        rule = rule.refuses(Who::Operator, Act::Create(list(), binding("ClusterRole", role)), words);
    }
    for role in ["conme-operator-tenant", "conme-tenant-admin", "conme-tenant-viewer"] {
        rule = rule.allows(Who::Operator, Act::Create(list(), binding("ClusterRole", role)));
    }
    let mut everywhere = binding("ClusterRole", "conme-tenant-viewer");
    everywhere["kind"] = json!("ClusterRoleBinding");
    let all = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned();
    rule.refuses(Who::Operator, Act::Create(all.clone(), everywhere.clone()), words)
        .refuses(Who::Operator, Act::Create(list(), binding("Role", "conme-tenant-admin")), words)
        .allows(Who::Admin, Act::Create(all, everywhere))
        .allows(Who::Admin, Act::Create(list(), binding("ClusterRole", "edit")))
}

fn rule_7_declarations_are_not_the_operators() -> Rule {
    let words = "the operator may not create, change or delete what people have declared";
    let comune = || format!("{CONME}/comuni/pol-a");
    let new = object("Comune", "pol-c", json!({"spec": {"entity": entity("C", 904_002)}}));
    Rule::new("conme-operator-declarations")
        .refuses(Who::Operator, Act::Merge(comune(), json!({"spec": {"paused": true}})), words)
        .refuses(
            Who::Operator,
            Act::Merge(comune(), annotations(json!({"example.org/more": "of it"}))),
            words,
        )
        .refuses(Who::Operator, Act::Merge(comune(), labels(json!({"example.org/more": "of-it"}))), words)
        .refuses(Who::Operator, Act::Delete(comune()), words)
        .refuses(
            Who::Operator,
            Act::Merge(format!("{CONME}/datacenters/venis"), json!({"spec": {"databaseServers": []}})),
            words,
        )
        .allows(
            Who::Operator,
            Act::Merge(comune(), json!({"metadata": {"finalizers": ["conme.venis.it/deletion"]}})),
        )
        .allows(Who::Operator, Act::Merge(comune(), annotations(json!({"example.org/used": null}))))
        .allows(
            Who::Operator,
            Act::Merge(format!("{comune}/status", comune = comune()), json!({"status": {"orphans": []}})),
        )
        .allows(Who::Sad, Act::Merge(comune(), json!({"spec": {"paused": true}})))
        .allows(Who::Sad, Act::Create(format!("{CONME}/comuni"), new))
}

fn ingress(change: impl FnOnce(&mut Value)) -> Act {
    let backend = json!({"service": {"name": "own", "port": {"number": 80}}});
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
    let mut ingress = object(
        "Ingress",
        "new",
        json!({"annotations": {}, "spec": {"rules": [{"host": "www.pol-a.example", "http": {"paths": paths}}]}}),
    );
    change(&mut ingress);
    Act::Create(at(NS, "ingresses", ""), ingress)
}

fn rule_8_host_names() -> Rule {
    let own = || at(NS, "ingresses", "own");
    let host = |host: &'static str| ingress(move |o| o["spec"]["rules"][0]["host"] = json!(host));
    let tls = |entry: Value| ingress(move |o| o["spec"]["tls"] = json!([entry]));
    let note = |key: &'static str, value: &'static str| {
        ingress(move |o| o["metadata"]["annotations"][key] = json!(value))
    };
    let path = |path: &'static str| {
        ingress(move |o| {
            o["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!(path);
            o["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = json!("ImplementationSpecific");
        })
    };
    let mut rule = Rule::new("conme-hostnames");
    for who in [Who::Tenant, Who::Account, Who::Mallory] {
        rule = rule
            .refuses(who, host("www.pol-b.example"), "the host name www.pol-b.example is not of this namespace (shop.pol-a.example, www.pol-a.example)")
            .refuses(who, host("pol-a.example"), "is not of this namespace")
            .refuses(who, host("x.www.pol-a.example"), "is not of this namespace")
            .refuses(who, host("*.pol-a.example"), "whole host name")
            .refuses(who, host(""), "whole host name")
            .refuses(who, ingress(|o| { o["spec"]["rules"][0].as_object_mut().unwrap().remove("host"); }), "whole host name")
            .refuses(
                who,
                ingress(|o| {
                    let mut second = o["spec"]["rules"][0].clone();
                    second["host"] = json!("www.pol-b.example");
                    o["spec"]["rules"].as_array_mut().unwrap().push(second);
                }),
                "www.pol-b.example",
            )
            .refuses(
                who,
                ingress(|o| o["spec"]["defaultBackend"] = json!({"service": {"name": "own", "port": {"number": 80}}})),
                "defaultBackend",
            )
            .refuses(
                who,
                ingress(|o| o["spec"] = json!({"defaultBackend": {"service": {"name": "own", "port": {"number": 80}}}})),
                "defaultBackend",
            )
            .refuses(who, tls(json!({"hosts": ["www.pol-b.example"], "secretName": "own"})), "spec.tls")
            .refuses(who, tls(json!({"hosts": ["www.pol-a.example", "www.pol-b.example"], "secretName": "own"})), "spec.tls")
            .refuses(who, tls(json!({"secretName": "own"})), "spec.tls")
            .refuses(who, path("/(.*)"), "paths may hold")
            .refuses(who, path("/a;}"), "paths may hold")
            .refuses(
                who,
                Act::Merge(own(), json!({"spec": {"rules": [{"host": "www.pol-b.example"}]}})),
                "www.pol-b.example",
            )
            .refuses(who, Act::Put(own(), |o| o["spec"]["rules"][0]["host"] = json!("www.pol-b.example")), "www.pol-b.example")
            .refuses(
                who,
                Act::Apply(own(), object("Ingress", "own", json!({"annotations": {"nginx.ingress.kubernetes.io/server-alias": "www.pol-b.example"}}))),
                "server-alias",
            )
            .refuses(who, note("nginx.ingress.kubernetes.io/proxy-body-size", "8m;}\nlua {"), "may hold letters")
            .allows(who, host("www.pol-a.example"))
            .allows(who, host("shop.pol-a.example"))
            .allows(who, tls(json!({"hosts": ["www.pol-a.example"], "secretName": "own"})))
            .allows(who, path("/a/b-c"))
            .allows(who, note("nginx.ingress.kubernetes.io/proxy-body-size", "8m"))
            .allows(who, note("meta.helm.sh/release-name", "own"))
            .allows(who, Act::Merge(own(), json!({"spec": {"rules": [{"host": "shop.pol-a.example"}]}})))
            .allows(who, Act::Put(own(), |o| o["spec"]["rules"][0]["host"] = json!("shop.pol-a.example")))
            .allows(who, Act::Delete(own()));
    }
    for annotation in [
        "nginx.ingress.kubernetes.io/server-snippet",
        "nginx.ingress.kubernetes.io/configuration-snippet",
        "nginx.ingress.kubernetes.io/auth-snippet",
        "nginx.ingress.kubernetes.io/stream-snippet",
        "nginx.ingress.kubernetes.io/modsecurity-snippet",
        "nginx.ingress.kubernetes.io/server-alias",
        "nginx.ingress.kubernetes.io/auth-url",
        "nginx.ingress.kubernetes.io/auth-secret",
        "nginx.ingress.kubernetes.io/auth-tls-secret",
        "nginx.ingress.kubernetes.io/auth-tls-match-cn",
        "nginx.ingress.kubernetes.io/mirror-target",
        "nginx.ingress.kubernetes.io/mirror-host",
        "nginx.ingress.kubernetes.io/rewrite-target",
        "nginx.ingress.kubernetes.io/upstream-vhost",
        "nginx.ingress.kubernetes.io/permanent-redirect",
        "nginx.org/server-snippets",
        "haproxy.org/backend-config-snippet",
        "haproxy-ingress.github.io/config-backend",
        "traefik.ingress.kubernetes.io/router.middlewares",
        "external-dns.alpha.kubernetes.io/hostname",
        "kubernetes.io/ingress.class",
    ] {
        rule = rule.refuses(
            Who::Tenant,
            note(annotation, "x"),
            "is not among those that a municipality may set",
        );
    }
    // Two environments of one municipality do not share names either.
    let elsewhere = |act: Act| match act {
        Act::Create(_, body) => Act::Create(at("pol-a-collaudo", "ingresses", ""), body),
        other => other,
    };
    rule.refuses(Who::Tenant, elsewhere(host("www.pol-a.example")), "is not of this namespace ()")
        .allows(Who::Admin, host("www.pol-b.example"))
        .allows(Who::Operator, host("www.pol-b.example"))
}

fn rule_8_routes() -> Rule {
    let route = |spec: Value| {
        Act::Create(at(NS, "httproutes", ""), object("HTTPRoute", "new", json!({"spec": spec})))
    };
    Rule::new("conme-routes")
        .refuses(
            Who::Mallory,
            route(json!({"hostnames": ["www.pol-b.example"]})),
            "only name hosts of this namespace",
        )
        .refuses(
            Who::Mallory,
            route(json!({"hostnames": ["*.pol-a.example"]})),
            "only name hosts of this namespace",
        )
        .refuses(Who::Mallory, route(json!({"hostnames": []})), "may not be empty")
        .refuses(Who::Mallory, route(json!({})), "may not be empty")
        .allows(Who::Mallory, route(json!({"hostnames": ["www.pol-a.example"]})))
        .allows(Who::Admin, route(json!({})))
}

fn rule_8_services() -> Rule {
    let service =
        |spec: Value| Act::Create(at(NS, "services", ""), object("Service", "new", json!({"spec": spec})));
    let named = |annotations: Value| {
        let content = json!({"annotations": annotations, "spec": {"ports": [{"port": 80}]}});
        Act::Create(at(NS, "services", ""), object("Service", "new", content))
    };
    let own = || at(NS, "services", "own");
    let name = json!({"type": "ExternalName", "externalName": "sito.pol-b-produzione.svc.cluster.local"});
    let mut rule = Rule::new("conme-services");
    for who in [Who::Tenant, Who::Account, Who::Mallory] {
        rule = rule
            .refuses(
                who,
                service(json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]})),
                "externalIPs",
            )
            .refuses(who, service(name.clone()), "ExternalName")
            .refuses(who, Act::Merge(own(), json!({"spec": {"externalIPs": ["192.0.2.1"]}})), "externalIPs")
            .refuses(who, Act::Merge(own(), json!({"spec": name})), "ExternalName")
            .refuses(
                who,
                named(json!({"external-dns.alpha.kubernetes.io/hostname": "www.pol-b.example"})),
                "external-dns",
            )
            .allows(who, service(json!({"ports": [{"port": 80}]})))
            .allows(who, service(json!({"ports": [{"port": 80}], "clusterIP": "None"})))
            .allows(who, named(json!({"example.org/hostname": "x"})))
            .allows(who, Act::Merge(own(), json!({"spec": {"selector": {"app": "other"}}})));
    }
    rule.allows(Who::Admin, service(name))
}

fn pod_spec() -> Value {
    json!({
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "main", "image": "registry.example/own:1",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "10m", "memory": "16Mi"}},
        }],
    })
}

/// Every kind that holds pods, with the same pod in it.
fn with_pods(pod: &Value) -> Vec<(&'static str, Value)> {
    let many = json!({"app": "new"});
    let selector = json!({"matchLabels": many});
    let mut metadata = pod["metadata"].clone();
    metadata["labels"]["app"] = json!("new");
    let template = json!({"metadata": metadata, "spec": pod["spec"]});
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = json!("Never");
    let workload = json!({"replicas": 0, "selector": selector, "template": template});
    let all = [
        ("pods", object("Pod", "new", json!({"spec": pod["spec"]}))),
        ("deployments", object("Deployment", "new", json!({"spec": workload}))),
        ("replicasets", object("ReplicaSet", "new", json!({"spec": workload}))),
        (
            "statefulsets",
            object(
                "StatefulSet",
                "new",
                json!({"spec": {
                    "replicas": 0, "serviceName": "own", "selector": selector, "template": template,
                }}),
            ),
        ),
        (
            "daemonsets",
            object("DaemonSet", "new", json!({"spec": {"selector": selector, "template": template}})),
        ),
        ("jobs", object("Job", "new", json!({"spec": {"suspend": true, "template": once}}))),
        (
            "cronjobs",
            object(
                "CronJob",
                "new",
                json!({"spec": {
                    "suspend": true, "schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": once}},
                }}),
            ),
        ),
        ("podtemplates", object("PodTemplate", "new", json!({"template": template}))),
        (
            "replicationcontrollers",
            object(
                "ReplicationController",
                "new",
                json!({"spec": {
                    "replicas": 0, "selector": many, "template": template,
                }}),
            ),
        ),
    ];
    // Some kinds without labels of their own get those of the template, which are another policy's business.
    all.into_iter()
        .map(|(plural, mut object)| {
            object["metadata"]["labels"] = many.clone();
            (plural, object)
        })
        .collect()
}

fn rule_8_pods() -> Rule {
    type Change = fn(&mut Value);
    let affinity = |terms: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    let preferred = |term: Value| json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": term}]}});
    let exists = |key: &str| json!({"matchExpressions": [{"key": key, "operator": "Exists"}]});
    let mut harmful: Vec<(Value, &'static str)> = Vec::new();
    let changes: [(Change, &'static str); 10] = [
        (
            |p| p["spec"]["nodeSelector"] = json!({"node-role.kubernetes.io/control-plane": ""}),
            "hosts may not be selected by keys of reserved pools",
        ),
        (
            |p| p["spec"]["nodeSelector"] = json!({"conme.venis.it/pool": "strategico"}),
            "hosts may not be selected by keys of reserved pools",
        ),
        (|p| p["spec"]["tolerations"] = json!([{"operator": "Exists"}]), "hosts with taints are reserved"),
        (
            |p| {
                p["spec"]["tolerations"] =
                    json!([{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}])
            },
            "hosts with taints are reserved",
        ),
        (
            |p| p["spec"]["tolerations"] = json!([{"key": "example.org/reserved", "operator": "Equal", "value": "x", "effect": "NoSchedule"}]),
            "hosts with taints are reserved",
        ),
        (|p| p["spec"]["priorityClassName"] = json!("pol-urgent"), "may not go before others"),
        (|p| p["spec"]["runtimeClassName"] = json!("pol-runtime"), "data centre's own runtime"),
        (
            |p| {
                p["spec"]["volumes"] = json!([{"name": "kept", "ephemeral": {"volumeClaimTemplate": {"spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                    "volumeName": "of-somebody-else",
                }}}}])
            },
            "a claim may not choose its volume",
        ),
        (
            |p| {
                p["spec"]["volumes"] = json!([{"name": "theirs", "csi": {
                    "driver": "nfs.csi.k8s.io", "volumeAttributes": {"server": "198.51.100.9", "share": "/"},
                }}])
            },
            "pods may mount claims",
        ),
        (|p| p["spec"]["nodeName"] = json!("host-01"), "the scheduler chooses the host"),
    ];
    let pod = || json!({"metadata": {"labels": {}}, "spec": pod_spec()});
    for (change, words) in changes {
        let mut pod = pod();
        change(&mut pod);
        harmful.push((pod, words));
    }
    for (affinity, words) in [
        (affinity(json!([exists("conme.venis.it/pool")])), "hosts may not be selected by"),
        (
            affinity(json!([exists("kubernetes.io/arch"), exists("conme.venis.it/pool")])),
            "hosts may not be selected by",
        ),
        (preferred(exists("node-role.kubernetes.io/worker")), "hosts may not be selected by"),
        (
            affinity(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["host-01"]}]}]),
            ),
            "the scheduler chooses the host",
        ),
    ] {
        let mut pod = pod();
        pod["spec"]["affinity"] = affinity;
        harmful.push((pod, words));
    }
    let mut good = pod();
    good["spec"]["nodeSelector"] = json!({"kubernetes.io/arch": "amd64"});
    good["spec"]["affinity"] = affinity(json!([exists("kubernetes.io/hostname")]));
    good["spec"]["tolerations"] = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);

    good["spec"]["volumes"] = json!([
        {"name": "a"},
        {"name": "b", "configMap": {"name": "own"}},
        {"name": "c", "secret": {"secretName": "own"}},
        {"name": "d", "persistentVolumeClaim": {"claimName": "own"}},
        {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}},
        }}}},
    ]);

    let mut rule = Rule::new("conme-pods");
    for (pod, words) in &harmful {
        for (plural, object) in with_pods(pod) {
            rule = rule.refuses(Who::Mallory, Act::Create(at(NS, plural, ""), object), words);
        }
    }
    // In templates; of the pods themselves the level `restricted` sees it as well.
    for volume in [
        json!({"name": "theirs", "nfs": {"server": "198.51.100.9", "path": "/"}}),
        json!({"name": "theirs", "hostPath": {"path": "/"}}),
    ] {
        let mut pod = pod();
        pod["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}, volume]);
        for (plural, object) in with_pods(&pod).into_iter().skip(1) {
            rule =
                rule.refuses(Who::Mallory, Act::Create(at(NS, plural, ""), object), "pods may mount claims");
        }
    }
    // With a mark of Con.Me in the template; on the pod itself `conme-marks` sees it.
    let mut marked = pod();
    marked["metadata"]["labels"]["conme.venis.it/service"] = json!("sito");
    for (plural, object) in with_pods(&marked).into_iter().skip(1) {
        rule =
            rule.refuses(Who::Mallory, Act::Create(at(NS, plural, ""), object), "only Con.Me may mark pods");
    }
    for (plural, object) in with_pods(&good) {
        rule = rule.allows(Who::Mallory, Act::Create(at(NS, plural, ""), object.clone()));
        if !["daemonsets", "podtemplates", "replicationcontrollers"].contains(&plural) {
            rule = rule
                .allows(Who::Tenant, Act::Create(at(NS, plural, ""), object.clone()))
                .allows(Who::Account, Act::Create(at(NS, plural, ""), object));
        }
    }
    let own = || at(NS, "pods", "own");
    let deployment = || at(NS, "deployments", "own");
    for who in [Who::Tenant, Who::Account] {
        rule = rule
            .refuses(who, Act::Create(at(NS, "pods", ""), with_pods(&harmful[2].0).remove(0).1), "hosts with taints are reserved")
            .refuses(
                who,
                Act::Merge(deployment(), json!({"spec": {"template": {"spec": {"nodeName": "host-01"}}}})),
                "the scheduler chooses the host",
            )
            .refuses(
                who,
                Act::Put(deployment(), |o| o["spec"]["template"]["spec"]["priorityClassName"] = json!("pol-urgent")),
                "may not go before others",
            )
            .refuses(
                who,
                Act::Apply(
                    deployment(),
                    object("Deployment", "own", json!({"spec": {"template": {"spec": {"nodeSelector": {"conme.venis.it/pool": "x"}}}}})),
                ),
                "hosts may not be selected by",
            )
            .refuses(
                who,
                Act::Put(own(), |o| {
                    o["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"key": "example.org/reserved", "operator": "Exists"}));
                }),
                "hosts with taints are reserved",
            )
            // A pod that stands on its host, and one whose template the SAD has allowed more.
            .allows(who, Act::Merge(own(), labels(json!({"example.org/more": "of-it"}))))
            .allows(who, Act::Merge(at(NS, "pods", "privileged-by-the-sad"), labels(json!({"example.org/more": "of-it"}))));
    }
    let harmful = with_pods(&harmful[2].0);
    rule.allows(Who::Admin, Act::Create(at(NS, "pods", ""), harmful[0].1.clone()))
        .allows(Who::Operator, Act::Create(at(NS, "deployments", ""), harmful[1].1.clone()))
}

fn rule_8_volume_claims() -> Rule {
    let claim = |spec: Value| {
        let mut whole = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "venis-standard"});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Act::Create(
            at(NS, "persistentvolumeclaims", ""),
            object("PersistentVolumeClaim", "new", json!({"spec": whole})),
        )
    };
    let named = json!({"volumeName": "simulated-149"});
    let mut rule = Rule::new("conme-claims");
    for who in [Who::Tenant, Who::Account, Who::Mallory] {
        rule = rule
            .refuses(who, claim(named.clone()), "may not choose its volume")
            .refuses(
                who,
                claim(json!({"selector": {"matchLabels": {"a": "b"}}})),
                "may not choose its volume",
            )
            .allows(who, claim(json!({})))
            // Bound by now, so that its volume is named in it.
            .allows(
                who,
                Act::Merge(
                    at(NS, "persistentvolumeclaims", "own"),
                    labels(json!({"example.org/more": "of-it"})),
                ),
            );
    }
    rule.allows(Who::Admin, claim(named))
}

fn rule_13_dedicated_databases() -> Rule {
    let words =
        "holds the data of a municipality; to confirm, as the SAD: kubectl -n pol-a-produzione annotate";
    let server = |name: &str| at(NS, "clusters", name);
    Rule::new("conme-protected-databases")
        .refuses(Who::Operator, Act::Delete(server("db-archivio")), words)
        .refuses(Who::Operator, Act::Delete(server("db-confermato")), words)
        .refuses(Who::Mallory, Act::Delete(server("db-confermato")), words)
        .refuses(Who::Mallory, Act::DeleteAll(server("")), words)
        .refuses(Who::Admin, Act::Delete(server("db-archivio")), words)
        .allows(Who::Admin, Act::Delete(server("db-confermato")))
        .allows(Who::Operator, Act::Merge(server("db-archivio"), json!({"spec": {"instances": 2}})))
}

fn rule_8_bindings_of_pods() -> Rule {
    let binding = |kind: &str| {
        object(kind, "waiting", json!({"target": {"apiVersion": "v1", "kind": "Node", "name": "host-01"}}))
    };
    let words = "the scheduler chooses the host";
    Rule::new("conme-pod-bindings")
        .refuses(Who::Mallory, Act::Create(at(NS, "pods", "waiting/binding"), binding("Binding")), words)
        .refuses(Who::Mallory, Act::Create(at(NS, "bindings", ""), binding("Binding")), words)
        .allows(Who::Admin, Act::Create(at(NS, "pods", "waiting/binding"), binding("Binding")))
}

fn rule_7_what_guards_a_namespace() -> Rule {
    let who = Who::Mallory;
    let words = "of a municipality are written by Con.Me and the cluster only";
    let limits =
        object("LimitRange", "new", json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}));
    let role = object(
        "Role",
        "new",
        json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
    );
    let endpoints = object(
        "Endpoints",
        "new",
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
    );
    let slice = object(
        "EndpointSlice",
        "new",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": []}),
    );
    let mut rule = Rule::new("conme-guards");
    for (plural, body) in [
        ("networkpolicies", closed("new")),
        ("resourcequotas", quota("new")),
        ("limitranges", limits),
        ("roles", role),
        ("rolebindings", binding("ClusterRole", "conme-tenant-viewer")),
        ("endpoints", endpoints),
        ("endpointslices", slice),
    ] {
        rule = rule
            .refuses(who, Act::Create(at(NS, plural, ""), body.clone()), words)
            .allows(Who::Admin, Act::Create(at(NS, plural, ""), body.clone()));
        if !plural.starts_with("endpoint") && plural != "roles" {
            rule = rule.allows(Who::Operator, Act::Create(at(NS, plural, ""), body));
        }
    }
    let address = json!({"status": {"podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]}});
    let balancer = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    rule.refuses(who, Act::Merge(at(NS, "pods", "own/status"), address), words)
        .refuses(who, Act::Merge(at(NS, "ingresses", "own/status"), balancer), words)
        .refuses(
            who,
            Act::Merge(at(NS, "services", "own/status"), labels(json!({"example.org/more": "of-it"}))),
            words,
        )
        .refuses(
            who,
            Act::Merge(at(NS, "resourcequotas", "own"), json!({"spec": {"hard": {"pods": "500"}}})),
            words,
        )
        .refuses(
            who,
            Act::Put(at(NS, "resourcequotas", "own"), |o| o["spec"]["hard"]["pods"] = json!("500")),
            words,
        )
        .refuses(who, Act::Delete(at(NS, "resourcequotas", "own")), words)
        .refuses(who, Act::Delete(at(NS, "rolebindings", "mallory")), words)
        .refuses(who, Act::Delete(at(NS, "networkpolicies", "own")), words)
        .refuses(
            who,
            Act::DeleteAll(format!("{}?fieldSelector=metadata.name=own", at(NS, "networkpolicies", ""))),
            words,
        )
        .allows(who, Act::Get(at(NS, "networkpolicies", "own")))
        .allows(Who::Admin, Act::Delete(at(NS, "networkpolicies", "own")))
        .allows(Who::Operator, Act::Delete(at(NS, "resourcequotas", "conme-quota")))
}

fn rule_6_figures_of_a_quota() -> Rule {
    let status = || at(NS, "resourcequotas", "own/status");
    let nothing = json!({"status": {"used": {"pods": "0"}}});
    Rule::new("conme-quota-status")
        .refuses(Who::Mallory, Act::Merge(status(), nothing.clone()), "counted by the cluster")
        .refuses(
            Who::Mallory,
            Act::Put(status(), |o| o["status"]["hard"] = json!({"pods": "500"})),
            "counted by the cluster",
        )
        .refuses(Who::Operator, Act::Merge(status(), nothing.clone()), "counted by the cluster")
        .allows(Who::Admin, Act::Merge(status(), nothing))
}

fn rule_1_a_protected_comune() -> Rule {
    let words = "the Comune pol-b is protected";
    Rule::new("conme-protected-comuni")
        .refuses(Who::Sad, Act::Delete(format!("{CONME}/comuni/pol-b")), words)
        .refuses(Who::Admin, Act::Delete(format!("{CONME}/comuni/pol-b")), words)
        .refuses(
            Who::Admin,
            Act::DeleteAll(format!("{CONME}/comuni?fieldSelector=metadata.name=pol-b")),
            words,
        )
        .allows(Who::Sad, Act::Delete(format!("{CONME}/comuni/pol-a")))
        .allows(Who::Sad, Act::Merge(format!("{CONME}/comuni/pol-b"), json!({"spec": {"protected": false}})))
}

fn rule_1_namespaces_are_not_deleted_by_accident() -> Rule {
    Rule::new("conme-protected-namespaces")
        .refuses(Who::Admin, Act::Delete(namespace(NS)), "kubectl annotate namespace pol-a-produzione --overwrite conme.venis.it/confirm-delete=pol-a-produzione/")
        .refuses(Who::Admin, Act::Delete(namespace(PROTECTED)), "is protected")
        .refuses(Who::Admin, Act::Delete(namespace("pol-b-sbagliata")), "to confirm")
        .refuses(Who::Nora, Act::Delete(namespace("pol-b-confermata")), "only the SAD may delete")
        .refuses(Who::Nora, Act::Delete(namespace(NS)), "only the SAD may delete")
        .allows(Who::Admin, Act::Delete(namespace("pol-b-confermata")))
        .allows(Who::Nora, Act::Delete(namespace("pol-foreign")))
        .allows(Who::Operator, Act::Delete(namespace("pol-a-collaudo")))
}

fn rule_1_definitions_are_not_deleted_by_accident() -> Rule {
    let crd = |name: &str| Act::Delete(format!("{CRDS}/{name}"));
    let words = "everything declared with it would be gone; to confirm: kubectl annotate crd";
    Rule::new("conme-protected-definitions")
        .refuses(Who::Admin, crd("comuni.conme.venis.it"), words)
        .refuses(Who::Admin, crd("datacenters.conme.venis.it"), words)
        .refuses(Who::Nora, crd("comuni.conme.venis.it"), words)
        .refuses(
            Who::Admin,
            Act::DeleteAll(format!("{CRDS}?fieldSelector=metadata.name=comuni.conme.venis.it")),
            words,
        )
        .allows(Who::Admin, crd("servicetemplates.conme.venis.it"))
        .allows(Who::Admin, crd("httproutes.gateway.networking.k8s.io"))
}

fn rule_1_the_data_centre_is_not_deleted_by_accident() -> Rule {
    let of = |name: &str| Act::Delete(format!("{CONME}/datacenters/{name}"));
    Rule::new("conme-protected-data-centres")
        .refuses(
            Who::Sad,
            of("venis"),
            "no Comune can be admitted; to confirm: kubectl annotate datacenter venis",
        )
        .refuses(
            Who::Admin,
            Act::DeleteAll(format!("{CONME}/datacenters?fieldSelector=metadata.name=venis")),
            "to confirm",
        )
        .allows(Who::Sad, of("altro"))
}

/// The word of somebody, as it stands in a migration.
fn approval(by: &str, epoch: u32, stage: &str) -> Value {
    json!({"epoch": epoch, "stage": stage, "approvedBy": by, "at": "2026-03-02T18:30:00Z"})
}

fn migration(name: &str, comune: &str, approvals: Value) -> Value {
    let spec =
        json!({"comune": comune, "server": "srv-protocollo", "workload": "db", "approvals": approvals});
    object("Migration", name, json!({"spec": spec}))
}

/// `approved` holds two approvals of sandra's, of the first epoch and of the second, which is the present one.
fn rule_9_approvals_of_migrations() -> Rule {
    let list = || at(SYSTEM, "migrations", "");
    let of = |name: &str| at(SYSTEM, "migrations", name);
    let approvals = |list: Value| json!({"spec": {"approvals": list}});
    let operator = "system:serviceaccount:conme-system:conme-operator";
    let first = || approval("sandra", 1, "Cutover");
    let second = || approval("sandra", 2, "Cutover");
    let with = |more: Value| Act::Merge(of("approved"), approvals(json!([first(), second(), more])));
    let changed = |key: &str, value: Value| {
        let mut other = first();
        other[key] = value;
        Act::Merge(of("approved"), approvals(json!([other, second()])))
    };
    let own_name = "an approval is given in one's own name; write approvedBy: sandra";
    let epoch = "the epoch of pol-a-sistema/approved is 2; look at its status again";
    let for_good = "are never changed, removed or put in another order; leave the 2 that are there";
    let person = "approved by a person of the SAD, neither by the operator nor by a service account";
    let written = "migrations are written by Con.Me and the SAD only";
    let told = "told by Con.Me only";
    let grows = "the epoch of pol-a-sistema/approved only grows, and it is 2";
    let mut rule = Rule::new("conme-approvals")
        // In the name of the person who asks.
        .refuses(Who::Sad, with(approval("mario", 2, "Commit")), own_name)
        .refuses(
            Who::Sad,
            Act::Create(list(), migration("new", "pol-a", json!([approval("mario", 1, "Cutover")]))),
            own_name,
        )
        .refuses(Who::Admin, with(approval("sandra", 2, "Commit")), "in one's own name")
        .refuses(
            Who::Sad,
            Act::Merge(
                of("approved"),
                approvals(json!([
                    first(),
                    second(),
                    approval("sandra", 2, "Commit"),
                    approval("Sandra", 2, "Commit")
                ])),
            ),
            own_name,
        )
        .refuses(
            Who::Sad,
            Act::Apply(of("fresh"), migration("fresh", "pol-a", json!([approval("mario", 1, "Cutover")]))),
            own_name,
        )
        // For the present epoch.
        .refuses(Who::Sad, with(approval("sandra", 1, "Commit")), epoch)
        .refuses(Who::Sad, with(approval("sandra", 3, "Commit")), epoch)
        .refuses(
            Who::Sad,
            Act::Merge(of("fresh"), approvals(json!([approval("sandra", 2, "Cutover")]))),
            "the epoch of pol-a-sistema/fresh is 1",
        )
        .refuses(
            Who::Sad,
            Act::Create(list(), migration("new", "pol-a", json!([approval("sandra", 2, "Cutover")]))),
            "the epoch of pol-a-sistema/new is 1",
        )
        // By people.
        .refuses(Who::Operator, with(approval(operator, 2, "Commit")), person)
        .refuses(
            Who::Operator,
            Act::Create(list(), migration("new", "pol-a", json!([approval(operator, 1, "Cutover")]))),
            person,
        )
        .refuses(
            Who::SadAccount,
            with(approval("system:serviceaccount:pol-foreign:robot", 2, "Commit")),
            person,
        )
        .refuses(
            Who::Mallory,
            with(approval("system:serviceaccount:pol-a-produzione:mallory", 2, "Commit")),
            written,
        )
        // Nor are migrations anybody else's to write.
        .refuses(Who::Mallory, Act::Create(list(), migration("new", "pol-a", json!([]))), written)
        .refuses(Who::Mallory, Act::Merge(of("fresh"), json!({"spec": {"cutover": "WhenReady"}})), written)
        .refuses(Who::Mallory, Act::Merge(of("fresh/status"), json!({"status": {"epoch": 2}})), written)
        .refuses(Who::Mallory, Act::Delete(of("fresh")), written)
        .refuses(Who::Mallory, Act::DeleteAll(list()), written)
        // How far it is.
        .refuses(Who::Admin, Act::Merge(of("approved/status"), json!({"status": {"epoch": 3}})), told)
        .refuses(
            Who::Admin,
            Act::Merge(of("approved/status"), json!({"status": {"phase": "Committed"}})),
            told,
        )
        .refuses(Who::Operator, Act::Merge(of("approved/status"), json!({"status": {"epoch": 1}})), grows)
        .refuses(Who::Operator, Act::Merge(of("approved/status"), json!({"status": {"epoch": null}})), grows)
        .refuses(Who::Operator, Act::Merge(of("approved/status"), json!({"status": null})), grows)
        // With what was approved only people of the SAD do away.
        .refuses(Who::Operator, Act::Delete(of("approved")), "only the SAD may delete it")
        .refuses(Who::Operator, Act::DeleteAll(list()), "only the SAD may delete it")
        .refuses(Who::Garbage, Act::Delete(of("approved")), "only the SAD may delete it")
        .refuses(Who::Namespaces, Act::Delete(of("approved")), "only the SAD may delete it")
        // Where it belongs.
        .refuses(
            Who::Sad,
            Act::Create(list(), migration("new", "pol-b", json!([]))),
            "set metadata.namespace",
        )
        .allows(Who::Sad, with(approval("sandra", 2, "Commit")))
        .allows(Who::Sad, with(approval("sandra", 2, "Rollback")))
        .allows(Who::Sad, Act::Merge(of("fresh"), approvals(json!([approval("sandra", 1, "Cutover")]))))
        .allows(
            Who::Sad,
            Act::Create(list(), migration("new", "pol-a", json!([approval("sandra", 1, "Cutover")]))),
        )
        .allows(Who::Sad, Act::Merge(of("approved"), json!({"spec": {"cutover": "WhenReady"}})))
        .allows(Who::Sad, Act::Delete(of("approved")))
        .allows(Who::SadAccount, Act::Create(list(), migration("new", "pol-a", json!([]))))
        .allows(Who::SadAccount, Act::Merge(of("approved"), labels(json!({"example.org/more": "of-it"}))))
        .allows(Who::Operator, Act::Create(list(), migration("new", "pol-a", json!([]))))
        .allows(Who::Operator, Act::Delete(of("fresh")))
        .allows(Who::Operator, Act::Merge(of("approved/status"), json!({"status": {"epoch": 3}})))
        .allows(Who::Operator, Act::Merge(of("approved/status"), json!({"status": {"phase": "Replicating"}})))
        .allows(
            Who::Operator,
            Act::Merge(of("fresh/status"), json!({"status": {"epoch": 1, "phase": "Ready"}})),
        )
        .allows(Who::Namespaces, Act::Delete(of("fresh")));
    // What was said stands, whoever asks.
    for who in [Who::Sad, Who::Admin, Who::Operator] {
        for act in [
            Act::Merge(of("approved"), approvals(json!([first()]))),
            Act::Merge(of("approved"), approvals(json!([]))),
            Act::Merge(of("approved"), approvals(json!(null))),
            Act::Merge(of("approved"), approvals(json!([second(), first()]))),
            Act::Merge(
                of("approved"),
                approvals(json!([approval("sandra", 2, "Commit"), first(), second()])),
            ),
            changed("approvedBy", json!("mario")),
            changed("stage", json!("Commit")),
            changed("epoch", json!(2)),
            changed("at", json!("2026-03-02T18:30:01Z")),
            changed("note", json!("afterwards")),
        ] {
            rule = rule.refuses(who, act, for_good);
        }
    }
    rule
}

fn rule_8_cordon() -> Rule {
    let words = "the Comune pol-b is cordoned: nothing in it can be changed";
    let here = |plural: &str, rest: &str| at(CORDONED, plural, rest);
    let config = object("ConfigMap", "new", json!({"data": {"a": "1"}}));
    let eviction = object("Eviction", "own", json!({}));
    let acts = |list: &dyn Fn(&str, &str) -> String| {
        vec![
            Act::Create(list("configmaps", ""), config.clone()),
            Act::Merge(list("configmaps", "own"), json!({"data": {"a": "2"}})),
            Act::Put(list("configmaps", "own"), |o| o["data"]["a"] = json!("2")),
            Act::Apply(list("configmaps", "own"), object("ConfigMap", "own", json!({"data": {"b": "1"}}))),
            Act::Delete(list("configmaps", "own")),
            Act::DeleteAll(format!("{}?fieldSelector=metadata.name=own", list("configmaps", ""))),
            Act::Merge(list("deployments", "own/scale"), json!({"spec": {"replicas": 1}})),
            Act::Create(list("pods", "own/eviction"), eviction.clone()),
            Act::Delete(list("pods", "own")),
            Act::Connect(list("pods", "own/exec?command=true&stdout=true")),
            Act::Connect(list("pods", "own/attach?stdout=true")),
            Act::Connect(list("pods", "own/portforward?ports=80")),
        ]
    };
    let mut rule = Rule::new("conme-cordon");
    for act in acts(&here) {
        rule = rule
            .refuses(Who::Cordoned, act.clone(), words)
            .refuses(Who::MalloryB, act.clone(), words)
            .allows(Who::Admin, act);
    }
    // The same, next door.
    for act in acts(&|plural: &str, rest: &str| at(NS, plural, rest)) {
        rule = rule.allows(Who::Tenant, act);
    }
    let status = json!({"status": {"phase": "Bound"}});
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    rule.refuses(Who::MalloryB, Act::Merge(here("persistentvolumeclaims", "own/status"), status), words)
        .refuses(Who::MalloryB, Act::Create(here("serviceaccounts", "default/token"), token), words)
        .refuses(Who::MalloryB, Act::Connect(here("services", "none:80/proxy/")), words)
        .allows(Who::Cordoned, Act::Get(here("configmaps", "own")))
        .allows(Who::Cordoned, Act::Get(here("pods", "")))
        .allows(Who::Operator, Act::Merge(here("configmaps", "own"), json!({"data": {"a": "2"}})))
        .allows(Who::Operator, Act::Create(here("networkpolicies", ""), closed("new")))
}

fn rules(replica_set: &str, pod: &str) -> Vec<(&'static str, Rule)> {
    vec![
        ("rule_2_marks_of_namespaces", rule_2_marks_of_namespaces()),
        ("rule_2_marks_in_namespaces", rule_2_marks_in_namespaces()),
        ("rule_2_what_the_operator_keeps", rule_2_what_the_operator_keeps(replica_set, pod)),
        ("rule_2_confirmations_are_the_sads", rule_2_confirmations_are_the_sads()),
        ("rule_2_namespaces_of_the_operator", rule_2_namespaces_of_the_operator()),
        ("rule_7_guards_of_the_operator", rule_7_guards_of_the_operator()),
        ("rule_7_roles_of_the_operator", rule_7_roles_of_the_operator()),
        ("rule_7_declarations_are_not_the_operators", rule_7_declarations_are_not_the_operators()),
        ("rule_8_host_names", rule_8_host_names()),
        ("rule_8_routes", rule_8_routes()),
        ("rule_8_services", rule_8_services()),
        ("rule_8_pods", rule_8_pods()),
        ("rule_8_volume_claims", rule_8_volume_claims()),
        ("rule_13_dedicated_databases", rule_13_dedicated_databases()),
        ("rule_8_bindings_of_pods", rule_8_bindings_of_pods()),
        ("rule_7_what_guards_a_namespace", rule_7_what_guards_a_namespace()),
        ("rule_6_figures_of_a_quota", rule_6_figures_of_a_quota()),
        ("rule_1_a_protected_comune", rule_1_a_protected_comune()),
        ("rule_1_namespaces_are_not_deleted_by_accident", rule_1_namespaces_are_not_deleted_by_accident()),
        ("rule_1_definitions_are_not_deleted_by_accident", rule_1_definitions_are_not_deleted_by_accident()),
        (
            "rule_1_the_data_centre_is_not_deleted_by_accident",
            rule_1_the_data_centre_is_not_deleted_by_accident(),
        ),
        ("rule_8_cordon", rule_8_cordon()),
        ("rule_9_approvals_of_migrations", rule_9_approvals_of_migrations()),
    ]
}

// ---------------------------------------------------------------------------------------------- the story

/// A template whose pages need a database, and two Comuni; the operator has ended when they are Ready.
async fn settle() -> Result<World> {
    let data_centre = DataCentre::own("policies", &[]).await?;
    data_centre.two_templates("pol").await?;
    for (name, istat, hosts) in [
        ("pol-a", 904_000, ["www.pol-a.example", "shop.pol-a.example"]),
        ("pol-b", 904_001, ["www.pol-b.example", "shop.pol-b.example"]),
    ] {
        let services = json!([
            {"name": "sito", "template": "pol-portale", "environment": "produzione", "hostname": hosts[0], "database": "archivio"},
            {"name": "shop", "template": "pol-pagina", "environment": "produzione", "hostname": hosts[1]},
        ]);
        let server = "pg-venis-1";
        let spec = json!({
            "entity": entity(name, istat),
            "quota": {"cpu": 8, "memory": "16Gi", "storage": "20Gi", "pods": 60, "services": 20},
            "environments": [{"name": "produzione", "share": 50}, {"name": "collaudo", "share": 50}],
            "administrators": [{"kind": "Group", "name": format!("{name}-ced")}],
            "databases": [{"name": "archivio", "engine": "postgresql", "environment": "produzione", "placement": {"shared": server}}],
            "services": services,
            "protected": name == "pol-b",
        });
        data_centre.apply(name, spec).await?;
    }
    for name in ["pol-a", "pol-b"] {
        data_centre.ready(name).await?;
    }
    data_centre.instance().stop_program(OPERATOR).await?;

    let people = |user: &'static str, group: &'static str| {
        let data_centre = &data_centre;
        async move { data_centre.client_as(user, &[group, "system:authenticated"]).await }
    };
    let clients = vec![
        (Who::Tenant, people("anna", "pol-a-ced").await?),
        (Who::Cordoned, people("bruno", "pol-b-ced").await?),
        (Who::Nora, people("nora", "nobody").await?),
        (Who::Sad, people("sandra", "pol-sad").await?),
        (Who::SadAccount, people("system:serviceaccount:pol-foreign:robot", "pol-sad").await?),
        (Who::Namespaces, people(NAMESPACE_CONTROLLER, "system:serviceaccounts:kube-system").await?),
        (Who::Garbage, people(GARBAGE_COLLECTOR, "system:serviceaccounts:kube-system").await?),
        (Who::Admin, data_centre.client()),
        (Who::Operator, data_centre.client_as_operator().await?),
    ];
    let mut world = World { data_centre, clients };
    furnish(&world).await?;
    furnish_migrations(&world).await?;
    for (who, namespace, account, role) in [
        (Who::Account, NS, "robot", "conme-tenant-admin"),
        (Who::Mallory, NS, "mallory", "cluster-admin"),
        (Who::MalloryB, CORDONED, "mallory", "cluster-admin"),
    ] {
        world
            .write(
                Method::POST,
                &at(namespace, "serviceaccounts", ""),
                object("ServiceAccount", account, json!({})),
            )
            .await?;
        let mut bound = binding("ClusterRole", role);
        bound["metadata"]["name"] = json!(account);
        bound["subjects"] = json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}]);
        world.write(Method::POST, &at(namespace, "rolebindings", ""), bound.clone()).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(world.data_centre.client(), namespace);
        let wanted = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
        let token = accounts.create_token_request(account, &PostParams::default(), &wanted).await?;
        let token = token.status.and_then(|status| status.token).context("a token")?;
        world.clients.push((who, world.data_centre.client_with_token(&token).await?));
        if who == Who::Mallory {
            // There, too, by the same mistake.
            world.write(Method::POST, &at(SYSTEM, "rolebindings", ""), bound).await?;
        }
    }
    // Last: from here on the people of this namespace can do nothing.
    world.label(&namespace(CORDONED), json!({"conme.venis.it/cordoned": "true"})).await?;
    Ok(world)
}

/// What the requests are about: the tenants' own objects, namespaces of all sorts, rights given by mistake.
async fn furnish(world: &World) -> Result<()> {
    let post = async |uri: &str, body: Value| world.write(Method::POST, uri, body).await.map(drop);
    for namespace in [NS, CORDONED] {
        let deployment = with_pods(&json!({"metadata": {"labels": {}}, "spec": pod_spec()})).remove(1).1;
        let rename = |mut object: Value, name: &str| {
            object["metadata"] = json!({"name": name, "labels": {"app": name}});
            object
        };
        post(&at(namespace, "deployments", ""), rename(deployment, "own")).await?;
        post(
            &at(namespace, "configmaps", ""),
            rename(object("ConfigMap", "", json!({"data": {"a": "1"}})), "own"),
        )
        .await?;
        post(
            &at(namespace, "services", ""),
            rename(
                object("Service", "", json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "own"}}})),
                "own",
            ),
        )
        .await?;
        post(&at(namespace, "pods", ""), rename(object("Pod", "", json!({"spec": pod_spec()})), "own"))
            .await?;
        let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "venis-standard"}});
        post(
            &at(namespace, "persistentvolumeclaims", ""),
            rename(object("PersistentVolumeClaim", "", claim), "own"),
        )
        .await?;
    }
    let mut waiting = pod_spec();
    waiting["schedulerName"] = json!("nobody");
    post(&at(NS, "pods", ""), object("Pod", "waiting", json!({"spec": waiting}))).await?;
    let mut tolerant = pod_spec();
    tolerant["tolerations"] = json!([{"operator": "Exists"}]);
    post(&at(NS, "pods", ""), object("Pod", "privileged-by-the-sad", json!({"spec": tolerant}))).await?;
    post(
        &at(NS, "configmaps", ""),
        object("ConfigMap", "marked", json!({"labels": {"conme.venis.it/note": "x"}})),
    )
    .await?;
    post(&at(NS, "resourcequotas", ""), quota("own")).await?;
    post(&at(NS, "networkpolicies", ""), closed("own")).await?;
    let Act::Create(list, ingress) = ingress(|o| o["metadata"]["name"] = json!("own")) else {
        bail!("a creation")
    };
    post(&list, ingress).await?;
    world.write(
        Method::POST,
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "pol-urgent"}, "value": 1000}),
    )
    .await?;
    world.write(
        Method::POST,
        "/apis/node.k8s.io/v1/runtimeclasses",
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "pol-runtime"}, "handler": "other"}),
    )
    .await?;

    for name in ["pol-foreign", "pol-a-estranea", "pol-a-vecchia"] {
        post(NAMESPACES, object("Namespace", name, json!({}))).await?;
    }
    post(&at("pol-foreign", "networkpolicies", ""), closed("somebodys")).await?;
    world.annotate(&namespace("pol-a-vecchia"), json!({"conme.venis.it/adopt": "pol-a"})).await?;
    post(
        &format!("{NAMESPACES}?fieldManager=conme"),
        object("Namespace", "pol-a-spoglia", json!({"labels": {"a": "b"}})),
    )
    .await?;
    post(
        &format!("{NAMESPACES}?fieldManager=conme"),
        marked_namespace("pol-a-rubata", "nessuno", "restricted"),
    )
    .await?;
    for name in ["pol-b-confermata", "pol-b-sbagliata"] {
        post(NAMESPACES, marked_namespace(name, "pol-b", "restricted")).await?;
    }
    world.label(&namespace(PROTECTED), json!({"conme.venis.it/protected": "true"})).await?;
    world
        .annotate(
            &namespace("pol-b-sbagliata"),
            json!({"conme.venis.it/confirm-delete": "pol-b-sbagliata/another"}),
        )
        .await?;
    let mut other = world.get(&format!("{CONME}/datacenters/venis")).await?;
    other["metadata"] = json!({"name": "altro"});
    post(&format!("{CONME}/datacenters"), other).await?;
    // Stand-ins for what other projects define.
    for (group, kind, plural) in [
        ("gateway.networking.k8s.io", "HTTPRoute", "httproutes"),
        ("postgresql.cnpg.io", "Cluster", "clusters"),
    ] {
        let schema = json!({
            "type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        });
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for a story"},
            },
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        });
        post(CRDS, crd).await?;
        eventually("its objects are served", async || {
            Ok(world.ask(Who::Admin, &Act::Get(at(NS, plural, ""))).await?.code == 200)
        })
        .await?;
    }
    for name in ["db-archivio", "db-confermato"] {
        let cluster =
            object("Cluster", name, json!({"labels": {"example.org/a": "b"}, "spec": {"instances": 1}}));
        post(&at(NS, "clusters", ""), cluster).await?;
    }
    let of_cluster = json!({"labels": {"cnpg.io/cluster": "db-archivio"}, "data": {}});
    post(&at(NS, "secrets", ""), object("Secret", "db-archivio-ca", of_cluster)).await?;
    for uri in [
        namespace("pol-b-confermata"),
        namespace(PROTECTED),
        at(NS, "clusters", "db-confermato"),
        format!("{CRDS}/servicetemplates.conme.venis.it"),
        format!("{CONME}/datacenters/altro"),
    ] {
        world.confirm_deletion(&uri).await?;
    }
    world.annotate(&format!("{CONME}/comuni/pol-a"), json!({"example.org/used": "yes"})).await?;

    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let write = ["get", "create", "update", "patch", "delete"];
    let rights = [
        (
            "pol-nora",
            json!({"kind": "User", "name": "nora"}),
            json!([
                rule("", &["namespaces", "namespaces/status", "namespaces/finalize"], &write),
                rule(
                    "apiextensions.k8s.io",
                    &["customresourcedefinitions", "customresourcedefinitions/status"],
                    &write
                ),
                rule("conme.venis.it", &["comuni"], &["get", "patch"]),
            ]),
        ),
        (
            "pol-operator",
            json!({"kind": "ServiceAccount", "name": "conme-operator", "namespace": "conme-system"}),
            json!([
                rule("", &["namespaces", "resourcequotas/status"], &write),
                rule("conme.venis.it", &["comuni", "datacenters"], &["get", "patch", "update", "delete"]),
                rule("conme.venis.it", &["migrations", "migrations/status"], &write),
                rule("conme.venis.it", &["migrations"], &["deletecollection"]),
                rule("postgresql.cnpg.io", &["clusters"], &write),
                rule("rbac.authorization.k8s.io", &["clusterroles", "roles"], &["bind"]),
                rule("rbac.authorization.k8s.io", &["clusterrolebindings"], &["create"]),
            ]),
        ),
    ];
    for (name, subject, rules) in rights {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        post(&format!("{rbac}/clusterroles"), object("ClusterRole", name, json!({"rules": rules}))).await?;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        let bound = object("ClusterRoleBinding", name, json!({"roleRef": role, "subjects": [subject]}));
        post(&format!("{rbac}/clusterrolebindings"), bound).await?;
    }
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "conme-sad-admin"});
    let bound = object(
        "ClusterRoleBinding",
        "pol-sad",
        json!({"roleRef": role, "subjects": [{"kind": "Group", "name": "pol-sad"}]}),
    );
    post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", bound).await?;

    // What the controllers of the cluster make of it.
    for namespace in [NS, CORDONED] {
        eventually("the tenant's own pod stands on a host", async || {
            Ok(world.get(&at(namespace, "pods", "own")).await?["status"]["phase"] == "Running")
        })
        .await?;
    }
    Ok(())
}

const NAMESPACE_CONTROLLER: &str = "system:serviceaccount:kube-system:namespace-controller";
const GARBAGE_COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

/// A migration without approvals, and one with two: of the first epoch and of the second.
async fn furnish_migrations(world: &World) -> Result<()> {
    let really = async |who: Who, method: Method, uri: &str, body: Value| -> Result<()> {
        let content_type =
            if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        // Rights that were given just now are not known everywhere at once.
        eventually("it is written", async || {
            let answer = send(&world.client(who), method.clone(), uri, content_type, &body).await?;
            ensure!(answer.code < 300 || answer.code == 403, "{uri}: {} {}", answer.code, answer.message);
            Ok(answer.code < 300)
        })
        .await
        .with_context(|| uri.to_owned())
    };
    for (name, comune) in [(SYSTEM, "pol-a"), ("pol-b-sistema", "pol-b")] {
        world.write(Method::POST, NAMESPACES, marked_namespace(name, comune, "restricted")).await?;
        let list = at(name, "migrations", "");
        let mut approvals = vec![approval("sandra", 1, "Cutover")];
        really(Who::Sad, Method::POST, &list, migration("fresh", comune, json!([]))).await?;
        really(Who::Sad, Method::POST, &list, migration("approved", comune, json!(approvals))).await?;
        let approved = at(name, "migrations", "approved");
        let status = json!({"status": {"epoch": 2, "phase": "Assessing"}});
        really(Who::Operator, Method::PATCH, &format!("{approved}/status"), status).await?;
        approvals.push(approval("sandra", 2, "Cutover"));
        really(Who::Sad, Method::PATCH, &approved, json!({"spec": {"approvals": approvals}})).await?;
    }
    Ok(())
}

const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_be_done_is_refused_by_the_policy_that_says_so() -> Result<()> {
    let begin = Instant::now();
    let world = settle().await?;
    let named = |list: Value| list["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let of_sito = "?labelSelector=conme.venis.it/service=sito";
    let replica_set = named(world.get(&format!("{}{of_sito}", at(NS, "replicasets", ""))).await?);
    let pod = named(world.get(&format!("{}{of_sito}", at(NS, "pods", ""))).await?);
    println!("settled after {:?}", begin.elapsed());

    let rules = rules(&replica_set, &pod);
    every_policy_has_its_rule_and_no_warning(&world, &rules).await?;
    let mut wrong = Vec::new();
    for (name, rule) in &rules {
        let found = check(&world, rule).await?;
        println!(
            "{name}: {} refused, {} pass, {} wrong",
            rule.refused.len(),
            rule.allowed.len(),
            found.len()
        );
        wrong.extend(found.into_iter().map(|what| format!("{name}: {what}")));
    }
    ensure!(wrong.is_empty(), "{} requests were answered wrongly:\n{}", wrong.len(), wrong.join("\n"));
    println!("asked after {:?}", begin.elapsed());

    rule_6_node_ports_are_a_matter_of_quota(&world).await?;
    rule_8_the_cluster_works_on_in_a_cordoned_namespace(&world).await?;
    rule_8_tenants_have_a_share_of_the_api_server_of_their_own(&world).await?;
    rule_9_what_is_approved_does_not_change(&world).await?;
    rule_9_a_namespace_that_is_deleted_takes_its_migrations_along(&world).await?;
    println!("checked after {:?}", begin.elapsed());
    each_policy_is_what_refuses(&world, &rules).await?;
    println!("done after {:?}", begin.elapsed());
    Ok(())
}

/// What is answered otherwise than it should be.
async fn check(world: &World, rule: &Rule) -> Result<Vec<String>> {
    let refused = join_all(rule.refused.iter().map(|case| world.ask(case.who, &case.act))).await;
    let allowed = join_all(rule.allowed.iter().map(|(who, act)| world.ask(*who, act))).await;
    let mut wrong = Vec::new();
    for (case, answer) in rule.refused.iter().zip(refused) {
        let Answer { code, message, .. } = &answer.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let by = answer.as_ref().ok().and_then(Answer::policy);
        let right = *code == 403
            && message.contains(case.words)
            && (case.twice && by.is_some() || by == Some(rule.policy));
        if !right {
            wrong.push(format!(
                "{:?} has to be refused {:?} with {:?}: {code} {message}",
                case.who, case.act, case.words
            ));
        }
    }
    for ((who, act), answer) in rule.allowed.iter().zip(allowed) {
        let answer = answer?;
        if !answer.passes(act) {
            wrong.push(format!("{who:?} must not be refused {act:?}: {} {}", answer.code, answer.message));
        }
    }
    Ok(wrong)
}

async fn every_policy_has_its_rule_and_no_warning(world: &World, rules: &[(&str, Rule)]) -> Result<()> {
    let covered: BTreeSet<String> = rules.iter().map(|(_, rule)| rule.policy.to_owned()).collect();
    let names = |list: &Value| -> BTreeSet<String> {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.iter().filter_map(|item| item["metadata"]["name"].as_str()).map(str::to_owned).collect()
    };
    assert_eq!(
        names(&world.get(POLICIES).await?),
        covered,
        "every policy has cases, and every case a policy"
    );
    let bindings = world.get(BINDINGS).await?;
    assert_eq!(names(&bindings), covered);
    for binding in bindings["items"].as_array().into_iter().flatten() {
        assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]), "{}", binding["metadata"]["name"]);
        assert!(binding["spec"]["matchResources"].is_null(), "{}", binding["metadata"]["name"]);
    }
    eventually("every policy is checked", async || {
        let policies = world.get(POLICIES).await?;
        for policy in policies["items"].as_array().into_iter().flatten() {
            let name = &policy["metadata"]["name"];
            assert_eq!(policy["spec"]["failurePolicy"], "Fail", "{name}");
            if policy["status"]["observedGeneration"] != policy["metadata"]["generation"] {
                return Ok(false);
            }
            let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
            assert!(warnings.as_array().is_none_or(Vec::is_empty), "{name}: {warnings:#}");
        }
        Ok(true)
    })
    .await
}

async fn rule_6_node_ports_are_a_matter_of_quota(world: &World) -> Result<()> {
    for kind in ["NodePort", "LoadBalancer"] {
        let service = object("Service", "new", json!({"spec": {"type": kind, "ports": [{"port": 80}]}}));
        let answer = world.ask(Who::Tenant, &Act::Create(at(NS, "services", ""), service)).await?;
        ensure!(
            answer.code == 403 && answer.message.contains("exceeded quota"),
            "{kind}: {}",
            answer.message
        );
    }
    Ok(())
}

/// A Deployment in a cordoned namespace is scaled by the SAD: controllers, scheduler and hosts do their part.
async fn rule_8_the_cluster_works_on_in_a_cordoned_namespace(world: &World) -> Result<()> {
    let deployment = at(CORDONED, "deployments", "own");
    world.write(Method::PATCH, &deployment, json!({"spec": {"replicas": 2}})).await?;
    eventually("two pods are up in the cordoned namespace", async || {
        Ok(world.get(&deployment).await?["status"]["readyReplicas"] == 2)
    })
    .await?;
    let pods = format!("{}?labelSelector=app=new", at(CORDONED, "pods", ""));
    let before =
        world.get(&pods).await?["items"][0]["metadata"]["name"].as_str().context("a pod")?.to_owned();
    world.write(Method::DELETE, &at(CORDONED, "pods", &before), json!({})).await?;
    eventually("another pod has taken its place", async || {
        let pods = world.get(&pods).await?;
        let names: Vec<&str> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        Ok(!names.contains(&before.as_str()) && world.get(&deployment).await?["status"]["readyReplicas"] == 2)
    })
    .await
}

async fn rule_8_tenants_have_a_share_of_the_api_server_of_their_own(world: &World) -> Result<()> {
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let uid = async |plural: &str, name: &str| -> Result<String> {
        let object = world.get(&format!("{flow}/{plural}/{name}")).await?;
        Ok(object["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    };
    let pods = Act::Get(at(NS, "pods", ""));
    let nodes = Act::Get("/api/v1/nodes".into());
    let version = Act::Get("/version".into());
    let config = Act::Merge(at(NS, "configmaps", "own"), json!({"data": {"a": "3"}}));
    for (who, schema, level) in [
        (Who::Tenant, "conme-tenants", "conme-tenants"),
        (Who::Account, "conme-tenants", "conme-tenants"),
        (Who::Mallory, "conme-tenants", "conme-tenants"),
        (Who::Operator, "conme-operator", "conme-operator"),
        (Who::Admin, "exempt", "exempt"),
    ] {
        // Also what is refused afterwards takes a seat.
        for act in [&pods, &nodes, &version, &config] {
            let answer = world.ask(who, act).await?;
            let header = |name: &str| {
                answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
            };
            assert_eq!(
                header("x-kubernetes-pf-flowschema-uid"),
                uid("flowschemas", schema).await?,
                "{who:?} {act:?}"
            );
            assert_eq!(
                header("x-kubernetes-pf-prioritylevel-uid"),
                uid("prioritylevelconfigurations", level).await?,
                "{who:?} {act:?}"
            );
        }
    }
    // The cluster's own controllers keep theirs.
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
    let controller = world.data_centre.client_as("system:serviceaccount:kube-system:x", &groups).await?;
    let answer = send(&controller, Method::GET, "/version", "application/json", &Value::Null).await?;
    let schema = answer.headers.get("x-kubernetes-pf-flowschema-uid").context("a header")?;
    assert_eq!(schema.to_str()?, uid("flowschemas", "kube-system-service-accounts").await?);
    Ok(())
}

/// By the definition itself, whatever policies are in force.
async fn rule_9_what_is_approved_does_not_change(world: &World) -> Result<()> {
    let approved = at(SYSTEM, "migrations", "approved");
    for (spec, words) in [
        (json!({"workload": "documenti"}), "what is migrated cannot change"),
        (json!({"server": "srv-altro"}), "what is migrated cannot change"),
        (json!({"comune": "pol-b"}), "what is migrated cannot change"),
        (json!({"cutover": "At"}), "give a time exactly when cutover is At"),
        (json!({"cutoverAt": "2026-03-02T18:30:00Z"}), "give a time exactly when cutover is At"),
        (json!({"cutover": "At", "cutoverAt": "this evening"}), "date-time"),
    ] {
        let answer = world.ask(Who::Admin, &Act::Merge(approved.clone(), json!({"spec": spec}))).await?;
        ensure!(
            answer.code == 422 && answer.message.contains(words),
            "{spec}: {} {}",
            answer.code,
            answer.message
        );
    }
    let in_time = json!({"spec": {"cutover": "At", "cutoverAt": "2026-03-02T18:30:00Z"}});
    let answer = world.ask(Who::Sad, &Act::Merge(approved, in_time)).await?;
    ensure!(answer.code == 200, "{} {}", answer.code, answer.message);
    Ok(())
}

async fn rule_9_a_namespace_that_is_deleted_takes_its_migrations_along(world: &World) -> Result<()> {
    let uri = namespace("pol-b-sistema");
    world.confirm_deletion(&uri).await?;
    world.write(Method::DELETE, &uri, json!({})).await?;
    eventually("the namespace is gone", async || {
        Ok(world.ask(Who::Admin, &Act::Get(uri.clone())).await?.code == 404)
    })
    .await
}

/// Takes the bindings away one by one: what was refused has to pass, or it was something else that refused.
async fn each_policy_is_what_refuses(world: &World, rules: &[(&str, Rule)]) -> Result<()> {
    for (name, rule) in rules {
        let uri = format!("{BINDINGS}/{}", rule.policy);
        let mut binding = world.get(&uri).await?;
        world.write(Method::DELETE, &uri, json!({})).await?;
        let cases: Vec<&Refused> = rule.refused.iter().filter(|case| !case.twice).collect();
        let first = cases.first().with_context(|| format!("{name} has no case of its own"))?;
        eventually("the policy is out of force", async || {
            Ok(world.ask(first.who, &first.act).await?.policy() != Some(rule.policy))
        })
        .await?;
        let answers = join_all(cases.iter().map(|case| world.ask(case.who, &case.act))).await;
        for (case, answer) in cases.iter().zip(answers) {
            let answer = answer?;
            ensure!(
                answer.passes(&case.act),
                "{name}: without {} {:?} is still refused {:?}: {} {}",
                rule.policy,
                case.who,
                case.act,
                answer.code,
                answer.message
            );
        }
        binding["metadata"] = json!({"name": rule.policy, "labels": binding["metadata"]["labels"]});
        // It comes into force while the next one goes; no case of one is refused by another.
        world.write(Method::POST, BINDINGS, binding).await?;
    }
    for (name, rule) in rules {
        eventually("every policy is in force again", async || Ok(check(world, rule).await?.is_empty()))
            .await
            .with_context(|| (*name).to_owned())?;
    }
    Ok(())
}
