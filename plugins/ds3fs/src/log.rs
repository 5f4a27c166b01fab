//! What this library's code logs, on its way to the host's log. The library has a `tracing` of its own, which nobody
//! listens to otherwise.

use std::fmt::{self, Write as _};
use std::sync::Once;

use kvstored_plugin::{Host, Level};
use parking_lot::RwLock;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

static HOST: RwLock<Option<Host>> = RwLock::new(None);
static INSTALLED: Once = Once::new();

/// From now on that host hears what is logged.
pub(crate) fn forward_to(host: Host) {
    *HOST.write() = Some(host);
    INSTALLED.call_once(|| {
        // where somebody listens already, as in a test that links this library, that one goes on listening
        let _ = tracing::subscriber::set_global_default(Forward);
    });
}

struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let Some(host) = *HOST.read() else { return };
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Info,
            _ => Level::Debug,
        };
        host.log(level, &format!("{}{}", line.message, line.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as a line of text.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // writing to a string can't fail
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
