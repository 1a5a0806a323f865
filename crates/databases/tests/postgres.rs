//! The stories of a municipality's database, on a real PostgreSQL server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use conme_databases::{
    Desired, Login, MissingData, OtherLogin, Outcome, OwnerTag, Problem, Provisioned, Secret, TlsMode,
    ensure, ensure_while, secure_server,
};
use support::{Postgres, column};
use tokio_postgres::error::SqlState;

const PASSWORD: &str = "c1ear-text'of the app";

fn desired(comune: &str) -> Desired {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    Desired {
        comune: comune.to_owned(),
        database: "protocollo".to_owned(),
        tag: OwnerTag {
            istat: Some("027012".to_owned()),
            uid: format!("uid-of-{comune}"),
            former_uids: Vec::new(),
        },
        extensions: set(&["pg_trgm"]),
        allowed_extensions: set(&["pg_trgm", "cube", "earthdistance", "unaccent", "not_installed_anywhere"]),
        connection_limit: Some(40),
        locale: Some("C.UTF-8".to_owned()),
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

async fn converge(pg: &Postgres, desired: &Desired) -> Outcome {
    ensure(&pg.server(), desired, &Secret::new(PASSWORD)).await.unwrap()
}

async fn problem(pg: &Postgres, desired: &Desired) -> Problem {
    ensure(&pg.server(), desired, &Secret::new(PASSWORD)).await.unwrap_err()
}

fn remembering(desired: &Desired, outcome: &Outcome) -> Desired {
    Desired { provisioned: Some(outcome.provisioned.clone()), ..desired.clone() }
}

async fn refused(client: &tokio_postgres::Client, sql: &str) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}: {error:?}");
}

async fn cannot_enter(pg: &Postgres, database: &str, user: &str) {
    match pg.login(database, user, PASSWORD).await {
        Ok(_) => panic!("{user} could enter {database}"),
        Err(error) => {
            assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{database}: {error:?}");
        }
    }
}

#[tokio::test]
async fn rule_11_a_new_database_is_usable_and_closed_to_others() {
    let pg = Postgres::shared();
    let secured = secure_server(&pg.server()).await.unwrap();
    // Other stories open databases of their own on this server for a moment.
    let closed = ["postgres", "template1", "dolo__protocollo", "mira__protocollo"];
    let stays_closed = |open: &[String]| !open.iter().any(|name| closed.contains(&name.as_str()));
    assert!(stays_closed(&secured.open_databases), "{secured:?}");
    assert!(secure_server(&pg.server()).await.unwrap().changed.is_empty());

    let dolo = converge(pg, &desired("dolo")).await;
    let mira = converge(pg, &desired("mira")).await;
    let secured = secure_server(&pg.server()).await.unwrap();
    assert!(stays_closed(&secured.open_databases), "{secured:?}");
    assert_eq!(dolo.binding.database, "dolo__protocollo");
    assert_eq!(dolo.binding.username, "dolo__protocollo__app");
    assert!(dolo.login_proved && dolo.size_bytes > 0 && dolo.server_version.starts_with(char::is_numeric));
    assert!(dolo.undeclared_extensions.is_empty() && dolo.other_grantees.is_empty());
    assert!(dolo.provisioned.system_identifier.is_some());

    let app = pg.login("dolo__protocollo", "dolo__protocollo__app", PASSWORD).await.unwrap();
    app.batch_execute(
        "create table atti (id int primary key, oggetto text); insert into atti values (1, 'x')",
    )
    .await
    .unwrap();
    app.batch_execute("create index on atti using gin (oggetto gin_trgm_ops); create temp table t (x int)")
        .await
        .unwrap();
    refused(&app, "create extension unaccent").await;
    refused(&app, "create extension hstore").await;
    refused(&app, "create extension citext").await;
    refused(&app, "create schema other").await;
    refused(&app, "create role intruder").await;
    refused(&app, "create database intruder").await;
    refused(&app, "set role dolo__protocollo__owner").await;
    refused(&app, "drop extension pg_trgm").await;
    refused(&app, "alter database dolo__protocollo connection limit -1").await;
    refused(&app, "copy atti to program 'true'").await;
    refused(&app, "select * from pg_authid").await;
    for database in ["postgres", "template1", &mira.binding.database] {
        cannot_enter(pg, database, &dolo.binding.username).await;
    }
    let locale = "select datcollate || ' ' || pg_encoding_to_char(encoding) from pg_database where datname = current_database()";
    assert_eq!(column(&app, locale).await, ["C.UTF-8 UTF8"]);
    // The owner has no password and no login.
    assert!(pg.login("dolo__protocollo", "dolo__protocollo__owner", PASSWORD).await.is_err());
}

