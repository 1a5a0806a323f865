//! The purge list: what is kept although no manifest asks for it any more. It is only told; nothing on it is deleted.

use std::{collections::BTreeMap, time::Duration};

use conme_api::{PurgeItem, PurgeList, keys};
use conme_cluster::Index;
use jiff::Timestamp;

use crate::{context::Context, databases, world::World};

/// Items that fit into a status.
const MOST: usize = 100;

/// The list as it is now. `previous` remembers since when.
pub fn list(world: &World, index: &Index, previous: Option<&PurgeList>, now: Timestamp) -> PurgeList {
    let known: BTreeMap<(&str, &str), &PurgeItem> = previous
        .iter()
        .flat_map(|list| &list.items)
        .map(|item| ((item.kind.as_str(), item.name.as_str()), item))
        .collect();
    let since = |kind: &str, name: &str| {
        let now = || Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        known.get(&(kind, name)).map_or_else(now, |item| item.since.clone())
    };
    let mut items: BTreeMap<(String, String), PurgeItem> = BTreeMap::new();
    let mut add = |item: PurgeItem| {
        items.entry((item.kind.clone(), item.name.clone())).or_insert(item);
    };
    for comune in world.comuni_with_orphans() {
        for orphan in comune.status.iter().flat_map(|status| &status.orphans) {
            add(PurgeItem {
                kind: orphan.kind.clone(),
                name: orphan.name.clone(),
                comune: comune.metadata.name.clone().unwrap_or_default(),
                istat: comune.spec.entity.istat.clone(),
                since: orphan.since.clone(),
            });
        }
    }
    for (name, comune, seen) in index.namespaces_made() {
        if !world.comune_exists(comune) && !seen.terminating {
            let at = seen.annotations.get(keys::ORPHANED_AT).cloned();
            add(PurgeItem {
                kind: "Namespace".into(),
                name: name.to_owned(),
                comune: comune.to_owned(),
                istat: seen.labels.get(keys::ISTAT).cloned(),
                since: at.unwrap_or_else(|| since("Namespace", name)),
            });
        }
    }
    for (server, (_, found)) in world.surveys() {
        for marked in found.iter().filter(|marked| !world.comune_exists(&marked.comune)) {
            let name = format!("{server}/{}", marked.on_server);
            add(PurgeItem {
                kind: "Database".into(),
                comune: marked.comune.clone(),
                istat: marked.istat.clone(),
                since: since("Database", &name),
                name,
            });
        }
    }
    // A server that has not been looked through since the start, as one that is down, holds what it held.
    for item in known.values().filter(|item| item.kind == "Database" && !world.comune_exists(&item.comune)) {
        let server = item.name.split_once('/').map_or("", |(server, _)| server);
        let is_known = world.database_server(server).is_some();
        if is_known && !world.surveys().contains_key(server) {
            add((*item).clone());
        }
    }
    let count = items.len() as u32;
    let mut items: Vec<PurgeItem> = items.into_values().collect();
    items.sort_by(|a, b| (&a.since, &a.kind, &a.name).cmp(&(&b.since, &b.kind, &b.name)));
    items.truncate(MOST);
    PurgeList { count, items }
}

/// Looks through the database servers, if their time has come. Returns when it comes again.
pub async fn survey(context: &Context) -> Duration {
    {
        let mut world = context.world();
        if let Some(at) = world.surveyed.filter(|at| at.elapsed() < context.recheck) {
            return context.recheck - at.elapsed();
        }
        world.surveyed = Some(std::time::Instant::now());
    }
    let servers = context.world().database_servers();
    for server in &servers {
        let at = Timestamp::now();
        let found = match databases::server(context, server).await {
            Ok(reached) => {
                conme_databases::marked_databases(&reached).await.map_err(databases::Trouble::from)
            }
            Err(trouble) => Err(trouble),
        };
        match found {
            Ok(found) => {
                let touched = context.world().note_survey(&server.name, at, found);
                touched.iter().for_each(|comune| context.comuni.add(comune));
            }
            Err(trouble) => {
                tracing::warn!(server = %server.name, error = %trouble.message, "its databases could not be listed");
            }
        }
    }
    context.recheck
}

#[cfg(test)]
mod tests {
    use conme_api::{Comune, DataCenter};
    use conme_blueprint::Kind;
    use conme_databases::Marked;
    use serde_json::json;

