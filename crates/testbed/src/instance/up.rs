//! Starting an instance.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::Instance;
use super::down::{Rollback, stop_everything};
use super::programs::{READY_LIMIT, log_length, log_since};
use crate::control_plane::{ControlPlane, is_schedulable, node};
use crate::dirs::{create_dir, write_file};
use crate::options::{Cluster, Options};
use crate::pki::Pki;
use crate::ports;
use crate::postgres::binaries::Binaries;
use crate::postgres::server::{self, Common, Server};
use crate::process::{self, Identity, POLL};
use crate::progress::Progress;
use crate::state::{DatabaseEndpoint, Engine, Program, ProgramKind, ServersHome, State};
use crate::tools::Tools;
use crate::{mariadb, user};

/// How often a program gets other ports when somebody was quicker to take them.
const ATTEMPTS: usize = 4;

pub(super) async fn up(options: Options, owner: Option<Identity>, progress: &Progress) -> Result<Instance> {
    options.check()?;
    let dirs = options.dirs()?;
    let instance = Instance { dirs: dirs.clone(), name: options.name.clone() };
    if runs_already(&instance, &options, progress)? {
        return Ok(instance);
    }
    create_dir(&dirs.state, 0o755)?;
    let local = matches!(options.cluster, Cluster::Local {});
    // Before the lock, so that others can see the state of the instance during the minutes of a build.
    let tools = if local { Some(Tools::ensure(&dirs, progress).await?) } else { None };
    let binaries = if options.postgres > 0 { Some(Binaries::ensure(&dirs, progress).await?) } else { None };
    let mariadb = match options.mariadb {
        0 => None,
        _ => Some(mariadb::binaries::Binaries::ensure(&dirs, progress).await?),
    };

    let _lock = instance.lock(progress).await?;
    if runs_already(&instance, &options, progress)? {
        return Ok(instance);
    }
    let layout = instance.layout();
    let mut state = match State::load(&layout.state())? {
        Some(_) => {
            stop_leftovers(&instance, progress).await?;
            instance.state()?
        }
        None => State::new(options.clone())?,
    };
    state.options = options.clone();
    state.owner = owner;
    state.ready = false;

    let begin = Instant::now();
    // The user of the database servers passes through, but sees nothing.
    create_dir(&layout.dir(), 0o711)?;
    for dir in [layout.logs(), layout.secrets(), layout.bin()] {
        create_dir(&dir, 0o700)?;
    }
    let pki = Pki::open(&layout.pki(), &options.name)?;
    forget_what_is_not_asked_for(&mut state);
    state.save(&layout.state())?;
    let rollback = Rollback::new(&instance);
    let recorder = Recorder { instance: &instance, state: Mutex::new(state) };
    if binaries.is_some() || mariadb.is_some() {
        servers_home(&recorder)?;
    }

    tokio::try_join!(
        async {
            match &tools {
                Some(tools) => control_plane(&recorder, &pki, tools, progress).await,
                None => Ok(()),
            }
        },
        async {
            match binaries {
                Some(binaries) => databases(&recorder, &pki, binaries, progress).await,
                None => Ok(()),
            }
        },
        async {
            match mariadb {
                Some(binaries) => mariadb_servers(&recorder, &pki, binaries, progress).await,
                None => Ok(()),
            }
        },
    )?;
    link_programs(&layout.bin(), tools.as_ref())?;
    recorder.update(|state| state.ready = true)?;
    rollback.disarm();
    progress.note(&format!("\"{}\" is up after {:.1} s", options.name, begin.elapsed().as_secs_f64()));
    Ok(instance)
}

/// Whether nothing is to be done. Further programs do not count: nobody but their owner can say what they need.
fn runs_already(instance: &Instance, options: &Options, progress: &Progress) -> Result<bool> {
    let Some(state) = State::load(&instance.layout().state())? else { return Ok(false) };
    let core = |program: &&Program| program.kind != ProgramKind::Extra;
    if !state.ready || !state.programs.iter().filter(core).all(Program::is_alive) {
        return Ok(false);
    }
    let same = state.options == Options { dirs: None, ..options.clone() };
    let hint = if same { "" } else { " (with other options than asked for: `down` first to change them)" };
    progress.note(&format!("\"{}\" runs already{hint}", instance.name));
    Ok(true)
}

