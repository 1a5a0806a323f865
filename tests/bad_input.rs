//! What is wrong in a manifest is refused at once with the field and the rule in words, or, when it depends on
//! something else, accepted, told and put right by itself. Nothing of anybody else is touched meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use conme_api::{Comune, DataCenter, ServiceTemplate, keys};
use conme_blueprint::{Kind, amount::Amount, child};
use conme_stories::{Credentials, DataCentre, condition, entity, eventually, is_current, refusal};
use conme_testbed::install;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray},
};
use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams, ValidationDirective,
    },
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";

// ---------------------------------------------------------------------------------------------------------------
// Refused by the API server
// ---------------------------------------------------------------------------------------------------------------

/// A manifest that is accepted as it stands, and that every case below spoils in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Base {
    Comune,
    Unione,
    DataCenter,
    ServiceTemplate,
}

impl Base {
    const ALL: [Self; 4] = [Self::Comune, Self::Unione, Self::DataCenter, Self::ServiceTemplate];

    fn kind(self) -> &'static str {
        match self {
            Self::Comune | Self::Unione => "Comune",
            Self::DataCenter => "DataCenter",
            Self::ServiceTemplate => "ServiceTemplate",
        }
    }

    fn manifest(self) -> Value {
        let spec = match self {
            Self::Comune => a_comune(),
            Self::Unione => a_union(),
            Self::DataCenter => a_data_center(),
            Self::ServiceTemplate => a_template(),
        };
        json!({
            "apiVersion": "conme.venis.it/v1alpha1",
            "kind": self.kind(),
            "metadata": {"name": "bad-base"},
            "spec": spec,
        })
    }

    fn api(self, dc: &DataCentre) -> Api<DynamicObject> {
        let plural = match self {
            Self::Comune | Self::Unione => "comuni",
            Self::DataCenter => "datacenters",
            Self::ServiceTemplate => "servicetemplates",
        };
        let gvk = GroupVersionKind::gvk("conme.venis.it", "v1alpha1", self.kind());
        Api::all_with(dc.client(), &ApiResource::from_gvk_with_plural(&gvk, plural))
    }
}

fn a_comune() -> Value {
    let classification = json!({"class": "ordinario", "act": "det. 1/2026", "date": "2026-03-02"});
    json!({
        "entity": {
            "kind": "Comune", "displayName": "Comune Base", "istat": "900100", "ipa": "c_z100", "belfiore": "Z100",
            "population": 4000, "domain": "comune.base.example",
        },
        "quota": {
            "cpu": 2, "memory": "4Gi", "storage": "20Gi", "ephemeralStorage": "5Gi", "pods": 50,
            "objects": {"secrets": 50},
        },
        "environments": [{"name": "produzione", "share": 60}, {"name": "collaudo", "share": 40}],
        "administrators": [
            {"kind": "Group", "name": "base-ced"},
            {"kind": "ServiceAccount", "name": "pipeline", "namespace": "bad-base-collaudo"},
        ],
        "viewers": [{"kind": "ServiceAccount", "name": "vede", "namespace": "bad-base-collaudo"}],
        "network": {
            "ingress": [{"description": "x", "environment": "produzione", "cidrs": ["192.0.2.0/24"], "ports": [80]}],
            "egress": [{"description": "x", "environment": "produzione", "cidrs": ["192.0.2.0/24"], "ports": [80]}],
        },
        "databases": [
            {
                "name": "archivio", "engine": "postgresql", "placement": {"shared": SERVER},
                "environment": "produzione", "extensions": ["pg_trgm"], "connectionLimit": 10, "maxSize": "5Gi",
                "classification": classification,
            },
            {
                "name": "propria", "engine": "mariadb", "environment": "collaudo",
                "placement": {"dedicated": {"instances": 1, "storage": "10Gi", "cpu": "1", "memory": "2Gi"}},
            },
        ],
        "services": [{
            "name": "sito", "template": "gis", "environment": "produzione", "hostname": "www.base.example",
            "replicas": 1, "database": "archivio", "classification": classification,
        }],
        "sites": [{
            "name": "municipio", "uplinkMbps": 20,
            "windows": [{"days": ["Mon"], "from": "19:00", "to": "07:00", "capMbps": 18}],
        }],
        "servers": [{
            "name": "srv", "site": "municipio", "kind": "physical",
            "os": {"product": "ubuntu", "version": "14.04"}, "vcpus": 4, "memory": "16Gi",
            "disks": [{"name": "sda", "size": "500Gi"}],
            "workloads": [
                {"name": "macchina", "mode": "A", "disk": {"disk": "sda"}, "classification": classification},
                {
                    "name": "documenti", "mode": "A",
                    "files": {"path": "/srv/documenti", "volume": "documenti", "environment": "produzione"},
                },
                {"name": "pg", "mode": "B", "postgresql": {"database": "archivio", "sourceDatabase": "archivio"}},
                {"name": "my", "mode": "B", "mariadb": {"database": "propria", "sourceDatabase": "propria"}},
            ],
        }],
    })
}

fn a_union() -> Value {
    json!({
        "entity": {
            "kind": "Unione", "displayName": "Unione Base", "population": 9000,
            "members": [{"name": "dolo", "from": "2014-07-01", "until": "2025-12-31"}, {"name": "mira"}],
        },
        "tier": "medio",
    })
}

fn a_data_center() -> Value {
    let sourced = |value: &str| json!({"value": value, "source": "a story"});
    json!({
        "displayName": "Data centre Base",
        "pools": [{"name": "generale", "hosts": 4, "cores": 16, "memory": "256Gi", "storage": "4Ti"}],
        "overcommit": {"cpuPercent": 400},
        "reserve": {"hosts": 1},
        "tiers": [{
            "name": "piccolo", "maxPopulation": 5000,
            "quota": {"cpu": 4, "memory": "8Gi", "storage": "100Gi", "ephemeralStorage": "10Gi"},
        }],
        "databaseServers": [{
            "name": SERVER, "engine": "postgresql", "host": "192.0.2.5", "port": 5432, "credentialMaxAge": "90d", "credentialOverlap": "24h",
            "cidrs": ["192.0.2.5/32"],
            "adminSecret": "segreto",
        }],
        "ingress": {"className": "nginx", "namespace": "ingress-nginx", "domain": "servizi.base.example"},
        "storageClasses": ["venis-standard"],
        "migration": {
            "gateway": "migrazioni.base.example:8443", "slots": 4,
            "windows": [{"days": ["Mon"], "from": "20:00", "to": "06:00"}],
        },
        "energy": {"pue": sourced("1.58"), "pricePerKwh": sourced("0.20"), "carbonGramsPerKwh": sourced("330.7")},
    })
}

fn a_template() -> Value {
    json!({
        "displayName": "Base", "description": "An entry for a story.", "licence": "EUPL-1.2", "source": "a story",
        "parameters": [
            {"name": "title", "type": "string", "description": "Title", "default": "Base"},
            {"name": "contact", "type": "string", "description": "Contact", "required": true},
        ],
        "defaultVersion": "1.0",
        "versions": [{
            "version": "1.0", "image": "registry.example/base:1.0",
            "ports": [{"name": "http", "port": 8080}],
            "env": [{"name": "TITLE", "value": "$(title)"}, {"name": "PASSWORD", "fromBinding": "password"}],
            "files": [{"path": "/etc/base/base.conf", "content": "x"}],
            "probe": {"httpPath": "/", "startupSeconds": 60},
            "resources": {"cpu": "100m", "cpuLimit": "200m", "memory": "64Mi"},
            "resourcesByTier": [
                {"tier": "grande", "resources": {"cpu": "100m", "cpuLimit": "200m", "memory": "64Mi"}},
            ],
            "autoscaling": {"minReplicas": 1, "maxReplicas": 3, "cpuPercent": 70},
            "volumes": [{"name": "dati", "path": "/data", "kind": "Persistent", "size": "1Gi"}],
        }],
    })
}

