//! Daemon processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::{Error, ErrorKind, Result, Runtime};

/// The `kvstored` binary beside the running test, built first where it's missing.
pub fn binary() -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(|error| Error::from_io(error, "current executable"))?;
    let profile = exe
        .ancestors()
        .find(|folder| {
            folder
                .file_name()
                .is_some_and(|name| name == "debug" || name == "release")
        })
        .ok_or_else(|| Error::internal("not run from a target directory"))?;
    let binary = profile.join("kvstored");
    if !binary.exists() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--package", "kvstored", "--bin", "kvstored"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        run(&mut build)?;
    }
    Ok(binary)
}

/// Runs a command to its end. Fails with what it wrote where it doesn't succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Error::from_io(error, format!("start {name}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::internal(format!("{name}: {}: {said}", output.status)))
}

/// A daemon on a directory of its own, killed when dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts `kvstored` with its socket and log in `run` and its storage in `storage`, and waits until it
    /// answers.
    pub fn start(run: &Path, storage: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_with(run, storage, arguments, &[])
    }

    /// As [`Daemon::start`], with further variables in the daemon's environment.
    pub fn start_with(
        run: &Path,
        storage: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let (socket, log) = (run.join("kvstored.sock"), run.join("kvstored.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| Error::from_io(error, "daemon log"))?;
        let child = Command::new(binary()?)
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .arg("--storage-backends")
            .arg(storage)
            .args(["--http", "off"])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(|error| Error::from_io(error, "start kvstored"))?;
        let mut daemon = Self { child, socket, log };
        let runtime = Runtime::system();
        let deadline = runtime.deadline(Duration::from_mins(1));
        while daemon.connect().and_then(|client| client.ping()).is_err() {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("kvstored ended: {status}: {}", daemon.log()),
                ));
            }
            if runtime.clock.now() > deadline {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("kvstored doesn't answer: {}", daemon.log()),
                ));
            }
            pause(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// A client of this daemon.
    pub fn connect(&self) -> Result<Client> {
        Client::connect(&self.socket, ClientSettings::default(), Runtime::system())
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The daemon's process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and wait.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and wait; returns whether it ended with success.
    pub fn terminate(mut self) -> bool {
        if let Some(process) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
        self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits without a condition; only for polling other processes.
pub fn pause(duration: Duration) {
    std::thread::park_timeout(duration);
}
