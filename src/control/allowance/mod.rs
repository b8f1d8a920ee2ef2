//! How long a client says that it waits, and the same said to the service, less what was spent.
//!
//! A client can only shorten its own time with it, so everybody is believed. A field that comes twice is read as none.

mod field;

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use field::Field;
use field::Form;

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields(u8);

impl Fields {
    /// All that are known.
    #[must_use]
    pub fn all() -> Self {
        Field::ALL.into_iter().collect()
    }

    /// Whether the field is one of them.
    #[must_use]
    pub fn contains(self, field: Field) -> bool {
        self.0 & 1 << field as u8 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |field| self.contains(*field))
    }

    fn insert(&mut self, field: Field) -> bool {
        let is_new = !self.contains(field);
        self.0 |= 1 << field as u8;
        is_new
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        let mut set = Self::default();
        for field in fields {
            set.insert(field);
        }
        set
    }
}

/// What a request says of its time. In the extensions of a request that says something.
#[derive(Clone, Debug, Default)]
pub struct Allowance(Vec<Stated>);

#[derive(Clone, Debug)]
struct Stated {
    field: Field,
    time: Duration,
    form: Form,
    /// The value that stands in the request: whatever else is found there is somebody else's word.
    value: HeaderValue,
}

impl Allowance {
    /// Reads those fields that are believed; a time longer than `max` counts as `max`. `is_sent` tells whether the
    /// client had nothing more to send once its head was here: silence cannot have begun for one that had.
    #[must_use]
    pub fn read(headers: &HeaderMap, believed: Fields, max: Option<Duration>, is_sent: impl Fn() -> bool) -> Self {
        let mut stated: Vec<Stated> = Vec::new();
        let mut seen = Fields::default();
        for (name, value) in headers {
            let Some(field) = Field::named(name.as_str()).filter(|field| believed.contains(*field)) else { continue };
            if !seen.insert(field) {
                stated.retain(|known| known.field != field);
            } else if field != Field::StainlessRead || is_sent() {
                let read = field.read(value.as_bytes());
                stated.extend(read.map(|(time, form)| {
                    let time = max.map_or(time, |max| time.min(max));
                    Stated { field, time, form, value: value.clone() }
                }));
            }
        }
        Self(stated)
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From the receipt, the shortest time that was said for the head of the answer.
    #[must_use]
    pub fn head(&self) -> Option<Duration> {
        self.0.iter().map(|stated| stated.time).min()
    }

    /// The same for the whole answer.
    #[must_use]
    pub fn whole(&self) -> Option<Duration> {
        self.0.iter().filter(|stated| !stated.field.ends_with_head()).map(|stated| stated.time).min()
    }

    /// Says `time` in this field too, or instead of a longer one.
    pub fn state(&mut self, headers: &mut HeaderMap, field: Field, time: Duration) {
        if let Some(known) = self.0.iter_mut().find(|known| known.field == field) {
            known.time = known.time.min(time);
        } else if let Some(value) = field.usual().write(time) {
            headers.insert(HeaderName::from_static(field.name()), value.clone());
            self.0.push(Stated { field, time, form: field.usual(), value });
        }
    }

    /// Writes into the request what is left of each time when `spent` has passed since the receipt. A field that
    /// somebody has changed or taken off meanwhile is left as it is.
    pub fn spend(&mut self, headers: &mut HeaderMap, spent: Duration) {
        for stated in &mut self.0 {
            let Some(value) = headers.get_mut(stated.field.name()).filter(|value| **value == stated.value) else {
                continue;
            };
            if let Some(left) = stated.form.write(stated.time.saturating_sub(spent)) {
                stated.value = left.clone();
                *value = left;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn read(fields: &[(&'static str, &'static str)]) -> Allowance {
        Allowance::read(&headers(fields), Fields::all(), None, || true)
    }

    #[test]
    fn the_shortest_time_counts_and_a_head_has_its_own() {
        let said = read(&[("x-request-timeout", "5"), ("grpc-timeout", "3S"), ("x-stainless-timeout", "2")]);
        assert_eq!((said.head(), said.whole()), (Some(SECOND * 2), Some(SECOND * 3)));
        assert_eq!(read(&[("accept", "*/*")]).head(), None);
        assert_eq!(read(&[("x-stainless-timeout", "2")]).whole(), None);
    }

    #[test]
    fn what_is_not_believed_twice_or_unreadable_says_nothing() {
        let fields = headers(&[("x-request-timeout", "5"), ("grpc-timeout", "3S")]);
        let believed = Fields::from_iter([Field::XRequest]);
        assert_eq!(Allowance::read(&fields, believed, None, || true).head(), Some(SECOND * 5));
        assert!(Allowance::read(&fields, Fields::default(), None, || true).is_empty());
        assert!(read(&[("grpc-timeout", "1S"), ("grpc-timeout", "2S"), ("grpc-timeout", "2S")]).is_empty());
        assert!(read(&[("grpc-timeout", "soon")]).is_empty());
        let most = Allowance::read(&fields, Fields::all(), Some(SECOND), || true);
        assert_eq!((most.head(), most.whole()), (Some(SECOND), Some(SECOND)));
    }

    #[test]
    fn silence_has_not_begun_for_who_still_sends() {
        let fields = headers(&[("x-stainless-read-timeout", "5")]);
        assert!(Allowance::read(&fields, Fields::all(), None, || false).is_empty());
        assert_eq!(Allowance::read(&fields, Fields::all(), None, || true).head(), Some(SECOND * 5));
    }

    #[test]
    fn what_was_spent_is_not_said_again() {
        let mut fields = headers(&[("grpc-timeout", "3S"), ("x-request-timeout", "5")]);
        let mut said = Allowance::read(&fields, Fields::all(), None, || true);
        said.spend(&mut fields, Duration::from_millis(1500));
        assert_eq!(
            (&fields["grpc-timeout"], &fields["x-request-timeout"]),
            (&"1500000u".parse().unwrap(), &"4".parse().unwrap())
        );
        // Once more, for another attempt: from the receipt, not from what was written.
        said.spend(&mut fields, Duration::from_millis(2500));
        assert_eq!(fields["grpc-timeout"], "500000u");
        said.spend(&mut fields, SECOND * 9);
        assert_eq!(
            (&fields["grpc-timeout"], &fields["x-request-timeout"]),
            (&"1n".parse().unwrap(), &"1".parse().unwrap())
        );
    }

    #[test]
    fn another_hand_has_the_last_word() {
        let mut fields = headers(&[("grpc-timeout", "3S"), ("x-request-timeout", "5")]);
        let mut said = Allowance::read(&fields, Fields::all(), None, || true);
        fields.remove("grpc-timeout");
        fields.insert("x-request-timeout", HeaderValue::from_static("60"));
        said.spend(&mut fields, SECOND);
        assert_eq!((fields.get("grpc-timeout"), &fields["x-request-timeout"]), (None, &"60".parse().unwrap()));
    }

    #[test]
    fn a_time_of_the_route_is_said_where_the_client_said_none() {
        let mut fields = headers(&[("x-request-timeout", "5")]);
        let mut said = Allowance::read(&fields, Fields::all(), None, || true);
        said.state(&mut fields, Field::XRequest, SECOND * 2);
        said.state(&mut fields, Field::Envoy, SECOND * 2);
        said.spend(&mut fields, SECOND);
        assert_eq!(
            (&fields["x-request-timeout"], &fields["x-envoy-expected-rq-timeout-ms"]),
            (&"1".parse().unwrap(), &"1000".parse().unwrap())
        );
    }
}
