//! Leadership by a Lease: who holds it writes.
//!
//! Expiry counts from the moment at which this process last saw the lease change, on its own monotonic clock, never
//! from times that others wrote. The holder's identity is stable, so that a restarted operator takes its own lease
//! up again at once.
//!
//! A leader that cannot renew in time, because the API server is away, stops writing but goes on: when the lease is
//! still its own afterwards, nobody else has led meanwhile, and what it knows is as good as after a pause. When somebody
//! else has held it, the process ends, whatever it was about to do.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;

use crate::client::Calls;

/// How long a lease holds without being renewed.
pub const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops writing until it has renewed.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two looks at the lease.
pub const RETRY: Duration = Duration::from_secs(2);

/// Until when this process is certain to lead, by its own clock.
///
/// A lease alone does not stop a process that was paused in the middle of its work and goes on when another has taken
/// over: whatever writes asks here right before. A renewal counts from the moment at which it was asked for, and holds
/// for [`RENEW_DEADLINE`], which is shorter than [`DURATION`].
#[derive(Debug, Default)]
pub struct Leadership(Mutex<Option<Instant>>);

impl Leadership {
    /// The lease was renewed by a call that was begun at `asked`.
    pub fn renewed(&self, asked: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked + RENEW_DEADLINE);
    }

    /// Whether nobody else can have taken the lease yet.
    pub fn holds(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take it: nobody holds it any more.
    Acquire,
    /// It is mine: renew it.
    Renew,
    /// Somebody else holds it.
    Yield,
}

/// Decides about a lease as it was read. `unchanged_for` is how long this process has seen it without a change.
pub fn evaluate(spec: Option<&LeaseSpec>, me: &str, unchanged_for: Duration) -> Decision {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    let duration = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DURATION, Duration::from_secs);
    if holder == me {
        Decision::Renew
    } else if holder.is_empty() || unchanged_for > duration {
        Decision::Acquire
    } else {
        Decision::Yield
    }
}

/// Whether somebody else has held a lease between two looks at it, by the number of its holders so far. None: this
/// process has not held it yet.
fn was_overtaken(held_as: Option<i32>, now: i32) -> bool {
    held_as.is_some_and(|before| before != now)
}

