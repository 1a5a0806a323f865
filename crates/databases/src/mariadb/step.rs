//! One change on a server: a typed value that knows its SQL and its words.

use sha1::{Digest, Sha1};

use super::REGISTRY;
use crate::Secret;

/// What an application may do in its database: read and write data, and make, change and remove its tables, views,
/// routines and triggers.
///
/// Left out on purpose: `GRANT OPTION` (nobody else is let in) and `EVENT` (what runs by itself would run on while the
/// account is locked). `DROP` is for tables and covers the database itself, too: MariaDB does not tell the two apart.
pub(super) const PRIVILEGES: [&str; 18] = [
    "ALTER",
    "ALTER ROUTINE",
    "CREATE",
    "CREATE ROUTINE",
    "CREATE TEMPORARY TABLES",
    "CREATE VIEW",
    "DELETE",
    "DELETE HISTORY",
    "DROP",
    "EXECUTE",
    "INDEX",
    "INSERT",
    "LOCK TABLES",
    "REFERENCES",
    "SELECT",
    "SHOW VIEW",
    "TRIGGER",
    "UPDATE",
];

/// What is left of them when growth is stopped: to read, to delete, and to go on calling what is there.
pub(super) const PRIVILEGES_WHEN_STOPPED: [&str; 8] =
    ["DELETE", "DELETE HISTORY", "DROP", "EXECUTE", "LOCK TABLES", "REFERENCES", "SELECT", "SHOW VIEW"];

/// A name and the host that it may come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The host, `%` for any.
    pub host: String,
}

impl Account {
    /// The account of that name from any host.
    pub fn any_host(name: &str) -> Self {
        Self { name: name.to_owned(), host: "%".to_owned() }
    }

    pub(super) fn sql(&self) -> String {
        if *self == Self::public() {
            return "PUBLIC".to_owned();
        }
        format!("{}@{}", literal(&self.name), literal(&self.host))
    }

    pub(super) fn words(&self) -> String {
        match (self.name.as_str(), self.host.as_str()) {
            ("", host) => format!("anybody from {host}"),
            (name, "%") => name.to_owned(),
            (name, "") => name.to_owned(),
            (name, host) => format!("{name}@{host}"),
        }
    }

    /// What every account is given, as the server writes it into its tables (from 10.11 on).
    pub(super) fn public() -> Self {
        Self { name: "PUBLIC".to_owned(), host: String::new() }
    }
}

/// What an entry of the registry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A database.
    Database,
    /// An account.
    Account,
    /// The last credential of a database that is known to have been handed out.
    Credential,
    /// That the growth of a database has been stopped.
    Growth,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Account => "account",
            Self::Credential => "credential",
            Self::Growth => "growth",
        }
    }
}

/// One change on a server. None of them deletes data.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Step {
    /// Makes the registry, and gives the server an id unless it has one.
    CreateRegistry,
    /// Writes down whose something is.
    Register {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Whose it is.
        tag: String,
    },
    /// Makes an empty database with the tag as its comment, both or neither.
    CreateDatabase {
        /// The database.
        database: String,
        /// Its collation; that of the server for `utf8mb4` when absent.
        collation: Option<String>,
        /// Its comment.
        tag: String,
    },
    /// Makes an account that nobody can log in as yet.
    CreateAccount {
        /// The account.
        account: Account,
        /// Connections at a time; 0 is no limit.
        limit: u32,
        /// Whether only the password is missing; otherwise it is locked, too.
        open: bool,
    },
    /// Puts everything about an account right that is no privilege and no password: TLS, limits, no end date.
    ShapeAccount {
        /// The account.
        account: Account,
        /// Connections at a time; 0 is no limit.
        limit: u32,
        /// Whether it is unlocked; otherwise it stays as it is.
        open: bool,
    },
    /// Locks an account and takes it its password, both or neither. Sessions that are there go on.
    CloseLogin {
        /// The account.
        account: Account,
    },
    /// Ends the sessions of an account.
    EndSessions {
        /// The account.
        account: Account,
    },
    /// Leaves a note about a database in the registry, or removes it.
    Note {
        /// What it is about.
        kind: Kind,
        /// The database.
        database: String,
        /// The note; removed when absent.
        note: Option<String>,
    },
    /// Replaces all ways to log in by one that fits no password, until [`Step::SetPassword`].
    CloseAuthentication {
        /// The account.
        account: Account,
    },
    /// Sets the password of an account by its verifier: the password itself never reaches the server in SQL.
    SetPassword {
        /// The account.
        account: Account,
        /// A verifier of `mysql_native_password`.
        verifier: Secret,
    },
    /// Takes all privileges and roles of an account away, wherever they are.
    RevokeEverything {
        /// The account.
        account: Account,
    },
    /// Takes away that an account may become another one.
    RevokeProxy {
        /// The other one.
        target: Account,
        /// The account.
        account: Account,
    },
    /// Takes away what an account may do in databases whose names match a pattern.
    Revoke {
        /// The pattern, as the server keeps it.
        pattern: String,
        /// The account.
        account: Account,
        /// Whether it may pass it on, which is taken away, too.
        grantable: bool,
    },
    /// Takes away what everybody may do in databases whose names match a pattern, by an entry without account.
    CloseToEverybody {
        /// The pattern, as the server keeps it.
        pattern: String,
        /// The host of the entry.
        host: String,
    },
    /// Removes an account without name and password.
    DropAnonymous {
        /// The host of the account.
        host: String,
    },
    /// Gives an application what it may do in its database.
    Grant {
        /// The database.
        database: String,
        /// The account.
        account: Account,
        /// Fixed words.
        privileges: Vec<&'static str>,
    },
    /// Takes an application a part of what it may do in its database.
    Withhold {
        /// The database.
        database: String,
        /// The account.
        account: Account,
        /// Fixed words.
        privileges: Vec<&'static str>,
    },
}

