//! What a node does by itself: showing the master that it's alive, announcing what it holds to a master that doesn't
//! know, releasing what it's told to, and confirming that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_master::Lender;
use parking_lot::{Condvar, Mutex};

use super::Segment;
use super::mover::Mover;
use crate::directory::Directory;
use crate::settings::NodeSettings;

/// How soon an unfinished release is tried again.
const SWEEP: Duration = Duration::from_millis(50);
/// How soon the master is asked again after it didn't answer.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Default)]
struct State {
    stopping: bool,
    mounted: bool,
    /// How the node is being emptied, as a master said last; the next master hears of it from here.
    draining: Option<bool>,
}

/// The node's own thread.
pub(crate) struct Upkeep {
    settings: NodeSettings,
    segment: Arc<Segment>,
    directory: Arc<dyn Directory>,
    lender: Lender,
    mover: Arc<Mover>,
    runtime: Runtime,
    state: Mutex<State>,
    changed: Condvar,
}

impl Upkeep {
    pub fn new(
        settings: NodeSettings,
        segment: Arc<Segment>,
        directory: Arc<dyn Directory>,
        lender: Lender,
        mover: Arc<Mover>,
        runtime: Runtime,
    ) -> Self {
        Self {
            settings,
            segment,
            directory,
            lender,
            mover,
            runtime,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }

    pub fn wait_mounted(&self, deadline: Instant) -> Result<()> {
        let mut state = self.state.lock();
        while !state.mounted {
            if state.stopping {
                return Err(Error::new(ErrorKind::Cancelled, "the node has stopped"));
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(Error::new(ErrorKind::TimedOut, "no master has taken the node"));
            }
        }
        Ok(())
    }

    /// Runs until [`Upkeep::stop`].
    pub fn run(&self) {
        let mut released = BTreeSet::new();
        let mut complained = false;
        loop {
            let pause = match self.round(&mut released) {
                Ok(()) => {
                    if complained {
                        tracing::info!(node = %self.lender.name, "the pool's master answers again");
                    }
                    complained = false;
                    Duration::ZERO
                }
                Err(error) => {
                    // once for each absence; what the node holds stays readable meanwhile
                    if !std::mem::replace(&mut complained, true) {
                        tracing::warn!(%error, node = %self.lender.name, "the pool's master doesn't answer");
                    }
                    RETRY
                }
            };
            if self.pause(pause) {
                break;
            }
        }
        if self.state.lock().mounted
            && let Err(error) = self.directory.unmount(&self.lender.node, self.deadline())
        {
            tracing::debug!(%error, "the master wasn't told that the node goes");
        }
    }

    /// One exchange with the master, which answers as soon as it has an order.
    fn round(&self, released: &mut BTreeSet<u64>) -> Result<()> {
        released.extend(self.segment.sweep());
        if !self.state.lock().mounted {
            self.mount()?;
        }
        let confirmed: Vec<u64> = released.iter().copied().collect();
        let wait = if self.segment.is_releasing() {
            SWEEP
        } else {
            self.settings.heartbeat
        };
        let epoch = self.segment.master_epoch();
        let deadline = self.runtime.deadline(self.settings.master_timeout + wait);
        let orders = self
            .directory
            .heartbeat(&self.lender.node, epoch, &confirmed, wait, deadline);
        let orders = match orders {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Fenced) => {
                return self.mount_again(released);
            }
            other => other?,
        };
        // an old leader that woke up must not be obeyed
        self.segment.obey(orders.master_epoch)?;
        for put in &confirmed {
            released.remove(put);
        }
        if orders.announce {
            return self.mount_again(released);
        }
        self.state.lock().draining = orders.draining;
        self.mover.set(orders.draining);
        // what is free at once is confirmed with the next question, which follows without a pause
        released.extend(orders.release.iter().filter(|put| self.segment.release(**put)));
        Ok(())
    }

    /// A master doesn't know this node: what there was to confirm, the announcement says.
    fn mount_again(&self, released: &mut BTreeSet<u64>) -> Result<()> {
        self.state.lock().mounted = false;
        self.mount()?;
        released.clear();
        Ok(())
    }

    fn mount(&self) -> Result<()> {
        let lender = Lender {
            obeyed_epoch: self.segment.master_epoch(),
            highest_put: self.segment.highest_put(),
            draining: self.state.lock().draining,
            ..self.lender.clone()
        };
        let mounted = self.directory.mount(&lender, self.deadline())?;
        let holdings = self.segment.obey_mounted(&mounted)?;
        self.directory
            .announce(&self.lender.node, mounted.epoch, &holdings, self.deadline())?;
        self.state.lock().mounted = true;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits. Returns whether the node stops.
    fn pause(&self, length: Duration) -> bool {
        let until = self.runtime.deadline(length);
        let mut state = self.state.lock();
        while !state.stopping {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.stopping
    }

    fn deadline(&self) -> Instant {
        self.runtime.deadline(self.settings.master_timeout)
    }
}
