//! The thread that asks HIXL how far tasks are, since it tells nobody by itself.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvstored_plugin::{Failure, Level, Log};

use crate::acl::Device;
use crate::connection::Connection;

/// Between two looks: the shortest time, after something ended, and the longest.
const SHORTEST: Duration = Duration::from_micros(50);
const LONGEST: Duration = Duration::from_millis(1);

#[derive(Default)]
struct State {
    connections: Vec<Arc<Connection>>,
    /// Something was begun since the last look.
    begun: bool,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Looks at connections while tasks are under way, and sleeps otherwise.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut pause = SHORTEST;
        let mut left = 0;
        loop {
            let mut state = self.lock();
            while left == 0 && !state.begun && !state.stopped {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                pause = SHORTEST;
            }
            if state.stopped {
                return;
            }
            if left > 0 && !state.begun {
                // asleep between two looks; what begins meanwhile is looked at soon
                let slept = self.changed.wait_timeout(state, pause);
                state = slept.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.begun = false;
            let connections = state.connections.clone();
            drop(state);
            let mut some = false;
            left = 0;
            for connection in connections {
                let (ended, waiting) = connection.look();
                some |= ended;
                left += waiting;
            }
            pause = if some { SHORTEST } else { (pause * 2).min(LONGEST) };
        }
    }
}

impl Watcher {
    /// Starts the thread; `device` is made its own.
    pub fn start(device: Option<Arc<Device>>, log: Log) -> Result<Self, Failure> {
        let shared = Arc::<Shared>::default();
        let body = shared.clone();
        let thread = std::thread::Builder::new()
            .name("kvstored-hixl".to_owned())
            .spawn(move || {
                if let Some(Err(failure)) = device.map(|device| device.bind()) {
                    log.log(Level::Error, failure.message());
                }
                body.run();
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub fn add(&self, connection: &Arc<Connection>) {
        self.shared.lock().connections.push(connection.clone());
    }

    pub fn remove(&self, connection: &Arc<Connection>) {
        let mut state = self.shared.lock();
        state.connections.retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Something was begun.
    pub fn wake(&self) {
        self.shared.lock().begun = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
