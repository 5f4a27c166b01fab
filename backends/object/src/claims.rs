//! Writers' numbers: claimed before the first object, forgotten long after the last.

use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio_stream::StreamExt;

use crate::shared::Shared;
use crate::store::failure;

/// Numbers that are tried before claiming one is given up.
const MOST_CLAIMS: usize = 3;
/// Claims are kept this long, for people; nobody draws the same number by chance.
const CLAIM_LIFETIME: Duration = Duration::from_hours(24 * 30);
/// Most old claims that are deleted at one start.
const MOST_DELETED: usize = 1000;

/// The number under which this process writes, made its own in the bucket first: two that drew the same one would
/// overwrite each other's objects.
pub async fn claimed_writer(shared: &Shared) -> Result<u128> {
    for _ in 0..MOST_CLAIMS {
        let (number, claimed) = shared.writer();
        if claimed {
            return Ok(number);
        }
        let path = shared.paths.claim(number);
        let options = PutOptions::from(PutMode::Create);
        let label = format!("{{\"claimed_unix_ms\": {}}}\n", shared.runtime.clock.unix_ms());
        match shared
            .store
            .put_opts(&path, PutPayload::from(label), options)
            .await
        {
            Ok(_) => shared.writer_claimed(number),
            Err(error) => match failure(error, &path) {
                // perhaps by an earlier attempt of ours whose answer was lost: a number costs nothing
                error if error.kind() == ErrorKind::AlreadyExists => shared.writer_taken(number),
                error => return Err(error),
            },
        }
    }
    match shared.writer() {
        (number, true) => Ok(number),
        _ => Err(Error::new(
            ErrorKind::Unavailable,
            "no writer's number could be claimed",
        )),
    }
}

/// Deletes claims of writers of long ago.
pub async fn clean_up(shared: &Shared) -> Result<()> {
    let folder = shared.paths.claims();
    let mut listing = shared.store.list(Some(&folder));
    let mut old = Vec::new();
    while let Some(found) = listing.next().await {
        let found = found.map_err(|error| failure(error, &folder))?;
        let then = u64::try_from(found.last_modified.timestamp_millis()).unwrap_or(0);
        let age = shared.runtime.clock.unix_ms().saturating_sub(then);
        if age > CLAIM_LIFETIME.as_millis() as u64 && old.len() < MOST_DELETED {
            old.push(found.location);
        }
    }
    for path in old {
        match shared.store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failure(error, &path)),
        }
    }
    Ok(())
}
