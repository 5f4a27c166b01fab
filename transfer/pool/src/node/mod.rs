//! A storage node: memory lent to the pool, and the only one that decides who touches it.

mod ledger;
mod mover;
mod record;
mod segment;
mod serve;
mod upkeep;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_master::{Drained, Lender, NodeId};
use kvstored_transfer::TransferEngine;
use parking_lot::Mutex;

pub(crate) use segment::Segment;

use crate::directory::Directory;
use crate::settings::NodeSettings;
use mover::Mover;
use upkeep::Upkeep;

/// A node's numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatistics {
    /// Bytes lent.
    pub segment_bytes: u64,
    /// Bytes of ranges that are given to puts or hold objects.
    pub used_bytes: u64,
    /// Ranges.
    pub ranges: u64,
    /// Ranges whose release waits for a transfer under way.
    pub releasing: u64,
    /// Requests refused because the put was over.
    pub fenced: u64,
    /// The fencing epoch of the master that the node obeys; 0 before the first.
    pub master_epoch: u64,
}

/// A node that lends memory. Dropping it takes the memory back as [`StorageNode::shutdown`] does.
pub struct StorageNode {
    segment: Arc<Segment>,
    engine: Arc<TransferEngine>,
    lender: Lender,
    upkeep: Arc<Upkeep>,
    mover: Arc<Mover>,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl StorageNode {
    /// Allocates the segment, answers peers' questions over the engine (whose one responder it becomes), and mounts the
    /// segment at the master as soon as one answers: a node starts without a master, and outlives it.
    ///
    /// Fails with `InvalidInput` for a segment of no bytes or an engine that doesn't listen, and as allocating does.
    pub fn start(
        settings: NodeSettings,
        engine: Arc<TransferEngine>,
        directory: Arc<dyn Directory>,
        runtime: Runtime,
    ) -> Result<Arc<Self>> {
        if settings.segment_bytes == 0 {
            return Err(Error::invalid("a node that lends no bytes"));
        }
        let address = engine
            .address()
            .ok_or_else(|| Error::invalid("a node's transfer engine must listen"))?;
        let node = identity(&runtime);
        let segment = Arc::new(Segment::new(node, &settings, engine.clone(), runtime.clone())?);
        // the engine must not keep alive what keeps it alive
        let answering = Arc::downgrade(&segment);
        engine.set_responder(Some(Arc::new(move |peer, question: &[u8]| {
            let segment = answering
                .upgrade()
                .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the node has stopped"))?;
            segment.respond(peer, question)
        })));
        let reached_at = settings.advertise.clone().unwrap_or_else(|| address.to_string());
        let lender = Lender {
            node,
            name: settings.name.clone(),
            control: reached_at.clone(),
            engine: reached_at,
            segment_bytes: settings.segment_bytes,
            obeyed_epoch: 0,
            highest_put: 0,
            draining: None,
        };
        let mover = Arc::new(Mover::new(
            node,
            segment.clone(),
            engine.clone(),
            directory.clone(),
            runtime.clone(),
        )?);
        let upkeep = Arc::new(Upkeep::new(
            settings,
            segment.clone(),
            directory,
            lender.clone(),
            mover.clone(),
            runtime.clone(),
        ));
        let started = Arc::new(Self {
            segment,
            engine,
            lender,
            upkeep: upkeep.clone(),
            mover: mover.clone(),
            threads: Mutex::default(),
        });
        // a thread that can't start has those stopped that did
        let spawner = &runtime.spawner;
        let keeper = spawner.spawn("pool-node", Box::new(move || upkeep.run()))?;
        started.threads.lock().push(keeper);
        let mover = spawner.spawn("pool-mover", Box::new(move || mover.run()))?;
        started.threads.lock().push(mover);
        Ok(started)
    }

    /// Its identity.
    pub fn id(&self) -> NodeId {
        self.lender.node
    }

    /// How it announced itself.
    pub fn lender(&self) -> &Lender {
        &self.lender
    }

    /// Its numbers.
    pub fn statistics(&self) -> NodeStatistics {
        self.segment.statistics()
    }

    /// Waits until a master has taken the node, or fails with `TimedOut`.
    pub fn wait_mounted(&self, deadline: Instant) -> Result<()> {
        self.upkeep.wait_mounted(deadline)
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Has what this node holds copied to other nodes, as far as there is room and until the deadline, and takes nothing
    /// more meanwhile. Returns what is left. Fails as asking the master does.
    pub fn drain(&self, deadline: Instant) -> Result<Drained> {
        self.mover.drain(deadline)
    }

    /// Tells the master that the memory goes, and stops. Idempotent.
    pub fn shutdown(&self) {
        self.mover.stop();
        self.upkeep.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            thread.join();
        }
        self.engine.set_responder(None);
        self.segment.close();
    }
}

impl Drop for StorageNode {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// How long releasing waits for a transfer under way before it's tried again later.
pub(crate) const RELEASE_PATIENCE: Duration = Duration::from_millis(20);

fn identity(runtime: &Runtime) -> NodeId {
    let (high, low) = (runtime.random.next_u64(), runtime.random.next_u64());
    let mut id = [0; 16];
    let (front, back) = id.split_at_mut(8);
    front.copy_from_slice(&high.to_le_bytes());
    back.copy_from_slice(&low.to_le_bytes());
    id
}
