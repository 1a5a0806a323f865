//! Databases: new passwords, and a way in.

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use conme_api::{Comune, Database, DatabaseStatus, Engine, Placement, keys};
use conme_blueprint::names;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{PsqlArgs, RotateArgs},
    cluster::Cluster,
    run::{Failure, print},
    suggest,
};

/// The annotation by which a person asks for new passwords, with one more wish: `<database>@<time>`, `*` for all. It takes
/// the place of older wishes for the same database, one for all that of every older one; those for a time to come stay.
pub fn wished(before: &str, database: &str, now: Timestamp) -> String {
    let mut wishes: Vec<&str> = before
        .split(',')
        .map(str::trim)
        .filter(|wish| {
            let (name, time) = wish.split_once('@').unwrap_or((wish, ""));
            let is_to_come = time.parse::<Timestamp>().is_ok_and(|time| time > now);
            is_to_come || (!wish.is_empty() && database != "*" && name != database)
        })
        .collect();
    let wish = format!("{database}@{}", now.strftime("%Y-%m-%dT%H:%M:%SZ"));
    wishes.push(&wish);
    wishes.join(",")
}

fn database_of<'a>(comune: &'a Comune, name: &str) -> Result<&'a Database, Failure> {
    comune.spec.databases.iter().find(|database| database.name == name).ok_or_else(|| {
        let known = comune.spec.databases.iter().map(|database| database.name.as_str());
        let hint = suggest::did_you_mean(name, known).unwrap_or_else(|| "it declares none".into());
        Failure::Other(format!("{} has no database `{name}`; {hint}", comune.name_any()))
    })
}

fn secrets_of(cluster: &Cluster, comune: &Comune, database: &Database) -> (Api<Secret>, String) {
    let namespace = names::namespace(&comune.name_any(), &database.environment);
    (Api::namespaced(cluster.client.clone(), &namespace), names::binding_secret(&database.name))
}

/// `rotate-credentials`
///
/// # Errors
/// When the API server does not answer or refuses, or there is no such database.
pub async fn rotate(cluster: &Cluster, args: &RotateArgs) -> Result<u8, Failure> {
    let comune = cluster.comune(&args.name).await?;
    let (databases, dedicated): (Vec<&Database>, Vec<&Database>) = match &args.database {
        Some(name) => vec![database_of(&comune, name)?],
        None => comune.spec.databases.iter().collect(),
    }
    .into_iter()
    .partition(|database| matches!(database.placement, Placement::Shared(_)));
    for database in &dedicated {
        eprintln!(
            "note: {} has a server of its own: Con.Me does not replace the password there",
            database.name
        );
    }
    if databases.is_empty() {
        return Err(Failure::Other(format!(
            "{} has no database on a shared server to give a new password to",
            args.name
        )));
    }
    if comune.spec.paused {
        eprintln!("note: {} is paused: passwords are replaced when spec.paused is taken away", args.name);
    }
    for (database, until) in databases.iter().filter_map(|database| postponed(&comune, database)) {
        eprintln!(
            "note: {database}: the login before the present one stays open at least until {until}; the next rotation \
             begins when it is closed"
        );
    }
    let mut before = Vec::new();
    if args.wait {
        for database in &databases {
            let (api, secret) = secrets_of(cluster, &comune, database);
            let what = format!("reading the Secret {secret} (needed for --wait)");
            let found = cluster.call(&what, api.get_opt(&secret)).await?;
            before.push((database.name.clone(), api, secret, found.as_ref().and_then(password_of)));
        }
    }
    let wish = args.database.as_deref().unwrap_or("*");
    let time = time_of_wish(&comune, &databases, Timestamp::now());
    if let Ok(wait) = time.duration_since(Timestamp::now()).try_into() {
        tokio::time::sleep(Duration::min(wait, LONGEST_PAUSE)).await;
    }
    ask_for(cluster, &args.name, wish, time).await?;
    let named: Vec<&str> = databases.iter().map(|database| database.name.as_str()).collect();
    print(&format!("new passwords were asked for: {}\n", named.join(", ")))?;
    let everything = async {
        for (database, api, secret, old) in before {
            changed(api, &secret, old).await?;
            print(&format!("{database}: the Secret {secret} holds a new password\n"))?;
        }
        Ok::<_, Failure>(())
    };
    match tokio::time::timeout(args.timeout, everything).await {
        Ok(result) => result.map(|()| 0),
        Err(_) => {
            eprintln!(
                "error: no new password after {:?}; see kubectl comune status {}",
                args.timeout, args.name
            );
            Ok(1)
        }
    }
}

