//! The stories of a municipality's database, on a real MariaDB server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use conme_databases::{
    Desired, Engine, Generation, Growth, Login, Marked, MissingData, OtherLogin, Outcome, OwnerTag, Problem,
    Secret, Server, Timeouts, TlsMode, drop_database_while, ensure, ensure_while, marked_databases,
    secure_server,
};
use conme_testbed::{DatabaseEndpoint, Ephemeral, Options, Progress};
use mysql_async::{Conn, Error, OptsBuilder, SslOpts, prelude::Queryable};

const PASSWORD: &str = "c1ear-text'of the app";

/// A running server, gone with the last story that uses it.
struct MariaDb {
    instance: Ephemeral,
    endpoint: DatabaseEndpoint,
    ca_pem: String,
    admin_password: String,
}

impl MariaDb {
    /// One server for all the stories of the process that need nothing special.
    async fn shared() -> Arc<Self> {
        static SERVER: tokio::sync::Mutex<Weak<MariaDb>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut server = SERVER.lock().await;
        if let Some(running) = server.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start().await);
        *server = Arc::downgrade(&started);
        started
    }

    async fn start() -> Self {
        let name = Options::unique_name("maria").unwrap();
        let options = Options { postgres: 0, mariadb: 1, ..Options::databases_only(name) };
        let instance = Ephemeral::up(options, &Progress::silent()).await.unwrap();
        let endpoint = instance.databases().unwrap().remove(0);
        let ca_pem = std::fs::read_to_string(&endpoint.ca_file).unwrap();
        let admin_password = std::fs::read_to_string(&endpoint.admin_password_file).unwrap();
        Self { instance, endpoint, ca_pem, admin_password }
    }

    /// How the crate under test reaches it.
    fn server(&self) -> Server {
        Server {
            engine: Engine::Mariadb,
            host: self.endpoint.host.clone(),
            port: self.endpoint.port,
            tls: TlsMode::VerifyFull { ca_pem: self.ca_pem.clone() },
            admin_user: self.endpoint.admin_user.clone(),
            admin_password: Secret::new(&self.admin_password),
            timeouts: Timeouts {
                connect: Duration::from_secs(30),
                lock: Duration::from_secs(30),
                ..Timeouts::default()
            },
        }
    }

    fn options(&self, user: &str, password: &str) -> OptsBuilder {
        let roots = vec![self.ca_pem.clone().into_bytes().into()];
        OptsBuilder::default()
            .ip_or_hostname(&self.endpoint.host)
            .tcp_port(self.endpoint.port)
            .prefer_socket(false)
            .user(Some(user))
            .pass(Some(password))
            .ssl_opts(SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(true))
    }

    /// A login independent of the crate under test.
    async fn login(&self, database: &str, user: &str) -> Result<Conn, Error> {
        self.login_with(database, user, PASSWORD).await
    }

    async fn login_with(&self, database: &str, user: &str, password: &str) -> Result<Conn, Error> {
        Conn::new(self.options(user, password).db_name(Some(database))).await
    }

    async fn admin(&self) -> Conn {
        Conn::new(self.options(&self.endpoint.admin_user, &self.admin_password)).await.unwrap()
    }

    /// Begins to record every statement, and forgets those before.
    async fn record(&self) {
        for sql in [
            "set global general_log = off",
            "set global log_output = 'TABLE'",
            "truncate table mysql.general_log",
            "set global general_log = on",
        ] {
            self.run(sql).await;
        }
    }

    async fn recorded(&self) -> Vec<String> {
        column(&mut self.admin().await, "select convert(argument using utf8mb4) from mysql.general_log").await
    }

    async fn run(&self, sql: &str) {
        self.admin().await.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn databases_like(&self, pattern: &str) -> Vec<String> {
        let sql =
            format!("select schema_name from information_schema.schemata where schema_name like '{pattern}'");
        column(&mut self.admin().await, &sql).await
    }

    async fn accounts_like(&self, pattern: &str) -> Vec<String> {
        let sql = format!("select user from mysql.global_priv where user like '{pattern}'");
        column(&mut self.admin().await, &sql).await
    }
}

