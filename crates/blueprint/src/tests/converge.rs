//! Convergence in memory: whatever happens on the way, the operator ends with exactly what the manifest asks for.

use std::collections::BTreeSet;

use conme_api::{Comune, keys};
use jiff::{SignedDuration, Timestamp};
use proptest::{prelude::*, sample::subsequence};
use serde_json::{Value, json};

use super::{
    edited, now, only_databases, valid,
    world::{Fate, GUARDS, World},
};
use crate::{
    Action, ChildRef, ChildState, Kind, Plan, ValidComune, fixtures,
    plan::{plan, plan_abandoned},
};

/// A manifest as a sysadmin could have left it.
#[derive(Clone, Debug)]
struct Manifest {
    environments: Vec<&'static str>,
    /// None: they share equally.
    first_share: Option<u32>,
    services: Vec<&'static str>,
    databases: Vec<&'static str>,
    cpu: u32,
    viewers: bool,
    rule: bool,
    paused: bool,
}

impl Manifest {
    fn comune(&self) -> Comune {
        let here = |environment: &str| self.environments.contains(&environment);
        let count = self.environments.len() as u32;
        let environments: Vec<Value> = self
            .environments
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let security = if *name == "collaudo" { "baseline" } else { "restricted" };
                let mut environment = json!({"name": name, "podSecurity": security});
                if let Some(first) = self.first_share {
                    let rest = (100 - first) / (count - 1).max(1);
                    environment["share"] = json!(if index == 0 { first } else { rest });
                }
                environment
            })
            .collect();
        let databases: Vec<(&str, &str)> =
            [("protocollo", "produzione"), ("tributi", "produzione"), ("prove", "formazione")]
                .into_iter()
                .filter(|(name, environment)| self.databases.contains(name) && here(environment))
                .collect();
        let declared = |name: &str| databases.iter().any(|(database, _)| *database == name);
        let services: Vec<Value> = [
            json!({"name": "portale", "template": "sito", "environment": "produzione", "database": "protocollo"}),
            json!({"name": "albo", "template": "sito", "environment": "produzione", "database": "tributi", "replicas": 1}),
            json!({"name": "corsi", "template": "sito", "environment": "formazione", "database": "prove"}),
            json!({"name": "mappe", "template": "gis", "environment": "collaudo"}),
        ]
        .into_iter()
        .filter(|service| self.services.contains(&service["name"].as_str().unwrap()))
        .filter(|service| here(service["environment"].as_str().unwrap()))
        .filter(|service| service["database"].as_str().is_none_or(declared))
        .collect();
        let databases: Vec<Value> = databases
            .iter()
            .map(|(name, environment)| {
                json!({"name": name, "engine": "postgresql", "environment": environment, "placement": {"shared": "pg-uno"}})
            })
            .collect();
        edited(&fixtures::comune("dolo"), |comune| {
            let spec = &mut comune["spec"];
            spec["quota"] = json!({"cpu": self.cpu, "memory": "16Gi", "storage": "200Gi", "pods": 40});
            spec["environments"] = json!(environments);
            spec["services"] = json!(services);
            spec["databases"] = json!(databases);
            spec["paused"] = json!(self.paused);
            if self.viewers {
                spec["viewers"] = json!([{"kind": "User", "name": "revisore"}]);
            }
            if self.rule {
                spec["network"] = json!({"egress": [{"description": "posta", "cidrs": ["10.9.0.0/16"]}]});
            }
        })
    }
}

