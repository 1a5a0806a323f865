//! Decides, from what is declared and what was seen, what is to be done. Pure: no server, no clock, no randomness.

use std::collections::BTreeSet;

use super::{
    Available, Grant, Membership, Object, Observed, SeenDatabase, SeenRole, Step,
    step::{CREDENTIAL_MARK, GROWTH_MARK},
};
use crate::tag::{self, Claim};
use crate::{Before, Desired, Growth, Login, MissingData, Names, OtherLogin, Problem};

/// `datconnlimit` of a database whose `DROP DATABASE` was interrupted.
const HALF_DROPPED: i32 = -2;
const NO_LIMIT: i32 = -1;
const SCHEMA: &str = "public";
/// Part of every database from the start.
const ALWAYS_INSTALLED: &str = "plpgsql";

/// What is to be done, in this order, to reach the declared state; empty when it is reached.
///
/// Each prefix of the steps leaves a state from which a new plan completes the rest. The database is opened to its
/// application by the last step only.
///
/// # Errors
/// [`Problem::DataMissing`], [`Problem::Moved`], [`Problem::NotOurs`], [`Problem::ExtensionNotAllowed`],
/// [`Problem::ExtensionUnavailable`] and [`Problem::InvalidName`]. Then nothing may be done.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Step>, Problem> {
    let names = desired.names()?;
    data_is_there(desired, &names, observed)?;
    all_is_ours(desired, &names, observed)?;
    nobody_was_faster(desired, &names, observed)?;
    let extensions = extensions(desired, observed)?;
    let growth = growth(desired, observed);

    let mut steps = Vec::new();
    role(&mut steps, desired, observed, names.owner(), Entry::No);
    let entry = |login: Login| match (is_closed(desired, growth), desired.login == login) {
        (true, _) => Entry::Closed,
        (false, true) => Entry::Yes,
        // Not before the login in force has been proved: see `afterwards`.
        (false, false) => Entry::AsItIs,
    };
    role(&mut steps, desired, observed, names.app(), entry(Login::First));
    if desired.login == Login::Second || observed.roles.contains_key(names.login(Login::Second)) {
        role(&mut steps, desired, observed, names.login(Login::Second), entry(Login::Second));
        acting(&mut steps, &names, observed);
    }
    let mut end = Vec::new();
    let handed_out = desired.generation.filter(|generation| generation.handed_out).map(|g| g.number);
    if let Some(generation) = handed_out.filter(|number| *number > generation(observed)) {
        end.push(Step::MarkCredential { database: names.database().to_owned(), generation });
    }
    size(&mut steps, &mut end, &names, observed, growth);
    let rules = Rules::new(desired, growth);
    database(&mut steps, &mut end, desired, &names, observed, &rules.database);
    inside(&mut steps, &names, observed, extensions, &rules.schema);
    steps.extend(end);
    Ok(steps)
}

/// What is left to do once everything is as planned and the login in force has been proved: the login that is not in
/// force ends, and so do sessions that nobody should have.
pub(super) fn afterwards(desired: &Desired, names: &Names, observed: &Observed) -> Vec<Step> {
    let end_sessions = |roles: &[&str]| Step::EndSessions {
        database: names.database().to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
    };
    let logins = [Login::First, Login::Second].map(|login| names.login(login));
    if is_closed(desired, growth(desired, observed)) {
        let used = logins.iter().any(|role| observed.roles.get(*role).is_some_and(|seen| seen.sessions > 0));
        return if used { vec![end_sessions(&logins)] } else { Vec::new() };
    }
    let other = names.login(desired.login.other());
    let Some(seen) = observed.roles.get(other).filter(|seen| seen.login) else { return Vec::new() };
    let close = Step::CloseLogin { role: other.to_owned() };
    match desired.other_login {
        OtherLogin::Keep => Vec::new(),
        OtherLogin::CloseWhenUnused if seen.sessions > 0 => Vec::new(),
        OtherLogin::CloseWhenUnused => vec![close],
        OtherLogin::Close => vec![close, end_sessions(&[other])],
    }
}

