//! The end of a Comune: nothing is deleted without a person's word for exactly this object, and time enough.

use conme_api::{Comune, keys, reasons};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    edited, now, valid,
    world::{Fate, World},
};
use crate::{
    Circumstances, Departure, Estate, NamespaceSeen, Observed, Told, departure, estate, finalizers_to_write,
    fixtures, grace_left, grace_step, held_by_others, plan_departure,
};

const GRACE: SignedDuration = SignedDuration::from_hours(72);

/// A Comune with `deletionPolicy: Delete` that somebody has deleted, with this in place of a confirmation.
fn deleted(confirmation: Option<&str>) -> Comune {
    edited(&fixtures::full_comune(), |comune| {
        comune["metadata"]["uid"] = json!("uid-1");
        comune["metadata"]["finalizers"] = json!([keys::DELETION]);
        comune["metadata"]["deletionTimestamp"] = json!("2026-03-01T08:00:00Z");
        if let Some(confirmation) = confirmation {
            comune["metadata"]["annotations"] = json!({keys::CONFIRM_DELETE: confirmation});
        }
        comune["spec"]["deletionPolicy"] = json!("Delete");
    })
}

fn confirmed() -> Comune {
    deleted(Some("dolo/uid-1"))
}

fn calm() -> Circumstances {
    Circumstances {
        definition_is_going: false,
        grace: GRACE,
        known_for: SignedDuration::ZERO,
        left_then: SignedDuration::ZERO,
    }
}

fn at(comune: &Comune, now: Timestamp) -> Departure {
    departure(comune, &Estate::default(), &calm(), now)
}

fn held(departure: Departure) -> Told {
    match departure {
        Departure::Hold(told) => told,
        other => panic!("{other:?}"),
    }
}

/// The status is stored, as the operator does.
fn store(comune: &Comune, told: &Told) -> Comune {
    let mut comune = comune.clone();
    comune.status.get_or_insert_default().deletion = Some(told.deletion.clone());
    comune
}

