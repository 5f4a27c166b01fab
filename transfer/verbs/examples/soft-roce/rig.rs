//! Two ends in one process, and a service whose grants are a byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_verbs::{
    Admission, Buffer, Direction, Driver, LinkSettings, Nic, NicChoice, Operation, Owner, Request,
    RequestLink, Service, Slice, Unconnected,
};

pub const MIB: u64 = 1 << 20;
pub const FAR: Duration = Duration::from_mins(1);
/// A grant that allows both directions.
pub const GOOD: &[u8] = b"good";
/// One that doesn't.
pub const BAD: &[u8] = b"bad";

pub struct Rig {
    pub nic: Arc<Nic>,
    pub driver: Driver,
    pub runtime: Runtime,
}

impl Rig {
    pub fn open() -> Result<Self> {
        let runtime = Runtime::system();
        let nic = Nic::open(&NicChoice::default())?;
        let driver = Driver::start(&nic, &runtime)?;
        Ok(Self { nic, driver, runtime })
    }

    pub fn buffer(&self, length: u64) -> Buffer {
        Buffer::new(self.nic.domain(), length as usize).unwrap()
    }

    pub fn unconnected(&self, settings: &LinkSettings) -> Unconnected {
        Unconnected::new(&self.nic, settings, &self.runtime).unwrap()
    }

    /// Two connected ends, each of which serves a store.
    pub fn pair(&self, settings: &LinkSettings, stores: [Arc<Store>; 2]) -> [Arc<RequestLink>; 2] {
        let (one, other) = (self.unconnected(settings), self.unconnected(settings));
        let (one_address, other_address) = (one.address(), other.address());
        let [left, right] = stores;
        [
            one.connect(&other_address, Arc::new(Served(left)), &self.driver)
                .unwrap(),
            other
                .connect(&one_address, Arc::new(Served(right)), &self.driver)
                .unwrap(),
        ]
    }

    /// The end that asks of a store.
    pub fn link_to(&self, store: &Arc<Store>) -> [Arc<RequestLink>; 2] {
        self.pair(&patient(), [Store::new(self, 4096), store.clone()])
    }

    pub fn soon(&self) -> Instant {
        self.runtime.deadline(FAR)
    }
}

/// Settings with which a dead peer is noticed soon.
pub fn quick() -> LinkSettings {
    LinkSettings {
        silence: Duration::from_secs(2),
        ..LinkSettings::default()
    }
}

/// Settings for an emulated machine that is slow: nothing is given up because it takes long.
pub fn patient() -> LinkSettings {
    LinkSettings {
        silence: Duration::from_secs(30),
        grace: Duration::from_secs(10),
        ..LinkSettings::default()
    }
}

/// Memory that a peer may touch, with switches.
pub struct Store {
    pub memory: Buffer,
    pub epoch: AtomicU64,
    /// How often an admission is asked before it revokes itself; negative: never.
    pub valid_for: AtomicI64,
    /// Jobs that hold the memory.
    pub held: AtomicI64,
    pub admitted: AtomicU64,
}

impl Store {
    pub fn new(rig: &Rig, length: u64) -> Arc<Self> {
        Arc::new(Self {
            memory: rig.buffer(length),
            epoch: AtomicU64::new(0),
            valid_for: AtomicI64::new(-1),
            held: AtomicI64::new(0),
            admitted: AtomicU64::new(0),
        })
    }

    pub fn fill(&self, seed: u64) {
        self.memory
            .write(0, &pattern(seed, self.memory.registration().length()))
            .unwrap();
    }

    pub fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        bytes(&self.memory, offset, length)
    }

    /// Waits until no job holds the memory.
    pub fn wait_free(&self) {
        wait_for("the memory to be let go", || {
            self.held.load(Ordering::SeqCst) == 0
        });
    }
}

struct Held {
    store: Arc<Store>,
    slice: Slice,
    epoch: u64,
}

/// What is served is a store behind an `Arc`, which its admissions keep.
pub struct Served(pub Arc<Store>);

impl Service for Served {
    fn admit(&self, request: &Request<'_>) -> Result<Box<dyn Admission>> {
        let store = &self.0;
        if request.grant != GOOD {
            return Err(Error::new(ErrorKind::PermissionDenied, "not a good grant"));
        }
        let slice = store
            .memory
            .registration()
            .slice(request.offset, request.length)?;
        store.held.fetch_add(1, Ordering::SeqCst);
        store.admitted.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Held {
            store: store.clone(),
            slice,
            epoch: store.epoch.load(Ordering::SeqCst),
        }))
    }
}

