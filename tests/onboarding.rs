//! An administration arrives, changes, leaves and comes back: what its manifest makes, object by object, how edits
//! arrive, and that what holds data outlives its declaration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use anyhow::Result;
use conme_api::{Comune, keys, reasons};
use conme_blueprint::{Kind, amount::Amount};
use conme_stories::{Credentials, DataCentre, condition, entity, eventually, is_current, refusal};
use conme_testbed::install;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, ResourceQuota};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";

/// An entry of the catalogue that needs little and keeps nothing.
async fn small_template(data_centre: &DataCentre, name: &str) -> Result<()> {
    let template = template(name, &json!({}));
    install::apply(data_centre.instance(), &template).await?;
    Ok(())
}

/// An entry of the catalogue that is bound to a database.
async fn bound_template(data_centre: &DataCentre, name: &str) -> Result<()> {
    let more = json!({
        "env": [{"name": "DATABASE_URL", "fromBinding": "uri"}],
        "requires": {"database": ["postgresql"]},
    });
    install::apply(data_centre.instance(), &template(name, &more)).await?;
    Ok(())
}

fn template(name: &str, more: &Value) -> Value {
    let mut version = json!({
        "version": "1.0",
        "image": "registry.example/pagine:1.0",
        "ports": [{"name": "http", "port": 8080}],
        "resources": {"cpu": "50m", "memory": "64Mi"},
        "runAsUser": 1000,
    });
    version.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "ServiceTemplate",
        "metadata": {"name": name},
        "spec": {
            "displayName": "Pagine",
            "description": "An entry for a story.",
            "licence": "EUPL-1.2",
            "source": "a story",
            "defaultVersion": "1.0",
            "versions": [version],
            "parameters": [{"name": "title", "type": "string", "description": "Title of the pages", "default": "Pagine"}],
        },
    })
}

fn small_quota() -> Value {
    json!({"cpu": 2, "memory": "4Gi", "storage": "20Gi"})
}

fn people(name: &str) -> Value {
    json!([{"kind": "Group", "name": format!("{name}-ced")}])
}

async fn read(data_centre: &DataCentre, kind: Kind, namespace: &str, name: &str) -> Value {
    let object = data_centre.read(kind, namespace, name).await.unwrap();
    object.unwrap_or_else(|| panic!("there is no {} {namespace}/{name}", kind.name()))
}

async fn namespace(data_centre: &DataCentre, name: &str) -> Value {
    read(data_centre, Kind::Namespace, "", name).await
}

async fn names_in(data_centre: &DataCentre, kind: Kind, namespace: &str) -> BTreeSet<String> {
    let list = data_centre.api(kind, namespace).list(&ListParams::default()).await.unwrap();
    list.items.iter().map(ResourceExt::name_any).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["labels"][key].as_str().unwrap_or_default()
}

fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["annotations"][key].as_str().unwrap_or_default()
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().expect("every stored object has a uid").to_owned()
}

fn amount(value: &Value) -> Amount {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Amount::parse(&text).unwrap_or_else(|_| panic!("{text} is no amount"))
}

fn is_date(text: &str) -> bool {
    text.parse::<jiff::Timestamp>().is_ok()
}

/// Pods of a namespace: name → uid and restarts.
async fn pods(data_centre: &DataCentre, namespace: &str) -> Result<BTreeMap<String, (String, i32)>> {
    let api: Api<Pod> = Api::namespaced(data_centre.client(), namespace);
    let list = api.list(&ListParams::default()).await?;
    let running = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    Ok(list
        .items
        .into_iter()
        .filter(running)
        .map(|pod| {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            let restarts = statuses.into_iter().flatten().map(|status| status.restart_count).sum();
            (pod.name_any(), (pod.uid().unwrap_or_default(), restarts))
        })
        .collect())
}

async fn available(data_centre: &DataCentre, name: &str) -> Result<Comune> {
    data_centre
        .comune_where(name, "Available", |comune| {
            is_current(comune) && condition(comune, "Available").is_some_and(|(status, ..)| status == "True")
        })
        .await
}

fn orphan_since(comune: &Comune, kind: &str, name: &str) -> Option<String> {
    let orphans = &comune.status.as_ref()?.orphans;
    orphans
        .iter()
        .find(|orphan| orphan.kind == kind && orphan.name == name)
        .map(|orphan| orphan.since.clone())
}

// ---------------------------------------------------------------------------------------------------------------
// What a manifest makes
// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_administration_gets_everything_that_it_declares_and_nothing_else() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let dc = &data_centre;
    let files =
        json!({"files": [{"path": "/etc/pagine/sito.conf", "content": "host $(hostname) titolo $(title)"}]});
    install::apply(dc.instance(), &template("ona-pagine", &files)).await?;
    let mut who = entity("Comune di Porto Nuovo", 900_001);
    who["ipa"] = json!("C_Z901");
    who["belfiore"] = json!("Z901");
    let spec = json!({
        "entity": who,
        // Divisible by the shares without a remainder, so that the parts add up exactly.
        "quota": {"cpu": 5, "memory": "10Gi", "storage": "50Gi", "pods": 50},
        "environments": [
            {"name": "produzione", "share": 60},
            {"name": "collaudo", "share": 40, "podSecurity": "baseline"},
        ],
        "administrators": [
            {"kind": "Group", "name": "ona-porto-ced"},
            {"kind": "User", "name": "anna@portonuovo.example"},
            {"kind": "ServiceAccount", "name": "pipeline", "namespace": "ona-porto-collaudo"},
        ],
        "viewers": [{"kind": "Group", "name": "ona-porto-segreteria"}],
        "network": {"egress": [
            {"description": "proxy", "environment": "produzione", "cidrs": ["198.51.100.10/32"], "ports": [3128]},
        ]},
        "databases": [{
            "name": "archivio", "engine": "postgresql", "placement": {"shared": SERVER},
            "extensions": ["pg_trgm"], "connectionLimit": 17,
        }],
        "services": [
            {"name": "porta", "template": "api-gateway", "database": "archivio", "parameters": {"entityName": "Porto"}},
            {"name": "mappe", "template": "gis", "environment": "collaudo"},
            {"name": "verifica", "template": "spid-check", "environment": "collaudo", "hostname": "verifica.portonuovo.example"},
            {"name": "pagine", "template": "ona-pagine", "parameters": {"title": "Porto"}, "replicas": 2},
        ],
    });
    dc.apply("ona-porto", spec).await?;
    let comune = dc.ready("ona-porto").await?;
    let comune = if condition(&comune, "Available").is_some_and(|(status, ..)| status == "True") {
        comune
    } else {
        available(dc, "ona-porto").await?
    };

    check_namespaces(dc).await;
    check_quotas(dc).await;
    check_network(dc).await;
    check_access(dc).await;
    check_services(dc).await;
    let password = check_binding(dc).await?;
    check_status(&comune, dc).await;
    check_that_nobody_tells(dc, &password).await?;
    dc.tidy_up("ona-porto").await
}

