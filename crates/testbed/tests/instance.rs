//! Real instances: what a person or a test does with them from the first `up` to the last `down`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use conme_testbed::{
    Cluster, CommandSpec, Condition, DatabaseEndpoint, Dirs, Ephemeral, Hosts, Instance, Options, Progress,
    Signal, members,
};

fn dirs(state: &Path) -> Dirs {
    Dirs::from_env().unwrap().with_state(state)
}

fn options(prefix: &str, state: &Path) -> Options {
    Options {
        dirs: Some(dirs(state)),
        hosts: Hosts { count: 2, ..Hosts::default() },
        ..Options::new(Options::unique_name(prefix).unwrap())
    }
}

fn kubectl(instance: &Instance, args: &[&str]) -> Result<String, String> {
    let kubeconfig = instance.kubeconfig().unwrap();
    let output = Command::new(instance.bin("kubectl"))
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn psql_with(
    instance: &Instance,
    database: &DatabaseEndpoint,
    mode: &str,
    sql: &str,
) -> Result<String, String> {
    let target = format!(
        "host={} port={} user={} dbname=postgres sslmode={mode} sslrootcert={}",
        database.host,
        database.port,
        database.admin_user,
        database.ca_file.display()
    );
    let output = Command::new(instance.bin("psql"))
        .env("PGPASSFILE", instance.pgpass())
        .args(["-XAtq", "-d", &target, "-c", sql])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn psql(instance: &Instance, sql: &str) -> String {
    psql_with(instance, &instance.databases().unwrap()[0], "verify-full", sql).unwrap()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},
  "spec":{"containers":[{"name":"c","image":"none"}]}}"#;

/// The whole life of an instance, with its faults.
#[tokio::test(flavor = "multi_thread")]
async fn from_the_first_up_to_the_purge() {
    let temporary = tempfile::tempdir().unwrap();
    let options = options("life", temporary.path());
    let quiet = Progress::silent();
    let instance = Ephemeral::up(options.clone(), &quiet).await.unwrap();
    let status = instance.status().await.unwrap();
    assert_eq!(status.condition, Condition::Running, "{status:?}");

    // The control plane works: a pod runs on a simulated host, and every request is in the audit log.
    assert_eq!(kubectl(&instance, &["get", "--raw", "/readyz"]).unwrap(), "ok");
    let version = kubectl(&instance, &["get", "--raw", "/version"]).unwrap();
    assert!(version.contains(conme_testbed::version_of("kube-apiserver").unwrap()), "{version}");
    let manifest = temporary.path().join("pod.json");
    std::fs::write(&manifest, POD).unwrap();
    kubectl(&instance, &["create", "-f", manifest.to_str().unwrap()]).unwrap();
    let phase = ["get", "pod", "p", "-o", "jsonpath={.status.phase} {.spec.nodeName}"];
    eventually("the pod runs", || kubectl(&instance, &phase).unwrap().starts_with("Running host-0")).await;
    let audit = std::fs::read_to_string(instance.audit_log()).unwrap();
    assert!(
        audit
            .lines()
            .any(|line| line.contains(r#""verb":"create""#) && line.contains(r#""resource":"pods""#))
    );

    // The database wants TLS and a password.
    let database = instance.databases().unwrap().remove(0);
    psql(&instance, "create table t (x int); insert into t values (42)");
    let refused = psql_with(&instance, &database, "disable", "select 1").unwrap_err();
    assert!(refused.contains("no encryption"), "{refused}");
    let wrong = DatabaseEndpoint { admin_user: "postgres".into(), ..database.clone() };
    psql_with(&instance, &wrong, "require", "select 1").unwrap_err();

    // A second `up` changes nothing.
    let pids = |status: &conme_testbed::Status| status.programs.iter().map(|p| p.pid).collect::<Vec<_>>();
    Instance::up(options.clone(), &quiet).await.unwrap();
    assert_eq!(pids(&status), pids(&instance.status().await.unwrap()));

    // A further program belongs to it, with its children.
    let spec = CommandSpec::new("/bin/sh", "/").args(["-c", "echo $KUBECONFIG; sleep 600 & sleep 600"]);
    let process = instance.start("operator", spec.clone()).await.unwrap();
    assert!(instance.start("operator", spec).await.is_err(), "it runs already");
    eventually("the log is written", || {
        std::fs::read_to_string(instance.log("operator")).unwrap().contains("kubeconfig")
    })
    .await;
    instance.kill("operator", Signal::Kill).await.unwrap();
    assert!(!process.is_alive());
    assert_eq!(instance.status().await.unwrap().missing, ["operator"]);
    instance.start_program("operator").await.unwrap();

    // Faults: each program comes back on its port with its data.
    instance.kill("kube-apiserver", Signal::Kill).await.unwrap();
    let status = instance.status().await.unwrap();
    assert_eq!(
        (status.condition, status.missing.as_slice()),
        (Condition::Degraded, &["kube-apiserver".to_owned()][..])
    );
    instance.start_program("kube-apiserver").await.unwrap();
    instance.kill(&database.name, Signal::Kill).await.unwrap();
    instance.start_program(&database.name).await.unwrap();
    instance.stop_program(&database.name).await.unwrap();
    instance.start_program(&database.name).await.unwrap();
    assert_eq!(instance.databases().unwrap()[0], database);
    assert_eq!(psql(&instance, "select x from t"), "42");
    assert!(kubectl(&instance, &phase).unwrap().starts_with("Running"));
    assert_eq!(instance.status().await.unwrap().condition, Condition::Running);

    // `down` leaves no process, and `up` finds the data again.
    instance.down(false, &quiet).await.unwrap();
    assert_eq!(instance.members().unwrap(), []);
    assert_eq!(instance.status().await.unwrap().condition, Condition::Stopped);
    instance.down(false, &quiet).await.unwrap();
    Instance::up(options, &quiet).await.unwrap();
    assert_eq!(psql(&instance, "select x from t"), "42");
    assert!(kubectl(&instance, &phase).unwrap().starts_with("Running"));

    let (dir, ca) = (instance.dir(), database.ca_file);
    instance.down(true, &quiet).await.unwrap();
    assert!(!dir.exists() && !ca.exists());
    instance.down(true, &quiet).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_side_by_side_do_not_disturb_each_other() {
    let temporary = tempfile::tempdir().unwrap();
    let quiet = Progress::silent();
    let (one, two) = tokio::join!(
        Ephemeral::up(options("one", temporary.path()), &quiet),
        Ephemeral::up(options("two", temporary.path()), &quiet),
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    kubectl(&one, &["create", "namespace", "only-here"]).unwrap();
    kubectl(&two, &["get", "namespace", "only-here"]).unwrap_err();
    psql(&one, "create table t (x int)");
    assert_eq!(psql(&two, "select count(*) from pg_class where relname = 't'"), "0");
    assert_eq!(Instance::list(&dirs(temporary.path())).unwrap().len(), 2);
    let remembered = one.dir();
    drop(one);
    assert!(!remembered.exists());
    assert_eq!(two.status().await.unwrap().condition, Condition::Running);
    assert_eq!(kubectl(&two, &["get", "--raw", "/readyz"]).unwrap(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_alone_and_beside_an_existing_cluster() {
    let temporary = tempfile::tempdir().unwrap();
    let quiet = Progress::silent();
    let bare = Options { cluster: Cluster::None {}, postgres: 2, ..options("bare", temporary.path()) };
    let bare = Ephemeral::up(bare, &quiet).await.unwrap();
    assert!(bare.kubeconfig().is_err());
    let names: Vec<String> = bare.databases().unwrap().into_iter().map(|database| database.name).collect();
    assert_eq!(names, ["pg-venis-1", "pg-venis-2"]);

    let kubeconfig = temporary.path().join("theirs");
    std::fs::write(&kubeconfig, "apiVersion: v1\nkind: Config\n").unwrap();
    let cluster = Cluster::Existing { kubeconfig: kubeconfig.clone() };
    let beside =
        Ephemeral::up(Options { cluster, ..options("beside", temporary.path()) }, &quiet).await.unwrap();
    assert_eq!(beside.kubeconfig().unwrap(), kubeconfig);
    assert_eq!(beside.status().await.unwrap().programs.len(), 1);
    drop(beside);
    assert!(kubeconfig.exists());
    assert_eq!(psql(&bare, "select 1"), "1");
}

fn mariadb(instance: &Instance, args: &[&str]) -> Result<String, String> {
    let output = Command::new(instance.bin("mariadb"))
        .env("MYSQL_HOME", instance.mysql_home())
        .args(["--batch", "--skip-column-names"])
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The life of a MariaDB server, with its faults.
#[tokio::test(flavor = "multi_thread")]
async fn mariadb_beside_postgresql() {
    let temporary = tempfile::tempdir().unwrap();
    let quiet = Progress::silent();
    let options = Options { cluster: Cluster::None {}, mariadb: 2, ..options("maria", temporary.path()) };
    let instance = Ephemeral::up(options.clone(), &quiet).await.unwrap();
    let databases = instance.databases().unwrap();
    let names: Vec<&str> = databases.iter().map(|database| database.name.as_str()).collect();
    assert_eq!(names, ["pg-venis-1", "mariadb-venis-1", "mariadb-venis-2"]);
    assert_eq!(psql(&instance, "select 1"), "1");

    let sql = "create database d; create table d.t (x int) engine=InnoDB; insert into d.t values (42)";
    mariadb(&instance, &["-e", sql]).unwrap();
    assert_eq!(
        mariadb(&instance, &["-e", "select user from mysql.global_priv where host = '%'"]).unwrap(),
        "conme_admin"
    );
    // Nobody enters without TLS, without a password, or as root.
    mariadb(&instance, &["--skip-ssl", "-e", "select 1"]).unwrap_err();
    mariadb(&instance, &["--password=", "-e", "select 1"]).unwrap_err();
    mariadb(&instance, &["--user=root", "--password=", "-e", "select 1"]).unwrap_err();

    let name = names[1];
    instance.kill(name, Signal::Kill).await.unwrap();
    assert_eq!(instance.status().await.unwrap().missing, [name]);
    instance.start_program(name).await.unwrap();
    instance.stop_program(name).await.unwrap();
    instance.start_program(name).await.unwrap();
    assert_eq!(mariadb(&instance, &["-e", "select x from d.t"]).unwrap(), "42");

    // `down` leaves no process, and `up` finds the data again.
    instance.down(false, &quiet).await.unwrap();
    assert_eq!(instance.members().unwrap(), []);
    Instance::up(options, &quiet).await.unwrap();
    assert_eq!(mariadb(&instance, &["-e", "select x from d.t"]).unwrap(), "42");
}

#[tokio::test]
async fn a_dropped_future_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let options = options("dropped", temporary.path());
    let dir = temporary.path().join(&options.name);
    let quiet = Progress::silent();
    tokio::select! {
        _ = Ephemeral::up(options, &quiet) => panic!("too quick to be dropped"),
        () = eventually("etcd is recorded", || {
            std::fs::read_to_string(dir.join("state.json")).is_ok_and(|state| state.contains("kube-apiserver"))
        }) => {}
    }
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_wrong_wish_is_refused_before_anything_starts() {
    let temporary = tempfile::tempdir().unwrap();
    let nothing = Options { cluster: Cluster::None {}, postgres: 0, ..options("nothing", temporary.path()) };
    let missing = Cluster::Existing { kubeconfig: "/nonexistent".into() };
    let missing = Options { cluster: missing, ..options("missing", temporary.path()) };
    let named = Options { name: "../x".into(), ..options("named", temporary.path()) };
    for wrong in [nothing, missing, named] {
        Instance::up(wrong, &Progress::silent()).await.unwrap_err();
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    assert_eq!(members("", &[]), []);
}
