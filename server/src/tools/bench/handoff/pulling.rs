//! The consumer's process: pulls prompts, and reads the same bytes plainly.

use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_handoff::RemoteRequest;
use kvstored_transfer::{Grant, Peer, TransferEntry, TransferKind};

use super::super::setup::{cpu_seconds, pause};
use super::super::transfer::asking::{hex, unhex};
use super::super::transfer::cases::Transport;
use super::super::transfer::child::Served;
use super::prompt::{Prompt, Side, Spread};
use super::serving::ENGINE_ID;

/// How often a prompt is moved for one measurement.
const TIMES: usize = 5;
const TIMEOUT: Duration = Duration::from_mins(2);

/// What one measurement gives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Values {
    /// GB/s.
    pub speed: f64,
    /// CPU seconds per GB of both processes.
    pub cpu: f64,
    /// Microseconds from the end of a pull until the producer has its blocks back, on average.
    pub release_us: f64,
}

/// Both processes.
pub struct Pulling {
    side: Side,
    served: Served,
    peer: Peer,
    grant: Grant,
    prompt: Prompt,
    transport: Transport,
    runtime: Runtime,
    requests: u64,
    held: Duration,
}

impl Pulling {
    /// Starts the producer and opens it. Fails with `Unsupported` where the transport doesn't work here.
    pub fn connect(
        prompt: &Prompt,
        transport: Transport,
        verify: bool,
        held: Duration,
        runtime: &Runtime,
    ) -> Result<Self> {
        let tokens = (prompt.blocks * prompt.block_tokens).to_string();
        let mut arguments = vec!["bench", "handoff", "--serve", "--transport", transport.name()];
        arguments.extend(["--geometry", prompt.geometry.name, "--tokens", &tokens]);
        arguments.extend(prompt.registered.then_some("--registered"));
        arguments.extend((!verify).then_some("--no-verify"));
        let side = Side::start(prompt, transport, "consumer", verify, runtime)?;
        let mut served = Served::run(arguments, runtime)?;
        let deadline = runtime.deadline(TIMEOUT);
        let peer = side.plain.open_peer(&served.ask("plain")?, deadline)?;
        if peer.transport() != transport.kind() {
            let (used, asked) = (peer.transport().name(), transport.name());
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("the peer is reached over {used}, not over {asked} as asked"),
            ));
        }
        let grant = served.ask(&format!("grant {}", hex(&side.plain.identity().to_bytes())))?;
        Ok(Self {
            grant: Grant::decode(&unhex(&grant)?)?,
            side,
            served,
            peer,
            prompt: *prompt,
            transport,
            runtime: runtime.clone(),
            requests: 0,
            held,
        })
    }

    /// Fails with `Corrupt` unless both ways bring what is there.
    pub fn check(&mut self, spread: Spread) -> Result<()> {
        self.requests += 1;
        let (request, remote) = (self.request(), self.remote());
        self.hold(&request, spread)?;
        let (prompt, runtime) = (self.prompt, self.runtime.clone());
        let (peer, grant) = (&self.peer, self.grant);
        self.side.expect(spread, |side| {
            pull(side, &request, remote, &prompt, spread, &runtime)?;
            read(side, peer, grant, &prompt, spread, &runtime)
        })?;
        self.released(&request)
    }

    /// Pulls prompts.
    pub fn pulls(&mut self, spread: Spread) -> Result<Values> {
        let (mut seconds, mut release) = (0.0, 0.0);
        let before = self.pulled_bytes();
        let cpu_before = self.cpu()?;
        for _ in 0..TIMES {
            self.requests += 1;
            let (request, remote) = (self.request(), self.remote());
            self.hold(&request, spread)?;
            pause(&self.runtime, self.held);
            let started = self.runtime.clock.now();
            pull(&self.side, &request, remote, &self.prompt, spread, &self.runtime)?;
            seconds += self.since(started);
            let over = self.runtime.clock.now();
            self.released(&request)?;
            release += self.since(over);
        }
        let cpu = self.cpu()? - cpu_before;
        let bytes = (self.prompt.bytes() * TIMES) as u64;
        let after = self.pulled_bytes();
        if (after.0 - before.0, after.1 - before.1) != (bytes, 0) {
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("{bytes} bytes were pulled, but {before:?} became {after:?}"),
            ));
        }
        Ok(Values {
            release_us: release / TIMES as f64 * 1e6,
            ..values(bytes, seconds, cpu)
        })
    }

    /// Reads the same bytes.
    pub fn reads(&mut self, spread: Spread) -> Result<Values> {
        let cpu_before = self.cpu()?;
        let started = self.runtime.clock.now();
        for _ in 0..TIMES {
            read(
                &self.side,
                &self.peer,
                self.grant,
                &self.prompt,
                spread,
                &self.runtime,
            )?;
        }
        let seconds = self.since(started);
        let cpu = self.cpu()? - cpu_before;
        Ok(values((self.prompt.bytes() * TIMES) as u64, seconds, cpu))
    }

    fn since(&self, started: Instant) -> f64 {
        self.runtime
            .clock
            .now()
            .saturating_duration_since(started)
            .as_secs_f64()
    }

    fn cpu(&mut self) -> Result<f64> {
        Ok(self.served.cpu_seconds()? + cpu_seconds())
    }

    /// Bytes that came over the transport that is measured, and over others.
    fn pulled_bytes(&self) -> (u64, u64) {
        let statistics = self.side.handoff.statistics();
        let by_transport = [
            (Transport::Tcp, statistics.pulled_bytes_tcp),
            (Transport::Shm, statistics.pulled_bytes_shm),
            (Transport::Rdma, statistics.pulled_bytes_rdma),
        ];
        let sum = |measured: bool| {
            let rows = by_transport
                .iter()
                .filter(|(transport, _)| (*transport == self.transport) == measured);
            rows.map(|(_, bytes)| bytes).sum()
        };
        (sum(true), sum(false))
    }

    fn request(&self) -> String {
        format!("prompt-{}", self.requests)
    }

    fn remote(&self) -> RemoteRequest {
        RemoteRequest {
            engine_id: ENGINE_ID.to_owned(),
            request: self.request(),
            producers: vec![self.served.address().to_string()],
        }
    }

    fn hold(&mut self, request: &str, spread: Spread) -> Result<()> {
        self.served
            .ask(&format!("hold {request} {}", spread.name()))
            .map(drop)
    }

    fn released(&mut self, request: &str) -> Result<()> {
        let reason = self.served.ask(&format!("released {request}"))?;
        if reason == "taken" {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Mismatch,
            format!("a hold that was pulled ended as {reason}"),
        ))
    }
}