#[tokio::test]
async fn the_second_run_writes_nothing() {
    let pg = Postgres::start();
    secure_server(&pg.server()).await.unwrap();
    let first = desired("dolo");
    let outcome = converge(&pg, &first).await;
    let before = pg.log().await.len();
    let xid = "select txid_snapshot_xmax(txid_current_snapshot())";
    let admin = pg.admin("postgres").await;
    let xid_before = column(&admin, xid).await;

    let again = converge(&pg, &remembering(&first, &outcome)).await;
    assert!(again.changed.is_empty(), "{:?}", again.changed);
    assert_eq!(again.provisioned, outcome.provisioned);
    assert!(secure_server(&pg.server()).await.unwrap().changed.is_empty());

    // No transaction number was used: nothing whatever was written.
    assert_eq!(column(&admin, xid).await, xid_before);
    let log = pg.log().await;
    let statements: Vec<&String> =
        log[before..].iter().filter(|line| line.contains("statement:") || line.contains("execute")).collect();
    assert!(statements.len() >= 4, "the log shows the reads: {statements:?}");
    for word in ["CREATE", "ALTER", "GRANT", "REVOKE", "COMMENT"] {
        assert!(statements.iter().all(|line| !line.contains(word)), "{word}: {statements:?}");
    }
}