async fn stop_leftovers(instance: &Instance, progress: &Progress) -> Result<()> {
    let copy = instance.clone();
    let stopped = tokio::task::spawn_blocking(move || stop_everything(&copy)).await??;
    if stopped.programs > 0 {
        progress.note(&format!(
            "  stopped {} programs that were left of \"{}\"",
            stopped.programs, instance.name
        ));
    }
    Ok(())
}

/// Drops the records of servers that this `up` does not want; their data stay.
fn forget_what_is_not_asked_for(state: &mut State) {
    let mut wanted: Vec<String> = (1..=state.options.postgres).map(server::name).collect();
    wanted.extend((1..=state.options.mariadb).map(mariadb::server::name));
    let local = matches!(state.options.cluster, Cluster::Local {});
    state.programs.retain(|program| match program.kind {
        ProgramKind::Extra => true,
        ProgramKind::Postgres | ProgramKind::Mariadb => wanted.contains(&program.name),
        ProgramKind::Worker | ProgramKind::ApiServer | ProgramKind::Etcd => local,
    });
    state.databases.retain(|database| wanted.contains(&database.name));
}

/// Writes down every process the moment that it exists.
struct Recorder<'a> {
    instance: &'a Instance,
    state: Mutex<State>,
}

impl Recorder<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state();
        let result = change(&mut state);
        state.save(&self.instance.layout().state())?;
        Ok(result)
    }

    fn port_of(&self, program: &str) -> Option<u16> {
        self.state().program(program).and_then(|program| program.port)
    }

    fn spawn(&self, mut program: Program) -> Result<Program> {
        let mut state = self.state();
        let process = process::spawn(&program.command, &state.id, &self.instance.log(&program.name))?;
        program.process = Some(process);
        program.started = Some(Timestamp::now());
        state.put(program.clone());
        state.save(&self.instance.layout().state())?;
        Ok(program)
    }

    /// Writes down how to reach a database server.
    fn know(&self, endpoint: DatabaseEndpoint) -> Result<()> {
        self.update(|state| {
            state.databases.retain(|known| known.name != endpoint.name);
            state.databases.push(endpoint);
            // PostgreSQL first: who takes the first one means the first of them.
            state.databases.sort_by_key(|known| (known.engine != Engine::Postgresql, known.name.clone()));
        })
    }

    fn endpoints(&self, engine: Engine) -> Vec<DatabaseEndpoint> {
        let state = self.state();
        state.databases.iter().filter(|known| known.engine == engine).cloned().collect()
    }

    /// Starts a program on its former port or another free one and waits until it is ready.
    async fn launch(&self, name: &str, make: impl Fn(u16) -> Result<Program>) -> Result<Program> {
        let log = self.instance.log(name);
        let mut port = ports::keep_or_pick(self.port_of(name))?;
        for attempt in 1.. {
            let log_from = log_length(&log);
            let program = self.spawn(make(port)?)?;
            let Err(error) = self.instance.wait_until_ready(&program, log_from).await else {
                return Ok(program);
            };
            // Another process may have taken the port since we looked.
            let said = log_since(&log, log_from).unwrap_or_default().to_ascii_lowercase();
            if program.is_alive() || attempt >= ATTEMPTS || !said.contains("address already in use") {
                return Err(error);
            }
            port = ports::keep_or_pick(None)?;
        }
        bail!("{name} was not started")
    }
}

