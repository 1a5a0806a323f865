//! Databases as an application and a system administrator see them: with the binding Secret of one municipality its
//! own database opens and nothing else does; and whatever happens to a server or its databases, no data is lost or
//! made anew behind anybody's back, nobody else is held up, and the words say what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{cell::RefCell, process::Stdio};

use anyhow::{Context, Result};
use conme_api::{Comune, keys, reasons};
use conme_blueprint::Kind;
use conme_stories::{
    Credentials, DataCentre, Login, audit_entries, condition, entity, eventually, is_current,
};
use conme_testbed::install::{self, OPERATOR};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";

fn spec(name: &str, istat: u32, databases: Value) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": "2", "memory": "4Gi", "storage": "20Gi"},
        "databases": databases,
    })
}

fn database(name: &str) -> Value {
    json!({"name": name, "engine": "postgresql", "placement": {"shared": SERVER}})
}

/// A name that no earlier run on the same data centre has used: databases outlive their stories.
fn fresh(name: &str) -> String {
    format!("{name}-{}", jiff::Timestamp::now().as_millisecond())
}

/// What psql says to a user who follows the documentation: the address from the Secret, the CA in a file.
struct Psql {
    program: std::path::PathBuf,
    ca: std::path::PathBuf,
    credentials: Credentials,
}

impl Psql {
    fn new(data_centre: &DataCentre, name: &str, credentials: &Credentials) -> Result<Self> {
        let program = data_centre.instance().bin("psql");
        let ca = std::env::temp_dir().join(format!("conme-{}-{name}.crt", std::process::id()));
        std::fs::write(&ca, credentials.get("ca.crt"))?;
        Ok(Self { program, ca, credentials: credentials.clone() })
    }

