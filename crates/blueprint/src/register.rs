//! The register of all Comuni: who asked first for what only one can have, and who fits into the data centre.
//!
//! A plain synchronous index. It is fed one Comune at a time and answers questions about any of them, so that the
//! plan of one Comune never has to look at all the others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use conme_api::{Comune, DataCenter, keys};
use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    amount::Amount,
    capacity::{Amounts, Decision, PROMISED, Request, decide, reserve_respecting_capacity},
    names,
    plan::NamespaceSeen,
    validate::{totals_in_force, totals_of},
};

/// Order in which Comuni are served: by the time of their first admission, then of their creation, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seniority {
    /// First admission; those never admitted come last.
    admitted: Option<Timestamp>,
    created: Option<Timestamp>,
    name: String,
}

impl Seniority {
    fn key(&self) -> (bool, Option<Timestamp>, Option<Timestamp>, &str) {
        (self.admitted.is_none(), self.admitted, self.created, &self.name)
    }
}

/// What only one Comune can have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// ISTAT code.
    Istat(String),
    /// Host name of a service.
    Hostname(String),
    /// Name of a namespace.
    Namespace(String),
}

/// What a namespace remembers of the first admission of its Comune.
struct Remembered {
    comune: String,
    istat: Option<String>,
    at: Timestamp,
}

struct Entry {
    seniority: Seniority,
    claims: BTreeSet<Claim>,
    comune: Arc<Comune>,
}

impl Entry {
    /// What it asks of the data centre. None: there is none, or its totals are not known. Told from the manifest each
    /// time: kept, it would be as large as the rest.
    fn request(&self, data_center: Option<&DataCenter>) -> Option<Request> {
        request(&self.comune, &self.seniority, data_center?)
    }
}

/// Every Comune's claims and the decision on its admission.
#[derive(Default)]
pub struct Register {
    entries: BTreeMap<String, Entry>,
    holders: HashMap<Claim, BTreeSet<String>>,
    /// Decided for all at once, and only while the data centre has not room for all.
    decisions: BTreeMap<String, Decision>,
    /// By namespace.
    remembered: BTreeMap<String, Remembered>,
    data_center: Option<DataCenter>,
    capacity: Amounts,
    /// The sum of what all ask for, of what is promised.
    wanted: Amounts,
    stale: bool,
}

impl Register {
    /// Takes note of a Comune as it is now. Returns the names of the Comuni whose claims this touches.
    pub fn put(&mut self, comune: &Comune) -> BTreeSet<String> {
        let mut comune = comune.clone();
        comune.metadata.managed_fields = None;
        self.put_shared(Arc::new(comune))
    }

    /// As [`Register::put`], of one that is kept elsewhere, too.
    pub fn put_shared(&mut self, comune: Arc<Comune>) -> BTreeSet<String> {
        let name = comune.name_any();
        let seniority = Seniority {
            admitted: comune
                .status
                .as_ref()
                .and_then(|status| status.seniority.as_ref())
                .and_then(|text| text.parse().ok())
                .or_else(|| self.remembered(&comune)),
            created: comune.metadata.creation_timestamp.as_ref().map(|time| time.0),
            name: name.clone(),
        };
        let claims = claims(&comune, self.data_center.as_ref());
        if let Some(entry) = self.entries.get(&name)
            && entry.comune.spec == comune.spec
            && entry.seniority == seniority
            && entry.claims == claims
        {
            self.enter(name, Entry { seniority, claims, comune });
            return BTreeSet::new();
        }
        let mut touched = self.withdraw(&name);
        for claim in &claims {
            let holders = self.holders.entry(claim.clone()).or_default();
            touched.extend(holders.iter().cloned());
            holders.insert(name.clone());
        }
        touched.remove(&name);
        self.enter(name, Entry { seniority, claims, comune });
        touched
    }