#[tokio::test]
async fn rule_11_every_drift_is_repaired() {
    let pg = Postgres::shared();
    secure_server(&pg.server()).await.unwrap();
    let desired = desired("drift");
    let outcome = converge(pg, &desired).await;
    converge(pg, &self::desired("drift-other")).await;
    let desired = remembering(&desired, &outcome);
    let db = "drift__protocollo";
    let app = "drift__protocollo__app";
    let owner = "drift__protocollo__owner";
    let other = "drift_other__protocollo__app";
    let drifts = [
        ("server", format!("alter role {owner} login")),
        ("server", format!("alter role {owner} superuser")),
        ("server", format!("alter role {app} superuser createdb createrole replication bypassrls")),
        ("server", format!("alter role {app} nologin")),
        ("server", format!("alter role {app} connection limit 0")),
        ("server", format!("alter role {app} valid until '2001-01-01'")),
        ("server", format!("grant pg_read_all_data, pg_execute_server_program to {app} with admin option")),
        ("server", format!("grant {owner} to {app}")),
        ("server", format!("grant {owner} to {other}")),
        ("server", format!("grant {app} to {other}")),
        ("server", format!("grant connect on database {db} to public")),
        ("server", format!("grant all on database {db} to public")),
        ("server", format!("grant create on database {db} to {app}")),
        ("server", format!("grant connect on database {db} to {app} with grant option")),
        ("server", format!("grant connect on database {db} to {other}")),
        ("server", format!("revoke connect on database {db} from {app}")),
        ("server", format!("revoke all on database {db} from {app}")),
        ("server", format!("alter database {db} connection limit -1")),
        ("server", format!("alter database {db} connection limit 0")),
        ("server", format!("alter database {db} owner to {other}")),
        ("server", format!("alter database {db} owner to {app}")),
        ("server", format!("alter database {db} owner to postgres")),
        ("server", format!("alter database {db} is_template true")),
        ("server", format!("alter database {db} allow_connections false")),
        ("server", format!("comment on database {db} is null")),
        ("server", format!("comment on role {app} is 'mine'")),
        ("server", format!("comment on role {owner} is null")),
        ("database", "grant create on schema public to public".to_owned()),
        ("database", "grant usage on schema public to public".to_owned()),
        ("database", "alter schema public owner to postgres".to_owned()),
        ("database", format!("alter schema public owner to {app}")),
        ("database", format!("alter schema public owner to {other}")),
        ("database", format!("grant usage on schema public to {other}")),
        ("database", format!("grant usage, create on schema public to {app} with grant option")),
        ("database", format!("revoke create on schema public from {app}")),
        ("database", "drop extension pg_trgm".to_owned()),
        ("database", "drop extension pg_trgm; drop schema public".to_owned()),
    ];
    let server = pg.admin("postgres").await;
    for (place, sql) in &drifts {
        if *place == "database" {
            pg.admin(db).await.batch_execute(sql).await.expect(sql);
        } else {
            server.batch_execute(sql).await.expect(sql);
        }
        let repaired = converge(pg, &desired).await;
        assert!(!repaired.changed.is_empty(), "not seen: {sql}");
        let again = converge(pg, &desired).await;
        assert!(again.changed.is_empty(), "after {sql}: {:?}", again.changed);
    }
    let privileges = format!(
        "select rolname from pg_roles where rolname in ('{app}', '{owner}') and (rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls)"
    );
    assert!(column(&server, &privileges).await.is_empty());
    assert_eq!(
        column(&server, &format!("select datacl from pg_database where datname = '{db}'")).await,
        [format!("{{{owner}=CTc/{owner},{app}=Tc/{owner}}}")]
    );

    // All at once.
    for (place, sql) in drifts.iter().filter(|(_, sql)| !sql.contains("drop ") && !sql.contains("comment on"))
    {
        if *place == "server" && !sql.contains("allow_connections") {
            server.batch_execute(sql).await.expect(sql);
        }
    }
    converge(pg, &desired).await;
    assert!(converge(pg, &desired).await.changed.is_empty());
    pg.login(db, app, PASSWORD).await.unwrap();
    cannot_enter(pg, db, other).await;
}

#[tokio::test]
async fn a_right_passed_on_is_taken_back_from_all() {
    let pg = Postgres::shared();
    let desired = desired("passed-on");
    converge(pg, &desired).await;
    let server = pg.admin("postgres").await;
    let db = "passed_on__protocollo";
    server
        .batch_execute(&format!(
            "create role passed_on_backup login; grant connect on database {db} to passed_on_backup with grant option;
             set role passed_on_backup; grant connect on database {db} to public; reset role"
        ))
        .await
        .unwrap();
    let outcome = converge(pg, &desired).await;
    // The data centre's own role keeps its plain right and is told of.
    assert_eq!(outcome.other_grantees, ["passed_on_backup"]);
    assert!(converge(pg, &desired).await.changed.is_empty());
    let acl = column(&server, &format!("select datacl from pg_database where datname = '{db}'")).await;
    assert!(
        acl[0].contains("passed_on_backup=c/") && !acl[0].contains("{=") && !acl[0].contains(",="),
        "{acl:?}"
    );
}

#[tokio::test]
async fn a_changed_password_is_put_right() {
    let pg = Postgres::shared();
    let desired = desired("password");
    converge(pg, &desired).await;
    let user = "password__protocollo__app";
    pg.admin("postgres").await.batch_execute(&format!("alter role {user} password 'another'")).await.unwrap();
    let outcome = converge(pg, &desired).await;
    assert_eq!(outcome.changed, [format!("set the password of role {user}")]);
    pg.login("password__protocollo", user, PASSWORD).await.unwrap();
    // The caller rotates it.
    let outcome = ensure(&pg.server(), &desired, &Secret::new("a-new-one")).await.unwrap();
    assert_eq!(outcome.changed, [format!("set the password of role {user}")]);
    assert!(pg.login("password__protocollo", user, PASSWORD).await.is_err());
}

