//! Storing a batch: verified, with room made for it, as one object.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvstored_core::quota::QuotaLedger;
use kvstored_core::{BlockHash, Error, Result};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::batch::{Batch, Pushed};
use crate::claims;
use crate::evict::{self, Room};
use crate::format::{Footer, ObjectName};
use crate::index::NamespaceIndex;
use crate::memory::bytes_of;
use crate::objects::StoredObject;
use crate::pending::Pending;
use crate::retry::retried;
use crate::shared::{Shared, count};
use crate::store::{failure, late};

/// Parts of one object on their way up at once.
const MOST_PARTS: usize = 4;
/// How long taking back a part of an upload that failed may take.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes a block in. Whoever waits for it hears when its object is complete.
pub fn push(
    shared: &Arc<Shared>,
    handle: &tokio::runtime::Handle,
    index: &Arc<NamespaceIndex>,
    block: Pending,
) {
    let pushed = shared
        .batches
        .push(index, block, shared.settings.object_bytes, || {
            shared.next_generation()
        });
    let shared = Arc::clone(shared);
    match pushed {
        Pushed::Joined => {}
        Pushed::Filled(batch) => drop(handle.spawn(async move { store(shared, batch).await })),
        Pushed::Began(generation) => {
            let namespace = index.namespace;
            handle.spawn(async move {
                tokio::time::sleep(shared.settings.batch_delay).await;
                if let Some(batch) = shared.batches.take(&namespace, generation) {
                    store(shared, batch).await;
                }
            });
        }
    }
}

/// Stores a batch and completes its blocks.
pub async fn store(shared: Arc<Shared>, batch: Batch) {
    let Batch {
        generation,
        index,
        blocks,
    } = batch;
    let deadline = Instant::now() + shared.settings.write_timeout;
    let blocks = verified(blocks);
    let (blocks, charged) = within_quota(&shared, &index, blocks);
    if blocks.is_empty() {
        return;
    }
    let outcome = timeout_at(deadline, put(&shared, &index, generation, &blocks)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(late("storing an object")));
    match &outcome {
        Ok((name, object_bytes, _room)) => {
            shared.writing.succeeded();
            count(&shared.counters.written_bytes, *object_bytes);
            let lengths = (*object_bytes, blocks.len() as u64 * index.image_bytes);
            let tenant = charged.then(|| tenant(&blocks));
            match shared
                .objects
                .add(*name, lengths, Some(Arc::clone(&index)), tenant)
            {
                Some(object) => {
                    let hashes: Vec<_> = blocks.iter().map(|block| block.hash).collect();
                    show(&shared, &object, &index, &hashes);
                }
                None => give_back(&shared, &index, &blocks, charged),
            }
        }
        Err(error) => {
            shared.writing.failed(error, shared.now());
            tracing::warn!(%error, blocks = blocks.len(), namespace = %index.namespace, "blocks are not stored in the bucket");
            give_back(&shared, &index, &blocks, charged);
        }
    }
    let outcome = outcome.map(drop);
    for block in blocks {
        block.complete(outcome.clone());
    }
}

/// Makes an object's blocks visible, unless a purge came meanwhile: then it's to be deleted.
pub fn show(shared: &Shared, object: &Arc<StoredObject>, index: &NamespaceIndex, hashes: &[BlockHash]) {
    if object.name.generation > index.purged() {
        index.place(object.handle, hashes);
    }
    // a purge that came in between has looked for objects before this one was known, or finds it now
    if object.name.generation <= index.purged() {
        shared.objects.forget(&[Arc::clone(object)], true);
    }
}

/// Gives the quota back what a batch had taken.
fn give_back(shared: &Shared, index: &NamespaceIndex, blocks: &[Pending], charged: bool) {
    if let (true, Some(ledger)) = (charged, &shared.ledger) {
        let bytes = blocks.len() as u64 * index.image_bytes;
        ledger.release(&tenant(blocks), &index.namespace, bytes);
    }
}

fn tenant(blocks: &[Pending]) -> String {
    blocks
        .first()
        .map(|block| block.namespace.identity.tenant.clone())
        .unwrap_or_default()
}

/// Those blocks whose image is what its envelope says; the others complete with `Corrupt`.
fn verified(blocks: Vec<Pending>) -> Vec<Pending> {
    let mut good = Vec::with_capacity(blocks.len());
    for block in blocks {
        match block.verify() {
            Ok(()) => good.push(block),
            Err(error) => block.complete(Err(error)),
        }
    }
    good
}

/// Takes the blocks' bytes from their tenant's quota, if there are quotas; those that don't fit complete with
/// `QuotaExceeded`. Says whether anything was taken.
fn within_quota(shared: &Shared, index: &NamespaceIndex, blocks: Vec<Pending>) -> (Vec<Pending>, bool) {
    let Some(ledger) = &shared.ledger else {
        return (blocks, false);
    };
    let reserve = |ledger: &QuotaLedger, block: &Pending| {
        ledger.reserve(
            &block.namespace.identity.tenant,
            &index.namespace,
            index.image_bytes,
        )
    };
    let mut within = Vec::with_capacity(blocks.len());
    for block in blocks {
        match reserve(ledger, &block) {
            Ok(()) => within.push(block),
            Err(error) => block.complete(Err(error)),
        }
    }
    (within, true)
}

