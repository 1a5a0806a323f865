//! From the wire to values that no builder can fail on, or all the problems at once.
//!
//! What the schema refuses never gets here. What is left are names that have to exist elsewhere (tiers, templates,
//! database servers), values that only make sense together, and claims that another Comune holds. A problem of one
//! service or one database stops that service or database and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::{
    Comune, ComuneSpec, DataCenter, Database, DatabaseServer, DatabaseStatus, Dedicated, Engine, Environment,
    Parameter, ParameterType, Placement, PodSecurity, Quantity, Resources, Service, ServiceTemplate,
    TemplateVersion, Totals, TrafficRule, VolumeKind, reasons,
};
use kube::ResourceExt;

use crate::{
    amount::{Amount, Notation},
    capacity::Amounts,
    names,
    register::{Claim, Register},
    text,
};

/// What the operator knows beside the Comune itself.
pub struct Site<'a> {
    /// The data centre that it serves; None while there is none.
    pub data_center: Option<&'a DataCenter>,
    /// The catalogue, by name.
    pub templates: &'a BTreeMap<String, std::sync::Arc<ServiceTemplate>>,
    /// Names of the storage classes of the cluster; None while they are not known.
    pub storage_classes: Option<&'a BTreeSet<String>>,
    /// All Comuni.
    pub register: &'a mut Register,
    /// The operator's own ServiceAccount, which it binds in every namespace of a Comune: namespace and name.
    pub operator: (&'a str, &'a str),
}

/// What a problem stops.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The whole Comune: nothing is changed.
    Comune,
    /// One database.
    Database(String),
    /// One service.
    Service(String),
}

/// Something that a person has to put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it stops.
    pub scope: Scope,
    /// CamelCase reason, one of [`reasons`].
    pub reason: &'static str,
    /// Field of the manifest, such as `spec.services[portale].template`.
    pub path: String,
    /// In words: what is wrong and what to do.
    pub message: String,
}

/// A Comune that can be built.
#[derive(Clone, Debug)]
pub struct ValidComune {
    /// Its name.
    pub name: String,
    /// Unique id of its resource.
    pub uid: String,
    /// When it was first admitted (RFC 3339), as far as its status tells.
    pub admitted_at: Option<String>,
    /// As it stands in the manifest.
    pub spec: ComuneSpec,
    /// Labels that tell who it is, for its namespaces.
    pub identity: BTreeMap<String, String>,
    /// Name of the size band; `explicit` for a quota of its own.
    pub tier: String,
    /// Totals granted by the data centre, by resource.
    pub totals: Amounts,
    /// What is missing for all that it asks for; empty when everything was granted.
    pub missing: Option<String>,
    /// Its environments.
    pub environments: Vec<ValidEnvironment>,
    /// Databases that can be provisioned.
    pub databases: Vec<ValidDatabase>,
    /// Databases on servers of their own that can be provisioned.
    pub dedicated: Vec<ValidDedicated>,
    /// Services that can be deployed.
    pub services: Vec<ValidService>,
    /// Settings of the data centre that builders need.
    pub ingress: conme_api::IngressSettings,
    /// Namespace and node-local addresses of the DNS service.
    pub network: conme_api::NetworkSettings,
    /// Default storage class, if the data centre names any.
    pub storage_class: Option<String>,
    /// The operator's own ServiceAccount: namespace and name.
    pub operator: (String, String),
}

/// An environment with its namespace and its part of the totals.
#[derive(Clone, Debug)]
pub struct ValidEnvironment {
    /// Name in the manifest.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Pod Security Standard.
    pub pod_security: PodSecurity,
    /// Its part of the totals, by resource.
    pub part: Amounts,
}

/// A database on a shared server.
#[derive(Clone, Debug)]
pub struct ValidDatabase {
    /// As it stands in the manifest.
    pub spec: Database,
    /// The server that it lives on.
    pub server: DatabaseServer,
    /// Namespace of its binding Secret.
    pub namespace: String,
    /// Name of its binding Secret.
    pub secret: String,
}

/// A database on a server of its own.
#[derive(Clone, Debug)]
pub struct ValidDedicated {
    /// As it stands in the manifest.
    pub spec: Database,
    /// What the server is like.
    pub server: Dedicated,
    /// Namespace of the server and of the binding Secret.
    pub namespace: String,
    /// Name of the binding Secret; CloudNativePG's objects bear the same.
    pub secret: String,
}

