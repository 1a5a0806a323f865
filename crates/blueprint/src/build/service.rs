//! The objects of one service from the catalogue.
//!
//! Nothing here depends on the version of the operator: an upgrade restarts no pod.

use conme_api::{Quantity, VolumeKind, keys};
use serde_json::{Map, Value, json};

use crate::{
    amount::{Amount, Notation},
    child::{ChildRef, Desired, hash},
    kind::{Kind, Wave},
    names, text,
    validate::{ValidComune, ValidService},
};

/// Annotation on pods: hash of the files from the ConfigMap. It changes with the manifest or the template only.
const FILES: &str = "conme.venis.it/files";

pub(super) fn service(comune: &ValidComune, service: &ValidService) -> Vec<Desired> {
    let builder = Builder { comune, service };
    let version = &service.version;
    let mut objects = vec![
        builder.object(
            Kind::ServiceAccount,
            &service.spec.name,
            json!({"automountServiceAccountToken": false}),
        ),
        builder.deployment(),
        builder.disruption_budget(),
    ];
    if !version.files.is_empty() {
        objects.push(builder.config_map());
    }
    for volume in version.volumes.iter().filter(|volume| volume.kind == VolumeKind::Persistent) {
        objects.push(builder.volume_claim(&volume.name, &volume.size));
    }
    if !version.ports.is_empty() {
        objects.extend([builder.cluster_service(), builder.ingress(), builder.network_policy()]);
    }
    objects.extend(builder.autoscaler());
    objects
}

struct Builder<'a> {
    comune: &'a ValidComune,
    service: &'a ValidService,
}

