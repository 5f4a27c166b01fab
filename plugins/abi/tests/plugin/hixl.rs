//! Transfers between two processes over the plugin for HIXL and an emulator of its library.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvstored_core::checksum::checksum;
use kvstored_core::{Error, ErrorKind, Runtime, TransportFactory};
use kvstored_transfer::{
    EngineSettings, Grant, GrantRequest, Peer, Region, Rights, TransferEngine, TransferEntry, TransferKind,
    TransportKind,
};

use crate::support::{Directory, PATIENCE, beside};

const OWNER: &str = "KVSTORED_TEST_HIXL_OWNER";
const BYTES: usize = 4 << 20;
const ASCEND: TransportKind = TransportKind::Ascend;
const TCP: TransportKind = TransportKind::Tcp;

fn emulator() -> String {
    beside("libkvstored_emulated_hixl.so").display().to_string()
}

/// The plugin as the daemon loads it, over that library.
fn factory(library: String, listen: Option<String>) -> TransportFactory {
    TransportFactory::new(move || {
        let directory = Directory::new();
        directory.copy_built("libkvstored_plugin_hixl.so", "hixl");
        directory.list();
        let mut settings = vec![("address", "127.0.0.1"), ("library", library.as_str())];
        settings.extend(listen.as_deref().map(|listen| ("listen", listen)));
        Ok(directory.open_transport("hixl", &settings)?)
    })
}

fn engine(transports: &[TransportKind], factory: TransportFactory) -> Arc<TransferEngine> {
    let settings = EngineSettings {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        transports: transports.to_vec(),
        ascend: Some(factory),
        ..EngineSettings::default()
    };
    TransferEngine::start(settings, Runtime::system()).unwrap()
}

fn soon() -> Instant {
    Runtime::system().deadline(PATIENCE)
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..BYTES)
        .map(|at| (at / 3) as u8 ^ (at >> 11) as u8 ^ seed)
        .collect()
}

type Set = unsafe extern "C" fn(*const c_char, u64) -> i32;

fn set_fault(name: &str, value: u64) {
    // SAFETY: the function has that type; the library is the one that the plugin has loaded, and isn't unloaded by it.
    unsafe {
        let library = libloading::Library::new(emulator()).unwrap();
        let set = library.get::<Set>(b"kvstored_emulator_hixl_set\0").unwrap();
        assert_eq!(set(CString::new(name).unwrap().as_ptr(), value), 0);
    }
}

/// The process that owns memory. It does nothing unless another test has started it, and ends when its input does.
#[test]
fn an_owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let engine = engine(&[ASCEND, TCP], factory(emulator(), None));
    let region = engine.allocate(BYTES).unwrap();
    region.write(0, &pattern(0)).unwrap();
    let publication = engine.publish(region.id(), 0, BYTES as u64).unwrap();
    let (own, last) = (Arc::downgrade(&engine), Mutex::new(None::<Grant>));
    let contents = region.clone();
    engine.set_responder(Some(Arc::new(move |peer, question| {
        let engine = own.upgrade().ok_or_else(|| Error::internal("gone"))?;
        let words = String::from_utf8_lossy(question);
        let mut words = words.split(' ');
        match words.next() {
            Some("grant") => {
                let grant = engine.grant(GrantRequest {
                    peer,
                    publication: publication.id(),
                    offset: 0,
                    length: BYTES as u64,
                    rights: Rights::ReadWrite,
                    expires_in: Duration::from_hours(1),
                })?;
                *last.lock().unwrap() = Some(grant);
                Ok(grant.encode().to_vec())
            }
            Some("revoke") => {
                engine.revoke(&last.lock().unwrap().unwrap());
                Ok(Vec::new())
            }
            Some("sum") => {
                let mut bytes = vec![0; BYTES];
                contents.read(0, &mut bytes)?;
                Ok(checksum(&bytes).to_le_bytes().to_vec())
            }
            Some("fault") => {
                set_fault(words.next().unwrap(), words.next().unwrap().parse().unwrap());
                Ok(Vec::new())
            }
            _ => Err(Error::invalid("no such question")),
        }
    })));
    println!("\nserves at {}", engine.address().unwrap());
    let _ = std::io::stdin().read(&mut [0]);
    engine.shutdown();
}

