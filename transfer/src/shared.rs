//! What all parts of an engine share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::RwLock;

use crate::ascend::AscendHost;
use crate::authority::Authority;
use crate::counters::Ledger;
use crate::handshake::Identity;
use crate::identity::{EngineId, RegionId};
use crate::memory::Table;
use crate::notification::Inbox;
use crate::rdma::RdmaHost;
use crate::settings::{EngineSettings, TransportKind};
use crate::shm::ShmHost;
use crate::tcp::Tls;
use crate::wire::MAX_BODY_BYTES;

/// Answers questions of peers. Called on a thread that serves sockets, so it must not wait.
pub type Responder = Arc<dyn Fn(EngineId, &[u8]) -> Result<Vec<u8>> + Send + Sync>;

/// The parts of an engine that know nothing of sockets.
pub(crate) struct Shared {
    pub settings: EngineSettings,
    pub runtime: Runtime,
    pub identity: Arc<Identity>,
    pub table: Arc<Table>,
    pub authority: Authority,
    pub inbox: Inbox,
    pub ledger: Arc<Ledger>,
    /// Whether peers may have grants on registered memory by its address.
    pub registered_allowed: AtomicBool,
    /// Who answers what peers ask.
    pub responder: RwLock<Option<Responder>>,
    pub tls: Option<Tls>,
    /// What shares memory with peers of the same host; only where the engine listens.
    pub shm: Option<Arc<ShmHost>>,
    /// What serves peers over RDMA, and asks them.
    pub rdma: RdmaHost,
    /// The plugged-in transport, and what works for it.
    pub ascend: AscendHost,
}

impl Shared {
    pub fn new(settings: EngineSettings, runtime: Runtime) -> Result<Arc<Self>> {
        settings.check()?;
        let identity = Arc::new(Identity::new(settings.token.as_ref(), settings.peer_timeout)?);
        let table = Arc::new(Table::default());
        let shares = settings.listen.is_some() && settings.order().contains(&TransportKind::Shm);
        let shm = if shares {
            host(&settings, &identity, &runtime)?
        } else {
            None
        };
        Ok(Arc::new(Self {
            shm,
            rdma: RdmaHost::default(),
            ascend: AscendHost::default(),
            authority: Authority::new(identity.clone(), table.clone(), runtime.clone()),
            inbox: Inbox::new(settings.max_notifications),
            ledger: Arc::default(),
            registered_allowed: AtomicBool::new(false),
            responder: RwLock::default(),
            tls: settings.tls.as_ref().map(Tls::load).transpose()?,
            settings,
            runtime,
            identity,
            table,
        }))
    }

    /// Ends what devices do to memory that is being closed.
    pub fn sweep(&self) {
        self.rdma.sweep();
        self.ascend.sweep();
    }

    /// Devices forget a region that nothing touches any more. Fails with `Busy` where one doesn't.
    pub fn forget(&self, region: RegionId) -> Result<()> {
        self.rdma.forget(region);
        self.ascend.forget(region)
    }

    /// Ends all that devices do.
    pub fn stop_devices(&self) {
        self.rdma.stop();
        self.ascend.stop();
    }

    /// The answer to a peer's question.
    pub fn respond(&self, peer: EngineId, question: &[u8]) -> Result<Vec<u8>> {
        let responder = self.responder.read().clone();
        let responder = responder
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this engine answers no questions"))?;
        let answer = responder(peer, question)?;
        if answer.len() > MAX_BODY_BYTES as usize {
            let message = format!("an answer of {} bytes", answer.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(answer)
    }
}

/// What can't be had is done without, unless nothing else is configured.
fn host(settings: &EngineSettings, identity: &Identity, runtime: &Runtime) -> Result<Option<Arc<ShmHost>>> {
    match ShmHost::new(identity, runtime) {
        Ok(host) => Ok(Some(host)),
        Err(error) if settings.order().len() > 1 => {
            tracing::warn!(%error, "memory can't be shared with other processes");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The error of an engine that was shut down.
pub(crate) fn shut_down() -> Error {
    Error::new(ErrorKind::Cancelled, "the engine was shut down")
}