fn manifest() -> impl Strategy<Value = Manifest> {
    (
        subsequence(vec!["collaudo", "formazione", "produzione"], 1..=3),
        prop::option::of(10_u32..=70),
        subsequence(vec!["portale", "albo", "corsi", "mappe"], 0..=4),
        subsequence(vec!["protocollo", "tributi", "prove"], 0..=3),
        1_u32..12,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(environments, first_share, services, databases, cpu, viewers, rule, paused)| {
            Manifest { environments, first_share, services, databases, cpu, viewers, rule, paused }
        })
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// The manifest is replaced.
    Edit(Manifest),
    /// The operator makes a pass, with these fates of its calls; afterwards they are fine.
    Pass(Vec<Fate>),
    /// The quota controller catches up in one namespace.
    CatchUp(&'static str),
    /// The operator is killed and starts again.
    Restart,
    /// Somebody changes a child.
    Tamper(usize, bool),
    /// Somebody makes a namespace where there is none.
    Foreign(&'static str),
    /// Somebody deletes a namespace.
    Deletion(&'static str),
    /// Namespaces in the way are gone.
    ClearTheWay,
    /// A database is provisioned, or its server dies.
    Database(&'static str, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let fate = prop_oneof![4 => Just(Fate::Fine), 1 => Just(Fate::Refused), 1 => Just(Fate::AnswerLost)];
    let namespaces = vec!["dolo-collaudo", "dolo-formazione", "dolo-produzione"];
    let databases = vec!["protocollo", "tributi", "prove"];
    prop_oneof![
        2 => manifest().prop_map(Event::Edit),
        4 => prop::collection::vec(fate, 0..40).prop_map(Event::Pass),
        3 => prop::sample::select(namespaces.clone()).prop_map(Event::CatchUp),
        2 => prop::sample::select(namespaces.clone()).prop_map(Event::Foreign),
        1 => prop::sample::select(namespaces).prop_map(Event::Deletion),
        1 => Just(Event::ClearTheWay),
        1 => Just(Event::Restart),
        1 => (0_usize..60, any::<bool>()).prop_map(|(index, foreign)| Event::Tamper(index, foreign)),
        2 => (prop::sample::select(databases), any::<bool>()).prop_map(|(name, up)| Event::Database(name, up)),
    ]
}

/// The children of a Comune as if it had always been as it is: with every database ready and every quota settled.
fn ideal(comune: &ValidComune) -> Vec<crate::Desired> {
    let plan = plan(comune, &only_databases(comune), now());
    assert_eq!(plan.waits, []);
    plan.actions()
        .map(|action| match action {
            Action::Apply { desired, uid: None, repair: false } => desired.clone(),
            action => panic!("nothing exists, yet the plan has {action:?}"),
        })
        .collect()
}

/// Passes without faults until nothing is left to do.
fn settle(world: &mut World, comune: &ValidComune, now: Timestamp) -> Plan {
    // Namespaces, then quotas that wait for each other: shrink, catch up, grow.
    for _ in 0..6 {
        world.catch_up_everywhere();
        let plan = world.pass(comune, now, || Fate::Fine);
        if plan.is_empty() && plan.waits.is_empty() {
            return plan;
        }
    }
    let left = plan(comune, &world.observe(&comune.name), now);
    panic!("no convergence: {:?} {:#?}", left.waits, left.actions().map(Action::at).collect::<Vec<_>>());
}

/// Exactly what is desired is there, and what has to be kept.
fn check_exact(world: &World, comune: &ValidComune) {
    let ideal = ideal(comune);
    for child in &ideal {
        let live = world.objects.get(&child.at).unwrap_or_else(|| panic!("{} is missing", child.at));
        assert_eq!(live.body, child.body, "{}", child.at);
    }
    let wanted: BTreeSet<&ChildRef> = ideal.iter().map(|child| &child.at).collect();
    let declared: BTreeSet<&str> = comune.environments.iter().map(|e| e.namespace.as_str()).collect();
    for (at, live) in world.objects.iter().filter(|(at, _)| !wanted.contains(at)) {
        if at.kind == Kind::PersistentVolumeClaim {
            continue;
        }
        // What is left belongs to an environment that the manifest no longer has: closed, at zero, with its people.
        assert!(!declared.contains(at.home()), "{at} is too much");
        match at.kind {
            Kind::Namespace => {
                assert_eq!(live.body["metadata"]["labels"][keys::ORPHANED], "true", "{at}");
                for (kind, name) in GUARDS {
                    let guard = ChildRef::new(kind, &at.name, name);
                    assert!(world.objects.contains_key(&guard), "{guard} of an orphan is gone");
                }
            }
            Kind::ResourceQuota => {
                let hard = live.body["spec"]["hard"].as_object().unwrap();
                assert!(hard.values().all(|amount| amount == "0"), "{at}: {hard:?}");
            }
            Kind::LimitRange => assert_eq!(at.name, "conme-limits"),
            Kind::NetworkPolicy => {
                assert!(at.name.starts_with("conme-") && at.name != "conme-databases", "{at}")
            }
            Kind::RoleBinding => assert!(at.name.starts_with("conme-"), "{at}"),
            _ => panic!("{at} is too much"),
        }
    }
    for claim in &world.claims {
        assert!(world.objects.contains_key(claim), "{claim} is gone");
    }
}

proptest! {
    #[test]
    fn it_ends_with_exactly_what_is_declared(
        first in manifest(),
        events in prop::collection::vec(event(), 1..25),
    ) {
        let mut world = World::default();
        let mut current = first.comune();
        let mut comune = valid(&current);
        let mut time = now();
        for event in events {
            time += SignedDuration::from_secs(7);
            match event {
                Event::Edit(manifest) => {
                    current = manifest.comune();
                    comune = valid(&current);
                }
                // The caller looks at `paused`: nothing is executed.
                Event::Pass(_) if comune.spec.paused => {}
                Event::Pass(fates) => {
                    let mut fates = fates.into_iter();
                    world.pass(&comune, time, || fates.next().unwrap_or(Fate::Fine));
                }
                Event::CatchUp(namespace) => world.catch_up(namespace),
                Event::Restart => world.restart(),
                Event::Tamper(index, foreign) => world.tamper(index, foreign),
                Event::Foreign(name) => world.put_foreign_namespace(name, json!({"team": "x"}), json!({})),
                Event::Deletion(name) => world.begin_deletion(name),
                Event::ClearTheWay => world.clear_the_way(),
                Event::Database(name, true) => {
                    world.databases.insert(name.into());
                }
                Event::Database(name, false) => {
                    world.databases.remove(name);
                }
            }
        }
        world.databases = comune.databases.iter().map(|database| database.spec.name.clone()).collect();
        world.clear_the_way();
        settle(&mut world, &comune, time);
        check_exact(&world, &comune);

        // Settled is settled: no write, neither now nor after a restart, when everything is checked again.
        let writes = world.writes;
        prop_assert!(world.pass(&comune, time, || Fate::Fine).is_empty());
        world.restart();
        let checked = world.pass(&comune, time, || Fate::Fine);
        prop_assert!(checked.is_empty());
        prop_assert!(!checked.confirmed.is_empty());
        prop_assert_eq!(world.writes, writes);
    }

    #[test]
    fn a_comune_that_is_gone_is_marked_once_and_comes_back_whole(
        manifest in manifest(),
        fates in prop::collection::vec(prop_oneof![Just(Fate::Fine), Just(Fate::Refused), Just(Fate::AnswerLost)], 0..6),
    ) {
        let comune = valid(&manifest.comune());
        let mut world = World::with_databases(comune.databases.iter().map(|d| d.spec.name.as_str()));
        settle(&mut world, &comune, now());
        let before = world.clone();
        let later = now() + SignedDuration::from_hours(1);
        let mut fates = fates.into_iter();
        for _ in 0..12 {
            let plan = plan_abandoned("dolo", &world.observe("dolo"), later);
            for action in plan.actions() {
                let Action::Apply { desired, uid, repair: false } = action else { panic!("{action:?}") };
                prop_assert_eq!(desired.at.kind, Kind::Namespace);
                let live = world.objects.get_mut(&desired.at).unwrap();
                prop_assert_eq!(uid.as_ref(), Some(&live.uid));
                if fates.next().unwrap_or(Fate::Fine) != Fate::Refused {
                    live.body = desired.body.clone();
                }
            }
        }
        prop_assert!(plan_abandoned("dolo", &world.observe("dolo"), later).is_empty());
        for (at, live) in &world.objects {
            let mut expected = before.objects[at].body.clone();
            if at.kind == Kind::Namespace {
                expected["metadata"]["labels"][keys::ORPHANED] = json!("true");
                expected["metadata"]["annotations"][keys::ORPHANED_AT] = json!("2026-03-02T10:30:00Z");
                expected["metadata"]["annotations"][keys::APPLIED] = live.body["metadata"]["annotations"][keys::APPLIED].clone();
            }
            prop_assert_eq!(&live.body, &expected, "{}", at);
        }
        prop_assert_eq!(world.objects.len(), before.objects.len());
        settle(&mut world, &comune, later);
        check_exact(&world, &comune);
    }

    #[test]
    fn any_single_change_of_an_unchecked_child_is_repaired_by_one_call(
        which in any::<prop::sample::Index>(),
        leaf in any::<prop::sample::Index>(),
        list in any::<prop::sample::Index>(),
        how in 0_u8..4,
    ) {
        let comune = valid(&fixtures::full_comune());
        let mut world = World::with_databases(["protocollo"]);
        settle(&mut world, &comune, now());
        let children: Vec<ChildRef> = world.observe("dolo").children.keys().cloned().collect();
        let at = &children[which.index(children.len())];
        world.restart();
        let mut observed = world.observe("dolo");
        let seen = observed.children.get_mut(at).unwrap();
        let ChildState::Unchecked { live, foreign } = &mut seen.state else { panic!("{seen:?}") };
        match how {
            // What the API server adds by itself does not disturb.
            0 => {
                live["status"] = json!({"x": 1});
                live["metadata"]["creationTimestamp"] = json!("2026-03-02T09:30:00Z");
            }
            1 => *foreign = true,
            2 => {
                let paths = paths(live, &|value| !value.is_array() && !value.is_object());
                // Identity is not what anybody can change, and the hash speaks for itself.
                let paths: Vec<String> = paths.into_iter().filter(|path| !path.ends_with("applied")).collect();
                *live.pointer_mut(&paths[leaf.index(paths.len())]).unwrap() = json!("changed");
            }
            _ => {
                let paths = paths(live, &Value::is_array);
                prop_assume!(!paths.is_empty());
                let list = live.pointer_mut(&paths[list.index(paths.len())]).unwrap().as_array_mut().unwrap();
                list.push(json!({"added": true}));
            }
        }
        let uid = seen.uid.clone();
        let plan = plan(&comune, &observed, now());
        if how == 0 {
            prop_assert!(plan.is_empty());
            prop_assert_eq!(plan.confirmed.len(), children.len());
        } else {
            let actions: Vec<&Action> = plan.actions().collect();
            let [Action::Apply { desired, uid: asked, repair: true }] = actions.as_slice() else {
                panic!("{at}: {actions:?}")
            };
            prop_assert_eq!(&desired.at, at);
            prop_assert_eq!(asked.as_ref(), Some(&uid));
            prop_assert_eq!(plan.confirmed.len(), children.len() - 1);
        }
    }
}

/// JSON pointers of the values of a kind.
fn paths(value: &Value, wanted: &dyn Fn(&Value) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    walk(value, String::new(), wanted, &mut found);
    found
}

fn walk(value: &Value, path: String, wanted: &dyn Fn(&Value) -> bool, found: &mut Vec<String>) {
    if wanted(value) {
        found.push(path.clone());
    }
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                walk(below, format!("{path}/{key}"), wanted, found);
            }
        }
        Value::Array(list) => {
            for (index, below) in list.iter().enumerate() {
                walk(below, format!("{path}/{index}"), wanted, found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_lost_answer_does_not_make_a_second_object() {
    let comune = valid(&fixtures::full_comune());
    let mut world = World::with_databases(["protocollo"]);
    // Every call takes effect and seems to have failed: each pass gets one wave further.
    for _ in 0..3 {
        world.pass(&comune, now(), || Fate::AnswerLost);
    }
    assert!(plan(&comune, &world.observe("dolo"), now()).is_empty());
    assert_eq!(world.writes, world.objects.len(), "nothing was written twice");
}

#[test]
fn nothing_is_written_while_every_call_is_refused() {
    let comune = valid(&fixtures::full_comune());
    let mut world = World::default();
    for _ in 0..5 {
        let plan = world.pass(&comune, now(), || Fate::Refused);
        assert!(!plan.is_empty());
    }
    assert!(world.objects.is_empty());
}