    fn enter(&mut self, name: String, entry: Entry) {
        let request = entry.request(self.data_center.as_ref());
        if let Some(request) = &request {
            for resource in PROMISED {
                *self.wanted.entry(resource.to_owned()).or_default() += of(&request.wanted, resource);
            }
        }
        let seniority = self.entries.get(&name).map(|before| before.seniority.clone());
        let before = self.leave(&name);
        self.stale |= seniority.as_ref() != Some(&entry.seniority) || before != request;
        self.entries.insert(name, entry);
    }

    /// Returns what it has asked for.
    fn leave(&mut self, name: &str) -> Option<Request> {
        let request = self.entries.remove(name)?.request(self.data_center.as_ref())?;
        for (resource, sum) in &mut self.wanted {
            *sum = sum.saturating_sub(of(&request.wanted, resource));
        }
        Some(request)
    }

    /// Whether the data centre has room for all that everybody asks for. Then each gets it, whatever the others do.
    fn has_room_for_all(&self) -> bool {
        PROMISED.iter().all(|resource| of(&self.wanted, resource) <= of(&self.capacity, resource))
    }

    /// Takes note of a namespace as it is now, None when it is gone. Returns the Comuni whose place among the others has
    /// changed by what it remembers.
    pub fn note_namespace(&mut self, name: &str, seen: Option<&NamespaceSeen>) -> BTreeSet<String> {
        let before = match seen.and_then(remembered_by) {
            Some(remembered) => self.remembered.insert(name.to_owned(), remembered),
            None => self.remembered.remove(name),
        };
        let after = self.remembered.get(name);
        let comuni: BTreeSet<String> =
            before.iter().chain(after).map(|remembered| remembered.comune.clone()).collect();
        let mut touched = BTreeSet::new();
        for comune in comuni {
            if let Some(comune) = self.entries.get(&comune).map(|entry| entry.comune.clone()) {
                touched.extend(self.put_shared(comune));
            }
        }
        touched
    }

    /// The time for a first admission now: no earlier than any that is known, also when the clock was set back, because
    /// whoever came first would lose what it holds to whoever came later.
    pub fn admission(&self, now: Timestamp) -> Timestamp {
        let known = self.entries.values().filter_map(|entry| entry.seniority.admitted);
        known.max().map_or(now, |latest| latest.max(now))
    }

    /// The first admission of a Comune, as its own namespaces remember it: one that is applied again, or was restored
    /// without its status, keeps its place.
    pub fn remembered(&self, comune: &Comune) -> Option<Timestamp> {
        let name = comune.name_any();
        let istat = &comune.spec.entity.istat;
        let own = self.remembered.values().filter(|known| known.comune == name && known.istat == *istat);
        own.map(|known| known.at).min()
    }

    /// Forgets a Comune. Returns the names of the Comuni whose claims this touches.
    pub fn remove(&mut self, name: &str) -> BTreeSet<String> {
        let touched = self.withdraw(name);
        self.leave(name);
        self.stale = true;
        touched
    }

    /// Takes note of the data centre that the admissions are decided with.
    pub fn set_data_center(&mut self, data_center: Option<DataCenter>) {
        self.capacity =
            data_center.as_ref().map(|known| reserve_respecting_capacity(&known.spec)).unwrap_or_default();
        self.data_center = data_center;
        let comuni: Vec<Arc<Comune>> = self.entries.values().map(|entry| entry.comune.clone()).collect();
        self.entries.clear();
        self.holders.clear();
        self.wanted.clear();
        for comune in comuni {
            self.put_shared(comune);
        }
        self.stale = true;
    }

