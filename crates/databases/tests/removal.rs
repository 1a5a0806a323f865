//! The end of a database, on a real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "other files need the rest of it")]
mod support;

use std::collections::BTreeSet;

use conme_databases::{Desired, Login, OtherLogin, OwnerTag, Problem, Secret, drop_database_while, ensure};
use support::{Postgres, column};

fn desired(comune: &str) -> Desired {
    Desired {
        comune: comune.to_owned(),
        database: "dati".to_owned(),
        tag: OwnerTag {
            istat: Some("027012".to_owned()),
            uid: format!("uid-of-{comune}"),
            former_uids: Vec::new(),
        },
        extensions: BTreeSet::new(),
        allowed_extensions: BTreeSet::new(),
        connection_limit: None,
        locale: None,
        adopt: false,
        login: Login::First,
        other_login: OtherLogin::Keep,
        generation: None,
        open: true,
        max_bytes: None,
        moved_from: None,
        provisioned: None,
    }
}

async fn left(pg: &Postgres, comune: &str) -> Vec<String> {
    let admin = pg.admin("postgres").await;
    let of = format!("like '{comune}\\_\\_%'");
    let sql = format!(
        "select datname from pg_database where datname {of} union select rolname from pg_roles where rolname {of} order by 1"
    );
    column(&admin, &sql).await
}

#[tokio::test]
async fn a_database_in_use_goes_with_its_roles_and_nothing_else_does() {
    let pg = Postgres::shared();
    let (doomed, other) = (desired("finito"), desired("finitox"));
    let password = Secret::new("app-password");
    let outcome = ensure(&pg.server(), &doomed, &password).await.unwrap();
    ensure(&pg.server(), &other, &password).await.unwrap();
    let session =
        pg.login(&outcome.binding.database, &outcome.binding.username, "app-password").await.unwrap();
    session.batch_execute("create table t (a int)").await.unwrap();

    // Whoever loses the right to act stops before the statement.
    let stopped = drop_database_while(&pg.server(), &doomed, |_| false).await;
    assert!(matches!(stopped, Err(Problem::Stopped { .. })), "{stopped:?}");
    assert_eq!(left(pg, "finito").await.len(), 3);

    let removed = drop_database_while(&pg.server(), &doomed, |_| true).await.unwrap();
    assert_eq!(removed.changed.len(), 3, "{removed:?}");
    assert_eq!(left(pg, "finito").await, Vec::<String>::new());
    assert!(session.batch_execute("select 1").await.is_err(), "its session has ended");
    assert_eq!(left(pg, "finitox").await.len(), 3, "a name that begins alike is another's");
    // Once more is no error and no work.
    let again = drop_database_while(&pg.server(), &doomed, |_| true).await.unwrap();
    assert_eq!(again.changed, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_another_administrations_stays() {
    let pg = Postgres::shared();
    let mine = desired("conteso");
    ensure(&pg.server(), &mine, &Secret::new("app-password")).await.unwrap();
    let tag = OwnerTag { istat: Some("027099".to_owned()), ..mine.tag.clone() };
    let theirs = Desired { tag, adopt: true, ..mine.clone() };
    let refused = drop_database_while(&pg.server(), &theirs, |_| true).await.unwrap_err();
    assert!(matches!(refused, Problem::NotOurs { .. }), "{refused}");
    assert!(refused.to_string().contains("Nothing was dropped"), "{refused}");
    assert_eq!(left(pg, "conteso").await.len(), 3);
}