impl Builder<'_> {
    fn name(&self) -> &str {
        &self.service.spec.name
    }

    /// Labels by which the pods are selected: they never change.
    fn selector(&self) -> Value {
        json!({keys::COMUNE: self.comune.name, keys::SERVICE: self.name()})
    }

    fn labels(&self) -> Value {
        json!({
            keys::SERVICE: self.name(),
            keys::TEMPLATE: self.service.spec.template,
            "app.kubernetes.io/name": self.service.spec.template,
            "app.kubernetes.io/instance": self.name(),
        })
    }

    fn object(&self, kind: Kind, name: &str, content: Value) -> Desired {
        self.annotated(kind, name, json!({}), content)
    }

    fn annotated(&self, kind: Kind, name: &str, annotations: Value, content: Value) -> Desired {
        let at = ChildRef::new(kind, &self.service.namespace, name);
        let meta = json!({"labels": self.labels(), "annotations": annotations});
        let component = names::service_component(self.name());
        Desired::new(at, Wave::Contents, &self.comune.name, &component, meta, content)
    }

    fn fill(&self, text: &str) -> String {
        text::fill(text, &self.service.values)
    }

    fn autoscaled(&self) -> bool {
        self.service.spec.replicas.is_none() && self.service.version.autoscaling.is_some()
    }

    fn config_map(&self) -> Desired {
        let data: Map<String, Value> =
            self.file_contents().into_iter().map(|(key, text)| (key, json!(text))).collect();
        self.object(Kind::ConfigMap, self.name(), json!({"data": data}))
    }

    /// Keys of the ConfigMap with the contents of the files. Keys cannot hold slashes.
    fn file_contents(&self) -> Vec<(String, String)> {
        let files = &self.service.version.files;
        files.iter().map(|file| (file_key(&file.path), self.fill(&file.content))).collect()
    }

    fn volume_claim(&self, volume: &str, size: &Quantity) -> Desired {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": canonical(size, Notation::Binary)}},
        });
        if let Some(class) = &self.comune.storage_class {
            spec["storageClassName"] = json!(class);
        }
        let name = names::volume_claim(self.name(), volume);
        self.object(Kind::PersistentVolumeClaim, &name, json!({"spec": spec}))
    }

    fn cluster_service(&self) -> Desired {
        let ports: Vec<Value> = self
            .service
            .version
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "port": port.port, "targetPort": port.name, "protocol": "TCP"}))
            .collect();
        let spec = json!({"type": "ClusterIP", "selector": self.selector(), "ports": ports});
        self.object(Kind::Service, self.name(), json!({"spec": spec}))
    }

    fn ingress(&self) -> Desired {
        let ingress = &self.comune.ingress;
        let port = self.service.version.ports.first().map(|port| port.name.as_str()).unwrap_or_default();
        let backend = json!({"service": {"name": self.name(), "port": {"name": port}}});
        let mut spec = json!({
            "ingressClassName": ingress.class_name,
            "rules": [{
                "host": self.service.hostname,
                "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
            }],
        });
        let mut annotations = json!({});
        if let Some(issuer) = &ingress.cluster_issuer {
            annotations["cert-manager.io/cluster-issuer"] = json!(issuer);
            spec["tls"] =
                json!([{"hosts": [self.service.hostname], "secretName": format!("{}-tls", self.name())}]);
        }
        self.annotated(Kind::Ingress, self.name(), annotations, json!({"spec": spec}))
    }

    /// The ingress controller may reach the port that the Ingress leads to.
    fn network_policy(&self) -> Desired {
        let port = self.service.version.ports.first().map(|port| port.port).unwrap_or_default();
        let controller = json!({"kubernetes.io/metadata.name": self.comune.ingress.namespace});
        let spec = json!({
            "podSelector": {"matchLabels": self.selector()},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"namespaceSelector": {"matchLabels": controller}}],
                "ports": [{"protocol": "TCP", "port": port}],
            }],
        });
        self.object(Kind::NetworkPolicy, self.name(), json!({"spec": spec}))
    }

    fn disruption_budget(&self) -> Desired {
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": self.selector()}});
        self.object(Kind::PodDisruptionBudget, self.name(), json!({"spec": spec}))
    }

    fn autoscaler(&self) -> Option<Desired> {
        let autoscaling = self.service.version.autoscaling.as_ref().filter(|_| self.autoscaled())?;
        let target = json!({"type": "Utilization", "averageUtilization": autoscaling.cpu_percent});
        let spec = json!({
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name()},
            "minReplicas": autoscaling.min_replicas,
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        });
        Some(self.object(Kind::HorizontalPodAutoscaler, self.name(), json!({"spec": spec})))
    }

    fn deployment(&self) -> Desired {
        let mut pod_labels = self.labels();
        pod_labels[keys::COMUNE] = json!(self.comune.name);
        let mut pod_metadata = json!({"labels": pod_labels});
        if !self.service.version.files.is_empty() {
            pod_metadata["annotations"][FILES] = json!(hash(&json!(self.file_contents())));
        }
        let reads_binding = self.service.version.env.iter().any(|variable| variable.from_binding.is_some());
        // Pods read the Secret once, when they start. The first credential is not told: it is no reason to restart.
        if let Some(generation) =
            self.service.credential.filter(|generation| reads_binding && *generation > 1)
        {
            pod_metadata["annotations"][keys::CREDENTIAL] = json!(generation.to_string());
        }
        let mut spec = json!({
            "selector": {"matchLabels": self.selector()},
            "strategy": self.strategy(),
            "template": {"metadata": pod_metadata, "spec": self.pod()},
        });
        let mut annotations = json!({});
        if self.autoscaled() {
            annotations[keys::AUTOSCALED] = json!("true");
        } else {
            spec["replicas"] = json!(self.service.spec.replicas.unwrap_or(self.service.version.replicas));
        }
        self.annotated(Kind::Deployment, self.name(), annotations, json!({"spec": spec}))
    }

    /// A volume that one pod writes to cannot be handed over while the old pod holds it.
    fn strategy(&self) -> Value {
        let persistent =
            self.service.version.volumes.iter().any(|volume| volume.kind == VolumeKind::Persistent);
        if persistent {
            json!({"type": "Recreate"})
        } else {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
        }
    }

    fn pod(&self) -> Value {
        let version = &self.service.version;
        let mut security = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        if version.pod_security == conme_api::PodSecurity::Restricted {
            security["runAsNonRoot"] = json!(true);
        }
        if let Some(user) = version.run_as_user {
            security["runAsUser"] = json!(user);
            security["fsGroup"] = json!(user);
        }
        let volumes = self.volumes();
        let mut pod = json!({
            "serviceAccountName": self.name(),
            "automountServiceAccountToken": false,
            "securityContext": security,
            "containers": [self.container()],
        });
        if !volumes.is_empty() {
            pod["volumes"] = json!(volumes);
        }
        pod
    }

    fn container(&self) -> Value {
        let version = &self.service.version;
        let resources = &self.service.resources;
        let cpu = canonical(&resources.cpu, Notation::Decimal);
        let cpu_limit =
            resources.cpu_limit.as_ref().map_or_else(|| cpu.clone(), |q| canonical(q, Notation::Decimal));
        let memory = canonical(&resources.memory, Notation::Binary);
        let mut security = json!({"allowPrivilegeEscalation": false});
        if version.pod_security == conme_api::PodSecurity::Restricted {
            security["capabilities"] = json!({"drop": ["ALL"]});
        }
        let mut container = json!({
            "name": "main",
            "image": version.image,
            "imagePullPolicy": "IfNotPresent",
            "securityContext": security,
            "resources": {
                "requests": {"cpu": cpu, "memory": memory},
                "limits": {"cpu": cpu_limit, "memory": memory},
            },
        });
        if !version.args.is_empty() {
            container["args"] = version.args.iter().map(|arg| json!(literal(&self.fill(arg)))).collect();
        }
        if !version.env.is_empty() {
            container["env"] = json!(self.environment());
        }
        if let Some(port) = version.ports.first() {
            container["ports"] = version
                .ports
                .iter()
                .map(|port| json!({"name": port.name, "containerPort": port.port, "protocol": "TCP"}))
                .collect();
            let check = match version.probe.as_ref().and_then(|probe| probe.http_path.as_ref()) {
                Some(path) => json!({"httpGet": {"path": path, "port": port.name}}),
                None => json!({"tcpSocket": {"port": port.name}}),
            };
            let seconds = version.probe.as_ref().map_or(120, |probe| probe.startup_seconds);
            for (name, period, failures) in [
                ("startupProbe", 5, seconds.div_ceil(5)),
                ("readinessProbe", 10, 3),
                ("livenessProbe", 30, 4),
            ] {
                let mut probe = check.clone();
                probe["periodSeconds"] = json!(period);
                probe["failureThreshold"] = json!(failures);
                container[name] = probe;
            }
        }
        let mounts = self.mounts();
        if !mounts.is_empty() {
            container["volumeMounts"] = json!(mounts);
        }
        container
    }

    fn environment(&self) -> Vec<Value> {
        let binding = self.service.binding.as_deref().unwrap_or_default();
        self.service
            .version
            .env
            .iter()
            .map(|variable| match variable.from_binding {
                Some(key) => {
                    let reference = json!({"name": binding, "key": key.as_str()});
                    json!({"name": variable.name, "valueFrom": {"secretKeyRef": reference}})
                }
                None => {
                    let text = self.fill(variable.value.as_deref().unwrap_or_default());
                    json!({"name": variable.name, "value": literal(&text)})
                }
            })
            .collect()
    }

    fn volumes(&self) -> Vec<Value> {
        let version = &self.service.version;
        let mut volumes: Vec<Value> = version
            .volumes
            .iter()
            .map(|volume| match volume.kind {
                VolumeKind::Persistent => {
                    let claim = names::volume_claim(self.name(), &volume.name);
                    json!({"name": volume.name, "persistentVolumeClaim": {"claimName": claim}})
                }
                VolumeKind::Ephemeral => {
                    let size = canonical(&volume.size, Notation::Binary);
                    json!({"name": volume.name, "emptyDir": {"sizeLimit": size}})
                }
            })
            .collect();
        if !version.files.is_empty() {
            volumes.push(json!({"name": "conme-files", "configMap": {"name": self.name()}}));
        }
        volumes
    }

    fn mounts(&self) -> Vec<Value> {
        let version = &self.service.version;
        let directories =
            version.volumes.iter().map(|volume| json!({"name": volume.name, "mountPath": volume.path}));
        let files = version.files.iter().map(|file| {
            json!({
                "name": "conme-files",
                "mountPath": file.path,
                "subPath": file_key(&file.path),
                "readOnly": true,
            })
        });
        directories.chain(files).collect()
    }
}

/// The kubelet would expand $(…) a second time; it makes one dollar of two.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn file_key(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "__")
}

/// As the API server stores it. The schema has already refused what is no amount.
fn canonical(quantity: &Quantity, notation: Notation) -> String {
    Amount::try_from(quantity).map_or_else(|_| quantity.0.clone(), |amount| amount.text(notation))
}