    use super::*;

    fn comune(name: &str) -> Comune {
        serde_json::from_value(json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune",
            "metadata": {"name": name, "uid": name, "resourceVersion": "5"},
            "spec": {"entity": {"kind": "Comune", "displayName": name, "istat": "027012"}},
            "status": {"orphans": [
                {"kind": "Database", "name": "pg/vive__vecchio", "since": "2026-01-02T00:00:00Z"},
            ]},
        }))
        .unwrap()
    }

    fn marked(comune: &str, database: &str) -> Marked {
        Marked {
            on_server: format!("{comune}__{database}"),
            comune: comune.to_owned(),
            database: database.to_owned(),
            istat: None,
        }
    }

    fn data_center() -> DataCenter {
        serde_json::from_value(json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": "DataCenter",
            "metadata": {"name": "venis", "uid": "venis", "resourceVersion": "5"},
            "spec": {
                "displayName": "prova",
                "pools": [{"name": "uno", "hosts": 2, "cores": 8, "memory": "64Gi", "storage": "1Ti"}],
                "tiers": [{"name": "uno", "quota": {"cpu": 1, "memory": "1Gi"}}],
                "ingress": {"className": "nginx", "namespace": "ingresso", "domain": "servizi.example"},
                "databaseServers": [{"name": "pg", "engine": "postgresql", "host": "db.example", "port": 5432,
                    "cidrs": ["10.0.0.1/32"], "adminSecret": "pg-admin"}],
            },
        }))
        .unwrap()
    }

    fn names(list: &PurgeList) -> Vec<&str> {
        list.items.iter().map(|item| item.name.as_str()).collect()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_living_and_removed_comuni_have_left_is_listed_with_its_first_date() {
        let (mut world, mut index) = (World::new("venis"), Index::default());
        world.put_comune(comune("vive"));
        for (owner, annotations) in
            [("vive", json!({})), ("andato", json!({keys::ORPHANED_AT: "2026-01-01T00:00:00Z"}))]
        {
            let labels = json!({keys::MANAGED_BY: keys::MANAGER, keys::COMUNE: owner, keys::ISTAT: "027099"});
            index.seen(
                Kind::Namespace,
                json!({"metadata": {"name": format!("{owner}-produzione"), "uid": owner, "resourceVersion": "5",
                    "labels": labels, "annotations": annotations}}),
            );
        }
        let found = vec![marked("andato", "atti"), marked("vive", "vecchio"), marked("vive", "nuovo")];
        world.note_survey("pg", at("2026-03-01T00:00:00Z"), found);
        let first = list(&world, &index, None, at("2026-03-02T00:00:00.7Z"));
        assert_eq!(names(&first), ["andato-produzione", "pg/vive__vecchio", "pg/andato__atti"]);
        assert_eq!(first.count, 3);
        assert_eq!(first.items[0].istat.as_deref(), Some("027099"));
        assert_eq!(first.items[2].since, "2026-03-02T00:00:00Z");
        // The date stays, and nothing is written anew.
        assert_eq!(list(&world, &index, Some(&first), at("2026-04-02T00:00:00Z")), first);

        // After a restart, with a server that is down, the list stays as it was; once it answers, it decides.
        let mut restarted = World::new("venis");
        restarted.put_comune(comune("vive"));
        assert_eq!(
            list(&restarted, &index, Some(&first), at("2026-04-02T00:00:00Z")).count,
            2,
            "no such server"
        );
        restarted.put_data_center(data_center());
        assert_eq!(list(&restarted, &index, Some(&first), at("2026-04-02T00:00:00Z")), first);
        restarted.note_survey("pg", at("2026-04-02T00:00:00Z"), Vec::new());
        let after = list(&restarted, &index, Some(&first), at("2026-04-02T00:00:00Z"));
        assert_eq!(names(&after), ["andato-produzione", "pg/vive__vecchio"]);
    }

    #[test]
    fn the_list_is_bounded_and_the_count_is_not() {
        let (mut world, index) = (World::new("venis"), Index::default());
        let found = (0..250).map(|number| marked("andato", &number.to_string())).collect();
        world.note_survey("pg", at("2026-03-01T00:00:00Z"), found);
        let all = list(&world, &index, None, at("2026-03-02T00:00:00Z"));
        assert_eq!((all.items.len(), all.count), (MOST, 250));
    }
}
