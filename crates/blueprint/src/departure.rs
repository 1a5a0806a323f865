//! The end of a Comune with `deletionPolicy: Delete`: what is decided between the deletion of its manifest and the
//! deletion of what it has.
//!
//! Nothing is decided from what happened before: each look starts from the manifest, the status and the clock, so that
//! a person who takes the word back stops whatever is not done yet.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::{Comune, ComuneStatus, DeletionPolicy, DeletionStatus, Placement, keys, reasons};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    child::ChildRef,
    kind::Wave,
    names,
    plan::{Action, NamespaceSeen, Observed, Plan, identity_clash},
    report,
};

/// Parts of a grace period after each of which it is told how much has passed.
const GRACE_STEPS: i32 = 72;

/// What is known beside the Comune itself when its end is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The definition `comuni.conme.venis.it` is being deleted, or is gone: nobody asked for the end of this Comune.
    pub definition_is_going: bool,
    /// Time between the confirmation and the first deletion.
    pub grace: SignedDuration,
    /// How long this process has known of this very confirmation, by a clock that does not jump.
    pub known_for: SignedDuration,
    /// What was left of the grace period when this process first knew of it, as [`grace_left`] says.
    pub left_then: SignedDuration,
}

/// What happens to a Comune that somebody has deleted.
#[derive(Clone, Debug, PartialEq)]
pub enum Departure {
    /// It may go now and everything that it has stays. In words, why.
    LetGo(&'static str),
    /// Nothing is deleted yet; what runs is looked after as before.
    Hold(Told),
    /// What it has is deleted.
    CleanUp(Told),
}

/// What is told of a Comune that is on its way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// For the status.
    pub deletion: DeletionStatus,
    /// Whether the condition `Deleting` is true.
    pub is_deleting: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// In words, with what to do.
    pub message: String,
}

/// What a confirmed deletion takes, and what it leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estate {
    /// Namespaces that go, with their unique ids.
    pub namespaces: BTreeMap<String, String>,
    /// Namespaces that are on their way out.
    pub terminating: Vec<String>,
    /// Namespaces that stay although they carry this Comune's name, each with the reason.
    pub kept: BTreeMap<String, &'static str>,
    /// Databases (by their names in the manifest) that are dropped: their own policy is Delete.
    pub drop: Vec<String>,
    /// Databases on servers of their own that go with their namespaces: their own policy is Delete.
    pub with_namespace: Vec<String>,
    /// Databases that stay on their servers.
    pub retain: Vec<String>,
}

/// Whether this Comune carries the operator's finalizer.
pub fn holds_finalizer(comune: &Comune) -> bool {
    comune.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == keys::DELETION)
}

/// The finalizers that a living Comune has to carry, when they are other ones than it carries.
pub fn finalizers_to_write(comune: &Comune) -> Option<Vec<String>> {
    let wanted = comune.spec.deletion_policy == DeletionPolicy::Delete;
    if comune.spec.paused || comune.metadata.deletion_timestamp.is_some() || wanted == holds_finalizer(comune)
    {
        return None;
    }
    let mut finalizers = without_finalizer(comune);
    if wanted {
        finalizers.push(keys::DELETION.to_owned());
    }
    Some(finalizers)
}

/// The finalizers of others.
pub fn without_finalizer(comune: &Comune) -> Vec<String> {
    let finalizers = comune.metadata.finalizers.iter().flatten();
    finalizers.filter(|finalizer| *finalizer != keys::DELETION).cloned().collect()
}

/// Whether somebody has deleted this Comune and it waits for the operator.
pub fn is_departing(comune: &Comune) -> bool {
    comune.metadata.deletion_timestamp.is_some() && holds_finalizer(comune)
}