/// One place of a manifest with what is written there; null takes it away.
type Edit = (&'static str, Value);

/// A slip of the pen: what is written, and what the author should have written.
struct Slip {
    what: &'static str,
    base: Base,
    bad: Vec<Edit>,
    good: Vec<Edit>,
    /// Field as the message has to name it.
    field: &'static str,
    /// Words that the message has to contain.
    words: &'static [&'static str],
}

fn edited(mut manifest: Value, edits: &[Edit]) -> Value {
    for (pointer, value) in edits {
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        let parent = manifest.pointer_mut(parent).unwrap_or_else(|| panic!("there is no {parent}"));
        match parent {
            Value::Object(map) if value.is_null() => {
                map.remove(last).unwrap_or_else(|| panic!("there is no {pointer}"));
            }
            Value::Object(map) => {
                map.insert(last.to_owned(), value.clone());
            }
            Value::Array(list) => match list.get_mut(last.parse::<usize>().unwrap()) {
                Some(element) => *element = value.clone(),
                None => list.push(value.clone()),
            },
            other => panic!("{pointer} leads into {other}"),
        }
    }
    manifest
}

fn slip(
    what: &'static str,
    base: Base,
    bad: impl Into<Vec<Edit>>,
    good: impl Into<Vec<Edit>>,
    field: &'static str,
    words: &'static [&'static str],
) -> Slip {
    Slip { what, base, bad: bad.into(), good: good.into(), field, words }
}

