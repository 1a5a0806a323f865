//! What a Comune's people can do in their own namespaces, and that they can do nothing else: neither to what guards
//! these, nor to other Comuni, nor to the data centre. Every refusal is a real request, and every such request is one
//! that the cluster's administrator may make.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, ensure};
use conme_blueprint::{Kind, amount::Amount};
use conme_stories::{DataCentre, entity, eventually};
use futures::future::join_all;
use http::{Method, Request};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ResourceQuota, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    client::Body,
};
use serde_json::{Value, json};

// ---------------------------------------------------------------------------------------------- requests

/// A resource with one of its objects, in a namespace or in the whole cluster.
#[derive(Clone, Debug)]
struct Target {
    /// Address of the list.
    list: String,
    name: String,
    kind: &'static str,
    api_version: &'static str,
}

type Change = fn(&mut Value);

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

fn target(
    namespace: &str,
    api_version: &'static str,
    kind: &'static str,
    plural: &str,
    name: &str,
) -> Target {
    let root = if api_version.contains('/') {
        format!("/apis/{api_version}")
    } else {
        format!("/api/{api_version}")
    };
    let list = if namespace.is_empty() {
        format!("{root}/{plural}")
    } else {
        format!("{root}/namespaces/{namespace}/{plural}")
    };
    Target { list, name: name.to_owned(), kind, api_version }
}

/// Status code and message of a request.
async fn ask(
    client: &Client,
    method: Method,
    uri: &str,
    content_type: &str,
    body: &Value,
) -> Result<(u16, String)> {
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", content_type)
        .body(Body::from(bytes))?;
    let (head, body) = client.send(request).await?.into_parts();
    if head.status == 200 && uri.contains("watch=true") {
        // It goes on: that it has begun is the answer.
        return Ok((200, String::new()));
    }
    let text = String::from_utf8_lossy(&body.collect_bytes().await?).into_owned();
    Ok((head.status.as_u16(), text))
}

/// One verb on a target as a real request; whatever would change something is a dry run.
async fn attempt(client: &Client, verb: &str, target: &Target, live: &Value) -> Result<(u16, String)> {
    let object = format!("{}/{}", target.list, target.name);
    let json = "application/json";
    let mut new = live.clone();
    if new.is_null() {
        new = json!({"metadata": {}});
    }
    new["apiVersion"] = json!(target.api_version);
    new["kind"] = json!(target.kind);
    let update = new.clone();
    new["metadata"] = json!({"name": "iso-new"});
    // What the API server itself has written into it belongs to that one object.
    new.as_object_mut().unwrap().remove("status");
    if target.kind == "Pod" {
        new["spec"].as_object_mut().map(|spec| spec.remove("nodeName"));
    }
    if target.kind == "Job" {
        new["spec"]["selector"] = Value::Null;
        new["spec"]["template"]["metadata"] = json!({});
    }
    let none = Value::Null;
    let label = json!({"metadata": {"labels": {"iso": "tried"}}});
    match verb {
        "get" => ask(client, Method::GET, &object, json, &none).await,
        "list" => ask(client, Method::GET, &format!("{}?limit=1", target.list), json, &none).await,
        "watch" => {
            let uri = format!(
                "{}?watch=true&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name%3Dnothing-at-all",
                target.list
            );
            ask(client, Method::GET, &uri, json, &none).await
        }
        "create" => ask(client, Method::POST, &format!("{}?dryRun=All", target.list), json, &new).await,
        "update" => ask(client, Method::PUT, &format!("{object}?dryRun=All"), json, &update).await,
        "patch" => {
            ask(
                client,
                Method::PATCH,
                &format!("{object}?dryRun=All"),
                "application/merge-patch+json",
                &label,
            )
            .await
        }
        "delete" => ask(client, Method::DELETE, &format!("{object}?dryRun=All"), json, &none).await,
        "deletecollection" => {
            ask(client, Method::DELETE, &format!("{}?dryRun=All", target.list), json, &none).await
        }
        other => panic!("{other}"),
    }
}

fn text(message: &str) -> String {
    serde_json::from_str::<Value>(message)
        .ok()
        .and_then(|status| Some(status["message"].as_str()?.to_owned()))
        .unwrap_or_else(|| message.to_owned())
}

/// The object as the administrator sees it; null where there is none, as of a subresource that cannot be read.
async fn live(admin: &Client, target: &Target) -> Result<Value> {
    let uri = format!("{}/{}", target.list, target.name);
    let (code, body) = ask(admin, Method::GET, &uri, "application/json", &Value::Null).await?;
    Ok(if code == 200 { serde_json::from_str(&body)? } else { Value::Null })
}

