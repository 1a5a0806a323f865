//! The end of a database: the only code that drops data, kept apart from what brings databases about.

use super::{
    Account, Kind, Observed, Session, observe,
    step::{end_sessions, identifier, without_entry},
};
use crate::call::{Doing, within};
use crate::tag::{self, Claim};
use crate::{Desired, Login, Names, Problem, Removed, Server};

const ADVICE: &str = "Nothing was dropped. Correct its entry in conme_registry.owners if it is this Comune's, or set `deletionPolicy: Retain` on the database";

/// One step of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Lets the application in no more and ends its sessions.
    CloseAccount {
        /// The account.
        account: Account,
    },
    /// Drops a database.
    Database {
        /// The database.
        database: String,
    },
    /// Drops an account.
    Account {
        /// The account.
        account: Account,
    },
    /// Removes an entry of the registry.
    Forget {
        /// What it is about.
        kind: Kind,
        /// The name.
        name: String,
    },
}

impl Removal {
    /// The statements, to be run one after the other.
    pub fn sql(&self) -> Vec<String> {
        match self {
            // Locked first, so that nobody comes back.
            Self::CloseAccount { account } => {
                vec![format!("ALTER USER IF EXISTS {} ACCOUNT LOCK", account.sql()), end_sessions(account)]
            }
            Self::Database { database } => vec![format!("DROP DATABASE IF EXISTS {}", identifier(database))],
            Self::Account { account } => vec![format!("DROP USER IF EXISTS {}", account.sql())],
            Self::Forget { kind, name } => vec![without_entry(*kind, name)],
        }
    }

    /// What it does, in a few words.
    pub fn words(&self) -> String {
        match self {
            Self::CloseAccount { account } => {
                format!("close account {} and end its sessions", account.words())
            }
            Self::Database { database } => format!("drop database {database}"),
            Self::Account { account } => format!("drop account {}", account.words()),
            Self::Forget { kind, name } => format!("forget {} {name}", kind.word()),
        }
    }
}

/// What is to be dropped, in this order; empty when it is gone already.
///
/// An account that is not this Comune's is left alone. Of `desired` only names, owner and what is remembered matter.
///
/// # Errors
/// [`Problem::NotOurs`] when the database is not provably this Comune's or another server answers at the address, and
/// [`Problem::InvalidName`]. Then nothing may be dropped.
pub fn plan_removal(desired: &Desired, observed: &Observed) -> Result<Vec<Removal>, Problem> {
    let names = desired.names()?;
    let is_ours_here = |name: &&str| is_ours(desired, observed.account_tags.get(*name).map(String::as_str));
    let logins = [Login::First, Login::Second].map(|login| names.login(login));
    let accounts =
        || logins.into_iter().filter(|name| observed.accounts.contains_key(*name)).filter(is_ours_here);
    let mut steps: Vec<Removal> =
        accounts().map(|name| Removal::CloseAccount { account: Account::any_host(name) }).collect();
    if let Some(database) = &observed.database {
        let mark = observed.database_tag.as_deref().unwrap_or(&database.comment);
        is_ours_to_drop(desired, &names, observed, mark)?;
        steps.push(Removal::Database { database: names.database().to_owned() });
    }
    steps.extend(accounts().map(|name| Removal::Account { account: Account::any_host(name) }));
    // Last: without its entry nobody could tell whose the rest is.
    let entry = |kind: Kind, name: &str| Removal::Forget { kind, name: name.to_owned() };
    steps.extend(logins.into_iter().filter(is_ours_here).map(|name| entry(Kind::Account, name)));
    if is_ours(desired, observed.database_tag.as_deref()) {
        let notes = [(Kind::Credential, &observed.credential_note), (Kind::Growth, &observed.growth_note)];
        let notes = notes.into_iter().filter(|(_, note)| note.is_some());
        steps.extend(notes.map(|(kind, _)| entry(kind, names.database())));
        steps.push(entry(Kind::Database, names.database()));
    }
    Ok(steps)
}

fn is_ours(desired: &Desired, mark: Option<&str>) -> bool {
    matches!(tag::claim(desired, mark), Claim::Ours | Claim::OursOutdated)
}

fn is_ours_to_drop(desired: &Desired, names: &Names, observed: &Observed, mark: &str) -> Result<(), Problem> {
    let refuse = |found: String| Problem::NotOurs {
        object: format!("database \"{}\"", names.database()),
        found,
        advice: ADVICE,
    };
    if !is_ours(desired, Some(mark)) {
        return Err(refuse(match mark {
            "" => "nothing says whose it is".to_owned(),
            mark => format!("it is marked {mark:?}"),
        }));
    }
    let remembered = desired.provisioned.as_ref().and_then(|known| known.system_identifier.as_ref());
    if let Some(expected) = remembered
        && observed.system_identifier.as_ref() != Some(expected)
    {
        let found = observed.system_identifier.as_deref().unwrap_or("one without id");
        return Err(refuse(format!(
            "it was provisioned on the server with the id {expected}, and {found} answers"
        )));
    }
    Ok(())
}

pub(crate) async fn remove(
    server: &Server,
    desired: &Desired,
    go_on: &(dyn Fn(&str) -> bool + Send + Sync),
) -> Result<Removed, Problem> {
    let names = desired.names()?;
    let doing = Doing::new("connect");
    let work = async {
        let mut admin = Session::admin(server).await?;
        let result = drop_all(&mut admin, desired, &names, go_on, &doing).await;
        admin.close().await;
        result
    };
    within(server, &doing, work).await
}

async fn drop_all(
    admin: &mut Session,
    desired: &Desired,
    names: &Names,
    go_on: &(dyn Fn(&str) -> bool + Send + Sync),
    doing: &Doing,
) -> Result<Removed, Problem> {
    doing.set(format!("wait for the lock of database {}", names.database()));
    if !admin.lock(names.database()).await? {
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
        admin.run_all(&step.sql(), &words).await?;
        tracing::info!(database = names.database(), change = %words, "dropped on the database server");
        changed.push(words);
    }
    Ok(Removed { changed })
}
