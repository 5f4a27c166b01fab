//! What an engine has of the plugged-in transport, opened when it's first needed.

use std::sync::{Arc, Weak};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::desk::Inner;
use super::link::AscendLink;
use super::port::Port;
use super::worker::Worker;
use crate::identity::RegionId;
use crate::settings::TransportKind;
use crate::shared::{Shared, shut_down};

/// Peers that are served at once; each has a thread.
const MOST_DESKS: usize = 64;

#[derive(Default)]
enum State {
    #[default]
    Unopened,
    Open(Arc<Port>),
    Failed(Error),
    Stopped,
}

#[derive(Default)]
struct Threads {
    stopped: bool,
    worker: Option<(Arc<Worker>, ThreadHandle)>,
    desks: Vec<(Weak<Inner>, ThreadHandle)>,
}

/// The transport of an engine, the links that use it, and the threads that work for it.
#[derive(Default)]
pub(crate) struct AscendHost {
    port: Mutex<State>,
    threads: Mutex<Threads>,
    links: Mutex<Vec<Weak<AscendLink>>>,
}

impl AscendHost {
    /// The transport. Fails with `Unsupported` where the settings don't name or give one, and as opening it did.
    pub(super) fn port(&self, shared: &Shared) -> Result<Arc<Port>> {
        let settings = &shared.settings;
        let named = settings.order().contains(&TransportKind::Ascend);
        let Some(factory) = settings.ascend.as_ref().filter(|_| named) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "no transport for Ascend is plugged in",
            ));
        };
        let mut state = self.port.lock();
        match &*state {
            State::Open(port) => Ok(port.clone()),
            State::Failed(error) => Err(error.clone()),
            State::Stopped => Err(shut_down()),
            State::Unopened => match factory.open() {
                Ok(transport) => {
                    tracing::info!(transport = transport.name(), "a plugged-in transport is there");
                    let port = Arc::new(Port::new(transport));
                    *state = State::Open(port.clone());
                    Ok(port)
                }
                Err(error) => {
                    tracing::warn!(%error, "the plugged-in transport can't be had");
                    *state = State::Failed(error.clone());
                    Err(error)
                }
            },
        }
    }

    fn opened(&self) -> Option<Arc<Port>> {
        match &*self.port.lock() {
            State::Open(port) => Some(port.clone()),
            _ => None,
        }
    }

    /// The thread that does for links what must not be done where answers arrive.
    pub(super) fn worker(&self, shared: &Shared) -> Result<Arc<Worker>> {
        let mut threads = self.threads.lock();
        if threads.stopped {
            return Err(shut_down());
        }
        if let Some((worker, _)) = &threads.worker {
            return Ok(worker.clone());
        }
        let worker = Arc::new(Worker::default());
        let body = worker.clone();
        let body = Box::new(move || body.run());
        let thread = shared.runtime.spawner.spawn("transfer-ascend", body)?;
        threads.worker = Some((worker.clone(), thread));
        Ok(worker)
    }

    /// Starts the thread that serves a peer. Fails with `Busy` when too many are served.
    pub(super) fn start(&self, shared: &Shared, desk: &Arc<Inner>) -> Result<()> {
        let mut threads = self.threads.lock();
        if threads.stopped {
            return Err(shut_down());
        }
        // those whose thread has ended are let go of
        threads.desks.retain(|(desk, _)| desk.strong_count() > 0);
        if threads.desks.len() >= MOST_DESKS {
            return Err(Error::new(ErrorKind::Busy, "too many peers are served"));
        }
        let body = desk.clone();
        let body = Box::new(move || body.run());
        let thread = shared.runtime.spawner.spawn("transfer-ascend-peer", body)?;
        threads.desks.push((Arc::downgrade(desk), thread));
        Ok(())
    }

    /// Looks after a link.
    pub(super) fn add(&self, link: &Arc<AscendLink>) {
        let mut links = self.links.lock();
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(link));
    }

    /// Ends what touches memory that is being closed.
    pub fn sweep(&self) {
        let links: Vec<_> = self.links.lock().iter().filter_map(Weak::upgrade).collect();
        for link in links {
            link.sweep();
        }
        let desks: Vec<_> = {
            let threads = self.threads.lock();
            threads
                .desks
                .iter()
                .filter_map(|(desk, _)| desk.upgrade())
                .collect()
        };
        for desk in desks {
            desk.look();
        }
    }

    /// The transport forgets a region that nobody is counted in at any more. Fails with `Busy` when it doesn't: then the
    /// memory may still be touched.
    pub fn forget(&self, region: RegionId) -> Result<()> {
        self.opened().map_or(Ok(()), |port| port.forget(region))
    }

    /// Ends all that is under way, and the threads.
    pub fn stop(&self) {
        let (worker, desks) = {
            let mut threads = self.threads.lock();
            threads.stopped = true;
            (threads.worker.take(), std::mem::take(&mut threads.desks))
        };
        for (desk, _) in &desks {
            if let Some(desk) = desk.upgrade() {
                desk.close();
            }
        }
        for (desk, thread) in desks {
            // one that is caught in the transport is left to itself
            if desk.upgrade().is_none_or(|desk| desk.wait_ended()) {
                thread.join();
            }
        }
        if let Some((worker, thread)) = worker {
            worker.stop();
            thread.join();
        }
        *self.port.lock() = State::Stopped;
    }
}
