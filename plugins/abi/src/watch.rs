//! The thread that watches how long a plugin takes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind};

use crate::shared::{Mode, Shared};
use crate::untold::Telling;

/// The thread that watches: ends what takes too long, and has the plugin asked again once nothing does.
pub(crate) fn watch(shared: &Shared) {
    let mut flow = shared.flow.lock();
    while !flow.ending {
        let now = shared.runtime.clock.now();
        let (expired, next) = shared.tickets.expire(Some(now));
        let overdue = flow.call_deadline.is_some_and(|deadline| deadline <= now);
        let (held, held_bytes) = shared.tickets.held();
        if !expired.is_empty() || overdue || held > 0 {
            let reason = format!(
                "it took longer than {} ms and keeps {held} buffers ({held_bytes} bytes)",
                shared.settings.timeout.as_millis()
            );
            if shared.enter(Mode::Stalled, &reason) {
                shared.faults.fetch_add(1, Ordering::Relaxed);
                tracing::error!(tier = %shared.name, reason, "the plugin is left out until it answers");
            }
        } else if shared.mode() == Mode::Stalled && shared.enter(Mode::Serving, "") {
            tracing::info!(tier = %shared.name, "the plugin answers again");
        }
        if !expired.is_empty() {
            drop(flow);
            for (buffer, completion, _) in expired {
                let _telling = Telling(shared);
                let error = Error::new(
                    ErrorKind::TimedOut,
                    format!("no answer in {} ms", shared.settings.timeout.as_millis()),
                );
                completion(buffer, Err(error.with("tier", &shared.name)));
            }
            flow = shared.flow.lock();
            continue;
        }
        // an overdue call ends with a notification, not at a time
        let call = flow.call_deadline.filter(|_| !overdue);
        let next = [next, call].into_iter().flatten().min();
        flow.next_look = next;
        match next {
            Some(deadline) => {
                let pause = deadline.saturating_duration_since(shared.runtime.clock.now());
                shared
                    .watch
                    .wait_for(&mut flow, pause.max(Duration::from_millis(1)));
            }
            None => shared.watch.wait(&mut flow),
        }
    }
}