async fn check_namespaces(dc: &DataCentre) {
    for (environment, level) in [("produzione", "restricted"), ("collaudo", "baseline")] {
        let namespace = namespace(dc, &format!("ona-porto-{environment}")).await;
        for mode in ["enforce", "audit", "warn"] {
            assert_eq!(
                label(&namespace, &format!("pod-security.kubernetes.io/{mode}")),
                level,
                "{environment}"
            );
        }
        for (key, value) in [
            (keys::COMUNE, "ona-porto"),
            (keys::ENVIRONMENT, environment),
            (keys::MANAGED_BY, keys::MANAGER),
            (keys::ISTAT, "900001"),
            (keys::BELFIORE, "Z901"),
            (keys::IPA, "c_z901"),
            (keys::ORPHANED, ""),
        ] {
            assert_eq!(label(&namespace, key), value, "{key} of {environment}");
        }
        assert!(
            namespace["metadata"].get("ownerReferences").is_none(),
            "a namespace must outlive its Comune"
        );
    }
    let production = namespace(dc, "ona-porto-produzione").await;
    assert_eq!(
        annotation(&production, keys::HOSTNAMES),
        "pagine.ona-porto.servizi.conme.example,porta.ona-porto.servizi.conme.example"
    );
}

async fn check_quotas(dc: &DataCentre) {
    let production = read(dc, Kind::ResourceQuota, "ona-porto-produzione", "conme-quota").await;
    let test = read(dc, Kind::ResourceQuota, "ona-porto-collaudo", "conme-quota").await;
    for (resource, part, other, total) in [
        ("requests.cpu", "3", "2", "5"),
        ("limits.cpu", "3", "2", "5"),
        ("requests.memory", "6Gi", "4Gi", "10Gi"),
        ("limits.memory", "6Gi", "4Gi", "10Gi"),
        ("requests.storage", "30Gi", "20Gi", "50Gi"),
        ("pods", "30", "20", "50"),
        // Not in the manifest: by default.
        ("services", "30", "20", "50"),
        ("count/secrets", "120", "80", "200"),
        ("services.loadbalancers", "0", "0", "0"),
        ("services.nodeports", "0", "0", "0"),
    ] {
        let (a, b) = (amount(&production["spec"]["hard"][resource]), amount(&test["spec"]["hard"][resource]));
        assert_eq!(a, Amount::parse(part).unwrap(), "{resource} of produzione");
        assert_eq!(b, Amount::parse(other).unwrap(), "{resource} of collaudo");
        assert_eq!(a + b, Amount::parse(total).unwrap(), "{resource}: the parts are the whole");
        assert_eq!(amount(&production["status"]["hard"][resource]), a, "{resource} is enforced");
    }
    for namespace in ["ona-porto-produzione", "ona-porto-collaudo"] {
        assert_eq!(names_in(dc, Kind::ResourceQuota, namespace).await, set(&["conme-quota"]));
        assert_eq!(names_in(dc, Kind::LimitRange, namespace).await, set(&["conme-limits"]));
        let limits = read(dc, Kind::LimitRange, namespace, "conme-limits").await;
        let limit = &limits["spec"]["limits"][0];
        assert_eq!(limit["type"], "Container");
        for what in ["default", "defaultRequest"] {
            for resource in ["cpu", "memory", "ephemeral-storage"] {
                assert!(amount(&limit[what][resource]) > Amount::ZERO, "{what} {resource}");
            }
        }
    }
}

