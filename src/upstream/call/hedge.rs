//! A second attempt beside one that takes long, of another endpoint: whichever head comes first is taken, and the other
//! attempt is cancelled. Only what merely reads is asked twice, within the budget of retries, and never when a credit
//! would have to be waited for. After Dean and Barroso, "The Tail at Scale" (2013).

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Call, Outcome, Prepared};
use crate::context::Request;
use crate::control::credits::Ask;
use crate::upstream::Credit;
use crate::upstream::retry::Hedge;
use crate::upstream::retry::policy::{is_read, tried_before};
use crate::upstream::retry::spare::{self, Spare};

/// The percentile of the times to an answer after which one is slow.
const SLOWEST: u32 = 95;

impl Call {
    /// After which time a second attempt is made, and with what; none when there will be none.
    pub(super) fn hedge_after<'a>(&self, prepared: &'a Prepared) -> Option<(&'a Spare, Duration)> {
        if self.retry.hedge == Hedge::Off {
            return None;
        }
        let spare = prepared.spare.as_ref().filter(|spare| is_read(spare.method()) && !spare.has_body())?;
        let delay = match self.retry.hedge {
            Hedge::Off => None,
            Hedge::After(time) => Some(time),
            Hedge::Slowest => self.upstream.latencies().percentile(SLOWEST, Instant::now()),
        };
        Some((spare, delay?))
    }

    /// An attempt, and after `delay` another. The account of the endpoint whose outcome it is comes beside it.
    pub(super) async fn hedged(
        &self,
        request: &mut Request,
        credit: Credit,
        spare: &Spare,
        delay: Duration,
        ask: Ask,
    ) -> (Outcome, usize) {
        let asked = credit.account();
        let mut first = pin!(self.attempt(request, credit));
        if let Ok(outcome) = timeout(delay, &mut first).await {
            return (outcome, asked);
        }
        let hedge = self.upstream.admission.hedge(&Ask { at: Instant::now(), avoid: Some(asked), ..ask });
        let (Some((_permit, credit)), Some(mut copy)) = (hedge, spare.request()) else {
            return (first.await, asked);
        };
        spare::count(&mut copy, tried_before(spare.headers()).saturating_add(1));
        let other = credit.account();
        let mut second = pin!(self.attempt(&mut copy, credit));
        let (outcome, has_won) = tokio::select! {
            biased;
            outcome = &mut first => match self.failure(&outcome) {
                Some(_) => (second.await, true),
                None => (outcome, false),
            },
            outcome = &mut second => match self.failure(&outcome) {
                Some(_) => (first.await, false),
                None => (outcome, true),
            },
        };
        self.upstream.retries.hedge(has_won);
        if let Some(notes) = self.notes() {
            notes.endpoint.take(usize::from(has_won));
        }
        (outcome, if has_won { other } else { asked })
    }
}
