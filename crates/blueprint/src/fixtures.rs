//! Manifests for tests. Names are unlike one another, so that a swapped label shows.

use std::{collections::BTreeMap, sync::Arc};

use conme_api::{Comune, DataCenter, ServiceTemplate};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub fn parse<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub fn comune(name: &str) -> Comune {
    parse(json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "Comune",
        "metadata": {"name": name, "uid": format!("uid-of-{name}"), "generation": 3},
        "spec": {
            "entity": {"kind": "Comune", "displayName": format!("Comune di {name}"), "istat": "027012", "ipa": "C_D325",
                "belfiore": "D325", "population": 15046, "domain": "comune.example.it"},
            "administrators": [{"kind": "Group", "name": "ced"}],
            "environments": [{"name": "produzione"}],
        },
    }))
}

pub fn full_comune() -> Comune {
    let mut comune = comune("dolo");
    comune.spec = parse(json!({
        "entity": {"kind": "Comune", "displayName": "Comune di Dolo", "istat": "027012", "ipa": "C_D325",
            "belfiore": "D325", "population": 15046, "domain": "comune.dolo.ve.it"},
        "administrators": [
            {"kind": "Group", "name": "dolo-ced"},
            {"kind": "ServiceAccount", "name": "pipeline", "namespace": "ci"},
        ],
        "viewers": [{"kind": "User", "name": "revisore"}],
        "environments": [
            {"name": "produzione", "share": 80},
            {"name": "collaudo", "share": 20, "podSecurity": "baseline"},
        ],
        "network": {"egress": [{"description": "posta", "environment": "produzione", "cidrs": ["10.9.0.0/16"], "ports": [25]}]},
        "databases": [{"name": "protocollo", "engine": "postgresql", "environment": "produzione",
            "placement": {"shared": "pg-uno"}, "extensions": ["pg_trgm"], "connectionLimit": 40}],
        "services": [
            {"name": "portale", "template": "sito", "environment": "produzione", "database": "protocollo",
                "hostname": "www.comune.dolo.ve.it", "parameters": {"tema": "mare"}},
            {"name": "mappe", "template": "gis", "environment": "collaudo"},
        ],
    }));
    comune
}

pub fn data_center() -> DataCenter {
    parse(json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "DataCenter",
        "metadata": {"name": "venis", "generation": 1},
        "spec": {
            "displayName": "Prova",
            "pools": [{"name": "generale", "hosts": 3, "cores": 16, "memory": "128Gi", "storage": "2Ti"}],
            "tiers": [
                {"name": "piccolo", "maxPopulation": 5000, "quota": {"cpu": "4", "memory": "8Gi", "storage": "100Gi"}},
                {"name": "medio", "maxPopulation": 20000, "quota": {"cpu": "8", "memory": "16Gi", "storage": "200Gi", "pods": 40}},
            ],
            "databaseServers": [{"name": "pg-uno", "engine": "postgresql", "host": "db.example", "port": 5433,
                "cidrs": ["10.5.0.7/32"], "adminSecret": "pg-uno-admin", "allowedExtensions": ["pg_trgm", "unaccent"]}],
            "ingress": {"className": "nginx", "namespace": "ingresso", "domain": "servizi.example", "clusterIssuer": "acme"},
            "storageClasses": ["veloce"],
        },
    }))
}

pub fn templates() -> BTreeMap<String, Arc<ServiceTemplate>> {
    let template = |name: &str, spec: Value| {
        let template: ServiceTemplate = parse(json!({
            "apiVersion": "conme.venis.it/v1alpha1",
            "kind": "ServiceTemplate",
            "metadata": {"name": name},
            "spec": spec,
        }));
        (name.to_owned(), Arc::new(template))
    };
    BTreeMap::from([
        template(
            "sito",
            json!({
                "displayName": "Sito", "description": "Un sito", "licence": "EUPL-1.2", "source": "fixture",
                "defaultVersion": "2.0",
                "parameters": [
                    {"name": "tema", "type": "string", "description": "Colori", "enum": ["mare", "monte"], "default": "monte"},
                    {"name": "voci", "type": "integer", "description": "Voci", "default": "7", "minimum": 1, "maximum": 9},
                ],
                "versions": [{
                    "version": "2.0",
                    "image": "registry.example/sito:2.0",
                    "ports": [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}],
                    "env": [
                        {"name": "TEMA", "value": "$(tema) di $(comune.displayName)"},
                        {"name": "DB_PASSWORD", "fromBinding": "password"},
                    ],
                    "files": [{"path": "/etc/sito/sito.conf", "content": "host=$(hostname)\nipa=$(comune.ipa)\n"}],
                    "probe": {"httpPath": "/salute", "startupSeconds": 61},
                    "resources": {"cpu": "0.25", "memory": "1024Mi", "cpuLimit": "1000m"},
                    "resourcesByTier": [{"tier": "grande", "resources": {"cpu": "2", "memory": "4Gi"}}],
                    "autoscaling": {"minReplicas": 2, "maxReplicas": 4, "cpuPercent": 70},
                    "volumes": [
                        {"name": "dati", "path": "/var/lib/sito", "kind": "Persistent", "size": "8Gi"},
                        {"name": "tmp", "path": "/tmp", "kind": "Ephemeral", "size": "100Mi"},
                    ],
                    "runAsUser": 1001,
                    "requires": {"database": ["postgresql"]},
                }],
            }),
        ),
        template(
            "gis",
            json!({
                "displayName": "Mappe", "description": "Mappe", "licence": "GPL-2.0", "source": "fixture",
                "defaultVersion": "3.34",
                "versions": [{
                    "version": "3.34",
                    "image": "registry.example/gis:3.34",
                    "ports": [{"name": "http", "port": 80}],
                    "resources": {"cpu": "500m", "memory": "512Mi"},
                    "replicas": 2,
                    "podSecurity": "baseline",
                }],
            }),
        ),
    ])
}
