//! What breaks below the databases: a server dies between any two statements of the operator, comes back empty, or has no
//! room left on its disk. Nothing is lost, nothing is there twice, and nothing is made in the place of what is missing.
//!
//! `CONME_SEED` repeats a run with the same choices (it is printed); `CONME_CRASHES` sets how many databases live through
//! their servers' deaths (1 on each server).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conme_api::{Comune, keys, reasons};
use conme_stories::{
    Credentials, DataCentre, condition, entity, eventually, is_current,
    load::{Dice, last_words, number, seed},
    mariadb_administrator, mariadb_login,
    wire::Wire,
};
use conme_testbed::{Options, Signal, install::OPERATOR};
use kube::api::{DeleteParams, Patch, PatchParams};
use mysql_async::prelude::Queryable;
use serde_json::json;

/// Messages of the operator within which a server dies; providing a database takes more of them.
const MESSAGES: u64 = 30;

/// A database server with the line to it that the operator and the applications use.
struct Server {
    name: &'static str,
    engine: &'static str,
    wire: Wire,
}

impl Server {
    /// Puts lines before all first servers of a data centre.
    async fn all(data_centre: &DataCentre) -> Result<[Self; 2]> {
        let line = async |name: &'static str, engine| -> Result<Self> {
            Ok(Self { name, engine, wire: Wire::to(port(data_centre, name)?).await? })
        };
        let servers = [line("pg-venis-1", "postgresql").await?, line("mariadb-venis-1", "mariadb").await?];
        data_centre
            .edit_servers(|declared| {
                for server in &servers {
                    for declared in declared.iter_mut().filter(|declared| declared.name == server.name) {
                        declared.port = server.wire.port();
                    }
                }
            })
            .await?;
        Ok(servers)
    }

    fn is_postgres(&self) -> bool {
        self.engine == "postgresql"
    }

    /// Applies a Comune with databases of these names, which go with it when it goes.
    async fn declare(
        &self,
        data_centre: &DataCentre,
        name: &str,
        istat: u32,
        databases: &[&str],
    ) -> Result<()> {
        let databases: Vec<_> = databases
            .iter()
            .map(|database| {
                json!({
                    "name": database, "engine": self.engine, "placement": {"shared": self.name},
                    "deletionPolicy": "Delete",
                })
            })
            .collect();
        let spec = json!({
            "entity": entity(name, istat),
            "quota": {"cpu": "2", "memory": "4Gi", "storage": "20Gi"},
            "deletionPolicy": "Delete",
            "databases": databases,
        });
        data_centre.apply(name, spec).await?;
        Ok(())
    }

    /// Runs statements as the application, with what is in its Secret.
    async fn as_application(&self, data_centre: &DataCentre, comune: &str, sql: &str) -> Result<()> {
        let credentials = Credentials::of(data_centre, &format!("{comune}-produzione"), "dati").await?;
        if self.is_postgres() {
            credentials.login(None).await?.run(sql).await
        } else {
            let mut session = mariadb_login(&credentials, None).await?;
            for statement in sql.split(';') {
                session.query_drop(statement).await?;
            }
            session.disconnect().await?;
            Ok(())
        }
    }

    /// The one row that this story has written into a database; an error when it is another, or not the only one.
    async fn row_is_there(&self, data_centre: &DataCentre, comune: &str) -> Result<()> {
        // Refused by both servers unless there is exactly one row.
        let sql = "create table prova (n int primary key); insert into prova select count(*) from segno where di = 'qui'; \
                   insert into prova values (0); drop table prova";
        self.as_application(data_centre, comune, sql).await.with_context(|| format!("the row of {comune}"))
    }

    /// Databases and logins on a server whose names begin as those of these stories.
    async fn names(&self, data_centre: &DataCentre, server: &str, prefix: &str) -> Result<Vec<String>> {
        let names: Vec<String> = if self.is_postgres() {
            let list = format!(
                "select coalesce(string_agg(n, ' ' order by n), '') from (select datname n from pg_database union all \
                 select rolname from pg_roles) x where n like '{prefix}\\_%'"
            );
            let login = Credentials::of_administrator(data_centre, server)?.login(None).await?;
            login.value(&list).await?.split_whitespace().map(str::to_owned).collect()
        } else {
            let mut admin = mariadb_administrator(data_centre, server).await?;
            let list = format!(
                "select n from (select schema_name n from information_schema.schemata union all select user from \
                 mysql.global_priv) x where n like '{prefix}\\_%' order by n"
            );
            let names = admin.query(list).await?;
            admin.disconnect().await?;
            names
        };
        Ok(names)
    }

    /// Brings something about while the server dies right before a message of the operator, and comes back. Returns
    /// whether it came to that.
    async fn dies_during(
        &self,
        data_centre: &DataCentre,
        message: u32,
        done: impl AsyncFn() -> Result<()>,
    ) -> Result<bool> {
        let stopped = self.wire.stop_after(message);
        let died = tokio::select! {
            _ = stopped => true,
            result = done() => { result?; false }
        };
        if died {
            let instance = data_centre.instance();
            instance.kill(self.name, Signal::Kill).await?;
            self.wire.cut();
            instance.start_program(self.name).await?;
        }
        self.wire.let_pass();
        done().await?;
        Ok(died)
    }

    /// The whole life of one database, with a death of its server in each part of it. Returns how often it died.
    async fn a_life(&self, data_centre: &DataCentre, dice: &mut Dice, name: &str, istat: u32) -> Result<u32> {
        let mut deaths = 0;
        let mut message = || u32::try_from(dice.below(MESSAGES)).expect("a small number");
        let told = |part: &str, died: bool, message: u32| {
            let what = if died { "died before" } else { "was done with less than" };
            println!("{name}: {} {what} message {message} of {part}", self.engine);
            u32::from(died)
        };

        let at = message();
        let stopped = self.wire.stop_after(at);
        self.declare(data_centre, name, istat, &["dati"]).await?;
        drop(stopped);
        let ready = async || data_centre.ready(name).await.map(drop);
        deaths += told("its making", self.dies_during(data_centre, at, ready).await?, at);
        self.as_application(
            data_centre,
            name,
            "create table segno (di text); insert into segno values ('qui')",
        )
        .await?;

        let at = message();
        annotate(data_centre, name, keys::ROTATE_CREDENTIALS, &format!("dati@{}", jiff::Timestamp::now()))
            .await?;
        let rotated = async || {
            data_centre
                .comune_where(name, "told of a new password", |comune| generation(comune) == 2)
                .await
                .map(drop)
        };
        deaths += told("a rotation", self.dies_during(data_centre, at, rotated).await?, at);
        data_centre.ready(name).await?;
        self.row_is_there(data_centre, name).await?;
        let prefix = name.replace('-', "_");
        let names = self.names(data_centre, self.name, &prefix).await?;
        let mut once = names.clone();
        once.dedup();
        ensure!(names == once && names.len() >= 3, "{names:?}");

        let at = message();
        data_centre.comuni().delete(name, &DeleteParams::default()).await?;
        let uid = data_centre.comuni().get(name).await?.metadata.uid.context("a uid")?;
        annotate(data_centre, name, keys::CONFIRM_DELETE, &format!("{name}/{uid}")).await?;
        let gone = async || {
            eventually(&format!("{name} is gone"), || async {
                Ok(data_centre.comuni().get_opt(name).await?.is_none())
            })
            .await
        };
        deaths += told("its end", self.dies_during(data_centre, at, gone).await?, at);
        let names = self.names(data_centre, self.name, &prefix).await?;
        ensure!(names.is_empty(), "left of {name}: {names:?}");
        Ok(deaths)
    }
}

