//! The ranks of producers: open peers, and what they told of themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
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

/// All that are known. An engine's description never changes, and another start is another engine.
#[derive(Default)]
pub(crate) struct Producers {
    descriptions: Mutex<HashMap<EngineId, Arc<Description<Shape>>>>,
}

impl Producers {
    /// Opens a rank and asks what it has, if that isn't known.
    pub fn open(&self, engine: &TransferEngine, address: &str, deadline: Instant) -> Result<Heard<Rank>> {
        let peer = engine.open_peer(address, deadline)?;
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
