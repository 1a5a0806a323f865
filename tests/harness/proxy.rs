//! What can go wrong between the operator and the API server: a proxy that answers in its place, loses answers, holds
//! them back, and lets watches fall silent. TLS on both sides, with the certificates of the instance.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
};

use anyhow::{Context, Result};
use conme_testbed::install::OPERATOR;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as HttpBody, Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{
    Client,
    client::Body,
    config::{AuthInfo, Kubeconfig},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::{DataCentre, connect, load::Dice};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, Error>>;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 409, as when somebody else was faster. Of requests that read it makes [`Fault::Internal`].
    Conflict,
    /// 429 as the API server's queues answer: in plain words, with `Retry-After: 1`.
    TooManyRequests,
    /// 429 without saying when to come back.
    Throttled,
    /// 500.
    Internal,
    /// 503.
    Unavailable,
    /// 504, although nothing was done.
    Timeout,
    /// It is done, and the answer never arrives.
    AnswerLost,
    /// The connection ends before it is done.
    NeverSent,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 8] = [
        Self::Conflict,
        Self::TooManyRequests,
        Self::Throttled,
        Self::Internal,
        Self::Unavailable,
        Self::Timeout,
        Self::AnswerLost,
        Self::NeverSent,
    ];

    /// The answer in the API server's place; None where there is none.
    fn answer(self) -> Option<Answer> {
        let (code, reason, message) = match self {
            Self::Conflict => {
                (409, "Conflict", "Operation cannot be fulfilled: the object has been modified")
            }
            Self::TooManyRequests => {
                return Some(answer(
                    429,
                    "text/plain",
                    "Too many requests, please try again later.",
                    Some("1"),
                ));
            }
            Self::Throttled => (429, "TooManyRequests", "storage is (re)initializing"),
            Self::Internal => {
                (500, "InternalError", "Internal error occurred: etcdserver: request timed out")
            }
            Self::Unavailable => (503, "ServiceUnavailable", "apiserver is shutting down"),
            Self::Timeout => {
                (504, "Timeout", "Timeout: request did not complete within the allotted timeout")
            }
            Self::AnswerLost | Self::NeverSent => return None,
        };
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        });
        Some(answer(code, "application/json", &status.to_string(), None))
    }
}

fn answer(code: u16, content_type: &str, text: &str, retry_after: Option<&str>) -> Answer {
    let body =
        Full::new(Bytes::from(text.to_owned())).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).expect("a status code");
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type.parse().expect("a content type"));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.parse().expect("a number"));
    }
    answer
}

/// A request as a trap sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub path: String,
}

type Wanted = Box<dyn Fn(&Seen) -> bool + Send>;

struct Trap {
    wanted: Wanted,
    caught: oneshot::Sender<Seen>,
    release: oneshot::Receiver<()>,
}

/// An answer that is held back, or is about to be.
pub struct Held {
    caught: oneshot::Receiver<Seen>,
    release: oneshot::Sender<()>,
}

impl Held {
    /// Waits until a request has been caught: it is done, and its answer held back.
    ///
    /// # Errors
    /// When there is none within [`crate::PATIENCE`].
    pub async fn caught(&mut self) -> Result<Seen> {
        let caught = tokio::time::timeout(crate::PATIENCE, &mut self.caught).await;
        Ok(caught.context("no such request came")??)
    }

    /// Lets the answer go.
    pub fn release(self) {
        // Nobody waits for it any more when the connection has ended meanwhile.
        let _ = self.release.send(());
    }
}

struct Script {
    dice: Dice,
    percent: u64,
    faults: Vec<Fault>,
    trap: Option<Trap>,
    told: BTreeMap<Fault, u32>,
    passed: u32,
    writes: u32,
}

