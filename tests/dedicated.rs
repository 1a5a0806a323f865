//! A database on a server of its own: what the operator asks of CloudNativePG, and that it never takes such a server
//! away, makes it a second time, or calls it ready when nobody runs it. The part of CloudNativePG is played by the
//! story, which writes the status that its operator would write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result, ensure};
use conme_api::{Comune, reasons};
use conme_blueprint::Kind;
use conme_stories::{Credentials, DataCentre, checkout, condition, entity, eventually, is_current, refusal};
use conme_testbed::install;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

const COMUNE: &str = "proprio";
const NAMESPACE: &str = "proprio-produzione";
const NAME: &str = "db-anagrafe";

fn api(data_centre: &DataCentre, kind: &str) -> Api<DynamicObject> {
    let plural = format!("{}s", kind.to_lowercase());
    let gvk = GroupVersionKind::gvk("postgresql.cnpg.io", "v1", kind);
    Api::namespaced_with(data_centre.client(), NAMESPACE, &ApiResource::from_gvk_with_plural(&gvk, &plural))
}

fn spec(instances: u32) -> Value {
    json!({
        "entity": entity("Comune con server proprio", 902_401),
        "quota": {"cpu": "4", "memory": "8Gi", "storage": "100Gi"},
        "databases": [{
            "name": "anagrafe", "engine": "postgresql", "extensions": ["pg_trgm"], "connectionLimit": 30,
            "placement": {"dedicated": {"instances": instances, "storage": "20Gi", "memory": "2Gi"}},
        }],
    })
}

/// The definitions of CloudNativePG: those of a folder, if there is one, else the part that is kept here.
async fn install_definitions(data_centre: &DataCentre) -> Result<()> {
    let folder = std::env::var_os("CONME_SCHEMAS").map(std::path::PathBuf::from);
    let files = match folder {
        Some(folder) => vec![folder.join("cnpg-clusters.yaml"), folder.join("cnpg-databases.yaml")],
        None => vec![checkout().join("tests/cloudnativepg/definitions.yaml")],
    };
    for file in files {
        let file = file.to_string_lossy().into_owned();
        // Server-side: the original definition is larger than an annotation may be.
        let args = ["apply", "--server-side", "-f", &file];
        install::run(data_centre.instance(), "kubectl", &args, None).await.context(file.clone())?;
    }
    Ok(())
}

