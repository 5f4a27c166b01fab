//! Ends operations of a connection before their time, so that they touch no memory any more, and keeps the connection in
//! order: what was begun is filled up with zeros, and what arrives for nobody is thrown away.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_core::ErrorKind;

use super::outgoing::Sending;
use super::requests::{Requests, ended_by};
use super::serving::Intake;
use crate::memory::Span;
use crate::transfer::TransferState;

/// Which operations are to end.
pub(crate) enum Doomed<'a> {
    /// Those of one transfer.
    Of(&'a Arc<TransferState>, ErrorKind),
    /// Those that touch memory which is being released or unregistered.
    Closed,
}

impl Doomed<'_> {
    /// What an operation ends with, given its transfer and whether its memory is being closed.
    fn error(&self, owner: Option<&Arc<TransferState>>, closed: bool) -> Option<ErrorKind> {
        match self {
            Self::Of(transfer, kind) => owner
                .is_some_and(|owner| Arc::ptr_eq(owner, transfer))
                .then_some(*kind),
            Self::Closed => closed.then_some(ErrorKind::Fenced),
        }
    }
}

/// The payload that is arriving.
pub(super) fn end_arriving(intake: &mut Intake, requests: Option<&Requests>, doomed: &Doomed<'_>) {
    let Some(inbound) = intake.receiving.inbound() else {
        return;
    };
    let closed = inbound.span.as_ref().is_some_and(Span::is_closed);
    let owner = inbound
        .pending
        .as_ref()
        .and_then(|pending| pending.transfer.as_ref());
    let Some(kind) = doomed.error(owner, closed) else {
        return;
    };
    inbound.span = None;
    inbound.error.get_or_insert_with(|| ended_by(kind));
    let owner = inbound
        .pending
        .as_mut()
        .and_then(|pending| pending.transfer.take());
    if let Some(requests) = requests {
        requests.finish(owner, Err(ended_by(kind)), None);
    }
}

/// Frames that wait to be sent, or are being sent.
pub(super) fn end_waiting(sending: &mut Sending, requests: Option<&Requests>, doomed: &Doomed<'_>) {
    let mut kept = VecDeque::with_capacity(sending.queue.len());
    // from the back, where those are that can be withdrawn
    while let Some(mut frame) = sending.queue.pop_back() {
        let Some(kind) = doomed.error(frame.owner.as_ref(), frame.is_closed()) else {
            kept.push_front(frame);
            continue;
        };
        frame.owner = None;
        let pending = match requests {
            Some(requests) if !frame.has_begun() => requests.withdraw(frame.header().id),
            _ => None,
        };
        if let (Some(pending), Some(requests)) = (pending, requests) {
            drop((frame, pending.span));
            requests.finish(pending.transfer, Err(ended_by(kind)), None);
            continue;
        }
        frame.void(kind);
        if let Some(requests) = requests {
            let id = frame.header().id;
            requests.end(&|pending| (pending.header.id == id).then_some(kind));
        }
        kept.push_front(frame);
    }
    sending.queue = kept;
}

/// Requests whose answers haven't come.
pub(super) fn end_asked(requests: &Requests, doomed: &Doomed<'_>) {
    requests.end(&|pending| {
        let closed = pending.span.as_ref().is_some_and(Span::is_closed);
        doomed.error(pending.transfer.as_ref(), closed)
    });
}
