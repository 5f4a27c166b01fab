//! Dumps blocks through a daemon until that is gone, and says on its standard output what was acknowledged.
//!
//! `crash-writer SOCKET ROUND SEED`: a line `dump FIRST COUNT` before each dump and, for each block of it that was
//! acknowledged, `acknowledged NUMBER LEVEL`. Each round has block numbers of its own.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use kvstored_client::{BlockOutcome, Client, ClientSettings};
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_core::{Durability, Result, Runtime};
use kvstored_tests::blocks::Blocks;
use kvstored_tests::crash::{BLOCKS_PER_ROUND, MODEL, layout, level_name};

const MOST_BLOCKS_PER_DUMP: u64 = 24;
const DEAD_DAEMON: ExitCode = ExitCode::SUCCESS;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, round, seed] = arguments.as_slice() else {
        return usage();
    };
    let (Ok(round), Ok(seed)) = (round.parse(), seed.parse()) else {
        return usage();
    };
    match write(Path::new(socket), round, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash-writer: ended by: {error}");
            DEAD_DAEMON
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: crash-writer SOCKET ROUND SEED");
    ExitCode::from(2)
}

fn write(socket: &Path, round: u64, seed: u64) -> Result<()> {
    let random = SystemRandom::seeded(seed);
    let client = Client::connect(socket, ClientSettings::default(), Runtime::system())?;
    let blocks = Blocks::open(&client, MODEL, &layout())?;
    let (mut next, end) = (round * BLOCKS_PER_ROUND, (round + 1) * BLOCKS_PER_ROUND);
    while next < end {
        let count = (1 + random.next_u64() % MOST_BLOCKS_PER_DUMP).min(end - next);
        let level = match random.next_u64() % 10 {
            0 => Durability::Memory,
            1..=3 => Durability::Tier,
            _ => Durability::Durable,
        };
        let numbers: Vec<u64> = (next..next + count).collect();
        say(&format!("dump {next} {count}\n"));
        next += count;
        let outcomes = blocks.dump(&numbers, level)?;
        let mut lines = String::new();
        for (number, outcome) in numbers.iter().zip(&outcomes) {
            if let BlockOutcome::Dumped(level) = outcome {
                lines.extend([
                    "acknowledged ",
                    &number.to_string(),
                    " ",
                    level_name(*level),
                    "\n",
                ]);
            }
        }
        say(&lines);
        client.ping()?;
    }
    Ok(())
}

fn say(lines: &str) {
    let mut output = io::stdout().lock();
    if output
        .write_all(lines.as_bytes())
        .and_then(|()| output.flush())
        .is_err()
    {
        // nobody records any more what is acknowledged
        std::process::exit(1);
    }
}
