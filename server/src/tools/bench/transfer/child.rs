//! The processes on the other side: this program, started again, which answers one line to each line.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::cases::Transport;
use super::serving::Role;
use crate::tools::bench::setup::cpu_seconds;

/// How long an answer may take, in seconds; memory is made in the first one.
const ANSWER_SECONDS: i64 = 60;
/// How long it may take to end when its input has ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const FAILED: &str = "failed ";

fn failed(error: std::io::Error) -> Error {
    Error::from_io(error, "the serving process")
}

/// A serving process; ends when dropped, and by itself when this process ends.
pub struct Served {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
    runtime: Runtime,
}

impl Served {
    /// Starts it and waits until it serves.
    pub fn start(role: Role, transport: Transport, memory_bytes: usize, runtime: &Runtime) -> Result<Self> {
        let memory_mib = (memory_bytes >> 20).to_string();
        let arguments = ["bench", "transfer", "--serve", role.name(), "--transport"];
        let arguments = arguments
            .into_iter()
            .chain([transport.name(), "--memory-mib", &memory_mib]);
        Self::run(arguments, runtime)
    }

    /// Starts this program with those arguments and waits until it serves.
    pub fn run<'a>(arguments: impl IntoIterator<Item = &'a str>, runtime: &Runtime) -> Result<Self> {
        let program = std::env::current_exe().map_err(failed)?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::internal("no pipes to the serving process"));
        };
        let mut served = Self {
            process,
            input: Some(input),
            output: BufReader::new(output),
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            runtime: runtime.clone(),
        };
        let address = served.answer()?;
        served.address = address
            .parse()
            .map_err(|_| Error::internal(format!("the serving process serves on \"{address}\"")))?;
        Ok(served)
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it where it is; when this returns, none of its threads runs any more.
    pub fn pause(&self) -> Result<()> {
        let process = Pid::from_child(&self.process);
        kill_process(process, Signal::STOP)
            .and_then(|()| retry_on_intr(|| waitid(WaitId::Pid(process), WaitIdOptions::STOPPED)))
            .map(drop)
            .map_err(|errno| failed(errno.into()))
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .kill()
            .and_then(|()| self.process.wait())
            .map(drop)
            .map_err(failed)
    }

    /// Asks it something.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        let input = self
            .input
            .as_mut()
            .ok_or_else(|| Error::internal("the serving process was told to end"))?;
        input
            .write_all(format!("{question}\n").as_bytes())
            .and_then(|()| input.flush())
            .map_err(failed)?;
        self.answer()
    }

    /// CPU seconds that it has used so far, all its threads.
    pub fn cpu_seconds(&mut self) -> Result<f64> {
        let answer = self.ask("cpu")?;
        answer
            .parse()
            .map_err(|_| Error::internal(format!("CPU seconds \"{answer}\"")))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.buffer().is_empty() {
            let timeout = Timespec {
                tv_sec: ANSWER_SECONDS,
                tv_nsec: 0,
            };
            let mut descriptors = [PollFd::from_borrowed_fd(
                self.output.get_ref().as_fd(),
                PollFlags::IN,
            )];
            let ready = retry_on_intr(|| poll(&mut descriptors, Some(&timeout)))
                .map_err(|errno| failed(errno.into()))?;
            if ready == 0 {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    "the serving process doesn't answer",
                ));
            }
        }
        // a line is written at once
        self.output.read_line(&mut line).map_err(failed)?;
        match line.trim_end() {
            "" => Err(Error::new(
                ErrorKind::Unavailable,
                "the serving process has ended",
            )),
            answer => match answer.strip_prefix(FAILED) {
                Some(message) => Err(Error::new(ErrorKind::Unavailable, message)),
                None => Ok(answer.to_owned()),
            },
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.input.take();
        let deadline = self.runtime.deadline(END_TIMEOUT);
        while let Ok(None) = self.process.try_wait() {
            if self.runtime.clock.now() >= deadline {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// The serving process's side: says where it serves, then answers each line of standard input until it ends.
pub fn serve(address: SocketAddr, mut handle: impl FnMut(&str) -> Result<String>) -> Result<()> {
    let say = |answer: String| crate::output::emit(&(answer.replace('\n', " ") + "\n"));
    say(address.to_string())?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(failed)?;
        let answer = if line == "cpu" {
            Ok(cpu_seconds().to_string())
        } else {
            handle(&line)
        };
        say(answer.unwrap_or_else(|error| format!("{FAILED}{error}")))?;
    }
    Ok(())
}