/// The number of the last credential that is known to have been handed out. The first one is not noted.
pub(super) fn generation(observed: &Observed) -> u32 {
    let noted = observed.database.as_ref().and_then(|seen| setting(&seen.settings, CREDENTIAL_MARK));
    noted.and_then(|number| number.parse().ok()).unwrap_or(1)
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

/// Whether the application may not enter.
pub(super) fn is_closed(desired: &Desired, growth: Growth) -> bool {
    !desired.open || growth == Growth::Closed
}

/// Whether the database may grow, by its size and by the note that was left on it.
pub(super) fn growth(desired: &Desired, observed: &Observed) -> Growth {
    observed.database.as_ref().map_or(Growth::Free, |seen| {
        let before = Mark::of(seen)
            .map_or_else(Before::default, |mark| Before { growth: mark.growth, stopped_at: mark.bytes });
        crate::growth(seen.size_bytes, desired.max_bytes, before, seen.rewriting)
    })
}

/// The note on a database whose growth has been stopped.
struct Mark {
    growth: Growth,
    bytes: Option<u64>,
}

impl Mark {
    fn of(seen: &SeenDatabase) -> Option<Self> {
        let text = setting(&seen.settings, GROWTH_MARK)?;
        let (word, bytes) = text.split_once('@').unwrap_or((text, ""));
        let growth = if word == "closed" { Growth::Closed } else { Growth::Stopped };
        Some(Self { growth, bytes: bytes.parse().ok() })
    }
}

fn setting<'a>(settings: &'a [String], name: &str) -> Option<&'a str> {
    settings.iter().find_map(|setting| setting.strip_prefix(name)?.strip_prefix('='))
}

/// Extensions that are installed and neither declared nor needed by a declared one.
pub(super) fn undeclared_extensions(desired: &Desired, observed: &Observed) -> Vec<String> {
    let Some(inside) = observed.database.as_ref().and_then(|database| database.inside.as_ref()) else {
        return Vec::new();
    };
    let mut wanted: BTreeSet<&str> = BTreeSet::from([ALWAYS_INSTALLED]);
    let mut open: Vec<&str> = desired.extensions.iter().map(String::as_str).collect();
    while let Some(name) = open.pop() {
        if wanted.insert(name) {
            open.extend(inside.extensions.get(name).into_iter().flatten().map(String::as_str));
        }
    }
    inside.extensions.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect()
}

/// Roles that are not of this system and have privileges on the database.
pub(super) fn other_grantees(names: &Names, observed: &Observed) -> Vec<String> {
    let grants = observed.database.iter().flat_map(|database| &database.grants);
    let others: BTreeSet<&String> = grants
        .filter_map(|grant| grant.grantee.as_ref())
        .filter(|grantee| *grantee != names.owner() && names.login_of(grantee).is_none())
        .collect();
    others.into_iter().cloned().collect()
}

fn data_is_there(desired: &Desired, names: &Names, observed: &Observed) -> Result<(), Problem> {
    let missing = |since: Option<String>, missing: MissingData| Problem::DataMissing {
        database: names.database().to_owned(),
        since: since.unwrap_or_else(|| "an earlier run".to_owned()),
        missing,
    };
    let since = desired.provisioned.as_ref().map(|provisioned| provisioned.at.to_string());
    let known = desired.provisioned.as_ref().and_then(|provisioned| provisioned.system_identifier.as_ref());
    // A server that only goes by another name is the same one.
    let is_same_server = known.is_some() && known == observed.system_identifier.as_ref();
    if let (Some(from), Some(_), false) = (&desired.moved_from, &desired.provisioned, is_same_server) {
        return Err(Problem::Moved {
            database: names.database().to_owned(),
            since: since.unwrap_or_else(|| "an earlier run".to_owned()),
            from: from.clone(),
        });
    }
    if observed.database.as_ref().is_some_and(|database| database.connection_limit == HALF_DROPPED) {
        return Err(missing(since, MissingData::HalfDropped));
    }
    let Some(provisioned) = &desired.provisioned else {
        return Ok(());
    };
    if let (Some(expected), Some(found)) = (&provisioned.system_identifier, &observed.system_identifier)
        && expected != found
    {
        let replaced = MissingData::ServerReplaced {
            expected: expected.clone(),
            found: found.clone(),
            database_present: observed.database.is_some(),
        };
        return Err(missing(since, replaced));
    }
    if observed.database.is_none() { Err(missing(since, MissingData::Gone)) } else { Ok(()) }
}

