//! What one peer's end does to transfers with others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::{Result, Runtime};

use super::asking::Asking;
use super::cases::{Direction, Transport};
use super::child::Served;
use super::serving::Role;
use crate::tools::bench::figure::{Figure, Samples, Side};
use crate::tools::latency::Latencies;

/// Memory of each process.
const MEMORY_BYTES: usize = 16 << 20;
/// Bytes of a read whose latency is measured.
const READ_BYTES: usize = 64 << 10;
/// Bytes and entries of the batches that are under way with the peer that goes.
const HELD: (usize, usize) = (1 << 20, 8);
/// How long reads follow one another.
const SPAN: Duration = Duration::from_secs(1);

/// How a peer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It stops where it is, and its connections stay.
    Stopped,
    /// It's killed.
    Killed,
}

/// The p99 of reads from one peer while another one goes in the midst of transfers, beside that with the other one idle.
pub fn others_p99(
    name: String,
    fault: Fault,
    transport: Transport,
    rounds: usize,
    runtime: &Runtime,
) -> Result<Figure> {
    let start = || Served::start(Role::Engine, transport, MEMORY_BYTES, runtime);
    let mut staying = start()?;
    let asking = Asking::connect(&mut staying, transport, MEMORY_BYTES, runtime)?;
    let samples = Samples::take(rounds, |side| {
        let mut going = start()?;
        let with_going = asking.with(&mut going)?;
        match side {
            Side::Limit => p99(&asking, runtime),
            Side::Ours => {
                // sharing takes no part of the peer's; what needs it is to ask what a new grant is worth
                let asks = (fault, transport) == (Fault::Stopped, Transport::Shm);
                let with_going = if asks {
                    with_going.with(&mut going)?
                } else {
                    with_going
                };
                if asks {
                    going.pause()?;
                }
                let stop = Arc::new(AtomicBool::new(false));
                let stopped = stop.clone();
                let body = move || {
                    while !stopped.load(Ordering::Relaxed)
                        && with_going.batch(Direction::Read, HELD.0, HELD.1).is_ok()
                    {}
                };
                let thread = runtime.spawner.spawn("bench-held", Box::new(body))?;
                // until transfers are under way
                crate::tools::bench::setup::pause(runtime, Duration::from_millis(50));
                match fault {
                    Fault::Stopped if asks => {}
                    Fault::Stopped => going.pause()?,
                    Fault::Killed => going.kill()?,
                }
                let p99 = p99(&asking, runtime);
                stop.store(true, Ordering::Relaxed);
                if fault == Fault::Stopped {
                    going.kill()?;
                }
                thread.join();
                p99
            }
        }
    })?;
    let doing = if (fault, transport) == (Fault::Stopped, Transport::Shm) {
        "and asked what a new grant is worth"
    } else {
        "in the midst of transfers"
    };
    let note = format!(
        "reads of {READ_BYTES} bytes, one after the other, while another peer is {fault:?} {doing}; limit: the same with \
         that peer idle"
    );
    Ok(Figure::new(name, "us", &samples, note.to_lowercase()))
}

fn p99(asking: &Asking, runtime: &Runtime) -> Result<f64> {
    let mut latencies = Latencies::new()?;
    let end = runtime.deadline(SPAN);
    let mut last = runtime.clock.now();
    while last < end {
        asking.batch(Direction::Read, READ_BYTES, 1)?;
        let now = runtime.clock.now();
        latencies.record(now.saturating_duration_since(last));
        last = now;
    }
    Ok(latencies.quantile_us(0.99))
}