/// What is told of a Comune that somebody has deleted and that others than the operator hold on to; None when nobody does.
pub fn held_by_others(comune: &Comune) -> Option<Told> {
    let requested = comune.metadata.deletion_timestamp.as_ref()?;
    let others = without_finalizer(comune);
    if others.is_empty() || holds_finalizer(comune) {
        return None;
    }
    Some(Told {
        deletion: DeletionStatus {
            requested_at: report::rfc3339(requested.0),
            confirmed_at: None,
            ..DeletionStatus::default()
        },
        is_deleting: false,
        reason: reasons::WAITING,
        message: format!(
            "it was deleted and Con.Me changes nothing any more; it goes when these finalizers of others come off: {}",
            others.join(", ")
        ),
    })
}

/// The word by which a person confirms the deletion of exactly this Comune.
pub fn confirmation(comune: &Comune) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&comune.metadata.name), part(&comune.metadata.uid))
}

/// What happens to a Comune for which [`is_departing`] holds.
pub fn departure(
    comune: &Comune,
    estate: &Estate,
    circumstances: &Circumstances,
    now: Timestamp,
) -> Departure {
    let name = comune.metadata.name.clone().unwrap_or_default();
    if circumstances.definition_is_going {
        return Departure::LetGo(
            "the definition of Comuni is being deleted, which is nobody's word for the end of a Comune",
        );
    }
    let requested = comune.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    let before = comune.status.as_ref().and_then(|status| status.deletion.clone());
    let mut deletion =
        DeletionStatus { requested_at: report::rfc3339(requested), ..DeletionStatus::default() };
    let hold =
        |deletion, reason, message| Departure::Hold(Told { deletion, is_deleting: false, reason, message });
    if comune.spec.paused {
        // The grace period begins anew afterwards: whoever takes the pause away may have forgotten of the deletion.
        let message = "spec.paused is set: nothing is deleted until it is taken away".to_owned();
        return hold(deletion, reasons::PAUSED, message);
    }
    if comune.spec.deletion_policy == DeletionPolicy::Retain {
        return Departure::LetGo("its deletionPolicy is Retain");
    }
    let keep = format!(
        "To keep everything: kubectl patch comune {name} --type merge -p '{{\"spec\":{{\"deletionPolicy\":\"Retain\"}}}}'"
    );
    if comune.spec.protected {
        let message = format!("spec.protected is set: nothing is deleted until it is false. {keep}");
        return hold(deletion, reasons::PROTECTED, message);
    }
    let annotations = comune.metadata.annotations.as_ref();
    let word = annotations.and_then(|annotations| annotations.get(keys::CONFIRM_DELETE));
    let confirmation = confirmation(comune);
    if word != Some(&confirmation) {
        let other = if word.is_some() { "the confirmation speaks of another object; " } else { "" };
        let message = format!(
            "{other}nothing is deleted without a confirmation. To delete {}: kubectl annotate comune {name} \
             {}={confirmation} --overwrite. {keep}",
            estate.in_words(),
            keys::CONFIRM_DELETE
        );
        return hold(deletion, reasons::CONFIRMATION_MISSING, message);
    }
    // Counted from the first look at this confirmation and never counted anew: a restart goes on.
    let seen_before = before.as_ref().and_then(|before| before.seen_seconds);
    let known = before.filter(|before| parsed(&before.delete_after).is_some());
    let (confirmed_at, delete_after) = match known {
        Some(known) => (known.confirmed_at, known.delete_after),
        None => {
            let end = now.saturating_add(circumstances.grace).unwrap_or(Timestamp::MAX);
            (Some(report::rfc3339(now)), Some(report::rfc3339(end)))
        }
    };
    deletion.confirmed_at = confirmed_at;
    deletion.delete_after = delete_after.clone();
    let end = parsed(&delete_after).unwrap_or(Timestamp::MAX);
    let seen = seen(&deletion, circumstances);
    deletion.seen_seconds = Some(seen_before.unwrap_or_default().max(seen.as_secs()));
    if now < end || circumstances.known_for < circumstances.left_then {
        let message = format!(
            "{} will be deleted after {}. To stop it: kubectl annotate comune {name} {}-. {keep}",
            estate.in_words(),
            report::rfc3339(end),
            keys::CONFIRM_DELETE
        );
        return Departure::Hold(Told { deletion, is_deleting: true, reason: reasons::GRACE_PERIOD, message });
    }
    let mut message = format!("being deleted: {}", estate.in_words());
    if !estate.terminating.is_empty() {
        message += &format!("; waiting until these are gone: {}", estate.terminating.join(", "));
    }
    Departure::CleanUp(Told { deletion, is_deleting: true, reason: reasons::CLEANING_UP, message })
}

