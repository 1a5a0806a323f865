//! Databases in the course of the years: passwords are replaced and nobody is shut out, a database that is full stops
//! growing and goes on when there is room, a server moves to another address, and what has been provisioned stays where
//! it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use conme_api::{Comune, DatabaseStatus, keys, reasons};
use conme_blueprint::Kind;
use conme_stories::{Credentials, DataCentre, condition, entity, eventually};
use conme_testbed::{
    Signal,
    install::{self, OPERATOR},
};
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";
const NAMESPACE: &str = "rot-uno-produzione";

fn spec(name: &str, istat: u32, database: Value) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": "2", "memory": "4Gi", "storage": "20Gi"},
        "databases": [database],
    })
}

fn database(fields: Value) -> Value {
    let mut database = json!({"name": "dati", "engine": "postgresql", "placement": {"shared": SERVER}});
    for (key, value) in fields.as_object().expect("fields") {
        database[key] = value.clone();
    }
    database
}

fn told(comune: &Comune) -> &DatabaseStatus {
    &comune.status.as_ref().expect("a status").databases[0]
}

fn generation(comune: &Comune) -> u32 {
    let database = comune.status.as_ref().and_then(|status| status.databases.first());
    database.and_then(|told| told.credential.as_ref()).map_or(0, |credential| credential.generation)
}

async fn annotate(data_centre: &DataCentre, comune: &str, value: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {keys::ROTATE_CREDENTIALS: value}}});
    data_centre.comuni().patch(comune, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// An application that reads its Secret before each batch of connections, and runs until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    batches: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Load {
    async fn start(data_centre: Arc<DataCentre>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let batches = Arc::new(AtomicU32::new(0));
        let (stopped, counted) = (stop.clone(), batches.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let credentials = Credentials::of(&data_centre, NAMESPACE, "dati").await?;
                batch(&data_centre, &credentials).await?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, batches, task })
    }

    async fn stop(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.batches.load(Ordering::Relaxed))
    }
}

/// A few transactions, each on a connection of its own: by pgbench where it is installed.
async fn batch(data_centre: &DataCentre, credentials: &Credentials) -> Result<()> {
    let program = data_centre.instance().bin("pgbench");
    if !program.exists() {
        for _ in 0..5 {
            credentials.login(None).await?.run("insert into t values (1)").await?;
        }
        return Ok(());
    }
    let directory = data_centre.instance().dir().to_owned();
    let (script, ca) = (directory.join("load.sql"), directory.join("load.crt"));
    if !script.exists() {
        std::fs::write(&ca, credentials.get("ca.crt"))?;
        std::fs::write(&script, "insert into t values (1);\n")?;
    }
    let output = tokio::process::Command::new(program)
        .args(["--no-vacuum", "--connect", "--client=2", "--transactions=5", "--file"])
        .arg(&script)
        .arg(credentials.get("database"))
        // Not by an argument: everybody on the machine reads those.
        .env("PGHOST", credentials.get("host"))
        .env("PGPORT", credentials.get("port"))
        .env("PGUSER", credentials.get("username"))
        .env("PGPASSWORD", credentials.get("password"))
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", &ca)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pgbench as {}: {said}", credentials.get("username"));
    Ok(())
}

