//! The checks of the benchmark, in its order.

use anyhow::{Context, Result};
use conme_blueprint::{Kind, amount::Amount};
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use crate::{
    Run,
    report::{Check, Ours, Tally},
    requests::{READ, Request, VERBS, list},
    world::{NOBODYS, OTHER, PRODUCTION, RBAC, Resource, TEST, World, bind, pod},
};

const WORDS_OF_PODS: &str = "violates PodSecurity";
const POD_CONTROL: &str = "the same pod without it is let through, and so is the pod with it, for the SAD, in a namespace of nobody";
const BASELINE: &str = "in an environment that the SAD has declared with `podSecurity: baseline` it is let through, as \
     baseline means; the request for it stands among those let through";

#[rustfmt::skip]
pub fn checks() -> Vec<(Check, Run)> {
    let check = |id, title, asks, control, answer| Check { id, title, asks, control, answer };
    vec![
        (check("MTB-PL1-CC-CPI-1", "Block access to cluster resources",
            "all eight verbs on every resource without a namespace that the API server serves, by its own list, and its metrics",
            "to the administrator of the cluster no right is missing for the same requests", Ours::Same), cluster_resources as Run),
        (check("MTB-PL1-BC-CPI-2", "Block multitenant resources",
            "the eight verbs on limits, network policies and bindings of Con.Me in every own namespace: to read them is granted, the five others are refused",
            "the same five by the administrator of the cluster, and the three reading ones by the tenant", Ours::Same), multitenant_resources),
        (check("MTB-PL1-BC-CPI-3", "Block add capabilities",
            "pods that add SYS_ADMIN, NET_ADMIN, SYS_PTRACE or NET_RAW, in a container and in one that runs before it", POD_CONTROL, Ours::Same), capabilities),
        (check("MTB-PL1-BC-CPI-4", "Require run as non-root user",
            "pods that do not say that they do not run as root, that say they do, or that take user 0", POD_CONTROL, Ours::But(BASELINE)), non_root),
        (check("MTB-PL1-BC-CPI-5", "Block privileged containers",
            "privileged containers, also before the others", POD_CONTROL, Ours::Same), privileged),
        (check("MTB-PL1-BC-CPI-6", "Block privilege escalation",
            "containers with `allowPrivilegeEscalation`, and those that leave it open", POD_CONTROL, Ours::But(BASELINE)), escalation),
        (check("MTB-PL1-CC-DI-1", "Require always imagePullPolicy",
            "pods with IfNotPresent, with Never and with none",
            "a pod with Always", Ours::OnPurpose("from Kubernetes 1.35 on the kubelet itself asks for the credentials of an image that is there already \
             (`KubeletEnsureSecretPulledImages`), which is what the check is for; and with Always no pod could start while a registry is away")), pull_policy),
        (check("MTB-PL1-CC-FNS-1", "Configure namespace resource quotas",
            "vCPU, memory and storage of every namespace are limited; a pod and a claim that are too large",
            "a pod and a claim that fit", Ours::Same), resource_quotas),
        (check("MTB-PL1-CC-FNS-2", "Configure namespace object limits",
            "pods, services, claims, load balancers, node ports, Secrets and ConfigMaps of every namespace are limited in number; a load balancer where none is granted",
            "a service without one", Ours::Same), object_limits),
        (check("MTB-PL1-BC-HI-1", "Block use of host path volumes",
            "pods with a path of the host, to read and to write; by a volume of one's own, too", POD_CONTROL, Ours::Same), host_path),
        (check("MTB-PL1-BC-HI-1", "Block use of NodePort services",
            "a Service of type NodePort or LoadBalancer, and one that becomes it",
            "a Service of type ClusterIP", Ours::Same), node_port),
        (check("MTB-PL1-BC-HI-3", "Block use of host networking and ports",
            "pods in the host's network, and containers on a port of it", POD_CONTROL, Ours::Same), host_network),
        (check("MTB-PL1-BC-HI-4", "Block use of host PID",
            "pods that see the host's processes", POD_CONTROL, Ours::Same), host_pid),
        (check("MTB-PL1-BC-HI-5", "Block use of host IPC",
            "pods that share the host's memory", POD_CONTROL, Ours::Same), host_ipc),
        (check("MTB-PL1-CC-TI-1", "Block modification of resource quotas",
            "the five writing verbs on the quota of every own namespace and on its figures",
            "to read them, and the same five by the administrator of the cluster", Ours::Same), quotas_unchanged),
        (check("MTB-PL1-CC-TI-2", "Block access to other tenant resources",
            "all eight verbs on every resource in a namespace of another municipality, by the API server's own list, and the ways into its pods",
            "to the administrator of the cluster no right is missing; and the other's own people read what is theirs", Ours::Same), other_tenants),
        (check("MTB-PL2-BC-OPS-3", "Create role bindings",
            "roles and bindings in one's own namespaces",
            "whoever the Comune names as a viewer is let in by Con.Me; the SAD may bind",
            Ours::OnPurpose("who has access to a municipality's data is an act of its own: it is declared in `spec.administrators` and `spec.viewers`, \
             where it is reviewed, and not handed on by those who have it")), role_bindings),
        (check("MTB-PL2-BC-OPS-4", "Create network policies",
            "network policies in one's own namespaces",
            "what the Comune declares in `spec.network` stands as a policy of Con.Me; the SAD may add",
            Ours::OnPurpose("policies only ever add to one another: one of a tenant could open what Con.Me keeps closed. \
             Connections are declared in `spec.network`")), network_policies),
        (check("MTB-PL2-CC-TI-1", "Block role privilege escalation",
            "roles with more rights than one has, `escalate` and `bind`, bindings to cluster-admin and to the roles of Con.Me, changes of these roles",
            "the administrator of the cluster may", Ours::Same), role_escalation),
    ]
}

