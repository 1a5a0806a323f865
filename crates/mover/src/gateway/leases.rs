//! Tells the servers of a site their share of its line. Only here does the gateway end TLS: this connection is its own.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::shared::{Refused, Shared};
use crate::core::lease::{Grant, Said};
use crate::net::{tls, wire};

/// What is told has to be taken within this time.
const WRITE: Duration = Duration::from_secs(10);
/// A server that asks more often waits.
const BETWEEN: Duration = Duration::from_millis(100);

/// Answers one server until it goes.
pub(super) async fn serve(shared: &Shared, site: &str, stream: TcpStream, said: Vec<u8>) {
    let table = shared.table();
    let Some(config) = table.site(site).and_then(|site| site.leases.clone()) else { return };
    let (from, to) = stream.into_split();
    let stream = tokio::io::join(std::io::Cursor::new(said).chain(from), to);
    // Who does not pass the handshake is a stranger, or a server whose certificate has run out: it will say so itself.
    let Ok(stream) = tls::accept(config, stream).await else {
        return shared.refuse(Refused::Stranger);
    };
    let (mut from, mut to) = tokio::io::split(stream);
    let (heard, mut asks) = mpsc::channel(1);
    // Apart from what is told, so that no question is lost halfway.
    let reader = async move {
        while let Ok(Some(Said::Ask(ask))) = wire::read::<Said>(&mut from).await {
            if heard.send(ask).await.is_err() {
                return;
            }
            sleep(BETWEEN).await;
        }
    };
    tokio::pin!(reader);
    let mut asked: Option<Asked> = None;
    loop {
        // What was divided anew is told at once, not when it is asked for next.
        let divided = async {
            match &mut asked {
                Some(asked) => asked.leases.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut reader => return,
            Some(ask) = asks.recv() => {
                // A name of another site is no different from one that is not there.
                let Some(route) = shared.route(&ask.route).filter(|route| route.site == site) else {
                    return shared.refuse(Refused::Unknown);
                };
                route.heard(ask.left, ask.churn);
                asked = Some(Asked { number: ask.number, at: Instant::now(), leases: route.leases() });
            }
            true = divided => {}
        }
        if let Some(asked) = &mut asked
            && tell(&mut to, shared, asked).await.is_err()
        {
            return;
        }
    }
}

/// The question that leases answer until the next one comes.
struct Asked {
    number: u64,
    at: Instant,
    leases: tokio::sync::watch::Receiver<super::shared::Given>,
}

async fn tell(to: &mut (impl AsyncWrite + Unpin), shared: &Shared, asked: &mut Asked) -> std::io::Result<()> {
    let given = *asked.leases.borrow_and_update();
    let left = given.until.saturating_sub(shared.elapsed(asked.at));
    let grant = Grant {
        number: asked.number,
        rate: given.rate,
        millis: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        why: given.why,
    };
    timeout(WRITE, async {
        to.write_all(&crate::core::frame::Frame::encode(&Said::Grant(grant))).await?;
        to.flush().await
    })
    .await
    .map_err(|_| std::io::ErrorKind::TimedOut)?
}
