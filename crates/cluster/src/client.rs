//! A client whose calls always end, and errors in words.

use std::{
    future::Future,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{ClientBuilder, ConfigExt},
};
use tower::{BoxError, ServiceBuilder};

use crate::lease::Leadership;

/// The longest that one call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How much longer than a watch lasts a connection may be silent. Longer than the five seconds after which kube's
/// watcher asks for a silent watch again, which loses less.
pub const SILENCE: Duration = Duration::from_secs(10);

/// What a caller wants to know of every call.
pub trait Metrics: Send + Sync {
    /// A call has ended: HTTP method, status code (0 when there was no answer), time taken.
    fn call(&self, method: &'static str, code: u16, took: Duration);
}

/// Makes calls that end in time and are counted.
#[derive(Clone)]
pub struct Calls {
    metrics: Arc<dyn Metrics>,
    leadership: Option<Arc<Leadership>>,
}

impl Calls {
    /// Counts with `metrics`.
    pub fn new(metrics: Arc<dyn Metrics>) -> Self {
        Self { metrics, leadership: None }
    }

    /// The same, but calls that could change something are made only while this process is certain to lead.
    #[must_use]
    pub fn while_leading(&self, leadership: Arc<Leadership>) -> Self {
        Self { metrics: self.metrics.clone(), leadership: Some(leadership) }
    }

    /// Makes one call.
    ///
    /// # Errors
    /// What the call itself answers; a status 504 when it took longer than [`CALL_TIMEOUT`], or was given up under way
    /// because another process may lead by now; a status 412 when it was not begun for that reason.
    pub async fn make<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> kube::Result<T> {
        let is_fenced =
            || method != "GET" && self.leadership.as_ref().is_some_and(|leadership| !leadership.holds());
        if is_fenced() {
            return failure(412, "NotLeading", "not written: this process is not certain to lead any more");
        }
        let begin = Instant::now();
        let mut call = std::pin::pin!(call);
        // Asked at each step: a process may be paused while the connection is being made, before anything is sent.
        let call = std::future::poll_fn(|context| {
            if is_fenced() {
                let message = "given up under way: this process is not certain to lead any more";
                return Poll::Ready(failure(504, "NotLeading", message));
            }
            call.as_mut().poll(context)
        });
        let result = tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
            let message = format!("the API server gave no answer within {} s", CALL_TIMEOUT.as_secs());
            failure(504, "Timeout", &message)
        });
        let code = match &result {
            Ok(_) => 200,
            Err(kube::Error::Api(status)) => status.code,
            Err(_) => 0,
        };
        self.metrics.call(method, code, begin.elapsed());
        result
    }
}

fn failure<T>(code: u16, reason: &str, message: &str) -> kube::Result<T> {
    let status = kube::core::Status::failure(message, reason).with_code(code);
    Err(kube::Error::Api(Box::new(status)))
}

/// The longest that a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that never waits in silence: no hidden retries; whoever calls decides what to do next. Each call under way
/// has a connection of its own. `watch` is the time after which the API server ends a watch; a connection on which
/// nothing has come for [`SILENCE`] longer is given up.
///
/// # Errors
/// When the configuration cannot be used, such as certificates that do not parse.
pub fn bounded_client(mut config: Config, watch: Duration) -> kube::Result<Client> {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Also of a list, and of the first answer to a watch, which nothing else limits.
    config.read_timeout = Some(watch + SILENCE);
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    // The first request on a connection follows the end of the TLS handshake: held back until that is acknowledged, it
    // would wait for 40 ms.
    connector.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let client: legacy::Client<_, kube::client::Body> =
        legacy::Builder::new(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// An error of the API server in words, without the repetitions that the API adds.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("status {} {}", status.code, status.reason),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text.push_str(": ");
                    text.push_str(&cause_text);
                }
                source = cause.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::RENEW_DEADLINE;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Uncounted;

    impl Metrics for Uncounted {
        fn call(&self, _: &'static str, _: u16, _: Duration) {}
    }

    #[tokio::test]
    async fn a_write_is_given_up_when_leadership_ends_while_its_connection_is_made() {
        for (method, is_sent) in [("PATCH", false), ("GET", true)] {
            let leadership = Arc::new(Leadership::default());
            leadership.renewed(Instant::now());
            let calls = Calls::new(Arc::new(Uncounted)).while_leading(leadership.clone());
            let (connected, connection) = tokio::sync::oneshot::channel();
            let sent = AtomicBool::new(false);
            let mut call = std::pin::pin!(calls.make(method, async {
                let _ = connection.await;
                sent.store(true, Ordering::Relaxed);
                Ok(())
            }));
            assert!(futures::poll!(&mut call).is_pending());
            leadership.renewed(Instant::now() - RENEW_DEADLINE);
            assert!(connected.send(()).is_ok());
            let code = match call.await {
                Ok(()) => 200,
                Err(kube::Error::Api(status)) => status.code,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(
                (sent.load(Ordering::Relaxed), code),
                (is_sent, if is_sent { 200 } else { 504 }),
                "{method}"
            );
        }
    }
}