/// Each of these requests is refused to each of these people for want of rights, and is one that exists: the
/// administrator of the cluster is not refused.
async fn refused(
    admin: &Client,
    people: &[(&str, Client)],
    targets: &[Target],
    verbs: &[&str],
) -> Result<usize> {
    let mut count = 0;
    for target in targets {
        let live = live(admin, target).await?;
        for verb in verbs {
            // Only what the API server knows can be refused for the right reason.
            let (code, body) = attempt(admin, verb, target, &live).await?;
            // What nobody deletes without a word of his own is not refused for want of rights.
            let protected = code == 403 && body.contains("ValidatingAdmissionPolicy 'conme-protected-");
            ensure!(
                protected || ![401, 403, 404].contains(&code),
                "the control: {verb} {target:?} answers {code}: {}",
                text(&body)
            );
            let answers =
                join_all(people.iter().map(|(_, client)| attempt(client, verb, target, &live))).await;
            for ((who, _), answer) in people.iter().zip(answers) {
                let (code, body) = answer?;
                ensure!(code == 403, "{who} may {verb} {target:?}: {code} {}", text(&body));
                ensure!(
                    text(&body).contains("cannot "),
                    "{who}, {verb} {target:?}: refused for another reason: {}",
                    text(&body)
                );
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Each of these requests is granted to each of these people.
async fn granted(
    admin: &Client,
    people: &[(&str, Client)],
    targets: &[Target],
    verbs: &[&str],
) -> Result<()> {
    for target in targets {
        let live = live(admin, target).await?;
        for verb in verbs {
            for (who, client) in people {
                let (code, body) = attempt(client, verb, target, &live).await?;
                ensure!(
                    (200..300).contains(&code),
                    "{who} may not {verb} {target:?}: {code} {}",
                    text(&body)
                );
            }
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- the Comuni

const QUOTA: u32 = 2;

fn spec(name: &str, istat: u32) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": QUOTA, "memory": "4Gi", "storage": "20Gi", "pods": 40, "services": 10},
        "environments": [
            {"name": "produzione", "share": 50},
            {"name": "collaudo", "share": 50, "podSecurity": "baseline"},
        ],
        "administrators": [
            {"kind": "Group", "name": format!("{name}-ced")},
            {"kind": "ServiceAccount", "name": "pipeline", "namespace": format!("{name}-collaudo")},
        ],
        "viewers": [{"kind": "User", "name": format!("{name}-viewer")}],
    })
}

struct People {
    administrator: Client,
    pipeline: Client,
    viewer: Client,
}

impl People {
    async fn of(data_centre: &DataCentre, comune: &str) -> Result<Self> {
        let group = format!("{comune}-ced");
        let administrator = data_centre.client_as("anna", &[&group, "system:authenticated"]).await?;
        let viewer = data_centre.client_as(&format!("{comune}-viewer"), &["system:authenticated"]).await?;
        // The account of a pipeline is the tenant's own to make; its token is given out by the cluster.
        let namespace = format!("{comune}-collaudo");
        let accounts: Api<ServiceAccount> = Api::namespaced(administrator.clone(), &namespace);
        accounts
            .create(
                &PostParams::default(),
                &serde_json::from_value(json!({"metadata": {"name": "pipeline"}}))?,
            )
            .await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(data_centre.client(), &namespace);
        let wanted = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
        let token = accounts.create_token_request("pipeline", &PostParams::default(), &wanted).await?;
        let token = token.status.and_then(|status| status.token).context("a token")?;
        let pipeline = data_centre.client_with_token(&token).await?;
        Ok(Self { administrator, pipeline, viewer })
    }

    fn all(&self) -> Vec<(&'static str, Client)> {
        let mut people = self.administrators();
        people.push(("viewer", self.viewer.clone()));
        people
    }

    fn administrators(&self) -> Vec<(&'static str, Client)> {
        vec![("administrator", self.administrator.clone()), ("pipeline", self.pipeline.clone())]
    }
}

async fn settle(data_centre: &DataCentre, name: &str, istat: u32) -> Result<People> {
    data_centre.apply(name, spec(name, istat)).await?;
    data_centre.ready(name).await?;
    People::of(data_centre, name).await
}

fn guards(namespace: &str) -> Vec<Target> {
    vec![
        target(namespace, "v1", "ResourceQuota", "resourcequotas", "conme-quota"),
        target(namespace, "v1", "LimitRange", "limitranges", "conme-limits"),
        target(namespace, "networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", "conme-default-deny"),
        target(namespace, "rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", "conme-operator"),
    ]
}

fn good_pod(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "own"}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": "registry.example/own:1",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "resources": {"requests": {"cpu": cpu, "memory": "16Mi"}, "limits": {"cpu": cpu, "memory": "16Mi"}},
            }],
        },
    })
}

/// One object of every kind that is the tenant's own business, without its metadata.
fn own_business() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let pod = good_pod("own", "10m");
    // Not the label of the pod that stands alone: a controller would take it for one of its own.
    let template = json!({"metadata": {"labels": {"app": "many"}}, "spec": pod["spec"]});
    let selector = json!({"matchLabels": {"app": "many"}});
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = json!("Never");
    vec![
        ("v1", "ConfigMap", "configmaps", json!({"data": {"a": "1"}})),
        ("v1", "Secret", "secrets", json!({"stringData": {"a": "1"}})),
        ("v1", "Service", "services", json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "own"}}})),
        ("v1", "ServiceAccount", "serviceaccounts", json!({})),
        (
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        ("v1", "Pod", "pods", json!({"spec": pod["spec"]})),
        (
            "apps/v1",
            "Deployment",
            "deployments",
            json!({"spec": {"replicas": 0, "selector": selector, "template": template}}),
        ),
        (
            "apps/v1",
            "ReplicaSet",
            "replicasets",
            json!({"spec": {"replicas": 0, "selector": selector, "template": template}}),
        ),
        (
            "apps/v1",
            "StatefulSet",
            "statefulsets",
            json!({"spec": {"replicas": 0, "serviceName": "own", "selector": selector, "template": template}}),
        ),
        ("batch/v1", "Job", "jobs", json!({"spec": {"suspend": true, "template": once}})),
        (
            "batch/v1",
            "CronJob",
            "cronjobs",
            json!({"spec": {"suspend": true, "schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": once}}}}),
        ),
        (
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "own"}}}),
        ),
        (
            "policy/v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            json!({"spec": {"maxUnavailable": 1, "selector": selector}}),
        ),
        (
            "networking.k8s.io/v1",
            "Ingress",
            "ingresses",
            json!({"spec": {"rules": [{"host": "own.example"}], "ingressClassName": "nginx"}}),
        ),
    ]
}