async fn control_plane(recorder: &Recorder<'_>, pki: &Pki, tools: &Tools, progress: &Progress) -> Result<()> {
    let instance = recorder.instance;
    let (dir, hosts) = (instance.dir(), recorder.state().options.hosts.clone());
    let plane = ControlPlane { instance: &instance.name, dir: &dir, pki, tools };
    plane.prepare()?;

    let step = progress.step("control plane (etcd, API server)");
    let etcd = recorder.launch("etcd", |port| Ok(plane.etcd(port, ports::keep_or_pick(None)?))).await?;
    let etcd_port = etcd.port.context("etcd has no port")?;
    let server = recorder
        .launch("kube-apiserver", |port| {
            plane.write_kubeconfigs(port)?;
            Ok(plane.api_server(port, etcd_port))
        })
        .await?;
    let port = server.port.context("the API server has no port")?;
    step.done(&format!("https://127.0.0.1:{port}"));

    let step = progress.step("controllers, scheduler and simulated hosts");
    let workers =
        plane.workers().into_iter().map(|program| recorder.spawn(program)).collect::<Result<Vec<_>>>()?;
    let api = instance.api(port)?;
    let bodies = (1..=hosts.count).map(|number| node(number, &hosts));
    stream::iter(bodies)
        .map(|body| {
            let api = &api;
            async move {
                let answer = api.request("POST", "/api/v1/nodes", Some(body)).await?;
                // It may be there from before.
                if answer.status != 201 && answer.status != 409 {
                    bail!(
                        "cannot create a host: {} {}",
                        answer.status,
                        String::from_utf8_lossy(&answer.body)
                    );
                }
                Ok(())
            }
        })
        .buffer_unordered(8)
        .try_collect::<Vec<()>>()
        .await?;

    let begin = Instant::now();
    loop {
        for worker in &workers {
            instance.wait_until_ready(worker, 0).await?;
        }
        let nodes = api.request("GET", "/api/v1/nodes?resourceVersion=0", None).await?.json()?;
        let ready = nodes["items"]
            .as_array()
            .map_or(0, |items| items.iter().filter(|item| is_schedulable(item)).count());
        // Pods cannot be created in a namespace before its service account exists.
        let account = api.request("GET", "/api/v1/namespaces/default/serviceaccounts/default", None).await?;
        if ready >= hosts.count && account.status == 200 {
            break;
        }
        if begin.elapsed() > READY_LIMIT {
            bail!(
                "only {ready} of {} hosts are ready after {} s; see {}",
                hosts.count,
                READY_LIMIT.as_secs(),
                instance.log("kwok").display()
            );
        }
        tokio::time::sleep(POLL.max(Duration::from_millis(100))).await;
    }
    step.done(&format!("{} hosts with {} cores and {} each", hosts.count, hosts.cores, hosts.memory));
    Ok(())
}

/// The parent of the servers' data directories, made when there is none.
fn servers_home(recorder: &Recorder<'_>) -> Result<PathBuf> {
    let known = recorder.state().servers.as_ref().map(|servers| servers.dir.clone());
    // A directory under /tmp may have been tidied away since.
    if let Some(home) = known.filter(|home| home.is_dir()) {
        return Ok(home);
    }
    let instance = recorder.instance;
    let home = user::make_home(&instance.dir(), &instance.name, user::choose()?.as_ref())?;
    recorder.update(|state| state.servers = Some(ServersHome { dir: home.clone() }))?;
    Ok(home)
}

async fn databases(
    recorder: &Recorder<'_>,
    pki: &Pki,
    binaries: Binaries,
    progress: &Progress,
) -> Result<()> {
    let instance = recorder.instance;
    let layout = instance.layout();
    let (count, fast, member) = {
        let state = recorder.state();
        (state.options.postgres, state.options.fast, state.id.clone())
    };
    let step = progress.step(&format!("PostgreSQL ({count} on the loopback interface, TLS only)"));
    let run_as = user::choose()?;
    let run_as = run_as.as_ref();
    let home = servers_home(recorder)?;
    let binaries = binaries.reachable(run_as, &home).await?;
    let version = binaries.version().await?;
    link_postgres(&layout.bin(), &binaries)?;
    let secrets = layout.secrets();
    let common =
        Common { binaries: &binaries, run_as, home: &home, secrets: &secrets, pki, member: &member, fast };

    try_join_all((1..=count).map(|number| {
        let (common, version) = (&common, &version);
        async move {
            let server = Server::prepare(common, &server::name(number)).await?;
            let program = recorder
                .launch(&server.name, |port| {
                    let command = server.command(common, port);
                    let program = Program::new(&server.name, ProgramKind::Postgres, command);
                    Ok(Program { version: Some(version.clone()), port: Some(port), ..program })
                })
                .await?;
            let endpoint = DatabaseEndpoint {
                name: server.name.clone(),
                engine: Engine::Postgresql,
                version: version.clone(),
                host: "127.0.0.1".into(),
                port: program.port.context("a database server has no port")?,
                ca_file: pki.ca(),
                admin_user: server::ADMIN.into(),
                admin_password_file: server.password_file.clone(),
            };
            recorder.know(endpoint)
        }
    }))
    .await?;
    let endpoints = recorder.endpoints(Engine::Postgresql);
    write_pgpass(&layout.pgpass(), &endpoints)?;
    step.done(&version_and_speed(&version, fast));
    Ok(())
}

