//! What a server leaves open to everybody by default.

use super::{Account, Session, Step};
use crate::call::{Doing, within};
use crate::{Problem, Secured, Server};

/// No tenant's database can have this name.
const LOCK_NAME: &str = "*";
/// The patterns by which a fresh server lets everybody into databases for trying things out.
const TEST: [&str; 2] = ["test", r"test\_%"];

/// Accounts without name that everybody can use: the server takes them for whoever has no account of his own.
const ANONYMOUS: &str = "
SELECT Host FROM mysql.global_priv
WHERE User = '' AND COALESCE(JSON_VALUE(Priv, '$.authentication_string'), '') = ''
  AND COALESCE(JSON_VALUE(Priv, '$.plugin'), '') IN ('', 'mysql_native_password')
  AND COALESCE(JSON_VALUE(Priv, '$.account_locked'), 'false') NOT IN ('true', '1')";
const OPEN: &str = "
SELECT User, Host, Db FROM mysql.db WHERE User = '' OR (User = 'PUBLIC' AND Host = '') ORDER BY Db, Host";

pub(crate) async fn secure_server(server: &Server) -> Result<Secured, Problem> {
    let doing = Doing::new("connect");
    let work = async {
        let mut admin = Session::admin(server).await?;
        let result = secure(&mut admin, &doing).await;
        admin.close().await;
        result
    };
    within(server, &doing, work).await
}

async fn secure(admin: &mut Session, doing: &Doing) -> Result<Secured, Problem> {
    if !admin.lock(LOCK_NAME).await? {
        return Err(Problem::Busy { database: "mysql".to_owned() });
    }
    doing.set("read the state of the server");
    let anonymous: Vec<(String,)> = admin.rows(ANONYMOUS, Vec::new()).await?;
    let open: Vec<(String, String, String)> = admin.rows(OPEN, Vec::new()).await?;
    let (steps, open_databases) = steps(anonymous.into_iter().map(|(host,)| host), open);
    let mut changed = Vec::new();
    for step in steps {
        doing.set(step.words());
        admin.execute(&step).await?;
        tracing::info!(change = %step.words(), "changed on the database server");
        changed.push(step.words());
    }
    Ok(Secured { changed, open_databases })
}

/// What is to be done, and which other databases are open to everybody.
fn steps(
    anonymous: impl Iterator<Item = String>,
    open: Vec<(String, String, String)>,
) -> (Vec<Step>, Vec<String>) {
    let mut steps: Vec<Step> = anonymous.map(|host| Step::DropAnonymous { host }).collect();
    let mut others = Vec::new();
    for (name, host, pattern) in open {
        if name.is_empty() && TEST.contains(&pattern.as_str()) {
            steps.push(Step::CloseToEverybody { pattern, host });
        } else if name.is_empty() || (Account { name, host }) == Account::public() {
            others.push(pattern);
        }
    }
    others.dedup();
    (steps, others)
}