/// A service with everything resolved.
#[derive(Clone, Debug)]
pub struct ValidService {
    /// As it stands in the manifest.
    pub spec: Service,
    /// Namespace that it runs in.
    pub namespace: String,
    /// The template's version in force.
    pub version: TemplateVersion,
    /// Host name under which it is reached.
    pub hostname: String,
    /// What $(name) stands for.
    pub values: BTreeMap<String, String>,
    /// vCPU and memory of a pod for this Comune's tier.
    pub resources: Resources,
    /// Name of the binding Secret of its database.
    pub binding: Option<String>,
    /// Generation of the credential of its database, as on record in the status; none when there is no record.
    pub credential: Option<u32>,
}

/// The outcome of validation: what can be built, and what cannot and why.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// None when a problem stops the whole Comune.
    pub valid: Option<ValidComune>,
    /// All problems.
    pub problems: Vec<Problem>,
}

/// Checks a Comune against everything that the operator knows.
pub fn validate(comune: &Comune, site: &mut Site<'_>) -> Verdict {
    let name = comune.name_any();
    let mut problems = Problems::default();
    let Some(data_center) = site.data_center else {
        problems.add(
            Scope::Comune,
            reasons::NO_DATA_CENTER,
            "",
            "there is no DataCenter object yet: apply one (kubectl get datacenters)".into(),
        );
        return Verdict { valid: None, problems: problems.0 };
    };
    let spec = &comune.spec;
    check_claims(comune, site.register, &mut problems);
    let size = granted(comune, data_center, site.register, &mut problems);

    // Whatever stops the whole, the problems of its parts are told at once with it.
    let tier = size.as_ref().map_or("", |size| size.tier.as_str());
    let databases: Vec<ValidDatabase> = spec
        .databases
        .iter()
        .filter_map(|database| match &database.placement {
            Placement::Shared(server) => valid_database(comune, database, server, data_center, &mut problems),
            Placement::Dedicated(_) => None,
        })
        .collect();
    let dedicated: Vec<ValidDedicated> = spec
        .databases
        .iter()
        .filter_map(|database| match &database.placement {
            Placement::Shared(_) => None,
            Placement::Dedicated(server) => valid_dedicated(&name, database, server, site, &mut problems),
        })
        .collect();
    let provisionable: BTreeSet<&str> = databases
        .iter()
        .map(|database| &database.spec)
        .chain(dedicated.iter().map(|database| &database.spec))
        .map(|database| database.name.as_str())
        .collect();
    let services = spec
        .services
        .iter()
        .filter_map(|service| {
            let context = ServiceContext { comune, data_center, tier, provisionable: &provisionable };
            valid_service(service, &context, site, &mut problems)
        })
        .collect();
    let stopped = problems.0.iter().any(|problem| problem.scope == Scope::Comune);
    let valid = size.filter(|_| !stopped).map(|size| ValidComune {
        identity: identity(spec),
        uid: comune.metadata.uid.clone().unwrap_or_default(),
        admitted_at: comune.status.as_ref().and_then(|status| status.seniority.clone()),
        environments: environments(&name, spec, &size.totals),
        tier: size.tier,
        totals: size.totals,
        missing: size.missing,
        databases,
        dedicated,
        services,
        ingress: data_center.spec.ingress.clone(),
        network: data_center.spec.network.clone(),
        storage_class: data_center.spec.storage_classes.first().cloned(),
        operator: (site.operator.0.into(), site.operator.1.into()),
        spec: spec.clone(),
        name,
    });
    Verdict { valid, problems: problems.0 }
}

/// The size of a Comune, as far as the data centre grants it.
struct Size {
    tier: String,
    totals: Amounts,
    missing: Option<String>,
}

