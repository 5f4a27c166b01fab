//! The engine: what callers see.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;

use crate::choice::choose;
use crate::counters::PeerCounters;
use crate::descriptors::reserve_descriptors;
use crate::grant::{Grant, GrantRequest};
use crate::identity::{EngineId, PublicationId, RegionId};
use crate::link::{Entry, Link};
use crate::memory::{Publication, PublicationState, Region};
use crate::notification::{MAX_NOTIFICATION_BYTES, Notification};
use crate::peer::{Peer, PeerState};
use crate::settings::EngineSettings;
use crate::shared::{Responder, Shared, shut_down};
use crate::tcp::{Destination, Tcp};
use crate::transfer::{Transfer, TransferEntry, TransferKind, TransferState};
use crate::wire::Kind;

/// Entries of one transfer.
const MOST_ENTRIES: usize = 1 << 20;

/// Moves bytes between this process's memory and peers'.
pub struct TransferEngine {
    shared: Arc<Shared>,
    tcp: Tcp,
    peers: Mutex<HashMap<String, Peer>>,
    threads: Mutex<Vec<ThreadHandle>>,
    stopped: AtomicBool,
}

impl TransferEngine {
    /// Starts an engine.
    ///
    /// Fails with `InvalidInput` for settings that make no sense, with `PermissionDenied` for listening on an address that
    /// isn't a loopback one without a token and TLS, and as listening does.
    pub fn start(settings: EngineSettings, runtime: Runtime) -> Result<Arc<Self>> {
        let shared = Shared::new(settings, runtime)?;
        let (tcp, mut threads) = Tcp::start(&shared)?;
        reserve_descriptors(&shared.runtime);
        if let Some(host) = shared.shm.clone() {
            let all = shared.clone();
            let body = Box::new(move || crate::shm::run_host(&host, &all));
            threads.push(
                shared
                    .runtime
                    .spawner
                    .spawn("transfer-shm", body)
                    .inspect_err(|_| tcp.stop())?,
            );
        }
        Ok(Arc::new(Self {
            shared,
            tcp,
            peers: Mutex::default(),
            threads: Mutex::new(threads),
            stopped: AtomicBool::new(false),
        }))
    }

