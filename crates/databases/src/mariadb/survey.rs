//! Looks for every database of a server that carries a mark of this system.

use super::{Kind, Session, observe::Registry};
use crate::call::{Doing, within};
use crate::{Marked, Problem, Server, tag};

const DATABASES: &str =
    "SELECT SCHEMA_NAME, SCHEMA_COMMENT FROM information_schema.SCHEMATA ORDER BY SCHEMA_NAME";

pub(crate) async fn marked_databases(server: &Server) -> Result<Vec<Marked>, Problem> {
    let doing = Doing::new("list the databases of the server");
    let work = async {
        let mut admin = Session::admin(server).await?;
        let seen = survey(&mut admin).await;
        admin.close().await;
        seen
    };
    within(server, &doing, work).await
}

async fn survey(admin: &mut Session) -> Result<Vec<Marked>, Problem> {
    let registry = Registry::read(admin).await?;
    let seen = admin.rows::<(String, String)>(DATABASES, Vec::new()).await?;
    Ok(marked(&registry, seen))
}

/// What the registry knows and is there. Where the registry is lost, the comment tells.
fn marked(registry: &Registry, seen: Vec<(String, String)>) -> Vec<Marked> {
    seen.into_iter()
        .filter_map(|(name, comment)| {
            let mark = registry.tag(Kind::Database, &name).unwrap_or(comment);
            let (comune, database, istat) = tag::owner(Some(&mark))?;
            Some(Marked { on_server: name, comune, database, istat })
        })
        .collect()
}
