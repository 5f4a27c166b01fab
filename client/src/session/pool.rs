//! Sessions that are open and free, and where new ones come from.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::engine::Engine;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::runtime::Runtime;
use parking_lot::{Condvar, Mutex};

use crate::mapping::Mappings;

use super::{EmbeddedSession, Session, SocketSession, Until};

/// After a failed attempt the next one waits this long, then twice as long, up to the maximum.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Where sessions come from.
pub(crate) enum Source {
    /// An engine in this process.
    Embedded {
        engine: Arc<Engine>,
        tier_names: Arc<[String]>,
    },
    /// The daemon behind a socket.
    Socket {
        path: PathBuf,
        mappings: Mappings,
        absent: Mutex<Option<Absent>>,
    },
}

/// The daemon wasn't there at the last attempt.
pub(crate) struct Absent {
    until: Instant,
    pause: Duration,
    error: Error,
}

impl Source {
    /// A daemon's socket.
    pub(crate) fn socket(path: PathBuf) -> Self {
        Self::Socket {
            path,
            mappings: Mappings::default(),
            absent: Mutex::new(None),
        }
    }

    fn open(&self, runtime: &Runtime, until: Until<'_>) -> Result<Box<dyn Session>> {
        match self {
            Self::Embedded { engine, tier_names } => {
                Ok(Box::new(EmbeddedSession::new(engine.clone(), tier_names.clone())))
            }
            Self::Socket {
                path,
                mappings,
                absent,
            } => {
                if let Some(absent) = &*absent.lock()
                    && runtime.clock.now() < absent.until
                {
                    return Err(absent.error.clone());
                }
                let opened = SocketSession::open(path, mappings, runtime, until);
                let mut absent = absent.lock();
                match opened {
                    Ok(session) => {
                        *absent = None;
                        Ok(Box::new(session))
                    }
                    // says how long its caller wanted to wait, and nothing of the daemon
                    Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Cancelled) => {
                        Err(error)
                    }
                    Err(error) => {
                        let pause = absent
                            .as_ref()
                            .map_or(FIRST_PAUSE, |absent| (absent.pause * 2).min(LONGEST_PAUSE));
                        *absent = Some(Absent {
                            until: runtime.deadline(pause),
                            pause,
                            error: error.clone(),
                        });
                        Err(error)
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    free: Vec<Box<dyn Session>>,
    open: usize,
}

/// A bounded number of sessions.
pub(crate) struct Pool {
    source: Arc<Source>,
    runtime: Runtime,
    limit: usize,
    state: Mutex<State>,
    returned: Condvar,
}

impl Pool {
    pub(crate) fn new(source: Arc<Source>, runtime: Runtime, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            source,
            runtime,
            limit,
            state: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    /// A free session, or a new one; waits for one to come back where all are taken. Fails with `Unavailable`
    /// where there's no daemon, with `Busy` where none has come back by a moment, and otherwise as `until` says.
    pub(crate) fn take(self: &Arc<Self>, until: Until<'_>) -> Result<PooledSession> {
        let mut state = self.state.lock();
        loop {
            while let Some(mut session) = state.free.pop() {
                if session.is_alive() {
                    return Ok(PooledSession {
                        session: Some(session),
                        pool: self.clone(),
                        fresh: false,
                    });
                }
                state.open -= 1;
            }
            if state.open < self.limit {
                break;
            }
            until.check(&self.runtime).map_err(|error| match until {
                Until::Moment(_) => Error::new(
                    ErrorKind::Busy,
                    format!("all {} sessions of the client are taken", self.limit),
                ),
                Until::Stopped(_) => error,
            })?;
            let slice = until.slice(&self.runtime);
            let pause = slice.saturating_duration_since(self.runtime.clock.now());
            self.returned.wait_for(&mut state, pause);
        }
        state.open += 1;
        drop(state);
        match self.source.open(&self.runtime, until) {
            Ok(session) => Ok(PooledSession {
                session: Some(session),
                pool: self.clone(),
                fresh: true,
            }),
            Err(error) => {
                self.closed();
                Err(error)
            }
        }
    }

    fn closed(&self) {
        self.state.lock().open -= 1;
        self.returned.notify_one();
    }
}

/// A session that returns to its pool when it's dropped, if it's still of use.
pub(crate) struct PooledSession {
    session: Option<Box<dyn Session>>,
    pool: Arc<Pool>,
    fresh: bool,
}

impl PooledSession {
    /// Whether it was opened for this very use.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Closes it: everything it holds is given back.
    pub(crate) fn discard(mut self) {
        if let Some(session) = self.session.take() {
            drop(session);
            self.pool.closed();
        }
    }
}

impl Deref for PooledSession {
    type Target = dyn Session;

    #[allow(clippy::expect_used)] // only `drop` and `discard` take it out
    fn deref(&self) -> &Self::Target {
        &**self.session.as_ref().expect("a session that isn't dropped")
    }
}

impl DerefMut for PooledSession {
    #[allow(clippy::expect_used)] // as above
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut **self.session.as_mut().expect("a session that isn't dropped")
    }
}

impl Drop for PooledSession {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        if session.is_reusable() {
            self.pool.state.lock().free.push(session);
            self.pool.returned.notify_one();
        } else {
            drop(session);
            self.pool.closed();
        }
    }
}
