//! Log lines on standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use kvstored_host::config::LogFormat;

/// Starts logging. A second call changes nothing.
pub fn start(format: LogFormat, level: &str) {
    let filter: Targets = level
        .parse()
        .unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // somebody who started logging before keeps it
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
}

/// Logging of commands other than `serve`: warnings, or what `KVSTORED_LOG` says.
pub fn start_for_tool(level: Option<&str>) {
    start(LogFormat::Text, level.unwrap_or("warn"));
}