fn granted(
    comune: &Comune,
    data_center: &DataCenter,
    register: &mut Register,
    problems: &mut Problems,
) -> Option<Size> {
    let spec = &comune.spec;
    let (tier, wanted) = match totals_of(spec, data_center) {
        Ok(totals) => totals,
        Err(problem) => {
            problems.0.push(problem);
            return None;
        }
    };
    let (totals, missing) = match register.decision(&comune.name_any()) {
        Some(decision) => {
            let missing = (!decision.missing.is_empty()).then(|| decision.missing_in_words());
            match &decision.granted {
                Some(granted) => (granted.clone(), missing),
                None => {
                    problems.add(
                        Scope::Comune,
                        reasons::INSUFFICIENT_CAPACITY,
                        if spec.quota.is_some() { "spec.quota" } else { "spec.tier" },
                        format!(
                            "the data centre would lose its reserve: {} missing. Lower the quota, choose a smaller \
                             tier or add hosts to a pool; it is admitted by itself when there is room",
                            missing.unwrap_or_else(|| "capacity".into())
                        ),
                    );
                    return None;
                }
            }
        }
        None => (wanted, None),
    };
    Some(Size { tier, totals, missing })
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, scope: Scope, reason: &'static str, path: &str, message: String) {
        self.0.push(Problem { scope, reason, path: path.into(), message });
    }
}

fn check_claims(comune: &Comune, register: &Register, problems: &mut Problems) {
    let name = comune.name_any();
    if let Some(istat) = &comune.spec.entity.istat
        && let Some(holder) = register.senior_holder(&name, &Claim::Istat(istat.clone()))
    {
        problems.add(
            Scope::Comune,
            reasons::CONFLICT,
            "spec.entity.istat",
            format!("the ISTAT code {istat} belongs to the Comune `{holder}`, which had it first; correct the code or remove one of the two"),
        );
    }
    for environment in &comune.spec.environments {
        let namespace = names::namespace(&name, &environment.name);
        if let Some(holder) = register.senior_holder(&name, &Claim::Namespace(namespace.clone())) {
            problems.add(
                Scope::Comune,
                reasons::CONFLICT,
                &format!("spec.environments[{}]", environment.name),
                format!("its namespace would be `{namespace}`, which belongs to the Comune `{holder}`; choose another name for the environment"),
            );
        }
    }
}

