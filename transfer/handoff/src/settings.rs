//! How a hand-off is set up: plain data.

use std::time::Duration;

use kvstored_core::{Error, Result};
use kvstored_transfer::EngineSettings;

/// How a hand-off is set up.
#[derive(Clone, Debug)]
pub struct HandoffSettings {
    /// The transfer engine, which must listen.
    pub engine: EngineSettings,
    /// Whether checksums of what was pulled are compared with the producer's, and those of what is held are made before they
    /// are asked for.
    pub verify: bool,
    /// Pulls that run at the same time.
    pub pull_threads: usize,
    /// How long a producer that doesn't know a request yet is asked again.
    pub grace: Duration,
    /// How long a producer is told at least that a request is done, until it hears it.
    pub done_timeout: Duration,
}

impl Default for HandoffSettings {
    fn default() -> Self {
        Self {
            engine: EngineSettings::default(),
            verify: true,
            pull_threads: 4,
            // an engine tells its workers of a kept prompt with its next step, which may take long
            grace: Duration::from_mins(2),
            done_timeout: Duration::from_secs(30),
        }
    }
}

impl HandoffSettings {
    /// Fails with `InvalidInput`, naming the first setting that makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        if self.engine.listen.is_none() {
            return Err(Error::invalid("a hand-off needs an address to listen on"));
        }
        if !(1..=64).contains(&self.pull_threads) {
            return Err(Error::invalid(format!(
                "pull_threads is {}, not 1 to 64",
                self.pull_threads
            )));
        }
        Ok(())
    }
}
