//! Databases that a confirmed deletion takes. They go through the queue of databases: one is never brought about and
//! dropped at the same time.

use conme_api::{Comune, reasons};
use conme_databases::{Desired, Login, OtherLogin, OwnerTag, Provisioned, drop_database_while};
use kube::{Resource, ResourceExt};

use crate::{
    comune,
    context::Context,
    databases::{self, Trouble},
    departure,
};

/// The removal of one database.
#[derive(Debug)]
pub struct Removal {
    uid: String,
    desired: Desired,
    server: String,
    progress: Progress,
}

#[derive(Clone, Debug, PartialEq)]
enum Progress {
    Pending,
    Failed(String),
    Done,
}

/// How far the removals of a Comune are.
#[derive(Debug, Default)]
pub struct Drops {
    /// Some are not done yet.
    pub pending: bool,
    /// Those that failed last time, with the words of the server.
    pub failed: Vec<(String, String)>,
}

/// Has databases dropped that are not yet, and tells how far that is.
pub fn submit(context: &Context, comune: &Comune, names: &[String]) -> Drops {
    let name = comune.name_any();
    let uid = comune.metadata.uid.clone().unwrap_or_default();
    let former_uids = comune::former_uids_of_all(context, comune);
    let mut drops = Drops::default();
    let mut world = context.world();
    for database in names {
        let key = (name.clone(), database.clone());
        if world.removals.get(&key).is_none_or(|known| known.uid != uid) {
            let Some(removal) = removal(comune, database, &uid, former_uids.clone()) else { continue };
            world.removals.insert(key.clone(), removal);
            context.databases.add(&format!("{name}/{database}"));
        }
        match world.removals.get(&key).map(|known| &known.progress) {
            Some(Progress::Failed(words)) => {
                drops.pending = true;
                drops.failed.push((database.clone(), words.clone()));
            }
            Some(Progress::Pending) => drops.pending = true,
            Some(Progress::Done) | None => {}
        }
    }
    drops
}

fn removal(comune: &Comune, database: &str, uid: &str, former_uids: Vec<String>) -> Option<Removal> {
    let declared = comune.spec.databases.iter().find(|declared| declared.name == database)?;
    let told = comune.status.as_ref().map(|status| status.databases.as_slice()).unwrap_or_default();
    let told = told.iter().find(|told| told.name == database);
    let provisioned = told.and_then(|told| {
        let system_identifier = told.system_identifier.clone().filter(|id| !id.is_empty());
        Some(Provisioned { system_identifier, at: told.provisioned_at.as_ref()?.parse().ok()? })
    });
    let conme_api::Placement::Shared(declared_on) = &declared.placement else { return None };
    // Where it was provisioned counts: the manifest may have been changed since.
    let server = told.filter(|_| provisioned.is_some()).map_or(declared_on, |told| &told.server);
    Some(Removal {
        uid: uid.to_owned(),
        desired: Desired {
            comune: comune.name_any(),
            database: database.to_owned(),
            tag: OwnerTag { istat: comune.spec.entity.istat.clone(), uid: uid.to_owned(), former_uids },
            extensions: Default::default(),
            allowed_extensions: Default::default(),
            connection_limit: None,
            locale: None,
            adopt: false,
            login: Login::First,
            other_login: OtherLogin::Keep,
            generation: None,
            open: true,
            max_bytes: None,
            moved_from: None,
            provisioned,
        },
        server: server.clone(),
        progress: Progress::Pending,
    })
}

/// One pass over a database whose Comune is on its way out; None when it is not.
pub async fn reconcile(context: &Context, id: &(String, String)) -> Option<anyhow::Result<()>> {
    let (desired, server, uid) = {
        let mut world = context.world();
        if !world.is_leaving(&id.0) {
            return None;
        }
        // Should the word be taken back, it is looked at again, also when nothing new is declared.
        if let Some(state) = world.databases.get_mut(id) {
            state.look_again();
        }
        // Of a Comune that leaves, nothing is brought about any more, whatever becomes of the database.
        match world.removals.get(id).filter(|removal| removal.progress != Progress::Done) {
            Some(removal) => (removal.desired.clone(), removal.server.clone(), removal.uid.clone()),
            None => return Some(Ok(())),
        }
    };
    match departure::is_still_wanted(context, &id.0, Some(&uid)).await {
        Ok(true) => {}
        Ok(false) => {
            context.world().removals.remove(id);
            context.comuni.add(&id.0);
            return Some(Ok(()));
        }
        Err(error) => return Some(Err(error)),
    }
    let result = drop_it(context, &desired, &server).await;
    let progress = match &result {
        Ok(()) => Progress::Done,
        Err(trouble) => Progress::Failed(trouble.message.clone()),
    };
    let comune = {
        let mut world = context.world();
        if let Some(removal) = world.removals.get_mut(id).filter(|removal| removal.uid == uid) {
            removal.progress = progress;
        }
        // Should the word be taken back now, it is told at once that the data is missing.
        if let Some(state) = world.databases.get_mut(id) {
            state.look_again();
        }
        world.comune(&id.0)
    };
    context.comuni.add(&id.0);
    Some(match result {
        Ok(()) => {
            if let Some(comune) = comune {
                let note = format!("the database {} was dropped from {server} as confirmed", id.1);
                context.events.normal(comune.object_ref(&()), "DatabaseDropped", "Delete", &note);
            }
            Ok(())
        }
        Err(trouble) => Err(anyhow::anyhow!(trouble.message)),
    })
}

async fn drop_it(context: &Context, desired: &Desired, server: &str) -> Result<(), Trouble> {
    let known = context.world().database_server(server).ok_or_else(|| {
        let message = format!(
            "the DataCenter has no database server `{server}` any more; add it again, or set `deletionPolicy: Retain` on \
             the database"
        );
        Trouble::new(reasons::INVALID, message)
    })?;
    let server = databases::server(context, &known).await?;
    let go_on = |_: &str| context.leadership.holds() && context.world().is_leaving(&desired.comune);
    drop_database_while(&server, desired, go_on).await?;
    Ok(())
}
