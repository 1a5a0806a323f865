//! How a share of the line reaches the server that has it: what the two say, and how long it is believed.
//!
//! The server asks now and then, and every lease names the question that it answers. It counts from when that
//! question was asked, by the server's own clock; the gateway counts from when it came. So however long an answer is
//! under way, the server never believes a lease longer than the gateway does, and no clocks are compared.

use std::collections::VecDeque;
use std::time::Duration;

use super::frame::{BadFrame, Frame, Reader, Writer};

/// The protocol of leases, as ALPN names it.
pub const ALPN: &[u8] = b"conme-mover-lease/1";
/// How long a lease is good.
pub const TERM: Duration = Duration::from_secs(2);
/// How often a server asks.
pub const EVERY: Duration = Duration::from_millis(500);
/// Bytes each second that a server sends at most while it has no lease: slow, so that it is noticed, but not a stop,
/// since the gateway keeps the cap in any case.
pub const WITHOUT: u64 = 32 << 10;
/// Bytes each second that every server may always send, also when all is paused: enough for both ends to hear that
/// the other is there, too little for anybody to notice.
pub const TRICKLE: u64 = 1 << 10;

const NAME: usize = 253;
/// Questions whose answers are waited for.
const ASKED: usize = 16;
const NO_LIMIT: u64 = u64::MAX;

/// A server asks for its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Counts up.
    pub number: u64,
    /// The name by which its receiver is called.
    pub route: String,
    /// Bytes that it still has to send, as far as it knows.
    pub left: Option<u64>,
    /// Bytes that a day's changes cost it, as it has measured.
    pub churn: Option<u64>,
}

/// Why a lease is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Why {
    /// The line has no cap.
    Open = 0,
    /// It is the server's share of the cap.
    Share = 1,
    /// A person has paused the site, or its calendar gives nothing now.
    Paused = 2,
}

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The question that it answers.
    pub number: u64,
    /// Bytes each second; no limit when absent.
    pub rate: Option<u64>,
    /// How long it is good, in milliseconds from when the question was asked.
    pub millis: u32,
    /// Why so much.
    pub why: Why,
}

/// What is said about leases, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// By a server.
    Ask(Ask),
    /// By the gateway.
    Grant(Grant),
}

impl Frame for Said {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ask(ask) => Writer::new(0x71)
                .u64(ask.number)
                .u64(ask.left.unwrap_or(u64::MAX))
                .u64(ask.churn.unwrap_or(u64::MAX))
                .text(&ask.route, NAME),
            Self::Grant(grant) => Writer::new(0x72)
                .u64(grant.number)
                .u64(grant.rate.unwrap_or(NO_LIMIT))
                .u32(grant.millis)
                .u8(grant.why as u8),
        }
        .finish()
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            0x71 => Some(8 + 8 + 8 + 4 + NAME),
            0x72 => Some(8 + 8 + 4 + 1),
            _ => None,
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut from = Reader { kind, left: content };
        let said = match kind {
            0x71 => Self::Ask(Ask {
                number: from.u64()?,
                left: Some(from.u64()?).filter(|left| *left != u64::MAX),
                churn: Some(from.u64()?).filter(|churn| *churn != u64::MAX),
                route: from.text(NAME)?,
            }),
            0x72 => Self::Grant(Grant {
                number: from.u64()?,
                rate: Some(from.u64()?).filter(|rate| *rate != NO_LIMIT),
                millis: from.u32()?,
                why: match from.u8()? {
                    0 => Why::Open,
                    1 => Why::Share,
                    2 => Why::Paused,
                    _ => return Err(BadFrame::Field { kind, field: "reason" }),
                },
            }),
            _ => return Err(BadFrame::Kind(kind)),
        };
        from.end(said)
    }
}

/// A server's memory of what it asked and may do. Time is an argument, measured from any fixed moment.
#[derive(Debug, Clone, Default)]
pub struct Holder {
    number: u64,
    asked: VecDeque<(u64, Duration)>,
    lease: Option<(Grant, Duration)>,
}

