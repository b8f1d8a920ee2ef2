//! What was done wrong to an exchange on purpose.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It waited before anything was done with it.
    Delay,
    /// It was answered in the upstream's place.
    Abort,
    /// It was cut without an answer.
    Reset,
    /// The body of its answer was handed on slowly.
    SlowBody,
    /// For a time nothing of its answer was read.
    Stall,
}

impl Fault {
    /// Every kind, in the order in which a request meets them.
    pub const ALL: [Self; 5] = [Self::Delay, Self::Abort, Self::Reset, Self::SlowBody, Self::Stall];

    /// Its name in the log and in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Reset => "reset",
            Self::SlowBody => "slow_body",
            Self::Stall => "stall",
        }
    }
}

/// The faults of one exchange.
#[derive(Debug, Default)]
pub struct Done(AtomicU8);

impl Done {
    /// Notes one.
    pub fn note(&self, fault: Fault) {
        self.0.fetch_or(1 << fault as u8, Relaxed);
    }

    /// Whether this one was done.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.0.load(Relaxed) & (1 << fault as u8) != 0
    }

    /// Their names, joined by `+`; none when nothing was done to it.
    #[must_use]
    pub fn names(&self) -> Option<impl fmt::Display> {
        let bits = self.0.load(Relaxed);
        (bits != 0).then_some(Names(bits))
    }
}

struct Names(u8);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noted = Fault::ALL.into_iter().filter(|fault| self.0 & (1 << *fault as u8) != 0);
        for (number, fault) in noted.enumerate() {
            f.write_str(if number == 0 { "" } else { "+" })?;
            f.write_str(fault.label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_in_their_order() {
        let faults = Done::default();
        assert!(faults.names().is_none());
        faults.note(Fault::Stall);
        faults.note(Fault::Delay);
        faults.note(Fault::Delay);
        assert_eq!(faults.names().expect("two").to_string(), "delay+stall");
        assert!(faults.has(Fault::Stall) && !faults.has(Fault::Abort));
    }
}