#[tokio::test]
async fn an_application_that_uses_all_its_connections_is_no_problem() {
    let pg = Postgres::shared();
    let desired = Desired { connection_limit: Some(1), ..desired("full") };
    converge(pg, &desired).await;
    let _busy = pg.login("full__protocollo", "full__protocollo__app", PASSWORD).await.unwrap();
    let outcome = converge(pg, &desired).await;
    assert!(outcome.changed.is_empty() && !outcome.login_proved);
}

#[tokio::test]
async fn a_run_killed_between_any_two_statements_is_completed_by_the_next() {
    let pg = Postgres::shared();
    let want = |n: usize| Desired {
        extensions: ["earthdistance", "cube"].map(str::to_owned).into(),
        ..desired(&format!("killed-{n}"))
    };
    let all = converge(pg, &want(0)).await.changed.len();
    assert!(all >= 12, "{all}");
    for n in 0..all {
        let desired = want(n + 1);
        let done = AtomicUsize::new(0);
        let stopped = ensure_while(&pg.server(), &desired, &Secret::new(PASSWORD), |_| {
            done.fetch_add(1, Ordering::Relaxed) < n
        })
        .await;
        assert!(matches!(stopped, Err(Problem::Stopped { .. })), "{n}: {stopped:?}");
        let outcome = converge(pg, &desired).await;
        assert!(!outcome.changed.is_empty());
        let again = converge(pg, &desired).await;
        assert!(again.changed.is_empty(), "{n}: {:?}", again.changed);
        pg.login(&outcome.binding.database, &outcome.binding.username, PASSWORD).await.unwrap();
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_anywhere_is_completed_by_the_next() {
    let pg = Postgres::shared();
    for n in 0..6u64 {
        let desired = desired(&format!("dropped-{n}"));
        let server = pg.server();
        let secret = Secret::new(PASSWORD);
        // Cut off in the middle of whatever it is doing, the server included.
        let cut =
            tokio::time::timeout(Duration::from_millis(40 + 60 * n), ensure(&server, &desired, &secret))
                .await;
        drop(cut);
        converge(pg, &desired).await;
        assert!(converge(pg, &desired).await.changed.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_databases_at_once_and_two_operators_on_each() {
    let pg = Postgres::shared();
    let calls = (0..40).map(|n| async move { converge(pg, &desired(&format!("many-{}", n / 2))).await });
    let outcomes = futures::future::join_all(calls).await;
    for pair in outcomes.chunks(2) {
        let changed = pair.iter().filter(|outcome| !outcome.changed.is_empty()).count();
        assert_eq!(changed, 1, "one of two operators did all: {pair:?}");
    }
    let secured =
        futures::future::join_all((0..5).map(|_| async { secure_server(&pg.server()).await })).await;
    assert!(secured.into_iter().all(|result| result.is_ok()));
}

#[tokio::test]
async fn rule_3_vanished_data_is_never_created_anew() {
    let pg = Postgres::shared();
    let first = desired("vanished");
    let outcome = converge(pg, &first).await;
    let remembered = remembering(&first, &outcome);
    let server = pg.admin("postgres").await;
    server.batch_execute("drop database vanished__protocollo with (force)").await.unwrap();
    let gone = problem(pg, &remembered).await;
    assert!(matches!(&gone, Problem::DataMissing { missing: MissingData::Gone, .. }), "{gone}");
    assert_eq!(gone.reason(), "DataMissing");
    assert!(gone.to_string().contains("Nothing was created"), "{gone}");
    assert!(
        column(&server, "select datname from pg_database where datname = 'vanished__protocollo'")
            .await
            .is_empty()
    );
    // The same with its roles gone too: not even these come back.
    server
        .batch_execute("drop role vanished__protocollo__app; drop role vanished__protocollo__owner")
        .await
        .unwrap();
    problem(pg, &remembered).await;
    assert!(column(&server, "select rolname from pg_roles where rolname like 'vanished%'").await.is_empty());
    // A person confirmed that it may start empty.
    converge(pg, &first).await;
}

#[tokio::test]
async fn rule_3_an_emptied_server_is_told_from_the_old_one() {
    let old = Postgres::start();
    let first = desired("dolo");
    let remembered = remembering(&first, &converge(&old, &first).await);
    let port = old.port;
    old.stop();
    let new = Postgres::start_at(Some(port));
    let replaced = problem(&new, &remembered).await;
    let expected = remembered.provisioned.clone().unwrap().system_identifier.unwrap();
    assert!(replaced.to_string().contains(&expected), "{replaced}");
    let server = new.admin("postgres").await;
    assert!(column(&server, "select rolname from pg_roles where rolname like 'dolo%'").await.is_empty());
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
}

/// Another address that leads to a server.
async fn forwarder(to: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn rule_3_a_server_that_moves_keeps_its_databases_and_a_database_does_not_move_by_an_edit() {
    let pg = Postgres::shared();
    let first = desired("trasloco");
    let remembered = remembering(&first, &converge(pg, &first).await);
    // The same server at another address, and under another name: everything is found there.
    let mut moved = pg.server();
    moved.port = forwarder(pg.port).await;
    for moved_from in [None, Some("pg-old".to_owned())] {
        let desired = Desired { moved_from, ..remembered.clone() };
        let outcome = ensure(&moved, &desired, &Secret::new(PASSWORD)).await.unwrap();
        assert!(outcome.changed.is_empty(), "{:?}", outcome.changed);
        assert_eq!(
            (outcome.binding.port, outcome.provisioned),
            (moved.port, remembered.provisioned.clone().unwrap())
        );
    }
    // The manifest names another server: nothing is made there, also where a database of that name exists.
    let other = Postgres::start();
    let edited = Desired { moved_from: Some("pg-old".to_owned()), ..remembered.clone() };
    let told = problem(&other, &edited).await;
    assert!(matches!(&told, Problem::Moved { from, .. } if from == "pg-old"), "{told}");
    assert!(told.to_string().contains("name \"pg-old\" again") && told.needs_a_person(), "{told}");
    let roles = "select rolname from pg_roles where rolname like 'trasloco%'";
    assert!(column(&other.admin("postgres").await, roles).await.is_empty());
    converge(&other, &first).await;
    assert!(matches!(problem(&other, &edited).await, Problem::Moved { .. }));
    // A server that does not tell its identity is not trusted to be the same one.
    let unknown = Provisioned { system_identifier: None, ..remembered.provisioned.clone().unwrap() };
    let edited = Desired { provisioned: Some(unknown), ..edited };
    assert!(matches!(problem(pg, &edited).await, Problem::Moved { .. }));
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone_until_adopted() {
    let pg = Postgres::shared();
    let server = pg.admin("postgres").await;
    server.batch_execute("create role ours_left_open login password 'x'").await.unwrap();
    server.batch_execute("create database \"adopted__protocollo\" owner ours_left_open").await.unwrap();
    server.batch_execute("comment on database adopted__protocollo is 'the old register'").await.unwrap();
    let mine = desired("adopted");
    let refused = problem(pg, &mine).await;
    assert!(matches!(&refused, Problem::NotOurs { object, .. } if object.contains("adopted__protocollo")));
    assert!(refused.to_string().contains("the old register") && refused.to_string().contains("adopt: true"));
    assert!(
        column(&server, "select rolname from pg_roles where rolname like 'adopted__protocollo%'")
            .await
            .is_empty()
    );

    let adopting = Desired { adopt: true, ..mine.clone() };
    converge(pg, &adopting).await;
    // From then on it is ours, also without the word.
    assert!(converge(pg, &mine).await.changed.is_empty());

    // A role alone is reason enough to stop.
    server.batch_execute("create role role_only__protocollo__app superuser").await.unwrap();
    let refused = problem(pg, &desired("role-only")).await;
    assert!(
        matches!(&refused, Problem::NotOurs { object, .. } if object.contains("role_only__protocollo__app"))
    );
    assert!(
        column(&server, "select datname from pg_database where datname like 'role_only%'").await.is_empty()
    );
    converge(pg, &Desired { adopt: true, ..desired("role-only") }).await;
    let superuser = "select rolsuper from pg_roles where rolname = 'role_only__protocollo__app'";
    assert_eq!(column(&server, superuser).await, ["f"]);

    // Another comune's is never taken over, also not with `adopt`.
    let other = Desired {
        adopt: true,
        tag: OwnerTag { istat: Some("999999".to_owned()), uid: "x".to_owned(), former_uids: Vec::new() },
        ..desired("role-only")
    };
    let refused = problem(pg, &other).await;
    assert!(refused.to_string().contains("027012"), "{refused}");
    // The same comune, its resource created anew: ours by the ISTAT code, and marked so.
    let reborn =
        Desired { tag: OwnerTag { uid: "reborn".to_owned(), ..mine.tag.clone() }, ..desired("role-only") };
    assert_eq!(converge(pg, &reborn).await.changed.len(), 3);
}

#[tokio::test]
async fn extensions_follow_the_allow_list() {
    let pg = Postgres::shared();
    let base = Desired { extensions: BTreeSet::new(), ..desired("extended") };
    let with = |names: &[&str]| Desired {
        extensions: names.iter().map(|name| (*name).to_owned()).collect(),
        ..base.clone()
    };
    let refused = problem(pg, &with(&["plpython3u"])).await;
    assert!(matches!(&refused, Problem::ExtensionNotAllowed { .. }));
    assert!(refused.to_string().contains("earthdistance"), "names what is allowed: {refused}");
    let server = pg.admin("postgres").await;
    assert!(
        column(&server, "select datname from pg_database where datname like 'extended%'").await.is_empty()
    );

    converge(pg, &base).await;
    // One that is needed by another comes along.
    let outcome = converge(pg, &with(&["earthdistance"])).await;
    assert_eq!(outcome.changed, ["install extension cube", "install extension earthdistance"]);
    assert!(outcome.undeclared_extensions.is_empty());
    // No longer declared: kept and reported.
    let outcome = converge(pg, &base).await;
    assert!(outcome.changed.is_empty());
    assert_eq!(outcome.undeclared_extensions, ["cube", "earthdistance"]);
    // One that cannot be had keeps nothing else from being repaired.
    server.batch_execute("grant connect on database extended__protocollo to public").await.unwrap();
    let refused = problem(pg, &with(&["not_installed_anywhere"])).await;
    assert!(matches!(&refused, Problem::ExtensionUnavailable { .. }));
    assert!(converge(pg, &base).await.changed.is_empty());
}

#[tokio::test]
async fn similar_names_are_different_tenants() {
    let pg = Postgres::shared();
    let long = |end: &str| format!("{}{end}", "a-long-name-".repeat(5));
    let tenants = [
        Desired { comune: "san".into(), database: "stino-x".into(), ..desired("san") },
        Desired { comune: "san-stino".into(), database: "x".into(), ..desired("san-stino") },
        desired(&long("a")),
        desired(&long("b")),
        desired("pg"),
    ];
    let mut bindings = Vec::new();
    for tenant in &tenants {
        bindings.push(converge(pg, tenant).await.binding);
    }
    for binding in &bindings {
        pg.login(&binding.database, &binding.username, PASSWORD).await.unwrap();
        for other in bindings.iter().filter(|other| *other != binding) {
            cannot_enter(pg, &other.database, &binding.username).await;
        }
    }
}

#[tokio::test]
async fn trouble_is_told_in_words() {
    let pg = Postgres::shared();
    let password = Secret::new(PASSWORD);
    let mine = desired("trouble");

    let mut server = pg.server();
    server.admin_password = Secret::new("wrong-admin-password");
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::AuthenticationFailed { user, .. } if user == "postgres"), "{told:?}");
    assert!(told.to_string().contains("password authentication failed"), "{told}");
    assert!(!format!("{told:?} {told} {server:?}").contains("wrong-admin"));

    let mut server = pg.server();
    server.port = support::free_port();
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Unreachable { .. }), "{told:?}");
    assert!(told.to_string().contains("refused"), "{told}");

    let mut server = pg.server();
    server.host = "name-that-does-not.invalid".to_owned();
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Unreachable { .. }), "{told:?}");

    // A certificate of somebody else, one for another name, none at all, and no TLS where the server insists on it.
    let mut server = pg.server();
    let stranger = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    server.tls = TlsMode::VerifyFull { ca_pem: stranger.cert.pem() };
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Tls { .. }), "{told:?}");
    let mut server = pg.server();
    server.host = "localhost".to_owned();
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Tls { .. }), "{told:?}");
    let mut server = pg.server();
    server.tls = TlsMode::VerifyFull { ca_pem: "nonsense".to_owned() };
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Tls { .. }), "{told:?}");
    server.tls = TlsMode::Disabled;
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::AuthenticationFailed { .. }), "{told:?}");
    assert!(told.to_string().contains("no encryption"), "{told}");

    // A server that accepts and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut server = pg.server();
    server.port = silent.local_addr().unwrap().port();
    server.timeouts.connect = Duration::from_millis(200);
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Timeout { .. }), "{told:?}");

    let mut server = pg.server();
    server.timeouts.total = Duration::from_millis(1);
    let told = ensure(&server, &mine, &password).await.unwrap_err();
    assert!(matches!(&told, Problem::Timeout { .. }), "{told:?}");

    let strange = Desired { locale: Some("xx_XX.nowhere'".to_owned()), ..desired("strange") };
    let told = problem(pg, &strange).await;
    assert!(matches!(&told, Problem::Server { sqlstate, .. } if sqlstate.len() == 5), "{told:?}");
    assert!(told.to_string().contains("xx_XX"), "{told}");
    assert!(matches!(problem(pg, &desired("Bad Name")).await, Problem::InvalidName(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn only_one_operator_works_on_a_database() {
    let pg = Postgres::shared();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (resume, may_go_on) = std::sync::mpsc::channel();
    let held = Mutex::new(Some((started, may_go_on)));
    // The first call stops between two statements, with the lock in its hands.
    let slow = tokio::spawn(async move {
        let hold = |_: &str| {
            if let Some((started, may_go_on)) = held.lock().unwrap().take() {
                started.send(()).unwrap();
                tokio::task::block_in_place(|| may_go_on.recv().unwrap());
            }
            true
        };
        ensure_while(&pg.server(), &desired("held"), &Secret::new(PASSWORD), hold).await
    });
    has_started.await.unwrap();
    let mut server = pg.server();
    server.timeouts.lock = Duration::from_millis(200);
    let told = ensure(&server, &desired("held"), &Secret::new(PASSWORD)).await.unwrap_err();
    assert!(matches!(&told, Problem::Busy { database } if database == "held__protocollo"), "{told:?}");
    // Another database of the same server is not held up.
    ensure(&server, &desired("not-held"), &Secret::new(PASSWORD)).await.unwrap();
    resume.send(()).unwrap();
    slow.await.unwrap().unwrap();
    assert!(converge(pg, &desired("held")).await.changed.is_empty());
}

#[tokio::test]
async fn rule_11_no_password_is_in_the_servers_log() {
    let pg = Postgres::start();
    let desired = desired("dolo");
    converge(&pg, &desired).await;
    ensure(&pg.server(), &desired, &Secret::new("second-c1ear-text")).await.unwrap();
    converge(&pg, &desired).await;
    let log = pg.log().await.join("\n");
    assert!(log.contains("PASSWORD 'SCRAM-SHA-256$"), "the log shows what is set");
    for secret in ["c1ear-text", "the-administrator"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