fn identity(spec: &ComuneSpec) -> BTreeMap<String, String> {
    use conme_api::keys;
    let entity = &spec.entity;
    [
        (keys::ISTAT, entity.istat.clone()),
        (keys::BELFIORE, entity.belfiore.clone()),
        (keys::IPA, entity.ipa.as_ref().map(|code| code.to_lowercase())),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect()
}

/// Numbers of objects that an administration may have where neither its tier nor its quota says otherwise: they
/// keep one administration from filling the cluster's store. Chosen by us, large beside what a municipality needs.
const DEFAULT_COUNTS: [(&str, u64); 10] = [
    ("pods", 100),
    ("services", 50),
    ("services.loadbalancers", 0),
    ("services.nodeports", 0),
    ("persistentvolumeclaims", 50),
    ("count/configmaps", 200),
    ("count/secrets", 200),
    ("count/jobs.batch", 100),
    ("count/deployments.apps", 100),
    ("count/ingresses.networking.k8s.io", 50),
];

/// The name of the tier of a Comune and its totals by resource: `cpu`, `memory`, `storage`, `ephemeral-storage` and
/// the numbers of objects by the names that quotas use.
///
/// # Errors
/// When the tier does not exist, or none fits.
pub fn totals_of(spec: &ComuneSpec, data_center: &DataCenter) -> Result<(String, Amounts), Problem> {
    let tiers = &data_center.spec.tiers;
    let known = || tiers.iter().map(|tier| tier.name.as_str()).collect::<Vec<_>>().join(", ");
    let problem = |path: &str, message: String| Problem {
        scope: Scope::Comune,
        reason: reasons::INVALID,
        path: path.into(),
        message,
    };
    let (name, totals, path) = match (&spec.quota, &spec.tier, spec.entity.population) {
        (Some(quota), _, _) => ("explicit".to_owned(), quota, "spec.quota".to_owned()),
        (None, Some(name), _) => {
            let tier = tiers.iter().find(|tier| tier.name == *name).ok_or_else(|| {
                problem(
                    "spec.tier",
                    format!("there is no tier `{name}` in the DataCenter; there are: {}", known()),
                )
            })?;
            (name.clone(), &tier.quota, format!("DataCenter spec.tiers[{name}].quota"))
        }
        (None, None, Some(population)) => {
            let tier = tiers
                .iter()
                .filter(|tier| tier.max_population.is_none_or(|max| population <= max))
                .min_by_key(|tier| tier.max_population.unwrap_or(u32::MAX))
                .ok_or_else(|| {
                    problem(
                        "spec.entity.population",
                        format!(
                            "no tier of the DataCenter takes {population} residents; name one of: {}",
                            known()
                        ),
                    )
                })?;
            (tier.name.clone(), &tier.quota, format!("DataCenter spec.tiers[{}].quota", tier.name))
        }
        (None, None, None) => {
            return Err(problem(
                "spec.tier",
                format!(
                    "its size is unknown: give spec.entity.population, spec.quota, or spec.tier out of: {}",
                    known()
                ),
            ));
        }
    };
    let amounts = amounts(totals).map_err(|message| problem(&path, message))?;
    Ok((name, amounts))
}

fn amounts(totals: &Totals) -> Result<Amounts, String> {
    let read = |quantity: &Quantity| Amount::try_from(quantity).map_err(|error| error.to_string());
    let mut amounts: Amounts =
        DEFAULT_COUNTS.iter().map(|(name, count)| ((*name).to_owned(), Amount::units(*count))).collect();
    amounts.insert("cpu".into(), read(&totals.cpu)?);
    amounts.insert("memory".into(), read(&totals.memory)?);
    amounts.insert("storage".into(), totals.storage.as_ref().map_or(Ok(Amount::ZERO), read)?);
    if let Some(quantity) = &totals.ephemeral_storage {
        amounts.insert("ephemeral-storage".into(), read(quantity)?);
    }
    for (name, count) in [
        ("pods", totals.pods),
        ("services", totals.services),
        ("services.loadbalancers", totals.load_balancers),
    ] {
        if let Some(count) = count {
            amounts.insert(name.into(), Amount::units(u64::from(count)));
        }
    }
    for (name, count) in &totals.objects {
        amounts
            .insert(format!("count/{}", name.trim_start_matches("count/")), Amount::units(u64::from(*count)));
    }
    Ok(amounts)
}

/// The totals that are in force for a Comune according to its status.
pub fn totals_in_force(comune: &Comune) -> Option<Amounts> {
    let quota = comune.status.as_ref()?.quota.as_ref()?;
    let amounts: Amounts = quota
        .limit
        .iter()
        .filter_map(|(resource, text)| Some((resource.clone(), Amount::parse(text).ok()?)))
        .collect();
    (!amounts.is_empty()).then_some(amounts)
}

/// Smallest unit that totals are divided into, in thousandths: 10 millicores, one MiB, one object.
fn step(resource: &str) -> u64 {
    match resource {
        "cpu" => 10,
        resource if resource.contains("memory") || resource.contains("storage") => 1000 << 20,
        _ => 1000,
    }
}

/// The environments of a Comune, each with its part of the totals.
pub(crate) fn environments(comune: &str, spec: &ComuneSpec, totals: &Amounts) -> Vec<ValidEnvironment> {
    let count = spec.environments.len() as u32;
    let part = |environment: &Environment| -> Amounts {
        totals
            .iter()
            .map(|(resource, total)| {
                let step = step(resource);
                let part = match environment.share {
                    Some(share) => total.percent(share, step),
                    None => total.part(count, step),
                };
                (resource.clone(), part)
            })
            .collect()
    };
    spec.environments
        .iter()
        .map(|environment| ValidEnvironment {
            name: environment.name.clone(),
            namespace: names::namespace(comune, &environment.name),
            pod_security: environment.pod_security,
            part: part(environment),
        })
        .collect()
}

/// What the status tells of a database that has been provisioned.
fn on_record<'a>(comune: &'a Comune, database: &str) -> Option<&'a DatabaseStatus> {
    let told = comune.status.as_ref()?.databases.iter().find(|told| told.name == database)?;
    told.provisioned_at.as_ref().map(|_| told)
}

/// Smallest limit of a database, in bytes. An empty one takes 7.5 MiB (PostgreSQL 15 to 17, measured), and growth is
/// stopped before the limit.
const LEAST_DATABASE: u64 = 16 << 20;

