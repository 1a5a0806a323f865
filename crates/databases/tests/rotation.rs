//! The stories of a database's credentials and of its size, on a real PostgreSQL server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use conme_databases::{
    Desired, Generation, Growth, Login, OtherLogin, Outcome, OwnerTag, Problem, Secret, ensure, ensure_while,
};
use support::{Postgres, column};
use tokio_postgres::{Client, error::SqlState};

fn desired(comune: &str) -> Desired {
    Desired {
        comune: comune.to_owned(),
        database: "protocollo".to_owned(),
        tag: OwnerTag {
            istat: Some("027012".to_owned()),
            uid: format!("uid-of-{comune}"),
            former_uids: Vec::new(),
        },
        extensions: BTreeSet::new(),
        allowed_extensions: BTreeSet::new(),
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

/// What the applications have been handed.
#[derive(Clone, Debug, PartialEq)]
struct Handed {
    login: Login,
    user: String,
    password: String,
}

impl Handed {
    fn new(desired: &Desired, login: Login, password: &str) -> Self {
        let user = desired.names().unwrap().login(login).to_owned();
        Self { login, user, password: password.to_owned() }
    }

    async fn log_in(&self, pg: &Postgres, desired: &Desired) -> Result<Client, tokio_postgres::Error> {
        pg.login(desired.names().unwrap().database(), &self.user, &self.password).await
    }

    async fn opens(&self, pg: &Postgres, desired: &Desired, when: &str) {
        if let Err(error) = self.log_in(pg, desired).await {
            panic!("{when}: {self:?} does not open the database: {error:?}");
        }
    }

    async fn is_shut_out(&self, pg: &Postgres, desired: &Desired) {
        match self.log_in(pg, desired).await {
            Ok(_) => panic!("{self:?} still opens the database"),
            Err(error) => {
                let codes = [
                    SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                    SqlState::INVALID_PASSWORD,
                    SqlState::INSUFFICIENT_PRIVILEGE,
                ];
                assert!(error.code().is_some_and(|code| codes.contains(code)), "{error:?}");
            }
        }
    }
}

fn with(base: &Desired, login: Login, other_login: OtherLogin) -> Desired {
    Desired { login, other_login, ..base.clone() }
}

async fn converge(pg: &Postgres, desired: &Desired, password: &str) -> Outcome {
    ensure(&pg.server(), desired, &Secret::new(password)).await.unwrap()
}

/// The same, and no more than `statements` of it. Answers whether that was all.
async fn killed_after(pg: &Postgres, desired: &Desired, password: &str, statements: usize) -> bool {
    let done = AtomicUsize::new(0);
    let go_on = |_: &str| done.fetch_add(1, Ordering::Relaxed) < statements;
    match ensure_while(&pg.server(), desired, &Secret::new(password), go_on).await {
        Ok(_) => true,
        Err(Problem::Stopped { .. }) => false,
        Err(problem) => panic!("{problem}"),
    }
}

#[tokio::test]
async fn a_rotation_killed_anywhere_leaves_the_credential_that_is_handed_out_valid() {
    let pg = Postgres::shared();
    let base = desired("ruota");
    converge(pg, &base, "password-0").await;
    let mut handed = Handed::new(&base, Login::First, "password-0");
    // There and back, so that each login is opened, refreshed and closed once.
    for round in 1..=2 {
        let next = handed.login.other();
        let mut begun = 0;
        let after = loop {
            // Each attempt has a password of its own: what was written before the kill is known to nobody.
            let password = format!("password-{round}-{begun}");
            let opened = killed_after(pg, &with(&base, next, OtherLogin::Keep), &password, begun).await;
            handed.opens(pg, &base, &format!("round {round}, killed after {begun} statements")).await;
            if opened {
                break Handed::new(&base, next, &password);
            }
            // The request may be taken back: then the other login ends, and a new attempt begins from there.
            if begun % 2 == 1 {
                converge(pg, &with(&base, handed.login, OtherLogin::Close), &handed.password).await;
                handed.opens(pg, &base, "given up").await;
            }
            begun += 1;
        };
        assert!(begun >= 1, "the rotation was never cut off");
        // Both are valid: applications go over when they like.
        let before = std::mem::replace(&mut handed, after);
        handed.opens(pg, &base, "handed out").await;
        before.opens(pg, &base, "overlap").await;
        let kept = with(&base, handed.login, OtherLogin::Keep);
        assert!(converge(pg, &kept, &handed.password).await.changed.is_empty());
        let mut closing = 0;
        loop {
            let close = with(&base, handed.login, OtherLogin::CloseWhenUnused);
            let closed = killed_after(pg, &close, &handed.password, closing).await;
            handed.opens(pg, &base, &format!("round {round}, closing killed after {closing}")).await;
            if closed {
                break;
            }
            closing += 1;
        }
        before.is_shut_out(pg, &base).await;
        let settled = with(&base, handed.login, OtherLogin::Close);
        let outcome = converge(pg, &settled, &handed.password).await;
        assert!(outcome.changed.is_empty() && !outcome.other_login_open, "{outcome:?}");
    }
    let verifiers = "select rolname from pg_authid where rolname like 'ruota%' and rolpassword is not null";
    assert_eq!(column(&pg.admin("postgres").await, verifiers).await, ["ruota__protocollo__app"]);
}

#[tokio::test]
async fn rule_10_an_operator_that_was_overtaken_does_no_harm() {
    let pg = Postgres::shared();
    let base = desired("sorpasso");
    let as_of = |desired: Desired, number: u32, handed_out: bool| Desired {
        generation: Some(Generation { number, handed_out }),
        ..desired
    };
    let first = as_of(with(&base, Login::First, OtherLogin::Close), 1, true);
    assert_eq!(converge(pg, &first, "one").await.generation, 1);
    // One operator rotates. Until it has handed the credential out, the one of before is in force.
    let begin = as_of(with(&base, Login::Second, OtherLogin::Keep), 2, false);
    converge(pg, &begin, "given-up").await;
    converge(pg, &first, "one").await;
    converge(pg, &begin, "two").await;
    let second = as_of(begin.clone(), 2, true);
    let outcome = converge(pg, &second, "two").await;
    assert_eq!(outcome.changed, ["note on database sorpasso__protocollo: credential 2 has been handed out"]);
    // The other one was paused and goes on with what it knew: to close the login, to rotate by itself.
    let handed = Handed::new(&base, Login::Second, "two");
    for (late, password) in [(&first, "one"), (&begin, "mine")] {
        let told = ensure(&pg.server(), late, &Secret::new(password)).await.unwrap_err();
        assert!(matches!(told, Problem::Overtaken { found: 2, .. }) && !told.needs_a_person(), "{told}");
        handed.opens(pg, &base, "overtaken").await;
    }
    // Nobody knows how many there were: the server tells.
    let outcome = converge(pg, &with(&base, Login::Second, OtherLogin::Keep), "two").await;
    assert_eq!((outcome.generation, outcome.changed.len()), (2, 0));
    assert!(converge(pg, &second, "two").await.changed.is_empty());
}

#[tokio::test]
async fn a_login_that_is_in_use_is_not_closed_unless_it_has_to_be() {
    let pg = Postgres::shared();
    let base = desired("usata");
    converge(pg, &base, "old").await;
    let old = Handed::new(&base, Login::First, "old");
    let session = old.log_in(pg, &base).await.unwrap();
    converge(pg, &with(&base, Login::Second, OtherLogin::Keep), "new").await;
    let patient = with(&base, Login::Second, OtherLogin::CloseWhenUnused);
    let outcome = converge(pg, &patient, "new").await;
    assert!(outcome.other_login_open && outcome.other_sessions == 1 && outcome.changed.is_empty());
    session.batch_execute("select 1").await.unwrap();
    old.opens(pg, &base, "in use").await;
    // No overlap is wanted, as after a leak: it ends, sessions included.
    let outcome = converge(pg, &with(&base, Login::Second, OtherLogin::Close), "new").await;
    assert!(!outcome.other_login_open);
    until("the session has ended", || async { session.batch_execute("select 1").await.is_err() }).await;
    old.is_shut_out(pg, &base).await;
    Handed::new(&base, Login::Second, "new").opens(pg, &base, "after the leak").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn rotations_under_load_fail_no_login() {
    let pg = Postgres::shared();
    let base = desired("carico");
    converge(pg, &base, "load-0").await;
    let first = Handed::new(&base, Login::First, "load-0");
    let maker = first.log_in(pg, &base).await.unwrap();
    maker.batch_execute("create table t (a int)").await.unwrap();
    drop(maker);
    let secret = Arc::new(Mutex::new(first));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let (secret, stop, base) = (secret.clone(), stop.clone(), base.clone());
            tokio::spawn(async move {
                let mut logins = 0;
                while !stop.load(Ordering::Relaxed) {
                    // As an application that reads the mounted Secret before each connection, and is a little slow.
                    let handed = secret.lock().unwrap().clone();
                    tokio::task::yield_now().await;
                    let client = match handed.log_in(pg, &base).await {
                        Ok(client) => client,
                        Err(error) => panic!("login {logins} with {handed:?} failed: {error:?}"),
                    };
                    client.batch_execute("insert into t values (1)").await.unwrap();
                    logins += 1;
                }
                logins
            })
        })
        .collect();
    let mut closed = 0;
    for n in 1..=6 {
        let handed = secret.lock().unwrap().clone();
        let password = format!("load-{n}");
        converge(pg, &with(&base, handed.login.other(), OtherLogin::Keep), &password).await;
        let next = Handed::new(&base, handed.login.other(), &password);
        *secret.lock().unwrap() = next.clone();
        // Clients that had read it before are done once each of them has been seen to go round: their sessions end.
        let patient = with(&base, next.login, OtherLogin::CloseWhenUnused);
        let overlap = Instant::now() + Duration::from_millis(500);
        until("the one before is not used any more", || async {
            Instant::now() > overlap && !converge(pg, &patient, &password).await.other_login_open
        })
        .await;
        closed += 1;
        handed.is_shut_out(pg, &base).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut logins = 0;
    for client in clients {
        logins += client.await.expect("no login failed");
    }
    assert!(closed == 6 && logins > 100, "{closed} rotations and only {logins} logins");
    let handed = secret.lock().unwrap().clone();
    let client = handed.log_in(pg, &base).await.unwrap();
    assert_eq!(column(&client, "select count(*) from t").await, [logins.to_string()]);
}

#[tokio::test]
async fn whatever_a_login_makes_belongs_to_the_application() {
    let pg = Postgres::shared();
    let base = desired("eredi");
    converge(pg, &base, "a").await;
    let first = Handed::new(&base, Login::First, "a").log_in(pg, &base).await.unwrap();
    first.batch_execute("create table uno (a int); insert into uno values (1)").await.unwrap();
    converge(pg, &with(&base, Login::Second, OtherLogin::Keep), "b").await;
    let second = Handed::new(&base, Login::Second, "b").log_in(pg, &base).await.unwrap();
    second.batch_execute("alter table uno add b int; create table due (a int)").await.unwrap();
    // As connection pools do between two users of a connection.
    second.batch_execute("discard all").await.unwrap();
    second.batch_execute("create table tre (a int)").await.unwrap();
    let owners = "select distinct tableowner from pg_tables where schemaname = 'public'";
    assert_eq!(column(&second, owners).await, ["eredi__protocollo__app"]);
    // Whoever insists makes something of the login's own; the next look puts it right.
    second.batch_execute("set role none; create table quattro (a int)").await.unwrap();
    assert_eq!(column(&second, owners).await.len(), 2);
    let outcome = converge(pg, &with(&base, Login::Second, OtherLogin::Keep), "b").await;
    assert_eq!(outcome.changed, ["give what eredi__protocollo__app2 owns to eredi__protocollo__app"]);
    first.batch_execute("drop table quattro; alter table due add b int").await.unwrap();
    for table in ["uno", "due", "tre"] {
        first.batch_execute(&format!("insert into {table} values (2)")).await.unwrap();
    }
    // A login is no way up: neither can become the owner of the database, or the other one's password.
    for sql in ["set role eredi__protocollo__owner", "alter role eredi__protocollo__app2 password 'x'"] {
        let error = first.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}");
    }
}

#[tokio::test]
async fn drift_of_the_second_login_is_repaired() {
    let pg = Postgres::shared();
    let base = with(&desired("deriva"), Login::Second, OtherLogin::Close);
    converge(pg, &base, "x").await;
    converge(pg, &desired("deriva-altra"), "y").await;
    let (app, second) = ("deriva__protocollo__app", "deriva__protocollo__app2");
    let other = "deriva_altra__protocollo__app";
    let admin = pg.admin("postgres").await;
    for sql in [
        format!("alter role {second} nologin"),
        format!("alter role {second} password 'by hand'"),
        format!("alter role {second} superuser createrole"),
        format!("alter role {second} reset role"),
        format!("alter role {second} set role = none"),
        format!("alter role {second} in database deriva__protocollo set role = none"),
        format!("revoke {app} from {second}"),
        format!("grant {app} to {second} with admin option"),
        format!("grant {second} to {other}"),
        format!("grant {other} to {second}"),
        format!("grant connect on database deriva__protocollo to {second}"),
        format!("comment on role {second} is null"),
        // The one that has ended is opened by hand.
        format!("alter role {app} login password 'by hand'"),
    ] {
        admin.batch_execute(&sql).await.expect(&sql);
        let outcome = converge(pg, &base, "x").await;
        assert!(!outcome.changed.is_empty(), "not seen: {sql}");
        let outcome = converge(pg, &base, "x").await;
        assert!(outcome.changed.is_empty() && !outcome.other_login_open, "after {sql}: {outcome:?}");
        let session = Handed::new(&base, Login::Second, "x").log_in(pg, &base).await.expect(&sql);
        assert_eq!(column(&session, "select current_user").await, [app], "{sql}");
    }
}

#[tokio::test]
async fn a_closed_database_lets_no_application_in() {
    let pg = Postgres::shared();
    let base = desired("chiusa");
    converge(pg, &base, "x").await;
    let handed = Handed::new(&base, Login::First, "x");
    let session = handed.log_in(pg, &base).await.unwrap();
    let shut = Desired { open: false, ..base.clone() };
    let outcome = converge(pg, &shut, "x").await;
    assert!(!outcome.login_proved);
    until("the session has ended", || async { session.batch_execute("select 1").await.is_err() }).await;
    handed.is_shut_out(pg, &base).await;
    let acl = "select datacl::text from pg_database where datname = 'chiusa__protocollo'";
    assert!(!column(&pg.admin("postgres").await, acl).await[0].contains("__app=c"), "CONNECT is gone, too");
    assert!(converge(pg, &shut, "x").await.changed.is_empty());
    // Opened again, with the same credential.
    converge(pg, &base, "x").await;
    handed.opens(pg, &base, "opened").await;
    assert!(converge(pg, &base, "x").await.changed.is_empty());
    // And one that is closed from the start.
    let new = Desired { open: false, ..desired("chiusa-nuova") };
    converge(pg, &new, "x").await;
    Handed::new(&new, Login::First, "x").is_shut_out(pg, &new).await;
    assert!(converge(pg, &new, "x").await.changed.is_empty());
}

async fn refused(client: &Client, sql: &str, code: &SqlState) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    assert_eq!(error.code(), Some(code), "{sql}: {error:?}");
}

