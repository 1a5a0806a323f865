//! One change on a server: a typed value that knows its SQL and its words.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::Secret;

/// Where a statement must be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the maintenance database: roles and databases belong to the whole server.
    Server,
    /// In the database itself.
    Database,
}

/// What a privilege is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A database.
    Database(String),
    /// A schema in the database itself.
    Schema(String),
}

impl Object {
    fn sql(&self) -> String {
        match self {
            Self::Database(name) => format!("DATABASE {}", escape_identifier(name)),
            Self::Schema(name) => format!("SCHEMA {}", escape_identifier(name)),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Database(name) => format!("database {name}"),
            Self::Schema(name) => format!("schema {name}"),
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::Database(_) => Place::Server,
            Self::Schema(_) => Place::Database,
        }
    }
}

/// One change on a server. None of them deletes data.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Step {
    /// Makes a role and its comment, both or neither.
    CreateRole {
        /// The role.
        role: String,
        /// Whether it may log in (it has no password yet).
        login: bool,
        /// Its comment.
        tag: String,
    },
    /// Writes the comment of a role.
    TagRole {
        /// The role.
        role: String,
        /// The comment.
        tag: String,
    },
    /// Puts the attributes of a role right.
    AlterRole {
        /// The role.
        role: String,
        /// For example `NOSUPERUSER`: fixed words only.
        attributes: Vec<&'static str>,
    },
    /// Ends a membership.
    RevokeMembership {
        /// The group.
        group: String,
        /// The member.
        member: String,
        /// Who granted it, for servers that want to know (16 and later).
        granted_by: Option<String>,
    },
    /// Makes an empty database that only superusers can enter (connection limit 0).
    CreateDatabase {
        /// The database.
        database: String,
        /// Its owner.
        owner: String,
        /// Its locale; that of `template0` when absent.
        locale: Option<String>,
    },
    /// Writes the comment of a database.
    TagDatabase {
        /// The database.
        database: String,
        /// The comment.
        tag: String,
    },
    /// Gives a database to its owner.
    OwnDatabase {
        /// The database.
        database: String,
        /// The owner.
        owner: String,
    },
    /// Puts the flags of a database right: connections allowed, not a template for other databases.
    ResetFlags {
        /// The database.
        database: String,
    },
    /// Sets the connection limit of a database; -1 is none.
    LimitConnections {
        /// The database.
        database: String,
        /// The limit.
        limit: i32,
    },
    /// Makes the schema `public` where it is missing.
    CreateSchema {
        /// The schema.
        schema: String,
        /// Its owner.
        owner: String,
    },
    /// Gives a schema to its owner.
    OwnSchema {
        /// The schema.
        schema: String,
        /// The owner.
        owner: String,
    },
    /// Takes privileges away.
    Revoke {
        /// What they are on.
        object: Object,
        /// Fixed words; all of them when empty.
        privileges: Vec<&'static str>,
        /// The role; every role (`PUBLIC`) when absent.
        from: Option<String>,
        /// Takes away only the right to pass them on.
        only_grant_option: bool,
    },
    /// Gives privileges.
    Grant {
        /// What they are on.
        object: Object,
        /// Fixed words.
        privileges: Vec<&'static str>,
        /// The role.
        to: String,
    },
    /// Installs an extension.
    CreateExtension {
        /// The extension.
        extension: String,
        /// The schema; the one that the extension insists on when absent.
        schema: Option<String>,
    },
    /// Sets the password of a role, by its verifier: the password itself never reaches the server in SQL.
    SetPassword {
        /// The role.
        role: String,
        /// A SCRAM-SHA-256 verifier.
        verifier: Secret,
    },
    /// Makes a role a member of another.
    GrantMembership {
        /// The group.
        group: String,
        /// The member.
        member: String,
    },
    /// Lets every session of a role act as another from its begin, so that the other owns what it makes.
    ActAs {
        /// The role that logs in.
        role: String,
        /// The role that it acts as.
        acts_as: String,
    },
    /// Takes back a setting that a role has made for its own sessions.
    ResetSetting {
        /// The role.
        role: String,
        /// In this database only.
        database: Option<String>,
        /// A fixed word.
        setting: &'static str,
    },
    /// Gives everything that one role owns in the database to another.
    HandOver {
        /// The role that owns it.
        from: String,
        /// The role that shall own it.
        to: String,
    },
    /// Takes a role its login and its password, both or neither.
    CloseLogin {
        /// The role.
        role: String,
    },
    /// Ends the sessions of roles in a database.
    EndSessions {
        /// The database.
        database: String,
        /// The roles.
        roles: Vec<String>,
    },
    /// Makes new sessions of a database read-only, or not any more.
    ReadOnly {
        /// The database.
        database: String,
        /// Whether they are.
        on: bool,
    },
    /// Notes on a database which of its credentials has been handed out.
    MarkCredential {
        /// The database.
        database: String,
        /// The number of the credential.
        generation: u32,
    },
    /// Notes on a database that its growth has been stopped, and at which size; or that it may grow.
    MarkGrowth {
        /// The database.
        database: String,
        /// For example `stopped@1024`; none when it may grow.
        mark: Option<String>,
    },
}

