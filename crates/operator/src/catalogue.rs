//! What is told of the data centre and of the templates.

use std::{collections::BTreeMap, time::Duration};

use conme_api::{
    Amounts as AmountTexts, DataCenter, DataCenterStatus, DataCenterSummary, Quantity, ServiceTemplate,
    ServiceTemplateStatus, VersionUse, keys, reasons,
};
use conme_blueprint::{
    amount::{Amount, notation},
    capacity::{Amounts, reserve_respecting_capacity},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Resource, ResourceExt, api::PatchParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{context::Context, purge};

/// Key of the queue for everything of this module: it is looked at as a whole.
pub const ALL: &str = "all";
/// A pass that found a cache incomplete is made again after this time.
const INCOMPLETE: Duration = Duration::from_secs(1);

/// One pass over the data centre and the templates.
///
/// # Errors
/// When a status could not be written.
pub async fn reconcile(context: &Context, _all: &str) -> anyhow::Result<()> {
    if !context.caches_are_complete() {
        context.catalogue.add_after(ALL, INCOMPLETE);
        return Ok(());
    }
    let again = purge::survey(context).await;
    context.catalogue.add_after(ALL, again);
    let (data_centers, templates) = {
        let mut world = context.world();
        let index = context.index();
        let serves = world.serves.clone();
        let (committed, admitted, known) = world.register.committed();
        let used = world.register.template_use();
        let data_centers: Vec<_> = world
            .data_centers()
            .map(|data_center| {
                let in_service = data_center.name_any() == serves;
                let status = if in_service {
                    let mut status = status_of_data_center(data_center, &committed, admitted, known);
                    let previous = data_center.status.as_ref().and_then(|status| status.purge.as_ref());
                    status.purge = Some(purge::list(&world, &index, previous, Timestamp::now()));
                    status
                } else {
                    status_of_other(data_center, &serves)
                };
                (data_center.clone(), status)
            })
            .collect();
        let templates: Vec<_> = world
            .templates()
            .map(|template| {
                let empty = BTreeMap::new();
                let status = status_of_template(template, used.get(&template.name_any()).unwrap_or(&empty));
                (template.clone(), status)
            })
            .collect();
        (data_centers, templates)
    };
    // One that cannot be written must not silence the others.
    let mut failed = None;
    for (data_center, status) in data_centers {
        if data_center.status.as_ref() != Some(&status) {
            match write(context, &*data_center, &status).await {
                Ok(written) => {
                    context.world().put_data_center(written);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    for (template, status) in templates {
        if template.status.as_ref() != Some(&status) {
            match write(context, &*template, &status).await {
                Ok(written) => {
                    context.world().put_template(written);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn write<K, S>(context: &Context, object: &K, status: &S) -> anyhow::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    S: Serialize,
{
    let api: Api<K> = Api::all(context.client.clone());
    let body = conme_cluster::apply(&json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "uid": object.meta().uid},
        "status": status,
    }))?;
    let params = PatchParams::apply(keys::STATUS_MANAGER).force();
    let name = object.name_any();
    context.calls.make("PATCH", api.patch_status(&name, &params, &body)).await.map_err(|error| {
        anyhow::anyhow!(
            "{} {name}: its status could not be written: {}",
            K::kind(&()),
            conme_cluster::words(&error)
        )
    })
}

fn status_of_data_center(
    data_center: &DataCenter,
    committed: &Amounts,
    admitted: usize,
    known: usize,
) -> DataCenterStatus {
    let capacity = reserve_respecting_capacity(&data_center.spec);
    let of = |amounts: &Amounts, resource: &str| amounts.get(resource).copied().unwrap_or_default();
    let texts = |amount: &dyn Fn(&str) -> Amount| AmountTexts {
        cpu: Quantity(amount("cpu").text(notation("cpu"))),
        memory: Quantity(amount("memory").text(notation("memory"))),
        storage: Quantity(amount("storage").text(notation("storage"))),
    };
    let ratio = |resource: &str| {
        let notation = notation(resource);
        format!("{}/{}", of(committed, resource).short(notation), of(&capacity, resource).short(notation))
    };
    let over: Vec<&str> = conme_blueprint::capacity::PROMISED
        .into_iter()
        .filter(|resource| of(committed, resource) > of(&capacity, resource))
        .collect();
    let finding = if over.is_empty() {
        (
            "True",
            reasons::AS_DECLARED,
            format!("{admitted} of {known} administrations are admitted and the reserve is kept"),
        )
    } else {
        let message = format!(
            "more is promised than the reserve allows: {}; add hosts or lower quotas",
            over.join(", ")
        );
        ("False", reasons::INSUFFICIENT_CAPACITY, message)
    };
    let previous = data_center.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    DataCenterStatus {
        observed_generation: data_center.metadata.generation,
        conditions: vec![condition(finding, data_center.metadata.generation, previous)],
        summary: Some(DataCenterSummary {
            comuni: format!("{admitted}/{known}"),
            hosts: data_center.spec.pools.iter().map(|pool| pool.hosts).sum(),
            cpu: ratio("cpu"),
            memory: ratio("memory"),
            storage: ratio("storage"),
        }),
        capacity: Some(texts(&|resource| of(&capacity, resource))),
        committed: Some(texts(&|resource| of(committed, resource))),
        free: Some(texts(&|resource| of(&capacity, resource).saturating_sub(of(committed, resource)))),
        purge: None,
    }
}

fn status_of_other(data_center: &DataCenter, serves: &str) -> DataCenterStatus {
    let previous = data_center.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let message = format!("the operator serves the DataCenter `{serves}`; this one has no effect");
    let finding = ("False", reasons::NOT_SELECTED, message);
    DataCenterStatus {
        observed_generation: data_center.metadata.generation,
        conditions: vec![condition(finding, data_center.metadata.generation, previous)],
        ..DataCenterStatus::default()
    }
}

fn status_of_template(
    template: &ServiceTemplate,
    used: &BTreeMap<Option<String>, u32>,
) -> ServiceTemplateStatus {
    let mut versions: BTreeMap<&str, u32> = BTreeMap::new();
    for (version, services) in used {
        *versions.entry(version.as_deref().unwrap_or(&template.spec.default_version)).or_default() +=
            services;
    }
    let previous = template.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let finding = ("True", reasons::AS_DECLARED, "services can be made from it".to_owned());
    ServiceTemplateStatus {
        observed_generation: template.metadata.generation,
        conditions: vec![condition(finding, template.metadata.generation, previous)],
        in_use: used.values().sum(),
        versions: versions
            .into_iter()
            .map(|(version, services)| VersionUse { version: version.to_owned(), services })
            .collect(),
    }
}

fn condition(
    (status, reason, message): (&str, &str, String),
    generation: Option<i64>,
    previous: &[Condition],
) -> Condition {
    let before =
        previous.iter().find(|condition| condition.type_ == reasons::READY && condition.status == status);
    let now = Timestamp::now();
    Condition {
        type_: reasons::READY.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: before.map_or_else(
            || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            |before| before.last_transition_time.clone(),
        ),
        observed_generation: generation,
    }
}
