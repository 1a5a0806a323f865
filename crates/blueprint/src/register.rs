//! The register of all Comuni: who asked first for what only one can have, and who fits into the data centre.
//!
//! A plain synchronous index. It is fed one Comune at a time and answers questions about any of them, so that the
//! plan of one Comune never has to look at all the others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use conme_api::{Comune, DataCenter, keys, reasons};
use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    amount::Amount,
    capacity::{Amounts, Decision, PROMISED, Request, decide, reserve_respecting_capacity},
    names,
    plan::NamespaceSeen,
    shelf::{Shelf, Stored},
    validate::{totals_in_force, totals_of},
};

/// Order in which Comuni are served: by the time of their first admission, then of their creation, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seniority {
    /// First admission; those never admitted come last.
    admitted: Option<Timestamp>,
    created: Option<Timestamp>,
    name: Arc<str>,
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
#[derive(PartialEq)]
struct Remembered {
    comune: String,
    istat: Option<String>,
    at: Timestamp,
}

struct Entry {
    seniority: Seniority,
    claims: Box<[Arc<Claim>]>,
    asks: Option<Asks>,
    /// Template and version of each service.
    templates: Box<[Versioned]>,
    /// Digest of the specification, None when it cannot be told.
    spec: Option<[u8; 16]>,
    comune: Kept,
}

impl Entry {
    /// What it asks of the data centre. None: there is none, or its totals are not known.
    fn request(&self) -> Option<Request> {
        let asks = self.asks.as_ref()?;
        let map = |amounts: &[(Arc<str>, Amount)]| {
            amounts.iter().map(|(resource, amount)| (resource.to_string(), *amount)).collect::<Amounts>()
        };
        let wanted = map(&asks.wanted);
        let granted = match &asks.granted {
            Granted::Nothing => None,
            Granted::AsWanted => Some(wanted.clone()),
            Granted::Other(amounts) => Some(map(amounts)),
        };
        Some(Request { name: self.seniority.name.to_string(), wanted, granted })
    }
}

/// A template, with the version that is asked for.
type Versioned = (Arc<str>, Option<Arc<str>>);

/// A request, as small as possible.
struct Asks {
    wanted: Box<[(Arc<str>, Amount)]>,
    granted: Granted,
}

enum Granted {
    Nothing,
    AsWanted,
    Other(Box<[(Arc<str>, Amount)]>),
}

/// A manifest with its status. As a structure it would take far more, however little is in it.
enum Kept {
    Text(Stored),
    /// One that does not come back from its text as it was.
    Whole(Box<Comune>),
}

impl Kept {
    fn of(comune: &Comune, shelf: &mut Shelf) -> Self {
        let stored = serde_json::to_string(comune).ok().map(|text| {
            // Others are packed against what most look like after a while.
            if is_ready(comune) { shelf.put(&text) } else { shelf.pack(&text) }
        });
        match stored {
            Some(stored) if parse(&stored).as_ref() == Some(comune) => Self::Text(stored),
            _ => Self::Whole(Box::new(comune.clone())),
        }
    }

    fn comune(&self) -> Comune {
        match self {
            // It could be read when it was put away. Should memory have been broken since, nothing that is known can be
            // relied upon, and one that seems to be gone would be taken down.
            Self::Text(stored) => parse(stored).unwrap_or_else(|| std::process::abort()),
            Self::Whole(comune) => (**comune).clone(),
        }
    }
}

fn parse(stored: &Stored) -> Option<Comune> {
    serde_json::from_str(&stored.text()).ok()
}

/// Whether the status of a Comune tells that everything is as declared.
pub fn is_ready(comune: &Comune) -> bool {
    let conditions = comune.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == reasons::READY && condition.status == "True")
}

/// Texts that many entries share.
#[derive(Default)]
struct Texts(BTreeSet<Arc<str>>);

impl Texts {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        if self.0.len() >= 1024 && self.0.len().is_power_of_two() {
            self.0.retain(|text| Arc::strong_count(text) > 1);
        }
        let text: Arc<str> = text.into();
        self.0.insert(text.clone());
        text
    }

    fn amounts(&mut self, amounts: &Amounts) -> Box<[(Arc<str>, Amount)]> {
        amounts.iter().map(|(resource, amount)| (self.shared(resource), *amount)).collect()
    }

    fn asks(&mut self, request: &Request) -> Asks {
        let granted = match &request.granted {
            None => Granted::Nothing,
            Some(granted) if *granted == request.wanted => Granted::AsWanted,
            Some(granted) => Granted::Other(self.amounts(granted)),
        };
        Asks { wanted: self.amounts(&request.wanted), granted }
    }

    fn templates(&mut self, comune: &Comune) -> Box<[Versioned]> {
        let services = comune.spec.services.iter();
        services
            .map(|service| {
                let version = service.version.as_deref().map(|version| self.shared(version));
                (self.shared(&service.template), version)
            })
            .collect()
    }
}

