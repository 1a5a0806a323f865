//! How the servers of one site share its line: by leases, short promises that nobody can take back.
//!
//! A lease that was given out may still be used until it ends, whatever has been decided since. So nobody is given
//! more than what all leases that others still hold leave over; a new server waits until theirs have run out.

use std::collections::BTreeMap;
use std::time::Duration;

/// No limit.
pub const UNLIMITED: u64 = u64::MAX;

/// What a server could use, in bytes each second, and how much it counts beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// [`UNLIMITED`] when it takes whatever there is.
    pub want: u64,
    /// At least 1.
    pub weight: u32,
}

/// A fair share for each: whoever wants less than his part by weight gets what he wants, and what he leaves is
/// shared by the others. Never more than `cap` together.
pub fn fair(cap: u64, demands: &[Demand]) -> Vec<u64> {
    if cap == UNLIMITED {
        return vec![UNLIMITED; demands.len()];
    }
    let mut shares = vec![0; demands.len()];
    // The most modest first, measured by want for each weight.
    let mut order: Vec<usize> = (0..demands.len()).collect();
    let weight = |index: usize| u128::from(demands[index].weight.max(1));
    order.sort_by(|&a, &b| {
        (u128::from(demands[a].want) * weight(b)).cmp(&(u128::from(demands[b].want) * weight(a)))
    });
    let mut left = cap;
    let mut weights: u128 = order.iter().map(|&index| weight(index)).sum();
    for index in order {
        let part = u64::try_from(u128::from(left) * weight(index) / weights).unwrap_or(left);
        shares[index] = part.min(demands[index].want);
        left -= shares[index];
        weights -= weight(index);
    }
    shares
}

/// A promise: so many bytes each second, until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Bytes each second.
    pub rate: u64,
    /// Measured from any fixed moment.
    pub until: Duration,
}

/// The leases of one site that may still be in use.
#[derive(Debug, Clone)]
pub struct Ledger<H> {
    leases: BTreeMap<H, Vec<Lease>>,
}

impl<H> Default for Ledger<H> {
    fn default() -> Self {
        Self { leases: BTreeMap::new() }
    }
}

impl<H: Ord + Clone> Ledger<H> {
    /// Gives everybody who demands something a lease until `until`. `cap` must hold all that time.
    ///
    /// A lease replaces the one before of the same holder, but the holder may not have heard of it yet: both count,
    /// as the higher of the two, until the older ends.
    pub fn grant(
        &mut self,
        now: Duration,
        until: Duration,
        cap: u64,
        demands: &BTreeMap<H, Demand>,
    ) -> BTreeMap<H, Lease> {
        self.leases.retain(|_, leases| {
            leases.retain(|lease| lease.until > now);
            !leases.is_empty()
        });
        let wanted: Vec<Demand> = demands.values().copied().collect();
        let mut goals: Vec<(&H, u64)> = demands.keys().zip(fair(cap, &wanted)).collect();
        // Who has least is served first: there may not be room for all before older leases end.
        goals.sort_by_key(|(holder, _)| self.held(holder, now));
        // What all hold together only changes when a lease ends.
        let mut moments = vec![now];
        moments.extend(self.leases.values().flatten().map(|lease| lease.until));
        let mut in_use: Vec<u64> = moments.iter().map(|at| self.in_use(*at)).collect();
        let mut granted = BTreeMap::new();
        for (holder, goal) in goals {
            let mut rate = goal;
            for (at, sum) in moments.iter().zip(&in_use) {
                let mine = self.held(holder, *at);
                let room = if cap == UNLIMITED { cap } else { cap.saturating_sub(sum.saturating_sub(mine)) };
                // What was promised cannot be taken back, so to promise it again takes nothing from anybody.
                rate = rate.min(room.max(mine));
            }
            for (at, sum) in moments.iter().zip(&mut in_use) {
                *sum = sum.saturating_add(rate.saturating_sub(self.held(holder, *at)));
            }
            granted.insert(holder.clone(), Lease { rate, until });
        }
        for (holder, lease) in &granted {
            let leases = self.leases.entry(holder.clone()).or_default();
            // A longer lease of no less covers one before; so a ledger stays small.
            leases.retain(|older| older.rate > lease.rate);
            leases.push(*lease);
        }
        granted
    }

