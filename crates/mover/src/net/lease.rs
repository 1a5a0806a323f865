//! The agent asks the gateway for its share of the site's line, and keeps to it.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::agent::Told;
use super::dial::{Proxy, dial};
use super::{tls, wire};
use crate::cli::Output;
use crate::core::frame::Frame as _;
use crate::core::lease::{Ask, EVERY, Holder, Said, TERM, Why};

/// After a connection that failed, the next try comes so much later.
const AGAIN: Duration = Duration::from_secs(5);

/// Where leases are asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `host:port` of the gateway.
    pub address: String,
    /// The name by which it is asked.
    pub name: String,
    /// The name by which the agent's receiver is called.
    pub route: String,
    /// The proxy through which the agent goes out.
    pub proxy: Option<Proxy>,
    /// The fastest that the agent may send in any case, in bytes each second, as it changes.
    pub cap: watch::Receiver<Option<u64>>,
}

/// Keeps `rate` at what the agent may send, as long as anybody looks at it. While the gateway is not there, the agent
/// goes slowly.
pub async fn follow(
    settings: &Settings,
    config: &Arc<rustls::ClientConfig>,
    told: watch::Receiver<Told>,
    rate: watch::Sender<Option<u64>>,
    output: &Output,
) {
    let mut share = Share {
        began: Instant::now(),
        holder: Holder::default(),
        cap: settings.cap.clone(),
        rate,
        told: None,
    };
    let mut complained = false;
    share.apply(output);
    while !share.rate.is_closed() {
        let why = match ask(settings, Arc::clone(config), &told, &mut share, output).await {
            Ok(()) => "it closed the connection".into(),
            Err(error) => error.to_string(),
        };
        if share.rate.is_closed() {
            return;
        }
        let known = std::mem::replace(&mut complained, true);
        if !known || share.holder.until(share.began.elapsed()).is_some() {
            output.warning(&format!(
                "the gateway at {} does not say how fast to send ({why}): sending slowly until it does; if it stays so, \
                 ask the data centre whether its table has the `identity` of this site",
                settings.address
            ));
        }
        let wait = Instant::now() + AGAIN;
        while Instant::now() < wait {
            // A lease still holds until its end, and not longer.
            let lease = share.holder.until(share.began.elapsed()).map(|until| share.began + until);
            let until = lease.filter(|until| *until < wait).unwrap_or(wait);
            tokio::select! {
                () = sleep_until(until) => {}
                Ok(()) = share.cap.changed() => {}
            }
            share.apply(output);
        }
    }
}

struct Share {
    began: Instant,
    holder: Holder,
    cap: watch::Receiver<Option<u64>>,
    rate: watch::Sender<Option<u64>>,
    told: Option<Why>,
}

impl Share {
    fn apply(&mut self, output: &Output) {
        let now = self.began.elapsed();
        let share = self.holder.rate(now);
        let both = match (share, *self.cap.borrow_and_update()) {
            (Some(share), Some(cap)) => Some(share.min(cap)),
            (share, cap) => share.or(cap),
        };
        self.rate.send_if_modified(|rate| std::mem::replace(rate, both) != both);
        let why = self.holder.why(now);
        match (self.told, why) {
            (told, Some(Why::Paused)) if told != Some(Why::Paused) => {
                output
                    .note("the data centre has paused this site, or its hours give it nothing now: waiting");
            }
            (Some(Why::Paused), Some(_)) => output.note("the site may send again"),
            _ => {}
        }
        self.told = why.or(self.told);
    }
}

/// One connection to the gateway.
async fn ask(
    settings: &Settings,
    config: Arc<rustls::ClientConfig>,
    told: &watch::Receiver<Told>,
    share: &mut Share,
    output: &Output,
) -> Result<(), wire::WireError> {
    let stream = dial(&settings.address, settings.proxy.as_ref()).await?;
    let stream = tls::connect(config, &settings.name, stream).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let (heard, mut grants) = tokio::sync::mpsc::channel(4);
    // A frame must not be lost halfway because it is time to ask.
    let reader = async move {
        while let Some(said) = wire::read::<Said>(&mut from).await? {
            if heard.send(said).await.is_err() {
                break;
            }
        }
        Ok::<_, wire::WireError>(())
    };
    tokio::pin!(reader);
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ends = share.holder.until(share.began.elapsed()).map(|until| share.began + until);
        let ended = async {
            match ends {
                Some(ends) => sleep_until(ends).await,
                None => sleep(TERM).await,
            }
        };
        tokio::select! {
            ended = &mut reader => return ended,
            Some(said) = grants.recv() => if let Said::Grant(grant) = said {
                share.holder.hear(grant);
            },
            _ = every.tick() => {
                let number = share.holder.ask(share.began.elapsed());
                let Told { left, churn } = *told.borrow();
                let ask = Ask { number, route: settings.route.clone(), left, churn };
                timeout(wire::SILENCE, async {
                    to.write_all(&Said::Ask(ask).encode()).await?;
                    to.flush().await
                })
                .await
                .map_err(|_| wire::WireError::Silence)??;
            }
            () = ended => {}
            Ok(()) = share.cap.changed() => {}
            () = share.rate.closed() => return Ok(()),
        }
        share.apply(output);
    }
}
