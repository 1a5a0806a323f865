//! What the stories share: a running data centre, people to be, and ways to wait and to look.
//!
//! Most stories share one data centre, which `make test` starts; each uses Comuni of its own, so that they run side
//! by side. A story that breaks things, or counts every call of the operator, starts one for itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
pub mod load;
mod mariadb;
mod operator;
mod postgres;
pub mod proxy;
pub mod wire;

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Once,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
pub use audit::{Entry, audit_entries, operator_writes};
use conme_api::{Comune, DataCenter, DatabaseServer, keys};
use conme_testbed::{
    Dirs, Ephemeral, Instance, Options, Progress,
    install::{Installation, install},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
pub use mariadb::{mariadb_administrator, mariadb_login};
pub use operator::{Metrics, SECOND, at_rest, http_get, leads};
pub use postgres::{Credentials, Login};
use serde_json::{Value, json};

/// The operator's own user name, as the API server knows it.
pub const OPERATOR_USER: &str = "system:serviceaccount:conme-system:conme-operator";
/// How long anything may take that should take seconds.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running data centre with Con.Me installed.
pub struct DataCentre {
    instance: Holder,
    client: Client,
}

enum Holder {
    Shared(Instance),
    Own(Ephemeral),
}

/// Top of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout").to_path_buf()
}

impl DataCentre {
    /// The data centre that all stories share.
    ///
    /// # Errors
    /// When none is running: `make test` starts it.
    pub async fn shared() -> Result<Self> {
        let name = std::env::var("CONME_TESTBED_NAME").context(
            "this story needs a running data centre: run `make test`, or `make test-story STORY=name` for one file",
        )?;
        let instance = Instance::open(&Dirs::from_env()?, &name)?;
        let client = client_of(&instance, None).await?;
        Ok(Self { instance: Holder::Shared(instance), client })
    }

    /// A data centre of its own, gone at the end of the story. `operator_args` are further arguments of the operator.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn own(prefix: &str, operator_args: &[&str]) -> Result<Self> {
        Self::own_as(Options::new(Options::unique_name(prefix)?), operator_args).await
    }

    /// As [`DataCentre::own`], with hosts and servers of choice.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn own_as(options: Options, operator_args: &[&str]) -> Result<Self> {
        let progress = Progress::silent();
        let instance = Ephemeral::up(options, &progress).await?;
        let mut what = installation()?;
        what.operator_args = operator_args.iter().map(|arg| (*arg).to_owned()).collect();
        install(&instance, &what, &progress).await?;
        let client = client_of(&instance, None).await?;
        Ok(Self { instance: Holder::Own(instance), client })
    }

    /// The instance below: its programs, logs, database servers.
    pub fn instance(&self) -> &Instance {
        match &self.instance {
            Holder::Shared(instance) => instance,
            Holder::Own(instance) => instance,
        }
    }

    /// A client with all rights: the SAD's administrator and the observer of the story.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client that is somebody: a user with groups.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> Result<Client> {
        client_of(self.instance(), Some((user, groups))).await
    }

    /// A client with a token and nothing else.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        let mut kubeconfig = Kubeconfig::read_from(self.instance().kubeconfig()?)?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() });
        }
        connect(kubeconfig, None).await
    }

    /// A client with the rights of the operator's own token.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client_as_operator(&self) -> Result<Client> {
        client_from(&self.instance().dir().join("operator.kubeconfig"), None).await
    }

    /// The Comuni.
    pub fn comuni(&self) -> Api<Comune> {
        Api::all(self.client())
    }

    /// Applies a Comune as the SAD.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn apply(&self, name: &str, spec: Value) -> Result<Comune> {
        let body = json!({
            "apiVersion": "conme.venis.it/v1alpha1",
            "kind": "Comune",
            "metadata": {"name": name},
            "spec": spec,
        });
        let params = PatchParams::apply("sad").force();
        Ok(self.comuni().patch(name, &params, &Patch::Apply(&body)).await?)
    }

    /// Waits until a Comune is Ready at its present generation, and returns it.
    ///
    /// # Errors
    /// After [`PATIENCE`], with its conditions.
    pub async fn ready(&self, name: &str) -> Result<Comune> {
        self.comune_where(name, "Ready", |comune| {
            condition(comune, "Ready").is_some_and(|(status, ..)| status == "True") && is_current(comune)
        })
        .await
    }

    /// Waits until a Comune satisfies something, and returns it.
    ///
    /// # Errors
    /// After [`PATIENCE`], with its conditions.
    pub async fn comune_where(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Comune) -> bool,
    ) -> Result<Comune> {
        let api = self.comuni();
        let mut last = None;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            last = api.get_opt(name).await?;
            if let Some(comune) = last.as_ref().filter(|comune| holds(comune)) {
                return Ok(comune.clone());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let conditions = last.map(|comune| serde_json::to_string_pretty(&comune.status).unwrap_or_default());
        bail!("{name} is not {what} after {PATIENCE:?}: {}", conditions.unwrap_or_default())
    }

    /// Two entries of the catalogue for a story of its own: `<prefix>-pagina` needs nothing, `<prefix>-portale` needs a
    /// PostgreSQL database.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn two_templates(&self, prefix: &str) -> Result<()> {
        let template = |name: &str, env: Value, engines: Value| {
            json!({
                "apiVersion": "conme.venis.it/v1alpha1",
                "kind": "ServiceTemplate",
                "metadata": {"name": format!("{prefix}-{name}")},
                "spec": {
                    "displayName": name, "description": name, "licence": "EUPL-1.2", "source": "this story",
                    "defaultVersion": "1",
                    "versions": [{
                        "version": "1", "image": "example.org/story:1", "ports": [{"name": "http", "port": 8080}],
                        "env": env, "resources": {"cpu": "50m", "memory": "64Mi"}, "replicas": 1,
                        "requires": {"database": engines},
                    }],
                },
            })
        };
        let bound = json!([{"name": "DATABASE_URL", "fromBinding": "uri"}]);
        let items =
            [template("pagina", json!([]), json!([])), template("portale", bound, json!(["postgresql"]))];
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        conme_testbed::install::apply(self.instance(), &list).await?;
        Ok(())
    }

    /// Changes the list of database servers of the data centre.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn edit_servers(&self, edit: impl FnOnce(&mut Vec<DatabaseServer>)) -> Result<()> {
        let api: Api<DataCenter> = Api::all(self.client());
        let mut servers = api.get("venis").await?.spec.database_servers;
        edit(&mut servers);
        let patch = json!({"spec": {"databaseServers": servers}});
        api.patch("venis", &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Any object of any kind.
    pub fn api(&self, kind: conme_blueprint::Kind, namespace: &str) -> Api<DynamicObject> {
        api_with(self.client(), kind, namespace)
    }

    /// Reads an object as JSON; None when it does not exist.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn read(
        &self,
        kind: conme_blueprint::Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>> {
        let object = self.api(kind, namespace).get_opt(name).await?;
        object.map(|object| Ok(serde_json::to_value(object)?)).transpose()
    }

    /// Deletes a namespace as the SAD does: the admission policies ask for a word that names it.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client());
        let uid = namespaces.get(name).await?.metadata.uid.unwrap_or_default();
        let confirmed = json!({"metadata": {
            "annotations": {keys::CONFIRM_DELETE: format!("{name}/{uid}")},
            "labels": {"conme.venis.it/protected": null},
        }});
        namespaces.patch(name, &PatchParams::default(), &Patch::Merge(&confirmed)).await?;
        namespaces.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Deletes a Comune and its namespaces, databases excepted: the story is over.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn tidy_up(&self, name: &str) -> Result<()> {
        let _ = self.comuni().delete(name, &DeleteParams::default()).await;
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client());
        let selector = format!("{}={name}", keys::COMUNE);
        for namespace in namespaces.list(&kube::api::ListParams::default().labels(&selector)).await? {
            let name = namespace.metadata.name.unwrap_or_default();
            let _ = self.delete_namespace(&name).await;
        }
        Ok(())
    }
}