/// The setting in which [`Step::MarkGrowth`] keeps its note: only the administrator can change it.
pub(super) const GROWTH_MARK: &str = "conme.growth";
/// The setting in which [`Step::MarkCredential`] keeps its note.
pub(super) const CREDENTIAL_MARK: &str = "conme.credential";

impl Step {
    /// Where it must be run.
    pub fn place(&self) -> Place {
        match self {
            Self::CreateRole { .. }
            | Self::TagRole { .. }
            | Self::AlterRole { .. }
            | Self::RevokeMembership { .. }
            | Self::CreateDatabase { .. }
            | Self::TagDatabase { .. }
            | Self::OwnDatabase { .. }
            | Self::ResetFlags { .. }
            | Self::LimitConnections { .. }
            | Self::SetPassword { .. }
            | Self::GrantMembership { .. }
            | Self::ActAs { .. }
            | Self::ResetSetting { .. }
            | Self::CloseLogin { .. }
            | Self::EndSessions { .. }
            | Self::ReadOnly { .. }
            | Self::MarkCredential { .. }
            | Self::MarkGrowth { .. } => Place::Server,
            Self::CreateSchema { .. }
            | Self::OwnSchema { .. }
            | Self::CreateExtension { .. }
            | Self::HandOver { .. } => Place::Database,
            Self::Revoke { object, .. } | Self::Grant { object, .. } => object.place(),
        }
    }

