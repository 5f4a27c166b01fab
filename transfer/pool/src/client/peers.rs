//! The nodes that a client talks to, and which of them it passes over for the moment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_master::{Location, NodeId};
use kvstored_transfer::{Grant, Peer, TransferEngine};
use parking_lot::{Mutex, RwLock};

use crate::wire::{Answer, Answers, Changes, Item, Listing, Request, Since, Verb};

/// Nodes that are remembered; past that all are forgotten and met again.
const MOST_NODES: usize = 4096;

/// One storage node, as its client sees it.
pub(crate) struct Node {
    id: NodeId,
    engine: Arc<TransferEngine>,
    engine_address: Arc<str>,
    shunned_until: Mutex<Option<Instant>>,
    runtime: Runtime,
    shun: Duration,
}

impl Node {
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The node's engine; connects where needed.
    pub fn peer(&self, deadline: Instant) -> Result<Peer> {
        self.engine.open_peer(&self.engine_address, deadline)
    }

    /// Asks the node about a batch, in as many questions as that takes.
    pub fn ask(&self, verb: Verb, items: Vec<Item>, deadline: Instant) -> Result<Vec<Result<Answer>>> {
        let mut left: VecDeque<Item> = items.into();
        let mut answers = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let part = Request::next_part(&mut left);
            let answer = self.call(verb.code(), &part.encode()?, deadline)?;
            answers.extend(Answers::decode(&answer, part.items.len())?.items);
        }
        Ok(answers)
    }

    /// Which objects the node has taken and released since.
    pub fn changes(&self, since: u64, deadline: Instant) -> Result<Changes> {
        let question = Since { position: since };
        Changes::decode(&self.call(Since::CHANGES, &question.encode(), deadline)?)
    }

    /// What the node holds behind that offset.
    pub fn list(&self, after: u64, deadline: Instant) -> Result<Listing> {
        let question = Since { position: after };
        Listing::decode(&self.call(Since::LISTING, &question.encode(), deadline)?)
    }

    fn call(&self, code: u8, body: &[u8], deadline: Instant) -> Result<Vec<u8>> {
        let mut question = Vec::with_capacity(1 + body.len());
        question.push(code);
        question.extend_from_slice(body);
        self.peer(deadline)?.ask(&question, deadline)
    }

    /// Whether the node failed just now.
    pub fn is_shunned(&self, now: Instant) -> bool {
        self.shunned_until.lock().is_some_and(|until| now < until)
    }

    /// Draws conclusions from a failure: a node that is gone or doesn't answer is passed over for a while, so that not
    /// everyone waits for it in turn.
    pub fn failed(&self, error: &Error) {
        if matches!(
            error.kind(),
            ErrorKind::TimedOut | ErrorKind::Unavailable | ErrorKind::Io
        ) {
            *self.shunned_until.lock() = Some(self.runtime.deadline(self.shun));
        }
    }

    /// The node works.
    pub fn worked(&self) {
        *self.shunned_until.lock() = None;
    }
}

/// All nodes that were met.
pub(crate) struct Nodes {
    engine: Arc<TransferEngine>,
    runtime: Runtime,
    shun: Duration,
    known: RwLock<HashMap<NodeId, Arc<Node>>>,
}

impl Nodes {
    pub fn new(engine: Arc<TransferEngine>, runtime: Runtime, shun: Duration) -> Self {
        Self {
            engine,
            runtime,
            shun,
            known: RwLock::default(),
        }
    }

    /// The node at that location.
    pub fn get(&self, location: &Location) -> Arc<Node> {
        if let Some(node) = self.known.read().get(&location.node) {
            return node.clone();
        }
        let mut known = self.known.write();
        if known.len() >= MOST_NODES {
            known.clear();
        }
        let make = || {
            Arc::new(Node {
                id: location.node,
                engine: self.engine.clone(),
                engine_address: location.engine.clone(),
                shunned_until: Mutex::default(),
                runtime: self.runtime.clone(),
                shun: self.shun,
            })
        };
        known.entry(location.node).or_insert_with(make).clone()
    }

    /// Nodes that are passed over at the moment.
    pub fn shunned(&self) -> Vec<NodeId> {
        let now = self.runtime.clock.now();
        let known = self.known.read();
        known
            .values()
            .filter(|node| node.is_shunned(now))
            .map(|node| node.id)
            .collect()
    }
}

/// Reads a grant of the peer's out of an answer. Fails with `Corrupt`.
pub(crate) fn grant_of(peer: &Peer, answer: &Answer) -> Result<Grant> {
    let grant = Grant::decode(&answer.grant)?;
    if !answer.worth.is_empty() {
        peer.foretold(&grant, &answer.worth);
    }
    Ok(grant)
}