impl Step {
    /// The statements, to be run one after the other. Every name and text in them is quoted, for a session with
    /// `NO_BACKSLASH_ESCAPES`; everything else is a fixed word or a number.
    pub fn sql(&self) -> Vec<String> {
        let registry = identifier(REGISTRY);
        match self {
            Self::CreateRegistry => vec![
                format!("CREATE DATABASE IF NOT EXISTS {registry} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
                format!(
                    "CREATE TABLE IF NOT EXISTS {registry}.server (one TINYINT NOT NULL PRIMARY KEY CHECK (one = 1), \
                     id CHAR(36) NOT NULL, since TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE=InnoDB"
                ),
                format!(
                    "CREATE TABLE IF NOT EXISTS {registry}.owners (kind VARCHAR(16) NOT NULL, name VARCHAR(128) NOT NULL, \
                     tag VARCHAR(1024) NOT NULL, PRIMARY KEY (kind, name)) ENGINE=InnoDB"
                ),
                format!("INSERT IGNORE INTO {registry}.server (one, id) VALUES (1, UUID())"),
            ],
            Self::Register { kind, name, tag } => vec![entry(*kind, name, tag)],
            Self::CreateDatabase { database, collation, tag } => {
                let collation = collation
                    .as_ref()
                    .map(|name| format!(" COLLATE {}", identifier(name)))
                    .unwrap_or_default();
                vec![format!(
                    "CREATE DATABASE {} CHARACTER SET utf8mb4{collation} COMMENT {}",
                    identifier(database),
                    literal(tag)
                )]
            }
            // "invalid" is no verifier: no password has it.
            Self::CreateAccount { account, limit, open } => vec![format!(
                "CREATE USER {} IDENTIFIED VIA mysql_native_password USING 'invalid' {}",
                account.sql(),
                shape(*limit, if *open { " ACCOUNT UNLOCK" } else { " ACCOUNT LOCK" })
            )],
            Self::ShapeAccount { account, limit, open } => {
                let lock = if *open { " ACCOUNT UNLOCK" } else { "" };
                vec![format!("ALTER USER {} {}", account.sql(), shape(*limit, lock))]
            }
            Self::CloseLogin { account } => vec![format!(
                "ALTER USER {} IDENTIFIED VIA mysql_native_password USING 'invalid' ACCOUNT LOCK",
                account.sql()
            )],
            Self::EndSessions { account } => vec![end_sessions(account)],
            Self::Note { kind, database, note: Some(note) } => vec![entry(*kind, database, note)],
            Self::Note { kind, database, note: None } => vec![without_entry(*kind, database)],
            Self::CloseAuthentication { account } => vec![format!(
                "ALTER USER {} IDENTIFIED VIA mysql_native_password USING 'invalid'",
                account.sql()
            )],
            Self::SetPassword { account, verifier } => vec![format!(
                "ALTER USER {} IDENTIFIED VIA mysql_native_password USING {}",
                account.sql(),
                literal(verifier.expose())
            )],
            Self::RevokeEverything { account } => {
                vec![format!("REVOKE ALL PRIVILEGES, GRANT OPTION FROM {}", account.sql())]
            }
            // `REVOKE PROXY` is for those only who may themselves become anybody.
            Self::RevokeProxy { target, account } => vec![
                format!(
                    "DELETE FROM mysql.proxies_priv WHERE User = {} AND Host = {} AND Proxied_user = {} AND Proxied_host = {}",
                    literal(&account.name),
                    literal(&account.host),
                    literal(&target.name),
                    literal(&target.host)
                ),
                FLUSH.to_owned(),
            ],
            Self::Revoke { pattern, account, grantable } => {
                let (pattern, account) = (identifier(pattern), account.sql());
                let mut sql = vec![format!("REVOKE ALL PRIVILEGES ON {pattern}.* FROM {account}")];
                if *grantable {
                    sql.push(format!("REVOKE GRANT OPTION ON {pattern}.* FROM {account}"));
                }
                sql
            }
            // An entry may be there without an account, and REVOKE finds only accounts.
            Self::CloseToEverybody { pattern, host } => vec![
                format!(
                    "DELETE FROM mysql.db WHERE User = '' AND Db = {} AND Host = {}",
                    literal(pattern),
                    literal(host)
                ),
                FLUSH.to_owned(),
            ],
            Self::DropAnonymous { host } => vec![format!("DROP USER ''@{}", literal(host))],
            Self::Grant { database, account, privileges } => vec![format!(
                "GRANT {} ON {}.* TO {}",
                privileges.join(", "),
                identifier(&pattern(database)),
                account.sql()
            )],
            Self::Withhold { database, account, privileges } => vec![format!(
                "REVOKE {} ON {}.* FROM {}",
                privileges.join(", "),
                identifier(&pattern(database)),
                account.sql()
            )],
        }
    }

    /// What it does, in a few words and without any secret.
    pub fn words(&self) -> String {
        match self {
            Self::CreateRegistry => format!("create the registry {REGISTRY}"),
            Self::Register { kind, name, .. } => format!("mark {} {name} as ours", kind.word()),
            Self::CreateDatabase { database, .. } => format!("create database {database}"),
            Self::CreateAccount { account, .. } => format!("create account {}", account.words()),
            Self::ShapeAccount { account, limit: 0, .. } => {
                format!("require TLS of account {}, with no connection limit", account.words())
            }
            Self::ShapeAccount { account, limit, .. } => {
                format!("require TLS of account {}, with connection limit {limit}", account.words())
            }
            Self::CloseAuthentication { account } => {
                format!("close other ways to log in as account {}", account.words())
            }
            Self::SetPassword { account, .. } => format!("set the password of account {}", account.words()),
            Self::RevokeEverything { account } => {
                format!("revoke all privileges from account {}", account.words())
            }
            Self::RevokeProxy { target, account } => {
                format!("keep account {} from becoming {}", account.words(), target.words())
            }
            Self::Revoke { pattern, account, .. } => {
                format!("revoke all on databases like {pattern} from {}", account.words())
            }
            Self::CloseToEverybody { pattern, .. } => format!("close databases like {pattern} to everybody"),
            Self::DropAnonymous { host } => format!("remove the account without name from {host}"),
            Self::Grant { database, account, privileges } => {
                let what = if privileges.len() == PRIVILEGES.len() {
                    "data and tables".to_owned()
                } else {
                    privileges.join(", ")
                };
                format!("grant {what} of database {database} to account {}", account.words())
            }
            Self::Withhold { database, account, privileges } => format!(
                "revoke {} on database {database} from account {}",
                privileges.join(", "),
                account.words()
            ),
            Self::CloseLogin { account } => format!("close the login {}", account.words()),
            Self::EndSessions { account } => format!("end the sessions of {}", account.words()),
            Self::Note { kind: Kind::Credential, database, note: Some(number) } => {
                format!("note on database {database}: credential {number} has been handed out")
            }
            Self::Note { kind, database, note: Some(note) } => {
                format!("note on database {database}: {} {note}", kind.word())
            }
            Self::Note { kind, database, note: None } => {
                format!("remove the note on the {} of database {database}", kind.word())
            }
        }
    }
}

/// Makes the server read its tables of privileges, after a change that was not made by a statement for it.
const FLUSH: &str = "FLUSH PRIVILEGES";

/// Sessions that are gone by themselves are no error.
pub(super) fn end_sessions(account: &Account) -> String {
    format!("KILL HARD CONNECTION USER {}", literal(&account.name))
}

fn entry(kind: Kind, name: &str, tag: &str) -> String {
    let (kind, name, tag) = (literal(kind.word()), literal(name), literal(tag));
    format!(
        "INSERT INTO {}.owners (kind, name, tag) VALUES ({kind}, {name}, {tag}) ON DUPLICATE KEY UPDATE tag = {tag}",
        identifier(REGISTRY)
    )
}

pub(super) fn without_entry(kind: Kind, name: &str) -> String {
    format!(
        "DELETE FROM {}.owners WHERE kind = {} AND name = {}",
        identifier(REGISTRY),
        literal(kind.word()),
        literal(name)
    )
}

/// The clauses of an account that are neither authentication nor privilege; `lock` says whether it is locked.
fn shape(limit: u32, lock: &str) -> String {
    format!(
        "REQUIRE SSL WITH MAX_QUERIES_PER_HOUR 0 MAX_UPDATES_PER_HOUR 0 MAX_CONNECTIONS_PER_HOUR 0 \
         MAX_USER_CONNECTIONS {limit} MAX_STATEMENT_TIME 0{lock} PASSWORD EXPIRE NEVER"
    )
}

/// The pattern that only this database matches: `_` and `%` stand for other characters in a grant, unless escaped.
pub(super) fn pattern(database: &str) -> String {
    let mut pattern = String::with_capacity(database.len() + 8);
    for c in database.chars() {
        if matches!(c, '_' | '%' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// For a session with `NO_BACKSLASH_ESCAPES`, where the quote is the only character with a meaning.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What the server keeps of a password: `mysql_native_password` is what every client of MariaDB speaks.
pub(super) fn native_verifier(password: &Secret) -> Secret {
    let twice = Sha1::digest(Sha1::digest(password.expose().as_bytes()));
    let hex: String = twice.iter().map(|byte| format!("{byte:02X}")).collect();
    Secret::new(format!("*{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever a name holds, it is one quoted token: outside of quotes the statement is always the same.
        #[test]
        fn names_cannot_break_out(evil in "[a\"'`\\\\;%_ -]{0,12}") {
            let account = Account { name: evil.clone(), host: evil.clone() };
            let step = Step::Revoke { pattern: evil.clone(), account: account.clone(), grantable: true };
            for sql in step.sql() {
                let outside = outside_of_quotes(&sql);
                prop_assert!(outside.ends_with(" ON ?.* FROM ?@?"), "{}", outside);
            }
            let step = Step::Register { kind: Kind::Account, name: evil.clone(), tag: evil.clone() };
            prop_assert_eq!(
                outside_of_quotes(&step.sql()[0]),
                "INSERT INTO ?.owners (kind, name, tag) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE tag = ?"
            );
            let step = Step::Grant { database: evil, account, privileges: PRIVILEGES.to_vec() };
            prop_assert!(outside_of_quotes(&step.sql()[0]).ends_with(" ON ?.* TO ?@?"));
        }

        /// The pattern of a database is matched by that database and by no other.
        #[test]
        fn rule_12_a_pattern_is_matched_by_its_own_database_only(a in "[ab_%]{1,6}", b in "[ab_%]{1,6}") {
            prop_assert_eq!(super::super::observe::matches(&pattern(&a), &b), a == b);
        }
    }

    /// Replaces each quoted token by `?`, by the rules of MariaDB with `NO_BACKSLASH_ESCAPES`.
    fn outside_of_quotes(sql: &str) -> String {
        let mut out = String::new();
        let mut chars = sql.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '`' && c != '\'' {
                out.push(c);
                continue;
            }
            out.push('?');
            while let Some(inner) = chars.next() {
                if inner == c && chars.next_if_eq(&c).is_none() {
                    break;
                }
            }
        }
        out
    }

    #[test]
    fn a_verifier_is_in_the_statement_only() {
        let verifier = native_verifier(&Secret::new("geheim"));
        assert_eq!(
            verifier.expose(),
            "*462366917EEDD1970A48E87D8EF59EB67D2CA26F",
            "as the server computes it"
        );
        let step = Step::SetPassword { account: Account::any_host("a"), verifier };
        assert!(step.sql()[0].ends_with("USING '*462366917EEDD1970A48E87D8EF59EB67D2CA26F'"));
        assert!(!format!("{step:?} {}", step.words()).contains("462366"));
    }
}