const READ_ONLY: &SqlState = &SqlState::READ_ONLY_SQL_TRANSACTION;

#[tokio::test]
async fn a_database_at_its_size_stops_growing_and_its_people_can_clear_up() {
    let pg = Postgres::start();
    let free = desired("piena");
    let size = converge(&pg, &free, "x").await.size_bytes;
    let limited = Desired { max_bytes: Some(size + (12 << 20)), ..free.clone() };
    let outcome = converge(&pg, &limited, "x").await;
    assert!(outcome.growth == Growth::Free && outcome.changed.is_empty());
    let handed = Handed::new(&free, Login::First, "x");
    let before = handed.log_in(&pg, &free).await.unwrap();
    let fill = |kib: u32| {
        format!("insert into t select g, repeat(md5(g::text), 30) from generate_series(1, {kib}) g")
    };
    before.batch_execute("create table t (a int, b text)").await.unwrap();
    before.batch_execute(&fill(13 << 10)).await.unwrap();

    // Killed anywhere, the next look goes on.
    let mut statements = 0;
    while !killed_after(&pg, &limited, "x", statements).await {
        statements += 1;
    }
    assert!(statements >= 1, "stopping takes more than one statement");
    let outcome = converge(&pg, &limited, "x").await;
    assert_eq!((outcome.growth, outcome.changed.len()), (Growth::Stopped, 0), "{outcome:?}");
    until("the sessions of before have ended", || async { before.batch_execute("select 1").await.is_err() })
        .await;

    // An application reads on and is told why it cannot write.
    let after = handed.log_in(&pg, &free).await.unwrap();
    assert_eq!(column(&after, "select count(*) from t").await, ["13312"]);
    refused(&after, &fill(1), READ_ONLY).await;
    refused(&after, "update t set a = 1", READ_ONLY).await;
    // Whoever means it can clear up, and make nothing new. A default of its own does not last.
    after.batch_execute("set default_transaction_read_only = off").await.unwrap();
    refused(&after, "create table other (a int)", &SqlState::INSUFFICIENT_PRIVILEGE).await;
    refused(&after, "create temp table other (a int)", &SqlState::INSUFFICIENT_PRIVILEGE).await;
    after.batch_execute("alter role current_user set default_transaction_read_only = off").await.unwrap();
    assert!(!converge(&pg, &limited, "x").await.changed.is_empty());
    let people = handed.log_in(&pg, &free).await.unwrap();
    refused(&people, &fill(1), READ_ONLY).await;
    people.batch_execute("set default_transaction_read_only = off").await.unwrap();
    people.batch_execute("delete from t where a > 100").await.unwrap();
    people.batch_execute("vacuum full t").await.unwrap();

    // Room again: it goes on by itself, for everybody.
    let mut statements = 0;
    while !killed_after(&pg, &limited, "x", statements).await {
        statements += 1;
    }
    let outcome = converge(&pg, &limited, "x").await;
    assert_eq!((outcome.growth, outcome.changed.len()), (Growth::Free, 0), "{outcome:?}");
    let client = handed.log_in(&pg, &free).await.unwrap();
    client.batch_execute(&fill(1)).await.unwrap();
    client.batch_execute("create table other (a int); create temp table x (a int)").await.unwrap();
    let settings = "select count(*) from pg_db_role_setting";
    assert_eq!(column(&pg.admin("postgres").await, settings).await, ["0"]);
}

