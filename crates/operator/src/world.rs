//! What the operator knows beside the children: its own resources and the state of databases.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use conme_api::{Comune, DataCenter, DatabaseServer, ServiceTemplate, reasons};
use conme_blueprint::{
    Claim, DatabaseDetails, DatabaseSeen, NamespaceSeen, Register, Survey, Told, grace_left, is_ready,
};
use conme_databases::Marked;
use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};

use crate::{databases::DatabaseState, dedicated::DedicatedState, departure::Grace, removals::Removal};

/// The caches of the operator's own resources, and what was decided from them.
pub struct World {
    /// Name of the DataCenter that this operator serves.
    pub serves: String,
    comuni: BTreeMap<String, Known>,
    data_centers: BTreeMap<String, Arc<DataCenter>>,
    templates: BTreeMap<String, Arc<ServiceTemplate>>,
    storage_classes: BTreeSet<String>,
    /// All Comuni with their claims and admissions.
    pub register: Register,
    /// Databases by Comune and name in the manifest.
    pub databases: HashMap<(String, String), DatabaseState>,
    /// Databases on servers of their own by Comune and name in the manifest.
    pub dedicated: HashMap<(String, String), DedicatedState>,
    /// Databases that are dropped, by Comune and name in the manifest.
    pub removals: HashMap<(String, String), Removal>,
    /// What each database server was last found to hold.
    surveys: BTreeMap<String, (Timestamp, Vec<Marked>)>,
    /// When the database servers were last looked through; None: they have to be now.
    pub surveyed: Option<Instant>,
    /// Comuni for which nothing is built any more: what they have is being deleted.
    leaving: BTreeSet<String>,
    graces: HashMap<String, Grace>,
    /// First admissions that no status tells yet: unique id of the Comune and time.
    admissions: HashMap<String, (Option<String>, String)>,
    relisting: BTreeSet<String>,
    unreadable: BTreeSet<String>,
}

/// What is often asked of a Comune; the register has it as a whole.
struct Known {
    version: Option<u64>,
    uid: Option<Box<str>>,
    ready: bool,
    orphans: bool,
}

impl Known {
    fn of(comune: &Comune) -> Self {
        Self {
            version: version(comune),
            uid: comune.metadata.uid.as_deref().map(Into::into),
            ready: is_ready(comune),
            orphans: comune.status.as_ref().is_some_and(|status| !status.orphans.is_empty()),
        }
    }
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_ref().and_then(|text| text.parse().ok())
}

/// Whether news are newer than what is known.
fn is_newer<K: Resource>(object: &K, known: Option<&Arc<K>>) -> bool {
    known.is_none_or(|known| version(object) > version(&**known) || object.meta().uid != known.meta().uid)
}

impl World {
    /// Knows nothing yet.
    pub fn new(serves: impl Into<String>) -> Self {
        Self {
            serves: serves.into(),
            comuni: BTreeMap::new(),
            data_centers: BTreeMap::new(),
            templates: BTreeMap::new(),
            storage_classes: BTreeSet::new(),
            register: Register::default(),
            databases: HashMap::new(),
            dedicated: HashMap::new(),
            removals: HashMap::new(),
            surveys: BTreeMap::new(),
            surveyed: None,
            leaving: BTreeSet::new(),
            graces: HashMap::new(),
            admissions: HashMap::new(),
            relisting: BTreeSet::new(),
            unreadable: BTreeSet::new(),
        }
    }

    /// Takes note of a Comune. Returns the names of the Comuni that have to be looked at.
    pub fn put_comune(&mut self, comune: Comune) -> BTreeSet<String> {
        let name = comune.name_any();
        self.relisting.remove(&name);
        self.unreadable.remove(&name);
        let news = Known::of(&comune);
        let known = self.comuni.get(&name);
        if known.is_some_and(|known| news.version <= known.version && news.uid == known.uid) {
            return BTreeSet::new();
        }
        let waiting = self.register.waiting_for_room();
        let mut touched = self.register.put(&comune);
        if !touched.is_empty() || !waiting.is_empty() {
            touched.extend(waiting);
        }
        self.comuni.insert(name.clone(), news);
        touched.insert(name);
        touched
    }

