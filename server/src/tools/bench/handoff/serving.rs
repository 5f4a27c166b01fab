//! The producer's process: holds prompts, and lets its memory be read plainly.

use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::{EngineId, GrantRequest, Rights};

use super::super::transfer::asking::{FOREVER, hex, unhex};
use super::super::transfer::cases::Transport;
use super::super::transfer::child;
use super::prompt::{Prompt, Side, Spread};

/// What the producer is called.
pub const ENGINE_ID: &str = "bench";
/// How long a hold lasts, and how long its end is waited for.
const LEASE: Duration = Duration::from_secs(50);

/// Serves until standard input ends.
pub fn run(prompt: &Prompt, transport: Transport, verify: bool, runtime: &Runtime) -> Result<()> {
    let mut side = Side::start(prompt, transport, ENGINE_ID, verify, runtime)?;
    side.fill_with_content()?;
    let silent = || Error::internal("an engine that doesn't listen");
    let address = side.handoff.address().ok_or_else(silent)?;
    let plain_address = side.plain.address().ok_or_else(silent)?;
    let bytes = prompt.memory_bytes() as u64;
    let publication = side.plain.publish(side.plain_region()?.id(), 0, bytes)?;
    let handle = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        ["plain"] => Ok(plain_address.to_string()),
        ["grant", name] => {
            let name = unhex(name)?
                .try_into()
                .map_err(|_| Error::invalid("an engine's name has 16 bytes"))?;
            let grant = side.plain.grant(GrantRequest {
                peer: EngineId::from_bytes(name),
                publication: publication.id(),
                offset: 0,
                length: bytes,
                rights: Rights::Read,
                expires_in: FOREVER,
            })?;
            Ok(hex(&grant.encode()))
        }
        ["hold", request, spread] => {
            let spread = Spread::ALL.into_iter().find(|known| known.name() == spread);
            let spread = spread.ok_or_else(|| Error::invalid(format!("\"{line}\"")))?;
            side.handoff.hold(request, &prompt.ids(spread), LEASE)?;
            Ok("held".to_owned())
        }
        ["released", request] => {
            let released = side.handoff.wait_released(runtime.deadline(LEASE));
            match &released[..] {
                [one] if one.request == request => Ok(one.reason.name().to_owned()),
                other => Err(Error::new(ErrorKind::Mismatch, format!("released: {other:?}"))),
            }
        }
        _ => Err(Error::invalid(format!("\"{line}\""))),
    };
    child::serve(address, handle)
}
