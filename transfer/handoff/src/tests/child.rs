//! A producer in a process of its own: this test program again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kvstored_transfer::TransportKind;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::rig::{Engine, Model, PATIENCE, settings};
use crate::RemoteRequest;

const ROLE: &str = "KVSTORED_HANDOFF_CHILD";
const ANSWER: &str = "answer ";

/// A process that holds requests, and is killed with its handle.
pub struct Producer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Producer {
    pub fn start(over: TransportKind) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "tests::child::child",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, over.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut producer = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            address: String::new(),
        };
        producer.address = producer.answer();
        producer
    }

    fn answer(&mut self) -> String {
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

    /// Has it hold all of its blocks.
    pub fn hold(&mut self, request: &str) -> RemoteRequest {
        self.tell(request, request)
    }

    /// Has it announce a request of all its blocks, and compute some.
    pub fn compute(&mut self, request: &str, blocks: u32) -> RemoteRequest {
        self.tell(&format!("{request} {blocks}"), request)
    }

    fn tell(&mut self, line: &str, request: &str) -> RemoteRequest {
        writeln!(self.input, "{line}").unwrap();
        assert_eq!(self.answer(), "held");
        RemoteRequest {
            engine_id: "child".to_owned(),
            request: request.to_owned(),
            producers: vec![self.address.clone()],
        }
    }

    /// Stops it, and returns when none of its threads runs any more.
    pub fn stop(&self) {
        let process = Pid::from_child(&self.child);
        kill_process(process, Signal::STOP).unwrap();
        waitid(WaitId::Pid(process), WaitIdOptions::STOPPED).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what a child process does.
#[test]
fn child() {
    let Ok(over) = std::env::var(ROLE) else {
        return;
    };
    let settings = settings(over.parse().unwrap());
    let engine = Engine::with(&settings, LARGE, MANY, "child", 1, 1);
    println!("{ANSWER}{}", engine.ranks[0].address());
    let blocks: Vec<u32> = (0..MANY).collect();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            None => engine.hold(&line, &blocks),
            Some((request, computed)) => {
                let rank = &engine.ranks[0];
                // from the second time on it is known
                if rank.handoff.announce(request, PATIENCE).is_ok() {
                    assert!(rank.handoff.extend(request, &blocks).unwrap());
                }
                let computed: u32 = computed.parse().unwrap();
                for (content, block) in (100..).zip(&blocks[..computed as usize]) {
                    rank.fill(*block, content);
                }
                rank.handoff.advance(request, None, computed);
            }
        }
        println!("{ANSWER}held");
    }
}

/// So much that a pull takes a while.
pub const LARGE: Model = Model {
    layers: 4,
    heads: 4,
    pieces: 2,
    rows: 1,
    head_bytes: 32 << 10,
};
pub const MANY: u32 = 64;
