//! How a Comune is, as text: the page of `status` and the table of `list`.

use std::{collections::BTreeMap, fmt::Write as _};

use conme_api::{Comune, DatabaseStatus, keys, reasons};
use conme_blueprint::amount::Amount;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, ResourceQuota},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::ResourceExt;

/// A condition of a Comune.
pub fn condition<'a>(comune: &'a Comune, type_: &str) -> Option<&'a Condition> {
    comune.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether a condition holds for the present generation.
pub fn holds(comune: &Comune, type_: &str) -> bool {
    let observed = comune.status.as_ref().and_then(|status| status.observed_generation);
    observed == comune.metadata.generation
        && condition(comune, type_).is_some_and(|condition| condition.status == "True")
}

/// What is told of a condition, or that nothing is told yet.
pub fn told(comune: &Comune, type_: &str) -> String {
    let observed = comune.status.as_ref().and_then(|status| status.observed_generation);
    match condition(comune, type_) {
        Some(_) if observed != comune.metadata.generation => {
            "the operator has not looked at the latest change yet".to_owned()
        }
        Some(condition) => {
            format!("{type_}={} {}: {}", condition.status, condition.reason, condition.message)
        }
        None => "the operator has told nothing of it yet".to_owned(),
    }
}

/// A table with columns as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell}{}   ", " ".repeat(width - cell.chars().count()));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// How long ago, as kubectl writes ages.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What holds a Comune in a state of its own, each with what it means.
fn flags(comune: &Comune) -> Vec<(&'static str, &'static str)> {
    let all = [
        (comune.spec.paused, "paused", "nothing is changed"),
        (comune.spec.cordoned, "cordoned", "its people may not write"),
        (comune.spec.protected, "protected", "cannot be deleted"),
        (comune.metadata.deletion_timestamp.is_some(), "deleted", "somebody has asked for its end"),
    ];
    all.into_iter().filter(|(is_set, ..)| *is_set).map(|(_, flag, meaning)| (flag, meaning)).collect()
}

/// The rows of `list`.
pub fn list(comuni: &[Comune], wide: bool, now: Timestamp) -> String {
    let mut head = vec![
        "NAME",
        "READY",
        "REASON",
        "FLAGS",
        "AVAILABLE",
        "ENVIRONMENTS",
        "DATABASES",
        "SERVICES",
        "MIGRATED",
        "CPU",
        "AGE",
    ];
    if wide {
        head.extend(["ISTAT", "POPULATION", "TIER", "MEMORY"]);
    }
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for comune in comuni {
        let status = comune.status.clone().unwrap_or_default();
        let summary = status.summary.unwrap_or_default();
        let of = |type_: &str| {
            condition(comune, type_).map_or("", |condition| condition.status.as_str()).to_owned()
        };
        let reason = condition(comune, reasons::READY).map_or("", |condition| condition.reason.as_str());
        let created = comune.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
        let mut row = vec![
            comune.name_any(),
            of(reasons::READY),
            reason.to_owned(),
            flags(comune).into_iter().map(|(flag, _)| flag).collect::<Vec<_>>().join(","),
            of(reasons::AVAILABLE),
            summary.environments,
            summary.databases,
            summary.services,
            summary.migrated,
            summary.cpu,
            age(created, now),
        ];
        if wide {
            let entity = &comune.spec.entity;
            row.push(entity.istat.clone().unwrap_or_default());
            row.push(entity.population.map(|number| number.to_string()).unwrap_or_default());
            row.push(status.tier.unwrap_or_default());
            row.push(summary.memory);
        }
        rows.push(row.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).collect());
    }
    table(&rows)
}

/// Those of a list that are not as declared, with the reason.
pub fn reasons_of(comuni: &[Comune]) -> String {
    let mut text = String::new();
    for comune in comuni {
        let _ = writeln!(text, "{}: {}", comune.name_any(), told(comune, reasons::READY));
    }
    text
}

