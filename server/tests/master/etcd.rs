//! A real etcd of one member or several, if there is one on this machine.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::until;

pub struct Etcd {
    child: Child,
    pub address: String,
    _data: tempfile::TempDir,
}

fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join("etcd"))
        .find(|path| path.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Etcd {
    /// Starts one, or says loudly that a test is left out.
    pub fn start() -> Option<Self> {
        Self::start_members(1)?.pop()
    }

    /// Starts several that are one etcd, or says loudly that a test is left out.
    pub fn start_members(count: usize) -> Option<Vec<Self>> {
        let Some(program) = program() else {
            eprintln!(
                "SKIPPED: etcd isn't installed (Debian's package etcd-server); elections weren't tested"
            );
            return None;
        };
        // etcd can't choose a port by itself; another process may take it in between
        (0..5)
            .find_map(|_| Self::try_start(&program, count))
            .or_else(|| panic!("etcd doesn't start"))
    }

    fn try_start(program: &Path, count: usize) -> Option<Vec<Self>> {
        let url = || format!("http://127.0.0.1:{}", free_port());
        let peers: Vec<(String, String)> = (0..count).map(|index| (format!("test-{index}"), url())).collect();
        let all: Vec<String> = peers
            .iter()
            .map(|(name, peer)| format!("{name}={peer}"))
            .collect();
        let mut members: Vec<Self> = peers
            .iter()
            .map(|(name, peer)| Self::spawn(program, name, peer, &url(), &all.join(",")))
            .collect();
        let mut ended = false;
        for member in &mut members {
            until("etcd", || {
                ended |= member.child.try_wait().unwrap().is_some();
                ended || std::net::TcpStream::connect(&member.address).is_ok()
            });
        }
        (!ended).then_some(members)
    }

    fn spawn(program: &Path, name: &str, peer: &str, client: &str, all: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let child = Command::new(program)
            .args(["--name", name, "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", all])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address: client.trim_start_matches("http://").to_owned(),
            _data: data,
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
