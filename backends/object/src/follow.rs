//! Follows what other writers store, delete and purge, and finds out what is there at the start.
//!
//! A round lists the newest objects and the marks of purges; now and then everything, which also shows what others
//! deleted. While the bucket doesn't answer, rounds go on with growing pauses, and the first that succeeds heals the tier.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Namespace, Result};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;

use crate::claims;
use crate::evict;
use crate::format::{Footer, MAX_FOOTER_BYTES, ObjectName, TRAILER_BYTES};
use crate::health::MOST_FAILURES;
use crate::paths::Kind;
use crate::purge;
use crate::shared::{Shared, count};
use crate::store::{failure, late};
use crate::upload::show;

/// Most objects that are kept track of.
const MOST_OBJECTS: usize = 4 << 20;
/// Footers that are read at once.
const MOST_FETCHES: usize = 16;
/// Read from an object's end at first: the footers of up to 1,600 blocks.
const TAIL_BYTES: u64 = 64 << 10;
/// The longest pause between rounds while the bucket doesn't answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often what others left behind is looked for.
const CLEANING_INTERVAL: Duration = Duration::from_hours(1);
/// A page of a listing may take this long, or as long as a load.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// What a listing showed.
#[derive(Default)]
struct Seen {
    new: Vec<(ObjectName, u64)>,
    all: HashSet<ObjectName>,
    purges: Vec<(Namespace, u64)>,
}

/// Runs until the task is dropped.
pub async fn run(shared: Arc<Shared>) {
    let mut full_at = Instant::now();
    let mut failures = 0u32;
    let mut cleaning_at = Instant::now();
    loop {
        let full = Instant::now() >= full_at;
        match round(&shared, full).await {
            Ok(()) => {
                failures = 0;
                if shared.reading.is_degraded() && answers_loads(&shared).await {
                    shared.reading.succeeded();
                }
                if Instant::now() >= cleaning_at {
                    cleaning_at = Instant::now() + CLEANING_INTERVAL;
                    clean_up(&shared).await;
                }
                if full {
                    full_at = Instant::now() + shared.settings.full_interval;
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::debug!(%error, failures, "the bucket couldn't be followed");
                if failures >= MOST_FAILURES {
                    shared.reading.degrade(&error, shared.now());
                }
            }
        }
        let interval = shared.settings.tail_interval;
        let pause = interval
            .saturating_mul(1 << failures.min(6))
            .min(LONGEST_PAUSE.max(interval));
        // many nodes that started together shall not ask together
        let spread = shared.runtime.random.next_u64() % 50;
        let pause = pause * (75 + spread as u32) / 100;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.reading.alarm.notified() => tokio::time::sleep(pause.min(interval)).await,
        }
    }
}

/// Whether loads are answered, and not only listings: asks for the end of the newest object.
async fn answers_loads(shared: &Shared) -> bool {
    let Some(newest) = shared.objects.newest() else {
        return true;
    };
    let path = shared.paths.object(&newest.name);
    let range = newest.bytes.saturating_sub(TRAILER_BYTES as u64)..newest.bytes;
    let answer = timeout(shared.settings.read_timeout, shared.store.get_range(&path, range)).await;
    // one that is gone was answered, too
    matches!(answer, Ok(Ok(_) | Err(object_store::Error::NotFound { .. })))
}

/// Deletes what processes of long ago left behind. Nothing depends on it.
async fn clean_up(shared: &Shared) {
    if let Err(error) = claims::clean_up(shared).await {
        tracing::debug!(%error, "old claims stay");
    }
    let Some(uploads) = &shared.uploads_left else {
        return;
    };
    match uploads.clean_up(shared).await {
        Ok(0) => {}
        Ok(uploads) => tracing::info!(uploads, "uploads that nobody will finish were taken back"),
        Err(error) => tracing::debug!(%error, "unfinished uploads stay"),
    }
}

async fn round(shared: &Arc<Shared>, full: bool) -> Result<()> {
    let number = if full { shared.objects.begin_round() } else { 0 };
    let seen = list(shared, full).await?;
    for (namespace, bound) in &seen.purges {
        purge::apply(shared, namespace, *bound);
    }
    let unread = read_footers(shared, seen.new).await;
    if full {
        // what became known while the listing went on may be missing in it
        let gone =
            |object: &crate::objects::StoredObject| object.round < number && !seen.all.contains(&object.name);
        let gone = shared.objects.filtered(gone);
        if !gone.is_empty() {
            tracing::debug!(objects = gone.len(), "objects were deleted by others");
            shared.objects.forget(&gone, false);
        }
        purge::clean_up(shared, &seen.purges).await?;
    }
    // blocks can be read all the same
    if let Err(error) = evict::keep_below_capacity(shared).await {
        tracing::warn!(%error, "objects couldn't be deleted");
    }
    unread.map_or(Ok(()), Err)
}

