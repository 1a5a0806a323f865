//! What the operator may do, by the API server's own word: exactly what is written down in `conme_blueprint::rights`,
//! nowhere more; and what it has done, by the API server's own record.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use conme_blueprint::{
    Kind,
    rights::{self, Rule},
};
use conme_stories::{DataCentre, OPERATOR_USER, audit_entries, entity, eventually, refusal};
use conme_testbed::install;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::{TokenRequest, TokenRequestSpec},
    authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
    core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleBinding},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use serde_json::{Value, json};

/// One right: group, resource, verb, and the name of the only object that it holds for (empty: all).
type Right = (String, String, String, String);

fn product(groups: &[String], resources: &[String], verbs: &[String], names: &[String]) -> BTreeSet<Right> {
    let all = [String::new()];
    let names = if names.is_empty() { &all } else { names };
    let mut rights = BTreeSet::new();
    for group in groups {
        for resource in resources {
            for verb in verbs {
                for name in names {
                    rights.insert((group.clone(), resource.clone(), verb.clone(), name.clone()));
                }
            }
        }
    }
    rights
}

fn written_down(rules: &[Rule]) -> BTreeSet<Right> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    rules
        .iter()
        .flat_map(|rule| {
            product(
                &[rule.group.to_owned()],
                &owned(&rule.resources),
                &owned(&rule.verbs),
                &owned(&rule.names),
            )
        })
        .collect()
}

/// The operator's rights in its own namespace, as the chart grants them: of its lease only the one by its name, where
/// a name can be checked, which it cannot while the object does not exist.
fn in_own_namespace() -> BTreeSet<Right> {
    let named = |(group, resource, verb, name): Right| {
        let name = if resource == "leases" && verb != "create" { "conme-operator".to_owned() } else { name };
        (group, resource, verb, name)
    };
    written_down(&rights::own_rules()).into_iter().map(named).collect()
}

/// What somebody may do in a namespace, by the API server's own word.
async fn rights_of(client: &Client, namespace: &str) -> Result<BTreeSet<Right>> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
        ..SelfSubjectRulesReview::default()
    };
    let status =
        Api::all(client.clone()).create(&PostParams::default(), &review).await?.status.context("a status")?;
    ensure!(!status.incomplete, "the API server does not know: {:?}", status.evaluation_error);
    let none = Vec::new();
    Ok(status
        .resource_rules
        .iter()
        .flat_map(|rule| {
            let [groups, resources, names] = [&rule.api_groups, &rule.resources, &rule.resource_names]
                .map(|list| list.as_ref().unwrap_or(&none));
            product(groups, resources, &rule.verbs, names)
        })
        .collect())
}

/// A client of a fresh account to which nobody has granted anything.
async fn nobody(data_centre: &DataCentre, namespace: &str) -> Result<Client> {
    let accounts: Api<ServiceAccount> = Api::namespaced(data_centre.client(), namespace);
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "without-rights"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let wanted = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    let token = accounts.create_token_request("without-rights", &PostParams::default(), &wanted).await?;
    let token = token.status.and_then(|status| status.token).context("a token")?;
    data_centre.client_with_token(&token).await
}

async fn unrelated_namespace(data_centre: &DataCentre, name: &str) -> Result<Api<Namespace>> {
    let namespaces: Api<Namespace> = Api::all(data_centre.client());
    let object: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    namespaces.create(&PostParams::default(), &object).await?;
    Ok(namespaces)
}

fn spec(name: &str, istat: u32) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": 2, "memory": "4Gi", "storage": "20Gi", "pods": 40, "services": 10},
        "environments": [{"name": "produzione"}],
        "administrators": [{"kind": "Group", "name": format!("{name}-ced")}],
        "viewers": [{"kind": "User", "name": format!("{name}-viewer")}],
        "network": {"egress": [{"description": "proxy", "cidrs": ["198.51.100.10/32"], "ports": [3128]}]},
        "databases": [{
            "name": "sito", "engine": "postgresql", "environment": "produzione",
            "placement": {"shared": "pg-venis-1"}, "connectionLimit": 5,
        }],
        "services": [{"name": "web", "template": "rig-web", "environment": "produzione", "database": "sito"}],
    })
}

