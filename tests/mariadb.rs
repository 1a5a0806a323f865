//! A municipality with a database on the shared MariaDB server, next to others on the same server: its Secret opens its
//! own database and nothing else, its password is replaced without shutting anybody out, and what is lost is told and
//! not made anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::Result;
use conme_api::{Comune, keys, reasons};
use conme_blueprint::Kind;
use conme_stories::{
    Credentials, DataCentre, condition, entity, eventually, is_current, mariadb_administrator,
    mariadb_login as login,
};
use conme_testbed::install;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use mysql_async::{Conn, prelude::Queryable};
use serde_json::{Value, json};

const SERVER: &str = "mariadb-venis-1";

fn spec(name: &str, istat: u32, databases: Value) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": "2", "memory": "4Gi", "storage": "20Gi"},
        "environments": [{"name": "produzione", "share": 100, "podSecurity": "baseline"}],
        "databases": databases,
    })
}

fn database(name: &str, limit: u32) -> Value {
    json!({
        "name": name, "engine": "mariadb", "environment": "produzione",
        "placement": {"shared": SERVER}, "connectionLimit": limit,
    })
}

async fn administrator(data_centre: &DataCentre) -> Result<Conn> {
    mariadb_administrator(data_centre, SERVER).await
}

fn message(comune: &Comune) -> String {
    condition(comune, reasons::DATABASES_READY).map(|(_, _, message)| message.to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_on_mariadb_gets_its_database_and_nothing_else() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    // Names that differ only where a wildcard of a grant would stand: mar_a__sito and marxa__sito.
    let mut with_site = spec("Maria A", 905_001, json!([database("sito", 5)]));
    with_site["services"] = json!([
        {"name": "portale", "template": "sito-wordpress", "environment": "produzione", "database": "sito"},
    ]);
    data_centre.apply("mar-a", with_site).await?;
    data_centre.apply("marxa", spec("Maria X", 905_002, json!([database("sito", 5)]))).await?;
    let comune = data_centre.ready("mar-a").await?;
    data_centre.ready("marxa").await?;

    // The Secret is a service binding.
    let secrets: Api<Secret> = Api::namespaced(data_centre.client(), "mar-a-produzione");
    let secret = secrets.get("db-sito").await?;
    assert_eq!(secret.type_.as_deref(), Some("servicebinding.io/mysql"));
    let own = Credentials::of(&data_centre, "mar-a-produzione", "sito").await?;
    let other = Credentials::of(&data_centre, "marxa-produzione", "sito").await?;
    let server = data_centre.instance().databases()?.into_iter().find(|known| known.name == SERVER).unwrap();
    for (key, value) in [
        ("type", "mysql".to_owned()),
        ("provider", "conme".to_owned()),
        ("host", server.host.clone()),
        ("port", server.port.to_string()),
        ("hostport", format!("{}:{}", server.host, server.port)),
        ("database", "mar_a__sito".to_owned()),
        ("username", "mar_a__sito__app".to_owned()),
        ("ca.crt", std::fs::read_to_string(&server.ca_file)?),
    ] {
        assert_eq!(own.get(key), value, "{key}");
    }
    assert_eq!(own.0.len(), 10, "and no other key: {:?}", own.0.keys());
    let status = comune.status.as_ref().unwrap();
    let of = &status.databases[0];
    assert!(of.ready && of.provisioned_at.is_some() && of.system_identifier.is_some());
    assert_eq!((of.server.as_str(), of.database.as_str()), (SERVER, "mar_a__sito"));

    // It opens the database, and no other one.
    let mut session = login(&own, None).await?;
    session.query_drop("create or replace table pagine (id int primary key, titolo text)").await?;
    session.query_drop("insert into pagine values (1, 'Perché no?')").await?;
    for database in ["mysql", "conme_registry", other.get("database")] {
        let refused = login(&own, Some(database)).await.expect_err("refused").to_string();
        assert!(refused.contains("Access denied"), "{database}: {refused}");
    }
    let mut wrong = own.clone();
    wrong.0.insert("uri".into(), own.get("uri").replace(own.get("password"), other.get("password")));
    assert!(login(&wrong, None).await.is_err());
    login(&other, None).await?;

    // The network is open to the server, at its port and nothing else.
    let policy = data_centre
        .read(Kind::NetworkPolicy, "mar-a-produzione", conme_blueprint::build::DATABASES_POLICY)
        .await?
        .expect("the policy");
    assert_eq!(
        policy["spec"]["egress"],
        json!([{
            "to": [{"ipBlock": {"cidr": format!("{}/32", server.host)}}],
            "ports": [{"protocol": "TCP", "port": server.port}],
        }])
    );
    // The service has the address from the Secret.
    let deployment = data_centre.read(Kind::Deployment, "mar-a-produzione", "portale").await?.expect("it");
    let variables =
        deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let host = variables.iter().find(|variable| variable["name"] == "WORDPRESS_DB_HOST").unwrap();
    assert_eq!(host["valueFrom"]["secretKeyRef"], json!({"name": "db-sito", "key": "hostport"}));
    data_centre.tidy_up("mar-a").await?;
    data_centre.tidy_up("marxa").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_on_mariadb_is_told_and_made_anew_on_a_persons_word_only() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    data_centre.apply("mar-perso", spec("Perso", 905_003, json!([database("sito", 5)]))).await?;
    data_centre.ready("mar-perso").await?;
    let credentials = Credentials::of(&data_centre, "mar-perso-produzione", "sito").await?;
    login(&credentials, None).await?.query_drop("create or replace table pagine (id int)").await?;
    let mut admin = administrator(&data_centre).await?;
    let exists = "select count(*) from information_schema.schemata where schema_name = 'mar_perso__sito'";
    admin.query_drop("drop database mar_perso__sito").await?;

    // An edit has it looked at; nothing is made.
    data_centre.apply("mar-perso", spec("Perso", 905_003, json!([database("sito", 6)]))).await?;
    let lost = data_centre
        .comune_where("mar-perso", "without its data", |comune| {
            let told = condition(comune, reasons::DATABASES_READY);
            told.is_some_and(|(_, reason, _)| reason == reasons::DATA_MISSING) && is_current(comune)
        })
        .await?;
    let told = message(&lost);
    assert!(told.contains("mar_perso__sito") && told.contains("Nothing was created in its place"), "{told}");
    assert_eq!(admin.query_first::<u64, _>(exists).await?, Some(0));

    // The very command that the message tells.
    let command = told.split_once("kubectl ").expect("a command in the message").1;
    assert!(command.contains(keys::CONFIRM_RECREATE), "{command}");
    let words: Vec<&str> = command.split_whitespace().collect();
    let end = words.iter().position(|word| *word == "--overwrite").expect("the end of the command");
    install::run(data_centre.instance(), "kubectl", &words[..=end], None).await?;
    data_centre.ready("mar-perso").await?;
    assert_eq!(admin.query_first::<u64, _>(exists).await?, Some(1));
    // The same Secret opens it, and it is empty.
    let mut session = login(&credentials, None).await?;
    assert_eq!(session.query::<String, _>("show tables").await?.len(), 0);
    data_centre.tidy_up("mar-perso").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_on_mariadb_is_replaced_on_request_and_both_are_valid_for_a_while() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    data_centre.apply("mar-ruota", spec("Ruota", 905_004, json!([database("sito", 5)]))).await?;
    let comune = data_centre.ready("mar-ruota").await?;
    let issued: Timestamp = comune.status.unwrap().databases[0].provisioned_at.as_deref().unwrap().parse()?;
    let first = Credentials::of(&data_centre, "mar-ruota-produzione", "sito").await?;
    let mut session = login(&first, None).await?;
    session.query_drop("create or replace table pagine (id int)").await?;
    // A request speaks of older credentials, by the second.
    eventually("a second has passed", || async { Ok(Timestamp::now().as_second() > issued.as_second() + 1) })
        .await?;
    let asked = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"metadata": {"annotations": {keys::ROTATE_CREDENTIALS: format!("sito@{asked}")}}});
    data_centre.comuni().patch("mar-ruota", &PatchParams::default(), &Patch::Merge(patch)).await?;
    let rotated = data_centre
        .comune_where("mar-ruota", "rotated", |comune| {
            let told = comune.status.as_ref().and_then(|status| status.databases.first());
            told.and_then(|told| told.credential.as_ref()).is_some_and(|told| told.generation == 2)
        })
        .await?;
    let told = rotated.status.as_ref().unwrap().databases[0].credential.clone().unwrap();
    assert_eq!(told.login, "mar_ruota__sito__app2");
    assert!(told.retiring.is_some(), "the one before stays open for its overlap");
    let second = Credentials::of(&data_centre, "mar-ruota-produzione", "sito").await?;
    assert_eq!(second.get("username"), "mar_ruota__sito__app2");
    assert_ne!(second.get("password"), first.get("password"));
    // Both write into the same tables, and the session of before has not been cut.
    login(&second, None).await?.query_drop("insert into pagine values (1)").await?;
    login(&first, None).await?.query_drop("insert into pagine values (2)").await?;
    assert_eq!(session.query::<u64, _>("select count(*) from pagine").await?, [2]);
    let mut admin = administrator(&data_centre).await?;
    let note = "select tag from conme_registry.owners where kind = 'credential' and name = 'mar_ruota__sito'";
    eventually("the server knows which credential was handed out", || async {
        let mut admin = administrator(&data_centre).await?;
        Ok(admin.query_first::<String, _>(note).await?.as_deref() == Some("2"))
    })
    .await?;
    let accounts = "select count(*) from mysql.global_priv where user like 'mar\\_ruota%'";
    assert_eq!(admin.query_first::<u64, _>(accounts).await?, Some(2));
    data_centre.tidy_up("mar-ruota").await
}