async fn check_network(dc: &DataCentre) {
    let (production, test) = ("ona-porto-produzione", "ona-porto-collaudo");
    let all = set(&[
        "conme-default-deny",
        "conme-environment",
        "conme-databases",
        "conme-declared",
        "porta",
        "pagine",
    ]);
    assert_eq!(names_in(dc, Kind::NetworkPolicy, production).await, all);
    // No database and no declared rule there, so no way to the database server either.
    let all = set(&["conme-default-deny", "conme-environment", "mappe", "verifica"]);
    assert_eq!(names_in(dc, Kind::NetworkPolicy, test).await, all);

    for namespace in [production, test] {
        let deny = read(dc, Kind::NetworkPolicy, namespace, "conme-default-deny").await;
        assert_eq!(deny["spec"]["podSelector"], json!({}));
        assert_eq!(deny["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        for direction in ["ingress", "egress"] {
            let rules = deny["spec"].get(direction).and_then(Value::as_array);
            assert!(rules.is_none_or(Vec::is_empty), "{direction} lets something through: {deny}");
        }
        let environment = read(dc, Kind::NetworkPolicy, namespace, "conme-environment").await;
        let spec = &environment["spec"];
        assert_eq!(
            spec["ingress"],
            json!([{"from": [{"podSelector": {}}]}]),
            "the own environment and nobody else"
        );
        assert_eq!(spec["egress"].as_array().unwrap().len(), 2, "{spec}");
        assert_eq!(spec["egress"][0], json!({"to": [{"podSelector": {}}]}));
        let dns = &spec["egress"][1];
        assert_eq!(
            dns["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
            "kube-system"
        );
        assert_eq!(dns["to"][0]["podSelector"]["matchLabels"]["k8s-app"], "kube-dns");
        let ports: Vec<&Value> = dns["ports"].as_array().unwrap().iter().map(|port| &port["port"]).collect();
        assert_eq!(ports, [53, 53]);
    }

    let center = dc.instance().databases().unwrap().into_iter().find(|server| server.name == SERVER).unwrap();
    let databases = read(dc, Kind::NetworkPolicy, production, "conme-databases").await;
    assert_eq!(databases["spec"]["policyTypes"], json!(["Egress"]));
    let way = json!([{
        "to": [{"ipBlock": {"cidr": format!("{}/32", center.host)}}],
        "ports": [{"protocol": "TCP", "port": center.port}],
    }]);
    assert_eq!(databases["spec"]["egress"], way, "that server's address and port and nothing else");
    let declared = read(dc, Kind::NetworkPolicy, production, "conme-declared").await;
    let way = json!([{
        "to": [{"ipBlock": {"cidr": "198.51.100.10/32"}}],
        "ports": [{"protocol": "TCP", "port": 3128}],
    }]);
    assert_eq!(declared["spec"]["egress"], way);
    assert!(declared["spec"].get("ingress").and_then(Value::as_array).is_none_or(Vec::is_empty));

    for (namespace, service, port) in [
        (production, "porta", 8080),
        (production, "pagine", 8080),
        (test, "mappe", 8080),
        (test, "verifica", 8443),
    ] {
        let policy = read(dc, Kind::NetworkPolicy, namespace, service).await;
        let controller = json!({"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}});
        let way = json!([{
            "from": [{"namespaceSelector": controller}],
            "ports": [{"protocol": "TCP", "port": port}],
        }]);
        assert_eq!(policy["spec"]["ingress"], way, "{service}");
        let pods = json!({keys::COMUNE: "ona-porto", keys::SERVICE: service});
        assert_eq!(policy["spec"]["podSelector"]["matchLabels"], pods, "{service}");
    }
}

async fn check_access(dc: &DataCentre) {
    let group = "rbac.authorization.k8s.io";
    let administrators = json!([
        {"apiGroup": group, "kind": "Group", "name": "ona-porto-ced"},
        {"apiGroup": group, "kind": "User", "name": "anna@portonuovo.example"},
        {"kind": "ServiceAccount", "name": "pipeline", "namespace": "ona-porto-collaudo"},
    ]);
    let viewers = json!([{"apiGroup": group, "kind": "Group", "name": "ona-porto-segreteria"}]);
    let operator = json!([{"kind": "ServiceAccount", "name": "conme-operator", "namespace": "conme-system"}]);
    for namespace in ["ona-porto-produzione", "ona-porto-collaudo"] {
        let expected = [
            ("conme-administrators", "conme-tenant-admin", &administrators),
            ("conme-operator", "conme-operator-tenant", &operator),
            ("conme-viewers", "conme-tenant-viewer", &viewers),
        ];
        // Exactly these: nobody is bound to `admin` or `edit`, which may write network policies.
        let names: BTreeSet<String> = expected.iter().map(|(name, ..)| (*name).to_owned()).collect();
        assert_eq!(names_in(dc, Kind::RoleBinding, namespace).await, names);
        for (name, role, subjects) in expected {
            let binding = read(dc, Kind::RoleBinding, namespace, name).await;
            let role = json!({"apiGroup": group, "kind": "ClusterRole", "name": role});
            assert_eq!(binding["roleRef"], role, "{name}");
            assert_eq!(binding["subjects"], *subjects, "{name}");
        }
    }
}

async fn check_services(dc: &DataCentre) {
    let (production, test) = ("ona-porto-produzione", "ona-porto-collaudo");
    let all = [
        (production, "porta", "api-gateway", "porta.ona-porto.servizi.conme.example", "erogazione", 8080),
        (production, "pagine", "ona-pagine", "pagine.ona-porto.servizi.conme.example", "http", 8080),
        (test, "mappe", "gis", "mappe.collaudo.ona-porto.servizi.conme.example", "http", 8080),
        (test, "verifica", "spid-check", "verifica.portonuovo.example", "https", 8443),
    ];
    for (namespace, name, template, host, port_name, port) in all {
        for kind in [
            Kind::ServiceAccount,
            Kind::Deployment,
            Kind::Service,
            Kind::Ingress,
            Kind::PodDisruptionBudget,
            Kind::NetworkPolicy,
        ] {
            let object = read(dc, kind, namespace, name).await;
            for (key, value) in [
                (keys::COMUNE, "ona-porto"),
                (keys::COMPONENT, format!("service-{name}").as_str()),
                (keys::MANAGED_BY, keys::MANAGER),
                (keys::SERVICE, name),
                (keys::TEMPLATE, template),
            ] {
                assert_eq!(label(&object, key), value, "{key} of {} {name}", kind.name());
            }
        }
        let pods = json!({keys::COMUNE: "ona-porto", keys::SERVICE: name});
        let account = read(dc, Kind::ServiceAccount, namespace, name).await;
        assert_eq!(account["automountServiceAccountToken"], false, "{name}");
        let service = read(dc, Kind::Service, namespace, name).await;
        assert_eq!(service["spec"]["type"], "ClusterIP", "{name}");
        assert_eq!(service["spec"]["selector"], pods, "{name}");
        assert_eq!(service["spec"]["ports"][0]["name"], port_name, "{name}");
        assert_eq!(service["spec"]["ports"][0]["port"], port, "{name}");
        let ingress = read(dc, Kind::Ingress, namespace, name).await;
        assert_eq!(ingress["spec"]["ingressClassName"], "nginx", "{name}");
        let rules = ingress["spec"]["rules"].as_array().unwrap();
        assert_eq!(rules.len(), 1, "{name}");
        assert_eq!(rules[0]["host"], host, "{name}");
        assert_eq!(rules[0]["http"]["paths"][0]["backend"]["service"]["name"], name);
        assert_eq!(rules[0]["http"]["paths"][0]["backend"]["service"]["port"]["name"], port_name);
        let budget = read(dc, Kind::PodDisruptionBudget, namespace, name).await;
        assert_eq!(budget["spec"]["maxUnavailable"], 1, "{name}");
        assert_eq!(budget["spec"]["selector"]["matchLabels"], pods, "{name}");

        let deployment = read(dc, Kind::Deployment, namespace, name).await;
        assert_eq!(deployment["spec"]["selector"]["matchLabels"], pods, "{name}");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], name);
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false, "{name}");
        for what in ["requests", "limits"] {
            for resource in ["cpu", "memory"] {
                assert!(
                    amount(&container["resources"][what][resource]) > Amount::ZERO,
                    "{name}: {what} {resource}"
                );
            }
        }
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            assert!(container[probe].is_object(), "{name} has no {probe}");
        }
        let is_restricted = template != "spid-check";
        assert_eq!(pod["securityContext"]["runAsNonRoot"] == true, is_restricted, "{name}");
        assert_eq!(
            container["securityContext"]["capabilities"]["drop"] == json!(["ALL"]),
            is_restricted,
            "{name}"
        );
    }

    // The number of pods: the autoscaler's, the manifest's, the template's.
    assert_eq!(names_in(dc, Kind::HorizontalPodAutoscaler, production).await, set(&["porta"]));
    assert_eq!(names_in(dc, Kind::HorizontalPodAutoscaler, test).await, set(&[]));
    let autoscaler = read(dc, Kind::HorizontalPodAutoscaler, production, "porta").await;
    let (least, most) = (&autoscaler["spec"]["minReplicas"], &autoscaler["spec"]["maxReplicas"]);
    assert_eq!((least, most), (&json!(1), &json!(3)));
    assert_eq!(autoscaler["spec"]["scaleTargetRef"]["name"], "porta");
    assert_eq!(read(dc, Kind::Deployment, production, "pagine").await["spec"]["replicas"], 2);
    assert_eq!(read(dc, Kind::Deployment, test, "mappe").await["spec"]["replicas"], 1);

    // Files where the template has files; volumes where it keeps data.
    let own = |names: BTreeSet<String>| -> BTreeSet<String> {
        names.into_iter().filter(|name| name != "kube-root-ca.crt").collect()
    };
    assert_eq!(own(names_in(dc, Kind::ConfigMap, production).await), set(&["pagine"]));
    assert_eq!(own(names_in(dc, Kind::ConfigMap, test).await), set(&[]));
    let config = read(dc, Kind::ConfigMap, production, "pagine").await;
    assert_eq!(
        config["data"],
        json!({"etc__pagine__sito.conf": "host pagine.ona-porto.servizi.conme.example titolo Porto"})
    );
    assert_eq!(names_in(dc, Kind::PersistentVolumeClaim, production).await, set(&[]));
    assert_eq!(names_in(dc, Kind::PersistentVolumeClaim, test).await, set(&["mappe--progetti"]));
    let claim = read(dc, Kind::PersistentVolumeClaim, test, "mappe--progetti").await;
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "10Gi");
    assert_eq!(claim["spec"]["storageClassName"], "venis-standard");

    // The credentials come from the Secret, variable by variable.
    let deployment = read(dc, Kind::Deployment, production, "porta").await;
    let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let of = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap();
    assert_eq!(of("GOVWAY_DEFAULT_ENTITY_NAME")["value"], "Porto");
    let reference = json!({"name": "db-archivio", "key": "password"});
    assert_eq!(of("GOVWAY_DB_PASSWORD")["valueFrom"]["secretKeyRef"], reference);
}