fn own_targets(namespace: &str) -> Vec<Target> {
    own_business()
        .iter()
        .map(|(version, kind, plural, _)| target(namespace, version, kind, plural, "own"))
        .collect()
}

/// Makes one object of each kind as the tenant; the Ingress as the administrator, since its host name is not declared.
async fn make_own(admin: &Client, tenant: &Client, namespace: &str) -> Result<()> {
    for (version, kind, plural, content) in own_business() {
        let client = if kind == "Ingress" { admin } else { tenant };
        let mut object = content;
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "own", "labels": {"app": "own"}});
        let target = target(namespace, version, kind, plural, "own");
        let (code, body) = ask(client, Method::POST, &target.list, "application/json", &object).await?;
        ensure!(code == 201, "create {kind}: {code} {}", text(&body));
    }
    Ok(())
}

/// Whether somebody may do something, by the API server's own word.
async fn may(client: &Client, namespace: &str, verb: &str, group: &str, resource: &str) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
        }},
    });
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, body) = ask(client, Method::POST, uri, "application/json", &review).await?;
    ensure!(code == 201, "{code} {body}");
    Ok(serde_json::from_str::<Value>(&body)?["status"]["allowed"] == true)
}

// ---------------------------------------------------------------------------------------------- rights

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_runs_workloads_in_its_own_namespaces_and_a_viewer_only_looks() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let people = settle(&data_centre, "iso-work", 901_200).await?;
    let admin = data_centre.client();
    for environment in ["produzione", "collaudo"] {
        let namespace = format!("iso-work-{environment}");
        let own = own_targets(&namespace);
        make_own(&admin, &people.administrator, &namespace).await?;
        let (named, free): (Vec<Target>, Vec<Target>) =
            own.iter().cloned().partition(|target| target.kind == "Ingress");
        granted(&admin, &people.administrators(), &free, &VERBS).await?;
        // Of what leads in from outside the host name counts: a story of its own, `policies`.
        granted(
            &admin,
            &people.administrators(),
            &named,
            &[&READ[..], &["delete", "deletecollection"]].concat(),
        )
        .await?;
        let (secrets, others): (Vec<Target>, Vec<Target>) =
            own.iter().cloned().partition(|target| target.kind == "Secret");
        let viewer = [("viewer", people.viewer.clone())];
        granted(&admin, &viewer, &others, &READ).await?;
        refused(&admin, &viewer, &others, &WRITE).await?;
        refused(&admin, &viewer, &secrets, &VERBS).await?;
        // What guards a namespace can be read by those whom it holds for, and no more.
        granted(&admin, &people.all(), &guards(&namespace), &READ).await?;
        refused(&admin, &people.all(), &guards(&namespace), &WRITE).await?;

        for (resource, verb) in [
            ("pods/exec", "create"),
            ("pods/exec", "get"),
            ("pods/portforward", "create"),
            ("pods/attach", "create"),
            ("pods/eviction", "create"),
        ] {
            for (who, client) in people.administrators() {
                ensure!(may(&client, &namespace, verb, "", resource).await?, "{who} {verb} {resource}");
            }
            ensure!(!may(&people.viewer, &namespace, verb, "", resource).await?, "viewer {verb} {resource}");
        }
        // A simulated host has no logs to give; what counts is that nobody says no.
        let log = format!("/api/v1/namespaces/{namespace}/pods/own/log");
        for (who, client) in people.all() {
            let (code, body) = ask(&client, Method::GET, &log, "application/json", &Value::Null).await?;
            ensure!(code != 403 || !text(&body).contains("cannot "), "{who}: {code} {body}");
        }
        let exec = format!("/api/v1/namespaces/{namespace}/pods/own/exec?command=true&stdout=true");
        let (code, _) = ask(&people.viewer, Method::POST, &exec, "application/json", &Value::Null).await?;
        assert_eq!(code, 403);
        // Really, not only as a dry run.
        for target in &own {
            let uri = format!("{}/{}", target.list, target.name);
            let (code, body) =
                ask(&people.administrator, Method::DELETE, &uri, "application/json", &Value::Null).await?;
            ensure!((200..300).contains(&code), "delete {target:?}: {code} {}", text(&body));
        }
    }
    data_centre.tidy_up("iso-work").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_no_rights_on_the_data_centre_nor_on_other_comuni() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let people = settle(&data_centre, "iso-a", 901_201).await?;
    let other = settle(&data_centre, "iso-b", 901_202).await?;
    let admin = data_centre.client();
    make_own(&admin, &other.administrator, "iso-b-collaudo").await?;
    let core = "v1";
    let rbac = "rbac.authorization.k8s.io/v1";
    let conme = "conme.venis.it/v1alpha1";
    let node = first_name(&admin, "/api/v1/nodes").await?;
    let whole = |api_version, kind, plural, name: &str| target("", api_version, kind, plural, name);

    // The data centre as a whole.
    let cluster = [
        whole(core, "Namespace", "namespaces", "iso-b-produzione"),
        whole(core, "Node", "nodes", &node),
        whole(core, "PersistentVolume", "persistentvolumes", "simulated-000"),
        whole("storage.k8s.io/v1", "StorageClass", "storageclasses", "venis-standard"),
        whole(rbac, "ClusterRole", "clusterroles", "conme-tenant-admin"),
        whole(rbac, "ClusterRoleBinding", "clusterrolebindings", "conme-operator"),
        whole(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "comuni.conme.venis.it",
        ),
        whole(conme, "Comune", "comuni", "iso-b"),
        whole(conme, "DataCenter", "datacenters", "venis"),
        whole(conme, "ServiceTemplate", "servicetemplates", "gis"),
    ];
    let everybody = people.all();
    let tried = refused(&admin, &everybody, &cluster, &VERBS).await?;
    assert_eq!(tried, cluster.len() * VERBS.len() * everybody.len());
    // Of these there may be none: only what needs no object.
    let without_objects = [
        whole(
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
            "none",
        ),
        whole(
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
            "none",
        ),
        whole(
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            "none",
        ),
        whole(
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            "none",
        ),
        whole("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", "none"),
        whole("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests", "none"),
    ];
    refused(&admin, &everybody, &without_objects, &["list", "watch", "create", "deletecollection"]).await?;
    // Its own Comune is not its own to change, nor its own namespace.
    let own = [
        whole(conme, "Comune", "comuni", "iso-a"),
        whole(core, "Namespace", "namespaces", "iso-a-produzione"),
    ];
    refused(&admin, &everybody, &own, &WRITE).await?;

    // Status and other subresources.
    for (list, name, subresource, api_version, kind) in [
        ("/apis/conme.venis.it/v1alpha1/comuni", "iso-a", "status", conme, "Comune"),
        ("/apis/conme.venis.it/v1alpha1/datacenters", "venis", "status", conme, "DataCenter"),
        ("/apis/conme.venis.it/v1alpha1/servicetemplates", "gis", "status", conme, "ServiceTemplate"),
        ("/api/v1/namespaces", "iso-a-produzione", "status", core, "Namespace"),
        (
            "/api/v1/namespaces/iso-a-produzione/resourcequotas",
            "conme-quota",
            "status",
            core,
            "ResourceQuota",
        ),
    ] {
        let target = Target { list: list.into(), name: format!("{name}/{subresource}"), kind, api_version };
        refused(&admin, &everybody, &[target], &["get", "update", "patch"]).await?;
    }
    let namespace: Value = live(&admin, &whole(core, "Namespace", "namespaces", "iso-a-produzione")).await?;
    let finalize = "/api/v1/namespaces/iso-a-produzione/finalize?dryRun=All";
    let (code, _) = ask(&admin, Method::PUT, finalize, "application/json", &namespace).await?;
    assert_eq!(code, 200, "the control");
    for (who, client) in &everybody {
        let (code, body) = ask(client, Method::PUT, finalize, "application/json", &namespace).await?;
        ensure!(code == 403, "{who} may finalize its namespace: {code} {body}");
    }

    // In namespaces: another Comune's, Con.Me's, the cluster's and one of nobody.
    let foreign = |namespace: &str, secret: &str, account: &str| {
        vec![
            target(namespace, core, "Secret", "secrets", secret),
            target(namespace, core, "ConfigMap", "configmaps", "kube-root-ca.crt"),
            target(namespace, core, "ServiceAccount", "serviceaccounts", account),
        ]
    };
    refused(&admin, &everybody, &own_targets("iso-b-collaudo"), &VERBS).await?;
    refused(&admin, &everybody, &guards("iso-b-collaudo"), &VERBS).await?;
    refused(&admin, &everybody, &foreign("conme-system", "pg-venis-1-admin", "conme-operator"), &VERBS)
        .await?;
    for namespace in ["kube-system", "default"] {
        let open = &foreign(namespace, "none", "default")[1..];
        refused(&admin, &everybody, open, &VERBS).await?;
        let listed: Vec<Target> = own_targets(namespace).into_iter().chain(guards(namespace)).collect();
        refused(&admin, &everybody, &listed, &["list", "watch", "create", "deletecollection"]).await?;
    }
    // What would lead around the guards in one's own namespace.
    for namespace in ["iso-a-produzione", "iso-a-collaudo"] {
        let around = [
            target(namespace, core, "Endpoints", "endpoints", "none"),
            target(namespace, "discovery.k8s.io/v1", "EndpointSlice", "endpointslices", "none"),
            target(namespace, rbac, "Role", "roles", "none"),
            target(namespace, "apps/v1", "DaemonSet", "daemonsets", "none"),
            target(namespace, "coordination.k8s.io/v1", "Lease", "leases", "none"),
        ];
        refused(&admin, &everybody, &around, &["list", "watch", "create", "deletecollection"]).await?;
    }
    // The other one's administrators are people of the same kind, and are let in where these are not.
    granted(&admin, &other.administrators(), &own_targets("iso-b-collaudo"), &READ).await?;
    refused(
        &admin,
        &other.all(),
        &own_targets("iso-a-collaudo"),
        &["list", "watch", "create", "deletecollection"],
    )
    .await?;

    // Tokens of others, other people's names, roles beyond one's own.
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    for account in [
        "conme-system/serviceaccounts/conme-operator",
        "iso-b-collaudo/serviceaccounts/pipeline",
        "iso-a-collaudo/serviceaccounts/pipeline",
    ] {
        let uri = format!("/api/v1/namespaces/{account}/token");
        let (code, _) = ask(&admin, Method::POST, &uri, "application/json", &request).await?;
        assert_eq!(code, 201, "the control");
        for (who, client) in &everybody {
            let (code, body) = ask(client, Method::POST, &uri, "application/json", &request).await?;
            ensure!(code == 403, "{who} gets a token of {account}: {code} {body}");
        }
    }
    for header in [
        ("impersonate-user", "kubernetes-admin"),
        ("impersonate-user", "iso-b-viewer"),
        ("impersonate-user", "system:serviceaccount:conme-system:conme-operator"),
    ] {
        let request = |client: &Client| {
            let request = Request::get("/api/v1/namespaces/iso-a-collaudo/configmaps")
                .header(header.0, header.1)
                .body(Body::empty());
            let client = client.clone();
            async move { anyhow::Ok(client.send(request?).await?.status().as_u16()) }
        };
        assert_eq!(request(&people.pipeline).await?, 403, "{header:?}");
    }
    granted(
        &admin,
        &[("pipeline", people.pipeline.clone())],
        &[target("iso-a-collaudo", core, "ConfigMap", "configmaps", "kube-root-ca.crt")],
        &READ,
    )
    .await?;
    for (verb, resource) in [
        ("escalate", "roles"),
        ("bind", "roles"),
        ("escalate", "clusterroles"),
        ("bind", "clusterroles"),
        ("create", "roles"),
    ] {
        for (who, client) in &everybody {
            ensure!(
                !may(client, "iso-a-collaudo", verb, "rbac.authorization.k8s.io", resource).await?,
                "{who} {verb} {resource}"
            );
        }
        ensure!(
            may(&admin, "iso-a-collaudo", verb, "rbac.authorization.k8s.io", resource).await?,
            "the control"
        );
    }
    for resource in ["users", "groups", "serviceaccounts"] {
        ensure!(
            !may(&people.administrator, "iso-a-collaudo", "impersonate", "", resource).await?,
            "{resource}"
        );
    }
    data_centre.tidy_up("iso-a").await?;
    data_centre.tidy_up("iso-b").await
}