#[rustfmt::skip]
fn slips_in_a_comune() -> Vec<Slip> {
    use Base::{Comune as C, Unione as U};
    let environment = |name: &str| json!({"name": name, "share": 10});
    let database = |name: &str| json!({"name": name, "engine": "postgresql", "placement": {"shared": SERVER}});
    vec![
        // Its name.
        slip("a long name", C, [("/metadata/name", json!("bad-un-comune-dal-nome-davvero-troppo-lungo-per-noi"))], [("/metadata/name", json!("bad-un-comune-dal-nome-lungo"))], "metadata.name", &["at most 40 characters"]),
        slip("a name with two hyphens", C, [("/metadata/name", json!("bad--stino"))], [("/metadata/name", json!("bad-stino"))], "metadata.name", &["single hyphens", "begins with a letter"]),
        slip("a name with a dot", C, [("/metadata/name", json!("bad.stino"))], [("/metadata/name", json!("bad-stino"))], "metadata.name", &["lower-case letters, digits and single hyphens"]),
        slip("a reserved name", C, [("/metadata/name", json!("kube-system"))], [("/metadata/name", json!("bad-system"))], "metadata.name", &["reserved", "the municipality's own name"]),
        slip("the operator's own name", C, [("/metadata/name", json!("sistema"))], [("/metadata/name", json!("bad-sistema"))], "metadata.name", &["reserved"]),
        // Who it is.
        slip("an ISTAT code without its zero", C, [("/spec/entity/istat", json!("27012"))], [("/spec/entity/istat", json!("027012"))], "spec.entity.istat", &["ISTAT code of 6 digits", "in quotes"]),
        slip("an ISTAT code without quotes", C, [("/spec/entity/istat", json!(27012))], [("/spec/entity/istat", json!("027012"))], "spec.entity.istat", &["must be of type string", "integer"]),
        slip("a Comune without ISTAT code", C, [("/spec/entity/istat", Value::Null)], [("/spec/entity/istat", json!("027012"))], "spec.entity.istat", &["a Comune needs its ISTAT code"]),
        slip("a Unione with an ISTAT code", U, [("/spec/entity/istat", json!("027012"))], [], "spec.entity.istat", &["a Unione has no ISTAT code"]),
        slip("a Comune with members", C, [("/spec/entity/members", json!([{"name": "dolo"}]))], [], "spec.entity.members", &["only a Unione has members"]),
        slip("dates of a member the wrong way round", U, [("/spec/entity/members/0/until", json!("2013-01-01"))], [("/spec/entity/members/0/until", json!("2015-01-01"))], "spec.entity.members[0].until", &["ends before it begins"]),
        slip("a date in the Italian way", U, [("/spec/entity/members/0/from", json!("01/07/2014"))], [("/spec/entity/members/0/from", json!("2014-07-01"))], "spec.entity.members[0].from", &["YYYY-MM-DD"]),
        slip("an IPA code with a hyphen", C, [("/spec/entity/ipa", json!("c-d325"))], [("/spec/entity/ipa", json!("c_d325"))], "spec.entity.ipa", &["IPA code", "c_d325"]),
        slip("a Belfiore code in lower case", C, [("/spec/entity/belfiore", json!("d325"))], [("/spec/entity/belfiore", json!("D325"))], "spec.entity.belfiore", &["capital letter and three digits"]),
        slip("a domain with its protocol", C, [("/spec/entity/domain", json!("https://comune.dolo.ve.it"))], [("/spec/entity/domain", json!("comune.dolo.ve.it"))], "spec.entity.domain", &["full host name"]),
        slip("a kind that does not exist", C, [("/spec/entity/kind", json!("Provincia"))], [("/spec/entity/kind", json!("CittaMetropolitana"))], "spec.entity.kind", &["supported values", "CittaMetropolitana"]),
        slip("nobody lives there", C, [("/spec/entity/population", json!(0))], [("/spec/entity/population", json!(1))], "spec.entity.population", &["greater than or equal to 1"]),
        slip("no name for people", C, [("/spec/entity/displayName", Value::Null)], [], "spec.entity.displayName", &["Required value"]),
        slip("nothing about who it is", C, [("/spec/entity", Value::Null)], [], "spec.entity", &["Required value"]),
        // Its size.
        slip("tier and quota", C, [("/spec/tier", json!("medio"))], [("/spec/tier", json!("medio")), ("/spec/quota", Value::Null)], "spec.quota", &["either a tier or a quota"]),
        slip("an amount with a decimal comma", C, [("/spec/quota/memory", json!("1,5Gi"))], [("/spec/quota/memory", json!("1.5Gi"))], "spec.quota.memory", &["an amount", "16Gi"]),
        slip("an amount in a unit that does not exist", C, [("/spec/quota/memory", json!("16GB"))], [("/spec/quota/memory", json!("16G"))], "spec.quota.memory", &["an amount"]),
        slip("a negative amount", C, [("/spec/quota/cpu", json!(-1))], [("/spec/quota/cpu", json!(1))], "spec.quota.cpu", &["without a sign"]),
        slip("a quota without memory", C, [("/spec/quota/memory", Value::Null)], [], "spec.quota.memory", &["Required value"]),
        // Environments.
        slip("a reserved environment", C, [("/spec/environments/2", environment("sistema")), ("/spec/environments/0/share", json!(50))], [("/spec/environments/2", environment("prove")), ("/spec/environments/0/share", json!(50))], "spec.environments[2].name", &["reserved for the operator"]),
        slip("the same environment twice", C, [("/spec/environments/1/name", json!("produzione"))], [], "spec.environments[1]", &["Duplicate value", "produzione"]),
        slip("an environment in capitals", C, [("/spec/environments/1/name", json!("Collaudo"))], [], "spec.environments[1].name", &["lower-case letters"]),
        slip("more than all", C, [("/spec/environments/0/share", json!(70))], [("/spec/environments/0/share", json!(50))], "spec.environments", &["together they are at most 100"]),
        slip("one share missing", C, [("/spec/environments/0/share", Value::Null)], [("/spec/environments/0/share", Value::Null), ("/spec/environments/1/share", Value::Null)], "spec.environments", &["to every environment or to none"]),
        slip("privileged pods", C, [("/spec/environments/0/podSecurity", json!("privileged"))], [("/spec/environments/0/podSecurity", json!("baseline"))], "spec.environments[0].podSecurity", &["supported values", "restricted"]),
        slip("no environment at all", C, [("/spec/environments", json!([]))], [], "spec.environments", &["at least 1 items"]),
        // People.
        slip("a service account of nowhere", C, [("/spec/administrators/1/namespace", Value::Null)], [], "spec.administrators[1].namespace", &["a ServiceAccount needs its namespace"]),
        slip("a group in a namespace", C, [("/spec/viewers/0", json!({"kind": "Group", "name": "x", "namespace": "y"}))], [("/spec/viewers/0", json!({"kind": "Group", "name": "x"}))], "spec.viewers[0].namespace", &["a User or a Group has none"]),
        slip("everybody as administrator", C, [("/spec/administrators/0/name", json!("system:authenticated"))], [("/spec/administrators/0/name", json!("dolo-ced"))], "spec.administrators[0].name", &["belong to Kubernetes itself"]),
        slip("a service account that cannot exist", C, [("/spec/administrators/0", json!({"kind": "ServiceAccount", "name": "CI_Dolo", "namespace": "ci"}))], [("/spec/administrators/0/name", json!("ci-dolo.venis"))], "spec.administrators[0].name", &["such as ci-dolo"]),
        slip("everybody as viewer", C, [("/spec/viewers/0", json!({"kind": "Group", "name": "system:unauthenticated"}))], [("/spec/viewers/0", json!({"kind": "Group", "name": "dolo-vede"}))], "spec.viewers[0].name", &["cannot administer a Comune"]),
        // Network.
        slip("an address that is no range", C, [("/spec/network/egress/0/cidrs/0", json!("10.20.0.0"))], [("/spec/network/egress/0/cidrs/0", json!("10.20.0.0/16"))], "spec.network.egress[0].cidrs", &["CIDR notation", "10.20.0.0/16"]),
        slip("a range by name", C, [("/spec/network/ingress/0/cidrs/0", json!("proxy.example"))], [("/spec/network/ingress/0/cidrs/0", json!("10.20.0.1/32"))], "spec.network.ingress[0].cidrs", &["CIDR notation"]),
        slip("a port that does not exist", C, [("/spec/network/egress/0/ports/0", json!(70000))], [("/spec/network/egress/0/ports/0", json!(7000))], "spec.network.egress[0].ports[0]", &["less than or equal to 65535"]),
        // Databases.
        slip("a database nowhere", C, [("/spec/databases/2", json!({"name": "x", "engine": "postgresql", "placement": {"shared": SERVER}, "environment": "prove"}))], [("/spec/databases/2", database("x"))], "spec.databases", &["belongs to one of spec.environments"]),
        slip("an engine that does not exist", C, [("/spec/databases/0/engine", json!("mysql"))], [], "spec.databases[0].engine", &["supported values", "mariadb"]),
        slip("extensions for MariaDB", C, [("/spec/databases/1/extensions", json!(["pg_trgm"]))], [], "spec.databases[1].extensions", &["extensions exist for postgresql only"]),
        slip("two placements", C, [("/spec/databases/1/placement/shared", json!(SERVER))], [], "spec.databases[1].placement", &["exactly one of shared, dedicated"]),
        slip("no placement", C, [("/spec/databases/1/placement", json!({}))], [("/spec/databases/1/placement", json!({"shared": SERVER}))], "spec.databases[1].placement", &["exactly one of shared, dedicated"]),
        slip("the same database twice", C, [("/spec/databases/2", database("archivio"))], [("/spec/databases/2", database("archivio-2"))], "spec.databases[2]", &["Duplicate value"]),
        slip("the same extension twice", C, [("/spec/databases/0/extensions", json!(["hstore", "hstore"]))], [("/spec/databases/0/extensions", json!(["hstore"]))], "spec.databases[0].extensions[1]", &["Duplicate value"]),
        slip("a policy that does not exist", C, [("/spec/databases/0/deletionPolicy", json!("Forget"))], [("/spec/databases/0/deletionPolicy", json!("Retain"))], "spec.databases[0].deletionPolicy", &["supported values", "Retain"]),
        slip("a class that does not exist", C, [("/spec/databases/0/classification/class", json!("segreto"))], [("/spec/databases/0/classification/class", json!("critico"))], "spec.databases[0].classification.class", &["supported values", "strategico"]),
        slip("a classification without its act", C, [("/spec/databases/0/classification/act", Value::Null)], [], "spec.databases[0].classification.act", &["Required value"]),
        // Services.
        slip("a service nowhere", C, [("/spec/services/0/environment", json!("prove")), ("/spec/services/0/database", Value::Null)], [("/spec/services/0/database", Value::Null)], "spec.services", &["runs in one of spec.environments"]),
        slip("a service with a database that is not declared", C, [("/spec/services/0/database", json!("archivi"))], [], "spec.services", &["not in spec.databases"]),
        slip("production data in a test", C, [("/spec/services/0/environment", json!("collaudo"))], [("/spec/services/0/environment", json!("collaudo")), ("/spec/services/0/database", json!("propria"))], "spec.services", &["belong to the same environment", "production data is not bound elsewhere"]),
        slip("a reserved service name", C, [("/spec/services/0/name", json!("conme-quota"))], [("/spec/services/0/name", json!("quota"))], "spec.services[0].name", &["reserved", "guard the namespace"]),
        slip("a service that is called default", C, [("/spec/services/0/name", json!("default"))], [], "spec.services[0].name", &["reserved"]),
        slip("a wildcard host", C, [("/spec/services/0/hostname", json!("*.dolo.it"))], [("/spec/services/0/hostname", json!("www.dolo.it"))], "spec.services[0].hostname", &["full host name", "without a wildcard"]),
        slip("too many pods", C, [("/spec/services/0/replicas", json!(51))], [("/spec/services/0/replicas", json!(50))], "spec.services[0].replicas", &["less than or equal to 50"]),
        // Local servers.
        slip("a server at a place that is not declared", C, [("/spec/servers/0/site", json!("biblioteca"))], [], "spec.servers", &["stands at one of spec.sites"]),
        slip("a workload on a disk that the server lacks", C, [("/spec/servers/0/workloads/0/disk/disk", json!("sdb"))], [], "spec.servers[0].workloads", &["not in this server's disks"]),
        slip("a workload of two sorts", C, [("/spec/servers/0/workloads/0/files", json!({"path": "/srv", "volume": "x", "environment": "produzione"}))], [], "spec.servers[0].workloads[0]", &["exactly one of disk, files, postgresql, mariadb"]),
        slip("a relative path", C, [("/spec/servers/0/workloads/1/files/path", json!("srv/documenti"))], [], "spec.servers[0].workloads[1].files.path", &["absolute path"]),
        slip("a disk with its path", C, [("/spec/servers/0/disks/0/name", json!("disk 1")), ("/spec/servers/0/workloads/0/disk/disk", json!("disk 1"))], [], "spec.servers[0].disks[0].name", &["name of a disk without /dev/"]),
        slip("a time without its zero", C, [("/spec/sites/0/windows/0/from", json!("7:00"))], [("/spec/sites/0/windows/0/from", json!("07:00"))], "spec.sites[0].windows[0].from", &["HH:MM"]),
        slip("a day in Italian", C, [("/spec/sites/0/windows/0/days/0", json!("Lun"))], [("/spec/sites/0/windows/0/days/0", json!("Mon"))], "spec.sites[0].windows[0].days[0]", &["supported values", "Mon"]),
        slip("a way of migrating that does not exist", C, [("/spec/servers/0/workloads/0/mode", json!("C"))], [], "spec.servers[0].workloads[0].mode", &["supported values", "\"A\", \"B\""]),
    ]
}

