//! Decides, from what is declared and what was seen, what is to be done. Pure: no server, no clock, no randomness.

use std::collections::BTreeSet;

use super::{Account, Grant, Kind, Observed, SeenAccount, Step, step};
use crate::{
    Before, Desired, Growth, Login, MissingData, Names, OtherLogin, Problem,
    tag::{self, Claim},
};

/// What is to be done, in this order, to reach the declared state; empty when it is reached.
///
/// Each prefix of the steps leaves a state from which a new plan completes the rest. The database is opened to its
/// application by the last step only.
///
/// # Errors
/// [`Problem::DataMissing`], [`Problem::Moved`], [`Problem::NotOurs`], [`Problem::Overtaken`],
/// [`Problem::ExtensionNotAllowed`] and [`Problem::InvalidName`]. Then nothing may be done.
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
    nobody_was_faster(desired, &names, observed)?;
    let growth = growth(desired, observed);

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
    close(&mut steps, &observed.others);
    let handed_out = desired.generation.filter(|generation| generation.handed_out).map(|g| g.number);
    if let Some(number) = handed_out.filter(|number| *number > generation(observed)) {
        steps.push(note(&names, Kind::Credential, Some(number.to_string())));
    }
    if growth != Growth::Free && observed.growth_note.is_none() {
        steps.push(note(&names, Kind::Growth, Some(STOPPING.to_owned())));
    }
    for login in [Login::First, Login::Second] {
        let name = names.login(login);
        let seen = observed.accounts.get(name);
        if login == Login::Second && desired.login != login && seen.is_none() {
            continue;
        }
        let entry = match (desired.open, desired.login == login) {
            (false, _) => Entry::Closed,
            (true, true) => Entry::Yes,
            // Not before the login in force has been proved: see `afterwards`.
            (true, false) => Entry::AsItIs,
        };
        // Before the account: one that is found without an entry could be anybody's.
        register(
            &mut steps,
            desired,
            Kind::Account,
            name,
            observed.account_tags.get(name).map(String::as_str),
        );
        account(&mut steps, desired, &names, name, seen, entry, growth);
    }
    size(&mut steps, &names, observed, growth);
    Ok(steps)
}

/// What is left to do once everything is as planned and the login in force has been proved: the login that is not in
/// force ends, and so do sessions that nobody should have.
pub(super) fn afterwards(desired: &Desired, names: &Names, observed: &Observed) -> Vec<Step> {
    if !desired.open {
        let used = observed.accounts.iter().filter(|(_, seen)| seen.sessions > 0);
        return used.map(|(name, _)| Step::EndSessions { account: Account::any_host(name) }).collect();
    }
    let account = Account::any_host(names.login(desired.login.other()));
    let Some(seen) = observed.accounts.get(&account.name).filter(|seen| !seen.locked) else {
        return Vec::new();
    };
    let close = Step::CloseLogin { account: account.clone() };
    match desired.other_login {
        OtherLogin::Keep => Vec::new(),
        OtherLogin::CloseWhenUnused if seen.sessions > 0 => Vec::new(),
        OtherLogin::CloseWhenUnused => vec![close],
        OtherLogin::Close => vec![close, Step::EndSessions { account }],
    }
}

/// The number of the last credential that is known to have been handed out. The first one is not noted.
pub(super) fn generation(observed: &Observed) -> u32 {
    observed.credential_note.as_ref().and_then(|number| number.parse().ok()).unwrap_or(1)
}

/// A lease alone does not stop an operator that was paused: without this, it would close the login that another one has
/// handed out, or change its password.
fn nobody_was_faster(desired: &Desired, names: &Names, observed: &Observed) -> Result<(), Problem> {
    let Some(known) = desired.generation else { return Ok(()) };
    let found = generation(observed);
    let overtaken = if known.handed_out { found > known.number } else { found >= known.number };
    if !overtaken {
        return Ok(());
    }
    Err(Problem::Overtaken { database: names.database().to_owned(), found, known: known.number })
}

/// Growth is being stopped: sessions from before may still write.
const STOPPING: &str = "stopping";
/// Growth has been stopped, also for the sessions of before.
const STOPPED: &str = "stopped";