struct Shared {
    upstream: Client,
    script: Mutex<Script>,
    /// Watches that were begun in an earlier age say nothing any more.
    age: AtomicU64,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy in front of the API server of an instance; ends when it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Starts one that lets everything pass. `seed` decides which requests are hit later.
    ///
    /// # Errors
    /// When the certificates of the instance cannot be used.
    pub async fn start(data_centre: &DataCentre, seed: u64) -> Result<Self> {
        let instance = data_centre.instance();
        let mut kubeconfig = Kubeconfig::read_from(instance.kubeconfig()?)?;
        // Whoever calls brings a token of their own.
        kubeconfig.auth_infos.iter_mut().for_each(|user| user.auth_info = Some(AuthInfo::default()));
        let upstream = connect(kubeconfig, None).await?;
        let pki = instance.dir().join("pki");
        let certificates =
            CertificateDer::pem_file_iter(pki.join("apiserver.crt"))?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(pki.join("apiserver.key"))?;
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let script = Script {
            dice: Dice(seed),
            percent: 0,
            faults: Vec::new(),
            trap: None,
            told: BTreeMap::new(),
            passed: 0,
            writes: 0,
        };
        let shared = Arc::new(Shared { upstream, script: Mutex::new(script), age: AtomicU64::new(0) });
        let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), shared.clone()));
        Ok(Self { port, shared, accepting })
    }

    /// Puts itself between the operator of the instance and its API server, and starts the operator again.
    ///
    /// # Errors
    /// When no operator is installed, or it cannot be started.
    pub async fn stand_before_operator(&self, data_centre: &DataCentre) -> Result<()> {
        let instance = data_centre.instance();
        let path = instance.dir().join("operator.kubeconfig");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        for cluster in config["clusters"].as_array_mut().context("a kubeconfig with clusters")? {
            cluster["cluster"]["server"] = json!(format!("https://127.0.0.1:{}", self.port));
        }
        instance.stop_program(OPERATOR).await?;
        // The files keep their mode: they hold a token.
        std::fs::copy(&path, direct_kubeconfig(data_centre))?;
        std::fs::write(&path, config.to_string())?;
        instance.start_program(OPERATOR).await?;
        data_centre.operator_gets_ready(async || Ok(())).await
    }

    /// From now on so many of a hundred requests meet one of these faults.
    pub fn break_requests(&self, percent: u64, faults: &[Fault]) {
        let mut script = self.shared.script();
        script.percent = percent;
        script.faults = faults.to_vec();
    }

    /// From now on every request is answered as the API server does.
    pub fn heal(&self) {
        self.break_requests(0, &[]);
    }

    /// How many requests have met each fault, and how many none.
    pub fn told(&self) -> (BTreeMap<Fault, u32>, u32) {
        let script = self.shared.script();
        (script.told.clone(), script.passed)
    }

    /// How many requests that could change something have passed, but for those about leases.
    pub fn writes(&self) -> u32 {
        self.shared.script().writes
    }

    /// Every watch that is open now stays open and says nothing any more: no event, no bookmark, no end.
    pub fn silence_watches(&self) {
        self.shared.age.fetch_add(1, Ordering::AcqRel);
    }

    /// The answer of the next such request is held back until it is released; the request itself is done.
    pub fn hold_answer(&self, wanted: impl Fn(&Seen) -> bool + Send + 'static) -> Held {
        let (caught, caught_by) = oneshot::channel();
        let (release_by, release) = oneshot::channel();
        self.shared.script().trap = Some(Trap { wanted: Box::new(wanted), caught, release });
        Held { caught: caught_by, release: release_by }
    }
}

/// The operator's kubeconfig as it was before a proxy stood in the way.
pub fn direct_kubeconfig(data_centre: &DataCentre) -> PathBuf {
    data_centre.instance().dir().join("operator.direct.kubeconfig")
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    // Aborted with the proxy, and all connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, tls.clone(), shared.clone()));
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(|request| pass(request, shared.clone()));
    // A connection that breaks is what this is for: whoever called notices.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Passes a request on, or lets it meet its fault. An error ends the connection without an answer.
async fn pass(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Error> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let seen = Seen { method: request.method().clone(), path };
    let is_watch = seen.path.contains("watch=true") || seen.path.contains("watch=1");
    let (fault, trap) = {
        let mut script = shared.script();
        let is_wanted = script.trap.as_ref().is_some_and(|trap| (trap.wanted)(&seen));
        let trap = if is_wanted { script.trap.take() } else { None };
        let is_hit = trap.is_none() && script.dice.below(100) < script.percent;
        let fault = if is_hit {
            let among = script.faults.len() as u64;
            let chosen = script.dice.below(among) as usize;
            Some(match script.faults[chosen] {
                Fault::Conflict if seen.method == Method::GET => Fault::Internal,
                // A watch has no one answer that could be lost.
                Fault::AnswerLost if is_watch => Fault::NeverSent,
                fault => fault,
            })
        } else {
            None
        };
        match fault {
            Some(fault) => *script.told.entry(fault).or_default() += 1,
            None => {
                script.passed += 1;
                let is_write = seen.method != Method::GET && !seen.path.contains("/leases/");
                script.writes += u32::from(is_write);
            }
        }
        (fault, trap)
    };
    if let Some(answer) = fault.and_then(Fault::answer) {
        return Ok(answer);
    }
    if fault == Some(Fault::NeverSent) {
        return Err("the connection ends here".into());
    }
    let age = shared.age.load(Ordering::Acquire);
    let (head, body) = request.into_parts();
    let body = Body::from(body.collect().await?.to_bytes().to_vec());
    let (head, body) = shared.upstream.send(Request::from_parts(head, body)).await?.into_parts();
    if is_watch {
        let body = Watch { inner: body, shared, age };
        return Ok(Response::from_parts(head, body.boxed_unsync()));
    }
    let body = body.collect().await?.to_bytes();
    if fault == Some(Fault::AnswerLost) {
        return Err("the answer is lost".into());
    }
    if let Some(trap) = trap {
        // Who has set it may have given up.
        let _ = trap.caught.send(seen);
        let _ = trap.release.await;
    }
    let body = Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync();
    Ok(Response::from_parts(head, body))
}

/// The events of a watch, until it falls silent.
struct Watch {
    inner: Body,
    shared: Arc<Shared>,
    age: u64,
}

impl HttpBody for Watch {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.shared.age.load(Ordering::Acquire) != self.age {
            // For ever: nobody will wake this up.
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_frame(task).map_err(Into::into)
    }
}
