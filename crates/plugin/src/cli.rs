//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// What the exit codes mean; part of the help and of the reference.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  problems were found (validate), there are differences (diff), the time is over (wait), or a command failed
  2  the command line cannot be understood, or a file cannot be read
  3  the API server cannot be reached, or refused an answer";

/// Check, preview, follow and use the Comuni of a data centre.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-comune",
    bin_name = "kubectl comune",
    version,
    about,
    long_about = "Check, preview, follow and use the Comuni of a data centre.\n\nA Comune is one administration on the shared data centre of Con.Me. This plugin of kubectl finds what is wrong in its manifest before it is applied, shows what the operator would make of it, tells how it is, and opens its databases.",
    after_help = EXIT_CODES,
    after_long_help = concat!("Examples:
  kubectl comune validate comuni/ --site datacenter/
  kubectl comune diff dolo.yaml
  kubectl apply -f dolo.yaml && kubectl comune wait dolo --for ready
  kubectl comune status dolo --watch
  kubectl comune psql dolo protocollo

Exit codes:
  0  all is well
  1  problems were found (validate), there are differences (diff), the time is over (wait), or a command failed
  2  the command line cannot be understood, or a file cannot be read
  3  the API server cannot be reached, or refused an answer"),
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which cluster, and as whom.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Which cluster, and as whom.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Kubeconfig file [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// User to act as; you need the right to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to act as, with --as; can be repeated.
    #[arg(long, global = true, value_name = "GROUP", requires = "impersonate")]
    pub as_group: Vec<String>,
    /// Namespace that Con.Me itself is installed in. Comuni have none.
    #[arg(short, long, global = true, value_name = "NAMESPACE", default_value = "conme-system")]
    pub namespace: String,
    /// The DataCenter that the operator serves.
    #[arg(long, global = true, value_name = "NAME", default_value = "venis")]
    pub data_center: String,
    /// Longest time for one call, such as 5s or 2m.
    #[arg(long, global = true, value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub request_timeout: Duration,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Find all that is wrong in manifests, with file, line and what to write instead.
    #[command(
        long_about = "Finds all that is wrong in manifests at once, each with file:line:column, the field, the rule in words and what to write instead.\n\nWithout --server nothing but the files is read: structure, names, bounds, the rules of the definitions, and what the manifests of the same call (and those of --site) say of one another: tiers, templates and database servers that exist, ISTAT codes, host names and namespaces that somebody else holds, room in the data centre. Files may hold YAML or JSON, several documents, lists, and other kinds, which are passed over.",
        after_help = "Examples:
  kubectl comune validate dolo.yaml
  kubectl comune validate comuni/ --site datacenter/ --site catalogue/
  helm template my-comuni | kubectl comune validate -
  kubectl comune validate comuni/ --output sarif > comune.sarif
  kubectl comune validate --server dolo.yaml

Exit codes: 0 no problem, 1 problems, 2 a file cannot be read, 3 the API server could not be asked."
    )]
    Validate(ValidateArgs),
    /// Show the objects that the operator would create.
    #[command(
        long_about = "Shows the objects that the operator would create for the Comuni in the files, made by the operator's own functions. Nothing is written. Binding Secrets of databases are not shown: their passwords do not exist before. Nor are the CloudNativePG objects of databases with a server of their own.\n\nThe DataCenter and the catalogue come from the files, from --site, or with --server from the cluster. The annotations comune-uid and admitted-at of namespaces have values that a cluster gives: they are shown with --server for a Comune that exists there, and left out otherwise.",
        after_help = "Examples:
  kubectl comune render dolo.yaml --site examples/
  kubectl comune render dolo.yaml --server --output json | jq '.items[].kind'"
    )]
    Render(RenderArgs),
    /// Show what applying the manifests would change in the cluster.
    #[command(
        long_about = "Compares what the operator would make of the files with what is in the cluster: a unified diff for each object that differs, and what would be removed or kept as an orphan. The DataCenter and the catalogue are those of the cluster, unless the files bring others.\n\nExit codes as of kubectl diff: 0 no difference, 1 differences, more than 1 an error.",
        after_help = "Examples:
  kubectl comune diff dolo.yaml
  kubectl comune diff comuni/ --color never | less"
    )]
    Diff(DiffArgs),
    /// Show how a Comune is, on one page.
    #[command(
        long_about = "Shows on one page how a Comune is: who it is, its conditions and what they ask for, environments with their quota, databases with size and credential, services with their addresses, local servers, what is kept as an orphan, and the latest events. Of one that is being deleted also when its time ends and how to stop it.",
        after_help = "Examples:
  kubectl comune status dolo
  kubectl comune status dolo --watch
  kubectl comune status dolo --output json"
    )]
    Status(StatusArgs),
    /// List all Comuni.
    #[command(
        long_about = "Lists all Comuni, one a line. FLAGS says what holds one in a state of its own: paused (nothing is changed), cordoned (its people may not write), protected (cannot be deleted), deleted (somebody has asked for its end).",
        after_help = "Examples:
  kubectl comune list
  kubectl comune list --not-ready --output wide"
    )]
    List(ListArgs),
    /// Wait until Comuni are as declared.
    #[command(
        long_about = "Waits until Comuni are as declared at their present generation. Changes are told as they come. Exit code 0 when all are; 1 when the time is over, with the reasons.",
        after_help = "Examples:
  kubectl apply -f dolo.yaml && kubectl comune wait dolo
  kubectl comune wait --all --for available --timeout 15m
  kubectl comune wait dolo --for condition=DatabasesReady"
    )]
    Wait(WaitArgs),
    /// Give the databases of a Comune new passwords.
    #[command(
        long_about = "Asks the operator for new passwords of the databases of a Comune, by the annotation conme.venis.it/rotate-credentials. The operator makes a second login beside the one in use, puts it into the binding Secret and restarts the services of the catalogue that are bound to it. The login of before is closed after the overlap that the DataCenter sets; while it is open, no further rotation begins. Databases with a server of their own are left out.",
        after_help = "Examples:
  kubectl comune rotate-credentials dolo
  kubectl comune rotate-credentials dolo protocollo --wait"
    )]
    RotateCredentials(RotateArgs),
    /// Open a database of a Comune with psql or mariadb.
    #[command(
        long_about = "Opens a database of a Comune with psql (or mariadb). The credentials come from the binding Secret, which your own rights have to allow you to read. The password is handed over in a file that only you can read, never in a command line, and the server's certificate is checked.",
        after_help = "Examples:
  kubectl comune psql dolo protocollo
  kubectl comune psql dolo protocollo -- --command 'select count(*) from atti'
  kubectl comune psql dolo protocollo --print-command"
    )]
    Psql(PsqlArgs),
    /// Print the shell completion.
    #[command(
        long_about = "Prints a completion script.\n\nbash, zsh, fish, powershell and elvish complete the program kubectl-comune. kubectl itself completes its plugins by an executable on the PATH whose name is kubectl_complete-comune; `completion kubectl` prints it.",
        after_help = "Examples:
  kubectl comune completion bash > ~/.local/share/bash-completion/completions/kubectl-comune
  kubectl comune completion kubectl > ~/.local/bin/kubectl_complete-comune && chmod +x ~/.local/bin/kubectl_complete-comune"
    )]
    Completion {
        /// Shell to complete for, or kubectl.
        shell: CompletionShell,
    },
    /// Show the versions of this plugin, of the definitions and of the operator in the cluster.
    Version {
        /// Ask no cluster.
        #[arg(long)]
        client: bool,
        /// How to write it.
        #[arg(short, long, value_enum, default_value = "table")]
        output: PlainFormat,
    },
    /// Print the reference of all commands as Markdown.
    #[command(hide = true)]
    Reference,
    /// Propose words for the last argument, one a line.
    #[command(hide = true)]
    Propose {
        /// The words of the command line behind `kubectl comune`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Shells, and kubectl itself.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum CompletionShell {
    Bash,
    Zsh,
    Fish,
    Powershell,
    Elvish,
    Kubectl,
}

