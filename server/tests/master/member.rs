//! A member of the pool in a process of its own: it lends memory if it's told to, and puts and gets what it's asked for.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, Result, Runtime};
use kvstored_master::client::{ClientSettings as MasterClientSettings, ClientTls};
use kvstored_master::{node_name, parse_node};
use kvstored_pool::{
    ClientSettings, MasterDirectory, Membership, NodeSettings, Piece, PoolClient, PutOptions,
};
use kvstored_transfer::{EngineSettings, Secret, TlsSettings};

use super::{certificates, key, soon};

const PLAN: &str = "KVSTORED_TEST_MEMBER";
/// What every answer begins with, since a test's output has other lines as well.
const ANSWER: &str = "member: ";
/// The token of pools that are secured.
pub const TOKEN: &str = "a-token-of-the-tests";

/// What a member is.
pub struct Plan<'a> {
    pub master: &'a str,
    pub lends: u64,
    /// Its name, and that of its certificate.
    pub name: &'a str,
    pub transport: &'a str,
    /// A folder with certificates.
    pub tls: Option<&'a Path>,
}

/// See the module's page. Killed when it's dropped.
pub struct Member {
    child: Child,
    /// `None` once it's to leave.
    questions: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    /// The node that it is.
    pub node: String,
}

impl Member {
    /// Starts one, and waits until its memory is taken.
    pub fn start(plan: &Plan<'_>) -> Self {
        let tls = plan.tls.map_or("", |folder| folder.to_str().unwrap());
        let lends = plan.lends.to_string();
        let words = [plan.master, &lends, plan.name, plan.transport, tls];
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "member::member"])
            .env(PLAN, words.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut member = Self {
            questions: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
            node: String::new(),
        };
        member.node = member.answer();
        member
    }

    /// Puts the object with that number; "ok", or the kind of the error.
    pub fn put(&mut self, number: u64, bytes: usize, replicas: u32, node: &str) -> String {
        self.ask(&format!("put {number} {bytes} {replicas} {node}"))
    }

    /// Gets the object with that number, within that time; "ok", "wrong" for other bytes than were put, or the kind of the
    /// error; and how long it took.
    pub fn get(&mut self, number: u64, bytes: usize, within: Duration) -> (String, Duration) {
        let answer = self.ask(&format!("get {number} {bytes} {}", within.as_millis()));
        let (word, micros) = answer.split_once(' ').unwrap();
        (word.to_owned(), Duration::from_micros(micros.parse().unwrap()))
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions.as_ref().unwrap(), "{question}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let answer = |line: std::io::Result<String>| Some(line.unwrap().split_once(ANSWER)?.1.to_owned());
        self.answers.find_map(answer).expect("the member has ended")
    }

    /// Ends it the hard way.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it leave. Returns whether it ended well.
    pub fn leave(mut self) -> bool {
        self.questions = None;
        self.child.wait().unwrap().success()
    }
}

/// The other process.
#[test]
#[ignore = "run by the tests of pools, in a process of its own"]
fn member() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let words: Vec<&str> = plan.split('\n').collect();
    let [master, lends, name, transport, tls] = words[..] else {
        panic!("no such plan: {plan}")
    };
    let client = join(&Plan {
        master,
        lends: lends.parse().unwrap(),
        name,
        transport,
        tls: (!tls.is_empty()).then(|| Path::new(tls)),
    });
    let node = client.node().map(|node| node_name(&node.id()));
    println!("{ANSWER}{}", node.as_deref().unwrap_or("-"));
    let buffer = client.allocate(2 << 20).unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        println!("{ANSWER}{}", obey(&client, buffer, &words));
    }
    client.close();
}

fn join(plan: &Plan<'_>) -> Arc<PoolClient> {
    let path = |make: fn(&Path, &str) -> PathBuf, folder: &Path| make(folder, plan.name);
    let masters = MasterClientSettings {
        endpoints: vec![plan.master.to_owned()],
        token: plan.tls.map(|_| TOKEN.into()),
        tls: plan.tls.map(|folder| ClientTls {
            authority: certificates::authority(folder),
            identity: Some((
                path(certificates::certificate, folder),
                path(certificates::key, folder),
            )),
            server_name: None,
        }),
        ..MasterClientSettings::default()
    };
    let membership = Membership {
        engine: EngineSettings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            token: plan.tls.map(|_| Secret::new(TOKEN)),
            tls: plan.tls.map(|folder| TlsSettings {
                certificate: path(certificates::certificate, folder),
                key: path(certificates::key, folder),
                authority: certificates::authority(folder),
                peer_name: None,
            }),
            transports: vec![plan.transport.parse().unwrap()],
            ..EngineSettings::default()
        },
        node: NodeSettings {
            segment_bytes: plan.lends,
            name: plan.name.to_owned(),
            ..NodeSettings::default()
        },
        client: ClientSettings::default(),
    };
    let runtime = Runtime::system();
    let directory = MasterDirectory::new(masters, runtime.clone()).unwrap();
    let client = membership.join(directory, runtime).unwrap();
    if let Some(node) = client.node() {
        node.wait_mounted(soon()).unwrap();
    }
    client
}

/// Does what a question wants; the answer.
fn obey(client: &PoolClient, buffer: Piece, words: &[&str]) -> String {
    let number: u64 = words[1].parse().unwrap();
    let bytes: usize = words[2].parse().unwrap();
    let piece = Piece {
        address: buffer.address,
        length: bytes,
    };
    let name = key(&number.to_string());
    let kind = |outcome: Result<()>| match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.kind().name().to_owned(),
    };
    match words[0] {
        "put" => {
            contents::write(piece, number);
            let options = PutOptions {
                replicas: words[3].parse().unwrap(),
                prefer: parse_node(words[4]),
                ..PutOptions::default()
            };
            kind(client.put(&name, &[piece], &options, soon()))
        }
        "get" => {
            contents::write(piece, u64::MAX);
            let clock = Runtime::system().clock;
            let before = clock.now();
            let deadline = before + Duration::from_millis(words[3].parse().unwrap());
            let got = client.get(&name, &[piece], deadline);
            let took = (clock.now() - before).as_micros();
            let word = match got {
                Ok(length) if length != bytes as u64 || !contents::are(piece, number) => "wrong".to_owned(),
                other => kind(other.map(drop)),
            };
            format!("{word} {took}")
        }
        other => kind(Err(Error::invalid(format!("no such question: {other}")))),
    }
}

/// Bytes that follow from an object's number.
mod contents {
    #![allow(unsafe_code)]

    use kvstored_pool::Piece;

    fn byte(number: u64, at: usize) -> u8 {
        let mixed = (number ^ (at as u64 >> 3)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> (8 * (at & 7))) as u8
    }

    pub fn write(piece: Piece, number: u64) {
        for at in 0..piece.length {
            // SAFETY: the piece is memory that this process's client allocated, and no call is under way.
            unsafe { *((piece.address + at) as *mut u8) = byte(number, at) };
        }
    }

    pub fn are(piece: Piece, number: u64) -> bool {
        // SAFETY: as above.
        (0..piece.length).all(|at| unsafe { *((piece.address + at) as *const u8) } == byte(number, at))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
