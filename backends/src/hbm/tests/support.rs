//! A tier over a device that can be told to fail, and blocks to put into it.
#![allow(unsafe_code)]
#![allow(clippy::undocumented_unsafe_blocks)] // calls are handed on as they come

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvstored_core::checksum::Checksum;
use kvstored_core::device::{
    Copy, DeviceAddress, DeviceCounts, Direction, HostAddress, MemoryUsage, RawEvent, RawStream,
};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Device, Durability, Envelope, Error, ErrorKind, Identity, Layout,
    NamespaceInfo, Operation, Result, Runtime, SlotGuard, Tier,
};
use parking_lot::Mutex;

use crate::device::{EngineEvent, HostDevice, HostDeviceSettings};
use crate::hbm::{HbmSettings, HbmTier};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// The host device, with switches.
pub struct Switched {
    pub host: Arc<HostDevice>,
    /// Copies of that many calls fail.
    pub failing_calls: AtomicU32,
    /// Every stream waits for an event that the test keeps.
    pub hold: Mutex<Option<Arc<EngineEvent>>>,
    /// No stream can be made.
    pub no_streams: AtomicBool,
    /// Bytes are changed on their way out of the device.
    pub flips: AtomicBool,
    failed: AtomicBool,
}

impl Switched {
    pub fn new(memory_bytes: u64) -> Arc<Self> {
        let settings = HostDeviceSettings {
            memory_bytes,
            huge_pages: false,
        };
        Arc::new(Self {
            host: HostDevice::new(settings, Runtime::system()),
            failing_calls: AtomicU32::new(0),
            hold: Mutex::default(),
            no_streams: AtomicBool::new(false),
            flips: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        })
    }

    /// From now on, streams wait until the event that is returned is reached.
    pub fn hold(&self) -> Arc<EngineEvent> {
        let event = Arc::new(self.host.engine_event().unwrap());
        *self.hold.lock() = Some(event.clone());
        event
    }
}

impl Device for Switched {
    fn name(&self) -> &'static str {
        "switched"
    }

    fn memory(&self) -> Result<MemoryUsage> {
        self.host.memory()
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceAddress> {
        self.host.allocate(bytes)
    }

    unsafe fn free(&self, address: DeviceAddress) -> Result<()> {
        unsafe { self.host.free(address) }
    }

    unsafe fn register_host(&self, address: HostAddress, bytes: usize) -> Result<()> {
        unsafe { self.host.register_host(address, bytes) }
    }

    unsafe fn unregister_host(&self, address: HostAddress) -> Result<()> {
        unsafe { self.host.unregister_host(address) }
    }

    fn create_stream(&self) -> Result<RawStream> {
        if self.no_streams.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "the device is lost"));
        }
        self.host.create_stream()
    }

    unsafe fn destroy_stream(&self, stream: RawStream) -> Result<()> {
        unsafe { self.host.destroy_stream(stream) }
    }

    unsafe fn copy(&self, stream: RawStream, direction: Direction, copies: &[Copy]) -> Result<()> {
        if let Some(event) = self.hold.lock().as_ref() {
            unsafe { self.host.wait_event(stream, event.raw()) }?;
        }
        let left = self.failing_calls.load(Ordering::Relaxed);
        if left > 0 {
            self.failing_calls.store(left - 1, Ordering::Relaxed);
            self.failed.store(true, Ordering::Relaxed);
            return Ok(());
        }
        unsafe { self.host.copy(stream, direction, copies) }?;
        if direction == Direction::DeviceToHost && self.flips.load(Ordering::Relaxed) {
            // the envelope's first byte
            for copy in copies {
                let shifted = Copy {
                    destination: copy.destination,
                    source: copy.source + 1,
                    bytes: 1,
                };
                unsafe { self.host.copy(stream, direction, &[shifted]) }?;
            }
        }
        Ok(())
    }

    unsafe fn synchronize_stream(&self, stream: RawStream, timeout: Duration) -> Result<()> {
        unsafe { self.host.synchronize_stream(stream, timeout) }?;
        if self.failed.swap(false, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, "a copy failed"));
        }
        Ok(())
    }

    fn create_event(&self) -> Result<RawEvent> {
        self.host.create_event()
    }

    unsafe fn destroy_event(&self, event: RawEvent) -> Result<()> {
        unsafe { self.host.destroy_event(event) }
    }

    unsafe fn record_event(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        unsafe { self.host.record_event(stream, event) }
    }

    unsafe fn wait_event(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        unsafe { self.host.wait_event(stream, event) }
    }

    unsafe fn query_event(&self, event: RawEvent) -> Result<bool> {
        unsafe { self.host.query_event(event) }
    }

    unsafe fn synchronize_event(&self, event: RawEvent, timeout: Duration) -> Result<()> {
        unsafe { self.host.synchronize_event(event, timeout) }
    }

    fn counts(&self) -> DeviceCounts {
        self.host.counts()
    }
}

