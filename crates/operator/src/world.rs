//! What the operator knows beside the children: its own resources and the state of databases.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use conme_api::{Comune, DataCenter, ServiceTemplate};
use conme_blueprint::{Claim, DatabaseDetails, DatabaseSeen, Register};
use kube::{Resource, ResourceExt};

use crate::databases::DatabaseState;

/// The caches of the operator's own resources, and what was decided from them.
pub struct World {
    /// Name of the DataCenter that this operator serves.
    pub serves: String,
    comuni: BTreeMap<String, Arc<Comune>>,
    data_centers: BTreeMap<String, Arc<DataCenter>>,
    templates: BTreeMap<String, Arc<ServiceTemplate>>,
    storage_classes: BTreeSet<String>,
    /// All Comuni's claims and admissions.
    pub register: Register,
    /// Databases by Comune and name in the manifest.
    pub databases: HashMap<(String, String), DatabaseState>,
    relisting: BTreeSet<String>,
    unreadable: BTreeSet<String>,
}

/// Whether news are newer than what is known.
fn is_newer<K: Resource>(object: &K, known: Option<&Arc<K>>) -> bool {
    let version =
        |object: &K| object.meta().resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    known.is_none_or(|known| version(object) > version(known) || object.meta().uid != known.meta().uid)
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
            relisting: BTreeSet::new(),
            unreadable: BTreeSet::new(),
        }
    }

    /// Takes note of a Comune. Returns the names of the Comuni that have to be looked at.
    pub fn put_comune(&mut self, mut comune: Comune) -> BTreeSet<String> {
        let name = comune.name_any();
        self.relisting.remove(&name);
        self.unreadable.remove(&name);
        if !is_newer(&comune, self.comuni.get(&name)) {
            return BTreeSet::new();
        }
        comune.metadata.managed_fields = None;
        let waiting = self.register.waiting_for_room();
        let mut touched = self.register.put(&comune);
        if !touched.is_empty() || !waiting.is_empty() {
            touched.extend(waiting);
        }
        self.comuni.insert(name.clone(), Arc::new(comune));
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

    /// A Comune.
    pub fn comune(&self, name: &str) -> Option<Arc<Comune>> {
        self.comuni.get(name).cloned()
    }

    /// Names of all Comuni.
    pub fn comune_names(&self) -> Vec<String> {
        self.comuni.keys().cloned().collect()
    }

    /// All Comuni.
    pub fn comuni(&self) -> impl Iterator<Item = &Arc<Comune>> {
        self.comuni.values()
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
    /// manifest: a database is looked at again before anything else is said of it.
    pub fn databases_seen(&self, comune: &Comune) -> BTreeMap<String, DatabaseSeen> {
        let name = comune.name_any();
        let told = comune.status.as_ref().map(|status| status.databases.as_slice()).unwrap_or_default();
        let of_generation = comune.status.as_ref().and_then(|status| status.observed_generation);
        let is_current = of_generation == comune.metadata.generation;
        let mut seen = BTreeMap::new();
        for database in &comune.spec.databases {
            let state =
                self.databases.get(&(name.clone(), database.name.clone())).and_then(|s| s.seen.clone());
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
