//! A relay that holds the keys of both ends: it sees every frame in the clear, and may change what passes. Nobody but a
//! test, which made the authority, can have one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use conme_mover::core::frame::{Frame, HEADER, header};
use conme_mover::identity::Identity;
use conme_mover::net::tls;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Site;

/// What looks at the frames. It is asked about every one, before it goes on.
pub trait Watch: Send + 'static {
    /// What an agent says.
    type ToReceiver: Frame + Send;
    /// What the receiver says.
    type ToSender: Frame + Send;
    /// What goes to the receiver in place of this; `None` when the frame goes on byte by byte as it came.
    fn to_receiver(&mut self, frame: Self::ToReceiver) -> Option<Self::ToReceiver>;
    /// What the receiver answers goes on as it came.
    fn to_sender(&mut self, frame: Self::ToSender);
}

/// A relay before a receiver.
pub struct Relay<W> {
    pub address: String,
    pub watch: Arc<Mutex<W>>,
    // Ends the relay when it goes.
    _runtime: tokio::runtime::Runtime,
}

impl<W: Watch> Relay<W> {
    /// Stands between the enrolled agent of a site and its receiver.
    pub fn start(site: &Site, receiver: &str, watch: W) -> Self {
        let server = tls::receiver(&Identity::load(&site.path("receiver")).unwrap()).unwrap();
        let identity = Identity::load(&site.path("agent/identity")).unwrap();
        let (client, name) = (tls::agent(&identity).unwrap(), identity.about.name);
        let receiver: SocketAddr = receiver.parse().unwrap();
        let watch = Arc::new(Mutex::new(watch));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let watched = Arc::clone(&watch);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let near = tls::accept(Arc::clone(&server), stream).await.unwrap();
                let stream = TcpStream::connect(receiver).await.unwrap();
                let far = tls::connect(Arc::clone(&client), &name, stream).await.unwrap();
                let (near, far) = (tokio::io::split(near), tokio::io::split(far));
                let (there, back) = (Arc::clone(&watched), Arc::clone(&watched));
                tokio::spawn(pass(near.0, far.1, move |frame| there.lock().unwrap().to_receiver(frame)));
                tokio::spawn(pass(far.0, near.1, move |frame: W::ToSender| {
                    back.lock().unwrap().to_sender(frame);
                    None
                }));
            }
        });
        Self { address, watch, _runtime: runtime }
    }
}

/// Passes frames on until one end closes: then the other hears of it.
async fn pass<F: Frame>(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut look: impl FnMut(F) -> Option<F>,
) {
    loop {
        let mut bytes = vec![0; HEADER];
        if from.read_exact(&mut bytes).await.is_err() {
            break;
        }
        let head = header::<F>(bytes[..].try_into().unwrap()).unwrap();
        bytes.resize(HEADER + head.len, 0);
        if from.read_exact(&mut bytes[HEADER..]).await.is_err() {
            break;
        }
        if let Some(other) = look(F::decode(head.kind, &bytes[HEADER..]).unwrap()) {
            bytes = other.encode();
        }
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    // It may be closed already.
    let _ = to.shutdown().await;
}
