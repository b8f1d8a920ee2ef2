//! Names of one exchange.

use std::fmt;
use std::num::NonZeroU128;
use std::str::FromStr;
use std::time::SystemTime;

use crate::entropy;

/// 128 random-looking bits in `UUIDv7` form: ordered by time, unique across processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// Makes an id from the wall clock and 74 bits of `entropy`.
    #[must_use]
    pub fn new(now: SystemTime, entropy: u128) -> Self {
        let millis = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis());
        let random_a = (entropy >> 64) & 0x0fff;
        let random_b = entropy & 0x3fff_ffff_ffff_ffff;
        Self((millis & 0xffff_ffff_ffff) << 80 | 7 << 76 | random_a << 64 | 0b10 << 62 | random_b)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            id >> 96,
            (id >> 80) & 0xffff,
            (id >> 64) & 0xffff,
            (id >> 48) & 0xffff,
            id & 0xffff_ffff_ffff
        )
    }
}

/// The text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoId;

impl FromStr for RequestId {
    type Err = NoId;

    /// Reads what `Display` prints, and nothing else.
    fn from_str(text: &str) -> Result<Self, NoId> {
        let digits: String = text.split('-').collect();
        let id = Self(u128::from_str_radix(&digits, 16).map_err(|_| NoId)?);
        if id.to_string().eq_ignore_ascii_case(text) { Ok(id) } else { Err(NoId) }
    }
}

/// The id of a W3C trace, the same at every hop; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

impl TraceId {
    /// None for zero, which the specification forbids.
    #[must_use]
    pub fn new(id: u128) -> Option<Self> {
        NonZeroU128::new(id).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u128 {
        self.0.get()
    }

    /// A new trace.
    #[must_use]
    pub fn random() -> Self {
        Self(NonZeroU128::new(entropy::random_u128()).unwrap_or(NonZeroU128::MIN))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ids_have_the_form_of_uuid_version_7_and_sort_by_time() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let early = RequestId::new(at(1_000), u128::MAX).to_string();
        let late = RequestId::new(at(1_001), 0).to_string();
        assert!(early < late);
        assert_eq!(early.parse::<RequestId>().map(|id| id.to_string()), Ok(early.clone()));
        for wrong in ["", "x", &early[1..], &early.replace('-', ""), &format!("+{}", &early[1..])] {
            assert_eq!(wrong.parse::<RequestId>(), Err(NoId), "{wrong}");
        }
        assert_eq!(early.len(), 36);
        assert_eq!(&early[14..15], "7");
        assert!(matches!(&early[19..20], "8" | "9" | "a" | "b"));
    }
}