#[rustfmt::skip]
fn slips_elsewhere() -> Vec<Slip> {
    use Base::{DataCenter as D, ServiceTemplate as T};
    vec![
        slip("a reserve that leaves nothing", D, [("/spec/reserve/hosts", json!(4))], [("/spec/reserve/hosts", json!(3))], "spec.reserve.hosts", &["nothing would be left"]),
        slip("a database server without a range", D, [("/spec/databaseServers/0/cidrs/0", json!("192.0.2.5"))], [("/spec/databaseServers/0/cidrs/0", json!("192.0.2.5/32"))], "spec.databaseServers[0].cidrs", &["CIDR notation"]),
        slip("a password that is too old at once", D, [("/spec/databaseServers/0/credentialMaxAge", json!("0d"))], [("/spec/databaseServers/0/credentialMaxAge", json!("1d"))], "spec.databaseServers[0].credentialMaxAge", &["90d"]),
        slip("an overlap in weeks", D, [("/spec/databaseServers/0/credentialOverlap", json!("1w"))], [("/spec/databaseServers/0/credentialOverlap", json!("0s"))], "spec.databaseServers[0].credentialOverlap", &["24h"]),
        slip("a pool in capitals", D, [("/spec/pools/0/name", json!("Generale"))], [], "spec.pools[0].name", &["lower-case letters"]),
        slip("memory of a host without unit that exists", D, [("/spec/pools/0/memory", json!("256 GB"))], [], "spec.pools[0].memory", &["an amount"]),
        slip("a domain that is none", D, [("/spec/ingress/domain", json!("servizi"))], [], "spec.ingress.domain", &["full host name"]),
        slip("hours that do not exist", D, [("/spec/migration/windows/0/to", json!("24:00"))], [("/spec/migration/windows/0/to", json!("23:59"))], "spec.migration.windows[0].to", &["HH:MM"]),
        slip("less than is there", D, [("/spec/overcommit/cpuPercent", json!(50))], [("/spec/overcommit/cpuPercent", json!(100))], "spec.overcommit.cpuPercent", &["greater than or equal to 100"]),
        slip("the same tier twice", D, [("/spec/tiers/1", json!({"name": "piccolo", "quota": {"cpu": 1, "memory": "1Gi"}}))], [("/spec/tiers/1", json!({"name": "medio", "quota": {"cpu": 1, "memory": "1Gi"}}))], "spec.tiers[1]", &["Duplicate value"]),
        slip("no tier", D, [("/spec/tiers", json!([]))], [], "spec.tiers", &["at least 1 items"]),
        slip("a default version that is not on offer", T, [("/spec/defaultVersion", json!("2.0"))], [], "spec.defaultVersion", &["one of spec.versions"]),
        slip("a required parameter with a default", T, [("/spec/parameters/0/required", json!(true))], [], "spec.parameters[0].required", &["a parameter with a default is not required"]),
        slip("a parameter with a hyphen", T, [("/spec/parameters/0/name", json!("max-pool"))], [("/spec/parameters/0/name", json!("maxPool"))], "spec.parameters[0].name", &["parameter name"]),
        slip("a variable with a value and a binding", T, [("/spec/versions/0/env/0/fromBinding", json!("uri"))], [], "spec.versions[0].env[0]", &["either a value or fromBinding"]),
        slip("a variable with nothing", T, [("/spec/versions/0/env/0/value", Value::Null)], [], "spec.versions[0].env[0]", &["either a value or fromBinding"]),
        slip("a variable with a hyphen", T, [("/spec/versions/0/env/0/name", json!("MAX-POOL"))], [("/spec/versions/0/env/0/name", json!("MAX_POOL"))], "spec.versions[0].env[0].name", &["environment variable"]),
        slip("a key that the Secret lacks", T, [("/spec/versions/0/env/1/fromBinding", json!("user"))], [("/spec/versions/0/env/1/fromBinding", json!("username"))], "spec.versions[0].env[1].fromBinding", &["supported values", "username"]),
        slip("a file that is a folder", T, [("/spec/versions/0/files/0/path", json!("/etc/base/"))], [], "spec.versions[0].files[0].path", &["absolute path of a file"]),
        slip("a pod with an amount of nothing known", T, [("/spec/versions/0/resources/memory", json!("64MB"))], [("/spec/versions/0/resources/memory", json!("64M"))], "spec.versions[0].resources.memory", &["an amount"]),
        slip("a port in capitals", T, [("/spec/versions/0/ports/0/name", json!("HTTP"))], [], "spec.versions[0].ports[0].name", &["lower-case letters"]),
        slip("a relative volume", T, [("/spec/versions/0/volumes/0/path", json!("data"))], [], "spec.versions[0].volumes[0].path", &["absolute path"]),
        slip("more pods at least than at most", T, [("/spec/versions/0/autoscaling/minReplicas", json!(4))], [], "spec.versions[0].autoscaling.minReplicas", &["larger than maxReplicas"]),
        slip("root", T, [("/spec/versions/0/runAsUser", json!(0))], [("/spec/versions/0/runAsUser", json!(1000))], "spec.versions[0].runAsUser", &["greater than or equal to 1"]),
        slip("a volume of a kind that does not exist", T, [("/spec/versions/0/volumes/0/kind", json!("Shared"))], [], "spec.versions[0].volumes[0].kind", &["supported values", "Ephemeral"]),
    ]
}

async fn dry_create(dc: &DataCentre, base: Base, manifest: &Value) -> kube::Result<DynamicObject> {
    let object: DynamicObject = serde_json::from_value(manifest.clone()).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    base.api(dc).create(&dry, &object).await
}

fn has_no_code(what: &str, message: &str) {
    for code in ["^[", "should match", "must match", "failed rule", "matches("] {
        assert!(!message.contains(code), "{what}: a person has to read {code}: {message}");
    }
}

/// Rules of a definition in words, by the path of their field; `true` for rules about changes.
fn rules(kind: &str) -> BTreeMap<String, bool> {
    fn walk(schema: &JSONSchemaProps, found: &mut BTreeMap<String, bool>) {
        for rule in schema.x_kubernetes_validations.iter().flatten() {
            found.insert(rule.message.clone().unwrap(), rule.rule.contains("oldSelf"));
        }
        for property in schema.properties.iter().flatten().map(|(_, property)| property) {
            walk(property, found);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            walk(items, found);
        }
    }
    let mut found = BTreeMap::new();
    walk(&schema(kind), &mut found);
    found
}

fn schema(kind: &str) -> JSONSchemaProps {
    let crd = conme_api::crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
    crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slip_of_the_pen_is_refused_at_once_in_words_and_its_correction_accepted() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let mut slips = slips_in_a_comune();
    slips.extend(slips_elsewhere());
    assert!(slips.len() >= 80, "{} slips", slips.len());
    let mut said: BTreeMap<&str, String> = BTreeMap::new();
    for Slip { what, base, bad, good, field, words } in slips {
        let (code, message) = refusal(dry_create(&dc, base, &edited(base.manifest(), &bad)).await);
        assert_eq!(code, if message.contains("cannot be handled") { 400 } else { 422 }, "{what}: {message}");
        assert!(message.contains(field), "{what}: {field} is not named: {message}");
        for word in words {
            assert!(message.contains(word), "{what}: `{word}` is not said: {message}");
        }
        has_no_code(what, &message);
        let corrected = dry_create(&dc, base, &edited(base.manifest(), &good)).await;
        corrected.unwrap_or_else(|error| panic!("{what}, corrected: {error}"));
        said.entry(base.kind()).or_default().push_str(&message);
    }
    // No rule of the definitions is left out.
    for kind in ["Comune", "DataCenter", "ServiceTemplate"] {
        for (message, about_change) in rules(kind) {
            assert!(
                about_change || said[kind].contains(&message),
                "{kind}: no slip breaks the rule: {message}"
            );
        }
    }
    assert!(dc.comuni().get_opt("bad-base").await?.is_none(), "nothing was stored");
    Ok(())
}

