//! Purges: a mark in the bucket tells everybody, the objects are deleted, and whatever comes late is deleted too.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Namespace, Result};
use object_store::{ObjectStoreExt, PutPayload};

use crate::evict;
use crate::objects::StoredObject;
use crate::shared::Shared;
use crate::store::failure;

/// A mark is kept this long: far longer than an object may be on its way up.
const MARK_LIFETIME: Duration = Duration::from_hours(24);

/// The bound of a purge that begins now: everything that is there is at most that old, whichever clock wrote it.
pub fn bound(shared: &Shared, namespace: &Namespace) -> u64 {
    let newest = objects_of(shared, namespace, u64::MAX)
        .iter()
        .map(|object| object.name.generation)
        .max();
    let bound = shared.next_generation().max(newest.unwrap_or(0));
    shared.pass_generation(bound);
    bound
}

/// Forgets the namespace's blocks up to that bound. Returns how many went. Their objects are deleted by and by.
pub fn apply(shared: &Shared, namespace: &Namespace, bound: u64) -> u64 {
    let Some(index) = shared.index.purge(namespace, bound) else {
        return 0;
    };
    shared.pass_generation(bound);
    let before = index.len();
    let objects = objects_of(shared, namespace, bound);
    shared.objects.forget(&objects, true);
    before.saturating_sub(index.len())
}

fn objects_of(shared: &Shared, namespace: &Namespace, bound: u64) -> Vec<Arc<StoredObject>> {
    shared.objects.filtered(|object| {
        let index = object.index.as_ref();
        index.is_some_and(|index| index.namespace == *namespace) && object.name.generation <= bound
    })
}

/// Tells everybody, and deletes the objects.
pub async fn publish(shared: &Shared, namespace: &Namespace, bound: u64) -> Result<()> {
    let path = shared.paths.purge(namespace, bound);
    let put = shared.store.put(&path, PutPayload::new()).await;
    put.map_err(|error| failure(error, &path))?;
    evict::delete_doomed(shared).await
}

/// Deletes marks that are too old to matter.
pub async fn clean_up(shared: &Shared, marks: &[(Namespace, u64)]) -> Result<()> {
    let now = shared.now_us();
    for (namespace, bound) in marks {
        if now.saturating_sub(*bound) > MARK_LIFETIME.as_micros() as u64 {
            let path = shared.paths.purge(namespace, *bound);
            match shared.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failure(error, &path)),
            }
        }
    }
    Ok(())
}
