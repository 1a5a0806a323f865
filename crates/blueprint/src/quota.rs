//! How much each namespace of a Comune may have at this instant.
//!
//! What the API server enforces is `status.hard`, which follows `spec.hard` a moment later. So a namespace may grow
//! only to `total − Σ max(spec.hard, status.hard, used)` of the others: at no instant do all of them together admit
//! more than the total.

use std::collections::BTreeMap;

use crate::{amount::Amount, capacity::Amounts};

/// What is seen of the ResourceQuota of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuotaSeen {
    /// `spec.hard`.
    pub spec: Amounts,
    /// `status.hard`, which is what the API server enforces.
    pub enforced: Amounts,
    /// `status.used`.
    pub used: Amounts,
}

impl QuotaSeen {
    /// The most that this namespace may hold of a resource before the API server says no.
    fn may_hold(&self, resource: &str) -> Amount {
        [&self.spec, &self.enforced, &self.used]
            .into_iter()
            .filter_map(|amounts| amounts.get(resource).copied())
            .max()
            .unwrap_or_default()
    }
}

/// One namespace: what it should have in the end, and what is seen now.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// What it should have in the end. Zero for a namespace that is kept without being declared.
    pub target: Amounts,
    /// What is seen now.
    pub seen: QuotaSeen,
}

/// The next `spec.hard` of every namespace, and whether it is the final one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to set now.
    pub hard: Amounts,
    /// Resources that have to wait until another namespace has given up its part.
    pub waiting: Vec<String>,
}

/// The next step of every namespace towards its target.
pub fn next_step(total: &Amounts, shares: &BTreeMap<String, Share>) -> BTreeMap<String, Step> {
    let mut steps: BTreeMap<String, Step> = shares
        .keys()
        .map(|name| (name.clone(), Step { hard: Amounts::new(), waiting: Vec::new() }))
        .collect();
    for (resource, total) in total {
        let mut holds: BTreeMap<&String, Amount> =
            shares.iter().map(|(name, share)| (name, share.seen.may_hold(resource))).collect();
        for (name, share) in shares {
            let target = share.target.get(resource).copied().unwrap_or_default();
            let others: Amount =
                holds.iter().filter(|(other, _)| **other != name).map(|(_, held)| *held).sum();
            let current = share.seen.spec.get(resource).copied().unwrap_or_default();
            let room = total.saturating_sub(others);
            let hard = if target <= current { target } else { target.min(room.max(current)) };
            let held = holds.entry(name).or_default();
            *held = (*held).max(hard);
            if let Some(step) = steps.get_mut(name) {
                step.hard.insert(resource.clone(), hard);
                if hard < target {
                    step.waiting.push(resource.clone());
                }
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amounts(cpu: u64) -> Amounts {
        Amounts::from([("cpu".to_owned(), Amount::units(cpu))])
    }

    fn share(target: u64, spec: u64, enforced: u64, used: u64) -> Share {
        let seen = QuotaSeen { spec: amounts(spec), enforced: amounts(enforced), used: amounts(used) };
        Share { target: amounts(target), seen }
    }

    #[test]
    fn a_namespace_grows_only_into_what_the_other_has_given_up() {
        let shares =
            BTreeMap::from([("a".to_owned(), share(8, 5, 5, 3)), ("b".to_owned(), share(2, 5, 5, 4))]);
        let first = next_step(&amounts(10), &shares);
        assert_eq!(first["a"].hard, amounts(5), "b still enforces 5");
        assert_eq!(first["a"].waiting, ["cpu"]);
        assert_eq!(first["b"].hard, amounts(2));
        // b now enforces 2 but uses 4: only 1 more is free.
        let shares =
            BTreeMap::from([("a".to_owned(), share(8, 5, 5, 3)), ("b".to_owned(), share(2, 2, 2, 4))]);
        assert_eq!(next_step(&amounts(10), &shares)["a"].hard, amounts(6));
    }

    /// One namespace of the simulation: spec.hard, status.hard, used.
    #[derive(Clone, Debug)]
    struct Simulated {
        spec: u64,
        enforced: u64,
        used: u64,
        target: u64,
    }

    proptest! {
        #[test]
        fn rule_6_the_total_is_never_exceeded_at_any_instant(
            total in 1_u64..40,
            weights in prop::collection::vec(1_u64..10, 2..5),
            moves in prop::collection::vec((0_usize..5, 0_u8..4, 1_u64..8), 1..80),
        ) {
            let sum: u64 = weights.iter().sum();
            let mut namespaces: Vec<Simulated> = weights
                .iter()
                .map(|w| Simulated { spec: 0, enforced: 0, used: 0, target: total * w / sum })
                .collect();
            for (index, what, size) in moves {
                let index = index % namespaces.len();
                match what {
                    // The operator takes a step for everyone.
                    0 => {
                        let shares: BTreeMap<String, Share> = namespaces
                            .iter()
                            .enumerate()
                            .map(|(i, n)| (i.to_string(), share(n.target, n.spec, n.enforced, n.used)))
                            .collect();
                        for (name, step) in next_step(&amounts(total), &shares) {
                            let hard: u64 = step.hard["cpu"].text(crate::amount::Notation::Decimal).parse().unwrap();
                            namespaces[name.parse::<usize>().unwrap()].spec = hard;
                        }
                    }
                    // The quota controller catches up in one namespace.
                    1 => namespaces[index].enforced = namespaces[index].spec,
                    // The tenant creates pods as far as admission lets it.
                    2 => {
                        let n = &mut namespaces[index];
                        if n.used + size <= n.enforced {
                            n.used += size;
                        }
                    }
                    // The manifest changes: two environments swap their shares.
                    _ => {
                        let other = (index + 1) % namespaces.len();
                        let target = namespaces[index].target;
                        namespaces[index].target = namespaces[other].target;
                        namespaces[other].target = target;
                    }
                }
                let used: u64 = namespaces.iter().map(|n| n.used).sum();
                prop_assert!(used <= total, "{used} of {total} used: {namespaces:?}");
            }
        }
    }
}
