//! The plan, as values in and statements out.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::*;
use crate::{Generation, Growth, Login, MissingData, OtherLogin, OwnerTag};

const TAG: &str = r#"{"managed-by":"conme","comune":"dolo","database":"sito","istat":"027012","uid":"u1"}"#;
const DB: &str = "dolo__sito";
const FIRST: &str = "dolo__sito__app";
const SECOND: &str = "dolo__sito__app2";
const APP: &str = "'dolo__sito__app'@'%'";
const SHAPE: &str = "REQUIRE SSL WITH MAX_QUERIES_PER_HOUR 0 MAX_UPDATES_PER_HOUR 0 MAX_CONNECTIONS_PER_HOUR 0 MAX_USER_CONNECTIONS 40 MAX_STATEMENT_TIME 0 ACCOUNT UNLOCK PASSWORD EXPIRE NEVER";

fn desired() -> Desired {
    Desired {
        comune: "dolo".into(),
        database: "sito".into(),
        tag: OwnerTag { istat: Some("027012".into()), uid: "u1".into(), former_uids: Vec::new() },
        extensions: BTreeSet::new(),
        allowed_extensions: BTreeSet::new(),
        connection_limit: Some(40),
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

fn empty_server() -> Observed {
    Observed {
        version: "10.11.19".into(),
        system_identifier: None,
        database: None,
        accounts: BTreeMap::new(),
        database_tag: None,
        account_tags: BTreeMap::new(),
        credential_note: None,
        growth_note: None,
        namesakes: vec![],
        others: vec![],
    }
}

fn as_declared() -> Observed {
    Observed {
        system_identifier: Some("id-1".into()),
        database: Some(SeenDatabase { comment: TAG.into(), size_bytes: 1 }),
        accounts: [(FIRST.to_owned(), seen_account())].into(),
        database_tag: Some(TAG.into()),
        account_tags: [(FIRST.to_owned(), TAG.to_owned())].into(),
        ..empty_server()
    }
}

fn seen_account() -> SeenAccount {
    SeenAccount {
        native_only: true,
        requires_tls: true,
        limit: 40,
        locked: false,
        hindered: false,
        sessions: 0,
        privileges: step::PRIVILEGES.map(str::to_owned).into(),
        excess: vec![],
        proxies: vec![],
    }
}

/// After a rotation.
fn with_second() -> Observed {
    let mut observed = as_declared();
    observed.accounts.insert(SECOND.to_owned(), seen_account());
    observed.account_tags.insert(SECOND.to_owned(), TAG.to_owned());
    observed
}

fn sql(desired: &Desired, observed: &Observed) -> Vec<String> {
    plan(desired, observed).unwrap().iter().flat_map(Step::sql).collect()
}

fn after(change: impl FnOnce(&mut Observed)) -> Vec<String> {
    let mut observed = as_declared();
    change(&mut observed);
    sql(&desired(), &observed)
}

fn account(observed: &mut Observed) -> &mut SeenAccount {
    observed.accounts.get_mut(FIRST).unwrap()
}

fn grant() -> String {
    format!(r"GRANT {} ON `dolo\_\_sito`.* TO {APP}", step::PRIVILEGES.join(", "))
}

#[test]
fn nothing_to_do_when_all_is_as_declared() {
    assert_eq!(sql(&desired(), &as_declared()), Vec::<String>::new());
}

#[test]
fn everything_on_an_empty_server() {
    let all = sql(&desired(), &empty_server());
    assert_eq!(
        all[0],
        "CREATE DATABASE IF NOT EXISTS `conme_registry` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    );
    assert_eq!(all[3], "INSERT IGNORE INTO `conme_registry`.server (one, id) VALUES (1, UUID())");
    let entry = |kind: &str, name: &str| {
        format!(
            "INSERT INTO `conme_registry`.owners (kind, name, tag) VALUES ('{kind}', '{name}', '{TAG}') ON DUPLICATE KEY UPDATE tag = '{TAG}'"
        )
    };
    assert_eq!(
        all[4..],
        [
            format!("CREATE DATABASE `{DB}` CHARACTER SET utf8mb4 COMMENT '{TAG}'"),
            entry("database", DB),
            entry("account", "dolo__sito__app"),
            format!("CREATE USER {APP} IDENTIFIED VIA mysql_native_password USING 'invalid' {SHAPE}"),
            // The last one opens it.
            grant(),
        ]
    );
}

#[test]
fn drift_is_repaired_by_what_is_needed_only() {
    let everything = || vec![format!("REVOKE ALL PRIVILEGES, GRANT OPTION FROM {APP}"), grant()];
    assert_eq!(after(|seen| account(seen).excess.push("SUPER on the server".into())), everything());
    assert_eq!(after(|seen| account(seen).privileges.extend(["EVENT".to_owned()])), everything());
    assert_eq!(after(|seen| account(seen).privileges.retain(|word| word != "SELECT")), [grant()]);
    let shape = [format!("ALTER USER {APP} {SHAPE}")];
    assert_eq!(after(|seen| account(seen).requires_tls = false), shape);
    assert_eq!(after(|seen| account(seen).limit = 0), shape);
    assert_eq!(after(|seen| account(seen).hindered = true), shape);
    assert_eq!(after(|seen| account(seen).locked = true), shape);
    assert_eq!(
        after(|seen| account(seen).native_only = false),
        [format!("ALTER USER {APP} IDENTIFIED VIA mysql_native_password USING 'invalid'")]
    );
    // Without a limit, and never by a number that the server takes for none.
    let unlimited = Desired { connection_limit: None, ..desired() };
    assert!(sql(&unlimited, &as_declared())[0].contains("MAX_USER_CONNECTIONS 0 "));
    let none = Desired { connection_limit: Some(0), ..desired() };
    assert!(sql(&none, &as_declared())[0].contains("MAX_USER_CONNECTIONS 1 "));
}

#[test]
fn rule_12_who_has_no_business_in_the_database_is_put_out() {
    let with = |name: &str, host: &str, managed: bool| Grant {
        account: Account { name: name.into(), host: host.into() },
        pattern: "dolo%".into(),
        grantable: false,
        managed,
    };
    let one = |grant: Grant| after(|seen| seen.others.push(grant));
    assert_eq!(
        one(with("mira__sito__app", "%", true)),
        ["REVOKE ALL PRIVILEGES ON `dolo%`.* FROM 'mira__sito__app'@'%'"]
    );
    assert_eq!(one(with("PUBLIC", "", false)), ["REVOKE ALL PRIVILEGES ON `dolo%`.* FROM PUBLIC"]);
    assert_eq!(
        one(with("", "%", false)),
        ["DELETE FROM mysql.db WHERE User = '' AND Db = 'dolo%' AND Host = '%'", "FLUSH PRIVILEGES"]
    );
    let grantable = Grant { grantable: true, ..with("mira__sito__app", "%", true) };
    assert!(one(grantable)[1].starts_with("REVOKE GRANT OPTION ON `dolo%`.*"));
    assert!(one(with("backup", "10.0.0.1", false)).is_empty(), "an account of the data centre");
    let mut observed = as_declared();
    observed.others = vec![with("backup", "10.0.0.1", false), with("mira__sito__app", "%", true)];
    assert_eq!(plan::other_grantees(&observed), ["backup@10.0.0.1"]);
}

#[test]
fn missing_data_comes_before_everything_else() {
    let want = |id: Option<&str>| Desired {
        provisioned: Some(Provisioned {
            system_identifier: id.map(str::to_owned),
            at: Timestamp::from_second(1_700_000_000).unwrap(),
        }),
        ..desired()
    };
    let missing = |desired: &Desired, observed: &Observed| match plan(desired, observed) {
        Err(Problem::DataMissing { missing, .. }) => missing,
        other => panic!("{other:?}"),
    };
    let mut gone = as_declared();
    gone.database = None;
    assert_eq!(missing(&want(Some("id-1")), &gone), MissingData::Gone);
    assert_eq!(missing(&want(None), &empty_server()), MissingData::Gone);
    let replaced = |observed: &Observed| {
        matches!(missing(&want(Some("id-2")), observed), MissingData::ServerReplaced { .. })
    };
    assert!(replaced(&as_declared()));
    let mut without_registry = as_declared();
    without_registry.system_identifier = None;
    assert!(replaced(&without_registry), "a server that knows nothing of us is another one");
    assert!(plan(&want(Some("id-1")), &as_declared()).unwrap().is_empty());
}

#[test]
fn whose_it_is() {
    let adopting = Desired { adopt: true, ..desired() };
    let not_ours = |desired: &Desired, observed: &Observed| {
        matches!(plan(desired, observed), Err(Problem::NotOurs { .. }))
    };
    let with_tag = |tag: Option<&str>| Observed {
        database: Some(SeenDatabase { comment: String::new(), size_bytes: 0 }),
        database_tag: tag.map(str::to_owned),
        account_tags: tag.map(|tag| (FIRST.to_owned(), tag.to_owned())).into_iter().collect(),
        ..as_declared()
    };
    // Nobody's.
    assert!(not_ours(&desired(), &with_tag(None)));
    assert_eq!(sql(&adopting, &with_tag(None)).len(), 2);
    // Another's.
    for tag in [TAG.replace("dolo", "mira"), TAG.replace("sito", "x"), TAG.replace("027012", "1")] {
        assert!(not_ours(&adopting, &with_tag(Some(&tag))), "{tag}");
    }
    // Created anew: the ISTAT code tells.
    assert_eq!(sql(&desired(), &with_tag(Some(&TAG.replace("u1", "u0")))).len(), 2);
    // The application may have changed the comment; the registry is what counts.
    let mut renamed = as_declared();
    renamed.database = Some(SeenDatabase { comment: TAG.replace("dolo", "mira"), size_bytes: 0 });
    assert!(plan(&desired(), &renamed).unwrap().is_empty());
    // The registry is lost: the comment tells, and vouches for the account.
    let mut lost = as_declared();
    (lost.system_identifier, lost.database_tag) = (None, None);
    lost.account_tags.clear();
    assert_eq!(plan(&desired(), &lost).unwrap().len(), 3);
    // An account alone.
    let mut alone = as_declared();
    (alone.database, alone.database_tag) = (None, None);
    alone.account_tags.clear();
    assert!(not_ours(&desired(), &alone));
    // One for another host would catch the logins.
    let mut caught = as_declared();
    caught.namesakes.push(Account { name: "dolo__sito__app".into(), host: "10.0.0.1".into() });
    assert!(not_ours(&adopting, &caught));
}

fn words(steps: Vec<Step>) -> Vec<String> {
    steps.iter().map(Step::words).collect()
}

#[test]
fn a_rotation_opens_the_other_login_and_closes_it_only_afterwards() {
    let second = Desired { login: Login::Second, other_login: OtherLogin::Close, ..desired() };
    let names = second.names().unwrap();
    assert_eq!(
        words(plan(&second, &as_declared()).unwrap()),
        [
            "mark account dolo__sito__app2 as ours",
            "create account dolo__sito__app2",
            "grant data and tables of database dolo__sito to account dolo__sito__app2"
        ]
    );
    assert!(
        plan(&second, &with_second()).unwrap().is_empty(),
        "the one before is not touched before the proof"
    );
    assert_eq!(
        words(plan::afterwards(&second, &names, &with_second())),
        ["close the login dolo__sito__app", "end the sessions of dolo__sito__app"]
    );
    let patient = Desired { other_login: OtherLogin::CloseWhenUnused, ..second.clone() };
    assert_eq!(plan::afterwards(&patient, &names, &with_second()).len(), 1);
    let mut used = with_second();
    account(&mut used).sessions = 1;
    assert!(plan::afterwards(&patient, &names, &used).is_empty());
    assert!(
        plan::afterwards(&Desired { other_login: OtherLogin::Keep, ..second.clone() }, &names, &used)
            .is_empty()
    );
    // Closed, it stays closed, and is kept as it should be for the next time.
    let mut closed = with_second();
    account(&mut closed).locked = true;
    assert!(
        plan(&second, &closed).unwrap().is_empty() && plan::afterwards(&second, &names, &closed).is_empty()
    );
    account(&mut closed).requires_tls = false;
    let repair = sql(&second, &closed);
    assert!(repair.len() == 1 && !repair[0].contains("UNLOCK"), "{repair:?}");
}

#[test]
fn a_closed_database_lets_nobody_in() {
    let closed = Desired { open: false, ..desired() };
    let names = closed.names().unwrap();
    assert!(sql(&closed, &empty_server()).iter().any(|sql| sql.contains("ACCOUNT LOCK")));
    let mut observed = with_second();
    assert_eq!(
        words(plan(&closed, &observed).unwrap()),
        ["close the login dolo__sito__app", "close the login dolo__sito__app2"]
    );
    for seen in observed.accounts.values_mut() {
        (seen.locked, seen.sessions) = (true, 1);
    }
    assert!(plan(&closed, &observed).unwrap().is_empty());
    assert_eq!(plan::afterwards(&closed, &names, &observed).len(), 2);
}

#[test]
fn growth_is_stopped_for_all_sessions_and_freed_with_some_room() {
    let limited = Desired { max_bytes: Some(1000), ..desired() };
    let at = |size: u64, note: Option<&str>, privileges: &[&str]| {
        let mut observed = as_declared();
        observed.database.as_mut().unwrap().size_bytes = size;
        observed.growth_note = note.map(str::to_owned);
        account(&mut observed).privileges = privileges.iter().map(|word| (*word).to_owned()).collect();
        observed
    };
    let (all, few) = (&step::PRIVILEGES[..], &step::PRIVILEGES_WHEN_STOPPED[..]);
    assert!(plan(&limited, &at(999, None, all)).unwrap().is_empty());
    let stop = words(plan(&limited, &at(1000, None, all)).unwrap());
    assert_eq!(stop.len(), 4, "{stop:?}");
    assert!(stop[1].starts_with("revoke ALTER, ALTER ROUTINE, CREATE,"), "{stop:?}");
    assert_eq!(stop[3], "note on database dolo__sito: growth stopped");
    // Cut off at any place, it is completed: sessions from before could go on writing.
    assert_eq!(words(plan(&limited, &at(1000, Some("stopping"), few)).unwrap()), stop[2..]);
    for size in [950, 1000, 2000] {
        let settled = at(size, Some("stopped"), few);
        assert!(plan(&limited, &settled).unwrap().is_empty());
        assert_eq!(plan::growth(&limited, &settled), Growth::Stopped, "never closed");
    }
    // What is given by hand is taken back, and so are the sessions that had it.
    assert_eq!(plan(&limited, &at(1000, Some("stopped"), all)).unwrap().len(), 2);
    for desired in [&limited, &desired()] {
        let free = words(plan(desired, &at(949, Some("stopped"), few)).unwrap());
        assert_eq!(free.len(), 3, "{free:?}");
        assert!(free[0].starts_with("grant data and tables"), "{free:?}");
        assert_eq!(free[2], "remove the note on the growth of database dolo__sito");
    }
}

#[test]
fn rule_10_who_was_overtaken_does_nothing() {
    let known = |number: u32, handed_out: bool| Desired {
        generation: Some(Generation { number, handed_out }),
        ..desired()
    };
    let mut observed = as_declared();
    assert!(plan(&known(1, true), &observed).unwrap().is_empty(), "the first is not noted");
    assert_eq!(words(plan(&known(2, true), &observed).unwrap()).len(), 1);
    observed.credential_note = Some("2".to_owned());
    assert!(plan(&known(2, true), &observed).unwrap().is_empty());
    assert!(plan(&known(3, false), &observed).unwrap().is_empty());
    for late in [known(1, true), known(2, false)] {
        assert!(matches!(plan(&late, &observed), Err(Problem::Overtaken { found: 2, .. })));
    }
}

#[test]
fn a_server_of_another_name_is_told_from_another_server() {
    let moved = |id: &str| Desired {
        moved_from: Some("maria-old".to_owned()),
        provisioned: Some(Provisioned {
            system_identifier: Some(id.to_owned()),
            at: Timestamp::from_second(1_700_000_000).unwrap(),
        }),
        ..desired()
    };
    assert!(plan(&moved("id-1"), &as_declared()).unwrap().is_empty());
    assert!(matches!(plan(&moved("id-2"), &as_declared()), Err(Problem::Moved { .. })));
    assert!(matches!(plan(&moved("id-1"), &empty_server()), Err(Problem::Moved { .. })));
    let new = Desired { provisioned: None, ..moved("id-2") };
    assert!(plan(&new, &as_declared()).unwrap().is_empty());
}