/// What the operator of CloudNativePG writes when a server is as asked for.
async fn play_cloud_native_pg(data_centre: &DataCentre, ready: i64, identity: &str) -> Result<()> {
    let phase = if ready > 0 { "Cluster in healthy state" } else { "Setting up primary" };
    let status = json!({"status": {
        "phase": phase, "instances": 3, "readyInstances": ready, "systemID": identity,
        "conditions": [{"type": "Ready", "status": if ready > 0 { "True" } else { "False" },
            "reason": "ClusterIsReady", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    let params = PatchParams::default();
    api(data_centre, "Cluster").patch_status(NAME, &params, &Patch::Merge(&status)).await?;
    let databases = api(data_centre, "Database");
    let generation = databases.get(NAME).await?.metadata.generation;
    let status = json!({"status": {"applied": ready > 0, "observedGeneration": generation}});
    databases.patch_status(NAME, &params, &Patch::Merge(&status)).await?;
    Ok(())
}

async fn told(data_centre: &DataCentre, reason: &str, words: &str) -> Result<Comune> {
    data_centre
        .comune_where(COMUNE, &format!("told that `{words}`"), |comune| {
            let found = condition(comune, "DatabasesReady");
            is_current(comune)
                && found.is_some_and(|(status, why, message)| {
                    status == "False" && why == reason && message.contains(words)
                })
        })
        .await
}

/// Waits until the operator has looked at its databases a few times more.
async fn looked_again(data_centre: &DataCentre) -> Result<()> {
    let looks = || async {
        Ok::<f64, anyhow::Error>(data_centre.metrics().await?.sum("conme_database_ensure_total", &[]))
    };
    let before = looks().await?;
    eventually("the operator has looked again", || async { Ok(looks().await? >= before + 3.0) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_13_a_server_of_its_own_is_waited_for_and_never_taken_away() -> Result<()> {
    let data_centre = DataCentre::own("dedicated", &["--recheck-seconds", "2"]).await?;
    let comuni = data_centre.comuni();

    // Where nobody knows CloudNativePG's kinds, that is what is said, and everything else stands.
    data_centre.apply(COMUNE, spec(1)).await?;
    let waiting = told(&data_centre, reasons::WAITING, "does not serve postgresql.cnpg.io/v1").await?;
    assert_eq!(condition(&waiting, "NamespacesReady").unwrap().0, "True");
    assert_eq!(condition(&waiting, "Ready").unwrap().0, "False");

    // Where only the definitions are served, it is asked for, and not called ready.
    install_definitions(&data_centre).await?;
    told(&data_centre, reasons::WAITING, "which has not taken it up").await?;
    let clusters = api(&data_centre, "Cluster");
    let cluster = clusters.get(NAME).await?;
    let asked = &cluster.data["spec"];
    assert_eq!(asked["instances"], 1);
    assert_eq!(asked["storage"]["size"], "20Gi");
    assert_eq!(asked["resources"]["limits"], json!({"cpu": "500m", "memory": "2Gi"}));
    assert_eq!(asked["bootstrap"]["initdb"]["secret"]["name"], NAME);
    let database = api(&data_centre, "Database").get(NAME).await?;
    assert_eq!(database.data["spec"]["databaseReclaimPolicy"], "retain");
    assert_eq!(database.data["spec"]["extensions"][0]["name"], "pg_trgm");
    assert_eq!(database.data["spec"]["connectionLimit"], 30);
    let credentials = Credentials::of(&data_centre, NAMESPACE, "anagrafe").await?;
    assert_eq!(credentials.get("host"), format!("{NAME}-rw.{NAMESPACE}.svc"));
    assert_eq!(credentials.get("username"), asked["bootstrap"]["initdb"]["owner"].as_str().unwrap());
    assert_eq!(credentials.get("database"), asked["bootstrap"]["initdb"]["database"].as_str().unwrap());
    // The server's pods, and no others, reach the API server and are reached by CloudNativePG.
    let way =
        data_centre.read(Kind::NetworkPolicy, NAMESPACE, "conme-dedicated").await?.context("a policy")?;
    assert_eq!(way["spec"]["podSelector"]["matchExpressions"][0]["values"], json!([NAME]));
    assert_eq!(way["spec"]["egress"][0]["ports"], json!([{"protocol": "TCP", "port": 6443}]));

    // Ready when CloudNativePG says so; the certificate of its authority joins the Secret.
    play_cloud_native_pg(&data_centre, 0, "7400000000000000001").await?;
    told(&data_centre, reasons::WAITING, "0 of 1 instances are ready (Setting up primary)").await?;
    let authority = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db-anagrafe-ca", "namespace": NAMESPACE},
        "stringData": {"ca.crt": "the authority of CloudNativePG"},
    });
    install::apply(data_centre.instance(), &authority).await?;
    play_cloud_native_pg(&data_centre, 3, "7400000000000000001").await?;
    let ready = data_centre.ready(COMUNE).await?;
    let on_record = ready.status.unwrap().databases.remove(0);
    assert_eq!(on_record.system_identifier.as_deref(), Some("7400000000000000001"));
    assert_eq!(on_record.server, format!("{NAMESPACE}/{NAME}"));
    eventually("the Secret knows the authority", || async {
        let after = Credentials::of(&data_centre, NAMESPACE, "anagrafe").await?;
        assert_eq!(
            after.get("password"),
            credentials.get("password"),
            "the password is what the server began with"
        );
        Ok(after.0.get("ca.crt").is_some_and(|ca| ca == "the authority of CloudNativePG"))
    })
    .await?;

    // What somebody changes is put back, an edit of the manifest arrives, and the server stays the same object.
    let three = json!({"spec": {"instances": 7, "enableSuperuserAccess": true}});
    clusters.patch(NAME, &PatchParams::default(), &Patch::Merge(&three)).await?;
    eventually("the edit by hand is put back", || async {
        let spec = clusters.get(NAME).await?.data["spec"].clone();
        Ok(spec["instances"] == 1 && spec["enableSuperuserAccess"] == false)
    })
    .await?;
    data_centre.apply(COMUNE, spec(3)).await?;
    eventually("three instances are asked for", || async {
        Ok(clusters.get(NAME).await?.data["spec"]["instances"] == 3)
    })
    .await?;
    play_cloud_native_pg(&data_centre, 3, "7400000000000000001").await?;
    data_centre.ready(COMUNE).await?;
    assert_eq!(clusters.get(NAME).await?.metadata.uid, cluster.metadata.uid);

    // Another server behind the same name is not the one that holds the data.
    play_cloud_native_pg(&data_centre, 3, "7400000000000000002").await?;
    told(&data_centre, reasons::DATA_MISSING, "holds another server's data").await?;
    play_cloud_native_pg(&data_centre, 3, "7400000000000000001").await?;
    data_centre.ready(COMUNE).await?;

    // Not by accident: whoever deletes it says which one.
    let (code, message) = refusal(clusters.delete(NAME, &DeleteParams::default()).await);
    ensure!(code == 403 && message.contains("to confirm, as the SAD"), "{code} {message}");
    let word = format!("{NAME}/{}", cluster.metadata.uid.clone().unwrap_or_default());
    let confirm = json!({"metadata": {"annotations": {"conme.venis.it/confirm-delete": word}}});
    clusters.patch(NAME, &PatchParams::default(), &Patch::Merge(&confirm)).await?;
    // Gone is gone: nothing is made in its place until a person says so.
    clusters.delete(NAME, &DeleteParams::default()).await?;
    let lost = told(&data_centre, reasons::DATA_MISSING, "is gone, and its data with it").await?;
    let message = condition(&lost, "DatabasesReady").unwrap().2.to_owned();
    looked_again(&data_centre).await?;
    assert!(clusters.get_opt(NAME).await?.is_none(), "made again behind everybody's back");
    let word = message.split("conme.venis.it/confirm-recreate=").nth(1).context("the command")?;
    let word = word.split_whitespace().next().context("its value")?;
    let confirm = json!({"metadata": {"annotations": {"conme.venis.it/confirm-recreate": word}}});
    comuni.patch(COMUNE, &PatchParams::default(), &Patch::Merge(&confirm)).await?;
    eventually("it is made anew", || async { Ok(clusters.get_opt(NAME).await?.is_some()) }).await?;
    play_cloud_native_pg(&data_centre, 3, "7400000000000000003").await?;
    data_centre.ready(COMUNE).await?;

    // Neither leaving the manifest nor the end of the Comune takes the server away.
    let uid = clusters.get(NAME).await?.metadata.uid;
    let mut without = spec(3);
    without["databases"] = json!([]);
    data_centre.apply(COMUNE, without).await?;
    let orphaned = data_centre.ready(COMUNE).await?;
    let orphans = orphaned.status.unwrap().orphans;
    assert!(
        orphans
            .iter()
            .any(|one| one.kind == "Database" && one.name.starts_with(&format!("{NAMESPACE}/{NAME}/"))),
        "{orphans:?}"
    );
    comuni.delete(COMUNE, &DeleteParams::default()).await?;
    eventually("the namespace is an orphan", || async {
        let namespace = data_centre.read(Kind::Namespace, "", NAMESPACE).await?.context("the namespace")?;
        Ok(namespace["metadata"]["labels"]["conme.venis.it/orphaned"] == "true")
    })
    .await?;
    assert_eq!(clusters.get(NAME).await?.metadata.uid, uid);
    assert!(clusters.get(NAME).await?.metadata.deletion_timestamp.is_none());
    Ok(())
}