/// Adds a wish to the annotation of a Comune.
async fn ask_for(cluster: &Cluster, name: &str, wish: &str, time: Timestamp) -> Result<(), Failure> {
    const ATTEMPTS: usize = 5;
    const WHAT: &str = "asking for new passwords";
    let api: Api<Comune> = Api::all(cluster.client.clone());
    let params = PatchParams::default();
    for _ in 0..ATTEMPTS {
        // Read anew each time: of two who ask at the same moment neither is forgotten.
        let comune = cluster.comune(name).await?;
        let known = comune.annotations().get(keys::ROTATE_CREDENTIALS).map(String::as_str);
        let body = json!({"metadata": {
            "resourceVersion": comune.resource_version(),
            "annotations": {keys::ROTATE_CREDENTIALS: wished(known.unwrap_or_default(), wish, time)},
        }});
        match cluster.ask(WHAT, api.patch(name, &params, &Patch::Merge(&body))).await? {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Failure::Server(format!("{WHAT}: {}", conme_cluster::words(&error)))),
        }
    }
    Err(Failure::Other(format!("{name} is changed again and again at this very moment; try again")))
}

/// Longest pause for a credential that is as young as the request.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

fn told<'a>(comune: &'a Comune, database: &Database) -> Option<&'a DatabaseStatus> {
    comune.status.as_ref()?.databases.iter().find(|told| told.name == database.name)
}

/// Until when a rotation of this database has to wait for the end of the one before.
fn postponed<'a>(comune: &'a Comune, database: &'a Database) -> Option<(&'a str, &'a str)> {
    let retiring = told(comune, database)?.credential.as_ref()?.retiring.as_ref()?;
    Some((&database.name, &retiring.until))
}

/// The time that a wish names: now, or the first second in which all credentials are older. The operator takes a request
/// to speak of older ones only, by whole seconds.
fn time_of_wish(comune: &Comune, databases: &[&Database], now: Timestamp) -> Timestamp {
    let issued = databases.iter().filter_map(|database| {
        told(comune, database)?.credential.as_ref()?.issued_at.parse::<Timestamp>().ok()
    });
    let youngest = issued.max().and_then(|issued| issued.checked_add(SignedDuration::from_secs(1)).ok());
    youngest.map_or(now, |youngest| youngest.max(now))
}

fn password_of(secret: &Secret) -> Option<Vec<u8>> {
    secret.data.as_ref()?.get("password").map(|password| password.0.clone())
}

async fn changed(api: Api<Secret>, name: &str, old: Option<Vec<u8>>) -> Result<(), Failure> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut news = watcher(api, config).default_backoff().applied_objects().boxed();
    while let Some(secret) = news.next().await {
        if let Ok(secret) = secret
            && password_of(&secret).is_some_and(|password| Some(password) != old)
        {
            return Ok(());
        }
    }
    Err(Failure::Server("the watch has ended".into()))
}

/// What is in a binding Secret.
struct Binding {
    engine: Engine,
    host: String,
    port: String,
    database: String,
    username: String,
    password: String,
    ca: Option<String>,
}

impl Binding {
    fn read(engine: Engine, secret: &Secret) -> Result<Self, Failure> {
        let data: BTreeMap<&str, String> = secret
            .data
            .iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), String::from_utf8(value.0.clone()).ok()?)))
            .collect();
        let key = |key: &str| {
            data.get(key)
                .cloned()
                .ok_or_else(|| Failure::Other(format!("the Secret {} has no `{key}`", secret.name_any())))
        };
        Ok(Self {
            engine,
            host: key("host")?,
            port: key("port")?,
            database: key("database")?,
            username: key("username")?,
            password: key("password")?,
            ca: key("ca.crt").ok(),
        })
    }

    /// The file that the client reads the password from, in the form that it asks for.
    fn password_file(&self) -> String {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        match self.engine {
            Engine::Postgresql => format!(
                "{}:{}:{}:{}:{}\n",
                escaped(&self.host),
                self.port,
                escaped(&self.database),
                escaped(&self.username),
                escaped(&self.password)
            ),
            Engine::Mariadb => {
                let escaped = self.password.replace('\\', "\\\\").replace('"', "\\\"");
                format!("[client]\npassword=\"{escaped}\"\n")
            }
        }
    }

    fn program(&self) -> &'static str {
        match self.engine {
            Engine::Postgresql => "psql",
            Engine::Mariadb => "mariadb",
        }
    }

    /// Environment and arguments of the client. Without a CA the server's name cannot be vouched for, and the client is
    /// told to insist on encryption at least.
    fn invocation(&self, password_file: &str, ca_file: &str) -> (Vec<(&'static str, String)>, Vec<String>) {
        match self.engine {
            Engine::Postgresql => {
                let mut environment = vec![
                    ("PGHOST", self.host.clone()),
                    ("PGPORT", self.port.clone()),
                    ("PGDATABASE", self.database.clone()),
                    ("PGUSER", self.username.clone()),
                    ("PGPASSFILE", password_file.to_owned()),
                ];
                match self.ca {
                    Some(_) => {
                        environment.push(("PGSSLMODE", "verify-full".into()));
                        environment.push(("PGSSLROOTCERT", ca_file.to_owned()));
                    }
                    None => environment.push(("PGSSLMODE", "require".into())),
                }
                (environment, Vec::new())
            }
            Engine::Mariadb => {
                let mut arguments = vec![
                    format!("--defaults-file={password_file}"),
                    format!("--host={}", self.host),
                    format!("--port={}", self.port),
                    format!("--user={}", self.username),
                    format!("--database={}", self.database),
                ];
                if self.ca.is_some() {
                    arguments.push(format!("--ssl-ca={ca_file}"));
                    arguments.push("--ssl-verify-server-cert".into());
                }
                (Vec::new(), arguments)
            }
        }
    }
}