fn version_and_speed(version: &str, fast: bool) -> String {
    format!("version {version}{}", if fast { ", not waiting for the disk" } else { "" })
}

async fn mariadb_servers(
    recorder: &Recorder<'_>,
    pki: &Pki,
    binaries: mariadb::binaries::Binaries,
    progress: &Progress,
) -> Result<()> {
    let instance = recorder.instance;
    let layout = instance.layout();
    let (count, fast, member) = {
        let state = recorder.state();
        (state.options.mariadb, state.options.fast, state.id.clone())
    };
    let step = progress.step(&format!("MariaDB ({count} on the loopback interface, TLS only)"));
    let run_as = user::choose()?;
    let run_as = run_as.as_ref();
    let home = servers_home(recorder)?;
    let binaries = binaries.reachable(run_as, &home).await?;
    let version = binaries.version().await?;
    link_with_libraries(&layout.bin(), "mariadb", &binaries.client(), binaries.libraries.as_deref())?;
    let secrets = layout.secrets();
    let common = mariadb::server::Common {
        binaries: &binaries,
        run_as,
        home: &home,
        secrets: &secrets,
        pki,
        member: &member,
        fast,
    };
    try_join_all((1..=count).map(|number| {
        let (common, version) = (&common, &version);
        async move {
            let server = mariadb::server::Server::prepare(common, &mariadb::server::name(number)).await?;
            let program = recorder
                .launch(&server.name, |port| {
                    let command = server.command(common, port);
                    let program = Program::new(&server.name, ProgramKind::Mariadb, command);
                    Ok(Program { version: Some(version.clone()), port: Some(port), ..program })
                })
                .await?;
            recorder.know(DatabaseEndpoint {
                name: server.name.clone(),
                engine: Engine::Mariadb,
                version: version.clone(),
                host: "127.0.0.1".into(),
                port: program.port.context("a database server has no port")?,
                ca_file: pki.ca(),
                admin_user: mariadb::server::ADMIN.into(),
                admin_password_file: server.password_file.clone(),
            })
        }
    }))
    .await?;
    if let Some(first) = recorder.endpoints(Engine::Mariadb).first() {
        mariadb::server::write_client_options(&layout.mysql_home(), first)?;
    }
    step.done(&version_and_speed(&version, fast));
    Ok(())
}

fn write_pgpass(path: &Path, endpoints: &[DatabaseEndpoint]) -> Result<()> {
    let mut text = String::new();
    for endpoint in endpoints {
        let file = &endpoint.admin_password_file;
        let password =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        text.push_str(&format!("{}:{}:*:{}:{password}\n", endpoint.host, endpoint.port, endpoint.admin_user));
    }
    write_file(path, 0o600, text.as_bytes())
}

fn link(bin: &Path, name: &str, target: &Path) -> Result<()> {
    let link = bin.join(name);
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(&link)?;
    }
    symlink(target, &link).with_context(|| format!("cannot link {}", link.display()))
}

fn link_programs(bin: &Path, tools: Option<&Tools>) -> Result<()> {
    let Some(tools) = tools else { return Ok(()) };
    ["kubectl", "helm"].iter().try_for_each(|name| link(bin, name, &tools.program(name)))
}

/// The programs that people and tests call.
fn link_postgres(bin: &Path, binaries: &Binaries) -> Result<()> {
    for name in ["psql", "pgbench", "pg_dump", "pg_dumpall", "pg_restore", "pg_isready", "pg_basebackup"] {
        link_with_libraries(bin, name, &binaries.bin.join(name), binaries.libraries.as_deref())?;
    }
    Ok(())
}

/// Makes a program callable, if it exists. One from unpacked packages needs to be told where its libraries are.
fn link_with_libraries(bin: &Path, name: &str, target: &Path, libraries: Option<&Path>) -> Result<()> {
    if !target.is_file() {
        return Ok(());
    }
    match libraries {
        None => link(bin, name, target),
        Some(libraries) => {
            let script = format!(
                "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
                libraries.display(),
                target.display()
            );
            write_file(&bin.join(name), 0o755, script.as_bytes())
        }
    }
}
