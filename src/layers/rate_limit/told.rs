//! `RateLimit` and `RateLimit-Policy`: what a limit tells the client.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::{Cost, Settings};
use crate::control::gcra::Room;
use crate::control::surge::{Permille, USUAL};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Fields of an answer.
pub(super) type Fields = [(HeaderName, HeaderValue); 2];

/// What does not change from answer to answer.
#[derive(Debug)]
pub(super) struct Told {
    /// The name as a String item of RFC 9651.
    name: String,
    amount: u64,
    period: u64,
    unit: &'static str,
    /// At the usual rate.
    policy: HeaderValue,
}

impl Told {
    pub(super) fn new(settings: &Settings) -> Self {
        let name = string_item(&settings.name);
        let unit = if settings.cost == Cost::Requests { "" } else { ";qu=\"content-bytes\"" };
        let policy = HeaderValue::from_static("");
        let (amount, period) = (settings.amount.get(), settings.period.as_secs().max(1));
        let told = Self { name, amount, period, unit, policy };
        Self { policy: told.policy(USUAL), ..told }
    }

    /// What is left while the rate is so many times higher.
    pub(super) fn fields(&self, room: Room, factor: Permille) -> Fields {
        let seconds = room.next.as_secs() + u64::from(room.next.subsec_nanos() > 0);
        let mut state = Vec::with_capacity(self.name.len() + 32);
        // Writing to memory does not fail.
        let _ = write!(state, "{};r={};t={seconds}", self.name, room.remaining);
        let state = HeaderValue::from_maybe_shared(Bytes::from(state)).unwrap_or(HeaderValue::from_static(""));
        let policy = if factor == USUAL { self.policy.clone() } else { self.policy(factor) };
        [(RATE_LIMIT, state), (RATE_LIMIT_POLICY, policy)]
    }

    fn policy(&self, factor: Permille) -> HeaderValue {
        let amount = u128::from(self.amount) * u128::from(factor) / u128::from(USUAL);
        let policy = format!("{};q={amount};w={}{}", self.name, self.period, self.unit);
        HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static(""))
    }
}

/// A String item of RFC 9651, which is printable ASCII in quotes.
fn string_item(text: &str) -> String {
    let mut item = String::with_capacity(text.len() + 2);
    item.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => item.extend(['\\', character]),
            ' '..='~' => item.push(character),
            _ => item.push('?'),
        }
    }
    item.push('"');
    item
}