    /// The statement. Every name and text in it is quoted; everything else is a fixed word or a number.
    pub fn sql(&self) -> String {
        let name = |text: &str| escape_identifier(text);
        match self {
            // Two statements in one message are one transaction: there is never a role of ours without its comment.
            Self::CreateRole { role, login, tag } => format!(
                "CREATE ROLE {role} {login}; COMMENT ON ROLE {role} IS {tag}",
                role = name(role),
                login = if *login { "LOGIN" } else { "NOLOGIN" },
                tag = escape_literal(tag),
            ),
            Self::TagRole { role, tag } => {
                format!("COMMENT ON ROLE {} IS {}", name(role), escape_literal(tag))
            }
            Self::AlterRole { role, attributes } => {
                format!("ALTER ROLE {} {}", name(role), attributes.join(" "))
            }
            Self::RevokeMembership { group, member, granted_by } => {
                let by =
                    granted_by.as_ref().map(|by| format!(" GRANTED BY {}", name(by))).unwrap_or_default();
                format!("REVOKE {} FROM {}{by} CASCADE", name(group), name(member))
            }
            Self::CreateDatabase { database, owner, locale } => {
                let locale = locale
                    .as_ref()
                    .map(|locale| {
                        let locale = escape_literal(locale);
                        format!(" LC_COLLATE {locale} LC_CTYPE {locale}")
                    })
                    .unwrap_or_default();
                format!(
                    "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'{locale} CONNECTION LIMIT 0",
                    name(database),
                    name(owner),
                )
            }
            Self::TagDatabase { database, tag } => {
                format!("COMMENT ON DATABASE {} IS {}", name(database), escape_literal(tag))
            }
            Self::OwnDatabase { database, owner } => {
                format!("ALTER DATABASE {} OWNER TO {}", name(database), name(owner))
            }
            Self::ResetFlags { database } => {
                format!("ALTER DATABASE {} ALLOW_CONNECTIONS true IS_TEMPLATE false", name(database))
            }
            Self::LimitConnections { database, limit } => {
                format!("ALTER DATABASE {} CONNECTION LIMIT {limit}", name(database))
            }
            Self::CreateSchema { schema, owner } => {
                format!("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}", name(schema), name(owner))
            }
            Self::OwnSchema { schema, owner } => {
                format!("ALTER SCHEMA {} OWNER TO {}", name(schema), name(owner))
            }
            Self::Revoke { object, privileges, from, only_grant_option } => format!(
                "REVOKE {}{} ON {} FROM {} CASCADE",
                if *only_grant_option { "GRANT OPTION FOR " } else { "" },
                list(privileges),
                object.sql(),
                from.as_ref().map_or_else(|| "PUBLIC".to_owned(), |role| name(role)),
            ),
            Self::Grant { object, privileges, to } => {
                format!("GRANT {} ON {} TO {}", list(privileges), object.sql(), name(to))
            }
            Self::CreateExtension { extension, schema } => {
                let schema =
                    schema.as_ref().map(|schema| format!(" SCHEMA {}", name(schema))).unwrap_or_default();
                format!("CREATE EXTENSION IF NOT EXISTS {}{schema}", name(extension))
            }
            Self::SetPassword { role, verifier } => {
                format!("ALTER ROLE {} PASSWORD {}", name(role), escape_literal(verifier.expose()))
            }
            Self::GrantMembership { group, member } => format!("GRANT {} TO {}", name(group), name(member)),
            Self::ActAs { role, acts_as } => {
                format!("ALTER ROLE {} SET role = {}", name(role), escape_literal(acts_as))
            }
            Self::ResetSetting { role, database, setting } => {
                let place = database.as_ref().map(|database| format!(" IN DATABASE {}", name(database)));
                format!("ALTER ROLE {}{} RESET {setting}", name(role), place.unwrap_or_default())
            }
            Self::HandOver { from, to } => format!("REASSIGN OWNED BY {} TO {}", name(from), name(to)),
            Self::CloseLogin { role } => format!("ALTER ROLE {} NOLOGIN PASSWORD NULL", name(role)),
            Self::EndSessions { database, roles } => {
                let roles: Vec<String> = roles.iter().map(|role| escape_literal(role)).collect();
                format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND usename IN ({})",
                    escape_literal(database),
                    roles.join(", ")
                )
            }
            Self::ReadOnly { database, on: true } => {
                format!("ALTER DATABASE {} SET default_transaction_read_only = on", name(database))
            }
            Self::ReadOnly { database, on: false } => {
                format!("ALTER DATABASE {} RESET default_transaction_read_only", name(database))
            }
            Self::MarkCredential { database, generation } => {
                format!("ALTER DATABASE {} SET {CREDENTIAL_MARK} = '{generation}'", name(database))
            }
            Self::MarkGrowth { database, mark: Some(mark) } => {
                format!("ALTER DATABASE {} SET {GROWTH_MARK} = {}", name(database), escape_literal(mark))
            }
            Self::MarkGrowth { database, mark: None } => {
                format!("ALTER DATABASE {} RESET {GROWTH_MARK}", name(database))
            }
        }
    }

    /// What it does, in a few words and without any secret.
    pub fn words(&self) -> String {
        match self {
            Self::CreateRole { role, .. } => format!("create role {role}"),
            Self::TagRole { role, .. } => format!("mark role {role} as ours"),
            Self::AlterRole { role, attributes } => format!("set {} on role {role}", attributes.join(" ")),
            Self::RevokeMembership { group, member, .. } => {
                format!("end membership of role {member} in {group}")
            }
            Self::CreateDatabase { database, .. } => format!("create database {database}"),
            Self::TagDatabase { database, .. } => format!("mark database {database} as ours"),
            Self::OwnDatabase { database, owner } => format!("give database {database} to {owner}"),
            Self::ResetFlags { database } => {
                format!("allow connections to database {database}, not a template")
            }
            Self::LimitConnections { database, limit: -1 } => {
                format!("set no connection limit on database {database}")
            }
            Self::LimitConnections { database, limit } => {
                format!("set connection limit {limit} on database {database}")
            }
            Self::CreateSchema { schema, .. } => format!("create schema {schema}"),
            Self::OwnSchema { schema, owner } => format!("give schema {schema} to {owner}"),
            Self::Revoke { object, privileges, from, only_grant_option } => format!(
                "revoke {}{} on {} from {}",
                if *only_grant_option { "grant option for " } else { "" },
                list(privileges),
                object.words(),
                from.as_deref().unwrap_or("PUBLIC"),
            ),
            Self::Grant { object, privileges, to } => {
                format!("grant {} on {} to {to}", list(privileges), object.words())
            }
            Self::CreateExtension { extension, .. } => format!("install extension {extension}"),
            Self::SetPassword { role, .. } => format!("set the password of role {role}"),
            Self::GrantMembership { group, member } => format!("make role {member} a member of {group}"),
            Self::ActAs { role, acts_as } => format!("let role {role} act as {acts_as}"),
            Self::ResetSetting { role, setting, .. } => format!("take back {setting} of role {role}"),
            Self::HandOver { from, to } => format!("give what {from} owns to {to}"),
            Self::CloseLogin { role } => format!("close the login of role {role}"),
            Self::EndSessions { database, roles } => {
                format!("end the sessions of {} in database {database}", roles.join(" and "))
            }
            Self::ReadOnly { database, on: true } => {
                format!("make new sessions of database {database} read-only")
            }
            Self::ReadOnly { database, on: false } => {
                format!("let new sessions of database {database} write")
            }
            Self::MarkCredential { database, generation } => {
                format!("note on database {database}: credential {generation} has been handed out")
            }
            Self::MarkGrowth { database, mark } => {
                format!("note on database {database}: {}", mark.as_deref().unwrap_or("it may grow"))
            }
        }
    }
}