/// The pod template of a Deployment, and how often it was changed.
async fn deployment(data_centre: &DataCentre, name: &str) -> Result<(Value, i64)> {
    let found = data_centre.read(Kind::Deployment, NAMESPACE, name).await?.expect("a Deployment");
    let changes = found["metadata"]["generation"].as_i64().unwrap();
    Ok((found["spec"]["template"].clone(), changes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_shuts_nobody_out_although_the_operator_is_killed() -> Result<()> {
    let data_centre = Arc::new(DataCentre::own("rot-load", &["--recheck-seconds", "2"]).await?);
    data_centre.edit_servers(|servers| servers[0].credential_overlap = "6s".into()).await?;
    data_centre.two_templates("rot").await?;
    let mut wants = spec("Uno", 903_001, database(json!({})));
    wants["services"] = json!([
        {"name": "pagina", "template": "rot-pagina"},
        {"name": "portale", "template": "rot-portale", "database": "dati"},
    ]);
    data_centre.apply("rot-uno", wants).await?;
    let comune = data_centre.ready("rot-uno").await?;
    assert_eq!(generation(&comune), 1);
    let first = Credentials::of(&data_centre, NAMESPACE, "dati").await?;
    first.login(None).await?.run("create table t (a int)").await?;
    let (template, _) = deployment(&data_centre, "portale").await?;
    let page = deployment(&data_centre, "pagina").await?;
    assert!(template["metadata"]["annotations"].get(keys::CREDENTIAL).is_none(), "{template}");
    let load = Load::start(data_centre.clone()).await?;
    eventually("the application is at work", || async { Ok(load.batches.load(Ordering::Relaxed) > 2) })
        .await?;

    // On request.
    let asked = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // The credential is as young as this second: a request speaks of older ones.
    eventually("a second has passed", || async {
        Ok(Timestamp::now().as_second() > asked.parse::<Timestamp>()?.as_second())
    })
    .await?;
    let asked = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    annotate(&data_centre, "rot-uno", &format!("dati@{asked}")).await?;
    let comune = data_centre.comune_where("rot-uno", "rotated", |comune| generation(comune) == 2).await?;
    let credential = told(&comune).credential.clone().unwrap();
    assert_eq!(credential.login, "rot_uno__dati__app2");
    let second = Credentials::of(&data_centre, NAMESPACE, "dati").await?;
    assert_eq!(second.get("username"), "rot_uno__dati__app2");
    assert_ne!(second.get("password"), first.get("password"));
    second.login(None).await?;
    // Its service is restarted, and no other one.
    eventually("the pods of the service are new", || async {
        let (template, _) = deployment(&data_centre, "portale").await?;
        Ok(template["metadata"]["annotations"][keys::CREDENTIAL] == "2")
    })
    .await?;
    data_centre
        .comune_where("rot-uno", "without the login of before", |comune| {
            generation(comune) == 2 && told(comune).credential.as_ref().is_some_and(|c| c.retiring.is_none())
        })
        .await?;
    let said = first.login(None).await.err().expect("the password of before has ended").to_string();
    assert!(
        said.contains("not permitted to log in") || said.contains("password authentication failed"),
        "{said}"
    );
    let comune = data_centre.ready("rot-uno").await?;
    assert_eq!(told(&comune).message, format!("rot_uno__dati on {SERVER}"));

    // The operator is killed again and again while it rotates once more.
    annotate(&data_centre, "rot-uno", &format!("*@{}", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ")))
        .await?;
    for pause in [20, 90, 150, 40, 300, 700] {
        // Killed at moments that nobody chose: the time is what is varied.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        ensure!(data_centre.instance().kill(OPERATOR, Signal::Kill).await?, "it was not running");
        let credentials = Credentials::of(&data_centre, NAMESPACE, "dati").await?;
        credentials.login(None).await?;
        data_centre.instance().start_program(OPERATOR).await?;
    }
    let comune = data_centre
        .comune_where("rot-uno", "rotated again", |comune| {
            generation(comune) == 3 && told(comune).credential.as_ref().is_some_and(|c| c.retiring.is_none())
        })
        .await?;
    assert_eq!(told(&comune).credential.as_ref().unwrap().login, "rot_uno__dati__app");

    // By age.
    data_centre
        .edit_servers(|servers| {
            servers[0].credential_overlap = "3s".into();
            servers[0].credential_max_age = Some("5s".into());
        })
        .await?;
    data_centre.comune_where("rot-uno", "rotated by age", |comune| generation(comune) >= 4).await?;
    data_centre.edit_servers(|servers| servers[0].credential_max_age = None).await?;

    let batches = load.stop().await?;
    assert!(batches > 10, "only {batches} batches");
    println!("{batches} batches of connections without a failure");
    assert_eq!(deployment(&data_centre, "pagina").await?, page, "what reads no binding is not restarted");
    let now = Credentials::of(&data_centre, NAMESPACE, "dati").await?;
    let log = std::fs::read_to_string(data_centre.instance().log(OPERATOR))?;
    for credentials in [first, second, now] {
        assert!(!log.contains(credentials.get("password")), "a password is in the operator's log");
    }
    let events = install::run(data_centre.instance(), "kubectl", &["get", "events", "-A"], None).await?;
    assert!(events.contains(reasons::CREDENTIALS_ROTATED), "{events}");

    // Comune and namespace are gone, and with them status and Secret: the server still knows how many there were.
    let before = generation(&data_centre.comuni().get("rot-uno").await?);
    data_centre.tidy_up("rot-uno").await?;
    eventually("the namespace is gone", || async {
        Ok(data_centre.read(Kind::Namespace, "", NAMESPACE).await?.is_none())
    })
    .await?;
    data_centre.apply("rot-uno", spec("Uno", 903_001, database(json!({})))).await?;
    let comune = data_centre.ready("rot-uno").await?;
    assert!(generation(&comune) >= before, "{} after {before}", generation(&comune));
    let found = Credentials::of(&data_centre, NAMESPACE, "dati").await?.login(None).await?;
    assert_ne!(found.value("select count(*) from t").await?, "0");
    Ok(())
}

/// Another address that leads to a server.
async fn forwarder(host: String, port: u16) -> Result<u16> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let here = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let Ok(mut server) = tokio::net::TcpStream::connect((host.as_str(), port)).await else {
                continue;
            };
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut server).await;
            });
        }
    });
    Ok(here)
}

