//! Where the engine's log lines go.

use std::sync::Once;

use tracing_subscriber::EnvFilter;

static STARTED: Once = Once::new();

/// Lets warnings and errors go to standard error, or what the environment's `KVSTORED_LOG` asks for. Lines are written
/// by the thread that has something to say: nobody waits for the interpreter.
pub fn start() {
    STARTED.call_once(|| {
        let filter = EnvFilter::try_from_env("KVSTORED_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
        let started = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .try_init();
        // whoever else in this process listens already goes on listening
        drop(started);
    });
}
