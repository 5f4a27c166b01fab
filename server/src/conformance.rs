//! `kvstored conformance`: whether tiers keep the contract.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_conformance::{Options, Outcome, Report, Subject};
use kvstored_core::{Durability, Error, MemoryTier, Result, Runtime, Tier, TierKind};
use kvstored_host::build_tier;
use kvstored_host::config::{self, Environment, ServeArguments, ServeOptions, ServeSettings};
use serde_json::json;

use crate::output::{emit, emit_json};

/// Memory above a tier for whole dumps and loads.
const MEMORY_BYTES: u64 = 8 << 20;

/// Arguments of `kvstored conformance`.
#[derive(Clone, Debug, clap::Args)]
pub struct ConformanceArguments {
    /// A plugin, listed in the SHA256SUMS beside it; without one, every tier of --pipeline is checked
    #[arg(value_name = "PLUGIN.so")]
    plugin: Option<PathBuf>,

    /// Where the randomness of the comparison with a simple map starts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Steps of that comparison
    #[arg(long, value_name = "N", default_value_t = 400)]
    steps: usize,

    /// Write the report as one JSON object
    #[arg(long)]
    json: bool,

    /// The settings of the tiers, as for `serve`. Blocks of the checks lie in namespaces of the tenant `conformance`;
    /// a tier of at most 64 MiB is filled.
    #[command(flatten)]
    options: ServeOptions,
}

/// A tier that settings describe.
struct Configured<'a> {
    settings: &'a ServeSettings,
    kind: &'a TierKind,
    runtime: &'a Runtime,
    keeps: Durability,
}

impl Subject for Configured<'_> {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let tier = build_tier(self.settings, self.kind, self.runtime)?;
        self.keeps = tier.keeps();
        Ok(tier)
    }

    fn stores(&self) -> bool {
        !matches!(self.kind, TierKind::Empty | TierKind::Fake)
    }

    fn survives_restart(&self) -> bool {
        *self.kind != TierKind::Cache && self.keeps >= Durability::Tier
    }

    fn lookups_are_hints(&self) -> bool {
        *self.kind == TierKind::Pool
    }

    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        if *self.kind == TierKind::Cache {
            return Ok(None);
        }
        let settings = CacheSettings {
            capacity_bytes: MEMORY_BYTES,
            shared: false,
            huge_pages: false,
            ..CacheSettings::default()
        };
        let memory: Arc<dyn MemoryTier> = CacheTier::open(settings, None)?;
        Ok(Some(memory))
    }
}

/// Runs the kit and prints what it found. The exit code is 1 when a check failed.
pub fn run(arguments: ConformanceArguments, environment: &Environment) -> Result<ExitCode> {
    let mut options = arguments.options;
    if let Some(file) = &arguments.plugin {
        let name = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        options.pipeline = Some(
            format!("Plugin({name})")
                .parse()
                .map_err(|what: String| Error::invalid(what).with("plugin", file.display()))?,
        );
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        options.plugin_directory = Some(parent.map_or_else(|| PathBuf::from("."), PathBuf::from));
    }
    let serve = ServeArguments {
        options,
        ..ServeArguments::default()
    };
    let settings = config::load(serve, environment)?.settings;
    let runtime = Runtime::system();
    let kit = Options {
        model_steps: arguments.steps,
        seed: arguments.seed,
        ..Options::default()
    };
    let mut reports: Vec<(String, Report)> = Vec::new();
    for kind in settings.pipeline.tiers() {
        let mut subject = Configured {
            settings: &settings,
            kind,
            runtime: &runtime,
            keeps: Durability::Memory,
        };
        let report = kvstored_conformance::run(&mut subject, &kit, &runtime);
        if !arguments.json {
            emit(&format!("{kind}\n{report}\n"))?;
        }
        reports.push((kind.to_string(), report));
    }
    let passed = reports.iter().all(|(_, report)| report.passed());
    if arguments.json {
        let tiers: Vec<_> = reports
            .iter()
            .map(|(name, report)| as_json(name, report))
            .collect();
        emit_json(&json!({"passed": passed, "tiers": tiers}))?;
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn as_json(tier: &str, report: &Report) -> serde_json::Value {
    let rows = report.rows.iter().map(|row| {
        let (outcome, why) = match &row.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why) => ("failed", why.as_str()),
            Outcome::Skipped(why) => ("skipped", why.as_str()),
        };
        json!({"check": row.check, "outcome": outcome, "why": why})
    });
    json!({"tier": tier, "passed": report.passed(), "checks": rows.collect::<Vec<_>>()})
}
