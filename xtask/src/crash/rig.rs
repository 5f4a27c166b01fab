//! The processes of a round: the daemon, the writer and the verifier, and the record that they share.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Random, Victim};
use crate::process::{self, Failure, Guarded, Outcome};
use crate::workspace::Workspace;

const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long the writer may take to notice that its daemon is gone.
const WRITER_LIMIT: Duration = Duration::from_mins(1);
/// Small segments, so that sealing and opening them is stopped too; room for all rounds in one directory.
const DAEMON_ARGUMENTS: [&str; 10] = [
    "--pipeline",
    "Cache|Posix",
    "--cache-buffer-capacity",
    "16MiB",
    "--posix-capacity",
    "768MiB",
    "--posix-segment-bytes",
    "4MiB",
    "--http",
    "off",
];
const LOG_TAIL_LINES: usize = 20;

/// The programs.
pub struct Rig {
    daemon: PathBuf,
    writer: PathBuf,
    verifier: PathBuf,
}

impl Rig {
    /// Builds them.
    pub fn build(workspace: &Workspace) -> Result<Self, Failure> {
        let mut command = Command::new(process::cargo());
        command
            .current_dir(&workspace.root)
            .args(["build", "--workspace", "--bins"]);
        process::run(&mut command)?;
        Ok(Self::built(workspace))
    }

    /// Those that have been built already, with the tests.
    pub fn built(workspace: &Workspace) -> Self {
        let folder = workspace.target.join("debug");
        Self {
            daemon: folder.join("kvstored"),
            writer: folder.join("crash-writer"),
            verifier: folder.join("crash-verifier"),
        }
    }

    /// Prepares `storage` for rounds; socket, log and record go to `safe`, which no stop touches.
    pub fn directory(&self, safe: &Path, storage: &Path) -> Result<Directory<'_>, Failure> {
        let directory = Directory {
            rig: self,
            storage: storage.join("blocks"),
            socket: safe.join("kvstored.sock"),
            log: safe.join("kvstored.log"),
            record: safe.join("record"),
            rounds: 0,
        };
        fs::create_dir_all(&directory.storage)?;
        File::create(&directory.record)?;
        Ok(directory)
    }
}

/// A storage directory that is written to and stopped several times.
pub struct Directory<'a> {
    rig: &'a Rig,
    storage: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    record: PathBuf,
    rounds: u64,
}

impl Directory<'_> {
    /// One round up to the stop: records what the writer tried, and returns how many blocks were acknowledged.
    pub fn write_and_stop(
        &mut self,
        victim: &mut dyn Victim,
        writing: Duration,
        random: &mut Random,
    ) -> Result<usize, Failure> {
        let daemon = self.start()?;
        self.rounds += 1;
        let output = self.record.with_extension("round");
        let mut command = Command::new(&self.rig.writer);
        command
            .arg(&self.socket)
            .arg(self.rounds.to_string())
            .arg(random.next().to_string());
        // its last words, that the daemon is gone, matter only beside the daemon's own
        command
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(self.open_log()?);
        let mut writer = Guarded::spawn(&mut command)?;
        std::thread::sleep(writing);
        victim.before_kill(random.next())?;
        if let Some(status) = daemon.kill()?.filter(|_| victim.surviving_level() == "tier") {
            return Err(format!("the daemon ended by itself with {status}").into());
        }
        writer.finish(WRITER_LIMIT)?;
        victim.after_kill()?;
        let lines = fs::read_to_string(&output)?;
        fs::OpenOptions::new()
            .append(true)
            .open(&self.record)?
            .write_all(lines.as_bytes())?;
        Ok(lines
            .lines()
            .filter(|line| line.starts_with("acknowledged "))
            .count())
    }

    /// Opens the directory again and checks everything that was ever tried in it.
    pub fn verify(&self, level: &str) -> Outcome {
        let daemon = self.start()?;
        let mut command = Command::new(&self.rig.verifier);
        command.arg(&self.socket).arg(&self.record).arg(level);
        process::output(&mut command)?;
        daemon.kill().map(drop)
    }

    /// What the daemons said last.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        // each start logs its settings, which are the same in every round
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" setting ")).collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn open_log(&self) -> Result<File, Failure> {
        Ok(File::options().create(true).append(true).open(&self.log)?)
    }

    fn start(&self) -> Result<Guarded, Failure> {
        let log = self.open_log()?;
        let mut command = Command::new(&self.rig.daemon);
        command
            .args(DAEMON_ARGUMENTS)
            .arg("--storage-backends")
            .arg(&self.storage);
        command
            .arg("--listen")
            .arg(format!("unix:{}", self.socket.display()));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut daemon = Guarded::spawn(&mut command)?;
        daemon.wait_until(READY_LIMIT, || UnixStream::connect(&self.socket).is_ok())?;
        Ok(daemon)
    }
}
