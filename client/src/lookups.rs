//! Calls that ask which blocks are there.

use std::borrow::Cow;
use std::sync::Arc;

use kvstored_core::block::BlockHash;
use kvstored_core::error::Result;
use kvstored_core::tier::NamespaceInfo;

use crate::client::Client;
use crate::request::NamespaceHandle;
use crate::session::{Session, Until, unexpected};
use crate::wire::{Answer, MAX_BLOCKS, Request};

/// Hashes in one part of a prefix lookup.
const LOOKUP_PART_BLOCKS: usize = 2048;

impl Client {
    /// Which blocks some tier has. A hit may still turn out to be a miss at the load.
    pub fn lookup(&self, namespace: &NamespaceHandle, hashes: &[BlockHash]) -> Result<Vec<bool>> {
        let mut all = Vec::with_capacity(hashes.len());
        for part in hashes.chunks(MAX_BLOCKS) {
            all.extend(self.ask(|session, until| {
                let namespace = session.namespace(&namespace.info, until)?;
                match session.call(
                    Request::Lookup {
                        namespace,
                        hashes: part.into(),
                    },
                    until,
                )? {
                    Answer::Present(present) if present.len() == part.len() => Ok(present),
                    other => Err(unexpected(&other)),
                }
            })?);
        }
        Ok(all)
    }

    /// How many blocks at the start of `hashes` are there without a gap.
    pub fn lookup_on_prefix(&self, namespace: &NamespaceHandle, hashes: &[BlockHash]) -> Result<usize> {
        let mut found = 0;
        for run in hashes.chunks(MAX_BLOCKS) {
            let mut here = 0;
            self.ask(|session, until| {
                here = 0;
                let request = |namespace, part| Request::LookupOnPrefix {
                    namespace,
                    hashes: part,
                };
                in_parts(session, &namespace.info, run, until, request, |answer, part| {
                    let Answer::Count(count) = answer else {
                        return Err(unexpected(&answer));
                    };
                    let count = (count as usize).min(part);
                    here += count;
                    Ok(count)
                })
            })?;
            found += here;
            if here < run.len() {
                break;
            }
        }
        Ok(found)
    }

    /// For each present block at the start of `hashes`, the position in [`Client::tier_names`] of the fastest tier
    /// that has it. The result is as long as [`Client::lookup_on_prefix`] would say, and comes about as fast.
    pub fn locate_prefix(&self, namespace: &NamespaceHandle, hashes: &[BlockHash]) -> Result<Vec<u8>> {
        let mut tiers = Vec::with_capacity(hashes.len());
        for run in hashes.chunks(MAX_BLOCKS) {
            let before = tiers.len();
            self.ask(|session, until| {
                tiers.truncate(before);
                let request = |namespace, part| Request::LocatePrefix {
                    namespace,
                    hashes: part,
                };
                in_parts(session, &namespace.info, run, until, request, |answer, part| {
                    let Answer::Located(located) = answer else {
                        return Err(unexpected(&answer));
                    };
                    let count = located.len().min(part);
                    tiers.extend(located.into_iter().take(count));
                    Ok(count)
                })
            })?;
            if tiers.len() - before < run.len() {
                break;
            }
        }
        Ok(tiers)
    }
}

/// Asks about a run in parts: the engine works on the first while the next are on their way. `take` gets the answers
/// in order, each with its part's length, up to the first that says it found less.
fn in_parts<'a>(
    session: &mut dyn Session,
    info: &Arc<NamespaceInfo>,
    run: &'a [BlockHash],
    until: Until<'_>,
    request: impl Fn(u32, Cow<'a, [BlockHash]>) -> Request<'a>,
    mut take: impl FnMut(Answer, usize) -> Result<usize>,
) -> Result<()> {
    let namespace = session.namespace(info, until)?;
    let mut tickets = Vec::with_capacity(run.len().div_ceil(LOOKUP_PART_BLOCKS));
    for part in run.chunks(LOOKUP_PART_BLOCKS) {
        tickets.push(session.begin(request(namespace, part.into()))?);
    }
    let mut gap = false;
    for (ticket, part) in tickets.into_iter().zip(run.chunks(LOOKUP_PART_BLOCKS)) {
        let answer = session.answer(ticket, until)?;
        if !gap {
            gap = take(answer, part.len())? < part.len();
        }
    }
    Ok(())
}
