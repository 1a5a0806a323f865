//! `conme-operator run`: wires everything together.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use conme_api::{Comune, DataCenter, ServiceTemplate};
use conme_blueprint::Kind;
use conme_cluster::{
    Calls, Executor, Index, OwnEvent, Touched, WatchHealth, bounded_client, lease, watch_children, watch_own,
};
use http::{HeaderValue, header::USER_AGENT};
use jiff::SignedDuration;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Config, ResourceExt, runtime::watcher::Event};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    catalogue, comune,
    context::Context,
    databases,
    events::Events,
    memory,
    metrics::OperatorMetrics,
    queue::Queue,
    web::{Vitals, serve},
    world::World,
};

/// Settings of `conme-operator run`.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Version of the program, as told in its log, its metrics and its calls.
    pub version: &'static str,
    /// The operator's own namespace: its lease and the credentials of database servers are there.
    pub namespace: String,
    /// Name of its ServiceAccount, which it binds in the namespaces of the Comuni.
    pub service_account: String,
    /// DataCenter that it serves.
    pub data_center: String,
    /// Address of health, readiness and metrics.
    pub listen: SocketAddr,
    /// Name of this process in the lease: stable over restarts of the same replica.
    pub identity: String,
    /// Comuni that are worked on at the same time.
    pub workers: usize,
    /// Calls to the API server that may be under way at the same time.
    pub calls: usize,
    /// Databases that are worked on at the same time.
    pub database_workers: usize,
    /// Time after which databases and Secrets are looked at again without a cause.
    pub recheck: Duration,
    /// Time after which the API server ends a watch and it is taken up again. One that has fallen silent is noticed
    /// 5 seconds later.
    pub watch: Duration,
    /// Time between the confirmation of a deletion and the deletion.
    pub deletion_grace: SignedDuration,
}

/// Runs the operator until it is told to stop or loses its leadership.
///
/// # Errors
/// When the API server cannot be spoken to at all, or leadership was lost.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    let mut config = Config::infer().await?;
    // The API server's audit log then tells which version has made a call.
    let agent = HeaderValue::try_from(format!("conme-operator/{}", options.version))?;
    config.headers.push((USER_AGENT, agent));
    tracing::info!(version = options.version, "conme-operator");
    let client = bounded_client(config, options.watch)?;
    let metrics = Arc::new(OperatorMetrics::new(options.version));
    let every_call = Calls::new(metrics.clone());
    let leadership = Arc::new(lease::Leadership::default());
    let calls = every_call.while_leading(leadership.clone());
    let index = Arc::new(Mutex::new(Index::default()));
    let (leading, mut leads) = watch::channel(false);
    let context = Arc::new(Context {
        executor: Executor::new(client.clone(), calls.clone(), options.calls, index.clone()),
        client: client.clone(),
        calls: calls.clone(),
        index,
        world: Mutex::new(World::new(&options.data_center)),
        comuni: Queue::default(),
        databases: Queue::default(),
        catalogue: Queue::default(),
        events: Events::new(client.clone(), &options.identity),
        metrics: metrics.clone(),
        namespace: options.namespace.clone(),
        service_account: options.service_account.clone(),
        recheck: options.recheck,
        deletion_grace: options.deletion_grace,
        leadership: leadership.clone(),
        watches: std::sync::OnceLock::new(),
        secured: tokio::sync::Mutex::default(),
        told: Mutex::default(),
    });

    let mut loops = JoinSet::new();
    let watches = start_watches(&context, options.watch, &mut loops);
    let alive = Arc::new(AtomicBool::new(true));
    let vitals = Vitals {
        watches: context.watches.get_or_init(|| watches).clone(),
        loops_alive: alive.clone(),
        metrics: metrics.clone(),
        context: context.clone(),
    };
    let web = tokio::spawn(serve(options.listen, Arc::new(vitals)));

    let lease_name = "conme-operator";
    let holder = {
        let (client, calls, options) = (client.clone(), every_call.clone(), options.clone());
        tokio::spawn(async move {
            let (namespace, me) = (&options.namespace, &options.identity);
            lease::hold(client, calls, namespace, lease_name, me, &leading, &leadership).await;
        })
    };

    let work = async {
        leads.wait_for(|leads| *leads).await?;
        metrics.leading(true);
        context.may_work().await;
        tracing::info!("leading, and every cache is complete");
        begin(&context);
        start_workers(&context, &options, &mut loops);
        {
            let context = context.clone();
            loops.spawn(async move { follow(&context, &mut leads).await });
        }
        // None of the loops ends by itself.
        let ended = loops.join_next().await;
        alive.store(false, Ordering::Release);
        anyhow::bail!("a loop has ended unexpectedly: {ended:?}")
    };
    let result = tokio::select! {
        result = work => result,
        _ = holder => Err(anyhow::anyhow!("leadership was lost; another process goes on")),
        ended = web => match ended {
            Ok(result) => result,
            Err(error) => Err(error.into()),
        },
        () = stopped() => {
            tracing::info!("stopping");
            lease::release(client, every_call, &options.namespace, lease_name, &options.identity).await;
            Ok(())
        }
    };
    metrics.leading(false);
    result
}