fn valid_database(
    comune: &Comune,
    database: &Database,
    server_name: &str,
    data_center: &DataCenter,
    problems: &mut Problems,
) -> Option<ValidDatabase> {
    let scope = Scope::Database(database.name.clone());
    let path = |field: &str| format!("spec.databases[{}].{field}", database.name);
    let servers = &data_center.spec.database_servers;
    let Some(server) = servers.iter().find(|server| server.name == server_name) else {
        let known: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
        problems.add(
            scope,
            reasons::INVALID,
            &path("placement.shared"),
            format!("there is no database server `{server_name}`; there are: {}", known.join(", ")),
        );
        return None;
    };
    let before = problems.0.len();
    // A server that has gone from the list may only have got another name: its own identity tells, when it is asked.
    let told = on_record(comune, &database.name).map(|told| told.server.as_str());
    if let Some(old) =
        told.filter(|old| *old != server_name && servers.iter().any(|server| server.name == *old))
    {
        problems.add(
            scope.clone(),
            reasons::MOVED,
            &path("placement.shared"),
            format!(
                "its data is on the server `{old}` and does not move by an edit, that is a migration: write \
                 `shared: {old}` again. To begin with an empty database on `{server_name}`, take it out of the manifest \
                 first (the data on `{old}` is kept), then declare it anew"
            ),
        );
    }
    if server.engine != database.engine {
        problems.add(
            scope.clone(),
            reasons::INVALID,
            &path("engine"),
            format!("the server `{server_name}` is {}, not {}", server.engine, database.engine),
        );
    }
    for extension in &database.extensions {
        if !server.allowed_extensions.contains(extension) {
            problems.add(
                scope.clone(),
                reasons::INVALID,
                &path("extensions"),
                format!(
                    "the server `{server_name}` does not allow the extension `{extension}`; it allows: {}",
                    server.allowed_extensions.join(", ")
                ),
            );
        }
    }
    if let Some(size) = &database.max_size
        && Amount::try_from(size).is_ok_and(|size| size.whole() < LEAST_DATABASE)
    {
        problems.add(
            scope.clone(),
            reasons::INVALID,
            &path("maxSize"),
            format!(
                "`{size}` leaves no room to work in, an empty database takes 8Mi already; at least {} (it is in bytes: \
                 write 50Gi for fifty gibibytes)",
                Amount::units(LEAST_DATABASE).short(Notation::Binary)
            ),
        );
    }
    if problems.0.len() > before {
        return None;
    }
    Some(ValidDatabase {
        spec: database.clone(),
        server: server.clone(),
        namespace: names::namespace(&comune.name_any(), &database.environment),
        secret: names::binding_secret(&database.name),
    })
}

fn valid_dedicated(
    comune: &str,
    database: &Database,
    server: &Dedicated,
    site: &Site<'_>,
    problems: &mut Problems,
) -> Option<ValidDedicated> {
    let data_center = site.data_center?;
    let before = problems.0.len();
    let mut refuse = |field: &str, message: String| {
        let path = format!("spec.databases[{}].{field}", database.name);
        problems.add(Scope::Database(database.name.clone()), reasons::INVALID, &path, message);
    };
    if database.engine != Engine::Postgresql {
        refuse(
            "engine",
            format!(
                "a server of its own is PostgreSQL (CloudNativePG); {} lives on a shared server: \
                 placement: {{shared: SERVER}}",
                database.engine
            ),
        );
    }
    if data_center.spec.network.api_server.is_none() {
        refuse(
            "placement.dedicated",
            "the pods of a database server speak with the API server, and its address is not known: set \
             spec.network.apiServer in the DataCenter"
                .into(),
        );
    }
    if let (Some(class), Some(known)) = (data_center.spec.storage_classes.first(), site.storage_classes)
        && !known.contains(class)
    {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        refuse(
            "placement.dedicated",
            format!(
                "the storage class `{class}` of the DataCenter does not exist in the cluster; there are: {}",
                known.join(", ")
            ),
        );
    }
    (problems.0.len() == before).then(|| ValidDedicated {
        spec: database.clone(),
        server: server.clone(),
        namespace: names::namespace(comune, &database.environment),
        secret: names::binding_secret(&database.name),
    })
}

struct ServiceContext<'a> {
    comune: &'a Comune,
    data_center: &'a DataCenter,
    tier: &'a str,
    provisionable: &'a BTreeSet<&'a str>,
}

