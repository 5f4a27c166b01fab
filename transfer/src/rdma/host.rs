//! The serving side: a queue pair for each connection that asks for one, and a check of every request on it.

use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_verbs::{
    Admission, Direction, LINK_ADDRESS_BYTES, LinkAddress, Request, RequestLink, Service, Slice, Unconnected,
};
use parking_lot::Mutex;

use super::port::Port;
use crate::counters::{Side, Tally};
use crate::grant::{Grant, GrantKey};
use crate::identity::{EngineId, RegionId};
use crate::memory::Span;
use crate::settings::{EngineSettings, TransportKind};
use crate::shared::Shared;

/// The RDMA port of an engine, opened when it's first needed.
#[derive(Default)]
pub(crate) struct RdmaHost {
    port: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Unopened,
    Open(Arc<Port>),
    Stopped,
}

impl RdmaHost {
    /// The port. Fails with `Unsupported` where the settings don't allow it, and with `Unavailable` without a device.
    pub(super) fn port(&self, settings: &EngineSettings, runtime: &Runtime) -> Result<Arc<Port>> {
        if !settings.order().contains(&TransportKind::Rdma) {
            return Err(Error::new(ErrorKind::Unsupported, "RDMA isn't configured"));
        }
        if settings.transports.is_empty() && settings.tls.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "RDMA isn't encrypted; with TLS it must be named in the settings",
            ));
        }
        let mut state = self.port.lock();
        match &*state {
            State::Open(port) => Ok(port.clone()),
            State::Stopped => Err(crate::shared::shut_down()),
            State::Unopened => {
                let port = Port::open(settings, runtime)?;
                *state = State::Open(port.clone());
                Ok(port)
            }
        }
    }

    fn opened(&self) -> Option<Arc<Port>> {
        match &*self.port.lock() {
            State::Open(port) => Some(port.clone()),
            _ => None,
        }
    }

    /// Connects a queue pair with a peer's, for its requests. Returns what the peer must be told, and the link, which must
    /// be held as long as the peer is connected.
    pub fn serve(
        &self,
        shared: &Arc<Shared>,
        peer: EngineId,
        address: &[u8],
    ) -> Result<(Arc<RequestLink>, [u8; LINK_ADDRESS_BYTES])> {
        let address = LinkAddress::decode(address)?;
        let port = self.port(&shared.settings, &shared.runtime)?;
        let unconnected = Unconnected::new(&port.nic, &port.settings, &shared.runtime)?;
        let own = unconnected.address().encode();
        let desk = Desk {
            peer,
            key: shared.authority.key(peer),
            tally: Arc::new(shared.ledger.tally(peer, TransportKind::Rdma, Side::Served)),
            shared: shared.clone(),
            port: port.clone(),
        };
        let link = unconnected.connect(&address, Arc::new(desk), &port.driver)?;
        Ok((link, own))
    }

    /// Ends what touches memory that is being closed.
    pub fn sweep(&self) {
        if let Some(port) = self.opened() {
            port.driver.sweep();
        }
    }

    /// The device forgets a region that nothing touches any more.
    pub fn forget(&self, region: RegionId) {
        if let Some(port) = self.opened() {
            port.forget(region);
        }
    }

    /// Ends all links.
    pub fn stop(&self) {
        let before = std::mem::replace(&mut *self.port.lock(), State::Stopped);
        if let State::Open(port) = before {
            port.stop();
        }
    }
}

/// Where one peer's requests are decided on.
struct Desk {
    shared: Arc<Shared>,
    port: Arc<Port>,
    peer: EngineId,
    key: GrantKey,
    tally: Arc<Tally>,
}

impl Desk {
    fn permitted(&self, request: &Request<'_>) -> Result<Admitted> {
        let writes = request.direction == Direction::Write;
        let grant = Grant::decode(request.grant)?;
        let (offset, length) = (request.offset, request.length);
        let authority = &self.shared.authority;
        let permitted = authority.check(&grant, self.peer, &self.key, writes, offset, length)?;
        // counted in before the device hears of the memory
        let span = permitted.enter()?;
        let region = &permitted.publication.region;
        let slice = self.port.slice(region, permitted.offset_in_region, length)?;
        Ok(Admitted {
            slice,
            span,
            tally: self.tally.clone(),
            writes,
        })
    }
}

impl Service for Desk {
    fn admit(&self, request: &Request<'_>) -> Result<Box<dyn Admission>> {
        match self.permitted(request) {
            Ok(admitted) => Ok(Box::new(admitted)),
            Err(error) => {
                self.tally.refused();
                Err(error)
            }
        }
    }
}

/// Memory that a peer's request may touch. The slice goes first: when nobody is counted in, the device has no use of it.
struct Admitted {
    slice: Slice,
    span: Span,
    tally: Arc<Tally>,
    writes: bool,
}

impl Admission for Admitted {
    fn memory(&self) -> &Slice {
        &self.slice
    }

    fn is_valid(&self) -> bool {
        !self.span.is_closed()
    }

    fn finish(self: Box<Self>, result: Result<()>) {
        for bytes in super::link::pieces(self.slice.length()) {
            match (&result, self.writes) {
                (Err(_), _) => self.tally.failed(),
                (Ok(()), false) => self.tally.read(bytes),
                (Ok(()), true) => self.tally.written(bytes),
            }
        }
    }
}
