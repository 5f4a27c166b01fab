//! A real daemon process: round trips and idling.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::echo::EchoClient;
use super::figure::{Figure, Samples, Side};
use super::setup::Setup;
use crate::tools::latency::Latencies;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests a round.
const ROUND_TRIPS: usize = 5000;
/// Bytes of a smallest request and answer on the wire.
const SMALLEST_BYTES: usize = 16;

/// This program, started again; stopped when dropped.
struct Process {
    child: Child,
    setup_runtime: kvstored_core::Runtime,
}

impl Process {
    fn start(setup: &Setup, arguments: &[&std::ffi::OsStr]) -> Result<Self> {
        let failed = |error| Error::from_io(error, "this program can't be started again");
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self {
            child: command.spawn().map_err(failed)?,
            setup_runtime: setup.runtime.clone(),
        })
    }

    /// Tries until it works, the process ends or the time is up.
    fn connect<T>(&mut self, setup: &Setup, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = setup.runtime.deadline(START_TIMEOUT);
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("the process ended with {status}"),
                ));
            }
            if setup.now() >= deadline {
                return Err(error);
            }
            setup.pause(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // asked first, so that it can clean up
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = self.setup_runtime.deadline(STOP_TIMEOUT);
        while let Ok(None) = self.child.try_wait() {
            if self.setup_runtime.clock.now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

/// A daemon on a temporary directory.
pub struct Daemon {
    /// Connected to it.
    pub client: Arc<Client>,
    process: Process,
    _directories: (TempDir, TempDir),
}

impl Daemon {
    /// Starts one and waits until it serves.
    pub fn start(setup: &Setup) -> Result<Self> {
        let storage = setup.directory()?;
        let (socket_directory, socket) = Setup::socket()?;
        let listen = format!("unix:{}", socket.display());
        let mut process = Process::start(
            setup,
            &[
                "serve".as_ref(),
                "--pipeline".as_ref(),
                "Cache|Posix".as_ref(),
                "--storage-backends".as_ref(),
                storage.path().as_os_str(),
                "--cache-buffer-capacity".as_ref(),
                "512MiB".as_ref(),
                "--posix-capacity".as_ref(),
                "2GiB".as_ref(),
                "--listen".as_ref(),
                listen.as_ref(),
                "--http".as_ref(),
                "off".as_ref(),
                "--log-level".as_ref(),
                "warn".as_ref(),
            ],
        )?;
        let settings = ClientSettings::default();
        let client = process.connect(setup, || {
            Client::connect(&socket, settings.clone(), setup.runtime.clone())
        })?;
        Ok(Self {
            client: Arc::new(client),
            process,
            _directories: (storage, socket_directory),
        })
    }

    /// CPU seconds that the daemon has used, all its threads.
    fn cpu_seconds(&self) -> Result<f64> {
        let failed = |error| Error::from_io(error, "the daemon's CPU time can't be read");
        let mut nanoseconds = 0u64;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.process.child.id())).map_err(failed)? {
            let path = task.map_err(failed)?.path().join("schedstat");
            // a thread may have ended meanwhile
            let text = std::fs::read_to_string(path).unwrap_or_default();
            nanoseconds += text
                .split_whitespace()
                .next()
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(nanoseconds as f64 / 1e9)
    }
}

/// A process that only answers.
pub struct Echo {
    client: EchoClient,
    _process: Process,
    _directory: TempDir,
}

impl Echo {
    /// Starts one for requests and answers of these sizes.
    pub fn start(setup: &Setup, request_bytes: usize, answer_bytes: usize) -> Result<Self> {
        let (directory, socket) = Setup::socket()?;
        let mut process = Process::start(
            setup,
            &["bench".as_ref(), "--echo-socket".as_ref(), socket.as_os_str()],
        )?;
        let stream = process.connect(setup, || connect(&socket))?;
        Ok(Self {
            client: EchoClient::new(stream, request_bytes, answer_bytes)?,
            _process: process,
            _directory: directory,
        })
    }

    /// One round trip.
    pub fn round_trip(&mut self) -> Result<()> {
        self.client.round_trip()
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).map_err(|error| Error::from_io(error, "no connection"))
}

/// Keeps this thread, and what it starts meanwhile, on one processor.
struct Pinned {
    before: CpuSet,
}

impl Pinned {
    fn new() -> Result<Self> {
        let failed = |errno: rustix::io::Errno| Error::from_io(errno.into(), "threads can't be pinned");
        let before = sched_getaffinity(None).map_err(failed)?;
        let mut one = CpuSet::new();
        if let Some(last) = (0..CpuSet::MAX_CPU).rev().find(|cpu| before.is_set(*cpu)) {
            one.set(last);
        }
        sched_setaffinity(None, &one).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(None, &self.before) {
            tracing::warn!(%error, "thread still pinned");
        }
    }
}

/// The median of so many calls, in microseconds.
pub fn median_us(setup: &Setup, calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut latencies = Latencies::new()?;
    for _ in 0..calls {
        let started = setup.now();
        call()?;
        latencies.record(setup.now().saturating_duration_since(started));
    }
    Ok(latencies.quantile_us(0.5))
}

fn round_trip(setup: &Setup, name: &'static str, what: &str) -> Result<Vec<Figure>> {
    let daemon = Daemon::start(setup)?;
    let mut echo = Echo::start(setup, SMALLEST_BYTES, SMALLEST_BYTES)?;
    let samples = Samples::take(setup.rounds, |side| {
        median_us(setup, ROUND_TRIPS, || match side {
            Side::Ours => daemon.client.ping(),
            Side::Limit => echo.round_trip(),
        })
    })?;
    Ok(vec![Figure::new(
        name,
        "us",
        &samples,
        format!("{what}; limit: a process that only answers, placed alike"),
    )])
}

/// Client and daemon on one processor, so that no wake-up crosses processors.
pub fn round_trip_pinned(setup: &Setup) -> Result<Vec<Figure>> {
    let _pinned = Pinned::new()?;
    round_trip(
        setup,
        "daemon_round_trip_p50",
        "client and daemon on one processor",
    )
}

/// Client and daemon wherever the system puts them.
pub fn round_trip_unpinned(setup: &Setup) -> Result<Vec<Figure>> {
    round_trip(
        setup,
        "daemon_round_trip_p50_unpinned",
        "client and daemon on any processor",
    )
}

/// CPU time of a daemon that nobody asks for anything.
pub fn idle(setup: &Setup) -> Result<Vec<Figure>> {
    let daemon = Daemon::start(setup)?;
    let seconds = if setup.full { 60 } else { 10 };
    setup.pause(Duration::from_secs(2));
    let samples = Samples::alone(1, || {
        let (before, started) = (daemon.cpu_seconds()?, setup.now());
        setup.pause(Duration::from_secs(seconds));
        Ok((daemon.cpu_seconds()? - before) / setup.since(started) * 100.0)
    })?;
    Ok(vec![Figure::new(
        "idle_cpu_percent",
        "%",
        &samples,
        format!("of one processor, in {seconds} s, one client connected"),
    )])
}
