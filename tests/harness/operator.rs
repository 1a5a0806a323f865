//! The operator as those see it who run it: health, readiness, metrics, its log.

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use conme_testbed::{
    CommandSpec,
    install::{NAMESPACE, OPERATOR, operator_url},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{DataCentre, eventually, installation};

/// Status code and body of a plain HTTP request to an address such as `http://127.0.0.1:8080`.
///
/// # Errors
/// When nobody answers there within seconds.
pub async fn http_get(url: &str, path: &str) -> Result<(u16, String)> {
    let address = url.trim_start_matches("http://");
    let work = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        ensure!(!head.to_lowercase().contains("transfer-encoding: chunked"), "an answer in chunks");
        let code = head.split_whitespace().nth(1).context("an answer without a status")?;
        Ok((code.parse()?, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(10), work).await.context("no answer in time")?
}

/// Samples in the text format of Prometheus, by name and labels as they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// What the operator at an address says now.
    ///
    /// # Errors
    /// When it does not answer, or not in the format.
    pub async fn of(url: &str) -> Result<Self> {
        let (code, text) = http_get(url, "/metrics").await?;
        ensure!(code == 200, "/metrics answers {code}");
        Self::parse(&text)
    }

    /// Reads the text; refuses what a scraper would refuse.
    ///
    /// # Errors
    /// With the first line that is not in the format.
    pub fn parse(text: &str) -> Result<Self> {
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
        };
        let mut samples = BTreeMap::new();
        ensure!(text.ends_with('\n'), "the last line does not end");
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix('#') {
                let known = ["HELP ", "TYPE ", "UNIT ", "EOF"]
                    .iter()
                    .any(|word| comment.trim_start().starts_with(word));
                ensure!(known, "an unknown comment: {line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
            let value: f64 = value.parse().with_context(|| format!("not a number: {line}"))?;
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            ensure!(is_name(name) && labels.ends_with('}'), "not a name with labels: {line}");
            for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
                let (key, quoted) = label.split_once('=').with_context(|| format!("not a label: {line}"))?;
                let is_quoted = quoted.len() >= 2 && quoted.starts_with('"') && quoted.ends_with('"');
                ensure!(is_name(key) && is_quoted, "not a label: {line}");
            }
            ensure!(samples.insert(series.to_owned(), value).is_none(), "twice: {series}");
        }
        Ok(Self(samples))
    }

    /// The sum of all samples of this name whose labels hold every one of `labels`, such as `method="PATCH"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_it = |series: &str| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.iter().all(|label| rest.contains(label))
        };
        self.0.iter().filter(|(series, _)| is_it(series)).map(|(_, value)| value).sum()
    }
}

/// Name of an operator beside the first.
pub const SECOND: &str = "conme-operator-2";

/// Whether an operator at an address says that it leads; None when it does not answer.
pub async fn leads(url: &str) -> Option<bool> {
    let (_, text) = http_get(url, "/metrics").await.ok()?;
    Some(Metrics::parse(&text).ok()?.sum("leader_election_master_status", &[]) == 1.0)
}

impl DataCentre {
    /// Starts a second operator beside the first; returns where it answers, once it is ready.
    ///
    /// # Errors
    /// When it has not been built, or does not get ready.
    pub async fn start_second_operator(&self, kubeconfig: &Path) -> Result<String> {
        let instance = self.instance();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let second = format!("http://127.0.0.1:{port}");
        let command = CommandSpec::new(installation()?.operator, instance.dir())
            .args(["run", "--namespace", NAMESPACE, "--identity", SECOND, "--listen"])
            .args([format!("127.0.0.1:{port}")])
            .env("KUBECONFIG", kubeconfig.to_string_lossy());
        instance.start(SECOND, command).await?;
        eventually("the second is ready", || async {
            Ok(http_get(&second, "/readyz").await.is_ok_and(|(code, _)| code == 200))
        })
        .await?;
        Ok(second)
    }

    /// The metrics of the operator.
    ///
    /// # Errors
    /// When it does not answer, or not in the format.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::of(&operator_url(self.instance())?).await
    }

    /// Whether the operator says that it is ready; false also when nobody answers.
    ///
    /// # Errors
    /// When no operator is installed.
    pub async fn operator_is_ready(&self) -> Result<bool> {
        Ok(self.readiness().await?.0)
    }

    /// Waits until the operator says that it is ready; `meanwhile` is done before each look.
    ///
    /// # Errors
    /// When it is not in time, with what it said last and the end of its log; or what `meanwhile` answers.
    pub async fn operator_gets_ready(&self, meanwhile: impl AsyncFn() -> Result<()>) -> Result<()> {
        let result = eventually("the operator is ready", || async {
            meanwhile().await?;
            self.operator_is_ready().await
        })
        .await;
        let Err(error) = result else { return Ok(()) };
        let log = std::fs::read_to_string(self.instance().log(OPERATOR)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(60)..].join("\n");
        let said = self.readiness().await?.1;
        bail!("{error}\nit is {}\nits log ends so:\n{end}", said.trim_end());
    }

    async fn readiness(&self) -> Result<(bool, String)> {
        let url = operator_url(self.instance())?;
        Ok(match http_get(&url, "/readyz").await {
            Ok((code, words)) => (code == 200, words),
            Err(error) => (false, format!("silent: {error:#}")),
        })
    }

    /// Waits until the operator is at rest, see [`at_rest`].
    ///
    /// # Errors
    /// When it does not come to rest, or does not answer.
    pub async fn operator_at_rest(&self) -> Result<()> {
        at_rest(&operator_url(self.instance())?).await
    }

    /// As [`DataCentre::operator_at_rest`] with regard to Comuni: where databases are looked at again every few seconds, there is
    /// hardly ever a while without one.
    ///
    /// # Errors
    /// When it does not come to rest, or does not answer.
    pub async fn comuni_at_rest(&self) -> Result<()> {
        rest(&operator_url(self.instance())?, &["name=\"comune\""], &["controller=\"comune\""]).await
    }
}

/// Waits until the operator at an address has nothing under way, has put nothing off about any Comune (figures that
/// move by themselves are told after half a minute only, and at once by one that was restarted) and has not ended a
/// pass for a while.
///
/// # Errors
/// When it does not come to rest, or does not answer.
pub async fn at_rest(url: &str) -> Result<()> {
    rest(url, &[], &[]).await
}

/// Of the queues and controllers with these labels.
async fn rest(url: &str, queues: &[&str], controllers: &[&str]) -> Result<()> {
    let last = Cell::new((f64::NAN, Instant::now()));
    eventually("the operator is at rest", || async {
        let metrics = Metrics::of(url).await?;
        let passes = metrics.sum("controller_runtime_reconcile_total", controllers);
        let busy = metrics.sum("workqueue_depth", queues)
            + metrics.sum("controller_runtime_active_workers", controllers)
            + metrics.sum("conme_put_off", &["name=\"comune\""]);
        if passes != last.get().0 || busy > 0.0 {
            last.set((passes, Instant::now()));
        }
        Ok(last.get().1.elapsed() > Duration::from_secs(6))
    })
    .await
}
