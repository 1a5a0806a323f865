//! The command line: what a person asks for, and how it is answered.

mod gateway;
mod moving;
mod output;
mod person;

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::sync::watch;

use moving::{Mover, Wish};
pub use output::{Form, Output, Pass, Stage};
use person::Person;

use crate::core::calendar::{BadRate, Rate};
use crate::core::evidence::{Evidence, Signed};
use crate::core::geometry::LEAF;
use crate::core::hash::{Digest, Root};
use crate::core::level::{Ceiling, Choice};
use crate::core::line::{Said, Word};
use crate::core::ports::Table as _;
use crate::core::tree;
use crate::core::tree::lists::Budget;
use crate::core::verify::{Verified, Verifier};
use crate::disk::Disk;
use crate::hooks::HOOKS;
use crate::identity::{Authority, Identity, Role, Token, agent_uri, receiver_uri, signer, write_private};
use crate::net::agent::{self, AgentError};
use crate::net::dial::Proxy;
use crate::net::tree::{Take, TreeTransfer};
use crate::net::{enrol, lease, receive, tls};
use crate::tree::{Excludes, Owners, SourceSettings, TargetSettings, TreeTarget};

/// Name and version, as both ends tell each other.
pub const SOFTWARE: &str = concat!("conme-mover ", env!("CARGO_PKG_VERSION"));

/// The bytes were not what they should be.
const DIFFERS: u8 = 4;
/// Given up waiting for a connection.
const GAVE_UP: u8 = 3;
/// Done, but something of the tree could not be read.
const INCOMPLETE: u8 = 5;
/// The cut-over did not succeed, and the source works again.
const REOPENED: u8 = 6;
/// The cut-over did not succeed, and the source is closed in part.
const STUCK: u8 = 7;
const FAILED: u8 = 1;

/// Moves the disks of a local server into the data centre while it keeps working, and proves that they arrived.
#[derive(Debug, Parser)]
#[command(
    name = "conme-mover",
    version,
    after_help = "A first transfer, with everything on one machine:\n\n  \
        conme-mover ca init --dir ca --municipality torre-di-mosto\n  \
        conme-mover ca receiver --dir ca --target protocollo --out receiver\n  \
        conme-mover receive --identity receiver --state received --listen 127.0.0.1:7443 --target disk.img &\n  \
        conme-mover ca serve --dir ca --listen 127.0.0.1:7444 &\n  \
        conme-mover ca token --dir ca --source srv1 --target protocollo --enrol 127.0.0.1:7444 \\\n      \
        --receive 127.0.0.1:7443 --out token.json\n  \
        conme-mover enrol --token token.json --state agent\n  \
        conme-mover agent --state agent --source /dev/vda --prove\n\n\
        It may be killed or cut off at any moment, at either end: started again, it goes on where it was.\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong use, 3 given up waiting, 4 the content differs, 5 done but for what could\nnot be read, 6 cut-over failed and the source works again, 7 cut-over failed and the source is closed in part:\nsomebody has to look."
)]
pub struct Cli {
    /// How to tell what happens: `json` writes one event a line to standard output.
    #[arg(long, global = true, value_enum, default_value_t = Form::Plain)]
    output: Form,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// On the local server: send a disk.
    Agent(AgentArgs),
    /// In the data centre: receive a disk.
    Receive(ReceiveArgs),
    /// In the data centre: the one public port, which leads servers to their receivers at the pace of their line.
    #[command(subcommand)]
    Gateway(gateway::Gateway),
    /// On the local server: take back a cut-over, so that it works again.
    #[command(after_help = "What was changed at the copy since the cut-over is not brought back.")]
    Reopen {
        /// The agent's state directory.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/conme-mover")]
        state: PathBuf,
    },
    /// On the local server: get a certificate with a token.
    Enrol(EnrolArgs),
    /// In the data centre: the authority of one municipality.
    #[command(subcommand)]
    Ca(Ca),
    /// Read a target back from its own disk, or check evidence.
    Verify(VerifyArgs),
    /// On the local server: what a running agent does, as JSON.
    Status(Agent),
    /// On the local server: a running agent stops sending, at once; also when it is started again.
    Pause {
        #[command(flatten)]
        time: gateway::Time,
        #[command(flatten)]
        at: Agent,
    },
    /// On the local server: end a pause or a cap.
    Resume(Agent),
    /// On the local server: a running agent sends no faster than this, instead of its --cap.
    Cap {
        /// The cap, such as "8 Mbit/s".
        #[arg(value_parser = cap)]
        cap: Rate,
        #[command(flatten)]
        time: gateway::Time,
        #[command(flatten)]
        at: Agent,
    },
    /// On the local server: an agent with --rounds begins the next one at once.
    Round(Agent),
    /// Write completion for a shell to standard output.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Show what a receiver has, as JSON.
    Manifest {
        /// The receiver's state directory.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
}

const AGENT_HELP: &str = "\
The hooks of a cut-over are this server's own: a file that belongs to root, as its directories and the programs in it, and
that nobody else can write. The data centre cannot run anything here. For example, /etc/conme-mover/hooks.yaml:

  hooks:
    stop-app:                            # stays stopped after a reboot
      run:  [/bin/systemctl, disable, --now, protocollo.service]
      undo: [/bin/systemctl, enable, --now, protocollo.service]
      timeout: 5m                        # 2m when left out, 1h at most
    lock-people:
      run:  [/usr/sbin/usermod, --lock, protocollo]
      undo: [/usr/sbin/usermod, --unlock, protocollo]
    still:                               # taken back as soon as the last round has read everything
      run:  [/sbin/fsfreeze, --freeze, /srv]
      undo: [/sbin/fsfreeze, --unfreeze, /srv]
  cut-over:
    stop: [stop-app]
    fence: [lock-people]                 # at least one; has to hold after a reboot, too
    freeze: [still]                      # never the file system of --state

Undo is run in the reverse order, also for a hook that failed halfway and after this program was killed (at its next
start): it has to do no harm when there is nothing to take back. `undo: []` says that nothing is needed. Open the target
only when this program has said that the cut-over is done: until then it may open this server again.";

#[derive(Debug, Args)]
#[command(after_help = AGENT_HELP)]
struct AgentArgs {
    /// Where enrolment left the certificate, and where this transfer is remembered.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/conme-mover")]
    state: PathBuf,
    /// The block device or image to send.
    #[arg(long, value_name = "PATH", required_unless_present = "tree")]
    source: Option<PathBuf>,
    /// The directory to send, with all that is in it; the receiver has to be started with --into.
    #[arg(long, value_name = "DIR", conflicts_with = "source")]
    tree: Option<PathBuf>,
    /// What of the directory not to send: a name such as *.tmp, or a path in it such as /var/cache.
    #[arg(long, value_name = "PATTERN", requires = "tree")]
    exclude: Vec<String>,
    /// Go into directories on which another file system is mounted, too.
    #[arg(long, requires = "tree")]
    cross_file_systems: bool,
    /// Free space of ext2, ext3 and ext4, by their bitmaps, is not read: it is zeros on the target. On the disk itself or
    /// in partitions; whatever is not known for sure is read. The last round needs them unmounted, read-only or frozen.
    #[arg(long, conflicts_with = "tree")]
    skip_free: bool,
    /// Where the receiver is, when it is not where the token said.
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    #[command(flatten)]
    out: Out,
    /// After the copy, read everything once more from the first byte on, with SHA-256, and have the target read
    /// back from its disk. Nothing may write to the source meanwhile.
    #[arg(long)]
    prove: bool,
    /// Go on with round after round until ended; `conme-mover round` or SIGUSR1 begins the next one at once.
    #[arg(long, conflicts_with_all = ["prove", "cut_over"])]
    rounds: bool,
    /// The time between two rounds; half of what the last one took when absent, between 1h and 12h.
    #[arg(long, value_name = "TIME", requires = "rounds", value_parser = duration)]
    every: Option<Duration>,
    /// The last round: copy, stop and fence this server with its own hooks, prove. Whatever fails, it is opened again.
    #[arg(long, conflicts_with = "prove")]
    cut_over: bool,
    /// The hooks of this server.
    #[arg(long, value_name = "FILE", requires = "cut_over", default_value = HOOKS)]
    hooks: PathBuf,
    /// The cut-over is given up, and the server opened again, when it has stood still for so long.
    #[arg(long, value_name = "TIME", requires = "cut_over", default_value = "2h", value_parser = duration)]
    within: Duration,
    /// Say what the cut-over would do, and do nothing.
    #[arg(long, requires = "cut_over")]
    dry_run: bool,
    /// The fastest that it may send with all headers, such as "8 Mbit/s" or 8mbit; as fast as the link carries when
    /// absent.
    #[arg(long, value_name = "RATE", value_parser = cap)]
    cap: Option<Rate>,
    /// The least that is sent: 4096, 8192 or 16384 bytes. Fixed with the first session.
    #[arg(long, value_name = "BYTES", default_value_t = LEAF)]
    leaf: u32,
    /// How hard to compress: zstd's levels 1 to 19; 0 not at all. When absent, a disk goes with the highest level that
    /// the line does not have to wait for, a directory with 3.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(0..=19))]
    level: Option<i32>,
    /// How much of one processor's time compressing a disk may take, in percent; below 100, other work on this server
    /// goes first, too.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, conflicts_with = "tree",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu: u8,
    /// Give up after so long without a connection, such as 30m; it tries for ever when absent.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    give_up_after: Option<Duration>,
}

#[derive(Debug, Args)]
struct Agent {
    /// The agent's state directory.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/conme-mover")]
    state: PathBuf,
}

#[derive(Debug, Args)]
struct ReceiveArgs {
    /// The directory that `conme-mover ca receiver` made.
    #[arg(long, value_name = "DIR")]
    identity: PathBuf,
    /// Where this transfer is remembered.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:7443")]
    listen: SocketAddr,
    /// The block device or image to write.
    #[arg(long, value_name = "PATH", required_unless_present = "into")]
    target: Option<PathBuf>,
    /// The directory to write.
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    into: Option<PathBuf>,
    /// Everything in the directory is to belong to who runs this, not to its owners at the source.
    #[arg(long, requires = "into", conflicts_with_all = ["map_user", "map_group"])]
    own: bool,
    /// A user's number at the source and here, such as 1000:51000.
    #[arg(long, value_name = "THERE:HERE", requires = "into", value_parser = mapping)]
    map_user: Vec<(u32, u32)>,
    /// A group's number at the source and here.
    #[arg(long, value_name = "THERE:HERE", requires = "into", value_parser = mapping)]
    map_group: Vec<(u32, u32)>,
    /// Programs keep setuid, setgid and capabilities.
    #[arg(long, requires = "into")]
    privileges: bool,
    /// Entries that the directory may get at most.
    #[arg(long, value_name = "NUMBER", requires = "into", default_value_t = 100_000_000)]
    max_entries: u64,
    /// Bytes that the directory may get at most; as many as fit when absent.
    #[arg(long, value_name = "BYTES", requires = "into")]
    max_bytes: Option<u64>,
    /// What is on the target may be lost.
    #[arg(long)]
    overwrite: bool,
    /// End with success when a proof has succeeded.
    #[arg(long)]
    until_proven: bool,
}

#[derive(Debug, Args)]
struct EnrolArgs {
    /// The file with the token; - reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    /// Where the certificate goes.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/conme-mover")]
    state: PathBuf,
    #[command(flatten)]
    out: Out,
}

/// How a local server gets out.
#[derive(Debug, Args)]
struct Out {
    /// The HTTP proxy through which to go out, such as http://proxy.example:3128.
    #[arg(long, value_name = "URL", value_parser = |text: &str| text.parse::<Proxy>())]
    proxy: Option<Proxy>,
    /// A file of mode 0600 with name:password for the proxy.
    #[arg(long, value_name = "FILE", requires = "proxy")]
    proxy_login: Option<PathBuf>,
}

impl Out {
    fn proxy(&self) -> anyhow::Result<Option<Proxy>> {
        Ok(match (&self.proxy, &self.proxy_login) {
            (Some(proxy), Some(login)) => Some(proxy.clone().with_login(login)?),
            (proxy, _) => proxy.clone(),
        })
    }
}

#[derive(Debug, Subcommand)]
enum Ca {
    /// Make the authority.
    Init {
        /// Its directory: with it, certificates for this municipality can be made. Keep it from everybody.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The municipality.
        #[arg(long, value_name = "NAME")]
        municipality: String,
    },
    /// Make the certificate of a receiver.
    Receiver {
        /// The authority.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The target that it writes.
        #[arg(long, value_name = "NAME")]
        target: String,
        /// Where it goes.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make the certificate with which a gateway divides the line of this municipality.
    Gateway {
        /// The authority.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Where it goes.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a token with which one server enrols for one target, once.
    Token {
        /// The authority.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The server.
        #[arg(long, value_name = "NAME")]
        source: String,
        /// The target that it may write to.
        #[arg(long, value_name = "NAME")]
        target: String,
        /// Where the server finds `conme-mover ca serve`.
        #[arg(long, value_name = "HOST:PORT")]
        enrol: String,
        /// Where the server finds the receiver.
        #[arg(long, value_name = "HOST:PORT")]
        receive: String,
        /// There is a gateway at that address: the server asks it for its share of the line.
        #[arg(long)]
        through_gateway: bool,
        /// How long it is good.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        valid: Duration,
        /// The file that it goes to; - writes it to standard output.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Issue certificates to servers that come with a token.
    Serve {
        /// The authority.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Where to listen.
        #[arg(long, value_name = "IP:PORT", default_value = "[::]:7444")]
        listen: SocketAddr,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct VerifyArgs {
    /// The receiver's state directory: reads the target back and compares it with what was written.
    #[arg(long, value_name = "DIR", requires = "target", conflicts_with = "evidence")]
    state: Option<PathBuf>,
    /// An evidence file: checks what both ends signed; with --target also whether it is still so.
    #[arg(long, value_name = "FILE", requires = "authority")]
    evidence: Option<PathBuf>,
    /// The certificate of the authority that has to have signed: `authority.pem`.
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// The target.
    #[arg(long, value_name = "PATH")]
    target: Option<PathBuf>,
}

/// Runs the program.
pub fn run(cli: Cli) -> ExitCode {
    let output = Output::new(cli.output);
    match try_run(cli.command, &output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            let gave_up = error
                .downcast_ref::<AgentError>()
                .is_some_and(|error| matches!(error, AgentError::GaveUp { .. }));
            ExitCode::from(if gave_up { GAVE_UP } else { FAILED })
        }
    }
}

fn try_run(command: Command, output: &Output) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Agent(args) => runtime()?.block_on(send(args, output)),
        Command::Receive(args) => runtime()?.block_on(take(args, output.clone())).map(done),
        Command::Gateway(gateway) => gateway::run(gateway, output),
        Command::Reopen { state } => runtime()?.block_on(moving::reopen_source(&state, output)),
        Command::Enrol(args) => runtime()?.block_on(enrolled(&args, output)).map(done),
        Command::Ca(ca) => authority(ca, output).map(done),
        Command::Verify(args) => match args {
            VerifyArgs { state: Some(state), target: Some(target), .. } => {
                verify_state(&state, &target, output)
            }
            VerifyArgs { evidence: Some(evidence), authority: Some(authority), target, .. } => {
                verify_evidence(&evidence, &authority, target.as_deref(), output)
            }
            _ => bail!("say what to verify: --state with --target, or --evidence with --authority"),
        },
        Command::Status(at) => tell(&at, &person::Order::Status),
        Command::Pause { time, at } => {
            let said = Said { word: Word::Pause, until: time.until()? };
            tell(&at, &person::Order::Say { said: Some(said) })
        }
        Command::Resume(at) => tell(&at, &person::Order::Say { said: None }),
        Command::Cap { cap, time, at } => {
            let said = Said { word: Word::Cap(cap), until: time.until()? };
            tell(&at, &person::Order::Say { said: Some(said) })
        }
        Command::Round(at) => tell(&at, &person::Order::Round),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "conme-mover", &mut std::io::stdout().lock());
            Ok(ExitCode::SUCCESS)
        }
        Command::Manifest { state } => manifest(&state).map(done),
    }
}

fn tell(at: &Agent, order: &person::Order) -> anyhow::Result<ExitCode> {
    gateway::print(&runtime()?.block_on(crate::control::ask(&at.state, person::WHO, order))?)?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // Disks have threads of their own; one is enough for the sockets.
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

async fn send(args: AgentArgs, output: &Output) -> anyhow::Result<ExitCode> {
    // Before anything else can fail: a source that a killed program left closed is opened again.
    let _held = match !args.dry_run && args.state.is_dir() {
        true => {
            let held = crate::identity::lock(&args.state)?;
            if let Some(code) = moving::recover(&args.state, output).await? {
                return Ok(code);
            }
            Some(held)
        }
        false => None,
    };
    let identity =
        Arc::new(Identity::load(&args.state.join("identity")).context("enrol first: `conme-mover enrol`")?);
    if identity.about.role != Role::Agent {
        bail!("{} is the identity of a receiver", args.state.display());
    }
    let wish = match args.cut_over {
        true => Wish::CutOver { hooks: crate::hooks::load(&args.hooks, &args.state)?, within: args.within },
        false if args.rounds => Wish::Rounds { every: args.every },
        false => Wish::One { prove: args.prove },
    };
    if let (true, Wish::CutOver { hooks, .. }) = (args.dry_run, &wish) {
        output.note(&hooks.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(address) = args.connect.or_else(|| identity.about.address.clone()) else {
        bail!("say where the receiver is: --connect");
    };
    let tree = match &args.tree {
        Some(_) => Some(SourceSettings {
            excludes: Excludes::new(args.exclude.iter().map(String::as_str)).context("--exclude")?,
            cross: args.cross_file_systems,
            ..SourceSettings::default()
        }),
        None => None,
    };
    let settings = agent::Settings {
        source: args.tree.or(args.source).context("say what to send: --source or --tree")?,
        tree,
        state: args.state,
        address: address.clone(),
        proxy: args.out.proxy()?,
        told: watch::Sender::default(),
        skip_free: args.skip_free,
        leaf: args.leaf,
        level: args.level.map_or(Choice::Line, Choice::Fixed),
        ceiling: Ceiling::percent(args.cpu),
        give_up: args.give_up_after,
    };
    let person = Arc::new(Person::load(&settings.state, args.cap, output)?);
    let control = crate::control::listen(&settings.state)?;
    let answering = tokio::spawn(Arc::clone(&person).serve(control));
    let caps = person.caps();
    let (share, mut rate) = watch::channel(*caps.borrow());
    let following = match identity.about.leases.clone() {
        Some(name) => {
            let config = tls::asking(&identity)?;
            let proxy = settings.proxy.clone();
            let asking =
                lease::Settings { address, name, route: identity.about.name.clone(), proxy, cap: caps };
            let (facts, told) = (settings.told.subscribe(), output.clone());
            tokio::spawn(async move { lease::follow(&asking, &config, facts, share, &told).await })
        }
        // Nobody divides this line: what the command line says holds.
        None => {
            rate = caps;
            tokio::spawn(async move { share.closed().await })
        }
    };
    let mover = Mover { settings: &settings, identity: &identity, rate: &rate, output, person: &person };
    let sent = mover.go(wish).await;
    following.abort();
    answering.abort();
    sent
}

async fn take(args: ReceiveArgs, output: Output) -> anyhow::Result<()> {
    let identity = Identity::load(&args.identity).context("make it with `conme-mover ca receiver`")?;
    if identity.about.role != Role::Receiver {
        bail!("{} is the identity of an agent", args.identity.display());
    }
    let owners =
        if args.own { Owners::Mine } else { Owners::Same { users: args.map_user, groups: args.map_group } };
    let tree = args.into.is_some().then(|| Take {
        settings: TargetSettings { owners, privileges: args.privileges },
        budget: Budget { entries: args.max_entries, bytes: args.max_bytes.unwrap_or(Budget::NONE.bytes) },
    });
    let settings = receive::Settings {
        target: args.into.or(args.target).context("say where to: --target or --into")?,
        tree,
        state: args.state,
        overwrite: args.overwrite,
        until_proven: args.until_proven,
    };
    receive::serve(settings, identity, args.listen, output).await
}

async fn enrolled(args: &EnrolArgs, output: &Output) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let most = 64 << 10;
    let read = if args.token.as_os_str() == "-" {
        std::io::stdin().take(most).read_to_end(&mut text)
    } else {
        File::open(&args.token).and_then(|file| file.take(most).read_to_end(&mut text))
    };
    read.with_context(|| args.token.display().to_string())?;
    // The error of the parser could repeat the secret.
    let token: Token = serde_json::from_slice(&text)
        .map_err(|_| anyhow::anyhow!("{} is no token of `conme-mover ca token`", args.token.display()))?;
    if token.version != 1 {
        bail!("the token is of another version of conme-mover: use the same at both ends");
    }
    let about = enrol::enrol(&token, &args.state, args.out.proxy()?.as_ref()).await?;
    output.note(&format!("enrolled as {} for {}", about.source.unwrap_or_default(), about.target));
    Ok(())
}

fn authority(ca: Ca, output: &Output) -> anyhow::Result<()> {
    let now = Timestamp::now();
    match ca {
        Ca::Init { dir, municipality } => {
            Authority::init(&dir, &municipality, now)?;
            output.note(&format!("the authority of {municipality} is in {}", dir.display()));
        }
        Ca::Receiver { dir, target, out } => {
            Authority::open(&dir)?.receiver(&target, &out, now)?;
            output.note(&format!("the identity of the receiver of {target} is in {}", out.display()));
        }
        Ca::Gateway { dir, out } => {
            Authority::open(&dir)?.gateway(&out, now)?;
            output.note(&format!("the identity for the gateway is in {}", out.display()));
        }
        Ca::Token { dir, source, target, enrol, receive, through_gateway, valid, out } => {
            let valid = SignedDuration::try_from(valid)?;
            let expires = now.checked_add(valid)?;
            let token =
                Authority::open(&dir)?.token(&source, &target, expires, &enrol, &receive, through_gateway)?;
            let mut text = serde_json::to_string_pretty(&token)?;
            text.push('\n');
            if out.as_os_str() == "-" {
                print!("{text}");
            } else {
                write_private(&out, text.as_bytes())?;
                output.note(&format!("a token for {source}, good until {expires}, is in {}", out.display()));
            }
        }
        Ca::Serve { dir, listen } => {
            let authority = Authority::open(&dir)?;
            runtime()?.block_on(enrol::serve(authority, listen, output.clone()))?;
        }
    }
    Ok(())
}

fn verify_state(state: &Path, target: &Path, output: &Output) -> anyhow::Result<ExitCode> {
    if let Some(transfer) = TreeTransfer::load(state)? {
        return verify_tree(state, target, &transfer, output);
    }
    let Some(transfer) = receive::Transfer::load(state)? else {
        bail!("{} holds no transfer", state.display())
    };
    let _held = crate::identity::lock(state)?;
    let mut disk = Disk::source(target)?;
    if disk.len() < transfer.geometry.len() {
        bail!("{} is shorter than what was written: this is another disk", target.display());
    }
    let mut tables = receive::tables(state)?;
    let mut verifier = Verifier::new(transfer.geometry);
    let geometry = transfer.geometry;
    while verifier.step(&mut disk, &mut tables.units, &mut tables.leaves)?.is_some() {
        output.pass(&reading(verifier.done(), geometry.units(), Some(geometry.unit().into())), Value::Null);
    }
    let found = verifier.finish();
    if found.damaged > 0 {
        // The tables say now what is on the disk: with the next session the agent sends what is missing.
        tables.leaves.sync()?;
        tables.units.sync()?;
        receive::note_damage(state, &found)?;
    }
    output.verified(&found, disk.around().word());
    Ok(if found.damaged > 0 { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS })
}

/// How far a target is read back outside of a round.
fn reading(done: u64, total: u64, unit: Option<u64>) -> Pass {
    Pass {
        round: 0,
        purpose: None,
        stage: Stage::ReadingBack,
        done,
        total: Some(total),
        unit,
        wire: 0,
        saved: None,
    }
}

fn verify_tree(
    state: &Path,
    target: &Path,
    transfer: &TreeTransfer,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let _held = crate::identity::lock(state)?;
    let target = TreeTarget::open(target, transfer.settings.clone(), true, false)?;
    let shelf = crate::net::tree::shelf(state)?;
    let mut receiver = tree::receiver::Receiver::open(target, shelf, transfer.id, 1, Budget::NONE)?;
    let found = receiver.verify(|done, total| output.pass(&reading(done, total, None), Value::Null))?;
    output.tree_verified(&found);
    Ok(if found.damaged > 0 { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS })
}

fn verify_evidence(
    evidence: &Path,
    authority: &Path,
    target: Option<&Path>,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let text = std::fs::read(evidence).with_context(|| evidence.display().to_string())?;
    let evidence: Evidence = serde_json::from_slice(&text).context("not an evidence file")?;
    let authority =
        CertificateDer::from_pem_file(authority).with_context(|| authority.display().to_string())?;
    let signed_by = |ends: [(&Signed, Timestamp, String); 2]| {
        for (signed, at, name) in ends {
            let names = signer(signed, &authority, at)?;
            if !names.contains(&name) {
                bail!("{name} should have signed, but {} did", names.join(", "));
            }
        }
        Ok(())
    };
    if let Some((source, there)) = tree::evidence::agreed(&evidence)? {
        let subject = &there.subject;
        signed_by([
            (&evidence.source, source.ended, agent_uri(&subject.source, &subject.target)),
            (&evidence.target, there.ended, receiver_uri(&subject.target)),
        ])?;
        output.tree_evidence(subject, &there);
        if target.is_some() {
            bail!("a directory is read back with `conme-mover verify --state`");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (source, there) = evidence.agreed()?;
    let subject = &there.subject;
    signed_by([
        (&evidence.source, source.ended, agent_uri(&subject.source, &subject.target)),
        (&evidence.target, there.ended, receiver_uri(&subject.target)),
    ])?;
    output.evidence(subject, &there);
    if let Some(skipped) = &source.skipped {
        output.skipped(skipped);
    }
    let Some(target) = target else { return Ok(ExitCode::SUCCESS) };
    let mut disk = Disk::source(target)?;
    let found = read_root(&mut disk, subject.geometry, output)?;
    let same =
        found.root == Some(subject.root) && subject.sha256.is_none_or(|sha256| sha256.0 == found.sha256);
    output.still(same, target, disk.around().word());
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// Root and SHA-256 of a disk alone, without tables to compare with.
fn read_root(
    disk: &mut Disk,
    geometry: crate::core::geometry::Geometry,
    output: &Output,
) -> anyhow::Result<Verified> {
    use crate::core::hash;
    use crate::core::ports::Source as _;
    use crate::core::verify::Sha256;
    let (mut root, mut sha256, mut content) = (Root::new(&geometry), Sha256::default(), Vec::new());
    for unit in 0..geometry.units() {
        content.resize(geometry.unit_len(unit), 0);
        disk.read(geometry.offset(unit), &mut content)?;
        sha256.add(&content);
        root.add(&hash::unit(&geometry, unit, &hash::leaves(&geometry, &content)));
        output.pass(&reading(unit + 1, geometry.units(), Some(geometry.unit().into())), Value::Null);
    }
    Ok(Verified { root: root.finish(), sha256: sha256.finish(), ..Verified::default() })
}

fn manifest(state: &Path) -> anyhow::Result<()> {
    use crate::core::ports::Log as _;
    if let Some(transfer) = TreeTransfer::load(state)? {
        return tree_manifest(state, &transfer);
    }
    let Some(transfer) = receive::Transfer::load(state)? else {
        bail!("{} holds no transfer", state.display())
    };
    let record = crate::disk::FileLog::open(&state.join("log"))?.load()?.unwrap_or_default();
    let mut tables = receive::tables(state)?;
    let geometry = transfer.geometry;
    let (mut root, mut known) = (Root::new(&geometry), 0_u64);
    for segment in 0..geometry.segments() {
        let range = geometry.segment_units(segment);
        for unit in tables.units.get(range.start, (range.end - range.start) as usize)? {
            known += u64::from(unit.is_known());
            root.add(&unit);
        }
    }
    let shown = serde_json::json!({
        "transfer": crate::core::hash::transfer_name(&transfer.id),
        "source": transfer.source,
        "began": transfer.began,
        "target": transfer.path,
        "bytes": geometry.len(),
        "unit": geometry.unit(),
        "leaf": geometry.leaf(),
        "units": geometry.units(),
        "unitsReceived": known,
        "round": record.round,
        "purpose": record.kind,
        "complete": record.complete,
        "root": root.finish().map(|root: Digest| root.to_string()),
        "damage": receive::damage(state)?,
    });
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

fn tree_manifest(state: &Path, transfer: &TreeTransfer) -> anyhow::Result<()> {
    use crate::core::tree::ports::Shelf as _;
    let mut shelf = crate::net::tree::shelf(state)?;
    let record = tree::record::Record::load(&shelf.open(tree::receiver::RECORD)?)?.unwrap_or_default();
    let name = tree::receiver::base_name(record.generation);
    let mut list = tree::list::List::open(&mut shelf, &name, false)?;
    let (mut root, mut bytes) = (tree::lists::Root::default(), 0_u64);
    for number in 0..list.extent().items {
        let item = list.item(number)?;
        if item.state == tree::item::State::Live {
            root.add(&item);
            if let tree::item::Kind::File { size, .. } = item.kind {
                bytes = bytes.saturating_add(size);
            }
        }
    }
    let shown = serde_json::json!({
        "transfer": crate::core::hash::transfer_name(&transfer.id),
        "source": transfer.source,
        "began": transfer.began,
        "target": transfer.path,
        "entries": root.entries(),
        "bytes": bytes,
        "round": record.round,
        "purpose": record.kind,
        "complete": record.complete,
        "root": record.complete.then(|| root.finish()),
    });
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

/// Two numbers of users or groups.
fn mapping(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("{text:?} is no pair of numbers: write for example 1000:51000");
    let (there, here) = text.split_once(':').ok_or_else(wrong)?;
    match (there.parse(), here.parse()) {
        // By the last number the kernel is told to leave an owner as it is.
        (Ok(there), Ok(here)) if here != u32::MAX => Ok((there, here)),
        _ => Err(wrong()),
    }
}

/// A cap of an agent: what the line carries with all headers.
fn cap(text: &str) -> Result<Rate, String> {
    let rate: Rate = text.parse().map_err(|error: BadRate| error.to_string())?;
    // Less than a modem would never end.
    if rate < Rate::bits(8000) {
        Err(format!("{rate} is too slow to get anywhere: at least 8 kbit/s"))
    } else {
        Ok(rate)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Option<SignedDuration> = text.parse().ok();
    parsed
        .and_then(|time| Duration::try_from(time).ok())
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("{text:?} is no time: write for example 30m or 24h"))
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_fits_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rates_are_bits_and_say_so() {
        assert_eq!(cap("8mbit"), Ok(Rate::bits(8_000_000)));
        assert_eq!(cap("0.5 Mbit/s"), Ok(Rate::bits(500_000)));
        for wrong in ["8", "8MB", "-1mbit", "1bit", "nan mbit", "99999999999gbit"] {
            assert!(cap(wrong).is_err(), "{wrong}");
        }
    }
}