async fn template(data_centre: &DataCentre) -> Result<()> {
    let template = json!({
        "apiVersion": "conme.venis.it/v1alpha1", "kind": "ServiceTemplate", "metadata": {"name": "rig-web"},
        "spec": {
            "displayName": "web", "description": "For a story.", "licence": "EUPL-1.2", "source": "invented", "defaultVersion": "1",
            "versions": [{
                "version": "1", "image": "registry.example/web:1", "runAsUser": 1000, "resources": {"cpu": "50m", "memory": "32Mi"},
                "ports": [{"name": "http", "port": 8080}], "files": [{"path": "/etc/web.conf", "content": "x"}],
                "autoscaling": {"minReplicas": 1, "maxReplicas": 2, "cpuPercent": 70},
                "volumes": [{"name": "data", "path": "/data", "kind": "Persistent", "size": "1Gi"}],
            }],
        },
    });
    install::apply(data_centre.instance(), &template).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_7_the_operator_may_do_what_is_written_down_and_nothing_else() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    template(&data_centre).await?;
    data_centre.apply("rig-rules", spec("rig-rules", 901_300)).await?;
    data_centre.ready("rig-rules").await?;
    let namespaces = unrelated_namespace(&data_centre, "rig-unrelated").await?;
    let operator = data_centre.client_as_operator().await?;
    let nobody = nobody(&data_centre, "rig-unrelated").await?;

    let cluster = written_down(&rights::cluster_rules());
    let tenant = written_down(&rights::tenant_rules());
    for (namespace, more) in [
        ("conme-system", in_own_namespace()),
        ("rig-rules-produzione", tenant),
        ("kube-system", BTreeSet::new()),
        ("default", BTreeSet::new()),
        ("rig-unrelated", BTreeSet::new()),
        ("a-namespace-that-does-not-exist", BTreeSet::new()),
    ] {
        let everybody = rights_of(&nobody, namespace).await?;
        let really: BTreeSet<Right> =
            rights_of(&operator, namespace).await?.difference(&everybody).cloned().collect();
        let expected: BTreeSet<Right> = cluster.union(&more).cloned().collect();
        let (too_many, missing) = (really.difference(&expected), expected.difference(&really));
        let (too_many, missing): (Vec<_>, Vec<_>) = (too_many.collect(), missing.collect());
        assert!(
            too_many.is_empty() && missing.is_empty(),
            "in {namespace}: too many {too_many:?}, missing {missing:?}"
        );
        let wildcard = |(group, resource, verb, _): &Right| {
            [group, resource, verb].iter().any(|text| text.contains('*'))
        };
        assert!(!really.iter().any(wildcard), "in {namespace}");
    }
    assert!(!cluster.iter().any(|(_, resource, ..)| resource.starts_with("secrets") || resource == "*"));
    namespaces.delete("rig-unrelated", &DeleteParams::default()).await?;
    data_centre.tidy_up("rig-rules").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_is_refused_what_it_must_not_do() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    template(&data_centre).await?;
    data_centre.apply("rig-refused", spec("rig-refused", 901_301)).await?;
    data_centre.ready("rig-refused").await?;
    let namespaces = unrelated_namespace(&data_centre, "rig-foreign").await?;
    let (operator, admin) = (data_centre.client_as_operator().await?, data_centre.client());
    let tenant = "rig-refused-produzione";
    let forbidden = |(code, message): (u16, String)| {
        assert_eq!(code, 403, "{message}");
        assert!(
            message.contains("conme-operator\" cannot ")
                || message.contains("attempting to grant RBAC permissions"),
            "{message}"
        );
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let dry_delete = DeleteParams { dry_run: true, ..DeleteParams::default() };

    // Secrets: by name where the operator has bound itself and in its own namespace, listed nowhere.
    for namespace in ["kube-system", "default", "rig-foreign"] {
        let secrets = |client: &Client| Api::<Secret>::namespaced(client.clone(), namespace);
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "rig-secret"}, "stringData": {"a": "1"}}))?;
        secrets(&admin).create(&PostParams::default(), &secret).await?;
        forbidden(refusal(secrets(&operator).get("rig-secret").await));
        forbidden(refusal(secrets(&operator).list(&ListParams::default()).await));
        forbidden(refusal(secrets(&operator).create(&dry, &secret).await));
        secrets(&admin).delete("rig-secret", &DeleteParams::default()).await?;
    }
    let secrets: Api<Secret> = Api::namespaced(operator.clone(), tenant);
    secrets.get("db-sito").await.context("the control")?;
    forbidden(refusal(secrets.list(&ListParams::default()).await));
    forbidden(refusal(secrets.delete("db-sito", &dry_delete).await));
    let own: Api<Secret> = Api::namespaced(operator.clone(), "conme-system");
    own.get("pg-venis-1-admin").await.context("the control")?;
    forbidden(refusal(own.list(&ListParams::default()).await));
    forbidden(refusal(own.create(&dry, &serde_json::from_value(json!({"metadata": {"name": "x"}}))?).await));
    forbidden(refusal(Api::<Secret>::all(operator.clone()).list(&ListParams::default()).await));

    // Workloads: only in namespaces of Comuni.
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "rig"},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": "rig"}},
            "template": {"metadata": {"labels": {"app": "rig"}}, "spec": {"containers": [{"name": "main", "image": "registry.example/rig:1"}]}},
        },
    }))?;
    for namespace in ["kube-system", "default", "rig-foreign", "conme-system"] {
        let deployments: Api<Deployment> = Api::namespaced(operator.clone(), namespace);
        forbidden(refusal(deployments.create(&dry, &deployment).await));
        let configs: Api<ConfigMap> = Api::namespaced(operator.clone(), namespace);
        forbidden(refusal(configs.get("kube-root-ca.crt").await));
        forbidden(refusal(configs.delete("kube-root-ca.crt", &dry_delete).await));
    }
    Api::<Deployment>::namespaced(operator.clone(), tenant)
        .create(&dry, &deployment)
        .await
        .context("the control")?;
    let pods: Api<Pod> = Api::namespaced(operator.clone(), tenant);
    forbidden(refusal(pods.list(&ListParams::default()).await));

    // Roles: its own three and no others, and only by binding them in a namespace.
    let binding = |role: &str| -> RoleBinding {
        serde_json::from_value(json!({
            "metadata": {"name": "rig"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "conme-operator", "namespace": "conme-system"}],
        }))
        .unwrap()
    };
    let bindings: Api<RoleBinding> = Api::namespaced(operator.clone(), tenant);
    for role in ["conme-operator-tenant", "conme-tenant-admin", "conme-tenant-viewer"] {
        bindings.create(&dry, &binding(role)).await.context("the control")?;
    }
    for role in
        ["cluster-admin", "admin", "edit", "view", "conme-sad-admin", "system:kube-controller-manager"]
    {
        forbidden(refusal(bindings.create(&dry, &binding(role)).await));
    }
    let everywhere: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "rig"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "conme-tenant-viewer"},
        "subjects": [{"kind": "ServiceAccount", "name": "conme-operator", "namespace": "conme-system"}],
    }))?;
    forbidden(refusal(Api::all(operator.clone()).create(&dry, &everywhere).await));
    let roles: Api<ClusterRole> = Api::all(operator.clone());
    let more = json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]});
    let patch = PatchParams { dry_run: true, ..PatchParams::default() };
    for role in ["conme-operator", "conme-operator-tenant", "conme-tenant-admin"] {
        forbidden(refusal(roles.patch(role, &patch, &Patch::Merge(&more)).await));
        forbidden(refusal(roles.get(role).await));
    }
    forbidden(refusal(
        roles.create(&dry, &serde_json::from_value(json!({"metadata": {"name": "rig"}}))?).await,
    ));

    // What holds data, and the rules themselves.
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(operator.clone(), tenant);
    claims.get("web--data").await.context("the control")?;
    forbidden(refusal(claims.delete("web--data", &dry_delete).await));
    let comuni: Api<conme_api::Comune> = Api::all(operator.clone());
    comuni.list(&ListParams::default().limit(1)).await.context("the control")?;
    forbidden(refusal(comuni.delete("rig-refused", &dry_delete).await));
    let definitions: Api<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    > = Api::all(operator.clone());
    forbidden(refusal(definitions.delete("comuni.conme.venis.it", &dry_delete).await));
    let accounts: Api<ServiceAccount> = Api::namespaced(operator.clone(), tenant);
    let token = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    forbidden(refusal(accounts.create_token_request("web", &PostParams::default(), &token).await));

    namespaces.delete("rig-foreign", &DeleteParams::default()).await?;
    data_centre.tidy_up("rig-refused").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_here_has_a_token_and_no_certificate() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let kubeconfig = Kubeconfig::read_from(data_centre.instance().dir().join("operator.kubeconfig"))?;
    assert_eq!(kubeconfig.auth_infos.len(), 1);
    let user = kubeconfig.auth_infos[0].auth_info.clone().context("a user")?;
    assert!(user.token.is_some());
    assert!(user.client_certificate.is_none() && user.client_certificate_data.is_none());
    assert!(user.client_key.is_none() && user.client_key_data.is_none());
    assert!(user.impersonate.is_none() && user.exec.is_none() && user.username.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_roles_in_the_api_server_are_those_written_down() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let roles: Api<ClusterRole> = Api::all(data_centre.client());
    let none = Vec::new();
    for (name, _, rules) in rights::cluster_roles() {
        let role = roles.get(name).await.with_context(|| name.to_owned())?;
        assert!(role.aggregation_rule.is_none(), "{name}");
        let expand = |rule: &PolicyRule| {
            let [groups, resources, names] = [&rule.api_groups, &rule.resources, &rule.resource_names]
                .map(|list| list.as_ref().unwrap_or(&none));
            assert!(rule.non_resource_urls.as_ref().is_none_or(Vec::is_empty), "{name}");
            product(groups, resources, &rule.verbs, names)
        };
        let stored: BTreeSet<Right> = role.rules.iter().flatten().flat_map(expand).collect();
        assert_eq!(stored, written_down(&rules), "{name}");
        // No label that would add these rules to the cluster's own `admin`, `edit` or `view`.
        let labels = role.metadata.labels.unwrap_or_default();
        assert!(!labels.keys().any(|label| label.contains("aggregate-to")), "{name}");
    }
    Ok(())
}

