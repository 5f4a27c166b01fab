//! Configuration of `kvstored serve`: in rising priority the defaults, the file, the environment's `KVSTORED_LOG`, and flags.
//!
//! Flags and keys of the file are one list ([`ServeOptions`]); a file of UCM is translated into it ([`ucm`]). Unknown keys
//! are warned of at start-up and fail in `check-config`; wrong values fail in both.

mod environment;
pub mod file;
mod hbm;
mod options;
mod plugins;
mod pool;
mod s3;
mod settings;
mod sizes;
mod suggest;
#[cfg(test)]
mod tests;
pub mod ucm;
mod validate;
mod values;
mod yaml;

use std::path::{Path, PathBuf};

use kvstored_core::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use environment::Environment;
pub use file::{FileReport, Problem, Remark, Severity};
pub use hbm::{HbmDevice, HbmOptions};
pub use options::ServeOptions;
pub use plugins::{DS3FS, PluginOptions};
pub use pool::{PluggedTransport, PoolSettings};
pub use settings::{Origin, ServeSettings};
pub use sizes::{ByteSize, Directories, Gibibytes, PluginSetting, Quota};
pub use values::{HttpAddress, IoEngine, Listen, LogFormat, LogLevel, Policy, Word};

/// The flags of `kvstored serve`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArguments {
    /// YAML file with settings: keys are the flags' names with underscores, or UCM's file as it is
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The settings.
    #[command(flatten)]
    pub options: ServeOptions,
}

/// Settings and what the log should say about the file they came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: ServeSettings,
    /// The file, if one was given.
    pub file: Option<PathBuf>,
    /// Unknown keys: a warning each.
    pub unknown: Vec<Problem>,
    /// Accepted keys to say something about.
    pub remarks: Vec<Remark>,
}

/// Reads the file, puts the flags over it and checks the whole. Fails with `InvalidInput`, naming every key that is wrong.
pub fn load(arguments: ServeArguments, environment: &Environment) -> Result<Loaded> {
    let report = match &arguments.config {
        Some(path) => FileReport::read(path).map_err(|error| error.with("file", path.display()))?,
        None => FileReport::default(),
    };
    let (wrong, unknown): (Vec<Problem>, Vec<Problem>) = report
        .problems
        .iter()
        .cloned()
        .partition(|problem| problem.severity == Severity::Wrong);
    if !wrong.is_empty() {
        return Err(refusal(&wrong, arguments.config.as_deref()));
    }
    let settings = ServeSettings::resolve(arguments.options, &report, environment)
        .map_err(|problems| refusal(&problems, arguments.config.as_deref()))?;
    Ok(Loaded {
        settings,
        file: arguments.config,
        unknown,
        remarks: report.remarks,
    })
}

fn refusal(problems: &[Problem], file: Option<&Path>) -> Error {
    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let error = Error::invalid(all.join("; "));
    match file {
        Some(file) if problems.iter().any(|problem| problem.line > 0) => error.with("file", file.display()),
        _ => error,
    }
}

/// A configuration file as its schema describes it.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(title = "kvstored configuration")]
struct ConfigurationFile {
    #[serde(flatten)]
    ours: ServeOptions,
    #[serde(flatten)]
    ucm: ucm::UcmTopLevel,
}

/// The JSON schema of the configuration file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(ConfigurationFile).to_value()
}
