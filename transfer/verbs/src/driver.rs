//! A thread that works for the links of one port: it sleeps until something completes, or a moment comes.

use std::collections::HashMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use kvstored_core::runtime::{Clock, ThreadHandle};
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::link::RequestLink;
use crate::nic::Nic;
use crate::sys::DeviceEvent;

const WAKE: u64 = 0;
const TIMER: u64 = 1;
const DEVICE: u64 = 2;
const FIRST_LINK: u64 = 3;
const EVENTS: usize = 64;

/// What the thread and the links share.
pub(crate) struct Shared {
    nic: Arc<Nic>,
    epoll: OwnedFd,
    wake: OwnedFd,
    timer: OwnedFd,
    /// When the timer goes off.
    armed: Mutex<Option<Instant>>,
    links: Mutex<HashMap<u64, Weak<RequestLink>>>,
    last_key: AtomicU64,
    stops: AtomicBool,
    clock: Arc<dyn Clock>,
}

fn failed(what: &str) -> impl Fn(rustix::io::Errno) -> Error + '_ {
    move |errno| Error::from_io(errno.into(), what)
}

impl Shared {
    /// The timer goes off at that moment, or before.
    pub(crate) fn arm(&self, at: Instant) {
        let mut armed = self.armed.lock();
        if armed.is_some_and(|armed| armed <= at) {
            return;
        }
        let wait = at.saturating_duration_since(self.clock.now());
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            // zero would stop it
            tv_nsec: i64::from(wait.subsec_nanos()).max(i64::from(wait.as_secs() == 0)),
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value,
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => *armed = Some(at),
            Err(errno) => tracing::error!(%errno, "a timer can't be set"),
        }
    }

    pub(crate) fn forget(&self, key: u64) {
        self.links.lock().remove(&key);
    }

    fn link(&self, key: u64) -> Option<Arc<RequestLink>> {
        self.links.lock().get(&key).and_then(Weak::upgrade)
    }

    fn all(&self) -> Vec<Arc<RequestLink>> {
        self.links.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn fail_all(&self, reason: &Error) {
        for link in self.all() {
            link.fail(reason);
        }
    }

    fn tick(&self) {
        *self.armed.lock() = None;
        if let Some(next) = self.all().iter().filter_map(|link| link.on_tick()).min() {
            self.arm(next);
        }
    }

    fn run(&self) {
        let mut buffer = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        // links that have more to do than one turn allows
        let mut again: Vec<u64> = Vec::new();
        while !self.stops.load(Ordering::Acquire) {
            let at_once = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let timeout = (!again.is_empty()).then_some(&at_once);
            let events = match epoll::wait(&self.epoll, &mut buffer, timeout) {
                Ok((events, _)) => events,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "epoll_wait failed");
                    break;
                }
            };
            let mut ready = std::mem::take(&mut again);
            let mut ticks = false;
            for event in events {
                match event.data.u64() {
                    WAKE => {}
                    TIMER => {
                        let mut count = [0; 8];
                        let _ = rustix::io::read(&self.timer, &mut count);
                        ticks = true;
                    }
                    DEVICE => self.device_events(),
                    key if ready.contains(&key) => {}
                    key => ready.push(key),
                }
            }
            for key in ready {
                if self.link(key).is_some_and(|link| link.on_readable()) {
                    again.push(key);
                }
            }
            if ticks {
                self.tick();
            }
        }
        self.fail_all(&Error::new(ErrorKind::Cancelled, "RDMA was shut down"));
    }

    fn device_events(&self) {
        while let Some(event) = self.nic.device().take_event() {
            match event {
                DeviceEvent::Fatal => {
                    self.fail_all(&Error::new(ErrorKind::Unavailable, "the RDMA device is gone"));
                }
                DeviceEvent::PortDown => {
                    tracing::warn!(device = self.nic.device().name(), "an RDMA port is down");
                }
                DeviceEvent::Other => {}
            }
        }
    }
}

/// Works for links until it's dropped.
pub struct Driver {
    shared: Arc<Shared>,
    thread: Mutex<Option<ThreadHandle>>,
}

impl Driver {
    /// Starts the thread.
    pub fn start(nic: &Arc<Nic>, runtime: &Runtime) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("epoll_create1"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed("eventfd"))?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(failed("timerfd_create"))?;
        let sources = [
            (WAKE, wake.as_fd()),
            (TIMER, timer.as_fd()),
            (DEVICE, nic.device().as_fd()),
        ];
        for (key, descriptor) in sources {
            epoll::add(&epoll, descriptor, EventData::new_u64(key), EventFlags::IN)
                .map_err(failed("epoll_ctl"))?;
        }
        let shared = Arc::new(Shared {
            nic: nic.clone(),
            epoll,
            wake,
            timer,
            armed: Mutex::default(),
            links: Mutex::default(),
            last_key: AtomicU64::new(FIRST_LINK),
            stops: AtomicBool::new(false),
            clock: runtime.clock.clone(),
        });
        let own = shared.clone();
        let thread = runtime
            .spawner
            .spawn("kvstored-rdma", Box::new(move || own.run()))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The port that it works for.
    pub fn nic(&self) -> &Arc<Nic> {
        &self.shared.nic
    }

    pub(crate) fn handle(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    pub(crate) fn new_key(&self) -> u64 {
        self.shared.last_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends what touches memory that mustn't be touched any more, on all links; see [`RequestLink::sweep`].
    pub fn sweep(&self) {
        for link in self.shared.all() {
            link.sweep();
        }
    }

    /// Works for a link from now on.
    pub(crate) fn add(&self, link: &Arc<RequestLink>) -> Result<()> {
        if self.shared.stops.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Cancelled, "RDMA was shut down"));
        }
        self.shared.links.lock().insert(link.key(), Arc::downgrade(link));
        let added = link.with_descriptor(|descriptor| {
            let data = EventData::new_u64(link.key());
            epoll::add(&self.shared.epoll, descriptor, data, EventFlags::IN).map_err(failed("epoll_ctl"))
        });
        added.unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, "the RDMA link is dead")))?;
        // the first turn asks for events
        while link.on_readable() {}
        Ok(())
    }

    /// Ends all links, and the thread.
    pub fn shutdown(&self) {
        self.shared.stops.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Driver")
            .field("nic", &self.shared.nic)
            .finish_non_exhaustive()
    }
}