    /// What one may use at a moment at most, by the leases given out so far.
    fn held(&self, holder: &H, at: Duration) -> u64 {
        let leases = self.leases.get(holder).into_iter().flatten();
        leases.filter(|lease| lease.until > at).map(|lease| lease.rate).max().unwrap_or(0)
    }

    /// What may be in use at this moment at most, by all who ever got a lease, heard or unheard.
    pub fn in_use(&self, at: Duration) -> u64 {
        self.leases.keys().map(|holder| self.held(holder, at)).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERM: Duration = Duration::from_millis(2000);

    fn demand(want: u64, weight: u32) -> Demand {
        Demand { want, weight }
    }

    #[test]
    fn the_modest_get_what_they_want_and_the_others_share_the_rest_by_weight() {
        let shares = fair(100, &[demand(UNLIMITED, 1), demand(10, 1), demand(UNLIMITED, 2)]);
        assert_eq!(shares, [30, 10, 60]);
        assert_eq!(fair(100, &[demand(5, 1), demand(7, 9)]), [5, 7]);
        assert_eq!(fair(0, &[demand(5, 1)]), [0]);
        assert_eq!(fair(UNLIMITED, &[demand(5, 1)]), [UNLIMITED]);
        assert!(fair(100, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn shares_are_max_min_fair(
            cap in 0_u64..1_000_000,
            demands in prop::collection::vec((0_u64..300_000, 1_u32..5), 1..8),
        ) {
            let demands: Vec<Demand> = demands.into_iter().map(|(want, weight)| demand(want, weight)).collect();
            let shares = fair(cap, &demands);
            let sum: u64 = shares.iter().sum();
            let wants: u64 = demands.iter().map(|demand| demand.want).sum();
            prop_assert!(sum <= cap);
            // Nothing is left lying while somebody wants it, but for what does not divide.
            prop_assert!(sum + demands.len() as u64 * 5 >= cap.min(wants), "{} of {}", sum, cap);
            for (share, mine) in shares.iter().zip(&demands) {
                prop_assert!(*share <= mine.want);
                if *share < mine.want {
                    // Who goes short has no less for his weight than anybody.
                    for (theirs, other) in shares.iter().zip(&demands) {
                        let slack = demands.len() as u64 * 5;
                        prop_assert!(
                            theirs * u64::from(mine.weight) <= (share + slack) * u64::from(other.weight),
                            "{:?} {:?}", shares, demands
                        );
                    }
                }
            }
        }
    }

    /// A server that uses the last lease it has heard of, as long as that lasts.
    #[derive(Debug, Default, Clone)]
    struct Server {
        there: bool,
        heard: Option<Lease>,
        on_the_way: Vec<Lease>,
    }

    #[derive(Debug, Clone)]
    enum Event {
        Pass(u64),
        Cap(u64),
        Appear(u8, u32),
        Vanish(u8),
        Hear(u8),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1_u64..1500).prop_map(Event::Pass),
            1 => (0_u64..100_000).prop_map(Event::Cap),
            2 => (0_u8..6, 1_u32..4).prop_map(|(who, weight)| Event::Appear(who, weight)),
            1 => (0_u8..6).prop_map(Event::Vanish),
            3 => (0_u8..6).prop_map(Event::Hear),
        ]
    }

    proptest! {
        #[test]
        fn leases_that_overlap_never_add_up_to_more_than_a_cap_that_held_meanwhile(
            events in prop::collection::vec(event(), 1..200),
        ) {
            let mut ledger = Ledger::<u8>::default();
            let mut servers: BTreeMap<u8, Server> = BTreeMap::new();
            let mut weights: BTreeMap<u8, u32> = BTreeMap::new();
            let mut now = Duration::ZERO;
            let mut cap = 50_000;
            // When which cap was in force last.
            let mut caps: Vec<(Duration, u64)> = Vec::new();
            for event in events {
                match event {
                    Event::Pass(millis) => now += Duration::from_millis(millis),
                    Event::Cap(rate) => cap = rate,
                    Event::Appear(who, weight) => {
                        servers.entry(who).or_default().there = true;
                        weights.insert(who, weight);
                    }
                    // It vanishes from the gateway's sight; it may well go on sending.
                    Event::Vanish(who) => {
                        servers.entry(who).or_default().there = false;
                    }
                    Event::Hear(who) => {
                        let server = servers.entry(who).or_default();
                        if let Some(lease) = server.on_the_way.pop() {
                            server.heard = Some(lease);
                            server.on_the_way.clear();
                        }
                    }
                }
                let demands: BTreeMap<u8, Demand> = servers
                    .iter()
                    .filter(|(_, server)| server.there)
                    .map(|(who, _)| (*who, demand(UNLIMITED, weights.get(who).copied().unwrap_or(1))))
                    .collect();
                caps.push((now, cap));
                for (who, lease) in ledger.grant(now, now + TERM, cap, &demands) {
                    servers.entry(who).or_default().on_the_way.push(lease);
                }
                let used: u64 = servers
                    .values()
                    .filter_map(|server| server.heard.filter(|lease| lease.until > now))
                    .map(|lease| lease.rate)
                    .sum();
                let allowed = caps.iter().filter(|(at, _)| *at + TERM > now).map(|(_, cap)| *cap).max().unwrap_or(0);
                prop_assert!(used <= allowed, "{} of {}", used, allowed);
                prop_assert!(ledger.in_use(now) <= allowed);
            }
        }

        #[test]
        fn after_two_terms_everybody_has_his_fair_share(
            cap in 1000_u64..1_000_000,
            before in prop::collection::btree_map(0_u8..6, (1_u64..500_000, 1_u32..4), 0..5),
            after in prop::collection::btree_map(0_u8..6, (1_u64..500_000, 1_u32..4), 1..6),
        ) {
            let with = |demands: BTreeMap<u8, (u64, u32)>| -> BTreeMap<u8, Demand> {
                demands.into_iter().map(|(who, (want, weight))| (who, demand(want, weight))).collect()
            };
            let (before, after) = (with(before), with(after));
            let mut ledger = Ledger::default();
            let step = Duration::from_millis(250);
            let mut now = Duration::ZERO;
            for _ in 0..8 {
                ledger.grant(now, now + TERM, cap, &before);
                now += step;
            }
            let mut granted = BTreeMap::new();
            for _ in 0..=16 {
                granted = ledger.grant(now, now + TERM, cap, &after);
                now += step;
            }
            let goals = fair(cap, &after.values().copied().collect::<Vec<_>>());
            for ((who, lease), goal) in granted.iter().zip(goals) {
                prop_assert!(lease.rate + 5 * 6 >= goal, "{} has {} of {}", who, lease.rate, goal);
            }
        }
    }

    #[test]
    fn what_one_leaves_unused_the_others_have_within_a_term() {
        let mut ledger = Ledger::default();
        let both: BTreeMap<_, _> = [("a", demand(UNLIMITED, 1)), ("b", demand(UNLIMITED, 1))].into();
        let granted = ledger.grant(Duration::ZERO, TERM, 100, &both);
        assert_eq!((granted["a"].rate, granted["b"].rate), (50, 50));
        let idle: BTreeMap<_, _> = [("a", demand(10, 1)), ("b", demand(UNLIMITED, 1))].into();
        let granted = ledger.grant(Duration::from_millis(250), Duration::from_millis(2250), 100, &idle);
        // `a` may not have heard yet.
        assert_eq!((granted["a"].rate, granted["b"].rate), (10, 50));
        let granted = ledger.grant(TERM, 2 * TERM, 100, &idle);
        assert_eq!((granted["a"].rate, granted["b"].rate), (10, 90));
    }

    #[test]
    fn a_cap_upon_an_unlimited_line_holds_after_one_term() {
        let mut ledger = Ledger::default();
        let both: BTreeMap<_, _> = [("a", demand(UNLIMITED, 1)), ("b", demand(UNLIMITED, 1))].into();
        assert_eq!(ledger.grant(Duration::ZERO, TERM, UNLIMITED, &both)["a"].rate, UNLIMITED);
        let granted = ledger.grant(Duration::from_millis(1), TERM, 100, &both);
        assert_eq!((granted["a"].rate, granted["b"].rate), (50, 50));
        assert_eq!(ledger.in_use(TERM), 0);
    }
}