#[tokio::test]
async fn a_hostile_tenant_cannot_make_a_full_database_grow_for_long() {
    let pg = Postgres::start();
    let free = desired("ostile");
    let size = converge(&pg, &free, "x").await.size_bytes;
    let max = size + (4 << 20);
    let limited = Desired { max_bytes: Some(max), ..free.clone() };
    let handed = Handed::new(&free, Login::First, "x");
    let tenant = handed.log_in(&pg, &free).await.unwrap();
    tenant.batch_execute("create table t (b text)").await.unwrap();
    let grow = "insert into t select repeat(md5(g::text), 30) from generate_series(1, 1024) g;
        select lo_from_bytea(0, decode(repeat('00', 100000), 'hex'));";
    // As often as it likes, while the operator looks again and again. It knows every trick of its own rights.
    let mut looks = 0;
    let mut last = 0;
    let outcome = loop {
        let tenant = handed.log_in(&pg, &free).await;
        for sql in [
            "set default_transaction_read_only = off",
            "alter role current_user set default_transaction_read_only = off",
            "grant all on t to current_user",
            grow,
        ] {
            if let Ok(tenant) = &tenant {
                let _ = tenant.batch_execute(sql).await;
            }
        }
        let outcome = converge(&pg, &limited, "x").await;
        looks += 1;
        assert!(looks < 60, "it still grows: {outcome:?}");
        if tenant.is_err() && outcome.size_bytes == last {
            break outcome;
        }
        last = outcome.size_bytes;
    };
    assert_eq!(outcome.growth, Growth::Closed);
    assert!(outcome.size_bytes < max * 13 / 10, "{} of {max}", outcome.size_bytes);
    handed.is_shut_out(&pg, &free).await;
    assert!(converge(&pg, &limited, "x").await.changed.is_empty());
    // Only a person helps: by a larger size, with some room in it.
    let larger = |percent: u64| Desired { max_bytes: Some(last * percent / 100), ..free.clone() };
    assert_eq!(converge(&pg, &larger(102), "x").await.growth, Growth::Stopped);
    handed.opens(&pg, &free, "a little larger").await;
    assert_eq!(converge(&pg, &larger(150), "x").await.growth, Growth::Free);
    let tenant = handed.log_in(&pg, &free).await.unwrap();
    tenant.batch_execute("insert into t values ('x'); create table u (a int)").await.unwrap();
    assert!(converge(&pg, &larger(150), "x").await.changed.is_empty());
}

/// Waits until something holds.
async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(30) {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not in time: {what}");
}
