//! Running other programs: with their output shown as it comes, captured, or both.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Why a command failed, in words for a person.
pub type Failure = Box<dyn Error + Send + Sync>;
/// What a step returns.
pub type Outcome = Result<(), Failure>;

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What an interrupted program has for stopping what it started.
const INTERRUPT_GRACE: Duration = Duration::from_mins(1);

/// The cargo that runs us, so that nested runs use the same toolchain.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The command as one would type it.
pub fn spelled(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    if let Some((_, name)) = line.rsplit_once('/') {
        line = name.to_owned();
    }
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Runs it with our own input and output. Fails unless it exits with 0.
pub fn run(command: &mut Command) -> Outcome {
    announce(command);
    let status = command
        .status()
        .map_err(|error| format!("{}: {error}", spelled(command)))?;
    check(command, status)
}

/// Runs it and returns what it wrote to its standard output; its standard error is shown. Fails unless it exits with 0.
pub fn output(command: &mut Command) -> Result<String, Failure> {
    let result = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{}: {error}", spelled(command)))?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        print!("{text}");
    }
    check(command, result.status)?;
    Ok(text)
}

/// Whether the program can be started at all and exits with 0, silently.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs it, shows its output as it comes, and hands each line of either stream to `inspect` too.
pub fn run_inspected(command: &mut Command, inspect: impl Fn(&str) + Sync) -> Outcome {
    announce(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", spelled(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let inspect = &inspect;
    std::thread::scope(|scope| {
        scope.spawn(move || stdout.map(|stream| pass_on(stream, &mut io::stdout(), inspect)));
        scope.spawn(move || stderr.map(|stream| pass_on(stream, &mut io::stderr(), inspect)));
    });
    let status = child.wait()?;
    check(command, status)
}

/// The same in a process group of its own and with a limit. At the limit the program is interrupted, as Ctrl-C does; when
/// it doesn't end then it is killed. What is left of the group is killed in any case.
///
/// Ctrl-C in the terminal doesn't reach such a group: the program must end by itself when we do.
pub fn run_limited(command: &mut Command, limit: Duration, inspect: impl Fn(&str) + Sync) -> Outcome {
    announce(command);
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", spelled(command)))?;
    let group = process_id(&child)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let inspect = &inspect;
    let deadline = Instant::now() + limit;
    let status = std::thread::scope(|scope| {
        scope.spawn(move || stdout.map(|stream| pass_on(stream, &mut io::stdout(), inspect)));
        scope.spawn(move || stderr.map(|stream| pass_on(stream, &mut io::stderr(), inspect)));
        let ended = wait_with_deadline(&mut child, deadline);
        if matches!(ended, Ok(None)) {
            let _ = rustix::process::kill_process(group, Signal::INT);
            let _ = wait_with_deadline(&mut child, Instant::now() + INTERRUPT_GRACE);
        }
        // also what outlived the program; and the streams end, which the threads above wait for
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = child.wait();
        ended
    })?;
    match status {
        Some(status) => check(command, status),
        None => Err(format!(
            "`{}` still ran after {} s and was ended",
            spelled(command),
            limit.as_secs()
        )
        .into()),
    }
}

fn wait_with_deadline(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() > deadline {
            return Ok(status);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn process_id(child: &Child) -> Result<Pid, Failure> {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(id.ok_or("no process id")?)
}

fn pass_on(stream: impl Read, shown: &mut impl Write, inspect: &(impl Fn(&str) + Sync)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        // a closed terminal must not stop the program that we watch
        let _ = shown.write_all(&line).and_then(|()| shown.flush());
        inspect(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

fn announce(command: &Command) {
    eprintln!("\n$ {}", spelled(command));
}

fn check(command: &Command, status: ExitStatus) -> Outcome {
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{}` ended with {status}", spelled(command)).into())
    }
}

/// A child that can't outlive us: killed when dropped, unless it ended before.
pub struct Guarded {
    child: Child,
    name: String,
}

impl Guarded {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> Result<Self, Failure> {
        let name = spelled(command);
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { child, name })
    }

    /// Polls until `ready` says yes. Fails when the program ends first, or at the deadline.
    pub fn wait_until(&mut self, limit: Duration, ready: impl Fn() -> bool) -> Outcome {
        let deadline = Instant::now() + limit;
        loop {
            if ready() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("`{}` ended with {status} before it was ready", self.name).into());
            }
            if Instant::now() > deadline {
                return Err(format!("`{}` wasn't ready after {} s", self.name, limit.as_secs()).into());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends SIGTERM and waits. Fails unless it exits with 0 within the limit.
    pub fn terminate(mut self, limit: Duration) -> Outcome {
        rustix::process::kill_process(process_id(&self.child)?, Signal::TERM)?;
        self.finish(limit)
    }

    /// Waits for its end. Fails unless it exits with 0 within the limit.
    pub fn finish(&mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("`{}` ended with {status}", self.name).into()),
                None => std::thread::sleep(POLL_INTERVAL),
            }
        }
        Err(format!("`{}` still runs after {} s", self.name, limit.as_secs()).into())
    }

    /// Kills it at once, as `kill -9` does. Says how it ended if it had ended by itself before.
    pub fn kill(mut self) -> Result<Option<ExitStatus>, Failure> {
        let ended = self.child.try_wait()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(ended)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_limited_program_that_ends_in_time_is_judged_by_its_status() {
        let lines = Mutex::new(Vec::new());
        let note = |line: &str| lines.lock().unwrap().push(line.to_owned());
        run_limited(&mut shell("echo one; echo two >&2"), Duration::from_mins(1), note).unwrap();
        let mut seen = lines.lock().unwrap().clone();
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        let error = run_limited(&mut shell("exit 3"), Duration::from_mins(1), |_| ()).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_program_over_its_limit_is_ended() {
        let mut command = Command::new("sleep");
        let error = run_limited(command.arg("600"), Duration::from_millis(50), |_| ()).unwrap_err();
        assert!(error.to_string().contains("was ended"), "{error}");
    }

    #[test]
    fn what_a_limited_program_leaves_behind_is_killed() {
        let left = Mutex::new(String::new());
        // it holds the streams open, which would hang us too
        run_limited(
            &mut shell("sleep 600 & echo $!"),
            Duration::from_mins(1),
            |line| line.clone_into(&mut left.lock().unwrap()),
        )
        .unwrap();
        let process = left.lock().unwrap().clone();
        let gone = || {
            let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // or dead and not collected yet
            state.is_empty() || state.contains(") Z ") || state.contains(") X ")
        };
        // its streams close a little before it is dead
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        assert!(gone(), "process {process} still runs");
    }
}