async fn stopped() {
    let interrupt = tokio::signal::ctrl_c();
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => {
            let _ = interrupt.await;
        }
    }
}

/// Tells who leads, and looks at everything once more when this process may write again: what was refused meanwhile would
/// otherwise wait for the end of its pause.
async fn follow(context: &Context, leads: &mut watch::Receiver<bool>) {
    while leads.changed().await.is_ok() {
        let now_leads = *leads.borrow_and_update();
        context.metrics.leading(now_leads);
        if now_leads {
            begin(context);
        }
    }
}

/// Everything is looked at once, also what no longer has a Comune.
fn begin(context: &Context) {
    let mut names = context.world().comune_names();
    names.extend(context.index().comuni().map(str::to_owned));
    for name in names {
        context.comuni.add(&name);
    }
    context.catalogue.add(catalogue::ALL);
}

fn start_watches(context: &Arc<Context>, period: Duration, loops: &mut JoinSet<()>) -> Vec<WatchHealth> {
    let mut watches = Vec::new();
    let mut health = |name: &str| {
        let health = WatchHealth::new(name);
        watches.push(health.clone());
        health
    };
    let client = &context.client;
    // A page of these takes the API server ten times as long as one of any other kind, and it works on one page of a list
    // at a time: begun last, their list would be all that a start still waits for.
    let shared = context.clone();
    loops.spawn(watch_own::<Comune>(client.clone(), period, health("comuni"), move |event| {
        on_comune(&shared, event)
    }));
    let shared = context.clone();
    loops.spawn(watch_own::<DataCenter>(client.clone(), period, health("datacenters"), move |event| {
        on_data_center(&shared, event);
    }));
    let shared = context.clone();
    loops.spawn(watch_own::<ServiceTemplate>(
        client.clone(),
        period,
        health("servicetemplates"),
        move |event| {
            on_template(&shared, event);
        },
    ));
    let shared = context.clone();
    loops.spawn(watch_own::<StorageClass>(client.clone(), period, health("storageclasses"), move |event| {
        on_storage_class(&shared, event);
    }));
    for kind in Kind::ALL {
        let shared = context.clone();
        let handle = move |event| on_child(&shared, kind, event);
        loops.spawn(watch_children(client.clone(), kind, period, health(kind.plural()), handle));
    }
    watches
}

