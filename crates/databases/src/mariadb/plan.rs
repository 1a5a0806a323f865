//! Decides, from what is declared and what was seen, what is to be done. Pure: no server, no clock, no randomness.

use std::collections::BTreeSet;

use super::{Account, Grant, Kind, Observed, SeenAccount, Step, step};
use crate::{
    Desired, MissingData, Names, Problem,
    tag::{self, Claim},
};

/// What is to be done, in this order, to reach the declared state; empty when it is reached.
///
/// Each prefix of the steps leaves a state from which a new plan completes the rest. The database is opened to its
/// application by the last step only.
///
/// # Errors
/// [`Problem::DataMissing`], [`Problem::NotOurs`], [`Problem::ExtensionNotAllowed`] and [`Problem::InvalidName`]. Then
/// nothing may be done.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Step>, Problem> {
    let names = desired.names()?;
    if let Some(extension) = desired.extensions.first() {
        return Err(Problem::ExtensionNotAllowed {
            extension: extension.clone(),
            needed_by: String::new(),
            allowed: "none, MariaDB has no extensions".to_owned(),
        });
    }
    data_is_there(desired, &names, observed)?;
    all_is_ours(desired, &names, observed)?;

    let mut steps = Vec::new();
    if observed.system_identifier.is_none() {
        steps.push(Step::CreateRegistry);
    }
    if observed.database.is_none() {
        steps.push(Step::CreateDatabase {
            database: names.database().to_owned(),
            collation: desired.locale.clone(),
            tag: tag::comment(desired),
        });
    }
    register(&mut steps, desired, Kind::Database, names.database(), observed.database_tag.as_deref());
    // Before the account: one that is found without an entry could be anybody's.
    register(&mut steps, desired, Kind::Account, names.app(), observed.account_tag.as_deref());
    close(&mut steps, &observed.others);
    account(&mut steps, desired, &names, observed.account.as_ref());
    Ok(steps)
}

/// Connections at a time; 0, which the server takes for no limit, only when there is none.
pub(super) fn limit(desired: &Desired) -> u32 {
    desired.connection_limit.map_or(0, |limit| u32::try_from(limit).unwrap_or(0).max(1))
}

/// Accounts that are not of this system and may do something in the database.
pub(super) fn other_grantees(observed: &Observed) -> Vec<String> {
    let others = observed.others.iter().filter(|grant| !is_closed(grant));
    let names: BTreeSet<String> =
        others.map(|grant| format!("{}@{}", grant.account.name, grant.account.host)).collect();
    names.into_iter().collect()
}

fn data_is_there(desired: &Desired, names: &Names, observed: &Observed) -> Result<(), Problem> {
    let Some(provisioned) = &desired.provisioned else {
        return Ok(());
    };
    let missing = |missing: MissingData| Problem::DataMissing {
        database: names.database().to_owned(),
        since: provisioned.at.to_string(),
        missing,
    };
    if let Some(expected) = &provisioned.system_identifier
        && observed.system_identifier.as_ref() != Some(expected)
    {
        return Err(missing(MissingData::ServerReplaced {
            expected: expected.clone(),
            // A server without registry is one on which nothing was ever provisioned.
            found: observed.system_identifier.clone().unwrap_or_else(|| "none".to_owned()),
            database_present: observed.database.is_some(),
        }));
    }
    if observed.database.is_none() { Err(missing(MissingData::Gone)) } else { Ok(()) }
}

fn all_is_ours(desired: &Desired, names: &Names, observed: &Observed) -> Result<(), Problem> {
    if let Some(namesake) = observed.namesakes.first() {
        let what = if namesake.host.is_empty() { "role" } else { "account" };
        return Err(Problem::NotOurs {
            object: format!("{what} \"{}\"@\"{}\"", namesake.name, namesake.host),
            found: "it has the name of the application's account, and logins from that host would be its"
                .to_owned(),
            advice: "Have the data centre remove or rename it",
        });
    }
    let database = observed.database.as_ref().map(|seen| {
        // The application may change the comment of its own database; so the registry comes first.
        let mark = observed.database_tag.as_deref().unwrap_or(&seen.comment);
        (seen, tag::claim(desired, Some(mark)))
    });
    let database_is_ours =
        database.as_ref().is_some_and(|(_, claim)| matches!(claim, Claim::Ours | Claim::OursOutdated));
    if let Some((seen, claim)) = database {
        let nobodys = || match seen.comment.as_str() {
            "" => "it is not in the registry and has no comment".to_owned(),
            comment => format!("it is not in the registry and its comment is {comment:?}"),
        };
        tag::may_touch(desired, format!("database \"{}\"", names.database()), claim, false, nobodys)?;
    }
    if observed.account.is_some() {
        let claim = tag::claim(desired, observed.account_tag.as_deref());
        let nobodys = || "it is not in the registry".to_owned();
        tag::may_touch(desired, format!("account \"{}\"", names.app()), claim, database_is_ours, nobodys)?;
    }
    Ok(())
}

fn register(steps: &mut Vec<Step>, desired: &Desired, kind: Kind, name: &str, found: Option<&str>) {
    if tag::claim(desired, found) != Claim::Ours {
        steps.push(Step::Register { kind, name: name.to_owned(), tag: tag::comment(desired) });
    }
}

/// Whether somebody has no business in the database: everybody, and other tenants. Accounts of the data centre itself
/// (backup, monitoring) are left alone.
fn is_closed(grant: &Grant) -> bool {
    grant.managed || grant.account.name.is_empty() || grant.account == Account::public()
}

fn close(steps: &mut Vec<Step>, others: &[Grant]) {
    for grant in others.iter().filter(|grant| is_closed(grant)) {
        let (pattern, account) = (grant.pattern.clone(), grant.account.clone());
        steps.push(if account.name.is_empty() {
            Step::CloseToEverybody { pattern, host: account.host }
        } else {
            Step::Revoke { pattern, account, grantable: grant.grantable }
        });
    }
}

fn account(steps: &mut Vec<Step>, desired: &Desired, names: &Names, seen: Option<&SeenAccount>) {
    let account = Account::any_host(names.app());
    let limit = limit(desired);
    let grant = Step::Grant { database: names.database().to_owned(), account: account.clone() };
    let Some(seen) = seen else {
        steps.push(Step::CreateAccount { account, limit });
        steps.push(grant);
        return;
    };
    for target in &seen.proxies {
        steps.push(Step::RevokeProxy { target: target.clone(), account: account.clone() });
    }
    let allowed: BTreeSet<String> = step::PRIVILEGES.into_iter().map(str::to_owned).collect();
    if !seen.excess.is_empty() || !seen.privileges.is_subset(&allowed) {
        steps.push(Step::RevokeEverything { account: account.clone() });
        steps.push(grant);
    } else if seen.privileges != allowed {
        steps.push(grant);
    }
    if !seen.native_only {
        steps.push(Step::CloseAuthentication { account: account.clone() });
    }
    if !seen.requires_tls || seen.limit != limit || seen.hindered {
        steps.push(Step::ShapeAccount { account, limit });
    }
}
