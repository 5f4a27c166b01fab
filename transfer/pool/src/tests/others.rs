//! Masters, and processes of their own for nodes and masters.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kvstored_core::Runtime;
use kvstored_master::MasterSettings;
use kvstored_master::client::ClientSettings as MasterClientSettings;
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_transfer::{EngineSettings, TransportKind};
use rustix::process::{Pid, Signal, kill_process};

use super::soon;
use crate::{ClientSettings, MasterDirectory, Membership, NodeId, NodeSettings, PoolClient};

const MASTER: &str = "KVSTORED_TEST_MASTER";
const TRANSPORT: &str = "KVSTORED_TEST_TRANSPORT";

pub fn start_master(listen: SocketAddr) -> MasterServer {
    let settings = ServerSettings {
        listen,
        ..ServerSettings::default()
    };
    MasterServer::start(settings, MasterSettings::default(), Runtime::system()).unwrap()
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn join(master: SocketAddr, lends: u64, transport: TransportKind) -> Arc<PoolClient> {
    let masters = MasterClientSettings {
        endpoints: vec![master.to_string()],
        ..MasterClientSettings::default()
    };
    let membership = Membership {
        engine: EngineSettings {
            listen: Some(any_port()),
            transports: vec![transport],
            ..EngineSettings::default()
        },
        node: NodeSettings {
            segment_bytes: lends,
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

/// A node in a process of its own: says who it is, and lives until its standard input ends.
#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn lender() {
    let (Ok(master), Ok(transport)) = (std::env::var(MASTER), std::env::var(TRANSPORT)) else {
        return;
    };
    let client = join(master.parse().unwrap(), 64 << 20, transport.parse().unwrap());
    let id: Vec<String> = client
        .node()
        .unwrap()
        .id()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("lending {}", id.concat());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    client.close();
}

/// A master in a process of its own.
#[test]
#[ignore = "run by a test below, in a process of its own"]
fn master() {
    if std::env::var(MASTER).is_err() {
        return;
    }
    let master = start_master(any_port());
    println!("leading {}", master.address());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A process that does what one of the tests above does.
pub struct Other {
    pub child: Child,
    pub said: String,
}

impl Other {
    /// Starts it, and waits until it says something behind that word.
    pub fn start(test: &str, master: &str, transport: TransportKind, word: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", test])
            .env(MASTER, master)
            .env(TRANSPORT, transport.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once(word)?.1.trim().to_owned()))
            .expect("it says what it is");
        Self { child, said }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // a stopped process takes this signal, too
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Lender {
    pub process: Other,
    pub id: NodeId,
}

impl Lender {
    pub fn start(master: SocketAddr, transport: TransportKind) -> Self {
        let process = Other::start(
            "tests::others::lender",
            &master.to_string(),
            transport,
            "lending ",
        );
        let mut id = NodeId::default();
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&process.said[2 * at..2 * at + 2], 16).unwrap();
        }
        Self { process, id }
    }

    pub fn kill(&mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
    }
}
