//! A fresh control plane with Con.Me installed, and what its processes cost.

use std::{
    path::Path,
    sync::Once,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use conme_cluster::bounded_client;
use conme_stories::{Metrics, http_get};
use conme_testbed::{
    Ephemeral, Hosts, Options, Progress, Signal,
    install::{Installation, OPERATOR, apply, install, operator_url},
};
use kube::{Api, Client, Config, api::DynamicObject, config::KubeConfigOptions, config::Kubeconfig};
use serde::Serialize;
use serde_json::json;

use crate::{audit::Record, sample};

/// How long anything may take before the measurement is given up: twice as long as the operator may put figures off.
pub const PATIENCE: Duration = Duration::from_secs(1800);
/// Pods that are planned for on one simulated host, of the 250 that it takes.
const PODS_ON_A_HOST: usize = 200;
/// Without the end of a pass for so long, the operator is at rest.
const REST: Duration = Duration::from_secs(5);

/// A control plane with the chart, the data centre and the catalogue.
pub struct Plane {
    instance: Ephemeral,
    client: Client,
}

impl Plane {
    /// Starts one that has room for `comuni` Comuni. Both sides of a comparison get the same; only the operator runs or
    /// does not.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn up(checkout: &Path, comuni: usize, operator_runs: bool) -> Result<Self> {
        let silent = Progress::silent();
        let hosts = (comuni * sample::PODS_EACH).div_ceil(PODS_ON_A_HOST).max(8);
        let options = Options {
            hosts: Hosts { count: hosts, ..Hosts::default() },
            ..Options::new(Options::unique_name("bench")?)
        };
        let instance = Ephemeral::up(options, &silent).await?;
        install(&instance, &Installation::from_checkout(checkout)?, &silent).await?;
        if !operator_runs {
            instance.stop_program(OPERATOR).await?;
        }
        let client = client(&instance.kubeconfig()?).await?;
        for volumes in sample::volumes(comuni).chunks(500) {
            apply(&instance, &json!({"apiVersion": "v1", "kind": "List", "items": volumes})).await?;
        }
        Ok(Self { instance, client })
    }

    /// The SAD's client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Every call to the API server from now on.
    ///
    /// # Errors
    /// When there is no record.
    pub fn record(&self) -> Result<Record> {
        Record::from_now(&self.instance.audit_log())
    }

    /// The metrics of the operator.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::of(&operator_url(&self.instance)?).await
    }

    /// Waits until the operator has nothing under way and has ended no pass for a while.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn idle(&self) -> Result<()> {
        self.wait(&[]).await
    }

    /// Waits until it also has put nothing off about any Comune.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn at_rest(&self) -> Result<()> {
        self.wait(&[("conme_put_off", "name=\"comune\"")]).await
    }

    async fn wait(&self, also: &[(&str, &str)]) -> Result<()> {
        let begin = Instant::now();
        let (mut passes, mut since) = (f64::NAN, Instant::now());
        while begin.elapsed() < PATIENCE {
            let metrics = self.metrics().await?;
            let now = metrics.sum("controller_runtime_reconcile_total", &[]);
            let busy = metrics.sum("workqueue_depth", &[])
                + metrics.sum("controller_runtime_active_workers", &[])
                + also.iter().map(|(name, label)| metrics.sum(name, &[label])).sum::<f64>();
            // NaN is equal to nothing: the first look never counts as rest.
            #[expect(clippy::float_cmp, reason = "a counter, read twice")]
            if now != passes || busy > 0.0 {
                (passes, since) = (now, Instant::now());
            }
            if since.elapsed() > REST {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        bail!("the operator is not at rest after {} s", PATIENCE.as_secs())
    }

    /// Stops the operator in good order and starts it again. Returns the time from its start until it was ready.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_operator(&self) -> Result<Duration> {
        self.instance.stop_program_with(OPERATOR, Some(Signal::Term)).await?;
        let url = operator_url(&self.instance)?;
        let begin = Instant::now();
        self.instance.start_program(OPERATOR).await?;
        while begin.elapsed() < PATIENCE {
            if http_get(&url, "/readyz").await.is_ok_and(|(code, _)| code == 200) {
                return Ok(begin.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the operator is not ready after {} s", PATIENCE.as_secs())
    }

    /// What a program has cost since it was started.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn cost(&self, program: &str) -> Result<Cost> {
        let status = self.instance.status().await?;
        let found = status.programs.iter().find(|known| known.name == program);
        let pid = found.and_then(|known| known.pid).with_context(|| format!("{program} does not run"))?;
        Cost::of(pid)
    }

    /// What operator and API server have cost since they were started.
    ///
    /// # Errors
    /// When one does not run.
    pub async fn costs(&self) -> Result<Costs> {
        Ok(Costs { operator: self.cost(OPERATOR).await?, api_server: self.cost("kube-apiserver").await? })
    }

    /// Any object of any kind.
    pub fn api(&self, kind: conme_blueprint::Kind, namespace: &str) -> Api<DynamicObject> {
        conme_stories::api_with(self.client(), kind, namespace)
    }
}

/// What operator and API server have cost.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// The operator.
    pub operator: Cost,
    /// The API server.
    pub api_server: Cost,
}

/// What a process has cost, as Linux tells it (proc(5)).
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Processor time, in seconds.
    pub cpu_seconds: f64,
    /// Memory in use, in KiB.
    pub rss_kib: u64,
    /// The most that was ever in use, in KiB.
    pub peak_kib: u64,
}

impl Cost {
    fn of(pid: i32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kibibytes = |key: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
            Ok(line.trim().trim_end_matches("kB").trim().parse()?)
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
        let ticks =
            |place: usize| -> Result<f64> { Ok(fields.get(place).context("no such field")?.parse()?) };
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        Ok(Self {
            cpu_seconds: (ticks(11)? + ticks(12)?) / per_second,
            rss_kib: kibibytes("VmRSS:")?,
            peak_kib: kibibytes("VmHWM:")?,
        })
    }
}

/// A client as the operator's own.
async fn client(kubeconfig: &Path) -> Result<Client> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another one that was there before does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // As long as a watch that says nothing of its length may last.
    Ok(bounded_client(config, Duration::from_secs(290))?)
}