    /// Takes note of a Comune that exists but cannot be read: it stays as it was known before, and is not gone.
    pub fn unreadable_comune(&mut self, name: String) {
        self.relisting.remove(&name);
        self.unreadable.insert(name);
    }

    /// Whether a Comune of this name exists, readable or not.
    pub fn comune_exists(&self, name: &str) -> bool {
        self.comuni.contains_key(name) || self.unreadable.contains(name)
    }

    /// Takes note that a Comune is gone. Returns the names of the Comuni that have to be looked at.
    pub fn remove_comune(&mut self, name: &str) -> BTreeSet<String> {
        self.comuni.remove(name);
        self.unreadable.remove(name);
        self.databases.retain(|(comune, _), _| comune != name);
        self.dedicated.retain(|(comune, _), _| comune != name);
        self.stays(name);
        self.graces.remove(name);
        self.admissions.remove(name);
        // What it has left on the servers is told soon.
        self.surveyed = None;
        let mut touched = self.register.waiting_for_room().into_iter().collect::<BTreeSet<_>>();
        touched.extend(self.register.remove(name));
        touched.insert(name.to_owned());
        touched
    }

    /// A list of all Comuni begins.
    pub fn relist_comuni(&mut self) {
        self.relisting = self.comuni.keys().cloned().collect();
    }

    /// The list is complete: what was not in it is gone. Returns the names that have to be looked at.
    pub fn relisted_comuni(&mut self) -> BTreeSet<String> {
        let gone = std::mem::take(&mut self.relisting);
        gone.iter().flat_map(|name| self.remove_comune(name)).collect()
    }

    /// A Comune, but for who manages its fields.
    pub fn comune(&self, name: &str) -> Option<Arc<Comune>> {
        self.register.comune(name).map(Arc::new)
    }

    /// Names of all Comuni.
    pub fn comune_names(&self) -> Vec<String> {
        self.comuni.keys().cloned().collect()
    }

    /// What a Comune has is being deleted from now on: nothing of it is brought about any more.
    pub fn leaves(&mut self, name: &str) {
        self.leaving.insert(name.to_owned());
    }

    /// Nothing that a Comune has is being deleted.
    pub fn stays(&mut self, name: &str) {
        self.leaving.remove(name);
        self.removals.retain(|(comune, _), _| comune != name);
    }

    /// Whether what a Comune has is being deleted.
    pub fn is_leaving(&self, name: &str) -> bool {
        self.leaving.contains(name)
    }

    /// Takes note of the grace period that is told of. Returns what is left of it.
    pub fn note_grace(&mut self, name: &str, told: &Told, grace: SignedDuration) -> Duration {
        let known = self.graces.get(name).filter(|known| known.ends(told.deletion.delete_after.as_ref()));
        if known.is_none() {
            match Grace::of(told, grace) {
                Some(begun) => self.graces.insert(name.to_owned(), begun),
                None => self.graces.remove(name),
            };
        }
        self.graces.get(name).map_or(Duration::MAX, Grace::left)
    }

    /// For how long this process has known of the grace period that the status tells of, and what was left of it when
    /// it first knew.
    pub fn grace_of(&self, comune: &Comune, grace: SignedDuration) -> (SignedDuration, SignedDuration) {
        let deletion = comune.status.as_ref().and_then(|status| status.deletion.clone()).unwrap_or_default();
        let known = self.graces.get(&comune.name_any());
        match known.filter(|known| known.ends(deletion.delete_after.as_ref())) {
            Some(known) => known.run(),
            None => (SignedDuration::ZERO, grace_left(&deletion, grace)),
        }
    }

