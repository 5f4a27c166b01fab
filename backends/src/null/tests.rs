use std::sync::atomic::AtomicUsize;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, Durability, Identity, Layout, SlotGuard};
use parking_lot::Mutex;

use super::*;

#[derive(Default)]
struct CountingOwner {
    released: AtomicUsize,
}

impl SlotOwner for CountingOwner {
    fn release(&self, _slot: u32) {
        self.released.fetch_add(1, Ordering::Relaxed);
    }
}

struct Fixture {
    namespace: Arc<NamespaceInfo>,
    arena: Arc<Arena>,
    owner: Arc<CountingOwner>,
}

impl Fixture {
    fn new() -> Self {
        let identity = Identity {
            tenant: "tenant".into(),
            model: "model".into(),
            weights_digest: "digest".into(),
            dtype: "bf16".into(),
            layout_version: 1,
            block_tokens: 128,
            ..Identity::default()
        };
        let namespace = Arc::new(NamespaceInfo::new(identity, Layout::uniform(2, 1, 4096).unwrap()).unwrap());
        let arena = Arc::new(Arena::heap(namespace.layout.image_bytes()).unwrap());
        Self {
            namespace,
            arena,
            owner: Arc::default(),
        }
    }

    /// The outcome of one operation, and whether its buffer came back.
    fn run(&self, tier: &NullTier, action: Action) -> Result<()> {
        let outcome: Arc<Mutex<Option<Result<()>>>> = Arc::default();
        let seen = outcome.clone();
        tier.submit(vec![Operation {
            namespace: self.namespace.clone(),
            hash: BlockHash::new(&[7; 16]).unwrap(),
            action,
            buffer: SlotGuard::new(self.arena.clone(), self.owner.clone(), 0, 0, self.arena.length()),
            completion: Box::new(move |_slot, result| *seen.lock() = Some(result)),
        }]);
        outcome.lock().take().expect("completes before submit returns")
    }
}

#[test]
fn dumps_are_accepted_and_forgotten() {
    let fixture = Fixture::new();
    for tier in [NullTier::empty(), NullTier::fake()] {
        for durability in [Durability::Memory, Durability::Tier, Durability::Durable] {
            fixture.run(&tier, Action::Write(durability)).unwrap();
        }
        let hash = [BlockHash::new(&[7; 16]).unwrap()];
        let mut present = [false];
        tier.lookup(&fixture.namespace, &hash, &mut present);
        assert!(!present[0], "{} must never claim to have a block", tier.name());
        assert_eq!(tier.lookup_on_prefix(&fixture.namespace, &hash), 0);
        for action in [Action::Read, Action::Verify] {
            assert_eq!(
                fixture.run(&tier, action).unwrap_err().kind(),
                ErrorKind::NotFound
            );
        }
    }
    assert_eq!(
        fixture.owner.released.load(Ordering::Relaxed),
        10,
        "every buffer was given back"
    );
}

#[test]
fn a_lookup_leaves_the_hits_of_other_tiers_alone() {
    let fixture = Fixture::new();
    let mut present = [true, false];
    let hashes = [
        BlockHash::new(&[1; 16]).unwrap(),
        BlockHash::new(&[2; 16]).unwrap(),
    ];
    NullTier::fake().lookup(&fixture.namespace, &hashes, &mut present);
    assert_eq!(present, [true, false]);
}

#[test]
fn only_fake_counts_what_it_would_have_written() {
    let fixture = Fixture::new();
    let (empty, fake) = (NullTier::empty(), NullTier::fake());
    for tier in [&empty, &fake] {
        fixture.run(tier, Action::Write(Durability::Tier)).unwrap();
    }
    assert_eq!(empty.statistics().written_bytes, 0);
    assert_eq!(
        fake.statistics().written_bytes,
        fixture.namespace.layout.image_bytes() as u64
    );
    assert_eq!((empty.name(), fake.name()), ("Empty", "Fake"));
}

#[test]
fn a_stopped_tier_cancels() {
    let fixture = Fixture::new();
    let tier = NullTier::empty();
    tier.shutdown();
    let error = fixture.run(&tier, Action::Write(Durability::Tier)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}
