//! How many may be in the gateway at once, before anybody has proved anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// That have not said whom they want, from everywhere.
    pub unknown: usize,
    /// The same, from one address.
    pub unknown_each: usize,
    /// That are led to a receiver, from everywhere.
    pub led: usize,
    /// The same, from one address.
    pub led_each: usize,
}

/// Who comes from one place: an IPv4 address, or the /64 that one subscriber of IPv6 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(IpAddr);

impl Place {
    /// The place of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            v4 => Self(v4),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    unknown: usize,
    led: usize,
}

/// Who is in.
#[derive(Debug)]
pub struct Doors {
    limits: Limits,
    all: Counts,
    each: BTreeMap<Place, Counts>,
}

impl Doors {
    /// Nobody is in.
    pub fn new(limits: Limits) -> Self {
        Self { limits, all: Counts::default(), each: BTreeMap::new() }
    }

    /// Lets one in who has said nothing yet, if there is room.
    pub fn enter(&mut self, place: Place) -> bool {
        let mine = self.each.get(&place).copied().unwrap_or_default();
        let room = self.all.unknown < self.limits.unknown && mine.unknown < self.limits.unknown_each;
        if room {
            self.all.unknown += 1;
            self.each.entry(place).or_default().unknown += 1;
        }
        room
    }

    /// One who is in has said whom he wants, and is led there, if there is room. He stays in either way.
    pub fn lead(&mut self, place: Place) -> bool {
        let Some(mine) = self.each.get_mut(&place).filter(|mine| mine.unknown > 0) else { return false };
        let room = self.all.led < self.limits.led && mine.led < self.limits.led_each;
        if room {
            mine.unknown -= 1;
            mine.led += 1;
            self.all.unknown -= 1;
            self.all.led += 1;
        }
        room
    }

    /// One leaves; `led` says whether he had been led.
    pub fn leave(&mut self, place: Place, led: bool) {
        let Some(mine) = self.each.get_mut(&place) else { return };
        let (mine_count, all_count) =
            if led { (&mut mine.led, &mut self.all.led) } else { (&mut mine.unknown, &mut self.all.unknown) };
        *mine_count = mine_count.saturating_sub(1);
        *all_count = all_count.saturating_sub(1);
        if mine.led == 0 && mine.unknown == 0 {
            self.each.remove(&place);
        }
    }

    /// How many are in: unknown, and led.
    pub fn inside(&self) -> (usize, usize) {
        (self.all.unknown, self.all.led)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { unknown: 4, unknown_each: 2, led: 3, led_each: 2 };

    #[test]
    fn a_crowd_from_one_place_leaves_room_for_others() {
        let mut doors = Doors::new(LIMITS);
        let crowd = Place::of("10.0.0.1".parse().unwrap());
        let other = Place::of("10.0.0.2".parse().unwrap());
        assert!(doors.enter(crowd) && doors.enter(crowd) && !doors.enter(crowd));
        assert!(doors.enter(other));
        assert!(doors.lead(other));
        doors.leave(crowd, false);
        assert!(doors.enter(crowd));
    }

    #[test]
    fn one_subscriber_of_ipv6_is_one_place_and_a_mapped_address_is_the_ipv4_one() {
        let place = |text: &str| Place::of(text.parse().unwrap());
        assert_eq!(place("2001:db8:1:2::1"), place("2001:db8:1:2:ffff::9"));
        assert_ne!(place("2001:db8:1:2::1"), place("2001:db8:1:3::1"));
        assert_eq!(place("::ffff:10.0.0.1"), place("10.0.0.1"));
    }

    proptest! {
        #[test]
        fn whatever_happens_the_limits_hold_and_the_counts_come_back_to_nothing(
            steps in prop::collection::vec((0_u8..3, 0_u8..4), 1..200),
        ) {
            let mut doors = Doors::new(LIMITS);
            let mut inside: Vec<(Place, bool)> = Vec::new();
            for (what, who) in steps {
                let place = Place::of(IpAddr::from([10, 0, 0, who]));
                let find = |inside: &[(Place, bool)]| inside.iter().position(|(at, led)| *at == place && !led);
                match what {
                    0 => if doors.enter(place) { inside.push((place, false)); },
                    1 => if let Some(index) = find(&inside) { inside[index].1 = doors.lead(place); },
                    _ => if let Some(index) = inside.iter().position(|(at, _)| *at == place) {
                        let (place, led) = inside.remove(index);
                        doors.leave(place, led);
                    },
                }
                let led = inside.iter().filter(|(_, led)| *led).count();
                prop_assert_eq!(doors.inside(), (inside.len() - led, led));
                prop_assert!(led <= LIMITS.led && inside.len() - led <= LIMITS.unknown);
            }
            for (place, led) in inside {
                doors.leave(place, led);
            }
            prop_assert_eq!(doors.inside(), (0, 0));
            prop_assert!(doors.each.is_empty());
        }
    }
}