/// Places in a manifest whose value has a form: pointer, path as messages name it, the rule in words.
fn places(schema: &JSONSchemaProps, value: &Value, pointer: &str, path: &str, found: &mut Vec<[String; 3]>) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        if rule.rule.contains("self.matches(") && pointer.starts_with("/spec") {
            found.push([pointer.to_owned(), path.to_owned(), rule.message.clone().unwrap()]);
        }
    }
    for (name, property) in schema.properties.iter().flatten() {
        if let Some(value) = value.get(name) {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            places(property, value, &format!("{pointer}/{name}"), &path, found);
        }
    }
    if let (Some(JSONSchemaPropsOrArray::Schema(items)), Some(list)) = (&schema.items, value.as_array()) {
        for (index, value) in list.iter().enumerate() {
            places(items, value, &format!("{pointer}/{index}"), &format!("{path}[{index}]"), found);
        }
    }
}

/// Paths of the schema below spec whose values have a form.
fn forms(schema: &JSONSchemaProps, path: &str, found: &mut BTreeSet<String>) {
    let has_form =
        schema.x_kubernetes_validations.iter().flatten().any(|rule| rule.rule.contains("self.matches("));
    if has_form && path.starts_with(".spec") {
        found.insert(path.to_owned());
    }
    for (name, property) in schema.properties.iter().flatten() {
        forms(property, &format!("{path}.{name}"), found);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        forms(items, path, found);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_that_has_a_form_is_refused_in_words_where_it_has_another() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let mut reached: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for base in Base::ALL {
        let manifest = base.manifest();
        dry_create(&dc, base, &manifest).await.unwrap_or_else(|error| panic!("{base:?}: {error}"));
        let mut found = Vec::new();
        places(&schema(base.kind()), &manifest, "", "", &mut found);
        for [pointer, path, words] in found {
            let mut wrong = manifest.clone();
            *wrong.pointer_mut(&pointer).unwrap() = json!("§§");
            let (_, message) = refusal(dry_create(&dc, base, &wrong).await);
            assert!(message.contains(&format!("{path}: Invalid value: ")), "{path} is not named: {message}");
            assert!(message.contains(&words), "{path}: {message}");
            has_no_code(&path, &message);
            let without_index = path.split('.').map(|part| part.split('[').next().unwrap_or_default());
            let path = without_index.fold(String::new(), |path, part| format!("{path}.{part}"));
            reached.entry(base.kind()).or_default().insert(path);
        }
    }
    for kind in ["Comune", "DataCenter", "ServiceTemplate"] {
        let mut all = BTreeSet::new();
        forms(&schema(kind), "", &mut all);
        assert!(all.len() > 5, "{kind}: the walk is broken");
        assert_eq!(reached[kind], all, "{kind}: not every field with a form was tried");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_does_not_exist_is_refused_by_name() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let params = PatchParams {
        dry_run: true,
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("sad").force()
    };
    for (pointer, name) in [
        ("/spec/enviroments", "enviroments"),
        ("/spec/services/0/replica", "replica"),
        ("/spec/quota/mem", "mem"),
        ("/spec/entity/codiceIstat", "codiceIstat"),
    ] {
        let api = Base::Comune.api(&dc);
        let good = Base::Comune.manifest();
        api.patch("bad-base", &params, &Patch::Apply(&good)).await?;
        let bad = edited(good, &[(pointer, json!("1"))]);
        let (_, message) = refusal(api.patch("bad-base", &params, &Patch::Apply(&bad)).await);
        assert!(message.contains(name), "{message}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_it_is_and_where_its_data_live_cannot_be_edited() -> Result<()> {
    let dc = DataCentre::shared().await?;
    // The server does not exist, so that nothing is provisioned for this story.
    let spec = json!({
        "entity": entity("Comune Fisso", 900_101),
        "quota": small_quota(),
        "databases": [
            {"name": "archivio", "engine": "postgresql", "placement": {"shared": "bad-nessuno"}},
            {"name": "propria", "engine": "mariadb", "placement": {"dedicated": {"instances": 1, "storage": "10Gi"}}},
        ],
    });
    dc.apply("bad-fisso", spec.clone()).await?;
    let stored = json!({"spec": spec});
    let mut said = String::new();
    let dry = |manifest: Value| {
        let body = json!({
            "apiVersion": "conme.venis.it/v1alpha1",
            "kind": "Comune",
            "metadata": {"name": "bad-fisso"},
            "spec": manifest["spec"],
        });
        let params = PatchParams { dry_run: true, ..PatchParams::apply("sad").force() };
        let api = dc.comuni();
        async move { api.patch("bad-fisso", &params, &Patch::Apply(&body)).await }
    };
    for (edits, field, words) in [
        (vec![("/spec/entity/istat", json!("900199"))], "spec.entity.istat", "the ISTAT code cannot change"),
        (
            vec![("/spec/entity/kind", json!("Unione")), ("/spec/entity/istat", Value::Null)],
            "spec.entity.istat",
            "another administration is another Comune",
        ),
        (
            vec![("/spec/databases/0/engine", json!("mariadb"))],
            "spec.databases[0].engine",
            "declare a new database",
        ),
        (
            vec![("/spec/databases/0/placement", json!({"shared": SERVER}))],
            "spec.databases[0].placement",
            "does not move by editing its placement",
        ),
        (
            vec![("/spec/databases/1/placement", json!({"shared": SERVER}))],
            "spec.databases[1].placement",
            "migrate the data",
        ),
        (
            vec![
                ("/spec/environments", json!([{"name": "produzione"}, {"name": "collaudo"}])),
                ("/spec/databases/1/environment", json!("collaudo")),
            ],
            "spec.databases[1].environment",
            "stays in its environment",
        ),
    ] {
        let (code, message) = refusal(dry(edited(stored.clone(), &edits)).await);
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(field) && message.contains(words), "{message}");
        has_no_code(field, &message);
        said.push_str(&message);
    }
    for (message, about_change) in rules("Comune") {
        assert!(!about_change || said.contains(&message), "no edit breaks the rule: {message}");
    }
    // Everything else can be edited, and a database may leave the manifest and come back elsewhere.
    dry(stored.clone()).await?;
    dry(edited(stored.clone(), &[("/spec/entity/displayName", json!("Comune di Fisso"))])).await?;
    dry(edited(stored.clone(), &[("/spec/databases/0/connectionLimit", json!(5))])).await?;
    dry(edited(stored, &[("/spec/databases", json!([]))])).await?;
    dc.tidy_up("bad-fisso").await
}

// ---------------------------------------------------------------------------------------------------------------
// Accepted, told, and put right by itself
// ---------------------------------------------------------------------------------------------------------------

fn small_quota() -> Value {
    json!({"cpu": 2, "memory": "4Gi", "storage": "20Gi"})
}

fn small_template(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            json!({
                "version": version,
                "image": format!("registry.example/pagine:{version}"),
                "ports": [{"name": "http", "port": 8080}],
                "resources": {"cpu": "50m", "memory": "64Mi"},
                "runAsUser": 1000,
            })
        })
        .collect();
    json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "ServiceTemplate",
        "metadata": {"name": name},
        "spec": {
            "displayName": "Pagine", "description": "An entry for a story.", "licence": "EUPL-1.2",
            "source": "a story", "defaultVersion": versions[0]["version"], "versions": versions,
        },
    })
}

