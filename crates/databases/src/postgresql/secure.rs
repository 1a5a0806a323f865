//! What a server leaves open to every role by default.

use serde::Deserialize;

use super::{MAINTENANCE_DATABASE, Object, Session, Step, lock_key};
use crate::call::{Doing, within};
use crate::{Problem, Secured, Server};

/// Databases of the server itself that no tenant has any business in.
const CLOSED: [&str; 2] = [MAINTENANCE_DATABASE, "template1"];
/// No tenant's database can have this name.
const LOCK_NAME: &str = "*";

/// One that takes no connections yet (limit 0) is still being made and is open to nobody but administrators.
const DATABASES: &str = "
select json_build_object(
  'admin', current_user,
  'admin_is_superuser', (select rolsuper from pg_roles where rolname = current_user),
  'databases', (select json_agg(json_build_object('name', d.datname, 'open', exists(
      select from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
      where a.grantee = 0 and a.privilege_type = 'CONNECT')) order by d.datname)
    from pg_database d
    where d.datallowconn and (d.datconnlimit <> 0 or d.datname in ('postgres', 'template1'))))::text";

#[derive(Deserialize)]
struct Seen {
    admin: String,
    admin_is_superuser: bool,
    databases: Vec<SeenDatabase>,
}

#[derive(Deserialize)]
struct SeenDatabase {
    name: String,
    open: bool,
}

pub(crate) async fn secure_server(server: &Server) -> Result<Secured, Problem> {
    let doing = Doing::new("connect");
    let work = async {
        let admin = Session::admin(server, MAINTENANCE_DATABASE).await?;
        let result = secure(&admin, &doing).await;
        admin.close().await;
        result
    };
    within(server, &doing, work).await
}

async fn secure(admin: &Session, doing: &Doing) -> Result<Secured, Problem> {
    // Two at a time would make the server answer "tuple concurrently updated".
    if !admin.lock(lock_key(LOCK_NAME)).await? {
        return Err(Problem::Busy { database: MAINTENANCE_DATABASE.to_owned() });
    }
    doing.set("read the state of the server");
    let seen: Seen = admin.json(DATABASES, &[]).await?;
    let mut changed = Vec::new();
    for step in steps(&seen) {
        doing.set(step.words());
        admin.execute(&step).await?;
        tracing::info!(change = %step.words(), "changed on the database server");
        changed.push(step.words());
    }
    let open = |database: &&SeenDatabase| database.open && !CLOSED.contains(&database.name.as_str());
    let open_databases = seen.databases.iter().filter(open).map(|database| database.name.clone()).collect();
    Ok(Secured { changed, open_databases })
}

fn steps(seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    for database in seen.databases.iter().filter(|database| database.open) {
        if !CLOSED.contains(&database.name.as_str()) {
            continue;
        }
        let object = Object::Database(database.name.clone());
        if !seen.admin_is_superuser {
            // An administrator that lives on PUBLIC's right would shut itself out.
            steps.push(Step::Grant {
                object: object.clone(),
                privileges: vec!["CONNECT"],
                to: seen.admin.clone(),
            });
        }
        steps.push(Step::Revoke {
            object,
            privileges: vec!["CONNECT"],
            from: None,
            only_grant_option: false,
        });
    }
    steps
}