fn on_child(context: &Context, kind: Kind, event: Event<serde_json::Value>) {
    let touched = {
        let mut index = context.index();
        match event {
            Event::Init => {
                index.relist(kind);
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => vec![index.seen(kind, object)],
            Event::Delete(object) => vec![index.gone(kind, &object)],
            Event::InitDone => index.relisted(kind),
        }
    };
    for Touched { comune, former, namespace, drift: _ } in touched {
        comune.iter().chain(&former).for_each(|name| context.comuni.add(name));
        if let Some(namespace) = namespace {
            let seen = context.index().namespace(&namespace);
            let touched = context.world().note_namespace(&namespace, seen.as_ref());
            touched.iter().for_each(|name| context.comuni.add(name));
            let claimants = context.world().claimants_of_namespace(&namespace);
            claimants.iter().for_each(|name| context.comuni.add(name));
            tell_catalogue(context);
        }
    }
}

fn on_comune(context: &Context, event: OwnEvent<Comune>) {
    let touched = {
        let mut world = context.world();
        let event = match event {
            OwnEvent::Event(event) => event,
            OwnEvent::Unreadable(name) => {
                world.unreadable_comune(name);
                return;
            }
        };
        match event {
            Event::Init => {
                world.relist_comuni();
                return;
            }
            Event::InitApply(comune) | Event::Apply(comune) => world.put_comune(comune),
            Event::Delete(comune) => world.remove_comune(&comune.name_any()),
            Event::InitDone => world.relisted_comuni(),
        }
    };
    if touched.is_empty() {
        return;
    }
    touched.iter().for_each(|name| context.comuni.add(name));
    tell_catalogue(context);
}

fn on_data_center(context: &Context, event: OwnEvent<DataCenter>) {
    // One that cannot be read stays as it was known before.
    let OwnEvent::Event(event) = event else { return };
    let matters = {
        let mut world = context.world();
        match event {
            Event::InitApply(data_center) | Event::Apply(data_center) => world.put_data_center(data_center),
            Event::Delete(data_center) => world.remove_data_center(&data_center.name_any()),
            Event::Init | Event::InitDone => return,
        }
    };
    if matters {
        let names = context.world().comune_names();
        names.iter().for_each(|name| context.comuni.add(name));
    }
    tell_catalogue(context);
}

fn on_template(context: &Context, event: OwnEvent<ServiceTemplate>) {
    // One that cannot be read stays as it was known before.
    let OwnEvent::Event(event) = event else { return };
    let users = {
        let mut world = context.world();
        match event {
            Event::InitApply(template) | Event::Apply(template) => world.put_template(template),
            Event::Delete(template) => world.remove_template(&template.name_any()),
            Event::Init | Event::InitDone => return,
        }
    };
    users.iter().for_each(|name| context.comuni.add(name));
    tell_catalogue(context);
}

fn on_storage_class(context: &Context, event: OwnEvent<StorageClass>) {
    let OwnEvent::Event(event) = event else { return };
    let changed = match event {
        Event::InitApply(class) | Event::Apply(class) => context.world().put_storage_class(class.name_any()),
        Event::Delete(class) => {
            context.world().remove_storage_class(&class.name_any());
            true
        }
        Event::Init | Event::InitDone => false,
    };
    if changed {
        let names = context.world().comune_names();
        names.iter().for_each(|name| context.comuni.add(name));
    }
}

/// The sums are told a little later, so that many changes make one write.
fn tell_catalogue(context: &Context) {
    context.catalogue.add_after(catalogue::ALL, Duration::from_secs(3));
}

fn start_workers(context: &Arc<Context>, options: &RunOptions, loops: &mut JoinSet<()>) {
    for _ in 0..options.workers {
        let context = context.clone();
        loops.spawn(async move {
            work(&context, "comune", |context| &context.comuni, comune::reconcile).await;
        });
    }
    for _ in 0..options.database_workers {
        let context = context.clone();
        loops.spawn(async move {
            work(&context, "database", |context| &context.databases, databases::reconcile).await;
        });
    }
    {
        let context = context.clone();
        loops.spawn(async move { memory::give_back_at_rest(&context).await });
    }
    let context = context.clone();
    loops.spawn(async move {
        work(&context, "catalogue", |context| &context.catalogue, catalogue::reconcile).await;
    });
}

async fn work(
    context: &Context,
    controller: &'static str,
    queue: fn(&Context) -> &Queue,
    reconcile: impl AsyncFn(&Context, &str) -> anyhow::Result<()>,
) {
    let queue = queue(context);
    loop {
        let name = queue.next().await;
        // Without the API server every pass would fail, and what comes back would find everybody in a long pause.
        context.may_work().await;
        let begin = Instant::now();
        let result = reconcile(context, &name).await;
        let outcome = match result {
            Ok(()) => {
                queue.succeeded(&name);
                "success"
            }
            Err(error) => {
                let again = queue.add_after_failure(&name);
                tracing::warn!(controller, %name, %error, again_in_ms = again.as_millis() as u64, "a pass failed");
                "error"
            }
        };
        context.metrics.reconciled(controller, outcome, begin.elapsed());
        queue.done(&name);
    }
}
