//! What all connections of a gateway share: the table, who is in, the lines of the sites.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::throttle::Throttle;
use super::{Settings, Table};
use crate::cli::Output;
use crate::core::calendar::Rate;
use crate::core::doors::Doors;
use crate::core::forecast::{self, Facts, Forecast, forecast};
use crate::core::lease::{TERM, TRICKLE, Why};
use crate::core::line::{Line, Said};
use crate::core::share::{Demand, Ledger, UNLIMITED};
use crate::core::sni::BadHello;
use crate::identity::write_private;

/// Connections to one receiver: a server has two while it comes back.
const CONNECTIONS: usize = 8;
/// What a server did is measured over this time.
const MEASURE: Duration = Duration::from_millis(900);
/// A server that seems to want little gets so much more, in bytes each second, that it can show that it wants more.
const ROOM: u64 = 32 << 10;
/// A server whose receiver is not there comes again and again; it is told so often.
const TELL_UNREACHABLE: Duration = Duration::from_secs(60);

/// Why somebody was turned away. Counted, and told once a minute: whoever likes may be turned away at any rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refused {
    /// Too many were in.
    Full,
    /// It did not say in time whom it wants.
    Slow,
    /// It went before it had said it.
    Gone,
    /// What it said is no greeting.
    Greeting(BadHello),
    /// Nobody is called so.
    Unknown,
    /// It asked for leases without a certificate of the site.
    Stranger,
}

impl Refused {
    fn words(self) -> String {
        match self {
            Self::Full => "too many connections".into(),
            Self::Slow => "too slow to say whom they want".into(),
            Self::Gone => "gone before they said whom they want".into(),
            Self::Greeting(error) => error.to_string(),
            Self::Unknown => "a name that is not in the table".into(),
            Self::Stranger => "no certificate of the site".into(),
        }
    }
}

/// A server's share, as it was divided last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    /// Bytes each second; no limit when absent.
    pub(super) rate: Option<u64>,
    /// Until when, by the gateway's clock.
    pub(super) until: Duration,
    /// Why so much.
    pub(super) why: Why,
}

/// One server's way to its receiver.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) site: String,
    pub(super) throttle: Throttle,
    /// Bytes to the receiver.
    pub(super) up: AtomicU64,
    /// Bytes to the server.
    pub(super) down: AtomicU64,
    place: Mutex<(SocketAddr, u32)>,
    open: AtomicUsize,
    connections: AtomicU64,
    unreachable: AtomicU64,
    given: watch::Sender<Given>,
    seen: Mutex<Seen>,
}

/// What is known of what a server does and wants.
#[derive(Debug)]
struct Seen {
    /// Bytes to the receiver when it was measured last, and when that was.
    up: u64,
    at: Duration,
    /// Bytes each second, measured last, and at most so far.
    rate: u64,
    fastest: u64,
    /// What it wants.
    want: u64,
    /// Bytes that it has to send, as it has said.
    left: Option<u64>,
    /// Bytes that a day's changes cost it, as it has said.
    churn: Option<u64>,
    /// When it was last told that the receiver is not there.
    told: Option<Instant>,
    /// What was foretold first, from what.
    foretold: Option<(Line, Facts, Forecast)>,
}

/// A connection that counts as open until it is dropped.
pub(super) struct Open<'a>(&'a Route);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Route {
    fn new(site: &str, address: SocketAddr, weight: u32, now: Duration) -> Self {
        Self {
            site: site.into(),
            throttle: Throttle::new(Some(TRICKLE)),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            place: Mutex::new((address, weight)),
            open: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            given: watch::Sender::new(Given { rate: Some(TRICKLE), until: now, why: Why::Share }),
            seen: Mutex::new(Seen {
                up: 0,
                at: now,
                rate: 0,
                fastest: 0,
                want: UNLIMITED,
                left: None,
                churn: None,
                told: None,
                foretold: None,
            }),
        }
    }

    fn place(&self) -> (SocketAddr, u32) {
        *held(&self.place)
    }

    /// Where the receiver is now.
    pub(super) fn address(&self) -> SocketAddr {
        self.place().0
    }

