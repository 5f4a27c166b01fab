//! The ranks of producers: open peers, and what they told of themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::{EngineId, Peer, TransferEngine};
use parking_lot::Mutex;

use crate::geometry::{Description, Shape};
use crate::limits::MAX_RANKS;
use crate::wire::{Answer, Question, Status};

/// What a question came to.
pub(crate) enum Heard<T> {
    Answer(T),
    Refused(Status),
}

/// Asks a question. Fails as [`Peer::ask`] does, and with `Corrupt` for an answer that isn't one.
pub(crate) fn ask(peer: &Peer, question: &Question, deadline: Instant) -> Result<Heard<Answer>> {
    let bytes = peer.ask(&question.encode(), deadline)?;
    Ok(match Answer::decode(&bytes, question.kind())? {
        Answer::Refused { status, .. } => Heard::Refused(status),
        answer => Heard::Answer(answer),
    })
}

/// The error of an answer to another question.
pub(crate) fn strange() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the producer's answer doesn't fit the question",
    )
}

/// A rank of a producer.
#[derive(Clone)]
pub(crate) struct Rank {
    pub peer: Peer,
    pub description: Arc<Description<Shape>>,
}

/// How long a rank that couldn't be opened isn't tried again; twice as long each further time.
const RESTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// A rank that couldn't be opened.
struct Resting {
    until: Instant,
    rest: Duration,
}

/// All that are known. An engine's description never changes, and another start is another engine.
#[derive(Default)]
pub(crate) struct Producers {
    descriptions: Mutex<HashMap<EngineId, Arc<Description<Shape>>>>,
    /// By address.
    resting: Mutex<HashMap<String, Resting>>,
}

impl Producers {
    /// Opens a rank. One that couldn't be opened just now fails at once, with `Unavailable`: whoever waits for one that hangs
    /// holds up what others want of those that work.
    pub fn peer(
        &self,
        engine: &TransferEngine,
        runtime: &Runtime,
        address: &str,
        deadline: Instant,
    ) -> Result<Peer> {
        let now = runtime.clock.now();
        let rest = match self.resting.lock().get(address) {
            Some(resting) if now < resting.until => {
                let error = Error::new(
                    ErrorKind::Unavailable,
                    "the producer couldn't be reached just now",
                );
                return Err(error.with("producer", address));
            }
            Some(resting) => (resting.rest * 2).min(RESTS[1]),
            None => RESTS[0],
        };
        let opened = engine.open_peer(address, deadline);
        let mut all = self.resting.lock();
        match &opened {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut) => {
                if all.len() >= MAX_RANKS {
                    all.clear();
                }
                let until = runtime.deadline(rest);
                all.insert(address.to_owned(), Resting { until, rest });
            }
            _ => {
                all.remove(address);
            }
        }
        opened
    }

    /// Opens a rank and asks what it has, if that isn't known.
    pub fn open(
        &self,
        engine: &TransferEngine,
        runtime: &Runtime,
        address: &str,
        deadline: Instant,
    ) -> Result<Heard<Rank>> {
        let peer = self.peer(engine, runtime, address, deadline)?;
        let known = self.descriptions.lock().get(&peer.id()).cloned();
        if let Some(description) = known {
            return Ok(Heard::Answer(Rank { peer, description }));
        }
        let description = match describe(&peer, deadline)? {
            Heard::Answer(description) => Arc::new(description),
            Heard::Refused(status) => return Ok(Heard::Refused(status)),
        };
        let mut all = self.descriptions.lock();
        if all.len() >= MAX_RANKS {
            all.clear();
        }
        all.insert(peer.id(), description.clone());
        Ok(Heard::Answer(Rank { peer, description }))
    }
}

/// All pages of a description.
fn describe(peer: &Peer, deadline: Instant) -> Result<Heard<Description<Shape>>> {
    let mut whole: Option<Description<Shape>> = None;
    loop {
        let from = whole.as_ref().map_or(0, |whole| whole.layers.len()) as u32;
        let page = match ask(peer, &Question::Describe { from }, deadline)? {
            Heard::Answer(Answer::Described(page)) => *page,
            Heard::Answer(_) => return Err(strange()),
            Heard::Refused(status) => return Ok(Heard::Refused(status)),
        };
        if page.from != from || page.description.layers.is_empty() {
            return Err(strange());
        }
        let whole = match &mut whole {
            Some(whole) => {
                whole.layers.extend(page.description.layers);
                whole
            }
            None => whole.insert(page.description),
        };
        if whole.layers.len() >= page.total as usize {
            whole.check()?;
            return Ok(Heard::Answer(whole.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_transfer::EngineSettings;

    #[test]
    fn one_that_could_not_be_reached_is_not_waited_for_again_and_others_are() {
        let runtime = Runtime::system();
        let engine = TransferEngine::start(EngineSettings::default(), runtime.clone()).unwrap();
        let producers = Producers::default();
        // nobody listens there
        let nobody = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let (one, other) = (nobody(), nobody());
        let deadline = runtime.deadline(Duration::from_secs(10));
        let ask = |address: &str| producers.peer(&engine, &runtime, address, deadline).unwrap_err();
        let was_asked = |error: &Error| !error.message().contains("just now");
        assert!(was_asked(&ask(&one)));
        let again = ask(&one);
        assert!(!was_asked(&again), "{again}");
        assert_eq!(again.kind(), ErrorKind::Unavailable);
        assert!(was_asked(&ask(&other)));
    }
}