fn all_is_ours(desired: &Desired, names: &Names, observed: &Observed) -> Result<(), Problem> {
    let claim_of_role = |name: &str| {
        observed
            .roles
            .get(name)
            .map(|role| (role.comment.as_ref(), tag::claim(desired, role.comment.as_deref())))
    };
    let owner = claim_of_role(names.owner());
    let app = claim_of_role(names.app());
    let second = claim_of_role(names.login(Login::Second));
    let database =
        observed.database.as_ref().map(|seen| (seen, tag::claim(desired, seen.comment.as_deref())));

    let is_ours = |claim: &Claim| matches!(claim, Claim::Ours | Claim::OursOutdated);
    let owner_is_ours = owner.as_ref().is_some_and(|(_, claim)| is_ours(claim));
    let database_is_ours = database.as_ref().is_some_and(|(_, claim)| is_ours(claim));
    // A run that ended between making the database and writing its comment left it with our owner.
    let made_by_us = owner_is_ours && database.as_ref().is_some_and(|(seen, _)| seen.owner == names.owner());

    let check = |object: String, comment: Option<&String>, claim: Claim, vouched: bool| {
        let nobodys =
            || comment.map_or("it has no comment".into(), |comment| format!("its comment is {comment:?}"));
        tag::may_touch(desired, object, claim, vouched, nobodys)
    };
    if let Some((seen, claim)) = database {
        check(format!("database \"{}\"", names.database()), seen.comment.as_ref(), claim, made_by_us)?;
    }
    let roles = [(names.owner(), owner), (names.app(), app), (names.login(Login::Second), second)];
    for (name, claimed) in roles {
        if let Some((comment, claim)) = claimed {
            check(format!("role \"{name}\""), comment, claim, database_is_ours)?;
        }
    }
    Ok(())
}

/// Whether a role may log in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// It is a login.
    Yes,
    /// It is no login and never was one.
    No,
    /// It is a login that is closed.
    Closed,
    /// It is a login, and whether it is open is not to be changed now.
    AsItIs,
}

fn role(steps: &mut Vec<Step>, desired: &Desired, observed: &Observed, name: &str, entry: Entry) {
    let comment = tag::comment(desired);
    let Some(seen) = observed.roles.get(name) else {
        steps.push(Step::CreateRole { role: name.to_owned(), login: entry == Entry::Yes, tag: comment });
        return;
    };
    let attributes = wrong_attributes(seen, entry);
    if !attributes.is_empty() {
        steps.push(Step::AlterRole { role: name.to_owned(), attributes });
    }
    if seen.login && entry == Entry::Closed {
        steps.push(Step::CloseLogin { role: name.to_owned() });
    }
    let names = desired.names().ok();
    let acts = |group: &str, member: &str, membership: &Membership| {
        let second = |names: &Names| group == names.app() && member == names.login(Login::Second);
        membership.plain && names.as_ref().is_some_and(second)
    };
    // Servers before 16 keep no reliable record of who granted a membership, and do not ask for it.
    let by =
        |membership: &Membership| (observed.version_number >= 160_000).then(|| membership.grantor.clone());
    let groups = seen.member_of.iter().filter(|membership| !acts(&membership.role, name, membership));
    let members = seen.members.iter().filter(|membership| !acts(name, &membership.role, membership));
    steps.extend(groups.map(|membership| Step::RevokeMembership {
        group: membership.role.clone(),
        member: name.to_owned(),
        granted_by: by(membership),
    }));
    steps.extend(members.map(|membership| Step::RevokeMembership {
        group: name.to_owned(),
        member: membership.role.clone(),
        granted_by: by(membership),
    }));
    if tag::claim(desired, seen.comment.as_deref()) != Claim::Ours {
        steps.push(Step::TagRole { role: name.to_owned(), tag: comment });
    }
}

