//! A process killed at any moment: everything it acknowledged is there and right.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kvstored_core::Tier;

use super::support::*;
use crate::posix::PosixSettings;

const STORE: &str = "KVSTORED_TEST_STORE";
const START: &str = "KVSTORED_TEST_START";

/// The process that is killed: writes on and on, and says what was acknowledged.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn victim() {
    let Some(path) = std::env::var_os(STORE).map(PathBuf::from) else {
        return;
    };
    let mut next: u64 = std::env::var(START).unwrap().parse().unwrap();
    let tier = open_with(PosixSettings {
        capacity_bytes: 1 << 30,
        ..settings(&path)
    });
    let info = namespace(&*tier);
    loop {
        let count = 1 + next % 17;
        write(&*tier, &info, next..next + count);
        next += count;
        if next.is_multiple_of(5) {
            // a removal now and then; what's removed is never asked for again
            tier.remove(&info, &[hash(u64::MAX - next)]);
        }
        println!("acknowledged {next}");
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let store = directory();
    let mut written = 0u64;
    for round in 0..6u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "posix::tests::killed::victim",
            ])
            .env(STORE, store.path())
            .env(START, written.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        // killed after another number of acknowledgements each time, in the middle of the next write
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some((_, number)) = line.rsplit_once("acknowledged ") else {
                continue;
            };
            written = number.trim().parse().unwrap();
            acknowledged += 1;
            if acknowledged > 3 + 7 * round {
                break;
            }
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some((_, number)) = line.rsplit_once("acknowledged ") {
                written = number.trim().parse().unwrap_or(written);
            }
        }
        child.wait().unwrap();
        let tier = open_with(PosixSettings {
            capacity_bytes: 1 << 30,
            ..settings(store.path())
        });
        let info = namespace(&*tier);
        assert_readable(&*tier, &info, 0..written);
        assert_eq!(tier.statistics().quarantined_blocks, 0);
    }
    assert!(written > 500, "{written}");
}