    /// Another connection, if there is room.
    pub(super) fn open(&self) -> Option<Open<'_>> {
        let more = |open| (open < CONNECTIONS).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        Some(Open(self))
    }

    /// What is given to it, as it changes.
    pub(super) fn leases(&self) -> watch::Receiver<Given> {
        let mut leases = self.given.subscribe();
        leases.mark_unchanged();
        leases
    }

    /// What a server says of itself.
    pub(super) fn heard(&self, left: Option<u64>, churn: Option<u64>) {
        let mut seen = held(&self.seen);
        (seen.left, seen.churn) = (left, churn);
    }

    /// What it could use.
    fn demand(&self, now: Duration) -> Demand {
        let mut seen = held(&self.seen);
        let time = now.saturating_sub(seen.at);
        if time >= MEASURE {
            let up = self.up.load(Ordering::Relaxed);
            let rate = u128::from(up.saturating_sub(seen.up)) * 1000 / time.as_millis().max(1);
            seen.rate = u64::try_from(rate).unwrap_or(u64::MAX);
            seen.fastest = seen.fastest.max(seen.rate);
            (seen.up, seen.at) = (up, now);
            let given = self.given.borrow().rate.unwrap_or(UNLIMITED);
            // Who uses nearly all, or had to wait, would use more.
            let hungry = self.throttle.has_waited() || seen.rate >= given / 8 * 7;
            seen.want = if hungry { UNLIMITED } else { seen.rate + seen.rate / 4 + ROOM };
        }
        Demand { want: seen.want, weight: self.place().1 }
    }
}

struct Site {
    line: Line,
    ledger: Ledger<String>,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) output: Output,
    began: Instant,
    doors: Mutex<Doors>,
    table: watch::Sender<Arc<Table>>,
    table_error: Mutex<Option<String>>,
    routes: Mutex<BTreeMap<String, Arc<Route>>>,
    sites: Mutex<BTreeMap<String, Site>>,
    refused: Mutex<BTreeMap<Refused, (u64, u64)>>,
}