#[rustfmt::skip]
pub fn drafts() -> Vec<(Check, Run)> {
    let check = |id, title, asks, control, answer| Check { id, title, asks, control, answer };
    vec![
        (check("MTB-draft-1", "Require PersistentVolumeClaim for storage",
            "pods and Deployments that mount NFS, iSCSI, inline CSI and other storage over the host's network, past all network policies, in both sorts of environments",
            "pods with every sort of volume that is a tenant's business; the SAD in a namespace of nobody", Ours::Same), claims_only as Run),
        (check("MTB-draft-2", "Require PV reclaim policy of delete",
            "the class of storage that claims get",
            "a claim with it is let through",
            Ours::OnPurpose("the volumes hold the data of a public body: they are *retained* when a claim is deleted by mistake, and deleted by a person of the SAD")), reclaim_policy),
        (check("MTB-draft-3", "Block use of existing PVs",
            "claims that name a volume or select one by its labels, also in the templates of a StatefulSet",
            "the same claims without it", Ours::Same), existing_volumes),
        (check("MTB-draft-4", "Block network access across tenant namespaces",
            "the stored policies of every own namespace: everything is closed for every pod in both directions, and no rule leads to or from pods of another municipality \
             (packets are worked out in `tests/isolation.rs`)",
            "the rules that are there lead to the pods of the own environment and to the names", Ours::Same), across_namespaces),
    ]
}

// ------------------------------------------------------------------------------------------------- access

fn cluster_resources<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let resources: Vec<&Resource> =
            world.resources.iter().filter(|resource| !resource.namespaced).collect();
        all_verbs(world, tally, &resources, "").await?;
        let metrics = [Request::get("/metrics")];
        for who in world.people() {
            tally.no_rights(who, &metrics).await?;
        }
        tally.passes(&world.sad, &metrics).await
    }
    .boxed()
}

/// All verbs on resources by both who administer the first municipality.
async fn all_verbs(world: &World, tally: &mut Tally, resources: &[&Resource], namespace: &str) -> Result<()> {
    for counted in [true, false] {
        let requests: Vec<Request> = resources
            .iter()
            .filter(|resource| resource.counted == counted)
            .flat_map(|resource| VERBS.map(|verb| resource.request(verb, namespace)))
            .collect();
        let mut some = Tally::default();
        for who in world.people() {
            some.no_rights(who, &requests).await?;
        }
        some.has_rights(&world.sad, &requests).await?;
        tally.wrong.append(&mut some.wrong);
        if counted {
            tally.refused += some.refused;
            tally.passed += some.passed;
        }
    }
    Ok(())
}