/// The second login has all rights of the application's role, and acts as it from the first statement on.
fn acting(steps: &mut Vec<Step>, names: &Names, observed: &Observed) {
    let (app, second) = (names.app(), names.login(Login::Second));
    let seen = observed.roles.get(second);
    if !seen.is_some_and(|seen| seen.member_of.iter().any(|group| group.role == app && group.plain)) {
        steps.push(Step::GrantMembership { group: app.to_owned(), member: second.to_owned() });
    }
    if seen.is_some_and(|seen| setting(&seen.settings_here, "role").is_some()) {
        steps.push(Step::ResetSetting {
            role: second.to_owned(),
            database: Some(names.database().to_owned()),
            setting: "role",
        });
    }
    if seen.is_none_or(|seen| setting(&seen.settings, "role") != Some(app)) {
        steps.push(Step::ActAs { role: second.to_owned(), acts_as: app.to_owned() });
    }
}

fn wrong_attributes(seen: &SeenRole, entry: Entry) -> Vec<&'static str> {
    let login = entry != Entry::No;
    let wrong = [
        (seen.superuser, "NOSUPERUSER"),
        (seen.create_database, "NOCREATEDB"),
        (seen.create_role, "NOCREATEROLE"),
        (seen.replication, "NOREPLICATION"),
        (seen.bypass_rls, "NOBYPASSRLS"),
        (seen.login && !login, "NOLOGIN"),
        (!seen.login && entry == Entry::Yes, "LOGIN"),
        // Both would shut the application out. An expired password looks like a wrong one.
        (login && seen.connection_limit != NO_LIMIT, "CONNECTION LIMIT -1"),
        (login && seen.expires, "VALID UNTIL 'infinity'"),
    ];
    wrong.into_iter().filter_map(|(is_wrong, repair)| is_wrong.then_some(repair)).collect()
}

/// Stops growth, or lets it go on. The note comes first and goes last: as long as it is there, the rest is repeated.
fn size(steps: &mut Vec<Step>, end: &mut Vec<Step>, names: &Names, observed: &Observed, growth: Growth) {
    let Some(seen) = &observed.database else { return };
    let name = names.database().to_owned();
    let logins = [Login::First, Login::Second].map(|login| names.login(login));
    let end_sessions = Step::EndSessions {
        database: name.clone(),
        roles: logins
            .into_iter()
            .filter(|role| observed.roles.contains_key(*role))
            .map(str::to_owned)
            .collect(),
    };
    let mark = Mark::of(seen);
    let read_only = setting(&seen.settings, READ_ONLY) == Some("on");
    if growth == Growth::Free {
        if mark.is_some() {
            if read_only {
                steps.push(Step::ReadOnly { database: name.clone(), on: false });
            }
            // Those that are there would stay read-only.
            steps.push(end_sessions);
            end.push(Step::MarkGrowth { database: name, mark: None });
        }
        return;
    }
    if mark.as_ref().is_none_or(|mark| mark.growth != growth) {
        let word = if growth == Growth::Closed { "closed" } else { "stopped" };
        let bytes = mark.and_then(|mark| mark.bytes).unwrap_or(seen.size_bytes);
        steps.push(Step::MarkGrowth { database: name.clone(), mark: Some(format!("{word}@{bytes}")) });
    }
    if !read_only {
        steps.push(Step::ReadOnly { database: name.clone(), on: true });
    }
    let before = steps.len();
    for role in logins {
        let Some(seen) = observed.roles.get(role) else { continue };
        for (settings, database) in [(&seen.settings, None), (&seen.settings_here, Some(name.clone()))] {
            if setting(settings, READ_ONLY).is_some() {
                steps.push(Step::ResetSetting { role: role.to_owned(), database, setting: READ_ONLY });
            }
        }
    }
    // What it may make is taken away right after: where that has been done, the sessions have been ended.
    let may_make = seen
        .grants
        .iter()
        .any(|grant| grant.grantee.as_deref() == Some(names.app()) && grant.privilege == "TEMPORARY");
    if !read_only || may_make || steps.len() > before {
        steps.push(end_sessions);
    }
}

const READ_ONLY: &str = "default_transaction_read_only";