/// Waits until a condition is False for a reason, at the present generation; returns its message.
async fn told(dc: &DataCentre, name: &str, type_: &str, reason: &str) -> Result<String> {
    let is_told = |comune: &Comune| {
        is_current(comune)
            && condition(comune, type_).is_some_and(|(status, found, _)| (status, found) == ("False", reason))
    };
    let comune = dc.comune_where(name, &format!("{type_}=False, {reason}"), is_told).await?;
    Ok(condition(&comune, type_).unwrap().2.to_owned())
}

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is not said: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_or_version_that_does_not_exist_yet_is_named_and_healed_when_it_appears() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let spec = json!({
        "entity": entity("Comune Modello", 900_110),
        "quota": small_quota(),
        "services": [
            {"name": "mappe", "template": "gis"},
            {"name": "sito", "template": "bad-modello", "version": "2.0"},
        ],
    });
    dc.apply("bad-modello", spec).await?;
    let message = told(&dc, "bad-modello", "Ready", "Invalid").await?;
    assert_says(
        &message,
        &["spec.services[sito].template", "`bad-modello`", "there are:", "api-gateway", "gis"],
    );
    // The rest goes on.
    let comune = dc.comuni().get("bad-modello").await?;
    assert_eq!(condition(&comune, "NamespacesReady").unwrap().0, "True");
    let built =
        || async { Ok(dc.read(Kind::Deployment, "bad-modello-produzione", "mappe").await?.is_some()) };
    eventually("the other service is deployed", built).await?;

    install::apply(dc.instance(), &small_template("bad-modello", &["1.0", "1.1"])).await?;
    let names_version =
        |comune: &Comune| condition(comune, "Ready").is_some_and(|(.., text)| text.contains("`2.0`"));
    let comune = dc.comune_where("bad-modello", "told of its version", names_version).await?;
    assert_says(condition(&comune, "Ready").unwrap().2, &["spec.services[sito].version", "it has: 1.0, 1.1"]);
    assert!(dc.read(Kind::Deployment, "bad-modello-produzione", "sito").await?.is_none());

    install::apply(dc.instance(), &small_template("bad-modello", &["1.0", "1.1", "2.0"])).await?;
    dc.ready("bad-modello").await?;
    let deployment = dc.read(Kind::Deployment, "bad-modello-produzione", "sito").await?.unwrap();
    let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(*image, "registry.example/pagine:2.0");
    dc.tidy_up("bad-modello").await?;
    Api::<ServiceTemplate>::all(dc.client()).delete("bad-modello", &DeleteParams::default()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn characters_that_yaml_refuses_or_folds_arrive_as_they_are_and_stop_nobody() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let (display_name, version) = ("Comune \u{7f}\u{85}\u{2028}\u{feff} Strano", "1\u{9f}\u{85}\u{2029}0");
    install::apply(dc.instance(), &small_template("bad-segni", &["1.0"])).await?;
    let comune = json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "Comune",
        "metadata": {"name": "bad-segni"},
        "spec": {
            "entity": entity(display_name, 900_111),
            "quota": small_quota(),
            "services": [{"name": "sito", "template": "bad-segni", "version": version}],
        },
    });
    dc.comuni().create(&PostParams::default(), &serde_json::from_value(comune)?).await?;
    let message = told(&dc, "bad-segni", "Ready", "Invalid").await?;
    assert_says(&message, &["spec.services[sito].version", version]);
    let namespace = Api::<Namespace>::all(dc.client()).get("bad-segni-produzione").await?;
    assert_eq!(namespace.annotations()[keys::DISPLAY_NAME], display_name);
    // What all share is told as well: a Comune cannot silence a template that others use.
    let templates: Api<ServiceTemplate> = Api::all(dc.client());
    let counts = || async {
        let status = templates.get("bad-segni").await?.status.unwrap_or_default();
        Ok(status.versions.iter().any(|told| told.version == version && told.services == 1))
    };
    eventually("the template tells of the version that is asked for", counts).await?;
    dc.tidy_up("bad-segni").await?;
    templates.delete("bad-segni", &DeleteParams::default()).await?;
    Ok(())
}