/// An engine of this process, and one of another.
struct Pair {
    engine: Arc<TransferEngine>,
    owner: Child,
    peer: Peer,
    local: Region,
    grant: Grant,
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

impl Pair {
    fn new(transports: &[TransportKind]) -> Self {
        Self::with(transports, &[], emulator())
    }

    fn with(transports: &[TransportKind], faults: &[(&str, &str)], library: String) -> Self {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hixl::an_owner", "--nocapture"])
            .env(OWNER, "1")
            .envs(faults.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        let address = lines
            .map(|line| line.unwrap())
            .find_map(|line| line.strip_prefix("serves at ").map(str::to_owned))
            .expect("an address");
        // one that no other test has
        let first = 20_000 + (std::process::id() % 40_000) as u16;
        let listen = format!("127.0.0.1:{first}-{}", first + 63);
        let engine = engine(transports, factory(library, Some(listen)));
        let peer = engine.open_peer(&address, soon()).unwrap();
        let grant = Grant::decode(&peer.ask(b"grant", soon()).unwrap()).unwrap();
        let local = engine.allocate(BYTES).unwrap();
        Self {
            engine,
            owner,
            peer,
            local,
            grant,
        }
    }

    fn fault(&self, name: &str, value: u64) {
        self.peer
            .ask(format!("fault {name} {value}").as_bytes(), soon())
            .unwrap();
    }

    fn run(
        &self,
        kind: TransferKind,
        grant: Grant,
        length: u64,
        deadline: Instant,
    ) -> kvstored_core::Result<()> {
        let entry = TransferEntry {
            local: self.local.id(),
            local_offset: 0,
            grant,
            remote_offset: 0,
            length,
        };
        self.engine
            .submit(&self.peer, kind, vec![entry], deadline)?
            .wait(soon())
    }

    fn refusal(&self, kind: TransferKind, grant: Grant) -> ErrorKind {
        self.run(kind, grant, 4096, soon()).unwrap_err().kind()
    }

    fn local(&self) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        self.local.read(0, &mut bytes).unwrap();
        bytes
    }

    /// Writes all of the other's memory and reads it back.
    fn writes_and_reads(&self, seed: u8) {
        let bytes = pattern(seed);
        self.local.write(0, &bytes).unwrap();
        self.run(TransferKind::Write, self.grant, BYTES as u64, soon())
            .unwrap();
        let sum = self.peer.ask(b"sum", soon()).unwrap();
        assert_eq!(sum, checksum(&bytes).to_le_bytes());
        self.local.write(0, &vec![0; BYTES]).unwrap();
        self.run(TransferKind::Read, self.grant, BYTES as u64, soon())
            .unwrap();
        assert!(self.local() == bytes);
    }

    fn moved(&self, transport: TransportKind) -> u64 {
        let rows = self.engine.counters();
        let rows = rows.iter().filter(|row| row.transport == transport);
        rows.map(|row| row.read_bytes + row.written_bytes).sum()
    }