fn database(
    steps: &mut Vec<Step>,
    end: &mut Vec<Step>,
    desired: &Desired,
    names: &Names,
    observed: &Observed,
    rule: &Privileges,
) {
    let name = names.database().to_owned();
    let limit = desired.connection_limit.unwrap_or(NO_LIMIT);
    let comment = tag::comment(desired);
    let object = Object::Database(name.clone());
    let Some(seen) = &observed.database else {
        steps.push(Step::CreateDatabase {
            database: name.clone(),
            owner: names.owner().to_owned(),
            locale: desired.locale.clone(),
        });
        steps.push(Step::TagDatabase { database: name.clone(), tag: comment });
        steps.push(revoke(&object, None, &[]));
        if !rule.app.is_empty() {
            steps.push(Step::Grant { object, privileges: rule.app.to_vec(), to: names.app().to_owned() });
        }
        end.push(Step::LimitConnections { database: name, limit });
        return;
    };
    if seen.owner != names.owner() {
        steps.push(Step::OwnDatabase { database: name.clone(), owner: names.owner().to_owned() });
    }
    if seen.template || !seen.allows_connections {
        steps.push(Step::ResetFlags { database: name.clone() });
    }
    if tag::claim(desired, seen.comment.as_deref()) != Claim::Ours {
        steps.push(Step::TagDatabase { database: name.clone(), tag: comment });
    }
    privileges(steps, &object, names, &seen.owner, &seen.grants, rule);
    if seen.connection_limit != limit {
        end.push(Step::LimitConnections { database: name, limit });
    }
}

fn inside(
    steps: &mut Vec<Step>,
    names: &Names,
    observed: &Observed,
    extensions: Vec<Step>,
    rule: &Privileges,
) {
    let object = Object::Schema(SCHEMA.to_owned());
    let own = Step::OwnSchema { schema: SCHEMA.to_owned(), owner: names.owner().to_owned() };
    let grant =
        Step::Grant { object: object.clone(), privileges: rule.app.to_vec(), to: names.app().to_owned() };
    let seen_inside = observed.database.as_ref().and_then(|database: &SeenDatabase| database.inside.as_ref());
    if seen_inside.is_some_and(|inside| inside.strays) {
        steps
            .push(Step::HandOver { from: names.login(Login::Second).to_owned(), to: names.app().to_owned() });
    }
    match seen_inside.map(|inside| &inside.public) {
        // Made in this run or closed until now: everything, as the steps may be repeated.
        None => {
            steps.push(own);
            steps.push(revoke(&object, None, &[]));
            // Before the application may create anything beside them.
            steps.extend(extensions);
            steps.push(grant);
        }
        Some(None) => {
            steps.push(Step::CreateSchema { schema: SCHEMA.to_owned(), owner: names.owner().to_owned() });
            steps.extend(extensions);
            steps.push(grant);
        }
        Some(Some(public)) => {
            if public.owner != names.owner() {
                steps.push(own);
            }
            let mut grants = Vec::new();
            privileges(&mut grants, &object, names, &public.owner, &public.grants, rule);
            let (given, taken): (Vec<_>, Vec<_>) =
                grants.into_iter().partition(|step| matches!(step, Step::Grant { .. }));
            steps.extend(taken);
            steps.extend(extensions);
            steps.extend(given);
        }
    }
}

/// Who may have what on an object.
struct Privileges {
    /// Exactly these for the application.
    app: &'static [&'static str],
    /// At most these for roles that are not of this system (backup, monitoring).
    strangers: &'static [&'static str],
}

struct Rules {
    database: Privileges,
    schema: Privileges,
}

impl Rules {
    fn new(desired: &Desired, growth: Growth) -> Self {
        // No CREATE on the database: with it the application could install trusted extensions past the allow-list.
        let database: &[&str] = match (is_closed(desired, growth), growth) {
            (true, _) => &[],
            (false, Growth::Free) => &["CONNECT", "TEMPORARY"],
            (false, Growth::Stopped | Growth::Closed) => &["CONNECT"],
        };
        let schema: &[&str] = match growth {
            Growth::Free => &["USAGE", "CREATE"],
            Growth::Stopped | Growth::Closed => &["USAGE"],
        };
        Self {
            database: Privileges { app: database, strangers: &["CONNECT", "TEMPORARY"] },
            schema: Privileges { app: schema, strangers: &["USAGE"] },
        }
    }
}

/// All that exist on databases and schemas; what is revoked is one of these words.
const KNOWN: [&str; 4] = ["CONNECT", "TEMPORARY", "CREATE", "USAGE"];