/// Every Comune's claims and the decision on its admission.
#[derive(Default)]
pub struct Register {
    entries: BTreeMap<Arc<str>, Entry>,
    /// Hardly ever more than one each.
    holders: HashMap<Arc<Claim>, Vec<Arc<str>>>,
    shelf: Shelf,
    texts: Texts,
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
        self.put_own(&comune)
    }

    fn put_own(&mut self, comune: &Comune) -> BTreeSet<String> {
        let name: Arc<str> = match self.entries.get_key_value(comune.name_any().as_str()) {
            Some((name, _)) => name.clone(),
            None => comune.name_any().into(),
        };
        let seniority = Seniority {
            admitted: comune
                .status
                .as_ref()
                .and_then(|status| status.seniority.as_ref())
                .and_then(|text| text.parse().ok())
                .or_else(|| self.remembered(comune)),
            created: comune.metadata.creation_timestamp.as_ref().map(|time| time.0),
            name: name.clone(),
        };
        let claims = claims(comune, self.data_center.as_ref());
        let request =
            self.data_center.as_ref().and_then(|data_center| request(comune, &seniority, data_center));
        let spec = digest(comune);
        let known = self.entries.get(&name);
        let is_as_before = known.is_some_and(|entry| {
            spec.is_some()
                && entry.spec == spec
                && entry.seniority == seniority
                && entry.claims.iter().map(|claim| &**claim).eq(&claims)
        });
        let mut touched = BTreeSet::new();
        let claims = match known {
            Some(entry) if is_as_before => entry.claims.clone(),
            _ => {
                touched = self.withdraw(&name);
                let claims: Box<[Arc<Claim>]> = claims.into_iter().map(Arc::new).collect();
                for claim in &claims {
                    let holders = self.holders.entry(claim.clone()).or_default();
                    touched.extend(holders.iter().map(ToString::to_string));
                    holders.reserve_exact(1);
                    holders.push(name.clone());
                }
                touched.remove(&*name);
                claims
            }
        };
        let entry = Entry {
            seniority,
            claims,
            asks: request.as_ref().map(|request| self.texts.asks(request)),
            templates: self.texts.templates(comune),
            spec,
            comune: Kept::of(comune, &mut self.shelf),
        };
        self.enter(name, entry, request.as_ref());
        touched
    }

    fn enter(&mut self, name: Arc<str>, entry: Entry, request: Option<&Request>) {
        if let Some(request) = request {
            for resource in PROMISED {
                *self.wanted.entry(resource.to_owned()).or_default() += of(&request.wanted, resource);
            }
        }
        let seniority = self.entries.get(&name).map(|before| before.seniority.clone());
        let before = self.leave(&name);
        self.stale |= seniority.as_ref() != Some(&entry.seniority) || before.as_ref() != request;
        self.entries.insert(name, entry);
    }

    /// Returns what it has asked for.
    fn leave(&mut self, name: &str) -> Option<Request> {
        let request = self.entries.remove(name)?.request()?;
        for (resource, sum) in &mut self.wanted {
            *sum = sum.saturating_sub(of(&request.wanted, resource));
        }
        Some(request)
    }

    /// A Comune as it was last taken note of, but for who manages its fields.
    pub fn comune(&self, name: &str) -> Option<Comune> {
        self.entries.get(name).map(|entry| entry.comune.comune())
    }

    /// Whether the data centre has room for all that everybody asks for. Then each gets it, whatever the others do.
    fn has_room_for_all(&self) -> bool {
        PROMISED.iter().all(|resource| of(&self.wanted, resource) <= of(&self.capacity, resource))
    }

    /// Takes note of a namespace as it is now, None when it is gone. Returns the Comuni whose place among the others has
    /// changed by what it remembers.
    pub fn note_namespace(&mut self, name: &str, seen: Option<&NamespaceSeen>) -> BTreeSet<String> {
        let after = seen.and_then(remembered_by);
        if self.remembered.get(name) == after.as_ref() {
            return BTreeSet::new();
        }
        let before = match after {
            Some(remembered) => self.remembered.insert(name.to_owned(), remembered),
            None => self.remembered.remove(name),
        };
        let after = self.remembered.get(name);
        let comuni: BTreeSet<String> =
            before.iter().chain(after).map(|remembered| remembered.comune.clone()).collect();
        let mut touched = BTreeSet::new();
        for comune in comuni {
            if let Some(comune) = self.comune(&comune) {
                touched.extend(self.put_own(&comune));
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
        let entries = std::mem::take(&mut self.entries);
        self.holders.clear();
        self.wanted.clear();
        for (_, entry) in entries {
            self.put_own(&entry.comune.comune());
        }
        self.stale = true;
    }

    fn withdraw(&mut self, name: &str) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for claim in self.entries.get(name).map(|entry| entry.claims.clone()).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&claim) {
                holders.retain(|holder| **holder != *name);
                touched.extend(holders.iter().map(ToString::to_string));
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
        (*senior.seniority.name != *name).then_some(&*senior.seniority.name)
    }

    /// The Comuni that lay claim to something.
    pub fn claimants(&self, claim: &Claim) -> impl Iterator<Item = &str> {
        self.holders.get(claim).into_iter().flatten().map(|name| &**name)
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
            let request = self.entries.get(name)?.request()?;
            return Some(Decision::of_plenty(&request));
        }
        self.refresh();
        self.decisions.get(name).cloned()
    }

    /// Sum of what has been promised, by resource, and the numbers of admitted and known Comuni.
    pub fn committed(&mut self) -> (BTreeMap<String, Amount>, usize, usize) {
        let mut sum = BTreeMap::new();
        let mut admitted = 0;
        let mut add = |decision: &Decision| {
            let Some(granted) = &decision.granted else { return };
            admitted += 1;
            for (resource, amount) in granted {
                *sum.entry(resource.clone()).or_default() += *amount;
            }
        };
        if self.has_room_for_all() {
            let requests = self.entries.values().filter_map(Entry::request);
            requests.for_each(|request| add(&Decision::of_plenty(&request)));
        } else {
            self.refresh();
            self.decisions.values().for_each(add);
        }
        (sum, admitted, self.entries.len())
    }

    /// Names of all known Comuni.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(|name| &**name)
    }

    /// Services made from each template: template → version as asked for (or none) → number.
    pub fn template_use(&self) -> BTreeMap<String, BTreeMap<Option<String>, u32>> {
        let mut used: BTreeMap<String, BTreeMap<Option<String>, u32>> = BTreeMap::new();
        for (template, version) in self.entries.values().flat_map(|entry| &entry.templates) {
            let versions = used.entry(template.to_string()).or_default();
            *versions.entry(version.as_deref().map(str::to_owned)).or_default() += 1;
        }
        used
    }

    /// Names of the Comuni with a service from a template.
    pub fn users_of_template(&self, template: &str) -> Vec<String> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.templates.iter().any(|(used, _)| **used == *template))
            .map(|(name, _)| name.to_string())
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
        let requests: Vec<Request> = entries.into_iter().filter_map(Entry::request).collect();
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
    Some(Request { name: seniority.name.to_string(), wanted, granted })
}

