//! Con.Me on an instance: the chart, the credentials of the database servers, the operator as a host process with the
//! token of its own ServiceAccount, the data centre and the catalogue.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{CommandSpec, DatabaseEndpoint, Instance, Progress, ports};

/// Namespace that the chart is installed into.
pub const NAMESPACE: &str = "conme-system";
/// Name of the operator among the programs of an instance.
pub const OPERATOR: &str = "conme-operator";
/// Volumes made beforehand: no provisioner runs on simulated hosts.
const VOLUMES: usize = 150;
const VOLUME_SIZE: &str = "500Gi";
const START: Duration = Duration::from_secs(60);

/// What is installed, and from where.
#[derive(Debug, Clone)]
pub struct Installation {
    /// Top of the checkout: chart and examples are there.
    pub checkout: PathBuf,
    /// The operator's program.
    pub operator: PathBuf,
    /// Further arguments of `conme-operator run`.
    pub operator_args: Vec<String>,
}

impl Installation {
    /// From a checkout, with the operator that stands beside this program (or one level up, as for tests).
    ///
    /// # Errors
    /// When there is no chart below `checkout`, or the operator has not been built.
    pub fn from_checkout(checkout: impl Into<PathBuf>) -> Result<Self> {
        let checkout = std::path::absolute(checkout.into())?;
        ensure!(
            checkout.join("charts/conme/Chart.yaml").exists(),
            "{} is not the top of a Con.Me checkout; name it with --checkout",
            checkout.display()
        );
        let here = std::env::current_exe().context("cannot tell where this program is")?;
        let operator = here
            .ancestors()
            .skip(1)
            .take(2)
            .map(|directory| directory.join(OPERATOR))
            .find(|program| program.exists())
            .with_context(|| format!("{OPERATOR} is not built: cargo build -p conme-operator"))?;
        Ok(Self { checkout, operator, operator_args: Vec::new() })
    }
}

/// The operator's address of health, readiness and metrics, as recorded by [`install`].
///
/// # Errors
/// When the operator has not been installed on this instance.
pub fn operator_url(instance: &Instance) -> Result<String> {
    let port = std::fs::read_to_string(instance.dir().join("operator.port"))
        .with_context(|| format!("no operator is installed on \"{}\"", instance.name()))?;
    Ok(format!("http://127.0.0.1:{}", port.trim()))
}

/// Installs Con.Me, or brings an installation up to date. Can be repeated; the operator is started again.
///
/// # Errors
/// When a step fails; its own words are in the error.
pub async fn install(instance: &Instance, what: &Installation, progress: &Progress) -> Result<()> {
    let step = progress.step("chart: definitions, roles, ServiceAccount (helm)");
    let chart = what.checkout.join("charts/conme");
    run(
        instance,
        "helm",
        &[
            "upgrade",
            "--install",
            "conme",
            &text(&chart),
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--set",
            "operator.replicas=0",
        ],
        None,
    )
    .await?;
    // The first request makes the API server read in a new kind; until then it refuses to have it watched.
    run(instance, "kubectl", &["get", "comuni,datacenters,servicetemplates,migrations"], None).await?;
    wait_for_policies(instance).await?;
    step.done("");

    let databases = instance.databases()?;
    let step = progress.step("credentials of the database servers, storage class and volumes");
    let secrets = databases.iter().map(admin_secret).collect::<Result<Vec<_>>>()?;
    apply(instance, &json!({"apiVersion": "v1", "kind": "List", "items": secrets})).await?;
    apply(instance, &json!({"apiVersion": "v1", "kind": "List", "items": volumes()})).await?;
    step.done(&format!("{} servers, {VOLUMES} volumes", databases.len()));

    start_operator(instance, what, progress).await?;

    let step = progress.step("data centre and service catalogue");
    let data_center = std::fs::read_to_string(what.checkout.join("examples/datacenter.yaml"))?;
    let mut data_center: Value = serde_saphyr::from_str(&data_center).context("examples/datacenter.yaml")?;
    fill_in_servers(&mut data_center, &databases)?;
    apply(instance, &data_center).await?;
    let catalogue = what.checkout.join("examples/catalogue");
    apply_files(instance, &catalogue).await?;
    step.done("");
    Ok(())
}