/// `psql`
///
/// # Errors
/// When the API server does not answer or refuses, there is no such database, or the client is not installed.
pub async fn psql(cluster: &Cluster, args: &PsqlArgs) -> Result<u8, Failure> {
    let comune = cluster.comune(&args.name).await?;
    let database = database_of(&comune, &args.database)?;
    let (api, name) = secrets_of(cluster, &comune, database);
    let namespace = names::namespace(&args.name, &database.environment);
    let what = format!("reading the Secret {namespace}/{name}");
    let secret = cluster.call(&what, api.get_opt(&name)).await?.ok_or_else(|| {
        let status = comune
            .status
            .as_ref()
            .and_then(|status| status.databases.iter().find(|known| known.name == database.name));
        let why =
            status.map_or_else(|| "it is not provisioned yet".to_owned(), |status| status.message.clone());
        Failure::Other(format!(
            "the database `{}` has no binding Secret {namespace}/{name}: {why}",
            database.name
        ))
    })?;
    let binding = Binding::read(database.engine, &secret)?;
    if args.print_command {
        print(&as_command(&binding, &namespace, &name, &args.args))?;
        return Ok(0);
    }
    let folder = tempfile::Builder::new()
        .prefix("kubectl-comune-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()?;
    let (password_file, ca_file) = (folder.path().join("password"), folder.path().join("ca.crt"));
    write_private(&password_file, &binding.password_file())?;
    write_private(&ca_file, binding.ca.as_deref().unwrap_or_default())?;
    let (environment, arguments) =
        binding.invocation(&password_file.display().to_string(), &ca_file.display().to_string());
    let mut client = tokio::process::Command::new(binding.program());
    client.args(arguments).args(&args.args).envs(environment).stdin(Stdio::inherit()).kill_on_drop(true);
    // What the user's own environment says of another server has no say here.
    for foreign in ["PGPASSWORD", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "MYSQL_PWD", "MYSQL_HOST"] {
        client.env_remove(foreign);
    }
    let mut child = client.spawn().map_err(|error| {
        Failure::Other(format!(
            "{} cannot be started: {error}; install it ({}), or see --print-command",
            binding.program(),
            match binding.engine {
                Engine::Postgresql => "postgresql-client",
                Engine::Mariadb => "mariadb-client",
            }
        ))
    })?;
    let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    // This program outlives the client, so that the files with the password go with it. An interrupt is meant for the
    // client, which ends a query with it.
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => child.start_kill()?,
            _ = hang_up.recv() => child.start_kill()?,
        }
    };
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(text.as_bytes())
}

