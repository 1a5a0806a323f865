//! Looks for every database of a server that carries a mark of this system.

use serde::Deserialize;

use super::{MAINTENANCE_DATABASE, Session};
use crate::call::{Doing, within};
use crate::{Marked, Problem, Server, tag};

const DATABASES: &str = "
select coalesce(json_agg(json_build_object('name', d.datname, 'comment', shobj_description(d.oid, 'pg_database'))
  order by d.datname), '[]')::text
from pg_database d where not d.datistemplate";

#[derive(Deserialize)]
struct Seen {
    name: String,
    comment: Option<String>,
}

pub(crate) async fn marked_databases(server: &Server) -> Result<Vec<Marked>, Problem> {
    let doing = Doing::new("list the databases of the server");
    let work = async {
        let admin = Session::admin(server, MAINTENANCE_DATABASE).await?;
        let seen = admin.json::<Vec<Seen>>(DATABASES, &[]).await;
        admin.close().await;
        Ok(marked(seen?))
    };
    within(server, &doing, work).await
}

fn marked(seen: Vec<Seen>) -> Vec<Marked> {
    seen.into_iter()
        .filter_map(|Seen { name, comment }| {
            let (comune, database, istat) = tag::owner(comment.as_deref())?;
            Some(Marked { on_server: name, comune, database, istat })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_carries_the_mark_is_listed() {
        let seen = |name: &str, comment: Option<&str>| Seen {
            name: name.to_owned(),
            comment: comment.map(str::to_owned),
        };
        let mark = r#"{"managed-by":"conme","comune":"dolo","database":"atti","istat":"027012","uid":"u"}"#;
        let found = marked(vec![
            seen("postgres", Some("default administrative connection database")),
            seen("altrui", None),
            seen("altro", Some(&mark.replace("conme", "other"))),
            seen("dolo__atti", Some(mark)),
        ]);
        let expected = Marked {
            on_server: "dolo__atti".into(),
            comune: "dolo".into(),
            database: "atti".into(),
            istat: Some("027012".into()),
        };
        assert_eq!(found, [expected]);
    }
}