impl CompletionShell {
    /// The shell; None for kubectl.
    pub fn shell(self) -> Option<Shell> {
        match self {
            Self::Bash => Some(Shell::Bash),
            Self::Zsh => Some(Shell::Zsh),
            Self::Fish => Some(Shell::Fish),
            Self::Powershell => Some(Shell::PowerShell),
            Self::Elvish => Some(Shell::Elvish),
            Self::Kubectl => None,
        }
    }
}

/// Arguments of `validate`.
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// Files, folders (with all below), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Folder or file with the DataCenter, the catalogue and other Comuni, to check names and clashes against; not
    /// checked itself. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub site: Vec<PathBuf>,
    /// Ask the API server besides: a dry run of each object, and what the cluster has as the site.
    #[arg(long)]
    pub server: bool,
    /// How to write it.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: ReportFormat,
}

/// Forms of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Table,
    /// One JSON object.
    Json,
    /// JUnit XML, for the tests page of a pipeline.
    Junit,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
}

/// Forms of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    /// YAML documents.
    Yaml,
    /// One JSON list.
    Json,
}

/// Forms of what is told of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlainFormat {
    /// For people.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Forms of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people.
    Table,
    /// With more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Arguments of `render`.
#[derive(Args, Debug)]
pub struct RenderArgs {
    /// Files, folders (with all below), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Folder or file with the DataCenter and the catalogue. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub site: Vec<PathBuf>,
    /// Take the DataCenter, the catalogue and the other Comuni from the cluster.
    #[arg(long)]
    pub server: bool,
    /// ServiceAccount of the operator, which is bound in every namespace.
    #[arg(long, value_name = "NAME", default_value = "conme-operator")]
    pub operator_account: String,
    /// How to write it.
    #[arg(short, long, value_enum, default_value = "yaml")]
    pub output: ObjectFormat,
}

