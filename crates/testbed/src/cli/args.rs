//! The arguments and their help.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use conme_testbed::Signal;

/// A local data centre on this machine: a real Kubernetes control plane with simulated hosts, and real PostgreSQL and MariaDB
/// servers.
///
/// Everything runs as ordinary processes on 127.0.0.1, without containers and without root. The first `up` builds the
/// programs from source (about ten minutes on two processors; needs Go); later ones take a few seconds.
#[derive(Debug, Parser)]
#[command(
    name = "conme-testbed",
    version,
    max_term_width = 110,
    after_help = "\
Example:
  conme-testbed up
  eval \"$(conme-testbed env)\"
  kubectl get nodes
  conme-testbed down --purge

Environment:
  CONME_TESTBED_NAME   the instance when --name is not given
  CONME_STATE_DIR      parent of the instances (default $XDG_STATE_HOME/conme or ~/.local/state/conme)
  CONME_CACHE_DIR      built programs (default $XDG_CACHE_HOME/conme or ~/.cache/conme)
  CONME_POSTGRES_BIN   directory with the PostgreSQL programs, or \"debian\" to unpack those of the distribution
  CONME_MARIADB_PREFIX prefix of a MariaDB such as /usr, or \"debian\""
)]
pub(crate) struct Args {
    /// The instance to work on [default: demo]
    #[arg(short, long, global = true, env = "CONME_TESTBED_NAME", hide_env = true)]
    pub name: Option<String>,
    /// Parent of the instances
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where built programs are kept
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build or find all programs without starting anything
    #[command(
        after_help = "Example:\n  conme-testbed build    # once per machine; `up` does it too when needed"
    )]
    Build,
    /// Start the instance and wait until it is of use; does nothing when it runs already
    #[command(after_help = "\
A stopped instance is started again with its data; options that are not given stay as they were.

Examples:
  conme-testbed up                                  # 8 hosts, one PostgreSQL and one MariaDB server
  conme-testbed up --nodes 40 --cores 32 --memory 256Gi --postgres 2
  conme-testbed up --existing --kubeconfig ~/.kube/config   # only databases beside a cluster of yours")]
    Up(UpArgs),
    /// Stop the instance; its data stay unless --purge is given
    #[command(after_help = "\
Stops further programs first, then kwok, scheduler and controller manager, the API server, etcd, the database servers;
then looks for any process that is left. An existing cluster is not touched. Can be repeated.

Examples:
  conme-testbed down
  conme-testbed down --purge    # removes all its data too")]
    Down {
        /// Remove all data of the instance as well
        #[arg(long)]
        purge: bool,
    },
    /// Show what runs, and where
    #[command(after_help = "\
Exit code: 0 when everything runs, 3 when the instance is stopped or degraded, 1 when there is none.

Examples:
  conme-testbed status
  conme-testbed status -o json | jq -r '.databases[0].port'")]
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// List the instances on this machine
    #[command(after_help = "Example:\n  conme-testbed list")]
    List {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Print the path of the kubeconfig
    #[command(after_help = "Example:\n  kubectl --kubeconfig \"$(conme-testbed kubeconfig)\" get nodes")]
    Kubeconfig,
    /// Print shell lines that make kubectl, helm, psql and mariadb use the instance
    #[command(after_help = "\
Sets KUBECONFIG, PATH, for psql PGPASSFILE and PGSSLROOTCERT, and for mariadb MYSQL_HOME (the first server).

Example:
  eval \"$(conme-testbed env)\"")]
    Env,
    /// Print the logs of one program or of all
    #[command(
        after_help = "Examples:\n  conme-testbed logs kube-apiserver --tail 50\n  conme-testbed logs -f operator"
    )]
    Logs {
        /// The program, as `status` names it; all when not given
        program: Option<String>,
        /// Go on printing what is added
        #[arg(short, long)]
        follow: bool,
        /// How many lines of each log
        #[arg(long, default_value_t = 20, value_name = "N")]
        tail: usize,
    },
    /// Run a further program, such as the operator, as part of the instance
    #[command(after_help = "\
It gets KUBECONFIG, the programs of the instance in PATH, and the environment of this call; its output goes to a log.
`status` shows it and `down` stops it. Without a command, starts a stopped program again as it was: also those of the
instance itself, on the same port.

