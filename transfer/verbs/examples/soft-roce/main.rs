//! Checks of the crate on a real RDMA device, meant for soft-RoCE in a virtual machine: `cargo xtask rdma` runs them.
//!
//! Without arguments it runs all checks on the first device that works and exits with 0 if they passed. `peer` is what it
//! starts itself as the other process of some of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "checks of a real device in real time"
)]

mod links;
mod pairs;
mod peers;
mod rig;
mod speed;
mod strangers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rig::Rig;

type Check = (&'static str, fn(&Rig));

const CHECKS: &[Check] = &[
    (
        "a window lets the peer touch its range, as long as it's bound",
        pairs::windows,
    ),
    (
        "a wrong key ends the queue pair, and a new one works",
        pairs::wrong_key,
    ),
    (
        "memory of another domain and requests past the queue are refused",
        pairs::refusals,
    ),
    ("bytes are written and read back, in every size", links::sizes),
    ("a batch of more operations than any queue holds", links::batch),
    ("both ends ask at once", links::both_ways),
    (
        "a grant that is refused costs nothing but the operation",
        links::refused,
    ),
    ("memory revoked in mid-run is touched no more", links::revoked),
    ("a move that is released waits for nobody", links::released),
    ("an operation that isn't wanted any more", links::unwanted),
    ("operations are cancelled while they move", links::cancelled),
    ("more than may wait is refused as busy", links::busy),
    (
        "what no peer sends ends the link, and no other",
        strangers::malformed,
    ),
    ("more requests than the window ends the link", strangers::too_many),
    ("a peer that is killed", peers::killed),
    (
        "a peer that is killed while it moves bytes",
        peers::killed_in_mid_run,
    ),
    ("a peer that is stopped and goes on", peers::stopped),
    ("requester killed while it's served", peers::requester_killed),
    ("nothing is left behind, and nobody spins", links::nothing_left),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "peer") {
        return peers::run(&arguments[1..]);
    }
    let rig = match Rig::open() {
        Ok(rig) => rig,
        Err(error) => {
            eprintln!("no RDMA device: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{:?}, {:?}", rig.nic, rig.nic.limits());
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in CHECKS {
        if arguments
            .first()
            .is_some_and(|part| !name.contains(part.as_str()))
        {
            continue;
        }
        let start = std::time::Instant::now();
        let verdict = if catch_unwind(AssertUnwindSafe(|| check(&rig))).is_ok() {
            passed += 1;
            "ok"
        } else {
            failed += 1;
            "FAILED"
        };
        println!("check {name} ... {verdict} ({} ms)", start.elapsed().as_millis());
    }
    if arguments.is_empty() {
        speed::print(&rig);
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