/// The eight verbs on an object that guards a namespace: the tenant may look.
async fn only_to_look_at(
    world: &World,
    tally: &mut Tally,
    namespace: &str,
    api_version: &str,
    plural: &str,
    name: &str,
) -> Result<()> {
    let list = list(namespace, api_version, plural);
    let mut live = world.live(&format!("{list}/{name}")).await?;
    live["metadata"].as_object_mut().context("metadata")?.remove("resourceVersion");
    let mut new = live.clone();
    new["metadata"] = json!({"name": "tenants-new"});
    let requests = |verbs: &[&str]| -> Vec<Request> {
        let body = |verb: &str| if verb == "create" { new.clone() } else { live.clone() };
        verbs.iter().map(|verb| Request::verb(verb, &list, name, body(verb))).collect()
    };
    let writing: Vec<&str> = VERBS.into_iter().filter(|verb| !READ.contains(verb)).collect();
    for who in world.people() {
        tally.passes(who, &requests(&READ)).await?;
        tally.no_rights(who, &requests(&writing)).await?;
    }
    tally.passes(&world.sad, &requests(&writing)).await
}

fn multitenant_resources<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        for namespace in [PRODUCTION, TEST] {
            for (api_version, plural, name) in [
                ("v1", "limitranges", "conme-limits"),
                ("networking.k8s.io/v1", "networkpolicies", "conme-default-deny"),
                ("networking.k8s.io/v1", "networkpolicies", "conme-environment"),
                (RBAC, "rolebindings", "conme-operator"),
                (RBAC, "rolebindings", "conme-administrators"),
                (RBAC, "rolebindings", "conme-viewers"),
            ] {
                only_to_look_at(world, tally, namespace, api_version, plural, name).await?;
            }
        }
        Ok(())
    }
    .boxed()
}

fn quotas_unchanged<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        for namespace in [PRODUCTION, TEST] {
            only_to_look_at(world, tally, namespace, "v1", "resourcequotas", "conme-quota").await?;
            let status = format!("{}/conme-quota/status", list(namespace, "v1", "resourcequotas"));
            let figures = [
                Request::merge(&status, json!({"status": {"used": {"pods": "0"}}})),
                Request::json_patch(
                    &status,
                    json!([{"op": "add", "path": "/status/hard/pods", "value": "500"}]),
                ),
            ];
            for who in world.people() {
                tally.no_rights(who, &figures).await?;
            }
            tally.passes(&world.sad, &figures).await?;
        }
        Ok(())
    }
    .boxed()
}

fn other_tenants<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let resources: Vec<&Resource> =
            world.resources.iter().filter(|resource| resource.namespaced).collect();
        all_verbs(world, tally, &resources, OTHER).await?;
        let pods = list(OTHER, "v1", "pods");
        let ways_in = [
            Request::get(&format!("{pods}/tenants-none/log")),
            Request::create(&format!("{pods}/tenants-none/exec?command=true&stdout=true"), Value::Null),
            Request::create(&format!("{pods}/tenants-none/attach?stdout=true"), Value::Null),
            Request::create(&format!("{pods}/tenants-none/portforward"), Value::Null),
            Request::create(
                &format!("{pods}/tenants-none/eviction"),
                json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "tenants-none"}}),
            ),
            Request::get(&format!("{}/tenants-none/proxy", list(OTHER, "v1", "services"))),
            Request::merge(
                &format!("{}/sito/scale", list(OTHER, "apps/v1", "deployments")),
                json!({"spec": {"replicas": 0}}),
            ),
            Request::create(
                &format!("{}/sito/token", list(OTHER, "v1", "serviceaccounts")),
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
            ),
            Request::get(&format!("{}/db-archivio", list(OTHER, "v1", "secrets"))),
        ];
        for who in world.people() {
            tally.no_rights(who, &ways_in).await?;
        }
        tally.has_rights(&world.sad, &ways_in).await?;
        let theirs: Vec<Request> = [
            ("v1", "pods"),
            ("v1", "secrets"),
            ("v1", "configmaps"),
            ("v1", "services"),
            ("v1", "persistentvolumeclaims"),
            ("v1", "serviceaccounts"),
            ("apps/v1", "deployments"),
            ("networking.k8s.io/v1", "ingresses"),
            ("v1", "resourcequotas"),
        ]
        .map(|(api_version, plural)| Request::get(&list(OTHER, api_version, plural)))
        .to_vec();
        tally.passes(&world.other, &theirs).await
    }
    .boxed()
}