fn parsed(text: &Option<String>) -> Option<Timestamp> {
    text.as_ref().and_then(|text| text.parse().ok())
}

/// All of a grace period, as it was when it began. Both ends are of the same clock at the same moment, right or wrong.
fn whole(deletion: &DeletionStatus) -> Option<SignedDuration> {
    let whole = parsed(&deletion.delete_after)?.duration_since(parsed(&deletion.confirmed_at)?);
    Some(whole.max(SignedDuration::ZERO))
}

/// How often it is told what has been seen of a grace period: a restart makes it longer by less than this.
pub fn grace_step(grace: SignedDuration) -> SignedDuration {
    (grace / GRACE_STEPS).max(SignedDuration::from_secs(1))
}

/// What operators have seen of a grace period, in steps.
fn seen(deletion: &DeletionStatus, circumstances: &Circumstances) -> SignedDuration {
    let whole = whole(deletion).unwrap_or(circumstances.grace);
    let seen = whole.saturating_sub(circumstances.left_then).saturating_add(circumstances.known_for);
    if seen >= whole {
        return whole;
    }
    let step = grace_step(whole).as_secs();
    SignedDuration::from_secs(seen.as_secs() / step * step)
}

/// How much of the grace period no operator has seen pass yet; never more than all of it. Which time it is has no part in
/// this: a clock that jumps while no operator runs would shorten it.
pub fn grace_left(deletion: &DeletionStatus, grace: SignedDuration) -> SignedDuration {
    let whole = whole(deletion).unwrap_or(grace).max(SignedDuration::ZERO);
    let seen = SignedDuration::from_secs(deletion.seen_seconds.unwrap_or_default());
    whole.saturating_sub(seen).clamp(SignedDuration::ZERO, whole)
}

/// What a confirmed deletion of a Comune takes, and what it leaves.
pub fn estate(comune: &Comune, observed: &Observed) -> Estate {
    let name = comune.metadata.name.clone().unwrap_or_default();
    let uid = comune.metadata.uid.clone().unwrap_or_default();
    let mut estate = Estate::default();
    let held = namespaces_with_servers(comune);
    for (namespace, seen) in &observed.namespaces {
        if !is_labelled(&name, seen) {
            continue;
        }
        if seen.terminating {
            estate.terminating.push(namespace.clone());
        } else if seen.labels.get(keys::PROTECTED).map(String::as_str) == Some("true") {
            estate.kept.insert(namespace.clone(), "it is protected");
        } else if held.contains(namespace) {
            estate.kept.insert(namespace.clone(), "it holds a database server whose data is to be kept");
        } else if !observed.own_namespaces.contains(&seen.uid)
            && identity_clash(&comune.spec.entity, &uid, &name, seen).is_some()
        {
            estate.kept.insert(namespace.clone(), "it is another administration's");
        } else {
            estate.namespaces.insert(namespace.clone(), seen.uid.clone());
        }
    }
    for database in &comune.spec.databases {
        let list = match (database.deletion_policy, &database.placement) {
            (DeletionPolicy::Retain, _) => &mut estate.retain,
            (DeletionPolicy::Delete, Placement::Shared(_)) => &mut estate.drop,
            (DeletionPolicy::Delete, Placement::Dedicated(_)) => {
                let namespace = names::namespace(&name, &database.environment);
                let stays = estate.kept.contains_key(&namespace);
                if stays { &mut estate.retain } else { &mut estate.with_namespace }
            }
        };
        list.push(database.name.clone());
    }
    estate
}

