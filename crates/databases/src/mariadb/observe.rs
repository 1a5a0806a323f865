//! Reads the state of one database and of the server around it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Account, Kind, REGISTRY, Session, step::pattern};
use crate::{Login, Names, Problem};

/// What was seen on a server about one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The server's version, for example `10.11.19`.
    pub version: String,
    /// The id of the server in its registry; absent where there is none.
    pub system_identifier: Option<String>,
    /// The database, if it exists.
    pub database: Option<SeenDatabase>,
    /// The accounts of the application that exist, by name.
    pub accounts: BTreeMap<String, SeenAccount>,
    /// Whose the database is, by the registry.
    pub database_tag: Option<String>,
    /// Whose the accounts are, by name, by the registry.
    pub account_tags: BTreeMap<String, String>,
    /// The note on the credential that was handed out.
    pub credential_note: Option<String>,
    /// The note on the growth of the database.
    pub growth_note: Option<String>,
    /// Accounts and roles of the same name for other hosts.
    pub namesakes: Vec<Account>,
    /// What others may do in the database.
    pub others: Vec<Grant>,
}

/// A database as seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDatabase {
    /// Its comment; empty when there is none.
    pub comment: String,
    /// Tables and indexes, in bytes.
    pub size_bytes: u64,
}

/// An account as seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenAccount {
    /// It logs in by a password of `mysql_native_password` that has not expired, and by nothing else.
    pub native_only: bool,
    /// `REQUIRE SSL`, and nothing more than that.
    pub requires_tls: bool,
    /// Connections at a time; 0 is no limit.
    pub limit: u32,
    /// `ACCOUNT LOCK`
    pub locked: bool,
    /// An end date of the password, or another limit.
    pub hindered: bool,
    /// Its sessions.
    pub sessions: u32,
    /// What it may do in the database, by the pattern that only this database matches.
    pub privileges: BTreeSet<String>,
    /// What it may do besides that, in words: elsewhere, for the whole server, as a member of roles, pass on.
    pub excess: Vec<String>,
    /// Accounts that it may become.
    pub proxies: Vec<Account>,
}

/// What somebody may do in databases whose names match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub account: Account,
    /// The pattern, as the server keeps it.
    pub pattern: String,
    /// It may be passed on.
    pub grantable: bool,
    /// The account is one of this system.
    pub managed: bool,
}

/// The part of `mysql.global_priv` that says how an account logs in, without its verifiers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shape {
    plugin: String,
    alternatives: Option<u32>,
    password_last_changed: Option<i64>,
    password_lifetime: Option<i64>,
    account_locked: bool,
    ssl_type: u32,
    max_user_connections: i64,
    max_questions: u64,
    max_updates: u64,
    max_connections: u64,
    max_statement_time: f64,
}

const TABLES: &str = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME IN ('server', 'owners')";
const DATABASE: &str = "SELECT SCHEMA_COMMENT FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?";
const SIZE: &str = "SELECT CAST(COALESCE(SUM(DATA_LENGTH + INDEX_LENGTH), 0) AS UNSIGNED) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ?";
const ACCOUNTS: &str = "
SELECT Host, JSON_REMOVE(JSON_SET(Priv, '$.alternatives', JSON_LENGTH(Priv, '$.auth_or')),
  '$.authentication_string', '$.auth_or')
FROM mysql.global_priv WHERE User = ?";
const PRIVILEGES: &str = "
SELECT TABLE_SCHEMA, PRIVILEGE_TYPE, IS_GRANTABLE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = ?";
const EXCESS: &str = "
SELECT CONCAT(PRIVILEGE_TYPE, ' on the server') FROM information_schema.USER_PRIVILEGES
  WHERE GRANTEE = ? AND (PRIVILEGE_TYPE <> 'USAGE' OR IS_GRANTABLE = 'YES')
