//! PostgreSQL: look, decide, act, look again.
//!
//! On the server, a database has a role that owns it and cannot log in, and a role that the application logs in as,
//! with rights in the schema `public` only. Both and the database carry a comment that says whose they are. Names of
//! databases and roles are visible to every role of the server; their contents are not.

mod connect;
mod observe;
mod plan;
mod removal;
mod secure;
mod step;
mod survey;
#[cfg(test)]
mod tests;

pub use connect::Session;
pub use observe::{
    Available, Grant, Inside, Membership, Observed, SeenDatabase, SeenRole, SeenSchema, observe,
    observe_available, observe_inside,
};
pub use plan::plan;
pub(crate) use removal::remove;
pub use removal::{Removal, plan_removal};
pub(crate) use secure::secure_server;
pub use step::{Object, Place, Step};
pub(crate) use survey::marked_databases;

use crate::call::{Doing, now, within};
use crate::{Binding, Desired, Growth, Names, Outcome, Problem, Provisioned, Secret, Server};
use connect::Refusal;

/// The database that statements for the whole server are run in.
pub const MAINTENANCE_DATABASE: &str = "postgres";

/// How often look, decide, act is repeated before giving up: a second look can show what the first could not (inside
/// a database that was closed), a third must find everything done.
const ROUNDS: usize = 3;

type GoOn<'a> = dyn Fn(&Step) -> bool + Send + Sync + 'a;

pub(crate) async fn ensure(
    server: &Server,
    desired: &Desired,
    password: &Secret,
    go_on: &GoOn<'_>,
) -> Result<Outcome, Problem> {
    let names = desired.names()?;
    let doing = Doing::new("connect");
    let work = async {
        let admin = Session::admin(server, MAINTENANCE_DATABASE).await?;
        let mut work =
            Work { server, desired, names, go_on, doing: &doing, admin, target: None, changed: Vec::new() };
        let result = work.run(password).await;
        work.close().await;
        result
    };
    within(server, &doing, work).await
}

struct Work<'a> {
    server: &'a Server,
    desired: &'a Desired,
    names: Names,
    go_on: &'a GoOn<'a>,
    doing: &'a Doing,
    admin: Session,
    target: Option<Session>,
    changed: Vec<String>,
}