async fn column(connection: &mut Conn, sql: &str) -> Vec<String> {
    connection.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn desired(comune: &str) -> Desired {
    Desired {
        comune: comune.to_owned(),
        database: "sito".to_owned(),
        tag: OwnerTag {
            istat: Some("027012".to_owned()),
            uid: format!("uid-of-{comune}"),
            former_uids: Vec::new(),
        },
        extensions: BTreeSet::new(),
        allowed_extensions: BTreeSet::new(),
        connection_limit: Some(5),
        locale: None,
        adopt: false,
        login: Login::First,
        other_login: OtherLogin::Close,
        generation: None,
        open: true,
        max_bytes: None,
        moved_from: None,
        provisioned: None,
    }
}

async fn converge(maria: &MariaDb, desired: &Desired) -> Outcome {
    ensure(&maria.server(), desired, &Secret::new(PASSWORD)).await.unwrap()
}

async fn problem(maria: &MariaDb, desired: &Desired) -> Problem {
    ensure(&maria.server(), desired, &Secret::new(PASSWORD)).await.unwrap_err()
}

fn remembering(desired: &Desired, outcome: &Outcome) -> Desired {
    Desired { provisioned: Some(outcome.provisioned.clone()), ..desired.clone() }
}

fn code(error: &Error) -> u16 {
    match error {
        Error::Server(refused) => refused.code,
        other => panic!("no answer of the server: {other}"),
    }
}

async fn refused(connection: &mut Conn, sql: &str) {
    let error = connection.query_drop(sql).await.expect_err(sql);
    // Access denied to a database, to a table, for an operation, to grant, to a thread of somebody else.
    assert!([1044, 1045, 1142, 1227, 1143, 1370, 1410, 1095].contains(&code(&error)), "{sql}: {error}");
}

#[tokio::test]
async fn a_new_database_is_usable_and_closed_to_others() {
    let maria = MariaDb::shared().await;
    let dolo = converge(&maria, &desired("dolo")).await;
    let mira = converge(&maria, &desired("mira")).await;
    assert_eq!(
        (dolo.binding.database.as_str(), dolo.binding.username.as_str()),
        ("dolo__sito", "dolo__sito__app")
    );
    assert!(dolo.login_proved && dolo.server_version.starts_with("10.") && dolo.other_grantees.is_empty());
    assert!(dolo.provisioned.system_identifier.is_some());
    assert_eq!(dolo.provisioned.system_identifier, mira.provisioned.system_identifier);

    let mut app = maria.login("dolo__sito", "dolo__sito__app").await.unwrap();
    for sql in [
        "create table atti (id int primary key, oggetto text, index (oggetto(10)))",
        "insert into atti values (1, 'è 😀')",
        "alter table atti add column data date",
        "create view v as select id from atti",
        "create procedure p() select 1",
        "call p()",
        "create trigger t before insert on atti for each row set new.oggetto = 'x'",
        "create temporary table prova (x int)",
        "lock tables atti write",
        "unlock tables",
        "drop view v",
    ] {
        app.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    assert_eq!(column(&mut app, "select oggetto from atti").await, ["è 😀"]);
    assert_eq!(column(&mut app, "select default_character_set_name from information_schema.schemata where schema_name = 'dolo__sito'").await, ["utf8mb4"]);
    let mut admin = maria.admin().await;
    // The names of others are not even visible.
    assert_eq!(column(&mut app, "show databases").await, ["dolo__sito", "information_schema"]);
    for sql in [
        "use mira__sito",
        "use conme_registry",
        "use mysql",
        "select * from mysql.global_priv",
        "select * from conme_registry.owners",
        "create database intruder",
        "create user intruder",
        "grant select on dolo__sito.* to mira__sito__app@'%'",
        "set global max_connections = 1",
        "select 1 into outfile '/tmp/conme-intruder'",
        "create event e on schedule every 1 second do select 1",
        "alter user dolo__sito__app@'%' require none",
        "alter user dolo__sito__app@'%' with max_user_connections 100",
        "create definer = conme_admin@'%' procedure q() select 1",
        &format!("kill {}", column(&mut admin, "select cast(connection_id() as char)").await[0]),
        "flush privileges",
        "install soname 'auth_ed25519'",
    ] {
        refused(&mut app, sql).await;
    }
    assert!(secure_server(&maria.server()).await.unwrap().open_databases.is_empty());
    let outcome = converge(&maria, &desired("dolo")).await;
    assert!(outcome.changed.is_empty() && outcome.size_bytes > 0, "{outcome:?}");
}

#[tokio::test]
async fn the_second_run_writes_nothing_and_no_password_is_in_the_log() {
    let maria = MariaDb::start().await;
    maria.record().await;
    secure_server(&maria.server()).await.unwrap();
    let first = desired("dolo");
    let outcome = converge(&maria, &first).await;
    ensure(&maria.server(), &first, &Secret::new("second-c1ear-text")).await.unwrap();
    let changed = converge(&maria, &first).await.changed;
    assert_eq!(changed, ["set the password of account dolo__sito__app"]);
    let log = maria.recorded().await.join("\n");
    assert!(
        log.contains("IDENTIFIED VIA mysql_native_password USING '*"),
        "the log shows what is set: {log}"
    );
    for secret in ["c1ear-text", maria.admin_password.as_str()] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }

    maria.record().await;
    let again = converge(&maria, &remembering(&first, &outcome)).await;
    assert!(again.changed.is_empty(), "{:?}", again.changed);
    assert_eq!(again.provisioned, outcome.provisioned);
    assert!(secure_server(&maria.server()).await.unwrap().changed.is_empty());
    let log = maria.recorded().await;
    assert!(log.iter().any(|line| line.contains("mysql.global_priv")), "the log shows the reads: {log:?}");
    for word in ["CREATE", "ALTER", "GRANT ", "REVOKE", "INSERT", "DELETE ", "UPDATE", "DROP", "FLUSH"] {
        assert!(log.iter().all(|line| !line.trim_start().starts_with(word)), "{word}: {log:?}");
    }
}

#[tokio::test]
async fn rule_12_names_that_differ_only_where_a_wildcard_stands() {
    let maria = MariaDb::shared().await;
    // As databases: a_b__sito, axb__sito, and one in which the two `_` are letters.
    let (one, two) = (converge(&maria, &desired("a-b")).await, converge(&maria, &desired("axb")).await);
    assert_eq!((one.binding.database.as_str(), two.binding.database.as_str()), ("a_b__sito", "axb__sito"));
    maria.run("create database a_bxxsito").await;
    maria.run("create table axb__sito.segreti (x int)").await;
    for (own, other) in [(&one, &two), (&two, &one)] {
        let mut app = maria.login(&own.binding.database, &own.binding.username).await.unwrap();
        assert_eq!(
            column(&mut app, "show databases").await,
            [own.binding.database.clone(), "information_schema".to_owned()]
        );
        let error = maria.login(&other.binding.database, &own.binding.username).await.expect_err("refused");
        assert_eq!(code(&error), 1044, "{error}");
        refused(&mut app, "use a_bxxsito").await;
        refused(&mut app, &format!("create table {}.t (x int)", other.binding.database)).await;
    }
    let mut app = maria.login("a_b__sito", "a_b__sito__app").await.unwrap();
    refused(&mut app, "select * from axb__sito.segreti").await;

    // The grant that somebody gives by hand without escaping is taken away.
    maria.run("grant select on `a_b__sito`.* to a_b__sito__app@'%'").await;
    let again = converge(&maria, &desired("a-b")).await;
    assert_eq!(again.changed.len(), 2, "{:?}", again.changed);
    let grants = column(&mut maria.admin().await, "show grants for a_b__sito__app@'%'").await.join("\n");
    assert!(grants.contains(r"`a\_b\_\_sito`.*") && !grants.contains("`a_b__sito`"), "{grants}");
}

#[tokio::test]
async fn drift_is_repaired() {
    let maria = MariaDb::shared().await;
    let (mine, other) = (desired("drift"), desired("drift-other"));
    converge(&maria, &mine).await;
    converge(&maria, &other).await;
    maria.run("create role if not exists potente").await;
    maria.run("create user if not exists backup@'%' identified by 'x'").await;
    maria.run("create table drift_other__sito.t (x int)").await;
    maria.run("create procedure drift_other__sito.p() select 1").await;
    let app = "drift__sito__app@'%'";
    let hand = [
        format!("grant all privileges on *.* to {app} with grant option"),
        format!("grant file on *.* to {app}"),
        format!("grant select on `drift\\_other\\_\\_sito`.* to {app}"),
        format!("grant event on `drift\\_\\_sito`.* to {app}"),
        format!("grant usage on `drift\\_\\_sito`.* to {app} with grant option"),
        format!("grant select (x) on drift_other__sito.t to {app}"),
        format!("grant execute on procedure drift_other__sito.p to {app}"),
        format!("grant potente to {app}"),
        "insert into mysql.proxies_priv (Host, User, Proxied_host, Proxied_user) \
         values ('%', 'drift__sito__app', '%', 'backup')"
            .to_owned(),
        format!("revoke select on `drift\\_\\_sito`.* from {app}"),
        format!("alter user {app} require none"),
        format!("alter user {app} require x509"),
        format!("alter user {app} with max_user_connections 100"),
        format!("alter user {app} with max_queries_per_hour 3"),
        format!("alter user {app} account lock"),
        format!("alter user {app} password expire"),
        format!("alter user {app} password expire interval 1 day"),
        format!("alter user {app} identified by 'by-hand'"),
        format!(
            "alter user {app} identified via mysql_native_password using password('{}') or unix_socket",
            "x"
        ),
        "grant select on `drift\\_\\_sito`.* to drift_other__sito__app@'%'".to_owned(),
        "grant select on `drift%`.* to drift_other__sito__app@'%' with grant option".to_owned(),
        "grant select on `drift\\_\\_sito`.* to public".to_owned(),
        "insert into mysql.db (Host, Db, User, Select_priv) values ('%', 'drift\\\\_\\\\_si%', '', 'Y')"
            .to_owned(),
        "drop user drift__sito__app@'%'".to_owned(),
    ];
    for sql in &hand {
        maria.run(sql).await;
        maria.run("flush privileges").await;
        let repaired = converge(&maria, &mine).await;
        assert!(!repaired.changed.is_empty() && repaired.changed.len() <= 4, "{sql}: {:?}", repaired.changed);
        let again = converge(&maria, &mine).await;
        assert!(again.changed.is_empty(), "{sql}: {:?}", again.changed);
        maria.login("drift__sito", "drift__sito__app").await.unwrap();
        // What was meant for another tenant is that one's to repair.
        converge(&maria, &other).await;
        let other_app = maria.login("drift__sito", "drift_other__sito__app").await;
        assert_eq!(other_app.err().map(|error| code(&error)), Some(1044), "{sql}");
    }
    // Somebody of the data centre itself is left alone, and told.
    maria.run("grant select on `drift\\_\\_sito`.* to backup@'%'").await;
    let outcome = converge(&maria, &mine).await;
    assert!(outcome.changed.is_empty());
    assert_eq!(outcome.other_grantees, ["backup@%"]);
}

#[tokio::test]
async fn the_connection_limit_is_the_applications_own() {
    let maria = MariaDb::shared().await;
    let limited = Desired { connection_limit: Some(2), ..desired("limited") };
    converge(&maria, &limited).await;
    let login = || maria.login("limited__sito", "limited__sito__app");
    let (_one, _two) = (login().await.unwrap(), login().await.unwrap());
    let error = login().await.expect_err("the third is refused");
    assert!([1203, 1226].contains(&code(&error)), "{error}");
    let busy = converge(&maria, &limited).await;
    assert!(busy.changed.is_empty() && !busy.login_proved, "in use is no problem: {busy:?}");
    converge(&maria, &Desired { connection_limit: Some(3), ..limited.clone() }).await;
    let _three = login().await.unwrap();
    converge(&maria, &Desired { connection_limit: None, ..limited }).await;
    let (_four, _five) = (login().await.unwrap(), login().await.unwrap());
}

#[tokio::test]
async fn nobody_enters_without_tls() {
    let maria = MariaDb::start().await;
    converge(&maria, &desired("dolo")).await;
    // Also where the server as a whole does not insist on it.
    maria.run("set global require_secure_transport = off").await;
    let plain = maria.options("dolo__sito__app", PASSWORD).ssl_opts(None);
    let error = Conn::new(plain).await.expect_err("refused");
    assert_eq!(code(&error), 1045, "{error}");
    maria.login("dolo__sito", "dolo__sito__app").await.unwrap();
}

#[tokio::test]
async fn vanished_data_is_never_created_anew() {
    let maria = MariaDb::shared().await;
    let first = desired("vanished");
    let remembered = remembering(&first, &converge(&maria, &first).await);
    maria.run("drop database vanished__sito").await;
    let gone = problem(&maria, &remembered).await;
    assert!(matches!(&gone, Problem::DataMissing { missing: MissingData::Gone, .. }), "{gone}");
    assert!(gone.to_string().contains("Nothing was created"), "{gone}");
    // The same with its account gone too: not even this comes back.
    maria.run("drop user vanished__sito__app@'%'").await;
    problem(&maria, &remembered).await;
    assert!(maria.databases_like("vanished%").await.is_empty());
    assert!(maria.accounts_like("vanished%").await.is_empty());
    // A person confirmed that it may start empty.
    let again = converge(&maria, &first).await;
    assert!(again.changed.len() >= 3, "{again:?}");
}

#[tokio::test]
async fn an_emptied_server_is_told_from_the_old_one() {
    let (old, new) = tokio::join!(MariaDb::start(), MariaDb::start());
    let first = desired("dolo");
    let remembered = remembering(&first, &converge(&old, &first).await);
    let replaced = problem(&new, &remembered).await;
    let expected = remembered.provisioned.clone().unwrap().system_identifier.unwrap();
    assert!(replaced.to_string().contains(&expected), "{replaced}");
    assert!(new.databases_like("dolo%").await.is_empty() && new.databases_like("conme%").await.is_empty());
    // A database of that name on the other server changes nothing.
    converge(&new, &first).await;
    let replaced = problem(&new, &remembered).await;
    assert!(
        matches!(
            &replaced,
            Problem::DataMissing { missing: MissingData::ServerReplaced { database_present: true, .. }, .. }
        ),
        "{replaced}"
    );
    // The server itself is known again after a restart.
    let name = &old.endpoint.name;
    old.instance.stop_program(name).await.unwrap();
    let down = problem(&old, &remembered).await;
    assert!(matches!(&down, Problem::Unreachable { .. }) && down.to_string().contains("refused"), "{down}");
    old.instance.start_program(name).await.unwrap();
    assert!(converge(&old, &remembered).await.changed.is_empty());
    // Without its registry it cannot be told, and nothing is made.
    old.run("drop database conme_registry").await;
    let unknown = problem(&old, &remembered).await;
    assert!(matches!(&unknown, Problem::DataMissing { .. }), "{unknown}");
    assert!(old.databases_like("conme%").await.is_empty());
    // A person's word: what is there is known by its comment, and kept.
    old.run("create table dolo__sito.atti (x int)").await;
    converge(&old, &first).await;
    old.run("insert into dolo__sito.atti values (1)").await;
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone_until_adopted() {
    let maria = MariaDb::shared().await;
    maria.run("create database adopted__sito character set latin1 comment 'the old site'").await;
    maria.run("create table adopted__sito.pagine (x int)").await;
    let mine = desired("adopted");
    let told = problem(&maria, &mine).await;
    assert!(matches!(&told, Problem::NotOurs { object, .. } if object.contains("adopted__sito")), "{told}");
    assert!(told.to_string().contains("the old site") && told.to_string().contains("adopt: true"), "{told}");
    assert!(maria.accounts_like("adopted%").await.is_empty());
    converge(&maria, &Desired { adopt: true, ..mine.clone() }).await;
    // From then on it is ours, also without the word, and also when its application changes the comment.
    assert!(converge(&maria, &mine).await.changed.is_empty());
    let mut app = maria.login("adopted__sito", "adopted__sito__app").await.unwrap();
    app.query_drop("insert into pagine values (1)").await.unwrap();
    app.query_drop("alter database adopted__sito comment 'nobody''s'").await.unwrap();
    assert!(converge(&maria, &mine).await.changed.is_empty());

    // An account alone is reason enough to stop.
    maria.run("create user only__sito__app@'%' identified by 'x'").await;
    maria.run("grant all privileges on *.* to only__sito__app@'%'").await;
    let told = problem(&maria, &desired("only")).await;
    assert!(matches!(&told, Problem::NotOurs { object, .. } if object.contains("only__sito__app")), "{told}");
    assert!(maria.databases_like("only%").await.is_empty());
    converge(&maria, &Desired { adopt: true, ..desired("only") }).await;
    let mut app = maria.login("only__sito", "only__sito__app").await.unwrap();
    refused(&mut app, "create database intruder").await;

    // One that would catch the logins of the application is never taken over.
    maria.run("create user caught__sito__app@'127.0.0.1' identified by 'x'").await;
    let told = problem(&maria, &Desired { adopt: true, ..desired("caught") }).await;
    assert!(told.to_string().contains("caught__sito__app\"@\"127.0.0.1"), "{told}");

    // Another comune's is never taken over, also not with `adopt`.
    let other = Desired {
        adopt: true,
        tag: OwnerTag { istat: Some("999999".to_owned()), uid: "x".to_owned(), former_uids: Vec::new() },
        ..desired("only")
    };
    let told = problem(&maria, &other).await;
    assert!(told.to_string().contains("027012"), "{told}");
    // The same comune, its resource created anew: ours by the ISTAT code, and marked so.
    let tag = OwnerTag { uid: "reborn".to_owned(), ..desired("only").tag };
    assert_eq!(converge(&maria, &Desired { tag, ..desired("only") }).await.changed.len(), 2);
}

#[tokio::test]
async fn what_a_fresh_server_leaves_open_is_closed() {
    let maria = MariaDb::start().await;
    for sql in [
        "create database test",
        "create database test_uno",
        "insert into mysql.db (Host, Db, User, Select_priv) values ('%', 'test', '', 'Y'), ('%', 'test\\\\_%', '', 'Y')",
        "create user ''@'localhost'",
        "create user ''@'10.0.0.2'",
        "create user ''@'10.0.0.1' identified by 'x'",
        "create database aperta",
        "grant select on aperta.* to public",
        "flush privileges",
    ] {
        maria.run(sql).await;
    }
    let secured = secure_server(&maria.server()).await.unwrap();
    assert_eq!(secured.changed.len(), 4, "{secured:?}");
    assert_eq!(secured.open_databases, ["aperta"], "told, and not ours to change");
    assert!(secure_server(&maria.server()).await.unwrap().changed.is_empty());
    // The databases themselves stay.
    assert_eq!(maria.databases_like("test%").await.len(), 2);
    converge(&maria, &desired("dolo")).await;
    let error = maria.login("test", "dolo__sito__app").await.expect_err("refused");
    assert_eq!(code(&error), 1044, "{error}");
}

#[tokio::test]
async fn a_run_killed_between_any_two_statements_is_completed_by_the_next() {
    let maria = MariaDb::start().await;
    let all = 7;
    for n in 0..all {
        // Each time as on a server that has seen nothing yet.
        maria.run("drop database if exists conme_registry").await;
        let desired = desired(&format!("killed-{n}"));
        let done = AtomicUsize::new(0);
        let go_on = |_: &str| done.fetch_add(1, Ordering::Relaxed) < n;
        let stopped = ensure_while(&maria.server(), &desired, &Secret::new(PASSWORD), go_on).await;
        assert!(matches!(stopped, Err(Problem::Stopped { .. })), "{n}: {stopped:?}");
        let outcome = converge(&maria, &desired).await;
        assert!(!outcome.changed.is_empty());
        assert_eq!(n + outcome.changed.len(), all, "nothing is done twice: {:?}", outcome.changed);
        assert!(converge(&maria, &desired).await.changed.is_empty(), "{n}");
        maria.login(&outcome.binding.database, &outcome.binding.username).await.unwrap();
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_anywhere_is_completed_by_the_next() {
    let maria = MariaDb::shared().await;
    for n in 0..6_u64 {
        let desired = desired(&format!("dropped-{n}"));
        let (server, secret) = (maria.server(), Secret::new(PASSWORD));
        let _ =
            tokio::time::timeout(Duration::from_millis(5 + 15 * n), ensure(&server, &desired, &secret)).await;
        converge(&maria, &desired).await;
        assert!(converge(&maria, &desired).await.changed.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_databases_at_once_and_two_operators_on_each() {
    let maria = MariaDb::start().await;
    let calls = (0..20).map(|n| {
        let maria = &maria;
        async move { converge(maria, &desired(&format!("many-{}", n / 2))).await }
    });
    let outcomes = futures::future::join_all(calls).await;
    for pair in outcomes.chunks(2) {
        let account =
            |outcome: &&Outcome| outcome.changed.iter().any(|change| change.starts_with("create account"));
        assert_eq!(pair.iter().filter(account).count(), 1, "one of two operators did it: {pair:?}");
    }
    let ids: BTreeSet<_> =
        outcomes.iter().map(|outcome| outcome.provisioned.system_identifier.clone()).collect();
    assert_eq!(ids.len(), 1, "one server has one id");
    let secured =
        futures::future::join_all((0..5).map(|_| async { secure_server(&maria.server()).await })).await;
    assert!(secured.into_iter().all(|result| result.is_ok()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn only_one_operator_works_on_a_database() {
    let maria = MariaDb::shared().await;
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (resume, may_go_on) = std::sync::mpsc::channel();
    let held = Mutex::new(Some((started, may_go_on)));
    let slow_maria = maria.clone();
    // The first call stops between two statements, with the lock in its hands.
    let slow = tokio::spawn(async move {
        let hold = |_: &str| {
            if let Some((started, may_go_on)) = held.lock().unwrap().take() {
                started.send(()).unwrap();
                tokio::task::block_in_place(|| may_go_on.recv().unwrap());
            }
            true
        };
        ensure_while(&slow_maria.server(), &desired("held"), &Secret::new(PASSWORD), hold).await
    });
    has_started.await.unwrap();
    let mut server = maria.server();
    server.timeouts.lock = Duration::from_millis(200);
    let told = ensure(&server, &desired("held"), &Secret::new(PASSWORD)).await.unwrap_err();
    assert!(matches!(&told, Problem::Busy { database } if database == "held__sito"), "{told:?}");
    // Another database of the same server is not held up.
    ensure(&server, &desired("not-held"), &Secret::new(PASSWORD)).await.unwrap();
    resume.send(()).unwrap();
    slow.await.unwrap().unwrap();
    assert!(converge(&maria, &desired("held")).await.changed.is_empty());
}

#[tokio::test]
async fn a_database_is_dropped_by_its_owner_only() {
    let maria = MariaDb::shared().await;
    let mine = desired("doomed");
    let remembered = remembering(&mine, &converge(&maria, &mine).await);
    maria.run("create table doomed__sito.t (x int)").await;
    let mut session = maria.login("doomed__sito", "doomed__sito__app").await.unwrap();
    session.query_drop("begin").await.unwrap();
    session.query_drop("insert into t values (1)").await.unwrap();
    let server = maria.server();
    let drop_it = async |desired: &Desired| {
        drop_database_while(&server, desired, |_| true).await.map(|removed| removed.changed)
    };

    // Not for another comune, not on another server, not without the right to act, and not what is nobody's.
    let tag = OwnerTag { istat: Some("999999".to_owned()), uid: "x".to_owned(), former_uids: Vec::new() };
    let refused = drop_it(&Desired { tag, ..mine.clone() }).await.unwrap_err();
    assert!(
        matches!(&refused, Problem::NotOurs { .. }) && refused.to_string().contains("027012"),
        "{refused}"
    );
    let mut elsewhere = remembered.clone();
    elsewhere.provisioned.as_mut().unwrap().system_identifier = Some("another".to_owned());
    let refused = drop_it(&elsewhere).await.unwrap_err();
    assert!(refused.to_string().contains("Nothing was dropped"), "{refused}");
    let stopped = drop_database_while(&server, &remembered, |_| false).await.unwrap_err();
    assert!(matches!(&stopped, Problem::Stopped { .. }), "{stopped}");
    maria.run("create database nobodys__sito").await;
    assert!(matches!(drop_it(&desired("nobodys")).await.unwrap_err(), Problem::NotOurs { .. }));
    assert_eq!(maria.databases_like("nobodys%").await.len(), 1);
    session.query_drop("insert into t values (2)").await.unwrap();

    // With a session at work in it.
    let done = drop_it(&remembered).await.unwrap();
    assert_eq!(done.len(), 5, "{done:?}");
    assert!(session.query_drop("select 1").await.is_err(), "its session has ended");
    assert!(
        maria.databases_like("doomed%").await.is_empty() && maria.accounts_like("doomed%").await.is_empty()
    );
    assert!(drop_it(&remembered).await.unwrap().is_empty(), "what is gone is no error");
    let left = "select count(*) from conme_registry.owners where name like 'doomed%'";
    assert_eq!(maria.admin().await.query_first::<u64, _>(left).await.unwrap(), Some(0));
    // Stopped anywhere, it is completed by the next.
    for n in 0..5 {
        let desired = desired(&format!("doomed-{n}"));
        converge(&maria, &desired).await;
        let done = AtomicUsize::new(0);
        let go_on = |_: &str| done.fetch_add(1, Ordering::Relaxed) < n;
        let stopped = drop_database_while(&server, &desired, go_on).await;
        assert!(matches!(stopped, Err(Problem::Stopped { .. })), "{n}: {stopped:?}");
        drop_it(&desired).await.unwrap();
        assert!(drop_it(&desired).await.unwrap().is_empty(), "{n}");
        assert!(maria.databases_like(&format!("doomed_{n}%")).await.is_empty(), "{n}");
    }
}

#[tokio::test]
async fn trouble_is_told_in_words() {
    let maria = MariaDb::shared().await;
    let password = Secret::new(PASSWORD);
    let mine = desired("trouble");
    let told_by = async |server: Server| ensure(&server, &mine, &password).await.unwrap_err();

    let mut server = maria.server();
    server.admin_password = Secret::new("wrong-admin-password");
    let told = told_by(server.clone()).await;
    assert!(matches!(&told, Problem::AuthenticationFailed { user, .. } if user == "conme_admin"), "{told:?}");
    assert!(told.to_string().contains("Access denied for user"), "{told}");
    assert!(!format!("{told:?} {told} {server:?}").contains("wrong-admin"));

    let mut server = maria.server();
    server.host = "name-that-does-not.invalid".to_owned();
    assert!(matches!(told_by(server).await, Problem::Unreachable { .. }));

    // A certificate of somebody else, one for another name, none at all, and no TLS where the server insists on it.
    let mut server = maria.server();
    let stranger = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    server.tls = TlsMode::VerifyFull { ca_pem: stranger.cert.pem() };
    let told = told_by(server.clone()).await;
    assert!(matches!(&told, Problem::Tls { .. }), "{told:?}");
    server.tls = TlsMode::VerifyFull { ca_pem: "nonsense".to_owned() };
    let told = told_by(server.clone()).await;
    assert!(matches!(&told, Problem::Tls { .. }) && told.to_string().contains("no certificate"), "{told}");
    server.tls = TlsMode::Disabled;
    let told = told_by(server).await;
    assert!(
        matches!(&told, Problem::Tls { .. }) && told.to_string().contains("no CA is configured"),
        "{told}"
    );
    let mut server = maria.server();
    server.host = "127.0.0.2".to_owned();
    let told = told_by(server).await;
    assert!(matches!(&told, Problem::Unreachable { .. } | Problem::Tls { .. }), "{told:?}");

    // A server that accepts and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut server = maria.server();
    server.port = silent.local_addr().unwrap().port();
    server.timeouts.connect = Duration::from_millis(200);
    let told = told_by(server).await;
    assert!(matches!(&told, Problem::Timeout { .. }), "{told:?}");

    let strange = Desired { locale: Some("xx_nowhere`'".to_owned()), ..desired("strange") };
    let told = problem(&maria, &strange).await;
    assert!(matches!(&told, Problem::Server { sqlstate, .. } if sqlstate.len() == 5), "{told:?}");
    assert!(told.to_string().contains("xx_nowhere"), "{told}");
    let extended = Desired { extensions: BTreeSet::from(["pg_trgm".to_owned()]), ..desired("extended") };
    assert!(problem(&maria, &extended).await.to_string().contains("MariaDB has no extensions"));
    assert!(matches!(problem(&maria, &desired("Bad Name")).await, Problem::InvalidName(_)));
}

fn with(base: &Desired, login: Login, other_login: OtherLogin) -> Desired {
    Desired { login, other_login, ..base.clone() }
}

async fn brought(maria: &MariaDb, desired: &Desired, password: &str) -> Outcome {
    ensure(&maria.server(), desired, &Secret::new(password)).await.unwrap()
}

/// Brings about no more than `steps` of it. Answers whether that was all.
async fn killed_after(maria: &MariaDb, desired: &Desired, password: &str, steps: usize) -> bool {
    let done = AtomicUsize::new(0);
    let go_on = |_: &str| done.fetch_add(1, Ordering::Relaxed) < steps;
    match ensure_while(&maria.server(), desired, &Secret::new(password), go_on).await {
        Ok(_) => true,
        Err(Problem::Stopped { .. }) => false,
        Err(problem) => panic!("{problem}"),
    }
}

/// What the applications have been handed.
#[derive(Clone, Debug)]
struct Handed(Login, String);

impl Handed {
    async fn log_in(&self, maria: &MariaDb, desired: &Desired) -> Result<Conn, Error> {
        let names = desired.names().unwrap();
        maria.login_with(names.database(), names.login(self.0), &self.1).await
    }

    async fn opens(&self, maria: &MariaDb, desired: &Desired, when: &str) -> Conn {
        match self.log_in(maria, desired).await {
            Ok(session) => session,
            Err(error) => panic!("{when}: {self:?} does not open the database: {error}"),
        }
    }

    async fn is_shut_out(&self, maria: &MariaDb, desired: &Desired) {
        let error = self.log_in(maria, desired).await.expect_err("shut out");
        assert!([1045, 4151].contains(&code(&error)), "{error}");
    }
}

async fn until_it_ends(session: &mut Conn) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while session.query_drop("select 1").await.is_ok() {
        assert!(Instant::now() < deadline, "the session goes on");
    }
}

#[tokio::test]
async fn a_rotation_killed_anywhere_leaves_the_credential_that_is_handed_out_valid() {
    let maria = MariaDb::shared().await;
    let base = desired("ruota");
    brought(&maria, &base, "password-0").await;
    let mut handed = Handed(Login::First, "password-0".to_owned());
    handed.opens(&maria, &base, "new").await.query_drop("create table t (a int)").await.unwrap();
    // There and back, so that each login is opened, refreshed and closed once.
    for round in 1..=2 {
        let next = handed.0.other();
        let mut begun = 0;
        let after = loop {
            // Each attempt has a password of its own: what was written before the kill is known to nobody.
            let password = format!("password-{round}-{begun}");
            let opened = killed_after(&maria, &with(&base, next, OtherLogin::Keep), &password, begun).await;
            handed.opens(&maria, &base, &format!("round {round}, killed after {begun} steps")).await;
            if opened {
                break Handed(next, password);
            }
            // The request may be taken back: then the other login ends, and a new attempt begins from there.
            if begun % 2 == 1 {
                brought(&maria, &with(&base, handed.0, OtherLogin::Close), &handed.1).await;
                handed.opens(&maria, &base, "given up").await;
            }
            begun += 1;
        };
        assert!(begun >= 1, "the rotation was never cut off");
        // Both are valid, on the same data.
        let before = std::mem::replace(&mut handed, after);
        let mut new = handed.opens(&maria, &base, "handed out").await;
        new.query_drop("insert into t values (1)").await.unwrap();
        before.opens(&maria, &base, "overlap").await.query_drop("insert into t values (2)").await.unwrap();
        let kept = with(&base, handed.0, OtherLogin::Keep);
        assert!(brought(&maria, &kept, &handed.1).await.changed.is_empty());
        let mut closing = 0;
        while !killed_after(&maria, &with(&base, handed.0, OtherLogin::Close), &handed.1, closing).await {
            handed.opens(&maria, &base, &format!("round {round}, closing killed after {closing}")).await;
            closing += 1;
        }
        assert!(closing >= 1);
        before.is_shut_out(&maria, &base).await;
        let outcome = brought(&maria, &with(&base, handed.0, OtherLogin::Close), &handed.1).await;
        assert!(outcome.changed.is_empty() && !outcome.other_login_open, "{outcome:?}");
    }
    assert_eq!(maria.accounts_like("ruota%").await.len(), 2);
}

#[tokio::test]
async fn a_login_that_is_in_use_is_not_closed_unless_it_has_to_be() {
    let maria = MariaDb::shared().await;
    let base = desired("usata");
    brought(&maria, &base, "old").await;
    let old = Handed(Login::First, "old".to_owned());
    let mut session = old.opens(&maria, &base, "new").await;
    for sql in
        ["create table t (a int)", "create view v as select a from t", "create procedure p() select a from t"]
    {
        session.query_drop(sql).await.unwrap();
    }
    brought(&maria, &with(&base, Login::Second, OtherLogin::Keep), "new").await;
    let patient = with(&base, Login::Second, OtherLogin::CloseWhenUnused);
    let outcome = brought(&maria, &patient, "new").await;
    assert!(
        outcome.other_login_open && outcome.other_sessions >= 1 && outcome.changed.is_empty(),
        "{outcome:?}"
    );
    session.query_drop("select 1").await.unwrap();
    // No overlap is wanted, as after a leak: it ends, sessions included.
    let outcome = brought(&maria, &with(&base, Login::Second, OtherLogin::Close), "new").await;
    assert!(!outcome.other_login_open);
    until_it_ends(&mut session).await;
    old.is_shut_out(&maria, &base).await;
    let mut new = Handed(Login::Second, "new".to_owned()).opens(&maria, &base, "after the leak").await;
    // What the first login has made works on, although it is locked, and can be replaced and removed.
    for sql in [
        "select * from v",
        "call p()",
        "create or replace view v as select a as b from t",
        "drop procedure p",
        "alter table t add b int",
    ] {
        new.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    // The second login has no way to anything else either.
    for sql in ["use mysql", "use conme_registry", "alter user usata__sito__app@'%' account unlock"] {
        refused(&mut new, sql).await;
    }
    // Its drift is repaired as that of the first.
    let settled = with(&base, Login::Second, OtherLogin::Close);
    for sql in [
        "grant file on *.* to usata__sito__app2@'%'",
        "alter user usata__sito__app2@'%' require none",
        "alter user usata__sito__app2@'%' account lock",
        "alter user usata__sito__app@'%' account unlock",
        "revoke select on `usata\\_\\_sito`.* from usata__sito__app2@'%'",
        "drop user usata__sito__app@'%'",
    ] {
        maria.run(sql).await;
        let repaired = brought(&maria, &settled, "new").await;
        assert!(!repaired.changed.is_empty(), "{sql}");
        let again = brought(&maria, &settled, "new").await;
        assert!(again.changed.is_empty() && !again.other_login_open, "{sql}: {again:?}");
    }
    old.is_shut_out(&maria, &base).await;
}

#[tokio::test]
async fn rule_10_an_operator_that_was_overtaken_does_no_harm() {
    let maria = MariaDb::shared().await;
    let base = desired("sorpasso");
    let as_of = |desired: Desired, number: u32, handed_out: bool| Desired {
        generation: Some(Generation { number, handed_out }),
        ..desired
    };
    let first = as_of(with(&base, Login::First, OtherLogin::Close), 1, true);
    assert_eq!(brought(&maria, &first, "one").await.generation, 1);
    let begin = as_of(with(&base, Login::Second, OtherLogin::Keep), 2, false);
    brought(&maria, &begin, "two").await;
    let second = as_of(begin.clone(), 2, true);
    let outcome = brought(&maria, &second, "two").await;
    assert_eq!(outcome.changed, ["note on database sorpasso__sito: credential 2 has been handed out"]);
    // The other one was paused and goes on with what it knew: to close the login, to rotate by itself.
    for (late, password) in [(&first, "one"), (&begin, "mine")] {
        let told = ensure(&maria.server(), late, &Secret::new(password)).await.unwrap_err();
        assert!(matches!(told, Problem::Overtaken { found: 2, .. }), "{told}");
        Handed(Login::Second, "two".to_owned()).opens(&maria, &base, "overtaken").await;
    }
    // Nobody knows how many there were: the server tells.
    let outcome = brought(&maria, &with(&base, Login::Second, OtherLogin::Keep), "two").await;
    assert_eq!((outcome.generation, outcome.changed.len()), (2, 0));

    // All of it goes with the database, and nothing else.
    let marked = marked_databases(&maria.server()).await.unwrap();
    let expected = Marked {
        on_server: "sorpasso__sito".to_owned(),
        comune: "sorpasso".to_owned(),
        database: "sito".to_owned(),
        istat: Some("027012".to_owned()),
    };
    assert!(marked.contains(&expected), "{marked:?}");
    let removed = drop_database_while(&maria.server(), &base, |_| true).await.unwrap();
    assert_eq!(removed.changed.len(), 9, "{removed:?}");
    assert!(maria.accounts_like("sorpasso%").await.is_empty());
    let left = "select count(*) from conme_registry.owners where name like 'sorpasso%'";
    assert_eq!(maria.admin().await.query_first::<u64, _>(left).await.unwrap(), Some(0));
    assert!(!marked_databases(&maria.server()).await.unwrap().contains(&expected));
}

#[tokio::test]
async fn a_closed_database_lets_nobody_in_and_opens_again() {
    let maria = MariaDb::shared().await;
    let base = desired("chiusa");
    converge(&maria, &base).await;
    let mut session = maria.login("chiusa__sito", "chiusa__sito__app").await.unwrap();
    let closed = Desired { open: false, ..base.clone() };
    let outcome = converge(&maria, &closed).await;
    assert!(!outcome.login_proved && !outcome.changed.is_empty());
    until_it_ends(&mut session).await;
    Handed(Login::First, PASSWORD.to_owned()).is_shut_out(&maria, &base).await;
    assert!(converge(&maria, &closed).await.changed.is_empty());
    converge(&maria, &base).await;
    maria.login("chiusa__sito", "chiusa__sito__app").await.unwrap();
    assert!(converge(&maria, &base).await.changed.is_empty());
    // One that is closed from the beginning.
    let new = Desired { open: false, ..desired("chiusa-nuova") };
    converge(&maria, &new).await;
    Handed(Login::First, PASSWORD.to_owned()).is_shut_out(&maria, &new).await;
    assert!(converge(&maria, &new).await.changed.is_empty());
}

#[tokio::test]
async fn a_full_database_may_be_read_and_cleared_up_and_then_goes_on() {
    const MAX: u64 = 1 << 20;
    let maria = MariaDb::shared().await;
    let limited = Desired { max_bytes: Some(MAX), ..desired("piena") };
    assert_eq!(converge(&maria, &limited).await.growth, Growth::Free);
    let mut before = maria.login("piena__sito", "piena__sito__app").await.unwrap();
    for sql in [
        "create table t (a int primary key auto_increment, b varbinary(4000))",
        "insert into t (b) select repeat('x', 4000) from seq_1_to_500",
        "create procedure p() insert into t (b) values ('x')",
    ] {
        before.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    // The server counts at leisure.
    maria.run("analyze table piena__sito.t").await;
    let stopped = converge(&maria, &limited).await;
    assert!(
        stopped.growth == Growth::Stopped && stopped.size_bytes >= MAX && stopped.login_proved,
        "{stopped:?}"
    );
    assert!(converge(&maria, &limited).await.changed.is_empty());
    until_it_ends(&mut before).await;
    let mut app = maria.login("piena__sito", "piena__sito__app").await.unwrap();
    for sql in [
        "insert into t (b) values ('x')",
        "update t set b = 'x'",
        "create table u (a int)",
        "create temporary table u (a int)",
        "alter table t add c int",
        "create index i on t (b)",
        "call p()",
    ] {
        refused(&mut app, sql).await;
    }
    assert_eq!(column(&mut app, "select count(*) from t").await, ["500"]);
    // Also the other login, from its begin.
    let second = with(&limited, Login::Second, OtherLogin::Keep);
    assert_eq!(brought(&maria, &second, "two").await.growth, Growth::Stopped);
    let mut other = Handed(Login::Second, "two".to_owned()).opens(&maria, &limited, "full").await;
    refused(&mut other, "insert into t (b) values ('x')").await;
    brought(&maria, &with(&limited, Login::First, OtherLogin::Close), PASSWORD).await;

    app.query_drop("delete from t where a < 10").await.unwrap();
    app.query_drop("truncate table t").await.unwrap();
    maria.run("analyze table piena__sito.t").await;
    let free = converge(&maria, &limited).await;
    assert!(free.growth == Growth::Free && free.size_bytes < MAX, "{free:?}");
    assert!(converge(&maria, &limited).await.changed.is_empty());
    until_it_ends(&mut app).await;
    let mut app = maria.login("piena__sito", "piena__sito__app").await.unwrap();
    for sql in ["call p()", "create table u (a int)", "drop table u"] {
        app.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test]
async fn what_carries_a_former_uid_is_known_and_what_was_moved_is_told() {
    let maria = MariaDb::shared().await;
    let unions = |uid: &str, former: &[&str]| Desired {
        tag: OwnerTag {
            istat: None,
            uid: uid.to_owned(),
            former_uids: former.iter().map(|uid| (*uid).to_owned()).collect(),
        },
        ..desired("unione")
    };
    let outcome = converge(&maria, &unions("u1", &[])).await;
    assert!(matches!(problem(&maria, &unions("u2", &[])).await, Problem::NotOurs { .. }));
    let anew = unions("u2", &["u0", "u1"]);
    assert_eq!(converge(&maria, &anew).await.changed.len(), 2);
    assert!(converge(&maria, &anew).await.changed.is_empty());

    let moved = Desired { moved_from: Some("maria-0".to_owned()), ..remembering(&anew, &outcome) };
    assert!(converge(&maria, &moved).await.changed.is_empty(), "only its name is another one");
    let mut elsewhere = moved;
    elsewhere.provisioned.as_mut().unwrap().system_identifier = Some("another".to_owned());
    let told = problem(&maria, &elsewhere).await;
    assert!(matches!(&told, Problem::Moved { from, .. } if from == "maria-0"), "{told}");
}