    fn withdraw(&mut self, name: &str) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for claim in self.entries.get(name).map(|entry| entry.claims.clone()).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&claim) {
                holders.remove(name);
                touched.extend(holders.iter().cloned());
                if holders.is_empty() {
                    self.holders.remove(&claim);
                }
            }
        }
        touched
    }

    /// The Comune that keeps a claim, if it is not `name` itself.
    pub fn senior_holder(&self, name: &str, claim: &Claim) -> Option<&str> {
        let holders = self.holders.get(claim)?;
        let senior = holders
            .iter()
            .filter_map(|holder| self.entries.get(holder))
            .min_by(|a, b| a.seniority.key().cmp(&b.seniority.key()))?;
        (senior.seniority.name != name).then_some(senior.seniority.name.as_str())
    }

    /// The Comuni that lay claim to something.
    pub fn claimants(&self, claim: &Claim) -> impl Iterator<Item = &str> {
        self.holders.get(claim).into_iter().flatten().map(String::as_str)
    }

    /// Comuni that wait for room in the data centre.
    pub fn waiting_for_room(&mut self) -> Vec<String> {
        if self.has_room_for_all() {
            return Vec::new();
        }
        self.refresh();
        let waiting = self.decisions.iter().filter(|(_, decision)| !decision.missing.is_empty());
        waiting.map(|(name, _)| name.clone()).collect()
    }

    /// The decision on a Comune's admission. None: there is no data centre, or its totals are not known.
    pub fn decision(&mut self, name: &str) -> Option<Decision> {
        if self.has_room_for_all() {
            let request = self.entries.get(name)?.request(self.data_center.as_ref())?;
            return Some(Decision::of_plenty(&request));
        }
        self.refresh();
        self.decisions.get(name).cloned()
    }

    /// Sum of what has been promised, by resource, and the numbers of admitted and known Comuni.
    pub fn committed(&mut self) -> (BTreeMap<String, Amount>, usize, usize) {
        self.refresh();
        let mut sum = BTreeMap::new();
        let mut admitted = 0;
        for granted in self.decisions.values().filter_map(|decision| decision.granted.as_ref()) {
            admitted += 1;
            for (resource, amount) in granted {
                *sum.entry(resource.clone()).or_default() += *amount;
            }
        }
        (sum, admitted, self.entries.len())
    }

    /// Names of all known Comuni.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Services made from each template: template → version as asked for (or none) → number.
    pub fn template_use(&self) -> BTreeMap<String, BTreeMap<Option<String>, u32>> {
        let mut used: BTreeMap<String, BTreeMap<Option<String>, u32>> = BTreeMap::new();
        for service in self.entries.values().flat_map(|entry| &entry.comune.spec.services) {
            *used.entry(service.template.clone()).or_default().entry(service.version.clone()).or_default() +=
                1;
        }
        used
    }

    /// Names of the Comuni with a service from a template.
    pub fn users_of_template(&self, template: &str) -> Vec<String> {
        self.entries
            .iter()
            .filter(|(_, entry)| {
                entry.comune.spec.services.iter().any(|service| service.template == template)
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn refresh(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.decisions = self.decide_for_all();
        }
    }

    fn decide_for_all(&self) -> BTreeMap<String, Decision> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by(|a, b| a.seniority.key().cmp(&b.seniority.key()));
        let requests: Vec<Request> =
            entries.iter().filter_map(|entry| entry.request(self.data_center.as_ref())).collect();
        decide(&self.capacity, &requests)
    }
}

fn of(amounts: &Amounts, resource: &str) -> Amount {
    amounts.get(resource).copied().unwrap_or_default()
}

/// What a Comune asks of the data centre.
fn request(comune: &Comune, seniority: &Seniority, data_center: &DataCenter) -> Option<Request> {
    let admitted = seniority.admitted.is_some();
    let in_force = totals_in_force(comune).filter(|_| admitted);
    // While its size cannot be told, what was promised to it stays promised.
    let wanted = match totals_of(&comune.spec, data_center) {
        Ok((_, wanted)) => wanted,
        Err(_) => in_force.clone()?,
    };
    let granted = admitted.then(|| in_force.unwrap_or_else(|| wanted.clone()));
    Some(Request { name: seniority.name.clone(), wanted, granted })
}

fn remembered_by(seen: &NamespaceSeen) -> Option<Remembered> {
    if seen.terminating || seen.labels.get(keys::MANAGED_BY).map(String::as_str) != Some(keys::MANAGER) {
        return None;
    }
    Some(Remembered {
        comune: seen.labels.get(keys::COMUNE)?.clone(),
        istat: seen.labels.get(keys::ISTAT).cloned(),
        at: seen.annotations.get(keys::ADMITTED_AT)?.parse().ok()?,
    })
}

