//! What a link sends and posts, as far as there is room: messages, requests, and moves of bytes.

use std::time::Instant;

use kvstored_core::{Error, Result};

use super::{Channel, Core, MESSAGE_BYTES, Message, Note, Token, Work, place_of};
use crate::sys::Window;

impl Core {
    /// Sends and posts what there is room for.
    pub fn pump(&mut self, now: Instant) -> Result<()> {
        loop {
            while self.can_send() {
                let Some(note) = self.notes.pop_front() else { break };
                self.send_note(note)?;
            }
            self.pump_requests(now)?;
            self.pump_moves()?;
            // moves may have ended jobs, whose answers go now
            if self.notes.is_empty() || !self.can_send() {
                break;
            }
        }
        let tells = self.must_tell || self.credit.should_tell();
        if tells && self.credit.may_tell() && self.has_room() {
            self.send(&Message::Credits)?;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        let left = self.channel.as_ref().map_or(0, Channel::sends_left);
        !self.vacant.is_empty() && left > 0
    }

    fn can_send(&self) -> bool {
        self.credit.may_send() && self.has_room()
    }

    fn send_note(&mut self, note: Note) -> Result<()> {
        match note {
            Note::Answer { id, failure } => {
                self.serving.answered();
                self.send(&Message::Answer { id, failure })
            }
            Note::Cancel { id } => self.send(&Message::Cancel { id }),
            Note::Probe => self.send(&Message::Probe),
        }
    }

    fn pump_requests(&mut self, now: Instant) -> Result<()> {
        // a binding and a message
        while self.can_send()
            && self
                .channel
                .as_ref()
                .is_some_and(|channel| channel.sends_left() > 1)
        {
            if self.asking.needs_window() {
                let window = Window::new(self.channel()?.domain())?;
                self.asking.add_window(window);
            }
            let Some(mut next) = self.asking.next(now) else {
                break;
            };
            let bound = self
                .channel()?
                .bind(&mut next.window, &next.memory, next.exposure, Token::Bound);
            let key = match bound {
                Ok(key) => key,
                Err(refused) => {
                    self.asking.put_back(next);
                    return Err(refused.error);
                }
            };
            let message = Message::Request {
                id: next.id,
                direction: next.direction,
                offset: next.offset,
                length: next.memory.length(),
                address: next.memory.address(),
                key,
                grant: &next.grant,
            };
            let sent = self.send(&message);
            self.asking.put_back(next);
            sent?;
        }
        Ok(())
    }

    fn pump_moves(&mut self) -> Result<()> {
        loop {
            self.notes.extend(self.serving.take_notes());
            // what messages and windows need is never taken by moves
            let moving = self.serving.moving();
            if moving >= u32::from(self.settings.moves)
                || self.channel.as_ref().is_none_or(|it| it.sends_left() == 0)
            {
                return Ok(());
            }
            let Some((place, work)) = self.serving.next(u64::from(self.settings.chunk_bytes))? else {
                self.notes.extend(self.serving.take_notes());
                return Ok(());
            };
            self.post(work, Token::Moved(place))?;
        }
    }

    fn send(&mut self, message: &Message<'_>) -> Result<()> {
        let place = self
            .vacant
            .pop()
            .ok_or_else(|| Error::internal("a message without a place"))?;
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.encode(self.credit.sent(), &mut bytes)?;
        self.must_tell = false;
        self.outbox.write(
            u64::from(place) * MESSAGE_BYTES as u64,
            bytes.get(..length).unwrap_or_default(),
        )?;
        let from = place_of(&self.outbox, place, length)?;
        self.post(Work::Send { from }, Token::Message(place))
    }
}
