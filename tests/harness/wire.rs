//! The line between the operator and a database server: a proxy below TLS that counts what the operator sends and can cut
//! the line right before a message of choice, so that a server can be ended between any two statements.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU16, Ordering},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};

#[derive(Default)]
struct Plan {
    /// Messages that still pass, and who is told when the one after them has come.
    stop: Option<(u32, oneshot::Sender<()>)>,
}

struct Shared {
    to: AtomicU16,
    plan: Mutex<Plan>,
    /// Connections of an earlier age end.
    age: watch::Sender<u64>,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message of the client may pass.
    fn may_pass(&self) -> bool {
        let mut plan = self.plan();
        match plan.stop.take() {
            Some((0, told)) => {
                // The story may have gone on without waiting.
                let _ = told.send(());
                false
            }
            Some((left, told)) => {
                plan.stop = Some((left - 1, told));
                true
            }
            None => true,
        }
    }
}

/// A line to a database server; ends when it is dropped.
pub struct Wire {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Wire {
    /// A line to a port of this machine that lets everything pass.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?.port();
        let age = watch::Sender::new(0);
        let shared = Arc::new(Shared { to: AtomicU16::new(port), plan: Mutex::default(), age });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { port: own, shared, accepting })
    }

    /// Port of this end.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on new connections lead to another port; those that are open end.
    pub fn lead_to(&self, port: u16) {
        self.shared.to.store(port, Ordering::Release);
        self.cut();
    }

    /// Ends every connection that is open.
    pub fn cut(&self) {
        self.shared.age.send_modify(|age| *age += 1);
    }

    /// Lets so many messages of clients pass and holds the next one back for ever; tells when it has come.
    pub fn stop_after(&self, messages: u32) -> oneshot::Receiver<()> {
        let (told, tells) = oneshot::channel();
        self.shared.plan().stop = Some((messages, told));
        tells
    }

    /// Lets everything pass again.
    pub fn let_pass(&self) {
        self.shared.plan().stop = None;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Aborted with the line, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        connections.spawn(connect(client, shared.clone()));
    }
}

async fn connect(mut client: TcpStream, shared: Arc<Shared>) {
    let mut age = shared.age.subscribe();
    // Refused is refused: the client sees its connection end.
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", shared.to.load(Ordering::Acquire))).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let there = async {
        let mut message = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut message).await {
            if !shared.may_pass() {
                std::future::pending::<()>().await;
            }
            if to_server.write_all(&message[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = there => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        _ = age.changed() => {}
    }
}
