//! Processes of their own: this test program again, which then serves or asks as it's told over its standard input.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::rig::{asking, listening, over, over_each_transport, pattern, soon, start};
use crate::{
    EngineId, EngineSettings, GRANT_BYTES, Grant, Rights, TransferEntry, TransferKind, TransportKind,
};

over_each_transport! {
    two_processes_move_bytes_both_ways,
}

const ROLE: &str = "KVSTORED_TRANSFER_CHILD";
const OVER: &str = "KVSTORED_TRANSFER_OVER";
const ANSWER: &str = "answer ";
pub const BYTES: usize = 32 << 20;

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A process that is killed with its handle.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(role: &str, over: TransportKind) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "tests::child::child",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .env(OVER, over.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    /// The next thing that it answers.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the process has ended"
            );
            // the test harness doesn't end its line before the test's own begins
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim().to_owned();
            }
        }
    }

    pub fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").unwrap();
        self.answer()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it, and returns when none of its threads runs any more.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let process = WaitId::Pid(Pid::from_child(&self.child));
        waitid(process, WaitIdOptions::STOPPED).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that serves [`BYTES`] of `pattern(BYTES, 1)`.
pub struct Server {
    pub process: Process,
    pub address: String,
}

impl Server {
    pub fn start(over: TransportKind) -> Self {
        let mut process = Process::start("serve", over);
        let address = process.answer();
        Self { process, address }
    }

    pub fn grant(&mut self, peer: EngineId) -> Grant {
        let answer = self.process.ask(&format!("grant {}", hex(&peer.to_bytes())));
        Grant::decode(&unhex(&answer)).unwrap()
    }

    /// A grant, and what the server foretells of it.
    pub fn foretold(&mut self, peer: EngineId) -> (Grant, Vec<u8>) {
        let answer = self.process.ask(&format!("foretell {}", hex(&peer.to_bytes())));
        let (grant, worth) = answer.split_once(' ').expect("the peer has attached");
        (Grant::decode(&unhex(grant)).unwrap(), unhex(worth))
    }

    /// Makes it revoke a grant, so that whoever shares the memory has to ask again what others are worth.
    pub fn disturb(&mut self, peer: EngineId) {
        let answer = self.process.ask(&format!("disturb {}", hex(&peer.to_bytes())));
        assert_eq!(answer, "disturbed");
    }
}

fn transport() -> TransportKind {
    std::env::var(OVER).unwrap().parse().unwrap()
}

fn say(answer: &str) {
    println!("{ANSWER}{answer}");
}

/// Not a test: what a child process does.
#[test]
fn child() {
    match std::env::var(ROLE).as_deref() {
        Ok("serve") => serve(),
        Ok("ask") => ask(),
        _ => {}
    }
}

fn serve() {
    let engine = start(EngineSettings {
        peer_timeout: Duration::from_secs(1),
        ..over(transport(), listening())
    });
    let region = engine.allocate(BYTES).unwrap();
    region.write(0, &pattern(BYTES, 1)).unwrap();
    let publication = engine.publish(region.id(), 0, BYTES as u64).unwrap();
    let grant = |peer: &str| {
        let request = crate::GrantRequest {
            peer: EngineId::from_bytes(unhex(peer).try_into().unwrap()),
            publication: publication.id(),
            offset: 0,
            length: BYTES as u64,
            rights: Rights::ReadWrite,
            expires_in: Duration::from_hours(1),
        };
        engine.grant(request).unwrap()
    };
    say(&engine.address().unwrap().to_string());
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["grant", peer] => say(&hex(&grant(peer).encode())),
            ["foretell", peer] => {
                let grant = grant(peer);
                let worth = engine.foretell(&grant).unwrap_or_default();
                say(&format!("{} {}", hex(&grant.encode()), hex(&worth)));
            }
            ["disturb", peer] => {
                engine.revoke(&grant(peer));
                say("disturbed");
            }
            _ => say("what?"),
        }
    }
}

/// Reads or writes for ever, as fast as it can.
fn ask() {
    let engine = start(EngineSettings {
        peer_timeout: Duration::from_secs(1),
        ..over(transport(), asking())
    });
    let region = engine.allocate(BYTES).unwrap();
    say(&hex(&engine.identity().to_bytes()));
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [kind, address, granted] = words[..] else {
        panic!("asked \"{line}\"")
    };
    let kind = if kind == "write" {
        TransferKind::Write
    } else {
        TransferKind::Read
    };
    let granted = unhex(granted);
    assert_eq!(granted.len(), GRANT_BYTES);
    let granted = Grant::decode(&granted).unwrap();
    let peer = engine.open_peer(address, soon()).unwrap();
    let mut rounds = 0;
    loop {
        let entry = TransferEntry {
            local: region.id(),
            local_offset: 0,
            grant: granted,
            remote_offset: 0,
            length: BYTES as u64,
        };
        let outcome = engine
            .submit(&peer, kind, vec![entry], soon())
            .and_then(|transfer| transfer.wait(soon()));
        if let Err(error) = outcome {
            say(error.kind().name());
            // stays, so that it's the parent who ends it
            let _ = std::io::stdin().lock().read_line(&mut line);
            return;
        }
        rounds += 1;
        if rounds == 3 {
            say("going");
        }
    }
}

/// A process that asks without end; it has the right to all of a publication.
pub fn asker(rig: &super::rig::Rig, kind: &str, over: TransportKind) -> Process {
    let mut process = Process::start("ask", over);
    let name = EngineId::from_bytes(unhex(&process.answer()).try_into().unwrap());
    let granted = rig
        .server
        .grant(crate::GrantRequest {
            peer: name,
            publication: rig.publication.id(),
            offset: 0,
            length: BYTES as u64,
            rights: Rights::ReadWrite,
            expires_in: Duration::from_hours(1),
        })
        .unwrap();
    let address = rig.server.address().unwrap();
    let question = format!("{kind} {address} {}", hex(&granted.encode()));
    assert_eq!(process.ask(&question), "going");
    process
}

fn two_processes_move_bytes_both_ways(transport: TransportKind) {
    let mut server = Server::start(transport);
    let client = start(over(transport, asking()));
    let region = client.allocate(BYTES).unwrap();
    let peer = client.open_peer(&server.address, soon()).unwrap();
    let granted = server.grant(client.identity());
    let run = |kind, local_offset, remote_offset, length| {
        let entry = TransferEntry {
            local: region.id(),
            local_offset,
            grant: granted,
            remote_offset,
            length,
        };
        client
            .submit(&peer, kind, vec![entry], soon())
            .unwrap()
            .wait(soon())
            .unwrap();
    };
    run(TransferKind::Read, 0, 0, BYTES as u64);
    assert!(super::rig::contents(&region, 0, BYTES) == pattern(BYTES, 1));
    region.write(0, &pattern(BYTES, 2)).unwrap();
    run(TransferKind::Write, 5, 3, 5_000_001);
    region.write(0, &vec![0; BYTES]).unwrap();
    run(TransferKind::Read, 0, 0, BYTES as u64);
    let (before, written) = (pattern(BYTES, 1), pattern(BYTES, 2));
    let here = super::rig::contents(&region, 0, BYTES);
    assert!(here[..3] == before[..3] && here[5_000_004..] == before[5_000_004..]);
    assert!(here[3..5_000_004] == written[5..5_000_006]);
}