fn digest(comune: &Comune) -> Option<[u8; 16]> {
    let mut hasher = blake3::Hasher::new();
    serde_json::to_writer(&mut hasher, &comune.spec).ok()?;
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Some(digest)
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
    fn a_comune_comes_back_as_it_was_but_for_who_manages_its_fields() {
        let ready = |number: i64, comune: Comune| {
            let mut comune = Comune { spec: crate::fixtures::full_comune().spec, ..comune };
            let status = comune.status.get_or_insert_default();
            status.observed_generation = Some(number);
            status.conditions = vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
                type_: reasons::READY.into(),
                status: "True".into(),
                reason: reasons::AS_DECLARED.into(),
                message: "everything is as declared".into(),
                last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    Timestamp::UNIX_EPOCH,
                ),
                observed_generation: Some(number),
            }];
            comune
        };
        let mut register = Register::default();
        // Some before there is anything to pack them against, some after.
        let comuni: Vec<Comune> =
            (0..40).map(|number| ready(number, created(&format!("c{number}"), number, |_| {}))).collect();
        for comune in &comuni {
            let mut managed = comune.clone();
            managed.metadata.managed_fields =
                Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry::default()]);
            register.put(&managed);
        }
        for comune in &comuni {
            assert_eq!(register.comune(&comune.name_any()).as_ref(), Some(comune));
        }
        let last = &register.entries["c39"].comune;
        assert!(matches!(last, Kept::Text(Stored::Packed { bytes, .. }) if bytes.len() < 400), "it is small");
        assert!(register.comune("c40").is_none());
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