#[test]
fn without_the_word_for_this_very_object_nothing_is_deleted_however_long_it_takes() {
    let much_later = now() + SignedDuration::from_hours(24 * 365);
    for word in [
        None,
        Some(""),
        Some("true"),
        Some("dolo"),
        Some("dolo/uid-2"),
        Some("stra/uid-1"),
        Some("dolo/uid-1 "),
    ] {
        let told = held(at(&deleted(word), much_later));
        assert_eq!((told.reason, told.is_deleting), (reasons::CONFIRMATION_MISSING, false), "{word:?}");
        assert!(
            told.message.contains(
                "kubectl annotate comune dolo conme.venis.it/confirm-delete=dolo/uid-1 --overwrite"
            ),
            "{}",
            told.message
        );
        assert!(told.message.contains(r#"{"spec":{"deletionPolicy":"Retain"}}"#), "{}", told.message);
        assert_eq!(told.deletion.delete_after, None);
    }
}

#[test]
fn the_grace_period_is_counted_once_from_the_first_look() {
    let comune = confirmed();
    let first = held(at(&comune, now()));
    assert_eq!((first.reason, first.is_deleting), (reasons::GRACE_PERIOD, true));
    assert_eq!(first.deletion.requested_at, "2026-03-01T08:00:00Z");
    assert_eq!(first.deletion.confirmed_at.as_deref(), Some("2026-03-02T09:30:00Z"));
    assert_eq!(first.deletion.delete_after.as_deref(), Some("2026-03-05T09:30:00Z"));
    assert!(first.message.contains("2026-03-05T09:30:00Z") && first.message.contains("confirm-delete-"));
    let comune = store(&comune, &first);
    // A restart, another setting, many looks: the end stays.
    let mut shorter = calm();
    shorter.grace = SignedDuration::from_secs(1);
    let again =
        held(departure(&comune, &Estate::default(), &shorter, now() + SignedDuration::from_hours(71)));
    assert_eq!(again.deletion, first.deletion);
    let end: Timestamp = "2026-03-05T09:30:00Z".parse().unwrap();
    held(at(&comune, end - SignedDuration::from_secs(1)));
    assert!(matches!(at(&comune, end), Departure::CleanUp(_)));
}

#[test]
fn a_clock_that_jumps_does_not_shorten_it() {
    let comune = store(&confirmed(), &held(at(&confirmed(), now())));
    let jumped = now() + SignedDuration::from_hours(1000);
    let of = |known_for, left_then| {
        let circumstances = Circumstances { known_for, left_then, ..calm() };
        departure(&comune, &Estate::default(), &circumstances, jumped)
    };
    held(of(SignedDuration::from_hours(71), GRACE));
    assert!(matches!(of(GRACE, GRACE), Departure::CleanUp(_)));
}

#[test]
fn a_clock_that_jumps_while_no_operator_runs_does_not_shorten_it_either() {
    // Seen for ten hours and a half by the first, which ends; the clock jumps; the second begins.
    let hours = SignedDuration::from_hours;
    let look = |comune: &Comune, known_for, left_then, now| {
        let circumstances = Circumstances { known_for, left_then, ..calm() };
        departure(comune, &Estate::default(), &circumstances, now)
    };
    let first = held(look(&confirmed(), SignedDuration::ZERO, GRACE, now()));
    assert_eq!(first.deletion.seen_seconds, Some(0));
    let comune = store(&confirmed(), &first);
    let later = now() + hours(10);
    let told = held(look(&comune, hours(10) + SignedDuration::from_mins(30), GRACE, later));
    assert_eq!(told.deletion.seen_seconds, Some(10 * 3600), "in steps of an hour");
    let comune = store(&comune, &told);
    let left = grace_left(&told.deletion, GRACE);
    assert_eq!(left, hours(62));
    let jumped = now() + hours(1000);
    let told = held(look(&comune, SignedDuration::ZERO, left, jumped));
    assert_eq!(told.deletion.seen_seconds, Some(10 * 3600));
    held(look(&comune, hours(61), left, jumped));
    assert!(matches!(look(&comune, hours(62), left, jumped), Departure::CleanUp(_)));
    // Another setting meanwhile changes neither the end nor what is left.
    assert_eq!(grace_left(&told.deletion, hours(1)), hours(62));
    // One that no operator has told of yet is left whole.
    assert_eq!(grace_left(&conme_api::DeletionStatus::default(), GRACE), GRACE);
    assert_eq!(grace_step(SignedDuration::from_secs(8)), SignedDuration::from_secs(1));
}

#[test]
fn the_word_taken_back_a_pause_and_protection_begin_it_anew() {
    let running = store(&confirmed(), &held(at(&confirmed(), now())));
    let later = now() + SignedDuration::from_hours(71);
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 3] = [
        (reasons::CONFIRMATION_MISSING, |comune| comune["metadata"]["annotations"] = json!({})),
        (reasons::PAUSED, |comune| comune["spec"]["paused"] = json!(true)),
        (reasons::PROTECTED, |comune| comune["spec"]["protected"] = json!(true)),
    ];
    for (reason, edit) in edits {
        let stopped = edited(&running, edit);
        // Also when the time is up, and also half way through.
        let told = held(at(&stopped, later + SignedDuration::from_hours(9)));
        assert_eq!((told.reason, told.is_deleting), (reason, false));
        let again = edited(&store(&stopped, &told), |comune| {
            comune["metadata"]["annotations"] = json!({keys::CONFIRM_DELETE: "dolo/uid-1"});
            comune["spec"]["paused"] = json!(false);
            comune["spec"]["protected"] = json!(false);
        });
        let told = held(at(&again, later));
        assert_eq!(told.deletion.delete_after.as_deref(), Some("2026-03-08T08:30:00Z"), "{reason}");
    }
}

#[test]
fn retain_and_a_definition_that_goes_let_it_go_with_everything_in_place() {
    let due = store(&confirmed(), &held(at(&confirmed(), now())));
    let later = now() + SignedDuration::from_hours(100);
    assert!(matches!(at(&due, later), Departure::CleanUp(_)));
    let retain = edited(&due, |comune| comune["spec"]["deletionPolicy"] = json!("Retain"));
    assert!(matches!(at(&retain, later), Departure::LetGo(_)));
    let going = Circumstances { definition_is_going: true, ..calm() };
    for edit in [|_: &mut Value| {}, |comune: &mut Value| comune["spec"]["paused"] = json!(true)] {
        let comune = edited(&due, edit);
        assert!(matches!(departure(&comune, &Estate::default(), &going, later), Departure::LetGo(_)));
    }
}

#[test]
fn the_finalizer_is_there_while_the_policy_is_delete_and_those_of_others_stay() {
    let with = |policy: &str, finalizers: Value| {
        edited(&fixtures::full_comune(), |comune| {
            comune["spec"]["deletionPolicy"] = json!(policy);
            comune["metadata"]["finalizers"] = finalizers;
        })
    };
    let wanted = |comune: &Comune| finalizers_to_write(comune);
    assert_eq!(wanted(&with("Retain", json!([]))), None);
    assert_eq!(wanted(&with("Delete", json!([keys::DELETION]))), None);
    assert_eq!(wanted(&with("Delete", json!(["a/b"]))).unwrap(), ["a/b", keys::DELETION]);
    assert_eq!(wanted(&with("Retain", json!([keys::DELETION, "a/b"]))).unwrap(), ["a/b"]);
    let paused = edited(&with("Delete", json!([])), |comune| comune["spec"]["paused"] = json!(true));
    assert_eq!(wanted(&paused), None);
    assert_eq!(wanted(&deleted(None)), None);

    assert_eq!(held_by_others(&deleted(None)), None, "the operator itself holds it");
    let theirs = edited(&deleted(None), |comune| comune["metadata"]["finalizers"] = json!(["a/b"]));
    assert!(held_by_others(&theirs).unwrap().message.contains("a/b"));
}

#[test]
fn only_what_is_provably_its_own_and_not_protected_goes() {
    let comune = confirmed();
    let mut world = World::with_databases(["protocollo"]);
    for _ in 0..4 {
        world.pass(&valid(&fixtures::full_comune()), now(), || Fate::Fine);
        world.catch_up_everywhere();
    }
    let mut observed = world.observe("dolo");
    let uid = |observed: &Observed, name: &str| observed.namespaces[name].uid.clone();
    let own = estate(&comune, &observed);
    let names: Vec<&str> = own.namespaces.keys().map(String::as_str).collect();
    assert_eq!(names, ["dolo-collaudo", "dolo-produzione"]);
    assert_eq!(own.namespaces["dolo-produzione"], uid(&observed, "dolo-produzione"));
    let deletions: Vec<_> = plan_departure(&own).actions().map(|action| action.at().to_string()).collect();
    assert_eq!(deletions, ["Namespace dolo-collaudo", "Namespace dolo-produzione"]);

    let put = |observed: &mut Observed, name: &str, key: &str, value: &str| {
        observed.namespaces.get_mut(name).unwrap().labels.insert(key.into(), value.into());
    };
    put(&mut observed, "dolo-produzione", keys::PROTECTED, "true");
    put(&mut observed, "dolo-collaudo", keys::ISTAT, "027099");
    let left = estate(&comune, &observed);
    assert!(left.namespaces.is_empty(), "{left:?}");
    assert!(
        left.in_words().contains("dolo-collaudo stays: it is another administration's"),
        "{}",
        left.in_words()
    );
    // What is on record as made for this Comune is its own, whatever is written on it now.
    observed.own_namespaces.insert(uid(&observed, "dolo-collaudo"));
    assert!(estate(&comune, &observed).namespaces.contains_key("dolo-collaudo"));
    // A stranger's namespace of the wanted name is none of its business.
    observed
        .namespaces
        .insert("dolo-produzione".into(), NamespaceSeen { uid: "x".into(), ..Default::default() });
    assert!(!estate(&comune, &observed).in_words().contains("dolo-produzione"));
}

#[test]
fn databases_go_only_by_their_own_policy() {
    let comune = confirmed();
    let words = |policy: &str| {
        let comune =
            edited(&comune, |comune| comune["spec"]["databases"][0]["deletionPolicy"] = json!(policy));
        let estate = estate(&comune, &Observed::default());
        (estate.drop, estate.retain)
    };
    let name = || vec!["protocollo".to_owned()];
    assert_eq!(words("Retain"), (vec![], name()));
    assert_eq!(words("Delete"), (name(), vec![]));
}

#[test]
fn rule_13_a_namespace_stays_while_it_holds_a_server_whose_data_is_to_be_kept() {
    let mut world = World::with_databases(["protocollo"]);
    for _ in 0..4 {
        world.pass(&valid(&fixtures::full_comune()), now(), || Fate::Fine);
        world.catch_up_everywhere();
    }
    let observed = world.observe("dolo");
    let with = |policy: &str| {
        edited(&confirmed(), |comune| {
            let database = &mut comune["spec"]["databases"][0];
            database["placement"] = json!({"dedicated": {"instances": 1, "storage": "9Gi"}});
            database["deletionPolicy"] = json!(policy);
        })
    };
    let goes = |comune: &Comune| estate(comune, &observed).namespaces.into_keys().collect::<Vec<_>>();
    assert_eq!(goes(&with("Retain")), ["dolo-collaudo"]);
    assert_eq!(goes(&with("Delete")), ["dolo-collaudo", "dolo-produzione"]);
    let words = estate(&with("Retain"), &observed).in_words();
    assert!(words.contains("dolo-produzione stays: it holds a database server"), "{words}");
    let words = estate(&with("Delete"), &observed).in_words();
    assert!(words.contains("database servers of its own protocollo") && !words.contains("kept"), "{words}");
    // Where it was provisioned counts, whatever the manifest says by now.
    let moved = edited(&with("Delete"), |comune| {
        comune["spec"]["databases"][0]["environment"] = json!("collaudo");
        comune["status"] = json!({"databases": [{"name": "protocollo", "ready": true, "reason": "AsDeclared",
            "message": "", "server": "dolo-produzione/db-protocollo", "database": "dolo__protocollo",
            "secret": "dolo-produzione/db-protocollo"}]});
    });
    assert_eq!(goes(&moved), ["dolo-collaudo"]);
    // One that left the manifest has no policy any more: it is kept, too.
    let orphaned = |name: &str| {
        edited(&confirmed(), |comune| {
            comune["status"] = json!({"orphans":
                [{"kind": "Database", "name": name, "since": "2026-01-01T00:00:00Z"}]});
        })
    };
    assert_eq!(goes(&orphaned("dolo-produzione/db-anagrafe/dolo__anagrafe")), ["dolo-collaudo"]);
    assert_eq!(goes(&orphaned("pg-uno/dolo__anagrafe")), ["dolo-collaudo", "dolo-produzione"]);
}