/// Edits the data centre of an instance of one's own.
async fn edit_data_center(dc: &DataCentre, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let api: Api<DataCenter> = Api::all(dc.client());
    let stored = serde_json::to_value(api.get("venis").await?)?;
    let mut spec = stored["spec"].clone();
    edit(&mut spec);
    api.patch("venis", &PatchParams::default(), &Patch::Merge(&json!({"spec": spec}))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_or_server_that_the_data_centre_lacks_is_named_and_healed_when_it_appears() -> Result<()> {
    let dc = DataCentre::own("bad-names", &[]).await?;
    // A tier.
    dc.apply("bad-banda", json!({"entity": entity("Comune Banda", 900_111), "tier": "minimo"})).await?;
    let message = told(&dc, "bad-banda", "Ready", "Invalid").await?;
    assert_says(&message, &["spec.tier", "`minimo`", "there are: piccolo, medio, grande"]);
    assert!(dc.read(Kind::Namespace, "", "bad-banda-produzione").await?.is_none());
    let tier = json!({"name": "minimo", "quota": {"cpu": 1, "memory": "1Gi"}});
    edit_data_center(&dc, |spec| spec["tiers"].as_array_mut().unwrap().push(tier)).await?;
    let comune = dc.ready("bad-banda").await?;
    assert_eq!(comune.status.unwrap().tier.as_deref(), Some("minimo"));

    // A database server. The namespace is made all the same.
    let spec = json!({
        "entity": entity("Comune Server", 900_112),
        "quota": small_quota(),
        "databases": [{"name": "archivio", "engine": "postgresql", "placement": {"shared": "pg-nuovo"}}],
    });
    dc.apply("bad-server", spec).await?;
    let message = told(&dc, "bad-server", "DatabasesReady", "Invalid").await?;
    assert_says(
        &message,
        &["spec.databases[archivio].placement.shared", "`pg-nuovo`", "there are: pg-venis-1"],
    );
    let message = told(&dc, "bad-server", "Ready", "Invalid").await?;
    assert_says(&message, &["DatabasesReady", "`pg-nuovo`"]);
    let stands =
        |comune: &Comune| condition(comune, "NamespacesReady").is_some_and(|(status, ..)| status == "True");
    dc.comune_where("bad-server", "in its namespace", stands).await?;
    edit_data_center(&dc, |spec| {
        let mut server = spec["databaseServers"][0].clone();
        server["name"] = json!("pg-nuovo");
        spec["databaseServers"].as_array_mut().unwrap().push(server);
    })
    .await?;
    dc.ready("bad-server").await?;
    Credentials::of(&dc, "bad-server-produzione", "archivio").await?.login(None).await?;

    // A storage class: the service waits for it, and comes up with its volume.
    edit_data_center(&dc, |spec| spec["storageClasses"] = json!(["bad-classe"])).await?;
    let spec = json!({
        "entity": entity("Comune Classe", 900_113),
        "quota": small_quota(),
        "services": [{"name": "mappe", "template": "gis"}],
    });
    dc.apply("bad-classe", spec).await?;
    let message = told(&dc, "bad-classe", "Ready", "Invalid").await?;
    assert_says(
        &message,
        &["spec.services[mappe]", "storage class `bad-classe`", "there are: venis-standard"],
    );
    let claim = dc.read(Kind::PersistentVolumeClaim, "bad-classe-produzione", "mappe--progetti").await?;
    assert!(claim.is_none(), "a claim of a class that does not exist could never be bound: {claim:?}");
    for object in [
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "bad-classe"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "Immediate",
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "bad-volume"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "50Gi"}, "storageClassName": "bad-classe",
                "hostPath": {"path": "/var/empty/bad-volume"},
            },
        }),
    ] {
        install::apply(dc.instance(), &object).await?;
    }
    dc.ready("bad-classe").await?;
    let up = |comune: &Comune| condition(comune, "Available").is_some_and(|(status, ..)| status == "True");
    dc.comune_where("bad-classe", "Available", up).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_centre_keeps_its_reserve_and_its_promises() -> Result<()> {
    let dc = DataCentre::own("bad-room", &[]).await?;
    // Two hosts, of which one is the reserve: 4 vCPU, 16Gi, 100Gi to give.
    let cores = |cores: u32| {
        let pool =
            json!([{"name": "generale", "hosts": 2, "cores": cores, "memory": "16Gi", "storage": "100Gi"}]);
        move |spec: &mut Value| {
            spec["pools"] = pool;
            spec["overcommit"] = json!({"cpuPercent": 100});
            spec["reserve"] = json!({"hosts": 1});
        }
    };
    edit_data_center(&dc, cores(4)).await?;
    let spec = |name: &str, istat: u32, cpu: u32| json!({"entity": entity(name, istat), "quota": {"cpu": cpu, "memory": "4Gi", "storage": "10Gi"}});
    let hard = |name: &'static str| {
        let dc = &dc;
        async move {
            let namespace = format!("{name}-produzione");
            let quota = dc.read(Kind::ResourceQuota, &namespace, "conme-quota").await.unwrap().unwrap();
            quota["spec"]["hard"]["limits.cpu"].as_str().unwrap().to_owned()
        }
    };
    dc.apply("bad-primo", spec("Comune Primo", 900_114, 3)).await?;
    dc.ready("bad-primo").await?;
    dc.apply("bad-secondo", spec("Comune Secondo", 900_115, 3)).await?;
    let message = told(&dc, "bad-secondo", "Admitted", "InsufficientCapacity").await?;
    assert_says(&message, &["spec.quota", "2 cpu missing", "admitted by itself"]);
    assert!(!message.contains("memory"), "there is memory enough: {message}");
    told(&dc, "bad-secondo", "Ready", "InsufficientCapacity").await?;
    assert!(dc.read(Kind::Namespace, "", "bad-secondo-produzione").await?.is_none());
    assert_eq!(hard("bad-primo").await, "3");

    // The first gives some back, and the second comes in by itself.
    dc.apply("bad-primo", spec("Comune Primo", 900_114, 1)).await?;
    dc.ready("bad-secondo").await?;
    assert_eq!(hard("bad-secondo").await, "3");
    dc.ready("bad-primo").await?;
    assert_eq!(hard("bad-primo").await, "1");

    // Now there is no way back for the first: its old quota stays in force, the second keeps its own.
    dc.apply("bad-primo", spec("Comune Primo", 900_114, 3)).await?;
    let message = told(&dc, "bad-primo", "Admitted", "InsufficientCapacity").await?;
    assert_says(&message, &["the old quota stays in force", "2 cpu missing", "granted by itself"]);
    assert_eq!(hard("bad-primo").await, "1");
    assert_eq!(hard("bad-secondo").await, "3");

    // The data centre loses cores: who is admitted stays admitted, and the data centre says so.
    edit_data_center(&dc, cores(2)).await?;
    let centers: Api<DataCenter> = Api::all(dc.client());
    let short = || async {
        let status = centers.get("venis").await?.status.unwrap_or_default();
        Ok(status.conditions.iter().any(|c| c.status == "False" && c.reason == "InsufficientCapacity"))
    };
    eventually("the data centre has promised more than it has", short).await?;
    for (name, quota) in [("bad-primo", "1"), ("bad-secondo", "3")] {
        assert_eq!(hard(name).await, quota, "{name}");
    }
    let (admitted, ..) = condition(&dc.comuni().get("bad-secondo").await?, "Admitted").map(owned).unwrap();
    assert_eq!(admitted, "True");
    let newcomer = "bad-terzo";
    dc.apply(newcomer, spec("Comune Terzo", 900_116, 1)).await?;
    told(&dc, newcomer, "Admitted", "InsufficientCapacity").await?;

    // It grows, and everyone gets what is asked for.
    edit_data_center(&dc, cores(8)).await?;
    for (name, quota) in [("bad-primo", "3"), ("bad-secondo", "3"), (newcomer, "1")] {
        dc.ready(name).await?;
        assert_eq!(hard(name).await, quota, "{name}");
    }
    Ok(())
}

fn owned((status, reason, message): (&str, &str, &str)) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

// ---------------------------------------------------------------------------------------------------------------
// Two that want the same
// ---------------------------------------------------------------------------------------------------------------

