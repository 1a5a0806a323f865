//! Commands that look at Comuni in a cluster: `status`, `list`, `wait`.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
};

use conme_api::{Comune, reasons};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event as CoreEvent, ResourceQuota};
use kube::{
    Api, ResourceExt,
    api::ListParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{ListArgs, ListFormat, PlainFormat, StatusArgs, WaitArgs},
    cluster::Cluster,
    output::visible,
    page, render,
    run::{Failure, is_terminal, print},
};

/// Above this number one watch on all Comuni is cheaper than one for each.
const SINGLE_WATCHES: usize = 8;

type News = Pin<Box<dyn Stream<Item = Result<Event<Comune>, watcher::Error>> + Send>>;

/// News of Comuni. One that is watched by itself needs no right to see the others.
fn news(cluster: &Cluster, names: &BTreeSet<String>) -> News {
    let api: Api<Comune> = Api::all(cluster.client.clone());
    if names.len() > SINGLE_WATCHES {
        return watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
    }
    let single = |name: &String| {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        watcher::watcher(api.clone(), config).default_backoff().boxed()
    };
    stream::select_all(names.iter().map(single)).boxed()
}

/// Text, JSON or YAML of the same thing.
fn written(value: &impl Serialize, format: PlainFormat) -> Result<String, Failure> {
    let value = serde_json::to_value(value).map_err(|error| Failure::Other(error.to_string()))?;
    match format {
        PlainFormat::Json => Ok(format!("{value:#}\n")),
        PlainFormat::Yaml | PlainFormat::Table => render::yaml(&value),
    }
}

/// `status`
///
/// # Errors
/// When the API server does not answer or refuses, or there is no such Comune.
pub async fn status(cluster: &Cluster, args: &StatusArgs) -> Result<u8, Failure> {
    let comune = cluster.comune(&args.name).await?;
    if args.output != PlainFormat::Table {
        print(&written(&without_managed_fields(comune), args.output)?)?;
        return Ok(0);
    }
    let mut last = page_of(cluster, &comune).await?;
    print(&last)?;
    if !args.watch {
        return Ok(0);
    }
    let mut news = news(cluster, &BTreeSet::from([args.name.clone()]));
    let mut failures = 0;
    while let Some(event) = news.next().await {
        let comune = match event {
            Ok(Event::Apply(comune) | Event::InitApply(comune)) => comune,
            Ok(Event::Delete(_)) => {
                print(&format!("{} is gone\n", args.name))?;
                return Ok(0);
            }
            Ok(_) => continue,
            Err(error) => {
                patience(&mut failures, &error)?;
                continue;
            }
        };
        failures = 0;
        let page = page_of(cluster, &comune).await?;
        if is_terminal() {
            print(&format!("\x1b[H\x1b[2J{page}"))?;
        } else {
            let time = Timestamp::now().strftime("%H:%M:%S").to_string();
            for line in page::changed_lines(&last, &page) {
                print(&format!("{time} {}\n", line.trim_start()))?;
            }
        }
        last = page;
    }
    Ok(0)
}

/// A watch goes on by itself after an error; one that always fails has to end.
fn patience(failures: &mut u32, error: &watcher::Error) -> Result<(), Failure> {
    *failures += 1;
    if *failures < 5 {
        return Ok(());
    }
    Err(Failure::Server(format!("watching: {error}")))
}

fn without_managed_fields(mut comune: Comune) -> Comune {
    comune.metadata.managed_fields = None;
    comune
}

async fn page_of(cluster: &Cluster, comune: &Comune) -> Result<String, Failure> {
    let name = comune.name_any();
    let mut quotas = BTreeMap::new();
    for namespace in comune.status.iter().flat_map(|status| &status.namespaces) {
        let api: Api<ResourceQuota> = Api::namespaced(cluster.client.clone(), &namespace.name);
        // Who may not read quotas gets the page without bars.
        if let Ok(Some(quota)) = cluster.ask("reading a quota", api.get_opt("conme-quota")).await? {
            quotas.insert(namespace.name.clone(), quota);
        }
    }
    let api: Api<CoreEvent> = Api::namespaced(cluster.client.clone(), "default");
    let about =
        ListParams::default().fields(&format!("involvedObject.kind=Comune,involvedObject.name={name}"));
    let events = cluster.ask("listing events", api.list(&about)).await?;
    let events = events.map(|list| list.items).unwrap_or_default();
    Ok(visible(&page::page(comune, &quotas, &events, Timestamp::now())))
}

