//! Answers on their way to one client.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvstored_client::wire::{Answer, answer_frame};
use kvstored_core::error::{Error, Result};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, send, sendmsg, shutdown};
use tokio::net::UnixStream;
use tokio::sync::Notify;

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    sent: usize,
}

/// Writes answers at once, from whichever thread has one, and queues what the socket doesn't take.
pub(super) struct Outgoing {
    socket: Arc<UnixStream>,
    limit: usize,
    queue: Mutex<Queue>,
    closed: AtomicBool,
    backlog: AtomicBool,
    /// Something changed that the connection's task has to look at.
    pub(super) changed: Notify,
}

impl Outgoing {
    pub(super) fn new(socket: Arc<UnixStream>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            socket,
            limit,
            queue: Mutex::default(),
            closed: AtomicBool::new(false),
            backlog: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    /// Whether the connection is to be closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether bytes wait for the socket to take them.
    pub(super) fn has_backlog(&self) -> bool {
        self.backlog.load(Ordering::Acquire)
    }

    /// Sends an answer. Never blocks. A client that leaves too much unread is cut off.
    pub(super) fn answer(&self, id: u32, answer: &Answer) {
        let frame = answer_frame(id, answer).or_else(|error| answer_frame(id, &Answer::error(error)));
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%error, "answer not encoded; connection closed");
                return self.close();
            }
        };
        let mut queue = self.queue.lock();
        if self.is_closed() {
            return;
        }
        let mut rest = frame.as_slice();
        if queue.bytes.is_empty() {
            rest = match self.send_now(rest) {
                Ok(sent) => rest.get(sent..).unwrap_or_default(),
                Err(error) => {
                    drop(queue);
                    tracing::debug!(%error, "client is gone");
                    return self.close();
                }
            };
        }
        if rest.is_empty() {
            return;
        }
        if queue.bytes.len() - queue.sent + rest.len() > self.limit {
            drop(queue);
            tracing::warn!(
                limit_bytes = self.limit,
                "client doesn't read its answers; connection closed"
            );
            return self.close();
        }
        queue.bytes.extend_from_slice(rest);
        self.backlog.store(true, Ordering::Release);
        drop(queue);
        self.changed.notify_one();
    }

    /// Sends the first answer with the arena's descriptor.
    pub(super) fn welcome(&self, id: u32, answer: &Answer, arena: BorrowedFd<'_>) -> Result<()> {
        let frame = answer_frame(id, answer)?;
        let files = [arena];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(Error::internal("no room for a file descriptor in a message"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = sendmsg(self.socket.as_fd(), &[IoSlice::new(&frame)], &mut control, flags)
            .map_err(|error| Error::from_io(error.into(), "welcome not sent"))?;
        // nothing was sent before it, so the socket takes it whole
        if sent == frame.len() {
            Ok(())
        } else {
            Err(Error::internal("welcome sent in part"))
        }
    }

    /// Sends what waits, as far as the socket takes it. `false` if some is left.
    pub(super) fn flush(&self) -> bool {
        let mut queue = self.queue.lock();
        while queue.sent < queue.bytes.len() {
            match self.send_now(queue.bytes.get(queue.sent..).unwrap_or_default()) {
                Ok(0) => return false,
                Ok(sent) => queue.sent += sent,
                Err(error) => {
                    drop(queue);
                    tracing::debug!(%error, "client is gone");
                    self.close();
                    return true;
                }
            }
        }
        *queue = Queue::default();
        self.backlog.store(false, Ordering::Release);
        true
    }

    /// How much the socket takes of this now; 0 when it's full.
    fn send_now(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Closes the connection; answers that come later go nowhere.
    pub(super) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        // answers under way may hold the socket open for long: the client learns of it now
        if let Err(error) = shutdown(&self.socket, Shutdown::Both) {
            tracing::trace!(%error, "connection was gone already");
        }
        self.changed.notify_one();
    }
}
