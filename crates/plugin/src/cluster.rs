//! The cluster that the kubeconfig leads to.

use std::{collections::BTreeSet, future::Future, time::Duration};

use conme_api::{Comune, DataCenter, ServiceTemplate};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use crate::{cli::ClusterArgs, problem::Note, run::Failure, site::Site};

/// A connection with a time limit on every call.
#[derive(Clone)]
pub struct Cluster {
    /// For watches, which have no end.
    pub client: Client,
    timeout: Duration,
}

impl Cluster {
    /// Connects as kubectl would.
    ///
    /// # Errors
    /// When there is no usable kubeconfig.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, Failure> {
        // Of two that are installed the first one stays; both are the same here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let unusable = |error: kube::config::KubeconfigError| {
            Failure::Server(format!(
                "the kubeconfig cannot be used: {error}; name another with --kubeconfig or --context"
            ))
        };
        let mut config = match &args.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)?
            }
            None => match (Config::from_kubeconfig(&options).await, Config::incluster()) {
                (Ok(config), _) => config,
                (Err(_), Ok(config)) if args.context.is_none() => config,
                (Err(error), _) => return Err(unusable(error)),
            },
        };
        config.connect_timeout = Some(args.request_timeout);
        // The time limit of the call is the one that counts, not a number of silent attempts.
        config.default_retry = false;
        if args.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&args.impersonate);
            config.auth_info.impersonate_groups =
                Some(args.as_group.clone()).filter(|groups| !groups.is_empty());
        }
        let address = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| {
            Failure::Server(format!("{address} cannot be used: {}", conme_cluster::words(&error)))
        })?;
        Ok(Self { client, timeout: args.request_timeout })
    }

    /// Makes a call with the time limit; what the API server answers, and nothing else, is the inner result.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<kube::Result<T>, Failure> {
        match tokio::time::timeout(self.timeout, call).await {
            Err(_) => Err(Failure::Server(format!(
                "{what}: no answer within {:?} (--request-timeout)",
                self.timeout
            ))),
            Ok(Err(kube::Error::Api(status))) => Ok(Err(kube::Error::Api(status))),
            Ok(Err(error)) => Err(Failure::Server(format!("{what}: {}", conme_cluster::words(&error)))),
            Ok(Ok(answer)) => Ok(Ok(answer)),
        }
    }

    /// Makes a call that has to succeed.
    ///
    /// # Errors
    /// When it does not answer or refuses.
    pub async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        self.ask(what, call)
            .await?
            .map_err(|error| Failure::Server(format!("{what}: {}", conme_cluster::words(&error))))
    }

    /// A Comune that has to be there.
    ///
    /// # Errors
    /// When there is none, with the names that are like it; or when the API server refuses.
    pub async fn comune(&self, name: &str) -> Result<Comune, Failure> {
        let api: Api<Comune> = Api::all(self.client.clone());
        match self.call(&format!("reading the Comune `{name}`"), api.get_opt(name)).await? {
            Some(comune) => Ok(comune),
            None => {
                let all = self.list::<Comune>("").await.unwrap_or_default();
                let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
                let hint = crate::suggest::did_you_mean(name, names.iter().map(String::as_str));
                Err(Failure::Other(format!(
                    "there is no Comune `{name}`; {}",
                    hint.unwrap_or_else(|| "see kubectl comune list".into())
                )))
            }
        }
    }

    /// All objects of a kind without namespaces.
    ///
    /// # Errors
    /// When the API server does not answer or refuses.
    pub async fn list<K>(&self, selector: &str) -> Result<Vec<K>, Failure>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let mut params = ListParams::default();
        if !selector.is_empty() {
            params = params.labels(selector);
        }
        let what = format!("listing {}", K::plural(&()));
        Ok(self.call(&what, api.list(&params)).await?.items)
    }

    /// Takes what the cluster has into a site.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses what is needed.
    pub async fn survey(&self, site: &mut Site, notes: &mut Vec<Note>) -> Result<(), Failure> {
        let data_centers = self.list::<DataCenter>("").await?;
        let templates = self.list::<ServiceTemplate>("").await?;
        // The people of a municipality may not see the others.
        let comuni = match self.list::<Comune>("").await {
            Ok(comuni) => comuni,
            Err(Failure::Server(words)) if words.contains("forbidden") => {
                let message =
                    "you may not list the other Comuni: clashes with them were not looked for".to_owned();
                notes.push(Note { file: String::new(), message });
                Vec::new()
            }
            Err(failure) => return Err(failure),
        };
        let classes = self.list::<StorageClass>("").await.ok();
        let classes =
            classes.map(|classes| classes.iter().map(ResourceExt::name_any).collect::<BTreeSet<_>>());
        site.add_live(data_centers, templates, comuni, classes);
        Ok(())
    }
}