impl Admission for Held {
    fn memory(&self) -> &Slice {
        &self.slice
    }

    fn is_valid(&self) -> bool {
        if self.store.valid_for.load(Ordering::SeqCst) >= 0
            && self.store.valid_for.fetch_sub(1, Ordering::SeqCst) == 0
        {
            self.store.epoch.fetch_add(1, Ordering::SeqCst);
        }
        self.store.epoch.load(Ordering::SeqCst) == self.epoch
    }

    fn finish(self: Box<Self>, _result: Result<()>) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where results of operations come.
pub struct Results {
    sender: Sender<(u64, Result<()>)>,
    receiver: Receiver<(u64, Result<()>)>,
    pub wanted: Arc<AtomicBool>,
    next: std::cell::Cell<u64>,
}

struct Waiting {
    number: u64,
    sender: Sender<(u64, Result<()>)>,
    wanted: Arc<AtomicBool>,
}

impl Owner for Waiting {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    fn finish(self: Box<Self>, result: Result<()>) {
        let _ = self.sender.send((self.number, result));
    }
}

impl Results {
    pub fn new() -> Self {
        let (sender, receiver) = channel();
        Self {
            sender,
            receiver,
            wanted: Arc::new(AtomicBool::new(true)),
            next: std::cell::Cell::new(0),
        }
    }

    pub fn operation(
        &self,
        direction: Direction,
        memory: Slice,
        grant: &[u8],
        offset: u64,
        deadline: Instant,
    ) -> Operation {
        let number = self.next.get();
        self.next.set(number + 1);
        Operation {
            direction,
            memory,
            grant: grant.to_vec(),
            offset,
            deadline,
            tag: number % 2,
            owner: Box::new(Waiting {
                number,
                sender: self.sender.clone(),
                wanted: self.wanted.clone(),
            }),
        }
    }

    /// The next result, whosever it is.
    pub fn next(&self) -> (u64, Result<()>) {
        self.receiver.recv_timeout(FAR).expect("an operation never ended")
    }

    /// All results that are there.
    pub fn already(&self) -> Vec<(u64, Result<()>)> {
        self.receiver.try_iter().collect()
    }

    /// Whether no result waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.try_recv().is_err()
    }

    /// So many results, in the order of their operations.
    pub fn all(&self, count: usize) -> Vec<Result<()>> {
        let mut results: Vec<_> = (0..count).map(|_| self.next()).collect();
        results.sort_by_key(|(number, _)| *number);
        let numbers: Vec<u64> = results.iter().map(|(number, _)| *number).collect();
        assert!(
            numbers.windows(2).all(|two| two[0] < two[1]),
            "an operation ended twice"
        );
        results.into_iter().map(|(_, result)| result).collect()
    }
}

/// Submits one operation.
pub fn start(link: &RequestLink, operation: Operation) {
    link.submit(vec![operation]).unwrap();
}

/// Submits one operation with a far deadline and waits for what it comes to.
pub fn run(
    rig: &Rig,
    link: &RequestLink,
    direction: Direction,
    memory: Slice,
    grant: &[u8],
    offset: u64,
) -> Result<()> {
    let results = Results::new();
    link.submit(vec![results.operation(
        direction,
        memory,
        grant,
        offset,
        rig.soon(),
    )])?;
    results.next().1
}

pub fn kind(result: Result<()>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

pub fn bytes(buffer: &Buffer, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    buffer.read(offset, &mut bytes).unwrap();
    bytes
}

/// Bytes that no other seed or place has.
pub fn pattern(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut words = Vec::with_capacity(length as usize + 8);
    while words.len() < length as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.to_le_bytes());
    }
    words.truncate(length as usize);
    words
}

pub fn whole(buffer: &Buffer) -> Slice {
    buffer
        .registration()
        .slice(0, buffer.registration().length())
        .unwrap()
}

pub fn part(buffer: &Buffer, offset: u64, length: u64) -> Slice {
    buffer.registration().slice(offset, length).unwrap()
}

pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + FAR;
    while !ready() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
