//! `cargo xtask crash`: stop the daemon the hard way, again and again, and check what it had acknowledged.
//!
//! A round starts the daemon on a directory and a writer that dumps blocks through it, lets them work for a random
//! fraction of a second, and then either cuts the power of the file system below them or kills the daemon. The
//! writer records every block that it tried and every acknowledgement. A second daemon then opens the same
//! directory: whatever was acknowledged at a level that survives such a stop must be there and right, and anything
//! else must be absent or right. Rounds go on in the same directory for a while, so that what recovery left is
//! stopped too.

mod power;
mod rig;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::process::{Failure, Outcome};
use crate::workspace::Workspace;
use rig::Rig;

/// Rounds before a fresh directory is taken; keeps all blocks within the capacity, so that none is evicted.
const ROUNDS_PER_DIRECTORY: u32 = 5;
const SHORTEST_WRITING_MS: u64 = 20;
const WRITING_RANGE_MS: u64 = 400;

/// What to stop, how often.
#[derive(Args)]
pub struct Options {
    /// How many times to stop the daemon, each way
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// How to stop it
    #[arg(long, value_enum, default_value_t = Stop::Power)]
    stop: Stop,
    /// File system to cut the power of
    #[arg(long, value_enum, default_value_t = power::FileSystem::Ext4)]
    file_system: power::FileSystem,
    /// Start of the random sequence of writing times and batches
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Whether the programs are there, built with the tests
    #[arg(skip)]
    is_built: bool,
}

impl Options {
    /// A few power cuts on ext4, with programs that the tests have been built with.
    pub fn short(rounds: u32) -> Self {
        Self {
            rounds,
            stop: Stop::Power,
            file_system: power::FileSystem::Ext4,
            seed: 1,
            is_built: true,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stop {
    /// The power of a loop-mounted file system: durable blocks must survive (needs root)
    Power,
    /// The daemon's process: blocks in the tier must survive as well
    Kill,
    /// First the one, then the other
    Both,
}

/// Runs the rounds. Skips power cuts, saying so, where they aren't possible.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let rig = if options.is_built {
        Rig::built(workspace)
    } else {
        Rig::build(workspace)?
    };
    let mut random = Random(options.seed);
    if options.stop != Stop::Kill {
        match power::Disk::unavailable(options.file_system) {
            Some(reason) => eprintln!("\nSKIPPED: power cuts: {reason}"),
            None => rounds(&rig, options.rounds, &mut random, &|folder| {
                Ok(Box::new(power::Disk::create(options.file_system, folder)?))
            })?,
        }
    }
    if options.stop != Stop::Power {
        rounds(&rig, options.rounds, &mut random, &|folder| {
            Ok(Box::new(PlainFolder(folder.to_path_buf())))
        })?;
    }
    Ok(())
}

/// A directory that the daemon writes to, and what else is stopped with it.
trait Victim {
    /// What is done to it, for people.
    fn name(&self) -> &'static str;
    /// The directory.
    fn directory(&self) -> &Path;
    /// The weakest level of acknowledgement that survives.
    fn surviving_level(&self) -> &'static str;
    /// Just before the daemon is killed: `choice` picks among the ways there are.
    fn before_kill(&mut self, choice: u64) -> Outcome;
    /// After the daemon is gone.
    fn after_kill(&mut self) -> Outcome;
}

/// Loses nothing but the process: what the kernel has taken is safe.
struct PlainFolder(PathBuf);

impl Victim for PlainFolder {
    fn name(&self) -> &'static str {
        "kills"
    }

    fn directory(&self) -> &Path {
        &self.0
    }

    fn surviving_level(&self) -> &'static str {
        "tier"
    }

    fn before_kill(&mut self, _choice: u64) -> Outcome {
        Ok(())
    }

    fn after_kill(&mut self) -> Outcome {
        Ok(())
    }
}

type MakeVictim<'a> = &'a dyn Fn(&Path) -> Result<Box<dyn Victim>, Failure>;

fn rounds(rig: &Rig, wanted: u32, random: &mut Random, make: MakeVictim) -> Outcome {
    let (mut done, mut failed, mut blocks, mut name) = (0, 0, 0, "");
    while done < wanted {
        let temporary = tempfile::Builder::new().prefix("kvstored-crash-").tempdir()?;
        let mut victim = make(temporary.path())?;
        name = victim.name();
        let mut directory = rig.directory(temporary.path(), victim.directory())?;
        for _ in 0..ROUNDS_PER_DIRECTORY.min(wanted - done) {
            done += 1;
            let writing = Duration::from_millis(SHORTEST_WRITING_MS + random.next() % WRITING_RANGE_MS);
            let round = directory
                .write_and_stop(victim.as_mut(), writing, random)
                .and_then(|acknowledged| directory.verify(victim.surviving_level()).map(|()| acknowledged));
            match round {
                Ok(acknowledged) => {
                    blocks += acknowledged;
                    eprintln!(
                        "{name}, round {done:>5}: stopped after {:>3} ms, {acknowledged:>5} acknowledged, ok",
                        writing.as_millis()
                    );
                }
                Err(error) => {
                    eprintln!(
                        "{name}, round {done:>5}: stopped after {:>3} ms, FAILED: {error}",
                        writing.as_millis()
                    );
                    eprintln!("{}", directory.log_tail());
                    failed += 1;
                    // what follows in this directory would only fail again
                    break;
                }
            }
        }
    }
    eprintln!("{name}: {} rounds passed, {failed} failed", done - failed);
    if failed > 0 {
        return Err(format!("{failed} rounds of {name} failed").into());
    }
    // a writer that never gets through would let everything pass
    if blocks == 0 {
        Err(format!("no block was acknowledged in {done} rounds of {name}").into())
    } else {
        Ok(())
    }
}

/// SplitMix64: a sequence that can be repeated is all that is asked for.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