async fn check_binding(dc: &DataCentre) -> Result<String> {
    let secret = read(dc, Kind::Secret, "ona-porto-produzione", "db-archivio").await;
    assert_eq!(secret["type"], "servicebinding.io/postgresql");
    assert_eq!(label(&secret, keys::COMUNE), "ona-porto");
    assert_eq!(
        names_in(dc, Kind::Secret, "ona-porto-collaudo").await,
        set(&[]),
        "production data is bound there only"
    );
    let credentials = Credentials::of(dc, "ona-porto-produzione", "archivio").await?;
    let keys: BTreeSet<String> = credentials.0.keys().cloned().collect();
    let expected =
        ["type", "provider", "host", "port", "hostport", "database", "username", "password", "uri", "ca.crt"];
    assert_eq!(keys, set(&expected));
    let get = |key: &str| credentials.get(key);
    assert_eq!(get("type"), "postgresql");
    assert_eq!(get("hostport"), format!("{}:{}", get("host"), get("port")));
    let (user, password) = (get("username"), get("password"));
    let uri =
        format!("postgresql://{user}:{password}@{}/{}?sslmode=verify-full", get("hostport"), get("database"));
    assert_eq!(get("uri"), uri);
    assert!(password.len() >= 24, "a password of {} characters", password.len());
    assert!(get("ca.crt").contains("BEGIN CERTIFICATE"));

    let login = credentials.login(None).await?;
    assert_eq!(login.value("select current_database()").await?, get("database"));
    assert_eq!(login.value("select count(*) from pg_extension where extname = 'pg_trgm'").await?, "1");
    assert_eq!(
        login.value("select datconnlimit from pg_database where datname = current_database()").await?,
        "17"
    );
    login.run("drop table if exists lettere; create table lettere (testo text); insert into lettere values ('cara')").await?;
    assert_eq!(login.value("select testo from lettere").await?, "cara");
    Ok(password.to_owned())
}

async fn check_status(comune: &Comune, dc: &DataCentre) {
    let status = comune.status.as_ref().unwrap();
    let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(types, reasons::COMUNE_CONDITIONS, "all conditions, in their order");
    for condition in &status.conditions {
        let reason = &condition.reason;
        let camel =
            reason.starts_with(|c: char| c.is_ascii_uppercase()) && reason.chars().all(char::is_alphanumeric);
        assert!(camel, "{}: the reason `{reason}` is not CamelCase", condition.type_);
        assert_eq!(condition.status, "True", "{}: {}", condition.type_, condition.message);
        assert_eq!(condition.observed_generation, comune.metadata.generation, "{}", condition.type_);
        assert!(!condition.message.is_empty(), "{}", condition.type_);
    }
    assert_eq!(status.tier.as_deref(), Some("explicit"));
    assert!(status.seniority.as_deref().is_some_and(is_date));
    assert!(status.orphans.is_empty(), "{:?}", status.orphans);
    let summary = status.summary.as_ref().unwrap();
    assert_eq!(
        [&summary.environments, &summary.databases, &summary.services, &summary.migrated],
        ["2", "1/1", "4/4", "0/0"]
    );
    assert!(summary.cpu.ends_with("/5") && summary.memory.ends_with("/10Gi"), "{summary:?}");
    assert_eq!(status.namespaces.len(), 2);
    for told in &status.namespaces {
        assert_eq!(told.name, format!("ona-porto-{}", told.environment));
        assert_eq!(told.uid, uid(&namespace(dc, &told.name).await));
    }
    let database = &status.databases[0];
    assert!(database.ready && database.reason == "AsDeclared");
    assert_eq!(
        (database.server.as_str(), database.secret.as_str()),
        (SERVER, "ona-porto-produzione/db-archivio")
    );
    assert!(database.system_identifier.as_deref().is_some_and(|id| id.len() > 10));
    assert!(database.provisioned_at.as_deref().is_some_and(is_date));
    let services: Vec<(&str, &str, i32)> = status
        .services
        .iter()
        .map(|service| (service.name.as_str(), service.url.as_deref().unwrap_or_default(), service.desired))
        .collect();
    assert_eq!(
        services,
        [
            ("porta", "http://porta.ona-porto.servizi.conme.example/", 1),
            ("mappe", "http://mappe.collaudo.ona-porto.servizi.conme.example/", 1),
            ("verifica", "http://verifica.portonuovo.example/", 1),
            ("pagine", "http://pagine.ona-porto.servizi.conme.example/", 2),
        ]
    );
    let quota = status.quota.as_ref().unwrap();
    assert_eq!(quota.limit["cpu"], "5");
    assert_eq!(quota.limit["memory"], "10Gi");
    assert!(quota.over_limit.is_empty());
}

async fn check_that_nobody_tells(dc: &DataCentre, password: &str) -> Result<()> {
    let comune = serde_json::to_string(&dc.comuni().get("ona-porto").await?)?;
    let events = Api::<Event>::all(dc.client()).list(&ListParams::default()).await?.items;
    let events = serde_json::to_string(&events)?;
    let mut texts = vec![("Comune", comune), ("events", events)];
    for kind in [Kind::Deployment, Kind::ConfigMap, Kind::Ingress, Kind::Namespace] {
        let list = dc.api(kind, "ona-porto-produzione").list(&ListParams::default()).await?.items;
        texts.push((kind.name(), serde_json::to_string(&list)?));
    }
    let pods: Api<Pod> = Api::namespaced(dc.client(), "ona-porto-produzione");
    texts.push(("Pod", serde_json::to_string(&pods.list(&ListParams::default()).await?.items)?));
    for (what, text) in &texts {
        // What is searched is really about this Comune.
        assert!(text.contains("ona-porto"), "{what}");
        assert!(!text.contains(password), "the password stands in {what}");
    }
    // And it would be found where it stands.
    let secret = Credentials::of(dc, "ona-porto-produzione", "archivio").await?;
    assert!(serde_json::to_string(&secret.0)?.contains(password));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shortest_manifest_makes_a_guarded_namespace_of_the_size_by_population() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let spec = json!({"entity": entity("Comune Breve", 900_002), "administrators": people("ona-breve")});
    dc.apply("ona-breve", spec).await?;
    let comune = dc.ready("ona-breve").await?;
    let status = comune.status.as_ref().unwrap();
    assert_eq!(status.tier.as_deref(), Some("piccolo"), "4000 residents");
    assert_eq!(status.namespaces.len(), 1);
    assert_eq!(status.namespaces[0].name, "ona-breve-produzione");
    for (type_, reason) in [
        ("Admitted", "AsDeclared"),
        ("DatabasesReady", "NoneDeclared"),
        ("ServicesDeployed", "NoneDeclared"),
        ("Available", "NoneDeclared"),
        ("ServersMigrated", "NoneDeclared"),
    ] {
        let (value, told, _) = condition(&comune, type_).unwrap();
        assert_eq!((value, told), ("True", reason), "{type_}");
    }
    let namespace = "ona-breve-produzione";
    let quota = read(&dc, Kind::ResourceQuota, namespace, "conme-quota").await;
    assert_eq!(quota["spec"]["hard"]["limits.cpu"], "4", "the whole of the tier piccolo");
    assert_eq!(quota["spec"]["hard"]["limits.memory"], "8Gi");
    let policies = names_in(&dc, Kind::NetworkPolicy, namespace).await;
    assert_eq!(policies, set(&["conme-default-deny", "conme-environment"]));
    let bindings = names_in(&dc, Kind::RoleBinding, namespace).await;
    assert_eq!(bindings, set(&["conme-administrators", "conme-operator"]));
    // The people can work at once, and only they.
    let review = |user: &'static str, group: &'static str| {
        let dc = &dc;
        async move {
            let client = dc.client_as(user, &[group, "system:authenticated"]).await?;
            let pods: Api<Pod> = Api::namespaced(client, namespace);
            anyhow::Ok(pods.list(&ListParams::default()).await)
        }
    };
    assert!(review("anna", "ona-breve-ced").await?.is_ok());
    assert_eq!(refusal(review("anna", "ona-altro-ced").await?.map(drop)).0, 403);
    dc.tidy_up("ona-breve").await
}