    /// When a Comune was first admitted (RFC 3339): as its status tells, else as its namespaces remember, else now.
    pub fn admitted_at(&mut self, comune: &Comune, now: Timestamp) -> String {
        if let Some(told) = comune.status.as_ref().and_then(|status| status.seniority.clone()) {
            return told;
        }
        let name = comune.name_any();
        if let Some(remembered) = self.register.remembered(comune) {
            return remembered.to_string();
        }
        let known = self.admissions.get(&name).filter(|(uid, _)| *uid == comune.metadata.uid);
        if let Some((_, at)) = known {
            return at.clone();
        }
        let at = self.register.admission(now);
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at).to_string();
        self.admissions.insert(name, (comune.metadata.uid.clone(), at.clone()));
        at
    }

    /// Takes note of a namespace as it is now, None when it is gone. Returns the Comuni whose place among the others has
    /// changed by what it remembers.
    pub fn note_namespace(&mut self, name: &str, seen: Option<&NamespaceSeen>) -> BTreeSet<String> {
        self.register.note_namespace(name, seen)
    }

    /// Takes note of what a database server holds. Returns the Comuni that it is news for.
    pub fn note_survey(&mut self, server: &str, at: Timestamp, found: Vec<Marked>) -> BTreeSet<String> {
        let before = self.surveys.insert(server.to_owned(), (at, found.clone()));
        let before = before.map(|(_, databases)| databases).unwrap_or_default();
        let news = found.iter().filter(|marked| !before.contains(marked));
        let gone = before.iter().filter(|marked| !found.contains(marked));
        news.chain(gone).map(|marked| marked.comune.clone()).collect()
    }

    /// What each database server was last found to hold, with the time.
    pub fn surveys(&self) -> &BTreeMap<String, (Timestamp, Vec<Marked>)> {
        &self.surveys
    }

    /// What each database server was last found to hold of one Comune.
    pub fn surveys_of(&self, comune: &Comune) -> BTreeMap<String, Survey> {
        let name = comune.name_any();
        let istat = &comune.spec.entity.istat;
        let of = |found: &[Marked]| {
            let own = found.iter().filter(|marked| marked.comune == name && marked.istat == *istat);
            own.map(|marked| (marked.on_server.clone(), marked.database.clone())).collect()
        };
        let surveys = self.surveys.iter();
        surveys
            .map(|(server, (at, found))| (server.clone(), Survey { at: *at, databases: of(found) }))
            .collect()
    }

    /// The database servers of the DataCenter in service.
    pub fn database_servers(&self) -> Vec<DatabaseServer> {
        let in_service = self.data_centers.get(&self.serves);
        in_service.map(|in_service| in_service.spec.database_servers.clone()).unwrap_or_default()
    }

    /// A database server of the DataCenter in service.
    pub fn database_server(&self, name: &str) -> Option<DatabaseServer> {
        let servers = &self.data_centers.get(&self.serves)?.spec.database_servers;
        servers.iter().find(|server| server.name == name).cloned()
    }

    /// The numbers of Comuni that are Ready, and of all.
    pub fn ready_and_all(&self) -> (usize, usize) {
        (self.comuni.values().filter(|known| known.ready).count(), self.comuni.len())
    }

    /// Comuni whose status tells of something that they have left.
    pub fn comuni_with_orphans(&self) -> impl Iterator<Item = Comune> {
        let with_orphans = self.comuni.iter().filter(|(_, known)| known.orphans);
        with_orphans.filter_map(|(name, _)| self.register.comune(name))
    }

    /// Takes note of a DataCenter. Returns whether it is the one in service and its specification is new.
    pub fn put_data_center(&mut self, data_center: DataCenter) -> bool {
        let name = data_center.name_any();
        let known = self.data_centers.get(&name);
        if !is_newer(&data_center, known) {
            return false;
        }
        let changed = known.is_none_or(|known| known.spec != data_center.spec);
        self.data_centers.insert(name.clone(), Arc::new(data_center.clone()));
        let matters = changed && name == self.serves;
        if matters {
            self.register.set_data_center(Some(data_center));
        }
        matters
    }

    /// Takes note that a DataCenter is gone. Returns whether it was the one in service.
    pub fn remove_data_center(&mut self, name: &str) -> bool {
        self.data_centers.remove(name);
        let matters = name == self.serves;
        if matters {
            self.register.set_data_center(None);
        }
        matters
    }

    /// All DataCenters.
    pub fn data_centers(&self) -> impl Iterator<Item = &Arc<DataCenter>> {
        self.data_centers.values()
    }

    /// Takes note of a template. Returns the names of the Comuni that have to be looked at.
    pub fn put_template(&mut self, template: ServiceTemplate) -> Vec<String> {
        let name = template.name_any();
        let known = self.templates.get(&name);
        if !is_newer(&template, known) {
            return Vec::new();
        }
        let changed = known.is_none_or(|known| known.spec != template.spec);
        self.templates.insert(name.clone(), Arc::new(template));
        if changed { self.register.users_of_template(&name) } else { Vec::new() }
    }

    /// Takes note that a template is gone. Returns the names of the Comuni that have to be looked at.
    pub fn remove_template(&mut self, name: &str) -> Vec<String> {
        self.templates.remove(name);
        self.register.users_of_template(name)
    }

    /// All templates.
    pub fn templates(&self) -> impl Iterator<Item = &Arc<ServiceTemplate>> {
        self.templates.values()
    }

    /// Takes note of a storage class of the cluster. Returns whether it was unknown.
    pub fn put_storage_class(&mut self, name: String) -> bool {
        self.storage_classes.insert(name)
    }

    /// Takes note that a storage class is gone.
    pub fn remove_storage_class(&mut self, name: &str) {
        self.storage_classes.remove(name);
    }

    /// The Comuni that lay claim to a namespace.
    pub fn claimants_of_namespace(&self, namespace: &str) -> Vec<String> {
        self.register.claimants(&Claim::Namespace(namespace.to_owned())).map(str::to_owned).collect()
    }

    /// Checks a Comune against everything that is known.
    pub fn validate(&mut self, comune: &Comune, operator: (&str, &str)) -> conme_blueprint::Verdict {
        let data_center = self.data_centers.get(&self.serves).cloned();
        let mut site = conme_blueprint::Site {
            data_center: data_center.as_deref(),
            templates: &self.templates,
            storage_classes: Some(&self.storage_classes),
            register: &mut self.register,
            operator,
        };
        conme_blueprint::validate(comune, &mut site)
    }

    /// What is known of the databases of a Comune. Right after a start that is what its status tells of this very
    /// manifest: a database is looked at again before anything else is said of it. Those of which nothing has been told
    /// yet are shown together, for as long as they may wait at `now`.
    pub fn databases_seen(&self, comune: &Comune, now: Instant) -> BTreeMap<String, DatabaseSeen> {
        let name = comune.name_any();
        let told = comune.status.as_ref().map(|status| status.databases.as_slice()).unwrap_or_default();
        let state_of = |database: &str| self.databases.get(&(name.clone(), database.to_owned()));
        let is_news = |database: &str| {
            let told = told.iter().find(|told| told.name == database);
            told.is_none_or(|told| told.reason == reasons::IN_PROGRESS)
        };
        let declared = comune.spec.databases.iter().map(|database| database.name.as_str());
        let news: Vec<&DatabaseState> =
            declared.filter(|database| is_news(database)).filter_map(state_of).collect();
        let is_held_back = news.iter().any(|state| state.is_to_come())
            && news.iter().filter(|state| state.seen.is_some()).all(|state| state.may_wait(now));
        let of_generation = comune.status.as_ref().and_then(|status| status.observed_generation);
        let is_current = of_generation == comune.metadata.generation;
        let mut seen = BTreeMap::new();
        for database in &comune.spec.databases {
            let dedicated = || {
                let key = (name.clone(), database.name.clone());
                self.dedicated.get(&key).and_then(|state| state.seen.clone())
            };
            let state = state_of(&database.name).filter(|_| !(is_held_back && is_news(&database.name)));
            let state = state.and_then(|state| state.seen.clone()).or_else(dedicated);
            let from_status = || {
                let told = told.iter().find(|told| told.name == database.name)?;
                if !told.ready || !is_current {
                    return None;
                }
                Some(DatabaseSeen::Ready {
                    system_identifier: told.system_identifier.clone().unwrap_or_default(),
                    provisioned_at: told.provisioned_at.as_ref()?.parse().ok()?,
                    database: told.database.clone(),
                    details: Box::new(DatabaseDetails { as_told: true, ..DatabaseDetails::default() }),
                })
            };
            if let Some(state) = state.or_else(from_status) {
                seen.insert(database.name.clone(), state);
            }
        }
        seen
    }
}