/// `list`
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn list(cluster: &Cluster, args: &ListArgs) -> Result<u8, Failure> {
    let mut comuni = cluster.list::<Comune>("").await?;
    comuni.sort_by_key(ResourceExt::name_any);
    if args.not_ready {
        comuni.retain(|comune| !page::holds(comune, reasons::READY));
    }
    let text = match args.output {
        ListFormat::Json | ListFormat::Yaml => {
            let items: Vec<Comune> = comuni.into_iter().map(without_managed_fields).collect();
            let items = serde_json::to_value(items).map_err(|error| Failure::Other(error.to_string()))?;
            let list: Value = json!({"apiVersion": "v1", "kind": "List", "items": items});
            written(
                &list,
                if args.output == ListFormat::Json { PlainFormat::Json } else { PlainFormat::Yaml },
            )?
        }
        _ if comuni.is_empty() && args.not_ready => "all Comuni are as declared\n".to_owned(),
        _ if comuni.is_empty() => "there is no Comune yet\n".to_owned(),
        format => {
            let mut text = page::list(&comuni, format == ListFormat::Wide, Timestamp::now());
            if args.not_ready {
                text.push('\n');
                text.push_str(&page::reasons_of(&comuni));
            }
            visible(&text)
        }
    };
    print(&text)?;
    Ok(0)
}

/// `wait`
///
/// # Errors
/// When the API server does not answer or refuses, or one of the Comuni does not exist.
pub async fn wait(cluster: &Cluster, args: &WaitArgs) -> Result<u8, Failure> {
    let names: BTreeSet<String> = if args.all {
        cluster.list::<Comune>("").await?.iter().map(ResourceExt::name_any).collect()
    } else {
        for name in &args.names {
            cluster.comune(name).await?;
        }
        args.names.iter().cloned().collect()
    };
    if names.is_empty() {
        print("there is no Comune to wait for\n")?;
        return Ok(0);
    }
    let mut open: BTreeMap<String, String> = names.iter().map(|name| (name.clone(), String::new())).collect();
    let ended =
        tokio::time::timeout(args.timeout, watch_until(cluster, &names, &args.awaited, &mut open)).await;
    match ended {
        Ok(result) => result.map(|()| 0),
        Err(_) => {
            eprintln!("error: not {} after {:?}:", args.awaited, args.timeout);
            for (name, told) in &open {
                eprintln!("  {name}: {told}");
            }
            Ok(1)
        }
    }
}

async fn watch_until(
    cluster: &Cluster,
    names: &BTreeSet<String>,
    awaited: &str,
    open: &mut BTreeMap<String, String>,
) -> Result<(), Failure> {
    let mut news = news(cluster, names);
    let mut failures = 0;
    while !open.is_empty() {
        let comune = match news.next().await {
            Some(Ok(Event::Apply(comune) | Event::InitApply(comune))) => comune,
            Some(Ok(Event::Delete(comune))) => {
                let name = comune.name_any();
                if open.contains_key(&name) {
                    return Err(Failure::Other(format!("{name} was removed while it was waited for")));
                }
                continue;
            }
            Some(Ok(_)) => continue,
            Some(Err(error)) => {
                patience(&mut failures, &error)?;
                continue;
            }
            None => return Err(Failure::Server("the watch has ended".into())),
        };
        failures = 0;
        let name = comune.name_any();
        let Some(last) = open.get_mut(&name) else { continue };
        if page::holds(&comune, awaited) {
            open.remove(&name);
            print(&format!("{name} is {awaited}\n"))?;
            continue;
        }
        let told = visible(&page::told(&comune, awaited));
        if *last != told {
            print(&format!("{name}: {told}\n"))?;
            *last = told;
        }
    }
    Ok(())
}
