//! The plan, as values in and statements out.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::*;
use crate::{Login, MissingData, OtherLogin, OwnerTag};

const TAG: &str =
    r#"{"managed-by":"conme","comune":"dolo","database":"protocollo","istat":"027012","uid":"u1"}"#;
const DB: &str = "dolo__protocollo";
const OWNER: &str = "dolo__protocollo__owner";
const APP: &str = "dolo__protocollo__app";

pub(super) fn desired() -> Desired {
    Desired {
        comune: "dolo".into(),
        database: "protocollo".into(),
        tag: OwnerTag { istat: Some("027012".into()), uid: "u1".into(), former_uids: Vec::new() },
        extensions: BTreeSet::from(["pg_trgm".into()]),
        allowed_extensions: BTreeSet::from(["pg_trgm".into(), "cube".into(), "earthdistance".into()]),
        connection_limit: Some(40),
        locale: Some("C.UTF-8".into()),
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

fn available(schema: Option<&str>, requires: &[&str]) -> Available {
    Available {
        schema: schema.map(str::to_owned),
        requires: requires.iter().map(|name| (*name).to_owned()).collect(),
    }
}

pub(super) fn empty_server() -> Observed {
    Observed {
        version: "15.18".into(),
        version_number: 150_018,
        system_identifier: Some("7".into()),
        roles: BTreeMap::new(),
        database: None,
        available: BTreeMap::from([
            ("pg_trgm".into(), available(None, &[])),
            ("cube".into(), available(None, &[])),
            ("earthdistance".into(), available(None, &["cube"])),
        ]),
    }
}

fn role(login: bool) -> SeenRole {
    SeenRole {
        comment: Some(TAG.into()),
        login,
        superuser: false,
        create_database: false,
        create_role: false,
        replication: false,
        bypass_rls: false,
        connection_limit: -1,
        expires: false,
        member_of: vec![],
        members: vec![],
        settings: vec![],
        settings_here: vec![],
        sessions: 0,
    }
}

fn grant(grantee: Option<&str>, privilege: &str) -> Grant {
    let ours = grantee.is_some_and(|grantee| grantee.ends_with("__app"));
    Grant {
        grantee: grantee.map(str::to_owned),
        grantee_comment: ours.then(|| TAG.to_owned()),
        privilege: privilege.into(),
        grantable: false,
    }
}

pub(super) fn as_declared() -> Observed {
    let public = SeenSchema {
        owner: OWNER.into(),
        grants: vec![grant(Some(OWNER), "CREATE"), grant(Some(APP), "USAGE"), grant(Some(APP), "CREATE")],
    };
    let extensions = BTreeMap::from([("plpgsql".into(), vec![]), ("pg_trgm".into(), vec![])]);
    Observed {
        roles: BTreeMap::from([(OWNER.into(), role(false)), (APP.into(), role(true))]),
        database: Some(SeenDatabase {
            owner: OWNER.into(),
            comment: Some(TAG.into()),
            connection_limit: 40,
            allows_connections: true,
            template: false,
            size_bytes: 1,
            grants: vec![
                grant(Some(OWNER), "CREATE"),
                grant(Some(APP), "CONNECT"),
                grant(Some(APP), "TEMPORARY"),
            ],
            settings: vec![],
            rewriting: false,
            inside: Some(Inside { extensions, public: Some(public), strays: false }),
        }),
        ..empty_server()
    }
}

fn sql(desired: &Desired, observed: &Observed) -> Vec<String> {
    plan(desired, observed).unwrap().iter().map(Step::sql).collect()
}

fn after(change: impl FnOnce(&mut Observed)) -> Vec<String> {
    let mut observed = as_declared();
    change(&mut observed);
    sql(&desired(), &observed)
}

pub(super) fn database(observed: &mut Observed) -> &mut SeenDatabase {
    observed.database.as_mut().unwrap()
}

#[test]
fn nothing_to_do_when_all_is_as_declared() {
    assert_eq!(sql(&desired(), &as_declared()), Vec::<String>::new());
}

#[test]
fn everything_on_an_empty_server() {
    assert_eq!(
        sql(&desired(), &empty_server()),
        [
            format!(r#"CREATE ROLE "{OWNER}" NOLOGIN; COMMENT ON ROLE "{OWNER}" IS '{TAG}'"#),
            format!(r#"CREATE ROLE "{APP}" LOGIN; COMMENT ON ROLE "{APP}" IS '{TAG}'"#),
            format!(
                r#"CREATE DATABASE "{DB}" OWNER "{OWNER}" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8' CONNECTION LIMIT 0"#
            ),
            format!(r#"COMMENT ON DATABASE "{DB}" IS '{TAG}'"#),
            format!(r#"REVOKE ALL ON DATABASE "{DB}" FROM PUBLIC CASCADE"#),
            format!(r#"GRANT CONNECT, TEMPORARY ON DATABASE "{DB}" TO "{APP}""#),
            format!(r#"ALTER SCHEMA "public" OWNER TO "{OWNER}""#),
            r#"REVOKE ALL ON SCHEMA "public" FROM PUBLIC CASCADE"#.to_owned(),
            r#"CREATE EXTENSION IF NOT EXISTS "pg_trgm" SCHEMA "public""#.to_owned(),
            format!(r#"GRANT USAGE, CREATE ON SCHEMA "public" TO "{APP}""#),
            format!(r#"ALTER DATABASE "{DB}" CONNECTION LIMIT 40"#),
        ]
    );
    let plain = Desired { locale: None, connection_limit: None, ..desired() };
    let sql = sql(&plain, &empty_server());
    assert!(sql[2].ends_with("ENCODING 'UTF8' CONNECTION LIMIT 0"), "{}", sql[2]);
    assert!(sql.last().unwrap().ends_with("CONNECTION LIMIT -1"));
}

#[test]
fn drift_is_repaired_by_what_is_needed_only() {
    let one = |sql: &str| vec![sql.to_owned()];
    assert_eq!(
        after(|seen| {
            let app = seen.roles.get_mut(APP).unwrap();
            app.superuser = true;
            app.bypass_rls = true;
            app.expires = true;
        }),
        one(&format!(r#"ALTER ROLE "{APP}" NOSUPERUSER NOBYPASSRLS VALID UNTIL 'infinity'"#))
    );
    assert_eq!(
        after(|seen| seen.roles.get_mut(OWNER).unwrap().login = true),
        one(&format!(r#"ALTER ROLE "{OWNER}" NOLOGIN"#))
    );
    assert_eq!(
        after(|seen| database(seen).grants.push(grant(None, "CONNECT"))),
        one(&format!(r#"REVOKE ALL ON DATABASE "{DB}" FROM PUBLIC CASCADE"#))
    );
    assert_eq!(
        after(|seen| database(seen).grants.push(grant(Some(APP), "CREATE"))),
        one(&format!(r#"REVOKE CREATE ON DATABASE "{DB}" FROM "{APP}" CASCADE"#))
    );
    assert_eq!(
        after(|seen| database(seen).grants.push(grant(Some("mira__x__app"), "CONNECT"))),
        one(&format!(r#"REVOKE ALL ON DATABASE "{DB}" FROM "mira__x__app" CASCADE"#))
    );
    // A role of the data centre itself may connect, but not create.
    assert!(after(|seen| database(seen).grants.push(grant(Some("backup"), "CONNECT"))).is_empty());
    assert_eq!(
        after(|seen| database(seen).grants.push(grant(Some("backup"), "CREATE"))),
        one(&format!(r#"REVOKE CREATE ON DATABASE "{DB}" FROM "backup" CASCADE"#))
    );
    assert_eq!(
        after(|seen| database(seen).owner = "mira__x__app".into())[0],
        format!(r#"ALTER DATABASE "{DB}" OWNER TO "{OWNER}""#)
    );
}

#[test]
fn memberships_name_their_grantor_where_the_server_asks_for_it() {
    let membership =
        || vec![Membership { role: "pg_read_all_data".into(), grantor: "postgres".into(), plain: true }];
    let old = after(|seen| seen.roles.get_mut(APP).unwrap().member_of = membership());
    assert_eq!(old, [format!(r#"REVOKE "pg_read_all_data" FROM "{APP}" CASCADE"#)]);
    let new = after(|seen| {
        seen.version_number = 160_000;
        seen.roles.get_mut(APP).unwrap().members = membership();
    });
    assert_eq!(new, [format!(r#"REVOKE "{APP}" FROM "pg_read_all_data" GRANTED BY "postgres" CASCADE"#)]);
}

#[test]
fn missing_data_comes_before_everything_else() {
    let provisioned = |id: Option<&str>| {
        Some(Provisioned {
            system_identifier: id.map(str::to_owned),
            at: Timestamp::from_second(1_700_000_000).unwrap(),
        })
    };
    let want = |id| Desired {
        provisioned: provisioned(id),
        extensions: BTreeSet::from(["forbidden".into()]),
        ..desired()
    };
    let missing = |desired: &Desired, observed: &Observed| match plan(desired, observed) {
        Err(Problem::DataMissing { missing, .. }) => missing,
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(&want(Some("7")), &empty_server()), MissingData::Gone);
    assert_eq!(missing(&want(None), &empty_server()), MissingData::Gone);
    assert!(matches!(
        missing(&want(Some("8")), &as_declared()),
        MissingData::ServerReplaced { database_present: true, .. }
    ));
    let mut half_dropped = as_declared();
    database(&mut half_dropped).connection_limit = -2;
    assert_eq!(missing(&desired(), &half_dropped), MissingData::HalfDropped);
    // A server that does not tell its identity is judged by the database alone.
    let mut silent = as_declared();
    silent.system_identifier = None;
    assert!(plan(&Desired { provisioned: provisioned(Some("8")), ..desired() }, &silent).unwrap().is_empty());
}

#[test]
fn whose_it_is() {
    let with_tag = |comment: Option<&str>| {
        let mut observed = as_declared();
        database(&mut observed).comment = comment.map(str::to_owned);
        for role in observed.roles.values_mut() {
            role.comment = comment.map(str::to_owned);
        }
        observed
    };
    let adopting = Desired { adopt: true, ..desired() };
    let tag = |text: &str| TAG.replace(text, "");
    let not_ours = |desired: &Desired, comment: Option<&str>| {
        matches!(plan(desired, &with_tag(comment)), Err(Problem::NotOurs { .. }))
    };
    // Nobody's, also a comment that only looks like ours.
    for comment in [None, Some("hand made"), Some("{}"), Some(&*TAG.replace("conme", "other"))] {
        assert!(not_ours(&desired(), comment), "{comment:?}");
        assert_eq!(sql(&adopting, &with_tag(comment)).len(), 3, "{comment:?}");
    }
    // Another's.
    for comment in [TAG.replace("dolo", "mira"), TAG.replace("protocollo", "x"), TAG.replace("027012", "1")] {
        assert!(not_ours(&adopting, Some(&comment)), "{comment}");
    }
    // Created anew: the ISTAT code tells; without one a person does.
    assert_eq!(sql(&desired(), &with_tag(Some(&TAG.replace("u1", "u0")))).len(), 3);
    let unione =
        Desired { tag: OwnerTag { istat: None, uid: "u2".into(), former_uids: Vec::new() }, ..desired() };
    assert!(not_ours(&unione, Some(&tag(r#","istat":"027012""#))));
    let unione = Desired { adopt: true, ..unione };
    assert_eq!(sql(&unione, &with_tag(Some(&tag(r#","istat":"027012""#)))).len(), 3);
    assert!(not_ours(&unione, Some(TAG)));
    // Or the uid that the same administration had before.
    let former = |uid: &str| OwnerTag { istat: None, uid: "u2".into(), former_uids: vec![uid.into()] };
    let comment = tag(r#","istat":"027012""#);
    let unione = Desired { tag: former("u1"), ..desired() };
    assert_eq!(sql(&unione, &with_tag(Some(&comment))).len(), 3);
    assert!(not_ours(&Desired { tag: former("u9"), ..desired() }, Some(&comment)));

    // Made by us in a run that ended before the comment: told by the owner that is ours.
    let mut cut_off = as_declared();
    database(&mut cut_off).comment = None;
    assert_eq!(sql(&desired(), &cut_off), [format!(r#"COMMENT ON DATABASE "{DB}" IS '{TAG}'"#)]);
    database(&mut cut_off).owner = "postgres".into();
    assert!(matches!(plan(&desired(), &cut_off), Err(Problem::NotOurs { .. })));
}

#[test]
fn extensions_in_order_and_within_the_list() {
    let want = |names: &[&str]| Desired {
        extensions: names.iter().map(|name| (*name).to_owned()).collect(),
        ..desired()
    };
    let installs: Vec<String> =
        plan(&want(&["earthdistance"]), &as_declared()).unwrap().iter().map(Step::words).collect();
    assert_eq!(installs, ["install extension cube", "install extension earthdistance"]);
    let narrow =
        Desired { allowed_extensions: BTreeSet::from(["earthdistance".into()]), ..want(&["earthdistance"]) };
    let told = plan(&narrow, &as_declared()).unwrap_err().to_string();
    assert!(told.contains("\"cube\", needed by \"earthdistance\", is not allowed"), "{told}");
    let mut without_files = as_declared();
    without_files.available.clear();
    assert!(matches!(
        plan(&want(&["cube"]), &without_files),
        Err(Problem::ExtensionUnavailable { extension }) if extension == "cube"
    ));
    assert!(plan(&want(&["plpgsql", "pg_trgm"]), &without_files).unwrap().is_empty());
    let mut fixed = as_declared();
    fixed.available.insert("cube".into(), available(Some("pg_catalog"), &[]));
    assert_eq!(sql(&want(&["cube"]), &fixed), [r#"CREATE EXTENSION IF NOT EXISTS "cube""#]);
    assert_eq!(plan::undeclared_extensions(&want(&[]), &as_declared()), ["pg_trgm"]);
}
