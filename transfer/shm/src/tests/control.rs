//! Owner and peers at a control page, in two processes.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvstored_core::{ErrorKind, Runtime};
use rustix::process::Signal;

use super::child::{Child, clock, late, soon};
use crate::{ControlPage, PeerControl, PeerProcess, ProcessState};

const SLOTS: u32 = 1000;

fn page() -> Arc<ControlPage> {
    Arc::new(ControlPage::new(SLOTS, clock()).unwrap())
}

fn busy(page: &ControlPage, slot: u32) -> String {
    let error = page.wait_idle(slot, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    error.to_string()
}

#[test]
fn an_epoch_that_moves_after_the_check_lets_the_peer_finish_and_nobody_else_in() {
    let page = page();
    let (child, _) = Child::attached(&page);
    let (slot, epoch) = page.claim().unwrap();
    assert_eq!(child.ask(&format!("enter {slot} {epoch}")), "ok");
    assert_eq!(child.ask(&format!("enter {slot} {epoch}")), "ok");
    assert_eq!(child.ask(&format!("fenced {slot}")), "false");
    assert_eq!(page.in_flight(slot).unwrap(), 2);
    assert_eq!(page.advance(slot).unwrap(), epoch + 1);
    assert_eq!(child.ask(&format!("fenced {slot}")), "true");
    assert_eq!(child.ask(&format!("enter {slot} {epoch}")), "fenced");
    assert_eq!(child.ask(&format!("leave {slot}")), "ok");
    busy(&page, slot);
    assert_eq!(page.give_back(slot).unwrap_err().kind(), ErrorKind::Busy);
    // what is under way at one slot keeps no other
    page.wait_idle(slot + 1, soon()).unwrap();
    assert_eq!(child.ask(&format!("leave {slot}")), "ok");
    page.wait_idle(slot, late()).unwrap();
    page.give_back(slot).unwrap();
    let (again, later) = page.claim().unwrap();
    assert!(again == slot && later > epoch + 1);
    assert_eq!(child.ask(&format!("enter {slot} {}", epoch + 1)), "fenced");
    assert_eq!(child.ask(&format!("enter {slot} {later}")), "ok");
    assert_eq!(child.ask(&format!("enter {SLOTS} 0")), "fenced");
    assert_eq!(
        page.wait_idle(SLOTS, late()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn a_peer_that_leaves_wakes_the_owner() {
    let page = page();
    let (child, _) = Child::attached(&page);
    assert_eq!(child.ask("enter 7 0"), "ok");
    page.advance(7).unwrap();
    let waiting = page.clone();
    let waiter = Runtime::system()
        .spawner
        .spawn("waiter", Box::new(move || waiting.wait_idle(7, late()).unwrap()));
    assert_eq!(child.ask("leave 7"), "ok");
    waiter.unwrap().join();
    assert_eq!(page.in_flight(7).unwrap(), 0);
}

#[test]
fn a_killed_peer_counts_for_nothing_whether_or_not_somebody_tells() {
    let page = page();
    let (child, id) = Child::attached(&page);
    let (other, _) = Child::attached(&page);
    assert_eq!(child.ask("enter 3 0"), "ok");
    assert_eq!(child.ask("enter 4 0"), "ok");
    assert_eq!(other.ask("enter 4 0"), "ok");
    page.advance(3).unwrap();
    page.advance(4).unwrap();
    assert_eq!(page.reset(id).unwrap_err().kind(), ErrorKind::Busy);
    busy(&page, 3);
    let waiting = page.clone();
    let waiter = Runtime::system()
        .spawner
        .spawn("waiter", Box::new(move || waiting.wait_idle(3, late()).unwrap()))
        .unwrap();
    child.kill();
    waiter.join();
    page.reset(id).unwrap();
    page.reset(id).unwrap();
    assert_eq!(page.attached(), 1);
    // the other's count is untouched
    assert_eq!(page.in_flight(4).unwrap(), 1);
    busy(&page, 4);
    drop(other);
    page.wait_idle(4, late()).unwrap();
    assert_eq!((page.reap(), page.attached()), (1, 0));
}

#[test]
fn a_stopped_peer_keeps_the_range_until_it_goes_on() {
    let page = page();
    let (child, id) = Child::attached(&page);
    assert_eq!(child.ask("enter 0 0"), "ok");
    child.signal(Signal::STOP);
    while child.process.state() != ProcessState::Stopped {
        std::thread::yield_now();
    }
    page.advance(0).unwrap();
    assert!(busy(&page, 0).contains("stopped"));
    assert_eq!(page.reset(id).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(page.reap(), 0);
    child.signal(Signal::CONT);
    assert_eq!(child.ask("leave 0"), "ok");
    page.wait_idle(0, late()).unwrap();
    // and one that is killed while it's stopped
    assert_eq!(child.ask("enter 0 1"), "ok");
    child.signal(Signal::STOP);
    page.advance(0).unwrap();
    child.kill();
    page.wait_idle(0, late()).unwrap();
}

#[test]
fn rubbish_in_a_peers_counts_harms_that_peer_alone() {
    let page = page();
    let (rogue, _) = Child::attached(&page);
    let (honest, _) = Child::attached(&page);
    assert_eq!(honest.ask("enter 5 0"), "ok");
    for seed in 0..40 {
        assert_eq!(rogue.ask(&format!("rubbish {seed}")), "ok");
        // the page is odd numbers and even ones, so some slots look idle; none may do worse than answer Busy
        for slot in [0, 5, 63, 64, SLOTS - 1] {
            page.advance(slot).unwrap();
            let outcome = page.wait_idle(
                slot,
                Runtime::system().deadline(std::time::Duration::from_millis(1)),
            );
            assert!(outcome.is_ok_and(|()| slot != 5) || page.in_flight(slot).unwrap() > 0);
            let _ = page.give_back(slot);
        }
        page.reap();
    }
    assert_eq!(page.attached(), 2);
    assert_eq!(honest.ask("leave 5"), "ok");
    assert_eq!(honest.ask("enter 6 0"), "ok");
    assert_eq!(honest.ask("leave 6"), "ok");
    rogue.kill();
    for slot in 0..SLOTS {
        page.advance(slot).unwrap();
        page.wait_idle(slot, late()).unwrap();
    }
}

#[test]
fn a_peer_that_wakes_the_owner_without_end_only_makes_it_busy() {
    let page = page();
    let (rogue, _) = Child::attached(&page);
    rogue.tell("flap 9", &[]);
    while page.in_flight(9).unwrap() == 0 {
        std::thread::yield_now();
    }
    page.advance(9).unwrap();
    let before = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let error = page
        .wait_idle(
            9,
            Runtime::system().deadline(std::time::Duration::from_millis(400)),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let after = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let used = (after.tv_sec - before.tv_sec) * 1_000_000 + (after.tv_nsec - before.tv_nsec) / 1000;
    assert!(used < 200_000, "the owner worked for {used} us of 400 ms");
    rogue.kill();
    page.wait_idle(9, late()).unwrap();
}

#[test]
fn a_peer_that_is_done_is_forgotten_and_one_that_is_not_is_kept() {
    let page = page();
    let own = Arc::new(PeerProcess::own().unwrap());
    let attach = || {
        let attached = page.attach(own.clone()).unwrap();
        let epochs = page.descriptor().try_clone_to_owned().unwrap();
        PeerControl::map(epochs, attached.counts, SLOTS).unwrap()
    };
    let (first, second) = (attach(), attach());
    let under_way = second.enter(2, 0).unwrap();
    drop(second);
    assert_eq!((page.reap(), page.attached()), (0, 2));
    drop(first);
    assert_eq!((page.reap(), page.attached()), (1, 1));
    page.advance(2).unwrap();
    busy(&page, 2);
    drop(under_way);
    page.wait_idle(2, late()).unwrap();
    assert_eq!((page.reap(), page.attached()), (1, 0));
}

#[test]
fn slots_run_out_and_come_back() {
    let page = ControlPage::new(2, clock()).unwrap();
    let (first, _) = page.claim().unwrap();
    let (second, _) = page.claim().unwrap();
    assert_ne!(first, second);
    assert_eq!(page.claim().unwrap_err().kind(), ErrorKind::Busy);
    page.give_back(second).unwrap();
    assert_eq!(page.claim().unwrap(), (second, 1));
    for slots in [0, crate::control::MAX_SLOTS + 1, u32::MAX] {
        let error = ControlPage::new(slots, clock()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn files_that_are_not_the_control_page_are_refused() {
    let page = page();
    let own = Arc::new(PeerProcess::own().unwrap());
    let kind = |swapped: bool, slots: u32| {
        let counts = page.attach(own.clone()).unwrap().counts;
        let epochs = page.descriptor().try_clone_to_owned().unwrap();
        let outcome = if swapped {
            PeerControl::map(counts, epochs, slots)
        } else {
            PeerControl::map(epochs, counts, slots)
        };
        outcome.unwrap_err().kind()
    };
    assert_eq!(kind(false, SLOTS - 1), ErrorKind::Mismatch);
    assert_eq!(kind(false, 0), ErrorKind::InvalidInput);
    assert_eq!(kind(false, 100_000), ErrorKind::InvalidInput);
    // the counts are shorter, and the epochs can't be mapped for writing
    assert_eq!(kind(true, SLOTS), ErrorKind::InvalidInput);
    assert_eq!(kind(true, 100), ErrorKind::PermissionDenied);
    let plain = tempfile::tempfile().unwrap();
    plain.set_len(1 << 20).unwrap();
    let epochs = page.descriptor().as_fd().try_clone_to_owned().unwrap();
    let error = PeerControl::map(epochs, plain.into(), SLOTS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}