fn port(data_centre: &DataCentre, server: &str) -> Result<u16> {
    let servers = data_centre.instance().databases()?;
    Ok(servers.iter().find(|known| known.name == server).context("no such server")?.port)
}

fn generation(comune: &Comune) -> u32 {
    let database = comune.status.as_ref().and_then(|status| status.databases.first());
    database.and_then(|told| told.credential.as_ref()).map_or(0, |credential| credential.generation)
}

async fn annotate(data_centre: &DataCentre, name: &str, key: &str, value: &str) -> Result<()> {
    let body = json!({"metadata": {"annotations": {key: value}}});
    data_centre.comuni().patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_dies_between_two_statements_and_nothing_is_lost_or_doubled() -> Result<()> {
    let seed = seed();
    let lives = u32::try_from(number("CONME_CRASHES", 1))?;
    let mut dice = Dice(seed);
    // What a server has said to be done has to survive it.
    let options = Options { mariadb: 1, fast: false, ..Options::new(Options::unique_name("crash")?) };
    let data_centre = DataCentre::own_as(options, &["--deletion-grace", "1s"]).await?;
    let [postgres, mariadb] = Server::all(&data_centre).await?;
    // One that has nothing to do with it, on each of them.
    for (number, server) in (0..).zip([&postgres, &mariadb]) {
        let name = format!("cra-vicino-{}", server.engine);
        server.declare(&data_centre, &name, 904_490 + number, &["dati"]).await?;
        data_centre.ready(&name).await?;
        let sql = "create table segno (di text); insert into segno values ('qui')";
        server.as_application(&data_centre, &name, sql).await?;
    }
    let lives = async |server: &Server, mut dice: Dice, first: u32| -> Result<u32> {
        let mut deaths = 0;
        for number in 0..lives {
            let name = format!("cra-{}-{number}", server.engine);
            deaths += server.a_life(&data_centre, &mut dice, &name, first + number).await?;
        }
        Ok(deaths)
    };
    let (one, two) = (Dice(dice.throw()), Dice(dice.throw()));
    let deaths = tokio::try_join!(lives(&postgres, one, 904_400), lives(&mariadb, two, 904_440));
    let deaths = deaths.with_context(|| {
        let words = last_words(data_centre.instance()).unwrap_or_default();
        format!("seed {seed}; {words}")
    })?;
    assert!(deaths.0 > 0 && deaths.1 > 0, "seed {seed}: nobody died: {deaths:?}");
    for server in [&postgres, &mariadb] {
        let name = format!("cra-vicino-{}", server.engine);
        data_centre.ready(&name).await?;
        server.row_is_there(&data_centre, &name).await?;
    }
    assert!(data_centre.instance().is_alive(OPERATOR)?);
    Ok(())
}

/// Times that databases were looked at with this result.
async fn looks(data_centre: &DataCentre, result: &str) -> Result<f64> {
    Ok(data_centre.metrics().await?.sum("conme_database_ensure_total", &[&format!("result=\"{result}\"")]))
}

async fn not_ready(data_centre: &DataCentre, name: &str, wanted: &[&str]) -> Result<(String, String)> {
    let told = |comune: &Comune| {
        condition(comune, reasons::DATABASES_READY)
            .filter(|(status, reason, _)| *status == "False" && wanted.contains(reason))
            .map(|(_, reason, message)| (reason.to_owned(), message.to_owned()))
    };
    let comune = data_centre
        .comune_where(name, &wanted.join(" or "), |comune| is_current(comune) && told(comune).is_some())
        .await?;
    told(&comune).context("a condition")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_or_full_is_told_and_waited_for() -> Result<()> {
    let options = Options { postgres: 2, mariadb: 2, ..Options::new(Options::unique_name("empty")?) };
    let data_centre = DataCentre::own_as(options, &["--recheck-seconds", "2"]).await?;
    let servers = Server::all(&data_centre).await?;
    for (number, server) in (0..).zip(&servers) {
        let name = format!("vuo-{}", server.engine);
        server.declare(&data_centre, &name, 904_500 + number, &["dati"]).await?;
        data_centre.ready(&name).await?;
        let sql = "create table segno (di text); insert into segno values ('qui')";
        server.as_application(&data_centre, &name, sql).await?;
    }
    servers_that_come_back_empty(&data_centre, &servers).await?;
    // Not of MariaDB, which has set room aside and makes a database on a full disk, too.
    a_disk_that_is_full(&data_centre, &servers[0], 904_510).await
}

/// At the same address there is a server with the same administrator and nothing else.
async fn servers_that_come_back_empty(data_centre: &DataCentre, servers: &[Server; 2]) -> Result<()> {
    let instance = data_centre.instance();
    for server in servers {
        let empty = server.name.replace("-1", "-2");
        let of =
            |name: &str| instance.databases().map(|all| all.into_iter().find(|known| known.name == name));
        let known = of(server.name)?.context("a server")?;
        let password = std::fs::read_to_string(&known.admin_password_file)?;
        let port = port(data_centre, &empty)?;
        if server.is_postgres() {
            let admin = Credentials::of_administrator(data_centre, &empty)?.login(None).await?;
            admin.run(&format!("alter role {} password '{}'", known.admin_user, password.trim())).await?;
        } else {
            let mut admin = mariadb_administrator(data_centre, &empty).await?;
            admin.query_drop(format!("set password = password('{}')", password.trim())).await?;
            admin.disconnect().await?;
        }
        // From now on this story, too, knows it by that password.
        std::fs::write(of(&empty)?.context("a server")?.admin_password_file, password)?;
        server.wire.lead_to(port);
    }
    for server in servers {
        let (_, message) =
            not_ready(data_centre, &format!("vuo-{}", server.engine), &[reasons::DATA_MISSING]).await?;
        assert!(message.contains("Nothing was created in its place"), "{message}");
    }
    // Looked at again and again, also by another process.
    instance.stop_program(OPERATOR).await?;
    instance.start_program(OPERATOR).await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    eventually("both are looked at again", || async {
        Ok(looks(data_centre, reasons::DATA_MISSING).await? >= 4.0)
    })
    .await?;
    for server in servers {
        not_ready(data_centre, &format!("vuo-{}", server.engine), &[reasons::DATA_MISSING]).await?;
        let names = server.names(data_centre, &server.name.replace("-1", "-2"), "vuo").await?;
        assert!(names.is_empty(), "made in the place of what is missing: {names:?}");
    }

    // The right one is back.
    for server in servers {
        server.wire.lead_to(port(data_centre, server.name)?);
    }
    for server in servers {
        let name = format!("vuo-{}", server.engine);
        data_centre.ready(&name).await?;
        server.row_is_there(data_centre, &name).await?;
    }
    Ok(())
}

/// A small file system over the data directory of a server.
struct SmallDisk {
    data: PathBuf,
}

impl SmallDisk {
    /// Moves the data directory of a stopped server onto one with so much room beside. None when this user may not.
    fn over(data: &Path, room_mib: u64) -> Result<Option<Self>> {
        let spare = data.with_extension("small");
        std::fs::create_dir_all(&spare)?;
        let size = said(Command::new("du").args(["-sm", "--"]).arg(data))?;
        let size: u64 = size.split_whitespace().next().context("a size")?.parse()?;
        let options = format!("size={}m,mode=0700", size + room_mib);
        let mount = |arguments: &[&str], from: &Path, to: &Path| {
            said(Command::new("mount").args(arguments).arg(from).arg(to))
        };
        if let Err(error) = mount(&["-t", "tmpfs", "-o", &options], Path::new("tmpfs"), &spare) {
            println!("SKIPPED: a full disk. Only root can mount a small file system: {error:#}");
            return Ok(None);
        }
        let disk = Self { data: data.to_owned() };
        let moved = said(Command::new("cp").arg("-aT").arg(data).arg(&spare))
            .and_then(|_| mount(&["--bind"], &spare, data));
        said(Command::new("umount").arg(&spare))?;
        std::fs::remove_dir(&spare)?;
        moved?;
        Ok(Some(disk))
    }

    fn ballast(&self) -> PathBuf {
        self.data.join("ballast")
    }

    /// Fills it up to the last byte.
    fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.ballast())?;
        match std::io::copy(&mut std::io::repeat(0), &mut file) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
            other => anyhow::bail!("the disk is not full: {other:?}"),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still works there ends with the data centre.
        if let Err(error) = said(Command::new("umount").arg("--lazy").arg(&self.data)) {
            println!("{} stays mounted: {error:#}", self.data.display());
        }
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", words.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn a_disk_that_is_full(data_centre: &DataCentre, server: &Server, istat: u32) -> Result<()> {
    const LISTEN: Duration = Duration::from_secs(12);
    let (name, instance) = (&*format!("pieno-{}", server.engine), data_centre.instance());
    server.declare(data_centre, name, istat, &["dati"]).await?;
    data_centre.ready(name).await?;
    let sql = "create table segno (di text); insert into segno values ('qui')";
    server.as_application(data_centre, name, sql).await?;
    let admin = Credentials::of_administrator(data_centre, server.name)?.login(None).await?;
    let data = PathBuf::from(admin.value("show data_directory").await?);
    drop(admin);

    instance.stop_program(server.name).await?;
    let Some(disk) = SmallDisk::over(&data, 40)? else {
        instance.start_program(server.name).await?;
        return Ok(());
    };
    instance.start_program(server.name).await?;
    data_centre.ready(name).await?;
    disk.fill()?;
    server.declare(data_centre, name, istat, &["dati", "altri"]).await?;
    // The server refuses, or breaks down over it.
    let wanted = [reasons::DATABASE_FAILED, reasons::SERVER_UNREACHABLE];
    let (reason, message) = not_ready(data_centre, name, &wanted).await?;
    println!("a full disk is {reason}: {message}");
    let passes = |result: &'static str| async move {
        let label = format!("result=\"{result}\"");
        let metrics = data_centre.metrics().await?;
        anyhow::Ok(metrics.sum("controller_runtime_reconcile_total", &["controller=\"database\"", &label]))
    };
    let (before, begin) = (passes("error").await?, Instant::now());
    tokio::time::sleep(LISTEN).await;
    let failed = passes("error").await? - before;
    println!("{failed} failed attempts within {:.0?}", begin.elapsed());
    // Three databases on it at most, each with pauses that double.
    assert!(failed <= 3.0 * 6.0, "it tries again and again without a pause: {failed}");

    std::fs::remove_file(disk.ballast())?;
    instance.start_program(server.name).await?;
    data_centre.ready(name).await?;
    server.row_is_there(data_centre, name).await?;
    let names = server.names(data_centre, server.name, &name.replace('-', "_")).await?;
    let mut once = names.clone();
    once.dedup();
    assert_eq!(names, once);
    assert_eq!(names.iter().filter(|name| name.ends_with("__dati") || name.ends_with("__altri")).count(), 2);
    assert!(instance.is_alive(OPERATOR)?);
    instance.stop_program(server.name).await?;
    drop(disk);
    Ok(())
}