/// Rights that an ordinary day does not need, and why the operator has them nevertheless.
fn for_rare_days() -> BTreeSet<Right> {
    let right = |group: &str, resource: &str, verb: &str| {
        (group.to_owned(), resource.to_owned(), verb.to_owned(), String::new())
    };
    let mut rare = BTreeSet::new();
    for kind in Kind::ALL {
        // An object that exists where none is known is read, to tell whose it is; so is one that cannot be written.
        rare.insert(right(kind.group(), kind.plural(), "get"));
    }
    // A Secret that somebody has changed: seen at the slow pace of databases.
    rare.insert(right("", "secrets", "patch"));
    // Made anew when what was fixed in them has been changed; pruned only with their namespace, which nobody prunes.
    rare.insert(right("", "resourcequotas", "delete"));
    rare.insert(right("", "limitranges", "delete"));
    // The end of a Comune with `deletionPolicy: Delete`, which has a story of its own.
    rare.insert(right("", "namespaces", "delete"));
    rare.insert(right("conme.venis.it", "comuni", "get"));
    rare.insert(right("conme.venis.it", "comuni", "patch"));
    let mut definition = right("apiextensions.k8s.io", "customresourcedefinitions", "get");
    definition.3 = "comuni.conme.venis.it".to_owned();
    rare.insert(definition);
    // Databases on servers of their own: where CloudNativePG is served, as in the story of that name.
    for resource in ["clusters", "databases"] {
        rare.extend(["get", "create", "patch"].map(|verb| right("postgresql.cnpg.io", resource, verb)));
    }
    // Right before a namespace is deleted.
    rare.insert(right("postgresql.cnpg.io", "clusters", "list"));
    rare
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_uses_the_rights_that_it_has_and_needs_no_others() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    template(&data_centre).await?;
    // A day with everything in it: made, changed by hand, given up again.
    let name = "rig-usage";
    let namespace = "rig-usage-produzione";
    data_centre.apply(name, spec(name, 901_302)).await?;
    data_centre.ready(name).await?;
    for kind in Kind::ALL {
        let api = data_centre.api(kind, namespace);
        let own = ListParams::default()
            .labels("app.kubernetes.io/managed-by=conme,conme.venis.it/comune=rig-usage");
        let one = api.list(&own).await?.items.into_iter().next().with_context(|| format!("no {kind:?}"))?;
        let child = one.metadata.name.unwrap();
        let label = json!({"metadata": {"labels": {"example.org/more": "of-it"}}});
        api.patch(&child, &PatchParams::default(), &Patch::Merge(&label)).await?;
        eventually("the label is gone", async || {
            let labels = api.get(&child).await?.metadata.labels.unwrap_or_default();
            Ok(!labels.contains_key("example.org/more"))
        })
        .await?;
    }
    let mut less = spec(name, 901_302);
    for key in ["services", "viewers", "network"] {
        less.as_object_mut().unwrap().remove(key);
    }
    data_centre.apply(name, less).await?;
    eventually("what is no longer declared is gone", async || {
        let services = data_centre.api(Kind::Deployment, namespace).list(&ListParams::default()).await?;
        let viewers = data_centre.read(Kind::RoleBinding, namespace, "conme-viewers").await?;
        let network = data_centre.read(Kind::NetworkPolicy, namespace, "conme-declared").await?;
        Ok(services.items.is_empty() && viewers.is_none() && network.is_none())
    })
    .await?;
    data_centre.ready(name).await?;

    let cluster = written_down(&rights::cluster_rules());
    let (tenant, own) = (written_down(&rights::tenant_rules()), written_down(&rights::own_rules()));
    let all: BTreeSet<Right> = cluster.iter().chain(&tenant).chain(&own).cloned().collect();
    let (mut used, mut uncovered) = (BTreeSet::new(), BTreeSet::new());
    let names: Vec<String> = data_centre
        .comuni()
        .list(&ListParams::default())
        .await?
        .iter()
        .filter_map(|c| c.metadata.name.clone())
        .collect();
    let mut seen = 0;
    for entry in audit_entries(&data_centre, Timestamp::UNIX_EPOCH)? {
        // What this file asks with the operator's token is a test of it, not a use by it.
        if entry.user() != OPERATOR_USER || entry.resource().is_empty() || is_of_this_file(&entry.uri) {
            continue;
        }
        seen += 1;
        let group = match entry.uri.strip_prefix("/apis/") {
            Some(rest) => rest.split('/').next().unwrap_or_default().to_owned(),
            None => String::new(),
        };
        let (namespace, object) = entry.object();
        let named = (group.clone(), entry.resource(), entry.verb.clone(), object);
        // A right may hold for one object only.
        let right = if cluster.contains(&named) {
            named
        } else {
            (group, entry.resource(), entry.verb.clone(), String::new())
        };
        let of_comune = names.iter().any(|name| namespace.starts_with(&format!("{name}-")));
        let covered = cluster.contains(&right)
            || (namespace == "conme-system" && own.contains(&right))
            || (namespace != "conme-system"
                && (of_comune || !namespace.is_empty())
                && tenant.contains(&right));
        if covered {
            used.insert(right);
        } else if entry.code() != 403 || of_comune {
            uncovered.insert(right);
        }
    }
    assert!(seen > 100, "the record is being read: {seen}");
    assert!(uncovered.is_empty(), "used without being written down: {uncovered:?}");
    let rare = for_rare_days();
    // `bind` is no request: it is used whenever one of the three roles is bound.
    let unused: BTreeSet<&Right> =
        all.iter().filter(|right| !used.contains(right) && right.2 != "bind").collect();
    println!("rights not used so far: {unused:?}");
    let unexplained: Vec<_> = unused.iter().filter(|right| !rare.contains(**right)).collect();
    assert!(unexplained.is_empty(), "never used, for no reason: {unexplained:?}");
    assert!(
        rare.is_subset(&all),
        "explained, but not even there: {:?}",
        rare.difference(&all).collect::<Vec<_>>()
    );
    data_centre.tidy_up(name).await
}

/// Requests made by this file with the operator's token.
fn is_of_this_file(uri: &str) -> bool {
    uri.contains("rig-refused")
        || uri.contains("rig-foreign")
        || uri.contains("rig-unrelated")
        || uri.contains("dryRun")
        || uri.contains("selfsubjectrulesreviews")
        || uri.contains("/namespaces/kube-system/")
        || uri.contains("/namespaces/default/secrets")
}