fn role_bindings<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let friend = json!({"kind": "User", "name": "friend", "apiGroup": "rbac.authorization.k8s.io"});
        for namespace in [PRODUCTION, TEST] {
            let role = json!({
                "apiVersion": RBAC, "kind": "Role", "metadata": {"name": "own"},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
            });
            let requests = [
                Request::create(
                    &list(namespace, RBAC, "rolebindings"),
                    bind("own", "conme-tenant-viewer", friend.clone()),
                ),
                Request::create(&list(namespace, RBAC, "roles"), role),
            ];
            for who in world.people() {
                tally.no_rights(who, &requests).await?;
            }
            tally.passes(&world.sad, &requests).await?;
            tally.passes(&world.viewer, &[Request::get(&list(namespace, "v1", "pods"))]).await?;
        }
        Ok(())
    }
    .boxed()
}

fn network_policies<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let open = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "own"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]},
        });
        for namespace in [PRODUCTION, TEST] {
            let requests = [Request::create(&list(namespace, "networking.k8s.io/v1", "networkpolicies"), open.clone())];
            for who in world.people() {
                tally.no_rights(who, &requests).await?;
            }
            tally.passes(&world.sad, &requests).await?;
        }
        let uri = format!("{}/conme-declared", list(PRODUCTION, "networking.k8s.io/v1", "networkpolicies"));
        let declared = world.live(&uri).await?;
        tally.holds(
            "what spec.network declares stands as a policy",
            declared["spec"]["egress"][0]["to"][0]["ipBlock"]["cidr"] == "198.51.100.0/28",
        );
        Ok(())
    }
    .boxed()
}

fn role_escalation<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let myself = json!({"kind": "ServiceAccount", "name": "pipeline", "namespace": TEST});
        let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
        let role =
            |kind: &str| json!({"apiVersion": RBAC, "kind": kind, "metadata": {"name": "own"}, "rules": all});
        let mut everywhere = bind("own", "cluster-admin", myself.clone());
        everywhere["kind"] = json!("ClusterRoleBinding");
        let mut requests = vec![
            Request::create(&list("", RBAC, "clusterroles"), role("ClusterRole")),
            Request::create(&list("", RBAC, "clusterrolebindings"), everywhere),
            Request::merge(
                &format!("{}/conme-tenant-admin", list("", RBAC, "clusterroles")),
                json!({"rules": all}),
            ),
            Request::merge(
                &format!("{}/conme-administrators", list(TEST, RBAC, "rolebindings")),
                json!({"subjects": [myself]}),
            ),
        ];
        for namespace in [PRODUCTION, TEST, OTHER, "kube-system", "conme-system"] {
            requests.push(Request::create(&list(namespace, RBAC, "roles"), role("Role")));
            for role in ["cluster-admin", "admin", "edit", "conme-operator-tenant", "conme-tenant-admin"] {
                requests.push(Request::create(
                    &list(namespace, RBAC, "rolebindings"),
                    bind("own", role, myself.clone()),
                ));
            }
        }
        for who in world.people() {
            tally.no_rights(who, &requests).await?;
        }
        tally.passes(&world.sad, &requests).await?;
        for verb in ["escalate", "bind"] {
            for resource in ["roles", "clusterroles"] {
                for who in world.people() {
                    let may = may(&who.1, TEST, verb, "rbac.authorization.k8s.io", resource).await?;
                    if may {
                        tally.wrong.push(format!("{} may {verb} {resource}", who.0));
                    } else {
                        tally.refused += 1;
                    }
                }
                tally.holds(
                    "the administrator of the cluster may escalate",
                    may(&world.sad.1, TEST, verb, "rbac.authorization.k8s.io", resource).await?,
                );
            }
        }
        Ok(())
    }
    .boxed()
}

