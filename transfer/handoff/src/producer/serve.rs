//! Answers consumers, on the engine's own thread: nothing here waits.

use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{EngineId, GrantRequest, Rights};

use super::Producer;
use super::table::{Known, Reason, Ticket};
use crate::limits::{MAX_GRANTED_BYTES, MAX_RANKS, MAX_TICKETS};
use crate::memory::Memory;
use crate::wire::{Answer, DescriptionPage, Item, MAX_LOCATED, Question, Right, Status};

/// A grant outlasts its hold by so much; what fences is the release.
const GRANT_MARGIN: Duration = Duration::from_secs(1);

impl Producer {
    /// The answer to a question. Fails as decoding does, and with `InvalidInput` for ranges that make no sense.
    pub(super) fn respond(&self, peer: EngineId, question: &[u8]) -> Result<Vec<u8>> {
        let question = Question::decode(question)?;
        let kind = question.kind();
        let refused = |status| Answer::Refused { kind, status };
        let Some(memory) = self.memory.get() else {
            return Ok(refused(Status::NotYet).encode());
        };
        let other_engine = |engine: &str| engine != memory.description.engine_id;
        let answer = match question {
            Question::Describe { from } => {
                Answer::Described(Box::new(DescriptionPage::of(&memory.description, from)))
            }
            Question::Locate { engine_id, .. }
            | Question::Grant { engine_id, .. }
            | Question::Done { engine_id, .. }
            | Question::Progress { engine_id, .. }
                if other_engine(&engine_id) =>
            {
                refused(Status::Gone)
            }
            Question::Locate {
                request,
                first,
                blocks,
                ..
            } => {
                if blocks as usize > MAX_LOCATED {
                    return Err(Error::invalid(format!("{blocks} blocks at once")));
                }
                match self.table.lock().find(&request) {
                    Known::Held(hold) if !hold.knows(first, blocks) => refused(Status::NotYet),
                    Known::Held(hold) => Answer::Located(hold.locate(first, blocks)?),
                    Known::Gone => refused(Status::Gone),
                    Known::Not => refused(Status::NotYet),
                }
            }
            Question::Grant {
                request, sums, items, ..
            } => self.granted(memory, peer, &request, sums, items)?,
            Question::Sums { ticket } => match self.table.lock().tickets.get(&ticket) {
                Some(known) if known.peer == peer => match &known.sums {
                    Some(sums) => Answer::Sums(sums.clone()),
                    None => refused(Status::NotYet),
                },
                _ => refused(Status::Gone),
            },
            Question::Done {
                request, rank, ranks, ..
            } => {
                if rank >= ranks || ranks as usize > MAX_RANKS {
                    return Err(Error::invalid(format!("rank {rank} of {ranks}")));
                }
                self.noted(&request, rank, ranks)
            }
            Question::Progress { request, .. } => match self.table.lock().find(&request) {
                Known::Held(hold) => {
                    let layers = memory.description.layers.len();
                    let (complete, ready) = hold.progress(layers);
                    Answer::Progress {
                        complete,
                        blocks: hold.blocks.len() as u32,
                        ready,
                    }
                }
                Known::Gone => refused(Status::Gone),
                Known::Not => refused(Status::NotYet),
            },
        };
        Ok(answer.encode())
    }

    fn granted(
        &self,
        memory: &Memory,
        peer: EngineId,
        request: &str,
        sums: bool,
        items: Vec<Item>,
    ) -> Result<Answer> {
        let refused = |status| Answer::Refused { kind: 3, status };
        let bytes = items
            .iter()
            .fold(0u64, |sum, item| sum.saturating_add(bytes_of(memory, item)));
        if items.len() > 1 && bytes > MAX_GRANTED_BYTES {
            return Err(Error::invalid(format!(
                "{bytes} bytes in one question; at most {MAX_GRANTED_BYTES} are accepted"
            )));
        }
        let mut ticket = 0;
        let (parts, expires_in) = {
            let mut table = self.table.lock();
            let number = table.number();
            let hold = match table.find(request) {
                Known::Held(hold) => hold,
                Known::Gone => return Ok(refused(Status::Gone)),
                Known::Not => return Ok(refused(Status::NotYet)),
            };
            if !items.iter().all(|item| hold.is_ready(memory, item)) {
                return Ok(refused(Status::NotYet));
            }
            let parts = items
                .iter()
                .map(|item| hold.part(&self.engine, memory, item))
                .collect::<Result<Vec<_>>>()?;
            let left = hold.lease_end.saturating_duration_since(self.runtime.clock.now());
            if sums {
                if hold.tickets.len() >= MAX_TICKETS {
                    return Err(Error::new(ErrorKind::Busy, "too many checksums of the request"));
                }
                hold.tickets.push(number);
                ticket = number;
                let new = Ticket {
                    peer,
                    request: request.to_owned(),
                    hold: hold.number,
                    items,
                    sums: None,
                };
                table.tickets.insert(number, new);
            }
            (parts, left.saturating_add(GRANT_MARGIN))
        };
        if sums {
            self.sums.push_now(ticket)?;
        }
        let grant = |part: &super::hold::Part| {
            let grant = self.engine.grant(GrantRequest {
                peer,
                publication: part.publication.id(),
                offset: part.offset,
                length: part.length,
                rights: Rights::Read,
                expires_in,
            })?;
            let worth = self.engine.foretell(&grant).unwrap_or_default();
            Ok(Right { grant, worth })
        };
        match parts.iter().map(grant).collect::<Result<Vec<Right>>>() {
            Ok(rights) => Ok(Answer::Granted { ticket, rights }),
            // it was released just now
            Err(error) if error.kind() == ErrorKind::Fenced => Ok(refused(Status::Gone)),
            Err(error) => Err(error),
        }
    }

    fn noted(&self, request: &str, rank: u32, ranks: u32) -> Answer {
        let refused = |status| Answer::Refused { kind: 5, status };
        let mut table = self.table.lock();
        match table.find(request) {
            Known::Held(hold) => {
                if hold.note_done(rank, ranks) {
                    table.end(request, Reason::Taken);
                    self.changed.notify_all();
                }
                Answer::Noted
            }
            Known::Gone => refused(Status::Gone),
            Known::Not => refused(Status::NotYet),
        }
    }
}

/// Bytes of an item's heads.
fn bytes_of(memory: &Memory, item: &Item) -> u64 {
    let shape = memory.pieces.get(item.piece as usize).map(|piece| piece.shape);
    shape.map_or(0, |shape| {
        let rows = u64::from(shape.rows) * u64::from(item.heads) * shape.head_bytes();
        rows.saturating_mul(u64::from(item.blocks))
    })
}