async fn not_ready(data_centre: &DataCentre, name: &str, reason: &str) -> Result<String> {
    let comune = data_centre
        .comune_where(name, reason, |comune| {
            condition(comune, reasons::DATABASES_READY).is_some_and(|(_, why, _)| why == reason)
        })
        .await?;
    Ok(condition(&comune, reasons::DATABASES_READY).unwrap().2.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_3_a_server_may_move_but_its_data_does_not() -> Result<()> {
    let data_centre = DataCentre::own("rot-move", &["--recheck-seconds", "2"]).await?;
    data_centre.apply("rot-muove", spec("Muove", 903_002, database(json!({})))).await?;
    let first = data_centre.ready("rot-muove").await?;
    let provisioned = told(&first).provisioned_at.clone();
    let credentials = Credentials::of(&data_centre, "rot-muove-produzione", "dati").await?;
    credentials.login(None).await?.run("create table t (a text); insert into t values ('resta')").await?;

    // The server gets another address: Secret and network policy follow, and the data is found.
    let server = data_centre.instance().databases()?.remove(0);
    let port = forwarder(server.host.clone(), server.port).await?;
    data_centre.edit_servers(|servers| servers[0].port = port).await?;
    eventually("the Secret follows", || async {
        let now = Credentials::of(&data_centre, "rot-muove-produzione", "dati").await?;
        Ok(now.get("port") == port.to_string() && now.get("uri").contains(&format!(":{port}/")))
    })
    .await?;
    let now = Credentials::of(&data_centre, "rot-muove-produzione", "dati").await?;
    assert_eq!(
        (now.get("username"), now.get("password")),
        (credentials.get("username"), credentials.get("password"))
    );
    assert_eq!(now.login(None).await?.value("select a from t").await?, "resta");
    eventually("the network policy follows", || async {
        let policy =
            data_centre.read(Kind::NetworkPolicy, "rot-muove-produzione", "conme-databases").await?.unwrap();
        Ok(policy["spec"]["egress"][0]["ports"][0]["port"] == port)
    })
    .await?;
    let comune = data_centre.ready("rot-muove").await?;
    assert_eq!((told(&comune).provisioned_at.clone(), generation(&comune)), (provisioned, 1));

    // The manifest names another server: refused at once, whatever the server is.
    let elsewhere = spec("Muove", 903_002, database(json!({"placement": {"shared": "pg-venis-9"}})));
    let refused = data_centre.apply("rot-muove", elsewhere).await.expect_err("refused").to_string();
    assert!(refused.contains("does not move by editing its placement"), "{refused}");

    // The Comune is removed and applied again, so that no status tells of the database any more: what is there is
    // found, with the same credential.
    let declare = || data_centre.apply("rot-muove", spec("Muove", 903_002, database(json!({}))));
    let remove = || async {
        data_centre.comuni().delete("rot-muove", &DeleteParams::default()).await?;
        eventually("the Comune is gone", || async {
            Ok(data_centre.comuni().get_opt("rot-muove").await?.is_none())
        })
        .await
    };
    remove().await?;
    declare().await?;
    let comune = data_centre.ready("rot-muove").await?;
    assert_ne!(comune.uid(), first.uid());
    let again = Credentials::of(&data_centre, "rot-muove-produzione", "dati").await?;
    assert_eq!(again.get("password"), now.get("password"));
    assert_eq!(again.login(None).await?.value("select a from t").await?, "resta");
    // And what has vanished meanwhile is missing: the Secret shows that it was there.
    remove().await?;
    let admin = Credentials::of_administrator(&data_centre, SERVER)?.login(None).await?;
    admin.run("drop database rot_muove__dati with (force)").await?;
    declare().await?;
    let message = not_ready(&data_centre, "rot-muove", reasons::DATA_MISSING).await?;
    let exists = "select count(*) from pg_database where datname = 'rot_muove__dati'";
    assert_eq!(admin.value(exists).await?, "0", "{message}");
    let command = message.split_once("kubectl ").expect("a command in the message").1;
    let words: Vec<&str> = command.split_whitespace().take(5).collect();
    install::run(data_centre.instance(), "kubectl", &words, None).await?;
    data_centre.ready("rot-muove").await?;
    assert_eq!(admin.value(exists).await?, "1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_is_told_stops_growing_and_goes_on_when_there_is_room() -> Result<()> {
    let data_centre = DataCentre::own("rot-size", &["--recheck-seconds", "2"]).await?;
    let limited = |size: &str| spec("Piena", 903_003, database(json!({"maxSize": size})));
    data_centre.apply("rot-piena", limited("1Gi")).await?;
    data_centre.ready("rot-piena").await?;
    let credentials = Credentials::of(&data_centre, "rot-piena-produzione", "dati").await?;
    let login = credentials.login(None).await?;
    login.run("create table t (a text)").await?;
    login.run("insert into t select repeat(md5(g::text), 30) from generate_series(1, 20480) g").await?;
    let size: u64 = login.value("select pg_database_size(current_database())").await?.parse()?;

    // Nearly: nothing happens but words.
    data_centre.apply("rot-piena", limited(&(size * 107 / 100).to_string())).await?;
    data_centre
        .comune_where("rot-piena", "nearly full", |comune| {
            told(comune).reason == reasons::DATABASE_NEARLY_FULL
                && condition(comune, reasons::DATABASES_READY)
                    .is_some_and(|(status, _, message)| status == "True" && message.contains("raise maxSize"))
        })
        .await?;
    login.run("insert into t values ('x')").await?;
    eventually("an event tells", || async {
        let events = install::run(data_centre.instance(), "kubectl", &["get", "events", "-A"], None).await?;
        Ok(events.contains(reasons::DATABASE_NEARLY_FULL))
    })
    .await?;

    // Full: growth is stopped, and the message says how to go on. It is done, word by word.
    data_centre.apply("rot-piena", limited(&(size * 99 / 100).to_string())).await?;
    let message = not_ready(&data_centre, "rot-piena", reasons::DATABASE_FULL).await?;
    let comune = data_centre.comuni().get("rot-piena").await?;
    assert_eq!(condition(&comune, reasons::READY).unwrap().1, reasons::DATABASE_FULL);
    let full = credentials.login(None).await?;
    let Err(refused) = full.run("insert into t values ('x')").await else { bail!("it grows: {message}") };
    assert!(refused.to_string().contains("read-only"), "{refused}");
    let way_out = "SET default_transaction_read_only = off";
    assert!(message.contains(way_out) && message.contains("VACUUM FULL"), "{message}");
    full.run(way_out).await?;
    full.run("delete from t where ctid < '(2000,0)'").await?;
    full.run("vacuum full t").await?;
    data_centre.ready("rot-piena").await?;
    eventually("it can be written to again", || async {
        let Ok(login) = credentials.login(None).await else { return Ok(false) };
        Ok(login.run("insert into t values ('x'); create table u (a int)").await.is_ok())
    })
    .await?;
    let comune = data_centre.ready("rot-piena").await?;
    assert!(told(&comune).size.as_ref().is_some_and(|size| size.contains('/')), "{:?}", told(&comune));
    assert_eq!(comune.name_any(), "rot-piena");
    Ok(())
}
