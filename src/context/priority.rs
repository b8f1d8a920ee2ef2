//! How much a request matters when not all can be served.

/// From what goes first to what never goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Nobody waits for it: batches, prefetches.
    Background,
    /// Everything of which nothing else is known.
    #[default]
    Default,
    /// Somebody is stopped by its refusal.
    Critical,
    /// Never shed: health checks.
    Protected,
}

impl Priority {
    /// Every one, the least first.
    pub const ALL: [Self; 4] = [Self::Background, Self::Default, Self::Critical, Self::Protected];

    /// Its name in the configuration, in fields, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::Default => "default",
            Self::Critical => "critical",
            Self::Protected => "protected",
        }
    }

    /// The one with this name, in any case.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| name.eq_ignore_ascii_case(priority.name().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_stand_in_order() {
        for priority in Priority::ALL {
            assert_eq!(Priority::named(priority.name().to_uppercase().as_bytes()), Some(priority));
        }
        assert_eq!(Priority::named(b"urgent"), None);
        assert!(Priority::ALL.is_sorted());
    }
}
