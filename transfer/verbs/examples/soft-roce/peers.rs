//! Links to another process, which is killed or stopped.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::ErrorKind;
use kvstored_verbs::{Direction, LINK_ADDRESS_BYTES, LinkAddress, RequestLink};
use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{GOOD, MIB, Results, Rig, Served, Store, kind, quick, run as ask, start, wait_for, whole};

const BYTES: u64 = 16 * MIB;

/// The other process.
struct Peer {
    child: Child,
    _stdin: ChildStdin,
    link: Arc<RequestLink>,
    /// What this process serves to it.
    store: Arc<Store>,
}

impl Peer {
    fn start(rig: &Rig, role: &str) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args(["peer", role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let unconnected = rig.unconnected(&quick());
        stdin.write_all(&unconnected.address().encode()).unwrap();
        let mut stdout = BufReader::new(stdout);
        let mut address = [0; LINK_ADDRESS_BYTES];
        stdout.read_exact(&mut address).unwrap();
        let store = Store::new(rig, BYTES);
        let service = Arc::new(Served(store.clone()));
        let address = LinkAddress::decode(&address).unwrap();
        let link = unconnected.connect(&address, service, &rig.driver).unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self {
            child,
            _stdin: stdin,
            link,
            store,
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: says its address, hears ours, and serves or asks until it's killed.
pub fn run(arguments: &[String]) -> ExitCode {
    let rig = Rig::open().unwrap();
    let store = Store::new(&rig, BYTES);
    let unconnected = rig.unconnected(&quick());
    let mut stdout = std::io::stdout();
    stdout.write_all(&unconnected.address().encode()).unwrap();
    stdout.flush().unwrap();
    let mut address = [0; LINK_ADDRESS_BYTES];
    std::io::stdin().read_exact(&mut address).unwrap();
    let address = LinkAddress::decode(&address).unwrap();
    let link = unconnected
        .connect(&address, Arc::new(Served(store)), &rig.driver)
        .unwrap();
    println!("ready");
    if arguments.first().is_some_and(|role| role == "asks") {
        let local = rig.buffer(BYTES);
        while ask(&rig, &link, Direction::Write, whole(&local), GOOD, 0).is_ok() {}
        return ExitCode::FAILURE;
    }
    // until the other end closes the pipe
    let _ = std::io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

pub fn killed(rig: &Rig) {
    let mut peer = Peer::start(rig, "serves");
    let local = rig.buffer(BYTES);
    ask(rig, &peer.link, Direction::Write, whole(&local), GOOD, 0).unwrap();
    peer.kill();
    let result = ask(rig, &peer.link, Direction::Read, whole(&local), GOOD, 0);
    assert_eq!(kind(result), Some(ErrorKind::Unavailable));
    assert!(!peer.link.is_alive());
    // a new one in its place
    let next = Peer::start(rig, "serves");
    ask(rig, &next.link, Direction::Read, whole(&local), GOOD, 0).unwrap();
}

pub fn killed_in_mid_run(rig: &Rig) {
    for direction in [Direction::Read, Direction::Write] {
        let mut peer = Peer::start(rig, "serves");
        let local = rig.buffer(BYTES);
        ask(rig, &peer.link, direction, whole(&local), GOOD, 0).unwrap();
        let results = Results::new();
        let operations = (0..8).map(|_| results.operation(direction, whole(&local), GOOD, 0, rig.soon()));
        peer.link.submit(operations.collect()).unwrap();
        // all of them move at once, chunk by chunk in turns
        std::thread::sleep(std::time::Duration::from_millis(100));
        peer.kill();
        let kinds: Vec<_> = results.all(8).into_iter().map(kind).collect();
        let failures = kinds
            .iter()
            .filter(|kind| **kind == Some(ErrorKind::Unavailable))
            .count();
        let successes = kinds.iter().filter(|kind| kind.is_none()).count();
        assert_eq!(failures + successes, 8, "{kinds:?}");
        assert!(failures > 0);
    }
}

pub fn stopped(rig: &Rig) {
    let peer = Peer::start(rig, "serves");
    let local = rig.buffer(BYTES);
    ask(rig, &peer.link, Direction::Read, whole(&local), GOOD, 0).unwrap();
    peer.signal(Signal::STOP);
    let results = Results::new();
    let deadline = rig.runtime.deadline(std::time::Duration::from_millis(200));
    start(
        &peer.link,
        results.operation(Direction::Read, whole(&local), GOOD, 0, deadline),
    );
    assert_eq!(kind(results.next().1), Some(ErrorKind::TimedOut));
    // its memory is free for something else, though the peer may go on at any time
    let mark = vec![0x5a; BYTES as usize];
    local.write(0, &mark).unwrap();
    if peer.link.is_alive() {
        // one that waits longer fails with the silence
        start(
            &peer.link,
            results.operation(Direction::Write, whole(&local), GOOD, 0, rig.soon()),
        );
        assert_eq!(kind(results.next().1), Some(ErrorKind::Unavailable));
    }
    peer.signal(Signal::CONT);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(
        crate::rig::bytes(&local, 0, BYTES) == mark,
        "the peer wrote after the end"
    );
}

pub fn requester_killed(rig: &Rig) {
    let mut peer = Peer::start(rig, "asks");
    wait_for("requests", || peer.store.admitted.load(Ordering::SeqCst) > 2);
    peer.kill();
    peer.store.wait_free();
    println!(
        "  served {} requests of 16 MiB",
        peer.store.admitted.load(Ordering::SeqCst)
    );
}