async fn first_name(admin: &Client, list: &str) -> Result<String> {
    let (_, body) =
        ask(admin, Method::GET, &format!("{list}?limit=1"), "application/json", &Value::Null).await?;
    let body: Value = serde_json::from_str(&body)?;
    Ok(body["items"][0]["metadata"]["name"].as_str().context("there is one")?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_named_gets_nothing() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let people = settle(&data_centre, "iso-nobody", 901_203).await?;
    let namespace = "iso-nobody-collaudo";
    let admin = data_centre.client();
    make_own(&admin, &people.administrator, namespace).await?;
    let strangers = [
        ("nobody", data_centre.client_as("nobody", &["system:authenticated"]).await?),
        (
            "a group of a similar name",
            data_centre.client_as("anna", &["iso-nobody-ced2", "system:authenticated"]).await?,
        ),
        (
            "a user called as the group",
            data_centre.client_as("iso-nobody-ced", &["system:authenticated"]).await?,
        ),
        (
            "a group called as the user",
            data_centre.client_as("x", &["iso-nobody-viewer", "system:authenticated"]).await?,
        ),
    ];
    let everything: Vec<Target> = own_targets(namespace).into_iter().chain(guards(namespace)).collect();
    refused(&admin, &strangers, &everything, &VERBS).await?;
    let unknown = data_centre.client_with_token("not.a.token").await?;
    for verb in VERBS {
        let (code, _) = attempt(&unknown, verb, &everything[0], &json!({"metadata": {}})).await?;
        assert_eq!(code, 401, "{verb}");
    }
    // The control: the same requests by those who are named.
    let own = own_targets(namespace).into_iter().filter(|target| target.kind != "Ingress");
    granted(&admin, &people.administrators(), &own.collect::<Vec<_>>(), &VERBS).await?;
    data_centre.tidy_up("iso-nobody").await
}

// ---------------------------------------------------------------------------------------------- pods and quota

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_reaches_for_its_host_is_refused() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let people = settle(&data_centre, "iso-pods", 901_204).await?;
    let harmful: [(&str, Change); 6] = [
        ("privileged", |pod| pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true})),
        ("hostPath", |pod| pod["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": "/"}}])),
        ("hostNetwork", |pod| pod["spec"]["hostNetwork"] = json!(true)),
        ("hostPID", |pod| pod["spec"]["hostPID"] = json!(true)),
        ("hostPort", |pod| {
            pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}])
        }),
        ("a capability", |pod| {
            pod["spec"]["containers"][0]["securityContext"]["capabilities"] = json!({"add": ["SYS_ADMIN"]})
        }),
    ];
    for environment in ["produzione", "collaudo"] {
        let pods = format!("/api/v1/namespaces/iso-pods-{environment}/pods?dryRun=All");
        let create = async |pod: &Value| {
            ask(&people.administrator, Method::POST, &pods, "application/json", pod).await
        };
        let (code, body) = create(&good_pod("good", "10m")).await?;
        assert_eq!(code, 201, "{body}");
        for (what, harm) in harmful {
            let mut pod = good_pod("harmful", "10m");
            harm(&mut pod);
            let (code, body) = create(&pod).await?;
            ensure!(
                code == 403 && text(&body).contains("violates PodSecurity"),
                "{what} in {environment}: {code} {body}"
            );
        }
        // Where the levels differ: a container that may run as root.
        let mut root = good_pod("root", "10m");
        root["spec"]["securityContext"] = json!({});
        root["spec"]["containers"][0]["securityContext"] = json!({});
        let expected = if environment == "produzione" { 403 } else { 201 };
        let (code, body) = create(&root).await?;
        assert_eq!(code, expected, "{environment}: {}", text(&body));
    }
    data_centre.tidy_up("iso-pods").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_6_the_quota_holds_to_the_last_thousandth_under_concurrent_creations() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let people = settle(&data_centre, "iso-quota", 901_205).await?;
    let create = async |environment: &str, number: usize| -> Result<bool> {
        let pods = format!("/api/v1/namespaces/iso-quota-{environment}/pods");
        let pod = good_pod(&format!("pod-{number}"), "250m");
        for _ in 0..50 {
            let (code, body) =
                ask(&people.administrator, Method::POST, &pods, "application/json", &pod).await?;
            match code {
                201 => return Ok(true),
                403 if text(&body).contains("exceeded quota") => return Ok(false),
                // Several at once were counted on the same figures: the API server asks to try again.
                409 | 500 if text(&body).contains("resourcequotas") => {}
                _ => anyhow::bail!("{code} {body}"),
            }
        }
        anyhow::bail!("never an answer")
    };
    let attempts = (0..10).flat_map(|number| [("produzione", number), ("collaudo", number)]);
    let results = join_all(attempts.map(|(environment, number)| create(environment, number))).await;
    let admitted =
        results.into_iter().collect::<Result<Vec<bool>>>()?.into_iter().filter(|admitted| *admitted).count();
    assert_eq!(admitted, 8, "two namespaces of one vCPU each, a quarter a pod");
    let mut sum = Amount::ZERO;
    for environment in ["produzione", "collaudo"] {
        let namespace = format!("iso-quota-{environment}");
        let pods: Api<Pod> = Api::namespaced(data_centre.client(), &namespace);
        let pods = pods.list(&ListParams::default()).await?;
        assert_eq!(pods.items.len(), 4, "{namespace}");
        for pod in &pods {
            let pod = serde_json::to_value(pod)?;
            let text = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"]
                .as_str()
                .context("a request")?
                .to_owned();
            sum =
                [sum, Amount::parse(&text).map_err(|error| anyhow::anyhow!("{error:?}"))?].into_iter().sum();
        }
        let quotas: Api<ResourceQuota> = Api::namespaced(data_centre.client(), &namespace);
        let used = quotas.get("conme-quota").await?.status.unwrap().used.unwrap();
        assert_eq!(used["requests.cpu"].0, "1");
    }
    assert_eq!(sum, Amount::units(u64::from(QUOTA)));
    // What has been given up can be used again.
    let pods: Api<Pod> = Api::namespaced(people.administrator.clone(), "iso-quota-collaudo");
    let one = pods.list(&ListParams::default()).await?.items.remove(0).metadata.name.unwrap();
    ensure!(!create("collaudo", 99).await?, "full");
    pods.delete(&one, &DeleteParams::default().grace_period(0)).await?;
    eventually("there is room again", async || create("collaudo", 99).await).await?;
    data_centre.tidy_up("iso-quota").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_do_not_open_ports_on_the_hosts() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let people = settle(&data_centre, "iso-services", 901_206).await?;
    let services = "/api/v1/namespaces/iso-services-produzione/services";
    for (type_, expected) in [("ClusterIP", 201), ("NodePort", 403), ("LoadBalancer", 403)] {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": type_.to_lowercase()},
            "spec": {"type": type_, "ports": [{"port": 80}]},
        });
        let (code, body) =
            ask(&people.administrator, Method::POST, services, "application/json", &service).await?;
        assert_eq!(code, expected, "{type_}: {}", text(&body));
        assert!(code == 201 || text(&body).contains("exceeded quota"), "{}", text(&body));
    }
    // Nor by a change of one that was admitted.
    let patch = json!({"spec": {"type": "NodePort"}});
    let (code, body) = ask(
        &people.administrator,
        Method::PATCH,
        &format!("{services}/clusterip"),
        "application/merge-patch+json",
        &patch,
    )
    .await?;
    ensure!(code == 403 && text(&body).contains("exceeded quota"), "{code} {body}");
    data_centre.tidy_up("iso-services").await
}