/// What another thread left when it panicked is still the best that is known.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(settings: Settings, table: Table, output: Output) -> anyhow::Result<Self> {
        let shared = Self {
            doors: Mutex::new(Doors::new(settings.limits)),
            table: watch::Sender::new(Arc::new(table)),
            table_error: Mutex::default(),
            routes: Mutex::default(),
            sites: Mutex::default(),
            refused: Mutex::default(),
            began: Instant::now(),
            settings,
            output,
        };
        shared.follow(&shared.table());
        for (site, said) in shared.load_said()? {
            if let Some(site) = held(&shared.sites).get_mut(&site) {
                site.line.said = Some(said);
            }
        }
        Ok(shared)
    }

    pub(super) fn doors(&self) -> MutexGuard<'_, Doors> {
        held(&self.doors)
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.borrow())
    }

    pub(super) fn route(&self, name: &str) -> Option<Arc<Route>> {
        held(&self.routes).get(name).cloned()
    }

    /// The gateway's clock at a moment.
    pub(super) fn elapsed(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }

    pub(super) fn refuse(&self, why: Refused) {
        held(&self.refused).entry(why).or_default().0 += 1;
    }

    /// Tells what has not been told.
    pub(super) fn tell_refused(&self) {
        let mut told = Vec::new();
        for (why, (count, before)) in held(&self.refused).iter_mut() {
            if count > before {
                told.push(format!("{} {}", *count - *before, why.words()));
                *before = *count;
            }
        }
        if !told.is_empty() {
            self.output.warning(&format!("connections were turned away: {}", told.join("; ")));
        }
    }

    pub(super) fn unreachable(&self, name: &str, route: &Route, why: &str) {
        route.unreachable.fetch_add(1, Ordering::Relaxed);
        let mut seen = held(&route.seen);
        if seen.told.is_none_or(|told| told.elapsed() >= TELL_UNREACHABLE) {
            seen.told = Some(Instant::now());
            self.output.warning(&format!(
                "the receiver of {} at {} cannot be reached ({name}): {why}; is `conme-mover receive` running there?",
                route.site,
                route.address()
            ));
        }
    }

    /// Returns when the table leads this name to this site no longer.
    pub(super) async fn gone(&self, name: &str, route: &Arc<Route>) {
        let mut table = self.table.subscribe();
        // A route that was taken out and is back is another one: this one's share is nobody's concern any more.
        let stays = || self.route(name).is_some_and(|now| Arc::ptr_eq(&now, route));
        // It ends with `self` only.
        let _ = table.wait_for(|_| !stays()).await;
    }

    /// Reads the table again, if it has changed. One that cannot be used changes nothing.
    pub(super) async fn look_at_table(&self) {
        let path = self.settings.table.clone();
        let loaded = tokio::task::spawn_blocking(move || Table::load(&path)).await;
        let problem = match loaded {
            Ok(Ok(table)) => {
                if !table.is_same(&self.table()) {
                    self.follow(&table);
                    self.table.send_replace(Arc::new(table));
                    self.output.note("the table has changed and is followed");
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let mut last = held(&self.table_error);
        if let Some(problem) = &problem
            && last.as_ref() != Some(problem)
        {
            self.output.warning(&format!("the table cannot be used, so the one before holds: {problem}"));
        }
        *last = problem;
    }

    fn follow(&self, table: &Table) {
        let now = self.began.elapsed();
        {
            let mut routes = held(&self.routes);
            routes.retain(|name, route| table.route(name).is_some_and(|now| now.site == route.site));
            for (name, to) in table.routes() {
                match routes.get(name) {
                    Some(route) => *held(&route.place) = (to.address, to.weight),
                    None => {
                        let route = Route::new(&to.site, to.address, to.weight, now);
                        routes.insert(name.clone(), Arc::new(route));
                    }
                }
            }
        }
        let mut sites = held(&self.sites);
        sites.retain(|name, _| table.site(name).is_some());
        for (name, site) in table.sites() {
            let mine = sites
                .entry(name.clone())
                .or_insert_with(|| Site { line: Line::default(), ledger: Ledger::default() });
            mine.line.calendar = site.line.clone();
        }
    }

    /// Divides the lines of all sites anew.
    pub(super) fn divide_all(&self) {
        let sites: Vec<String> = held(&self.sites).keys().cloned().collect();
        for site in sites {
            self.divide(&site);
        }
    }

    /// Divides the line of a site anew among those that are connected.
    pub(super) fn divide(&self, name: &str) {
        let routes: BTreeMap<String, Arc<Route>> = held(&self.routes)
            .iter()
            .filter(|(_, route)| route.site == name && route.open.load(Ordering::Relaxed) > 0)
            .map(|(name, route)| (name.clone(), Arc::clone(route)))
            .collect();
        let mut sites = held(&self.sites);
        let Some(site) = sites.get_mut(name) else { return };
        let (now, clock) = (self.began.elapsed(), Timestamp::now());
        let until = now + TERM;
        // A lease that lasts into an hour with a lower cap must not be more than that.
        let ends = SignedDuration::try_from(TERM).ok().and_then(|term| clock.checked_add(term).ok());
        let lowest = site.line.lowest(clock, ends.unwrap_or(clock)).map(Rate::content);
        let least = TRICKLE.saturating_mul(routes.len() as u64);
        let cap = lowest.map_or(UNLIMITED, |cap| cap.max(least));
        let demands = routes.iter().map(|(name, route)| (name.clone(), route.demand(now))).collect();
        let why = match lowest {
            None => Why::Open,
            Some(cap) if cap <= least => Why::Paused,
            Some(_) => Why::Share,
        };
        for (name, lease) in site.ledger.grant(now, until, cap, &demands) {
            let Some(route) = routes.get(&name) else { continue };
            let rate = Some(lease.rate.max(TRICKLE)).filter(|_| lease.rate != UNLIMITED);
            route.throttle.set_rate(rate);
            let given = Given { rate, until, why };
            // A lease that only becomes longer is told when it is asked for.
            route.given.send_if_modified(|before| {
                let other = (before.rate, before.why) != (given.rate, given.why);
                *before = given;
                other
            });
        }
    }

    fn said_path(&self) -> PathBuf {
        self.settings.state.join("said.json")
    }

    fn load_said(&self) -> anyhow::Result<BTreeMap<String, Said>> {
        match std::fs::read(self.said_path()) {
            Ok(text) => Ok(serde_json::from_slice(&text).map_err(|error| {
                anyhow::anyhow!(
                    "{} is damaged ({error}): remove it, then say again what is paused",
                    self.said_path().display()
                )
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(anyhow::anyhow!("{}: {error}", self.said_path().display())),
        }
    }

    /// A person says something about a line, or takes it back. It is kept before it holds: a gateway that is started
    /// again does not go on with what was paused.
    ///
    /// # Errors
    /// When there is no such site, or it cannot be kept.
    pub(super) fn say(&self, name: &str, said: Option<Said>) -> anyhow::Result<Value> {
        {
            let mut sites = held(&self.sites);
            if !sites.contains_key(name) {
                let known: Vec<&str> = sites.keys().map(String::as_str).collect();
                anyhow::bail!("there is no site {name:?}; there are: {}", known.join(", "));
            }
            let mut all: BTreeMap<&String, Said> =
                sites.iter().filter_map(|(name, site)| Some((name, site.line.said?))).collect();
            let name = name.to_owned();
            match said {
                Some(said) => all.insert(&name, said),
                None => all.remove(&name),
            };
            write_private(&self.said_path(), &serde_json::to_vec_pretty(&all)?)?;
            if let Some(site) = sites.get_mut(&name) {
                site.line.said = said;
            }
        }
        self.divide(name);
        let status = self.status();
        Ok(status["sites"][name].clone())
    }

    /// Everything, for a person or a program.
    pub(super) fn status(&self) -> Value {
        let clock = Timestamp::now();
        let lines: BTreeMap<String, Line> =
            held(&self.sites).iter().map(|(name, site)| (name.clone(), site.line.clone())).collect();
        let routes = held(&self.routes).clone();
        let busy = |site: &str| {
            let mine = routes.values().filter(|route| route.site == site);
            mine.filter(|route| route.open.load(Ordering::Relaxed) > 0)
                .map(|route| u64::from(route.place().1))
                .sum()
        };
        let sites: BTreeMap<&String, Value> = lines
            .iter()
            .map(|(name, line)| {
                let all: u64 = busy(name);
                let each: BTreeMap<&String, Value> = routes
                    .iter()
                    .filter(|(_, route)| route.site == *name)
                    .map(|(name, route)| (name, route.status(clock, line, all)))
                    .collect();
                let site = json!({
                    "cap": line.cap_at(clock),
                    "paused": line.is_paused(clock),
                    "said": line.said,
                    "capChanges": line.next_change(clock),
                    "routes": each,
                });
                (name, site)
            })
            .collect();
        let (unknown, led) = self.doors().inside();
        let refused: BTreeMap<String, u64> =
            held(&self.refused).iter().map(|(why, (count, _))| (why.words(), *count)).collect();
        json!({
            "sites": sites,
            "connections": { "unknown": unknown, "led": led },
            "turnedAway": refused,
            "tableProblem": *held(&self.table_error),
        })
    }
}

/// A route, as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteStatus {
    receiver: SocketAddr,
    weight: u32,
    open: usize,
    connections: u64,
    unreachable: u64,
    bytes_up: u64,
    bytes_down: u64,
    bytes_each_second: u64,
    share: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_each_day: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<Forecast>,
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    later: Option<&'static str>,
}

impl Route {
    /// `all` is the weight of those of the site that are connected.
    fn status(&self, clock: Timestamp, line: &Line, all: u64) -> Value {
        let (receiver, weight) = self.place();
        let open = self.open.load(Ordering::Relaxed);
        let mut seen = held(&self.seen);
        let facts = seen.left.map(|left| Facts {
            left,
            measured: Some(seen.fastest).filter(|fastest| *fastest > TRICKLE && line.cap_at(clock).is_none()),
            // Before the second round nobody knows.
            churn: seen.churn.unwrap_or(0),
            share: f64::from(weight) / (all.max(u64::from(weight)) as f64),
        });
        let foretold = facts.map(|facts| forecast(clock, line, &facts));
        let later = match (&seen.foretold, &foretold, &facts) {
            (Some((before, old, was)), Some(_), Some(facts)) => {
                forecast::why_later(clock, (before, old), was, (line, facts))
            }
            _ => None,
        };
        if seen.foretold.is_none()
            && let (Some(facts), Some(foretold)) = (facts, &foretold)
        {
            seen.foretold = Some((line.clone(), facts, foretold.clone()));
        }
        let status = RouteStatus {
            receiver,
            weight,
            open,
            connections: self.connections.load(Ordering::Relaxed),
            unreachable: self.unreachable.load(Ordering::Relaxed),
            bytes_up: self.up.load(Ordering::Relaxed),
            bytes_down: self.down.load(Ordering::Relaxed),
            bytes_each_second: if open > 0 { seen.rate } else { 0 },
            share: self.given.borrow().rate.filter(|_| open > 0),
            left: seen.left,
            changed_each_day: seen.churn,
            words: foretold.as_ref().map(|foretold| foretold.words(line.calendar.zone())),
            forecast: foretold,
            later: later.map(forecast::Cause::words),
        };
        json!(status)
    }
}
