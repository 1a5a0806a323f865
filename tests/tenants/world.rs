//! Two municipalities with everything that one can have, and who tries what.

use anyhow::{Context, Result, ensure};
use conme_stories::{DataCentre, entity};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use crate::{
    report::Somebody,
    requests::{Request, list},
};

pub const PRODUCTION: &str = "ten-a-produzione";
pub const TEST: &str = "ten-a-collaudo";
/// Of the other municipality.
pub const OTHER: &str = "ten-b-produzione";
/// Of nobody; without any level of pod security.
pub const NOBODYS: &str = "ten-estranea";
pub const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// A resource that the API server serves.
#[derive(Clone, Debug)]
pub struct Resource {
    pub api_version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    /// Part of Kubernetes or of Con.Me, not of what another story has installed.
    pub counted: bool,
}

impl Resource {
    /// One of the eight verbs on it. The object need not exist.
    pub fn request(&self, verb: &str, namespace: &str) -> Request {
        let head = json!({
            "apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": "tenants-none"},
        });
        Request::verb(verb, &list(namespace, &self.api_version, &self.plural), "tenants-none", head)
    }
}

pub struct World {
    data_centre: DataCentre,
    /// The cluster's administrator, who counts as the SAD.
    pub sad: Somebody,
    /// A person of the first municipality, by the group that its Comune names.
    pub administrator: Somebody,
    /// A service account of the first municipality that its Comune names, by its token.
    pub robot: Somebody,
    /// A person of the second municipality.
    pub other: Somebody,
    /// A viewer of the first municipality.
    pub viewer: Somebody,
    /// A service account that somebody has made `cluster-admin` of its namespace.
    pub mallory: Somebody,
    /// Somebody with every right on namespaces.
    pub steward: Somebody,
    pub resources: Vec<Resource>,
}

fn template() -> Value {
    json!({
        "apiVersion": "conme.venis.it/v1alpha1", "kind": "ServiceTemplate", "metadata": {"name": "ten-tutto"},
        "spec": {
            "displayName": "Everything", "description": "For a story.", "licence": "EUPL-1.2",
            "source": "invented", "defaultVersion": "1",
            "versions": [{
                "version": "1", "image": "registry.example/web:1", "runAsUser": 1000,
                "resources": {"cpu": "50m", "memory": "32Mi"},
                "ports": [{"name": "http", "port": 8080}],
                "files": [{"path": "/etc/web.conf", "content": "x"}],
                "autoscaling": {"minReplicas": 2, "maxReplicas": 3, "cpuPercent": 70},
                "volumes": [{"name": "data", "path": "/data", "kind": "Persistent", "size": "1Gi"}],
            }],
        },
    })
}

fn spec(name: &str, istat: u32) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": 8, "memory": "16Gi", "storage": "40Gi", "pods": 60, "services": 20},
        "environments": [
            {"name": "produzione", "share": 50},
            {"name": "collaudo", "share": 50, "podSecurity": "baseline"},
        ],
        "administrators": [
            {"kind": "Group", "name": format!("{name}-ced")},
            {"kind": "ServiceAccount", "name": "pipeline", "namespace": format!("{name}-collaudo")},
        ],
        "viewers": [{"kind": "User", "name": format!("{name}-viewer")}],
        "databases": [{
            "name": "archivio", "engine": "postgresql", "environment": "produzione",
            "placement": {"shared": "pg-venis-1"},
        }],
        "services": [{
            "name": "sito", "template": "ten-tutto", "environment": "produzione",
            "hostname": format!("www.{name}.example"), "database": "archivio",
        }],
        "network": {"egress": [
            {"description": "proxy", "environment": "produzione", "cidrs": ["198.51.100.0/28"], "ports": [3128]},
        ]},
    })
}

impl World {
    pub async fn settle() -> Result<Self> {
        let data_centre = DataCentre::shared().await?;
        conme_testbed::install::apply(data_centre.instance(), &template()).await?;
        for (name, istat) in [("ten-a", 901_500), ("ten-b", 901_501)] {
            data_centre.apply(name, spec(name, istat)).await?;
        }
        for name in ["ten-a", "ten-b"] {
            data_centre.ready(name).await?;
        }
        let person = async |user: &str, group: &str| {
            data_centre.client_as(user, &[group, "system:authenticated"]).await
        };
        let administrator = person("anna", "ten-a-ced").await?;
        let sad = data_centre.client();
        let really = async |client: &Client, list: &str, body: Value| -> Result<()> {
            let answer = Request::really_create(list, body).send(client).await?;
            ensure!(answer.passes() || answer.code == 409, "{list}: {} {}", answer.code, answer.message);
            Ok(())
        };

        // The account of a pipeline is the tenant's own to make.
        really(
            &administrator,
            &list(TEST, "v1", "serviceaccounts"),
            json!({"metadata": {"name": "pipeline"}}),
        )
        .await?;
        really(&sad, &list(PRODUCTION, "v1", "serviceaccounts"), json!({"metadata": {"name": "mallory"}}))
            .await?;
        really(
            &sad,
            &list(PRODUCTION, RBAC, "rolebindings"),
            bind(
                "mallory",
                "cluster-admin",
                json!({"kind": "ServiceAccount", "name": "mallory", "namespace": PRODUCTION}),
            ),
        )
        .await?;
        let everything = json!([{
            "apiGroups": [""], "resources": ["namespaces", "namespaces/status", "namespaces/finalize"],
            "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
        }]);
        let role = json!({
            "apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": "ten-steward"}, "rules": everything,
        });
        really(&sad, &list("", RBAC, "clusterroles"), role).await?;
        let mut bound = bind("ten-steward", "ten-steward", json!({"kind": "User", "name": "ten-steward"}));
        bound["kind"] = json!("ClusterRoleBinding");
        really(&sad, &list("", RBAC, "clusterrolebindings"), bound).await?;
        really(&sad, "/api/v1/namespaces", json!({"metadata": {"name": NOBODYS}})).await?;
        let config = json!({"metadata": {"name": "ten-own"}, "data": {"a": "1"}});
        really(&administrator, &list(PRODUCTION, "v1", "configmaps"), config).await?;

