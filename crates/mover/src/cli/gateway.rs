//! `conme-mover gateway`: run it, ask it, tell it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Output, duration, runtime};
use crate::core::calendar::Rate;
use crate::core::doors::Limits;
use crate::core::line::{Said, Word};
use crate::gateway::{Order, Settings, Table, ask, serve};

/// Where a gateway keeps its state when nothing else is said.
const STATE: &str = "/var/lib/conme-mover-gateway";

#[derive(Debug, Subcommand)]
pub(super) enum Gateway {
    /// Lead servers to their receivers until ended.
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// Check a table, without using it.
    Check {
        /// The table.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
    },
    /// Show sites, servers, bytes, shares and forecasts, as JSON.
    Status(At),
    /// Give a site another cap, instead of its calendar.
    Cap {
        /// The site.
        site: String,
        /// The cap, such as "20 Mbit/s".
        cap: Rate,
        #[command(flatten)]
        time: Time,
        #[command(flatten)]
        at: At,
    },
    /// Stop moving for a site, at once. Connections stay, with a trickle that says that both ends are there.
    Pause {
        /// The site.
        site: String,
        #[command(flatten)]
        time: Time,
        #[command(flatten)]
        at: At,
    },
    /// End a pause or a cap: the calendar of the site holds again.
    Resume {
        /// The site.
        site: String,
        #[command(flatten)]
        at: At,
    },
}

const RUN_HELP: &str = "\
The table is YAML, and is followed within a second when it changes; a table that cannot be used changes nothing:

  sites:
    torre-di-mosto:
      identity: gateway-torre-di-mosto   # of `conme-mover ca gateway`, beside this file; may be left out
      line:
        timezone: Europe/Rome            # the default
        cap: 100 Mbit/s                  # at all other hours; no cap when left out
        hours:                           # the first that fits holds; to before from ends on the next day
          - {days: [mon, tue, wed, thu, fri], from: '07:30', to: '19:00', cap: 10 Mbit/s}
  routes:                                # names: `name` in the about.json of each receiver
    3f2a….mover.invalid: {site: torre-di-mosto, address: '10.0.4.7:7443'}
    9c01….mover.invalid: {site: torre-di-mosto, address: '10.0.4.8:7443', weight: 2}

The gateway never sees what is sent: TLS ends at the receiver. Servers share the cap of their site fairly; those that
ask the gateway for leases (`conme-mover ca token --through-gateway`) also send evenly by themselves.";

#[derive(Debug, Args)]
pub(super) struct At {
    /// The state directory of the gateway.
    #[arg(long, value_name = "DIR", default_value = STATE)]
    state: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Time {
    /// For so long, such as 2h; until `resume` when absent.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    lasting: Option<Duration>,
}

impl Time {
    pub(super) fn until(&self) -> anyhow::Result<Option<Timestamp>> {
        match self.lasting {
            None => Ok(None),
            Some(lasting) => Ok(Some(Timestamp::now().checked_add(SignedDuration::try_from(lasting)?)?)),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:443")]
    listen: SocketAddr,
    /// Sites and routes; see below.
    #[arg(long, value_name = "FILE")]
    table: PathBuf,
    /// What was said to it is kept here, and here it is asked.
    #[arg(long, value_name = "DIR", default_value = STATE)]
    state: PathBuf,
    /// Connections that are led to receivers at once.
    #[arg(long, value_name = "COUNT", default_value_t = 2048)]
    connections: usize,
    /// The same, from one address. Where a balancer hides addresses, as many as above.
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    connections_each: usize,
    /// Connections that have not said yet whom they want.
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    unknown: usize,
    /// The same, from one address.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    unknown_each: usize,
    /// Within this time they have to say it.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    greeting: Duration,
    /// A connection in which nothing moves for so long is closed.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    idle: Duration,
}

pub(super) fn run(gateway: Gateway, output: &Output) -> anyhow::Result<ExitCode> {
    match gateway {
        Gateway::Run(args) => {
            let settings = Settings {
                listen: args.listen,
                table: args.table,
                state: args.state,
                limits: Limits {
                    unknown: args.unknown,
                    unknown_each: args.unknown_each,
                    led: args.connections,
                    led_each: args.connections_each,
                },
                greeting: args.greeting,
                idle: args.idle,
            };
            runtime()?.block_on(serve(settings, output.clone()))?;
        }
        Gateway::Check { table } => {
            let read = Table::load(&table)?;
            output.note(&format!(
                "{} can be used: {} sites, {} routes",
                table.display(),
                read.sites().count(),
                read.routes().count()
            ));
        }
        Gateway::Status(at) => print(&runtime()?.block_on(ask(&at.state, &Order::Status))?)?,
        Gateway::Cap { site, cap, time, at } => {
            say(&at, site, Some(Said { word: Word::Cap(cap), until: time.until()? }))?;
        }
        Gateway::Pause { site, time, at } => {
            say(&at, site, Some(Said { word: Word::Pause, until: time.until()? }))?;
        }
        Gateway::Resume { site, at } => say(&at, site, None)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn say(at: &At, site: String, said: Option<Said>) -> anyhow::Result<()> {
    print(&runtime()?.block_on(ask(&at.state, &Order::Say { site, said }))?)
}

pub(super) fn print(value: &Value) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout().lock(), "{}", serde_json::to_string_pretty(value)?)?)
}
