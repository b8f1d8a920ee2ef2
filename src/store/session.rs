//! The one task that talks with the store: it gathers what is asked, says it in one write, and hands the answers out.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep};

use super::Common;
use super::limit::{Digest, Limit, Note};
use super::resp::Reply;
use super::scripts::{BEAT, LEASE};
use super::wire::{Connector, Failure, Wire};
use crate::control::lease::{Answer, Ask};
use crate::entropy;

/// Asks that go out together.
const TOGETHER: usize = 256;
/// How often an instance says that it lives. Three that are missed, and it is forgotten.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts to connect: doubled each time, and half of it by chance, so that instances do not come together.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Talks with the store for as long as the future is kept.
pub(super) async fn run(common: Arc<Common>, connector: Connector, mut asks: mpsc::Receiver<Note>) {
    let mut failures = 0;
    loop {
        let began = Instant::now();
        let failure = match connect(&common, &connector).await {
            Ok(mut session) => session.serve(&mut asks).await,
            Err(failure) => failure,
        };
        // One that is there for a moment only is not there.
        failures = if began.elapsed() > LONGEST { 0 } else { failures + 1 };
        common.goes_away(&failure);
        while asks.try_recv().is_ok() {}
        common.limits().iter().for_each(|limit| limit.all_unanswered());
        sleep(pause(failures)).await;
    }
}

fn pause(failures: u32) -> Duration {
    let full = SHORTEST.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST);
    full.mul_f64(0.5 + entropy::unit() / 2.0)
}

pub(super) struct Session<'a> {
    common: &'a Arc<Common>,
    wire: Wire,
    lease: String,
    beat: String,
}

async fn connect<'a>(common: &'a Arc<Common>, connector: &Connector) -> Result<Session<'a>, Failure> {
    let wire = connector.connect().await?;
    Session::begin(common, wire).await
}

impl<'a> Session<'a> {
    #[cfg(test)]
    pub(super) fn over(common: &'a Arc<Common>, wire: Wire) -> Self {
        Self { common, wire, lease: String::new(), beat: String::new() }
    }

    async fn begin(common: &'a Arc<Common>, mut wire: Wire) -> Result<Self, Failure> {
        let lease = load(&mut wire, LEASE).await?;
        let beat = load(&mut wire, BEAT).await?;
        let mut session = Self { common, wire, lease, beat };
        session.beat().await?;
        common.is_there();
        Ok(session)
    }

    /// Until something goes wrong.
    async fn serve(&mut self, asks: &mut mpsc::Receiver<Note>) -> Failure {
        let mut beat = interval(BEAT_EVERY);
        beat.reset();
        loop {
            let done = tokio::select! {
                note = asks.recv() => {
                    let mut notes = Vec::with_capacity(TOGETHER);
                    notes.extend(note);
                    while notes.len() < TOGETHER && let Ok(note) = asks.try_recv() {
                        notes.push(note);
                    }
                    self.ask(notes).await
                }
                _ = beat.tick() => self.tick().await,
            };
            if let Err(failure) = done {
                return failure;
            }
        }
    }

    async fn ask(&mut self, notes: Vec<Note>) -> Result<(), Failure> {
        let asked: Vec<(Note, Ask)> = notes
            .into_iter()
            .filter_map(|note| {
                let (digest, ask) = note.limit.question(note.key)?;
                self.say(&note.limit, &digest, ask);
                Some((note, ask))
            })
            .collect();
        let mut outcome = self.wire.flush().await;
        for (note, ask) in asked {
            let answer = match outcome {
                Ok(()) => self.wire.hear().await.and_then(|reply| answer(&reply)),
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(answer) => {
                    note.limit.answer(note.key, answer);
                    self.common.metrics.answered.inc();
                    outcome = Ok(());
                }
                Err(failure) => {
                    note.limit.unanswered(note.key, Some(ask));
                    outcome = Err(failure);
                }
            }
        }
        outcome
    }

    /// Says that it lives, and lets go of what nobody uses.
    async fn tick(&mut self) -> Result<(), Failure> {
        self.beat().await?;
        for limit in self.common.limits() {
            let mut said = Vec::new();
            limit.sweep(&mut said, TOGETHER);
            for (digest, ask) in &said {
                self.say(&limit, digest, *ask);
            }
            self.wire.flush().await?;
            for _ in said {
                answer(&self.wire.hear().await?)?;
            }
        }
        Ok(())
    }

    fn say(&mut self, limit: &Limit, digest: &Digest, ask: Ask) {
        let key = self.common.key(&limit.rule.name, digest);
        let (burst, owed, want) = (limit.rule.burst.to_string(), ask.owed.to_string(), ask.want.to_string());
        let words = [b"EVALSHA", self.lease.as_bytes(), b"1", key.as_bytes(), limit.step_micros.as_bytes()];
        self.wire.say(&[&words[..], &[burst.as_bytes(), owed.as_bytes(), want.as_bytes()]].concat());
    }

    pub(super) async fn beat(&mut self) -> Result<(), Failure> {
        let key = format!("{}:instances", self.common.prefix);
        let words = [b"EVALSHA", self.beat.as_bytes(), b"1", key.as_bytes(), self.common.name.as_bytes()];
        self.wire.say(&words);
        match self.wire.done().await? {
            Reply::Integer(count) => {
                let count = u32::try_from(count).unwrap_or(1).max(self.common.at_least);
                self.common.instances.store(count, Relaxed);
                // Said each time: a store that was in force before may end later than this one began.
                self.common.metrics.up.set(1);
                self.common.metrics.instances.set(count.into());
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }
}

async fn load(wire: &mut Wire, script: &str) -> Result<String, Failure> {
    wire.say(&[b"SCRIPT", b"LOAD", script.as_bytes()]);
    match wire.done().await? {
        Reply::Bulk(Some(hash)) => Ok(hash),
        other => Err(unexpected(&other)),
    }
}

fn answer(reply: &Reply) -> Result<Answer, Failure> {
    if let Reply::Array(parts) = reply
        && let [Reply::Integer(given), Reply::Integer(room), Reply::Integer(wait)] = parts.as_slice()
    {
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let wait = u64::try_from(*wait).unwrap_or(0).saturating_mul(1000);
        return Ok(Answer { given: number(*given), room: number(*room), wait });
    }
    Err(unexpected(reply))
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::Said(format!("{reply:?}"))
}
