//! Whether processes live.

use kvstored_core::ErrorKind;
use rustix::process::Signal;

use super::child::{Child, clock, late, soon};
use crate::{LivenessWatch, PeerProcess, ProcessState, StartTime};

#[test]
fn killed_processes_are_told_by_their_keys_and_once() {
    let children: Vec<_> = (0..3).map(|_| Child::start()).collect();
    let watch = LivenessWatch::new().unwrap();
    for (key, child) in children.iter().enumerate() {
        watch.add(key as u64, &child.process).unwrap();
    }
    let again = watch.add(9, &children[0].process).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    assert_eq!(
        watch.add(u64::MAX, &children[0].process).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(watch.wait(&*clock(), soon()).unwrap().is_empty());
    children[1].signal(Signal::KILL);
    assert_eq!(watch.wait(&*clock(), late()).unwrap(), [1]);
    assert!(watch.wait(&*clock(), soon()).unwrap().is_empty());
    watch.remove(&children[2].process);
    children[2].kill();
    assert!(watch.wait(&*clock(), soon()).unwrap().is_empty());
    // one that had exited before
    watch.add(12, &children[2].process).unwrap();
    assert_eq!(watch.wait(&*clock(), late()).unwrap(), [12]);
    watch.wake();
    assert!(watch.wait(&*clock(), late()).unwrap().is_empty());
    assert!(watch.wait(&*clock(), soon()).unwrap().is_empty());
}

#[test]
fn states_follow_signals() {
    let child = Child::start();
    assert_eq!(child.process.state(), ProcessState::Running);
    child.signal(Signal::STOP);
    while child.process.state() != ProcessState::Stopped {
        std::thread::yield_now();
    }
    assert!(!child.process.has_exited());
    child.signal(Signal::CONT);
    assert_eq!(child.ask("sum").parse::<u64>().unwrap(), 0);
    assert_eq!(child.process.state(), ProcessState::Running);
    child.kill();
    // a zombie has exited
    assert_eq!(child.process.state(), ProcessState::Exited);
}

#[test]
fn another_process_with_the_same_number_is_not_taken_for_it() {
    let child = Child::start();
    let (pid, started) = (child.process.pid(), child.process.started());
    assert_eq!(PeerProcess::open(pid, started).unwrap().started(), started);
    let earlier = StartTime::from_ticks(started.ticks() - 1);
    assert_eq!(
        PeerProcess::open(pid, earlier).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        child.channel.process(Some(earlier)).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let process = child.process.clone();
    drop(child);
    assert_eq!(
        PeerProcess::open(pid, started).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(process.state(), ProcessState::Exited);
    for pid in [0, -1, i32::MIN] {
        assert_eq!(
            PeerProcess::open(pid, started).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}
