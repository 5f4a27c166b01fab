//! A thread that watches sockets with epoll: it sleeps until one of them, or a timer, has something to do.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvstored_core::{Error, Result};
use parking_lot::Mutex;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::accept::Listener;
use super::connection::Connection;
use super::gate::Gate;
use super::link::TcpLink;
use super::nanoseconds;
use crate::shared::{Shared, shut_down};

const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_CONNECTION: u64 = 2;
/// Events that are taken at once.
const EVENTS: usize = 64;
/// Bytes that are taken from one connection before others have their turn.
const BUDGET: usize = 4 << 20;
/// How often links are looked after while something is under way on them.
const TICK: Duration = Duration::from_millis(50);

/// Watches a share of the connections.
pub(crate) struct Reactor {
    epoll: OwnedFd,
    wake: OwnedFd,
    shared: Arc<Shared>,
    started: Instant,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    links: Mutex<Vec<Weak<TcpLink>>>,
    /// Whether some link wants to be looked after every tick.
    active: AtomicBool,
    stopping: AtomicBool,
}

fn failed(what: &str, errno: rustix::io::Errno) -> Error {
    Error::from_io(errno.into(), format!("{what} failed"))
}

fn drive(connection: &Arc<Connection>, unfinished: &mut Vec<Arc<Connection>>) {
    connection.drive_for_others(BUDGET);
    if connection.is_unfinished() && !connection.is_closed() {
        unfinished.push(connection.clone());
    }
}

impl Reactor {
    pub fn new(shared: &Arc<Shared>) -> Result<Arc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|errno| failed("epoll_create1", errno))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| failed("eventfd", errno))?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)
            .map_err(|errno| failed("epoll_ctl", errno))?;
        Ok(Arc::new(Self {
            epoll,
            wake,
            started: shared.runtime.clock.now(),
            shared: shared.clone(),
            connections: Mutex::default(),
            next: AtomicU64::new(FIRST_CONNECTION),
            links: Mutex::default(),
            active: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Nanoseconds since it was made.
    pub fn now(&self) -> u64 {
        nanoseconds(
            self.shared
                .runtime
                .clock
                .now()
                .saturating_duration_since(self.started),
        )
    }

    pub fn next_token(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Watches a new connection.
    pub fn adopt(&self, connection: &Arc<Connection>) {
        self.connections
            .lock()
            .insert(connection.token, connection.clone());
        connection.update();
        if self.stopping.load(Ordering::Acquire) {
            connection.close(&shut_down());
        }
        // its timers
        self.wake();
    }

    /// Looks after a link from now on.
    pub fn look_after(&self, link: &Arc<TcpLink>) {
        self.links.lock().push(Arc::downgrade(link));
        self.wake();
    }

    /// Changes what is watched for.
    pub fn watch(&self, connection: &Connection, flags: EventFlags, first: bool) -> Result<()> {
        let data = EventData::new_u64(connection.token);
        let changed = if first {
            epoll::add(&self.epoll, connection.socket(), data, flags)
        } else {
            epoll::modify(&self.epoll, connection.socket(), data, flags)
        };
        changed.map_err(|errno| failed("epoll_ctl", errno))
    }

    /// Watches a connection no more.
    pub fn forget(&self, connection: &Connection) {
        let _ = epoll::delete(&self.epoll, connection.socket());
        self.connections.lock().remove(&connection.token);
    }

    /// All connections at this moment.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.connections.lock().values().cloned().collect()
    }

    /// Something is under way on a link: it's looked after every tick until nothing is.
    pub fn activate(&self) {
        if !self.active.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Ends the thread, and with it all connections.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// The thread's body. `listener` is where newcomers come from, if this thread takes them in.
    pub fn run(&self, mut listener: Option<Listener>, gate: &Gate) {
        if let Some(listener) = &listener {
            let added = epoll::add(
                &self.epoll,
                listener.socket(),
                EventData::new_u64(LISTENER),
                EventFlags::IN,
            );
            if let Err(errno) = added {
                tracing::error!(%errno, "the listening socket can't be watched");
            }
        }
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let mut unfinished: Vec<Arc<Connection>> = Vec::new();
        let mut next_tick = 0;
        let mut next_look = 0;
        while !self.stopping.load(Ordering::Acquire) {
            let timeout = if unfinished.is_empty() {
                self.timers(listener.is_some().then_some(gate), &mut next_tick, &mut next_look)
            } else {
                Some(Duration::ZERO)
            };
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "epoll_wait failed");
                    break;
                }
            }
            for connection in std::mem::take(&mut unfinished) {
                drive(&connection, &mut unfinished);
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => {
                        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
                    }
                    LISTENER => {
                        if let Some(listener) = &mut listener {
                            listener.accept(self.now());
                        }
                    }
                    token => {
                        let connection = self.connections.lock().get(&token).cloned();
                        if let Some(connection) = connection {
                            drive(&connection, &mut unfinished);
                        }
                    }
                }
            }
        }
        for connection in self.connections() {
            connection.close(&shut_down());
        }
    }

    /// Does what is due, and says how long to sleep.
    fn timers(&self, gate: Option<&Gate>, next_tick: &mut u64, next_look: &mut u64) -> Option<Duration> {
        let now = self.now();
        let handshakes = gate.and_then(|gate| gate.expire(now));
        let mut sleep = handshakes;
        let mut sooner =
            |duration: Duration| sleep = Some(sleep.map_or(duration, |sleep| sleep.min(duration)));
        let beat = self.shared.settings.peer_timeout / 6;
        let links: Vec<_> = {
            let mut links = self.links.lock();
            links.retain(|link| link.strong_count() > 0);
            links.iter().filter_map(Weak::upgrade).collect()
        };
        if !links.is_empty() {
            if now >= *next_tick
                || self.active.load(Ordering::Acquire) && *next_tick > now + nanoseconds(TICK)
            {
                // cleared first, so that what begins meanwhile is seen at the next tick
                self.active.store(false, Ordering::Release);
                let mut active = false;
                for link in &links {
                    active |= link.tick(now);
                }
                if active {
                    self.active.store(true, Ordering::Release);
                }
                let interval = if self.active.load(Ordering::Acquire) {
                    TICK.min(beat)
                } else {
                    beat
                };
                *next_tick = now + nanoseconds(interval);
            }
            sooner(Duration::from_nanos(next_tick.saturating_sub(now)));
        }
        drop(links);
        if !self.connections.lock().is_empty() {
            if now >= *next_look {
                for connection in self.connections() {
                    if connection.is_silent(now) {
                        connection.close(&Error::new(
                            kvstored_core::ErrorKind::TimedOut,
                            "the peer was silent for too long",
                        ));
                    }
                }
                *next_look = now + nanoseconds(beat * 3);
            }
            sooner(Duration::from_nanos(next_look.saturating_sub(now)));
        }
        sleep
    }
}