// ---------------------------------------------------------------------------------------------------------------
// Edits
// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_of_the_manifest_arrive() -> Result<()> {
    let dc = DataCentre::shared().await?;
    small_template(&dc, "ona-piccolo").await?;
    let mut spec = json!({
        "entity": entity("Comune Cambia", 900_003),
        "quota": small_quota(),
        "environments": [{"name": "produzione"}],
        "administrators": people("ona-cambia"),
        "services": [{"name": "sito", "template": "ona-piccolo", "replicas": 1}],
    });
    dc.apply("ona-cambia", spec.clone()).await?;
    available(&dc, "ona-cambia").await?;
    let namespace_name = "ona-cambia-produzione";
    let first = read(&dc, Kind::Deployment, namespace_name, "sito").await;

    // More pods, another host name, another environment, other people: all in one edit.
    spec["services"][0]["replicas"] = json!(3);
    spec["services"][0]["hostname"] = json!("www.cambia.example");
    spec["environments"] = json!([{"name": "produzione"}, {"name": "collaudo"}]);
    spec["administrators"] =
        json!([{"kind": "User", "name": "bruno"}, {"kind": "Group", "name": "ona-cambia-ced"}]);
    spec["viewers"] = json!([{"kind": "Group", "name": "ona-cambia-vede"}]);
    dc.apply("ona-cambia", spec.clone()).await?;
    dc.ready("ona-cambia").await?;
    let deployment = read(&dc, Kind::Deployment, namespace_name, "sito").await;
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(uid(&deployment), uid(&first), "it is the same Deployment");
    assert_eq!(deployment["spec"]["template"], first["spec"]["template"], "none of this concerns the pods");
    let ingress = read(&dc, Kind::Ingress, namespace_name, "sito").await;
    assert_eq!(ingress["spec"]["rules"][0]["host"], "www.cambia.example");
    assert_eq!(annotation(&namespace(&dc, namespace_name).await, keys::HOSTNAMES), "www.cambia.example");
    assert_eq!(label(&namespace(&dc, "ona-cambia-collaudo").await, keys::ENVIRONMENT), "collaudo");
    for namespace in [namespace_name, "ona-cambia-collaudo"] {
        let binding = read(&dc, Kind::RoleBinding, namespace, "conme-administrators").await;
        let names: Vec<&str> = binding["subjects"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|subject| subject["name"].as_str())
            .collect();
        assert_eq!(names, ["bruno", "ona-cambia-ced"], "{namespace}");
        read(&dc, Kind::RoleBinding, namespace, "conme-viewers").await;
        let quota = read(&dc, Kind::ResourceQuota, namespace, "conme-quota").await;
        assert_eq!(quota["spec"]["hard"]["limits.cpu"], "1", "{namespace}: half of two");
    }
    let comune = available(&dc, "ona-cambia").await?;
    let service = &comune.status.as_ref().unwrap().services[0];
    assert_eq!(service.url.as_deref(), Some("http://www.cambia.example/"));
    assert_eq!((service.ready, service.desired), (3, 3));

    // Who is taken off the list has no rights left.
    let works = |user: &'static str| {
        let dc = &dc;
        async move {
            let client = dc.client_as(user, &["system:authenticated"]).await?;
            let pods: Api<Pod> = Api::namespaced(client, namespace_name);
            anyhow::Ok(pods.list(&ListParams::default()).await.is_ok())
        }
    };
    eventually("bruno may look at pods", || works("bruno")).await?;
    spec["administrators"] = json!([]);
    spec["viewers"] = json!([]);
    dc.apply("ona-cambia", spec).await?;
    dc.ready("ona-cambia").await?;
    for namespace in [namespace_name, "ona-cambia-collaudo"] {
        assert_eq!(
            names_in(&dc, Kind::RoleBinding, namespace).await,
            set(&["conme-operator"]),
            "{namespace}"
        );
    }
    eventually("bruno may no longer look at pods", || async { Ok(!works("bruno").await?) }).await?;
    dc.tidy_up("ona-cambia").await
}

/// `spec.hard` by namespace.
type Quotas = BTreeMap<String, BTreeMap<String, Amount>>;

/// The quotas of a Comune after every change that the API server has seen.
struct QuotaWatch {
    states: Arc<Mutex<Vec<Quotas>>>,
    task: tokio::task::JoinHandle<()>,
}

impl QuotaWatch {
    async fn of(dc: &DataCentre, comune: &str) -> Result<Self> {
        let api: Api<ResourceQuota> = Api::all(dc.client());
        let selector = format!("{}={comune}", keys::COMUNE);
        let list = api.list(&ListParams::default().labels(&selector)).await?;
        let mut state: Quotas =
            list.items.iter().map(|quota| (quota.namespace().unwrap_or_default(), hard(quota))).collect();
        let states = Arc::new(Mutex::new(vec![state.clone()]));
        let version = list.metadata.resource_version.unwrap_or_default();
        let mut stream =
            Box::pin(api.watch(&WatchParams::default().labels(&selector).timeout(280), &version).await?);
        let seen = states.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(event)) = stream.try_next().await {
                match event {
                    WatchEvent::Added(quota) | WatchEvent::Modified(quota) => {
                        state.insert(quota.namespace().unwrap_or_default(), hard(&quota));
                    }
                    WatchEvent::Deleted(quota) => {
                        state.remove(&quota.namespace().unwrap_or_default());
                    }
                    _ => continue,
                }
                seen.lock().unwrap().push(state.clone());
            }
        });
        Ok(Self { states, task })
    }

    fn states(&self) -> Vec<Quotas> {
        self.states.lock().unwrap().clone()
    }
}

