//! The command line of `conme-operator`: the operator and what is generated from its code.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jiff::SignedDuration;
use tracing_subscriber::EnvFilter;

use crate::{RunOptions, crds_yaml, memory, resources_markdown, roles_yaml, run};

/// The Con.Me operator: gives every municipality its place on the shared data centre.
#[derive(Parser)]
#[command(
    name = "conme-operator",
    about,
    long_about = "The Con.Me operator gives every municipality its place on the shared data centre.\n\nIt watches the resources Comune, DataCenter and ServiceTemplate of the group conme.venis.it and keeps namespaces, quotas, network isolation, role bindings, databases and services as they are declared there."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator against the cluster of KUBECONFIG, or the one that it runs in.
    #[command(after_help = "Example:\n  conme-operator run --namespace conme-system --data-center venis")]
    Run(RunArgs),
    /// Print the CustomResourceDefinitions as YAML.
    #[command(after_help = "Example:\n  conme-operator crd | kubectl apply --server-side -f -")]
    Crd,
    /// Print the ClusterRoles as YAML: the operator's own, the tenants' and the SAD's.
    Roles,
    /// Write the generated manifests into a checkout (what `make manifests` does).
    Manifests {
        /// Top of the checkout.
        #[arg(default_value = ".")]
        top: PathBuf,
        /// Write nothing; exit with 1 when a file is not up to date.
        #[arg(long)]
        check: bool,
    },
    /// Print the shell completion.
    Completion {
        /// Shell to complete for.
        shell: Shell,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Args)]
struct RunArgs {
    /// The operator's own namespace: its lease and the credentials of database servers are there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "conme-system")]
    namespace: String,
    /// The operator's ServiceAccount, which it binds in the namespaces of the Comuni.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "conme-operator")]
    service_account: String,
    /// The DataCenter that this operator serves.
    #[arg(long, env = "CONME_DATA_CENTER", default_value = "venis")]
    data_center: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "CONME_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Name of this process in the lease; stable over restarts, so that it takes its own lease up at once.
    #[arg(long, env = "POD_NAME", default_value = "conme-operator")]
    identity: String,
    /// Comuni that are worked on at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Calls to the API server that may be under way at the same time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    calls: u16,
    /// Databases that are worked on at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    database_workers: u16,
    /// Seconds after which databases and their Secrets are looked at again without a cause.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    recheck_seconds: u64,
    /// Seconds after which each watch is taken up again; one whose connection has died in silence is noticed 5 seconds
    /// later.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=290))]
    watch_seconds: u64,
    /// Time between the confirmation of a deletion and the deletion, such as 72h.
    #[arg(long, env = "CONME_DELETION_GRACE", default_value = "72h", value_parser = grace)]
    deletion_grace: SignedDuration,
    /// How the log is written.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, or a filter as of tracing-subscriber.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
}

/// The operator mostly waits for the API server: on a large host more threads would only take more memory.
const MOST_THREADS: usize = 4;

/// A duration of a second at least.
fn grace(text: &str) -> Result<SignedDuration, String> {
    let grace: SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    if grace < SignedDuration::from_secs(1) {
        return Err("a deletion waits for a second at least; give a time such as 72h".to_owned());
    }
    Ok(grace)
}

/// Does what the command line of this process says. `version` is that of the program.
///
/// # Errors
/// What went wrong, for people.
pub fn main(version: &'static str) -> anyhow::Result<()> {
    let cli = Cli::from_arg_matches(&Cli::command().version(version).get_matches())?;
    match cli.command {
        Command::Run(args) => start(args, version),
        Command::Crd => print(&crds_yaml()?),
        Command::Roles => print(&roles_yaml()?),
        Command::Manifests { top, check } => manifests(&top, check),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "conme-operator", &mut script);
            // For bash, clap_complete takes the hyphen of the name for a step down to a subcommand, and then completes
            // nothing below it.
            print(&String::from_utf8_lossy(&script).replace("conme__subcmd__operator", "conme__operator"))
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader such as `head` may have seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("the output could not be written"),
    }
}

fn manifests(top: &std::path::Path, check: bool) -> anyhow::Result<()> {
    let (crds, roles, reference) = (crds_yaml()?, roles_yaml()?, resources_markdown());
    let mut stale = Vec::new();
    for (file, text) in [
        ("manifests/crds.yaml", &crds),
        ("manifests/clusterroles.yaml", &roles),
        ("charts/conme/templates/crds.yaml", &crds),
        ("charts/conme/templates/clusterroles.yaml", &roles),
        ("docs/reference/resources.md", &reference),
    ] {
        let path = top.join(file);
        if std::fs::read_to_string(&path).is_ok_and(|present| present == *text) {
            continue;
        }
        if check {
            stale.push(file);
        } else {
            std::fs::write(&path, text)
                .with_context(|| format!("{} could not be written", path.display()))?;
            println!("written {file}");
        }
    }
    anyhow::ensure!(
        stale.is_empty(),
        "not up to date: {}; run `make manifests` and commit the result",
        stale.join(", ")
    );
    Ok(())
}

fn start(args: RunArgs, version: &'static str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {} is no filter", args.log))?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("another TLS provider was installed before");
    }
    let options = RunOptions {
        version,
        namespace: args.namespace,
        service_account: args.service_account,
        data_center: args.data_center,
        listen: args.listen,
        identity: args.identity,
        workers: args.workers.into(),
        calls: args.calls.into(),
        database_workers: args.database_workers.into(),
        recheck: Duration::from_secs(args.recheck_seconds),
        watch: Duration::from_secs(args.watch_seconds),
        deletion_grace: args.deletion_grace,
    };
    memory::take_little();
    let threads =
        std::thread::available_parallelism().map_or(MOST_THREADS, |known| known.get().min(MOST_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(run(options))
}