/// The page of `status`.
pub fn page(
    comune: &Comune,
    quotas: &BTreeMap<String, ResourceQuota>,
    events: &[Event],
    now: Timestamp,
) -> String {
    let mut text = String::new();
    let status = comune.status.clone().unwrap_or_default();
    let entity = &comune.spec.entity;
    let codes: Vec<String> = [
        entity.istat.as_ref().map(|code| format!("ISTAT {code}")),
        entity.belfiore.as_ref().map(|code| format!("Belfiore {code}")),
        entity.ipa.as_ref().map(|code| format!("IPA {code}")),
        entity.population.map(|number| format!("{number} residents")),
        entity.domain.clone(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let _ = writeln!(text, "{} ({})", entity.display_name, comune.name_any());
    let _ = writeln!(text, "  {}", codes.join(", "));
    let _ = writeln!(
        text,
        "  tier {}, {:?} when removed",
        status.tier.as_deref().unwrap_or("not decided"),
        comune.spec.deletion_policy
    );
    for (flag, meaning) in flags(comune) {
        let _ = writeln!(text, "  {flag}: {meaning}");
    }
    deletion(&mut text, comune, now);
    if status.observed_generation != comune.metadata.generation {
        let _ = writeln!(
            text,
            "  the operator has not looked at the latest change yet; below is how it was before"
        );
    }
    conditions(&mut text, &status.conditions, now);
    environments(&mut text, comune, quotas, &status);
    section(
        &mut text,
        "Databases",
        &["NAME", "READY", "SERVER", "DATABASE", "SIZE", "LOGIN", "ISSUED", "SECRET", ""],
        status.databases.iter().map(|database| {
            let credential = database.credential.as_ref();
            let issued = credential.and_then(|credential| credential.issued_at.parse().ok());
            vec![
                database.name.clone(),
                yes(database.ready),
                database.server.clone(),
                database.database.clone(),
                database.size.clone().unwrap_or_default(),
                credential.map(|credential| credential.login.clone()).unwrap_or_default(),
                issued.map(|issued| age(issued, now)).unwrap_or_default(),
                database.secret.clone(),
                database_notes(database).join("; "),
            ]
        }),
    );
    section(
        &mut text,
        "Services",
        &["NAME", "PODS", "VERSION", "NAMESPACE", "URL"],
        status.services.iter().map(|service| {
            vec![
                service.name.clone(),
                format!("{}/{}", service.ready, service.desired),
                service.version.clone(),
                service.namespace.clone(),
                service.url.clone().unwrap_or_default(),
            ]
        }),
    );
    section(
        &mut text,
        "Local servers",
        &["NAME", "MIGRATED", "WITHOUT CLASSIFICATION"],
        status.servers.iter().map(|server| {
            vec![
                server.name.clone(),
                format!("{}/{}", server.migrated, server.workloads),
                server.unclassified.to_string(),
            ]
        }),
    );
    section(
        &mut text,
        "Kept without being declared",
        &["KIND", "NAME", "SINCE"],
        status
            .orphans
            .iter()
            .map(|orphan| vec![orphan.kind.clone(), orphan.name.clone(), orphan.since.clone()]),
    );
    section(
        &mut text,
        "Latest events",
        &["AGE", "TYPE", "REASON", ""],
        latest(events).into_iter().map(|(time, event)| {
            vec![
                time.map_or_else(|| "?".into(), |time| age(time, now)),
                event.type_.clone().unwrap_or_default(),
                event.reason.clone().unwrap_or_default(),
                one_line(event.message.as_deref().unwrap_or_default()),
            ]
        }),
    );
    text
}

/// When the end comes of a Comune that somebody has deleted, and how to stop it.
fn deletion(text: &mut String, comune: &Comune, now: Timestamp) {
    let Some(deletion) = comune.status.as_ref().and_then(|status| status.deletion.as_ref()) else { return };
    let reason = condition(comune, reasons::DELETING).map_or("", |condition| condition.reason.as_str());
    let end = deletion.delete_after.as_ref().and_then(|end| Some((end, end.parse::<Timestamp>().ok()?)));
    let _ = match end {
        None => writeln!(
            text,
            "  asked for at {}; nothing is deleted yet: the condition Deleting says what it waits for",
            deletion.requested_at
        ),
        Some((end, _)) if reason == reasons::CLEANING_UP => {
            writeln!(text, "  the grace period ended at {end}: what it has is being deleted")
        }
        Some((end, time)) => writeln!(
            text,
            "  what it has is deleted after {end}, {} left; to stop it: kubectl annotate comune {} {}-",
            age(now, time),
            comune.name_any(),
            keys::CONFIRM_DELETE
        ),
    };
}

/// What there is to say of a database beside the columns.
fn database_notes(database: &DatabaseStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if !database.ready || database.reason != reasons::AS_DECLARED {
        notes.push(one_line(&format!("{}: {}", database.reason, database.message)));
    }
    if let Some(retiring) = database.credential.as_ref().and_then(|credential| credential.retiring.as_ref()) {
        notes.push(format!("the login {} stays open at least until {}", retiring.login, retiring.until));
    }
    if !database.undeclared_extensions.is_empty() {
        notes.push(format!("not declared and kept: {}", database.undeclared_extensions.join(", ")));
    }
    notes
}

fn yes(truth: bool) -> String {
    if truth { "yes" } else { "no" }.to_owned()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn section(text: &mut String, title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut all: Vec<Vec<String>> = vec![head.iter().map(|cell| (*cell).to_owned()).collect()];
    all.extend(rows);
    if all.len() == 1 {
        return;
    }
    let _ = writeln!(text, "\n{title}");
    for line in table(&all).lines() {
        let _ = writeln!(text, "  {line}");
    }
}

fn conditions(text: &mut String, conditions: &[Condition], now: Timestamp) {
    let order = |condition: &&Condition| {
        reasons::COMUNE_CONDITIONS.iter().position(|known| *known == condition.type_)
    };
    let mut sorted: Vec<&Condition> = conditions.iter().collect();
    sorted.sort_by_key(|condition| order(condition).unwrap_or(usize::MAX));
    section(
        text,
        "Conditions",
        &["CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"],
        sorted.into_iter().map(|condition| {
            vec![
                condition.type_.clone(),
                condition.status.clone(),
                age(condition.last_transition_time.0, now),
                condition.reason.clone(),
                one_line(&condition.message),
            ]
        }),
    );
}

fn environments(
    text: &mut String,
    comune: &Comune,
    quotas: &BTreeMap<String, ResourceQuota>,
    status: &conme_api::ComuneStatus,
) {
    let name = comune.name_any();
    let made: Vec<&str> = status.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for environment in &comune.spec.environments {
        let namespace = conme_blueprint::names::namespace(&name, &environment.name);
        let bar = |resource: &str| {
            let quota = quotas.get(&namespace).and_then(|quota| quota.status.as_ref());
            let of = |map: Option<&BTreeMap<String, _>>| map.and_then(|map| map.get(resource).cloned());
            let used = of(quota.and_then(|quota| quota.used.as_ref()))
                .map(|quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity| quantity.0);
            let hard = of(quota.and_then(|quota| quota.hard.as_ref())).map(|quantity| quantity.0);
            used.zip(hard).map_or_else(|| "-".to_owned(), |(used, hard)| bar(&used, &hard))
        };
        let state = if made.contains(&namespace.as_str()) {
            namespace.clone()
        } else {
            format!("{namespace} (not made yet)")
        };
        rows.push(vec![
            environment.name.clone(),
            state,
            bar("limits.cpu"),
            bar("limits.memory"),
            bar("requests.storage"),
            bar("pods"),
        ]);
    }
    section(
        text,
        "Environments",
        &["NAME", "NAMESPACE", "CPU", "MEMORY", "STORAGE", "PODS"],
        rows.into_iter(),
    );
    if let Some(quota) = status.quota.as_ref().filter(|quota| !quota.over_limit.is_empty()) {
        let _ = writeln!(
            text,
            "  over the limit: {}; what runs goes on, nothing new is admitted",
            quota.over_limit.join(", ")
        );
    }
}

/// `[###-------] 1200m/4`
fn bar(used: &str, hard: &str) -> String {
    const CELLS: u32 = 10;
    let full = match (Amount::parse(used), Amount::parse(hard)) {
        (Ok(used), Ok(hard)) => (0..CELLS).filter(|cell| used.times(CELLS) > hard.times(*cell)).count(),
        _ => 0,
    };
    format!("[{}{}] {used}/{hard}", "#".repeat(full), "-".repeat(CELLS as usize - full))
}

/// The events that came last, the latest first.
fn latest(events: &[Event]) -> Vec<(Option<Timestamp>, &Event)> {
    let time = |event: &Event| {
        let series =
            event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
        series
            .or(event.last_timestamp.as_ref().map(|time| time.0))
            .or(event.event_time.as_ref().map(|time| time.0))
            .or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
    };
    let mut sorted: Vec<(Option<Timestamp>, &Event)> =
        events.iter().map(|event| (time(event), event)).collect();
    sorted.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    sorted.truncate(8);
    sorted
}

/// The lines of a page that another page did not have.
pub fn changed_lines<'a>(before: &str, after: &'a str) -> Vec<&'a str> {
    // Ages pass by themselves; what counts is the rest of the line.
    let bare =
        |line: &str| line.split_whitespace().filter(|word| !is_age(word)).collect::<Vec<_>>().join(" ");
    let known: std::collections::BTreeSet<String> = before.lines().map(bare).collect();
    after.lines().filter(|line| !line.trim().is_empty() && !known.contains(&bare(line))).collect()
}

fn is_age(word: &str) -> bool {
    word.strip_suffix(['s', 'm', 'h', 'd'])
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn comune() -> Comune {
        serde_json::from_value(json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune",
            "metadata": {"name": "dolo", "generation": 3, "creationTimestamp": "2026-11-20T10:00:00Z"},
            "spec": {
                "entity": {"kind": "Comune", "displayName": "Comune di Dolo", "istat": "027012", "population": 15046},
                "environments": [{"name": "produzione"}, {"name": "collaudo"}],
            },
            "status": {
                "observedGeneration": 3, "tier": "medio",
                "conditions": [
                    {"type": "Ready", "status": "False", "reason": "DatabaseFailed", "message": "protocollo: the server\nsays no", "lastTransitionTime": "2026-11-22T09:00:00Z", "observedGeneration": 3},
                    {"type": "Admitted", "status": "True", "reason": "AsDeclared", "message": "", "lastTransitionTime": "2026-11-20T10:00:00Z", "observedGeneration": 3},
                ],
                "namespaces": [{"name": "dolo-produzione", "environment": "produzione", "uid": "1"}],
                "services": [{"name": "portale", "namespace": "dolo-produzione", "url": "https://www.comune.dolo.ve.it", "version": "2", "ready": 1, "desired": 2}],
                "orphans": [{"kind": "Namespace", "name": "dolo-prove", "since": "2026-11-01T00:00:00Z"}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_page_says_how_it_is_and_what_to_do() {
        let quota: ResourceQuota = serde_json::from_value(json!({
            "status": {"hard": {"limits.cpu": "4", "pods": "80"}, "used": {"limits.cpu": "1200m", "pods": "0"}},
        }))
        .unwrap();
        let quotas = BTreeMap::from([("dolo-produzione".to_owned(), quota)]);
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let page = page(&comune(), &quotas, &[], now);
        for words in [
            "Comune di Dolo (dolo)",
            "ISTAT 027012, 15046 residents",
            "tier medio",
            "Admitted    True     2d",
            "protocollo: the server says no",
            "[###-------] 1200m/4",
            "[----------] 0/80",
            "dolo-collaudo (not made yet)",
            "1/2",
            "https://www.comune.dolo.ve.it",
            "dolo-prove",
        ] {
            assert!(page.contains(words), "{words} is not in\n{page}");
        }
        let admitted = page.find("Admitted").unwrap();
        assert!(admitted < page.find("Ready").unwrap(), "the conditions stand in their order");
    }

    #[test]
    fn the_page_tells_what_holds_it_when_its_end_comes_and_how_to_stop_that() {
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let mut comune = comune();
        assert!(!list(std::slice::from_ref(&comune), false, now).contains("paused"));
        comune.spec.paused = true;
        comune.spec.cordoned = true;
        comune.spec.protected = true;
        comune.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            "2026-11-22T08:00:00Z".parse().unwrap(),
        ));
        let row = list(std::slice::from_ref(&comune), false, now);
        assert!(row.contains(" paused,cordoned,protected,deleted "), "{row}");

        let mut told = |reason: &str, confirmed: bool| {
            let status = comune.status.as_mut().unwrap();
            let end = confirmed.then(|| "2026-11-25T09:00:00Z".to_owned());
            status.deletion = Some(conme_api::DeletionStatus {
                requested_at: "2026-11-22T08:00:00Z".into(),
                confirmed_at: end.as_ref().map(|_| "2026-11-22T09:00:00Z".into()),
                delete_after: end,
                seen_seconds: None,
            });
            let mut condition = status.conditions[0].clone();
            condition.type_ = reasons::DELETING.into();
            condition.reason = reason.into();
            status.conditions.push(condition);
            status.conditions.swap_remove(0);
            page(&comune, &BTreeMap::new(), &[], now)
        };
        let open = told(reasons::CONFIRMATION_MISSING, false);
        assert!(open.contains("cordoned: its people may not write\n"), "{open}");
        assert!(open.contains("asked for at 2026-11-22T08:00:00Z; nothing is deleted yet"), "{open}");
        let confirmed = told(reasons::GRACE_PERIOD, true);
        let words = "deleted after 2026-11-25T09:00:00Z, 2d left; to stop it: kubectl annotate comune dolo conme.venis.it/confirm-delete-\n";
        assert!(confirmed.contains(words), "{confirmed}");
        let going = told(reasons::CLEANING_UP, true);
        assert!(going.contains("is being deleted\n") && !going.contains("to stop it"), "{going}");
    }

    #[test]
    fn a_database_shows_its_size_its_credential_and_what_is_still_open() {
        let mut comune = comune();
        let database = json!({
            "name": "protocollo", "ready": true, "reason": "DatabaseNearlyFull", "message": "raise\nmaxSize",
            "server": "pg-venis-1", "database": "dolo__protocollo", "secret": "dolo-produzione/db-protocollo",
            "size": "46Gi/50Gi", "undeclaredExtensions": ["citext"],
            "credential": {
                "login": "dolo__protocollo__app2", "issuedAt": "2026-11-20T10:00:00Z", "generation": 2,
                "retiring": {"login": "dolo__protocollo__app", "until": "2026-11-23T10:00:00Z"},
            },
        });
        let bare = json!({
            "name": "atti", "ready": true, "reason": "AsDeclared", "message": "as declared",
            "server": "dolo-produzione/db-atti", "database": "atti", "secret": "dolo-produzione/db-atti",
        });
        comune.status.as_mut().unwrap().databases =
            [database, bare].map(|told| serde_json::from_value(told).unwrap()).into();
        let page = page(&comune, &BTreeMap::new(), &[], "2026-11-22T10:00:00Z".parse().unwrap());
        for words in [
            "46Gi/50Gi   dolo__protocollo__app2   2d",
            "DatabaseNearlyFull: raise maxSize; the login dolo__protocollo__app stays open at least until 2026-11-23T10:00:00Z; not declared and kept: citext\n",
        ] {
            assert!(page.contains(words), "{words} is not in\n{page}");
        }
        assert!(page.lines().any(|line| line.starts_with("  atti ") && line.ends_with("/db-atti")), "{page}");
    }

    #[test]
    fn a_condition_of_an_older_generation_does_not_hold() {
        let mut comune = comune();
        assert!(holds(&comune, "Admitted"));
        assert!(!holds(&comune, "Ready"));
        comune.metadata.generation = Some(4);
        assert!(!holds(&comune, "Admitted"));
        assert!(told(&comune, "Ready").contains("latest change"));
    }

    #[test]
    fn only_what_changed_is_told_again() {
        assert_eq!(changed_lines("a 3s\nb x\n", "a 9s\nb y\nc\n"), ["b y", "c"]);
    }

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let shown = [5, 119, 120, 7199, 7200, 172_800].map(|second| age(at(0), at(second)));
        assert_eq!(shown, ["5s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