/// Slots that come and go by themselves.
struct Loose;

impl SlotOwner for Loose {
    fn release(&self, _slot: u32) {}
}

pub struct Rig {
    pub device: Arc<Switched>,
    pub tier: Arc<HbmTier>,
    pub namespace: Arc<NamespaceInfo>,
}

pub type Pending = Receiver<(SlotGuard, Result<()>)>;

impl Rig {
    pub fn new(settings: HbmSettings) -> Self {
        let device = Switched::new(64 << 20);
        let known: Arc<dyn Device> = device.clone();
        let tier = HbmTier::open(settings, &known, &Runtime::system(), None).unwrap();
        let namespace = namespace("model");
        tier.open_namespace(&namespace).unwrap();
        Self {
            device,
            tier,
            namespace,
        }
    }

    /// A small tier whose copies may take a short while.
    pub fn small(blocks: usize) -> Self {
        let image = namespace("model").layout.image_bytes();
        Self::new(HbmSettings {
            capacity_bytes: (blocks * image) as u64,
            streams: 2,
            timeout: Duration::from_millis(50),
            ..HbmSettings::default()
        })
    }

    pub fn start(&self, batch: Vec<(BlockHash, Action, SlotGuard)>) -> Vec<Pending> {
        let mut pending = Vec::new();
        let operations = batch.into_iter().map(|(hash, action, buffer)| {
            let (ended, wait) = channel();
            pending.push(wait);
            Operation {
                namespace: self.namespace.clone(),
                hash,
                action,
                buffer,
                completion: Box::new(move |buffer, outcome| drop(ended.send((buffer, outcome)))),
            }
        });
        let operations = operations.collect();
        self.tier.submit(operations);
        pending
    }

    pub fn write(&self, number: u64) -> Result<()> {
        let action = Action::Write(Durability::Tier);
        let image = image(&self.namespace, hash(number));
        wait(self.start(vec![(hash(number), action, image)]).remove(0)).1
    }

    pub fn read(&self, number: u64) -> Result<SlotGuard> {
        let buffer = buffer(self.namespace.layout.image_bytes());
        let (buffer, outcome) = wait(self.start(vec![(hash(number), Action::Read, buffer)]).remove(0));
        outcome.map(|()| buffer)
    }

    /// Reads a block and checks all of it against what was written.
    pub fn expect(&self, number: u64) {
        let read = self.read(number).unwrap();
        let written = image(&self.namespace, hash(number));
        for shard in 0..self.namespace.layout.shards().len() {
            let offset = self.namespace.layout.shard_offset(shard).unwrap();
            let bytes = self.namespace.layout.shard(shard).unwrap().payload_bytes();
            let sum = |slot: &SlotGuard| slot.arena().checksum(slot.offset() + offset, bytes).unwrap();
            assert_eq!(sum(&read), sum(&written), "block {number}, shard {shard}");
        }
    }

    pub fn present(&self, number: u64) -> bool {
        let mut present = [false];
        self.tier.lookup(&self.namespace, &[hash(number)], &mut present);
        present[0]
    }
}

pub fn wait(pending: Pending) -> (SlotGuard, Result<()>) {
    pending.recv_timeout(PATIENCE).expect("an operation didn't end")
}

pub fn namespace(model: &str) -> Arc<NamespaceInfo> {
    let identity = Identity {
        tenant: "t".into(),
        model: model.into(),
        block_tokens: 16,
        ..Identity::default()
    };
    Arc::new(NamespaceInfo::new(identity, Layout::uniform(2, 3, 5000).unwrap()).unwrap())
}

pub fn hash(number: u64) -> BlockHash {
    let mut bytes = [0x5A; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

pub fn buffer(bytes: usize) -> SlotGuard {
    let arena = Arc::new(Arena::heap(bytes).unwrap());
    arena.write(0, &vec![0xEE; bytes]).unwrap();
    SlotGuard::new(arena, Arc::new(Loose), 0, 0, bytes)
}

/// A block's image, whose content tells which block it is.
pub fn image(namespace: &NamespaceInfo, hash: BlockHash) -> SlotGuard {
    let layout = &namespace.layout;
    let buffer = buffer(layout.image_bytes());
    let mut checksums = Vec::new();
    for (index, shard) in layout.shards().iter().enumerate() {
        let seed = hash.fingerprint() ^ index as u64;
        let payload: Vec<u8> = (0..shard.payload_bytes() as u64)
            .map(|at| (seed.wrapping_add(at).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
            .collect();
        let mut checksum = Checksum::new();
        checksum.update(&payload);
        checksums.push(checksum.value());
        let offset = layout.shard_offset(index).unwrap();
        buffer.arena().write(offset, &payload).unwrap();
    }
    let page = Envelope::new(namespace.key(hash), layout, 1, 1, checksums)
        .encode()
        .unwrap();
    buffer.write_descriptor(&page).unwrap();
    buffer
}
