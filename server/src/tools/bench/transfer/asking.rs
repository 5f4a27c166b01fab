//! The side that asks: an engine that reads and writes the serving process's memory.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::{EngineSettings, Grant, Peer, Side, TransferEngine, TransferEntry, TransferKind};

use super::cases::{Direction, Transport};
use super::child::Served;
use super::memory::Memory;
use super::serving::FILLING;

/// A grant that outlives every measurement.
pub const FOREVER: Duration = Duration::from_hours(24);
const TIMEOUT: Duration = Duration::from_mins(2);
/// Bytes that are looked at, at each end of the memory.
const LOOKED_AT: usize = 64 << 10;

/// An engine on a loopback address that knows one transport.
pub fn engine_settings(transport: Transport) -> EngineSettings {
    EngineSettings {
        listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        // nothing to fall back to: what doesn't work fails
        transports: vec![transport.kind()],
        ..EngineSettings::default()
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes from hexadecimal digits. Fails with `InvalidInput` for anything else.
pub fn unhex(text: &str) -> Result<Vec<u8>> {
    let wrong = || Error::invalid(format!("\"{text}\" is not hexadecimal"));
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|value| value as u8).ok_or_else(wrong))
        .collect::<Result<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    Ok(digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect())
}

/// An engine with an open peer and a grant on all of its memory. The engine ends with the last clone.
#[derive(Clone)]
pub struct Asking {
    engine: Arc<TransferEngine>,
    peer: Peer,
    memory: Arc<Memory>,
    grant: Grant,
    memory_bytes: usize,
    transport: Transport,
    runtime: Runtime,
}

/// Bytes that an engine has asked for so far and got, as it counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Over the transport that is measured.
    measured: u64,
    /// Over any other.
    other: u64,
}

impl Asking {
    /// Opens the serving process. Fails with `Unsupported` where the transport doesn't work here.
    pub fn connect(
        served: &mut Served,
        transport: Transport,
        memory_bytes: usize,
        runtime: &Runtime,
    ) -> Result<Self> {
        let engine = TransferEngine::start(engine_settings(transport), runtime.clone())?;
        let (peer, grant) = open(&engine, transport, served, runtime)?;
        let memory = Memory::new(&engine, transport, memory_bytes, runtime)?;
        // no later access pays for a fault
        fill(&memory, 0)?;
        Ok(Self {
            engine,
            peer,
            memory: Arc::new(memory),
            grant,
            memory_bytes,
            transport,
            runtime: runtime.clone(),
        })
    }

    /// The same engine with another serving process, which has as much memory, or with a new grant of the same one's.
    pub fn with(&self, served: &mut Served) -> Result<Self> {
        let (peer, grant) = open(&self.engine, self.transport, served, &self.runtime)?;
        Ok(Self {
            peer,
            grant,
            ..self.clone()
        })
    }

    /// Moves one batch.
    pub fn batch(&self, direction: Direction, bytes: usize, entries: usize) -> Result<()> {
        let entries = super::places(bytes, entries, self.memory_bytes)
            .map(|offset| TransferEntry {
                local: self.memory.region().id(),
                local_offset: offset as u64,
                grant: self.grant,
                remote_offset: offset as u64,
                length: bytes as u64,
            })
            .collect();
        let kind = match direction {
            Direction::Read => TransferKind::Read,
            Direction::Write => TransferKind::Write,
        };
        let deadline = self.runtime.deadline(TIMEOUT);
        self.engine
            .submit(&self.peer, kind, entries, deadline)?
            .wait(deadline)
    }

    /// What was carried so far.
    pub fn carried(&self) -> Carried {
        let mut carried = Carried {
            measured: 0,
            other: 0,
        };
        let rows = self.engine.counters();
        for row in rows.iter().filter(|row| row.side == Side::Requested) {
            let sum = if row.transport == self.transport.kind() {
                &mut carried.measured
            } else {
                &mut carried.other
            };
            *sum += row.read_bytes + row.written_bytes;
        }
        carried
    }

    /// Fails with `Mismatch` unless exactly that many bytes went since then, and all of them over the transport that is
    /// measured.
    pub fn prove(&self, before: Carried, bytes: u64) -> Result<()> {
        let now = self.carried();
        let (measured, other) = (now.measured - before.measured, now.other - before.other);
        if (measured, other) == (bytes, 0) {
            return Ok(());
        }
        let name = self.transport.name();
        Err(Error::new(
            ErrorKind::Mismatch,
            format!("of {bytes} bytes {measured} went over {name}, and {other} over another transport"),
        ))
    }

    /// Fails with `Corrupt` unless what is read is what is there, and what is written arrives.
    pub fn check(&self, served: &mut Served) -> Result<()> {
        self.batch(Direction::Read, self.memory_bytes, 1)?;
        expect(&self.memory, FILLING)?;
        fill(&self.memory, !FILLING)?;
        self.batch(Direction::Write, self.memory_bytes, 1)?;
        served.ask(&format!("expect {}", !FILLING)).map(drop)
    }
}

fn open(
    engine: &TransferEngine,
    transport: Transport,
    served: &mut Served,
    runtime: &Runtime,
) -> Result<(Peer, Grant)> {
    let address = served.address().to_string();
    let peer = engine.open_peer(&address, runtime.deadline(TIMEOUT))?;
    if peer.transport() != transport.kind() {
        let (used, asked) = (peer.transport().name(), transport.name());
        return Err(Error::new(
            ErrorKind::Mismatch,
            format!("the peer is reached over {used}, not over {asked} as asked"),
        ));
    }
    let answer = served.ask(&format!("grant {}", hex(&engine.identity().to_bytes())))?;
    Ok((peer, Grant::decode(&unhex(&answer)?)?))
}

/// Writes the same byte everywhere.
pub fn fill(memory: &Memory, byte: u8) -> Result<()> {
    let piece = vec![byte; 1 << 20];
    let bytes = memory.region().length();
    let mut offset = 0;
    while offset < bytes {
        let length = piece.len().min(bytes - offset);
        memory.write(offset, piece.get(..length).unwrap_or_default())?;
        offset += length;
    }
    Ok(())
}

/// Fails with `Corrupt` unless both ends hold that byte.
pub fn expect(memory: &Memory, byte: u8) -> Result<()> {
    let bytes = memory.region().length();
    let mut found = vec![!byte; LOOKED_AT.min(bytes)];
    for offset in [0, bytes - found.len()] {
        found.fill(!byte);
        memory.read(offset, &mut found)?;
        if found.iter().any(|other| *other != byte) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "what was moved is not what was there",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)).unwrap(), all);
        assert!(unhex("").unwrap().is_empty());
        for wrong in ["0", "0g", "00 ", "äö"] {
            assert!(unhex(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_that_differs_at_either_end_is_seen() {
        let engine = TransferEngine::start(engine_settings(Transport::Tcp), Runtime::system()).unwrap();
        let memory = Memory::Allocated(engine.allocate(300_000).unwrap());
        fill(&memory, 7).unwrap();
        expect(&memory, 7).unwrap();
        for offset in [0, 299_999] {
            memory.write(offset, &[8]).unwrap();
            assert_eq!(expect(&memory, 7).unwrap_err().kind(), ErrorKind::Corrupt);
            memory.write(offset, &[7]).unwrap();
        }
        engine.shutdown();
    }
}