// ---------------------------------------------------------------------------------------------- network

/// Simulated hosts carry no packets. What a network would do with the stored policies is worked out here, by the
/// rules of the NetworkPolicy API.
mod network {
    use super::*;

    /// One end of a connection: a pod, or an address outside.
    pub struct End {
        pub namespace: &'static str,
        pub labels: BTreeMap<String, String>,
        pub address: IpAddr,
    }

    /// Policies and labels of every namespace.
    pub struct World {
        pub policies: BTreeMap<String, Vec<Value>>,
        pub namespace_labels: BTreeMap<String, BTreeMap<String, String>>,
    }

    impl World {
        /// Whether a connection comes about: both sides have to let it.
        pub fn connects(&self, from: &End, to: &End, protocol: &str, port: u16) -> bool {
            self.lets(from, "Egress", "egress", "to", to, protocol, port)
                && self.lets(to, "Ingress", "ingress", "from", from, protocol, port)
        }

        #[allow(clippy::too_many_arguments)]
        fn lets(
            &self,
            end: &End,
            type_: &str,
            rules: &str,
            peers: &str,
            other: &End,
            protocol: &str,
            port: u16,
        ) -> bool {
            let policies = self.policies.get(end.namespace).map(Vec::as_slice).unwrap_or_default();
            let mut selecting = policies
                .iter()
                .map(|policy| &policy["spec"])
                .filter(|spec| selects(&spec["podSelector"], &end.labels))
                .filter(|spec| spec["policyTypes"].as_array().unwrap().contains(&json!(type_)))
                .peekable();
            if selecting.peek().is_none() {
                return true;
            }
            selecting.flat_map(|spec| spec[rules].as_array().cloned().unwrap_or_default()).any(|rule| {
                let list = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
                let (peers, ports) = (list(peers), list("ports"));
                (peers.is_empty() || peers.iter().any(|peer| self.is(peer, end.namespace, other)))
                    && (ports.is_empty()
                        || ports.iter().any(|allowed| {
                            assert!(allowed.get("endPort").is_none(), "not known here: {allowed}");
                            allowed["protocol"].as_str().unwrap_or("TCP") == protocol
                                && allowed["port"].as_u64() == Some(u64::from(port))
                        }))
            })
        }