/// Whether somebody may do something, by the API server's own word.
pub async fn may(
    client: &kube::Client,
    namespace: &str,
    verb: &str,
    group: &str,
    resource: &str,
) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
        }},
    });
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = Request::really_create(uri, review).send(client).await?;
    anyhow::ensure!(answer.passes(), "{} {}", answer.code, answer.message);
    Ok(answer.body["status"]["allowed"] == true)
}

// ------------------------------------------------------------------------------------------------- pods

type Change = fn(&mut Value);

/// Pods with each change are refused where pods are restricted, and in a baseline environment unless `baseline_lets`;
/// as they are without it, they are let through, and with it for the SAD where no level holds.
async fn pods(world: &World, tally: &mut Tally, changes: &[Change], baseline_lets: &[bool]) -> Result<()> {
    let changed: Vec<Value> = changes
        .iter()
        .map(|change| {
            let mut pod = pod("tenants-pod", "10m");
            change(&mut pod);
            pod
        })
        .collect();
    let of = |namespace: &str, pods: &[&Value]| -> Vec<Request> {
        pods.iter().map(|pod| Request::create(&list(namespace, "v1", "pods"), (*pod).clone())).collect()
    };
    let lets = |index: usize| baseline_lets.get(index).copied().unwrap_or(false);
    let everything: Vec<&Value> = changed.iter().collect();
    let (let_in, kept_out): (Vec<_>, Vec<_>) =
        changed.iter().enumerate().partition(|(index, _)| lets(*index));
    let let_in: Vec<&Value> = let_in.into_iter().map(|(_, pod)| pod).collect();
    let kept_out: Vec<&Value> = kept_out.into_iter().map(|(_, pod)| pod).collect();
    let good = pod("tenants-pod", "10m");
    for who in world.people() {
        tally.refused(who, &of(PRODUCTION, &everything), WORDS_OF_PODS).await?;
        tally.refused(who, &of(TEST, &kept_out), WORDS_OF_PODS).await?;
        tally.passes(who, &of(TEST, &let_in)).await?;
        tally.passes(who, &of(PRODUCTION, &[&good])).await?;
        tally.passes(who, &of(TEST, &[&good])).await?;
    }
    tally.passes(&world.sad, &of(NOBODYS, &everything)).await
}

/// The container, and the same container as one that runs before it.
fn container(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["containers"][0]
}

fn before(pod: &mut Value) -> &mut Value {
    let mut container = pod["spec"]["containers"][0].clone();
    container["name"] = json!("before");
    pod["spec"]["initContainers"] = json!([container]);
    &mut pod["spec"]["initContainers"][0]
}

fn capabilities<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        pods(
            world,
            tally,
            &[
                |pod| container(pod)["securityContext"]["capabilities"]["add"] = json!(["SYS_ADMIN"]),
                |pod| container(pod)["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"]),
                |pod| container(pod)["securityContext"]["capabilities"]["add"] = json!(["SYS_PTRACE"]),
                |pod| container(pod)["securityContext"]["capabilities"]["add"] = json!(["NET_RAW"]),
                |pod| before(pod)["securityContext"]["capabilities"]["add"] = json!(["SYS_ADMIN"]),
                |pod| before(pod)["securityContext"]["capabilities"]["add"] = json!(["NET_RAW"]),
            ],
            &[],
        )
        .await
    }
    .boxed()
}

fn non_root<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let open: Change = |pod| {
            pod["spec"]["securityContext"].as_object_mut().unwrap().remove("runAsNonRoot");
        };
        pods(
            world,
            tally,
            &[
                open,
                |pod| pod["spec"]["securityContext"]["runAsNonRoot"] = json!(false),
                |pod| pod["spec"]["securityContext"]["runAsUser"] = json!(0),
                |pod| container(pod)["securityContext"]["runAsNonRoot"] = json!(false),
                |pod| before(pod)["securityContext"]["runAsUser"] = json!(0),
            ],
            &[true; 5],
        )
        .await
    }
    .boxed()
}

fn privileged<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        pods(
            world,
            tally,
            &[
                |pod| container(pod)["securityContext"] = json!({"privileged": true}),
                |pod| before(pod)["securityContext"] = json!({"privileged": true}),
            ],
            &[],
        )
        .await
    }
    .boxed()
}