/// Arguments of `diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// Files, folders (with all below), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Folder or file with a DataCenter or catalogue to use instead of the cluster's. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub site: Vec<PathBuf>,
    /// ServiceAccount of the operator, which is bound in every namespace.
    #[arg(long, value_name = "NAME", default_value = "conme-operator")]
    pub operator_account: String,
    /// When to use colours.
    #[arg(long, value_enum, default_value = "auto")]
    pub color: Colour,
}

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The Comune.
    pub name: String,
    /// Go on: on a terminal the page is drawn anew, elsewhere the lines that changed are printed.
    #[arg(short, long)]
    pub watch: bool,
    /// How to write it.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: PlainFormat,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those that are not as declared, with the reason in words.
    #[arg(long)]
    pub not_ready: bool,
    /// How to write it.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: ListFormat,
}

/// Arguments of `wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// The Comuni.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub names: Vec<String>,
    /// All Comuni that there are now.
    #[arg(long)]
    pub all: bool,
    /// ready, available, or condition=TYPE for another condition.
    #[arg(long = "for", value_name = "WHAT", default_value = "ready", value_parser = awaited)]
    pub awaited: String,
    /// Longest time, such as 30s, 5m or 1h.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Arguments of `rotate-credentials`.
#[derive(Args, Debug)]
pub struct RotateArgs {
    /// The Comune.
    pub name: String,
    /// One of its databases; all of them when absent.
    pub database: Option<String>,
    /// Wait until the binding Secrets hold new passwords.
    #[arg(long)]
    pub wait: bool,
    /// Longest time to wait, such as 30s or 5m.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Arguments of `psql`.
#[derive(Args, Debug)]
pub struct PsqlArgs {
    /// The Comune.
    pub name: String,
    /// One of its databases.
    pub database: String,
    /// Print the command instead of running it; the password is not in it.
    #[arg(long)]
    pub print_command: bool,
    /// Arguments for psql or mariadb, behind --.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// A time such as 30s, 5m, 1h30m.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; write it as 30s, 5m or 1h");
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(span).ok().filter(|time| !time.is_zero()).ok_or_else(wrong)
}

/// The condition that is waited for.
fn awaited(text: &str) -> Result<String, String> {
    match text.to_lowercase().as_str() {
        "ready" => Ok("Ready".into()),
        "available" => Ok("Available".into()),
        lower => {
            let named = lower.strip_prefix("condition=").unwrap_or_default();
            let known = conme_api::reasons::COMUNE_CONDITIONS;
            known
                .into_iter()
                .find(|condition| condition.to_lowercase() == named)
                .map(str::to_owned)
                .ok_or_else(|| {
                    format!(
                        "`{text}` is nothing to wait for; there are ready, available, condition={}",
                        known.join(", condition=")
                    )
                })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_conditions_are_read_as_people_write_them() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "5", "-3s", "0s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(awaited("ready").as_deref(), Ok("Ready"));
        assert_eq!(awaited("condition=databasesready").as_deref(), Ok("DatabasesReady"));
        assert!(awaited("condition=Redy").unwrap_err().contains("condition=DatabasesReady"));
    }
}