/// Any object of any kind, as somebody.
pub fn api_with(client: Client, kind: conme_blueprint::Kind, namespace: &str) -> Api<DynamicObject> {
    let resource = kind.api_resource();
    if kind == conme_blueprint::Kind::Namespace {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, namespace, &resource)
    }
}

/// Chart, examples and the operator as it was built.
///
/// # Errors
/// When the operator has not been built.
pub fn installation() -> Result<Installation> {
    Installation::from_checkout(checkout())
}

/// Status, reason and message of a condition.
pub fn condition<'a>(comune: &'a Comune, type_: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = &comune.status.as_ref()?.conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((&condition.status, &condition.reason, &condition.message))
}

/// Whether the status speaks of the present generation.
pub fn is_current(comune: &Comune) -> bool {
    comune.status.as_ref().and_then(|status| status.observed_generation) == comune.metadata.generation
}

/// An entity for a Comune of one's own invention. ISTAT codes from 900000 on belong to no municipality.
pub fn entity(display_name: &str, istat: u32) -> Value {
    json!({"kind": "Comune", "displayName": display_name, "istat": istat.to_string(), "population": 4000})
}

/// Waits until something holds.
///
/// # Errors
/// After [`PATIENCE`], with `what`; or what `check` answers.
pub async fn eventually<F, Fut>(what: &str, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool>>,
{
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if check().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("not after {PATIENCE:?}: {what}")
}

/// The error of a call that has to be refused: status code and message.
///
/// # Panics
/// When the call was not refused by the API server.
pub fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("this should have been refused by the API server: {other:?}"),
    }
}

async fn client_of(instance: &Instance, somebody: Option<(&str, &[&str])>) -> Result<Client> {
    client_from(&instance.kubeconfig()?, somebody).await
}

async fn client_from(kubeconfig: &Path, somebody: Option<(&str, &[&str])>) -> Result<Client> {
    connect(Kubeconfig::read_from(kubeconfig)?, somebody).await
}

async fn connect(kubeconfig: Kubeconfig, somebody: Option<(&str, &[&str])>) -> Result<Client> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    if let Some((user, groups)) = somebody {
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|group| (*group).to_owned()).collect());
    }
    Ok(Client::try_from(config)?)
}
