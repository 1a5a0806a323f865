//! The end of a database: the only code that drops anything, kept apart from what brings databases about.

use postgres_protocol::escape::escape_identifier;

use super::{MAINTENANCE_DATABASE, Observed, Session, lock_key, observe};
use crate::call::{Doing, within};
use crate::tag::{self, Claim};
use crate::{Desired, Login, Names, Problem, Removed, Server};

const ADVICE: &str = "Nothing was dropped. Correct its comment if it is this Comune's, or set `deletionPolicy: Retain` on the database";

/// One step of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Ends all sessions in a database and drops it.
    Database {
        /// The database.
        database: String,
    },
    /// Drops a role.
    Role {
        /// The role.
        role: String,
    },
}

impl Removal {
    /// The statement.
    pub fn sql(&self) -> String {
        match self {
            // The server itself ends the sessions and lets no new one in before it has dropped the database.
            Self::Database { database } => {
                format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", escape_identifier(database))
            }
            Self::Role { role } => format!("DROP ROLE IF EXISTS {}", escape_identifier(role)),
        }
    }

    /// What it does, in a few words.
    pub fn words(&self) -> String {
        match self {
            Self::Database { database } => format!("drop database {database}"),
            Self::Role { role } => format!("drop role {role}"),
        }
    }
}

/// What is to be dropped, in this order; empty when it is gone already.
///
/// Roles that are not this Comune's are left alone. Of `desired` only names, owner and what is remembered matter.
///
/// # Errors
/// [`Problem::NotOurs`] when the database is not provably this Comune's or another server answers at the address, and
/// [`Problem::InvalidName`]. Then nothing may be dropped.
pub fn plan_removal(desired: &Desired, observed: &Observed) -> Result<Vec<Removal>, Problem> {
    let names = desired.names()?;
    let mut steps = Vec::new();
    if let Some(database) = &observed.database {
        is_ours_to_drop(desired, &names, observed, database.comment.as_deref())?;
        steps.push(Removal::Database { database: names.database().to_owned() });
    }
    // The logins first: nobody can log in as the owner.
    for role in [names.login(Login::Second), names.login(Login::First), names.owner()] {
        let seen = observed.roles.get(role);
        if seen.is_some_and(|seen| is_ours(desired, seen.comment.as_deref())) {
            steps.push(Removal::Role { role: role.to_owned() });
        }
    }
    Ok(steps)
}

fn is_ours(desired: &Desired, comment: Option<&str>) -> bool {
    matches!(tag::claim(desired, comment), Claim::Ours | Claim::OursOutdated)
}

fn is_ours_to_drop(
    desired: &Desired,
    names: &Names,
    observed: &Observed,
    comment: Option<&str>,
) -> Result<(), Problem> {
    let refuse = |found: String| Problem::NotOurs {
        object: format!("database \"{}\"", names.database()),
        found,
        advice: ADVICE,
    };
    if !is_ours(desired, comment) {
        let found = comment.map_or_else(
            || "it has no comment that says whose it is".to_owned(),
            |comment| format!("its comment is {comment:?}"),
        );
        return Err(refuse(found));
    }
    let remembered = desired.provisioned.as_ref().and_then(|known| known.system_identifier.as_ref());
    match (remembered, &observed.system_identifier) {
        (Some(expected), Some(found)) if expected != found => Err(refuse(format!(
            "it was provisioned on the server with the system identifier {expected}, and {found} answers"
        ))),
        _ => Ok(()),
    }
}

pub(crate) async fn remove(
    server: &Server,
    desired: &Desired,
    go_on: &(dyn Fn(&str) -> bool + Send + Sync),
) -> Result<Removed, Problem> {
    let names = desired.names()?;
    let doing = Doing::new("connect");
    let work = async {
        let admin = Session::admin(server, MAINTENANCE_DATABASE).await?;
        let result = drop_all(&admin, desired, &names, go_on, &doing).await;
        admin.close().await;
        result
    };
    within(server, &doing, work).await
}

async fn drop_all(
    admin: &Session,
    desired: &Desired,
    names: &Names,
    go_on: &(dyn Fn(&str) -> bool + Send + Sync),
    doing: &Doing,
) -> Result<Removed, Problem> {
    doing.set(format!("wait for the lock of database {}", names.database()));
    if !admin.lock(lock_key(names.database())).await? {
        return Err(Problem::Busy { database: names.database().to_owned() });
    }
    doing.set("read the state of the server");
    let observed = observe(admin, names).await?;
    let mut changed = Vec::new();
    for step in plan_removal(desired, &observed)? {
        let words = step.words();
        if !go_on(&words) {
            return Err(Problem::Stopped { before: words });
        }
        doing.set(&words);
        admin.remove(&step).await?;
        tracing::info!(database = names.database(), change = %words, "dropped on the database server");
        changed.push(words);
    }
    Ok(Removed { changed })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{as_declared, database, desired, empty_server};
    use super::*;
    use crate::{OwnerTag, Provisioned};

    fn words(desired: &Desired, observed: &Observed) -> Vec<String> {
        plan_removal(desired, observed).unwrap().iter().map(Removal::words).collect()
    }

    #[test]
    fn the_database_goes_first_and_what_is_gone_is_no_work() {
        let all = words(&desired(), &as_declared());
        assert_eq!(
            all,
            [
                "drop database dolo__protocollo",
                "drop role dolo__protocollo__app",
                "drop role dolo__protocollo__owner"
            ]
        );
        // A run that ended after any step is completed by the next.
        let mut observed = as_declared();
        observed.database = None;
        assert_eq!(words(&desired(), &observed), all[1..]);
        assert!(words(&desired(), &empty_server()).is_empty());
    }

    #[test]
    fn what_is_not_provably_ours_is_refused_and_roles_of_others_stay() {
        let refused = |desired: &Desired, change: fn(&mut Observed)| {
            let mut observed = as_declared();
            change(&mut observed);
            plan_removal(desired, &observed).unwrap_err().to_string()
        };
        let none = refused(&desired(), |observed| database(observed).comment = None);
        assert!(none.contains("no comment") && none.contains("Nothing was dropped"), "{none}");
        let theirs = refused(&desired(), |observed| database(observed).comment = Some("theirs".into()));
        assert!(theirs.contains("theirs"), "{theirs}");
        let mut other = desired();
        other.tag = OwnerTag { istat: Some("027099".into()), ..other.tag };
        assert!(refused(&other, |_| {}).contains("027012"));
        // Not even where a person let a database of nobody be taken over.
        let mut adopted = desired();
        adopted.adopt = true;
        refused(&adopted, |observed| database(observed).comment = None);
        let mut elsewhere = desired();
        elsewhere.provisioned =
            Some(Provisioned { system_identifier: Some("another".into()), at: jiff::Timestamp::UNIX_EPOCH });
        assert!(refused(&elsewhere, |_| {}).contains("another"));

        let mut observed = as_declared();
        for role in observed.roles.values_mut() {
            role.comment = None;
        }
        assert_eq!(words(&desired(), &observed), ["drop database dolo__protocollo"]);
    }

    #[test]
    fn names_are_quoted() {
        let step = Removal::Database { database: "a\"b".into() };
        assert_eq!(step.sql(), "DROP DATABASE IF EXISTS \"a\"\"b\" WITH (FORCE)");
    }
}
