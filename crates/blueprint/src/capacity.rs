//! Who fits into the data centre.
//!
//! An administration is admitted only while the data centre keeps its reserve. Who is admitted stays admitted; a
//! larger quota waits beside the old one until there is room; a small newcomer may pass a large one that does not
//! fit.

use std::collections::BTreeMap;

use conme_api::DataCenterSpec;

use crate::amount::{Amount, notation};

/// The resources that are promised: vCPU, bytes of memory, bytes of storage.
pub const PROMISED: [&str; 3] = ["cpu", "memory", "storage"];

/// Amounts by resource.
pub type Amounts = BTreeMap<String, Amount>;

/// What a Comune asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// What its manifest asks for.
    pub wanted: Amounts,
    /// What it has been granted before.
    pub granted: Option<Amounts>,
}

/// What a Comune gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its totals from now on. None: it is not admitted.
    pub granted: Option<Amounts>,
    /// What is missing for everything that it asks for, by resource.
    pub missing: Amounts,
}

impl Decision {
    /// The decision on a request where there is room for all that everybody asks for.
    pub fn of_plenty(request: &Request) -> Self {
        Self { granted: Some(request.wanted.clone()), missing: Amounts::new() }
    }

    /// What is missing, in words.
    pub fn missing_in_words(&self) -> String {
        let parts: Vec<String> = self
            .missing
            .iter()
            .map(|(resource, amount)| format!("{} {resource}", amount.text(notation(resource))))
            .collect();
        parts.join(", ")
    }
}

/// What the data centre can promise when as many hosts of each pool have failed as the reserve says.
pub fn reserve_respecting_capacity(data_center: &DataCenterSpec) -> Amounts {
    let overcommit = &data_center.overcommit;
    let sum = |percent: u32, per_host: &dyn Fn(&conme_api::Pool) -> Amount| -> Amount {
        data_center
            .pools
            .iter()
            .map(|pool| {
                per_host(pool).times(pool.hosts.saturating_sub(data_center.reserve.hosts)).percent(percent, 1)
            })
            .sum()
    };
    let quantity = |quantity: &conme_api::Quantity| Amount::try_from(quantity).unwrap_or_default();
    BTreeMap::from([
        ("cpu".into(), sum(overcommit.cpu_percent, &|pool| Amount::units(u64::from(pool.cores)))),
        ("memory".into(), sum(overcommit.memory_percent, &|pool| quantity(&pool.memory))),
        ("storage".into(), sum(overcommit.storage_percent, &|pool| quantity(&pool.storage))),
    ])
}

/// Decides on all requests, which come in order of seniority.
pub fn decide(capacity: &Amounts, requests: &[Request]) -> BTreeMap<String, Decision> {
    let of = |amounts: &Amounts, resource: &str| amounts.get(resource).copied().unwrap_or_default();
    let mut free = capacity.clone();
    let take = |amounts: &Amounts, free: &mut Amounts| {
        for resource in PROMISED {
            let left = of(free, resource).saturating_sub(of(amounts, resource));
            free.insert(resource.into(), left);
        }
    };
    let mut decisions = BTreeMap::new();

    // First what has been promised already, but never more than is still wanted.
    for request in requests {
        if let Some(granted) = &request.granted {
            let kept: Amounts = request
                .wanted
                .iter()
                .map(|(resource, wanted)| {
                    let promised = PROMISED.contains(&resource.as_str());
                    let kept = if promised { (*wanted).min(of(granted, resource)) } else { *wanted };
                    (resource.clone(), kept)
                })
                .collect();
            take(&kept, &mut free);
            decisions.insert(request.name.clone(), Decision { granted: Some(kept), missing: Amounts::new() });
        }
    }
    // Then what is new or more, as long as it fits as a whole.
    for request in requests {
        let before = decisions.get(&request.name).and_then(|decision: &Decision| decision.granted.clone());
        let has = before.clone().unwrap_or_default();
        let more: Amounts = PROMISED
            .iter()
            .map(|resource| {
                ((*resource).to_owned(), of(&request.wanted, resource).saturating_sub(of(&has, resource)))
            })
            .collect();
        let missing: Amounts = more
            .iter()
            .map(|(resource, amount)| (resource.clone(), amount.saturating_sub(of(&free, resource))))
            .filter(|(_, amount)| *amount > Amount::ZERO)
            .collect();
        let granted = if missing.is_empty() {
            take(&more, &mut free);
            Some(request.wanted.clone())
        } else {
            before
        };
        decisions.insert(request.name.clone(), Decision { granted, missing });
    }
    decisions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amounts(cpu: u64) -> Amounts {
        PROMISED.iter().map(|resource| ((*resource).to_owned(), Amount::units(cpu))).collect()
    }

    fn request(name: &str, wanted: u64, granted: Option<u64>) -> Request {
        Request { name: name.into(), wanted: amounts(wanted), granted: granted.map(amounts) }
    }

    #[test]
    fn who_is_admitted_stays_and_small_ones_pass_large_ones() {
        let decisions = decide(
            &amounts(10),
            &[request("grande", 9, None), request("vecchio", 4, Some(4)), request("piccolo", 2, None)],
        );
        assert_eq!(decisions["grande"].granted, None);
        assert_eq!(decisions["grande"].missing["cpu"], Amount::units(3));
        assert_eq!(decisions["vecchio"].granted, Some(amounts(4)));
        assert_eq!(decisions["piccolo"].granted, Some(amounts(2)));
    }

    #[test]
    fn an_increase_that_does_not_fit_leaves_the_old_quota_in_force() {
        let decisions = decide(&amounts(10), &[request("dolo", 12, Some(4))]);
        assert_eq!(decisions["dolo"].granted, Some(amounts(4)));
        assert_eq!(decisions["dolo"].missing["cpu"], Amount::units(2));
        assert_eq!(decisions["dolo"].missing_in_words(), "2 cpu, 2 memory, 2 storage");
    }

    proptest! {
        #[test]
        fn newcomers_never_take_more_than_there_is(
            capacity in 0_u64..200,
            wanted in prop::collection::vec(1_u64..60, 1..20),
        ) {
            let requests: Vec<Request> =
                wanted.iter().enumerate().map(|(i, w)| request(&format!("c{i:02}"), *w, None)).collect();
            let decisions = decide(&amounts(capacity), &requests);
            let sum: Amount =
                decisions.values().filter_map(|d| d.granted.as_ref()).map(|granted| granted["cpu"]).sum();
            prop_assert!(sum <= Amount::units(capacity));
            // Deciding again with what was granted changes nothing.
            let again: Vec<Request> = requests
                .iter()
                .map(|r| Request { granted: decisions[&r.name].granted.clone(), ..r.clone() })
                .collect();
            let second = decide(&amounts(capacity), &again);
            for (name, decision) in &decisions {
                prop_assert!(decision.granted.is_none() || second[name].granted == decision.granted);
            }
        }
    }
}
