//! An upgrade of the operator and of its chart, and the way back: no pod is restarted and no object is made anew,
//! because nothing of the operator's version is in what it makes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use conme_api::keys;
use conme_blueprint::Kind;
use conme_stories::{DataCentre, entity, installation, operator_writes};
use conme_testbed::{
    Progress,
    install::{Installation, install},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

const NAME: &str = "avanti";
const NEXT: &str = "99.0.0";

fn spec(cpu: u32) -> Value {
    json!({
        "entity": entity("Comune che va avanti", 902_501),
        "quota": {"cpu": cpu.to_string(), "memory": "8Gi", "storage": "20Gi"},
        "environments": [{"name": "produzione", "share": 75}, {"name": "collaudo", "share": 25}],
        "administrators": [{"kind": "Group", "name": "avanti-ced"}],
        "databases": [{"name": "protocollo", "engine": "postgresql", "placement": {"shared": "pg-venis-1"}}],
        "services": [
            {"name": "pagina", "template": "upg-pagina", "environment": "collaudo", "replicas": 2},
            {"name": "portale", "template": "upg-portale", "environment": "produzione", "database": "protocollo"},
        ],
    })
}

/// What must not change: unique ids and generations of everything that belongs to the Comune.
async fn everything(data_centre: &DataCentre) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut namespaces = Vec::new();
    for kind in Kind::ALL {
        let api = data_centre.api(kind, "");
        let api = if kind == Kind::Namespace {
            api
        } else {
            Api::all_with(data_centre.client(), &kind.api_resource())
        };
        let selector = ListParams::default().labels(&format!("{}={NAME}", keys::COMUNE));
        for object in api.list(&selector).await? {
            if kind == Kind::Namespace {
                namespaces.push(object.name_any());
            }
            let name =
                format!("{} {}/{}", kind.name(), object.namespace().unwrap_or_default(), object.name_any());
            found.insert(name, format!("{:?} {:?}", object.metadata.uid, object.metadata.generation));
        }
    }
    for namespace in namespaces {
        let secrets: Api<k8s_openapi::api::core::v1::Secret> =
            Api::namespaced(data_centre.client(), &namespace);
        for secret in secrets.list(&ListParams::default()).await? {
            found.insert(
                format!("Secret {namespace}/{}", secret.name_any()),
                format!("{:?} {:?}", secret.metadata.uid, secret.metadata.resource_version),
            );
        }
        let pods: Api<Pod> = Api::namespaced(data_centre.client(), &namespace);
        for pod in pods.list(&ListParams::default()).await? {
            let status = pod.status.clone().unwrap_or_default();
            let restarts: i32 =
                status.container_statuses.iter().flatten().map(|container| container.restart_count).sum();
            found.insert(
                format!("Pod {namespace}/{}", pod.name_any()),
                format!("{:?} {:?} restarts {restarts}", pod.metadata.uid, status.start_time),
            );
        }
    }
    Ok(found)
}

/// Chart and examples as they are, with the chart under another version.
fn checkout_of_next(top: &Path, to: &Path) -> Result<()> {
    for part in ["charts", "examples"] {
        copy(&top.join(part), &to.join(part))?;
    }
    let file = to.join("charts/conme/Chart.yaml");
    let text = std::fs::read_to_string(&file)?;
    let lines = text.lines().map(|line| match line.split_once(':') {
        Some(("version", _)) => format!("version: {NEXT}\n"),
        Some(("appVersion", _)) => format!("appVersion: \"{NEXT}\"\n"),
        _ => format!("{line}\n"),
    });
    let next: String = lines.collect();
    assert_ne!(next, text);
    Ok(std::fs::write(file, next)?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

async fn version(data_centre: &DataCentre) -> Result<String> {
    let metrics = data_centre.metrics().await?;
    let line = metrics.0.keys().find(|series| series.starts_with("conme_build_info")).context("a version")?;
    Ok(line.split('"').nth(1).unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_4_an_upgrade_and_the_way_back_restart_no_pod_and_make_nothing_anew() -> Result<()> {
    let data_centre = DataCentre::own("upgrade", &[]).await?;
    data_centre.two_templates("upg").await?;
    data_centre.apply(NAME, spec(4)).await?;
    data_centre
        .comune_where(NAME, "available", |comune| {
            conme_stories::condition(comune, "Available").is_some_and(|(status, ..)| status == "True")
        })
        .await?;
    data_centre.ready(NAME).await?;
    data_centre.operator_at_rest().await?;
    let before = everything(&data_centre).await?;
    let pods = before.keys().filter(|name| name.starts_with("Pod ")).count();
    assert!(pods >= 3 && before.len() > 25, "there is something to lose: {before:#?}");

    let present = installation()?;
    let present_version = version(&data_centre).await?;
    let folder = std::env::temp_dir().join(format!("conme-upgrade-{}", std::process::id()));
    checkout_of_next(&present.checkout, &folder)?;
    let next = Installation {
        checkout: folder.clone(),
        operator: env!("CARGO_BIN_EXE_conme-operator-next").into(),
        operator_args: Vec::new(),
    };

    for (step, what, expected, cpu) in [
        ("forward", &next, NEXT, 5),
        ("back", &present, present_version.as_str(), 6),
        ("forward again", &next, NEXT, 7),
    ] {
        let known = everything(&data_centre).await?;
        let since = Timestamp::now();
        install(data_centre.instance(), what, &Progress::silent()).await.context(step)?;
        assert_eq!(version(&data_centre).await?, expected, "{step}");
        data_centre.ready(NAME).await?;
        data_centre.operator_at_rest().await?;
        assert_eq!(everything(&data_centre).await?, known, "{step}");
        let writes = operator_writes(&data_centre, since)?;
        assert!(writes.is_empty(), "{step}: {writes:#?}");

        // It is at work: an edit arrives, and the pods stay as they are.
        data_centre.apply(NAME, spec(cpu)).await?;
        data_centre.ready(NAME).await?;
        let quota =
            data_centre.read(Kind::ResourceQuota, &format!("{NAME}-produzione"), "conme-quota").await?;
        let cpu = quota.context("a quota")?["spec"]["hard"]["requests.cpu"].clone();
        assert_ne!(cpu, "3", "{step}");
        data_centre.operator_at_rest().await?;
    }
    std::fs::remove_dir_all(folder)?;
    let after = everything(&data_centre).await?;
    let of = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        all.iter().filter(|(name, _)| name.starts_with("Pod ")).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    assert_eq!(of(&after), of(&before));
    Ok(())
}
