//! Room below the capacity: the oldest objects go first, whoever wrote them.

use kvstored_core::{Error, ErrorKind, Result};
use object_store::ObjectStoreExt;

use crate::format::ObjectName;
use crate::shared::{Shared, count};
use crate::store::failure;

/// Part of the capacity that is freed at once, so that indexes aren't gone through for every object.
const STEP: u64 = 50;
/// Used part of the capacity, in percent, past which room is made before anybody needs it.
const HIGH_PERCENT: u64 = 95;

/// Bytes that are kept for an object on its way up.
pub struct Room<'a> {
    shared: &'a Shared,
    name: ObjectName,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shared.objects.end(&self.name, self.bytes);
    }
}

/// Keeps bytes for an object, deleting the oldest objects as needed.
///
/// Fails with `TooLarge` if it can never fit, and with `NoSpace` if nothing can be deleted now.
pub async fn make_room(shared: &Shared, name: ObjectName, bytes: u64) -> Result<Room<'_>> {
    let capacity = shared.settings.capacity_bytes;
    if bytes > capacity {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("an object of {bytes} bytes exceeds the capacity of {capacity} bytes"),
        ));
    }
    let _one_at_a_time = shared.room.lock().await;
    while shared.objects.allocated_bytes() + bytes > capacity {
        delete_doomed(shared).await.map_err(no_room)?;
        let missing = (shared.objects.allocated_bytes() + bytes).saturating_sub(capacity);
        if missing == 0 {
            break;
        }
        if evict(shared, missing) == 0 {
            return Err(Error::new(
                ErrorKind::NoSpace,
                "all of the capacity is on its way up",
            ));
        }
        delete_doomed(shared).await.map_err(no_room)?;
    }
    shared.objects.begin(name, bytes);
    Ok(Room { shared, name, bytes })
}

fn no_room(error: Error) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("old objects can't be deleted: {error}"),
    )
}

/// Makes room ahead of need, and deletes what is left over from earlier.
pub async fn keep_below_capacity(shared: &Shared) -> Result<()> {
    let capacity = shared.settings.capacity_bytes;
    let high = capacity / 100 * HIGH_PERCENT;
    let used = shared.objects.allocated_bytes();
    if used > high {
        let _one_at_a_time = shared.room.lock().await;
        evict(shared, used - high);
    }
    delete_doomed(shared).await
}

/// Forgets the oldest objects; they are deleted next. Returns how many went.
fn evict(shared: &Shared, missing: u64) -> usize {
    let bytes = missing.max(shared.settings.capacity_bytes / STEP);
    let oldest = shared.objects.oldest(bytes);
    let blocks = shared.objects.forget(&oldest, true);
    count(&shared.counters.evicted_blocks, blocks);
    oldest.len()
}

/// Deletes what nobody reads any more.
pub async fn delete_doomed(shared: &Shared) -> Result<()> {
    for name in shared.objects.doomed() {
        delete(shared, &name).await?;
    }
    Ok(())
}

/// Deletes an object; one that is gone already is as good.
async fn delete(shared: &Shared, name: &ObjectName) -> Result<()> {
    let path = shared.paths.object(name);
    match shared.store.delete(&path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {
            shared.objects.deleted(name);
            Ok(())
        }
        Err(error) => Err(failure(error, &path)),
    }
}
