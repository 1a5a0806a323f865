//! Copies both ways between a server and its receiver. What is copied is TLS, and stays so.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until};

use super::shared::{Route, Shared};
use crate::core::pace::QUANTUM;

/// Bytes that the kernel may hold of what a server sent too fast: enough for 200 Mbit/s at 40 ms, and a bound for what
/// comes in a burst when a line becomes narrower.
const HELD: usize = 1 << 20;

/// Copies until both ends have said all, one of them breaks, nothing moves any more, or the route is gone.
pub(super) async fn relay(
    shared: &Shared,
    name: &str,
    route: &Arc<Route>,
    server: TcpStream,
    receiver: TcpStream,
    said: &[u8],
) {
    // Only a bound: without it the kernel's own holds.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&server, HELD);
    let moved = Moved(Mutex::new(Instant::now()));
    let (from_server, to_server) = server.into_split();
    let (from_receiver, mut to_receiver) = receiver.into_split();
    let both = async {
        to_receiver.write_all(said).await?;
        route.up.fetch_add(said.len() as u64, Ordering::Relaxed);
        tokio::try_join!(
            up(from_server, to_receiver, route, &moved),
            down(from_receiver, to_server, route, &moved)
        )
    };
    tokio::select! {
        // A connection that breaks is nothing to tell: the server comes again.
        _ = both => {}
        () = moved.nothing_for(shared.settings.idle) => {}
        () = shared.gone(name, route) => {}
    }
}

/// When something was copied last.
struct Moved(Mutex<Instant>);

impl Moved {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn nothing_for(&self, time: std::time::Duration) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + time;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// To the receiver, at the pace of the route: what is not read from the server holds it back.
async fn up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    route: &Route,
    moved: &Moved,
) -> std::io::Result<()> {
    let mut buffer = vec![0; QUANTUM];
    loop {
        let most = route.throttle.quantum().min(buffer.len());
        let count = from.read(&mut buffer[..most]).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        route.throttle.pass(count).await;
        to.write_all(&buffer[..count]).await?;
        route.up.fetch_add(count as u64, Ordering::Relaxed);
        moved.now();
    }
}

/// To the server: acknowledgements, so they are not held back.
async fn down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    route: &Route,
    moved: &Moved,
) -> std::io::Result<()> {
    let mut buffer = vec![0; QUANTUM];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        route.down.fetch_add(count as u64, Ordering::Relaxed);
        moved.now();
    }
}