impl Drop for QuotaWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hard(quota: &ResourceQuota) -> BTreeMap<String, Amount> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    hard.into_iter().flatten().map(|(name, text)| (name.clone(), Amount::parse(&text.0).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_move_between_environments_and_the_total_is_exceeded_at_no_instant() -> Result<()> {
    let dc = DataCentre::shared().await?;
    small_template(&dc, "ona-piccolo").await?;
    let mut spec = json!({
        "entity": entity("Comune Quote", 900_004),
        "quota": {"cpu": 2, "memory": "4Gi", "storage": "20Gi"},
        "environments": [{"name": "produzione", "share": 50}, {"name": "collaudo", "share": 50}],
        "services": [{"name": "sito", "template": "ona-piccolo", "replicas": 4}],
    });
    dc.apply("ona-quote", spec.clone()).await?;
    let first = dc.ready("ona-quote").await?;
    assert_eq!(first.status.as_ref().unwrap().namespaces.len(), 2);
    let watch = QuotaWatch::of(&dc, "ona-quote").await?;
    let shares = [(80, 20), (20, 80), (50, 30), (30, 70)];
    for (production, test) in shares {
        spec["environments"] =
            json!([{"name": "produzione", "share": production}, {"name": "collaudo", "share": test}]);
        dc.apply("ona-quote", spec.clone()).await?;
        dc.ready("ona-quote").await?;
        let expected = |percent: u64| Amount::parse(&format!("{}m", 20 * percent)).unwrap();
        let reached = || async {
            let states = watch.states();
            let state = states.last().unwrap();
            let of = |environment: &str| state[&format!("ona-quote-{environment}")]["limits.cpu"];
            Ok(of("produzione") == expected(production) && of("collaudo") == expected(test))
        };
        eventually(&format!("shares are {production} and {test}"), reached).await?;
    }
    let states = watch.states();
    assert!(states.len() > 2 * shares.len(), "only {} changes were seen", states.len());
    let totals =
        [("limits.cpu", "2"), ("limits.memory", "4Gi"), ("requests.storage", "20Gi"), ("pods", "100")];
    for state in &states {
        for (resource, total) in totals {
            let sum: Amount = state.values().filter_map(|hard| hard.get(resource).copied()).sum();
            assert!(sum <= Amount::parse(total).unwrap(), "more than {total} {resource}: {state:?}");
        }
    }
    dc.tidy_up("ona-quote").await
}

// ---------------------------------------------------------------------------------------------------------------
// What is taken off the manifest
// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_no_longer_declared_goes_and_its_data_stay() -> Result<()> {
    let dc = DataCentre::shared().await?;
    small_template(&dc, "ona-piccolo").await?;
    let mut spec = json!({
        "entity": entity("Comune Togli", 900_005),
        "quota": small_quota(),
        "services": [
            {"name": "mappe", "template": "gis"},
            {"name": "sito", "template": "ona-piccolo"},
        ],
    });
    dc.apply("ona-togli", spec.clone()).await?;
    available(&dc, "ona-togli").await?;
    let namespace = "ona-togli-produzione";
    let claim = read(&dc, Kind::PersistentVolumeClaim, namespace, "mappe--progetti").await;
    let kinds = [
        Kind::ServiceAccount,
        Kind::Deployment,
        Kind::Service,
        Kind::Ingress,
        Kind::PodDisruptionBudget,
        Kind::NetworkPolicy,
    ];
    for kind in kinds {
        read(&dc, kind, namespace, "mappe").await;
    }

    spec["services"] = json!([{"name": "sito", "template": "ona-piccolo"}]);
    dc.apply("ona-togli", spec.clone()).await?;
    let comune = dc.ready("ona-togli").await?;
    for kind in kinds {
        let gone = || async { Ok(dc.read(kind, namespace, "mappe").await?.is_none()) };
        eventually(&format!("the {} of the service is gone", kind.name()), gone).await?;
        read(&dc, kind, namespace, "sito").await;
    }
    let kept = read(&dc, Kind::PersistentVolumeClaim, namespace, "mappe--progetti").await;
    assert_eq!(uid(&kept), uid(&claim));
    assert!(kept["metadata"].get("deletionTimestamp").is_none());
    assert_eq!(kept["status"]["phase"], "Bound");
    let since = orphan_since(&comune, "PersistentVolumeClaim", &format!("{namespace}/mappe--progetti"));
    let since = since.expect("the claim is told as an orphan");
    assert!(is_date(&since), "{since}");
    let names: Vec<&str> = comune.status.as_ref().unwrap().services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["sito"]);

    // The date stays when the manifest changes elsewhere; declared again it is no orphan and the same volume.
    spec["services"][0]["replicas"] = json!(2);
    dc.apply("ona-togli", spec.clone()).await?;
    let comune = dc.ready("ona-togli").await?;
    let name = format!("{namespace}/mappe--progetti");
    assert_eq!(orphan_since(&comune, "PersistentVolumeClaim", &name), Some(since));
    spec["services"] = json!([{"name": "mappe", "template": "gis"}]);
    dc.apply("ona-togli", spec).await?;
    let comune = available(&dc, "ona-togli").await?;
    assert_eq!(comune.status.as_ref().unwrap().orphans, []);
    assert_eq!(uid(&read(&dc, Kind::PersistentVolumeClaim, namespace, "mappe--progetti").await), uid(&claim));
    dc.tidy_up("ona-togli").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_no_longer_declared_stays_on_its_server_with_its_data() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let databases = json!([
        {"name": "anagrafe", "engine": "postgresql", "placement": {"shared": SERVER}},
        {"name": "tributi", "engine": "postgresql", "placement": {"shared": SERVER}},
    ]);
    let mut spec = json!({
        "entity": entity("Comune Dati", 900_006),
        "quota": small_quota(),
        "databases": databases,
    });
    dc.apply("ona-dati", spec.clone()).await?;
    let comune = dc.ready("ona-dati").await?;
    let on_server = comune.status.as_ref().unwrap().databases[0].database.clone();
    let credentials = Credentials::of(&dc, "ona-dati-produzione", "anagrafe").await?;
    credentials.login(None).await?.run("drop table if exists persone; create table persone (nome text); insert into persone values ('Ada')").await?;

    spec["databases"] = json!([databases[1]]);
    dc.apply("ona-dati", spec.clone()).await?;
    let comune = dc.ready("ona-dati").await?;
    let status = comune.status.as_ref().unwrap();
    assert_eq!(status.summary.as_ref().unwrap().databases, "1/1");
    let since = orphan_since(&comune, "Database", &format!("{SERVER}/{on_server}"));
    assert!(since.as_deref().is_some_and(is_date), "{:?}", status.orphans);
    let administrator = Credentials::of_administrator(&dc, SERVER)?.login(Some(&on_server)).await?;
    assert_eq!(administrator.value("select nome from persone").await?, "Ada");

    spec["databases"] = databases;
    dc.apply("ona-dati", spec).await?;
    let comune = dc.ready("ona-dati").await?;
    assert_eq!(comune.status.as_ref().unwrap().orphans, []);
    let again = Credentials::of(&dc, "ona-dati-produzione", "anagrafe").await?;
    assert_eq!(again.login(None).await?.value("select nome from persone").await?, "Ada");
    dc.tidy_up("ona-dati").await
}