fn escalation<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let open: Change = |pod| {
            container(pod)["securityContext"].as_object_mut().unwrap().remove("allowPrivilegeEscalation");
        };
        pods(
            world,
            tally,
            &[
                |pod| container(pod)["securityContext"]["allowPrivilegeEscalation"] = json!(true),
                open,
                |pod| before(pod)["securityContext"]["allowPrivilegeEscalation"] = json!(true),
            ],
            &[true; 3],
        )
        .await
    }
    .boxed()
}

fn host_path<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        pods(
            world,
            tally,
            &[
                |pod| pod["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": "/"}}]),
                |pod| {
                    pod["spec"]["volumes"] =
                        json!([{"name": "host", "hostPath": {"path": "/var/run/docker.sock", "type": "Socket"}}]);
                    container(pod)["volumeMounts"] =
                        json!([{"name": "host", "mountPath": "/host", "readOnly": true}]);
                },
            ],
            &[],
        )
        .await?;
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "tenants-host"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/"}},
        });
        let volume = [Request::create(&list("", "v1", "persistentvolumes"), volume)];
        for who in world.people() {
            tally.no_rights(who, &volume).await?;
        }
        tally.passes(&world.sad, &volume).await
    }
    .boxed()
}

fn host_network<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        pods(
            world,
            tally,
            &[
                |pod| pod["spec"]["hostNetwork"] = json!(true),
                |pod| container(pod)["ports"] = json!([{"containerPort": 80, "hostPort": 80}]),
                |pod| before(pod)["ports"] = json!([{"containerPort": 80, "hostPort": 80}]),
            ],
            &[],
        )
        .await
    }
    .boxed()
}

fn host_pid<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move { pods(world, tally, &[|pod| pod["spec"]["hostPID"] = json!(true)], &[]).await }.boxed()
}

fn host_ipc<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move { pods(world, tally, &[|pod| pod["spec"]["hostIPC"] = json!(true)], &[]).await }.boxed()
}

fn pull_policy<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let requests: Vec<Request> = [json!("Always"), json!("IfNotPresent"), json!("Never"), Value::Null]
            .into_iter()
            .map(|policy| {
                let mut pod = pod("tenants-pod", "10m");
                container(&mut pod)["imagePullPolicy"] = policy;
                Request::create(&list(PRODUCTION, "v1", "pods"), pod)
            })
            .collect();
        for who in world.people() {
            tally.passes(who, &requests).await?;
        }
        Ok(())
    }
    .boxed()
}

// ------------------------------------------------------------------------------------------------- quotas, services

/// The limits of a namespace by name.
async fn limits(world: &World, namespace: &str) -> Result<Value> {
    let quota = world.live(&format!("{}/conme-quota", list(namespace, "v1", "resourcequotas"))).await?;
    Ok(quota["status"]["hard"].clone())
}

fn claim(storage: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "tenants-claim"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}},
    })
}

fn resource_quotas<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        for namespace in [PRODUCTION, TEST] {
            let hard = limits(world, namespace).await?;
            for resource in
                ["requests.cpu", "limits.cpu", "requests.memory", "limits.memory", "requests.storage"]
            {
                let amount = hard[resource].as_str().and_then(|text| Amount::parse(text).ok());
                tally.holds(
                    &format!("{resource} of {namespace} is limited"),
                    amount.is_some_and(|amount| amount > Amount::ZERO),
                );
            }
            let pods = list(namespace, "v1", "pods");
            let claims = list(namespace, "v1", "persistentvolumeclaims");
            let large = [Request::create(&pods, pod("large", "64")), Request::create(&claims, claim("10Ti"))];
            let small = [Request::create(&pods, pod("small", "10m")), Request::create(&claims, claim("1Gi"))];
            for who in world.people() {
                tally.refused(who, &large, "exceeded quota: conme-quota").await?;
                tally.passes(who, &small).await?;
            }
        }
        Ok(())
    }
    .boxed()
}

fn service(type_: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "tenants-service"},
        "spec": {"type": type_, "ports": [{"port": 80}], "selector": {"app": "own"}},
    })
}

