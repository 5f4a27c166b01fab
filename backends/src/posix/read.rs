//! The read path: one read of the whole image, verified before it completes.

use std::sync::Arc;

use kvstored_core::tier::Completion;
use kvstored_core::{Action, BlockHash, Error, ErrorKind, NamespaceInfo, Operation, Result, SlotGuard};

use super::format::{NamespaceShape, PAGE};
use super::index::{Location, NamespaceIndex};
use super::log::Log;
use super::quarantine::{Suspect, condemn};
use super::segments::Segment;
use super::shared::count;
use crate::io::{Direction, IoRequest};

/// A read under way.
struct Reading {
    log: Arc<Log>,
    index: Arc<NamespaceIndex>,
    info: Arc<NamespaceInfo>,
    hash: BlockHash,
    location: Location,
    segment: Arc<Segment>,
    whole: bool,
    completion: Completion,
}

/// Makes the request for a read; completes the operation at once where there's nothing to read.
pub fn start(
    logs: &[Arc<Log>],
    index: &Arc<NamespaceIndex>,
    operation: Operation,
) -> Option<(usize, IoRequest)> {
    let absent = || Error::new(ErrorKind::NotFound, "the block is not here");
    if NamespaceShape::of(&operation.namespace) != index.shape {
        operation.complete(Err(Error::new(
            ErrorKind::Mismatch,
            "the namespace is known with another layout",
        )));
        return None;
    }
    let length = index.image_bytes();
    if operation.buffer.length() < length {
        let error = format!(
            "a buffer of {} bytes for an image of {length}",
            operation.buffer.length()
        );
        operation.complete(Err(Error::invalid(error)));
        return None;
    }
    let found = index.get(&operation.hash).and_then(|location| {
        let Some(segment) = logs.first()?.shared.segments.get(location.segment) else {
            index.remove_at(&operation.hash, location.segment, location.page);
            return None;
        };
        Some((location, Arc::clone(logs.get(segment.log)?), segment))
    });
    let Some((location, log, segment)) = found else {
        operation.complete(Err(absent()));
        return None;
    };
    let file = match log.shared.segments.open(&segment) {
        Ok(file) => file,
        Err(error) => {
            let vanished = error.kind() == ErrorKind::NotFound;
            if vanished
                && index.remove_at(&operation.hash, location.segment, location.page)
                && log.shared.segments.block_left(location.segment, length)
            {
                log.shared.quotas.release(index, length as u64);
            }
            operation.complete(Err(if vanished { absent() } else { error }));
            return None;
        }
    };
    let Operation {
        namespace,
        hash,
        action,
        buffer,
        completion,
    } = operation;
    let number = log.number;
    let reading = Reading {
        log,
        index: Arc::clone(index),
        info: namespace,
        hash,
        location,
        segment,
        whole: action == Action::Verify,
        completion,
    };
    let request = IoRequest {
        file,
        direction: Direction::Read,
        file_offset: u64::from(location.page) * PAGE,
        buffer,
        buffer_offset: 0,
        length,
        completion: Box::new(move |buffer, result| reading.finish(buffer, result)),
    };
    Some((number, request))
}

impl Reading {
    fn finish(self, buffer: SlotGuard, result: Result<()>) {
        let verified = match result {
            Ok(()) => {
                count(
                    &self.log.shared.counters.read_bytes,
                    self.index.image_bytes() as u64,
                );
                self.verify(&buffer)
            }
            Err(error) => Err(self.failed(error)),
        };
        match &verified {
            Ok(()) if !self.whole => self.index.mark_referenced(&self.hash, self.location),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let suspect = Suspect {
                    index: Arc::clone(&self.index),
                    hash: self.hash,
                    segment: Arc::clone(&self.segment),
                    page: self.location.page,
                };
                condemn(&self.log, suspect, error);
            }
            _ => {}
        }
        (self.completion)(buffer, verified);
    }

    fn verify(&self, buffer: &SlotGuard) -> Result<()> {
        if self.whole {
            self.info.verify_image(self.hash, buffer)
        } else {
            self.info.check_descriptor(self.hash, buffer).map(drop)
        }
    }

    /// What a failed read means: a segment that was cut or deleted makes a miss.
    fn failed(&self, error: Error) -> Error {
        if matches!(
            error.kind(),
            ErrorKind::Busy | ErrorKind::Cancelled | ErrorKind::InvalidInput
        ) {
            return error;
        }
        let handle = self.location.segment;
        if self.index.remove_at(&self.hash, handle, self.location.page) {
            let bytes = self.index.image_bytes();
            if self.log.shared.segments.block_left(handle, bytes) {
                self.log.shared.quotas.release(&self.index, bytes as u64);
            }
        }
        self.segment.close();
        if error.kind() == ErrorKind::NotFound || error.message() == "short read" {
            return Error::new(ErrorKind::NotFound, "the block's segment has vanished");
        }
        tracing::warn!(%error, path = %self.segment.path.display(), "a block can't be read and is dropped");
        error
    }
}
