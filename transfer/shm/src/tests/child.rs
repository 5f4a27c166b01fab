//! A process of its own: this test program again, which obeys messages on a channel.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::Runtime;
use kvstored_core::runtime::Clock;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    AttachmentId, Channel, ControlPage, InFlight, Listener, PeerControl, PeerMemory, PeerProcess, Sharing,
    SocketAddress, StartTime,
};

pub const ADDRESS: &str = "KVSTORED_SHM_CHILD";
const PATTERN_BYTES: usize = 3 << 20;

pub fn clock() -> Arc<dyn Clock> {
    Runtime::system().clock
}

/// A deadline that no test reaches.
pub fn late() -> Instant {
    Runtime::system().deadline(Duration::from_mins(1))
}

/// A deadline that is reached.
pub fn soon() -> Instant {
    Runtime::system().deadline(Duration::from_millis(60))
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

pub fn listener() -> Listener {
    let runtime = Runtime::system();
    let address = SocketAddress::unique("kvstored-shm-test", &*runtime.random);
    Listener::bind(address, runtime.clock).unwrap()
}

/// This program again, as a child that connects to that address.
pub fn command(address: &SocketAddress) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["tests::child::child", "--exact", "--test-threads=1"])
        .env(ADDRESS, address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// A process that is killed with its handle.
pub struct Child {
    handle: std::process::Child,
    pub channel: Channel,
    pub process: Arc<PeerProcess>,
}

impl Child {
    pub fn start() -> Self {
        let listener = listener();
        let handle = command(listener.address()).spawn().unwrap();
        let channel = listener.accept(late()).unwrap();
        let hello = String::from_utf8(channel.receive(late()).unwrap().bytes).unwrap();
        let started = StartTime::from_ticks(hello.parse().unwrap());
        let process = Arc::new(channel.process(Some(started)).unwrap());
        assert_eq!(process.pid() as u32, handle.id());
        Self {
            handle,
            channel,
            process,
        }
    }

    /// A child that has mapped the control page, and its name there.
    pub fn attached(page: &ControlPage) -> (Self, AttachmentId) {
        let child = Self::start();
        let attached = page.attach(child.process.clone()).unwrap();
        let descriptors = [page.descriptor(), attached.counts.as_fd()];
        let answer = child.ask_with(&format!("control {}", page.slots()), &descriptors);
        assert_eq!(answer, "ok");
        (child, attached.id)
    }

    pub fn tell(&self, command: &str, descriptors: &[BorrowedFd<'_>]) {
        self.channel
            .send(command.as_bytes(), descriptors, late())
            .unwrap();
    }

    pub fn answer(&self) -> String {
        String::from_utf8(self.channel.receive(late()).unwrap().bytes).unwrap()
    }

    pub fn ask_with(&self, command: &str, descriptors: &[BorrowedFd<'_>]) -> String {
        self.tell(command, descriptors);
        self.answer()
    }

    pub fn ask(&self, command: &str) -> String {
        self.ask_with(command, &[])
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.handle), signal).unwrap();
    }

    /// Kills it, and leaves it as a zombie: its handle reaps it.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        assert!(self.process.wait_exited(&*clock(), late()).unwrap());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.handle.kill();
        let _ = self.handle.wait();
    }
}

/// What a child holds.
#[derive(Default)]
pub struct Belongings {
    pub control: Option<Arc<PeerControl>>,
    pub memory: Option<Arc<PeerMemory>>,
    counts: Option<PeerMemory>,
    entered: HashMap<u32, Vec<InFlight>>,
    own: Vec<u8>,
}

/// Not a test: what a child process does.
#[test]
fn child() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    let channel = Channel::connect(&address.parse().unwrap(), clock(), late()).unwrap();
    let hello = StartTime::own().unwrap().ticks().to_string();
    channel.send(hello.as_bytes(), &[], late()).unwrap();
    let mut belongings = Belongings::default();
    // until the parent goes
    while let Ok(message) = channel.receive(late()) {
        let command = String::from_utf8(message.bytes).unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let answer = belongings.obey(&words, message.descriptors);
        channel.send(answer.as_bytes(), &[], late()).unwrap();
    }
}

impl Belongings {
    fn obey(&mut self, words: &[&str], descriptors: Vec<OwnedFd>) -> String {
        let mut descriptors = descriptors.into_iter();
        match *words {
            ["control", slots] => {
                let (epochs, counts) = (descriptors.next().unwrap(), descriptors.next().unwrap());
                let slots = slots.parse().unwrap();
                let rubbish = counts.try_clone().unwrap();
                self.counts =
                    Some(PeerMemory::map(rubbish, 4096 + u64::from(slots) * 4, Sharing::ReadWrite).unwrap());
                self.control = Some(PeerControl::map(epochs, counts, slots).unwrap());
            }
            ["memory", length, access] => {
                let access = if access == "write" {
                    Sharing::ReadWrite
                } else {
                    Sharing::ReadOnly
                };
                match PeerMemory::map(descriptors.next().unwrap(), length.parse().unwrap(), access) {
                    Ok(memory) => self.memory = Some(Arc::new(memory)),
                    Err(error) => return error.kind().name().to_owned(),
                }
            }
            ["enter", slot, epoch] => {
                let slot = slot.parse().unwrap();
                let control = self.control.as_ref().unwrap();
                let Some(entered) = control.enter(slot, epoch.parse().unwrap()) else {
                    return "fenced".to_owned();
                };
                self.entered.entry(slot).or_default().push(entered);
            }
            ["fenced", slot] => {
                let entered = self.entered.get(&slot.parse().unwrap()).unwrap();
                return entered.last().unwrap().is_fenced().to_string();
            }
            ["leave", slot] => {
                let entered = self.entered.get_mut(&slot.parse().unwrap());
                entered.unwrap().pop().unwrap();
            }
            // into everything that its counts' page has
            ["rubbish", seed] => {
                let counts = self.counts.as_ref().unwrap();
                let seed: u8 = seed.parse().unwrap();
                let bytes: Vec<u8> = (0..counts.length())
                    .map(|index| (index as u8).wrapping_mul(167).wrapping_add(seed))
                    .collect();
                counts.write(0, &bytes).unwrap();
            }
            // changes one count, and wakes the owner, without end
            ["flap", slot] => {
                let counts = self.counts.take().unwrap();
                let at = 4096 + slot.parse::<usize>().unwrap() * 4;
                let word = counts.mapping().word(at).unwrap();
                for round in 1.. {
                    word.store(round % 1000 + 1, std::sync::atomic::Ordering::SeqCst);
                    let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), 1);
                }
            }
            ["read", offset, length] => {
                let mut bytes = vec![0; length.parse().unwrap()];
                let memory = self.memory.as_ref().unwrap();
                memory.read(offset.parse().unwrap(), &mut bytes).unwrap();
                return format!("{bytes:?}");
            }
            ["write", offset, text] => {
                let memory = self.memory.as_ref().unwrap();
                memory.write(offset.parse().unwrap(), text.as_bytes()).unwrap();
            }
            // memory of its own, for others to read and write
            ["own"] => {
                self.own = pattern(PATTERN_BYTES);
                return (self.own.as_mut_ptr().expose_provenance() as u64).to_string();
            }
            ["sum"] => return kvstored_core::checksum::checksum(&self.own).to_string(),
            ["race", threads] => return super::races::run(self, threads.parse().unwrap()),
            ["descriptors"] => return super::descriptors::run(),
            ref other => return format!("what? {other:?}"),
        }
        "ok".to_owned()
    }
}
