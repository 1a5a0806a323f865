//! The one public port of the data centre: leads every connection to the receiver that it names, without seeing what
//! is said, at the pace that the line of its site allows.
//!
//! What it decides is in [`crate::core`]: `sni` reads the name, `doors` counts who is in, `share` and `lease` divide a
//! line, `calendar` and `line` say how wide it is.

mod leases;
mod order;
mod relay;
mod shared;
mod table;
mod throttle;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout};

pub use order::{Order, ask};
pub use table::{BadTable, Table};

use crate::cli::Output;
use crate::core::doors::{Limits, Place};
use crate::core::sni::Greeting;
use crate::identity::{lock, make_private_dir};
use shared::{Refused, Shared};

/// How often the lines of all sites are divided anew.
const TICK: Duration = Duration::from_millis(250);
/// How often the table is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often those are told who were turned away.
const TELL: Duration = Duration::from_secs(60);
/// A receiver that does not take a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(10);

/// What a gateway is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The file with sites and routes.
    pub table: PathBuf,
    /// Where it keeps what people have said, and where it is asked.
    pub state: PathBuf,
    /// How many may be in.
    pub limits: Limits,
    /// Who has not said within this time whom he wants is turned away.
    pub greeting: Duration,
    /// A connection in which nothing moves for so long is closed.
    pub idle: Duration,
}

/// Leads connections until the process is ended.
///
/// # Errors
/// When it cannot listen, the table cannot be used, or another gateway works in the same state directory.
pub async fn serve(settings: Settings, output: Output) -> anyhow::Result<()> {
    make_private_dir(&settings.state)?;
    let _held = lock(&settings.state)?;
    let table = Table::load(&settings.table)?;
    let shared = Arc::new(Shared::new(settings.clone(), table, output.clone())?);
    let control = crate::control::listen(&settings.state)?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    output.listening(listener.local_addr()?);
    tokio::select! {
        () = accept(&listener, &shared) => {}
        () = crate::control::serve(&control, |text| order::answer(&shared, text), &output) => {}
        () = keep_house(&shared) => {}
    }
    Ok(())
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match Ticket::enter(shared, from.ip()) {
                Some(ticket) => drop(tokio::spawn(lead(Arc::clone(shared), stream, ticket))),
                None => shared.refuse(Refused::Full),
            },
            Err(error) => {
                shared.output.warning(&format!("a connection could not be taken: {error}"));
                // Without file descriptors the next try fails at once, too.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn keep_house(shared: &Arc<Shared>) {
    let (mut tick, mut look, mut tell) = (interval(TICK), interval(LOOK), interval(TELL));
    loop {
        tokio::select! {
            _ = tick.tick() => shared.divide_all(),
            _ = look.tick() => shared.look_at_table().await,
            _ = tell.tick() => shared.tell_refused(),
        }
    }
}

/// A place among those who are in, given back when it is dropped.
struct Ticket {
    shared: Arc<Shared>,
    place: Place,
    led: bool,
}

impl Ticket {
    fn enter(shared: &Arc<Shared>, address: IpAddr) -> Option<Self> {
        let place = Place::of(address);
        shared.doors().enter(place).then(|| Self { shared: Arc::clone(shared), place, led: false })
    }

    fn lead(&mut self) -> bool {
        self.led = self.shared.doors().lead(self.place);
        self.led
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.doors().leave(self.place, self.led);
    }
}

/// Leads one connection to its end. Whoever is turned away hears nothing: no name is different from another.
async fn lead(shared: Arc<Shared>, mut stream: TcpStream, mut ticket: Ticket) {
    // An answer of a few bytes must not wait for more.
    let _ = stream.set_nodelay(true);
    let (name, said) = match timeout(shared.settings.greeting, greeting(&mut stream)).await {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(refused)) => return shared.refuse(refused),
        Err(_) => return shared.refuse(Refused::Slow),
    };
    let table = shared.table();
    if let Some(site) = table.leases_of(&name) {
        if !ticket.lead() {
            return shared.refuse(Refused::Full);
        }
        return leases::serve(&shared, site, stream, said).await;
    }
    let Some(route) = shared.route(&name) else { return shared.refuse(Refused::Unknown) };
    if !ticket.lead() {
        return shared.refuse(Refused::Full);
    }
    let Some(_open) = route.open() else { return shared.refuse(Refused::Full) };
    // It gets its share before its first byte.
    shared.divide(&route.site);
    let receiver = match timeout(CONNECT, TcpStream::connect(route.address())).await {
        Ok(Ok(receiver)) => receiver,
        Ok(Err(error)) => return shared.unreachable(&name, &route, &error.to_string()),
        Err(_) => return shared.unreachable(&name, &route, "it does not answer"),
    };
    let _ = receiver.set_nodelay(true);
    relay::relay(&shared, &name, &route, stream, receiver, &said).await;
}

/// Whom a client wants, and all that it has said so far.
async fn greeting(stream: &mut TcpStream) -> Result<(String, Vec<u8>), Refused> {
    use tokio::io::AsyncReadExt as _;
    let mut greeting = Greeting::default();
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return Err(Refused::Gone),
            Ok(count) => {
                said.extend_from_slice(&piece[..count]);
                match greeting.take(&piece[..count]) {
                    Ok(Some(name)) => return Ok((name, said)),
                    Ok(None) => {}
                    Err(error) => return Err(Refused::Greeting(error)),
                }
            }
        }
    }
}
