//! Trying a plugin in a process of its own first: one that crashes or hangs on being loaded does so there.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::directory::PluginDirectory;
use crate::library::{self, PluginFacts};

/// What is kept of the child's complaint.
const MOST_COMPLAINT_BYTES: u64 = 4096;

/// The program that tries plugins: called as `PROGRAM ARGUMENTS… DIRECTORY NAME`, it must end in [`run_probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The program.
    pub program: PathBuf,
    /// What comes before the directory and the name.
    pub arguments: Vec<OsString>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Probe {
    /// Ten seconds for a program.
    pub fn new(program: PathBuf, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(OsString::from).collect(),
            timeout: Duration::from_secs(10),
        }
    }

    /// Tries a plugin. Fails with `InvalidInput`, saying what the child said or how it died, or with `TimedOut`.
    pub(crate) fn run(&self, directory: &Path, name: &str, runtime: &Runtime) -> Result<()> {
        let failed = |what: String| {
            Error::invalid(format!("plugin {name} was tried in a process of its own: {what}"))
                .with("plugin_directory", directory.display())
        };
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(directory)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{} can't be started: {error}", self.program.display())))?;
        let status = self.wait(&mut child, runtime).map_err(|error| {
            // whatever it does, it does it no longer
            let _ = child.kill();
            let _ = child.wait();
            error.with("plugin", name)
        })?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            // a plugin's child may hold the pipe open, and then there is nothing to wait for
            if rustix::io::ioctl_fionread(&stderr).is_ok_and(|bytes| bytes > 0) {
                let mut bytes = vec![0; MOST_COMPLAINT_BYTES as usize];
                let mut stderr = stderr;
                let count = stderr.read(&mut bytes).unwrap_or(0);
                bytes.truncate(count);
                String::from_utf8_lossy(&bytes).trim().clone_into(&mut said);
            }
        }
        Err(failed(if said.is_empty() {
            format!("it ended with {status}")
        } else {
            format!("{said} ({status})")
        }))
    }

    fn wait(&self, child: &mut Child, runtime: &Runtime) -> Result<ExitStatus> {
        let wait_failed = |error: std::io::Error| Error::from_io(error, "the probe can't be waited for");
        let id = Pid::from_child(child);
        let descriptor = pidfd_open(id, PidfdFlags::empty()).map_err(|error| wait_failed(error.into()))?;
        let deadline = runtime.deadline(self.timeout);
        loop {
            let left = deadline.saturating_duration_since(runtime.clock.now());
            let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
            let timeout = rustix::event::Timespec::try_from(left).map_err(|_| Error::internal("timeout"))?;
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => {
                    return Err(Error::new(
                        ErrorKind::TimedOut,
                        format!("loading took longer than {} ms", self.timeout.as_millis()),
                    ));
                }
                Ok(_) => return child.wait().map_err(wait_failed),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(wait_failed(error.into())),
            }
        }
    }
}

/// What the child does: checks and loads the plugin and says what it is. A crash is what it's for.
pub fn run_probe(directory: &Path, name: &str) -> Result<PluginFacts> {
    let file: File = PluginDirectory::check(directory, name)?;
    library::load(file, name).map(|loaded| loaded.facts)
}
