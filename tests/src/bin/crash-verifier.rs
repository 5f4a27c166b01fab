//! Checks, through a freshly started daemon, what crash writers recorded before their daemons were stopped.
//!
//! `crash-verifier SOCKET RECORD LEVEL`: blocks acknowledged at LEVEL or above must be there and right; all others
//! that were tried must be absent or right. Exits with 1 and says which aren't.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::{Durability, Error, Result, Runtime};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::crash::{MODEL, layout, level_from_name};

const BLOCKS_PER_LOAD: usize = 256;
const SHOWN: usize = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, record, level] = arguments.as_slice() else {
        return usage();
    };
    let Some(level) = level_from_name(level) else {
        return usage();
    };
    match verify(Path::new(socket), Path::new(record), level) {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            for complaint in complaints.iter().take(SHOWN) {
                eprintln!("crash-verifier: {complaint}");
            }
            eprintln!(
                "crash-verifier: {} blocks are not as they must be",
                complaints.len()
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("crash-verifier: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: crash-verifier SOCKET RECORD memory|tier|durable");
    ExitCode::from(2)
}

fn verify(socket: &Path, record: &Path, level: Durability) -> Result<Vec<String>> {
    let text = fs::read_to_string(record).map_err(|error| Error::from_io(error, "record of the writers"))?;
    let (mut tried, mut acknowledged) = (Vec::new(), BTreeSet::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["dump", first, count] => {
                let (first, count): (u64, u64) = (number(first)?, number(count)?);
                tried.extend(first..first + count);
            }
            ["acknowledged", block, reached] => {
                let reached =
                    level_from_name(reached).ok_or_else(|| Error::invalid(format!("level {reached}")))?;
                if reached >= level {
                    acknowledged.insert(number(block)?);
                }
            }
            _ => return Err(Error::invalid(format!("a line of the record: {line}"))),
        }
    }
    let client = Client::connect(socket, ClientSettings::default(), Runtime::system())?;
    let blocks = Blocks::open(&client, MODEL, &layout())?;
    let mut complaints = Vec::new();
    for numbers in tried.chunks(BLOCKS_PER_LOAD) {
        for (number, loaded) in numbers.iter().zip(blocks.load(numbers)?) {
            if loaded == Loaded::Wrong {
                complaints.push(format!("block {number} has wrong bytes"));
            } else if loaded != Loaded::Right && acknowledged.contains(number) {
                complaints.push(format!(
                    "block {number} was acknowledged and is lost ({loaded:?})"
                ));
            }
        }
    }
    Ok(complaints)
}

fn number(word: &str) -> Result<u64> {
    word.parse()
        .map_err(|_| Error::invalid(format!("\"{word}\" is not a number")))
}