fn list(privileges: &[&str]) -> String {
    if privileges.is_empty() { "ALL".to_owned() } else { privileges.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever a name holds, it is one quoted token: outside of quotes the statement is always the same.
        #[test]
        fn names_cannot_break_out(evil in "[a\"'\\\\;$ -]{0,12}") {
            let step = Step::OwnDatabase { database: evil.clone(), owner: evil.clone() };
            prop_assert_eq!(outside_of_quotes(&step.sql()), "ALTER DATABASE ? OWNER TO ?");
            let step = Step::TagRole { role: evil.clone(), tag: evil };
            let outside = outside_of_quotes(&step.sql());
            prop_assert!(outside == "COMMENT ON ROLE ? IS ?" || outside == "COMMENT ON ROLE ? IS  E?", "{}", outside);
        }
    }

    /// Replaces each quoted token by `?`, by the rules of PostgreSQL.
    fn outside_of_quotes(sql: &str) -> String {
        let mut out = String::new();
        let mut chars = sql.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '"' && c != '\'' {
                out.push(c);
                continue;
            }
            let backslashes_escape = c == '\'' && out.ends_with('E');
            out.push('?');
            while let Some(inner) = chars.next() {
                if inner == '\\' && backslashes_escape {
                    chars.next();
                } else if inner == c && chars.next_if_eq(&c).is_none() {
                    break;
                }
            }
        }
        out
    }

    #[test]
    fn a_verifier_is_in_the_statement_only() {
        let step = Step::SetPassword { role: "a".into(), verifier: Secret::new("SCRAM-SHA-256$4096:x") };
        assert_eq!(step.sql(), "ALTER ROLE \"a\" PASSWORD 'SCRAM-SHA-256$4096:x'");
        assert!(!format!("{step:?} {}", step.words()).contains("SCRAM"));
    }
}
