//! The serving sides: an engine whose memory is read and written, a raw socket, and a master.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use kvstored_core::{Error, Result, Runtime};
use kvstored_master::MasterSettings;
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_transfer::{EngineId, GrantRequest, Rights, TransferEngine};

use super::asking::{FOREVER, engine_settings, expect, fill, hex, unhex};
use super::cases::Transport;
use super::memory::Memory;
use super::{child, raw};

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Memory of an engine.
    Engine,
    /// A raw socket.
    Raw,
    /// A master of the pool.
    Master,
}

impl Role {
    /// Its word on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Raw => "raw",
            Self::Master => "master",
        }
    }
}

/// What the engine's memory holds at first.
pub const FILLING: u8 = 0x5A;

/// Serves until standard input ends.
pub fn run(role: Role, transport: Transport, memory_bytes: usize, runtime: &Runtime) -> Result<()> {
    match role {
        Role::Engine => engine(transport, memory_bytes, runtime),
        Role::Raw => raw_socket(memory_bytes, runtime),
        Role::Master => master(runtime),
    }
}

fn raw_socket(memory_bytes: usize, runtime: &Runtime) -> Result<()> {
    let failed = |error| Error::from_io(error, "raw socket");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let body = Box::new(move || {
        if let Err(error) = raw::serve(&listener, memory_bytes) {
            tracing::error!(%error, "the raw socket's service ended");
        }
    });
    // it ends with its client or with the process
    let _thread = runtime.spawner.spawn("bench-raw", body)?;
    child::serve(address, |line| Err(Error::invalid(format!("\"{line}\""))))
}

fn master(runtime: &Runtime) -> Result<()> {
    let settings = ServerSettings {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..ServerSettings::default()
    };
    let master = MasterServer::start(settings, MasterSettings::default(), runtime.clone())?;
    let served = child::serve(master.address(), |line| {
        Err(Error::invalid(format!("\"{line}\"")))
    });
    master.stop();
    served
}

fn engine(transport: Transport, memory_bytes: usize, runtime: &Runtime) -> Result<()> {
    let engine = TransferEngine::start(engine_settings(transport), runtime.clone())?;
    let memory = Memory::new(&engine, transport, memory_bytes, runtime)?;
    fill(&memory, FILLING)?;
    let publication = engine.publish(memory.region().id(), 0, memory_bytes as u64)?;
    let address = engine
        .address()
        .ok_or_else(|| Error::internal("the engine doesn't listen"))?;
    let handle = |line: &str| match line.split_once(' ') {
        Some(("grant", name)) => {
            let name = unhex(name)?
                .try_into()
                .map_err(|_| Error::invalid("an engine's name has 16 bytes"))?;
            let grant = engine.grant(GrantRequest {
                peer: EngineId::from_bytes(name),
                publication: publication.id(),
                offset: 0,
                length: memory_bytes as u64,
                rights: Rights::ReadWrite,
                expires_in: FOREVER,
            })?;
            Ok(hex(&grant.encode()))
        }
        Some(("expect", byte)) => {
            let byte = byte.parse().map_err(|_| Error::invalid("a byte"))?;
            expect(&memory, byte).map(|()| "as expected".to_owned())
        }
        _ => Err(Error::invalid(format!("\"{line}\""))),
    };
    let served = child::serve(address, handle);
    engine.shutdown();
    served
}
