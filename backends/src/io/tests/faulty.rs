//! The engine that goes wrong on purpose.

use kvstored_core::ErrorKind;

use super::super::faults::{Fault, FaultKind, FaultPlan, FaultyIo};
use super::*;

const LENGTH: usize = 16384;

struct Setup {
    engine: FaultyIo,
    file: Arc<File>,
    releases: Arc<Releases>,
}

impl Setup {
    fn new(plan: FaultPlan) -> Self {
        let settings = IoSettings {
            preference: IoPreference::Psync,
            psync_threads: 1,
            ..IoSettings::default()
        };
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(16 * LENGTH as u64).unwrap();
        Self {
            engine: FaultyIo::new(engine(&settings).unwrap(), plan),
            file,
            releases: Arc::default(),
        }
    }

    fn slot(&self, contents: &[u8]) -> SlotGuard {
        let slot = slot(LENGTH, &self.releases);
        slot.arena().write(0, contents).unwrap();
        slot
    }

    fn transfer(&self, direction: Direction, slot: &SlotGuard) -> Result<()> {
        transfer(&self.engine, direction, &self.file, 0, slot, (0, LENGTH))
    }

    fn stored(&self) -> Vec<u8> {
        let slot = self.slot(&[]);
        let inner = &self.engine;
        transfer(inner, Direction::Read, &self.file, 0, &slot, (0, LENGTH)).unwrap();
        contents(&slot, 0, LENGTH)
    }
}

fn one(direction: Direction, number: u64, kind: FaultKind) -> FaultPlan {
    FaultPlan {
        seed: 1,
        faults: vec![Fault {
            direction,
            number,
            kind,
        }],
        ..FaultPlan::default()
    }
}

fn differences(left: &[u8], right: &[u8]) -> usize {
    left.iter()
        .zip(right)
        .filter(|(left, right)| left != right)
        .count()
}

#[test]
fn the_chosen_request_fails_with_the_chosen_number() {
    let setup = Setup::new(one(Direction::Write, 1, FaultKind::Fail { errno: libc::ENOSPC }));
    let slot = setup.slot(&bytes(LENGTH, 1));
    setup.transfer(Direction::Write, &slot).unwrap();
    setup.transfer(Direction::Read, &slot).unwrap();
    assert_eq!(
        setup.transfer(Direction::Write, &slot).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    setup.transfer(Direction::Write, &slot).unwrap();
}

#[test]
fn a_flipped_byte_is_wrong_in_the_slot_after_a_read() {
    let setup = Setup::new(one(Direction::Read, 0, FaultKind::FlipByte));
    let expected = bytes(LENGTH, 1);
    setup.transfer(Direction::Write, &setup.slot(&expected)).unwrap();
    assert_eq!(differences(&setup.stored(), &expected), 1);
    assert_eq!(differences(&setup.stored(), &expected), 0);
}

#[test]
fn a_flipped_byte_is_wrong_in_the_file_after_a_write() {
    let setup = Setup::new(one(Direction::Write, 0, FaultKind::FlipByte));
    let expected = bytes(LENGTH, 1);
    let slot = setup.slot(&expected);
    setup.transfer(Direction::Write, &slot).unwrap();
    assert_eq!(
        contents(&slot, 0, LENGTH),
        expected,
        "the slot itself stays as it is"
    );
    assert_eq!(differences(&setup.stored(), &expected), 1);
}

#[test]
fn a_short_write_leaves_half_and_says_so() {
    let setup = Setup::new(one(Direction::Write, 0, FaultKind::Short));
    let expected = bytes(LENGTH, 1);
    let error = setup
        .transfer(Direction::Write, &setup.slot(&expected))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let stored = setup.stored();
    assert_eq!(stored[..LENGTH / 2], expected[..LENGTH / 2]);
    assert_eq!(stored[LENGTH / 2..], vec![0; LENGTH / 2]);
}

#[test]
fn a_lost_write_claims_success() {
    let setup = Setup::new(one(Direction::Write, 0, FaultKind::Lost));
    setup
        .transfer(Direction::Write, &setup.slot(&bytes(LENGTH, 1)))
        .unwrap();
    assert_eq!(setup.stored(), vec![0; LENGTH]);
}

#[test]
fn random_failures_repeat_with_the_seed() {
    let failures = |seed| -> Vec<bool> {
        let setup = Setup::new(FaultPlan {
            seed,
            failures_per_mille: 300,
            ..FaultPlan::default()
        });
        let slot = setup.slot(&[]);
        (0..100)
            .map(|_| setup.transfer(Direction::Write, &slot).is_err())
            .collect()
    };
    let first = failures(7);
    assert!((10..60).contains(&first.iter().filter(|failed| **failed).count()));
    assert_eq!(first, failures(7));
    assert_ne!(first, failures(8));
}

#[test]
fn held_completions_come_together_and_out_of_order() {
    let setup = Setup::new(FaultPlan {
        seed: 3,
        hold_completions: 8,
        ..FaultPlan::default()
    });
    let (sender, receiver) = channel();
    let submit = |number: u32| {
        let arena = Arc::new(Arena::heap(4096).unwrap());
        let owner = Arc::clone(&setup.releases) as Arc<dyn SlotOwner>;
        let guard = SlotGuard::new(arena, owner, number, 0, 4096);
        setup.engine.submit(vec![request(
            Direction::Write,
            &setup.file,
            0,
            &guard,
            (0, 4096),
            &sender,
        )]);
    };
    (0..7).for_each(submit);
    assert!(receiver.try_recv().is_err());
    submit(7);
    let order: Vec<u32> = (0..8).map(|_| next(&receiver).0.slot()).collect();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..8).collect::<Vec<u32>>());
    assert_ne!(order, sorted);
    // What is too little to come by itself comes with the shutdown.
    submit(8);
    setup.engine.shutdown();
    assert_eq!(next(&receiver).0.slot(), 8);
    assert_eq!((setup.engine.queue_depth(), setup.releases.count()), (0, 9));
}