Examples:
  conme-testbed start operator --env RUST_LOG=info -- target/debug/conme-operator run
  conme-testbed start operator
  conme-testbed start kube-apiserver    # after `stop kube-apiserver`")]
    Start {
        /// Name of the program: lower-case letters, digits and hyphens
        program: String,
        /// Set a variable for it
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
        env: Vec<(String, String)>,
        /// The command and its arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Stop one program of the instance
    #[command(after_help = "\
Waits until it has ended; one that does not listen is killed after some seconds.

Examples:
  conme-testbed stop operator
  conme-testbed stop pg-venis-1 --signal KILL    # a crash")]
    Stop {
        /// The program, as `status` names it
        program: String,
        /// The signal to send first [default: what suits the program]
        #[arg(short, long, value_enum, ignore_case = true)]
        signal: Option<Signal>,
    },
    /// Start an instance, run a command with it, and remove the instance whatever happens
    #[command(after_help = "\
The command gets KUBECONFIG, CONME_TESTBED_NAME, CONME_STATE_DIR, PGPASSFILE, MYSQL_HOME and the programs in PATH. Ends
with its exit code, or 128 plus the signal that ended it.

Example:
  conme-testbed run --nodes 3 -- kubectl get nodes")]
    Run {
        /// What the instance shall be
        #[command(flatten)]
        up: UpArgs,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Install Con.Me on the instance: chart, operator, data centre, catalogue
    #[command(after_help = "\
Starts the instance first when it does not run. The operator runs on this machine with the token of its own
ServiceAccount. Can be repeated: the operator is then started again.

Example:
  conme-testbed install")]
    Install(InstallArgs),
    /// Show the whole: a data centre with the 22 members, all Ready
    #[command(after_help = "\
Starts the instance, installs Con.Me, applies examples/comuni and waits. Can be repeated.

Example:
  conme-testbed demo")]
    Demo(InstallArgs),
    /// Print a completion script
    #[command(
        after_help = "Example:\n  conme-testbed completion bash > ~/.local/share/bash-completion/completions/conme-testbed"
    )]
    Completion {
        /// For which shell
        shell: Shell,
    },
}

/// What is installed, and from where.
#[derive(Debug, ClapArgs)]
pub(crate) struct InstallArgs {
    /// Top of the checkout
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub checkout: PathBuf,
    /// Further arguments of the operator
    #[arg(last = true)]
    pub operator_args: Vec<String>,
}

/// What an instance shall be.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct UpArgs {
    /// Simulated hosts [default: 8]
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,
    /// Cores of each host [default: 64]
    #[arg(long, value_name = "N")]
    pub cores: Option<u32>,
    /// Memory of each host [default: 512Gi]
    #[arg(long, value_name = "QUANTITY")]
    pub memory: Option<String>,
    /// Pods that each host takes [default: 250]
    #[arg(long, value_name = "N")]
    pub pods: Option<u32>,
    /// PostgreSQL servers, called pg-venis-1 and so on [default: 1]
    #[arg(long, value_name = "N")]
    pub postgres: Option<usize>,
    /// MariaDB servers, called mariadb-venis-1 and so on [default: 1; for `run` 0]
    #[arg(long, value_name = "N")]
    pub mariadb: Option<usize>,
    /// Databases do not wait for the disk: quicker, but a crash of the machine may lose data (this is the default)
    #[arg(long, conflicts_with = "durable")]
    pub fast: bool,
    /// Databases wait for the disk
    #[arg(long)]
    pub durable: bool,
    /// Use a cluster that is there already instead of starting one; it is never changed by this program
    #[arg(long, conflicts_with = "no_cluster")]
    pub existing: bool,
    /// The kubeconfig of the existing cluster [default: $KUBECONFIG]
    #[arg(long, value_name = "FILE", requires = "existing")]
    pub kubeconfig: Option<PathBuf>,
    /// Only database servers
    #[arg(long)]
    pub no_cluster: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("\"{text}\" is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_an_example() {
        for command in Args::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("conme-testbed "), "{}", command.get_name());
        }
    }

    #[test]
    fn a_variable_needs_a_name() {
        assert_eq!(key_value("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(key_value("=b").is_err() && key_value("A").is_err());
    }
}