/// A pod that any namespace of ours admits, as long as its quota does.
fn a_pod(name: &str) -> Pod {
    let security = json!({
        "allowPrivilegeEscalation": false,
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "registry.example/prova:1", "securityContext": security}]},
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_that_is_no_longer_declared_is_kept_closed_and_comes_back_as_it_was() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let both = json!([{"name": "produzione"}, {"name": "collaudo"}]);
    let mut spec = json!({
        "entity": entity("Comune Ambienti", 900_007),
        "quota": small_quota(),
        "environments": both,
        "administrators": people("ona-ambienti"),
    });
    dc.apply("ona-ambienti", spec.clone()).await?;
    dc.ready("ona-ambienti").await?;
    let name = "ona-ambienti-collaudo";
    let before = namespace(&dc, name).await;
    let policies = names_in(&dc, Kind::NetworkPolicy, name).await;
    let notes: Api<ConfigMap> = Api::namespaced(dc.client(), name);
    let note =
        serde_json::from_value(json!({"metadata": {"name": "appunti"}, "data": {"nota": "da tenere"}}))?;
    notes.create(&PostParams::default(), &note).await?;
    let pods: Api<Pod> = Api::namespaced(dc.client(), name);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    // Also the test's own pod is admitted while the environment is declared. The quota is enforced a moment later.
    eventually("a pod is admitted", || async { Ok(pods.create(&dry, &a_pod("prova")).await.is_ok()) })
        .await?;

    spec["environments"] = json!([{"name": "produzione"}]);
    dc.apply("ona-ambienti", spec.clone()).await?;
    let comune = dc.ready("ona-ambienti").await?;
    let kept = namespace(&dc, name).await;
    assert_eq!(uid(&kept), uid(&before));
    assert_eq!(label(&kept, keys::ORPHANED), "true");
    let date = annotation(&kept, keys::ORPHANED_AT).to_owned();
    assert!(is_date(&date), "{date}");
    assert_eq!(orphan_since(&comune, "Namespace", name), Some(date));
    let told: Vec<&str> =
        comune.status.as_ref().unwrap().namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    assert_eq!(told, ["ona-ambienti-produzione"]);
    let (_, _, message) = condition(&comune, "NamespacesReady").unwrap();
    assert!(message.contains("what is kept in ona-ambienti-collaudo counts against the quota"), "{message}");
    let quota = read(&dc, Kind::ResourceQuota, name, "conme-quota").await;
    for (resource, hard) in quota["spec"]["hard"].as_object().unwrap() {
        assert_eq!(amount(hard), Amount::ZERO, "{resource}");
    }
    assert_eq!(names_in(&dc, Kind::NetworkPolicy, name).await, policies, "it stays closed");
    assert_eq!(label(&kept, "pod-security.kubernetes.io/enforce"), "restricted");
    let bindings = names_in(&dc, Kind::RoleBinding, name).await;
    assert!(bindings.contains("conme-administrators"), "its people still get at its data");
    // What it held goes to the other environment, and nothing new is admitted here.
    let grown = || async {
        let quota = read(&dc, Kind::ResourceQuota, "ona-ambienti-produzione", "conme-quota").await;
        Ok(quota["spec"]["hard"]["limits.cpu"] == "2")
    };
    eventually("the other environment has the whole", grown).await?;
    // But for what it still holds: the notes and the certificate that is in every namespace.
    let held = || async {
        let quota = read(&dc, Kind::ResourceQuota, "ona-ambienti-produzione", "conme-quota").await;
        Ok(amount(&quota["spec"]["hard"]["count/configmaps"]) == Amount::units(200 - 2))
    };
    eventually("what the orphan holds is not promised twice", held).await?;
    let refused = || async { Ok(pods.create(&dry, &a_pod("prova")).await.is_err()) };
    eventually("no pod is admitted", refused).await?;
    let (code, message) = refusal(pods.create(&dry, &a_pod("prova")).await);
    assert_eq!(code, 403);
    assert!(message.contains("exceeded quota"), "{message}");
    assert_eq!(notes.get("appunti").await?.data.unwrap()["nota"], "da tenere");

    spec["environments"] = both;
    dc.apply("ona-ambienti", spec).await?;
    let comune = dc.ready("ona-ambienti").await?;
    let back = namespace(&dc, name).await;
    assert_eq!(uid(&back), uid(&before));
    assert_eq!(label(&back, keys::ORPHANED), "");
    assert_eq!(annotation(&back, keys::ORPHANED_AT), "");
    assert_eq!(comune.status.as_ref().unwrap().orphans, []);
    assert_eq!(notes.get("appunti").await?.data.unwrap()["nota"], "da tenere");
    eventually("a pod is admitted again", || async { Ok(pods.create(&dry, &a_pod("prova")).await.is_ok()) })
        .await?;
    dc.tidy_up("ona-ambienti").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comune_that_is_deleted_runs_on_and_is_adopted_when_it_comes_back() -> Result<()> {
    let dc = DataCentre::shared().await?;
    bound_template(&dc, "ona-legato").await?;
    let spec = json!({
        "entity": entity("Comune Partenza", 900_008),
        "quota": small_quota(),
        "environments": [{"name": "produzione"}, {"name": "collaudo"}],
        "administrators": people("ona-partenza"),
        "databases": [{"name": "archivio", "engine": "postgresql", "placement": {"shared": SERVER}}],
        "services": [{"name": "sito", "template": "ona-legato", "replicas": 2, "database": "archivio"}],
    });
    dc.apply("ona-partenza", spec.clone()).await?;
    let first = available(&dc, "ona-partenza").await?;
    let names = ["ona-partenza-produzione", "ona-partenza-collaudo"];
    let mut uids = Vec::new();
    for name in names {
        uids.push(uid(&namespace(&dc, name).await));
    }
    let running = pods(&dc, names[0]).await?;
    assert_eq!(running.len(), 2);
    let deployment = read(&dc, Kind::Deployment, names[0], "sito").await;
    let credentials = Credentials::of(&dc, names[0], "archivio").await?;
    credentials.login(None).await?.run("drop table if exists lettere; create table lettere (testo text); insert into lettere values ('cara')").await?;

    dc.comuni().delete("ona-partenza", &DeleteParams::default()).await?;
    let gone = || async { Ok(dc.comuni().get_opt("ona-partenza").await?.is_none()) };
    eventually("the Comune is gone", gone).await?;
    for name in names {
        let orphaned = || async { Ok(label(&namespace(&dc, name).await, keys::ORPHANED) == "true") };
        eventually(&format!("{name} says that it is an orphan"), orphaned).await?;
        let kept = namespace(&dc, name).await;
        assert!(is_date(annotation(&kept, keys::ORPHANED_AT)));
        assert!(kept["metadata"].get("deletionTimestamp").is_none());
        assert_eq!(label(&kept, keys::COMUNE), "ona-partenza", "it still says whose it was");
        let policies = names_in(&dc, Kind::NetworkPolicy, name).await;
        assert!(policies.contains("conme-default-deny"), "it stays closed");
        read(&dc, Kind::ResourceQuota, name, "conme-quota").await;
    }
    assert_eq!(pods(&dc, names[0]).await?, running, "what runs goes on");
    assert_eq!(credentials.login(None).await?.value("select testo from lettere").await?, "cara");

    dc.apply("ona-partenza", spec).await?;
    let second = available(&dc, "ona-partenza").await?;
    dc.ready("ona-partenza").await?;
    assert_ne!(second.uid(), first.uid(), "it is another object");
    for (name, before) in names.iter().zip(&uids) {
        let back = namespace(&dc, name).await;
        assert_eq!(uid(&back), *before, "{name}");
        assert_eq!((label(&back, keys::ORPHANED), annotation(&back, keys::ORPHANED_AT)), ("", ""), "{name}");
    }
    assert_eq!(pods(&dc, names[0]).await?, running, "no pod was restarted");
    let again = read(&dc, Kind::Deployment, names[0], "sito").await;
    assert_eq!(again["metadata"]["generation"], deployment["metadata"]["generation"]);
    let adopted = Credentials::of(&dc, names[0], "archivio").await?;
    assert_eq!(adopted.get("password"), credentials.get("password"));
    assert_eq!(credentials.login(None).await?.value("select testo from lettere").await?, "cara");
    assert_eq!(second.status.as_ref().unwrap().orphans, []);
    dc.tidy_up("ona-partenza").await
}