/// Whether the database may grow. It is stopped by taking privileges, which nobody gets around: so it is never closed.
pub(super) fn growth(desired: &Desired, observed: &Observed) -> Growth {
    let growth = if observed.growth_note.is_some() { Growth::Stopped } else { Growth::Free };
    observed.database.as_ref().map_or(Growth::Free, |seen| {
        let before = Before { growth, stopped_at: None };
        crate::growth(seen.size_bytes, desired.max_bytes, before, false)
    })
}

/// The server looks at privileges when a session enters a database: those that are there keep what they had. The note
/// comes first and changes last: until then the rest is repeated.
fn size(steps: &mut Vec<Step>, names: &Names, observed: &Observed, growth: Growth) {
    let settled = match growth {
        Growth::Free => observed.growth_note.is_none(),
        Growth::Stopped | Growth::Closed => observed.growth_note.as_deref() == Some(STOPPED),
    };
    let withheld = steps.iter().any(|step| matches!(step, Step::Withhold { .. }));
    if settled && !withheld {
        return;
    }
    let names_seen = observed.accounts.keys();
    steps.extend(names_seen.map(|name| Step::EndSessions { account: Account::any_host(name) }));
    if !settled {
        let done = (growth != Growth::Free).then(|| STOPPED.to_owned());
        steps.push(note(names, Kind::Growth, done));
    }
}

fn note(names: &Names, kind: Kind, note: Option<String>) -> Step {
    Step::Note { kind, database: names.database().to_owned(), note }
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
    // A server that only goes by another name is the same one.
    let known = provisioned.system_identifier.as_ref();
    let is_same_server = known.is_some() && known == observed.system_identifier.as_ref();
    if let (Some(from), false) = (&desired.moved_from, is_same_server) {
        return Err(Problem::Moved {
            database: names.database().to_owned(),
            since: provisioned.at.to_string(),
            from: from.clone(),
        });
    }
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
    for name in observed.accounts.keys() {
        let claim = tag::claim(desired, observed.account_tags.get(name).map(String::as_str));
        let nobodys = || "it is not in the registry".to_owned();
        tag::may_touch(desired, format!("account \"{name}\""), claim, database_is_ours, nobodys)?;
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

/// Whether an account may log in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Yes,
    Closed,
    /// Whether it is open is not to be changed now.
    AsItIs,
}

fn account(
    steps: &mut Vec<Step>,
    desired: &Desired,
    names: &Names,
    name: &str,
    seen: Option<&SeenAccount>,
    entry: Entry,
    growth: Growth,
) {
    let account = Account::any_host(name);
    let database = || names.database().to_owned();
    let limit = limit(desired);
    let open = entry == Entry::Yes;
    let allowed: &[&'static str] = match growth {
        Growth::Free => &step::PRIVILEGES,
        Growth::Stopped | Growth::Closed => &step::PRIVILEGES_WHEN_STOPPED,
    };
    let grant = Step::Grant { database: database(), account: account.clone(), privileges: allowed.to_vec() };
    let Some(seen) = seen else {
        steps.push(Step::CreateAccount { account, limit, open });
        steps.push(grant);
        return;
    };
    for target in &seen.proxies {
        steps.push(Step::RevokeProxy { target: target.clone(), account: account.clone() });
    }
    let has = |word: &str| seen.privileges.contains(word);
    let known = |word: &String| step::PRIVILEGES.contains(&word.as_str());
    if !seen.excess.is_empty() || !seen.privileges.iter().all(known) {
        steps.push(Step::RevokeEverything { account: account.clone() });
        steps.push(grant);
    } else {
        let withheld = |word: &&str| has(word) && !allowed.contains(word);
        let privileges: Vec<_> = step::PRIVILEGES.into_iter().filter(withheld).collect();
        if !privileges.is_empty() {
            steps.push(Step::Withhold { database: database(), account: account.clone(), privileges });
        }
        if !allowed.iter().all(|word| has(word)) {
            steps.push(grant);
        }
    }
    if !seen.native_only {
        steps.push(Step::CloseAuthentication { account: account.clone() });
    }
    if seen.locked && open || !seen.requires_tls || seen.limit != limit || seen.hindered {
        steps.push(Step::ShapeAccount { account: account.clone(), limit, open });
    }
    if !seen.locked && entry == Entry::Closed {
        steps.push(Step::CloseLogin { account });
    }
}
