//! SIGTERM and SIGINT: the first asks for an orderly stop, the second ends the process at once.

use std::sync::mpsc::{Receiver, channel};

use kvstored_core::{Error, Result, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code of a process that was told twice to stop.
const IMPATIENT_EXIT: i32 = 130;

/// Catches the signals from now on; the receiver gets the name of the first.
pub fn watch(runtime: &Runtime) -> Result<Receiver<&'static str>> {
    let failed = |error| Error::from_io(error, "signals can't be caught");
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _inside = executor.enter();
        (
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::interrupt()).map_err(failed)?,
        )
    };
    let (sender, receiver) = channel();
    let body = move || {
        executor.block_on(async move {
            let first = next(&mut terminate, &mut interrupt).await;
            if sender.send(first).is_err() {
                return;
            }
            let second = next(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal = second, "told twice to stop; ending at once");
            std::process::exit(IMPATIENT_EXIT);
        });
    };
    runtime.spawner.spawn("kvstored-signals", Box::new(body))?;
    Ok(receiver)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