fn object_limits<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        for namespace in [PRODUCTION, TEST] {
            let hard = limits(world, namespace).await?;
            for resource in [
                "pods",
                "services",
                "services.loadbalancers",
                "services.nodeports",
                "persistentvolumeclaims",
                "secrets",
                "configmaps",
            ] {
                let limited = hard.get(resource).or_else(|| hard.get(format!("count/{resource}")));
                tally.holds(
                    &format!("the number of {resource} in {namespace} is limited ({hard})"),
                    limited.is_some_and(Value::is_string),
                );
            }
            let services = list(namespace, "v1", "services");
            for who in world.people() {
                tally
                    .refused(who, &[Request::create(&services, service("LoadBalancer"))], "exceeded quota")
                    .await?;
                tally.passes(who, &[Request::create(&services, service("ClusterIP"))]).await?;
            }
        }
        Ok(())
    }
    .boxed()
}

fn node_port<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let mut own = service("ClusterIP");
        own["metadata"]["name"] = json!("ten-service");
        for namespace in [PRODUCTION, TEST] {
            let services = list(namespace, "v1", "services");
            let made = Request::really_create(&services, own.clone()).send(&world.administrator.1).await?;
            tally.holds("a Service of type ClusterIP is made", made.passes());
            let mut fixed = service("NodePort");
            fixed["spec"]["ports"] = json!([{"port": 80, "nodePort": 30_123}]);
            let changed = format!("{services}/ten-service");
            let requests = [
                Request::create(&services, service("NodePort")),
                Request::create(&services, fixed),
                Request::create(&services, service("LoadBalancer")),
                Request::merge(&changed, json!({"spec": {"type": "NodePort"}})),
                Request::json_patch(
                    &changed,
                    json!([{"op": "replace", "path": "/spec/type", "value": "NodePort"}]),
                ),
                Request::apply(
                    &changed,
                    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ten-service"},
                        "spec": {"type": "NodePort"}}),
                ),
            ];
            for who in world.people() {
                tally.refused(who, &requests, "exceeded quota").await?;
            }
            tally
                .passes(&world.sad, &[Request::create(&list(NOBODYS, "v1", "services"), service("NodePort"))])
                .await?;
        }
        Ok(())
    }
    .boxed()
}

// ------------------------------------------------------------------------------------------------- storage, network

fn stateful_set(claim_spec: Value) -> Value {
    let template = json!({"metadata": {"labels": {"app": "many"}}, "spec": pod("", "10m")["spec"]});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "tenants-set"},
        "spec": {
            "replicas": 0, "serviceName": "own", "selector": {"matchLabels": {"app": "many"}},
            "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim_spec}],
        },
    })
}

fn deployment(pod_spec: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "tenants-deployment"},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": pod_spec},
        },
    })
}

fn claims_only<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let with = |volume: &Value| {
            let mut pod = pod("tenants-pod", "10m");
            let mut named = volume.clone();
            named["name"] = json!("more");
            pod["spec"]["volumes"] = json!([named]);
            pod
        };
        let requests = |namespace: &str, volumes: &[Value]| -> Vec<Request> {
            volumes
                .iter()
                .flat_map(|volume| {
                    let pod = with(volume);
                    let deployments = list(namespace, "apps/v1", "deployments");
                    let deployment = deployment(&pod["spec"]);
                    [Request::create(&list(namespace, "v1", "pods"), pod), Request::create(&deployments, deployment)]
                })
                .collect()
        };
        let foreign = [
            json!({"nfs": {"server": "198.51.100.200", "path": "/"}}),
            json!({"iscsi": {"targetPortal": "198.51.100.200:3260", "iqn": "iqn.2001-04.com.example:a", "lun": 0}}),
            json!({"cephfs": {"monitors": ["198.51.100.200:6789"]}}),
            json!({"fc": {"targetWWNs": ["500a0982991b8dc5"], "lun": 2}}),
            json!({"flexVolume": {"driver": "example.org/any"}}),
            json!({"csi": {"driver": "nfs.csi.k8s.io", "volumeAttributes": {"server": "198.51.100.200", "share": "/"}}}),
        ];
        let own = [
            json!({"configMap": {"name": "own"}}),
            json!({"secret": {"secretName": "own"}}),
            json!({"emptyDir": {}}),
            json!({"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}),
            json!({"projected": {"sources": [{"configMap": {"name": "own"}}]}}),
            json!({"persistentVolumeClaim": {"claimName": "own"}}),
            json!({"ephemeral": {"volumeClaimTemplate": {"spec": claim("1Gi")["spec"]}}}),
        ];
        for who in world.people() {
            for namespace in [PRODUCTION, TEST] {
                tally.refused(who, &requests(namespace, &foreign), "").await?;
                tally.passes(who, &requests(namespace, &own)).await?;
            }
        }
        tally.passes(&world.sad, &requests(NOBODYS, &foreign)).await
    }
    .boxed()
}