/// Everything that stands in a namespace, without what changes by itself.
async fn standing(dc: &DataCentre, namespace: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        let objects = if kind == Kind::Namespace {
            dc.api(kind, "").get(namespace).await.into_iter().collect()
        } else {
            dc.api(kind, namespace).list(&ListParams::default()).await.unwrap().items
        };
        for object in objects {
            let uid = object.uid();
            let mut value = serde_json::to_value(object).unwrap();
            child::strip(kind, &mut value);
            value["uid"] = json!(uid);
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            // The cluster's own controllers make these in every namespace, when they get to it.
            if !["default", "kube-root-ca.crt"].contains(&name.as_str()) {
                found.insert(format!("{} {name}", kind.name()), value);
            }
        }
    }
    assert!(found.len() > 5, "{namespace} is nearly empty");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_with_the_same_istat_code_the_senior_keeps_it() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let spec = json!({"entity": entity("Comune Doppio", 900_120), "quota": small_quota()});
    dc.apply("bad-senior", spec.clone()).await?;
    dc.ready("bad-senior").await?;
    let before = standing(&dc, "bad-senior-produzione").await;
    dc.apply("bad-junior", spec).await?;
    let message = told(&dc, "bad-junior", "Ready", "Conflict").await?;
    assert_says(&message, &["spec.entity.istat", "900120", "`bad-senior`", "had it first"]);
    assert!(dc.read(Kind::Namespace, "", "bad-junior-produzione").await?.is_none());
    assert_eq!(standing(&dc, "bad-senior-produzione").await, before);
    dc.ready("bad-senior").await?;
    // When the senior is gone, the other has its turn.
    dc.tidy_up("bad-senior").await?;
    dc.ready("bad-junior").await?;
    dc.tidy_up("bad-junior").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_with_the_same_host_name_the_senior_keeps_it() -> Result<()> {
    let dc = DataCentre::shared().await?;
    install::apply(dc.instance(), &small_template("bad-pagine", &["1.0"])).await?;
    let spec = |istat: u32, hostname: &str| {
        json!({
            "entity": entity("Comune Nome", istat),
            "quota": small_quota(),
            "services": [
                {"name": "sito", "template": "bad-pagine", "hostname": hostname},
                {"name": "altro", "template": "bad-pagine"},
            ],
        })
    };
    dc.apply("bad-nome-a", spec(900_121, "www.nome.example")).await?;
    dc.ready("bad-nome-a").await?;
    let before = standing(&dc, "bad-nome-a-produzione").await;
    dc.apply("bad-nome-b", spec(900_122, "www.nome.example")).await?;
    let message = told(&dc, "bad-nome-b", "Ready", "Conflict").await?;
    assert_says(
        &message,
        &["spec.services[sito].hostname", "www.nome.example", "`bad-nome-a`", "had it first"],
    );
    // Only the one service has to wait.
    let built = || async { Ok(dc.read(Kind::Ingress, "bad-nome-b-produzione", "altro").await?.is_some()) };
    eventually("the other service has its Ingress", built).await?;
    assert!(dc.read(Kind::Ingress, "bad-nome-b-produzione", "sito").await?.is_none());
    let namespace = dc.read(Kind::Namespace, "", "bad-nome-b-produzione").await?.unwrap();
    let hostnames = namespace["metadata"]["annotations"][keys::HOSTNAMES].as_str().unwrap_or_default();
    assert!(!hostnames.contains("www.nome.example"), "{hostnames}");
    assert_eq!(standing(&dc, "bad-nome-a-produzione").await, before);
    // The senior lets go of the name.
    dc.apply("bad-nome-a", spec(900_121, "nuovo.nome.example")).await?;
    dc.ready("bad-nome-b").await?;
    let ingress = dc.read(Kind::Ingress, "bad-nome-b-produzione", "sito").await?.unwrap();
    assert_eq!(ingress["spec"]["rules"][0]["host"], "www.nome.example");
    dc.tidy_up("bad-nome-a").await?;
    dc.tidy_up("bad-nome-b").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_whose_names_meet_in_one_namespace_the_senior_keeps_it() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let spec = |istat: u32, environment: &str| {
        json!({
            "entity": entity("Comune Incontro", istat),
            "quota": small_quota(),
            "environments": [{"name": environment}],
        })
    };
    dc.apply("bad-san", spec(900_123, "stino-x")).await?;
    dc.ready("bad-san").await?;
    let before = standing(&dc, "bad-san-stino-x").await;
    dc.apply("bad-san-stino", spec(900_124, "x")).await?;
    let message = told(&dc, "bad-san-stino", "Ready", "Conflict").await?;
    assert_says(
        &message,
        &["spec.environments[x]", "`bad-san-stino-x`", "`bad-san`", "another name for the environment"],
    );
    assert_eq!(standing(&dc, "bad-san-stino-x").await, before);
    dc.ready("bad-san").await?;
    // As told: another name.
    dc.apply("bad-san-stino", spec(900_124, "y")).await?;
    dc.ready("bad-san-stino").await?;
    assert_eq!(standing(&dc, "bad-san-stino-x").await, before);
    dc.tidy_up("bad-san").await?;
    dc.tidy_up("bad-san-stino").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_of_somebody_else_is_not_touched_until_it_is_handed_over() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let name = "bad-terra-produzione";
    let namespaces: Api<Namespace> = Api::all(dc.client());
    let foreign = serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": "rete"}}}))?;
    namespaces.create(&PostParams::default(), &foreign).await?;
    let notes: Api<ConfigMap> = Api::namespaced(dc.client(), name);
    let note = serde_json::from_value(json!({"metadata": {"name": "appunti"}, "data": {"nota": "nostra"}}))?;
    let note = notes.create(&PostParams::default(), &note).await?;
    let before = namespaces.get(name).await?;

    let spec = json!({"entity": entity("Comune Terra", 900_125), "quota": small_quota()});
    dc.apply("bad-terra", spec).await?;
    let message = told(&dc, "bad-terra", "Ready", "Conflict").await?;
    let command = format!("kubectl annotate namespace {name} conme.venis.it/adopt=bad-terra");
    assert_says(&message, &[name, "not managed by Con.Me", &command]);
    assert_eq!(namespaces.get(name).await?.resource_version(), before.resource_version());
    assert_eq!(notes.get("appunti").await?.resource_version(), note.resource_version());
    for kind in [Kind::ResourceQuota, Kind::LimitRange, Kind::NetworkPolicy, Kind::RoleBinding] {
        let found = dc.api(kind, name).list(&ListParams::default()).await?.items;
        assert!(found.is_empty(), "{} were made in somebody else's namespace", kind.plural());
    }

    // By the very words of the message, but for another Comune first: that means nothing.
    let annotate = |value: &str| {
        let key = format!("{}={value}", keys::ADOPT);
        let dc = &dc;
        async move {
            install::run(
                dc.instance(),
                "kubectl",
                &["annotate", "--overwrite", "namespace", name, &key],
                None,
            )
            .await
        }
    };
    annotate("bad-altro").await?;
    told(&dc, "bad-terra", "Ready", "Conflict").await?;
    assert_eq!(namespaces.get(name).await?.labels().get(keys::COMUNE), None);
    annotate("bad-terra").await?;
    dc.ready("bad-terra").await?;
    let after = namespaces.get(name).await?;
    assert_eq!(after.uid(), before.uid());
    assert_eq!(after.labels()[keys::COMUNE], "bad-terra");
    assert_eq!(notes.get("appunti").await?.data.unwrap()["nota"], "nostra");
    assert!(dc.read(Kind::NetworkPolicy, name, "conme-default-deny").await?.is_some());
    dc.tidy_up("bad-terra").await
}

// ---------------------------------------------------------------------------------------------------------------
// Less than is in use
// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_below_what_is_in_use_evicts_nobody() -> Result<()> {
    let dc = DataCentre::shared().await?;
    install::apply(dc.instance(), &small_template("bad-pagine", &["1.0"])).await?;
    let namespace = "bad-limite-produzione";
    let spec = |cpu: &str, replicas: u32| {
        json!({
            "entity": entity("Comune Limite", 900_130),
            "quota": {"cpu": cpu, "memory": "4Gi", "storage": "20Gi"},
            "services": [{"name": "sito", "template": "bad-pagine", "replicas": replicas}],
        })
    };
    let pods = || async {
        let api: Api<Pod> = Api::namespaced(dc.client(), namespace);
        let pods = api.list(&ListParams::default()).await?.items;
        anyhow::Ok(pods.into_iter().map(|pod| pod.uid().unwrap()).collect::<BTreeSet<_>>())
    };
    let up = |comune: &Comune| {
        is_current(comune) && condition(comune, "Available").is_some_and(|(status, ..)| status == "True")
    };
    dc.apply("bad-limite", spec("1", 3)).await?;
    dc.comune_where("bad-limite", "Available", up).await?;
    let running = pods().await?;
    assert_eq!(running.len(), 3);

    // 150m are in use.
    dc.apply("bad-limite", spec("100m", 3)).await?;
    let over = |comune: &Comune| {
        let limits =
            comune.status.as_ref().and_then(|status| status.quota.as_ref()).map(|quota| &quota.over_limit);
        is_current(comune) && limits.is_some_and(|limits| limits.iter().any(|limit| limit == "cpu"))
    };
    let comune = dc.comune_where("bad-limite", "over its limit", over).await?;
    let (status, reason, message) = condition(&comune, "Ready").map(owned).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "OverLimit"), "{message}");
    assert_says(&message, &["cpu", "what runs goes on", "nothing new is admitted"]);
    assert_eq!(comune.status.as_ref().unwrap().quota.as_ref().unwrap().over_limit, ["cpu"]);
    let enforced = || async {
        let quota = dc.read(Kind::ResourceQuota, namespace, "conme-quota").await?.unwrap();
        Ok(quota["status"]["hard"]["limits.cpu"] == "100m")
    };
    eventually("the lower quota is enforced", enforced).await?;
    // One more is asked for and refused; what runs goes on.
    dc.apply("bad-limite", spec("100m", 4)).await?;
    let refused = || async {
        let deployment = dc.read(Kind::Deployment, namespace, "sito").await?.unwrap();
        let conditions = deployment["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|c| {
            c["type"] == "ReplicaFailure"
                && c["message"].as_str().unwrap_or_default().contains("exceeded quota")
        }))
    };
    eventually("the fourth pod is refused", refused).await?;
    assert_eq!(pods().await?, running, "nothing was evicted");

    // With room again it comes up.
    dc.apply("bad-limite", spec("1", 4)).await?;
    let comune = dc.comune_where("bad-limite", "Available", up).await?;
    dc.ready("bad-limite").await?;
    let all = pods().await?;
    assert_eq!(all.len(), 4);
    assert!(all.is_superset(&running), "no pod was restarted");
    let quota = comune.status.unwrap().quota.unwrap();
    assert!(quota.over_limit.is_empty());
    assert_eq!(Amount::parse(&quota.limit["cpu"])?, Amount::units(1));
    dc.tidy_up("bad-limite").await
}