    /// Where peers reach it. `None` if it doesn't listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.address()
    }

    /// Its name: new at each start, so that what was granted to or by it before is worthless.
    pub fn identity(&self) -> EngineId {
        self.shared.identity.id()
    }

    /// Zeroed memory of the engine's own, registered; peers of the same host can share it. It's freed with the last handle
    /// after it's unregistered. Fails with `NoSpace`.
    pub fn allocate(&self, length: usize) -> Result<Region> {
        self.running()?;
        self.shared.table.allocate(length).map(Region::new)
    }

    /// Registers memory of the caller's. Fails with `InvalidInput` for none.
    ///
    /// # Safety
    /// The bytes must stay valid for reads and writes until [`TransferEngine::unregister`] has returned `Ok`, and nothing
    /// may hold references to bytes that a transfer or a peer writes meanwhile, nor to bytes that it reads while they
    /// change.
    #[allow(unsafe_code)]
    pub unsafe fn register(&self, address: *mut u8, length: usize) -> Result<Region> {
        self.running()?;
        self.shared.table.register(address, length).map(Region::new)
    }

    /// Ends a registration. From now on no operation begins on it, and those under way are ended with `Fenced`; when this
    /// returns `Ok`, nothing touches the memory any more.
    ///
    /// Fails with `Busy` when something still does at the deadline: the memory must not be reused, and this may be called
    /// again. Fails with `NotFound` for a region that isn't registered.
    pub fn unregister(&self, region: RegionId, deadline: Instant) -> Result<()> {
        let state = self.shared.table.region(region)?;
        state.usage.close();
        for publication in self.shared.table.publications_of(region) {
            self.close(&publication);
        }
        self.sweep(|| state.usage.count() == 0);
        if !state.usage.wait_left(deadline) {
            return Err(Error::new(ErrorKind::Busy, "something still touches the region")
                .with("region", region.value()));
        }
        for publication in self.shared.table.publications_of(region) {
            self.wait_for_sharers(&publication, deadline)?;
        }
        self.shared.forget(region)?;
        self.shared.table.remove_region(region);
        Ok(())
    }

    /// Publishes a range of a region, under an epoch of its own, so that rights on it can be granted.
    ///
    /// Fails with `NotFound` for an unknown region, with `Fenced` for one that is being unregistered, and with
    /// `InvalidInput` for a range that is empty or outside.
    pub fn publish(&self, region: RegionId, offset: u64, length: u64) -> Result<Publication> {
        self.running()?;
        let state = self.shared.table.publish(region, offset, length)?;
        Ok(Publication::of(&state))
    }

    /// Ends a publication. Operations under way are ended, and late ones fail, with `Fenced`; when this returns `Ok`,
    /// nothing touches the range through it any more, and it may be reused. One that has ended already is fine.
    ///
    /// Fails with `Busy` when something still touches the range at the deadline; this may be called again. Fails with
    /// `NotFound` for a number that was never given out.
    pub fn release(&self, publication: PublicationId, deadline: Instant) -> Result<()> {
        let Some(state) = self.shared.table.publication(publication) else {
            return if self.shared.table.knew(publication.value()) {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::NotFound, "no such publication"))
            };
        };
        self.close(&state);
        self.sweep(|| state.usage.count() == 0);
        if !state.usage.wait_left(deadline) {
            return Err(Error::new(ErrorKind::Busy, "something still touches the range")
                .with("publication", publication.value()));
        }
        self.wait_for_sharers(&state, deadline)?;
        self.shared.table.remove_publication(publication);
        Ok(())
    }

    /// No operation begins on a publication any more.
    fn close(&self, publication: &PublicationState) {
        publication.usage.close();
        if let Some(host) = &self.shared.shm {
            host.shut(publication);
        }
    }

    fn wait_for_sharers(&self, publication: &PublicationState, deadline: Instant) -> Result<()> {
        match &self.shared.shm {
            Some(host) => host.wait_left(publication, deadline),
            None => Ok(()),
        }
    }

    /// Ends what touches closed memory, unless nothing does.
    fn sweep(&self, is_free: impl Fn() -> bool) {
        if !is_free() {
            self.tcp.sweep();
            self.shared.sweep();
        }
    }

    /// Grants a right on a published range to one peer.
    ///
    /// Fails with `Fenced` for a publication that has ended, with `NotFound` for one that never was, and with
    /// `InvalidInput` for a range that is empty or outside.
    pub fn grant(&self, request: GrantRequest) -> Result<Grant> {
        self.shared.authority.issue(request)
    }

    /// What a grant of this engine's is worth to its peer over shared memory: bytes to send along with the grant, for
    /// [`Peer::foretold`]. `None` where they share none.
    pub fn foretell(&self, grant: &Grant) -> Option<Vec<u8>> {
        let host = self.shared.shm.as_ref()?;
        host.foretell(&self.shared, grant.peer(), grant)
    }

    /// Takes a grant of this engine's back: no operation begins with it any more.
    pub fn revoke(&self, grant: &Grant) {
        self.shared.authority.revoke(grant);
        if let Some(host) = &self.shared.shm
            && let Some(publication) = self.shared.table.publication(grant.publication())
        {
            host.disturb(&publication);
        }
    }

    /// Whether peers may have grants on any registered region by its address ([`Peer::grant_by_address`]). Off at first.
    pub fn allow_registered(&self, allowed: bool) {
        self.shared.registered_allowed.store(allowed, Ordering::Relaxed);
    }

    /// Sets who answers what peers ask ([`Peer::ask`]); `None` for nobody.
    pub fn set_responder(&self, responder: Option<Responder>) {
        *self.shared.responder.write() = responder;
    }

    /// Opens a peer by its `host:port`, or returns the one that is open already.
    ///
    /// Fails with `Unavailable` or `TimedOut` when nobody answers, with `PermissionDenied` when either side refuses the
    /// other (token, certificate, an address that needs them), and with `Unsupported` when no configured transport works.
    pub fn open_peer(&self, address: &str, deadline: Instant) -> Result<Peer> {
        self.running()?;
        let known = self.peers.lock().get(address).cloned();
        if let Some(peer) = known.filter(Peer::is_alive) {
            return Ok(peer);
        }
        let destination = Destination::resolve(address, &self.shared)?;
        let control = self.tcp.open(&destination, deadline)?;
        let data = choose(&self.shared, &control, deadline)?;
        let peer = Peer {
            state: Arc::new(PeerState {
                address: address.to_owned(),
                control,
                data,
            }),
        };
        let mut peers = self.peers.lock();
        peers.retain(|_, peer| peer.is_alive());
        // somebody else may have opened it meanwhile; the first stays
        match peers.get(address) {
            Some(other) => Ok(other.clone()),
            None => Ok(peers.entry(address.to_owned()).or_insert(peer).clone()),
        }
    }

    /// Closes the connections to a peer. What is under way fails with `Unavailable`.
    pub fn close_peer(&self, peer: &Peer) {
        self.peers
            .lock()
            .retain(|_, other| !Arc::ptr_eq(&other.state, &peer.state));
        peer.state.data.close();
        peer.state.control.close();
    }

    /// Begins to move bytes between this process's memory and a peer's. Entries may be moved in any order, and at once.
    ///
    /// Fails with `InvalidInput` for entries that are empty or outside their region or grant, with `NotFound` for an
    /// unknown region, with `PermissionDenied` for a grant that isn't the peer's, with `Busy` when too much is under way
    /// to the peer, and with `Unavailable` when the peer is gone. What goes wrong later, the transfer tells.
    pub fn submit(
        &self,
        peer: &Peer,
        kind: TransferKind,
        entries: Vec<TransferEntry>,
        deadline: Instant,
    ) -> Result<Transfer> {
        self.begin(peer, kind, &entries, deadline, TransferState::new)
    }

    /// The same for a caller who wants to know the bytes' checksum, which some transports compute on the way: see
    /// [`Transfer::checksum`].
    pub fn submit_summed(
        &self,
        peer: &Peer,
        kind: TransferKind,
        entries: &[TransferEntry],
        deadline: Instant,
    ) -> Result<Transfer> {
        self.begin(peer, kind, entries, deadline, TransferState::summed)
    }

    fn begin(
        &self,
        peer: &Peer,
        kind: TransferKind,
        entries: &[TransferEntry],
        deadline: Instant,
        state: fn(usize, Instant) -> Arc<TransferState>,
    ) -> Result<Transfer> {
        self.running()?;
        if entries.len() > MOST_ENTRIES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("{} entries at once", entries.len()),
            ));
        }
        let checked = entries
            .iter()
            .map(|entry| self.check(peer, entry))
            .collect::<Result<Vec<_>>>()?;
        let operations = checked.iter().map(Entry::operations).sum();
        let state = state(operations, deadline);
        let link = peer.state.data.clone();
        if operations > 0 {
            link.submit(&state, kind, &checked)?;
        }
        Ok(Transfer::new(state, link, self.shared.runtime.clock.clone()))
    }

    fn check(&self, peer: &Peer, entry: &TransferEntry) -> Result<Entry> {
        let region = self.shared.table.region(entry.local)?;
        if entry.length == 0 || !region.contains(entry.local_offset, entry.length) {
            return Err(Error::invalid(format!(
                "bytes {}+{} are outside a region of {} bytes",
                entry.local_offset,
                entry.length,
                region.length()
            )));
        }
        // the peer checks all of this again
        let end = entry.remote_offset.checked_add(entry.length);
        if end.is_none_or(|end| end > entry.grant.length()) {
            return Err(Error::invalid(format!(
                "bytes {}+{} are outside a grant on {} bytes",
                entry.remote_offset,
                entry.length,
                entry.grant.length()
            )));
        }
        if entry.grant.server() != peer.id() {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "the grant is another engine's than the peer's",
            ));
        }
        Ok(Entry {
            region,
            local_offset: entry.local_offset,
            grant: entry.grant,
            remote_offset: entry.remote_offset,
            length: entry.length,
        })
    }

    /// Sends a message, and returns when the peer has it.
    ///
    /// Fails with `TooLarge` past 64 KiB, with `Busy` when the peer has too many that nobody took, and with `Unavailable`
    /// or `TimedOut` when it doesn't answer.
    pub fn notify(&self, peer: &Peer, payload: &[u8], deadline: Instant) -> Result<()> {
        self.running()?;
        if payload.len() > MAX_NOTIFICATION_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a notification of {} bytes", payload.len()),
            ));
        }
        peer.state
            .control
            .ask(Kind::Notify, payload.to_vec(), deadline)
            .map(drop)
    }

    /// Takes up to `most` messages from peers, oldest first.
    pub fn take_notifications(&self, most: usize) -> Vec<Notification> {
        self.shared.inbox.take(most)
    }

    /// What was moved, by peer and transport.
    pub fn counters(&self) -> Vec<PeerCounters> {
        self.shared.ledger.rows()
    }

    fn running(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(shut_down());
        }
        Ok(())
    }

    /// Ends all connections and threads. What is under way fails. Idempotent; done when it's dropped, too.
    pub fn shutdown(&self) {
        if self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        let peers: Vec<Peer> = self.peers.lock().drain().map(|(_, peer)| peer).collect();
        for peer in peers {
            peer.state.data.close();
            peer.state.control.close();
        }
        if let Some(host) = &self.shared.shm {
            host.stop();
        }
        self.shared.stop_devices();
        self.tcp.stop();
        for thread in self.threads.lock().drain(..) {
            thread.join();
        }
    }
}

impl Drop for TransferEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
