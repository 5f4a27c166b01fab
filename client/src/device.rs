//! Engine memory on a device: batches of copies between it and the arena, ordered after the engine's event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::device::{CopyBatch, HostRegistration, RawEvent, Stream};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::memory::Arena;
use kvstored_core::{Device, Runtime};
use parking_lot::{Mutex, RwLock};

/// How long a copy that is past its deadline may go on before the device is given up.
const GRACE: Duration = Duration::from_secs(5);

/// A device with engine memory on it, as a client uses it.
pub(crate) struct EngineDevice {
    device: Arc<dyn Device>,
    runtime: Runtime,
    /// Streams that nobody uses now.
    idle: Mutex<Vec<Stream>>,
    /// Copies that don't end: nothing more is given to the device.
    lost: AtomicBool,
    /// The arena that copies go from and to: another one after the daemon was started anew. Copies hold it for reading.
    registered: RwLock<Registered>,
}

#[derive(Default)]
struct Registered {
    arena: Option<Arc<Arena>>,
    _registration: Option<HostRegistration>,
}

impl EngineDevice {
    pub(crate) fn new(device: Arc<dyn Device>, runtime: Runtime) -> Arc<Self> {
        Arc::new(Self {
            device,
            runtime,
            idle: Mutex::default(),
            lost: AtomicBool::new(false),
            registered: RwLock::default(),
        })
    }

    /// Registers an arena with the device, as far as it can, in place of another.
    fn register(&self, arena: &Arc<Arena>) {
        let is_known = |registered: &Registered| {
            let known = registered.arena.as_ref();
            known.is_some_and(|known| Arc::ptr_eq(known, arena))
        };
        if is_known(&self.registered.read()) {
            return;
        }
        let mut registered = self.registered.write();
        if is_known(&registered) {
            return;
        }
        // the former one first: a device may not know both
        *registered = Registered::default();
        let registration = HostRegistration::of_arena(&self.device, arena)
            .inspect_err(|error| tracing::warn!(%error, "the arena is not registered; copies are slower"));
        *registered = Registered {
            arena: Some(arena.clone()),
            _registration: registration.ok(),
        };
    }

    /// Copies a batch between an arena and the device, after the engine's event, and waits. Nobody touches the memory any more when it returns, unless it
    /// fails with `Unavailable`, and from then on always: the device has a copy under way that doesn't end.
    ///
    /// # Safety
    /// The event must be a live one of the device's runtime in this process.
    #[allow(unsafe_code)] // the caller's promise about the event is passed on
    pub(crate) unsafe fn copy(
        &self,
        batch: CopyBatch,
        arena: &Arc<Arena>,
        after: Option<RawEvent>,
        deadline: Instant,
    ) -> Result<()> {
        if self.lost.load(Ordering::Acquire) {
            return Err(self.gone());
        }
        self.device.bind_thread()?;
        self.register(arena);
        let _in_use = self.registered.read();
        let idle = self.idle.lock().pop();
        let stream = match idle {
            Some(stream) => stream,
            None => Stream::create(&self.device)?,
        };
        let given = match after {
            // SAFETY: the caller vouches for the event.
            Some(event) => unsafe { stream.wait_raw(event) },
            None => Ok(()),
        };
        let given = given.and_then(|()| stream.copy(batch));
        let left = deadline.saturating_duration_since(self.runtime.clock.now());
        let passed = match stream.synchronize(left) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                // unsupported is fine: then the copies end when they end
                let _ = stream.abort();
                Err((error, stream.synchronize(GRACE)))
            }
            // what failed is over; the second time shows that the rest is too
            Err(error) => Err((error, stream.synchronize(GRACE))),
            Ok(()) => Ok(()),
        };
        match passed {
            Ok(()) => {
                self.idle.lock().push(stream);
                given
            }
            Err((error, Ok(()))) => {
                self.idle.lock().push(stream);
                Err(error)
            }
            Err((error, Err(_))) => {
                self.lost.store(true, Ordering::Release);
                tracing::error!(device = self.device.name(), %error, "copies of engine memory don't end; the device is given up");
                // its end would wait in vain, and it holds the arena
                std::mem::forget(stream);
                Err(self.gone())
            }
        }
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the device has copies that don't end")
            .with("device", self.device.name())
    }
}

/// Where a task's engine memory is.
#[derive(Clone)]
pub(crate) enum Place {
    /// In this process.
    Host,
    /// On a device. Copies begin after the event.
    Device(Arc<EngineDevice>, Option<RawEvent>),
}

/// A device with engine memory on it, for a client's loads and dumps. Clones are the same device.
#[derive(Clone)]
pub struct DeviceHandle(Arc<EngineDevice>);

impl DeviceHandle {
    /// Uses a device. Streams are made as they are needed, and the client's arena is registered with the first copy.
    pub fn new(device: Arc<dyn Device>, runtime: Runtime) -> Self {
        Self(EngineDevice::new(device, runtime))
    }

    /// Whether copies were given up that may still be under way: the device is given nothing any more.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    pub(crate) fn place(&self, after: Option<RawEvent>) -> Place {
        Place::Device(self.0.clone(), after)
    }
}

impl std::fmt::Debug for DeviceHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("DeviceHandle")
            .field(&self.0.device.name())
            .finish()
    }
}