fn privileges(
    steps: &mut Vec<Step>,
    object: &Object,
    names: &Names,
    seen_owner: &str,
    grants: &[Grant],
    rule: &Privileges,
) {
    // A change of owner hands the old owner's privileges to the new one.
    let is_owner = |grantee: &str| grantee == names.owner() || grantee == seen_owner;
    let of = |grantee: Option<&str>, privilege: &str| {
        grants.iter().any(|grant| grant.grantee.as_deref() == grantee && grant.privilege == privilege)
    };
    if grants.iter().any(|grant| grant.grantee.is_none()) {
        steps.push(revoke(object, None, &[]));
    }
    let grantees: BTreeSet<&str> = grants
        .iter()
        .filter_map(|grant| grant.grantee.as_deref())
        .filter(|grantee| !is_owner(grantee))
        .collect();
    for grantee in grantees {
        let mine = || grants.iter().filter(move |grant| grant.grantee.as_deref() == Some(grantee));
        let is_app = grantee == names.app();
        if !is_app && mine().any(|grant| tag::is_managed(grant.grantee_comment.as_deref())) {
            // Another tenant's role.
            steps.push(revoke(object, Some(grantee), &[]));
            continue;
        }
        let allowed = if is_app { rule.app } else { rule.strangers };
        let excess: Vec<&'static str> =
            KNOWN.into_iter().filter(|word| of(Some(grantee), word) && !allowed.contains(word)).collect();
        if !excess.is_empty() {
            steps.push(revoke(object, Some(grantee), &excess));
        }
        if mine().any(|grant| grant.grantable && allowed.contains(&grant.privilege.as_str())) {
            // Whatever was passed on goes with it.
            steps.push(Step::Revoke {
                object: object.clone(),
                privileges: Vec::new(),
                from: Some(grantee.to_owned()),
                only_grant_option: true,
            });
        }
    }
    // An application role that used to own the object loses what it had as the owner.
    let missing: Vec<&'static str> = rule
        .app
        .iter()
        .copied()
        .filter(|word| seen_owner == names.app() || !of(Some(names.app()), word))
        .collect();
    if !missing.is_empty() {
        steps.push(Step::Grant { object: object.clone(), privileges: missing, to: names.app().to_owned() });
    }
}

fn revoke(object: &Object, from: Option<&str>, privileges: &[&'static str]) -> Step {
    Step::Revoke {
        object: object.clone(),
        privileges: privileges.to_vec(),
        from: from.map(str::to_owned),
        only_grant_option: false,
    }
}

fn extensions(desired: &Desired, observed: &Observed) -> Result<Vec<Step>, Problem> {
    let mut search = ExtensionSearch { desired, observed, done: BTreeSet::new(), steps: Vec::new() };
    for name in &desired.extensions {
        search.visit(name, None)?;
    }
    Ok(search.steps)
}

struct ExtensionSearch<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    done: BTreeSet<&'a str>,
    steps: Vec<Step>,
}

impl<'a> ExtensionSearch<'a> {
    /// Puts an extension behind those that it needs.
    fn visit(&mut self, name: &'a str, needed_by: Option<&str>) -> Result<(), Problem> {
        if name == ALWAYS_INSTALLED || !self.done.insert(name) {
            return Ok(());
        }
        if !self.desired.allowed_extensions.contains(name) {
            let allowed: Vec<&str> = self.desired.allowed_extensions.iter().map(String::as_str).collect();
            return Err(Problem::ExtensionNotAllowed {
                extension: name.to_owned(),
                needed_by: needed_by.map(|by| format!(", needed by \"{by}\",")).unwrap_or_default(),
                allowed: if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") },
            });
        }
        let inside = self.observed.database.as_ref().and_then(|database| database.inside.as_ref());
        if inside.is_some_and(|inside| inside.extensions.contains_key(name)) {
            return Ok(());
        }
        let Some(Available { schema, requires }) = self.observed.available.get(name) else {
            return Err(Problem::ExtensionUnavailable { extension: name.to_owned() });
        };
        for required in requires {
            self.visit(required, Some(name))?;
        }
        self.steps.push(Step::CreateExtension {
            extension: name.to_owned(),
            schema: schema.is_none().then(|| SCHEMA.to_owned()),
        });
        Ok(())
    }
}