    fn times_out(&self) {
        let deadline = Runtime::system().deadline(Duration::from_millis(200));
        let error = self
            .run(TransferKind::Read, self.grant, BYTES as u64, deadline)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}

#[test]
fn another_process_is_read_and_written() {
    let pair = Pair::new(&[ASCEND]);
    assert_eq!(pair.peer.transport(), ASCEND);
    pair.run(TransferKind::Read, pair.grant, BYTES as u64, soon())
        .unwrap();
    assert!(pair.local() == pattern(0));
    for seed in 1..4 {
        pair.writes_and_reads(seed);
    }
    assert_eq!(pair.moved(ASCEND), 7 * BYTES as u64);
    pair.engine.unregister(pair.local.id(), soon()).unwrap();
}

#[test]
fn transports_that_share_a_range_of_ports_have_one_each() {
    let first = 61_000 + (std::process::id() % 2_000) as u16 * 2;
    let listen = format!("127.0.0.1:{first}-{}", first + 1);
    let factory = factory(emulator(), Some(listen));
    let both = [factory.open().unwrap(), factory.open().unwrap()];
    assert_ne!(both[0].address().unwrap(), both[1].address().unwrap());
    let Err(error) = factory.open() else {
        panic!("a third one listens")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    drop(both);
}

#[test]
fn a_wrong_grant_and_a_revoked_one_are_refused() {
    let pair = Pair::new(&[ASCEND]);
    pair.writes_and_reads(1);
    for byte in [10, 60, 100, 127] {
        let mut bytes = pair.grant.encode();
        bytes[byte] ^= 1;
        let Ok(altered) = Grant::decode(&bytes) else {
            continue;
        };
        let refused = pair.run(TransferKind::Write, altered, 4096, soon());
        assert_eq!(
            refused.unwrap_err().kind(),
            ErrorKind::PermissionDenied,
            "byte {byte}"
        );
    }
    pair.local.write(0, &pattern(9)).unwrap();
    pair.peer.ask(b"revoke", soon()).unwrap();
    assert_eq!(
        pair.refusal(TransferKind::Write, pair.grant),
        ErrorKind::PermissionDenied
    );
    assert_eq!(
        pair.refusal(TransferKind::Read, pair.grant),
        ErrorKind::PermissionDenied
    );
    assert_eq!(
        pair.peer.ask(b"sum", soon()).unwrap(),
        checksum(&pattern(1)).to_le_bytes()
    );
}

#[test]
fn a_transfer_that_never_ends_fails_at_its_deadline_and_the_next_one_works() {
    let pair = Pair::new(&[ASCEND]);
    pair.fault("HANG", 1);
    pair.times_out();
    pair.fault("HANG", 0);
    pair.writes_and_reads(1);
    pair.engine.unregister(pair.local.id(), soon()).unwrap();
}

#[test]
fn a_transfer_that_never_ends_and_cannot_be_ended_loses_the_memory() {
    let pair = Pair::new(&[ASCEND, TCP]);
    pair.writes_and_reads(4);
    assert_eq!(pair.moved(ASCEND), 2 * BYTES as u64);
    pair.fault("HANG", 1);
    pair.fault("DESTROY", 1);
    pair.times_out();
    pair.local.write(0, &pattern(5)).unwrap();
    // what goes on over there now finds no memory here
    pair.fault("HANG", 0);
    let until = Runtime::system().deadline(Duration::from_millis(300));
    while Runtime::system().clock.now() < until {
        assert!(pair.local() == pattern(5));
    }
    pair.writes_and_reads(6);
    assert_eq!(pair.moved(TCP), 2 * BYTES as u64);
    pair.engine.unregister(pair.local.id(), soon()).unwrap();
}

#[test]
fn what_fails_on_the_way_goes_on_over_sockets() {
    for fault in ["SHORT", "SUBMIT", "QUERY", "FAIL_EVERY"] {
        let pair = Pair::new(&[ASCEND, TCP]);
        assert_eq!(pair.peer.transport(), ASCEND);
        pair.fault(fault, 1);
        pair.writes_and_reads(2);
        assert_eq!(
            (pair.moved(ASCEND), pair.moved(TCP)),
            (0, 2 * BYTES as u64),
            "{fault}"
        );
    }
}

#[test]
fn sockets_are_used_where_nobody_connects_or_there_is_no_library() {
    let refusing = [("KVSTORED_EMULATOR_HIXL_REFUSE", "1")];
    for pair in [
        Pair::with(&[ASCEND, TCP], &refusing, emulator()),
        Pair::with(&[ASCEND, TCP], &[], "/nowhere/libcann_hixl.so".to_owned()),
    ] {
        assert_eq!(pair.peer.transport(), TCP);
        pair.writes_and_reads(3);
    }
}

#[test]
fn a_peer_that_is_killed_ends_what_is_under_way() {
    let mut pair = Pair::new(&[ASCEND]);
    pair.fault("HANG", 1);
    let entry = TransferEntry {
        local: pair.local.id(),
        local_offset: 0,
        grant: pair.grant,
        remote_offset: 0,
        length: BYTES as u64,
    };
    let transfer = pair
        .engine
        .submit(&pair.peer, TransferKind::Read, vec![entry], soon())
        .unwrap();
    pair.owner.kill().unwrap();
    assert_eq!(transfer.wait(soon()).unwrap_err().kind(), ErrorKind::Unavailable);
    pair.engine.unregister(pair.local.id(), soon()).unwrap();
}