fn values(bytes: u64, seconds: f64, cpu: f64) -> Values {
    let gigabytes = bytes as f64 / 1e9;
    Values {
        speed: gigabytes / seconds.max(1e-9),
        cpu: cpu / gigabytes,
        release_us: 0.0,
    }
}

fn pull(
    side: &Side,
    request: &str,
    remote: RemoteRequest,
    prompt: &Prompt,
    spread: Spread,
    runtime: &Runtime,
) -> Result<()> {
    side.handoff
        .pull(request, remote, prompt.ids(spread), 0, TIMEOUT)?;
    let pulled = side.handoff.wait_pulled(runtime.deadline(TIMEOUT * 2));
    match &pulled[..] {
        [one] if one.failed.is_empty() => Ok(()),
        other => Err(Error::new(
            ErrorKind::Unavailable,
            format!("a pull ended as {other:?}"),
        )),
    }
}

fn read(
    side: &Side,
    peer: &Peer,
    grant: Grant,
    prompt: &Prompt,
    spread: Spread,
    runtime: &Runtime,
) -> Result<()> {
    let local = side.plain_region()?.id();
    let entry = |(offset, length): (usize, usize)| TransferEntry {
        local,
        local_offset: offset as u64,
        grant,
        remote_offset: offset as u64,
        length: length as u64,
    };
    let entries = prompt.runs(spread).into_iter().map(entry).collect();
    let deadline = runtime.deadline(TIMEOUT);
    side.plain
        .submit(peer, TransferKind::Read, entries, deadline)?
        .wait(deadline)
}