impl Work<'_> {
    async fn run(&mut self, password: &Secret) -> Result<Outcome, Problem> {
        self.doing.set(format!("wait for the lock of database {}", self.names.database()));
        if !self.admin.lock(lock_key(self.names.database())).await? {
            return Err(Problem::Busy { database: self.names.database().to_owned() });
        }
        let observed = self.converge().await?;
        let growth = plan::growth(self.desired, &observed);
        let login_proved =
            if plan::is_closed(self.desired, growth) { false } else { self.prove_login(password).await? };
        for step in plan::afterwards(self.desired, &self.names, &observed) {
            self.execute(&step).await?;
        }
        Ok(self.outcome(&observed, growth, login_proved))
    }

    /// Repeats look, decide, act until nothing is left to do.
    async fn converge(&mut self) -> Result<Observed, Problem> {
        let mut left = Vec::new();
        for _ in 0..=ROUNDS {
            let observed = self.observe().await?;
            let steps = match plan(self.desired, &observed) {
                Ok(steps) => steps,
                Err(problem) => return Err(self.protect(&observed, problem).await),
            };
            if steps.is_empty() {
                return Ok(observed);
            }
            left = steps.iter().map(Step::words).collect();
            for step in &steps {
                self.execute(step).await?;
            }
        }
        Err(Problem::NotConverged { left: left.join(", ") })
    }

    /// An extension that cannot be had must not leave a database open that is already in use: everything else is
    /// repaired, then the problem is told.
    async fn protect(&mut self, observed: &Observed, problem: Problem) -> Problem {
        let about_extensions =
            matches!(problem, Problem::ExtensionNotAllowed { .. } | Problem::ExtensionUnavailable { .. });
        if about_extensions && observed.database.is_some() {
            let without = Desired { extensions: Default::default(), ..self.desired.clone() };
            for step in plan(&without, observed).unwrap_or_default() {
                if let Err(worse) = self.execute(&step).await {
                    return worse;
                }
            }
        }
        problem
    }

    async fn observe(&mut self) -> Result<Observed, Problem> {
        self.doing.set("read the state of the server");
        let mut observed = observe(&self.admin, &self.names).await?;
        if let Some(database) = &mut observed.database
            && database.allows_connections
            && database.connection_limit >= -1
        {
            database.inside = Some(self.inside().await?);
        }
        if observe::needs_available(self.desired, &observed) {
            observed.available = observe_available(&self.admin, self.desired).await?;
        }
        Ok(observed)
    }

    async fn inside(&mut self) -> Result<Inside, Problem> {
        let names = self.names.clone();
        observe_inside(self.target().await?, &names).await
    }

    async fn target(&mut self) -> Result<&Session, Problem> {
        let session = match self.target.take() {
            Some(session) => session,
            None => Session::admin(self.server, self.names.database()).await?,
        };
        Ok(self.target.insert(session))
    }

    async fn execute(&mut self, step: &Step) -> Result<(), Problem> {
        let words = step.words();
        if !(self.go_on)(step) {
            return Err(Problem::Stopped { before: words });
        }
        self.doing.set(&words);
        match step.place() {
            Place::Server => self.admin.execute(step).await?,
            Place::Database => self.target().await?.execute(step).await?,
        }
        tracing::info!(database = self.names.database(), change = %words, "changed on the database server");
        self.changed.push(words);
        Ok(())
    }

    /// Logs in as the application; sets the password when, and only when, the server says that it is another one.
    async fn prove_login(&mut self, password: &Secret) -> Result<bool, Problem> {
        let role = self.names.login(self.desired.login).to_owned();
        self.doing.set(format!("log in as {role}"));
        // A role made in this run has no password yet; asking would only leave a failed login in the server's log.
        let created = format!("create role {role}");
        if !self.changed.contains(&created) {
            match self.log_in(password).await {
                Err(Refusal::WrongPassword(_)) => {}
                other => return settled(other),
            }
        }
        let verifier = postgres_protocol::password::scram_sha_256(password.expose().as_bytes());
        let step = Step::SetPassword { role, verifier: Secret::new(verifier) };
        self.execute(&step).await?;
        settled(self.log_in(password).await)
    }

    async fn log_in(&self, password: &Secret) -> Result<(), Refusal> {
        let role = self.names.login(self.desired.login);
        Session::open(self.server, self.names.database(), role, password).await?.close().await;
        Ok(())
    }

    fn outcome(&self, observed: &Observed, growth: Growth, login_proved: bool) -> Outcome {
        let remembered = self.desired.provisioned.as_ref();
        let other = self.names.login(self.desired.login.other());
        let seen_other = observed.roles.get(other);
        let closed_now = self.changed.contains(&Step::CloseLogin { role: other.to_owned() }.words());
        Outcome {
            changed: self.changed.clone(),
            provisioned: Provisioned {
                system_identifier: observed
                    .system_identifier
                    .clone()
                    .or_else(|| remembered.and_then(|provisioned| provisioned.system_identifier.clone())),
                at: remembered.map_or_else(now, |provisioned| provisioned.at),
            },
            server_version: observed.version.clone(),
            size_bytes: observed.database.as_ref().map_or(0, |database| database.size_bytes),
            undeclared_extensions: plan::undeclared_extensions(self.desired, observed),
            other_grantees: plan::other_grantees(&self.names, observed),
            login_proved,
            other_login_open: seen_other.is_some_and(|seen| seen.login) && !closed_now,
            other_sessions: seen_other.map_or(0, |seen| seen.sessions),
            generation: plan::generation(observed),
            growth,
            binding: Binding {
                host: self.server.host.clone(),
                port: self.server.port,
                database: self.names.database().to_owned(),
                username: self.names.login(self.desired.login).to_owned(),
            },
        }
    }

    async fn close(self) {
        if let Some(target) = self.target {
            target.close().await;
        }
        self.admin.close().await;
    }
}

/// The server checks the password first: a database that is full has accepted it, or cannot tell now. An application
/// that uses all its connections is no problem of the database.
fn settled(login: Result<(), Refusal>) -> Result<bool, Problem> {
    match login {
        Ok(()) => Ok(true),
        Err(Refusal::Full(_)) => Ok(false),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The key of the lock that keeps two operators from working on the same database.
fn lock_key(database: &str) -> i64 {
    let hash = blake3::hash(format!("conme/{database}").as_bytes());
    let mut key = [0; 8];
    key.copy_from_slice(&hash.as_bytes()[..8]);
    i64::from_be_bytes(key)
}
