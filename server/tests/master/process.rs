//! A master in a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kvstored_core::Runtime;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub fn kvstored(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstored"));
    command
        .args(arguments)
        .env_remove("KVSTORED_LOG")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("MOONCAKE_MASTER")
        .stdin(Stdio::null());
    command
}

/// Killed when it's dropped.
pub struct Master {
    child: Child,
    pub address: String,
    /// What it has logged since it listens.
    log: Arc<Mutex<Vec<String>>>,
}

impl Master {
    /// Starts one with those flags beside free ports, and waits until it listens.
    pub fn start(flags: &[&str]) -> Self {
        let mut arguments = vec!["master"];
        if !flags.contains(&"--port") {
            arguments.extend(["--port", "0"]);
        }
        arguments.extend([
            "--metrics_port",
            "0",
            "--log_format",
            "json",
            "--log_level",
            "info",
        ]);
        arguments.extend(flags);
        let mut child = kvstored(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let started = loop {
            let mut line = String::new();
            log.read_line(&mut line).unwrap();
            assert!(!line.is_empty(), "the master ended early:\n{seen}");
            seen.push_str(&line);
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "kvstored master starts" {
                break line;
            }
        };
        // its log goes on somewhere, or it would block one day
        let kept = Arc::new(Mutex::new(Vec::new()));
        let into = kept.clone();
        let drain = move || {
            for line in log.lines().map_while(Result::ok) {
                if std::env::var_os("KVSTORED_TEST_LOG").is_some() {
                    eprintln!("{line}");
                }
                into.lock().push(line);
            }
        };
        let spawner = Runtime::system().spawner;
        drop(spawner.spawn("log", Box::new(drain)).unwrap());
        Self {
            child,
            address: started["listen"].as_str().unwrap().to_owned(),
            log: kept,
        }
    }

    /// Whether a line that it has logged since it listens has those words.
    pub fn said(&self, words: &str) -> bool {
        self.log.lock().iter().any(|line| line.contains(words))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it the hard way.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.address.clone()
    }

    /// Asks it to end, and waits. Returns whether it ended well.
    pub fn terminate(mut self) -> bool {
        self.signal(Signal::TERM);
        self.child.wait().unwrap().success()
    }

    /// How often its threads went to sleep by themselves.
    pub fn rests(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let count = |path: std::path::PathBuf| {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|count| count.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        tasks.map(|task| count(task.unwrap().path())).sum()
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