fn valid_service(
    service: &Service,
    context: &ServiceContext<'_>,
    site: &Site<'_>,
    problems: &mut Problems,
) -> Option<ValidService> {
    let comune = context.comune.name_any();
    let scope = Scope::Service(service.name.clone());
    let path = |field: &str| format!("spec.services[{}].{field}", service.name);
    let before = problems.0.len();
    let mut refuse = |field: &str, reason: &'static str, message: String| {
        problems.add(scope.clone(), reason, &path(field), message);
    };
    let Some(template) = site.templates.get(&service.template) else {
        let known: Vec<&str> = site.templates.keys().map(String::as_str).collect();
        refuse(
            "template",
            reasons::INVALID,
            format!("there is no ServiceTemplate `{}`; there are: {}", service.template, known.join(", ")),
        );
        return None;
    };
    let wanted = service.version.as_ref().unwrap_or(&template.spec.default_version);
    let Some(version) = template.spec.versions.iter().find(|version| version.version == *wanted) else {
        let known: Vec<&str> =
            template.spec.versions.iter().map(|version| version.version.as_str()).collect();
        refuse(
            "version",
            reasons::INVALID,
            format!(
                "the template `{}` has no version `{wanted}`; it has: {}",
                service.template,
                known.join(", ")
            ),
        );
        return None;
    };
    let persistent = version.volumes.iter().any(|volume| volume.kind == VolumeKind::Persistent);
    if let (true, Some(class), Some(known)) =
        (persistent, context.data_center.spec.storage_classes.first(), site.storage_classes)
        && !known.contains(class)
    {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        refuse(
            "template",
            reasons::INVALID,
            format!(
                "the template `{}` keeps data, and the storage class `{class}` of the DataCenter does not exist in the \
                 cluster; there are: {}",
                service.template,
                known.join(", ")
            ),
        );
    }
    let hostname_of = |service: &Service| {
        let domain = &context.data_center.spec.ingress.domain;
        service
            .hostname
            .clone()
            .unwrap_or_else(|| names::default_hostname(&service.name, &service.environment, &comune, domain))
    };
    let hostname = hostname_of(service);
    if let Some(holder) = site.register.senior_holder(&comune, &Claim::Hostname(hostname.clone())) {
        refuse(
            "hostname",
            reasons::CONFLICT,
            format!("the host name {hostname} belongs to the Comune `{holder}`, which had it first"),
        );
    }
    let same_name = |other: &&Service| other.name != service.name && hostname_of(other) == hostname;
    if let Some(other) = context.comune.spec.services.iter().find(same_name) {
        refuse("hostname", reasons::CONFLICT, format!("the service `{}` has the same host name", other.name));
    }
    let environment_security = context
        .comune
        .spec
        .environments
        .iter()
        .find(|environment| environment.name == service.environment)
        .map_or(PodSecurity::Restricted, |environment| environment.pod_security);
    if version.pod_security == PodSecurity::Baseline && environment_security == PodSecurity::Restricted {
        refuse(
            "environment",
            reasons::INVALID,
            format!(
                "the template `{}` needs podSecurity: baseline; the environment `{}` is restricted",
                service.template, service.environment
            ),
        );
    }
    let engines = version.requires.as_ref().map(|requires| requires.database.as_slice()).unwrap_or_default();
    let bound = service
        .database
        .as_ref()
        .and_then(|name| context.comune.spec.databases.iter().find(|database| database.name == *name));
    let engine_names = || engines.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    match bound {
        None if !engines.is_empty() => refuse(
            "database",
            reasons::INVALID,
            format!(
                "the template `{}` needs a {} database: name one of spec.databases",
                service.template,
                engine_names()
            ),
        ),
        Some(database) if !engines.is_empty() && !engines.contains(&database.engine) => refuse(
            "database",
            reasons::INVALID,
            format!(
                "the template `{}` needs a {} database; `{}` is {}",
                service.template,
                engine_names(),
                database.name,
                database.engine
            ),
        ),
        Some(database) if !context.provisionable.contains(database.name.as_str()) => refuse(
            "database",
            reasons::INVALID,
            format!(
                "the database `{}` that it is bound to cannot be provisioned (see its own message)",
                database.name
            ),
        ),
        _ => {}
    }
    let mut values = builtin_values(context.comune, service, &hostname);
    for problem in fill_parameters(&template.spec.parameters, service, &mut values) {
        refuse("parameters", reasons::INVALID, problem);
    }
    for unknown in text::unknown_names(version, &values) {
        refuse(
            "template",
            reasons::INVALID,
            format!(
                "the template `{}` speaks of $({unknown}), which nothing defines; correct the template",
                service.template
            ),
        );
    }
    if bound.is_none()
        && engines.is_empty()
        && version.env.iter().any(|variable| variable.from_binding.is_some())
    {
        refuse(
            "database",
            reasons::INVALID,
            format!(
                "the template `{}` reads a database binding: name one of spec.databases",
                service.template
            ),
        );
    }
    if problems.0.len() > before {
        return None;
    }
    let resources = version
        .resources_by_tier
        .iter()
        .find(|by_tier| by_tier.tier == context.tier)
        .map_or_else(|| version.resources.clone(), |by_tier| by_tier.resources.clone());
    Some(ValidService {
        namespace: names::namespace(&comune, &service.environment),
        version: version.clone(),
        hostname,
        values,
        resources,
        binding: bound.map(|database| names::binding_secret(&database.name)),
        credential: bound.and_then(|database| {
            let told = on_record(context.comune, &database.name)?;
            Some(told.credential.as_ref().map_or(1, |credential| credential.generation))
        }),
        spec: service.clone(),
    })
}

