//! Loading blocks: neighbours in one ranged request, verified before anybody hears of them.

use std::sync::Arc;

use bytes::Buf;
use kvstored_core::{Error, ErrorKind, ImageWriter, Result};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::index::Location;
use crate::objects::StoredObject;
use crate::pending::Pending;
use crate::retry::pause;
use crate::shared::{Shared, count};
use crate::store::{failure, late};

/// Requests for one range before it's given up.
const MOST_ATTEMPTS: u32 = 4;
/// Pause after the first attempt; it doubles with each further one.
const FIRST_PAUSE_MS: u64 = 20;

/// One block that is wanted.
struct Wanted {
    block: Pending,
    location: Location,
    outcome: Option<Result<()>>,
}

/// Blocks that lie side by side in one object.
struct Range {
    object: Arc<StoredObject>,
    image_bytes: u64,
    wanted: Vec<Wanted>,
}

/// Begins to load blocks. What isn't here completes with `NotFound` at once.
pub fn start(shared: &Arc<Shared>, handle: &tokio::runtime::Handle, blocks: Vec<Pending>) {
    let mut located = Vec::with_capacity(blocks.len());
    for block in blocks {
        let index = shared.index.get(&block.namespace.namespace);
        let location = index.as_ref().and_then(|index| index.get(&block.hash));
        let object = location.and_then(|location| shared.objects.get(location.object));
        match (location, object, index) {
            (Some(location), Some(object), Some(index)) if index.image_bytes == block.image_bytes() => {
                let wanted = Wanted {
                    block,
                    location,
                    outcome: None,
                };
                located.push((object, wanted));
            }
            _ => block.complete(Err(Error::new(
                ErrorKind::NotFound,
                "the bucket doesn't have the block",
            ))),
        }
    }
    located.sort_by_key(|(object, wanted)| (object.handle, wanted.location.position));
    for range in ranges(located, shared.settings.range_bytes) {
        handle.spawn(load(Arc::clone(shared), range));
    }
}

fn ranges(located: Vec<(Arc<StoredObject>, Wanted)>, range_bytes: u64) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (object, wanted) in located {
        let follows = |range: &&mut Range| {
            let last = range.wanted.last().map(|last| last.location.position);
            range.object.handle == object.handle
                && last.and_then(|last| last.checked_add(1)) == Some(wanted.location.position)
                && (range.wanted.len() as u64 + 1) * range.image_bytes <= range_bytes
        };
        match ranges.last_mut().filter(follows) {
            Some(range) => range.wanted.push(wanted),
            None => ranges.push(Range {
                object,
                image_bytes: wanted.block.image_bytes(),
                wanted: vec![wanted],
            }),
        }
    }
    ranges
}

async fn load(shared: Arc<Shared>, mut range: Range) {
    let ended = timeout(shared.settings.read_timeout, fetch(&shared, &mut range)).await;
    let trouble = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(late("loading blocks")),
    };
    match &trouble {
        None => shared.reading.succeeded(),
        Some(error) => {
            shared.reading.failed(error, shared.now());
            if error.kind() == ErrorKind::NotFound {
                // deleted by somebody else: none of its blocks is there any more
                shared.objects.forget(&[Arc::clone(&range.object)], false);
            }
        }
    }
    for Wanted {
        block,
        location,
        outcome,
    } in range.wanted
    {
        let outcome = match (outcome, &trouble) {
            (Some(outcome), _) => outcome,
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(Error::internal("a block without an outcome")),
        };
        if let Err(error) = &outcome
            && error.kind() == ErrorKind::Corrupt
        {
            condemn(&shared, &block, &range.object, location, error);
        }
        block.complete(outcome);
    }
}

/// Takes a corrupt block out of the index. Its bytes stay in the bucket for inspection until their object is evicted.
fn condemn(shared: &Shared, block: &Pending, object: &StoredObject, location: Location, error: &Error) {
    let Some(index) = shared.index.get(&block.namespace.namespace) else {
        return;
    };
    if index.remove_at(&block.hash, location) {
        count(&shared.counters.quarantined_blocks, 1);
        let path = shared.paths.object(&object.name);
        let offset = u64::from(location.position) * index.image_bytes;
        tracing::warn!(%error, %path, offset, "a corrupt block of the bucket is quarantined");
    }
}

/// Tries until every block has an outcome. Corrupt bytes are asked for once more: the way here may be to blame.
async fn fetch(shared: &Shared, range: &mut Range) -> Result<()> {
    let _permit = shared
        .reads
        .acquire()
        .await
        .map_err(|_| Error::internal("no reads"))?;
    let mut attempt = 0;
    loop {
        if shared.reading.is_degraded() {
            return Err(shared.reading.refusal());
        }
        let result = fetch_once(shared, range, attempt > 0).await;
        attempt += 1;
        let unfinished = range.wanted.iter().any(|wanted| wanted.outcome.is_none());
        match result {
            Ok(()) if !unfinished => return Ok(()),
            Ok(()) => {}
            Err(error) if attempt >= MOST_ATTEMPTS || !error.kind().is_retryable() => return Err(error),
            Err(error) => tracing::debug!(%error, attempt, "a range is asked for again"),
        }
        pause(shared, FIRST_PAUSE_MS << attempt).await;
    }
}

async fn fetch_once(shared: &Shared, range: &mut Range, last_chance: bool) -> Result<()> {
    let Some(mut at) = range.wanted.iter().position(|wanted| wanted.outcome.is_none()) else {
        return Ok(());
    };
    let position = |at: usize| {
        range
            .wanted
            .get(at)
            .map(|wanted| u64::from(wanted.location.position))
    };
    let (image_bytes, count_wanted) = (range.image_bytes, range.wanted.len());
    let first = position(at).unwrap_or_default() * image_bytes;
    let bytes = first..first + (count_wanted - at) as u64 * image_bytes;
    let path = shared.paths.object(&range.object.name);
    let failed = |error| failure(error, &path);
    let clock = &*shared.runtime.clock;
    let found = shared
        .hedging
        .get(&*shared.store, clock, &path, bytes.clone())
        .await
        .map_err(failed)?;
    if found.range != bytes {
        let what = format!("bytes {:?} came instead of {bytes:?}", found.range);
        return Err(Error::new(ErrorKind::Unavailable, what).with("path", &path));
    }
    let mut body = found.into_stream();
    let mut image = ImageWriter::new();
    let mut skipped = 0;
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(failed)?;
        count(&shared.counters.read_bytes, chunk.len() as u64);
        while chunk.has_remaining() {
            let Some(wanted) = range.wanted.get_mut(at) else {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "more bytes came than were asked for",
                ));
            };
            let filled = image.filled() + skipped;
            let piece = chunk.split_to(chunk.len().min(image_bytes as usize - filled));
            if wanted.outcome.is_none() {
                wanted.block.fill(&mut image, &piece)?;
            } else {
                skipped += piece.len();
            }
            if filled + piece.len() == image_bytes as usize {
                at += 1;
                if wanted.outcome.is_none() {
                    let verdict = wanted.block.verify_filled(&image);
                    if verdict.is_ok() || last_chance {
                        wanted.outcome = Some(verdict);
                    }
                }
                (image, skipped) = (ImageWriter::new(), 0);
            }
        }
    }
    if at < count_wanted {
        return Err(Error::new(ErrorKind::Unavailable, "the answer ended early").with("path", &path));
    }
    Ok(())
}