async fn list(shared: &Shared, full: bool) -> Result<Seen> {
    let root = shared.paths.root();
    let late_us = shared.settings.late_by().as_micros() as u64;
    let from = if full {
        0
    } else {
        shared.now_us().saturating_sub(late_us)
    };
    let mut listing = shared
        .store
        .list_with_offset(Some(root), &shared.paths.objects_from(from));
    let mut seen = Seen::default();
    let patience = shared.settings.read_timeout.max(LEAST_PATIENCE);
    loop {
        let Ok(next) = timeout(patience, listing.next()).await else {
            return Err(late("listing the bucket"));
        };
        let Some(found) = next else { return Ok(seen) };
        let found = found.map_err(|error| failure(error, root))?;
        match shared.paths.kind(&found.location) {
            Kind::Object(name) => {
                if !shared.objects.knows(&name) && shared.objects.len() + seen.new.len() < MOST_OBJECTS {
                    seen.new.push((name, found.size));
                }
                if full {
                    seen.all.insert(name);
                }
            }
            Kind::Purge(namespace, bound) => seen.purges.push((namespace, bound)),
            Kind::Other => {}
        }
    }
}

/// Reads the footers of new objects, oldest first. Returns what kept one from being read: it's tried again next time.
async fn read_footers(shared: &Arc<Shared>, mut new: Vec<(ObjectName, u64)>) -> Option<Error> {
    new.sort_unstable();
    let mut trouble = None;
    let mut tasks = JoinSet::new();
    let mut waiting = new.into_iter();
    loop {
        while tasks.len() < MOST_FETCHES
            && trouble.is_none()
            && let Some((name, bytes)) = waiting.next()
        {
            let shared = Arc::clone(shared);
            tasks.spawn(async move { adopt(&shared, name, bytes).await });
        }
        match tasks.join_next().await {
            None => return trouble,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => trouble = Some(error),
            Some(Err(error)) => trouble = Some(Error::internal(format!("a task ended: {error}"))),
        }
    }
}

/// Makes an object's blocks visible. A footer that is bad is remembered, so that it isn't read again.
async fn adopt(shared: &Shared, name: ObjectName, bytes: u64) -> Result<()> {
    let path = shared.paths.object(&name);
    let fetched = timeout(
        shared.settings.read_timeout,
        fetch_footer(shared, &path, &name, bytes),
    )
    .await;
    let footer = match fetched.unwrap_or_else(|_| Err(late("reading a footer"))) {
        Ok(footer) => footer,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            // its bytes count and it's evicted in its turn, but nobody reads it
            if shared.objects.add(name, (bytes, 0), None, None).is_some() {
                count(&shared.counters.quarantined_blocks, 1);
                tracing::warn!(%error, %path, "an object's footer is bad; its blocks are misses");
            }
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let Some(index) = shared.index.ensure(&footer.namespace, footer.image_bytes) else {
        tracing::warn!(%path, "an object's blocks have another size than its namespace's; they are misses");
        shared.objects.add(name, (bytes, 0), None, None);
        return Ok(());
    };
    if index.info().is_none() {
        match shared.namespaces.fetch(shared, &footer.namespace).await {
            Ok(info) if info.layout.image_bytes() as u64 == footer.image_bytes => index.learn(&info),
            Ok(_) => tracing::warn!(%path, "an object contradicts its namespace's layout"),
            // its blocks can be found all the same, by whoever knows what they are
            Err(error) => {
                tracing::debug!(%error, namespace = %footer.namespace, "a manifest couldn't be read");
            }
        }
    }
    let images = footer.hashes.len() as u64 * footer.image_bytes;
    let Some(object) = shared
        .objects
        .add(name, (bytes, images), Some(Arc::clone(&index)), None)
    else {
        return Ok(());
    };
    shared.objects.charge(&object);
    show(shared, &object, &index, &footer.hashes);
    Ok(())
}

async fn fetch_footer(shared: &Shared, path: &Path, name: &ObjectName, bytes: u64) -> Result<Footer> {
    if bytes < TRAILER_BYTES as u64 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("an object of {bytes} bytes"),
        ));
    }
    let failed = |error| failure(error, path);
    let range = bytes.saturating_sub(TAIL_BYTES)..bytes;
    let tail = shared.store.get_range(path, range).await.map_err(failed)?;
    let length = Footer::length_from(&tail, bytes)?.min(MAX_FOOTER_BYTES);
    let tail = if length > tail.len() {
        let range = bytes - length as u64..bytes;
        shared.store.get_range(path, range).await.map_err(failed)?
    } else {
        tail
    };
    count(&shared.counters.read_bytes, tail.len() as u64);
    let footer = tail.len().checked_sub(length).and_then(|start| tail.get(start..));
    Footer::decode(name, footer.unwrap_or_default(), bytes)
}
