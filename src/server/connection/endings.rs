//! How clients' connections end, counted by a closed set of reasons.

use crate::context::Connection;
use crate::error::Reason;
use crate::metrics::{Counter, Registry};

macro_rules! endings {
    ($($(#[$doc:meta])* $name:ident = $label:literal;)*) => {
        /// How a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Ending { $($(#[$doc])* $name,)* }

        const LABELS: &[&str] = &[$($label,)*];
    };
}

endings! {
    /// The client closed it, or both sides agreed to.
    Closed = "closed";
    /// It was without a request for too long.
    Idle = "idle";
    /// It was old.
    Old = "old";
    /// It had brought as many requests as it may.
    UsedUp = "used_up";
    /// A head began and did not end.
    SlowHead = "slow_head";
    /// The proxy shuts down, or its listener was closed.
    Drained = "drained";
    /// An operator ended it.
    Cancelled = "cancelled_by_operator";
    /// A fault that was ordered.
    FaultReset = "fault_reset";
    /// The client left in the middle of a request.
    ClientGone = "client_gone";
    /// The client took nothing.
    ClientStalled = "client_stalled";
    /// The client threw away too much begun work.
    CancelBudget = "cancel_budget";
    /// Too many frames that carry nothing.
    ClientFlood = "client_flood";
    /// What it said was no HTTP/1.
    Malformed = "malformed";
    /// h2: `PROTOCOL_ERROR`
    H2Protocol = "h2_protocol_error";
    /// h2: `ENHANCE_YOUR_CALM`, by a bound of h2 itself.
    H2Calm = "h2_enhance_your_calm";
    /// h2: `FLOW_CONTROL_ERROR`
    H2FlowControl = "h2_flow_control_error";
    /// h2: `FRAME_SIZE_ERROR`
    H2FrameSize = "h2_frame_size_error";
    /// h2: `COMPRESSION_ERROR`
    H2Compression = "h2_compression_error";
    /// Reading or writing failed, or an answer broke off.
    Broken = "broken";
}

impl Ending {
    /// How a connection ended that hyper calls over.
    pub(super) fn of(connection: &Connection, result: hyper::Result<()>) -> Self {
        match (connection.cut(), result) {
            (Some(reason), _) => Self::cut(reason),
            (None, Ok(())) if connection.head_end().is_some() => Self::SlowHead,
            (None, Ok(())) => Self::Closed,
            (None, Err(error)) if error.is_parse() => Self::Malformed,
            (None, Err(error)) => {
                let h2 = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
                let reason = h2.filter(|error| error.is_go_away() && error.is_library()).and_then(h2::Error::reason);
                match reason {
                    Some(h2::Reason::PROTOCOL_ERROR) => Self::H2Protocol,
                    Some(h2::Reason::ENHANCE_YOUR_CALM) => Self::H2Calm,
                    Some(h2::Reason::FLOW_CONTROL_ERROR) => Self::H2FlowControl,
                    Some(h2::Reason::FRAME_SIZE_ERROR) => Self::H2FrameSize,
                    Some(h2::Reason::COMPRESSION_ERROR) => Self::H2Compression,
                    _ => Self::Broken,
                }
            }
        }
    }

    /// How a connection ended that was cut for this reason.
    pub(super) fn cut(reason: Reason) -> Self {
        match reason {
            Reason::ClientStalled => Self::ClientStalled,
            Reason::CancelBudget => Self::CancelBudget,
            Reason::ClientFlood => Self::ClientFlood,
            Reason::Drained => Self::Drained,
            Reason::Cancelled => Self::Cancelled,
            Reason::FaultReset => Self::FaultReset,
            _ => Self::Broken,
        }
    }

    /// How a connection ended whose head was refused, since it was not whole yet.
    pub(super) fn refused(reason: Reason) -> Self {
        if reason == Reason::HeaderTimeout { Self::SlowHead } else { Self::Drained }
    }

    /// Whether the client was told why, so that nothing on the way to it may be thrown away.
    pub(super) fn was_told(reason: Reason) -> bool {
        matches!(reason, Reason::CancelBudget | Reason::ClientFlood)
    }
}

/// One counter for each.
#[derive(Clone, Debug)]
pub(in crate::server) struct Endings(Vec<Counter>);

impl Endings {
    pub(in crate::server) fn new(registry: &Registry) -> Self {
        let counter = |label: &&str| {
            let help = "Client connections that are over, by how they ended.";
            registry.counter("headworks_connections_ended_total", help, &[("reason", *label)])
        };
        Self(LABELS.iter().map(counter).collect())
    }

    pub(super) fn count(&self, ending: Ending) {
        if let Some(counter) = self.0.get(ending as usize) {
            counter.inc();
        }
    }
}