        fn is(&self, peer: &Value, home: &str, end: &End) -> bool {
            if let Some(block) = peer.get("ipBlock") {
                assert!(block.get("except").is_none(), "not known here: {block}");
                return contains(block["cidr"].as_str().unwrap(), end.address);
            }
            if end.namespace.is_empty() {
                return false;
            }
            let in_namespace = match peer.get("namespaceSelector") {
                Some(selector) => selects(selector, &self.namespace_labels[end.namespace]),
                None => end.namespace == home,
            };
            in_namespace && peer.get("podSelector").is_none_or(|selector| selects(selector, &end.labels))
        }
    }

    fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
        assert!(selector.get("matchExpressions").is_none(), "not known here: {selector}");
        selector["matchLabels"].as_object().is_none_or(|wanted| {
            wanted.iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
        })
    }

    fn contains(cidr: &str, address: IpAddr) -> bool {
        let (base, length) = cidr.split_once('/').unwrap();
        let (IpAddr::V4(base), IpAddr::V4(address)) = (base.parse().unwrap(), address) else { return false };
        let length: u32 = length.parse().unwrap();
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        u32::from(base) & mask == u32::from(address) & mask
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stored_policies_let_through_what_is_declared_and_nothing_else() -> Result<()> {
    use network::{End, World};
    let data_centre = DataCentre::shared().await?;
    let template = json!({
        "apiVersion": "conme.venis.it/v1alpha1", "kind": "ServiceTemplate", "metadata": {"name": "iso-web"},
        "spec": {
            "displayName": "web", "description": "For a story.", "licence": "EUPL-1.2", "source": "invented", "defaultVersion": "1",
            "versions": [{
                "version": "1", "image": "registry.example/web:1", "runAsUser": 1000, "resources": {"cpu": "50m", "memory": "32Mi"},
                "ports": [{"name": "http", "port": 8080}, {"name": "console", "port": 8082}],
            }],
        },
    });
    conme_testbed::install::apply(data_centre.instance(), &template).await?;
    let mut first = spec("iso-net", 901_207);
    first["databases"] = json!([{
        "name": "sito", "engine": "postgresql", "environment": "produzione", "placement": {"shared": "pg-venis-1"}, "connectionLimit": 5,
    }]);
    first["services"] = json!([{"name": "web", "template": "iso-web", "environment": "produzione"}]);
    first["network"] = json!({
        "egress": [{"description": "proxy", "environment": "produzione", "cidrs": ["198.51.100.0/28"], "ports": [3128]}],
        "ingress": [{"description": "monitoring", "environment": "produzione", "cidrs": ["192.0.2.0/24"], "ports": [9100]}],
    });
    data_centre.apply("iso-net", first).await?;
    data_centre.apply("iso-net2", spec("iso-net2", 901_208)).await?;
    data_centre.ready("iso-net").await?;
    data_centre.ready("iso-net2").await?;

    let own = ["iso-net-produzione", "iso-net-collaudo", "iso-net2-produzione"];
    let mut world = World { policies: BTreeMap::new(), namespace_labels: BTreeMap::new() };
    for namespace in own {
        let policies = data_centre.api(Kind::NetworkPolicy, namespace).list(&ListParams::default()).await?;
        let policies = policies.into_iter().map(serde_json::to_value).collect::<serde_json::Result<_>>()?;
        world.policies.insert(namespace.to_owned(), policies);
        let object = data_centre.api(Kind::Namespace, "").get(namespace).await?;
        world.namespace_labels.insert(namespace.to_owned(), object.metadata.labels.unwrap_or_default());
    }
    for namespace in ["kube-system", "ingress-nginx", "default"] {
        let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
        world.namespace_labels.insert(namespace.to_owned(), labels);
    }
    let pod = |namespace: &'static str, labels: &[(&str, &str)], address: &str| End {
        namespace,
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        address: address.parse().unwrap(),
    };
    let outside = |address: &str| pod("", &[], address);
    // The labels of a pod of the service, as it really is.
    let web = {
        let pods: Api<Pod> = Api::namespaced(data_centre.client(), own[0]);
        let selector = ListParams::default().labels("conme.venis.it/service=web");
        eventually("the pod is there", async || Ok(!pods.list(&selector).await?.items.is_empty())).await?;
        let labels = pods.list(&selector).await?.items.remove(0).metadata.labels.unwrap();
        End { namespace: own[0], labels, address: "10.128.0.5".parse()? }
    };
    let (production, test, other) = (
        pod(own[0], &[("app", "x")], "10.128.0.1"),
        pod(own[1], &[("app", "x")], "10.128.0.2"),
        pod(own[2], &[("app", "x")], "10.128.0.3"),
    );
    let dns = pod("kube-system", &[("k8s-app", "kube-dns")], "10.128.0.9");
    let api = pod("kube-system", &[("component", "kube-apiserver")], "10.128.0.10");
    let controller = pod("ingress-nginx", &[("app", "ingress")], "10.128.0.11");
    let bystander = pod("default", &[("app", "ingress")], "10.128.0.12");
    let server = &data_centre.instance().databases()?[0];
    let (database, port) = (outside(&server.host), server.port);
    let neighbour = outside("127.0.0.2");
    let internet = outside("203.0.113.80");
    let proxy = outside("198.51.100.15");

    let cases: [(&str, &End, &End, &str, u16, bool); 30] = [
        ("within an environment", &production, &web, "TCP", 8080, true),
        ("within an environment, any port", &web, &production, "UDP", 999, true),
        ("test to production", &test, &web, "TCP", 8080, false),
        ("production to test", &production, &test, "TCP", 8080, false),
        ("another Comune to production", &other, &web, "TCP", 8080, false),
        ("production to another Comune", &production, &other, "TCP", 8080, false),
        ("names, UDP", &production, &dns, "UDP", 53, true),
        ("names, TCP", &test, &dns, "TCP", 53, true),
        ("names of another Comune", &other, &dns, "UDP", 53, true),
        ("another port of the name server", &production, &dns, "TCP", 9153, false),
        ("port 53 of something else", &production, &api, "UDP", 53, false),
        ("port 53 outside", &production, &internet, "UDP", 53, false),
        ("the API server", &production, &api, "TCP", 6443, false),
        ("the database from its environment", &production, &database, "TCP", port, true),
        ("the database from the service", &web, &database, "TCP", port, true),
        ("the database from the other environment", &test, &database, "TCP", port, false),
        ("the database from another Comune", &other, &database, "TCP", port, false),
        ("another port of that server", &production, &database, "TCP", 22, false),
        ("the server's neighbour", &production, &neighbour, "TCP", port, false),
        ("the Internet", &production, &internet, "TCP", 443, false),
        ("the Internet from the test environment", &test, &internet, "TCP", 443, false),
        ("from the Internet", &internet, &web, "TCP", 8080, false),
        ("the declared proxy", &production, &proxy, "TCP", 3128, true),
        ("the proxy on another port", &production, &proxy, "TCP", 443, false),
        ("the proxy from an environment without that rule", &test, &proxy, "TCP", 3128, false),
        ("the ingress controller to the service", &controller, &web, "TCP", 8080, true),
        ("the ingress controller to another port of it", &controller, &web, "TCP", 8082, false),
        ("the ingress controller to other pods", &controller, &production, "TCP", 8080, false),
        ("pods of another namespace to the service", &bystander, &web, "TCP", 8080, false),
        ("the declared monitoring", &outside("192.0.2.7"), &production, "TCP", 9100, true),
    ];
    for (what, from, to, protocol, port, expected) in cases {
        assert_eq!(world.connects(from, to, protocol, port), expected, "{what}");
    }
    // The control of the controls: where nothing is stored, everything goes through.
    let empty = World { policies: BTreeMap::new(), namespace_labels: world.namespace_labels.clone() };
    for (what, from, to, protocol, port, _) in cases {
        assert!(empty.connects(from, to, protocol, port), "{what}");
    }
    data_centre.tidy_up("iso-net").await?;
    data_centre.tidy_up("iso-net2").await
}