/// Puts the object. Returns its name and length once it's complete, and the room that was kept for it.
async fn put<'a>(
    shared: &'a Shared,
    index: &NamespaceIndex,
    generation: u64,
    blocks: &[Pending],
) -> Result<(ObjectName, u64, Room<'a>)> {
    let _permit = shared
        .uploads
        .acquire()
        .await
        .map_err(|_| Error::internal("no uploads"))?;
    if let Some(block) = blocks.first() {
        retried(shared, || shared.namespaces.store(shared, &block.namespace)).await?;
    }
    let writer = retried(shared, || claims::claimed_writer(shared)).await?;
    let footer = Footer {
        name: ObjectName {
            generation,
            writer,
            sequence: shared.next_sequence()?,
        },
        namespace: index.namespace,
        image_bytes: index.image_bytes,
        created_unix_ms: shared.runtime.clock.unix_ms(),
        hashes: blocks.iter().map(|block| block.hash).collect(),
    };
    let length = footer.object_bytes();
    let room = evict::make_room(shared, footer.name, length).await?;
    let mut body: Vec<Bytes> = blocks
        .iter()
        .map(|block| bytes_of(&block.slot, index.image_bytes as usize))
        .collect();
    body.push(Bytes::from(footer.encode()?));
    let path = shared.paths.object(&footer.name);
    if length > 2 * shared.settings.part_bytes {
        put_in_parts(shared, &path, body).await?;
    } else {
        let result = shared.store.put(&path, PutPayload::from_iter(body)).await;
        result.map_err(|error| failure(error, &path))?;
    }
    Ok((footer.name, length, room))
}

/// Uploads in parts. One that fails is taken back, so that no part stays behind.
async fn put_in_parts(shared: &Shared, path: &Path, body: Vec<Bytes>) -> Result<()> {
    let mut upload = Upload::begin(shared, path).await?;
    let mut under_way = JoinSet::new();
    for part in parts(body, shared.settings.part_bytes) {
        while under_way.len() >= MOST_PARTS {
            finished(under_way.join_next().await, path)?;
        }
        if let Some(inner) = &mut upload.inner {
            under_way.spawn(inner.put_part(part));
        }
    }
    while let Some(ended) = under_way.join_next().await {
        finished(Some(ended), path)?;
    }
    if let Some(inner) = &mut upload.inner {
        inner.complete().await.map_err(|error| failure(error, path))?;
    }
    upload.inner = None;
    Ok(())
}

type Ended = Result<object_store::Result<()>, tokio::task::JoinError>;

fn finished(ended: Option<Ended>, path: &Path) -> Result<()> {
    match ended {
        Some(Ok(result)) => result.map_err(|error| failure(error, path)),
        Some(Err(error)) => Err(Error::internal(format!("an upload's task ended: {error}"))),
        None => Ok(()),
    }
}

/// An upload in parts that is taken back when it's dropped before it's complete.
struct Upload {
    inner: Option<Box<dyn object_store::MultipartUpload>>,
    path: Path,
}

impl Upload {
    async fn begin(shared: &Shared, path: &Path) -> Result<Self> {
        let inner = shared.store.put_multipart(path).await;
        Ok(Self {
            inner: Some(inner.map_err(|error| failure(error, path))?),
            path: path.clone(),
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(mut upload), Ok(handle)) = (self.inner.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let path = self.path.clone();
        handle.spawn(async move {
            let outcome = tokio::time::timeout(ABORT_TIMEOUT, upload.abort()).await;
            if !matches!(outcome, Ok(Ok(()))) {
                tracing::warn!(%path, "parts of an upload that failed stay in the bucket until a lifecycle rule removes them");
            }
        });
    }
}

/// Bodies of at most `part_bytes`, without copying.
fn parts(body: Vec<Bytes>, part_bytes: u64) -> Vec<PutPayload> {
    let part_bytes = part_bytes.max(1) as usize;
    let (mut parts, mut part, mut length) = (Vec::new(), Vec::new(), 0);
    for mut bytes in body {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(part_bytes - length));
            length += piece.len();
            part.push(piece);
            if length == part_bytes {
                parts.push(PutPayload::from_iter(std::mem::take(&mut part)));
                length = 0;
            }
        }
    }
    if !part.is_empty() {
        parts.push(PutPayload::from_iter(part));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_asked_size_and_all_bytes() {
        let body: Vec<Bytes> = [3usize, 10, 1, 7]
            .iter()
            .map(|n| Bytes::from(vec![*n as u8; *n]))
            .collect();
        let whole: Vec<u8> = body.iter().flatten().copied().collect();
        let parts = parts(body, 5);
        let lengths: Vec<usize> = parts.iter().map(PutPayload::content_length).collect();
        assert_eq!(lengths, [5, 5, 5, 5, 1]);
        let joined: Vec<u8> = parts
            .into_iter()
            .flat_map(|part| Bytes::from(part).to_vec())
            .collect();
        assert_eq!(joined, whole);
    }
}