/// Namespaces with a database on a server of its own that is not to be deleted: the server would go with its namespace.
/// Also one that left the manifest, whose policy nobody knows any more.
fn namespaces_with_servers(comune: &Comune) -> BTreeSet<String> {
    let name = comune.metadata.name.clone().unwrap_or_default();
    let declared = comune.spec.databases.iter().filter_map(|database| match &database.placement {
        Placement::Dedicated(_) if database.deletion_policy == DeletionPolicy::Retain => {
            Some(names::namespace(&name, &database.environment))
        }
        _ => None,
    });
    let server = format!("/{}", names::binding_secret(""));
    let may_go = |namespace: &str, database: &str| {
        comune.spec.databases.iter().any(|declared| {
            declared.name == database
                && declared.deletion_policy == DeletionPolicy::Delete
                && names::namespace(&name, &declared.environment) == namespace
        })
    };
    // Where it was provisioned counts, whatever the manifest says by now.
    let provisioned = comune.status.iter().flat_map(|status| &status.databases).filter_map(|told| {
        let (namespace, _) = told.server.split_once(&server)?;
        (!may_go(namespace, &told.name)).then(|| namespace.to_owned())
    });
    let left = comune.status.iter().flat_map(|status| &status.orphans).filter_map(|orphan| {
        let (namespace, _) = orphan.name.split_once(&server)?;
        (orphan.kind == "Database").then(|| namespace.to_owned())
    });
    declared.chain(provisioned).chain(left).collect()
}

fn is_labelled(comune: &str, seen: &NamespaceSeen) -> bool {
    let label = |key: &str| seen.labels.get(key).map(String::as_str);
    label(keys::COMUNE) == Some(comune) && label(keys::MANAGED_BY) == Some(keys::MANAGER)
}

impl Estate {
    /// What goes and what stays, for people.
    pub fn in_words(&self) -> String {
        let list = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let all = self.namespaces.keys().chain(&self.terminating).map(String::as_str).collect();
        let mut words = format!(
            "namespaces {} with their volume claims, databases {}",
            list(all),
            list(self.drop.iter().map(String::as_str).collect())
        );
        if !self.with_namespace.is_empty() {
            words += &format!(", database servers of its own {}", self.with_namespace.join(", "));
        }
        if !self.retain.is_empty() {
            words += &format!(" (kept by their own deletionPolicy: {})", self.retain.join(", "));
        }
        for (namespace, why) in &self.kept {
            words += &format!(" ({namespace} stays: {why})");
        }
        words
    }
}

/// The calls that delete the namespaces of a confirmed deletion, each by its unique id.
pub fn plan_departure(estate: &Estate) -> Plan {
    let mut plan = Plan::default();
    let namespaces = estate
        .namespaces
        .iter()
        .map(|(name, uid)| Action::Delete { at: ChildRef::of_namespace(name), uid: uid.clone() });
    plan.waves.insert(Wave::Namespaces, namespaces.collect());
    plan
}

/// Puts what is told of a departure into a status.
pub fn tell_departure(status: &mut ComuneStatus, comune: &Comune, told: &Told, now: Timestamp) {
    status.observed_generation = comune.metadata.generation;
    status.deletion = Some(told.deletion.clone());
    let previous = comune.status.clone().unwrap_or_default();
    let deleting = (told.is_deleting, told.reason, told.message.clone());
    let ready = (false, told.reason, told.message.clone());
    let mut put = |condition: Condition| match status
        .conditions
        .iter_mut()
        .find(|known| known.type_ == condition.type_)
    {
        Some(known) => *known = condition,
        None => status.conditions.push(condition),
    };
    put(report::condition(reasons::READY, &ready, comune, &previous, now));
    put(report::condition(reasons::DELETING, &deleting, comune, &previous, now));
}