    /// One statement in its own database or another. Err holds what the user reads.
    async fn run(&self, database: Option<&str>, sql: &str) -> Result<String, String> {
        if !self.program.exists() {
            let login = self.credentials.login(database).await.map_err(|error| error.to_string())?;
            if sql.starts_with("select") || sql.starts_with("show") {
                return login.value(sql).await.map_err(|error| error.to_string());
            }
            return login.run(sql).await.map(|()| String::new()).map_err(|error| error.to_string());
        }
        let uri = self.credentials.get("uri");
        let own = format!("/{}?", self.credentials.get("database"));
        assert!(uri.contains(&own), "{uri}");
        let uri = database.map_or_else(|| uri.to_owned(), |other| uri.replace(&own, &format!("/{other}?")));
        let output = tokio::process::Command::new(&self.program)
            .args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--command", sql, &uri])
            .env("PGSSLROOTCERT", &self.ca)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    async fn refused(&self, database: Option<&str>, sql: &str, words: &str) {
        match self.run(database, sql).await {
            Err(said) => assert!(said.contains(words), "`{sql}` was refused, but with other words: {said}"),
            Ok(said) => panic!("`{sql}` in {database:?} should have been refused and said `{said}`"),
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

async fn administrator(data_centre: &DataCentre, database: Option<&str>) -> Result<Login> {
    Credentials::of_administrator(data_centre, SERVER)?.login(database).await
}

async fn exists(admin: &Login, database: &str) -> Result<bool> {
    Ok(admin.value(&format!("select count(*) from pg_database where datname = '{database}'")).await? == "1")
}

/// Status, reason and message of a condition, owned.
fn told(comune: &Comune, type_: &str) -> (String, String, String) {
    let (status, reason, message) = condition(comune, type_).expect("a condition");
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

/// Waits until DatabasesReady is False with this reason at the present generation.
async fn databases_not_ready(data_centre: &DataCentre, name: &str, reason: &str) -> Result<Comune> {
    data_centre
        .comune_where(name, &format!("without its databases, reason {reason}"), |comune| {
            is_current(comune)
                && condition(comune, reasons::DATABASES_READY)
                    .is_some_and(|(status, why, _)| status == "False" && why == reason)
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_opens_its_own_database_and_no_other() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    for (name, istat) in [("dat-uno", 902_001), ("dat-due", 902_002)] {
        data_centre.apply(name, spec(name, istat, json!([database("protocollo")]))).await?;
    }
    data_centre.ready("dat-uno").await?;
    data_centre.ready("dat-due").await?;
    let credentials = Credentials::of(&data_centre, "dat-uno-produzione", "protocollo").await?;
    let other = Credentials::of(&data_centre, "dat-due-produzione", "protocollo").await?;
    let psql = Psql::new(&data_centre, "dat-uno", &credentials)?;
    let neighbour = Psql::new(&data_centre, "dat-due", &other)?;

    // Its own: tables, data, temporary tables, over TLS.
    psql.run(
        None,
        "drop table if exists registro; create table registro (numero int primary key, oggetto text)",
    )
    .await
    .unwrap();
    psql.run(None, "insert into registro values (1, 'prova')").await.unwrap();
    assert_eq!(psql.run(None, "select oggetto from registro").await.unwrap(), "prova");
    let encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(psql.run(None, encrypted).await.unwrap(), "t");
    assert_eq!(psql.run(None, "select current_database()").await.unwrap(), "dat_uno__protocollo");

    // Nobody else's, in either direction, and none of the server's own. The neighbour opens its own meanwhile.
    assert_eq!(neighbour.run(None, "select current_database()").await.unwrap(), "dat_due__protocollo");
    for database in [other.get("database"), "postgres", "template1"] {
        psql.refused(Some(database), "select 1", "permission denied for database").await;
    }
    psql.refused(Some("template0"), "select 1", "not currently accepting connections").await;
    neighbour.refused(Some(credentials.get("database")), "select 1", "permission denied for database").await;

    // A wrong password ends it before anything else.
    let mut wrong = credentials.clone();
    let uri = wrong.get("uri").replace(wrong.get("password"), "sbagliata");
    wrong.0.insert("uri".into(), uri);
    let stranger = Psql::new(&data_centre, "dat-uno-wrong", &wrong)?;
    stranger.refused(None, "select 1", "password authentication failed").await;

    data_centre.tidy_up("dat-uno").await?;
    data_centre.tidy_up("dat-due").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_cannot_make_roles_databases_or_extensions() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let mut with_extension = database("dati");
    with_extension["extensions"] = json!(["citext"]);
    data_centre.apply("dat-chiuso", spec("Chiuso", 902_003, json!([with_extension]))).await?;
    data_centre.ready("dat-chiuso").await?;
    let credentials = Credentials::of(&data_centre, "dat-chiuso-produzione", "dati").await?;
    let psql = Psql::new(&data_centre, "dat-chiuso", &credentials)?;

    // What was declared is there and of use.
    assert_eq!(psql.run(None, "select 'Dolo'::citext = 'DOLO'::citext").await.unwrap(), "t");
    // Neither what the list of the server allows (pg_trgm, trusted by PostgreSQL itself) nor what it does not.
    for extension in ["pg_trgm", "hstore", "dblink", "postgres_fdw", "file_fdw"] {
        psql.refused(None, &format!("create extension {extension}"), "permission denied to create extension")
            .await;
    }
    psql.refused(None, "drop extension citext", "must be owner of extension").await;
    psql.refused(None, "create role ladro login superuser", "must be superuser").await;
    psql.refused(None, "create role ladro login", "permission denied to create role").await;
    psql.refused(None, "create database altra", "permission denied to create database").await;
    psql.refused(None, "create schema altra", "permission denied for database").await;
    psql.refused(None, "alter database dat_chiuso__dati connection limit -1", "must be owner of database")
        .await;
    psql.refused(None, "alter role current_user superuser", "must be superuser").await;
    psql.refused(None, "set role dat_chiuso__dati__owner", "permission denied to set role").await;
    psql.refused(None, "set role conme_admin", "permission denied to set role").await;
    psql.refused(None, "drop database dat_chiuso__dati", "must be owner of database").await;
    psql.refused(None, "select rolpassword from pg_authid", "permission denied for table pg_authid").await;
    psql.refused(None, "copy (select 1) to program 'id'", "to COPY to or from an external program").await;
    psql.refused(None, "select pg_read_file('pg_hba.conf')", "permission denied for function").await;
    // It still works for what it is for.
    psql.run(None, "create table a (b int); drop table a").await.unwrap();
    data_centre.tidy_up("dat-chiuso").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn similar_names_get_databases_of_their_own() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    // On the server both could be called dat_a_b_c.
    for (name, istat, database_name) in [("dat-a", 902_004, "b-c"), ("dat-a-b", 902_005, "c")] {
        data_centre.apply(name, spec(name, istat, json!([database(database_name)]))).await?;
    }
    data_centre.ready("dat-a").await?;
    data_centre.ready("dat-a-b").await?;
    let one = Credentials::of(&data_centre, "dat-a-produzione", "b-c").await?;
    let two = Credentials::of(&data_centre, "dat-a-b-produzione", "c").await?;
    for key in ["database", "username", "password"] {
        assert_ne!(one.get(key), two.get(key), "{key}");
    }
    one.login(None).await?.run("create table if not exists solo_qui (a int)").await?;
    let count = "select count(*) from pg_tables where tablename = 'solo_qui'";
    assert_eq!(one.login(None).await?.value(count).await?, "1");
    assert_eq!(two.login(None).await?.value(count).await?, "0");
    for (from, to) in [(&one, &two), (&two, &one)] {
        let error = from.login(Some(to.get("database"))).await.err().expect("refused").to_string();
        assert!(error.contains("permission denied for database"), "{error}");
    }
    data_centre.tidy_up("dat-a").await?;
    data_centre.tidy_up("dat-a-b").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_a_service_binding() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    data_centre.apply("dat-chiave", spec("Chiave", 902_006, json!([database("archivio")]))).await?;
    let comune = data_centre.ready("dat-chiave").await?;
    let secrets: Api<Secret> = Api::namespaced(data_centre.client(), "dat-chiave-produzione");
    let secret = secrets.get("db-archivio").await?;
    assert_eq!(secret.type_.as_deref(), Some("servicebinding.io/postgresql"));
    assert_eq!(secret.metadata.labels.as_ref().unwrap()[keys::COMUNE], "dat-chiave");
    let found = Credentials::of(&data_centre, "dat-chiave-produzione", "archivio").await?;
    let server = data_centre.instance().databases()?.remove(0);
    for (key, value) in [
        ("type", "postgresql".to_owned()),
        ("provider", "conme".to_owned()),
        ("host", server.host.clone()),
        ("port", server.port.to_string()),
        ("hostport", format!("{}:{}", server.host, server.port)),
        ("database", "dat_chiave__archivio".to_owned()),
        ("username", "dat_chiave__archivio__app".to_owned()),
    ] {
        assert_eq!(found.get(key), value, "{key}");
    }
    let password = found.get("password");
    assert!(
        password.len() >= 26 && password.chars().all(|c| c.is_ascii_alphanumeric()),
        "no password for an address"
    );
    assert_eq!(
        found.get("uri"),
        format!(
            "postgresql://dat_chiave__archivio__app:{password}@{}:{}/dat_chiave__archivio?sslmode=verify-full",
            server.host, server.port
        )
    );
    assert_eq!(found.get("ca.crt"), std::fs::read_to_string(&server.ca_file)?);
    assert_eq!(found.0.len(), 10, "and no other key: {:?}", found.0.keys());
    // The status tells where it is.
    let status = comune.status.unwrap();
    let of = &status.databases[0];
    assert_eq!(of.secret, "dat-chiave-produzione/db-archivio");
    assert_eq!((of.server.as_str(), of.database.as_str()), (SERVER, "dat_chiave__archivio"));
    assert!(of.ready && of.provisioned_at.is_some() && of.system_identifier.is_some());
    data_centre.tidy_up("dat-chiave").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_written_nowhere_but_into_the_secret() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let begin = jiff::Timestamp::now();
    data_centre.apply("dat-muto", spec("Muto", 902_007, json!([database("riservato")]))).await?;
    data_centre.ready("dat-muto").await?;
    let credentials = Credentials::of(&data_centre, "dat-muto-produzione", "riservato").await?;
    // A manifest that changes and a failed login, so that there is something to be written in every place.
    let mut more = database("riservato");
    more["extensions"] = json!(["unaccent"]);
    more["connectionLimit"] = json!(7);
    data_centre.apply("dat-muto", spec("Muto", 902_007, json!([more]))).await?;
    let comune = data_centre.ready("dat-muto").await?;
    let mut wrong = credentials.clone();
    wrong.0.insert("uri".into(), wrong.get("uri").replace(wrong.get("password"), "sbagliata"));
    assert!(wrong.login(None).await.is_err());

    let instance = data_centre.instance();
    let events = install::run(instance, "kubectl", &["get", "events", "-A", "-o", "json"], None).await?;
    let read = |program: &str| std::fs::read_to_string(instance.log(program));
    let entries = audit_entries(&data_centre, begin)?;
    assert!(
        entries.iter().any(|entry| entry.object() == ("dat-muto-produzione".into(), "db-riservato".into())),
        "the audit log knows of the Secret"
    );
    let audit = String::from_utf8_lossy(&std::fs::read(instance.audit_log())?).into_owned();
    // Every place with a word that is certainly there: what is searched is what was written.
    for (place, text, word) in [
        ("status and manifest", serde_json::to_string(&comune)?, "dat_muto__riservato"),
        ("events", events, "dat-muto"),
        ("the operator's log", read(OPERATOR)?, "dat_muto__riservato"),
        ("the audit log", audit, "db-riservato"),
        ("the database server's log", read(SERVER)?, "dat_muto__riservato__app"),
    ] {
        assert!(text.contains(word), "{place} does not even hold {word}");
        assert!(!text.contains(credentials.get("password")), "the password is in {place}");
        assert!(!text.contains("SCRAM-SHA-256$"), "a verifier of a password is in {place}");
    }
    data_centre.tidy_up("dat-muto").await
}

/// A login into a database that may be full for a moment.
async fn patient_login(credentials: &Credentials) -> Result<Login> {
    let found = RefCell::new(None);
    eventually("there is room for a login", || async {
        let login = credentials.login(None).await.ok();
        Ok(found.replace(login).is_some() || found.borrow().is_some())
    })
    .await?;
    found.into_inner().context("a login")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_limit_holds_and_follows_the_manifest() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let limited = |limit: u32| {
        let mut database = database("stretto");
        database["connectionLimit"] = json!(limit);
        spec("Stretto", 902_008, json!([database]))
    };
    data_centre.apply("dat-stretto", limited(2)).await?;
    data_centre.ready("dat-stretto").await?;
    let credentials = Credentials::of(&data_centre, "dat-stretto-produzione", "stretto").await?;
    // The operator's own login, by which it has proved the password, may need a moment to be gone.
    let first = patient_login(&credentials).await?;
    let second = patient_login(&credentials).await?;
    let refused = credentials.login(None).await.err().expect("the third is refused").to_string();
    assert!(refused.contains("too many connections for database"), "{refused}");
    // Those that are in work on.
    assert_eq!(first.value("select 1").await?, "1");
    assert_eq!(second.value("select 1").await?, "1");
    // An application that uses all it may is no problem of the database, and the manifest may give it more.
    data_centre.apply("dat-stretto", limited(3)).await?;
    data_centre.ready("dat-stretto").await?;
    let third = patient_login(&credentials).await?;
    let refused = credentials.login(None).await.err().expect("the fourth is refused").to_string();
    assert!(refused.contains("too many connections for database"), "{refused}");
    drop((first, second, third));
    eventually("there is room again", || async { Ok(credentials.login(None).await.is_ok()) }).await?;
    data_centre.tidy_up("dat-stretto").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_comes_with_an_edit_of_the_manifest() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let testi = fresh("testi");
    data_centre.apply("dat-esteso", spec("Esteso", 902_009, json!([database(&testi)]))).await?;
    let before = data_centre.ready("dat-esteso").await?;
    let login = Credentials::of(&data_centre, "dat-esteso-produzione", &testi).await?.login(None).await?;
    login.run("create table t (a text); insert into t values ('resta')").await?;
    let similar = "select similarity('Portogruaro', 'Portogruaro')";
    assert!(login.value(similar).await.unwrap_err().to_string().contains("does not exist"));

    let mut extended = database(&testi);
    extended["extensions"] = json!(["pg_trgm", "uuid-ossp"]);
    data_centre.apply("dat-esteso", spec("Esteso", 902_009, json!([extended]))).await?;
    let after = data_centre.ready("dat-esteso").await?;
    assert_eq!(login.value(similar).await?, "1");
    login.value("select uuid_generate_v4()").await?;
    assert_eq!(login.value("select a from t").await?, "resta");
    let provisioned = |comune: &Comune| comune.status.as_ref().unwrap().databases[0].provisioned_at.clone();
    assert_eq!(provisioned(&before), provisioned(&after), "it is the same database");

    // One that is no longer declared stays: something may be stored in its types.
    data_centre.apply("dat-esteso", spec("Esteso", 902_009, json!([database(&testi)]))).await?;
    data_centre.ready("dat-esteso").await?;
    assert_eq!(login.value(similar).await?, "1");
    data_centre.tidy_up("dat-esteso").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_is_not_allowed_is_told_and_stops_no_other_database() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let mappe = fresh("mappe");
    let mut bad = database(&mappe);
    bad["extensions"] = json!(["postgis", "pg_trgm"]);
    data_centre.apply("dat-vietato", spec("Vietato", 902_010, json!([bad, database("buono")]))).await?;
    let comune = data_centre
        .comune_where("dat-vietato", "with one database of two", |comune| {
            is_current(comune)
                && comune.status.as_ref().is_some_and(|status| {
                    let is = |name: &str, ready: bool| {
                        status
                            .databases
                            .iter()
                            .any(|database| database.name == name && database.ready == ready)
                    };
                    is("buono", true) && is(&mappe, false)
                })
        })
        .await?;
    let (status, reason, message) = told(&comune, reasons::READY);
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::INVALID), "{message}");
    for word in [mappe.as_str(), "postgis", "does not allow", "pg_trgm", "ltree"] {
        assert!(message.contains(word), "{word} is missing: {message}");
    }
    Credentials::of(&data_centre, "dat-vietato-produzione", "buono").await?.login(None).await?;
    assert!(
        Credentials::of(&data_centre, "dat-vietato-produzione", &mappe).await.is_err(),
        "no Secret leads nowhere"
    );
    let admin = administrator(&data_centre, None).await?;
    assert!(
        exists(&admin, "dat_vietato__buono").await?
            && !exists(&admin, &format!("dat_vietato__{}", mappe.replace('-', "_"))).await?
    );

    // Put right, it is made at once.
    let mut good = database(&mappe);
    good["extensions"] = json!(["pg_trgm"]);
    data_centre.apply("dat-vietato", spec("Vietato", 902_010, json!([good, database("buono")]))).await?;
    data_centre.ready("dat-vietato").await?;
    Credentials::of(&data_centre, "dat-vietato-produzione", &mappe).await?.login(None).await?;
    data_centre.tidy_up("dat-vietato").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_and_wrong_credentials_hold_up_nothing_else_and_heal_by_themselves() -> Result<()> {
    let data_centre = DataCentre::own("dat-down", &["--recheck-seconds", "2"]).await?;
    data_centre.two_templates("dat").await?;
    data_centre.apply("dat-prima", spec("Prima", 902_011, json!([database("dati")]))).await?;
    data_centre.ready("dat-prima").await?;
    let before = Credentials::of(&data_centre, "dat-prima-produzione", "dati").await?;
    before.login(None).await?.run("create table t (a text); insert into t values ('resta')").await?;

    // The server is down. Who is new gets everything but the database and the service that needs it.
    data_centre.instance().stop_program(SERVER).await?;
    let mut wants = spec("Nuovo", 902_012, json!([database("dati")]));
    wants["services"] = json!([
        {"name": "pagina", "template": "dat-pagina"},
        {"name": "portale", "template": "dat-portale", "database": "dati"},
    ]);
    data_centre.apply("dat-nuovo", wants).await?;
    let comune = databases_not_ready(&data_centre, "dat-nuovo", reasons::SERVER_UNREACHABLE).await?;
    let server = data_centre.instance().databases()?.remove(0);
    let (.., message) = told(&comune, reasons::DATABASES_READY);
    let address = format!("{}:{}", server.host, server.port);
    assert!(message.contains(&address) && message.contains("refused"), "{message}");
    let comune = data_centre
        .comune_where("dat-nuovo", "waiting with one service", |comune| {
            condition(comune, reasons::SERVICES_DEPLOYED)
                .is_some_and(|(_, reason, _)| reason == reasons::WAITING)
        })
        .await?;
    for type_ in [reasons::ADMITTED, reasons::NAMESPACES_READY, reasons::NETWORK_ISOLATED] {
        let (status, reason, message) = told(&comune, type_);
        assert_eq!(status, "True", "{type_}: {reason}: {message}");
    }
    let (status, _, message) = told(&comune, reasons::SERVICES_DEPLOYED);
    assert!(status == "False" && message.contains("`portale` waits for its database `dati`"), "{message}");
    let (status, reason, _) = told(&comune, reasons::READY);
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::DATABASE_FAILED));
    let namespace = "dat-nuovo-produzione";
    for (kind, name) in [
        (Kind::ResourceQuota, "conme-quota"),
        (Kind::LimitRange, "conme-limits"),
        (Kind::NetworkPolicy, "conme-default-deny"),
        (Kind::NetworkPolicy, "conme-environment"),
        (Kind::Deployment, "pagina"),
        (Kind::Ingress, "pagina"),
    ] {
        assert!(
            data_centre.read(kind, namespace, name).await?.is_some(),
            "{} {name} is missing",
            kind.name()
        );
    }
    assert!(
        data_centre.read(Kind::Deployment, namespace, "portale").await?.is_none(),
        "its pods could only fail"
    );
    // Who was there before is told of it, and keeps the Secret.
    databases_not_ready(&data_centre, "dat-prima", reasons::SERVER_UNREACHABLE).await?;
    let kept = Credentials::of(&data_centre, "dat-prima-produzione", "dati").await?;
    assert_eq!(kept.0, before.0);

    // It comes back: so does everything, without anybody's doing.
    data_centre.instance().start_program(SERVER).await?;
    data_centre.ready("dat-nuovo").await?;
    data_centre.ready("dat-prima").await?;
    assert!(data_centre.read(Kind::Deployment, namespace, "portale").await?.is_some());
    assert_eq!(before.login(None).await?.value("select a from t").await?, "resta");

    // The administrator's password in the Secret is wrong: the server's own words, and nothing else stands still.
    let secrets: Api<Secret> = Api::namespaced(data_centre.client(), install::NAMESPACE);
    let right = secrets.get("pg-venis-1-admin").await?.data.unwrap()["password"].clone();
    let set = |password: Value| {
        let secrets = secrets.clone();
        async move {
            let patch = Patch::Merge(password);
            secrets.patch("pg-venis-1-admin", &PatchParams::default(), &patch).await
        }
    };
    set(json!({"stringData": {"password": "sbagliata"}})).await?;
    let comune = databases_not_ready(&data_centre, "dat-prima", reasons::DATABASE_FAILED).await?;
    let (.., message) = told(&comune, reasons::DATABASES_READY);
    assert!(message.contains("password authentication failed for user \"conme_admin\""), "{message}");
    assert!(message.contains("pg_hba.conf") && !message.contains("sbagliata"), "{message}");
    data_centre.apply("dat-terzo", spec("Terzo", 902_013, json!([]))).await?;
    data_centre.ready("dat-terzo").await?;
    // The application is not concerned.
    assert_eq!(before.login(None).await?.value("select a from t").await?, "resta");
    // Put right, the next look finds it.
    set(json!({"data": {"password": right}})).await?;
    data_centre.ready("dat-prima").await?;
    data_centre.ready("dat-nuovo").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_3_vanished_data_changed_or_somebody_elses_is_told_and_never_replaced_in_silence() -> Result<()>
{
    let data_centre = DataCentre::own("dat-lost", &["--recheck-seconds", "2"]).await?;
    let admin = administrator(&data_centre, None).await?;
    somebody_elses_database_is_left_alone_until_it_is_adopted(&data_centre, &admin).await?;
    a_password_changed_by_hand_is_put_right(&data_centre, &admin).await?;
    a_dropped_database_is_made_anew_only_on_a_persons_word(&data_centre, &admin).await
}

async fn somebody_elses_database_is_left_alone_until_it_is_adopted(
    data_centre: &DataCentre,
    admin: &Login,
) -> Result<()> {
    admin.run("create database dat_altrui__archivio").await?;
    let inside = administrator(data_centre, Some("dat_altrui__archivio")).await?;
    inside.run("create table vecchio (a text); insert into vecchio values ('di prima')").await?;
    let owner = "select pg_get_userbyid(datdba) || coalesce(shobj_description(oid, 'pg_database'), '-')
        from pg_database where datname = 'dat_altrui__archivio'";
    assert_eq!(admin.value(owner).await?, "conme_admin-");

    data_centre
        .apply("dat-altrui", spec("Altrui", 902_014, json!([database("archivio"), database("nuovo")])))
        .await?;
    let comune = databases_not_ready(data_centre, "dat-altrui", reasons::CONFLICT).await?;
    let (.., message) = told(&comune, reasons::DATABASES_READY);
    assert!(message.contains("dat_altrui__archivio") && message.contains("adopt: true"), "{message}");
    assert_eq!(admin.value(owner).await?, "conme_admin-", "nothing was changed");
    assert!(Credentials::of(data_centre, "dat-altrui-produzione", "archivio").await.is_err());
    eventually("the other database is there", || async {
        Ok(Credentials::of(data_centre, "dat-altrui-produzione", "nuovo").await.is_ok())
    })
    .await?;

    let mut adopted = database("archivio");
    adopted["adopt"] = json!(true);
    data_centre.apply("dat-altrui", spec("Altrui", 902_014, json!([adopted, database("nuovo")]))).await?;
    data_centre.ready("dat-altrui").await?;
    assert!(admin.value(owner).await?.starts_with("dat_altrui__archivio__owner{"), "it is the Comune's now");
    assert_eq!(inside.value("select a from vecchio").await?, "di prima");
    let credentials = Credentials::of(data_centre, "dat-altrui-produzione", "archivio").await?;
    credentials.login(None).await?.run("create table nuovo (a int)").await
}

async fn a_password_changed_by_hand_is_put_right(data_centre: &DataCentre, admin: &Login) -> Result<()> {
    data_centre.apply("dat-cambio", spec("Cambio", 902_015, json!([database("dati")]))).await?;
    data_centre.ready("dat-cambio").await?;
    let credentials = Credentials::of(data_centre, "dat-cambio-produzione", "dati").await?;
    credentials.login(None).await?.run("create table t (a text)").await?;
    let verifier = "select rolpassword from pg_authid where rolname = 'dat_cambio__dati__app'";
    let before = admin.value(verifier).await?;
    // Looked at in the same transaction: the operator could be faster than this story otherwise.
    let by_hand = "alter role dat_cambio__dati__app password 'altra' valid until '2020-01-01'";
    let changed = admin.value(&format!("{by_hand}; {verifier}")).await?;
    assert_ne!(changed, before, "it was changed by hand");
    eventually("the password is another one again", || async { Ok(admin.value(verifier).await? != changed) })
        .await?;
    eventually("the Secret opens the database again", || async { Ok(credentials.login(None).await.is_ok()) })
        .await?;
    let after = Credentials::of(data_centre, "dat-cambio-produzione", "dati").await?;
    assert_eq!(after.0, credentials.0, "the applications that hold it need not be told");
    // The password of that hand is of no use any more.
    let mut by_hand = credentials.clone();
    by_hand.0.insert("uri".into(), credentials.get("uri").replace(credentials.get("password"), "altra"));
    let error = by_hand.login(None).await.err().expect("refused").to_string();
    assert!(error.contains("password authentication failed"), "{error}");
    Ok(())
}

/// Waits until this database has been looked at some times more, whatever came of it.
async fn looked_at(data_centre: &DataCentre, result: &str, times: f64) -> Result<()> {
    let label = format!("result=\"{result}\"");
    let of = |metrics: &conme_stories::Metrics| metrics.sum("conme_database_ensure_total", &[&label]);
    let before = of(&data_centre.metrics().await?);
    eventually("the database is looked at again", || async {
        Ok(of(&data_centre.metrics().await?) >= before + times)
    })
    .await
}

async fn a_dropped_database_is_made_anew_only_on_a_persons_word(
    data_centre: &DataCentre,
    admin: &Login,
) -> Result<()> {
    const NAME: &str = "dat_perso__dati";
    data_centre
        .apply("dat-perso", spec("Perso", 902_016, json!([database("dati"), database("altro")])))
        .await?;
    let first = data_centre.ready("dat-perso").await?;
    let credentials = Credentials::of(data_centre, "dat-perso-produzione", "dati").await?;
    credentials.login(None).await?.run("create table t (a text)").await?;
    let provisioned = |comune: &Comune| {
        let databases = &comune.status.as_ref().unwrap().databases;
        databases.iter().find(|database| database.name == "dati").unwrap().provisioned_at.clone()
    };

    admin.run(&format!("drop database {NAME} with (force)")).await?;
    let comune = databases_not_ready(data_centre, "dat-perso", reasons::DATA_MISSING).await?;
    let (.., message) = told(&comune, reasons::DATABASES_READY);
    assert!(message.contains(NAME) && message.contains("Nothing was created in its place"), "{message}");
    let (_, reason, _) = told(&comune, reasons::READY);
    assert_eq!(reason, reasons::DATA_MISSING);
    assert_eq!(provisioned(&comune), provisioned(&first), "what was there stays on record");
    // It is looked at again and again and nothing is made, also not by an edit or another operator process.
    looked_at(data_centre, reasons::DATA_MISSING, 2.0).await?;
    assert!(!exists(admin, NAME).await?);
    let mut edited = database("dati");
    edited["connectionLimit"] = json!(5);
    data_centre.apply("dat-perso", spec("Perso", 902_016, json!([edited, database("altro")]))).await?;
    databases_not_ready(data_centre, "dat-perso", reasons::DATA_MISSING).await?;
    data_centre.instance().stop_program(OPERATOR).await?;
    data_centre.instance().start_program(OPERATOR).await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    looked_at(data_centre, reasons::DATA_MISSING, 2.0).await?;
    databases_not_ready(data_centre, "dat-perso", reasons::DATA_MISSING).await?;
    assert!(!exists(admin, NAME).await?);
    assert!(exists(admin, "dat_perso__altro").await?, "the other one is not concerned");

    // The word of a person names another database, or another loss: nothing happens.
    let annotate = |value: &str| {
        let body = json!({"metadata": {"annotations": {keys::CONFIRM_RECREATE: value}}});
        let comuni = data_centre.comuni();
        async move { comuni.patch("dat-perso", &PatchParams::default(), &Patch::Merge(body)).await }
    };
    let lost = provisioned(&first).unwrap();
    for other in ["dati".to_owned(), format!("altro@{lost}"), "dati@2026-01-01T00:00:00Z".to_owned()] {
        annotate(&other).await?;
        looked_at(data_centre, reasons::DATA_MISSING, 1.0).await?;
        assert!(!exists(admin, NAME).await?, "{other}");
    }
    // Said as the message tells it, it is made, empty, and the same Secret opens it.
    say_as_told(data_centre, "dat-perso").await?;
    let again = data_centre.ready("dat-perso").await?;
    assert_ne!(provisioned(&again), provisioned(&first));
    let anew = Credentials::of(data_centre, "dat-perso-produzione", "dati").await?;
    let count = "select count(*) from pg_tables where tablename = 't'";
    assert_eq!(anew.login(None).await?.value(count).await?, "0");

    // That word was for that loss. The annotation is still there, and a second loss is told again.
    admin.run(&format!("drop database {NAME} with (force)")).await?;
    databases_not_ready(data_centre, "dat-perso", reasons::DATA_MISSING).await?;
    looked_at(data_centre, reasons::DATA_MISSING, 2.0).await?;
    assert!(!exists(admin, NAME).await?, "it was made anew without a word of anybody");
    say_as_told(data_centre, "dat-perso").await?;
    data_centre.ready("dat-perso").await?;
    assert!(exists(admin, NAME).await?);
    Ok(())
}

/// Runs the command that the condition tells a person, word by word.
async fn say_as_told(data_centre: &DataCentre, comune: &str) -> Result<()> {
    let found = data_centre.comuni().get(comune).await?;
    let (.., message) = told(&found, reasons::DATABASES_READY);
    let command = message.split_once("kubectl ").expect("a command in the message").1;
    let words: Vec<&str> = command.split_whitespace().collect();
    let end = words.iter().position(|word| *word == "--overwrite").expect("the end of the command");
    install::run(data_centre.instance(), "kubectl", &words[..=end], None).await?;
    Ok(())
}