fn claims(comune: &Comune, data_center: Option<&DataCenter>) -> BTreeSet<Claim> {
    let name = comune.name_any();
    let mut claims: BTreeSet<Claim> = comune
        .spec
        .environments
        .iter()
        .map(|environment| Claim::Namespace(names::namespace(&name, &environment.name)))
        .collect();
    claims.extend(comune.spec.entity.istat.clone().map(Claim::Istat));
    for service in &comune.spec.services {
        let hostname = service.hostname.clone().or_else(|| {
            let domain = &data_center?.spec.ingress.domain;
            Some(names::default_hostname(&service.name, &service.environment, &name, domain))
        });
        claims.extend(hostname.map(Claim::Hostname));
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{comune, data_center};
    use serde_json::json;

    fn created(name: &str, second: i64, edit: impl FnOnce(&mut Comune)) -> Comune {
        let mut comune = comune(name);
        comune.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::new(second, 0).unwrap()));
        edit(&mut comune);
        comune
    }

    #[test]
    fn the_senior_one_keeps_an_istat_code() {
        let mut register = Register::default();
        register.put(&created("beta", 1, |c| c.spec.entity.istat = Some("027001".into())));
        let touched = register.put(&created("alfa", 2, |c| c.spec.entity.istat = Some("027001".into())));
        assert_eq!(touched.into_iter().collect::<Vec<_>>(), ["beta"]);
        let claim = Claim::Istat("027001".into());
        assert_eq!(register.senior_holder("alfa", &claim), Some("beta"));
        assert_eq!(register.senior_holder("beta", &claim), None);
        // The first admission counts more than the creation: a manifest that was re-created keeps its place.
        register.put(&created("alfa", 3, |c| {
            c.spec.entity.istat = Some("027001".into());
            c.status.get_or_insert_default().seniority = Some("2026-01-01T00:00:00Z".into());
        }));
        assert_eq!(register.senior_holder("beta", &claim), Some("alfa"));
        register.remove("alfa");
        assert_eq!(register.senior_holder("beta", &claim), None);
    }

    #[test]
    fn who_comes_while_the_clock_is_set_back_comes_after_those_who_are_there() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut register = Register::default();
        assert_eq!(register.admission(at("2026-05-01T00:00:00Z")), at("2026-05-01T00:00:00Z"));
        register.put(&created("alfa", 1, |_| {}));
        register.put(&created("beta", 2, |c| {
            c.status.get_or_insert_default().seniority = Some("2026-05-01T00:00:00Z".into());
        }));
        assert_eq!(register.admission(at("2026-01-01T00:00:00Z")), at("2026-05-01T00:00:00Z"));
        assert_eq!(register.admission(at("2026-06-01T00:00:00Z")), at("2026-06-01T00:00:00Z"));
    }

    #[test]
    fn one_that_is_applied_again_keeps_the_place_that_its_namespaces_remember() {
        let mut register = Register::default();
        register.set_data_center(Some(data_center()));
        let seen = |comune: &str, istat: &str, at: &str| NamespaceSeen {
            labels: BTreeMap::from(
                [(keys::MANAGED_BY, keys::MANAGER), (keys::COMUNE, comune), (keys::ISTAT, istat)]
                    .map(|(key, value)| (key.to_owned(), value.to_owned())),
            ),
            annotations: BTreeMap::from([(keys::ADMITTED_AT.to_owned(), at.to_owned())]),
            ..NamespaceSeen::default()
        };
        let claim = Claim::Istat("027012".into());
        let young =
            |c: &mut Comune| c.status.get_or_insert_default().seniority = Some("2026-02-01T00:00:00Z".into());
        register.put(&created("young", 1, young));
        register.put(&created("old", 9, |_| {}));
        assert_eq!(register.senior_holder("old", &claim), Some("young"));
        // In whatever order things are seen.
        register.note_namespace("old-collaudo", Some(&seen("old", "027012", "2026-01-05T00:00:00Z")));
        register.note_namespace("old-produzione", Some(&seen("old", "027012", "2026-01-01T00:00:00Z")));
        assert_eq!(register.senior_holder("old", &claim), None);
        assert_eq!(register.senior_holder("young", &claim), Some("old"));
        let remembered = register.remembered(&created("old", 9, |_| {}));
        assert_eq!(remembered.unwrap().to_string(), "2026-01-01T00:00:00Z");
        // What its own status tells counts more; another administration's namespaces count for nothing.
        let told =
            |c: &mut Comune| c.status.get_or_insert_default().seniority = Some("2026-03-01T00:00:00Z".into());
        register.put(&created("old", 9, told));
        assert_eq!(register.senior_holder("old", &claim), Some("young"));
        register.put(&created("old", 9, |_| {}));
        for namespace in ["old-collaudo", "old-produzione"] {
            register.note_namespace(namespace, Some(&seen("old", "027099", "2026-01-01T00:00:00Z")));
        }
        assert_eq!(register.senior_holder("old", &claim), Some("young"));
        register.note_namespace("old-produzione", None);
    }

    #[test]
    fn two_names_that_meet_in_one_namespace_are_a_conflict() {
        let mut register = Register::default();
        register.put(&created("san", 1, |c| c.spec.environments[0].name = "stino-x".into()));
        register.put(&created("san-stino", 2, |c| c.spec.environments[0].name = "x".into()));
        let claim = Claim::Namespace("san-stino-x".into());
        assert_eq!(register.senior_holder("san-stino", &claim), Some("san"));
    }

    #[test]
    fn admission_is_decided_by_the_data_centre() {
        let mut register = Register::default();
        register.put(&created("dolo", 1, |_| {}));
        assert!(register.decision("dolo").is_none(), "nothing is decided without a data centre");
        register.set_data_center(Some(data_center()));
        assert!(register.decision("dolo").unwrap().granted.is_some());
        assert_eq!(register.committed().1, 1);
    }

    #[test]
    fn the_short_way_of_a_data_centre_with_room_for_all_decides_as_the_long_one() {
        let mut register = Register::default();
        register.set_data_center(Some(data_center()));
        let mut scarce = 0;
        let mut check = |register: &mut Register| {
            let in_full = register.decide_for_all();
            scarce += usize::from(!register.has_room_for_all());
            for name in register.names().map(str::to_owned).collect::<Vec<_>>() {
                assert_eq!(register.decision(&name).as_ref(), in_full.get(&name), "{name}");
            }
            let waiting = in_full.iter().filter(|(_, decision)| !decision.missing.is_empty());
            assert_eq!(
                register.waiting_for_room(),
                waiting.map(|(name, _)| name.clone()).collect::<Vec<_>>()
            );
        };
        let capacity = reserve_respecting_capacity(&data_center().spec);
        let third = capacity["cpu"].whole() / 3;
        let large = |c: &mut Comune| {
            c.spec.quota =
                Some(serde_json::from_value(json!({"cpu": third.to_string(), "memory": "1Gi"})).unwrap());
        };
        for number in 0..5 {
            register.put(&created(&format!("c{number}"), number, large));
            check(&mut register);
        }
        // Admitted, with less in force than it wants; of unknown size; gone.
        register.put(&created("c0", 0, |c| {
            large(c);
            let status = c.status.get_or_insert_default();
            status.seniority = Some("2026-01-01T00:00:00Z".into());
            status.quota = Some(
                serde_json::from_value(
                    json!({"limit": {"cpu": "1", "memory": "1Gi"}, "used": {}, "overLimit": []}),
                )
                .unwrap(),
            );
        }));
        check(&mut register);
        register.put(&created("c1", 1, |c| c.spec.tier = Some("unknown".into())));
        check(&mut register);
        register.set_data_center(None);
        check(&mut register);
        register.set_data_center(Some(data_center()));
        for number in 0..5 {
            check(&mut register);
            register.remove(&format!("c{number}"));
        }
        check(&mut register);
        assert!((2..12).contains(&scarce), "both ways were gone: {scarce}");
        assert!(register.wanted.values().all(|sum| *sum == Amount::ZERO), "{:?}", register.wanted);
    }
}
