//! Tests that need several of the decisions together.

mod converge;
mod departing;
mod golden;
mod planning;
mod reporting;
mod validating;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use conme_api::{Comune, DataCenter, ServiceTemplate};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    DatabaseDetails, DatabaseSeen, Observed, Register, Site, ValidComune, Verdict, fixtures, fixtures::parse,
    validate,
};

/// The operator's ServiceAccount in tests.
pub const OPERATOR: (&str, &str) = ("conme-system", "conme-operator-account");

/// The instant of every test that does not need two of them.
pub fn now() -> Timestamp {
    "2026-03-02T09:30:00.25Z".parse().unwrap()
}

/// What the operator knows beside the Comune itself; parts can be replaced before a verdict is asked for.
pub struct Bench {
    pub data_center: Option<DataCenter>,
    pub templates: BTreeMap<String, Arc<ServiceTemplate>>,
    pub register: Register,
    pub storage_classes: Option<BTreeSet<String>>,
}

impl Bench {
    pub fn new() -> Self {
        let data_center = Some(fixtures::data_center());
        let mut register = Register::default();
        register.set_data_center(data_center.clone());
        Self { data_center, templates: fixtures::templates(), register, storage_classes: None }
    }

    pub fn set_data_center(&mut self, data_center: Option<DataCenter>) {
        self.register.set_data_center(data_center.clone());
        self.data_center = data_center;
    }

    pub fn verdict(&mut self, comune: &Comune) -> Verdict {
        self.register.put(comune);
        let mut site = Site {
            storage_classes: self.storage_classes.as_ref(),
            data_center: self.data_center.as_ref(),
            templates: &self.templates,
            register: &mut self.register,
            operator: OPERATOR,
        };
        validate(comune, &mut site)
    }
}

/// The verdict on a Comune that is alone in the data centre of the fixtures.
pub fn verdict(comune: &Comune) -> Verdict {
    Bench::new().verdict(comune)
}

/// A Comune without problems.
pub fn valid(comune: &Comune) -> ValidComune {
    let verdict = verdict(comune);
    assert_eq!(verdict.problems, []);
    verdict.valid.unwrap()
}

/// A Comune with its JSON changed.
pub fn edited(comune: &Comune, edit: impl FnOnce(&mut Value)) -> Comune {
    let mut value = serde_json::to_value(comune).unwrap();
    edit(&mut value);
    parse(value)
}

/// A database that is as declared.
pub fn database_ready(name: &str) -> DatabaseSeen {
    DatabaseSeen::Ready {
        system_identifier: "7301".into(),
        provisioned_at: "2026-01-15T08:00:00Z".parse().unwrap(),
        database: format!("dolo__{name}"),
        details: Box::new(DatabaseDetails::default()),
    }
}

/// Nothing but the databases of a Comune, all of them ready.
pub fn only_databases(comune: &ValidComune) -> Observed {
    let databases = comune.databases.iter().map(|d| (d.spec.name.clone(), database_ready(&d.spec.name)));
    Observed { databases: databases.collect(), ..Observed::default() }
}
