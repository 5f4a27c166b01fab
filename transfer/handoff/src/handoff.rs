//! One rank's part in hand-offs.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::{Region, Side, TransferEngine, TransportKind};
use parking_lot::Mutex;

use crate::consumer::{Consumer, Pulled, RemoteRequest};
use crate::geometry::Description;
use crate::memory::Memory;
use crate::producer::{Producer, Released};
use crate::settings::HandoffSettings;
use crate::statistics::Statistics;

/// How long memory is waited for after the engine has stopped.
const AFTER_THE_END: Duration = Duration::from_secs(1);

/// Holds blocks of a rank for others and pulls blocks of others. Dropping it closes it.
pub struct Handoff {
    engine: Arc<TransferEngine>,
    runtime: Runtime,
    memory: Arc<OnceLock<Memory>>,
    /// Serializes descriptions.
    describing: Mutex<()>,
    own: Mutex<Vec<Region>>,
    producer: Arc<Producer>,
    consumer: Arc<Consumer>,
    closed: AtomicBool,
}

impl Handoff {
    /// Starts one that serves consumers and can pull.
    ///
    /// Fails with `InvalidInput` for settings that make no sense, and as [`TransferEngine::start`] does.
    pub fn start(settings: HandoffSettings, runtime: Runtime) -> Result<Self> {
        settings.check()?;
        let engine = TransferEngine::start(settings.engine.clone(), runtime.clone())?;
        let memory = Arc::new(OnceLock::new());
        let producer = Producer::start(&engine, memory.clone(), settings.verify, &runtime)?;
        let consumer = Consumer::start(&settings, &engine, memory.clone(), &runtime).inspect_err(|_| {
            producer.stop(runtime.deadline(AFTER_THE_END));
        })?;
        Ok(Self {
            engine,
            runtime,
            memory,
            describing: Mutex::new(()),
            own: Mutex::default(),
            producer,
            consumer,
            closed: AtomicBool::new(false),
        })
    }

    /// Where consumers reach it.
    pub fn address(&self) -> Option<SocketAddr> {
        self.engine.address()
    }

    /// Zeroed memory of its own, which consumers of the same host can share; for pieces that are described later. It lives
    /// until the hand-off is closed and the region dropped. Fails with `NoSpace`.
    pub fn allocate(&self, length: usize) -> Result<Region> {
        let region = self.engine.allocate(length)?;
        self.own.lock().push(region.clone());
        Ok(region)
    }

