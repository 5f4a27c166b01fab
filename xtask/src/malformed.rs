//! `cargo xtask malformed`: a great many malformed frames for everything that listens with a protocol of our own.

use std::process::Command;

use crate::counts::Counts;
use crate::process::{self, Outcome};
use crate::workspace::Workspace;

/// How the tests are told how many.
const VARIABLE: &str = "KVSTORED_MALFORMED_FRAMES";
/// Those who have these tests: a transfer engine's port and its Unix socket, and the master's port.
const PACKAGES: [&str; 2] = ["kvstored-transfer", "kvstored-master"];
const TESTS: [&str; 3] = [
    "altered_frames_touch_nothing",
    "the_socket_gives_nothing_to_strangers_and_survives_nonsense",
    "altered_questions_hurt_nobody",
];

/// Runs them with that many frames each. Fails unless all of them ran and passed.
pub fn run(workspace: &Workspace, frames: u64) -> Outcome {
    let mut command = Command::new(process::cargo());
    command.current_dir(&workspace.root).arg("test");
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command.args(["--lib", "--tests", "--"]).args(TESTS);
    command.env(VARIABLE, frames.to_string());
    let counts = Counts::default();
    process::run_inspected(&mut command, |line| counts.add(line))?;
    let (passed, _) = counts.sums();
    if passed != TESTS.len() as u64 {
        return Err(format!("{passed} tests ran instead of {}", TESTS.len()).into());
    }
    eprintln!("\nmalformed: {frames} frames each, {passed} tests passed");
    Ok(())
}