        let robot = data_centre.client_with_token(&token(&data_centre, TEST, "pipeline").await?).await?;
        let mallory =
            data_centre.client_with_token(&token(&data_centre, PRODUCTION, "mallory").await?).await?;
        let resources = resources(&sad).await?;
        Ok(Self {
            sad: ("the SAD", sad),
            administrator: ("the administrator", administrator),
            robot: ("the pipeline", robot),
            other: ("the other's administrator", person("bruno", "ten-b-ced").await?),
            viewer: ("the viewer", data_centre.client_as("ten-a-viewer", &["system:authenticated"]).await?),
            mallory: ("Mallory", mallory),
            steward: ("the steward", data_centre.client_as("ten-steward", &["system:authenticated"]).await?),
            resources,
            data_centre,
        })
    }

    /// Those who administer the first municipality.
    pub fn people(&self) -> [&Somebody; 2] {
        [&self.administrator, &self.robot]
    }

    pub fn data_centre(&self) -> &DataCentre {
        &self.data_centre
    }

    /// An object as it is.
    pub async fn live(&self, uri: &str) -> Result<Value> {
        let answer = Request::get(uri).send(&self.sad.1).await?;
        ensure!(answer.passes(), "{uri}: {} {}", answer.code, answer.message);
        Ok(answer.body)
    }

    pub async fn tidy_up(&self) -> Result<()> {
        for uri in [
            format!("{}/ten-steward", list("", RBAC, "clusterroles")),
            format!("{}/ten-steward", list("", RBAC, "clusterrolebindings")),
            format!("/api/v1/namespaces/{NOBODYS}"),
        ] {
            let mut request = Request::delete(&uri);
            request.uri = uri;
            request.send(&self.sad.1).await?;
        }
        self.data_centre.tidy_up("ten-a").await?;
        self.data_centre.tidy_up("ten-b").await
    }
}

/// A RoleBinding to a ClusterRole.
pub fn bind(name: &str, role: &str, subject: Value) -> Value {
    json!({
        "apiVersion": RBAC, "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    })
}

async fn token(data_centre: &DataCentre, namespace: &str, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(data_centre.client(), namespace);
    let wanted = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    let token = accounts.create_token_request(account, &PostParams::default(), &wanted).await?;
    token.status.and_then(|status| status.token).context("a token")
}

/// Everything that can be read, by the API server's own list.
async fn resources(client: &Client) -> Result<Vec<Resource>> {
    let read = async |uri: &str| -> Result<Value> {
        let answer = Request::get(uri).send(client).await?;
        ensure!(answer.passes(), "{uri}: {} {}", answer.code, answer.message);
        Ok(answer.body)
    };
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    };
    let definitions = read(&list("", "apiextensions.k8s.io/v1", "customresourcedefinitions")).await?;
    let guests: Vec<String> = definitions["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|definition| Some(definition["spec"]["group"].as_str()?.to_owned()))
        .filter(|group| group != "conme.venis.it")
        .collect();
    let mut versions = vec!["v1".to_owned()];
    for group in read("/apis").await?["groups"].as_array().into_iter().flatten() {
        versions.extend(group["preferredVersion"]["groupVersion"].as_str().map(str::to_owned));
    }
    let mut resources = Vec::new();
    for api_version in versions {
        let uri = if api_version.contains('/') {
            format!("/apis/{api_version}")
        } else {
            format!("/api/{api_version}")
        };
        for resource in read(&uri).await?["resources"].as_array().into_iter().flatten() {
            let plural = resource["name"].as_str().unwrap_or_default().to_owned();
            let verbs = texts(&resource["verbs"]);
            // Reviews are questions that everybody may ask about themselves; subresources have cases of their own.
            if plural.contains('/') || !verbs.iter().any(|verb| verb == "list" || verb == "get") {
                continue;
            }
            let group = api_version.split_once('/').map_or("", |(group, _)| group);
            resources.push(Resource {
                kind: resource["kind"].as_str().unwrap_or_default().to_owned(),
                plural,
                namespaced: resource["namespaced"] == true,
                counted: !guests.iter().any(|guest| guest == group),
                api_version: api_version.clone(),
            });
        }
    }
    Ok(resources)
}

/// A pod as it has to be in a restricted environment.
pub fn pod(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "own"}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext":
                {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": "registry.example/own:1",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "resources":
                    {"requests": {"cpu": cpu, "memory": "16Mi"}, "limits": {"cpu": cpu, "memory": "16Mi"}},
            }],
        },
    })
}