    /// Says what the rank's memory looks like; once, before anything is held or pulled.
    ///
    /// Fails with `InvalidInput`, naming what makes no sense, and with `AlreadyExists` the second time.
    ///
    /// # Safety
    /// All pieces must stay valid until [`Handoff::close`] has returned `Ok`. Nothing may write to blocks while they are held,
    /// and nothing may read or write blocks while they are pulled.
    #[allow(unsafe_code)]
    pub unsafe fn describe(&self, description: &Description) -> Result<()> {
        let _one = self.describing.lock();
        self.running()?;
        if self.memory.get().is_some() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "the memory was described already",
            ));
        }
        // SAFETY: the caller vouches for the pieces, and `close` unregisters them.
        let memory = unsafe { Memory::register(&self.engine, &self.own.lock(), description) }?;
        let _ = self.memory.set(memory);
        Ok(())
    }

    /// Lets consumers pull blocks of a request, until all their ranks are done, `lease` has passed, or it's dropped.
    ///
    /// Fails with `InvalidInput` for blocks that aren't there, with `AlreadyExists` for a request that is held or not yet
    /// released, and with `Busy` when too many are.
    pub fn hold(&self, request: &str, blocks: &[u32], lease: Duration) -> Result<()> {
        self.running()?;
        self.producer.hold(request, blocks, lease)
    }

    /// Lets consumers follow a request ([`Handoff::follow`]) that is computed from now on: its blocks are told by
    /// [`Handoff::extend`], and pulled as [`Handoff::advance`] tells that they are good. The lease is that of a hold, and
    /// begins anew with [`Handoff::complete`]. Fails as [`Handoff::hold`] does.
    pub fn announce(&self, request: &str, lease: Duration) -> Result<()> {
        self.running()?;
        self.producer.announce(request, lease)
    }

    /// Where further blocks of an announced request lie, in the order of the prompt. Whether it's held still: consumers may be
    /// done with it, or its lease may have ended. Fails with `InvalidInput` for blocks that aren't there.
    pub fn extend(&self, request: &str, blocks: &[u32]) -> Result<bool> {
        self.running()?;
        self.producer.extend(request, blocks)
    }

    /// The first `blocks` blocks of an announced request are good in a layer, counted in the description, or in all layers.
    /// From now on nobody may write to them there, until the request is released.
    pub fn advance(&self, request: &str, layer: Option<usize>, blocks: u32) {
        self.producer.advance(request, layer, blocks);
    }

    /// All blocks of an announced request are good. Whether it's held still.
    pub fn complete(&self, request: &str, lease: Duration) -> bool {
        self.producer.complete(request, lease)
    }

    /// Ends holds as [`Handoff::drop_request`] does, and waits until nobody reads their blocks: whoever pulls them from then on
    /// is told that they are gone, and uses nothing of them.
    ///
    /// Fails with `Busy` when somebody may still read at the deadline; what they read then, they don't use either, as it isn't
    /// vouched for by a checksum.
    pub fn withdraw(&self, requests: &[String], deadline: Instant) -> Result<()> {
        self.producer.withdraw(requests, deadline)
    }

    /// Ends a hold. One that ended already, or that never was, is fine; consumers hear that it's gone.
    pub fn drop_request(&self, request: &str) {
        self.producer.drop_request(request);
    }

    /// Requests whose blocks nobody reads any more, so that they may be reused; each once.
    pub fn take_released(&self) -> Vec<Released> {
        self.producer.take_released()
    }

    /// The same, once there are any, or none at the deadline.
    pub fn wait_released(&self, deadline: Instant) -> Vec<Released> {
        self.producer.wait_released(deadline)
    }

    /// Begins to pull blocks of another engine's request: those from `first_block` on, into `blocks` of this rank. How it ends,
    /// [`Handoff::take_pulled`] tells, soon after `timeout` at the latest.
    ///
    /// Fails with `InvalidInput`, naming what makes no sense, with `AlreadyExists` for a request that is being pulled, and
    /// with `Busy` when too many are.
    pub fn pull(
        &self,
        request: &str,
        remote: RemoteRequest,
        blocks: Vec<u32>,
        first_block: u32,
        timeout: Duration,
    ) -> Result<()> {
        self.running()?;
        self.consumer.pull(request, remote, blocks, first_block, timeout)
    }

    /// The same for a request that the producer computes still ([`Handoff::announce`]), or will: pulls what is good of it as
    /// long as `timeout` allows, and is over when all of it came. Checksums are compared whatever the settings say.
    pub fn follow(
        &self,
        request: &str,
        remote: RemoteRequest,
        blocks: Vec<u32>,
        first_block: u32,
        timeout: Duration,
    ) -> Result<()> {
        self.running()?;
        self.consumer
            .follow(request, remote, blocks, first_block, timeout)
    }

    /// Ends a pull. It's over, as [`Handoff::take_pulled`] tells, when nothing writes to its blocks any more.
    pub fn cancel(&self, request: &str) {
        self.consumer.cancel(request);
    }

    /// Pulls that are over; each once.
    pub fn take_pulled(&self) -> Vec<Pulled> {
        self.consumer.take_pulled()
    }

    /// The same, once there are any, or none at the deadline.
    pub fn wait_pulled(&self, deadline: Instant) -> Vec<Pulled> {
        self.consumer.wait_pulled(deadline)
    }

    /// Tells all ranks of a producer that this one wants nothing of a request, in the background, until they hear it or
    /// `timeout` has passed. Fails as [`Handoff::pull`] does.
    pub fn release_remote(&self, remote: RemoteRequest, timeout: Duration) -> Result<()> {
        self.running()?;
        self.consumer.release_remote(remote, timeout)
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        self.producer.add_to(&mut statistics);
        self.consumer.add_to(&mut statistics);
        for row in self.engine.counters() {
            let count = match (row.side, row.transport) {
                (Side::Requested, TransportKind::Tcp) => &mut statistics.pulled_bytes_tcp,
                (Side::Requested, TransportKind::Shm) => &mut statistics.pulled_bytes_shm,
                (Side::Requested, TransportKind::Rdma) => &mut statistics.pulled_bytes_rdma,
                (Side::Requested, TransportKind::Ascend) => &mut statistics.pulled_bytes_ascend,
                (Side::Served, TransportKind::Tcp) => &mut statistics.served_bytes_tcp,
                (Side::Served, TransportKind::Ascend) => &mut statistics.served_bytes_ascend,
                (Side::Served, TransportKind::Shm | TransportKind::Rdma) => continue,
            };
            *count += row.read_bytes;
        }
        statistics
    }

    /// Ends all pulls and holds, and lets go of the memory. Idempotent.
    ///
    /// Fails with `Busy` when something still touches the memory some time after the deadline; this may be called again.
    pub fn close(&self, deadline: Instant) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.consumer.stop();
        self.producer.stop(deadline);
        let _one = self.describing.lock();
        let free = match self.memory.get() {
            Some(memory) => memory.unregister(&self.engine, deadline),
            None => Ok(()),
        };
        self.engine.shutdown();
        // what was under way has ended with the connections
        match (free, self.memory.get()) {
            (Err(_), Some(memory)) => memory.unregister(&self.engine, self.runtime.deadline(AFTER_THE_END)),
            (free, _) => free,
        }
    }

    fn running(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Cancelled, "the hand-off is closed"));
        }
        Ok(())
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        if let Err(error) = self.close(self.runtime.deadline(AFTER_THE_END)) {
            tracing::error!(%error, "a hand-off's memory is still in use");
        }
    }
}