impl Holder {
    /// The number of the next question, which is asked now.
    pub fn ask(&mut self, now: Duration) -> u64 {
        self.number += 1;
        self.asked.push_back((self.number, now));
        if self.asked.len() > ASKED {
            self.asked.pop_front();
        }
        self.number
    }

    /// A lease has come. One that answers a question nobody remembers changes nothing.
    pub fn hear(&mut self, grant: Grant) {
        let Some(at) = self.asked.iter().find(|(number, _)| *number == grant.number).map(|(_, at)| *at)
        else {
            return;
        };
        // Later ones may answer the same question, but none an earlier one.
        self.asked.retain(|(number, _)| *number >= grant.number);
        self.lease = Some((grant, at + Duration::from_millis(grant.millis.into())));
    }

    /// Bytes each second that may be sent now; no limit when `None`.
    pub fn rate(&self, now: Duration) -> Option<u64> {
        match self.lease {
            None => Some(WITHOUT),
            Some((grant, until)) if now < until => grant.rate,
            // Who was told to stop does not begin again because nobody repeats it.
            Some((grant, _)) => Some(grant.rate.unwrap_or(WITHOUT).min(WITHOUT)),
        }
    }

    /// Why it is so, as long as the lease is good.
    pub fn why(&self, now: Duration) -> Option<Why> {
        self.lease.filter(|(_, until)| now < *until).map(|(grant, _)| grant.why)
    }

    /// When the present lease ends, if it has not.
    pub fn until(&self, now: Duration) -> Option<Duration> {
        self.lease.map(|(_, until)| until).filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant(number: u64, rate: Option<u64>, millis: u32) -> Grant {
        Grant { number, rate, millis, why: Why::Share }
    }

    #[test]
    fn a_lease_counts_from_the_question_and_not_from_the_answer() {
        let mut holder = Holder::default();
        let second = Duration::from_secs(1);
        assert_eq!(holder.rate(second), Some(WITHOUT));
        let number = holder.ask(second);
        // The answer was under way for a second and a half.
        holder.hear(grant(number, Some(1_000_000), 2000));
        assert_eq!(holder.rate(second * 5 / 2), Some(1_000_000));
        assert_eq!(holder.rate(second * 3), Some(WITHOUT));
        holder.hear(grant(99, None, 60_000));
        assert_eq!(holder.rate(second * 3), Some(WITHOUT), "nobody asked that");
    }

    #[test]
    fn who_was_stopped_does_not_begin_again_because_the_gateway_is_gone() {
        let mut holder = Holder::default();
        let number = holder.ask(Duration::ZERO);
        holder.hear(grant(number, Some(TRICKLE), 2000));
        assert_eq!(holder.rate(Duration::from_secs(3600)), Some(TRICKLE));
        holder.hear(grant(number, None, 2000));
        assert_eq!(holder.rate(Duration::from_secs(1)), None);
        assert_eq!(holder.rate(Duration::from_secs(3)), Some(WITHOUT));
    }

    proptest! {
        #[test]
        fn what_is_said_is_read_as_it_was_written(
            number: u64, left in prop::option::of(0..u64::MAX), churn in prop::option::of(0..u64::MAX), route in "[a-z.]{0,253}",
            rate in prop::option::of(0..u64::MAX), millis: u32,
        ) {
            for said in [
                Said::Ask(Ask { number, route: route.clone(), left, churn }),
                Said::Grant(Grant { number, rate, millis, why: Why::Paused }),
            ] {
                let bytes = said.encode();
                prop_assert_eq!(Said::decode(bytes[0], &bytes[4..]).unwrap(), said);
            }
        }

        #[test]
        fn nothing_that_comes_does_harm(kind: u8, content in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Said::decode(kind, &content);
        }

        #[test]
        fn a_server_never_believes_a_lease_longer_than_the_gateway(
            there in 0_u64..5000, back in 0_u64..5000, term in 1_u32..5000,
        ) {
            let mut holder = Holder::default();
            let number = holder.ask(Duration::ZERO);
            let gateway_until = there + u64::from(term);
            holder.hear(grant(number, None, term));
            if let Some(until) = holder.until(Duration::from_millis(there + back)) {
                prop_assert!(until <= Duration::from_millis(gateway_until));
            }
        }
    }
}