fn reclaim_policy<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let classes = world.live(&list("", "storage.k8s.io/v1", "storageclasses")).await?;
        let retain = classes["items"]
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|class| class["reclaimPolicy"] == "Retain"));
        tally.holds("every class of storage retains what a claim has held", retain);
        for who in world.people() {
            let claims = list(PRODUCTION, "v1", "persistentvolumeclaims");
            tally.passes(who, &[Request::create(&claims, claim("1Gi"))]).await?;
        }
        Ok(())
    }
    .boxed()
}

fn existing_volumes<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        let choices = [
            ("volumeName", json!("simulated-000")),
            ("selector", json!({"matchLabels": {"any": "label"}})),
            ("selector", json!({"matchExpressions": [{"key": "any", "operator": "DoesNotExist"}]})),
        ];
        for namespace in [PRODUCTION, TEST] {
            let claims = list(namespace, "v1", "persistentvolumeclaims");
            let sets = list(namespace, "apps/v1", "statefulsets");
            let chosen: Vec<Request> = choices
                .iter()
                .flat_map(|(key, choice)| {
                    let mut claim = claim("1Gi");
                    claim["spec"][*key] = choice.clone();
                    let set = stateful_set(claim["spec"].clone());
                    [Request::create(&claims, claim), Request::create(&sets, set)]
                })
                .collect();
            let plain = [
                Request::create(&claims, claim("1Gi")),
                Request::create(&sets, stateful_set(claim("1Gi")["spec"].clone())),
            ];
            for who in world.people() {
                tally.by_policy(who, &chosen, "conme-").await?;
                tally.passes(who, &plain).await?;
            }
        }
        Ok(())
    }
    .boxed()
}

fn across_namespaces<'a>(world: &'a World, tally: &'a mut Tally) -> BoxFuture<'a, Result<()>> {
    async move {
        for namespace in [PRODUCTION, TEST] {
            let policies = world.live(&list(namespace, "networking.k8s.io/v1", "networkpolicies")).await?;
            let policies = policies["items"].as_array().cloned().unwrap_or_default();
            let closed = policies.iter().any(|policy| {
                let spec = &policy["spec"];
                spec["podSelector"] == json!({}) && spec["policyTypes"] == json!(["Ingress", "Egress"])
            });
            tally.holds(&format!("everything in {namespace} is closed that is not opened"), closed);
            let other = world.data_centre().api(Kind::Namespace, "").get(OTHER).await?;
            let theirs = other.metadata.labels.unwrap_or_default();
            for policy in &policies {
                for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
                    for rule in policy["spec"][rules].as_array().into_iter().flatten() {
                        let to = rule[peers].as_array().cloned().unwrap_or_default();
                        // A rule without peers means everybody.
                        tally.holds(
                            &format!("{} of {namespace} names its {rules}", policy["metadata"]["name"]),
                            !to.is_empty(),
                        );
                        for peer in &to {
                            let selector = &peer["namespaceSelector"];
                            let selects = selector.is_object()
                                && selector["matchExpressions"].is_null()
                                && selector["matchLabels"].as_object().is_none_or(|labels| {
                                    labels.iter().all(|(key, value)| {
                                        theirs.get(key).map(String::as_str) == value.as_str()
                                    })
                                });
                            tally.holds(
                                &format!(
                                    "{} of {namespace} does not lead to {OTHER}: {peer}",
                                    policy["metadata"]["name"]
                                ),
                                !selects && (selector.is_null() || selector["matchExpressions"].is_null()),
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }
    .boxed()
}