fn builtin_values(comune: &Comune, service: &Service, hostname: &str) -> BTreeMap<String, String> {
    let entity = &comune.spec.entity;
    let absent = String::new;
    [
        ("hostname", hostname.to_owned()),
        ("environment", service.environment.clone()),
        ("comune.name", comune.name_any()),
        ("comune.displayName", entity.display_name.clone()),
        ("comune.istat", entity.istat.clone().unwrap_or_else(absent)),
        ("comune.ipa", entity.ipa.clone().map_or_else(absent, |code| code.to_lowercase())),
        ("comune.belfiore", entity.belfiore.clone().unwrap_or_else(absent)),
        ("comune.domain", entity.domain.clone().unwrap_or_else(absent)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn fill_parameters(
    parameters: &[Parameter],
    service: &Service,
    values: &mut BTreeMap<String, String>,
) -> Vec<String> {
    let mut problems = Vec::new();
    for name in service.parameters.keys() {
        if !parameters.iter().any(|parameter| parameter.name == *name) {
            let known: Vec<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
            problems.push(format!("there is no parameter `{name}`; there are: {}", known.join(", ")));
        }
    }
    for parameter in parameters {
        let given = service.parameters.get(&parameter.name).or(parameter.default.as_ref());
        match given {
            Some(value) => problems.extend(check_parameter(parameter, value).err()),
            None if parameter.required => {
                problems.push(format!(
                    "the parameter `{}` is required: {}",
                    parameter.name, parameter.description
                ));
            }
            None => {}
        }
        // Also a wrong one is defined: the template is not to blame for it.
        values.insert(parameter.name.clone(), given.cloned().unwrap_or_default());
    }
    problems
}

fn check_parameter(parameter: &Parameter, value: &str) -> Result<(), String> {
    let name = &parameter.name;
    if !parameter.enum_.is_empty() && !parameter.enum_.iter().any(|allowed| allowed == value) {
        return Err(format!(
            "the parameter `{name}` is `{value}`; it may be: {}",
            parameter.enum_.join(", ")
        ));
    }
    match parameter.type_ {
        ParameterType::String => Ok(()),
        ParameterType::Boolean if value == "true" || value == "false" => Ok(()),
        ParameterType::Boolean => {
            Err(format!("the parameter `{name}` is `{value}`; it may be true or false"))
        }
        ParameterType::Integer => {
            let number: i64 = value
                .parse()
                .map_err(|_| format!("the parameter `{name}` is `{value}`, which is not a whole number"))?;
            if parameter.minimum.is_some_and(|minimum| number < minimum) {
                return Err(format!(
                    "the parameter `{name}` is {number}, less than {}",
                    parameter.minimum.unwrap_or(0)
                ));
            }
            if parameter.maximum.is_some_and(|maximum| number > maximum) {
                return Err(format!(
                    "the parameter `{name}` is {number}, more than {}",
                    parameter.maximum.unwrap_or(0)
                ));
            }
            Ok(())
        }
    }
}

/// The extra rules that apply to an environment.
pub fn rules_of<'a>(rules: &'a [TrafficRule], environment: &'a str) -> impl Iterator<Item = &'a TrafficRule> {
    rules.iter().filter(move |rule| rule.environment.as_deref().is_none_or(|only| only == environment))
}