UNION SELECT CONCAT(PRIVILEGE_TYPE, ' on table ', TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.TABLE_PRIVILEGES
  WHERE GRANTEE = ? AND (TABLE_SCHEMA <> ? OR IS_GRANTABLE = 'YES')
UNION SELECT CONCAT(PRIVILEGE_TYPE, ' on column ', TABLE_SCHEMA, '.', TABLE_NAME, '.', COLUMN_NAME)
  FROM information_schema.COLUMN_PRIVILEGES WHERE GRANTEE = ? AND (TABLE_SCHEMA <> ? OR IS_GRANTABLE = 'YES')
UNION SELECT CONCAT(Proc_priv, ' on routine ', Db, '.', Routine_name) FROM mysql.procs_priv
  WHERE User = ? AND Host = '%' AND (Db <> ? OR FIND_IN_SET('Grant', Proc_priv))
UNION SELECT CONCAT('member of ', Role) FROM mysql.roles_mapping WHERE User = ? AND Host = '%'";
const PROXIES: &str =
    "SELECT Proxied_user, Proxied_host FROM mysql.proxies_priv WHERE User = ? AND Host = '%'";
const SESSIONS: &str = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = ?";
const GRANTS: &str = "SELECT User, Host, Db, Grant_priv FROM mysql.db";

/// Looks at everything about one database.
///
/// # Errors
/// As any statement on the server; [`Problem::UnknownAnswer`] when it is not MariaDB.
pub async fn observe(admin: &mut Session, names: &Names) -> Result<Observed, Problem> {
    let database = names.database();
    let version = version(admin).await?;
    let registry = Registry::read(admin).await?;
    let seen: Option<(String,)> = admin.rows(DATABASE, vec![database]).await?.into_iter().next();
    let seen_database = match seen {
        None => None,
        Some((comment,)) => {
            let size: Vec<(u64,)> = admin.rows(SIZE, vec![database]).await?;
            Some(SeenDatabase { comment, size_bytes: size.first().map_or(0, |(size,)| *size) })
        }
    };
    let logins = [Login::First, Login::Second].map(|login| names.login(login));
    let own = logins.map(Account::any_host);
    let mut accounts = BTreeMap::new();
    let mut account_tags = BTreeMap::new();
    let mut namesakes = Vec::new();
    for own in &own {
        let name = own.name.clone();
        for (host, shape) in admin.rows::<(String, String)>(ACCOUNTS, vec![&name]).await? {
            if host == own.host {
                let shape = serde_json::from_str(&shape).map_err(|error| {
                    admin.unknown_answer(format!("an account that is not understood: {error}"))
                })?;
                accounts.insert(name.clone(), see_account(admin, names, &name, &shape).await?);
            } else {
                namesakes.push(Account { name: name.clone(), host });
            }
        }
        if let Some(tag) = registry.tag(Kind::Account, &name) {
            account_tags.insert(name, tag);
        }
    }
    let others = admin
        .rows::<(String, String, String, String)>(GRANTS, Vec::new())
        .await?
        .into_iter()
        .map(|(name, host, pattern, grantable)| Grant {
            managed: registry.tag(Kind::Account, &name).is_some(),
            account: Account { name, host },
            pattern,
            grantable: grantable == "Y",
        })
        .filter(|grant| !own.contains(&grant.account) && matches(&grant.pattern, database))
        .collect();
    Ok(Observed {
        version,
        system_identifier: registry.id.clone(),
        database: seen_database,
        accounts,
        database_tag: registry.tag(Kind::Database, database),
        account_tags,
        credential_note: registry.tag(Kind::Credential, database),
        growth_note: registry.tag(Kind::Growth, database),
        namesakes,
        others,
    })
}

async fn see_account(
    admin: &mut Session,
    names: &Names,
    app: &str,
    shape: &Shape,
) -> Result<SeenAccount, Problem> {
    let database = names.database();
    // As the server writes it; a name of ours has no character that it would escape.
    let grantee = format!("'{app}'@'%'");
    let grantee = grantee.as_str();
    let own_pattern = pattern(database);
    let mut privileges = BTreeSet::new();
    let mut excess = Vec::new();
    for (on, privilege, grantable) in
        admin.rows::<(String, String, String)>(PRIVILEGES, vec![grantee]).await?
    {
        if on != own_pattern {
            excess.push(format!("{privilege} on databases like {on}"));
        } else if grantable == "YES" {
            excess.push(format!("{privilege} on database {database} with GRANT OPTION"));
        } else {
            privileges.insert(privilege);
        }
    }
    let params = vec![grantee, grantee, database, grantee, database, app, database, app];
    excess.extend(admin.rows::<(String,)>(EXCESS, params).await?.into_iter().map(|(words,)| words));
    let proxies = admin.rows::<(String, String)>(PROXIES, vec![app]).await?;
    let sessions: Vec<(u32,)> = admin.rows(SESSIONS, vec![app]).await?;
    let other_limit = shape.max_questions > 0
        || shape.max_updates > 0
        || shape.max_connections > 0
        || shape.max_statement_time > 0.0;
    Ok(SeenAccount {
        native_only: shape.plugin == "mysql_native_password"
            && shape.alternatives.is_none_or(|count| count <= 1)
            && shape.password_last_changed != Some(0),
        requires_tls: shape.ssl_type == 1,
        // Below 0 stands for "no connection at all".
        limit: u32::try_from(shape.max_user_connections).unwrap_or(u32::MAX),
        locked: shape.account_locked,
        hindered: shape.password_lifetime != Some(0) || other_limit,
        sessions: sessions.first().map_or(0, |(count,)| *count),
        privileges,
        excess,
        proxies: proxies.into_iter().map(|(name, host)| Account { name, host }).collect(),
    })
}

async fn version(admin: &mut Session) -> Result<String, Problem> {
    let version: Vec<(String,)> = admin.rows("SELECT @@version", Vec::new()).await?;
    let version = version.into_iter().next().map(|(version,)| version).unwrap_or_default();
    if !version.contains("MariaDB") {
        return Err(admin.unknown_answer(format!("its version is {version:?}, which is not MariaDB's")));
    }
    Ok(version.split('-').next().unwrap_or_default().to_owned())
}

/// What the server remembers of what is Con.Me's.
#[derive(Default)]
pub(super) struct Registry {
    id: Option<String>,
    owners: Vec<(String, String, String)>,
}

impl Registry {
    pub async fn read(admin: &mut Session) -> Result<Self, Problem> {
        let tables: Vec<(u64,)> = admin.rows(TABLES, vec![REGISTRY]).await?;
        if tables.first() != Some(&(2,)) {
            return Ok(Self::default());
        }
        let id: Vec<(String,)> = admin.rows("SELECT id FROM conme_registry.server", Vec::new()).await?;
        let owners = admin.rows("SELECT kind, name, tag FROM conme_registry.owners", Vec::new()).await?;
        Ok(Self { id: id.into_iter().next().map(|(id,)| id), owners })
    }

    pub fn tag(&self, kind: Kind, name: &str) -> Option<String> {
        let entry = |entry: &&(String, String, String)| entry.0 == kind.word() && entry.1 == name;
        self.owners.iter().find(entry).map(|(_, _, tag)| tag.clone())
    }
}

/// Whether a name matches a pattern of a grant, by the rules of the server: `%` is any text, `_` any character, `\`
/// takes the meaning from the next one.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern = pattern.chars();
    match pattern.next() {
        None => name.is_empty(),
        Some('%') => {
            let rest = pattern.as_str();
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
        }
        Some('_') => {
            let mut name = name.chars();
            name.next().is_some() && matches(pattern.as_str(), name.as_str())
        }
        Some(c) => {
            let expected = if c == '\\' { pattern.next().unwrap_or(c) } else { c };
            let mut name = name.chars();
            name.next() == Some(expected) && matches(pattern.as_str(), name.as_str())
        }
    }
}