/// The command as somebody would type it: it reads the password by itself.
fn as_command(binding: &Binding, namespace: &str, secret: &str, further: &[String]) -> String {
    let read = |key: &str| {
        format!(
            "kubectl get secret {secret} --namespace {namespace} --output jsonpath='{{.data.{key}}}' | base64 -d"
        )
    };
    let ca = format!("<({})", read("ca\\.crt"));
    let mut words: Vec<String> = Vec::new();
    match binding.engine {
        Engine::Postgresql => {
            let (environment, _) = binding.invocation("", "");
            for (key, value) in environment {
                match key {
                    "PGPASSFILE" => words.push(format!("PGPASSWORD=\"$({})\"", read("password"))),
                    "PGSSLROOTCERT" => words.push(format!("{key}={ca}")),
                    _ => words.push(format!("{key}={}", quoted(&value))),
                }
            }
            words.push(binding.program().into());
        }
        Engine::Mariadb => {
            words.push(format!("MYSQL_PWD=\"$({})\"", read("password")));
            words.push(binding.program().into());
            let (_, arguments) = binding.invocation("", "");
            for argument in arguments {
                match argument.split_once('=') {
                    Some(("--defaults-file", _)) => {}
                    Some(("--ssl-ca", _)) => words.push(format!("--ssl-ca={ca}")),
                    _ => words.push(quoted(&argument)),
                }
            }
        }
    }
    words.extend(further.iter().map(|word| quoted(word)));
    format!("{}\n", words.join(" "))
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(engine: Engine) -> Binding {
        Binding {
            engine,
            host: "db.example".into(),
            port: "5432".into(),
            database: "dolo__protocollo".into(),
            username: "dolo__protocollo".into(),
            password: r#"se:gre\to""#.into(),
            ca: Some("PEM".into()),
        }
    }

    #[test]
    fn a_newer_wish_takes_the_place_of_an_older_one() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let first = wished("", "a", at("2026-01-01T10:00:00Z"));
        assert_eq!(first, "a@2026-01-01T10:00:00Z");
        let second = wished(&first, "b", at("2026-01-01T11:00:00.7Z"));
        assert_eq!(second, "a@2026-01-01T10:00:00Z,b@2026-01-01T11:00:00Z");
        assert_eq!(
            wished(&second, "a", at("2026-01-02T10:00:00Z")),
            "b@2026-01-01T11:00:00Z,a@2026-01-02T10:00:00Z"
        );
        assert_eq!(wished(&second, "*", at("2026-01-02T10:00:00Z")), "*@2026-01-02T10:00:00Z");
    }

    #[test]
    fn a_wish_speaks_of_credentials_that_are_older_than_it() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let comune: Comune = serde_json::from_value(json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "metadata": {"name": "dolo"},
            "spec": {
                "entity": {"kind": "Comune", "displayName": "Dolo"},
                "databases": [
                    {"name": "a", "engine": "postgresql", "placement": {"shared": "s"}},
                    {"name": "b", "engine": "postgresql", "placement": {"shared": "s"}},
                ],
            },
            "status": {"databases": [{
                "name": "a", "ready": true, "reason": "AsDeclared", "message": "", "server": "s", "database": "a", "secret": "x/db-a",
                "credential": {
                    "login": "a2", "issuedAt": "2026-01-01T10:00:05Z", "generation": 2,
                    "retiring": {"login": "a1", "until": "2026-01-02T10:00:05Z"},
                },
            }]},
        }))
        .unwrap();
        let both: Vec<&Database> = comune.spec.databases.iter().collect();
        let time = |now: &str| time_of_wish(&comune, &both, at(now));
        assert_eq!(time("2026-01-01T10:00:05.3Z"), at("2026-01-01T10:00:06Z"));
        assert_eq!(time("2026-01-01T10:00:06.3Z"), at("2026-01-01T10:00:06.3Z"));
        assert_eq!(time_of_wish(&comune, &both[1..], at("2026-01-01T10:00:05Z")), at("2026-01-01T10:00:05Z"));
        assert_eq!(postponed(&comune, both[0]), Some(("a", "2026-01-02T10:00:05Z")));
        assert_eq!(postponed(&comune, both[1]), None);
    }

    #[test]
    fn the_password_is_in_no_command_line_and_in_no_environment() {
        for engine in [Engine::Postgresql, Engine::Mariadb] {
            let binding = binding(engine);
            let (environment, arguments) = binding.invocation("/x/password", "/x/ca.crt");
            let printed =
                as_command(&binding, "dolo-produzione", "db-protocollo", &["-c".into(), "select 'x'".into()]);
            for text in [format!("{environment:?}"), format!("{arguments:?}"), printed] {
                assert!(!text.contains("segre") && !text.contains("se:gre"), "{text}");
            }
        }
    }

    #[test]
    fn a_password_may_hold_what_it_likes() {
        assert_eq!(
            binding(Engine::Postgresql).password_file(),
            "db.example:5432:dolo__protocollo:dolo__protocollo:se\\:gre\\\\to\"\n"
        );
        assert_eq!(binding(Engine::Mariadb).password_file(), "[client]\npassword=\"se:gre\\\\to\\\"\"\n");
    }

    #[test]
    fn files_are_for_nobody_else_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        write_private(&file, "1").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_private(&file, "2").is_err());
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("a b'c"), r"'a b'\''c'");
        assert_eq!(quoted("--port=5432"), "--port=5432");
        assert_eq!(quoted(""), "''");
    }
}