/// The API server takes a second to act on new admission policies. What they refuse to everybody shows that it does: a
/// namespace of a municipality with an owner; as a dry run, it is made in no case.
async fn wait_for_policies(instance: &Instance) -> Result<()> {
    let owned = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": "conme-policies-in-force",
            "labels": {"conme.venis.it/comune": "none"},
            "ownerReferences": [{
                "apiVersion": "conme.venis.it/v1alpha1",
                "kind": "Comune",
                "name": "none",
                "uid": "00000000-0000-4000-8000-000000000000",
            }],
        },
    })
    .to_string();
    let begin = Instant::now();
    loop {
        let args = ["create", "--dry-run=server", "--filename", "-"];
        match run(instance, "kubectl", &args, Some(&owned)).await {
            Err(error) if error.to_string().contains("conme-namespace-marks") => return Ok(()),
            Err(error) => {
                return Err(error).context("cannot tell whether the admission policies are in force");
            }
            Ok(_) if begin.elapsed() > START => {
                bail!("the API server does not act on the admission policies; is policies.enabled true?")
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Starts the operator with a fresh token of its own ServiceAccount, and waits until it is ready.
///
/// # Errors
/// When it does not get ready; the end of its log is in the error.
pub async fn start_operator(instance: &Instance, what: &Installation, progress: &Progress) -> Result<()> {
    let step = progress.step("operator, with the rights of its own ServiceAccount");
    instance
        .stop_program(OPERATOR)
        .await
        .or_else(|error| if instance.is_alive(OPERATOR).unwrap_or(false) { Err(error) } else { Ok(()) })?;
    let kubeconfig = operator_kubeconfig(instance).await?;
    let before = std::fs::read_to_string(instance.dir().join("operator.port")).ok();
    let port = ports::keep_or_pick(before.and_then(|port| port.trim().parse().ok()))?;
    std::fs::write(instance.dir().join("operator.port"), port.to_string())?;
    let mut args: Vec<String> = ["run", "--namespace", NAMESPACE, "--listen"].map(str::to_owned).to_vec();
    args.push(format!("127.0.0.1:{port}"));
    args.extend(what.operator_args.iter().cloned());
    let spec = CommandSpec::new(&what.operator, instance.dir())
        .args(args)
        .env("KUBECONFIG", text(&kubeconfig))
        .env("NO_COLOR", "1");
    instance.start(OPERATOR, spec).await?;
    wait_until_ready(instance, port).await?;
    step.done(&format!("ready on port {port}"));
    Ok(())
}

async fn wait_until_ready(instance: &Instance, port: u16) -> Result<()> {
    let begin = Instant::now();
    loop {
        if http_status(port, "/readyz").await == Some(200) {
            return Ok(());
        }
        let alive = instance.is_alive(OPERATOR)?;
        if !alive || begin.elapsed() > START {
            let log = std::fs::read_to_string(instance.log(OPERATOR)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(15).collect();
            let tail: Vec<&str> = lines.into_iter().rev().collect();
            let what = if alive { "did not get ready in time" } else { "has ended" };
            bail!("the operator {what}; the end of its log:\n{}", tail.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Status code of a plain HTTP request to a port of this machine.
async fn http_status(port: u16, path: &str) -> Option<u16> {
    use tokio::io::AsyncReadExt;
    let work = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        String::from_utf8_lossy(&answer).split_whitespace().nth(1)?.parse().ok()
    };
    tokio::time::timeout(Duration::from_secs(2), work).await.ok().flatten()
}

/// A kubeconfig with a token of the operator's ServiceAccount and nothing else.
async fn operator_kubeconfig(instance: &Instance) -> Result<PathBuf> {
    let token = run(
        instance,
        "kubectl",
        &["create", "token", "conme-operator", "--namespace", NAMESPACE, "--duration", "8760h"],
        None,
    )
    .await?;
    let admin = std::fs::read_to_string(instance.kubeconfig()?)?;
    let mut config: Value = serde_saphyr::from_str(&admin).context("the kubeconfig of the instance")?;
    let context = config["current-context"].as_str().unwrap_or_default().to_owned();
    let contexts = config["contexts"].as_array().cloned().unwrap_or_default();
    let current =
        contexts.iter().find(|entry| entry["name"] == context.as_str()).cloned().unwrap_or_default();
    let cluster = current["context"]["cluster"].clone();
    config["contexts"] = json!([{"name": "operator", "context": {"cluster": cluster, "user": "operator"}}]);
    config["current-context"] = json!("operator");
    config["users"] = json!([{"name": "operator", "user": {"token": token.trim()}}]);
    let path = instance.dir().join("operator.kubeconfig");
    write_private(&path, &serde_json::to_string_pretty(&config)?)?;
    Ok(path)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

fn admin_secret(server: &DatabaseEndpoint) -> Result<Value> {
    let password = std::fs::read_to_string(&server.admin_password_file)?;
    let ca = std::fs::read_to_string(&server.ca_file)?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("{}-admin", server.name), "namespace": NAMESPACE},
        "stringData": {"username": server.admin_user, "password": password.trim(), "ca.crt": ca},
    }))
}

/// The example names servers of the data centre; here they are on this machine, on ports of their own. One that this
/// instance does not have is left out.
fn fill_in_servers(data_center: &mut Value, databases: &[DatabaseEndpoint]) -> Result<()> {
    let servers = data_center["spec"]["databaseServers"].as_array_mut().context("no databaseServers")?;
    let endpoint =
        |server: &Value| databases.iter().find(|endpoint| server["name"] == endpoint.name.as_str());
    servers.retain(|server| endpoint(server).is_some());
    for server in servers {
        let Some(endpoint) = endpoint(server) else { continue };
        server["host"] = json!(endpoint.host);
        server["port"] = json!(endpoint.port);
        server["cidrs"] = json!([format!("{}/32", endpoint.host)]);
    }
    Ok(())
}

fn volumes() -> Vec<Value> {
    let class = "venis-standard";
    let mut objects = vec![json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": class},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Retain",
    })];
    objects.extend((0..VOLUMES).map(|number| {
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": format!("simulated-{number:03}")},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": VOLUME_SIZE},
                "storageClassName": class,
                "persistentVolumeReclaimPolicy": "Retain",
                // Nothing is ever mounted on a simulated host.
                "hostPath": {"path": format!("/var/empty/conme-{number:03}")},
            },
        })
    }));
    objects
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Applies one object or list, as the SAD.
///
/// # Errors
/// What kubectl says.
pub async fn apply(instance: &Instance, object: &Value) -> Result<String> {
    let args = ["apply", "--server-side", "--force-conflicts", "--field-manager", "sad", "--filename", "-"];
    run(instance, "kubectl", &args, Some(&object.to_string())).await
}

/// Applies a file or all files of a directory, as the SAD.
///
/// # Errors
/// What kubectl says.
pub async fn apply_files(instance: &Instance, path: &Path) -> Result<String> {
    let path = text(path);
    let args = ["apply", "--server-side", "--force-conflicts", "--field-manager", "sad", "--filename", &path];
    run(instance, "kubectl", &args, None).await
}

/// Runs a program of the instance (`kubectl`, `helm`) as its administrator and returns its output.
///
/// # Errors
/// When it fails; what it wrote to the standard error is in the error.
pub async fn run(instance: &Instance, program: &str, args: &[&str], input: Option<&str>) -> Result<String> {
    let mut child = Command::new(instance.bin(program))
        .args(args)
        .env("KUBECONFIG", instance.kubeconfig()?)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.first().unwrap_or(&""), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
