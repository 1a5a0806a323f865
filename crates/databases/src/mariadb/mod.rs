//! MariaDB: look, decide, act, look again.
//!
//! On the server, a database has an account that the application logs in as, from any host and with TLS only, with
//! rights on the data and the tables of that database; from the first rotation on, a second one with the same rights. Whose a database and an account are is written in a small
//! database of its own, [`REGISTRY`], which no application can reach, together with a random id of the server. Names of
//! other databases are not visible to an application.

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
pub use observe::{Grant, Observed, SeenAccount, SeenDatabase, observe};
pub use plan::plan;
pub(crate) use removal::remove;
pub use removal::{Removal, plan_removal};
pub(crate) use secure::secure_server;
pub use step::{Account, Kind, Step};
pub(crate) use survey::marked_databases;

use crate::call::{Doing, now, within};
use crate::{Binding, Desired, Names, Outcome, Problem, Provisioned, Secret, Server};
use connect::Refusal;

/// The database in which the server remembers what is Con.Me's. No tenant's database can have this name: theirs hold
/// two `_` in a row.
pub const REGISTRY: &str = "conme_registry";

/// How often look, decide, act is repeated before giving up: a second look must find everything done, a third is for
/// what somebody changed meanwhile.
const ROUNDS: usize = 3;

type GoOn<'a> = dyn Fn(&str) -> bool + Send + Sync + 'a;

pub(crate) async fn ensure(
    server: &Server,
    desired: &Desired,
    password: &Secret,
    go_on: &GoOn<'_>,
) -> Result<Outcome, Problem> {
    let names = desired.names()?;
    let doing = Doing::new("connect");
    let work = async {
        let admin = Session::admin(server).await?;
        let mut work = Work { server, desired, names, go_on, doing: &doing, admin, changed: Vec::new() };
        let result = work.run(password).await;
        work.admin.close().await;
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
    changed: Vec<String>,
}

impl Work<'_> {
    async fn run(&mut self, password: &Secret) -> Result<Outcome, Problem> {
        self.doing.set(format!("wait for the lock of database {}", self.names.database()));
        if !self.admin.lock(self.names.database()).await? {
            return Err(Problem::Busy { database: self.names.database().to_owned() });
        }
        let observed = self.converge().await?;
        let login_proved = if self.desired.open { self.prove_login(password).await? } else { false };
        for step in plan::afterwards(self.desired, &self.names, &observed) {
            self.execute(&step).await?;
        }
        Ok(self.outcome(&observed, login_proved))
    }

    /// Repeats look, decide, act until nothing is left to do.
    async fn converge(&mut self) -> Result<Observed, Problem> {
        let mut left = Vec::new();
        for _ in 0..=ROUNDS {
            self.doing.set("read the state of the server");
            let observed = observe(&mut self.admin, &self.names).await?;
            let steps = plan(self.desired, &observed)?;
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

    async fn execute(&mut self, step: &Step) -> Result<(), Problem> {
        let words = step.words();
        if !(self.go_on)(&words) {
            return Err(Problem::Stopped { before: words });
        }
        self.doing.set(&words);
        self.admin.execute(step).await?;
        tracing::info!(database = self.names.database(), change = %words, "changed on the database server");
        self.changed.push(words);
        Ok(())
    }

    /// Logs in as the application; sets the password when, and only when, the server says that it is another one.
    async fn prove_login(&mut self, password: &Secret) -> Result<bool, Problem> {
        let account = Account::any_host(self.names.login(self.desired.login));
        self.doing.set(format!("log in as {}", account.name));
        // An account closed or made in this run has no password; asking would only leave a failed login in the log.
        let closed = [
            Step::CreateAccount { account: account.clone(), limit: plan::limit(self.desired), open: true },
            Step::CloseAuthentication { account: account.clone() },
        ];
        if !closed.iter().any(|step| self.changed.contains(&step.words())) {
            match self.log_in(password).await {
                Err(Refusal::WrongPassword(_)) => {}
                other => return settled(other),
            }
        }
        let verifier = step::native_verifier(password);
        self.execute(&Step::SetPassword { account, verifier }).await?;
        settled(self.log_in(password).await)
    }

    async fn log_in(&self, password: &Secret) -> Result<(), Refusal> {
        let database = Some(self.names.database());
        let user = self.names.login(self.desired.login);
        Session::open(self.server, database, user, password).await?.close().await;
        Ok(())
    }

    fn outcome(&self, observed: &Observed, login_proved: bool) -> Outcome {
        let remembered = self.desired.provisioned.as_ref();
        let other = Account::any_host(self.names.login(self.desired.login.other()));
        let seen_other = observed.accounts.get(&other.name);
        let closed_now = self.changed.contains(&Step::CloseLogin { account: other }.words());
        Outcome {
            changed: self.changed.clone(),
            provisioned: Provisioned {
                system_identifier: observed.system_identifier.clone(),
                at: remembered.map_or_else(now, |provisioned| provisioned.at),
            },
            server_version: observed.version.clone(),
            size_bytes: observed.database.as_ref().map_or(0, |database| database.size_bytes),
            undeclared_extensions: Vec::new(),
            other_grantees: plan::other_grantees(observed),
            login_proved,
            other_login_open: seen_other.is_some_and(|seen| !seen.locked) && !closed_now,
            other_sessions: seen_other.map_or(0, |seen| seen.sessions),
            generation: plan::generation(observed),
            growth: plan::growth(self.desired, observed),
            binding: Binding {
                host: self.server.host.clone(),
                port: self.server.port,
                database: self.names.database().to_owned(),
                username: self.names.login(self.desired.login).to_owned(),
            },
        }
    }
}

/// The server checks the password first: one that counts connections has accepted it. An application that uses all its
/// connections is no problem of the database.
fn settled(login: Result<(), Refusal>) -> Result<bool, Problem> {
    match login {
        Ok(()) => Ok(true),
        Err(Refusal::Full(_)) => Ok(false),
        Err(refusal) => Err(refusal.into()),
    }
}