/// Holds on to a lease for ever; tells through `leading` whether this process is the leader, and `leadership` until when
/// that is certain. While the API server is away it is told not to lead, and to lead again when the lease is still its
/// own then.
///
/// Returns when somebody else has held the lease: the caller must stop writing, best by ending the process.
pub async fn hold(
    client: Client,
    calls: Calls,
    namespace: &str,
    name: &str,
    me: &str,
    leading: &watch::Sender<bool>,
    leadership: &Leadership,
) {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let mut last_change: Option<(String, Instant)> = None;
    let mut last_renewal: Option<Instant> = None;
    let mut held_as: Option<i32> = None;
    loop {
        let asked = Instant::now();
        match step(&api, &calls, name, me, held_as, &mut last_change).await {
            Ok(Some(holders)) => {
                if last_renewal.is_some() && !*leading.borrow() {
                    tracing::info!("the lease is still this process's own; it goes on");
                }
                held_as = Some(holders);
                last_renewal = Some(Instant::now());
                leadership.renewed(asked);
                leading.send_if_modified(|leads| !std::mem::replace(leads, true));
            }
            Ok(None) if held_as.is_some() => {
                tracing::error!("another process has taken the lease over; this one stops");
                leading.send_replace(false);
                return;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the lease could not be renewed; trying again"),
        }
        let is_late = last_renewal.is_some_and(|at| at.elapsed() > RENEW_DEADLINE);
        if is_late && leading.send_if_modified(|leads| std::mem::replace(leads, false)) {
            tracing::error!("the lease could not be renewed in time; nothing is written until it is");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Gives a lease back, so that a successor need not wait for its end.
pub async fn release(client: Client, calls: Calls, namespace: &str, name: &str, me: &str) {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let Ok(Some(mut lease)) = calls.make("GET", api.get_opt(name)).await else { return };
    if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) {
        spec.holder_identity = None;
        if let Err(error) = calls.make("PUT", api.replace(name, &PostParams::default(), &lease)).await {
            tracing::debug!(%error, "the lease could not be given back; it ends by itself");
        }
    }
}

/// One look at the lease. Returns how many holders it has had with this process, if it holds the lease now; None when
/// it is somebody else's, or may have been since this process held it as `held_as`.
async fn step(
    api: &Api<Lease>,
    calls: &Calls,
    name: &str,
    me: &str,
    held_as: Option<i32>,
    last_change: &mut Option<(String, Instant)>,
) -> kube::Result<Option<i32>> {
    let now = MicroTime(Timestamp::now());
    let Some(mut lease) = calls.make("GET", api.get_opt(name)).await? else {
        if held_as.is_some() {
            // Whoever has deleted it may have let somebody else lead.
            return Ok(None);
        }
        let mut lease = Lease::default();
        lease.metadata.name = Some(name.into());
        let spec = held_by(me, None, now);
        let holders = spec.lease_transitions.unwrap_or_default();
        lease.spec = Some(spec);
        calls.make("POST", api.create(&PostParams::default(), &lease)).await?;
        return Ok(Some(holders));
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    if last_change.as_ref().is_none_or(|(seen, _)| *seen != version) {
        *last_change = Some((version, Instant::now()));
    }
    let unchanged_for = last_change.as_ref().map_or(Duration::ZERO, |(_, at)| at.elapsed());
    match evaluate(lease.spec.as_ref(), me, unchanged_for) {
        Decision::Yield => Ok(None),
        Decision::Acquire | Decision::Renew => {
            let spec = held_by(me, lease.spec, now);
            let holders = spec.lease_transitions.unwrap_or_default();
            if was_overtaken(held_as, holders) {
                return Ok(None);
            }
            lease.spec = Some(spec);
            // Replaced under the resourceVersion that was read: of two that try, one fails.
            match calls.make("PUT", api.replace(name, &PostParams::default(), &lease)).await {
                Ok(written) => {
                    let version = written.metadata.resource_version.unwrap_or_default();
                    *last_change = Some((version, Instant::now()));
                    Ok(Some(holders))
                }
                // Whoever was faster shows at the next look.
                Err(error) => Err(error),
            }
        }
    }
}

fn held_by(me: &str, before: Option<LeaseSpec>, now: MicroTime) -> LeaseSpec {
    let before = before.unwrap_or_default();
    let same = before.holder_identity.as_deref() == Some(me);
    LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if same { before.acquire_time } else { Some(now.clone()) },
        lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!same)),
        renew_time: Some(now),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_nobody_holds_it_any_more() {
        let seconds = Duration::from_secs;
        assert_eq!(evaluate(None, "a", seconds(0)), Decision::Acquire);
        assert_eq!(evaluate(Some(&spec("a")), "a", seconds(99)), Decision::Renew);
        assert_eq!(evaluate(Some(&spec("b")), "a", seconds(15)), Decision::Yield);
        assert_eq!(evaluate(Some(&spec("b")), "a", seconds(16)), Decision::Acquire);
        assert_eq!(evaluate(Some(&spec("")), "a", seconds(0)), Decision::Acquire);
    }

    #[test]
    fn rule_10_a_leader_is_certain_of_itself_for_less_than_its_lease_lasts() {
        let leadership = Leadership::default();
        assert!(!leadership.holds(), "nobody leads from the start");
        leadership.renewed(Instant::now());
        assert!(leadership.holds());
        // As after a pause: the renewal was asked for long ago.
        leadership.renewed(Instant::now().checked_sub(RENEW_DEADLINE).unwrap());
        assert!(!leadership.holds());
        assert!(RENEW_DEADLINE < DURATION);
    }

    #[test]
    fn whoever_finds_that_another_has_led_meanwhile_does_not_go_on() {
        assert!(!was_overtaken(None, 7), "it begins");
        assert!(!was_overtaken(Some(7), 7), "the API server was away, and nobody else has led");
        // Given back by the other meanwhile, or ended: the number of holders tells.
        assert!(was_overtaken(Some(7), 9));
        let now = MicroTime(Timestamp::UNIX_EPOCH);
        let mine = held_by("a", None, now.clone());
        let others = held_by("b", Some(mine.clone()), now.clone());
        let given_back = LeaseSpec { holder_identity: None, ..others };
        let again = held_by("a", Some(given_back), now);
        assert!(was_overtaken(mine.lease_transitions, again.lease_transitions.unwrap()));
    }

    #[test]
    fn transitions_count_changes_of_the_holder() {
        let now = MicroTime(Timestamp::UNIX_EPOCH);
        let first = held_by("a", None, now.clone());
        let same = held_by("a", Some(first.clone()), now.clone());
        assert_eq!(same.lease_transitions, first.lease_transitions);
        assert_eq!(held_by("b", Some(first), now).lease_transitions, Some(2));
    }
}