// ---------------------------------------------------------------------------------------------------------------
// Paused, and how it looks
// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_paused_nothing_is_changed_and_afterwards_it_catches_up() -> Result<()> {
    let dc = DataCentre::shared().await?;
    small_template(&dc, "ona-piccolo").await?;
    let mut spec = json!({
        "entity": entity("Comune Pausa", 900_009),
        "quota": small_quota(),
        "services": [{"name": "sito", "template": "ona-piccolo", "replicas": 1}],
    });
    dc.apply("ona-pausa", spec.clone()).await?;
    dc.ready("ona-pausa").await?;
    let name = "ona-pausa-produzione";
    let before = read(&dc, Kind::Deployment, name, "sito").await;

    spec["paused"] = json!(true);
    spec["services"][0]["replicas"] = json!(2);
    spec["environments"] = json!([{"name": "produzione"}, {"name": "collaudo"}]);
    spec["databases"] =
        json!([{"name": "archivio", "engine": "postgresql", "placement": {"shared": SERVER}}]);
    dc.apply("ona-pausa", spec.clone()).await?;
    let paused = |comune: &Comune| {
        is_current(comune)
            && condition(comune, "Ready")
                .is_some_and(|(status, reason, _)| (status, reason) == ("False", "Paused"))
    };
    let comune = dc.comune_where("ona-pausa", "paused", paused).await?;
    let differ =
        |comune: &Comune| condition(comune, "NamespacesReady").map(|(_, _, message)| message.to_owned());
    assert_eq!(condition(&comune, "NamespacesReady").unwrap().1, "Paused", "what is left to do is told");
    assert_eq!(comune.status.as_ref().unwrap().databases[0].reason, "Paused");

    // What is deleted by hand is seen, told, and not made again.
    let told = differ(&comune).unwrap();
    dc.api(Kind::LimitRange, name).delete("conme-limits", &DeleteParams::default()).await?;
    let seen = |comune: &Comune| paused(comune) && differ(comune).is_some_and(|now| now != told);
    dc.comune_where("ona-pausa", "seen to lack its limits", seen).await?;
    assert!(dc.read(Kind::LimitRange, name, "conme-limits").await?.is_none());
    let deployment = read(&dc, Kind::Deployment, name, "sito").await;
    assert_eq!(deployment["metadata"]["generation"], before["metadata"]["generation"]);
    assert!(dc.read(Kind::Namespace, "", "ona-pausa-collaudo").await?.is_none());
    assert!(Credentials::of(&dc, name, "archivio").await.is_err());

    spec["paused"] = json!(false);
    dc.apply("ona-pausa", spec).await?;
    dc.ready("ona-pausa").await?;
    read(&dc, Kind::LimitRange, name, "conme-limits").await;
    namespace(&dc, "ona-pausa-collaudo").await;
    assert_eq!(read(&dc, Kind::Deployment, name, "sito").await["spec"]["replicas"], 2);
    Credentials::of(&dc, name, "archivio").await?.login(None).await?;
    dc.tidy_up("ona-pausa").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_matters_and_explains_every_field_with_its_unit() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let kubectl = |args: &'static [&'static str]| install::run(dc.instance(), "kubectl", args, None);
    let spec = json!({
        "entity": entity("Comune Vista", 900_010),
        "administrators": people("ona-vista"),
        "databases": [{"name": "archivio", "engine": "postgresql", "placement": {"shared": SERVER}}],
    });
    dc.apply("ona-vista", spec).await?;
    dc.ready("ona-vista").await?;

    let table = kubectl(&["get", "comuni", "ona-vista"]).await?;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let columns = [
        "NAME",
        "READY",
        "REASON",
        "AVAILABLE",
        "ENVIRONMENTS",
        "DATABASES",
        "SERVICES",
        "MIGRATED",
        "CPU",
        "AGE",
    ];
    assert_eq!(lines[0], columns);
    assert_eq!(lines[1][..9], ["ona-vista", "True", "AsDeclared", "True", "1", "1/1", "0/0", "0/0", "0/4"]);
    let wide = kubectl(&["get", "com", "ona-vista", "-o", "wide"]).await?;
    let lines: Vec<Vec<&str>> = wide.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], [&columns[..], &["ISTAT", "POPULATION", "TIER", "MEMORY", "ORPHANS"]].concat());
    assert_eq!(lines[1][10..], ["900010", "4000", "piccolo", "0/8Gi", "0"]);

    for (field, words) in [
        ("comune.spec.databases", &["maxSize", "50Gi", "in bytes", "connectionLimit", "-required-"][..]),
        ("comune.spec.databases.connectionLimit", &["Concurrent connections"]),
        ("comune.spec.sites.uplinkMbps", &["Mbit/s"]),
        ("comune.spec.environments.share", &["Percentage"]),
        ("comune.spec.quota.memory", &["16Gi"]),
        ("comune.spec.entity.istat", &["6 digits", "quoted"]),
        ("comune.spec.environments.podSecurity", &["restricted", "baseline"]),
        ("servicetemplate.spec.versions.probe.startupSeconds", &["Seconds"]),
        ("datacenter.spec.overcommit.cpuPercent", &["in percent"]),
    ] {
        let text = install::run(dc.instance(), "kubectl", &["explain", field], None).await?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(text.contains(word), "`kubectl explain {field}` does not say {word}: {text}");
        }
    }

    // Events tell the story, too.
    let events = kubectl(&["events", "--for", "comune/ona-vista", "-A"]).await?;
    assert!(events.contains("AsDeclared"), "{events}");

    // An edit by kubectl counts like any other.
    let patch = json!({"spec": {"environments": [{"name": "produzione"}, {"name": "prova"}]}});
    dc.comuni().patch("ona-vista", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    dc.ready("ona-vista").await?;
    namespace(&dc, "ona-vista-prova").await;
    dc.tidy_up("ona-vista").await
}
