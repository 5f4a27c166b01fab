//! What is answered out of turn: requests on the opener's side, and answers on the acceptor's.

use kvstored_core::{Error, Result};

use super::{Connection, gone};
use crate::tcp::outgoing::Outgoing;
use crate::tcp::requests::Late;
use crate::tcp::serving::{Reply, answer_to};
use crate::wire::Header;

impl Connection {
    /// Queues a request that is answered out of turn, and sends it if it can be.
    ///
    /// Fails with `Unavailable` when the connection is over already; then it wasn't taken.
    pub fn request_late(&self, frame: Outgoing, late: Box<dyn Late>) -> Result<()> {
        let Some(answers) = &self.requests else {
            return Err(Error::internal("an accepted connection asks nothing"));
        };
        let sent = {
            let mut sending = self.sending.lock();
            if sending.closed {
                return Err(gone());
            }
            answers.push_late(frame.header().id, late);
            sending.queue.push_back(frame);
            if self.is_blocked() {
                return Ok(());
            }
            self.flush_in(&mut sending)
        };
        match sent {
            Ok(()) => self.update(),
            Err(error) => self.close(&error),
        }
        Ok(())
    }

    /// What answers a request later, from a thread that holds none of the connection's locks.
    pub(super) fn reply(&self, request: Header) -> Reply {
        let me = self.me.clone();
        Box::new(move |result| {
            if let Some(connection) = me.upgrade() {
                connection.answer(answer_to(&request, result));
            }
        })
    }

    fn answer(&self, frame: Outgoing) {
        let sent = {
            let mut sending = self.sending.lock();
            if sending.closed {
                return;
            }
            sending.queue.push_back(frame);
            if self.is_blocked() {
                return;
            }
            self.flush_in(&mut sending)
        };
        match sent {
            Ok(()) => self.update(),
            Err(error) => self.close(&error),
        }
    }
}
