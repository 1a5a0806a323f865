//! The demonstration: the 22 members on a running data centre.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{
    Instance, Progress,
    install::{Installation, apply_files, install, run},
};

/// What the demonstration has made.
pub struct Demonstration {
    /// The table of the Comuni, as `kubectl get comuni` prints it.
    pub table: String,
    /// Commands to try next.
    pub next: String,
}

/// Installs Con.Me on an instance, applies the members and waits until every one of them is Ready.
///
/// # Errors
/// When a step fails, or a member does not get Ready in time: then its conditions are in the error.
pub async fn demonstrate(
    instance: &Instance,
    what: &Installation,
    progress: &Progress,
) -> Result<Demonstration> {
    install(instance, what, progress).await?;
    let begin = Instant::now();
    let step = progress.step("the members: namespaces, quotas, isolation, databases, services");
    let applied = apply_files(instance, &what.checkout.join("examples/comuni")).await?;
    let count = applied.lines().count();
    wait_for(instance, "Ready", "180s").await?;
    step.done(&format!("{count} are Ready after {:.1} s", begin.elapsed().as_secs_f64()));
    let step = progress.step("their pods on the simulated hosts");
    wait_for(instance, "Available", "120s").await?;
    step.done("all Available");
    let table = run(instance, "kubectl", &["get", "comuni"], None).await?;
    Ok(Demonstration { table, next: next(instance)? })
}

async fn wait_for(instance: &Instance, condition: &str, timeout: &str) -> Result<()> {
    let wanted = format!("--for=condition={condition}");
    let args = ["wait", &wanted, "comuni", "--all", "--timeout", timeout];
    match run(instance, "kubectl", &args, None).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let table = run(instance, "kubectl", &["get", "comuni"], None).await.unwrap_or_default();
            let messages = "jsonpath={range .items[*]}{.metadata.name}{\": \"}{.status.conditions[?(@.type==\"Ready\")].message}{\"\\n\"}{end}";
            let messages = run(instance, "kubectl", &["get", "comuni", "--output", messages], None)
                .await
                .unwrap_or_default();
            Err(error).with_context(|| format!("not every Comune is {condition}:\n{table}\n{messages}"))
        }
    }
}

fn next(instance: &Instance) -> Result<String> {
    let kubeconfig = instance.kubeconfig()?;
    let ca = instance.databases()?.into_iter().next().map(|server| server.ca_file).unwrap_or_default();
    // The plugin of kubectl is built beside this program.
    let here = std::env::current_exe().context("cannot tell where this program is")?;
    let plugin = here.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
    Ok(format!(
        "Try next:\n\
         \x20 export KUBECONFIG={} PATH={}:{}:$PATH PGSSLROOTCERT={}\n\
         \x20 kubectl get comuni\n\
         \x20 kubectl comune status dolo\n\
         \x20 kubectl explain comune.spec.databases\n\
         \x20 kubectl get all,networkpolicy,resourcequota -n dolo-produzione\n\
         \x20 kubectl comune psql dolo protocollo\n\
         \x20 kubectl comune validate examples && kubectl comune diff examples/full.yaml\n\
         \x20 kubectl apply -f examples/full.yaml && kubectl comune wait --all --for ready\n\
         Stop it with: make demo-down",
        kubeconfig.display(),
        instance.bin_dir().display(),
        plugin.display(),
        ca.display(),
    ))
}
